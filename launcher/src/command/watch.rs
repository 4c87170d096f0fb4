//! `bam watch`: how a run gets on, live, from its directory alone: on another terminal, a login node, while it still waits in
//! the queue.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use bam_cluster::checkpoint;
use bam_cluster::config::{self, Recipe};
use bam_cluster::encoder::EncoderConfig;
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::plan::{Plan, Stage, StageWork};
use bam_cluster::protocol::StepReport;
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::StageRecord;

use super::status::{State, Status, said};
use crate::cli::RunDirArguments;
use crate::conduct;
use crate::forecast::{Lengths, Remaining};
use crate::progress::{StageProgress, recent_steps};
use crate::shell::quoted;
use crate::supervise::{ANNOUNCEMENT, Figures, Screen, Verbosity};

/// How often the directory is looked at, and Slurm asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const ASK_EVERY: Duration = Duration::from_secs(15);
/// So long nobody may be at work between two starts of a job, or before the lock of a new one is taken.
const PATIENCE: Duration = Duration::from_secs(3);

/// Looks on until the run ends; returns what it ended with.
pub fn run(arguments: &RunDirArguments) -> anyhow::Result<u8> {
    let run = RunDir::new(std::path::absolute(&arguments.run_dir).context("cannot tell the current directory")?);
    let mut status = Status::of(&run)?;
    let mut view = View::new(&run)?;
    let (mut asked, mut idle_since) = (Instant::now(), None);
    loop {
        view.show(&run, &status)?;
        let state = status.state();
        let is_over = match state {
            State::Done => true,
            State::Stopped => idle_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE || view.is_first(),
            State::Running | State::Changing | State::Queued | State::Unknown => {
                idle_since = None;
                false
            }
        };
        if is_over {
            return Ok(view.end(&run, &status));
        }
        thread::sleep(LOOK_EVERY);
        if asked.elapsed() >= ASK_EVERY {
            status.ask_slurm(&run);
            asked = Instant::now();
        }
        view.looks += 1;
        if view.plan.is_none() && run.plan().exists() {
            // The first start has begun.
            view = View { looks: view.looks, jobs: view.jobs, ..View::new(&run)? };
        }
        status.look(&run, view.plan.as_ref())?;
    }
}

/// What is on the screen.
struct View {
    screen: Screen,
    plan: Option<Plan>,
    /// None before the first start.
    recipe: Option<Recipe>,
    /// The stages that have a bar.
    shown: BTreeSet<String>,
    /// Those that were complete at the last look.
    done: BTreeSet<String>,
    /// How much of each stage's log was read.
    read: BTreeMap<String, u64>,
    /// What was said last of jobs.
    jobs: String,
    /// Looks at the run so far.
    looks: u64,
}

impl View {
    fn new(run: &RunDir) -> anyhow::Result<View> {
        let plan = plan_of(run)?;
        let recipe = if run.recipe().exists() { Some(config::load_resolved(&run.recipe())?) } else { None };
        let remaining = recipe.as_ref().zip(plan.as_ref()).and_then(|(recipe, plan)| remaining(run, recipe, plan));
        let log_length = |stage: &Stage| fs::metadata(run.log(&stage.name)).map_or(0, |m| m.len());
        let stages = plan.iter().flat_map(|plan| &plan.stages);
        Ok(View {
            screen: Screen::new(Verbosity::Normal, remaining),
            recipe,
            shown: BTreeSet::new(),
            done: stages.clone().filter(|s| run.done(&s.name).exists()).map(|s| s.name.clone()).collect(),
            // What was said before is not news.
            read: stages.map(|stage| (stage.name.clone(), log_length(stage))).collect(),
            plan,
            jobs: String::new(),
            looks: 0,
        })
    }

    fn is_first(&self) -> bool {
        self.looks == 0
    }

    /// Brings the screen up to date.
    fn show(&mut self, run: &RunDir, status: &Status) -> anyhow::Result<()> {
        if self.is_first() {
            self.screen.line(&format!("run directory: {}", run.path().display()));
        }
        let jobs = status.job_lines();
        if jobs != self.jobs {
            jobs.lines().for_each(|line| self.screen.line(line));
            self.jobs = jobs;
        }
        for (stage, is_at_work) in status.stages.iter().flatten() {
            self.read_log(run, &stage.name);
            if stage.is_done {
                self.complete(run, &stage.name)?;
            } else if stage.is_begun && *is_at_work && run.control(&stage.name).exists() {
                self.show_stage(run, stage);
            } else if self.shown.remove(&stage.name) {
                self.screen.end_stage(&stage.name);
            }
        }
        Ok(())
    }

