//! `bam rehearse`: the user's own recipe, cut down, is run once in peace and then once for each kind of trouble; every run
//! has to end with the same weights. The real programs are started, as a user would start them.

mod child;
mod copy;
mod scenario;
mod small;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bam_cluster::checkpoint::State;
use bam_cluster::fault::{Act, Fault, Point};
use bam_cluster::plan::Plan;
use bam_cluster::run_dir::RunDir;
use bam_cluster::{digest, exit_code, files};
use nix::sys::signal::Signal;

use crate::supervise::Interrupts;
use child::{Child, Ended, Invocation};
use scenario::{Proof, Scenario, Trouble};

pub use scenario::{Extent, scenarios};
pub use small::{EVERY_STEPS, cut_down};

/// A rehearsal of one recipe.
#[derive(Debug)]
pub struct Rehearsal {
    /// Where all its runs are.
    pub directory: PathBuf,
    /// The recipe's file.
    pub config: PathBuf,
    /// Everything that is said about the recipe on the command line, the cuts included.
    pub overrides: Vec<String>,
    /// Number of processes.
    pub processes: usize,
    /// What runs, cut down.
    pub plan: Plan,
    /// Wishes for an end.
    pub interrupts: Interrupts,
}

/// How one piece of trouble ended.
#[derive(Debug)]
pub struct Outcome {
    /// What was done.
    pub title: String,
    /// Seconds from the failure to the sentence about it, where `bam` itself noticed it.
    pub noticed: Option<f64>,
    /// The sentence.
    pub sentence: Option<String>,
    /// What is the same as in the run that nothing happened to; or what is not.
    pub proof: Result<&'static str, String>,
}

/// What a run ended with.
#[derive(Debug, PartialEq, Eq)]
struct Ending {
    /// SHA-256 of each stage's weights.
    weights: BTreeMap<String, String>,
    /// The last receipt of each stage's data order.
    receipts: BTreeMap<String, String>,
}

