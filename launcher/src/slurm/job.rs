//! What Slurm says of a job: `scontrol show job --oneliner`, understood as far as bam needs it.

use serde::Serialize;

/// A job that Slurm knows, or some elements of an array.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Job {
    /// Which elements, as Slurm writes lists of them: `3`, `1,4-6%2`; none: it is no array.
    pub elements: Option<String>,
    /// `PENDING`, `RUNNING`, …
    pub state: String,
    /// Why it is in that state; none: Slurm gives none.
    pub reason: Option<String>,
    /// How often it was put into the queue again.
    pub restarts: u32,
    /// When it was started, or is expected to be.
    pub start: Option<String>,
    /// When it ends or ended.
    pub end: Option<String>,
    /// On which nodes, as Slurm writes lists of them.
    pub nodes: Option<String>,
    /// Its exit code.
    pub exit_code: Option<i32>,
    /// The script that it was submitted with.
    pub script: Option<String>,
}

/// What a state means for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It waits.
    Queued,
    /// It is at work, or about to begin or to end.
    Running,
    /// It has ended and does not come back by itself.
    Ended,
}

impl Job {
    /// Understands what is said about the job or array `id`, line by line; lines that are not about it, or have no state,
    /// are left out.
    pub fn parse_all(text: &str, id: u64) -> Vec<Job> {
        text.lines().filter_map(|line| Job::parse(line, id)).collect()
    }

    fn parse(line: &str, id: u64) -> Option<Job> {
        let mut job = Job::default();
        let mut has_id = false;
        // Values may hold spaces and what looks like a key. Those come late (the command, the directory), so that the
        // first of a name counts.
        for word in line.split_whitespace() {
            let Some((key, value)) = word.split_once('=') else { continue };
            let known = || (!["", "(null)", "None", "Unknown", "N/A"].contains(&value)).then(|| printable(value));
            match key {
                // An element has a number of its own, and that of its array.
                "JobId" | "ArrayJobId" if !has_id => has_id = value.parse() == Ok(id),
                "ArrayTaskId" if job.elements.is_none() => job.elements = known(),
                "JobState" if job.state.is_empty() => job.state = printable(value),
                "Reason" if job.reason.is_none() => job.reason = known(),
                "Restarts" if job.restarts == 0 => job.restarts = value.parse().unwrap_or_default(),
                "StartTime" if job.start.is_none() => job.start = known(),
                "EndTime" if job.end.is_none() => job.end = known(),
                "NodeList" if job.nodes.is_none() => job.nodes = known(),
                "ExitCode" if job.exit_code.is_none() => {
                    job.exit_code = value.split(':').next().and_then(|code| code.parse().ok());
                }
                _ => {}
            }
        }
        job.script =
            line.split_once(" Command=").map(|(_, rest)| rest.split(" WorkDir=").next().unwrap_or(rest).to_owned());
        (has_id && !job.state.is_empty()).then_some(job)
    }

    /// The number of its first element, by which parts of an array can be put in order.
    pub fn first_element(&self) -> Option<u64> {
        self.elements.as_ref()?.split([',', '-', '%']).next()?.parse().ok()
    }

    /// What its state means. One that is not known is taken for running: nothing must be submitted beside it.
    pub fn phase(&self) -> Phase {
        match self.state.as_str() {
            "PENDING" | "REQUEUED" | "REQUEUE_HOLD" | "REQUEUE_FED" | "RESV_DEL_HOLD" | "SPECIAL_EXIT" => Phase::Queued,
            "BOOT_FAIL" | "CANCELLED" | "COMPLETED" | "DEADLINE" | "FAILED" | "NODE_FAIL" | "OUT_OF_MEMORY"
            | "PREEMPTED" | "REVOKED" | "TIMEOUT" => Phase::Ended,
            _ => Phase::Running,
        }
    }
}

