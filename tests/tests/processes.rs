//! The number of processes and accumulation of gradients change speed and nothing else, dropout masks included.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use bam_tests::{Recipe, Run, Step, Workplace};

const STAGES: [&str; 3] = ["teacher-cola", "teacher-warmth", "student"];

/// Whether losses differ by no more than the order of floating-point sums explains.
fn assert_alike(name: &str, stage: &str, expected: &[Step], found: &[Step]) {
    assert_eq!(expected.len(), found.len(), "steps of {stage} with {name}");
    let alike = |a: f64, b: f64| (a - b).abs() <= 1e-4 * a.abs() + 1e-6;
    for (a, b) in expected.iter().zip(found) {
        assert!(alike(a.loss, b.loss), "{stage} with {name}, step {}: loss {} instead of {}", a.step, b.loss, a.loss);
        assert_eq!((a.step, a.lambda), (b.step, b.lambda), "{stage} with {name}");
        let tasks = |s: &Step| s.task_losses.keys().cloned().collect::<Vec<_>>();
        assert_eq!(tasks(a), tasks(b), "tasks of step {} of {stage} with {name}", a.step);
        for (task, loss) in &a.task_losses {
            let other = b.task_losses[task];
            assert!(alike(*loss, other), "{stage} with {name}, step {}: {task} {other} instead of {loss}", a.step);
        }
    }
}

#[test]
fn processes_and_accumulation_do_not_change_the_mathematics() {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "warmth"]);
    // With the encoder's own dropout.
    recipe.model = "max_length: 40".into();
    recipe.single = "epochs: 1, batch_size: 16, learning_rate: 0.0005".into();
    recipe.multi = "epochs: 1, batch_size: 16, learning_rate: 0.0005".into();
    place.recipe("recipe.yaml", &recipe);
    let micro = |n: usize| ["single", "multi"].map(|who| format!("train.{who}.micro_batch_size={n}")).to_vec();
    let run = |name: &str, processes: &str, overrides: &[String]| {
        let directory = format!("runs/{name}");
        let bam = place.bam(["run", "recipe.yaml", "-n", processes, "--run-dir", &directory]);
        overrides.iter().fold(bam, |bam, o| bam.arg("-o").arg(o)).expect(0);
        Run::new(place.at(directory))
    };
    let reference = run("one", "1", &[]);
    for (name, processes, overrides) in [
        ("two", "2", vec![]),
        ("three", "3", vec![]),
        ("one-accumulated", "1", micro(5)),
        ("two-accumulated", "2", micro(3)),
    ] {
        let other = run(name, processes, &overrides);
        for stage in STAGES {
            assert_eq!(reference.receipt(stage), other.receipt(stage), "receipt of {stage} with {name}");
            assert_alike(name, stage, &reference.steps(stage), &other.steps(stage));
        }
    }
}
