//! Checkpoints and teacher logits: how fast they go to disk and come back.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bam_tests::{Bam, Recipe, Run, Workplace, repository};
use nix::sys::signal::Signal;

use super::table::{Table, Target, median};

const LONGEST: Duration = Duration::from_secs(600);
/// A fresh start and a resumed one, in turns.
const TURNS: usize = 3;
/// Rows of the two runs whose difference counts.
const FEW: usize = 4_000;
const MANY: usize = 36_000;

/// Measures both.
pub fn measure(table: &mut Table) {
    checkpoints(table);
    logits(table);
}

/// The demo's student, stopped after a few checkpoints and resumed.
fn checkpoints(table: &mut Table) {
    table.part("A checkpoint of the demo's student");
    let directory = tempfile::tempdir().unwrap();
    let (mut fresh, mut resumed, mut saved, mut loaded) = (vec![], vec![], vec![], vec![]);
    let mut mebibytes = 0.0;
    for turn in 0..TURNS {
        let run = Run::new(directory.path().join(turn.to_string()));
        let start = |steps: usize, times: &mut Vec<f64>| {
            let before = run.steps("multi").len();
            let since = Instant::now();
            let mut bam = demo(run.path());
            bam.wait_until("its first step", || run.steps("multi").len() > before);
            times.push(since.elapsed().as_secs_f64());
            bam.wait_until("some more", || run.steps("multi").len() > before + steps);
            bam.signal(Signal::SIGINT);
            bam.finish().expect(75);
        };
        // Data is prepared once, so that both starts find the same.
        demo_until_prepared(run.path());
        start(35, &mut fresh);
        start(1, &mut resumed);
        let log = run.log("multi");
        let after = |line: &str, words: &str| line.split_once(words)?.1.split_once(" s")?.0.parse::<f64>().ok();
        saved.extend(log.lines().filter_map(|line| after(line, "written in ")));
        loaded.extend(log.lines().filter_map(|line| after(line, "checkpoint read in ")));
        mebibytes = size(run.checkpoints("multi").last().unwrap()) / 1024.0 / 1024.0;
    }
    let (fresh, resumed) = (median(fresh), median(resumed));
    table.row("its size", mebibytes, "MiB", Target::None);
    table.row("written and synced, beside the training", mebibytes / median(saved), "MiB a second", Target::None);
    table.row("read, with the memory that it goes to", mebibytes / median(loaded), "MiB a second", Target::None);
    table.row("from bam's start to the first step", fresh, "s", Target::None);
    table.row("the same from a checkpoint", resumed, "s", Target::None);
}

fn arguments(run: &Path) -> Vec<String> {
    let words = ["run", "configs/demo.yaml", "-n", "1", "-o", "mode=multi", "-o", "data.max_train_examples=900"];
    let more = ["-o", "checkpoint.every_steps=10", "--run-dir", run.to_str().unwrap()];
    words.iter().chain(&more).map(|word| (*word).to_owned()).collect()
}

fn demo(run: &Path) -> bam_tests::Running {
    Bam::new(&repository(), arguments(run).iter().map(String::as_str)).within(LONGEST).start()
}

fn demo_until_prepared(run: &Path) {
    let arguments = arguments(run);
    let only = ["--stages", "prepare"];
    Bam::new(&repository(), arguments.iter().map(String::as_str).chain(only)).within(LONGEST).expect(0);
}

fn size(directory: &Path) -> f64 {
    fs::read_dir(directory).unwrap().map(|e| e.unwrap().metadata().unwrap().len() as f64).sum()
}

/// Logits of a teacher that is next to nothing, so that what is around it shows: reading tokens, writing shards.
fn logits(table: &mut Table) {
    table.part("Teacher logits, with an encoder of next to nothing");
    let place = Workplace::new();
    let seconds = |rows: usize| {
        let name = format!("logits-{rows}");
        let text = place.path().join("own/mood.tsv");
        let body = fs::read_to_string(&text).unwrap();
        let many: Vec<&str> = body.lines().cycle().take(rows).collect();
        fs::write(place.at(format!("own/{name}.tsv")), many.join("\n")).unwrap();
        let task = Recipe::task("mood").replace("own/mood.tsv", &format!("own/{name}.tsv"));
        let recipe = Recipe {
            name: name.clone(),
            tasks: vec![task],
            single: "epochs: 1, batch_size: 512, learning_rate: 0.001".into(),
            cluster: "processes: 1, deadline: 60".into(),
            ..Recipe::of(&[])
        };
        place.recipe("recipe.yaml", &recipe);
        for stage in ["prepare", "teacher-mood", "logits"] {
            place.bam(["run", "recipe.yaml", "--stages", stage]).within(LONGEST).expect(0);
        }
        let run = Run::new(place.at("runs").join(name));
        run.json("stages/logits/done.json")["seconds"].as_f64().unwrap()
    };
    let rate = (MANY - FEW) as f64 * 0.8 / (seconds(MANY) - seconds(FEW));
    table.row("from tokens to shards", rate, "examples a second", Target::None);
}
