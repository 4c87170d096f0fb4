//! What `srun --label` prints: the ranks' lines, which it numbers, and its own words on how ranks ended (Slurm 22.05 and
//! newer).

use std::ops::RangeInclusive;

use super::starter_output::{Line, RankEnd};

/// The ends of ranks that were ended because another one was.
const CONSEQUENCES: [&str; 4] = ["Killed", "Terminated", "Exited with exit code 143", "Exited with exit code 137"];

/// What Open MPI, in every rank, says if it was started in a way by which it cannot find the others; and the line that its client
/// of PMIx begins with, since `srun` may cut off what follows.
const LONELY: [&str; 2] =
    ["appears to have been direct launched using \"srun\"", "OPAL ERROR: Unreachable in file ext3x_client.c"];

/// As C's `strsignal` calls them, but for Slurm's own `Out Of Memory`.
const SIGNALS: [(&str, i32); 15] = [
    ("Hangup", 1),
    ("Interrupt", 2),
    ("Quit", 3),
    ("Illegal instruction", 4),
    ("Trace/breakpoint trap", 5),
    ("Aborted", 6),
    ("Bus error", 7),
    ("Floating point exception", 8),
    ("Killed", 9),
    ("Out Of Memory", 9),
    ("User defined signal 1", 10),
    ("Segmentation fault", 11),
    ("User defined signal 2", 12),
    ("Terminated", 15),
    ("CPU time limit exceeded", 24),
];

/// Takes the label `RANK: ` off, which is padded where there are many ranks. Slurm's own daemon is labelled as a rank of
/// its host.
pub fn untagged(line: &str) -> Line<'_> {
    match labelled(line) {
        Some(Line { rank: Some(_), text }) if text.starts_with("slurmstepd") => Line { rank: None, text },
        Some(line) => line,
        None => Line { rank: None, text: line },
    }
}

fn labelled(line: &str) -> Option<Line<'_>> {
    let (label, text) = line.split_once(':')?;
    let rank = label.trim_start_matches(' ').parse().ok()?;
    Some(Line { rank: Some(rank), text: text.strip_prefix(' ').unwrap_or(text) })
}

/// Whether a rank's line says that its MPI cannot find the others.
pub fn is_lonely(line: &str) -> bool {
    LONELY.iter().any(|words| line.contains(words))
}

/// Understands `srun`'s words.
#[derive(Debug, Default)]
pub struct Words {
    /// All ranks are being ended, so that most that end now are not to blame.
    ending: bool,
}

impl Words {
    /// Reads one line of `srun`'s own, or of Slurm's daemons.
    pub fn read(&mut self, line: &str) -> Vec<RankEnd> {
        if let Some(host) = failed_node(line) {
            self.ending = true;
            return vec![RankEnd::Host { host: host.to_owned() }];
        }
        if line.contains("Terminating StepId=") || line.contains("Job step aborted") || line.contains(" CANCELLED AT ")
        {
            self.ending = true;
            return vec![];
        }
        not_started(line).or_else(|| self.task_ends(line)).unwrap_or_default()
    }

    /// `srun: error: n2: tasks 6-7,10: Exited with exit code 3`, or `Killed`, or `Segmentation fault (core dumped)`.
    fn task_ends(&self, line: &str) -> Option<Vec<RankEnd>> {
        let (host, rest) = line.strip_prefix("srun: error: ")?.split_once(": task")?;
        let (tasks, how) = rest.strip_prefix('s').unwrap_or(rest).trim_start().split_once(": ")?;
        if self.ending && CONSEQUENCES.contains(&how) {
            return None;
        }
        let end: Box<dyn Fn(usize) -> RankEnd> = match how.strip_prefix("Exited with exit code ") {
            Some(status) => {
                let status = status.trim().parse().ok()?;
                Box::new(move |rank| RankEnd::Status { rank, status })
            }
            None => {
                let name = how.trim_end_matches(" (core dumped)");
                let number = SIGNALS.iter().find(|(n, _)| *n == name)?.1;
                Box::new(move |rank| RankEnd::Signal {
                    rank,
                    host: host.to_owned(),
                    signal: format!("{number} ({name})"),
                })
            }
        };
        let ranges: Vec<RangeInclusive<usize>> = tasks.split(',').map(range).collect::<Option<_>>()?;
        Some(ranges.into_iter().flatten().map(end).collect())
    }
}

/// `srun: error: task 0 launch failed: Unspecified error`. The other ranks wait for this one for ever.
fn not_started(line: &str) -> Option<Vec<RankEnd>> {
    let (rank, why) = line.strip_prefix("srun: error: task ")?.split_once(" launch failed: ")?;
    Some(vec![RankEnd::NotStarted { rank: rank.parse().ok()?, why: why.trim().to_owned() }])
}

/// `3`, or `6-7`.
fn range(text: &str) -> Option<RangeInclusive<usize>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
}

