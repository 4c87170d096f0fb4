//! The results of a run: collected from its stages' scores, shown as a table, written as JSON.

mod comparison;
mod layout;
mod predictions;
mod published;
mod results;
mod statistics;
mod table;

use std::path::PathBuf;

pub use comparison::{Finished, render as render_comparison, tests as render_tests};
pub use layout::plain_table;
pub use results::Results;

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
