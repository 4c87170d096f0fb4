//! `bam plan`: what would run and what it takes, at once and without starting anything.

mod json;
mod text;

use bam_cluster::config::{ConfigError, SlurmSection};
use bam_cluster::exit_code;
use bam_cluster::plan::{Schedule, TrainStage};
use bam_cluster::run_dir::RunDir;

use crate::cli::{PlanArguments, RecipeArguments};
use crate::forecast::{Forecast, Layout, Pace};
use crate::project::Project;
use crate::slurm::Allocation;

/// Prints the plan. What a run would refuse on the machines that are asked about is part of it, and an exit code.
pub fn run(arguments: &PlanArguments) -> anyhow::Result<u8> {
    let (project, layout) = load(arguments)?;
    let forecast = Forecast::of(&project, layout, pace(arguments, &project, &layout)?);
    let text = if arguments.json {
        serde_json::to_string_pretty(&json::to_json(&project, &forecast))? + "\n"
    } else {
        text::render(&project, &forecast)
    };
    super::print(&text)?;
    Ok(if forecast.problems.is_empty() { exit_code::DONE } else { exit_code::USAGE })
}

/// The project, and the machines that it is planned for.
fn load(arguments: &PlanArguments) -> anyhow::Result<(Project, Layout)> {
    let Some(nodes) = arguments.nodes else {
        let slurm = Project::recipe(&arguments.recipe, None).map(|recipe| recipe.slurm)?;
        let has_section = slurm != SlurmSection::default();
        // As many processes as bam run or bam submit would take.
        let tasks = Allocation::of_this_process().and_then(|job| job.tasks);
        let submitted = has_section.then(|| slurm.nodes.saturating_mul(slurm.gpus_per_node.unwrap_or(1)));
        let project = Project::load_for(&arguments.recipe, tasks.or(submitted))?;
        let nodes = if has_section { slurm.nodes } else { project.recipe.cluster.hosts.len().max(1) };
        let (processes, gpus_per_node) = (project.recipe.cluster.processes, slurm.gpus_per_node);
        return Ok((project, Layout { nodes, processes, gpus_per_node }));
    };
    // Of other machines than these, everything is shown: what does not fit is said beside it.
    let mut recipe = arguments.recipe.clone();
    let gpus_per_node = arguments.gpus_per_node;
    let processes = recipe.processes.take().unwrap_or(nodes.saturating_mul(gpus_per_node.unwrap_or(1)));
    if processes == 0 {
        let (key, problem) = ("cluster.processes".to_owned(), "must be at least 1 (-n)".to_owned());
        return Err(ConfigError::Invalid { key, problem }.into());
    }
    // A number of processes that the recipe would refuse is put in afterwards.
    let asked = RecipeArguments { processes: Some(processes), ..recipe.clone() };
    let is_sound = |arguments: &RecipeArguments| Project::recipe(arguments, Some(1)).is_ok();
    let first = if !is_sound(&asked) && is_sound(&recipe) { &recipe } else { &asked };
    let mut project = Project::load_for(first, Some(1))?;
    project.recipe.cluster.processes = processes;
    project.recipe.cluster.hosts.clear();
    project.recipe.slurm.nodes = nodes;
    project.recipe.slurm.gpus_per_node = gpus_per_node;
    Ok((project, Layout { nodes, processes, gpus_per_node }))
}

/// The speed to estimate time by: what is stated here, what was measured, what the recipe states. What was measured here says
/// nothing of GPUs elsewhere.
fn pace(arguments: &PlanArguments, project: &Project, layout: &Layout) -> anyhow::Result<Option<Pace>> {
    let stated = |samples_per_second| Pace::Stated { samples_per_second };
    if let Some(speed) = arguments.samples_per_second {
        return Ok(Some(stated(speed)));
    }
    let recipe = &project.recipe;
    let run = RunDir::new(super::directory_or_default(arguments.run_dir.as_deref(), &recipe.name)?);
    let is_here = arguments.nodes.is_none() || layout.gpus_per_node.is_none();
    let measured = if is_here { Pace::find(&run, recipe, &project.encoder.config) } else { None };
    Ok(measured.or(recipe.slurm.samples_per_second.map(stated)))
}

/// Of each task its share of all examples, how many that is, how many passes over its data, and its loss weight.
fn drawn(train: &TrainStage) -> impl Iterator<Item = [f64; 4]> {
    let all = train.schedule.total_steps as f64 * train.settings.batch_size as f64;
    let shares = train.mixture.shares(&train.sizes).into_iter().enumerate();
    shares
        .map(move |(i, share)| [share, share * all, share * all / train.sizes[i] as f64, train.mixture.loss_weights[i]])
}

/// The milestones of a training.
fn steps(schedule: &Schedule) -> [u64; 6] {
    let total = schedule.total_steps;
    [0, schedule.warmup_steps, total / 4, total / 2, total * 3 / 4, total - 1]
}
