//! The merged log of one stage: every line of every rank, of what started them and of the launcher, over all starts.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

/// Who says what people should read who only see the log.
pub const ANNOUNCEMENT: &str = "bam says";

/// Appends to `logs/STAGE.log`.
#[derive(Debug)]
pub struct StageLog {
    file: File,
}

impl StageLog {
    /// Opens the log and writes the head line of this start.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(path: &Path, incarnation: u64, command: &str) -> io::Result<StageLog> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = File::options().append(true).create(true).open(path)?;
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        writeln!(file, "=== start {incarnation}, {now}: {command}")?;
        Ok(StageLog { file })
    }

    /// A rank's line.
    pub fn rank(&mut self, rank: usize, text: &str) {
        self.line(&format!("rank {rank}"), text);
    }

    /// A line of `mpirun`'s or `srun`'s own.
    pub fn starter(&mut self, name: &str, text: &str) {
        self.line(name, text);
    }

    /// A line of this program.
    pub fn launcher(&mut self, text: &str) {
        self.line("bam", text);
    }

    /// A line of this program that people should read who only see the log.
    pub fn announcement(&mut self, text: &str) {
        self.line(ANNOUNCEMENT, text);
    }

    fn line(&mut self, who: &str, text: &str) {
        // A log that cannot be written is no reason to end a run that goes well.
        let _ = writeln!(self.file, "{who} | {text}");
    }
}
