//! Models of one task trained at the same time, on ranks of their own.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use bam_cluster::files;
use bam_cluster::protocol::ControlFile;
use bam_cluster::run_dir::RunDir;
use bam_tests::{Recipe, Run, Running, Workplace};
use nix::sys::signal::Signal;

const ALONE: [&str; 2] = ["run", "recipe.yaml"];

/// Two tasks, trained by one rank each at the same time, and then one model of both on two ranks.
fn workplace() -> Workplace {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "warmth"]);
    recipe.single = "epochs: 40, batch_size: 8, learning_rate: 0.002".into();
    recipe.multi = "epochs: 1, batch_size: 16".into();
    // Only where something stops.
    recipe.checkpoint = "every_steps: 5000".into();
    recipe.cluster = "processes: 2, single_processes: 1".into();
    place.recipe("recipe.yaml", &recipe);
    place
}

/// Waits until both teachers train.
fn both_train(running: &mut Running, run: &Run) {
    running.wait_until("steps of both", || {
        ["teacher-cola", "teacher-warmth"].iter().all(|s| run.steps(s).len() >= 8 && !run.is_done(s))
    });
}

#[test]
fn teachers_run_side_by_side_stop_together_and_leave_what_one_after_another_leaves() {
    let place = workplace();
    let run = Run::new(place.at("runs/tiny"));
    let mut running = place.bam(ALONE).start();
    both_train(&mut running, &run);
    // Each has a slot, and with it a GPU where there are any, of its own.
    let of_bam = RunDir::new(place.at("runs/tiny"));
    let slots = ["teacher-cola", "teacher-warmth"].map(|stage| {
        let file: ControlFile = files::read_json(&of_bam.control(stage)).unwrap().unwrap();
        file.places
    });
    assert!(slots == [[0], [1]] || slots == [[1], [0]], "{slots:?}");
    running.signal(Signal::SIGINT);
    let stopped = running.finish().expect(75);
    for stage in ["teacher-cola", "teacher-warmth"] {
        assert!(stopped.stderr.contains(&format!("{stage}: stopped at step")), "{stopped}");
        assert_eq!(run.checkpoints(stage).len(), 1);
    }
    // A rank of one of them is killed: the other one keeps what it has done.
    let mut running = place.bam(ALONE).arg("-o").arg("cluster.max_restarts=0").start();
    running.wait_until("more steps", || {
        ["teacher-cola", "teacher-warmth"].iter().all(|s| run.steps(s).len() > run.receipt(s).0 as usize + 3)
    });
    let before = run.receipt("teacher-warmth").0;
    let ranks = running.ranks(2);
    let cola = ranks.iter().find(|r| r.command_line().contains("teacher-cola")).unwrap();
    cola.signal(Signal::SIGKILL);
    let failed = running.finish().expect(1);
    assert!(failed.stderr.contains("error: stage 'teacher-cola': rank 0"), "{failed}");
    assert!(
        failed.stderr.contains("teacher-warmth: stopping at the next step with a checkpoint, since another"),
        "{failed}"
    );
    assert!(run.receipt("teacher-warmth").0 > before);

    let done = place.bam(ALONE).expect(0);
    assert!(done.stderr.contains("student: 30 steps on 2 processes"), "{done}");
    let alone = place.bam([&ALONE[..], &["--run-dir", "runs/alone", "-n", "1"]].concat()).expect(0);
    assert!(alone.stderr.contains("on 1 process"), "{alone}");
    for stage in ["teacher-cola", "teacher-warmth"] {
        assert_eq!(run.weights_sha256(stage), Run::new(place.at("runs/alone")).weights_sha256(stage), "{stage}");
    }
    place
        .bam(["plan", "recipe.yaml", "-o", "cluster.single_processes=3"])
        .finish()
        .expect_error(2, &["cluster.single_processes", "at most cluster.processes"]);
}

/// As the elements of an array of batch jobs do it.
#[test]
fn two_starts_share_a_run_out_between_them() {
    let place = workplace();
    let run = Run::new(place.at("runs/tiny"));
    let stages = |stages: &'static str| place.bam(["run", "recipe.yaml", "-n", "1", "--stages", stages]);
    stages("teacher-cola,student")
        .finish()
        .expect_error(1, &["stage 'teacher-cola' is made from what 'prepare' makes, which is not complete"]);
    stages("teacher-rte").finish().expect_error(2, &["there is no stage 'teacher-rte'", "teacher-warmth", "report"]);
    let done = stages("prepare").expect(0);
    assert!(done.stdout.is_empty(), "{done}");
    let [mut cola, mut warmth] = [stages("teacher-cola").start(), stages("teacher-warmth").start()];
    for (running, stage) in [(&mut cola, "teacher-cola"), (&mut warmth, "teacher-warmth")] {
        running.wait_until("training", || run.steps(stage).len() > 8 && !run.is_done(stage));
    }
    stages("teacher-cola").finish().expect_error(1, &["is in use by another bam (pid ", ": teacher-cola)"]);
    place.bam(ALONE).finish().expect_error(1, &["is in use by another bam (pid ", "teacher-cola", "teacher-warmth"]);
    // One that is killed with all its ranks lets go at once, and is of no concern to the other one.
    warmth.kill_all();
    stages("teacher-warmth").expect(0);
    cola.finish().expect(0);
    let table = stages("report").expect(1);
    assert!(table.stdout.contains("not complete: logits, student"), "{table}");
    place.bam(ALONE).expect(0);
    place.bam([&ALONE[..], &["--run-dir", "runs/alone"]].concat()).expect(0);
    let alone = Run::new(place.at("runs/alone"));
    for stage in ["teacher-cola", "teacher-warmth", "student"] {
        assert_eq!(run.weights_sha256(stage), alone.weights_sha256(stage), "{stage}");
    }
    let table = stages("report").expect(0);
    assert!(table.stdout.contains("results on dev") && !table.stdout.contains("not complete"), "{table}");
}
