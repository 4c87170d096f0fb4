//! `bam doctor` says what a machine lacks, and what to do about it.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bam_tests::{FakeSlurm, Finished, Recipe, Workplace, program, say_skipped, write_program};
use serde_json::{Value, json};

/// A worker that does nothing but answer what doctor asks, for what cannot be brought about on one machine.
fn answering(place: &Workplace, changes: Value) -> PathBuf {
    let mut answer = json!({
        "ranks": 2, "hosts": ["n1", "n2"], "share_memory": true, "mpi": "Open MPI", "hdf5": "1.14.0", "gpus": 0,
        "libtorch": "2.11.0", "libtorch_has_cuda": true, "sees_token": [true, true], "latency": 1e-5, "bandwidth": 1e9,
        "clocks": 0.001, "rates": [1e11, 1e11]
    });
    answer.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let worker = place.at("answering-worker");
    let version = env!("CARGO_PKG_VERSION");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" != --version ] || {{ echo bam-worker {version}; exit; }}\n\
         [ \"$OMPI_COMM_WORLD_RANK\" != 0 ] || echo '{answer}'\n"
    );
    write_program(&worker, &text);
    worker
}

/// What doctor finds with such a worker.
fn with_answer(place: &Workplace, changes: Value, code: i32) -> Finished {
    place.bam(["doctor"]).env("BAM_WORKER", answering(place, changes)).expect(code)
}

#[test]
fn a_machine_that_is_fit_has_no_problem() {
    let place = Workplace::new();
    let done = place.bam(["doctor"]).expect(0);
    for words in [
        "2 met (2 on ",
        "an empty collective takes ",
        "ranks of one host share its memory",
        "GFLOP/s",
        "libtorch 2.11.0",
        "all see ",
        "\n0 problems",
    ] {
        assert!(done.stdout.contains(words), "'{words}' is not in {done}");
    }
    // It has looked where runs would be, and left nothing there.
    assert!(!place.at("runs").exists());
    let done = place.bam(["doctor", "--json", "-n", "1"]).expect(0);
    let findings: Vec<Value> = serde_json::from_str(&done.stdout).unwrap();
    let about: Vec<&str> = findings.iter().map(|finding| finding["about"].as_str().unwrap()).collect();
    for kind in ["programs", "PMI", "ranks", "this machine", "GPUs", "files", "Slurm"] {
        assert!(about.contains(&kind), "{about:?}");
    }
    assert!(findings.iter().all(|finding| finding["verdict"] != "problem" && finding["said"] != ""), "{done}");
}

#[test]
fn programs_that_are_not_there_or_do_not_start_are_problems() {
    let place = Workplace::new();
    let done = place.bam(["doctor"]).env("BAM_MPIRUN", "/nowhere/mpirun").expect(1);
    assert!(done.stdout.contains("PROBLEM  /nowhere/mpirun is not an executable program"), "{done}");
    assert!(done.stdout.contains("→ install Open MPI"), "{done}");
    // The rest was looked at all the same.
    assert!(done.stdout.contains("locks keep a second start out of a run"), "{done}");
    let broken = place.at("broken-worker");
    write_program(&broken, "#!/bin/sh\necho 'error while loading shared libraries: libfoo.so.7' >&2\nexit 127\n");
    let done = place.bam(["doctor"]).env("BAM_WORKER", &broken).expect(1);
    assert!(done.stdout.contains("does not start: error while loading shared libraries: libfoo.so.7"), "{done}");
}

#[test]
fn ranks_that_do_not_find_one_another_are_a_problem() {
    let place = Workplace::new();
    let mpirun = place.at("another-mpirun");
    // What an mpirun of another MPI amounts to: processes that know nothing of one another.
    let text = "#!/bin/sh\nwhile [ \"${1##*/}\" != bam-worker ]; do shift; done\n\"$@\"; \"$@\"\n";
    write_program(&mpirun, text);
    let done = place.bam(["doctor"]).env("BAM_MPIRUN", &mpirun).expect(1);
    assert!(done.stdout.contains("2 ranks were started, of which 1 found one another"), "{done}");
    assert!(done.stdout.contains("→ what starts the ranks is of another MPI"), "{done}");
}

#[test]
fn a_recipe_and_the_command_line_are_read_as_by_run() {
    let place = Workplace::new();
    place.bam(["doctor", "no.yaml"]).finish().expect_error(2, &["no.yaml"]);
    place.recipe("recipe.yaml", &Recipe::of(&["cola"]));
    let done =
        place.bam(["doctor", "recipe.yaml", "-n", "1", "-o", "cluster.threads=1", "--dir", "/proc/runs"]).expect(1);
    assert!(done.stdout.contains("1 met"), "{done}");
    assert!(done.stdout.contains("PROBLEM  nothing can be written to /proc"), "{done}");
}

