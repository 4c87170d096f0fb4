//! A Slurm made of small shell scripts: it runs the batch script of a job as a process of this machine, and puts it into the
//! queue again when it is asked to.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::process_tree::{self, Process};
use crate::programs::write_program;

/// A directory with `sbatch`, `scontrol`, `squeue` and `scancel` for `PATH`, and with what they know of jobs. Dropped, all
/// its jobs are killed.
#[derive(Debug)]
pub struct FakeSlurm {
    directory: PathBuf,
}

/// How each command begins. `away`: the controller does not answer.
const HEAD: &str = r#"
if [ -e "$slurm/away" ]; then echo 'error: Unable to contact slurm controller (connect failure)' >&2; exit 1; fi
# The directories of a job's elements, or of the job; of an element, its own.
parts() { for part in "$slurm/$1" "$slurm/$1"_*; do [ ! -e "$part/state" ] || echo "$part"; done; }
"#;

/// `refuse-test` and `refuse-submit` hold what Slurm says when it refuses; `hold`: jobs wait; `quota`: so many jobs may be
/// submitted.
const SBATCH: &str = r#"
case $1 in
--test-only)
    cat >"$slurm/tested"
    if [ -e "$slurm/refuse-test" ]; then cat "$slurm/refuse-test" >&2; exit 1; fi
    echo 'sbatch: Job 1 to start at 2025-01-01T00:00:00 using 2 processors on nodes n1 in partition fake' >&2
    exit 0 ;;
esac
if [ -e "$slurm/refuse-submit" ]; then cat "$slurm/refuse-submit" >&2; exit 1; fi
id=$(($(cat "$slurm/last" 2>/dev/null || echo 0) + 1))
if [ -e "$slurm/quota" ] && [ $id -gt "$(cat "$slurm/quota")" ]; then
    echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2; exit 1
fi
echo $id >"$slurm/last"
dependency=''; kill=no; array=''
while :; do
    case $1 in
    --dependency=*) dependency=${1#--dependency=} ;;
    --kill-on-invalid-dep=yes) kill=yes ;;
    --array=*) array=${1#--array=} ;;
    --*) ;;
    *) break ;;
    esac
    shift
done
script=$1; shift
array=${array:-$(sed -n 's/^#SBATCH --array=//p' "$script")}
limit=${array#*%}; [ "$limit" != "$array" ] || limit=0
names=$id; [ -z "$array" ] || names=$(echo "${array%\%*}" | tr ',' '\n' | sed "s/^/${id}_/")
for name in $names; do
    mkdir "$slurm/$name"; cp "$script" "$slurm/$name/script"; echo "$script" >"$slurm/$name/command"
    echo "$@" >"$slurm/$name/arguments"
    echo PENDING >"$slurm/$name/state"; echo 0 >"$slurm/$name/restarts"
done
mkdir -p "$slurm/$id"
setsid "$slurm/queue" "$dependency" $kill $limit $names </dev/null >/dev/null 2>&1 &
echo $! >"$slurm/$id/runner"
echo $id
"#;

/// A job, or the elements of an array, from what they wait for on.
const QUEUE: &str = r#"
dependency=$1; kill=$2; limit=$3; shift 3
while [ -n "$dependency" ]; do
    open=0; bad=0
    for id in $(echo "${dependency#*:}" | tr ':' ' '); do
        for part in $(parts $id); do
            case $(cat "$part/state") in COMPLETED) ;; FAILED | CANCELLED) bad=1 ;; *) open=1 ;; esac
        done
    done
    case $dependency-$bad-$open in
    afterok*-1-*)
        [ $kill = yes ] || { sleep 0.05; continue; }
        for name in "$@"; do echo CANCELLED >"$slurm/$name/state"; done
        exit 0 ;;
    *-0) break ;;
    esac
    sleep 0.05
done
printf '%s\n' "$@" | xargs -P "$limit" -I '{}' "$slurm/run" '{}'
"#;

