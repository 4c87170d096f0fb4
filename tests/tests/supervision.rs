//! No silence: whatever keeps a rank from going on is named in one sentence, soon, and the run goes on by itself where
//! that can help. The weights are those of a run that nothing happened to.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::OnceLock;
use std::time::Duration;

use bam_tests::{Bam, Finished, Recipe, Run, Workplace, program, say_skipped, tree};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// Seconds: the recipe's `cluster.deadline`.
const DEADLINE: u64 = 6;
/// A student of so many steps.
const STEPS: usize = 40;

/// A run of which only the student is disturbed in what follows.
struct Undisturbed {
    place: Workplace,
    run: Run,
}

fn undisturbed() -> &'static Undisturbed {
    static ONCE: OnceLock<Undisturbed> = OnceLock::new();
    ONCE.get_or_init(|| {
        let place = Workplace::shared("supervision");
        let mut recipe = Recipe::of(&["cola"]);
        recipe.mode = "multi".into();
        // Dropout has to be the same after a restart, too.
        recipe.model = "max_length: 40".into();
        recipe.multi = "epochs: 4, batch_size: 16, learning_rate: 0.001".into();
        recipe.checkpoint = "every_steps: 5, keep: 2".into();
        recipe.cluster = format!("processes: 2, deadline: {DEADLINE}");
        place.recipe("recipe.yaml", &recipe);
        let run = Run::new(place.at("runs/undisturbed"));
        command(&place, &run).expect(0);
        assert!(run.steps("multi").len() >= STEPS, "{}", run.steps("multi").len());
        Undisturbed { place, run }
    })
}

fn command(place: &Workplace, run: &Run) -> Bam {
    place.bam(["run", "recipe.yaml", "--run-dir", run.path().to_str().unwrap()])
}

impl Undisturbed {
    /// A run directory in which everything is done that comes before the training.
    fn before_training(&self, name: &str) -> Run {
        let run = self.run.copy_to(&self.place.at("runs").join(name));
        fs::remove_dir_all(run.at("stages/multi")).unwrap();
        fs::remove_file(run.at("report.json")).unwrap();
        run
    }

    fn assert_same(&self, run: &Run) {
        assert_eq!(run.weights_sha256("multi"), self.run.weights_sha256("multi"));
        assert_eq!(run.receipt("multi"), self.run.receipt("multi"));
        assert_eq!(run.steps("multi"), self.run.steps("multi"));
    }
}

/// Lets a rank fail once and waits for the end; returns how long it took to notice and what was said.
fn with_failure(run: &Run, fault: &str) -> (Duration, Finished) {
    let reference = undisturbed();
    let mut running = command(&reference.place, run).arg("--inject").arg(fault).start();
    running.wait_for_words("rehearsal: ");
    let noticed = running.wait_for_words("(restart 1 of 3)");
    (noticed, running.finish().expect(0))
}

#[test]
fn a_rank_that_dies_is_named_at_once_and_the_run_goes_on_by_itself() {
    let reference = undisturbed();
    for rank in [0, 1] {
        let run = reference.before_training(&format!("dies-{rank}"));
        let (noticed, finished) = with_failure(&run, &format!("multi:kill:{rank}:step-17"));
        assert!(noticed < Duration::from_secs(3), "{noticed:?}");
        for part in [&format!("rank {rank} ("), "cpu", "signal 9 (Killed)", "at step 1"] {
            assert!(finished.stderr.contains(part), "{part}: {finished}");
        }
        // Step 15's checkpoint is on its way to the disk when the rank dies; step 10's has arrived.
        let is_told = |step: u64| finished.stderr.contains(&format!("going on from the checkpoint of step {step}"));
        assert!(is_told(15) || is_told(10), "{finished}");
        if is_told(15) {
            assert!(finished.stderr.contains("resumed at step 15 of"), "{finished}");
        }
        reference.assert_same(&run);
    }
}