#[test]
fn a_controller_that_is_away_is_a_problem() {
    let place = Workplace::new();
    let slurm = FakeSlurm::new(&place.at("slurm"));
    let sinfo = "#!/bin/sh\ncase $1 in --version) echo slurm 23.11.4;; *) echo 'Unable to contact slurm controller' >&2; exit 1;; esac\n";
    write_program(&place.at("slurm/sinfo"), sinfo);
    let done = place.bam(["doctor", "-n", "1"]).env("PATH", slurm.path()).expect(1);
    assert!(done.stdout.contains("slurm 23.11.4"), "{done}");
    assert!(done.stdout.contains("sinfo does not answer: Unable to contact"), "{done}");
}

#[test]
fn hosts_whose_clocks_differ_or_that_do_not_share_the_run_directory_are_told() {
    let place = Workplace::new();
    let done = with_answer(&place, json!({}), 0);
    assert!(done.stdout.contains("libtorch 2.11.0, built with CUDA"), "{done}");
    let done = with_answer(&place, json!({ "clocks": 70.0 }), 0);
    assert!(done.stdout.contains("warning  the clocks of the hosts are 70.0 s apart"), "{done}");
    let done = with_answer(&place, json!({ "sees_token": [true, false] }), 1);
    assert!(done.stdout.contains("PROBLEM  rank 1 on n2 do not see in"), "{done}");
}

#[test]
fn an_mpirun_of_another_mpi_is_a_problem() {
    let place = Workplace::new();
    write_program(&place.at("hydra"), "#!/bin/sh\necho 'HYDRA build details:'\necho '    Version: 4.0.2'\n");
    let done = place.bam(["doctor"]).env("BAM_MPIRUN", place.at("hydra")).expect(1);
    assert!(done.stdout.contains("hydra is MPICH's") && done.stdout.contains("→ name Open MPI's mpirun"), "{done}");
}

/// The real worker, but for one library's name: the loader does not find it.
#[test]
fn a_library_that_is_missing_is_named() {
    let place = Workplace::new();
    let mut bytes = fs::read(program("bam-worker")).unwrap();
    let name = b"libtorch_cpu.so\0";
    let at = bytes.windows(name.len()).position(|window| window == name);
    bytes[at.expect("the worker needs libtorch") + 3..][..5].copy_from_slice(b"gonee");
    let worker = place.at("bam-worker");
    fs::write(&worker, bytes).unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&worker).status().unwrap().success());
    let done = place.bam(["doctor"]).env("BAM_WORKER", &worker).expect(1);
    let words = "does not start: ";
    assert!(done.stdout.contains(words) && done.stdout.contains("libgonee_cpu.so: cannot open"), "{done}");
}

#[test]
fn a_gpu_that_others_use_is_named_with_them() {
    let place = Workplace::new();
    let smi = "#!/bin/sh\ncase $1 in\n\
        --query-gpu=*) echo '0, GPU-a, NVIDIA H100, 3, 81559, 550.54'; echo '1, GPU-b, NVIDIA H100, 40000, 81559, 550.54' ;;\n\
        --query-compute-apps=*) echo 'GPU-b, 4711, /usr/bin/python3, 39990' ;;\nesac\n";
    fs::create_dir(place.at("bin")).unwrap();
    write_program(&place.at("bin/nvidia-smi"), smi);
    let path = format!("{}:{}", place.at("bin").display(), std::env::var("PATH").unwrap());
    let worker = answering(&place, json!({}));
    let done = place.bam(["doctor"]).env("PATH", &path).env("BAM_WORKER", &worker).expect(0);
    assert!(done.stdout.contains("ok       GPU 0, NVIDIA H100: 0.0 of 79.6 GiB in use\n"), "{done}");
    let words = "warning  GPU 1, NVIDIA H100: 39.1 of 79.6 GiB in use, by /usr/bin/python3 (pid 4711, 39990 MiB)";
    assert!(done.stdout.contains(words), "{done}");
    write_program(&place.at("bin/nvidia-smi"), "#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n");
    let done = place.bam(["doctor"]).env("PATH", &path).env("BAM_WORKER", &worker).expect(1);
    assert!(done.stdout.contains("PROBLEM  nvidia-smi does not answer: NVIDIA-SMI has failed"), "{done}");
}

