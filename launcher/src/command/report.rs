//! `bam report`: the results of a run, finished or not, from its directory alone.

use std::path::Path;

use anyhow::Context;
use bam_cluster::config;
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::plan::Plan;
use bam_cluster::run_dir::RunDir;

use crate::cli::ReportArguments;
use crate::report::{Finished, NotARun, Results, render_comparison, render_tests};

/// Prints the results of one run or several.
pub fn run(arguments: &ReportArguments) -> anyhow::Result<u8> {
    let runs: Vec<Finished> = arguments.run_dirs.iter().map(|d| finished(d)).collect::<Result<_, _>>()?;
    let mut text = match runs.as_slice() {
        [only] if !arguments.published => only.results.render(),
        all => render_comparison(all, arguments.published),
    };
    if arguments.tests {
        text += &render_tests(&runs)?;
    }
    super::print(&text)?;
    Ok(exit_code::DONE)
}

fn finished(directory: &Path) -> anyhow::Result<Finished> {
    let run = RunDir::new(directory);
    let plan = plan_of(&run)?;
    let recipe = config::load_resolved(&run.recipe())?;
    let results = Results::collect(&run, &recipe, &plan)?;
    let kinds = recipe.tasks().into_iter().map(|task| (task.name, task.kind)).collect();
    Ok(Finished { run, kinds, results })
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
