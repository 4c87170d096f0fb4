//! `bam status`: how far a run is and what becomes of its batch jobs, from the run directory and Slurm.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::plan::Plan;
use bam_cluster::run_dir::RunDir;

use crate::cli::RunDirArguments;
use crate::failure;
use crate::history::{self, Entry, Event};
use crate::numbers::brief;
use crate::progress::{self, StageProgress};
use crate::report::{NotARun, plain_table};
use crate::run_lock::{self, LockError};
use crate::slurm::{ALL, Job, Phase, Slurm, Submission, SubmittedJob};

/// Everything that is known of a run.
struct Status {
    /// The jobs that were submitted last.
    submission: Option<Submission>,
    /// What Slurm says of each of them: nothing any more, or why it cannot be asked.
    answers: Vec<Result<Vec<Job>, String>>,
    /// Those who work in the directory.
    holders: Vec<String>,
    /// Each with whether somebody works on it; none before the first start.
    stages: Option<Vec<(StageProgress, bool)>>,
    /// The table is there.
    has_table: bool,
    /// Starts and ends in batch jobs.
    history: Vec<Entry>,
}

/// Prints how far a run is.
pub fn run(arguments: &RunDirArguments) -> anyhow::Result<u8> {
    let directory = std::path::absolute(&arguments.run_dir).context("cannot tell the current directory")?;
    let run = RunDir::new(directory);
    let submission = Submission::read(&run).with_context(|| run.jobs().display().to_string())?;
    let plan: Option<Plan> = files::read_json(&run.plan()).with_context(|| run.plan().display().to_string())?;
    if submission.is_none() && plan.is_none() {
        return Err(NotARun { directory: run.path().to_owned(), missing: "plan.json" }.into());
    }
    // Without Slurm the directory still says a lot.
    let ask = |submission: &Submission, job| Slurm.jobs(&run, submission, job).map_err(|e| failure::text(&e.into()));
    let answers = submission.iter().flat_map(|s| s.jobs.iter().map(|job| ask(s, job))).collect();
    let at_work = |stage: StageProgress| {
        let is_at_work = run_lock::is_held(&run, &stage.name)?;
        Ok((stage, is_at_work))
    };
    let stages =
        plan.map(|plan| progress::stages(&run, &plan).into_iter().map(at_work).collect::<Result<_, LockError>>());
    let status = Status {
        submission,
        answers,
        holders: run_lock::holders(&run)?,
        stages: stages.transpose()?,
        has_table: run.report().exists(),
        history: history::read(&run).with_context(|| run.history().display().to_string())?,
    };
    super::print(&render(run.path(), &status))?;
    Ok(exit_code::DONE)
}

fn render(directory: &Path, status: &Status) -> String {
    let mut text = format!("run: {}\n", directory.display());
    let jobs = status.submission.iter().flat_map(|submission| &submission.jobs);
    for (job, answer) in jobs.zip(&status.answers) {
        text += &job_lines(job, answer);
    }
    for holder in &status.holders {
        text += &format!("at work: bam, {holder}\n");
    }
    match &status.stages {
        Some(stages) => text += &format!("\n{}", table(stages)),
        None => text += "nothing was begun yet\n",
    }
    text + &format!("\n{}\n", conclusion(directory, status))
}

/// A line for the job, or, of an array, for each part of which Slurm says something of its own.
fn job_lines(job: &SubmittedJob, answer: &Result<Vec<Job>, String>) -> String {
    let whole = if job.name == ALL { format!("job {}", job.id) } else { format!("job {} ({})", job.id, job.name) };
    match answer {
        Err(why) => format!("{whole}: Slurm cannot be asked ({why})\n"),
        Ok(known) if known.is_empty() => format!("{whole}: ended, and Slurm has forgotten it\n"),
        Ok(known) => {
            let name = |part: &Job| match &part.elements {
                None => whole.clone(),
                Some(elements) => {
                    let does = job.elements.iter().find(|e| e.index.to_string() == *elements);
                    let does = does.map_or(&job.name, |element| &element.does);
                    let bracketed =
                        if elements.contains([',', '-', '%']) { format!("[{elements}]") } else { elements.clone() };
                    format!("job {}_{bracketed} ({does})", job.id)
                }
            };
            known.iter().map(|part| format!("{}: {}\n", name(part), state(part))).collect()
        }
    }
}

/// What Slurm says of a job, in words.
fn state(job: &Job) -> String {
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
            let code = job.exit_code.filter(|code| *code != 0).map(|code| format!(", exit code {code}"));
            let end = job.end.as_ref().map(|time| format!(" {time}")).unwrap_or_default();
            format!("ended{end}: {}{}", job.state, code.unwrap_or_default())
        }
    };
    match job.restarts {
        0 => {}
        1 => text += "; put into the queue again once",
        n => text += &format!("; put into the queue again {n} times"),
    }
    text
}

