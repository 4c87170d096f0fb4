//! `bam doctor`: prints what was found on this machine.

use bam_cluster::config::{ClusterSection, SlurmSection};
use bam_cluster::exit_code;

use crate::cli::{DoctorArguments, RecipeArguments};
use crate::conduct;
use crate::doctor::{Finding, Needs, Patient, Verdict, examine};
use crate::failure;
use crate::forecast::{Forecast, Layout};
use crate::numbers::{count, thousands};
use crate::project::Project;
use crate::slurm::Allocation;

const FILES: &str = "the recipe's files";
/// Ranks where nobody says how many: the least that can talk.
const RANKS: usize = 2;

/// Prints the findings; 1 if there is a problem among them.
pub fn run(arguments: &DoctorArguments) -> anyhow::Result<u8> {
    let findings = examine(&patient(arguments)?);
    let text = if arguments.json { serde_json::to_string_pretty(&findings)? + "\n" } else { render(&findings) };
    super::print(&text)?;
    let has_problem = findings.iter().any(|finding| finding.verdict == Verdict::Problem);
    Ok(if has_problem { exit_code::FAILURE } else { exit_code::DONE })
}

fn patient(arguments: &DoctorArguments) -> anyhow::Result<Patient> {
    let tasks = Allocation::of_this_process().and_then(|job| job.tasks);
    let directory = std::path::absolute(&arguments.dir)?;
    let DoctorArguments { processes, hosts, overrides, .. } = arguments;
    let Some(config) = &arguments.config else {
        let processes = processes.or(tasks).unwrap_or(RANKS);
        let cluster = ClusterSection { processes, hosts: hosts.clone(), ..ClusterSection::default() };
        return Ok(Patient { cluster, slurm: SlurmSection::default(), directory, files: vec![], needs: None });
    };
    let (processes, hosts, overrides) = (*processes, hosts.clone(), overrides.clone());
    let arguments = RecipeArguments { config: config.clone(), processes, hosts, overrides };
    // A recipe that is wrong is an error; what it names may be missing here.
    let recipe = Project::recipe(&arguments, tasks)?;
    let (files, needs) = match Project::load_for(&arguments, tasks) {
        Ok(project) => {
            let examples: usize = project.plan.tasks.iter().map(|size| size.train + size.dev).sum();
            let tasks = count(project.tasks.len(), "task");
            let said = format!("the encoder and {tasks} with {} examples are sound", thousands(examples));
            let warnings = project.warnings.iter().map(|w| Finding::warning(FILES, w, "see the recipe's data section"));
            (std::iter::once(Finding::ok(FILES, said)).chain(warnings).collect(), Some(needs(&project)))
        }
        Err(error) => (vec![Finding::of_error(FILES, &failure::text(&error))], None),
    };
    Ok(Patient { cluster: recipe.cluster, slurm: recipe.slurm, directory, files, needs })
}

/// What the recipe's run takes on these hosts.
fn needs(project: &Project) -> Needs {
    let cluster = &project.recipe.cluster;
    let layout = Layout { nodes: cluster.hosts.len().max(1), processes: cluster.processes, gpus_per_node: None };
    let forecast = Forecast::of(project, layout, None);
    let side_by_side = conduct::side_by_side(&project.plan.stages, cluster);
    let memory = forecast.trainings.iter().map(|training| {
        let ranks = training.ranks.min(layout.ranks_on_a_node());
        // Others of its kind run beside it.
        let beside = (layout.ranks_on_a_node() / ranks.max(1)).min(side_by_side).max(1);
        training.memory.host(ranks) * beside as f64
    });
    Needs { disk: forecast.disk.total(), memory: memory.fold(0.0, f64::max), side_by_side }
}

fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut about = "";
    for finding in findings {
        if finding.about != about {
            about = finding.about;
            text += &format!("{}{about}\n", if text.is_empty() { "" } else { "\n" });
        }
        text += &format!("  {} {}\n", coloured(finding.verdict), finding.said);
        for line in finding.remedy.iter().flat_map(|remedy| remedy.lines()) {
            text += &format!("  {:<8} → {}\n", "", line.trim());
        }
    }
    let found = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (problems, warnings) = (found(Verdict::Problem), found(Verdict::Warning));
    text + &format!("\n{}, {}\n", count(problems, "problem"), count(warnings, "warning"))
}

/// The verdict in its column; coloured on a terminal.
fn coloured(verdict: Verdict) -> String {
    let padded = console::style(format!("{:<8}", verdict.name()));
    match verdict {
        Verdict::Ok => padded.green(),
        Verdict::Warning => padded.yellow(),
        Verdict::Problem => padded.red().bold(),
    }
    .to_string()
}
