//! Drives the real `bam` with a stand-in for `mpirun` and ranks that speak the protocol and compute nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rank;
mod sandbox;

use std::fs;
use std::time::Duration;

use sandbox::{Sandbox, wait_for};

#[test]
fn a_misspelt_key_is_a_usage_error_with_a_hint() {
    let sandbox = Sandbox::new();
    let output = sandbox.bam(&["run", "recipe.yaml", "-o", "train.multi.epoch=3"]);
    assert_eq!(output.code, 2, "{}", output.stderr);
    assert!(
        output.stderr.contains("did you mean 'epochs'?") && !output.stderr.contains("panicked"),
        "{}",
        output.stderr
    );
    assert!(!sandbox.path("runs").exists());
}

#[test]
fn a_missing_data_file_is_bad_data_and_leaves_no_trace() {
    let sandbox = Sandbox::new();
    fs::remove_file(sandbox.path("sports.tsv")).unwrap();
    for command in ["run", "plan"] {
        let output = sandbox.bam(&[command, "recipe.yaml"]);
        assert_eq!(output.code, 3, "{}", output.stderr);
        assert!(output.stderr.contains("sports.tsv") && output.stderr.contains("task 'sports'"), "{}", output.stderr);
    }
    assert!(!sandbox.path("runs").exists());
}