#[test]
fn data_that_cannot_be_used_is_a_problem_with_its_file_and_line() {
    let place = Workplace::new();
    place.recipe("recipe.yaml", &Recipe::of(&["cola"]));
    let worker = answering(&place, json!({}));
    let examine = |code| place.bam(["doctor", "recipe.yaml"]).env("BAM_WORKER", &worker).expect(code);
    let done = examine(0);
    for words in ["ok       the encoder and 1 task with 300 examples are sound", "; the run takes ~"] {
        assert!(done.stdout.contains(words), "{done}");
    }
    place.edit("glue/CoLA/train.tsv", |text| text.replacen("\t1\t", "\t7\t", 1));
    let done = examine(1);
    assert!(done.stdout.contains("CoLA/train.tsv, line ") && done.stdout.contains("unknown label '7'"), "{done}");
    fs::remove_file(place.at("encoder/config.json")).unwrap();
    let done = examine(1);
    assert!(done.stdout.contains("encoder/config.json") && done.stdout.contains("→ model.path must be"), "{done}");
}

/// Takes a file system away at the end.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_file_system_is_a_problem() {
    let place = Workplace::new();
    let small = place.at("small");
    fs::create_dir(&small).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=32m", "tmpfs"]).arg(&small).output();
    if !mount.is_ok_and(|output| output.status.success()) {
        say_skipped("a_full_file_system_is_a_problem", "mounting a small file system takes root");
        return;
    }
    let _mounted = Mounted(&small);
    let worker = answering(&place, json!({}));
    let done = place.bam(["doctor", "--dir", "small/runs"]).env("BAM_WORKER", worker).expect(1);
    assert!(done.stdout.contains("warning  0.0 GiB are free in"), "{done}");
    assert!(done.stdout.contains("PROBLEM  64 MiB cannot be written: No space left on device"), "{done}");
}

/// A file system whose locks do nothing, or are refused: as the C library has it, that is what programs see.
#[test]
fn a_file_system_without_locks_is_told() {
    let place = Workplace::new();
    let worker = answering(&place, json!({}));
    for (name, body, code, words) in [
        ("refused", "errno = ENOLCK; return -1;", 1, "PROBLEM  files cannot be locked: No locks available"),
        ("ignored", "return 0;", 0, "warning  two may hold the same lock here"),
    ] {
        let source = format!("#include <errno.h>\nint flock(int file, int operation) {{ {body} }}\n");
        let (source, library) = (place.write(&format!("{name}.c"), &source), place.at(format!("{name}.so")));
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).output();
        if !compiled.is_ok_and(|output| output.status.success()) {
            say_skipped("a_file_system_without_locks_is_told", "there is no C compiler (cc)");
            return;
        }
        let done = place.bam(["doctor"]).env("BAM_WORKER", &worker).env("LD_PRELOAD", &library).expect(code);
        assert!(done.stdout.contains(words), "{done}");
        assert!(done.stdout.contains("mount it with locks"), "{done}");
    }
}

#[test]
fn a_partition_that_has_less_than_the_recipe_asks_for_is_a_problem() {
    let place = Workplace::new();
    let slurm = FakeSlurm::new(&place.at("slurm"));
    let sinfo = "#!/bin/sh\ncase $1 in --version) echo slurm 23.11.4;; *) echo 'gpu*|up|1-00:00:00|4|64|256000|gpu:h100:4';; esac\n";
    write_program(&place.at("slurm/sinfo"), sinfo);
    write_program(&place.at("slurm/srun"), "#!/bin/sh\necho 'MPI plugin types are...'; echo none; echo pmi2\n");
    let mut recipe = Recipe::of(&["cola"]);
    recipe.slurm = "gpus_per_node: 8, jobs: { student: { time: 2-00 } }".into();
    place.recipe("recipe.yaml", &recipe);
    let worker = answering(&place, json!({}));
    let examine = |arguments: &[&str]| {
        let bam = place.bam(["doctor", "recipe.yaml"]).env("PATH", slurm.path()).env("BAM_WORKER", &worker);
        arguments.iter().fold(bam, |bam, argument| bam.arg(argument)).expect(1)
    };
    let done = examine(&[]);
    assert!(done.stdout.contains("asks for 8, a node of partition 'gpu' has 4"), "{done}");
    assert!(done.stdout.contains("srun's plug-ins: none, pmi2; PMIx is not among them"), "{done}");
    let done = examine(&["-o", "slurm.gpus_per_node=4"]);
    assert!(
        done.stdout.contains("job 'student': slurm.time asks for 2-00, partition 'gpu' allows 24.0 hours"),
        "{done}"
    );
}
