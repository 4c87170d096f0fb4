//! Slurm's commands: `sbatch`, `scontrol`, `scancel`. What they say when they refuse is passed on in their own words.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bam_cluster::run_dir::RunDir;

use super::job::Job;
use super::record::{Submission, SubmittedJob};

/// Variables by which a user's environment would override what the script says and bam relies on.
const OVERRIDING: [&str; 9] = [
    "SBATCH_ARRAY_INX",
    "SBATCH_NO_REQUEUE",
    "SBATCH_OPEN_MODE",
    "SBATCH_OUTPUT",
    "SBATCH_ERROR",
    "SBATCH_REQUEUE",
    "SBATCH_SIGNAL",
    "SBATCH_TIMELIMIT",
    "SBATCH_JOB_NAME",
];

/// How `scontrol` says that it does not know a job (any more).
const UNKNOWN_JOB: &str = "Invalid job id";

/// Slurm, as its commands on `PATH` reach it.
#[derive(Debug, Clone, Copy)]
pub struct Slurm;

/// The number of a job that was submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// The job's number.
    pub job: u64,
    /// The cluster, where there are several.
    pub cluster: Option<String>,
}

/// Slurm cannot be asked, or says no.
#[derive(Debug, thiserror::Error)]
pub enum SlurmError {
    /// There is no such command here.
    #[error(
        "{program}: {source}\n  this takes Slurm's commands on PATH; try on a login node of the cluster (without Slurm: bam run)"
    )]
    Missing {
        /// The command.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It says no.
    #[error("{command} failed: {words}")]
    Refused {
        /// What was run.
        command: String,
        /// What it said.
        words: String,
    },
    /// Its answer cannot be understood.
    #[error("{command} gave an answer that bam does not understand: {words}")]
    Garbled {
        /// What was run.
        command: String,
        /// What it said.
        words: String,
    },
}

impl Slurm {
    /// Asks whether a script would be accepted; returns what Slurm says to it.
    ///
    /// # Errors
    /// It would not be.
    pub fn test(self, script: &str) -> Result<String, SlurmError> {
        let mut command = sbatch();
        let said = run("sbatch", command.arg("--test-only"), Some(script))?;
        Ok(words(&said))
    }

    /// Submits a script, to be started when what `after` says has happened.
    ///
    /// # Errors
    /// Slurm refuses it, or says something other than the job's number.
    pub fn submit(self, script: &Path, after: Option<&After>) -> Result<Submitted, SlurmError> {
        let mut command = sbatch();
        command.arg("--parsable");
        if let Some(after) = after {
            // A job that can never start must not wait for ever.
            command.args([format!("--dependency={after}"), "--kill-on-invalid-dep=yes".to_owned()]);
        }
        let said = run("sbatch", command.arg(script), None)?;
        parse_submitted(&String::from_utf8_lossy(&said.stdout))
            .ok_or_else(|| SlurmError::Garbled { command: typed(&command), words: words(&said) })
    }

    /// What Slurm knows of a job of a run, or of an array's elements; nothing if it has forgotten it.
    ///
    /// # Errors
    /// Slurm cannot be asked.
    pub fn jobs(self, run_dir: &RunDir, submission: &Submission, job: &SubmittedJob) -> Result<Vec<Job>, SlurmError> {
        let mut command = for_cluster("scontrol", submission);
        command.args(["--oneliner", "show", "job"]).arg(job.id.to_string());
        let said = match run("scontrol", &mut command, None) {
            Err(SlurmError::Refused { words, .. }) if words.contains(UNKNOWN_JOB) => return Ok(vec![]),
            said => said?,
        };
        let mut known = Job::parse_all(&String::from_utf8_lossy(&said.stdout), job.id);
        // Numbers come again, after years or a new installation.
        let script = run_dir.job_script(&job.name).display().to_string();
        let is_ours = |known: &Job| known.script.as_ref().is_none_or(|other| *other == script);
        if known.iter().any(|part| !is_ours(part)) {
            return Ok(vec![]);
        }
        known.sort_by_key(Job::first_element);
        if known.is_empty() {
            return Err(SlurmError::Garbled { command: typed(&command), words: words(&said) });
        }
        Ok(known)
    }

