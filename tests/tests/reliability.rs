//! The evidence in docs/reliability.md: hundreds of kills, of every rank, of the launcher, of everything, at random moments
//! of every stage, at every numbered point of the commit protocol, after every file of a stage's products and in the middle
//! of an update. `RELIABILITY_KILLS=200` says how many; without it this is skipped.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use bam_tests::{Bam, Recipe, Run, Running, Stream, Workplace, say_skipped, tree};
use nix::sys::signal::Signal;

/// The points of a commit; the program's own list is as long.
const COMMIT_POINTS: u32 = 12;
/// So many kills at most hit one run before it is left in peace.
const KILLS_OF_A_RUN: usize = 12;
const STAGES: [&str; 5] = ["prepare", "teacher-cola", "teacher-warmth", "logits", "student"];
const TRAINED: [&str; 3] = ["teacher-cola", "teacher-warmth", "student"];
/// A rank and how many files it writes of a stage's products.
const WRITTEN: [(&str, usize, u64); 6] = [
    ("prepare", 0, 2),
    ("prepare", 1, 2),
    ("logits", 0, 6),
    ("logits", 1, 2),
    ("teacher-warmth", 0, 5),
    ("student", 0, 6),
];

struct Bench {
    place: Workplace,
    whole: Run,
}

impl Bench {
    fn new() -> Bench {
        let place = Workplace::new();
        let mut recipe = Recipe::of(&["cola", "warmth"]);
        recipe.model = "max_length: 40".into();
        recipe.single = "epochs: 3, batch_size: 16, learning_rate: 0.001".into();
        recipe.multi = "epochs: 4, batch_size: 16, learning_rate: 0.001".into();
        recipe.checkpoint = "every_steps: 3, keep: 2".into();
        recipe.cluster = "processes: 2, deadline: 60, max_restarts: 1000".into();
        place.recipe("recipe.yaml", &recipe);
        let whole = Run::new(place.at("runs/whole"));
        let bench = Bench { place, whole };
        bench.command(&bench.whole).expect(0);
        bench
    }

    /// How long a stage took that nothing happened to.
    fn seconds(&self, stage: &str) -> f64 {
        self.whole.json(&format!("stages/{stage}/done.json"))["seconds"].as_f64().unwrap()
    }

    /// Lets a rank of each of these stages kill itself at a point, and proves that it never shows.
    fn inject(&self, faults: &[String]) {
        let run = Run::new(self.place.at("runs/injected"));
        let done = faults.iter().fold(self.command(&run), |bam, fault| bam.arg("--inject").arg(fault)).expect(0);
        assert_eq!(done.stderr.matches("(restart 1 of").count(), faults.len(), "{faults:?}: {done}");
        self.assert_same(&run);
        fs::remove_dir_all(run.path()).unwrap();
        println!("{}: the same", faults.join(", "));
    }

    fn command(&self, run: &Run) -> Bam {
        let directory = run.path().to_str().unwrap().to_owned();
        self.place.bam(["run", "recipe.yaml", "-n", "2", "--run-dir", &directory]).within(Duration::from_secs(600))
    }

    /// Nothing may show of what happened.
    fn assert_same(&self, run: &Run) {
        for stage in TRAINED {
            assert_eq!(run.weights_sha256(stage), self.whole.weights_sha256(stage), "weights of {stage}");
            assert_eq!(run.receipt(stage), self.whole.receipt(stage), "receipt of {stage}");
            assert_eq!(run.steps(stage), self.whole.steps(stage), "metrics of {stage}");
        }
        assert_eq!(run.half_written(), Vec::<PathBuf>::new());
    }
}

/// What was killed, how often, in which stages, and how long it took until `bam` named a dead rank.
#[derive(Default)]
struct Tally {
    kills: BTreeMap<&'static str, usize>,
    stages: BTreeMap<&'static str, usize>,
    noticed: Vec<Duration>,
}

impl Tally {
    fn add(&mut self, what: &'static str, stage: &'static str) {
        *self.kills.entry(what).or_default() += 1;
        *self.stages.entry(stage).or_default() += 1;
    }

    fn total(&self) -> usize {
        self.kills.values().sum()
    }

    /// Within which time such a share of the dead ranks was named.
    fn noticed_within(&self, share: f64) -> Option<Duration> {
        let mut noticed = self.noticed.clone();
        noticed.sort_unstable();
        let place = (noticed.len() as f64 * share).ceil() as usize;
        noticed.get(place.saturating_sub(1)).copied()
    }
}

/// Said after each run, so that it is known where the test is cut short, too.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, count) in self.kills.iter().chain(&self.stages) {
            write!(f, "{what} {count}, ")?;
        }
        write!(f, "{} dead ranks named", self.noticed.len())?;
        for (name, share) in [("median", 0.5), ("p99", 0.99), ("most", 1.0)] {
            if let Some(time) = self.noticed_within(share) {
                write!(f, ", {name} {:.2} s", time.as_secs_f64())?;
            }
        }
        Ok(())
    }
}