/// The ranks of a host train one model in one memory: when one dies in an update, the other may have done its part of it.
#[test]
fn a_rank_that_dies_in_the_middle_of_an_update_leaves_no_half_of_it() {
    let reference = undisturbed();
    for rank in [0, 1] {
        let run = reference.before_training(&format!("dies-in-update-{rank}"));
        let (_, finished) = with_failure(&run, &format!("multi:kill:{rank}:update-17"));
        assert!(finished.stderr.contains("signal 9 (Killed)"), "{finished}");
        reference.assert_same(&run);
    }
}

#[test]
fn a_stopped_rank_is_named_within_the_deadline() {
    let reference = undisturbed();
    let run = reference.before_training("stops");
    let (noticed, finished) = with_failure(&run, "multi:stop:1:step-17");
    assert!(noticed < Duration::from_secs(DEADLINE + 2), "{noticed:?}");
    assert!(finished.stderr.contains("rank 1 (") && finished.stderr.contains("its process is stopped"), "{finished}");
    reference.assert_same(&run);
}

#[test]
fn a_rank_that_does_not_come_to_a_collective_is_named_with_it() {
    let reference = undisturbed();
    let run = reference.before_training("hangs");
    let (noticed, finished) = with_failure(&run, "multi:hang:1:step-17");
    assert!(noticed < Duration::from_secs(DEADLINE + 2), "{noticed:?}");
    for part in ["rank 1 (", "did not come to collective 'words of the batch' (no. ", "in which rank 0 (", "at step 17"]
    {
        assert!(finished.stderr.contains(part), "{part}: {finished}");
    }
    reference.assert_same(&run);
}

#[test]
fn a_read_that_never_ends_is_named() {
    let reference = undisturbed();
    let run = reference.before_training("stuck");
    // A pipe that nobody writes to: to a reader it is a file system that does not answer.
    let (file, kept) = (run.at("data/cola-train.h5"), run.at("kept"));
    fs::rename(&file, &kept).unwrap();
    mkfifo(&file, Mode::S_IRWXU).unwrap();
    let finished = command(&reference.place, &run).arg("-o").arg("cluster.max_restarts=0").finish();
    finished.expect_error(1, &["rank ", "in phase 'loading' and has not got on for", "cluster.deadline is 6 s"]);
    fs::rename(&kept, &file).unwrap();
    command(&reference.place, &run).expect(0);
    reference.assert_same(&run);
}

#[test]
fn an_mpirun_that_is_killed_takes_nothing_with_it() {
    let reference = undisturbed();
    let run = reference.before_training("mpirun");
    let mut running = command(&reference.place, &run).start();
    running.wait_until("step 10", || run.steps("multi").len() >= 10);
    let mpirun = tree(running.pid()).into_iter().find(|p| p.name == "mpirun" || p.name == "orterun").unwrap();
    mpirun.signal(Signal::SIGKILL);
    let finished = running.finish().expect(0);
    assert!(finished.stderr.contains("restart 1 of 3"), "{finished}");
    reference.assert_same(&run);
}

#[test]
fn a_failure_that_comes_again_is_not_tried_for_ever() {
    let reference = undisturbed();
    let run = reference.before_training("deterministic");
    let worker = reference.place.worker_with(
        "failing-worker",
        "[ \"$OMPI_COMM_WORLD_RANK\" = 1 ] && { echo 'this rank has had enough' >&2; exit 7; }",
    );
    let finished = command(&reference.place, &run).env("BAM_WORKER", worker).finish();
    finished.expect_error(1, &["the same failure", "second time", "this rank has had enough"]);
}

#[test]
fn a_rank_without_memory_says_so() {
    let reference = undisturbed();
    let run = reference.before_training("no-memory");
    // Enough to start, and not for a batch.
    let limit = "[ \"$OMPI_COMM_WORLD_RANK\" = 1 ] && ulimit -d 40000";
    let worker = reference.place.worker_with("short-worker", limit);
    let started = command(&reference.place, &run).env("BAM_WORKER", worker);
    let finished = started.arg("-o").arg("cluster.max_restarts=0").finish();
    let said = finished.stderr.to_lowercase();
    assert_ne!(finished.code, Some(0), "{finished}");
    assert!(said.contains("rank 1 (") && (said.contains("memory") || said.contains("alloc")), "{finished}");
    command(&reference.place, &run).expect(0);
    reference.assert_same(&run);
}

