//! How a stage ends, judged from the evidence: a pure function that names the guilty rank and what it was doing.

use std::process::ExitStatus;
use std::time::Duration;

use bam_cluster::exit_code;
use bam_cluster::protocol::Outcome;
use bam_cluster::stage_record::Sums;

use super::evidence::{Evidence, RankEvidence};
use super::mpirun_output::RankEnd;
use super::sentence::{doing, ended_unexplained, go_on, name, rank_ended, with_last_lines};

/// A rank beats every second; one that is silent for this long is dead, stopped or cut off.
const SILENCE: Duration = Duration::from_secs(30);
/// Loading MPI and libtorch from a slow file system takes its time, but not this long.
const CONNECT_WITHIN: Duration = Duration::from_secs(120);
/// After the last word of rank 0 there is nothing left to do.
const END_WITHIN: Duration = Duration::from_secs(30);
/// Ranks fail one after another, and `mpirun` tells a second or two later who was first.
const FAILURES_SETTLE: Duration = Duration::from_secs(3);
/// What is still on its way when `mpirun` has ended.
const EXIT_SETTLES: Duration = Duration::from_millis(500);

/// The end of a stage.
#[derive(Debug, PartialEq)]
pub enum Judgement {
    /// It is complete; what it made.
    Finished(Sums),
    /// It stopped at a checkpoint, on request.
    Stopped {
        /// Optimizer steps in the checkpoint.
        step: u64,
    },
    /// It failed.
    Failed(Verdict),
}

/// What went wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// For a person.
    pub sentence: String,
    /// For scripts.
    pub exit_code: u8,
}

/// Judges the evidence at time `now`; none: the stage goes on.
pub fn judge(evidence: &Evidence, now: Duration) -> Option<Judgement> {
    if let Some(misfit) = &evidence.misfit {
        return Some(failed(misfit.clone()));
    }
    if let Some((status, at)) = &evidence.exit {
        return after_exit(evidence, *status, now.saturating_sub(*at) >= EXIT_SETTLES);
    }
    if let Some(first) = first_failure(evidence) {
        let all = evidence.ranks.iter().all(|r| r.failure.is_some());
        return (all || now.saturating_sub(first) >= FAILURES_SETTLE).then(|| failures(evidence));
    }
    if let Some((_, at)) = &evidence.done {
        let sentence = "the stage's work was done, but its processes did not end";
        return (now.saturating_sub(*at) > END_WITHIN).then(|| failed(go_on(evidence, sentence)));
    }
    let sentence = silent(evidence, now).or_else(|| overdue(evidence)).or_else(|| absent(evidence, now))?;
    Some(failed(go_on(evidence, &sentence)))
}

fn failed(sentence: String) -> Judgement {
    Judgement::Failed(Verdict { sentence, exit_code: exit_code::FAILURE })
}

/// `mpirun` has ended. `settled`: nothing more is to be expected.
fn after_exit(evidence: &Evidence, status: ExitStatus, settled: bool) -> Option<Judgement> {
    match &evidence.done {
        Some((Outcome::Finished { outputs }, _)) if status.success() => {
            return Some(Judgement::Finished(outputs.clone()));
        }
        // A rank may say so by its exit code, too.
        Some((Outcome::Stopped { step }, _))
            if status.success() || status.code() == Some(exit_code::STOPPED_AT_CHECKPOINT.into()) =>
        {
            return Some(Judgement::Stopped { step: *step });
        }
        _ if !settled => return None,
        _ => {}
    }
    // A rank that was killed takes the others down, and they may say that they failed.
    let killed = evidence.rank_ends.iter().find(|end| {
        matches!(end, RankEnd::Signal { rank, .. } if evidence.ranks.get(*rank).is_none_or(|r| r.failure.is_none()))
    });
    if killed.is_none() && first_failure(evidence).is_some() {
        return Some(failures(evidence));
    }
    Some(match killed.or(evidence.rank_ends.first()) {
        Some(end) => failed(rank_ended(evidence, end)),
        None => failed(ended_unexplained(evidence, status)),
    })
}

fn first_failure(evidence: &Evidence) -> Option<Duration> {
    evidence.ranks.iter().filter_map(|r| r.failure.as_ref()).map(|(_, at)| *at).min()
}

