//! What a rank leaves for people to read: log lines on stderr, one line of metrics for every step, and an orphan's last
//! words.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use bam_cluster::checkpoint::CheckpointError;
use bam_cluster::files;
use bam_cluster::protocol::StepReport;
use tracing_subscriber::EnvFilter;

/// Sends this program's log to stderr, where the launcher collects it. `BAM_LOG` chooses the level.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("BAM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
}

/// If `error` is that this rank belongs to an earlier start of its stage, says so in the stage's log and returns true. The
/// launcher that collects what ranks print may be gone, or out of reach; the file system is there, or nothing would have
/// been written.
pub fn note_orphan(log: &Path, rank: usize, error: &anyhow::Error) -> bool {
    let is_orphan = error.chain().any(|e| matches!(e.downcast_ref(), Some(CheckpointError::Fenced { .. })));
    if is_orphan && let Ok(mut log) = OpenOptions::new().append(true).open(log) {
        // In one piece: the newer start's launcher writes to it, too.
        let _ = log.write_all(format!("rank {rank} | error: {error:#}\n").as_bytes());
    }
    is_orphan
}

/// `metrics.jsonl`: a [`StepReport`] a line.
pub struct Metrics(BufWriter<File>);

impl Metrics {
    /// Opens the file to go on at `next_step`: lines of later steps, which a resume does again, are removed.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn open(path: &Path, next_step: u64) -> io::Result<Metrics> {
        let old = match fs::read_to_string(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let is_past = |line: &&str| serde_json::from_str::<StepReport>(line).is_ok_and(|r| r.step < next_step);
        let kept: String = old.lines().filter(is_past).flat_map(|line| [line, "\n"]).collect();
        files::write_atomically(path, kept.as_bytes())?;
        Ok(Metrics(BufWriter::new(OpenOptions::new().append(true).open(path)?)))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn add(&mut self, report: &StepReport) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, report)?;
        self.0.write_all(b"\n")?;
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resume_leaves_each_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        let report = |step| StepReport {
            step,
            loss: 0.5,
            task_losses: Default::default(),
            lambda: 0.0,
            learning_rate: 0.1,
            gradient_norm: 1.0,
            examples: 1,
            tokens: 1,
            seconds: 0.1,
            phases: Default::default(),
            bytes_reduced: 0,
            utilisation: 0.5,
            device_memory: None,
        };
        let mut metrics = Metrics::open(&path, 0).unwrap();
        (0..4).for_each(|s| metrics.add(&report(s)).unwrap());
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"step\": 4, half a li").unwrap();
        let mut metrics = Metrics::open(&path, 2).unwrap();
        metrics.add(&report(2)).unwrap();
        let steps: Vec<u64> = fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|l| serde_json::from_str::<StepReport>(l).unwrap().step)
            .collect();
        assert_eq!(steps, [0, 1, 2]);
    }

    #[test]
    fn an_orphan_says_so_in_the_log_and_nobody_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("stage.log");
        fs::write(&log, "=== start 2\n").unwrap();
        let fenced = anyhow::Error::from(CheckpointError::Fenced { own: 1, current: 2 }).context("publishing");
        assert!(note_orphan(&log, 0, &fenced));
        assert!(!note_orphan(&log, 0, &anyhow::anyhow!("no space left")));
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.starts_with("=== start 2\nrank 0 | error: publishing: this process belongs to start 1"), "{text}");
        assert_eq!(text.lines().count(), 2);
    }
}
