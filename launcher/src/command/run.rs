//! `bam run`: everything a recipe asks for, stage by stage, continuing where an earlier run stopped.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use bam_cluster::checkpoint::Fence;
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::plan::{ChooseStage, Stage, StageWork};
use bam_cluster::protocol::Begin;
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::{self, RecordError, Scores, StageRecord, Standing, Sums};

use crate::backend::Programs;
use crate::choice;
use crate::cli::{PredictArguments, RunArguments};
use crate::project::Project;
use crate::report::Results;
use crate::run_claim;
use crate::run_lock::RunLock;
use crate::stage_inputs::{self, StageInputs};
use crate::supervise::{self, End, Interrupts, Screen, StageJob};

/// Runs a recipe.
pub fn run(arguments: &RunArguments) -> anyhow::Result<u8> {
    // Everything up to the lock only looks, so that bad input changes nothing.
    let project = Project::load(&arguments.recipe)?;
    let programs = Programs::find()?;
    let directory = arguments.run_dir.clone().unwrap_or_else(|| PathBuf::from("runs").join(&project.recipe.name));
    let directory = std::path::absolute(&directory).with_context(|| directory.display().to_string())?;
    let run = RunDir::new(directory);
    let _lock = RunLock::acquire(&run)?;
    run_claim::check(&run, &project.recipe)?;
    let inputs = StageInputs::new(&project)?;
    if let Some(first) = project.plan.stages.first() {
        // Changed data is noticed before the plan that follows from it is written down.
        stage_record::standing(&run, &first.name, &inputs.of(&run, first)?)?;
    }
    run_claim::claim(&run, &project.recipe, &project.plan)?;
    let interrupts = Interrupts::listen().context("cannot listen for signals")?;
    let mut conductor = Conductor { project: &project, programs, run, interrupts, screen: Screen::new() };
    conductor.run(inputs)
}

/// Runs a recipe that asks for these splits.
pub fn predict(mut arguments: PredictArguments) -> anyhow::Result<u8> {
    arguments.run.recipe.overrides.push(format!("predict=[{}]", arguments.split.join(", ")));
    run(&arguments.run)
}

/// Takes the stages one after another.
struct Conductor<'a> {
    project: &'a Project,
    programs: Programs,
    run: RunDir,
    interrupts: Interrupts,
    screen: Screen,
}

