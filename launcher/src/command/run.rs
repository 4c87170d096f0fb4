//! `bam run`: everything a recipe asks for, continuing where an earlier run stopped.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use bam_cluster::exit_code;
use bam_cluster::fault::Fault;
use bam_cluster::files;
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record;

use crate::backend::Programs;
use crate::cli::{PredictArguments, RunArguments};
use crate::conduct::Conductor;
use crate::project::Project;
use crate::report::Results;
use crate::run_claim;
use crate::run_lock::RunLock;
use crate::stage_inputs::StageInputs;
use crate::supervise::Interrupts;

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
    let conductor = Conductor::new(&project, programs, run, interrupts, faults_of(arguments, &project)?);
    match conductor.run(inputs)? {
        Some(exit_code) => Ok(exit_code),
        None => report(&project, conductor.run_dir()),
    }
}

/// The failures to rehearse, each of a stage and a rank that there are.
fn faults_of(arguments: &RunArguments, project: &Project) -> anyhow::Result<Vec<Fault>> {
    for fault in &arguments.inject {
        let stage = project.plan.stage(&fault.stage);
        let stage = stage.with_context(|| format!("--inject {fault}: there is no stage '{}'", fault.stage))?;
        let ranks = project.recipe.cluster.ranks(stage.tasks_learnt());
        ensure!(fault.rank < ranks, "--inject {fault}: the stage has {ranks} ranks, numbered from 0");
    }
    Ok(arguments.inject.clone())
}

/// Runs a recipe that asks for these splits.
pub fn predict(mut arguments: PredictArguments) -> anyhow::Result<u8> {
    arguments.run.recipe.overrides.push(format!("predict=[{}]", arguments.split.join(", ")));
    run(&arguments.run)
}

/// Writes and prints the results.
fn report(project: &Project, run: &RunDir) -> anyhow::Result<u8> {
    let results = Results::collect(run, &project.recipe, &project.plan)?;
    let path = run.report();
    files::write_json(&path, &results.to_json()).with_context(|| format!("cannot write {}", path.display()))?;
    super::print(&results.render())?;
    Ok(exit_code::DONE)
}
