//! `bam status`: how far a run is and what becomes of its batch jobs, from the run directory and Slurm.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::plan::Plan;
use bam_cluster::run_dir::RunDir;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::StatusArguments;
use crate::ending::Ending;
use crate::failure;
use crate::history::{self, Entry, Event};
use crate::numbers::brief;
use crate::progress::{self, StageProgress};
use crate::report::{NotARun, plain_table};
use crate::run_lock::{self, LockError};
use crate::slurm::{ALL, Job, Phase, Slurm, Submission, SubmittedJob};

/// Everything that is known of a run.
pub(super) struct Status {
    /// The jobs that were submitted last.
    submission: Option<Submission>,
    /// What Slurm says of each of them: nothing any more, or why it cannot be asked.
    answers: Vec<Result<Vec<Job>, String>>,
    /// Those who work in the directory.
    holders: Vec<String>,
    /// Each with whether somebody works on it; none before the first start.
    pub(super) stages: Option<Vec<(StageProgress, bool)>>,
    /// The table is there.
    has_table: bool,
    /// Starts and ends in batch jobs.
    history: Vec<Entry>,
    /// How the last start that is over has ended.
    pub(super) ending: Option<Ending>,
}

/// What becomes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// Everything is there.
    Done,
    /// Somebody works on it.
    Running,
    /// A job of it is about to begin or to end.
    Changing,
    /// It waits in Slurm's queue.
    Queued,
    /// It has jobs, and Slurm cannot be asked about them.
    Unknown,
    /// Nobody works on it, and nothing waits.
    Stopped,
}

/// Prints how far a run is.
pub fn run(arguments: &StatusArguments) -> anyhow::Result<u8> {
    let directory = std::path::absolute(&arguments.run_dir).context("cannot tell the current directory")?;
    let run = RunDir::new(directory);
    let status = Status::of(&run)?;
    let text = if arguments.json {
        serde_json::to_string_pretty(&status.to_json(run.path()))? + "\n"
    } else {
        render(run.path(), &status)
    };
    super::print(&text)?;
    Ok(exit_code::DONE)
}

impl Status {
    /// Looks at a run, and asks Slurm.
    ///
    /// # Errors
    /// It is no run, or its files cannot be read.
    pub(super) fn of(run: &RunDir) -> anyhow::Result<Status> {
        let not_a_run = || NotARun { directory: run.path().to_owned(), missing: "plan.json" };
        if !run.path().is_dir() {
            return Err(not_a_run().into());
        }
        let submission = Submission::read(run).with_context(|| run.jobs().display().to_string())?;
        let plan: Option<Plan> = files::read_json(&run.plan()).with_context(|| run.plan().display().to_string())?;
        if submission.is_none() && plan.is_none() {
            return Err(not_a_run().into());
        }
        let mut status = Status {
            submission,
            answers: vec![],
            holders: vec![],
            stages: None,
            has_table: false,
            history: history::read(run).with_context(|| run.history().display().to_string())?,
            ending: None,
        };
        status.ask_slurm(run);
        status.look(run, plan.as_ref())?;
        Ok(status)
    }

    /// Asks Slurm about the jobs. Without Slurm the directory still says a lot.
    pub(super) fn ask_slurm(&mut self, run: &RunDir) {
        let ask = |s: &Submission, job| Slurm.jobs(run, s, job).map_err(|e| failure::text(&e.into()));
        self.answers = self.submission.iter().flat_map(|s| s.jobs.iter().map(|job| ask(s, job))).collect();
    }

    /// Looks at the directory alone.
    pub(super) fn look(&mut self, run: &RunDir, plan: Option<&Plan>) -> Result<(), LockError> {
        let at_work = |stage: StageProgress| {
            let is_at_work = run_lock::is_held(run, &stage.name)?;
            Ok((stage, is_at_work))
        };
        // Whoever has just ended has left nothing undone that is not seen below.
        self.holders = run_lock::holders(run)?;
        let stages = plan.map(|plan| progress::stages(run, plan).into_iter().map(at_work).collect::<Result<_, _>>());
        self.stages = stages.transpose()?;
        self.has_table = run.report().exists();
        self.ending = Ending::read(run);
        Ok(())
    }

