//! `logs/commands.jsonl`: every different command line that has worked on a run, with the version of bam that did, so that the
//! run can be made again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::time::SystemTime;

use bam_cluster::run_dir::RunDir;
use serde::{Deserialize, Serialize};

use crate::backend::host_name;
use crate::shell::quoted;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandLine {
    /// When it was given first.
    pub time: String,
    /// Of bam.
    pub version: String,
    /// Where.
    pub host: String,
    /// From where.
    pub directory: String,
    /// Ready for a shell.
    pub command: String,
}

impl CommandLine {
    /// The command line of this process.
    ///
    /// # Errors
    /// The working directory is gone.
    pub fn of_this_process() -> io::Result<CommandLine> {
        let words: Vec<String> = std::env::args_os().map(|word| quoted(&word.to_string_lossy())).collect();
        Ok(CommandLine {
            time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: host_name(),
            directory: std::env::current_dir()?.display().to_string(),
            command: words.join(" "),
        })
    }

    /// Whether somebody who gave one of them has given the other.
    fn is_as(&self, other: &CommandLine) -> bool {
        self.version == other.version && self.directory == other.directory && self.command == other.command
    }

    /// Adds it to a run's, unless it is there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn note(&self, run: &RunDir) -> io::Result<()> {
        let path = run.commands();
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = File::options().append(true).create(true).open(path)?;
        // Several jobs of a run may begin at the same time.
        file.lock()?;
        if read(run)?.iter().any(|known| known.is_as(self)) {
            return Ok(());
        }
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        file.write_all(&line)?;
        file.sync_all()
    }
}

/// All lines that can be read, oldest first.
///
/// # Errors
/// The file is there and cannot be read.
pub fn read(run: &RunDir) -> io::Result<Vec<CommandLine>> {
    match fs::read(run.commands()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        text => Ok(text?.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_noted_once_and_another_one_too() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        assert_eq!(read(&run).unwrap(), []);
        let one = CommandLine::of_this_process().unwrap();
        let later = CommandLine { time: "later".into(), ..one.clone() };
        let other = CommandLine { command: "bam run other.yaml".into(), ..one.clone() };
        for command in [&one, &later, &other, &one] {
            command.note(&run).unwrap();
        }
        assert_eq!(read(&run).unwrap(), [one, other]);
    }
}
