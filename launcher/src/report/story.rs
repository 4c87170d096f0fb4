//! How the results of a run came about, read from its directory: stages, curves, starts, jobs, commands, sums.

use std::io;
use std::path::Path;

use anyhow::Context;
use bam_cluster::files;
use bam_cluster::plan::{Plan, Stage, StageWork, TrainStage};
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::{StageRecord, Sums};

use super::curves::Curves;
use super::draws::{self, Draws};
use super::starts::{self, StartOfStage};
use crate::command_log::{self, CommandLine};
use crate::history;

/// Points of all curves of a page together: what keeps it small however many steps and trials there are.
const POINTS: u64 = 60_000;
/// Points of one curve, at least and at most: fewer show nothing, more cannot be seen.
const POINTS_OF_A_CURVE: (u64, u64) = (30, 240);

/// How a run came about.
#[derive(Debug)]
pub struct Story {
    /// All stages of its plan.
    pub stages: Vec<StageStory>,
    /// Starts and ends of its batch jobs.
    pub jobs: Vec<history::Entry>,
    /// Commands that worked on it.
    pub commands: Vec<CommandLine>,
    /// The recipe as text.
    pub recipe: String,
    /// What launcher and ranks compare.
    pub plan_hash: String,
}

/// How one stage went.
#[derive(Debug)]
pub struct StageStory {
    /// Its name.
    pub name: String,
    /// Whether it was begun.
    pub is_begun: bool,
    /// How it ended, if it is complete.
    pub record: Option<StageRecord>,
    /// What it is made from, if it was begun.
    pub inputs: Sums,
    /// Its starts.
    pub starts: Vec<StartOfStage>,
    /// Its training, if it trains.
    pub training: Option<Training>,
}

/// How a training went.
#[derive(Debug)]
pub struct Training {
    /// What was planned.
    pub plan: TrainStage,
    /// What came of it.
    pub curves: Curves,
    /// What was drawn.
    pub draws: Vec<Draws>,
}

impl Training {
    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.curves.points.last().map_or(0, |last| last.first_step + last.steps)
    }
}

impl Story {
    /// Reads the story of a run. `runs`: how many share the page.
    ///
    /// # Errors
    /// A file is there and cannot be read.
    pub fn read(run: &RunDir, plan: &Plan, runs: usize) -> anyhow::Result<Story> {
        let most = points_of_a_curve(plan, runs);
        Ok(Story {
            stages: plan.stages.iter().map(|stage| StageStory::read(run, stage, most)).collect::<Result<_, _>>()?,
            jobs: at(&run.history(), |_| history::read(run))?,
            commands: at(&run.commands(), |_| command_log::read(run))?,
            recipe: at(&run.recipe(), |path| std::fs::read_to_string(path))?,
            plan_hash: plan.hash(),
        })
    }
}

/// How many points a curve may have, at most, on a page of so many runs of this plan.
pub fn points_of_a_curve(plan: &Plan, runs: usize) -> u64 {
    let curves = |stage: &Stage| match &stage.work {
        // The loss of each task, two sides of a band, and eight curves more.
        StageWork::Train(train) if train.tasks.len() > 1 => train.tasks.len() as u64 + 10,
        StageWork::Train(_) => 4,
        _ => 0,
    };
    let all = plan.stages.iter().map(curves).sum::<u64>() * runs as u64;
    (POINTS / all.max(1)).clamp(POINTS_OF_A_CURVE.0, POINTS_OF_A_CURVE.1)
}

impl StageStory {
    fn read(run: &RunDir, stage: &Stage, most: u64) -> anyhow::Result<StageStory> {
        let name = stage.name.clone();
        let inputs: Option<Sums> = at(&run.inputs(&name), files::read_json)?;
        let training = match &stage.work {
            StageWork::Train(plan) => {
                let total = plan.schedule.total_steps;
                let curves = at(&run.metrics(&name), |path| Curves::read(path, total, most))?;
                let mut training = Training { plan: plan.clone(), curves, draws: vec![] };
                training.draws = draws::count(plan, training.steps());
                Some(training)
            }
            _ => None,
        };
        Ok(StageStory {
            is_begun: inputs.is_some(),
            record: at(&run.done(&name), files::read_json)?,
            inputs: inputs.unwrap_or_default(),
            starts: at(&run.log(&name), starts::read)?,
            training,
            name,
        })
    }
}

/// With the file's name in the error.
fn at<T>(path: &Path, read: impl FnOnce(&Path) -> io::Result<T>) -> anyhow::Result<T> {
    read(path).with_context(|| path.display().to_string())
}
