//! Real GLUE files, where `BAM_TEST_GLUE` names a directory with them; the repository does not carry them.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::env;
use std::path::PathBuf;

use bam_tests::{Recipe, Run, Workplace, say_skipped};

fn glue(test: &str) -> Option<PathBuf> {
    let directory = env::var_os("BAM_TEST_GLUE").map(PathBuf::from);
    if directory.is_none() {
        say_skipped(test, "set BAM_TEST_GLUE to a directory with CoLA/, SST-2/, …");
    }
    directory
}

/// Examples of the official train and dev files.
const OFFICIAL: [(&str, &str, &str); 5] = [
    ("cola", "8,551", "1,043"),
    ("sst2", "67,349", "872"),
    ("mrpc", "3,668", "408"),
    ("stsb", "5,749", "1,500"),
    ("rte", "2,490", "277"),
];

#[test]
fn all_eight_tasks_are_read_in_their_official_layout() {
    let Some(glue) = glue("all_eight_tasks_are_read_in_their_official_layout") else { return };
    let place = Workplace::new();
    place.recipe("recipe.yaml", &Recipe::of(&["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]));
    let plan = place.bam(["plan", "recipe.yaml", "-o", &format!("data.glue={}", glue.display())]).expect(0);
    let row = |task: &str| {
        let row = plan.stdout.lines().find(|l| l.split_whitespace().next() == Some(task));
        row.unwrap_or_else(|| panic!("no row of {task} in {plan}")).split_whitespace().collect::<Vec<_>>()
    };
    for (task, train, dev) in OFFICIAL {
        assert!(row(task).ends_with(&[train, dev]), "{:?}", row(task));
    }
    for task in ["qqp", "mnli", "qnli"] {
        assert!(row(task).len() > 3);
    }
}

#[test]
fn three_tasks_run_from_their_official_files_to_the_table() {
    let Some(glue) = glue("three_tasks_run_from_their_official_files_to_the_table") else { return };
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "rte", "stsb"]);
    recipe.data = "max_train_examples: 120, max_dev_examples: 50".into();
    recipe.single = "epochs: 1, batch_size: 16".into();
    recipe.multi = "epochs: 1, batch_size: 32".into();
    place.recipe("recipe.yaml", &recipe);
    let done = place.bam(["run", "recipe.yaml", "-o", &format!("data.glue={}", glue.display())]).expect(0);
    for task in ["cola", "rte", "stsb"] {
        assert!(done.stdout.lines().any(|l| l.trim_start().starts_with(task)), "{done}");
        let run = Run::new(place.at("runs/tiny"));
        assert_eq!(run.json("stages/student/dev.json")[task]["examples"], 50);
    }
}
