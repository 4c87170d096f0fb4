//! How a stage ends, judged from the evidence: a pure function that names the guilty rank and what it was doing.

use std::process::ExitStatus;
use std::time::Duration;

use bam_cluster::exit_code;
use bam_cluster::protocol::{Heartbeat, Outcome};
use bam_cluster::stage_record::Sums;

use super::evidence::{Evidence, RankEvidence};
use super::host::ProcessState;
use super::sentence::{doing, ended_unexplained, name, rank_ended, ranks};
use super::starter_output::RankEnd;

/// A rank beats every second; one that is silent for this long (or for the deadline, if that is shorter) is stopped, cut
/// off or dead.
const SILENCE: Duration = Duration::from_secs(15);
/// A rank that was not heard of for so long while others were has missed several heartbeats.
const MISSED_BEATS: Duration = Duration::from_secs(5);
/// Ranks of one host fall silent within so much of one another.
const TOGETHER: Duration = Duration::from_secs(3);
/// How much later than for a collective the deadline of a rank by itself is.
const OTHERS_FIRST: Duration = Duration::from_secs(1);
/// How long after a rank's connection has ended its starter may still say why.
const LEAVING_SETTLES: Duration = Duration::from_secs(2);
/// Loading MPI and libtorch from a slow file system takes its time, but not this long.
const CONNECT_WITHIN: Duration = Duration::from_secs(120);
/// How long ranks may take to end after rank 0's last word.
const END_WITHIN: Duration = Duration::from_secs(30);
/// Ranks fail one after another, and their starter tells a second or two later who was first.
const FAILURES_SETTLE: Duration = Duration::from_secs(2);
/// What is still on its way when the starter has ended.
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Who did what, where, and for how long.
    pub finding: Finding,
    /// For scripts.
    pub exit_code: u8,
    /// Going on from the last checkpoint would end in the same way.
    pub is_lasting: bool,
    /// The newest step that is known to be done.
    pub step: Option<u64>,
    /// Optimizer steps in the newest checkpoint.
    pub checkpoint: Option<u64>,
}

/// A failure in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A sentence without its full stop.
    pub what: String,
    /// What the guilty rank printed last, indented; empty if there is nothing.
    pub last_lines: String,
    /// The same for failures that are alike: without times and numbers of processes.
    pub kind: String,
}

impl Finding {
    fn new(kind: &str, what: String) -> Finding {
        Finding { what, last_lines: String::new(), kind: kind.to_owned() }
    }

    fn with_lines_of(mut self, rank: &RankEvidence) -> Finding {
        self.last_lines = rank.tail.quoted();
        self
    }
}

/// Judges the evidence at time `now`; none: the stage goes on.
pub fn judge(evidence: &Evidence, now: Duration) -> Option<Judgement> {
    if let Some(misfit) = &evidence.misfit {
        let verdict = verdict(evidence, Finding::new("misfit", misfit.problem.clone()));
        return Some(Judgement::Failed(Verdict { is_lasting: misfit.is_lasting, ..verdict }));
    }
    if let Some((status, at)) = &evidence.exit {
        return after_exit(evidence, *status, now, now.saturating_sub(*at) >= EXIT_SETTLES);
    }
    if let Some(first) = first_sign(evidence) {
        let all = evidence.ranks.iter().all(|r| r.failure.is_some());
        return (all || now.saturating_sub(first) >= FAILURES_SETTLE).then(|| rank_failed(evidence)).flatten();
    }
    if let Some((outcome, at)) = &evidence.done {
        // All ranks have met after their last work, and all of it is on disk: they are ended if they do not end.
        return (now.saturating_sub(*at) > END_WITHIN).then(|| match outcome {
            Outcome::Finished { outputs } => Judgement::Finished(outputs.clone()),
            Outcome::Stopped { step } => Judgement::Stopped { step: *step },
        });
    }
    let finding = gone(evidence, now)
        .or_else(|| silent(evidence, now))
        .or_else(|| overdue(evidence, now))
        .or_else(|| stuck(evidence, now))
        .or_else(|| absent(evidence, now))?;
    Some(failed(evidence, finding))
}

