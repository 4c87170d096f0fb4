//! Batch jobs: a recipe is submitted, stopped by the scheduler and put into the queue again, and ends with the weights of an
//! undisturbed run. Against a Slurm made of shell scripts; `slurm_lab.rs` has the real one.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use bam_tests::{Bam, FakeSlurm, Recipe, Run, Snapshot, Workplace, program, repository};
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
        self.bam(["submit", "recipe.yaml", "--one-job"])
    }

    fn submit_chain(&self) -> Bam {
        self.bam(["submit", "recipe.yaml"])
    }

    /// Waits until jobs and elements have ended; returns their states.
    fn wait_for_ends<const N: usize>(&self, jobs: [&str; N]) -> [String; N] {
        wait("the jobs' ends", || jobs.iter().all(|job| self.slurm.has_ended(job)));
        jobs.map(|job| self.slurm.state(job))
    }

    fn output_of(&self, job: &str) -> String {
        fs::read_to_string(self.run().at(format!("logs/slurm-{job}.out"))).unwrap_or_default()
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

/// Two teachers at the same time, and what follows from them.
fn distillation() -> Recipe {
    let mut recipe = Recipe::of(&["cola", "warmth"]);
    recipe.cluster = "processes: 2, single_processes: 1, deadline: 60, max_restarts: 0".into();
    recipe
}

#[test]
fn a_chain_of_jobs_ends_with_the_weights_of_one_run() {
    let mut recipe = distillation();
    recipe.single = "epochs: 20, batch_size: 16, learning_rate: 0.002".into();
    recipe.checkpoint = "every_steps: 10, keep: 2".into();
    let cluster = Cluster::new(&recipe);
    let whole = Run::new(cluster.place.at("runs/whole"));
    cluster.bam(["run", "recipe.yaml", "--run-dir", "runs/whole"]).expect(0);
    let done =
        cluster.submit_chain().arg("-o").arg("slurm.samples_per_second=0.1").arg("-o").arg("slurm.time=5").expect(0);
    assert!(done.stderr.contains("note: 'teacher' trains for about "), "{done}");
    for part in ["5 jobs submitted", "1  prepare", "2  teacher  array of 2", "5  report"] {
        assert!(done.stdout.contains(part), "{part}: {done}");
    }
    let run = cluster.run();
    wait("both teachers", || ["teacher-cola", "teacher-warmth"].iter().all(|s| run.steps(s).len() > 12));
    let status = cluster.status();
    for part in [
        "job 1 (prepare): ended: COMPLETED",
        "job 2_0 (teacher-cola): running on n1",
        "job 2_1 (teacher-warmth): running on n1",
        "job 3 (logits): queued",
        "at work: bam, pid ",
    ] {
        assert!(status.contains(part), "{part}: {status}");
    }
    cluster.submit_chain().finish().expect_error(1, &["job 2 of this run", "is still RUNNING"]);
    // One of them has to make room, and the other one does not hear of it.
    cluster.slurm.signal("2_1", Signal::SIGUSR1);
    assert_eq!(cluster.wait_for_ends(["1", "2_0", "2_1", "3", "4", "5"]), ["COMPLETED"; 6], "{}", cluster.status());
    assert_eq!(["2_0", "2_1"].map(|job| cluster.slurm.restarts(job)), [0, 1]);
    assert!(cluster.output_of("2_1").contains("job 2_1, start 1, "), "{}", cluster.output_of("2_1"));
    for stage in ["teacher-cola", "teacher-warmth", "student"] {
        assert_eq!(run.weights_sha256(stage), whole.weights_sha256(stage), "{stage}");
        assert_eq!(run.receipt(stage), whole.receipt(stage), "{stage}");
    }
    assert!(cluster.output_of("5").contains("results on dev"), "{}", cluster.output_of("5"));
    assert!(cluster.status().contains("done: bam report"), "{}", cluster.status());
    let nothing = cluster.submit_chain().expect(0);
    assert!(nothing.stdout.contains("nothing to submit") && cluster.slurm.jobs() == 5, "{nothing}");
}

#[test]
fn a_teacher_that_fails_leaves_no_job_waiting_and_what_is_missing_is_submitted_again() {
    let mut recipe = distillation();
    let cluster = Cluster::new(&recipe);
    recipe.slurm = cluster.place.spoil("teacher-warmth");
    cluster.place.recipe("recipe.yaml", &recipe);
    cluster.submit_chain().expect(0);
    let states = cluster.wait_for_ends(["1", "2_0", "2_1", "3", "4", "5"]);
    assert_eq!(states, ["COMPLETED", "COMPLETED", "FAILED", "CANCELLED", "CANCELLED", "FAILED"]);
    let report = cluster.output_of("5");
    for part in ["results on dev", "not complete: teacher-warmth, logits, student"] {
        assert!(report.contains(part), "{part}: {report}");
    }
    let status = cluster.status();
    for part in [
        "job 2_1 (teacher-warmth): ended: FAILED, exit code 1",
        "job 3 (logits): ended: CANCELLED",
        "job 2_1 stopped ",
        "stage 'teacher-warmth': ",
        "to go on: cd ",
    ] {
        assert!(status.contains(part), "{part}: {status}");
    }
    fs::remove_file(cluster.place.at("spoilt")).unwrap();
    let again = cluster.submit_chain().expect(0);
    for part in ["4 jobs submitted", "6  teacher  array of 1", "7  logits"] {
        assert!(again.stdout.contains(part), "{part}: {again}");
    }
    assert_eq!(cluster.wait_for_ends(["6_1", "7", "8", "9"]), ["COMPLETED"; 4], "{}", cluster.status());
    assert_eq!(cluster.run().json("report.json")["missing"].as_array().unwrap().len(), 0);
}

#[test]
fn a_trial_that_fails_keeps_no_other_waiting() {
    let mut recipe = Recipe::of(&["cola"]);
    recipe.mode = "multi".into();
    recipe.trials = 3;
    recipe.cluster = "processes: 1, deadline: 60, max_restarts: 0".into();
    let cluster = Cluster::new(&recipe);
    recipe.slurm = cluster.place.spoil("multi@2") + ", at_once: 1";
    cluster.place.recipe("recipe.yaml", &recipe);
    cluster.submit_chain().expect(0);
    let states = cluster.wait_for_ends(["1", "2_0", "2_1", "2_2", "3"]);
    assert_eq!(states, ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED", "FAILED"]);
    let report = cluster.output_of("3");
    for part in ["not complete: multi@2", "medians and [lowest–highest]"] {
        assert!(report.contains(part), "{part}: {report}");
    }
}

#[test]
fn a_chain_is_cancelled_as_a_whole() {
    let mut recipe = distillation();
    recipe.single = "epochs: 200, batch_size: 16, learning_rate: 0.002".into();
    let cluster = Cluster::new(&recipe);
    cluster.submit_chain().expect(0);
    let run = cluster.run();
    wait("both teachers", || ["teacher-cola", "teacher-warmth"].iter().all(|s| run.steps(s).len() > 12));
    let done = cluster.bam(["cancel", "runs/tiny"]).expect(0);
    for part in ["job 5 was waiting and is out of the queue", "job 2 was told to stop", "to go on later: cd "] {
        assert!(done.stdout.contains(part), "{part}: {done}");
    }
    let states = cluster.wait_for_ends(["1", "2_0", "2_1", "3", "4", "5"]);
    assert_eq!(states, ["COMPLETED", "FAILED", "FAILED", "CANCELLED", "CANCELLED", "CANCELLED"]);
    assert_eq!(["2_0", "2_1"].map(|job| cluster.slurm.restarts(job)), [0, 0]);
    let status = cluster.status();
    assert!(status.matches(": cancelled").count() == 2 && status.contains("to go on: cd "), "{status}");
}

#[test]
fn a_chain_that_the_queue_has_no_room_for_is_taken_back() {
    let cluster = Cluster::new(&distillation());
    cluster.slurm.set("hold", "");
    cluster.slurm.set("quota", "2");
    cluster.submit_chain().finish().expect_error(1, &["sbatch --parsable --dependency=afterok:2", "SubmitJobLimit"]);
    assert_eq!(cluster.wait_for_ends(["1", "2_0", "2_1"]), ["CANCELLED"; 3]);
    assert!(!cluster.run().at("slurm/jobs.json").exists());
    cluster.slurm.unset("hold");
    cluster.slurm.unset("quota");
    cluster.submit_chain().expect(0);
}

#[test]
fn a_controller_that_is_away_and_a_number_of_somebody_elses_are_told_apart() {
    let cluster = Cluster::new(&recipe());
    cluster.slurm.set("hold", "");
    cluster.submit().expect(0);
    cluster.slurm.set("away", "");
    let status = cluster.status();
    assert!(status.contains("Slurm cannot be asked (scontrol") && status.contains("is not known here"), "{status}");
    cluster.submit().finish().expect_error(1, &["Unable to contact slurm controller"]);
    cluster.slurm.unset("away");
    // The numbers have begun again from 1.
    fs::write(cluster.place.at("slurm/1/command"), "/home/other/job.sh\n").unwrap();
    assert!(cluster.status().contains("ended, and Slurm has forgotten it"), "{}", cluster.status());
    cluster.bam(["cancel", "runs/tiny"]).expect(0);
    assert_eq!(cluster.slurm.state(1), "PENDING");
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
    for part in ["FAILED, exit code 1", "to go on: cd ", "submit recipe.yaml --one-job"] {
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
            "{{\"event\":\"start\",\"time\":\"t\",\"job\":\"1\",\"restart\":{restart},\"host\":\"n1\",\
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
    assert!(!cluster.run().at("slurm/jobs.json").exists());
    fs::create_dir(cluster.place.at("bin")).unwrap();
    symlink("/bin/bash", cluster.place.at("bin/bash")).unwrap();
    let nowhere = cluster.submit().env("PATH", cluster.place.at("bin")).env("BAM_MPIRUN", "/bin/true");
    nowhere.finish().expect_error(1, &["sbatch: No such file", "try on a login node"]);
}

#[test]
fn a_dry_run_shows_the_script_and_leaves_no_trace() {
    let cluster = Cluster::new(&recipe());
    let before = Snapshot::of(cluster.place.path());
    let words = [
        "submit",
        "recipe.yaml",
        "--one-job",
        "--dry-run",
        "-n",
        "4",
        "-o",
        "slurm.nodes=2",
        "-o",
        "slurm.time=1:30:00",
    ];
    let done = cluster.bam(words).expect(0);
    before.assert_same(&Snapshot::of(cluster.place.path()));
    assert!(!cluster.slurm.was_asked());
    for line in ["#!/bin/bash", "#SBATCH --time=1:30:00", "#SBATCH --ntasks=4", "#SBATCH --ntasks-per-node=2"] {
        assert!(done.stdout.lines().any(|l| l == line), "{line}: {done}");
    }
    let chain = cluster.submit_chain().arg("--dry-run").expect(0);
    before.assert_same(&Snapshot::of(cluster.place.path()));
    for part in ["slurm/prepare.sh\n", "slurm/multi.sh, --dependency=afterok:PREPARE\n", "afterany:PREPARE:MULTI\n"] {
        assert!(chain.stdout.contains(part), "{part}: {chain}");
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
    let script = cluster.bam([
        "submit",
        "recipe.yaml",
        "--one-job",
        "--dry-run",
        "-o",
        "slurm.nodes=2",
        "-o",
        "slurm.gpus_per_node=4",
    ]);
    assert!(script.env("SLURM_NTASKS", "3").expect(0).stdout.contains("#SBATCH --ntasks=8"));
}

#[test]
fn the_templates_do_what_they_say() {
    let mut recipe = distillation();
    recipe.single = "epochs: 20, batch_size: 16, learning_rate: 0.002".into();
    let cluster = Cluster::new(&recipe);
    let bam = program("bam");
    let path = format!("{}:{}", bam.parent().unwrap().display(), cluster.slurm.path());
    let sbatch = |options: &[&str], template: &str, words: &[&str]| {
        let mut command = Command::new(cluster.place.at("slurm/sbatch"));
        command.args(options).arg(repository().join("slurm/templates").join(template)).arg("recipe.yaml").args(words);
        command.current_dir(cluster.place.path()).env("PATH", &path).env("OMP_NUM_THREADS", "1");
        command.env("BAM_IMAGE", "IN_A_CONTAINER=yes").env("BAM_CONTAINER", "env");
        let said = command.env("TMPDIR", cluster.place.at("tmp")).output().unwrap();
        assert!(said.status.success(), "{said:?}");
    };
    let run = cluster.run();
    cluster.bam(["run", "recipe.yaml", "--stages", "prepare"]).expect(0);
    sbatch(&["--array=0,1"], "array.sh", &["teacher-cola", "teacher-warmth"]);
    wait("both teachers", || ["teacher-cola", "teacher-warmth"].iter().all(|s| run.steps(s).len() > 12));
    cluster.slurm.signal("1_1", Signal::SIGUSR1);
    assert_eq!(cluster.wait_for_ends(["1_0", "1_1"]), ["COMPLETED"; 2]);
    assert_eq!(["1_0", "1_1"].map(|job| cluster.slurm.restarts(job)), [0, 1]);
    for (job, template) in [("2", "one-node.sh"), ("3", "many-nodes.sh"), ("4", "container.sh")] {
        sbatch(&[], template, &[]);
        assert_eq!(cluster.wait_for_ends([job]), ["COMPLETED"], "{template}");
        let output = fs::read_to_string(cluster.place.at(format!("bam-{job}.out"))).unwrap();
        assert!(output.contains("results on dev"), "{template}: {output}");
    }
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
    let line = status.lines().find(|line| line.contains("running")).unwrap_or_default();
    assert!(line.trim_end().ends_with(" s") || line.trim_end().ends_with(" min"), "{status}");
    running.signal(Signal::SIGTERM);
    running.finish().expect(75);
    let status = without();
    assert!(status.contains("to go on: the same 'bam run'") && !status.contains("at work"), "{status}");
    cluster.bam(["status", "runs/nothing"]).finish().expect_error(2, &["is not the directory of a run"]);
    cluster.bam(["cancel", "runs/tiny"]).finish().expect_error(2, &["slurm/jobs.json"]);
}