impl Conductor<'_> {
    fn run(&mut self, mut inputs: StageInputs) -> anyhow::Result<u8> {
        let project = self.project;
        self.screen.line(&format!("run directory: {}", self.run.path().display()));
        for warning in &project.warnings {
            self.screen.line(&format!("warning: {warning}"));
        }
        for stage in &project.plan.stages {
            let name = &stage.name;
            let made_from = inputs.of(&self.run, stage)?;
            if let Standing::Finished(record) = self.standing(stage, &made_from)? {
                self.screen.line(&format!("{name}: done before"));
                inputs.add(name, record.outputs);
                continue;
            }
            if self.interrupts.count() > 0 {
                self.screen.line(&format!("stopped before stage '{name}'; run the same command to go on"));
                return Ok(exit_code::STOPPED_AT_CHECKPOINT);
            }
            let began = Instant::now();
            let end = match &stage.work {
                StageWork::Choose(work) => End::Finished(self.choose(stage, work, &made_from)?),
                _ => self.perform(stage, &made_from)?,
            };
            match end {
                End::Finished(outputs) => {
                    let seconds = began.elapsed().as_secs_f64();
                    inputs.add(name, outputs.clone());
                    stage_record::finish(&self.run, name, &StageRecord { inputs: made_from, outputs, seconds })?;
                    self.screen.line(&self.summary(stage, seconds)?);
                }
                end => return Ok(self.leave(stage, &end)),
            }
        }
        self.report()
    }

    /// What is known of a stage, whose products are all there if it is complete.
    fn standing(&self, stage: &Stage, made_from: &Sums) -> anyhow::Result<Standing> {
        let standing = stage_record::standing(&self.run, &stage.name, made_from);
        let products = stage_inputs::check_products(&self.run, &self.project.plan, stage);
        match (&stage.work, standing) {
            // Nothing is made from answers: other questions, or lost answers, are answered anew.
            (StageWork::Predict(_), Err(RecordError::Changed { .. })) => Ok(Standing::Open),
            (StageWork::Predict(_), Ok(Standing::Finished(_))) if products.is_err() => Ok(Standing::Open),
            (_, Ok(Standing::Finished(record))) => products.map(|()| Standing::Finished(record)).map_err(Into::into),
            (_, standing) => Ok(standing?),
        }
    }

    /// Chooses between candidates, without any ranks.
    fn choose(&self, stage: &Stage, work: &ChooseStage, made_from: &Sums) -> anyhow::Result<Sums> {
        stage_record::begin(&self.run, &stage.name, made_from)?;
        let task = self.project.tasks.iter().find(|t| work.tasks.contains(&t.name));
        let metric = task.and_then(|t| t.metrics.first()).context("a task without a metric")?;
        choice::choose(&self.run, &self.project.plan, &stage.name, work, *metric)
    }

    /// Starts a stage's ranks and stays with them.
    fn perform(&mut self, stage: &Stage, made_from: &Sums) -> anyhow::Result<End> {
        stage_record::begin(&self.run, &stage.name, made_from)?;
        let fence = Fence::advance(&self.run)?;
        let processes = self.project.recipe.cluster.processes;
        let ranks = if processes == 1 { "1 process".to_owned() } else { format!("{processes} processes") };
        let work = match &stage.work {
            StageWork::Train(train) => format!("{} steps on ", train.schedule.total_steps),
            _ => String::new(),
        };
        self.screen.line(&format!("{}: {work}{ranks}", stage.name));
        let job = StageJob {
            stage,
            run: &self.run,
            recipe: &self.project.recipe,
            programs: &self.programs,
            begin: Begin { plan: self.project.plan.hash(), inputs: made_from.clone() },
            incarnation: fence.incarnation(),
        };
        supervise::supervise(&job, &mut self.screen, &self.interrupts)
    }

    /// Says how to go on after a stage that was stopped or killed; returns the exit code.
    fn leave(&self, stage: &Stage, end: &End) -> u8 {
        let name = &stage.name;
        match end {
            End::Stopped { step } => {
                let at = match &stage.work {
                    StageWork::Train(train) => {
                        format!("at step {step} of {}, with a checkpoint", train.schedule.total_steps)
                    }
                    _ => "before the stage was complete".to_owned(),
                };
                self.screen.line(&format!("{name}: stopped {at}; run the same command to go on"));
                exit_code::STOPPED_AT_CHECKPOINT
            }
            End::Finished(_) | End::Killed => {
                self.screen.line(&format!("{name}: killed; run the same command to go on from the last checkpoint"));
                exit_code::INTERRUPTED
            }
        }
    }

    /// One line on a stage that has just been completed; for a model, with its scores on dev.
    fn summary(&self, stage: &Stage, seconds: f64) -> anyhow::Result<String> {
        let line = format!("{}: done in {}", stage.name, supervise::brief(seconds));
        if let StageWork::Predict(predict) = &stage.work {
            let answers: usize = predict.questions.iter().map(|q| q.examples).sum();
            return Ok(format!("{line}; {answers} answers in stages/STAGE/predictions"));
        }
        let (line, learnt) = match &stage.work {
            StageWork::Train(train) => (line, &train.tasks),
            StageWork::Choose(work) => {
                (format!("{}: {}", stage.name, choice::describe(&self.run, &stage.name)?), &work.tasks)
            }
            _ => return Ok(line),
        };
        let path = self.run.scores(&stage.name);
        let scores: Scores = files::read_json(&path).with_context(|| path.display().to_string())?.unwrap_or_default();
        let tasks = self.project.tasks.iter().filter(|t| learnt.contains(&t.name));
        let said: Vec<String> = tasks
            .filter_map(|task| {
                let metric = task.metrics.first()?.name();
                let score = scores.get(&task.name)?.metrics.get(metric).copied().flatten();
                let score = score.map_or("undefined".to_owned(), |s| format!("{:.1}", 100.0 * s));
                Some(format!("{} {metric} {score}", task.name))
            })
            .collect();
        Ok(if said.is_empty() { line } else { format!("{line}; dev: {}", said.join(", ")) })
    }

    fn report(&self) -> anyhow::Result<u8> {
        let results = Results::collect(&self.run, &self.project.recipe, &self.project.plan)?;
        let path = self.run.report();
        files::write_json(&path, &results.to_json()).with_context(|| format!("cannot write {}", path.display()))?;
        super::print(&results.render())?;
        Ok(exit_code::DONE)
    }
}