fn verdict(evidence: &Evidence, finding: Finding) -> Verdict {
    Verdict {
        finding,
        exit_code: exit_code::FAILURE,
        is_lasting: false,
        step: evidence.latest_step,
        checkpoint: evidence.checkpoint,
    }
}

fn failed(evidence: &Evidence, finding: Finding) -> Judgement {
    Judgement::Failed(verdict(evidence, finding))
}

/// The starter has ended. `settled`: nothing more is to be expected.
fn after_exit(evidence: &Evidence, status: ExitStatus, now: Duration, settled: bool) -> Option<Judgement> {
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
    rank_failed(evidence).or_else(|| {
        let finding = starter_lost_a_host(evidence, now).unwrap_or_else(|| ended_unexplained(evidence, status));
        Some(failed(evidence, finding))
    })
}

/// A rank that failed, by its own words or by its starter's.
fn rank_failed(evidence: &Evidence) -> Option<Judgement> {
    // A rank that was killed takes the others down, and they may say that they failed; so does a host that is lost.
    let killed = evidence.rank_ends.iter().find(|end| match end {
        RankEnd::Signal { rank, .. } => evidence.ranks.get(*rank).is_none_or(|r| r.failure.is_none()),
        RankEnd::NotStarted { .. } | RankEnd::Host { .. } => true,
        RankEnd::Status { .. } => false,
    });
    if killed.is_none() && first_failure(evidence).is_some() {
        return Some(failures(evidence));
    }
    let end = killed.or(evidence.rank_ends.first())?;
    Some(failed(evidence, rank_ended(evidence, end)))
}

/// A host of which nothing was heard for a while when the starter gave up: its own words do not say which.
fn starter_lost_a_host(evidence: &Evidence, now: Duration) -> Option<Finding> {
    // Ranks of other hosts left in good order when they were ended.
    let heard: Vec<Duration> = evidence.ranks.iter().map(|r| r.last_heard).collect();
    let newest = heard.iter().max()?;
    let (rank, _) = most_silent(evidence, now)?;
    if *newest < heard[rank] + MISSED_BEATS {
        return None;
    }
    let host = evidence.ranks[rank].identity.as_ref().map(|i| i.host.clone())?;
    let what = format!(
        "{} gave up when host {host} had not been heard of for {} s (rank {rank} was last heard of{}): it is down, or \
         the network to it is cut",
        evidence.starter,
        newest.saturating_sub(heard[rank]).as_secs(),
        doing(evidence, rank)
    );
    Some(Finding::new(&format!("host {host} is lost"), what))
}

/// When a rank first said that it failed, or its starter that it ended: `srun` may take half a minute more to end the others,
/// and to end itself. After rank 0's last word, ranks are expected to end.
fn first_sign(evidence: &Evidence) -> Option<Duration> {
    let end = evidence.rank_end_at.filter(|_| evidence.done.is_none());
    first_failure(evidence).into_iter().chain(end).min()
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
    let say = |(message, guilty): &(&str, Vec<usize>)| match guilty.as_slice() {
        all if all.len() == evidence.ranks.len() => (*message).to_owned(),
        [one] => format!("{}: {message}", name(evidence, *one)),
        several => format!("{}: {message}", ranks(several)),
    };
    let what = messages.iter().map(say).collect::<Vec<_>>().join("\n");
    let kind = messages.first().map(|(message, _)| (*message).to_owned()).unwrap_or_default();
    let first = failures.first().map(|(_, _, failure)| *failure);
    Judgement::Failed(Verdict {
        exit_code: first.map_or(exit_code::FAILURE, |f| f.exit_code),
        is_lasting: first.is_some_and(|f| f.is_lasting),
        ..verdict(evidence, Finding { what, last_lines: String::new(), kind })
    })
}