/// `srun: error: Node failure on n2`.
fn failed_node(line: &str) -> Option<&str> {
    line.strip_prefix("srun: error: Node failure on ").map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is understood of all lines of a step, as they were printed.
    fn ends(printed: &str) -> Vec<RankEnd> {
        let mut words = Words::default();
        let lines = printed.lines().map(untagged).filter(|line| line.rank.is_none());
        lines.flat_map(|line| words.read(line.text)).collect()
    }

    #[test]
    fn a_rank_that_was_never_started_is_told() {
        let why = "Unspecified error".to_owned();
        let line = "srun: error: task 0 launch failed: Unspecified error";
        assert_eq!(ends(line), [RankEnd::NotStarted { rank: 0, why }]);
        assert!(ends("srun: error: task x launch failed: y").is_empty());
    }

    fn signal(rank: usize, host: &str, signal: &str) -> RankEnd {
        RankEnd::Signal { rank, host: host.into(), signal: signal.into() }
    }

    #[test]
    fn labels_come_off_and_slurms_daemon_is_no_rank() {
        assert_eq!(untagged("12: a: b"), Line { rank: Some(12), text: "a: b" });
        assert_eq!(untagged("  3:   indented"), Line { rank: Some(3), text: "  indented" });
        // Blanks at the end are gone.
        assert_eq!(untagged("0:"), Line { rank: Some(0), text: "" });
        let daemon = "slurmstepd-n1: error: *** STEP 1.0 ON n1 CANCELLED AT 2026-11-23T21:47:25 ***";
        assert_eq!(untagged(&format!(" 0: {daemon}")), Line { rank: None, text: daemon });
        for own in ["srun: error: n2: task 1: Killed", "n1: 2", ""] {
            assert_eq!(untagged(own), Line { rank: None, text: own });
        }
    }

    #[test]
    fn the_rank_that_was_killed_is_told_from_those_that_were_ended_for_it() {
        // Slurm 22.05.
        let printed = "\
srun: error: n2: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=1.0
0: slurmstepd-n1: error: *** STEP 1.0 ON n1 CANCELLED AT 2026-11-23T21:47:25 ***
srun: error: n1: task 0: Terminated
srun: Force Terminated StepId=1.0";
        assert_eq!(ends(printed), [signal(1, "n2", "9 (Killed)")]);
        // Since 23.11.
        let printed = "\
srun: error: n2: task 1: Killed
srun: Terminating StepId=1.0
srun: error: n1: task 0: Killed";
        assert_eq!(ends(printed), [signal(1, "n2", "9 (Killed)")]);
        let printed = "\
srun: error: n2: task 1: Segmentation fault
srun: launch/slurm: _step_signal: Terminating StepId=3.0
0: slurmstepd-n1: error: *** STEP 3.0 ON n1 CANCELLED AT 2026-11-23T21:47:27 ***
srun: error: n1: task 0: Exited with exit code 143
0: Terminated";
        assert_eq!(ends(printed), [signal(1, "n2", "11 (Segmentation fault)")]);
        assert_eq!(ends("srun: error: n2: task 1: Aborted (core dumped)"), [signal(1, "n2", "6 (Aborted)")]);
        assert_eq!(ends("srun: error: n2: task 1: Out Of Memory"), [signal(1, "n2", "9 (Out Of Memory)")]);
    }

    #[test]
    fn an_abort_comes_before_its_status() {
        let printed = "\
1: MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
srun: error: n2: task 1: Exited with exit code 3
srun: launch/slurm: _step_signal: Terminating StepId=9.0
0: slurmstepd-n1: error: *** STEP 9.0 ON n1 CANCELLED AT 2026-11-23T21:47:35 ***
srun: error: n1: task 0: Killed";
        assert_eq!(ends(printed), [RankEnd::Status { rank: 1, status: 3 }]);
    }

    #[test]
    fn several_ranks_share_a_line() {
        let printed = "\
srun: error: n2: tasks 6-7,10: Exited with exit code 2
srun: launch/slurm: _step_signal: Terminating StepId=6.0
srun: error: n1: tasks 0,3: Terminated
srun: error: n1: tasks 2,4-5: Exited with exit code 143";
        assert_eq!(ends(printed), [6, 7, 10].map(|rank| RankEnd::Status { rank, status: 2 }));
    }

    #[test]
    fn a_step_that_was_cancelled_is_no_ranks_fault() {
        let printed = "\
0: slurmstepd-n1: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-11-23T21:47:37 ***
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
srun: error: n1: task 0: Killed
srun: launch/slurm: _step_signal: Terminating StepId=12.0
srun: error: n2: task 1: Killed";
        assert_eq!(ends(printed), []);
    }

    #[test]
    fn a_node_that_failed_is_named() {
        let printed = "\
srun: error: Node failure on n2
salloc: error: Node failure on n2
srun: error: n1: task 0: Killed
srun: launch/slurm: _step_signal: Terminating StepId=15.0";
        assert_eq!(ends(printed), [RankEnd::Host { host: "n2".into() }]);
    }

    #[test]
    fn what_is_no_end_of_a_rank_is_left_alone() {
        let printed = "\
srun: cluster configuration lacks support for cpu binding
srun: error: Unable to create step for job 13: Invalid generic resource (gres) specification
srun: error: n1: task 0: Something new
srun: error: n1: task x: Killed";
        assert_eq!(ends(printed), []);
    }

    #[test]
    fn open_mpi_without_a_way_to_the_others_is_noticed() {
        assert!(is_lonely("The application appears to have been direct launched using \"srun\","));
        assert!(is_lonely("[n1:00438] OPAL ERROR: Unreachable in file ext3x_client.c at line 112"));
        assert!(!is_lonely("launched using srun"));
    }
}