/// Rank 1 in a control group with less memory than it needs, as a batch system or a container may have it.
#[test]
fn a_rank_that_the_kernel_kills_for_lack_of_memory_is_told_from_others() {
    let Some(group) = ControlGroup::with_memory(24 << 20) else {
        let test = "a_rank_that_the_kernel_kills_for_lack_of_memory_is_told_from_others";
        return say_skipped(test, "no control group with a limit on memory can be made here");
    };
    let reference = undisturbed();
    let run = reference.before_training("killed-for-memory");
    let join = format!("[ \"$OMPI_COMM_WORLD_RANK\" = 1 ] && echo $$ > {}/cgroup.procs", group.0.display());
    let worker = reference.place.worker_with("limited-worker", &join);
    let started = command(&reference.place, &run).env("BAM_WORKER", worker).arg("-o").arg("cluster.max_restarts=0");
    started
        .finish()
        .expect_error(1, &["rank 1 (", "signal 9 (Killed)", "killed for lack of memory", "micro_batch_size"]);
    command(&reference.place, &run).expect(0);
    reference.assert_same(&run);
}

/// A control group of this test's own, which vanishes with it.
struct ControlGroup(PathBuf);

impl ControlGroup {
    fn with_memory(bytes: u64) -> Option<ControlGroup> {
        let versions = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        versions.into_iter().find_map(|(root, limit)| {
            let group = ControlGroup(Path::new(root).join(format!("bam-test-{}", process::id())));
            fs::create_dir(&group.0).ok()?;
            // No file of this name may be made in a control group: it is there if there is such a limit.
            File::options().write(true).open(group.0.join(limit)).ok()?.write_all(bytes.to_string().as_bytes()).ok()?;
            let swap = File::options().write(true).open(group.0.join("memory.swap.max"));
            let _ = swap.and_then(|mut file| file.write_all(b"0"));
            Some(group)
        })
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_full_disk_loses_nothing_and_is_named() {
    let reference = undisturbed();
    let run = reference.before_training("full");
    // Room for one checkpoint and not for two.
    let bytes: u64 = reference.run.checkpoints("multi").iter().take(1).map(|c| size_of_tree(c)).sum();
    let Some(finished) = on_a_small_disk(&run, "stages/multi/checkpoints", bytes + bytes / 2) else { return };
    finished.expect_error(1, &["rank 0 (", "No space left on device", "untouched", "checkpoint"]);
    command(&reference.place, &run).expect(0);
    reference.assert_same(&run);
    // No room for data.
    let run = Run::new(reference.place.at("runs/full-at-once"));
    let Some(finished) = on_a_small_disk(&run, "data", 4096) else { return };
    finished.expect_error(1, &["rank 0 (", "data/cola-train.h5", "No space left on device", "then run again"]);
    command(&reference.place, &run).expect(0);
    reference.assert_same(&run);
}

/// Runs where one directory is a file system of so many bytes, in a name space that ends with bam; none, and it says so, where
/// that is not allowed.
fn on_a_small_disk(run: &Run, directory: &str, bytes: u64) -> Option<Finished> {
    let reference = undisturbed();
    let probe = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "x", "/mnt"])
        .output();
    if !probe.is_ok_and(|o| o.status.success()) {
        say_skipped("a_full_disk_loses_nothing_and_is_named", "unshare --mount is not allowed here");
        return None;
    }
    fs::create_dir_all(run.at(directory)).unwrap();
    let script = format!("mount -t tmpfs -o size={bytes} tmpfs {} && exec \"$@\"", run.at(directory).display());
    let bam = program("bam");
    let unshare = ["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh", bam.to_str().unwrap()];
    let arguments = ["run", "recipe.yaml", "--run-dir", run.path().to_str().unwrap(), "-o", "cluster.max_restarts=1"];
    let words = unshare.into_iter().chain(arguments);
    Some(Bam::of_program("unshare".as_ref(), reference.place.path(), words).finish())
}

