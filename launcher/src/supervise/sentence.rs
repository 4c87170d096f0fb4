//! The sentences of a verdict: what a rank is called, what it was doing, how it ended, and what to do next.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::evidence::Evidence;
use super::mpirun_output::RankEnd;

/// `rank 1 (n1, pid 4711)`.
pub(super) fn name(evidence: &Evidence, rank: usize) -> String {
    match evidence.ranks.get(rank).and_then(|r| r.identity.as_ref()) {
        Some(identity) => format!("rank {rank} ({}, pid {})", identity.host, identity.pid),
        None => format!("rank {rank}"),
    }
}

/// ` at step 17, in phase 'backward', in collective 'gradients'`, as far as it is known.
pub(super) fn doing(evidence: &Evidence, rank: usize) -> String {
    let Some(beat) = evidence.ranks.get(rank).and_then(|r| r.heartbeat.as_ref()) else { return String::new() };
    // All ranks go in step, so that a step which rank 0 reports is newer news than an old heartbeat, and one from
    // before the first step says nothing any more about the phase.
    if let (None, Some(step)) = (beat.step, evidence.latest_step) {
        return format!(" at step {step}");
    }
    let step = beat.step.max(evidence.latest_step).map(|s| format!(" at step {s},")).unwrap_or_default();
    let collective = beat.collective.as_ref().map(|(c, _)| format!(", in collective '{c}'")).unwrap_or_default();
    format!("{step} in phase '{}'{collective}", beat.phase)
}

/// Adds what running the same command would do.
pub(super) fn go_on(evidence: &Evidence, what: &str) -> String {
    match evidence.checkpoint {
        Some(step) => format!("{what}; run the same command to go on from the last checkpoint (step {step})"),
        None => format!("{what}; run the same command to begin this stage again"),
    }
}

/// A rank's end, as `mpirun` told it.
pub(super) fn rank_ended(evidence: &Evidence, end: &RankEnd) -> String {
    match end {
        RankEnd::Signal { rank, host, signal } => {
            let who = match evidence.ranks.get(*rank).and_then(|r| r.identity.as_ref()) {
                Some(_) => name(evidence, *rank),
                None => format!("rank {rank} ({host})"),
            };
            go_on(evidence, &format!("{who} was killed by signal {signal}{}", doing(evidence, *rank)))
        }
        RankEnd::Status { rank, status } => {
            let what = format!("{} ended with status {status}{}", name(evidence, *rank), doing(evidence, *rank));
            let tail = evidence.ranks.get(*rank).map(|r| r.tail.quoted()).unwrap_or_default();
            with_last_lines(go_on(evidence, &what), &tail)
        }
    }
}

/// `mpirun` ended and did not say why.
pub(super) fn ended_unexplained(evidence: &Evidence, status: ExitStatus) -> String {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    let size = evidence.ranks.len();
    let connected = evidence.ranks.iter().filter(|r| r.identity.is_some()).count();
    if connected < size {
        let what = format!("mpirun {how} before all ranks had started ({connected} of {size} connected)");
        let own = evidence.mpirun_tail.quoted();
        let tail = if own.is_empty() { tails(evidence) } else { own };
        return with_last_lines(what, &tail);
    }
    let first = evidence.ranks.iter().enumerate().filter_map(|(i, r)| r.left.map(|at| (at, i))).min();
    let what = match first {
        Some((_, rank)) if !status.success() => {
            format!("mpirun {how}; the first rank to leave was {}{}", name(evidence, rank), doing(evidence, rank))
        }
        _ => format!("mpirun {how}, but no rank said that the stage is complete"),
    };
    let own = evidence.mpirun_tail.quoted();
    with_last_lines(go_on(evidence, &what), &if own.is_empty() { tails(evidence) } else { own })
}

/// The last lines of the first rank that printed any.
fn tails(evidence: &Evidence) -> String {
    evidence.ranks.iter().map(|r| r.tail.quoted()).find(|tail| !tail.is_empty()).unwrap_or_default()
}

/// Adds the end of what was printed, if there is any.
pub(super) fn with_last_lines(sentence: String, tail: &str) -> String {
    if tail.is_empty() { sentence } else { format!("{sentence}\n  last lines:{tail}") }
}
