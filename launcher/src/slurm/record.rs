//! `slurm/job.json`: the job that was submitted last for a run.

use std::io;

use bam_cluster::files;
use bam_cluster::run_dir::RunDir;
use serde::{Deserialize, Serialize};

use crate::shell::quoted;

/// What was submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The job's number.
    pub job: u64,
    /// Where sites with several clusters have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// When it was submitted.
    pub submitted: String,
    /// In which directory.
    pub directory: String,
    /// By which command.
    pub command: String,
}

impl JobRecord {
    /// None where nothing was submitted.
    ///
    /// # Errors
    /// The file cannot be read, or is something else.
    pub fn read(run: &RunDir) -> io::Result<Option<JobRecord>> {
        files::read_json(&run.job())
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
        files::write_json(&run.job(), self)
    }
}
