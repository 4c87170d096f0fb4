//! The sentences of a verdict: what a rank is called, what it was doing and how it ended.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::evidence::{Evidence, RankEvidence};
use super::starter_output::RankEnd;
use super::verdict::Finding;

/// `rank 1 (n1, cpu, pid 4711)`.
pub(super) fn name(evidence: &Evidence, rank: usize) -> String {
    match evidence.ranks.get(rank).and_then(|r| r.identity.as_ref()) {
        Some(who) => format!("rank {rank} ({}, {}, pid {})", who.host, who.device, who.pid),
        None => format!("rank {rank}"),
    }
}

/// `ranks 2, 3`.
pub(super) fn ranks(several: &[usize]) -> String {
    let numbers: Vec<String> = several.iter().map(usize::to_string).collect();
    format!("rank{} {}", if several.len() == 1 { "" } else { "s" }, numbers.join(", "))
}

/// ` at step 17, in phase 'reduction', in collective 'gradients' (no. 41) for 12 s`, as far as it is known.
pub(super) fn doing(evidence: &Evidence, rank: usize) -> String {
    let Some(beat) = evidence.ranks.get(rank).and_then(|r| r.heartbeat.as_ref()) else { return String::new() };
    // All ranks go in step, so that a step which rank 0 reports is newer news than an old heartbeat, and one from
    // before the first step says nothing any more about the phase.
    if let (None, Some(step)) = (beat.step, evidence.latest_step) {
        return format!(" at step {step}");
    }
    let step = beat.step.max(evidence.latest_step).map(|s| format!(" at step {s},")).unwrap_or_default();
    let collective = beat.collective.as_ref().map(|c| {
        let relation = if c.waiting.is_some() { "in" } else { "after" };
        format!(", {relation} collective '{}' (no. {})", c.name, c.sequence)
    });
    let time = if beat.idle >= 1.0 { format!(" for {:.0} s", beat.idle) } else { String::new() };
    format!("{step} in phase '{}'{}{time}", beat.phase, collective.unwrap_or_default())
}

/// A rank's end, as its starter told it.
pub(super) fn rank_ended(evidence: &Evidence, end: &RankEnd) -> Finding {
    match end {
        RankEnd::Signal { rank, host, signal } => {
            let who = match evidence.ranks.get(*rank).and_then(|r| r.identity.as_ref()) {
                Some(_) => name(evidence, *rank),
                None => format!("rank {rank} ({host})"),
            };
            let what = format!("{who} was killed by signal {signal}{}", doing(evidence, *rank));
            let what = if signal.starts_with("9 ") { what + &short_of_memory(evidence, *rank) } else { what };
            Finding { what, last_lines: last_lines(evidence, *rank), kind: format!("rank {rank}: signal {signal}") }
        }
        RankEnd::Status { rank, status } => Finding {
            what: format!("{} ended with status {status}{}", name(evidence, *rank), doing(evidence, *rank)),
            last_lines: last_lines(evidence, *rank),
            kind: ended_with(*status),
        },
        RankEnd::NotStarted { rank, why } => Finding {
            what: format!("rank {rank} could not be started ({why})"),
            last_lines: String::new(),
            kind: "a rank could not be started".to_owned(),
        },
        RankEnd::Host { host } => {
            let on =
                |(i, r): (usize, &RankEvidence)| r.identity.as_ref().is_some_and(|who| who.host == *host).then_some(i);
            let lost: Vec<usize> = evidence.ranks.iter().enumerate().filter_map(on).collect();
            let last = lost.first().map(|rank| format!("; {} last heard of{}", ranks(&lost), doing(evidence, *rank)));
            let what = format!("host {host} failed, as {} says{}", evidence.starter, last.unwrap_or_default());
            Finding { what, last_lines: String::new(), kind: format!("host {host} is lost") }
        }
    }
}

fn last_lines(evidence: &Evidence, rank: usize) -> String {
    evidence.ranks.get(rank).map(|r| r.tail.quoted()).unwrap_or_default()
}

/// Whether the kernel killed for lack of memory meanwhile, and how much the rank had.
fn short_of_memory(evidence: &Evidence, rank: usize) -> String {
    if evidence.out_of_memory_kills == 0 {
        return String::new();
    }
    let memory = evidence.ranks.get(rank).and_then(|r| r.heartbeat.as_ref()).and_then(|beat| beat.memory);
    let had = memory.map(|bytes| format!(" (it last had {:.1} GiB)", bytes as f64 / f64::from(1 << 30)));
    format!(
        "; this host's kernel has killed for lack of memory meanwhile, which is probably why{}: use fewer processes on a host, \
         or a smaller train.*.micro_batch_size",
        had.unwrap_or_default()
    )
}

/// `mpirun` or `srun` ended and did not say why.
pub(super) fn ended_unexplained(evidence: &Evidence, status: ExitStatus) -> Finding {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    let (starter, size) = (evidence.starter, evidence.ranks.len());
    let connected = evidence.ranks.iter().filter(|r| r.identity.is_some()).count();
    let first = evidence.ranks.iter().enumerate().filter_map(|(i, r)| r.left.map(|at| (at, i))).min();
    let what = match first {
        _ if connected < size => {
            format!("{starter} {how} before all ranks had started ({connected} of {size} connected)")
        }
        Some((_, rank)) if !status.success() => {
            format!("{starter} {how}; the first rank to leave was {}{}", name(evidence, rank), doing(evidence, rank))
        }
        _ => format!("{starter} {how}, but no rank said that the stage is complete"),
    };
    let last_lines = tails(evidence) + &evidence.starter_tail.quoted();
    Finding { what, last_lines, kind: status.code().map_or(how, ended_with) }
}

/// Whether the starter finds the time to say which rank it was is chance: the kind of failure is the same.
fn ended_with(status: i32) -> String {
    format!("status {status}")
}

/// The last lines of the first rank that printed any.
fn tails(evidence: &Evidence) -> String {
    evidence.ranks.iter().map(|r| r.tail.quoted()).find(|tail| !tail.is_empty()).unwrap_or_default()
}