    /// What becomes of it.
    pub(super) fn state(&self) -> State {
        let is_done = self.stages.as_ref().is_some_and(|stages| stages.iter().all(|(stage, _)| stage.is_done));
        let is_any = |phase| self.answers.iter().flatten().flatten().any(|job| job.phase() == phase);
        if is_done && self.has_table {
            State::Done
        } else if !self.holders.is_empty() {
            State::Running
        } else if is_any(Phase::Running) {
            State::Changing
        } else if is_any(Phase::Queued) {
            State::Queued
        } else if self.answers.iter().any(Result::is_err) {
            State::Unknown
        } else {
            State::Stopped
        }
    }

    /// A line for each job, or part of an array.
    pub(super) fn job_lines(&self) -> String {
        let jobs = self.submission.iter().flat_map(|submission| &submission.jobs);
        jobs.zip(&self.answers).map(|(job, answer)| job_lines(job, answer)).collect()
    }

    /// What docs/json.md describes.
    fn to_json(&self, directory: &Path) -> Value {
        let stage = |(stage, is_at_work): &(StageProgress, bool)| {
            json!({
                "stage": stage.name,
                "state": state_of(stage, *is_at_work).unwrap_or("waiting"),
                "step": stage.total.map(|total| stage.step.min(total)),
                "steps": stage.total,
                "checkpoint": stage.checkpoint,
                "step_seconds": stage.step_seconds,
                "seconds_left": stage.left().filter(|_| *is_at_work && !stage.is_done),
                "latest": stage.latest,
            })
        };
        let jobs = self.submission.iter().flat_map(|submission| &submission.jobs).zip(&self.answers);
        let jobs = jobs.map(|(job, answer)| {
            let (known, error) = match answer {
                Ok(known) => (Some(known), None),
                Err(error) => (None, Some(error)),
            };
            json!({ "job": job.name, "id": job.id, "parts": known, "error": error })
        });
        json!({
            "run": directory,
            "state": self.state(),
            "stages": self.stages.as_ref().map(|stages| stages.iter().map(stage).collect::<Vec<_>>()),
            "has_table": self.has_table,
            "at_work": self.holders,
            "jobs": jobs.collect::<Vec<_>>(),
            "ending": self.ending,
        })
    }
}

fn render(directory: &Path, status: &Status) -> String {
    let mut text = format!("run: {}\n", directory.display());
    text += &status.job_lines();
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

/// How a stage is that was begun.
fn state_of(stage: &StageProgress, is_at_work: bool) -> Option<&'static str> {
    match (stage.is_done, stage.is_begun) {
        (true, _) => Some("done"),
        (false, true) if is_at_work => Some("running"),
        (false, true) => Some("stopped"),
        (false, false) => None,
    }
}

fn table(stages: &[(StageProgress, bool)]) -> String {
    let row = |(stage, is_at_work): &(StageProgress, bool)| {
        let state = state_of(stage, *is_at_work).unwrap_or_default();
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
    match status.state() {
        State::Done => return format!("done: bam report {quoted}"),
        State::Running => return format!("running; to look on: bam watch {quoted}"),
        State::Changing => return "about to begin or to end".to_owned(),
        State::Queued => return "waiting in the queue".to_owned(),
        State::Unknown | State::Stopped => {}
    }
    let again = match &status.submission {
        Some(_) if status.answers.iter().any(Result::is_err) => {
            "whether its jobs still wait is not known here; try where Slurm's commands are".to_owned()
        }
        Some(submission) => format!("to go on: cd {} && {}", submission.directory_quoted(), submission.command),
        None => "to go on: the same 'bam run' as before".to_owned(),
    };
    let reasons = reasons(status);
    if !reasons.is_empty() {
        return reasons + &again;
    }
    match &status.ending {
        Some(ending) => format!("{}\n{again}", said(ending)),
        None => format!("stopped\n{again}"),
    }
}

/// How the last start has ended.
pub(super) fn said(ending: &Ending) -> String {
    let Ending { time, host, exit_code, reason } = ending;
    // The rest is in the stage's log.
    let reason = reason.lines().next().unwrap_or_default();
    format!("stopped {time} on {host} with exit code {exit_code}: {reason}")
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
