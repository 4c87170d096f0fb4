//! The results of a run: collected from its stages' scores, shown as a table, written as JSON.

mod comparison;
mod layout;
mod predictions;
mod published;
mod results;
mod statistics;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use bam_cluster::config::nearest;

pub use comparison::{Finished, render as render_comparison, tests as render_tests};
pub use layout::plain_table;
pub use results::Results;

/// A directory that holds no run.
#[derive(Debug, thiserror::Error)]
#[error("{directory} is not the directory of a run: it has no {missing}\n  {}", instead(.directory))]
pub struct NotARun {
    /// As given.
    pub directory: PathBuf,
    /// What was looked for.
    pub missing: &'static str,
}

/// What to give instead.
fn instead(directory: &Path) -> String {
    if directory.is_file() {
        return "this is a file: give the directory that 'bam run' made, for example runs/demo".to_owned();
    }
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let beside = directory.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten().flatten();
    let runs = beside.filter(|entry| entry.path().join("plan.json").exists());
    let runs: Vec<String> = runs.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    match nearest(&name, runs.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {}?", directory.with_file_name(near).display()),
        None => "give a directory that 'bam run' made, for example runs/demo".to_owned(),
    }
}
