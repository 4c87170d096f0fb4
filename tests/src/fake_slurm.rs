//! A Slurm made of small shell scripts: it runs the batch script of a job as a process of this machine, and puts it into the
//! queue again when it is asked to.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::process_tree::{self, Process};

/// A directory with `sbatch`, `scontrol`, `squeue` and `scancel` for `PATH`, and with what they know of jobs. Dropped, all
/// its jobs are killed.
#[derive(Debug)]
pub struct FakeSlurm {
    directory: PathBuf,
}

/// `refuse-test` and `refuse-submit` hold what Slurm says when it refuses; `hold`: jobs wait.
const SBATCH: &str = r#"
case $1 in
--test-only)
    cat >"$slurm/tested"
    if [ -e "$slurm/refuse-test" ]; then cat "$slurm/refuse-test" >&2; exit 1; fi
    echo 'sbatch: Job 1 to start at 2025-01-01T00:00:00 using 2 processors on nodes n1 in partition fake' >&2
    exit 0 ;;
esac
if [ -e "$slurm/refuse-submit" ]; then cat "$slurm/refuse-submit" >&2; exit 1; fi
id=$(($(cat "$slurm/last" 2>/dev/null || echo 0) + 1)); echo $id >"$slurm/last"
mkdir -p "$slurm/$id"; cp "$2" "$slurm/$id/script"
echo PENDING >"$slurm/$id/state"; echo 0 >"$slurm/$id/restarts"
setsid "$slurm/run" $id </dev/null >/dev/null 2>&1 &
echo $! >"$slurm/$id/runner"
echo $id
"#;

/// One job from its first start to its end.
const RUN: &str = r#"
id=$1; job="$slurm/$id"
export SLURM_JOB_ID=$id SLURM_NTASKS=2 SLURM_JOB_NODELIST=n1 SLURMD_NODENAME=n1
output=$(sed -n 's/^#SBATCH --output="*\([^"]*\)"*$/\1/p' "$job/script" | sed "s/%j/$id/; s/%%/%/g")
while :; do
    while [ -e "$slurm/hold" ]; do sleep 0.05; done
    [ "$(cat "$job/state")" = PENDING ] || exit 0
    restarts=$(cat "$job/restarts")
    [ $restarts = 0 ] || export SLURM_RESTART_COUNT=$restarts
    echo RUNNING >"$job/state"
    bash "$job/script" >>"$output" 2>&1 &
    echo $! >"$job/batch"
    wait $!; code=$?
    echo $code >"$job/code"
    [ -e "$job/requeue" ] || break
    rm "$job/requeue"
    echo PENDING >"$job/state"
    echo $((restarts + 1)) >"$job/restarts"
done
case $code in 0) echo COMPLETED ;; *) echo FAILED ;; esac >"$job/state"
"#;

const SCONTROL: &str = r#"
if [ "$1" = requeue ]; then touch "$slurm/$2/requeue"; exit 0; fi
job="$slurm/$4"
if [ ! -d "$job" ]; then echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1; fi
echo "JobId=$4 JobName=tiny JobState=$(cat "$job/state") Reason=Resources Restarts=$(cat "$job/restarts")" \
    "ExitCode=$(cat "$job/code" 2>/dev/null):0 StartTime=2025-01-01T00:00:00 NodeList=n1"
"#;

const SQUEUE: &str = r#"
for word in "$@"; do case $word in --jobs=*) echo "$(cat "$slurm/${word#--jobs=}/state") None" ;; esac; done
"#;

const SCANCEL: &str = r#"
case $1 in
--state=PENDING) [ "$(cat "$slurm/$2/state")" != PENDING ] || echo CANCELLED >"$slurm/$2/state" ;;
--signal=USR1) [ "$2" = --batch ] && kill -USR1 "$(cat "$slurm/$3/batch")" ;;
esac
"#;

impl FakeSlurm {
    /// Makes the commands in `directory`, which must not exist yet.
    pub fn new(directory: &Path) -> FakeSlurm {
        fs::create_dir(directory).unwrap();
        let scripts =
            [("sbatch", SBATCH), ("run", RUN), ("scontrol", SCONTROL), ("squeue", SQUEUE), ("scancel", SCANCEL)];
        for (name, text) in scripts {
            let path = directory.join(name);
            fs::write(&path, format!("#!/bin/sh\nslurm='{}'{text}", directory.display())).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        FakeSlurm { directory: directory.to_owned() }
    }

    /// `PATH` with these commands before all others.
    pub fn path(&self) -> String {
        format!("{}:{}", self.directory.display(), std::env::var("PATH").unwrap_or_default())
    }

    /// Makes a file by which Slurm behaves otherwise: `refuse-test`, `refuse-submit`, `hold`.
    pub fn set(&self, name: &str, text: &str) {
        fs::write(self.directory.join(name), text).unwrap();
    }

    /// Takes such a file away.
    pub fn unset(&self, name: &str) {
        fs::remove_file(self.directory.join(name)).unwrap();
    }

    /// Whether anything was asked to be tested or submitted.
    pub fn was_asked(&self) -> bool {
        self.directory.join("tested").exists() || self.jobs() > 0
    }

    /// How many jobs were submitted.
    pub fn jobs(&self) -> u64 {
        self.word("last").and_then(|n| n.parse().ok()).unwrap_or_default()
    }

    /// A job's state.
    pub fn state(&self, job: u64) -> String {
        self.word(&format!("{job}/state")).unwrap_or_default()
    }

    /// How often a job was put into the queue again.
    pub fn restarts(&self, job: u64) -> u64 {
        self.word(&format!("{job}/restarts")).and_then(|n| n.parse().ok()).unwrap_or_default()
    }

    /// Whether a job has ended for good.
    pub fn has_ended(&self, job: u64) -> bool {
        ["COMPLETED", "FAILED", "CANCELLED"].contains(&self.state(job).as_str())
    }

    /// Sends a signal to a job's batch script alone, as Slurm does.
    pub fn signal(&self, job: u64, signal: Signal) {
        let batch = self.word(&format!("{job}/batch")).and_then(|pid| pid.parse().ok());
        batch.and_then(Process::of).into_iter().for_each(|process| process.signal(signal));
    }

    fn word(&self, name: &str) -> Option<String> {
        Some(fs::read_to_string(self.directory.join(name)).ok()?.trim().to_owned())
    }
}

impl Drop for FakeSlurm {
    fn drop(&mut self) {
        for job in 1..=self.jobs() {
            let runner = self.word(&format!("{job}/runner")).and_then(|pid| pid.parse().ok()).and_then(Process::of);
            // Its number may belong to somebody else by now.
            let marks = format!("{}/run", self.directory.display());
            let is_ours = |process: &Process| {
                fs::read(format!("/proc/{}/cmdline", process.pid))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&marks))
            };
            if let Some(process) = runner.filter(is_ours) {
                process_tree::kill_all(process.pid);
            }
        }
    }
}
