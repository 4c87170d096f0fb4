//! `bam run`: everything a recipe asks for, continuing where an earlier run stopped.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use bam_cluster::config::nearest;
use bam_cluster::exit_code;
use bam_cluster::fault::Fault;
use bam_cluster::files;
use bam_cluster::plan::Plan;
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record;

use crate::backend::Programs;
use crate::cli::{PredictArguments, RunArguments};
use crate::command_log::CommandLine;
use crate::conduct::{self, Conductor};
use crate::descriptors;
use crate::ending::Ending;
use crate::failure;
use crate::history::{History, HistoryError};
use crate::progress::{self, Kept, StageProgress};
use crate::project::Project;
use crate::report::JudgedRun;
use crate::run_claim;
use crate::run_lock::RunLock;
use crate::slurm::{Allocation, REPORT};
use crate::stage_inputs::StageInputs;
use crate::supervise::{Interrupts, Wish};

/// Runs a recipe.
pub fn run(arguments: &RunArguments) -> anyhow::Result<u8> {
    // Reading everything takes a moment, in which a signal must not kill what a batch job is about.
    let job = Allocation::of_this_process();
    let listening = job.map(|_| listen()).transpose()?;
    // Everything up to the lock only looks, so that bad input changes nothing.
    let project = Project::load(&arguments.recipe)?;
    let programs = Programs::find(&project.recipe.cluster)?;
    let cluster = &project.recipe.cluster;
    descriptors::make_room(cluster.processes, conduct::side_by_side(&project.plan.stages, cluster))?;
    let run = RunDir::new(super::directory_or_default(arguments.run_dir.as_deref(), &project.recipe.name)?);
    let share = Share::of(&arguments.stages, &project.plan)?;
    let lock = match &share.stages {
        None => RunLock::acquire(&run)?,
        Some(stages) => RunLock::acquire_stages(&run, stages.iter().map(String::as_str))?,
    };
    run_claim::check(&run, &project.recipe)?;
    let inputs = StageInputs::new(&project)?;
    if let Some(first) = project.plan.stages.first() {
        // Changed data is noticed before the plan that follows from it is written down.
        stage_record::standing(&run, &first.name, &inputs.of(&run, first)?)?;
    }
    run_claim::claim(&run, &project.recipe, &project.plan)?;
    let noted = CommandLine::of_this_process().and_then(|command| command.note(&run));
    noted.with_context(|| format!("cannot write {}", run.commands().display()))?;
    let faults = faults_of(arguments, &project)?;
    let history = job.map(|job| begin(job, &project, &share, &run)).transpose()?;
    let interrupts = listening.map_or_else(listen, Ok)?;
    let (only, verbosity) = (share.stages.clone(), arguments.verbosity.chosen());
    let conductor =
        Conductor::new(&project, programs, run, &lock, only, interrupts.clone(), verbosity).with_faults(faults);
    let run = conductor.run_dir();
    let is_whole = share.stages.is_none();
    if is_whole {
        Ending::forget(run);
    }
    let outcome = conductor.run(inputs);
    let noted = history.map(|history| end(&history, &project, &share, run, &outcome, &interrupts)).transpose();
    let outcome = noted.map_err(Into::into).and(outcome).and_then(|stopped| match stopped {
        Some(exit_code) => Ok(exit_code),
        None if share.has_report => report(&project, run),
        None => Ok(exit_code::DONE),
    });
    if is_whole {
        Ending::note(run, &outcome);
    }
    outcome
}

/// What of a run one start of bam does.
struct Share {
    /// None: all stages.
    stages: Option<BTreeSet<String>>,
    /// Whether the table is written in the end.
    has_report: bool,
}

impl Share {
    /// What the command line asks for.
    ///
    /// # Errors
    /// There is no such stage.
    fn of(asked: &[String], plan: &Plan) -> Result<Share, NoSuchStage> {
        if asked.is_empty() {
            return Ok(Share { stages: None, has_report: true });
        }
        let mut share = Share { stages: None, has_report: false };
        let stages = share.stages.insert(BTreeSet::new());
        for name in asked {
            if name == REPORT {
                share.has_report = true;
            } else if plan.stage(name).is_some() {
                stages.insert(name.clone());
            } else {
                return Err(NoSuchStage::new(
                    "--stages",
                    name,
                    plan.stages.iter().map(|s| s.name.as_str()).chain([REPORT]),
                ));
            }
        }
        Ok(share)
    }