/// What the ranks themselves say, the first one first, each message once.
fn failures(evidence: &Evidence) -> Judgement {
    let mut failures: Vec<_> =
        evidence.ranks.iter().enumerate().filter_map(|(i, r)| r.failure.as_ref().map(|(f, at)| (*at, i, f))).collect();
    failures.sort_by_key(|(at, rank, _)| (*at, *rank));
    let mut messages: Vec<(&str, Vec<usize>)> = vec![];
    for (_, rank, failure) in &failures {
        match messages.iter_mut().find(|(message, _)| *message == failure.message) {
            Some((_, ranks)) => ranks.push(*rank),
            None => messages.push((&failure.message, vec![*rank])),
        }
    }
    let say = |(message, ranks): &(&str, Vec<usize>)| match ranks.as_slice() {
        all if all.len() == evidence.ranks.len() => (*message).to_owned(),
        [one] => format!("{}: {message}", name(evidence, *one)),
        several => {
            let numbers: Vec<String> = several.iter().map(usize::to_string).collect();
            format!("ranks {}: {message}", numbers.join(", "))
        }
    };
    let sentence = messages.iter().map(say).collect::<Vec<_>>().join("\n");
    let exit_code = failures.first().map_or(exit_code::FAILURE, |(_, _, failure)| failure.exit_code);
    Judgement::Failed(Verdict { sentence, exit_code })
}

/// A rank that has not been heard of for too long, or whose connection ended without a word.
fn silent(evidence: &Evidence, now: Duration) -> Option<String> {
    let since = |r: &RankEvidence| r.left.unwrap_or(r.last_heard);
    let candidates = evidence.ranks.iter().enumerate().filter(|(_, r)| r.identity.is_some());
    let (rank, longest) = candidates.map(|(i, r)| (i, now.saturating_sub(since(r)))).max_by_key(|(_, d)| *d)?;
    if longest <= SILENCE {
        return None;
    }
    let (who, seconds, doing) = (name(evidence, rank), longest.as_secs(), doing(evidence, rank));
    Some(match evidence.ranks[rank].left {
        Some(_) => format!("{who} closed its connection {seconds} s ago without saying why{doing}"),
        None if doing.is_empty() => format!("{who} has been silent for {seconds} s, since it connected"),
        None => format!("{who} has been silent for {seconds} s; it was last heard of{doing}"),
    })
}

/// A collective that takes longer than its deadline, and who is missing in it.
fn overdue(evidence: &Evidence) -> Option<String> {
    let beats = || evidence.ranks.iter().enumerate().filter_map(|(i, r)| r.heartbeat.as_ref().map(|beat| (i, beat)));
    let (waiting, collective, seconds, sequence) = beats()
        .filter_map(|(i, beat)| beat.collective.as_ref().map(|(c, s)| (i, c, *s, beat.sequence)))
        .filter(|(_, _, seconds, _)| *seconds > evidence.deadline.as_secs_f64())
        .max_by(|a, b| a.2.total_cmp(&b.2))?;
    let missing = beats().filter(|(_, beat)| beat.sequence < sequence).min_by_key(|(_, beat)| beat.sequence);
    Some(match missing {
        Some((rank, _)) => format!(
            "{} did not come to collective '{collective}', in which {} has waited for {seconds:.0} s; it is{}",
            name(evidence, rank),
            name(evidence, waiting),
            doing(evidence, rank)
        ),
        None => format!(
            "all ranks have been in collective '{collective}' for {seconds:.0} s (cluster.deadline is {} s); the \
             network between them may be broken",
            evidence.deadline.as_secs()
        ),
    })
}

