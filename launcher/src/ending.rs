//! `ending.json`: how the last `bam run` on a whole run ended, for those who look at the run from elsewhere.

use std::fs;
use std::time::SystemTime;

use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::run_dir::RunDir;
use serde::{Deserialize, Serialize};

use crate::backend::host_name;
use crate::failure;

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// When.
    pub time: String,
    /// Where bam ran.
    pub host: String,
    /// What it ended with.
    pub exit_code: u8,
    /// Why.
    pub reason: String,
}

impl Ending {
    /// Forgets how an earlier start has ended.
    pub fn forget(run: &RunDir) {
        // What is not there need not be removed, and what cannot be removed keeps nobody from working.
        let _ = fs::remove_file(run.ending());
    }

    /// Notes how this start ends.
    pub fn note(run: &RunDir, outcome: &anyhow::Result<u8>) {
        let (exit_code, reason) = match outcome {
            Ok(exit_code::DONE) => (exit_code::DONE, "done".to_owned()),
            Ok(exit_code::STOPPED_AT_CHECKPOINT) => (exit_code::STOPPED_AT_CHECKPOINT, "stopped, as asked".to_owned()),
            Ok(exit_code::INTERRUPTED) => (exit_code::INTERRUPTED, "killed, as asked".to_owned()),
            Ok(other) => (*other, "not everything is there".to_owned()),
            Err(error) => (failure::exit_code(error), failure::text(error)),
        };
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        // On a full disk, why bam ends is said on the terminal alone.
        let _ = files::write_json(&run.ending(), &Ending { time, host: host_name(), exit_code, reason });
    }

    /// How the last start ended, if that is known.
    pub fn read(run: &RunDir) -> Option<Ending> {
        files::read_json(&run.ending()).ok().flatten()
    }
}