/// One job, or one element of an array, from its first start to its end.
const RUN: &str = r#"
name=$1; job="$slurm/$name"
export SLURM_JOB_ID=$name SLURM_NTASKS=2 SLURM_JOB_NODELIST=n1 SLURMD_NODENAME=n1
case $name in
# An element has a number of its own, which is of no use.
*_*) export SLURM_JOB_ID=999 SLURM_ARRAY_JOB_ID="${name%_*}" SLURM_ARRAY_TASK_ID="${name#*_}" ;;
esac
output=$(sed -n 's/^#SBATCH --output="*\([^"]*\)"*$/\1/p' "$job/script" | sed "s/%j/$name/; s/%A_%a/$name/; s/%%/%/g")
while :; do
    while [ -e "$slurm/hold" ]; do sleep 0.05; done
    [ "$(cat "$job/state")" = PENDING ] || exit 0
    restarts=$(cat "$job/restarts")
    [ $restarts = 0 ] || export SLURM_RESTART_COUNT=$restarts
    echo RUNNING >"$job/state"
    bash "$job/script" $(cat "$job/arguments") >>"$output" 2>&1 &
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
# An element is asked for by both numbers.
case $4 in *_*) set -- "$1" "$2" "$3" "${4%_*}" "$4" ;; esac
if [ -z "$(parts "$4")" ]; then echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1; fi
for part in $(parts "${5:-$4}"); do
    name=${part##*/}; element=''
    case $name in *_*) element="ArrayJobId=$4 ArrayTaskId=${name#*_}" ;; esac
    echo "JobId=${name%_*} $element JobName=tiny JobState=$(cat "$part/state") Reason=Resources" \
        "Restarts=$(cat "$part/restarts") ExitCode=$(cat "$part/code" 2>/dev/null):0 StartTime=2025-01-01T00:00:00" \
        "NodeList=n1 Command=$(cat "$part/command") WorkDir=/"
done
"#;

const SQUEUE: &str = r#"
for word in "$@"; do case $word in --jobs=*) echo "$(cat "$slurm/${word#--jobs=}/state") None" ;; esac; done
"#;

const SCANCEL: &str = r#"
for id in "$@"; do :; done
for part in $(parts "$id"); do
    case $1-$(cat "$part/state") in
    --state=PENDING-PENDING | $id-PENDING) echo CANCELLED >"$part/state" ;;
    --signal=USR1-RUNNING) [ "$2" = --batch ] && kill -USR1 "$(cat "$part/batch")" ;;
    esac
done
"#;

impl FakeSlurm {
    /// Makes the commands in `directory`, which must not exist yet.
    pub fn new(directory: &Path) -> FakeSlurm {
        fs::create_dir(directory).unwrap();
        let scripts = [
            ("sbatch", SBATCH),
            ("queue", QUEUE),
            ("run", RUN),
            ("scontrol", SCONTROL),
            ("squeue", SQUEUE),
            ("scancel", SCANCEL),
        ];
        for (name, text) in scripts {
            write_program(&directory.join(name), &format!("#!/bin/sh\nslurm='{}'{HEAD}{text}", directory.display()));
        }
        FakeSlurm { directory: directory.to_owned() }
    }

    /// `PATH` with these commands before all others.
    pub fn path(&self) -> String {
        format!("{}:{}", self.directory.display(), std::env::var("PATH").unwrap_or_default())
    }

    /// Makes a file by which Slurm behaves otherwise: `refuse-test`, `refuse-submit`, `quota`, `hold`, `away`.
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

    /// The state of a job, or of an element (`2_0`).
    pub fn state(&self, job: impl Display) -> String {
        self.word(&format!("{job}/state")).unwrap_or_default()
    }

    /// How often a job or an element was put into the queue again.
    pub fn restarts(&self, job: impl Display) -> u64 {
        self.word(&format!("{job}/restarts")).and_then(|n| n.parse().ok()).unwrap_or_default()
    }

    /// Whether a job or an element has ended for good.
    pub fn has_ended(&self, job: impl Display) -> bool {
        ["COMPLETED", "FAILED", "CANCELLED"].contains(&self.state(job).as_str())
    }

    /// Sends a signal to the batch script alone of a job or an element, as Slurm does.
    pub fn signal(&self, job: impl Display, signal: Signal) {
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
            let marks = format!("{}/queue", self.directory.display());
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