    /// Takes a job out of the queue, if it is still waiting there; of an array, what is waiting of it.
    ///
    /// # Errors
    /// Slurm refuses.
    pub fn cancel_waiting(self, submission: &Submission, job: &SubmittedJob) -> Result<(), SlurmError> {
        let mut command = for_cluster("scancel", submission);
        run("scancel", command.arg("--state=PENDING").arg(job.id.to_string()), None).map(drop)
    }

    /// Ends a job, whatever it does.
    ///
    /// # Errors
    /// Slurm refuses.
    pub fn cancel(self, submission: &Submission, job: &SubmittedJob) -> Result<(), SlurmError> {
        run("scancel", for_cluster("scancel", submission).arg(job.id.to_string()), None).map(drop)
    }

    /// Tells a job's batch script that its time is up; of an array, those of all elements.
    ///
    /// # Errors
    /// Slurm refuses.
    pub fn ask_to_stop(self, submission: &Submission, job: &SubmittedJob) -> Result<(), SlurmError> {
        let mut command = for_cluster("scancel", submission);
        run("scancel", command.args(["--signal=USR1", "--batch"]).arg(job.id.to_string()), None).map(drop)
    }
}

/// What must have happened before a job is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// These jobs have ended well.
    Success(Vec<String>),
    /// These jobs have ended.
    End(Vec<String>),
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, jobs) = match self {
            After::Success(jobs) => ("afterok", jobs),
            After::End(jobs) => ("afterany", jobs),
        };
        write!(f, "{kind}")?;
        jobs.iter().try_for_each(|job| write!(f, ":{job}"))
    }
}

fn sbatch() -> Command {
    let mut command = Command::new("sbatch");
    for name in OVERRIDING {
        command.env_remove(name);
    }
    command
}

fn for_cluster(program: &str, submission: &Submission) -> Command {
    let mut command = Command::new(program);
    if let Some(cluster) = &submission.cluster {
        command.arg(format!("--clusters={cluster}"));
    }
    command
}

fn run(program: &'static str, command: &mut Command, input: Option<&str>) -> Result<Output, SlurmError> {
    let missing = |source| SlurmError::Missing { program, source };
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(missing)?;
    if let (Some(mut pipe), Some(text)) = (child.stdin.take(), input) {
        // One that refuses may not read to the end; what it says counts.
        let _ = pipe.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(missing)?;
    if output.status.success() {
        return Ok(output);
    }
    Err(SlurmError::Refused { command: typed(command), words: words(&output) })
}

fn typed(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(OsStr::to_string_lossy);
    words.map(|word| crate::shell::quoted(&word)).collect::<Vec<_>>().join(" ")
}

/// What a command said, in one line, for a terminal.
fn words(output: &Output) -> String {
    let both = [output.stderr.as_slice(), b"\n", output.stdout.as_slice()].concat();
    let text = String::from_utf8_lossy(&both);
    let lines: Vec<String> = text.lines().map(|line| line.chars().filter(|c| !c.is_control()).collect()).collect();
    let said: Vec<&str> = lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
    if said.is_empty() { format!("it said nothing ({})", output.status) } else { said.join("; ") }
}

/// `123`, or `123;cluster`.
fn parse_submitted(text: &str) -> Option<Submitted> {
    // A site's own words may come before.
    let last = text.trim().lines().last()?.trim();
    let (job, cluster) = last.split_once(';').map_or((last, None), |(job, cluster)| (job, Some(cluster)));
    let named = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let cluster = cluster.map(|name| named(name).then(|| name.to_owned()));
    Some(Submitted {
        job: job.parse().ok().filter(|job| *job > 0)?,
        cluster: match cluster {
            Some(None) => return None,
            other => other.flatten(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_job_is_all_that_counts() {
        let submitted = |job, cluster: Option<&str>| Some(Submitted { job, cluster: cluster.map(str::to_owned) });
        assert_eq!(parse_submitted("123\n"), submitted(123, None));
        assert_eq!(parse_submitted("123;north\n"), submitted(123, Some("north")));
        assert_eq!(parse_submitted("Welcome to the cluster\n123"), submitted(123, None));
        for text in
            ["", "Submitted batch job 123", "-1", "0", "123;", "123;a b", "123;$(x)", "9e9", "99999999999999999999"]
        {
            assert_eq!(parse_submitted(text), None, "{text:?}");
        }
    }
}
