//! `bam cancel`: a waiting job is taken out of the queue, a running one stops at a checkpoint and stays away.

use std::time::SystemTime;

use anyhow::{Context, bail};
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::run_dir::RunDir;

use crate::cli::RunDirArguments;
use crate::report::NotARun;
use crate::run_lock;
use crate::slurm::{JobRecord, Phase, Slurm};

/// Cancels.
pub fn run(arguments: &RunDirArguments) -> anyhow::Result<u8> {
    let directory = std::path::absolute(&arguments.run_dir).context("cannot tell the current directory")?;
    let run = RunDir::new(directory);
    let record = JobRecord::read(&run).with_context(|| run.job().display().to_string())?;
    let Some(record) = record else {
        if let Some(holder) = run_lock::holder(&run)? {
            bail!(
                "{}: nothing was submitted, but a bam works there ({holder}); Ctrl-C or SIGTERM stops it at a checkpoint",
                run.path().display()
            );
        }
        return Err(NotARun { directory: run.path().to_owned(), missing: "slurm/job.json" }.into());
    };
    let id = record.job;
    let first = match Slurm.job(&record)? {
        Some(job) if job.phase() != Phase::Ended => job,
        _ => {
            super::print(&format!("job {id} has ended already: there is nothing to cancel\n"))?;
            return Ok(exit_code::DONE);
        }
    };
    // First, so that a job which starts or stops just now sees it.
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    files::write_atomically(&run.cancelled(), format!("job {id}, {now}\n").as_bytes())
        .with_context(|| run.cancelled().display().to_string())?;
    let mut job = Some(first);
    if job.as_ref().is_some_and(|job| job.phase() == Phase::Queued) {
        Slurm.cancel_waiting(&record)?;
        job = Slurm.job(&record)?;
    }
    let text = match job.map(|job| job.phase()) {
        None | Some(Phase::Ended) => format!("job {id} was waiting and is out of the queue\n"),
        // It is between two states; at its next start it sees that it was cancelled.
        Some(Phase::Queued) => format!("job {id} is being taken out of the queue\n"),
        Some(Phase::Running) => {
            Slurm.ask_to_stop(&record)?;
            format!(
                "job {id} was told to stop: it ends at a checkpoint and is not put into the queue again\n  (scancel {id} ends \
                 it at once, and loses what was done since the last checkpoint)\n"
            )
        }
    };
    super::print(&format!("{text}  to go on later: cd {} && {}\n", record.directory_quoted(), record.command))?;
    Ok(exit_code::DONE)
}
