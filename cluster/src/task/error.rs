//! What can be wrong with a task's files.

use std::io;
use std::path::PathBuf;

/// A file that cannot be used. Every message says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file is not there or cannot be read.
    #[error(
        "{path}: {source}\n  task '{task}' needs this file: correct its path in the recipe (GLUE's directory is data.glue)"
    )]
    Unreadable {
        /// The task.
        task: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no data row in it.
    #[error("{path}: the file holds no examples, and task '{task}' needs some\n  fetch or export the file again")]
    Empty {
        /// The task.
        task: String,
        /// The file.
        path: PathBuf,
    },
    /// Most of its rows would be left out.
    #[error(
        "{path}: {skipped} of {rows} rows lack a column that task '{task}' needs\n  fetch the file again; a few such rows \
         are left out, but not more than half of a file"
    )]
    Malformed {
        /// The task.
        task: String,
        /// The file.
        path: PathBuf,
        /// Rows that lack a column.
        skipped: u64,
        /// All its data rows.
        rows: u64,
    },
    /// A share of the file is to be the dev split, and one of the two splits gets nothing.
    #[error(
        "{path}: dev_fraction {fraction} of {examples} example(s) leaves none to {purpose}\n  task '{task}' needs a {change} \
         dev_fraction, more examples, or a dev file of its own"
    )]
    Fraction {
        /// The task.
        task: String,
        /// The file.
        path: PathBuf,
        /// As the recipe has it.
        fraction: f64,
        /// How many the file has.
        examples: usize,
        /// What the empty split is for.
        purpose: &'static str,
        /// Which way the fraction has to go.
        change: &'static str,
    },
    /// The header has no column of that name.
    #[error(
        "{path}: no column named '{column}' in the header: {header}\n  correct the columns of task '{task}' in the recipe"
    )]
    NoColumn {
        /// The task.
        task: String,
        /// The file.
        path: PathBuf,
        /// The name that was looked for.
        column: String,
        /// The names that are there.
        header: String,
    },
    /// The header has several columns of that name.
    #[error(
        "{path}: a column is called '{column}', and so is another one: {header}\n  rename one of them, or give the column of \
         task '{task}' by its position"
    )]
    TwoColumns {
        /// The task.
        task: String,
        /// The file.
        path: PathBuf,
        /// The name that was looked for.
        column: String,
        /// The names that are there.
        header: String,
    },
    /// The recipe counts the columns of another file, and this one has others.
    #[error(
        "{path}: the recipe counts the columns of {counted_in}: {problem}\n  say where the texts of task '{task}' are in \
         this file: test_text (and test_text_b)"
    )]
    OtherColumns {
        /// The task.
        task: String,
        /// The file.
        path: PathBuf,
        /// The file that the recipe describes.
        counted_in: PathBuf,
        /// What is different.
        problem: String,
    },
    /// One line is not as it should be.
    #[error("{path}, line {line}: {problem}\n  {remedy}")]
    Line {
        /// The file.
        path: PathBuf,
        /// 1-based.
        line: usize,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
}
