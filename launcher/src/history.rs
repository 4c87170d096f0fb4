//! `history.jsonl`: one line for each start and end of `bam` in a batch job, by which a job is noticed that is put into the
//! queue again and again without getting on. Several jobs of a run may write into it at the same time.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use bam_cluster::run_dir::RunDir;
use serde::{Deserialize, Serialize};

use crate::backend::host_name;
use crate::numbers::count;
use crate::progress::Kept;
use crate::slurm::{Allocation, Submission};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What happened.
    pub event: Event,
    /// When.
    pub time: String,
    /// The job, as [`Allocation::name`] has it.
    pub job: String,
    /// How often Slurm has put the job into the queue again.
    pub restart: u32,
    /// Where bam ran.
    pub host: String,
    /// Why bam ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How far the stages were that the job is about.
    pub kept: Kept,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// `bam run` began.
    Start,
    /// It ended in good order.
    Stop,
}

/// The history of a run, for the launcher that works in a batch job.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    job: Allocation,
    /// How far it was at earlier starts of the same job.
    starts: Vec<Kept>,
}

/// A history that cannot be written, or that says that there is no point in going on.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The job does not get on.
    #[error(
        "job {job} was started {starts} times without getting any further than {} done and {} in checkpoints; it is not \
         put into the queue again (slurm.max_requeues)\n  ask for more time (slurm.time, slurm.lead), save more often \
         (checkpoint.every_steps), look into {log}, then submit the run again",
        count(kept.stages, "stage"), count(kept.steps as usize, "step")
    )]
    NoProgress {
        /// The job.
        job: String,
        /// How often it was started since it last got on.
        starts: usize,
        /// How far it is.
        kept: Kept,
        /// Where the job's output is.
        log: PathBuf,
    },
    /// The file system says no.
    #[error("{path}: {source}")]
    Io {
        /// The history.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl History {
    /// What is known of a job.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(run: &RunDir, job: Allocation) -> Result<History, HistoryError> {
        let path = run.history();
        let earlier = read(run).map_err(|source| HistoryError::Io { path: path.clone(), source })?;
        let name = job.name();
        let starts = earlier.into_iter().filter(|e| e.event == Event::Start && e.job == name).map(|e| e.kept);
        Ok(History { path, job, starts: starts.collect() })
    }

    /// Notes a start.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin(&mut self, kept: Kept) -> Result<(), HistoryError> {
        self.starts.push(kept);
        self.append(Event::Start, None, kept)
    }

    /// Makes sure that the job was not started more often than once and `max_requeues` times since it last got on. Only a
    /// job that bam has submitted is put into the queue by bam; others are started as often as anybody likes.
    ///
    /// # Errors
    /// It was.
    pub fn check(&self, run: &RunDir, kept: Kept, max_requeues: usize) -> Result<(), HistoryError> {
        let submitted = Submission::read(run).map_err(|source| HistoryError::Io { path: run.jobs(), source })?;
        if submitted.is_none_or(|s| s.jobs.iter().all(|job| job.id != self.job.id)) {
            return Ok(());
        }
        let starts = self.starts.iter().rev().take_while(|at_start| **at_start == kept).count();
        if starts <= max_requeues {
            return Ok(());
        }
        let job = self.job.name();
        let log = run.job_output(&job);
        Err(HistoryError::NoProgress { job, starts, kept, log })
    }

    /// Notes why bam ends.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn end(&self, reason: &str, kept: Kept) -> Result<(), HistoryError> {
        self.append(Event::Stop, Some(reason.to_owned()), kept)
    }

    fn append(&self, event: Event, reason: Option<String>, kept: Kept) -> Result<(), HistoryError> {
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let (job, restart) = (self.job.name(), self.job.restart);
        let entry = Entry { event, time, job, restart, host: host_name(), reason, kept };
        let written = (|| {
            let mut line = serde_json::to_vec(&entry)?;
            line.push(b'\n');
            let mut file = File::options().append(true).create(true).open(&self.path)?;
            // On shared file systems, what two append at a time may end up in one place.
            file.lock()?;
            // What was cut off in the middle of a line must not spoil this one.
            if fs::read(&self.path).is_ok_and(|text| text.last().is_some_and(|last| *last != b'\n')) {
                line.insert(0, b'\n');
            }
            file.write_all(&line)?;
            file.sync_all()
        })();
        written.map_err(|source| HistoryError::Io { path: self.path.clone(), source })
    }
}

/// All lines that can be read, oldest first; one that was cut off is left out.
///
/// # Errors
/// The file is there and cannot be read.
pub fn read(run: &RunDir) -> io::Result<Vec<Entry>> {
    match fs::read(run.history()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        text => Ok(text?.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slurm::SubmittedJob;

    fn job(id: u64, restart: u32) -> Allocation {
        Allocation { id, element: None, restart, tasks: None, nodes: 1, is_on_a_node: true }
    }

    fn kept(steps: u64) -> Kept {
        Kept { stages: 1, steps }
    }

    fn submitted(run: &RunDir, job: u64) {
        let text = String::new;
        let job = SubmittedJob { name: "all".into(), id: job, elements: vec![] };
        let submission =
            Submission { submitted: text(), directory: text(), command: text(), cluster: None, jobs: vec![job] };
        submission.write(run).unwrap();
    }

    #[test]
    fn a_job_that_does_not_get_on_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        submitted(&run, 7);
        for restart in 0..3 {
            let mut history = History::open(&run, job(7, restart)).unwrap();
            history.check(&run, kept(40), 2).unwrap();
            history.begin(kept(40)).unwrap();
            assert_eq!(history.check(&run, kept(40), 2).is_ok(), restart < 2, "start {restart}");
            history.check(&run, kept(41), 2).unwrap();
            history.end("time is up", kept(40)).unwrap();
        }
        let history = History::open(&run, job(7, 3)).unwrap();
        let message = history.check(&run, kept(40), 2).unwrap_err().to_string();
        assert!(
            message.contains("job 7 was started 3 times without getting any further than 1 stage done"),
            "{message}"
        );
        assert!(message.contains("logs/slurm-7.out"), "{message}");
        // Another job begins anew, and one that bam has not submitted is nobody's business.
        submitted(&run, 8);
        history.check(&run, kept(40), 2).unwrap();
        History::open(&run, job(8, 0)).unwrap().check(&run, kept(40), 0).unwrap();
        assert_eq!(read(&run).unwrap().len(), 6);
    }

    #[test]
    fn a_line_that_was_cut_off_spoils_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        fs::write(run.history(), b"{\"event\":\"start\",\"ti\xff\x00").unwrap();
        let mut history = History::open(&run, job(7, 0)).unwrap();
        history.begin(kept(1)).unwrap();
        history.end("done", kept(2)).unwrap();
        let events: Vec<(Event, Kept)> = read(&run).unwrap().into_iter().map(|e| (e.event, e.kept)).collect();
        assert_eq!(events, [(Event::Start, kept(1)), (Event::Stop, kept(2))]);
    }
}