/// Without what would confuse a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Slurm 22.05 says it.
    const RUNNING: &str = "JobId=4 JobName=tiny UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901756 Nice=0 \
        Account=(null) QOS=(null) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 \
        ExitCode=0:0 RunTime=00:00:05 TimeLimit=00:02:00 TimeMin=N/A SubmitTime=2025-01-01T10:00:00 \
        EligibleTime=2025-01-01T10:00:00 AccrueTime=2025-01-01T10:00:00 StartTime=2025-01-01T10:00:01 \
        EndTime=2025-01-01T10:02:01 Deadline=N/A PreemptEligibleTime=2025-01-01T10:00:01 PreemptTime=None \
        Scheduler=Main Partition=lab AllocNode:Sid=ctl:77 ReqNodeList=(null) ExcNodeList=(null) NodeList=n[1-2] \
        BatchHost=n1 NumNodes=2 NumCPUs=2 Command=/runs/JobState=FAILED x/slurm/job.sh WorkDir=/runs NodeList=n9 Power=";

    #[test]
    fn a_running_job_is_understood() {
        let job = Job::parse_all(RUNNING, 4).remove(0);
        let text = |text: &str| Some(text.to_owned());
        let expected = Job {
            elements: None,
            state: "RUNNING".into(),
            reason: None,
            restarts: 2,
            start: text("2025-01-01T10:00:01"),
            end: text("2025-01-01T10:02:01"),
            nodes: text("n[1-2]"),
            exit_code: Some(0),
            script: text("/runs/JobState=FAILED x/slurm/job.sh"),
        };
        assert_eq!(job, expected);
        assert_eq!(job.phase(), Phase::Running);
    }

    #[test]
    fn a_waiting_job_has_a_reason() {
        let text = "JobId=5 JobState=PENDING Reason=Resources Restarts=0 StartTime=Unknown EndTime=Unknown NodeList=";
        let job = Job::parse_all(text, 5).remove(0);
        assert_eq!(
            (job.phase(), job.reason.as_deref(), job.start, job.nodes),
            (Phase::Queued, Some("Resources"), None, None)
        );
    }

    /// As Slurm 22.05 says it.
    #[test]
    fn an_array_has_a_line_for_each_element_that_was_started() {
        let text = "JobId=9 ArrayJobId=8 ArrayTaskId=0 JobName=tiny-teacher JobState=FAILED Reason=NonZeroExitCode \
                    Restarts=1 ExitCode=3:0 StartTime=T1 EndTime=T2 NodeList=n1\n\
                    JobId=8 ArrayJobId=8 ArrayTaskId=1,3-4%2 ArrayTaskThrottle=2 JobState=PENDING Reason=JobArrayTaskLimit\n\
                    JobId=7 JobState=RUNNING\n\n";
        let jobs = Job::parse_all(text, 8);
        let said: Vec<_> = jobs.iter().map(|job| (job.elements.as_deref(), job.state.as_str(), job.restarts)).collect();
        assert_eq!(said, [(Some("0"), "FAILED", 1), (Some("1,3-4%2"), "PENDING", 0)]);
    }

    #[test]
    fn states_are_sorted_and_new_ones_are_taken_for_running() {
        let phase = |state: &str| Job { state: state.into(), ..Job::default() }.phase();
        assert_eq!(["CANCELLED", "TIMEOUT", "NODE_FAIL", "COMPLETED"].map(phase), [Phase::Ended; 4]);
        assert_eq!(["COMPLETING", "SUSPENDED", "CONFIGURING", "BRAND_NEW"].map(phase), [Phase::Running; 4]);
    }

    #[test]
    fn garbled_words_are_no_job() {
        for text in [
            "",
            "JobId=",
            "JobId=4",
            "JobState=RUNNING",
            "JobId=44 JobState=RUNNING",
            "\0\u{1b}[2J===",
            "JobId=4 JobState=",
        ] {
            assert_eq!(Job::parse_all(text, 4), vec![], "{text:?}");
        }
        let hostile = "JobId=4 JobState=RUN\u{1b}[2JNING Restarts=-3 ExitCode=:::: NodeList=\u{7}x Reason==";
        let job = &Job::parse_all(hostile, 4)[0];
        assert_eq!((job.state.as_str(), job.restarts, job.exit_code), ("RUN[2JNING", 0, None));
        assert_eq!(job.nodes.as_deref(), Some("x"));
    }
}
