//! `bam cancel`: jobs that wait are taken out of the queue, those that run stop at a checkpoint and stay away.

use std::time::SystemTime;

use anyhow::{Context, bail};
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::run_dir::RunDir;

use crate::cli::RunDirArguments;
use crate::report::NotARun;
use crate::run_lock;
use crate::slurm::{Job, Phase, Slurm, Submission, SubmittedJob};

/// Cancels.
pub fn run(arguments: &RunDirArguments) -> anyhow::Result<u8> {
    let directory = std::path::absolute(&arguments.run_dir).context("cannot tell the current directory")?;
    let run = RunDir::new(directory);
    let submission = Submission::read(&run).with_context(|| run.jobs().display().to_string())?;
    let Some(submission) = submission else {
        let holders = run_lock::holders(&run)?;
        if !holders.is_empty() {
            bail!(
                "{}: nothing was submitted, but a bam works there ({}); Ctrl-C or SIGTERM stops it at a checkpoint",
                run.path().display(),
                holders.join("; ")
            );
        }
        return Err(NotARun { directory: run.path().to_owned(), missing: "slurm/jobs.json" }.into());
    };
    let mut open = vec![];
    for job in &submission.jobs {
        if Slurm.jobs(&run, &submission, job)?.iter().any(|part| part.phase() != Phase::Ended) {
            open.push(job);
        }
    }
    if open.is_empty() {
        let text = match &submission.jobs[..] {
            [only] => format!("job {} has ended already: there is nothing to cancel\n", only.id),
            _ => "all jobs have ended already: there is nothing to cancel\n".to_owned(),
        };
        super::print(&text)?;
        return Ok(exit_code::DONE);
    }
    // First, so that a job which starts or stops just now sees it.
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    files::write_atomically(&run.cancelled(), format!("{now}\n").as_bytes())
        .with_context(|| run.cancelled().display().to_string())?;
    let mut text = String::new();
    // The last first: what waits for another must not start when that one ends.
    for job in open.into_iter().rev() {
        text += &cancel(&run, &submission, job)?;
    }
    super::print(&format!("{text}to go on later: cd {} && {}\n", submission.directory_quoted(), submission.command))?;
    Ok(exit_code::DONE)
}

/// Cancels one job; returns what has become of it.
fn cancel(run: &RunDir, submission: &Submission, job: &SubmittedJob) -> anyhow::Result<String> {
    let is_any = |known: &[Job], phase| known.iter().any(|part| part.phase() == phase);
    let mut known = Slurm.jobs(run, submission, job)?;
    let was_waiting = is_any(&known, Phase::Queued);
    if was_waiting {
        Slurm.cancel_waiting(submission, job)?;
        known = Slurm.jobs(run, submission, job)?;
    }
    let id = job.id;
    if is_any(&known, Phase::Running) {
        Slurm.ask_to_stop(submission, job)?;
        return Ok(format!(
            "job {id} was told to stop: it ends at a checkpoint and is not put into the queue again\n  (scancel {id} ends it \
             at once, and loses what was done since the last checkpoint)\n"
        ));
    }
    Ok(match (is_any(&known, Phase::Queued), was_waiting) {
        // It is between two states; at its next start it sees that it was cancelled.
        (true, _) => format!("job {id} is being taken out of the queue\n"),
        (false, true) => format!("job {id} was waiting and is out of the queue\n"),
        (false, false) => format!("job {id} has ended\n"),
    })
}
