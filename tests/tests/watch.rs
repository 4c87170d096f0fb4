//! `bam watch` and `bam status --json`: how a run gets on, as others see it.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use bam_tests::{Recipe, Run, Workplace};
use nix::sys::signal::Signal;
use serde_json::Value;

fn status(place: &Workplace) -> Value {
    serde_json::from_str(&place.bam(["status", "runs/tiny", "--json"]).expect(0).stdout).unwrap()
}

#[test]
fn a_run_is_watched_to_its_end_and_its_exit_code_passed_on() {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola"]);
    recipe.mode = "multi".into();
    recipe.multi = "epochs: 60, batch_size: 16, learning_rate: 0.002".into();
    recipe.checkpoint = "every_steps: 150".into();
    place.recipe("recipe.yaml", &recipe);
    let run = Run::new(place.at("runs/tiny"));
    place.bam(["watch", "runs/tiny"]).finish().expect_error(2, &["not the directory of a run"]);

    let mut running = place.bam(["run", "recipe.yaml", "--quiet"]).start();
    running.wait_until("its first checkpoint", || !run.checkpoints("multi").is_empty());
    let now = status(&place);
    assert_eq!((&now["state"], &now["stages"][1]["state"]), (&"running".into(), &"running".into()), "{now}");
    assert!(now["stages"][1]["latest"]["loss"].as_f64().unwrap() > 0.0, "{now}");
    let mut watching = place.bam(["watch", "runs/tiny"]).start();
    watching.wait_for_words("multi: running");
    running.signal(Signal::SIGINT);
    let stopped = running.finish().expect(75);
    let watched = watching.finish().expect(75);
    assert!(watched.stderr.contains("multi: stopping at the next step"), "{watched}");
    assert!(watched.stderr.contains("with exit code 75: stopped, as asked"), "{watched}");
    // It was told to be quiet, but for how to go on.
    assert!(!stopped.stderr.contains("multi: 900 steps") && stopped.stderr.contains("to go on"), "{stopped}");
    let now = status(&place);
    assert_eq!((&now["state"], &now["ending"]["exit_code"]), (&"stopped".into(), &75.into()), "{now}");

    let done = place.bam(["run", "recipe.yaml", "--verbose"]).expect(0);
    assert!(
        done.stderr.contains("multi: start 3: ") && done.stderr.contains("multi: checkpoint at step 900"),
        "{done}"
    );
    let watched = place.bam(["watch", "runs/tiny"]).expect(0);
    assert!(watched.stderr.contains("\ndone: bam report "), "{watched}");
    assert_eq!(status(&place)["state"], "done");
    // The measured speed is what a plan goes by.
    let plan = place.bam(["plan", "recipe.yaml"]).expect(0);
    assert!(plan.stdout.contains("GFLOP/s a process, as in 'multi' of "), "{plan}");
    // Nothing of a terminal's is in any of it.
    for text in [&done.stderr, &watched.stderr, &plan.stdout] {
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}