/// A rank that never came.
fn absent(evidence: &Evidence, now: Duration) -> Option<String> {
    if now <= CONNECT_WITHIN {
        return None;
    }
    let rank = evidence.ranks.iter().position(|r| r.identity.is_none())?;
    let tail = evidence.ranks[rank].tail.quoted();
    let what = format!("rank {rank} did not connect within {} s", CONNECT_WITHIN.as_secs());
    Some(with_last_lines(what, &tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    use bam_cluster::protocol::{Failure, Heartbeat, Hello};

    const SECOND: Duration = Duration::from_secs(1);

    /// Two ranks in the backward pass of step 17, ten steps in a checkpoint, heard of at second 10.
    fn evidence() -> Evidence {
        let mut evidence = Evidence::new(2, 300 * SECOND);
        for rank in 0..2 {
            let hello = Hello { incarnation: 1, rank, world_size: 2, host: "n1".into(), pid: 40 + rank as u32 };
            evidence.join(&hello, SECOND).unwrap();
            beat(&mut evidence, rank, "backward", None, 5);
        }
        evidence.checkpoint = Some(10);
        evidence
    }

    fn beat(evidence: &mut Evidence, rank: usize, phase: &str, collective: Option<(&str, f64)>, sequence: u64) {
        let collective = collective.map(|(name, seconds)| (name.to_owned(), seconds));
        evidence.ranks[rank].heartbeat = Some(Heartbeat { phase: phase.into(), step: Some(17), collective, sequence });
        evidence.ranks[rank].last_heard = 10 * SECOND;
    }

    fn exit(evidence: &mut Evidence, code: i32) {
        evidence.exit = Some((ExitStatus::from_raw(code << 8), 10 * SECOND));
    }

    fn fail(evidence: &mut Evidence, rank: usize, message: &str, at: Duration) {
        evidence.ranks[rank].failure = Some((Failure { exit_code: 3, message: message.into() }, at));
    }

    fn sentence(evidence: &Evidence, now: Duration) -> String {
        match judge(evidence, now) {
            Some(Judgement::Failed(verdict)) => verdict.sentence,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_stage_that_goes_well_is_not_judged() {
        assert_eq!(judge(&evidence(), 40 * SECOND), None);
        assert_eq!(judge(&Evidence::new(2, SECOND), 120 * SECOND), None);
    }

    #[test]
    fn a_killed_rank_is_named_with_what_it_did_and_what_to_do() {
        let mut e = evidence();
        e.rank_ends.push(RankEnd::Signal { rank: 1, host: "n1".into(), signal: "9 (Killed)".into() });
        // The other rank's complaint is only a consequence.
        fail(&mut e, 0, "the connection to another rank broke", 9 * SECOND);
        exit(&mut e, 137);
        assert_eq!(judge(&e, 10 * SECOND), None, "more may be on its way");
        assert_eq!(
            sentence(&e, 11 * SECOND),
            "rank 1 (n1, pid 41) was killed by signal 9 (Killed) at step 17, in phase 'backward'; \
             run the same command to go on from the last checkpoint (step 10)"
        );
    }

    #[test]
    fn a_newer_step_of_rank_0_counts() {
        let mut e = evidence();
        e.latest_step = Some(19);
        e.checkpoint = None;
        e.rank_ends.push(RankEnd::Signal { rank: 1, host: "n1".into(), signal: "11 (Segmentation fault)".into() });
        exit(&mut e, 139);
        let s = sentence(&e, 11 * SECOND);
        assert!(s.contains("at step 19") && s.ends_with("run the same command to begin this stage again"), "{s}");
    }

    #[test]
    fn a_phase_from_before_the_first_step_is_not_joined_to_a_later_step() {
        let mut e = evidence();
        for rank in &mut e.ranks {
            rank.heartbeat = Some(Heartbeat { phase: "joining".into(), step: None, collective: None, sequence: 0 });
        }
        e.latest_step = Some(3);
        e.rank_ends.push(RankEnd::Signal { rank: 1, host: "n1".into(), signal: "9 (Killed)".into() });
        exit(&mut e, 137);
        let s = sentence(&e, 11 * SECOND);
        assert!(s.contains("signal 9 (Killed) at step 3;") && !s.contains("joining"), "{s}");
    }

    #[test]
    fn what_all_ranks_say_is_said_once_with_their_exit_code() {
        let mut e = evidence();
        fail(&mut e, 0, "data is damaged", 9 * SECOND);
        assert_eq!(judge(&e, 10 * SECOND), None);
        assert_eq!(sentence(&e, 12 * SECOND), "rank 0 (n1, pid 40): data is damaged");
        fail(&mut e, 1, "data is damaged", 10 * SECOND);
        let verdict = Verdict { sentence: "data is damaged".into(), exit_code: 3 };
        assert_eq!(judge(&e, 10 * SECOND), Some(Judgement::Failed(verdict)));
        fail(&mut e, 1, "something else", 8 * SECOND);
        assert_eq!(
            sentence(&e, 10 * SECOND),
            "rank 1 (n1, pid 41): something else\nrank 0 (n1, pid 40): data is damaged"
        );
    }

    #[test]
    fn done_counts_when_mpirun_ends_well() {
        let outputs = Sums::from([("model".to_owned(), "ab".to_owned())]);
        let mut e = evidence();
        e.done = Some((Outcome::Finished { outputs: outputs.clone() }, 9 * SECOND));
        assert_eq!(judge(&e, 10 * SECOND), None);
        assert!(sentence(&e, 40 * SECOND).contains("did not end"));
        exit(&mut e, 0);
        assert_eq!(judge(&e, 10 * SECOND), Some(Judgement::Finished(outputs)));
        exit(&mut e, 1);
        assert!(matches!(judge(&e, 11 * SECOND), Some(Judgement::Failed(_))));
        e.done = Some((Outcome::Stopped { step: 12 }, 9 * SECOND));
        exit(&mut e, 75);
        assert_eq!(judge(&e, 10 * SECOND), Some(Judgement::Stopped { step: 12 }));
    }

    #[test]
    fn an_exit_status_comes_with_the_ranks_last_lines() {
        let mut e = evidence();
        e.rank_ends.push(RankEnd::Status { rank: 1, status: 101 });
        e.printed(Some(1), "thread 'main' panicked");
        exit(&mut e, 101);
        let s = sentence(&e, 11 * SECOND);
        assert!(s.starts_with("rank 1 (n1, pid 41) ended with status 101 at step 17"), "{s}");
        assert!(s.ends_with("last lines:\n    thread 'main' panicked"), "{s}");
    }

    #[test]
    fn mpirun_that_ends_before_the_ranks_start_is_quoted() {
        let mut e = Evidence::new(2, SECOND);
        e.printed(None, "----------");
        e.printed(None, "There are not enough slots available");
        exit(&mut e, 1);
        assert_eq!(
            sentence(&e, 11 * SECOND),
            "mpirun ended with status 1 before all ranks had started (0 of 2 connected)\n  last lines:\n    \
             There are not enough slots available"
        );
        let mut quiet = evidence();
        exit(&mut quiet, 0);
        assert!(sentence(&quiet, 11 * SECOND).contains("no rank said that the stage is complete"));
    }

    #[test]
    fn silence_is_noticed() {
        let mut e = evidence();
        e.ranks[0].last_heard = 40 * SECOND;
        let s = sentence(&e, 41 * SECOND);
        let expected =
            "rank 1 (n1, pid 41) has been silent for 31 s; it was last heard of at step 17, in phase 'backward';";
        assert!(s.starts_with(expected), "{s}");
        e.ranks[1].left = Some(11 * SECOND);
        assert_eq!(judge(&e, 41 * SECOND), None);
        assert!(sentence(&e, 42 * SECOND).contains("closed its connection 31 s ago"));
    }

    #[test]
    fn a_collective_past_its_deadline_names_who_is_missing() {
        let mut e = evidence();
        beat(&mut e, 0, "reduce", Some(("gradients", 301.0)), 6);
        let s = sentence(&e, 11 * SECOND);
        let expected = "rank 1 (n1, pid 41) did not come to collective 'gradients', in which rank 0 (n1, pid 40) has waited \
                        for 301 s; it is at step 17, in phase 'backward'; ";
        assert!(s.starts_with(expected), "{s}");
        beat(&mut e, 1, "reduce", Some(("gradients", 300.5)), 6);
        assert!(sentence(&e, 11 * SECOND).starts_with("all ranks have been in collective 'gradients' for 301 s"));
    }

    #[test]
    fn a_rank_that_never_comes_or_does_not_belong_is_named() {
        let mut e = Evidence::new(2, SECOND);
        assert!(sentence(&e, 121 * SECOND).starts_with("rank 0 did not connect within 120 s"));
        let hello = Hello { incarnation: 1, rank: 0, world_size: 1, host: "n1".into(), pid: 7 };
        e.join(&hello, SECOND).unwrap_err();
        assert!(sentence(&e, SECOND).contains("rank 0 of 1, but 2 ranks were started"));
    }
}
