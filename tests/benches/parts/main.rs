//! Speed of the parts around the training against their targets: how soon a run is planned and started, tokenising,
//! files, and the control plane with a thousand ranks. `make bench` runs it, after the main job; `cargo bench -p
//! bam-tests --bench parts -- control` one part alone.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up has failed: there is nobody to tell")]

mod control;
mod crowd;
mod files;
mod plan;
mod table;
mod tokens;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use bam_tests::repository;
use table::Table;

/// Numbers of ranks that are played.
const CROWDS: [usize; 2] = [1024, 4096];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == "crowd") {
        crowd::play(&arguments);
    }
    let parts: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| *p == part);
    let mut table = Table::default();
    if wanted("plan") {
        plan::measure(&mut table);
    }
    if wanted("tokens") {
        tokens::measure(&mut table);
    }
    if wanted("files") {
        files::measure(&mut table);
    }
    if wanted("control") {
        control::limit_descriptors();
        control::measure(&mut table, &CROWDS);
    }
    let missed = table.finish(&repository().join("target/bench/parts.json"));
    ExitCode::from(u8::from(missed > 0))
}

/// GLUE's files: where `BAM_TEST_GLUE` says, or beside the repository.
fn glue() -> Option<PathBuf> {
    let beside = || repository().join("../shared/data/glue");
    let path = env::var_os("BAM_TEST_GLUE").map_or_else(beside, PathBuf::from);
    path.join("QQP/train.tsv").is_file().then_some(path)
}
