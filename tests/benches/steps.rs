//! What a training step makes of the machine: how much of what the cores can multiply (model FLOPs utilisation), where the
//! time goes, how it scales from one process to two with the same global batch, and with one that grows with them.
//!
//!     cargo bench -p bam-tests --locked --bench steps              # some ten minutes on two idle cores
//!     BAM_BENCH_SHAPES=minilm cargo bench -p bam-tests --locked --bench steps
//!
//! Text and shapes are those of the bench `peer`. The machine's rate is what each training measures before its first step: dense
//! products in float32, by all ranks at the same time. Figures go to `target/bench/steps.json`, too.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up has failed: there is nobody to tell")]

use std::process::ExitCode;
use std::{env, fs};

use bam_tests::{FirstSteps, TRAININGS, Text, Training, Trial, bench_directory, median, workshop};
use serde_json::{Value, json};

const TURNS: usize = 3;
const PHASES: [&str; 6] = ["data", "forward", "backward", "waiting", "reduction", "optimizer"];

/// Of what all cores multiply, with two processes.
const UTILISATION_TARGET: f64 = 0.75;
/// Of what a second core adds to dense products.
const SCALING_TARGET: f64 = 0.9;
/// Of a step, for adding up gradients.
const REDUCTION_TARGET: f64 = 0.05;

/// One number of processes: what each turn gave.
struct Setting {
    processes: &'static str,
    turns: Vec<FirstSteps>,
}

impl Setting {
    fn new(processes: &'static str) -> Setting {
        Setting { processes, turns: vec![] }
    }

    /// The median over turns of a figure of a turn's steps.
    fn median(&self, figure: impl Fn(&[Value]) -> f64) -> f64 {
        median(&self.turns.iter().map(|turn| figure(&turn.steps)).collect::<Vec<f64>>())
    }

    fn samples_a_second(&self) -> f64 {
        self.median(|steps| sum(steps, |step| &step["examples"]) / seconds(steps))
    }

    fn tokens_a_second(&self) -> f64 {
        self.median(|steps| sum(steps, |step| &step["tokens"]) / seconds(steps))
    }

    /// Tokens a second if all ranks only multiplied: the most that a turn measured, since a busy machine only measures less.
    fn peak(&self) -> f64 {
        self.turns.iter().map(|turn| peak(&turn.steps)).fold(0.0, f64::max)
    }

    fn utilisation(&self) -> f64 {
        self.tokens_a_second() / self.peak()
    }

    /// The speed-up over `one` process as a share of what further cores add to dense products.
    fn scaling(&self, one: &Setting) -> f64 {
        self.utilisation() / one.utilisation()
    }

    /// The share of a phase in all time.
    fn share(&self, phase: &str) -> f64 {
        self.median(|steps| sum(steps, |step| &step["phases"][phase]) / seconds(steps))
    }

    fn print(&self) {
        let peak = self.turns.iter().map(|turn| turn.peak_mib).fold(0.0, f64::max);
        println!(
            "{} process{:<4}{:>9.1} samples/s   MFU {:.0} %   at most {peak:.0} MiB a rank",
            self.processes,
            if self.processes == "1" { "" } else { "es" },
            self.samples_a_second(),
            100.0 * self.utilisation()
        );
        let shares: Vec<String> =
            PHASES.iter().map(|phase| format!("{phase} {:.1} %", 100.0 * self.share(phase))).collect();
        println!("             {}", shares.join(", "));
    }

    fn json(&self) -> Value {
        let steps = self.turns.iter().map(|turn| &turn.steps).collect::<Vec<_>>();
        json!({
            "processes": self.processes,
            "samples_per_second": self.samples_a_second(),
            "utilisation": self.utilisation(),
            "turns": steps,
        })
    }
}

fn main() -> ExitCode {
    let wish = env::var("BAM_BENCH_SHAPES").ok();
    let is_chosen = |training: &&Training| wish.as_ref().is_none_or(|keys| keys.split(',').any(|k| k == training.key));
    let text = Text::find();
    println!("Training steps of bam ({TURNS} turns, medians), on {}", text.name);
    let (mut figures, mut is_within) = (vec![], true);
    for training in TRAININGS.iter().filter(is_chosen) {
        let (figure, within) = measure(training, &text);
        figures.push(figure);
        is_within &= within;
    }
    let path = bench_directory().join("steps.json");
    fs::write(&path, serde_json::to_vec_pretty(&json!({ "text": text.name, "trainings": figures })).unwrap()).unwrap();
    println!("\nfigures: {}", path.display());
    ExitCode::from(u8::from(!is_within))
}

/// Measures a training with one process and with two, and with two of them and twice the batch.
fn measure(training: &Training, text: &Text) -> (Value, bool) {
    println!("\n{}, global batch {}", training.name, training.batch);
    let place = workshop();
    let twice = Training { batch: 2 * training.batch, ..*training };
    let trial = Trial::prepare(training, text, &place.path().join("one"));
    let larger = Trial::prepare(&twice, text, &place.path().join("two"));
    let (mut one, mut two, mut weak) = (Setting::new("1"), Setting::new("2"), Setting::new("2"));
    for _ in 0..TURNS {
        one.turns.push(trial.first_steps("1"));
        two.turns.push(trial.first_steps("2"));
        weak.turns.push(larger.first_steps("2"));
    }
    one.print();
    two.print();
    println!("with twice the batch:");
    weak.print();
    let verdicts = [
        verdict("MFU of two processes", two.utilisation(), UTILISATION_TARGET, true),
        verdict("strong scaling, of what the cores gain", two.scaling(&one), SCALING_TARGET, true),
        verdict("weak scaling, of what the cores gain", weak.scaling(&one), SCALING_TARGET, true),
        verdict("reduction, of a step of two processes", two.share("reduction"), REDUCTION_TARGET, false),
    ];
    let figures = json!({
        "name": training.name,
        "batch": training.batch,
        "one": one.json(),
        "two": two.json(),
        "two_with_twice_the_batch": weak.json(),
        "strong_scaling": two.scaling(&one),
        "weak_scaling": weak.scaling(&one),
    });
    (figures, verdicts.iter().all(|&is_within| is_within))
}

/// Prints a share, and whether it is at least (or at most) its target.
fn verdict(name: &str, share: f64, target: f64, at_least: bool) -> bool {
    let is_within = if at_least { share >= target } else { share <= target };
    let word = if is_within { "within" } else { "MISSES" };
    println!("{name:<40} {:>5.1} %   {word} its target of {:.0} %", 100.0 * share, 100.0 * target);
    is_within
}

fn seconds(steps: &[Value]) -> f64 {
    sum(steps, |step| &step["seconds"])
}

/// What the machine was measured to do before these steps, in tokens like theirs a second.
fn peak(steps: &[Value]) -> f64 {
    let at_peak: f64 = steps.iter().map(|s| s["utilisation"].as_f64().unwrap() * s["seconds"].as_f64().unwrap()).sum();
    sum(steps, |step| &step["tokens"]) / at_peak
}

fn sum<'a>(steps: &'a [Value], figure: impl Fn(&'a Value) -> &'a Value) -> f64 {
    steps.iter().map(|step| figure(step).as_f64().unwrap()).sum()
}
