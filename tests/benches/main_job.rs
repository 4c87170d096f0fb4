//! Speed and memory of the main job against their targets: how soon `bam` answers, samples a second and memory of a
//! training step, the demo from start to table. `make bench` runs it. Settings are compared in turns within one run
//! (A, B, A, B, …), since machines are shared and noisy; what counts are the ratios.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up has failed: there is nobody to tell")]

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bam_tests::{Bam, Run, median, peak_of_ranks_mib, repository};
use serde_json::Value;

/// Times that each short command and each setting of the training is run.
const ANSWERS: usize = 21;
const TURNS: usize = 3;
/// The first steps fill caches.
const WARM_UP_STEPS: usize = 5;
const LONGEST: Duration = Duration::from_secs(900);
/// Rare enough to cost the ranks nothing.
const LOOK_EVERY: Duration = Duration::from_millis(250);

const ANSWER_TARGET: Duration = Duration::from_millis(50);
const DEMO_TARGET: Duration = Duration::from_secs(300);
/// Of the time that a checkpoint takes for which training may stand still.
const STALL_TARGET: f64 = 0.1;

fn main() -> ExitCode {
    let mut missed = 0;
    let mut target = |name: &str, time: Duration, target: Duration| {
        let verdict = if time <= target { "within" } else { "MISSES" };
        missed += usize::from(time > target);
        println!("{name:<34} {:>9.3} s   {verdict} its target of {} s", time.as_secs_f64(), target.as_secs_f64());
    };
    println!("How soon bam answers (median of {ANSWERS})");
    for arguments in [&["--help"][..], &["plan", "configs/demo.yaml"]] {
        target(&format!("bam {}", arguments.join(" ")), answer(arguments), ANSWER_TARGET);
    }
    training();
    let stalls_too_long = checkpoints() > STALL_TARGET;
    println!("\nThe demo");
    let directory = tempfile::tempdir().unwrap();
    let start = Instant::now();
    run("demo", &directory.path().join("run"), &["-n", "2"]);
    target("bam run configs/demo.yaml -n 2", start.elapsed(), DEMO_TARGET);
    ExitCode::from(u8::from(missed > 0 || stalls_too_long))
}

/// Median time of a command that only answers.
fn answer(arguments: &[&str]) -> Duration {
    let one = |_| {
        let start = Instant::now();
        Bam::new(&repository(), arguments.iter().copied()).expect(0);
        start.elapsed()
    };
    let mut times: Vec<Duration> = (0..ANSWERS).map(one).collect();
    times.sort_unstable();
    times[ANSWERS / 2]
}

/// One setting of the training that is measured, and what each turn gave.
struct Setting {
    name: &'static str,
    arguments: &'static [&'static str],
    samples_a_second: Vec<f64>,
    peak_mib: f64,
}

/// Trains the demo's student, without teachers, in several settings. The first one is what the others are compared to.
fn training() {
    let setting = |name, arguments| Setting { name, arguments, samples_a_second: vec![], peak_mib: 0.0 };
    let mut settings = [
        setting("1 process", &["-n", "1"]),
        setting("2 processes", &["-n", "2"]),
        setting("2 processes, in fours", &["-n", "2", "-o", "train.multi.micro_batch_size=4"]),
    ];
    println!("\nTraining the demo's student ({TURNS} turns, medians)");
    for _ in 0..TURNS {
        for setting in &mut settings {
            let directory = tempfile::tempdir().unwrap();
            let directory = directory.path().join("run");
            let short = ["-o", "mode=multi", "-o", "data.max_train_examples=500", "-o", "train.multi.epochs=1"];
            let peak = run("demo", &directory, &[setting.arguments, &short].concat());
            setting.peak_mib = setting.peak_mib.max(peak);
            setting.samples_a_second.push(samples_a_second(&Run::new(&directory)));
        }
    }
    for setting in &settings {
        // Turn by turn, so that a slow minute of the machine weighs on both sides.
        let turns = setting.samples_a_second.iter().zip(&settings[0].samples_a_second);
        let ratios: Vec<f64> = turns.map(|(own, first)| own / first).collect();
        println!(
            "{:<34} {:>9.1} samples/s   × {:.2}   at most {:.0} MiB a rank",
            setting.name,
            median(&setting.samples_a_second),
            median(&ratios),
            setting.peak_mib
        );
    }
}

/// For how long training stands still for a checkpoint that is written beside it, as a share of one that it waits for.
fn checkpoints() -> f64 {
    println!("\nA checkpoint of the demo's student ({TURNS} turns, medians)");
    let (mut beside, mut waiting) = (vec![], vec![]);
    for _ in 0..TURNS {
        for (asynchronous, stalls) in [("true", &mut beside), ("false", &mut waiting)] {
            let directory = tempfile::tempdir().unwrap();
            let directory = directory.path().join("run");
            let setting = format!("checkpoint.asynchronous={asynchronous}");
            let short = ["-o", "mode=multi", "-o", "data.max_train_examples=400", "-o", "train.multi.epochs=1"];
            let often = ["-n", "1", "-o", "checkpoint.every_steps=10", "-o", &setting];
            run("demo", &directory, &[&short[..], &often[..]].concat());
            let log = Run::new(&directory).log("multi");
            let stall = |line: &str| line.split_once("stood still for ")?.1.strip_suffix(" s")?.parse::<f64>().ok();
            // The first one makes room for itself.
            stalls.extend(log.lines().filter_map(stall).skip(1));
        }
    }
    let (beside, waiting) = (median(&beside), median(&waiting));
    let (share, percent) = (beside / waiting, 100.0 * STALL_TARGET);
    let verdict = if share <= STALL_TARGET { "within" } else { "MISSES" };
    println!("training waits for it                 {waiting:>9.3} s");
    println!(
        "written beside the training           {beside:>9.3} s   × {share:.3}   {verdict} its target of {percent} %"
    );
    share
}

/// Runs a recipe to its end; returns the largest memory that a rank had in use, in MiB.
fn run(recipe: &str, directory: &std::path::Path, arguments: &[&str]) -> f64 {
    let recipe = format!("configs/{recipe}.yaml");
    let common = ["run", &recipe, "--run-dir", directory.to_str().unwrap()];
    let running = Bam::new(&repository(), common.into_iter().chain(arguments.iter().copied())).within(LONGEST).start();
    let pid = running.pid();
    let mut peak = 0.0f64;
    running.watch(LOOK_EVERY, || peak = peak.max(peak_of_ranks_mib(pid))).expect(0);
    peak
}

/// From the steps' own times.
fn samples_a_second(run: &Run) -> f64 {
    let text = fs::read_to_string(run.stage("multi", "metrics.jsonl")).unwrap();
    let steps = text.lines().skip(WARM_UP_STEPS).map(|line| serde_json::from_str::<Value>(line).unwrap());
    let (examples, seconds) = steps.fold((0.0, 0.0), |(examples, seconds), step| {
        (examples + step["examples"].as_f64().unwrap(), seconds + step["seconds"].as_f64().unwrap())
    });
    examples / seconds
}
