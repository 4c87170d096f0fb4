//! `slurm/jobs.json`: the jobs that were submitted last for a run.

use std::io;

use bam_cluster::files;
use bam_cluster::run_dir::RunDir;
use serde::{Deserialize, Serialize};

use crate::shell::quoted;

/// What one `bam submit` has submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// When.
    pub submitted: String,
    /// In which directory.
    pub directory: String,
    /// By which command.
    pub command: String,
    /// Where sites with several clusters have the jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Its jobs, in the order in which they are to run.
    pub jobs: Vec<SubmittedJob>,
}

/// One job, or one array of jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmittedJob {
    /// What it is for, as in `slurm/NAME.sh`.
    pub name: String,
    /// Its number.
    pub id: u64,
    /// The elements that were submitted, if it is an array.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elements: Vec<SubmittedElement>,
}

/// One element of an array.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmittedElement {
    /// Its number in the array.
    pub index: u64,
    /// What it does, for people.
    pub does: String,
}

impl Submission {
    /// None where nothing was submitted.
    ///
    /// # Errors
    /// The file cannot be read, or is something else.
    pub fn read(run: &RunDir) -> io::Result<Option<Submission>> {
        files::read_json(&run.jobs())
    }

    /// The directory as a word for a shell.
    pub fn directory_quoted(&self) -> String {
        quoted(&self.directory)
    }

    /// Writes it down.
    ///
    /// # Errors
    /// The file system says no.
    pub fn write(&self, run: &RunDir) -> io::Result<()> {
        files::write_json(&run.jobs(), self)
    }
}