impl Rehearsal {
    /// Runs the recipe in peace, then with each of `scenarios`; `tell` hears of progress.
    ///
    /// # Errors
    /// The run fails although nothing was done to it, or programs and files cannot be handled.
    pub fn run(&self, scenarios: &[Scenario], tell: impl Fn(&str)) -> anyhow::Result<Vec<Outcome>> {
        if self.directory.exists() {
            let mark = self.directory.join(MARK);
            ensure!(mark.exists(), "{} is no rehearsal; choose another directory (--dir)", self.directory.display());
            fs::remove_dir_all(&self.directory).with_context(|| self.directory.display().to_string())?;
        }
        fs::create_dir_all(&self.directory).with_context(|| self.directory.display().to_string())?;
        files::write_atomically(&self.directory.join(MARK), b"Runs of bam rehearse; the next one removes them.\n")?;
        let peace = RunDir::new(self.directory.join("undisturbed"));
        let began = Instant::now();
        let whole = self.start(&peace, &[], self.processes)?.wait()?;
        ensure!(whole.code == Some(0), "the run failed although nothing was done to it:\n{}", whole.said());
        let expected = self.ending(&peace)?;
        tell(&format!("undisturbed: done in {:.0} s", began.elapsed().as_secs_f64()));
        let mut outcomes = vec![];
        for (i, scenario) in scenarios.iter().enumerate() {
            let outcome = self.disturb(&peace, i + 1, scenario, &expected)?;
            let noticed = outcome.noticed.map_or(String::new(), |s| format!(", noticed after {s:.1} s"));
            let result = match &outcome.proof {
                Ok(what) => (*what).to_owned(),
                Err(what) => format!("FAILED: {what}"),
            };
            tell(&format!("{} of {}: {}: {result}{noticed}", i + 1, scenarios.len(), outcome.title));
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// Runs with one piece of trouble, as often as it takes.
    fn disturb(
        &self,
        peace: &RunDir,
        number: usize,
        scenario: &Scenario,
        expected: &Ending,
    ) -> anyhow::Result<Outcome> {
        let run = RunDir::new(self.directory.join(format!("{number:02}")));
        let stage = &scenario.stage;
        copy::before_stage(&self.plan, peace, &run, stage)?;
        let first = match &scenario.trouble {
            Trouble::Inject(fault) => self.start(&run, &["--inject", &fault.to_string()], self.processes)?.wait()?,
            Trouble::KillLauncher { step } => self.signal_after(&run, stage, *step, Signal::SIGKILL)?,
            Trouble::Signal { step } | Trouble::Damage { step } | Trouble::Resize { step, .. } => {
                self.signal_after(&run, stage, *step, Signal::SIGUSR1)?
            }
        };
        let (noticed, sentence) = (first.noticed(), first.sentence());
        let proof = self.go_on(&run, scenario, &first, expected);
        let proof = proof.map_err(|e| format!("{e:#}; everything is kept in {}", run.path().display()));
        if proof.is_ok() {
            fs::remove_dir_all(run.path()).with_context(|| run.path().display().to_string())?;
        }
        Ok(Outcome { title: scenario.title.clone(), noticed, sentence, proof })
    }

    /// Runs until so many steps of a stage are done, then sends `bam` a signal and waits for its end.
    fn signal_after(&self, run: &RunDir, stage: &str, step: u64, signal: Signal) -> anyhow::Result<Ended> {
        // The steps of a small model are faster than signals are.
        let wait = Fault { stage: stage.to_owned(), act: Act::Wait, rank: 0, at: Point::Step(step) };
        let child = self.start(run, &["--inject", &wait.to_string()], self.processes)?;
        child.wait_for_steps(&run.metrics(stage), step)?;
        child.signal(signal);
        child.wait()
    }

    /// Goes on after the trouble, if there is anything left to do, and compares.
    fn go_on(
        &self,
        run: &RunDir,
        scenario: &Scenario,
        first: &Ended,
        expected: &Ending,
    ) -> anyhow::Result<&'static str> {
        let mut processes = self.processes;
        match &scenario.trouble {
            Trouble::Inject(_) => {
                ensure!(first.sentence().is_some(), "the failure did not come about:\n{}", first.said());
                ensure!(first.code == Some(0), "bam did not go on by itself:\n{}", first.said());
            }
            Trouble::KillLauncher { .. } => ensure!(first.code.is_none(), "it was done before it could be killed"),
            Trouble::Signal { .. } | Trouble::Damage { .. } | Trouble::Resize { .. } => ensure!(
                first.code == Some(exit_code::STOPPED_AT_CHECKPOINT.into()),
                "SIGUSR1 did not stop it at a checkpoint:\n{}",
                first.said()
            ),
        }
        if let Trouble::Damage { .. } = scenario.trouble {
            copy::damage_newest_checkpoint(&run.checkpoints(&scenario.stage))?;
        }
        if let Trouble::Resize { to, .. } = scenario.trouble {
            processes = to;
        }
        if !matches!(scenario.trouble, Trouble::Inject(_)) {
            let second = self.start(run, &[], processes)?.wait()?;
            ensure!(second.code == Some(0), "the same command did not go on:\n{}", second.said());
            let is_skipped = second.said().contains("set aside");
            let is_damaged = matches!(scenario.trouble, Trouble::Damage { .. });
            ensure!(is_skipped == is_damaged, "about damaged checkpoints it said:\n{}", second.said());
        }
        let ending = self.ending(run)?;
        ensure!(ending.receipts == expected.receipts, "the examples came in another order");
        match scenario.proof {
            Proof::Weights => {
                ensure!(ending.weights == expected.weights, "the weights are not the same");
                Ok("same weights, bit for bit")
            }
            Proof::Receipts => Ok("same examples in the same order"),
        }
    }

    fn start(&self, run: &RunDir, more: &[&str], processes: usize) -> anyhow::Result<Child> {
        let invocation = Invocation { config: &self.config, overrides: &self.overrides, processes, run: run.path() };
        Child::start(&invocation, more, &self.interrupts)
    }

    fn ending(&self, run: &RunDir) -> anyhow::Result<Ending> {
        let (mut weights, mut receipts) = (BTreeMap::new(), BTreeMap::new());
        for stage in &self.plan.stages {
            if !stage.is_training() {
                continue;
            }
            let path = run.model(&stage.name).join("model.safetensors");
            let sum = digest::of_file(&path).with_context(|| path.display().to_string())?;
            weights.insert(stage.name.clone(), sum);
            receipts.insert(stage.name.clone(), last_receipt(&run.checkpoints(&stage.name))?);
        }
        Ok(Ending { weights, receipts })
    }
}

/// Tells a rehearsal's directory from any other.
const MARK: &str = "REHEARSAL";

/// The receipt in the newest checkpoint.
fn last_receipt(checkpoints: &Path) -> anyhow::Result<String> {
    let path = copy::newest_checkpoint(checkpoints)?.join("state.json");
    let state: Option<State> = files::read_json(&path).with_context(|| path.display().to_string())?;
    match state {
        Some(state) => Ok(state.receipt.as_str().to_owned()),
        None => bail!("{} is missing", path.display()),
    }
}

/// How long one run of a rehearsal may take.
const LONGEST_RUN: Duration = Duration::from_secs(3600);