    /// Shows what the stage's newest steps were like.
    fn show_stage(&mut self, run: &RunDir, stage: &StageProgress) {
        let mut figures = Figures::default();
        if let Some(total) = stage.total {
            let steps = recent_steps(&run.metrics(&stage.name));
            let before = steps.first().map_or(0, |step| step.step);
            figures = Figures::of_training(before, total);
            let is_taught = self.plan.as_ref().and_then(|plan| plan.stage(&stage.name)).is_some_and(is_taught);
            steps.iter().for_each(|step| figures.step(step, is_taught));
            if let Some(last) = steps.last() {
                self.screen.step(&stage.name, last);
            }
            if let Some(step) = checkpoint::newest_step(&run.checkpoints(&stage.name)) {
                figures.checkpoint(step);
            }
        }
        if self.shown.insert(stage.name.clone()) {
            self.screen.line(&format!("{}: running", stage.name));
        }
        self.screen.show(&stage.name, &figures);
    }

    /// Takes away the bar of a stage that is complete, and says what came of it.
    fn complete(&mut self, run: &RunDir, name: &str) -> anyhow::Result<()> {
        self.screen.complete(name);
        if self.shown.remove(name) {
            self.screen.end_stage(name);
        }
        if !self.done.insert(name.to_owned()) {
            return Ok(());
        }
        let stage = self.plan.as_ref().and_then(|plan| plan.stage(name));
        let record: Option<StageRecord> = files::read_json(&run.done(name)).ok().flatten();
        if let (Some(stage), Some(record), Some(recipe)) = (stage, record, &self.recipe) {
            self.screen.line(&conduct::summary(run, &recipe.tasks(), stage, record.seconds)?);
        }
        Ok(())
    }

    /// Passes on what the launcher has announced since the last look.
    fn read_log(&mut self, run: &RunDir, stage: &str) {
        let read = self.read.entry(stage.to_owned()).or_default();
        let (text, end) = announcements(&run.log(stage), *read);
        *read = end;
        text.iter().for_each(|line| self.screen.line(&format!("{stage}: {line}")));
    }

    /// Says how the run has ended, and what it ended with.
    fn end(&self, run: &RunDir, status: &Status) -> u8 {
        self.shown.iter().for_each(|stage| self.screen.end_stage(stage));
        let directory = quoted(&run.path().display().to_string());
        if status.state() == State::Done {
            self.screen.line(&format!("done: bam report {directory}"));
            return exit_code::DONE;
        }
        let (text, code) = match &status.ending {
            Some(ending) => (said(ending), ending.exit_code),
            None => ("nobody works on the run, and nobody has said why".to_owned(), exit_code::FAILURE),
        };
        self.screen.warn(&format!("{text}\n  how to go on: bam status {directory}"));
        code
    }
}

fn plan_of(run: &RunDir) -> anyhow::Result<Option<Plan>> {
    files::read_json(&run.plan()).with_context(|| run.plan().display().to_string())
}

fn is_taught(stage: &Stage) -> bool {
    matches!(&stage.work, StageWork::Train(train) if !train.teachers.is_empty())
}

/// What is still to do, if the encoder's shape is known here. Of the texts' lengths, the steps so far tell the mean.
fn remaining(run: &RunDir, recipe: &Recipe, plan: &Plan) -> Option<Remaining> {
    let mut shape: EncoderConfig =
        serde_json::from_slice(&fs::read(recipe.model.path.join("config.json")).ok()?).ok()?;
    shape.num_hidden_layers = recipe.model.layers.unwrap_or(shape.num_hidden_layers);
    let steps: Vec<StepReport> = plan.stages.iter().flat_map(|stage| recent_steps(&run.metrics(&stage.name))).collect();
    let examples: usize = steps.iter().map(|step| step.examples).sum();
    let tokens: u64 = steps.iter().map(|step| step.tokens).sum();
    // Before the first step, no pace is known, either.
    let mean = (tokens as usize).checked_div(examples).unwrap_or_default();
    let lengths = plan.tasks.iter().map(|_| Lengths { mean, longest: recipe.model.max_length }).collect();
    Some(Remaining::new(plan.clone(), recipe.cluster.clone(), lengths, shape))
}

/// What a stage's log has announced from byte `from` on, in whole lines, and where they end.
fn announcements(log: &Path, from: u64) -> (Vec<String>, u64) {
    let mut text = vec![];
    let read = File::open(log).and_then(|mut file| {
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut text)
    });
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if read.is_err() || whole == 0 {
        return (vec![], from);
    }
    let lines = String::from_utf8_lossy(&text[..whole]);
    let mark = format!("{ANNOUNCEMENT} | ");
    let said = lines.lines().filter_map(|line| line.strip_prefix(&mark)).map(str::to_owned);
    (said.collect(), from + whole as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn announcements_are_passed_on_once_and_whole() {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        write!(log, "=== start 1\nbam | noise\nbam says | one\nrank 0 | two\nbam says | thr").unwrap();
        let (said, end) = announcements(log.path(), 0);
        assert_eq!(said, ["one"]);
        assert_eq!(announcements(log.path(), end), (vec![], end));
        writeln!(log, "ee").unwrap();
        assert_eq!(announcements(log.path(), end).0, ["three"]);
        assert_eq!(announcements(Path::new("/nowhere"), 7), (vec![], 7));
    }
}
