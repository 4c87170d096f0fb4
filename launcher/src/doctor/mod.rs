//! `bam doctor`'s findings: what a run needs on this machine, looked at one thing after another, each with a remedy where it
//! is wanting.

mod files;
mod gpus;
mod machine;
mod pmi;
mod programs;
mod ranks;
mod slurm;

use std::path::PathBuf;

use bam_cluster::config::{ClusterSection, SlurmSection};
use serde::Serialize;

/// What is looked at.
#[derive(Debug)]
pub struct Patient {
    /// How ranks are to be started.
    pub cluster: ClusterSection,
    /// How jobs are to be submitted.
    pub slurm: SlurmSection,
    /// Where runs are to be written.
    pub directory: PathBuf,
    /// What was found of the recipe's files, if there is a recipe.
    pub files: Vec<Finding>,
    /// What the recipe's run is going to take, if its files are sound.
    pub needs: Option<Needs>,
}

/// What a run is going to take, by estimates.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// Bytes on disk.
    pub disk: f64,
    /// Bytes of memory on each host.
    pub memory: f64,
    /// Stages at the same time.
    pub side_by_side: usize,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// A run works, but not as well as it could, or not for long.
    Warning,
    /// A run does not work.
    Problem,
}

impl Verdict {
    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Problem => "PROBLEM",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kind of thing.
    pub about: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub said: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(about: &'static str, said: impl Into<String>) -> Finding {
        Finding { about, verdict: Verdict::Ok, said: said.into(), remedy: None }
    }

    /// Not as well as it could be.
    pub fn warning(about: &'static str, said: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { about, verdict: Verdict::Warning, said: said.into(), remedy: Some(remedy.into()) }
    }

    /// In the way of a run.
    pub fn problem(about: &'static str, said: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { about, verdict: Verdict::Problem, said: said.into(), remedy: Some(remedy.into()) }
    }

    /// A problem whose text has the remedy on lines of its own, as errors of this program have it.
    pub fn of_error(about: &'static str, error: &str) -> Finding {
        let (said, remedy) = error.split_once('\n').unwrap_or((error, ""));
        let remedy = (!remedy.trim().is_empty()).then(|| remedy.trim().to_owned());
        Finding { about, verdict: Verdict::Problem, said: said.to_owned(), remedy }
    }
}

/// Looks at everything. Takes a few seconds: ranks are started, and a file is written.
pub fn examine(patient: &Patient) -> Vec<Finding> {
    let Patient { cluster, slurm, directory, needs, .. } = patient;
    let (programs, mut findings) = programs::look(cluster);
    findings.extend(pmi::look(programs.as_ref()));
    if let Some(programs) = programs {
        findings.extend(ranks::look(&programs, cluster, directory));
    }
    findings.extend(machine::look(cluster, *needs));
    findings.extend(gpus::look(slurm.gpus_per_node));
    findings.extend(files::look(directory, needs.map(|needs| needs.disk)));
    findings.extend(patient.files.iter().cloned());
    findings.extend(slurm::look(slurm));
    findings
}