#[test]
fn kills_at_random_moments_and_at_every_point_of_a_commit_never_show() {
    let Some(wanted) = env::var("RELIABILITY_KILLS").ok().and_then(|n| n.parse::<usize>().ok()) else {
        let test = "kills_at_random_moments_and_at_every_point_of_a_commit_never_show";
        return say_skipped(test, "set RELIABILITY_KILLS to the number of kills, for example 200");
    };
    let bench = Bench::new();
    let mut tally = Tally::default();
    // A stage's failures come one in a run, and all stages' side by side.
    let mut points: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    let mut add = |what, stage, fault: String| {
        points.entry(stage).or_default().push(fault);
        tally.add(what, stage);
    };
    for (stage, step) in [("teacher-cola", 12), ("student", 30)] {
        for point in 1..=COMMIT_POINTS {
            add("rank 0 at a point of a commit", stage, format!("{stage}:kill:0:commit-{step}.{point}"));
        }
        for rank in [0, 1] {
            add("a rank before its part of an update", stage, format!("{stage}:kill:{rank}:update-17"));
        }
    }
    for (stage, rank, files) in WRITTEN {
        for file in 1..=files {
            add("a rank after a file of a stage's products", stage, format!("{stage}:kill:{rank}:written-{file}"));
        }
    }
    let mut runs = 0;
    while points.values().any(|of_stage| !of_stage.is_empty()) {
        runs += 1;
        bench.inject(&points.values_mut().filter_map(Vec::pop).collect::<Vec<String>>());
    }
    let mut random = Stream::new(11);
    while tally.total() < wanted {
        runs += 1;
        let run = Run::new(bench.place.at(format!("runs/random-{runs}")));
        disturb(&bench, &run, &mut random, &mut tally, wanted);
        bench.assert_same(&run);
        println!("run {runs}: the same; {} kills so far: {tally}", tally.total());
        fs::remove_dir_all(run.path()).unwrap();
    }
    println!("\nevery one of {runs} runs ended in the same weights");
    if let Some(longest) = tally.noticed_within(0.99) {
        assert!(longest < Duration::from_secs(3), "p99 of a dead rank's detection");
    }
}

/// Kills until the run has been hit often enough, then lets it end.
fn disturb(bench: &Bench, run: &Run, random: &mut Stream, tally: &mut Tally, wanted: usize) {
    let mut running = bench.command(run).start();
    for _ in 0..KILLS_OF_A_RUN {
        let left: Vec<&'static str> = STAGES.into_iter().filter(|stage| !run.is_done(stage)).collect();
        if left.is_empty() || tally.total() >= wanted {
            break;
        }
        // The short stages are hit as often as the long ones.
        let stage = left[random.below(left.len())];
        let pause = Duration::from_secs_f64(bench.seconds(stage) * random.uniform());
        wait(&mut running, || run.is_begun(stage));
        let until = Instant::now() + pause;
        wait(&mut running, || Instant::now() >= until);
        let Some(hit) = STAGES.into_iter().find(|stage| !run.is_done(stage)) else { break };
        if running.has_ended() {
            break;
        }
        match random.below(4) {
            0 => {
                tally.add("everything at once", hit);
                running.kill_all();
                running = bench.command(run).start();
            }
            1 => {
                tally.add("the launcher", hit);
                running.signal(Signal::SIGKILL);
                running.finish();
                running = bench.command(run).start();
            }
            rank => {
                if kill_rank(&mut running, rank - 2, tally) {
                    tally.add(if rank == 2 { "rank 0" } else { "rank 1" }, hit);
                }
            }
        }
    }
    let ended = running.finish();
    if ended.code != Some(0) {
        // The same rank, killed twice at the same step by chance, is taken for a failure that comes again.
        assert!(ended.stderr.contains("for the second time"), "{ended}");
        bench.command(run).expect(0);
    }
}

/// Waits until something is so, or the run has ended.
fn wait(running: &mut Running, mut is_so: impl FnMut() -> bool) {
    while !is_so() && !running.has_ended() {
        thread::sleep(Duration::from_millis(2));
    }
}

/// Kills a rank, if it is there, and waits until `bam` says so; false if there was none, or the stage ended first.
fn kill_rank(running: &mut Running, rank: usize, tally: &mut Tally) -> bool {
    let named = |running: &Running| running.stderr().matches("(restart ").count();
    let before = named(running);
    let number = rank.to_string();
    let mut ranks = tree(running.pid()).into_iter().filter(|p| p.name == "bam-worker");
    let Some(victim) = ranks.find(|r| r.variable("OMPI_COMM_WORLD_RANK").as_ref() == Some(&number)) else {
        return false;
    };
    victim.signal(Signal::SIGKILL);
    let since = Instant::now();
    while named(running) == before {
        // A rank that has said everything is not missed, and neither is one of a run that gives up.
        if running.has_ended() || since.elapsed() > Duration::from_secs(5) {
            return true;
        }
        thread::sleep(Duration::from_millis(2));
    }
    tally.noticed.push(since.elapsed());
    true
}
