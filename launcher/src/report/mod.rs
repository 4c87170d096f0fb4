//! The results of runs: collected from their stages' scores, shown as a table, as JSON, CSV, LaTeX or a page.

mod average;
mod cautions;
mod changes;
mod comparison;
mod curves;
mod draws;
#[cfg(test)]
mod fabricated;
mod judged_run;
mod latex;
mod layout;
mod models;
mod page;
mod plot;
mod predictions;
mod published;
mod results;
mod scores_csv;
mod significance;
mod starts;
mod statistics;
mod story;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use bam_cluster::config::nearest;

pub use comparison::Comparison;
pub use judged_run::JudgedRun;
pub use latex::render as latex;
pub use layout::{figure, plain_table};
pub use page::of as page;
pub use published::to_json as published_json;
pub use scores_csv::render as csv;
pub use significance::{render as render_tests, tests};

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