    /// How far its stages are.
    fn kept(&self, project: &Project, run: &RunDir) -> Kept {
        let is_own = |stage: &StageProgress| self.stages.as_ref().is_none_or(|own| own.contains(&stage.name));
        progress::kept(&progress::stages(run, &project.plan).into_iter().filter(is_own).collect::<Vec<_>>())
    }
}

/// The command line names a stage that the recipe does not have.
#[derive(Debug, thiserror::Error)]
#[error("{option}: there is no stage '{name}'; there are {there_are}{hint}")]
pub struct NoSuchStage {
    option: String,
    name: String,
    there_are: String,
    hint: String,
}

impl NoSuchStage {
    fn new<'a>(option: &str, name: &str, known: impl Iterator<Item = &'a str>) -> NoSuchStage {
        let known: Vec<&str> = known.collect();
        let hint = nearest(name, known.iter().copied()).map(|near| format!("\n  did you mean '{near}'?"));
        let (option, name, there_are) = (option.to_owned(), name.to_owned(), known.join(", "));
        NoSuchStage { option, name, there_are, hint: hint.unwrap_or_default() }
    }
}

fn listen() -> anyhow::Result<Interrupts> {
    Interrupts::listen().context("cannot listen for signals")
}

/// Notes that a batch job begins its work, unless it has begun it often enough in vain.
fn begin(job: Allocation, project: &Project, share: &Share, run: &RunDir) -> Result<History, HistoryError> {
    let kept = share.kept(project, run);
    let mut history = History::open(run, job)?;
    history.check(run, kept, project.recipe.slurm.max_requeues)?;
    history.begin(kept)?;
    Ok(history)
}

/// Notes why a batch job ends its work; one that is stopped in vain once too often is a failure, so that it is not put into
/// the queue again.
fn end(
    history: &History,
    project: &Project,
    share: &Share,
    run: &RunDir,
    outcome: &anyhow::Result<Option<u8>>,
    interrupts: &Interrupts,
) -> Result<(), HistoryError> {
    let kept = share.kept(project, run);
    let is_cancelled = run.cancelled().exists();
    let reason = match (outcome, interrupts.wish()) {
        (Ok(None), _) => "done".to_owned(),
        (Err(error), _) => failure::text(error),
        (Ok(Some(_)), _) if is_cancelled => "cancelled".to_owned(),
        (Ok(Some(_)), Some(Wish::TimeIsUp)) => "time is up (SIGUSR1)".to_owned(),
        (Ok(Some(_)), _) => "stopped by a signal".to_owned(),
    };
    history.end(&reason, kept)?;
    match outcome {
        Ok(Some(exit_code::STOPPED_AT_CHECKPOINT)) if !is_cancelled => {
            history.check(run, kept, project.recipe.slurm.max_requeues)
        }
        _ => Ok(()),
    }
}

/// The failures to rehearse, each of a stage and a rank that there are.
fn faults_of(arguments: &RunArguments, project: &Project) -> anyhow::Result<Vec<Fault>> {
    for fault in &arguments.inject {
        let stage = project.plan.stage(&fault.stage);
        let names = || project.plan.stages.iter().map(|stage| stage.name.as_str());
        let stage = stage.ok_or_else(|| NoSuchStage::new(&format!("--inject {fault}"), &fault.stage, names()))?;
        let ranks = stage.ranks(&project.recipe.cluster);
        ensure!(fault.rank < ranks, "--inject {fault}: the stage has {ranks} ranks, numbered from 0");
    }
    Ok(arguments.inject.clone())
}

/// Runs a recipe that asks for these splits.
pub fn predict(mut arguments: PredictArguments) -> anyhow::Result<u8> {
    arguments.run.recipe.overrides.push(format!("predict=[{}]", arguments.split.join(", ")));
    run(&arguments.run)
}

/// Writes and prints the results; without those of all stages, that is a failure.
fn report(project: &Project, run: &RunDir) -> anyhow::Result<u8> {
    let judged = JudgedRun::collect(run.clone(), project.recipe.clone(), project.plan.clone())?;
    let path = run.report();
    files::write_json(&path, &judged.results.to_json()).with_context(|| format!("cannot write {}", path.display()))?;
    super::print(&judged.results.render())?;
    let is_complete = judged.results.missing.is_empty();
    super::report::write_page(&[judged], false, &run.report_page())?;
    Ok(if is_complete { exit_code::DONE } else { exit_code::FAILURE })
}