/// What a killed start has left in memory and in the directory for temporary files is gone after the next one.
#[test]
fn what_everything_killed_leaves_on_the_host_is_removed_by_the_next_start() {
    if !Path::new("/dev/shm").is_dir() {
        let test = "what_everything_killed_leaves_on_the_host_is_removed_by_the_next_start";
        return say_skipped(test, "there is no /dev/shm");
    }
    let reference = undisturbed();
    let run = reference.before_training("leaves");
    let start = || command(&reference.place, &run).without_env("OMPI_MCA_btl_vader_backing_directory");
    let mut running = start().start();
    running.wait_until("step 10", || run.steps("multi").len() >= 10);
    let rank = running.ranks(2).remove(0);
    let named = |name: &str| PathBuf::from(rank.variable(name).unwrap());
    let (memory, session) = (named("OMPI_MCA_btl_vader_backing_directory"), named("OMPI_MCA_orte_tmpdir_base"));
    assert!(memory.starts_with("/dev/shm") && fs::read_dir(&memory).unwrap().count() > 1, "nothing in {memory:?}");
    assert!(session.exists());
    running.kill_all();
    start().expect(0);
    assert!(!memory.exists() && !session.exists(), "{memory:?} and {session:?} are left");
    reference.assert_same(&run);
}

fn size_of_tree(directory: &Path) -> u64 {
    fs::read_dir(directory).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum()
}

/// Slurm sends the signal that time is nearly up to bam, or to every process.
#[test]
fn sigusr1_to_bam_or_to_any_rank_stops_all_at_one_step() {
    let reference = undisturbed();
    for to in ["bam", "rank 0", "rank 1"] {
        let run = reference.before_training(&format!("usr1-{}", to.replace(' ', "-")));
        let mut running = command(&reference.place, &run).start();
        running.wait_until("step 10", || run.steps("multi").len() >= 10);
        match to {
            "bam" => running.signal(Signal::SIGUSR1),
            rank => {
                let number = rank.trim_start_matches("rank ");
                let ranks = running.ranks(2);
                let process = ranks.iter().find(|r| r.variable("OMPI_COMM_WORLD_RANK").as_deref() == Some(number));
                process.unwrap().signal(Signal::SIGUSR1);
            }
        }
        let stopped = running.finish().expect(75);
        let (at, _) = run.receipt("multi");
        assert!(stopped.stderr.contains(&format!("stopped at step {at} of")), "{to}: {stopped}");
        assert_eq!(run.steps("multi").len() as u64, at, "{to}");
        command(&reference.place, &run).expect(0);
        reference.assert_same(&run);
    }
}

#[test]
fn a_lead_that_is_too_short_is_told() {
    let reference = undisturbed();
    let run = reference.before_training("short-lead");
    let started = command(&reference.place, &run).arg("-o").arg("checkpoint.lead=0");
    let finished = started.expect(0);
    assert!(finished.stderr.contains("checkpoint.lead") && finished.stderr.contains("USR1@"), "{finished}");
}

#[test]
fn three_interruptions_and_other_numbers_of_processes_leave_the_data_order_alone() {
    let reference = undisturbed();
    let run = reference.before_training("resized");
    for (i, processes) in ["2", "4", "1"].iter().enumerate() {
        let mut running = command(&reference.place, &run).arg("-n").arg(processes).start();
        let before = run.steps("multi").len();
        running.wait_until("some steps", || run.steps("multi").len() >= before + 3);
        running.signal(Signal::SIGUSR1);
        let stopped = running.finish().expect(75);
        assert_eq!(stopped.stderr.contains("the batches are the same, rounding is not"), i > 0, "{stopped}");
    }
    command(&reference.place, &run).arg("-n").arg("3").expect(0);
    assert_eq!(run.receipt("multi"), reference.run.receipt("multi"));
    assert_eq!(run.steps("multi").len(), reference.run.steps("multi").len());
}
