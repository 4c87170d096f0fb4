//! The protocol by which a checkpoint comes to be and is found again: written aside, synced, named by a manifest with
//! sums, renamed. No tensors in here; what the files hold is the worker's business.

mod fence;
mod manifest;
mod name;
mod point;
mod store;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use fence::Fence;
pub use manifest::{Manifest, ManifestEntry};
pub use name::newest_step;
pub use point::CommitPoint;
pub use store::{Draft, Found, Store};

use crate::plan::{Receipt, Schedule};

/// What a checkpoint knows besides tensors (`state.json`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// Receipt of the data order up to that step.
    pub receipt: Receipt,
    /// λ and learning rate follow from these; a resume under another horizon is refused.
    pub schedule: Schedule,
    /// Hash of the stage's inputs.
    pub inputs: String,
    /// Which start of the stage wrote it.
    pub incarnation: u64,
    /// Number of processes that wrote it; another number gives the same batches and other rounding.
    pub world_size: usize,
}

/// A checkpoint that could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system said no.
    #[error(
        "{path}: {source}\n  the last good checkpoint is untouched; mend the file system (full? quota?) and run again"
    )]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A newer start of the stage exists.
    #[error("this process belongs to start {own} of its stage, but start {current} is under way: it must not write")]
    Fenced {
        /// This process's incarnation.
        own: u64,
        /// The newest.
        current: u64,
    },
    /// It is not what its manifest says.
    #[error("{path}: {problem}")]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}
