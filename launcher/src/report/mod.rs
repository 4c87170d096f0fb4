//! The results of a run: collected from its stages' scores, shown as a table, written as JSON.

mod layout;
mod results;
mod table;

use std::path::PathBuf;

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
