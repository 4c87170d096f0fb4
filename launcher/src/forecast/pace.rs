//! How fast ranks are: as somebody says, or as the steps of this run, or of another one with the same encoder, have shown.

use std::cmp::Reverse;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use bam_cluster::config::{self, Recipe};
use bam_cluster::encoder::EncoderConfig;
use bam_cluster::files;
use bam_cluster::plan::{Plan, Stage, StageWork, TrainStage};
use bam_cluster::protocol::StepReport;
use bam_cluster::run_dir::RunDir;
use serde::Serialize;

use super::lengths::Lengths;
use crate::progress;

/// Other runs that are looked at, the newest first.
const RUNS: usize = 32;
/// A forward pass is a third of a training step's operations.
const FORWARD: f64 = 1.0 / 3.0;

/// The speed of one rank.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Pace {
    /// Somebody says so.
    Stated {
        /// Training examples a second of one process.
        samples_per_second: f64,
    },
    /// Steps have shown it.
    Measured {
        /// Floating-point operations a second that one process was credited with.
        operations_per_second: f64,
        /// Whose steps.
        run: String,
        /// In which stage.
        stage: String,
    },
}

/// What one training example of a stage is worth, in floating-point operations, by the share of each task.
pub fn operations(train: &TrainStage, lengths: impl Fn(&str) -> usize, shape: &EncoderConfig) -> f64 {
    let shares = train.mixture.shares(&train.sizes);
    let of_task = |(task, share): (&String, f64)| share * shape.training_operations(lengths(task));
    train.tasks.iter().zip(shares).map(of_task).sum()
}

impl Pace {
    /// From steps of so many ranks; none if there are none.
    pub fn of_steps(steps: &[StepReport], ranks: usize, shape: &EncoderConfig) -> Option<f64> {
        let worth = |step: &StepReport| {
            let length = step.tokens as usize / step.examples.max(1);
            step.examples as f64 * shape.training_operations(length)
        };
        let operations: f64 = steps.iter().map(worth).sum();
        let seconds: f64 = steps.iter().map(|step| step.seconds).sum();
        let pace = operations / (seconds * ranks.max(1) as f64);
        (pace > 0.0 && pace.is_finite()).then_some(pace)
    }

    /// As the newest steps of `run`, or of another run beside it with the same encoder, have shown it.
    pub fn find(run: &RunDir, recipe: &Recipe, shape: &EncoderConfig) -> Option<Pace> {
        let beside = run.path().parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten().flatten();
        let changed = |path: &Path| fs::metadata(RunDir::new(path).plan()).and_then(|m| m.modified()).ok();
        let dated = beside.filter_map(|entry| Some((changed(&entry.path())?, entry.path())));
        let mut others: Vec<(SystemTime, _)> = dated.filter(|(_, path)| path != run.path()).collect();
        others.sort_by_key(|(time, _)| Reverse(*time));
        let others = others.into_iter().take(RUNS).map(|(_, path)| RunDir::new(path));
        std::iter::once(run.clone()).chain(others).find_map(|run| Pace::of_run(&run, recipe, shape))
    }

    /// As the newest steps of a run have shown it, if its encoder is that of `recipe`.
    fn of_run(run: &RunDir, recipe: &Recipe, shape: &EncoderConfig) -> Option<Pace> {
        let plan: Plan = files::read_json(&run.plan()).ok()??;
        let theirs = config::load_resolved(&run.recipe()).ok()?;
        if (&theirs.model.path, theirs.model.layers) != (&recipe.model.path, recipe.model.layers) {
            return None;
        }
        let newest = |stage: &&Stage| fs::metadata(run.metrics(&stage.name)).and_then(|m| m.modified()).ok();
        let stage = plan.stages.iter().filter(|stage| stage.is_training()).max_by_key(newest)?;
        let steps = progress::recent_steps(&run.metrics(&stage.name));
        let ranks = stage.ranks(&theirs.cluster);
        let operations_per_second = Pace::of_steps(&steps, ranks, shape)?;
        Some(Pace::Measured { operations_per_second, run: run.path().display().to_string(), stage: stage.name.clone() })
    }
}

/// What decides how long stages take.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// The run.
    pub plan: &'a Plan,
    /// Each of the plan's tasks' examples.
    pub lengths: &'a [Lengths],
    /// The encoder.
    pub shape: &'a EncoderConfig,
}

impl Work<'_> {
    /// Seconds that a stage takes on so many ranks: its steps, or the examples that it asks models about. What a start and the
    /// evaluation at the end of a training take is not in it, and preparing data counts as nothing.
    pub fn seconds(&self, stage: &Stage, ranks: usize, pace: &Pace) -> f64 {
        let ranks = ranks.max(1) as f64;
        let of_example = |operations: f64| match pace {
            Pace::Stated { samples_per_second } => 1.0 / (samples_per_second * ranks),
            Pace::Measured { operations_per_second, .. } => operations / (operations_per_second * ranks),
        };
        let asked = |task: &str, examples: usize| {
            let third = match pace {
                // Of an example of any length.
                Pace::Stated { .. } => of_example(0.0),
                Pace::Measured { .. } => of_example(self.shape.training_operations(self.mean(task))),
            };
            examples as f64 * third * FORWARD
        };
        match &stage.work {
            StageWork::Train(train) => {
                stage.examples() as f64 * of_example(operations(train, |task| self.mean(task), self.shape))
            }
            StageWork::Logits(logits) => {
                let rows = |task: &str| self.plan.tasks.iter().find(|t| t.task == task).map_or(0, |t| t.train);
                logits.teachers.iter().map(|teacher| asked(&teacher.task, rows(&teacher.task))).sum()
            }
            StageWork::Predict(predict) => predict.questions.iter().map(|q| asked(&q.task, q.examples)).sum(),
            StageWork::Prepare | StageWork::Choose(_) => 0.0,
        }
    }

    /// Mean tokens of a task's examples.
    pub fn mean(&self, task: &str) -> usize {
        let tasks = self.plan.tasks.iter().zip(self.lengths);
        tasks.filter(|(size, _)| size.task == task).map(|(_, lengths)| lengths.mean).next().unwrap_or_default()
    }
}
