//! `bam status`: how far a run is and what becomes of its batch job, from the run directory and Slurm.

use std::path::Path;

use anyhow::Context;
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::plan::Plan;
use bam_cluster::run_dir::RunDir;

use crate::cli::RunDirArguments;
use crate::failure;
use crate::history::{self, Entry, Event};
use crate::progress::{self, StageProgress};
use crate::report::{NotARun, plain_table};
use crate::run_lock;
use crate::slurm::{Job, JobRecord, Phase, Slurm};

/// Everything that is known of a run.
struct Status {
    /// The job that was submitted last, and what Slurm says of it: nothing any more, or why it cannot be asked.
    job: Option<(JobRecord, Result<Option<Job>, String>)>,
    /// The bam that works in the directory.
    holder: Option<String>,
    /// None before the first start.
    stages: Option<Vec<StageProgress>>,
    /// The table is there.
    has_table: bool,
    /// Starts and ends in batch jobs.
    history: Vec<Entry>,
}

/// Prints how far a run is.
pub fn run(arguments: &RunDirArguments) -> anyhow::Result<u8> {
    let directory = std::path::absolute(&arguments.run_dir).context("cannot tell the current directory")?;
    let run = RunDir::new(directory);
    let record = JobRecord::read(&run).with_context(|| run.job().display().to_string())?;
    let plan: Option<Plan> = files::read_json(&run.plan()).with_context(|| run.plan().display().to_string())?;
    if record.is_none() && plan.is_none() {
        return Err(NotARun { directory: run.path().to_owned(), missing: "plan.json" }.into());
    }
    let ask = |record: JobRecord| {
        // Without Slurm the directory still says a lot.
        let answer = Slurm.job(&record).map_err(|e| failure::text(&e.into()));
        (record, answer)
    };
    let status = Status {
        job: record.map(ask),
        holder: run_lock::holder(&run)?,
        stages: plan.map(|plan| progress::stages(&run, &plan)),
        has_table: run.report().exists(),
        history: history::read(&run).with_context(|| run.history().display().to_string())?,
    };
    super::print(&render(run.path(), &status))?;
    Ok(exit_code::DONE)
}

fn render(directory: &Path, status: &Status) -> String {
    let mut text = format!("run: {}\n", directory.display());
    if let Some((record, answer)) = &status.job {
        text += &format!("job {}: {}\n", record.job, job_line(answer));
    }
    if let Some(holder) = &status.holder {
        text += &format!("at work: bam, {holder}\n");
    }
    match &status.stages {
        Some(stages) => text += &format!("\n{}", table(stages, status.holder.is_some())),
        None => text += "nothing was begun yet\n",
    }
    text + &format!("\n{}\n", conclusion(directory, status))
}

fn job_line(answer: &Result<Option<Job>, String>) -> String {
    let job = match answer {
        Err(why) => return format!("Slurm cannot be asked ({why})"),
        Ok(None) => return "ended, and Slurm has forgotten it".to_owned(),
        Ok(Some(job)) => job,
    };
    let mut text = match job.phase() {
        Phase::Queued => {
            let reason = job.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let start = job.start.as_ref().map(|time| format!(", expected to start {time}")).unwrap_or_default();
            format!("queued{reason}{start}")
        }
        Phase::Running => {
            let state = if job.state == "RUNNING" { "running".to_owned() } else { job.state.clone() };
            let nodes = job.nodes.as_ref().map(|nodes| format!(" on {nodes}")).unwrap_or_default();
            let start = job.start.as_ref().map(|time| format!(" since {time}")).unwrap_or_default();
            let end = job.end.as_ref().map(|time| format!(", until {time}")).unwrap_or_default();
            format!("{state}{nodes}{start}{end}")
        }
        Phase::Ended => {
            let code = job.exit_code.map(|code| format!(", exit code {code}")).unwrap_or_default();
            let end = job.end.as_ref().map(|time| format!(" {time}")).unwrap_or_default();
            format!("ended{end}: {}{code}", job.state)
        }
    };
    match job.restarts {
        0 => {}
        1 => text += "; put into the queue again once",
        n => text += &format!("; put into the queue again {n} times"),
    }
    text
}

fn table(stages: &[StageProgress], is_at_work: bool) -> String {
    let row = |stage: &StageProgress| {
        let state = match (stage.is_done, stage.is_begun) {
            (true, _) => "done",
            (false, true) if is_at_work => "running",
            (false, true) => "stopped",
            (false, false) => "",
        };
        let step = match (stage.total, stage.is_begun) {
            (Some(total), true) => format!("{} of {total}", stage.step.min(total)),
            (Some(total), false) => format!("of {total}"),
            (None, _) => String::new(),
        };
        let checkpoint = stage.checkpoint.map(|step| step.to_string()).unwrap_or_default();
        vec![stage.name.clone(), state.to_owned(), step, checkpoint]
    };
    let rows: Vec<Vec<String>> = stages.iter().map(row).collect();
    plain_table(&["stage", "", "step", "checkpoint"], 2, &rows)
}

/// What to do, if anything.
fn conclusion(directory: &Path, status: &Status) -> String {
    let directory = crate::shell::quoted(&directory.display().to_string());
    let is_done = status.stages.as_ref().is_some_and(|stages| stages.iter().all(|stage| stage.is_done));
    if is_done && status.has_table {
        return format!("done: bam report {directory}");
    }
    if status.holder.is_some() {
        return "running".to_owned();
    }
    let again = match &status.job {
        Some((_, Ok(Some(job)))) if job.phase() == Phase::Queued => return "waiting in the queue".to_owned(),
        Some((_, Ok(Some(job)))) if job.phase() == Phase::Running => return "about to begin or to end".to_owned(),
        Some((record, Ok(_))) => format!("to go on: cd {} && {}", record.directory_quoted(), record.command),
        Some((_, Err(_))) => "whether its job still waits is not known here; try where Slurm's commands are".to_owned(),
        None => "to go on: the same 'bam run' as before".to_owned(),
    };
    match status.history.last() {
        Some(Entry { event: Event::Stop, reason: Some(reason), time, .. }) if reason != "done" => {
            // The rest is in the job's output.
            format!("stopped {time}: {}\n{again}", reason.lines().next().unwrap_or_default())
        }
        Some(Entry { event: Event::Start, time, host, .. }) => {
            format!("killed: it began {time} on {host} and has not said why it ended\n{again}")
        }
        _ => format!("stopped\n{again}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(text: &str) -> String {
        job_line(&Ok(Job::parse(&format!("JobId=4 {text}"), 4)))
    }

    #[test]
    fn a_job_is_said_in_one_line() {
        for (said, line) in [
            ("JobState=PENDING Reason=Resources", "queued (Resources)"),
            (
                "JobState=PENDING Reason=Priority StartTime=T1 Restarts=1",
                "queued (Priority), expected to start T1; put into the queue again once",
            ),
            (
                "JobState=RUNNING Reason=None NodeList=n[1-2] StartTime=T1 EndTime=T2 Restarts=2",
                "running on n[1-2] since T1, until T2; put into the queue again 2 times",
            ),
            ("JobState=COMPLETING NodeList=n1", "COMPLETING on n1"),
            ("JobState=FAILED ExitCode=3:0 EndTime=T2", "ended T2: FAILED, exit code 3"),
        ] {
            assert_eq!(job(said), line);
        }
        assert_eq!(job_line(&Ok(None)), "ended, and Slurm has forgotten it");
        assert_eq!(job_line(&Err("no".into())), "Slurm cannot be asked (no)");
    }
}
