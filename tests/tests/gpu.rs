//! What ranks compute on, and in which numbers: bfloat16 on CPUs, which goes through the engine for GPUs, is trained, stopped and
//! resumed like everything else; a GPU that is not there is told at once; one that is there (`BAM_TEST_GPU=1`) learns what CPUs learn.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use bam_tests::{Bam, Recipe, Run, Workplace, say_skipped};
use nix::sys::signal::Signal;

const STAGES: [&str; 3] = ["teacher-cola", "teacher-warmth", "student"];

fn place(reproducible: &str) -> Workplace {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "warmth"]);
    // With the encoder's own dropout.
    recipe.model = "max_length: 40".into();
    recipe.single = "epochs: 1, batch_size: 16, learning_rate: 0.0005".into();
    recipe.multi = "epochs: 1, batch_size: 16, learning_rate: 0.0005".into();
    place.write("recipe.yaml", &(recipe.text() + reproducible));
    place
}

fn command(place: &Workplace, run: &Run, processes: &str, precision: &str) -> Bam {
    let precision = format!("cluster.precision={precision}");
    place.bam(["run", "recipe.yaml", "-n", processes, "--run-dir", run.path().to_str().unwrap(), "-o", &precision])
}

#[test]
fn bfloat16_learns_what_float32_learns_and_a_stop_does_not_show() {
    let place = place("");
    let run = |name: &str| Run::new(place.at("runs").join(name));
    let (float, reference, stopped) = (run("fp32"), run("bf16"), run("stopped"));
    command(&place, &float, "2", "fp32").expect(0);
    let done = command(&place, &reference, "2", "bf16").expect(0);
    assert!(done.stderr.contains("student: on cpu in bf16; gradients are added up by MPI"), "{done}");
    for stage in STAGES {
        assert_eq!(float.receipt(stage), reference.receipt(stage), "receipt of {stage}");
        let (float, reference) = (float.steps(stage), reference.steps(stage));
        assert_eq!(float.len(), reference.len());
        for (a, b) in float.iter().zip(&reference) {
            let off = (a.loss - b.loss).abs() / a.loss.max(0.1);
            assert!(off < 0.1, "{stage}, step {}: loss {} in bf16, {} in fp32", a.step, b.loss, a.loss);
        }
    }
    let mut running = command(&place, &stopped, "2", "bf16").start();
    running.wait_until("steps of the student", || stopped.steps("student").len() >= 5);
    running.signal(Signal::SIGKILL);
    running.finish();
    command(&place, &stopped, "2", "bf16").expect(0);
    for stage in STAGES {
        assert_eq!(reference.weights_sha256(stage), stopped.weights_sha256(stage), "weights of {stage}");
        assert_eq!(reference.steps(stage), stopped.steps(stage), "metrics of {stage}");
    }
}

#[test]
fn bfloat16_has_the_same_bits_on_every_number_of_processes_if_that_is_asked_for() {
    let place = place("reproducible: world-size\nvirtual_shards: 4\n");
    let run = |processes: &str| {
        let run = Run::new(place.at("runs").join(processes));
        command(&place, &run, processes, "bf16").expect(0);
        run
    };
    let (one, three) = (run("1"), run("3"));
    for stage in STAGES {
        assert_eq!(one.weights_sha256(stage), three.weights_sha256(stage), "weights of {stage}");
        assert_eq!(one.steps(stage), three.steps(stage), "metrics of {stage}");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_told_at_once() {
    let place = place("");
    let bam = |settings: &[&str]| {
        let name = format!("name={}", settings.join("-").replace(['.', '=', '[', ']'], "_"));
        let bam = place.bam(["run", "recipe.yaml", "-n", "1", "-o", &name]).env("CUDA_VISIBLE_DEVICES", "");
        settings.iter().fold(bam, |bam, setting| bam.arg("-o").arg(setting))
    };
    let refused = bam(&["cluster.device=cuda"]).expect(2);
    for words in ["rank 0 on", "sees no GPU", "cluster.device: cpu", "CUDA_VISIBLE_DEVICES"] {
        assert!(refused.stderr.contains(words), "{words} is not in\n{refused}");
    }
    let refused = bam(&["cluster.precision=tf32", "cluster.device=cpu"]).expect(2);
    assert!(refused.stderr.contains("tf32 is for GPUs"), "{refused}");
    let refused = bam(&["cluster.precision=tf32", "cluster.device=auto"]).expect(2);
    assert!(refused.stderr.contains("say fp32 or bf16"), "{refused}");
    let done = bam(&["cluster.device=auto", "mode=single", "data.tasks=[cola]"]).expect(0);
    assert!(done.stderr.contains("cluster.device: auto chose cpu in fp32: not every rank sees a GPU"), "{done}");
}

/// Part of `make test-gpu`.
#[test]
fn a_gpu_learns_what_a_cpu_learns_and_a_stop_does_not_show() {
    if std::env::var_os("BAM_TEST_GPU").is_none() {
        say_skipped(
            "a_gpu_learns_what_a_cpu_learns_and_a_stop_does_not_show",
            "set BAM_TEST_GPU=1 on a machine with a GPU",
        );
        return;
    }
    let place = place("");
    let run = |name: &str, settings: &[&str]| {
        let run = Run::new(place.at("runs").join(name));
        let bam = command(&place, &run, "1", "auto");
        settings.iter().fold(bam, |bam, setting| bam.arg("-o").arg(setting)).expect(0);
        run
    };
    let exact = ["model.dropout=0"];
    let cpu = run("cpu", &exact);
    for (precision, limit) in [("fp32", 1e-3), ("tf32", 1e-2), ("bf16", 0.1)] {
        let precision_ = format!("cluster.precision={precision}");
        let gpu = run(precision, &[exact[0], "cluster.device=cuda", &precision_]);
        for stage in STAGES {
            for (a, b) in cpu.steps(stage).iter().zip(&gpu.steps(stage)) {
                let off = (a.loss - b.loss).abs() / a.loss.max(0.1);
                assert!(off < limit, "{stage}, step {}: loss {} in {precision}, {} on CPUs", a.step, b.loss, a.loss);
            }
        }
    }
    // With dropout.
    let whole = run("whole", &["cluster.device=cuda"]);
    let stopped = Run::new(place.at("runs/stopped"));
    let mut running = command(&place, &stopped, "1", "auto").arg("-o").arg("cluster.device=cuda").start();
    running.wait_until("steps of the student", || stopped.steps("student").len() >= 3);
    running.signal(Signal::SIGKILL);
    running.finish();
    command(&place, &stopped, "1", "auto").arg("-o").arg("cluster.device=cuda").expect(0);
    for stage in STAGES {
        assert_eq!(whole.weights_sha256(stage), stopped.weights_sha256(stage), "weights of {stage}");
    }
    // Two ranks on one GPU: only if that is asked for.
    let shared = Run::new(place.at("runs/shared"));
    let two =
        || command(&place, &shared, "2", "auto").arg("-o").arg("cluster.device=cuda").env("CUDA_VISIBLE_DEVICES", "0");
    let refused = two().expect(2);
    assert!(refused.stderr.contains("cluster.share_gpus: true"), "{refused}");
    two().arg("-o").arg("cluster.share_gpus=true").expect(0);
}
