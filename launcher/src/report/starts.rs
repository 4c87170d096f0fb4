//! What a stage's log says of its starts: when, how far each came, and what bam had to say.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// One start of a stage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartOfStage {
    /// Which start of the run's stages it was.
    pub incarnation: String,
    /// When.
    pub time: String,
    /// What started the ranks.
    pub command: String,
    /// Checkpoints that were committed.
    pub checkpoints: usize,
    /// What else bam said: failures, stops, warnings.
    pub said: Vec<String>,
}

/// How many sentences of a start are kept.
const SENTENCES: usize = 20;

/// Reads a log; nothing where there is none.
///
/// # Errors
/// The file is there and cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<StartOfStage>> {
    match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        file => {
            let lines = BufReader::new(file?).split(b'\n').map_while(Result::ok);
            Ok(of_lines(lines.map(|line| String::from_utf8_lossy(&line).into_owned())))
        }
    }
}

fn of_lines(lines: impl Iterator<Item = String>) -> Vec<StartOfStage> {
    let mut starts: Vec<StartOfStage> = vec![];
    for line in lines {
        if let Some(head) = line.strip_prefix("=== start ") {
            let (incarnation, rest) = head.split_once(", ").unwrap_or((head, ""));
            let (time, command) = rest.split_once(": ").unwrap_or((rest, ""));
            let [incarnation, time, command] = [incarnation, time, command].map(str::to_owned);
            starts.push(StartOfStage { incarnation, time, command, ..StartOfStage::default() });
        } else if let (Some(said), Some(start)) = (line.strip_prefix("bam | "), starts.last_mut()) {
            if said.starts_with("checkpoint at step ") {
                start.checkpoints += 1;
            } else if start.said.len() < SENTENCES && !said.contains(" starts the ranks: ") {
                start.said.push(said.to_owned());
            }
        }
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_starts_with_what_bam_said() {
        let log = "=== start 7, 2026-01-02T03:04:05Z: A=1 mpirun -n 2 bam-worker\n\
                   bam | mpirun starts the ranks: this is no job of Slurm\n\
                   rank 0 | bam | not bam's\n\
                   bam | checkpoint at step 20, receipt of the data order ab; written in 0.1 s\n\
                   bam | rank 1 was killed by SIGKILL\n\
                   === start 8, 2026-01-02T03:05:05Z: mpirun\n";
        let starts = of_lines(log.lines().map(str::to_owned));
        assert_eq!((starts.len(), starts[0].incarnation.as_str(), starts[0].checkpoints), (2, "7", 1));
        assert_eq!(
            (starts[0].time.as_str(), starts[0].command.as_str()),
            ("2026-01-02T03:04:05Z", "A=1 mpirun -n 2 bam-worker")
        );
        assert_eq!(starts[0].said, ["rank 1 was killed by SIGKILL"]);
        assert_eq!(starts[1].said, Vec::<String>::new());
    }
}
