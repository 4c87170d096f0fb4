//! The launcher and its control plane with a thousand and more ranks, all of which a [`crowd`](super::crowd) plays: how
//! soon it starts them, lets them in and hears that one is lost, and what it uses.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bam_tests::{Bam, Finished, write_encoder, write_program};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use super::crowd::{END, FINDINGS, unix_time};
use super::table::{Table, Target};

/// A silence of 15 s is one; then bam ends what still runs.
const SILENT_WITHIN: f64 = 17.0;
/// Two seconds are left to `mpirun` to say why.
const GONE_WITHIN: f64 = 4.0;
const USUAL_DESCRIPTORS: u64 = 1024;
const LONGEST: Duration = Duration::from_secs(240);
/// Steps of the stage: rows / batch × epochs.
const EPOCHS: usize = 100;
const STEPS_AN_EPOCH: usize = 100;

/// From here on, this process and what it starts may open as few files as most shells allow.
pub fn limit_descriptors() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(USUAL_DESCRIPTORS), most).unwrap();
}

/// Measures with each number of ranks.
pub fn measure(table: &mut Table, sizes: &[usize]) {
    for &ranks in sizes {
        table.part(&format!("The control plane with {ranks} ranks on this machine"));
        let (run, end) = run(ranks, "finish", 0);
        let number = |name: &str| run["multi"][name].as_f64().unwrap();
        let target = |limit| if ranks <= 1024 { Target::AtMost(limit) } else { Target::None };
        table.row(
            "from bam's start to its ranks'",
            run["prepare"]["begun_at"].as_f64().unwrap() - end.begun,
            "s",
            Target::None,
        );
        table.row("all have joined after", number("joined_s"), "s", target(2.0));
        table.row("processor time of bam, heartbeats alone", number("cpu_s_a_second"), "s a second", target(0.1));
        table.row("threads of bam", number("threads"), "", Target::None);
        table.row("its file descriptors", number("file_descriptors"), "", Target::None);
        table.row("its memory at most", number("peak_mib"), "MiB", Target::None);
        table.row("steps that it takes in", number("steps_a_second"), "a second", Target::AtLeast(1000.0));
        for (how, within) in [("silent", SILENT_WITHIN), ("gone", GONE_WITHIN)] {
            let (run, end) = self::run(ranks, how, 1);
            let guilty = format!("rank {} ", run["multi"]["guilty"]);
            assert!(end.done.stderr.contains(&guilty), "{guilty}is not named: {}", end.done);
            let seconds = end.ended - run["multi"]["trouble_at"].as_f64().unwrap();
            table.row(&format!("bam has ended after one was {how}"), seconds, "s", Target::AtMost(within));
        }
    }
}

struct End {
    done: Finished,
    begun: f64,
    ended: f64,
}

/// One run whose ranks are all played; what they found.
fn run(ranks: usize, end: &str, code: i32) -> (Value, End) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    write_encoder(&at("encoder"));
    write_task(&at("weather.tsv"), ranks);
    fs::write(at("recipe.yaml"), recipe(ranks)).unwrap();
    let own = std::env::current_exe().unwrap();
    write_program(&at("mpirun"), &format!("#!/bin/sh\nexec '{}' crowd \"$@\"\n", own.display()));
    let bam = Bam::new(directory.path(), ["run", "recipe.yaml"]).env("BAM_MPIRUN", at("mpirun"));
    let bam = bam.env(END, end).env(FINDINGS, at("findings.json")).within(LONGEST);
    let begun = unix_time();
    let done = bam.expect(code);
    let ended = unix_time();
    let log = fs::read_to_string(at("runs/crowd/logs/multi.log")).unwrap();
    assert!(!log.contains("refused"), "a rank that belongs here was refused: {log}");
    let findings = serde_json::from_slice(&fs::read(at("findings.json")).unwrap()).unwrap();
    (findings, End { done, begun, ended })
}

fn write_task(path: &Path, batch: usize) {
    let rows = "it rains and rains\tyes\nit is dry\tno\n".repeat(batch * STEPS_AN_EPOCH / 2);
    fs::write(path, rows).unwrap();
    fs::write(path.with_extension("dev.tsv"), "it rains\tyes\nit is dry\tno\n").unwrap();
}

fn recipe(ranks: usize) -> String {
    format!(
        "name: crowd\nmode: multi\nmodel: {{ path: encoder, max_length: 32 }}\n\
         data:\n  tasks:\n    - {{ name: weather, train: weather.tsv, dev: weather.dev.tsv, header: false, text: 0, \
         label: 1, type: classification, labels: [no, yes] }}\n\
         train: {{ multi: {{ epochs: {EPOCHS}, batch_size: {ranks} }} }}\n\
         checkpoint: {{ every_steps: 100000 }}\n\
         cluster: {{ processes: {ranks}, max_restarts: 0 }}\n"
    )
}