#[test]
fn the_plan_shows_stages_draws_and_schedules() {
    let output = Sandbox::new().bam(&["plan", "recipe.yaml", "-n", "2"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    for part in [
        "teacher-weather",
        "logits",
        "student",
        "warmed up",
        "λ, the weight of the gold labels",
        "processes 2",
        "checkpoint",
    ] {
        assert!(output.stdout.contains(part), "{part}: {}", output.stdout);
    }
}

#[test]
fn missing_programs_are_named_before_anything_is_written() {
    let sandbox = Sandbox::new();
    let output = sandbox.bam_with(&[("BAM_MPIRUN", "/nowhere/mpirun")], &["run", "recipe.yaml"]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("BAM_MPIRUN"), "{}", output.stderr);
    let output = sandbox.bam_with(&[("BAM_WORKER", "/nowhere/bam-worker")], &["run", "recipe.yaml"]);
    assert!(output.stderr.contains("BAM_WORKER"), "{}", output.stderr);
    let output = sandbox.bam(&["run", "recipe.yaml", "-o", "cluster.launcher=srun"]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("does not run in a job of Slurm"), "{}", output.stderr);
    assert!(!sandbox.path("runs").exists());
}

#[test]
fn a_low_limit_on_file_descriptors_is_raised_and_a_hard_one_is_refused_at_once() {
    let sandbox = Sandbox::new();
    let recipe = sandbox.path("recipe.yaml");
    let batches = fs::read_to_string(&recipe).unwrap().replace("batch_size: 2 ", "batch_size: 12 ");
    fs::write(&recipe, batches.replace("batch_size: 4 ", "batch_size: 12 ")).unwrap();
    let output = sandbox.bam_under("ulimit -n 150", &["run", "recipe.yaml", "-n", "12"]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert!(output.stderr.contains("12 processes") && output.stderr.contains("allows it 150"), "{}", output.stderr);
    assert!(!sandbox.path("runs").exists());
    // Too few even for one stage's connections.
    let output = sandbox.bam_under("ulimit -Sn 20", &["run", "recipe.yaml", "-n", "12"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
}

#[test]
fn a_whole_run_ends_with_a_table_and_is_not_done_twice() {
    let sandbox = Sandbox::new();
    let output = sandbox.bam(&["run", "recipe.yaml", "-n", "2"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stdout.contains("Single→Multi") && output.stdout.contains("+10.0"), "{}", output.stdout);
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(sandbox.path("runs/toy/report.json")).unwrap()).unwrap();
    assert_eq!(report["tasks"]["weather"]["accuracy"]["single-to-multi"], 0.8);
    assert!(!sandbox.path("runs/toy/stages/student/control.json").exists());
    let log = fs::read_to_string(sandbox.path("runs/toy/logs/student.log")).unwrap();
    assert!(log.contains("rank 1 | fake rank 1 of student"), "{log}");

    let again = sandbox.bam(&["run", "recipe.yaml", "-n", "2"]);
    assert_eq!(again.code, 0);
    assert_eq!(again.stderr.matches(": done before").count(), 5, "{}", again.stderr);
    assert_eq!(again.stdout, output.stdout);
    assert_eq!(sandbox.bam(&["report", "runs/toy"]).stdout, output.stdout);

    let other = sandbox.bam(&["run", "recipe.yaml", "-o", "seed=2"]);
    assert_eq!(other.code, 2);
    assert!(other.stderr.contains("seed: 1 there, 2 here"), "{}", other.stderr);
}

#[test]
fn changed_data_and_lost_products_are_noticed() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.bam(&["run", "recipe.yaml"]).code, 0);
    fs::remove_file(sandbox.path("runs/toy/data/sports-dev.h5")).unwrap();
    let output = sandbox.bam(&["run", "recipe.yaml"]);
    assert_eq!(output.code, 3);
    assert!(output.stderr.contains("sports-dev.h5 is missing"), "{}", output.stderr);
    let plan = fs::read(sandbox.path("runs/toy/plan.json")).unwrap();
    fs::write(sandbox.path("sports.tsv"), "a goal\tyes\na miss\tno\n".repeat(9)).unwrap();
    let output = sandbox.bam(&["run", "recipe.yaml"]);
    assert_eq!(output.code, 3);
    assert!(output.stderr.contains("source sports: was"), "{}", output.stderr);
    assert_eq!(fs::read(sandbox.path("runs/toy/plan.json")).unwrap(), plan);
}

#[test]
fn an_mpirun_that_ends_at_once_is_quoted() {
    let sandbox = Sandbox::new();
    let mpirun = sandbox.script("broken-mpirun", "echo 'There are not enough slots available' >&2; exit 1");
    let output = sandbox.bam_with(&[("BAM_MPIRUN", &mpirun)], &["run", "recipe.yaml"]);
    assert_eq!(output.code, 1);
    for part in ["stage 'prepare': mpirun ended with status 1 before all ranks", "not enough slots", "prepare.log"] {
        assert!(output.stderr.contains(part), "{}", output.stderr);
    }
}

#[test]
fn a_ranks_own_failure_decides_message_and_exit_code() {
    let sandbox = Sandbox::new();
    let output = sandbox.bam_with(&[("FAKE_FAILURE", "student")], &["run", "recipe.yaml", "-n", "2"]);
    assert_eq!(output.code, 3, "{}", output.stderr);
    assert!(output.stderr.contains("stage 'student': rank 1 ("), "{}", output.stderr);
    assert!(output.stderr.contains("the logits are damaged"), "{}", output.stderr);
}

#[test]
fn ctrl_c_stops_at_a_checkpoint_and_the_same_command_goes_on() {
    let sandbox = Sandbox::new();
    let bam = sandbox.start(&[("FAKE_STEP_MS", "100")], &["run", "recipe.yaml", "-n", "2"]);
    wait_for(|| {
        fs::read_to_string(sandbox.path("runs/toy/logs/teacher-weather.log")).is_ok_and(|l| l.contains("step 1"))
    });
    let second = sandbox.bam(&["run", "recipe.yaml"]);
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains(&format!("pid {} on ", bam.id())), "{}", second.stderr);
    // As `timeout` does it; one request all the same.
    bam.interrupt();
    bam.interrupt();
    let output = bam.output(Duration::from_secs(20));
    assert_eq!(output.code, 75, "{}", output.stderr);
    assert!(output.stderr.contains("run the same command to go on"), "{}", output.stderr);
    let output = sandbox.bam(&["run", "recipe.yaml", "-n", "2"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stderr.contains("teacher-weather: resumed at step "), "{}", output.stderr);
}

#[test]
fn a_second_ctrl_c_kills() {
    let sandbox = Sandbox::new();
    let bam = sandbox.start(&[("FAKE_DEAF", "1"), ("FAKE_STEP_MS", "100")], &["run", "recipe.yaml"]);
    wait_for(|| {
        fs::read_to_string(sandbox.path("runs/toy/logs/teacher-weather.log")).is_ok_and(|l| l.contains("step 1"))
    });
    bam.interrupt();
    std::thread::sleep(Duration::from_secs(1));
    bam.interrupt();
    let output = bam.output(Duration::from_secs(10));
    assert_eq!(output.code, 130, "{}", output.stderr);
    assert!(!sandbox.path("runs/toy/stages/student/control.json").exists());
}