/// A rank whose connection ended without a word, the first one of several.
fn gone(evidence: &Evidence, now: Duration) -> Option<Finding> {
    let left = evidence.ranks.iter().enumerate().filter_map(|(i, r)| r.left.map(|at| (at, i)));
    let (at, rank) = left.min().filter(|(at, _)| now.saturating_sub(*at) > LEAVING_SETTLES)?;
    let why = match evidence.ranks[rank].process {
        Some(ProcessState::Gone) => "its process is gone",
        _ => "its connection ended without a word",
    };
    let seconds = now.saturating_sub(at).as_secs();
    let what = format!("{} died{}: {why} {seconds} s ago", name(evidence, rank), doing(evidence, rank));
    Some(Finding::new(&format!("rank {rank} died"), what).with_lines_of(&evidence.ranks[rank]))
}

/// A rank, or all ranks of a host, that have not been heard of for too long.
fn silent(evidence: &Evidence, now: Duration) -> Option<Finding> {
    let (rank, longest) = most_silent(evidence, now)?;
    if longest <= SILENCE.min(evidence.deadline) {
        return None;
    }
    // It is not the fault of a lost host's ranks.
    if let Some(finding) = lost_host(evidence, rank, now) {
        return Some(finding);
    }
    let (who, doing, seconds) = (name(evidence, rank), doing(evidence, rank), longest.as_secs());
    let why = as_the_kernel_sees_it(&evidence.ranks[rank]);
    let what = if doing.is_empty() {
        format!("{who} has been silent for {seconds} s, since it connected{why}")
    } else {
        format!("{who} has been silent for {seconds} s; it was last heard of{doing}{why}")
    };
    Some(Finding::new(&format!("rank {rank} is silent"), what).with_lines_of(&evidence.ranks[rank]))
}

/// The rank that is connected and was last heard of the longest ago, and how long ago that is.
fn most_silent(evidence: &Evidence, now: Duration) -> Option<(usize, Duration)> {
    let silences = connected(evidence).map(|(i, r)| (i, now.saturating_sub(r.last_heard)));
    silences.max_by_key(|(i, silence)| (*silence, usize::MAX - i))
}

fn connected(evidence: &Evidence) -> impl Iterator<Item = (usize, &RankEvidence)> {
    evidence.ranks.iter().enumerate().filter(|(_, r)| r.identity.is_some() && r.left.is_none())
}

/// Whether all ranks of this rank's host are as silent as it is, and others are not.
fn lost_host(evidence: &Evidence, rank: usize, now: Duration) -> Option<Finding> {
    let host_of = |r: &RankEvidence| r.identity.as_ref().map(|i| i.host.clone());
    let host = host_of(&evidence.ranks[rank])?;
    let silence = |r: &RankEvidence| now.saturating_sub(r.last_heard);
    let longest = silence(&evidence.ranks[rank]);
    let (there, elsewhere): (Vec<_>, Vec<_>) =
        connected(evidence).partition(|(_, r)| host_of(r).as_ref() == Some(&host));
    let all_silent = there.iter().all(|(_, r)| silence(r) + TOGETHER > longest);
    // The kernel tells of processes of this host: it is not lost.
    if elsewhere.is_empty() || !all_silent || evidence.ranks[rank].process.is_some() {
        return None;
    }
    let numbers: Vec<usize> = there.iter().map(|(i, _)| *i).collect();
    let what = format!(
        "host {host} has not been heard of for {} s ({}; last heard of{}): it is down, or the network to it is cut",
        longest.as_secs(),
        ranks(&numbers),
        doing(evidence, rank)
    );
    Some(Finding::new(&format!("host {host} is lost"), what).with_lines_of(&evidence.ranks[rank]))
}

/// Why a rank that does not get on does not, if its kernel tells.
fn as_the_kernel_sees_it(rank: &RankEvidence) -> &'static str {
    match rank.process {
        Some(ProcessState::Stopped) => "; its process is stopped (SIGSTOP, or a debugger)",
        Some(ProcessState::InDiskWait) => "; its process waits for a disk or a network file system",
        _ => "",
    }
}

