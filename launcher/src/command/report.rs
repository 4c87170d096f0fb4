//! `bam report`: the results of a run, finished or not, from its directory alone.

use anyhow::Context;
use bam_cluster::config;
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::plan::Plan;
use bam_cluster::run_dir::RunDir;

use crate::cli::ReportArguments;
use crate::report::{NotARun, Results};

/// Prints a run's results.
pub fn run(arguments: &ReportArguments) -> anyhow::Result<u8> {
    let run = RunDir::new(&arguments.run_dir);
    let plan = plan_of(&run)?;
    let recipe = config::load_resolved(&run.recipe())?;
    super::print(&Results::collect(&run, &recipe, &plan)?.render())?;
    Ok(exit_code::DONE)
}

/// The plan that a run follows.
///
/// # Errors
/// The directory is not a run's, or the plan cannot be read.
pub(super) fn plan_of(run: &RunDir) -> anyhow::Result<Plan> {
    let not_a_run = |missing| NotARun { directory: run.path().to_owned(), missing };
    if !run.recipe().exists() {
        return Err(not_a_run("config.yaml").into());
    }
    let plan: Option<Plan> = files::read_json(&run.plan()).with_context(|| run.plan().display().to_string())?;
    Ok(plan.ok_or_else(|| not_a_run("plan.json"))?)
}
