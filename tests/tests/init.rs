//! `bam init`: from flags, and from what a person types at a terminal, to a recipe that `bam plan` takes.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use bam_tests::{Finished, Snapshot, Workplace, program, write_program};
use nix::pty::openpty;

fn init(place: &Workplace, more: &[&str]) -> Finished {
    more.iter().fold(place.bam(["init"]), |bam, argument| bam.arg(argument)).finish()
}

#[test]
fn flags_make_a_recipe_that_plan_takes() {
    let place = Workplace::new();
    let flags = ["first.yaml", "--encoder", "encoder", "--task", "cola,stsb", "--own", "own/warmth-train.tsv", "--own"];
    let done = init(&place, &[&flags[..], &["own/mood.tsv", "--mode", "multi", "-n", "1"]].concat()).expect(0);
    assert!(done.stdout.starts_with("first.yaml is written. Next:\n  bam plan first.yaml\n"), "{done}");
    let text = fs::read_to_string(place.at("first.yaml")).unwrap();
    for part in [
        "name: first",
        "mode: multi ",
        "max_length: 64 ",
        "name: warmth",
        "text: text",
        "label: degree",
        "header: false",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let plan = place.bam(["plan", "first.yaml"]).expect(0);
    for task in ["cola", "stsb", "warmth", "mood"] {
        assert!(plan.stdout.contains(task), "{plan}");
    }
    // Not over what is there.
    let before = Snapshot::of(place.path());
    init(&place, &["first.yaml"]).expect_error(2, &["first.yaml is there already"]);
    before.assert_same(&Snapshot::of(place.path()));
}

#[test]
fn what_is_lacking_is_said_and_answers_that_make_no_sense_write_nothing() {
    let place = Workplace::new();
    let done = place.bam(["init", "new.yaml", "--glue", "data"]).env("HF_HOME", place.at("hf")).expect(0);
    let steps = "Next:\n  bam fetch model bert-base-uncased\n  bam fetch glue --dir data --task cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte\n  bam plan new.yaml\n  bam run new.yaml\n";
    assert!(done.stdout.ends_with(steps), "{done}");
    place.write("words.tsv", "only words\nand more words\n");
    for (flags, parts) in [
        (&["--task", "colla"][..], vec!["GLUE has no task 'colla'"]),
        (&["--mode", "mutli"], vec!["--mode", "multi"]),
        (&["--own", "words.tsv"], vec!["words.tsv", "a text and a label"]),
        (&["--own", "absent.tsv"], vec!["absent.tsv"]),
        (&["-n", "0"], vec!["cluster.processes", "at least 1"]),
        (&["--name", "a b"], vec!["name", "letters, digits"]),
        (&["--time", "tomorrow"], vec!["slurm.time"]),
    ] {
        let before = Snapshot::of(place.path());
        init(&place, &[&["other.yaml"], flags].concat()).expect_error(2, &parts);
        before.assert_same(&Snapshot::of(place.path()));
    }
}

#[test]
fn a_person_at_a_terminal_is_asked() {
    let place = Workplace::new();
    let programs = place.at("bin");
    fs::create_dir(&programs).unwrap();
    write_program(&programs.join("sbatch"), "#!/bin/sh\n");
    let pty = openpty(None, None).unwrap();
    let mut keyboard = File::from(pty.master.try_clone().unwrap());
    let terminal = || Stdio::from(File::from(pty.slave.try_clone().unwrap()));
    let mut bam = Command::new(program("bam"))
        .args(["init", "asked.yaml"])
        .current_dir(place.path())
        .env("PATH", &programs)
        .env("HF_HOME", place.at("hf"))
        .stdin(terminal())
        .stdout(terminal())
        .stderr(terminal())
        .spawn()
        .unwrap();
    drop(pty.slave);
    // Encoder, own files, GLUE tasks, directory (Enter), mode, processes (a slip first), partition, time.
    keyboard.write_all(b"encoder\nown/mood.tsv\ncola, rte\n\nmulti\nmany\n3\ngpu\n1:00:00\n").unwrap();
    let begun = std::time::Instant::now();
    while bam.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(60) {
            bam.kill().unwrap();
            panic!("bam init does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut screen = vec![0; 1 << 14];
    let n = File::from(pty.master).read(&mut screen).unwrap();
    let screen = String::from_utf8_lossy(&screen[..n]).into_owned();
    assert!(bam.wait().unwrap().success(), "{screen}");
    for part in ["encoder: a directory", "[bert-base-uncased]", "processes [2]", "'many': ", "bam submit asked.yaml"] {
        assert!(screen.contains(part), "{part} is not in {screen}");
    }
    let text = fs::read_to_string(place.at("asked.yaml")).unwrap();
    for part in ["mode: multi ", "- rte", "processes: 3 ", "partition: gpu", "time: \"1:00:00\""] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    place.bam(["plan", "asked.yaml"]).expect(0);
}
