//! Batch jobs: a recipe is submitted, stopped by the scheduler and put into the queue again, and ends with the weights of an
//! undisturbed run. Against a Slurm made of shell scripts; `slurm_lab.rs` has the real one.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::{Duration, Instant};

use bam_tests::{Bam, FakeSlurm, Recipe, Run, Snapshot, Workplace};
use nix::sys::signal::Signal;

/// Long enough for a machine that does much else.
const DEADLINE: Duration = Duration::from_secs(150);

struct Cluster {
    slurm: FakeSlurm,
    place: Workplace,
}

fn recipe() -> Recipe {
    let mut recipe = Recipe::of(&["cola"]);
    recipe.mode = "multi".into();
    // Dropout has to be the same after a resume, too.
    recipe.model = "max_length: 40".into();
    recipe.multi = "epochs: 20, batch_size: 16, learning_rate: 0.001".into();
    recipe.checkpoint = "every_steps: 10, keep: 2".into();
    recipe.slurm = "time: 10".into();
    recipe
}

impl Cluster {
    fn new(recipe: &Recipe) -> Cluster {
        let place = Workplace::new();
        place.recipe("recipe.yaml", recipe);
        let slurm = FakeSlurm::new(&place.at("slurm"));
        Cluster { slurm, place }
    }

    fn bam<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Bam {
        ["SLURM_JOB_ID", "SLURM_NTASKS"]
            .iter()
            .fold(self.place.bam(words), |bam, name| bam.without_env(name))
            .env("PATH", self.slurm.path())
    }

    fn submit(&self) -> Bam {
        self.bam(["submit", "recipe.yaml"])
    }

    fn run(&self) -> Run {
        Run::new(self.place.at("runs/tiny"))
    }

    fn wait(&self, what: &str, mut happened: impl FnMut() -> bool) {
        wait(what, || happened() || self.slurm.has_ended(1));
        assert!(happened(), "the job ended before {what}:\n{}", self.output());
    }

    fn wait_for_end(&self) -> String {
        wait("the job's end", || self.slurm.has_ended(1));
        self.slurm.state(1)
    }

    /// What the first job has printed.
    fn output(&self) -> String {
        fs::read_to_string(self.run().at("logs/slurm-1.out")).unwrap_or_default()
    }

    fn status(&self) -> String {
        self.bam(["status", "runs/tiny"]).expect(0).stdout
    }

    /// Nothing may have been submitted or written.
    fn assert_refused(&self, bam: Bam, code: i32, parts: &[&str]) {
        let before = Snapshot::of(self.place.path()).without(&["slurm"]);
        bam.finish().expect_error(code, parts);
        before.assert_same(&Snapshot::of(self.place.path()).without(&["slurm"]));
        assert_eq!(self.slurm.jobs(), 0);
    }
}