fn table(stages: &[(StageProgress, bool)]) -> String {
    let row = |(stage, is_at_work): &(StageProgress, bool)| {
        let state = match (stage.is_done, stage.is_begun) {
            (true, _) => "done",
            (false, true) if *is_at_work => "running",
            (false, true) => "stopped",
            (false, false) => "",
        };
        let step = match (stage.total, stage.is_begun) {
            (Some(total), true) => format!("{} of {total}", stage.step.min(total)),
            (Some(total), false) => format!("of {total}"),
            (None, _) => String::new(),
        };
        let checkpoint = stage.checkpoint.map(|step| step.to_string()).unwrap_or_default();
        let left = stage.left().filter(|_| state == "running").map(brief).unwrap_or_default();
        vec![stage.name.clone(), state.to_owned(), step, checkpoint, left]
    };
    let rows: Vec<Vec<String>> = stages.iter().map(row).collect();
    plain_table(&["stage", "", "step", "checkpoint", "left"], 2, &rows)
}

/// What to do, if anything.
fn conclusion(directory: &Path, status: &Status) -> String {
    let quoted = crate::shell::quoted(&directory.display().to_string());
    let is_done = status.stages.as_ref().is_some_and(|stages| stages.iter().all(|(stage, _)| stage.is_done));
    if is_done && status.has_table {
        return format!("done: bam report {quoted}");
    }
    if !status.holders.is_empty() {
        return "running".to_owned();
    }
    let is_any = |phase| status.answers.iter().flatten().flatten().any(|job| job.phase() == phase);
    if is_any(Phase::Running) {
        return "about to begin or to end".to_owned();
    }
    if is_any(Phase::Queued) {
        return "waiting in the queue".to_owned();
    }
    let again = match &status.submission {
        Some(_) if status.answers.iter().any(Result::is_err) => {
            "whether its jobs still wait is not known here; try where Slurm's commands are".to_owned()
        }
        Some(submission) => format!("to go on: cd {} && {}", submission.directory_quoted(), submission.command),
        None => "to go on: the same 'bam run' as before".to_owned(),
    };
    let reasons = reasons(status);
    if reasons.is_empty() { format!("stopped\n{again}") } else { reasons + &again }
}

/// Why each job has ended before its work was done, as far as the run's history tells.
fn reasons(status: &Status) -> String {
    let numbers: Vec<String> = status.submission.iter().flat_map(|s| &s.jobs).map(|job| job.id.to_string()).collect();
    let is_of_these = |entry: &&Entry| numbers.iter().any(|n| entry.job.split('_').next() == Some(n));
    let mut last: BTreeMap<&str, &Entry> =
        status.history.iter().filter(is_of_these).map(|entry| (entry.job.as_str(), entry)).collect();
    if last.is_empty() {
        // Jobs that bam has not submitted come one after the other.
        last.extend(status.history.last().map(|entry| (entry.job.as_str(), entry)));
    }
    let line = |entry: &Entry| match (entry.event, &entry.reason) {
        (Event::Stop, Some(reason)) if reason == "done" => String::new(),
        (Event::Stop, reason) => {
            // The rest is in the job's output.
            let reason = reason.as_deref().and_then(|reason| reason.lines().next()).unwrap_or_default();
            format!("job {} stopped {}: {reason}\n", entry.job, entry.time)
        }
        (Event::Start, _) => {
            let Entry { job, time, host, .. } = entry;
            format!("job {job} was killed: it began {time} on {host} and has not said why it ended\n")
        }
    };
    last.into_values().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slurm::SubmittedElement;

    fn lines(name: &str, text: &str) -> String {
        let element = |index, does: &str| SubmittedElement { index, does: does.into() };
        let elements = vec![element(0, "teacher-cola"), element(3, "teacher-rte")];
        let job = SubmittedJob { name: name.into(), id: 4, elements };
        job_lines(&job, &Ok(Job::parse_all(text, 4)))
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
            ("JobState=COMPLETED ExitCode=0:0", "ended: COMPLETED"),
        ] {
            assert_eq!(lines(ALL, &format!("JobId=4 {said}")), format!("job 4: {line}\n"));
        }
        let job = SubmittedJob { name: "student".into(), id: 4, elements: vec![] };
        assert_eq!(job_lines(&job, &Ok(vec![])), "job 4 (student): ended, and Slurm has forgotten it\n");
        assert_eq!(job_lines(&job, &Err("no".into())), "job 4 (student): Slurm cannot be asked (no)\n");
    }

    #[test]
    fn elements_are_called_by_what_they_do() {
        let said = "JobId=9 ArrayJobId=4 ArrayTaskId=3 JobState=FAILED ExitCode=1:0\n\
                    JobId=4 ArrayJobId=4 ArrayTaskId=0,5-7%2 JobState=PENDING Reason=Priority\n";
        let expected =
            "job 4_3 (teacher-rte): ended: FAILED, exit code 1\njob 4_[0,5-7%2] (teacher): queued (Priority)\n";
        assert_eq!(lines("teacher", said), expected);
    }
}
