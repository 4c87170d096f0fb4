//! The results of runs: collected from their stages' scores, shown as a table, as JSON, CSV, LaTeX or a page.

mod comparison;
mod curves;
mod draws;
mod judged_run;
mod latex;
mod layout;
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

use std::path::PathBuf;

pub use comparison::Comparison;
pub use judged_run::JudgedRun;
pub use latex::render as latex;
pub use layout::plain_table;
pub use page::of as page;
pub use published::to_json as published_json;
pub use scores_csv::render as csv;
pub use significance::{render as render_tests, tests};

/// A directory that holds no run.
#[derive(Debug, thiserror::Error)]
#[error(
    "{directory} is not the directory of a run: it has no {missing}\n  give a directory that 'bam run' made, for example runs/demo"
)]
pub struct NotARun {
    /// As given.
    pub directory: PathBuf,
    /// What was looked for.
    pub missing: &'static str,
}