fn wait(what: &str, mut happened: impl FnMut() -> bool) {
    let since = Instant::now();
    while !happened() {
        assert!(since.elapsed() < DEADLINE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_job_that_is_stopped_twice_ends_with_the_weights_of_an_undisturbed_run() {
    let cluster = Cluster::new(&recipe());
    let whole = Run::new(cluster.place.at("runs/whole"));
    cluster.bam(["run", "recipe.yaml", "--run-dir", "runs/whole"]).expect(0);
    assert!(!whole.at("history.jsonl").exists());
    let done = cluster.submit().expect(0);
    assert!(done.stdout.contains("job 1 submitted"), "{done}");
    assert!(done.stderr.contains("Job 1 to start at"), "{done}");
    // What waits or runs is not affected by a recipe that is changed meanwhile.
    cluster.place.edit("recipe.yaml", |text| text.replace("learning_rate: 0.001", "learning_rate: 0.002"));
    let run = cluster.run();
    for (restart, steps) in [(0, 15), (1, 60)] {
        cluster.wait(&format!("step {steps}"), || {
            cluster.slurm.restarts(1) == restart && run.steps("multi").len() > steps
        });
        if restart == 0 {
            let status = cluster.status();
            assert!(status.contains("job 1: running on n1") && status.contains("at work: bam, pid "), "{status}");
        }
        cluster.slurm.signal(1, Signal::SIGUSR1);
        cluster.wait("the queue", || cluster.slurm.restarts(1) == restart + 1);
    }
    assert_eq!(cluster.wait_for_end(), "COMPLETED", "{}", cluster.output());
    assert_eq!((cluster.slurm.jobs(), cluster.slurm.restarts(1)), (1, 2));
    assert_eq!(run.weights_sha256("multi"), whole.weights_sha256("multi"));
    assert_eq!(run.receipt("multi"), whole.receipt("multi"));
    assert_eq!(run.steps("multi"), whole.steps("multi"));
    assert!(cluster.output().contains("results on dev"), "{}", cluster.output());
    let status = cluster.status();
    assert!(status.contains("put into the queue again 2 times") && status.contains("done: bam report"), "{status}");
    let history = fs::read_to_string(run.at("history.jsonl")).unwrap();
    assert_eq!(history.lines().count(), 6, "{history}");
    assert_eq!(history.matches("time is up").count(), 2, "{history}");
}

#[test]
fn a_job_that_fails_is_not_put_into_the_queue_again() {
    let mut recipe = recipe();
    recipe.slurm = "time: 10, prologue: ['export BAM_WORKER=/bin/false']".into();
    let cluster = Cluster::new(&recipe);
    cluster.submit().expect(0);
    assert_eq!(cluster.wait_for_end(), "FAILED");
    assert_eq!(cluster.slurm.restarts(1), 0);
    assert!(cluster.output().contains("error: "), "{}", cluster.output());
    let status = cluster.status();
    for part in ["FAILED, exit code 1", "to go on: cd ", "submit recipe.yaml"] {
        assert!(status.contains(part), "{part}: {status}");
    }
}

#[test]
fn a_prologue_that_fails_ends_the_job() {
    let mut recipe = recipe();
    recipe.slurm = "prologue: ['cd /no/such/place']".into();
    let cluster = Cluster::new(&recipe);
    cluster.submit().expect(0);
    assert_eq!(cluster.wait_for_end(), "FAILED");
    assert!(cluster.output().contains("/no/such/place") && !cluster.run().at("config.yaml").exists());
    assert!(cluster.status().contains("nothing was begun yet"));
}

#[test]
fn a_job_that_does_not_get_on_is_given_up() {
    let mut recipe = recipe();
    recipe.slurm = "max_requeues: 1".into();
    let cluster = Cluster::new(&recipe);
    cluster.slurm.set("hold", "");
    cluster.submit().expect(0);
    // As nodes that are lost again and again leave it.
    let line = |restart: u64| {
        format!(
            "{{\"event\":\"start\",\"time\":\"t\",\"job\":1,\"restart\":{restart},\"host\":\"n1\",\
             \"kept\":{{\"stages\":0,\"steps\":0}}}}\n"
        )
    };
    fs::write(cluster.run().at("history.jsonl"), line(0) + &line(1)).unwrap();
    cluster.slurm.unset("hold");
    assert_eq!(cluster.wait_for_end(), "FAILED");
    let output = cluster.output();
    for part in ["job 1 was started 2 times without getting any further", "slurm.max_requeues", "logs/slurm-1.out"] {
        assert!(output.contains(part), "{part}: {output}");
    }
}

#[test]
fn a_second_job_is_refused_and_a_cancelled_one_stops_at_a_checkpoint() {
    let cluster = Cluster::new(&recipe());
    cluster.slurm.set("hold", "");
    cluster.submit().expect(0);
    assert!(cluster.status().contains("job 1: queued (Resources)"), "{}", cluster.status());
    cluster.submit().finish().expect_error(1, &["job 1 of this run", "is still PENDING", "bam cancel"]);
    cluster.slurm.unset("hold");
    let run = cluster.run();
    cluster.wait("step 12", || run.steps("multi").len() > 12);
    cluster.submit().finish().expect_error(1, &["job 1 of this run", "is still RUNNING"]);
    let done = cluster.bam(["cancel", "runs/tiny"]).expect(0);
    assert!(done.stdout.contains("job 1 was told to stop") && done.stdout.contains("to go on later: cd "), "{done}");
    assert_eq!(cluster.wait_for_end(), "FAILED");
    assert_eq!(cluster.slurm.restarts(1), 0);
    assert!(!run.is_done("multi") && !run.checkpoints("multi").is_empty());
    assert!(cluster.output().contains("stopped at a checkpoint, cancelled"), "{}", cluster.output());
    assert!(cluster.status().contains(": cancelled"), "{}", cluster.status());
    let again = cluster.bam(["cancel", "runs/tiny"]).expect(0);
    assert!(again.stdout.contains("has ended already"), "{again}");
    // Submitted again, it goes on.
    cluster.submit().expect(0);
    wait("the second job's end", || cluster.slurm.has_ended(2));
    assert_eq!(cluster.slurm.state(2), "COMPLETED");
}

#[test]
fn a_waiting_job_is_taken_out_of_the_queue() {
    let cluster = Cluster::new(&recipe());
    cluster.slurm.set("hold", "");
    cluster.submit().expect(0);
    let done = cluster.bam(["cancel", "runs/tiny"]).expect(0);
    assert!(done.stdout.contains("out of the queue"), "{done}");
    assert_eq!(cluster.slurm.state(1), "CANCELLED");
    cluster.slurm.unset("hold");
    assert!(cluster.status().contains("CANCELLED"), "{}", cluster.status());
}

#[test]
fn what_cannot_run_is_not_submitted() {
    let cluster = Cluster::new(&recipe());
    cluster.assert_refused(cluster.submit().arg("-o").arg("train.multi.epoch=3"), 2, &["did you mean 'epochs'?"]);
    cluster.assert_refused(cluster.submit().arg("-o").arg("data.glue=elsewhere"), 3, &["elsewhere"]);
    let prologue = |line: &str| cluster.submit().arg("-o").arg(&format!("slurm.prologue=[\"{line}\"]"));
    for line in ["#SBATCH --time=5", "# SBATCH --time=5"] {
        cluster.assert_refused(prologue(line), 2, &["slurm.prologue[0]", "comes after the first command"]);
    }
    cluster.assert_refused(prologue("if true; then"), 2, &["no sound script", "slurm.prologue"]);
    cluster.assert_refused(prologue("cat <<END"), 2, &["no sound script", "here-document"]);
    cluster.assert_refused(
        cluster.submit().arg("-o").arg("slurm.extra=['# SBATCH --exclusive']"),
        2,
        &["slurm.extra[0]", "write the option alone"],
    );
    cluster.assert_refused(cluster.submit().arg("-o").arg("slurm.nodes=3"), 2, &["3 nodes have nothing to do"]);
    assert!(!cluster.slurm.was_asked());
    cluster.slurm.set("refuse-test", "allocation failure: Requested node configuration is not available\n");
    let words = ["sbatch --test-only failed", "Requested node configuration is not available"];
    cluster.assert_refused(cluster.submit(), 1, &words);
    cluster.slurm.unset("refuse-test");
    cluster.slurm.set("refuse-submit", "sbatch: error: Job violates accounting/QOS policy\n");
    cluster.submit().finish().expect_error(1, &["sbatch --parsable", "violates accounting/QOS policy"]);
    assert!(!cluster.run().at("slurm/job.json").exists());
    fs::create_dir(cluster.place.at("bin")).unwrap();
    symlink("/bin/bash", cluster.place.at("bin/bash")).unwrap();
    let nowhere = cluster.submit().env("PATH", cluster.place.at("bin")).env("BAM_MPIRUN", "/bin/true");
    nowhere.finish().expect_error(1, &["sbatch: No such file", "try on a login node"]);
}

#[test]
fn a_dry_run_shows_the_script_and_leaves_no_trace() {
    let cluster = Cluster::new(&recipe());
    let before = Snapshot::of(cluster.place.path());
    let words = ["submit", "recipe.yaml", "--dry-run", "-n", "4", "-o", "slurm.nodes=2", "-o", "slurm.time=1:30:00"];
    let done = cluster.bam(words).expect(0);
    before.assert_same(&Snapshot::of(cluster.place.path()));
    assert!(!cluster.slurm.was_asked());
    for line in ["#!/bin/bash", "#SBATCH --time=1:30:00", "#SBATCH --ntasks=4", "#SBATCH --ntasks-per-node=2"] {
        assert!(done.stdout.lines().any(|l| l == line), "{line}: {done}");
    }
}

#[test]
fn a_job_has_as_many_processes_as_tasks_unless_somebody_says_otherwise() {
    let mut recipe = recipe();
    recipe.cluster = "deadline: 60".into();
    let cluster = Cluster::new(&recipe);
    let processes = |bam: Bam| {
        let done = bam.env("SLURM_JOB_ID", "5").env("SLURM_NTASKS", "3").expect(0);
        let line = done.stdout.lines().find_map(|l| Some(l.split_once("processes ")?.1.split(',').next()?.to_owned()));
        line.unwrap_or_else(|| panic!("{done}"))
    };
    assert_eq!(processes(cluster.bam(["plan", "recipe.yaml"])), "3");
    assert_eq!(processes(cluster.bam(["plan", "recipe.yaml", "-n", "2"])), "2");
    assert_eq!(processes(cluster.bam(["plan", "recipe.yaml", "-o", "cluster.processes=1"])), "1");
    let script =
        cluster.bam(["submit", "recipe.yaml", "--dry-run", "-o", "slurm.nodes=2", "-o", "slurm.gpus_per_node=4"]);
    assert!(script.env("SLURM_NTASKS", "3").expect(0).stdout.contains("#SBATCH --ntasks=8"));
}

#[test]
fn status_works_without_slurm() {
    let cluster = Cluster::new(&recipe());
    let mut running = cluster.bam(["run", "recipe.yaml"]).start();
    let run = cluster.run();
    running.wait_until("step 12", || run.steps("multi").len() > 12);
    let without = || cluster.bam(["status", "runs/tiny"]).env("PATH", cluster.place.at("tmp")).expect(0).stdout;
    let status = without();
    assert!(status.contains("at work: bam, pid ") && status.contains(" of 300"), "{status}");
    running.signal(Signal::SIGTERM);
    running.finish().expect(75);
    let status = without();
    assert!(status.contains("to go on: the same 'bam run'") && !status.contains("at work"), "{status}");
    cluster.bam(["status", "runs/nothing"]).finish().expect_error(2, &["is not the directory of a run"]);
    cluster.bam(["cancel", "runs/tiny"]).finish().expect_error(2, &["slurm/job.json"]);
}
