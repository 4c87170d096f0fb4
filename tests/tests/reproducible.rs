//! With `reproducible: world-size` the number of processes changes no bit, even if it changes on the way.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use bam_tests::{Bam, Recipe, Run, Workplace};
use nix::sys::signal::Signal;

const STAGES: [&str; 3] = ["teacher-cola", "teacher-warmth", "student"];

fn command(place: &Workplace, run: &Run, processes: &str) -> Bam {
    place.bam(["run", "recipe.yaml", "-n", processes, "--run-dir", run.path().to_str().unwrap()])
}

fn assert_same(name: &str, expected: &Run, found: &Run) {
    for stage in STAGES {
        assert_eq!(expected.receipt(stage), found.receipt(stage), "receipt of {stage}, {name}");
        assert_eq!(expected.steps(stage), found.steps(stage), "metrics of {stage}, {name}");
        assert_eq!(expected.weights_sha256(stage), found.weights_sha256(stage), "weights of {stage}, {name}");
        let scores = |run: &Run| run.json(&format!("stages/{stage}/dev.json"));
        assert_eq!(scores(expected), scores(found), "scores of {stage}, {name}");
    }
}

#[test]
fn one_to_four_processes_and_changes_on_the_way_give_the_same_bits() {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "warmth"]);
    // With the encoder's own dropout.
    recipe.model = "max_length: 40".into();
    recipe.single = "epochs: 2, batch_size: 16, learning_rate: 0.001".into();
    recipe.multi = "epochs: 2, batch_size: 16, learning_rate: 0.001, micro_batch_size: 2".into();
    place.write("recipe.yaml", &(recipe.text() + "reproducible: world-size\nvirtual_shards: 5\n"));
    let run = |name: &str| Run::new(place.at("runs").join(name));
    let reference = run("1");
    command(&place, &reference, "1").expect(0);
    for processes in ["2", "3", "4"] {
        let other = run(processes);
        command(&place, &other, processes).expect(0);
        assert_same(&format!("{processes} processes"), &reference, &other);
    }
    let changed = run("changed");
    for (processes, stage, steps) in [("2", "teacher-warmth", 5), ("4", "student", 20)] {
        let mut running = command(&place, &changed, processes).start();
        running.wait_until("the moment to stop", || changed.steps(stage).len() >= steps);
        running.signal(Signal::SIGINT);
        running.finish().expect(75);
        assert!(!changed.is_done(stage), "{stage} was not what was stopped");
    }
    let done = command(&place, &changed, "1").expect(0);
    assert!(
        done.stderr.contains("the checkpoint is of 4 processes: the batches are the same, and so is every bit"),
        "{done}"
    );
    assert_same("2, then 4 processes, then 1", &reference, &changed);
}
