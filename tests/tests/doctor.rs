//! `bam doctor` says what a machine lacks, and what to do about it.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use bam_tests::{FakeSlurm, Workplace, write_program};
use serde_json::Value;

#[test]
fn a_machine_that_is_fit_has_no_problem() {
    let place = Workplace::new();
    let done = place.bam(["doctor"]).expect(0);
    for words in
        ["2 met (2 on ", "an empty collective takes ", "ranks of one host share its memory", "GFLOP/s", "\n0 problems"]
    {
        assert!(done.stdout.contains(words), "'{words}' is not in {done}");
    }
    // It has looked where runs would be, and left nothing there.
    assert!(!place.at("runs").exists());
    let done = place.bam(["doctor", "--json", "-n", "1"]).expect(0);
    let findings: Vec<Value> = serde_json::from_str(&done.stdout).unwrap();
    let about: Vec<&str> = findings.iter().map(|finding| finding["about"].as_str().unwrap()).collect();
    for kind in ["programs", "ranks", "this machine", "files", "Slurm"] {
        assert!(about.contains(&kind), "{about:?}");
    }
    assert!(findings.iter().all(|finding| finding["verdict"] != "problem" && finding["said"] != ""), "{done}");
}

#[test]
fn programs_that_are_not_there_or_do_not_start_are_problems() {
    let place = Workplace::new();
    let done = place.bam(["doctor"]).env("BAM_MPIRUN", "/nowhere/mpirun").expect(1);
    assert!(done.stdout.contains("PROBLEM  /nowhere/mpirun is not an executable program"), "{done}");
    assert!(done.stdout.contains("→ install Open MPI"), "{done}");
    // The rest was looked at all the same.
    assert!(done.stdout.contains("locks keep a second start out of a run"), "{done}");
    let broken = place.at("broken-worker");
    write_program(&broken, "#!/bin/sh\necho 'error while loading shared libraries: libfoo.so.7' >&2\nexit 127\n");
    let done = place.bam(["doctor"]).env("BAM_WORKER", &broken).expect(1);
    assert!(done.stdout.contains("does not start: error while loading shared libraries: libfoo.so.7"), "{done}");
}

#[test]
fn ranks_that_do_not_find_one_another_are_a_problem() {
    let place = Workplace::new();
    let mpirun = place.at("another-mpirun");
    // What an mpirun of another MPI amounts to: processes that know nothing of one another.
    let text =
        "#!/bin/sh\nfor word; do program=$last; last=$word; done\n\"$program\" \"$last\"; \"$program\" \"$last\"\n";
    write_program(&mpirun, text);
    let done = place.bam(["doctor"]).env("BAM_MPIRUN", &mpirun).expect(1);
    assert!(done.stdout.contains("2 ranks were started, of which 1 found one another"), "{done}");
    assert!(done.stdout.contains("→ what starts the ranks is of another MPI"), "{done}");
}

#[test]
fn a_recipe_and_the_command_line_are_read_as_by_run() {
    let place = Workplace::new();
    place.bam(["doctor", "no.yaml"]).finish().expect_error(2, &["no.yaml"]);
    place.recipe("recipe.yaml", &bam_tests::Recipe::of(&["cola"]));
    let done =
        place.bam(["doctor", "recipe.yaml", "-n", "1", "-o", "cluster.threads=1", "--dir", "/proc/runs"]).expect(1);
    assert!(done.stdout.contains("1 met"), "{done}");
    assert!(done.stdout.contains("PROBLEM  nothing can be written to /proc"), "{done}");
}

#[test]
fn a_controller_that_is_away_is_a_problem() {
    let place = Workplace::new();
    let slurm = FakeSlurm::new(&place.at("slurm"));
    let sinfo = "#!/bin/sh\ncase $1 in --version) echo slurm 23.11.4;; *) echo 'Unable to contact slurm controller' >&2; exit 1;; esac\n";
    write_program(&place.at("slurm/sinfo"), sinfo);
    let done = place.bam(["doctor", "-n", "1"]).env("PATH", slurm.path()).expect(1);
    assert!(done.stdout.contains("slurm 23.11.4"), "{done}");
    assert!(done.stdout.contains("sinfo does not answer: Unable to contact"), "{done}");
}
