//! Ranks that `srun` starts in a job of a real Slurm, where one can be set up: a run to its table with `mpirun`'s weights, a
//! rank that is killed, interruptions, and ranks that do not find one another.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::thread;
use std::time::Duration;

use bam_tests::{Bam, Lab, Process, Recipe, Run, Running, Workplace, program, tree};
use nix::sys::signal::Signal;

/// The two models of one task run side by side, each on a node of its own.
fn recipe() -> Recipe {
    let mut recipe = Recipe::of(&["cola", "warmth"]);
    recipe.cluster = "processes: 2, single_processes: 1, deadline: 60".into();
    recipe.checkpoint = "every_steps: 5, keep: 2".into();
    recipe
}

const STAGES: [&str; 3] = ["teacher-cola", "teacher-warmth", "student"];

#[test]
fn srun_starts_the_ranks_of_a_job() {
    let place = Workplace::new();
    let Some(lab) = Lab::of_slurm("srun_starts_the_ranks_of_a_job", &place.at("lab"), 2) else { return };
    place.recipe("recipe.yaml", &recipe());
    let reference = srun_and_mpirun_leave_the_same_weights(&lab, &place);
    a_killed_rank_is_named_and_an_interrupted_run_goes_on(&lab, &place, &reference);
    the_second_interruption_leaves_nothing_behind(&lab, &place);
    ranks_that_do_not_find_one_another_are_refused(&lab, &place);
}

fn srun_and_mpirun_leave_the_same_weights(lab: &Lab, place: &Workplace) -> Run {
    // An mpirun that cannot start anything on the job's nodes.
    let done = job(lab, place, &["--run-dir", "runs/srun"]).env("BAM_MPIRUN", "/bin/false").expect(0);
    assert!(done.stdout.contains("results on dev"), "{done}");
    let by_srun = Run::new(place.at("runs/srun"));
    for stage in ["prepare", "teacher-cola", "logits", "student"] {
        let log = by_srun.log(stage);
        assert!(log.contains("bam | srun starts the ranks: mpirun does not do: "), "{log}");
        assert!(log.contains("/srun --mpi=pmix --kill-on-bad-exit=1 "), "{log}");
    }
    // One model a node, whichever comes first.
    let place_of = |stage: &str| by_srun.log(stage).contains("--nodes=1 --relative=1 ");
    assert_ne!(place_of("teacher-cola"), place_of("teacher-warmth"));
    job(lab, place, &["--run-dir", "runs/mpirun"]).expect(0);
    let by_mpirun = Run::new(place.at("runs/mpirun"));
    let chosen = by_mpirun.log("student");
    assert!(chosen.contains("bam | mpirun starts the ranks: it reaches the job's nodes (2)"), "{chosen}");
    let place_of = |stage: &str| by_mpirun.log(stage).contains(" --host +n1 ");
    assert_ne!(place_of("teacher-cola"), place_of("teacher-warmth"));
    for stage in STAGES {
        assert_eq!(by_srun.weights_sha256(stage), by_mpirun.weights_sha256(stage), "{stage}");
    }
    by_srun
}

fn a_killed_rank_is_named_and_an_interrupted_run_goes_on(lab: &Lab, place: &Workplace, reference: &Run) {
    let words = ["--run-dir", "runs/killed", "-o", "cluster.launcher=srun"];
    let run = Run::new(place.at("runs/killed"));
    let mut running = job(lab, place, &words).start();
    running.wait_until("steps of the student", || run.steps("student").len() > 6);
    let secret = fs::read_to_string(run.at("stages/student/control.json")).unwrap();
    let secret = secret.split('"').max_by_key(|word| word.len()).unwrap().to_owned();
    let rank = rank_on(lab, "n2");
    let seen = fs::read(format!("/proc/{}/environ", rank.pid)).unwrap();
    let seen = String::from_utf8_lossy(&seen).into_owned() + &rank.command_line();
    assert!(seen.contains("SLURM_JOB_ID=") && !seen.contains(&secret), "{seen}");
    rank.signal(Signal::SIGKILL);
    let time = running.wait_for_words("rank 1 (n2, cpu, pid ");
    assert!(time < Duration::from_secs(10), "{time:?}");
    let before = run.steps("student").len();
    running.wait_until("more steps", || run.steps("student").len() > before + 2);
    bam_of(&running).signal(Signal::SIGINT);
    let stopped = running.finish().expect(75);
    assert!(
        stopped.stderr.contains("(n2, cpu, pid ") && stopped.stderr.contains("killed by signal 9 (Killed)"),
        "{stopped}"
    );
    assert!(stopped.stderr.contains("student: stopped at step "), "{stopped}");
    job(lab, place, &words).expect(0);
    for stage in STAGES {
        assert_eq!(run.weights_sha256(stage), reference.weights_sha256(stage), "{stage}");
    }
}

fn the_second_interruption_leaves_nothing_behind(lab: &Lab, place: &Workplace) {
    let run = Run::new(place.at("runs/interrupted"));
    let words = ["--run-dir", "runs/interrupted", "-o", "cluster.launcher=srun", "-o", "mode=multi"];
    let mut running = job(lab, place, &words).start();
    running.wait_until("steps", || run.steps("multi").len() > 3);
    // A rank that cannot do anything about it any more.
    rank_on(lab, "n2").signal(Signal::SIGSTOP);
    bam_of(&running).signal(Signal::SIGINT);
    thread::sleep(Duration::from_millis(300));
    bam_of(&running).signal(Signal::SIGINT);
    running.finish().expect(130);
    for host in ["n1", "n2"] {
        assert!(lab.processes(host, "bam-worker").is_empty(), "{host}");
    }
}

fn ranks_that_do_not_find_one_another_are_refused(lab: &Lab, place: &Workplace) {
    let words = |run_dir| ["--run-dir", run_dir, "-o", "cluster.launcher=srun", "-o", "cluster.single_processes=2"];
    // Open MPI itself notices that there is nobody to ask.
    let none = job(lab, place, &words("runs/none")).arg("-o").arg("cluster.srun_args=[--mpi=none]").finish();
    none.expect_error(1, &["cannot find the other ranks", "cluster.launcher: mpirun", "srun --mpi=list"]);
    // Others do not.
    let script = "unset ${!SLURM_*} ${!PMIX_*} ${!PMI_*} ${!OMPI_*}\nexport OMPI_ALLOW_RUN_AS_ROOT=1";
    let worker = place.worker_with("lonely-worker", script);
    let alone = job(lab, place, &words("runs/alone")).env("BAM_WORKER", &worker).finish();
    alone.expect_error(1, &["rank 0 of 1, but 2 ranks were started", "cluster.launcher: mpirun", "srun --mpi=list"]);
}

/// The launcher in a job, below what asked for the job.
fn bam_of(running: &Running) -> Process {
    tree(running.pid()).into_iter().find(|p| p.name == "bam").unwrap()
}

/// `bam run recipe.yaml` in a job of two nodes.
fn job(lab: &Lab, place: &Workplace, words: &[&str]) -> Bam {
    let bam = program("bam");
    let before = ["salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1", bam.to_str().unwrap(), "run", "recipe.yaml"];
    lab.through(place.path(), &before.into_iter().chain(words.iter().copied()).collect::<Vec<_>>())
}

/// A host's only rank.
fn rank_on(lab: &Lab, host: &str) -> Process {
    let mut found = lab.processes(host, "bam-worker");
    assert_eq!(found.len(), 1, "{host}: {found:?}");
    found.remove(0)
}
