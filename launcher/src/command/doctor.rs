//! `bam doctor`: prints what was found on this machine.

use bam_cluster::config::{ClusterSection, SlurmSection};
use bam_cluster::exit_code;

use crate::cli::{DoctorArguments, RecipeArguments};
use crate::doctor::{Finding, Patient, Verdict, examine};
use crate::project::Project;
use crate::slurm::Allocation;

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
    let (mut cluster, mut slurm) = (ClusterSection::default(), SlurmSection::default());
    match &arguments.config {
        Some(config) => {
            let DoctorArguments { processes, hosts, overrides, .. } = arguments;
            let (processes, hosts, overrides) = (*processes, hosts.clone(), overrides.clone());
            let recipe = RecipeArguments { config: config.clone(), processes, hosts, overrides };
            let recipe = Project::recipe(&recipe, tasks)?;
            (cluster, slurm) = (recipe.cluster, recipe.slurm);
        }
        None => {
            cluster.processes = arguments.processes.or(tasks).unwrap_or(RANKS);
            cluster.hosts.clone_from(&arguments.hosts);
        }
    }
    Ok(Patient { cluster, slurm, directory: std::path::absolute(&arguments.dir)? })
}

fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut about = "";
    for finding in findings {
        if finding.about != about {
            about = finding.about;
            text += &format!("{}{about}\n", if text.is_empty() { "" } else { "\n" });
        }
        text += &format!("  {:<8} {}\n", finding.verdict.name(), finding.said);
        for line in finding.remedy.iter().flat_map(|remedy| remedy.lines()) {
            text += &format!("  {:<8} → {}\n", "", line.trim());
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let plural = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
    let (problems, warnings) = (count(Verdict::Problem), count(Verdict::Warning));
    text + &format!("\n{}, {}\n", plural(problems, "problem"), plural(warnings, "warning"))
}
