//! `bam rehearse`: a user's own recipe goes through every kind of trouble on the user's own machine, and says how it went.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::time::{Duration, Instant};

use bam_tests::{Process, Recipe, Workplace};
use nix::sys::signal::Signal;

fn place() -> Workplace {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "warmth"]);
    recipe.model = "max_length: 40".into();
    recipe.cluster = "processes: 2, deadline: 5".into();
    place.recipe("recipe.yaml", &recipe);
    place
}

#[test]
fn a_recipe_survives_its_rehearsal_and_the_table_says_so() {
    let place = place();
    let done = place.bam(["rehearse", "recipe.yaml"]).within(Duration::from_secs(600)).expect(0);
    for part in [
        "rank 0 is killed in step",
        "rank 1 is killed in step",
        "is stopped (SIGSTOP)",
        "hangs in step",
        "in the commit of step",
        "bam itself is killed",
        "SIGUSR1",
        "checkpoint is damaged",
        "run again on 1 instead of 2",
        "same weights, bit for bit",
        "same examples in the same order",
        "before its part of the update",
        "after its first shard of logits",
        "13 of 13 survived",
        "did not come to collective 'words of the batch'",
    ] {
        assert!(done.stdout.contains(part), "'{part}' is not in {done}");
    }
    assert!(!done.stdout.contains("FAILED"), "{done}");
    // What survived is not kept, but the run that nothing happened to is.
    let left: Vec<_> =
        std::fs::read_dir(place.at("runs/tiny-rehearsal")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(!place.at("runs/tiny").exists());
}

#[test]
fn a_rehearsal_that_is_interrupted_leaves_nothing_running() {
    let place = place();
    let mut running = place.bam(["rehearse", "recipe.yaml"]).start();
    let ranks = running.ranks(2);
    running.signal(Signal::SIGTERM);
    running.finish().expect_error(1, &["the rehearsal was interrupted"]);
    let since = Instant::now();
    while ranks.iter().any(Process::is_alive) {
        assert!(since.elapsed() < Duration::from_secs(10), "still there: {ranks:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn another_directory_is_not_overwritten_and_a_bad_recipe_is_refused() {
    let place = place();
    std::fs::create_dir_all(place.at("precious")).unwrap();
    place.bam(["rehearse", "recipe.yaml", "--dir", "precious"]).finish().expect_error(1, &["precious is no rehearsal"]);
    place.bam(["rehearse", "recipe.yaml", "-o", "train.multi.epoch=2"]).finish().expect_error(2, &["epochs"]);
}

#[test]
fn a_failure_that_cannot_come_is_refused() {
    let place = place();
    for (fault, code, why) in [("student:kill:2:step-3", 1, "2 ranks"), ("pupil:kill:1:step-3", 2, "no stage 'pupil'")]
    {
        place.bam(["run", "recipe.yaml", "--inject", fault]).finish().expect_error(code, &[fault, why]);
    }
    place.bam(["run", "recipe.yaml", "--inject", "student:eat:1:step-3"]).finish().expect(2);
}
