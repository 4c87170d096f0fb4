//! What `mpirun` prints: the ranks' lines, which it tags, and its own words on how a rank ended (Open MPI 4).

use super::starter_output::{Line, RankEnd};

/// Takes the tag `[1,RANK]<stderr>:` off.
pub fn untagged(line: &str) -> Line<'_> {
    tagged(line).unwrap_or(Line { rank: None, text: line })
}

fn tagged(line: &str) -> Option<Line<'_>> {
    let (tag, text) = line.strip_prefix("[1,")?.split_once(">:")?;
    let (rank, _stream) = tag.split_once("]<std")?;
    Some(Line { rank: Some(rank.parse().ok()?), text })
}

/// Understands `mpirun`'s words, some of which take two lines.
#[derive(Debug, Default)]
pub struct Words {
    /// From `Process name: [[52837,1],1]`, until the line with the exit code.
    process: Option<usize>,
}

impl Words {
    /// Reads one line of `mpirun`'s own.
    pub fn read(&mut self, line: &str) -> Option<RankEnd> {
        if let Some(end) = signalled(line).or_else(|| aborted(line)) {
            return Some(end);
        }
        if let Some(name) = line.trim().strip_prefix("Process name:") {
            self.process = name.trim().trim_end_matches(']').rsplit(',').next().and_then(|rank| rank.parse().ok());
            return None;
        }
        let status = line.trim().strip_prefix("Exit code:")?.trim().parse().ok()?;
        Some(RankEnd::Status { rank: self.process.take()?, status })
    }
}

/// `… process rank 1 with PID 0 on node HOST exited on signal 9 (Killed).` The PID is often 0: the rank's own word on
/// it is better.
fn signalled(line: &str) -> Option<RankEnd> {
    let (rank, rest) = line.split_once("noticed that process rank ")?.1.split_once(' ')?;
    let (host, signal) = rest.split_once(" on node ")?.1.split_once(" exited on signal ")?;
    let signal = signal.trim_end().trim_end_matches('.').to_owned();
    Some(RankEnd::Signal { rank: rank.parse().ok()?, host: host.to_owned(), signal })
}

/// `MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD` and, a line later, `with errorcode 3.`, which
/// `mpirun`'s own exit status repeats.
fn aborted(line: &str) -> Option<RankEnd> {
    let rank = line.strip_prefix("MPI_ABORT was invoked on rank ")?.split(' ').next()?;
    Some(RankEnd::Status { rank: rank.parse().ok()?, status: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_come_off_and_other_brackets_stay() {
        assert_eq!(untagged("[1,12]<stderr>:a: b"), Line { rank: Some(12), text: "a: b" });
        assert_eq!(untagged("[1,0]<stdout>:"), Line { rank: Some(0), text: "" });
        for own in ["[host:123] x>:y", "[1,x]<stdout>:", "-----", ""] {
            assert_eq!(untagged(own), Line { rank: None, text: own });
        }
    }

    #[test]
    fn a_killed_rank_is_understood() {
        let line = "mpirun noticed that process rank 1 with PID 4242 on node n-7 exited on signal 9 (Killed).";
        let end = RankEnd::Signal { rank: 1, host: "n-7".into(), signal: "9 (Killed)".into() };
        assert_eq!(Words::default().read(line), Some(end));
    }

    #[test]
    fn an_exit_code_belongs_to_the_process_named_before_it() {
        let mut words = Words::default();
        assert_eq!(words.read("  Exit code:    3"), None);
        assert_eq!(words.read("  Process name: [[30243,1],11]"), None);
        assert_eq!(words.read("  Exit code:    3"), Some(RankEnd::Status { rank: 11, status: 3 }));
    }

    #[test]
    fn an_abort_names_its_rank() {
        let end = Words::default().read("MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD");
        assert_eq!(end, Some(RankEnd::Status { rank: 1, status: 1 }));
    }
}