/// What ranks said last, with how long ago.
fn beats(evidence: &Evidence, now: Duration) -> impl Iterator<Item = (usize, &Heartbeat, f64)> {
    let known = |(i, r): (usize, &'_ RankEvidence)| (i, now.saturating_sub(r.last_heard).as_secs_f64());
    let ages: Vec<(usize, f64)> = evidence.ranks.iter().enumerate().map(known).collect();
    ages.into_iter().filter_map(|(i, age)| evidence.ranks[i].heartbeat.as_ref().map(|beat| (i, beat, age)))
}

/// A collective that takes longer than its deadline, and who is missing in it.
fn overdue(evidence: &Evidence, now: Duration) -> Option<Finding> {
    let deadline = evidence.deadline.as_secs_f64();
    let (waiting, collective, seconds) = beats(evidence, now)
        .filter_map(|(i, beat, age)| beat.collective.as_ref().and_then(|c| Some((i, c, c.waiting? + age))))
        .filter(|(_, _, seconds)| *seconds > deadline)
        .max_by(|a, b| a.2.total_cmp(&b.2))?;
    let count = |beat: &Heartbeat| beat.collective.as_ref().map_or(0, |c| c.sequence);
    let missing = beats(evidence, now).filter(|(_, beat, _)| count(beat) < collective.sequence);
    let kind = format!("collective '{}'", collective.name);
    let called = format!("collective '{}' (no. {})", collective.name, collective.sequence);
    Some(match missing.min_by_key(|(_, beat, _)| count(beat)) {
        Some((rank, _, _)) => {
            let what = format!(
                "{} did not come to {called}, in which {} has waited for {seconds:.0} s; it is{}",
                name(evidence, rank),
                name(evidence, waiting),
                doing(evidence, rank)
            );
            Finding::new(&format!("{kind} without rank {rank}"), what).with_lines_of(&evidence.ranks[rank])
        }
        None => Finding::new(
            &kind,
            format!(
                "all ranks have been in {called} for {seconds:.0} s (cluster.deadline is {deadline:.0} s); the network \
                 between them may be broken"
            ),
        ),
    })
}

/// A rank that beats and does not get on with what it does by itself.
fn stuck(evidence: &Evidence, now: Duration) -> Option<Finding> {
    let alone =
        beats(evidence, now).filter(|(_, beat, _)| beat.collective.as_ref().is_none_or(|c| c.waiting.is_none()));
    let (rank, beat, seconds) =
        alone.map(|(i, beat, age)| (i, beat, beat.idle + age)).max_by(|a, b| a.2.total_cmp(&b.2))?;
    // Where others wait for it in a collective, that is the better sentence.
    if seconds <= (evidence.deadline + OTHERS_FIRST).as_secs_f64() {
        return None;
    }
    let step = beat.step.map(|s| format!(" at step {s},")).unwrap_or_default();
    let what = format!(
        "{} is{step} in phase '{}' and has not got on for {seconds:.0} s (cluster.deadline is {} s){}",
        name(evidence, rank),
        beat.phase,
        evidence.deadline.as_secs(),
        as_the_kernel_sees_it(&evidence.ranks[rank])
    );
    Some(Finding::new(&format!("rank {rank} stuck in '{}'", beat.phase), what).with_lines_of(&evidence.ranks[rank]))
}

/// A rank that never came.
fn absent(evidence: &Evidence, now: Duration) -> Option<Finding> {
    if now <= CONNECT_WITHIN {
        return None;
    }
    let rank = evidence.ranks.iter().position(|r| r.identity.is_none())?;
    let what = format!("rank {rank} did not connect within {} s", CONNECT_WITHIN.as_secs());
    Some(Finding::new(&format!("rank {rank} is absent"), what).with_lines_of(&evidence.ranks[rank]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    use bam_cluster::protocol::{Failure, Hello, LastCollective};

    const SECOND: Duration = Duration::from_secs(1);

    /// Ranks on these hosts, in the backward pass of step 17, ten steps in a checkpoint, heard of at second 10.
    fn on_hosts(hosts: &[&str]) -> Evidence {
        let mut evidence = Evidence::new(hosts.len(), 300 * SECOND);
        for (rank, host) in hosts.iter().enumerate() {
            evidence.join(&hello(rank, hosts.len(), host), SECOND).unwrap();
            beat(&mut evidence, rank, "backward", None, 5);
        }
        evidence.checkpoint = Some(10);
        evidence
    }

    fn evidence() -> Evidence {
        on_hosts(&["n1", "n1"])
    }

    fn hello(rank: usize, world_size: usize, host: &str) -> Hello {
        Hello { incarnation: 1, rank, world_size, host: host.into(), pid: 40 + rank as u32, device: "cpu".into() }
    }

    fn beat(evidence: &mut Evidence, rank: usize, phase: &str, waiting: Option<f64>, sequence: u64) {
        let collective = Some(LastCollective { name: "gradients".into(), sequence, waiting });
        let (idle, memory) = (waiting.unwrap_or(0.0), Some(3 << 30));
        let beat = Heartbeat { phase: phase.into(), step: Some(17), collective, idle, memory };
        evidence.ranks[rank].heartbeat = Some(beat);
        evidence.ranks[rank].last_heard = 10 * SECOND;
    }

    fn exit(evidence: &mut Evidence, code: i32) {
        evidence.exit = Some((ExitStatus::from_raw(code << 8), 10 * SECOND));
    }

    fn fail(evidence: &mut Evidence, rank: usize, message: &str, at: Duration) {
        let failure = Failure { exit_code: 3, message: message.into(), is_lasting: true };
        evidence.ranks[rank].failure = Some((failure, at));
    }

    fn verdict(evidence: &Evidence, now: Duration) -> Verdict {
        match judge(evidence, now) {
            Some(Judgement::Failed(verdict)) => verdict,
            other => panic!("{other:?}"),
        }
    }

    fn sentence(evidence: &Evidence, now: Duration) -> String {
        verdict(evidence, now).finding.what
    }

    #[test]
    fn a_stage_that_goes_well_is_not_judged() {
        assert_eq!(judge(&evidence(), 24 * SECOND), None);
        assert_eq!(judge(&Evidence::new(2, SECOND), 120 * SECOND), None);
    }

    #[test]
    fn a_killed_rank_is_named_with_what_it_did() {
        let mut e = evidence();
        e.rank_ends.push(RankEnd::Signal { rank: 1, host: "n1".into(), signal: "9 (Killed)".into() });
        // The other rank's complaint is only a consequence.
        fail(&mut e, 0, "the connection to another rank broke", 9 * SECOND);
        exit(&mut e, 137);
        assert_eq!(judge(&e, 10 * SECOND), None, "more may be on its way");
        let verdict = verdict(&e, 11 * SECOND);
        assert_eq!(
            verdict.finding.what,
            "rank 1 (n1, cpu, pid 41) was killed by signal 9 (Killed) at step 17, in phase 'backward', after collective \
             'gradients' (no. 5)"
        );
        assert_eq!(verdict.finding.kind, "rank 1: signal 9 (Killed)");
        assert_eq!((verdict.is_lasting, verdict.checkpoint), (false, Some(10)));
    }

    #[test]
    fn a_killed_rank_is_named_before_srun_has_ended_the_others() {
        let mut e = Evidence { starter: "srun", ..evidence() };
        e.ended(vec![RankEnd::Signal { rank: 1, host: "n1".into(), signal: "9 (Killed)".into() }], 9 * SECOND);
        assert_eq!(judge(&e, 10 * SECOND), None, "more may be on its way");
        assert!(
            sentence(&e, 11 * SECOND).starts_with("rank 1 (n1, cpu, pid 41) was killed by signal 9 (Killed) at step")
        );
    }

    #[test]
    fn a_host_that_slurm_gives_up_is_named_with_its_ranks() {
        let mut e = Evidence { starter: "srun", ..on_hosts(&["n1", "n2", "n2"]) };
        e.ended(vec![RankEnd::Host { host: "n2".into() }], 9 * SECOND);
        e.ended(vec![RankEnd::Status { rank: 0, status: 1 }], 9 * SECOND);
        fail(&mut e, 0, "the connection to another rank broke", 9 * SECOND);
        let verdict = verdict(&e, 11 * SECOND);
        let expected = "host n2 failed, as srun says; ranks 1, 2 last heard of at step 17, in phase 'backward'";
        assert!(verdict.finding.what.starts_with(expected), "{verdict:?}");
        assert!(!verdict.is_lasting && verdict.finding.kind == "host n2 is lost");
    }

    #[test]
    fn a_crash_before_any_rank_has_connected_is_tried_again() {
        let mut e = Evidence { starter: "srun", ..Evidence::new(2, SECOND) };
        let crash = RankEnd::Signal { rank: 1, host: "n2".into(), signal: "11 (Segmentation fault)".into() };
        e.ended(vec![crash], SECOND);
        let crash = verdict(&e, 3 * SECOND);
        assert_eq!(crash.finding.what, "rank 1 (n2) was killed by signal 11 (Segmentation fault)");
        assert!(!crash.is_lasting);
        let mut e = Evidence { starter: "srun", ..Evidence::new(2, SECOND) };
        exit(&mut e, 1);
        let ended = verdict(&e, 11 * SECOND);
        assert_eq!(ended.finding.what, "srun ended with status 1 before all ranks had started (0 of 2 connected)");
        assert!(!ended.is_lasting);
    }

    #[test]
    fn ranks_that_are_alone_are_refused_with_the_remedy() {
        let mut e = Evidence { starter: "srun", ..Evidence::new(2, SECOND) };
        e.join(&hello(0, 1, "n2"), SECOND).unwrap_err();
        let misfit = verdict(&e, SECOND);
        assert!(misfit.finding.what.contains("rank 0 of 1, but 2 ranks were started; srun's --mpi does not fit"));
        assert!(misfit.is_lasting && misfit.finding.what.contains("cluster.launcher: mpirun"));
        // Slurm's side of PMIx may have crashed.
        let mut e = Evidence { starter: "srun", ..Evidence::new(2, SECOND) };
        e.lonely(1, false);
        let lonely = verdict(&e, SECOND);
        assert!(!lonely.is_lasting && lonely.finding.what.starts_with("rank 1 cannot find the other ranks; srun's"));
    }

    #[test]
    fn a_kernel_short_of_memory_is_blamed() {
        let mut e = evidence();
        e.rank_ends.push(RankEnd::Signal { rank: 1, host: "n1".into(), signal: "9 (Killed)".into() });
        e.out_of_memory_kills = 1;
        exit(&mut e, 137);
        let s = sentence(&e, 11 * SECOND);
        assert!(s.contains("for lack of memory") && s.contains("it last had 3.0 GiB"), "{s}");
    }

    #[test]
    fn a_newer_step_of_rank_0_counts() {
        let mut e = evidence();
        e.latest_step = Some(19);
        e.checkpoint = None;
        e.rank_ends.push(RankEnd::Signal { rank: 1, host: "n1".into(), signal: "11 (Segmentation fault)".into() });
        exit(&mut e, 139);
        let verdict = verdict(&e, 11 * SECOND);
        assert!(verdict.finding.what.contains("at step 19"), "{verdict:?}");
        assert_eq!((verdict.step, verdict.checkpoint), (Some(19), None));
    }

    #[test]
    fn a_phase_from_before_the_first_step_is_not_joined_to_a_later_step() {
        let mut e = evidence();
        for rank in &mut e.ranks {
            let beat = Heartbeat { phase: "joining".into(), step: None, collective: None, idle: 0.0, memory: None };
            rank.heartbeat = Some(beat);
        }
        e.latest_step = Some(3);
        e.rank_ends.push(RankEnd::Signal { rank: 1, host: "n1".into(), signal: "9 (Killed)".into() });
        exit(&mut e, 137);
        let s = sentence(&e, 11 * SECOND);
        assert!(s.ends_with("signal 9 (Killed) at step 3"), "{s}");
    }

    #[test]
    fn what_all_ranks_say_is_said_once_with_their_exit_code() {
        let mut e = evidence();
        fail(&mut e, 0, "data is damaged", 9 * SECOND);
        assert_eq!(judge(&e, 10 * SECOND), None);
        assert_eq!(sentence(&e, 12 * SECOND), "rank 0 (n1, cpu, pid 40): data is damaged");
        fail(&mut e, 1, "data is damaged", 10 * SECOND);
        let both = verdict(&e, 10 * SECOND);
        assert_eq!((both.finding.what.as_str(), both.exit_code, both.is_lasting), ("data is damaged", 3, true));
        fail(&mut e, 1, "something else", 8 * SECOND);
        assert_eq!(
            sentence(&e, 10 * SECOND),
            "rank 1 (n1, cpu, pid 41): something else\nrank 0 (n1, cpu, pid 40): data is damaged"
        );
    }

    #[test]
    fn done_counts_when_mpirun_ends_well() {
        let outputs = Sums::from([("model".to_owned(), "ab".to_owned())]);
        let mut e = evidence();
        e.done = Some((Outcome::Finished { outputs: outputs.clone() }, 9 * SECOND));
        assert_eq!(judge(&e, 10 * SECOND), None);
        // Processes that do not end have nothing left to do.
        assert_eq!(judge(&e, 40 * SECOND), Some(Judgement::Finished(outputs.clone())));
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
        let finding = verdict(&e, 11 * SECOND).finding;
        assert!(finding.what.starts_with("rank 1 (n1, cpu, pid 41) ended with status 101 at step 17"), "{finding:?}");
        assert_eq!(finding.last_lines, "\n    thread 'main' panicked");
    }

    #[test]
    fn mpirun_that_ends_before_the_ranks_start_is_quoted() {
        let mut e = Evidence::new(2, SECOND);
        e.printed(None, "----------");
        e.printed(None, "There are not enough slots available");
        exit(&mut e, 1);
        let finding = verdict(&e, 11 * SECOND).finding;
        assert_eq!(finding.what, "mpirun ended with status 1 before all ranks had started (0 of 2 connected)");
        assert_eq!(finding.last_lines, "\n    There are not enough slots available");
        let mut quiet = evidence();
        exit(&mut quiet, 0);
        assert!(sentence(&quiet, 11 * SECOND).contains("no rank said that the stage is complete"));
    }

    #[test]
    fn silence_is_noticed_and_a_stopped_process_is_known() {
        let mut e = evidence();
        e.ranks[0].last_heard = 25 * SECOND;
        let expected = "rank 1 (n1, cpu, pid 41) has been silent for 16 s; it was last heard of at step 17, in phase \
                        'backward', after collective 'gradients' (no. 5)";
        assert_eq!(sentence(&e, 26 * SECOND), expected);
        e.ranks[1].process = Some(ProcessState::Stopped);
        let s = sentence(&e, 26 * SECOND);
        assert!(s.starts_with(expected) && s.ends_with("its process is stopped (SIGSTOP, or a debugger)"), "{s}");
        // A short deadline holds for silence, too.
        e.deadline = 5 * SECOND;
        e.ranks[0].last_heard = 15 * SECOND;
        assert!(sentence(&e, 16 * SECOND).starts_with("rank 1"));
    }

    #[test]
    fn a_rank_that_left_without_a_word_is_dead() {
        let mut e = evidence();
        e.ranks[1].left = Some(11 * SECOND);
        e.ranks[0].left = Some(12 * SECOND);
        assert_eq!(judge(&e, 13 * SECOND), None, "mpirun may still say why");
        let s = sentence(&e, 14 * SECOND);
        assert!(s.starts_with("rank 1 (n1, cpu, pid 41) died at step 17") && s.contains("connection ended"), "{s}");
        e.ranks[1].process = Some(ProcessState::Gone);
        assert!(sentence(&e, 14 * SECOND).ends_with("its process is gone 3 s ago"));
    }

    #[test]
    fn a_lost_host_is_not_its_ranks_fault() {
        let mut e = on_hosts(&["n1", "n1", "n2", "n2"]);
        for rank in 0..2 {
            e.ranks[rank].last_heard = 25 * SECOND;
        }
        e.ranks[3].last_heard = 11 * SECOND;
        let s = sentence(&e, 26 * SECOND);
        assert!(s.starts_with("host n2 has not been heard of for 16 s (ranks 2, 3; last heard of at step 17"), "{s}");
        e.ranks[3].last_heard = 20 * SECOND;
        assert!(sentence(&e, 26 * SECOND).starts_with("rank 2 (n2, cpu, pid 42) has been silent"));
    }

    #[test]
    fn an_mpirun_that_gives_up_on_a_host_is_understood() {
        let mut e = on_hosts(&["n1", "n2"]);
        e.ranks[0].last_heard = 21 * SECOND;
        e.ranks[0].left = Some(21 * SECOND);
        e.exit = Some((ExitStatus::from_raw(1 << 8), 21 * SECOND));
        let s = sentence(&e, 22 * SECOND);
        assert!(s.starts_with("mpirun gave up when host n2 had not been heard of for 11 s (rank 1 was"), "{s}");
        e.ranks[0].last_heard = 12 * SECOND;
        assert!(!sentence(&e, 22 * SECOND).contains("host n2"));
    }

    #[test]
    fn a_collective_past_its_deadline_names_who_is_missing() {
        let mut e = evidence();
        e.deadline = 12 * SECOND;
        beat(&mut e, 0, "reduction", Some(11.0), 6);
        assert_eq!(judge(&e, 11 * SECOND), None);
        // Time goes on between heartbeats.
        let s = sentence(&e, 12 * SECOND);
        let expected = "rank 1 (n1, cpu, pid 41) did not come to collective 'gradients' (no. 6), in which rank 0 (n1, cpu, \
                        pid 40) has waited for 13 s; it is at step 17, in phase 'backward', after collective";
        assert!(s.starts_with(expected), "{s}");
        beat(&mut e, 1, "reduction", Some(10.5), 6);
        assert!(
            sentence(&e, 12 * SECOND).starts_with("all ranks have been in collective 'gradients' (no. 6) for 13 s")
        );
    }

    #[test]
    fn a_rank_that_beats_and_does_not_get_on_is_named() {
        let mut e = evidence();
        e.deadline = 12 * SECOND;
        if let Some(beat) = &mut e.ranks[1].heartbeat {
            beat.idle = 12.5;
            beat.phase = "loading".to_owned();
        }
        e.ranks[1].process = Some(ProcessState::InDiskWait);
        let s = sentence(&e, 11 * SECOND);
        assert!(s.contains("rank 1") && s.contains("in phase 'loading' and has not got on for 14 s"), "{s}");
        assert!(s.ends_with("waits for a disk or a network file system"), "{s}");
    }

    #[test]
    fn a_rank_that_never_comes_or_does_not_belong_is_named() {
        let mut e = Evidence::new(2, SECOND);
        assert!(sentence(&e, 121 * SECOND).starts_with("rank 0 did not connect within 120 s"));
        e.join(&hello(0, 1, "n1"), SECOND).unwrap_err();
        let misfit = verdict(&e, SECOND);
        assert!(misfit.finding.what.contains("rank 0 of 1, but 2 ranks were started") && misfit.is_lasting);
    }
}
