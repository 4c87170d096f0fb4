//! What `bam fetch` does: GLUE from its official files, encoders from Hugging Face's hub. Downloads go on where they were cut off,
//! are compared with sums that are known beforehand, and are only then given their names.
//!
//! The hub is asked by a few lines of our own over `ureq` rather than by the crate `hf-hub`: that one brings an asynchronous
//! runtime, and compares no sums.

mod download;
mod glue;
mod hub;
mod unpack;

pub use glue::{GLUE_URL, Glue, GlueFolder};
pub use hub::{Hub, copy_to};

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bam_cluster::encoder::WeightsError;
use nix::errno::Errno;

/// Something that cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No answer, not even to the first request.
    #[error("cannot reach {url}: {why}\n{remedy}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What the network says.
        why: String,
        /// What to do on a machine without internet.
        remedy: String,
    },
    /// The server wants to know who asks.
    #[error("{url}: the server says {status}\n{remedy}")]
    Denied {
        /// What was asked for.
        url: String,
        /// 401 or 403.
        status: u16,
        /// How to say who one is.
        remedy: String,
    },
    /// There is no such thing.
    #[error("{url}: the server says {status}, there is no such file\n{remedy}")]
    Missing {
        /// What was asked for.
        url: String,
        /// 404 or 410.
        status: u16,
        /// What to look at.
        remedy: String,
    },
    /// Another answer that leads nowhere.
    #[error("{url}: the server says {status}\n  try again later")]
    Status {
        /// What was asked for.
        url: String,
        /// The answer.
        status: u16,
    },
    /// The connection was cut again and again.
    #[error(
        "{url}: {have} of {size} bytes are here, and {tries} more tries brought none ({why})\n  the same command goes on from there"
    )]
    Cut {
        /// What was asked for.
        url: String,
        /// Bytes that are on disk.
        have: u64,
        /// Bytes of the whole.
        size: u64,
        /// Tries since the last byte.
        tries: u32,
        /// What was said last.
        why: String,
    },
    /// What came is not what was meant to come.
    #[error(
        "{url}: has {what} {found} instead of {expected}; it was damaged on the way, or the server has another file\n  nothing is \
         kept of it; try again, or without the mirror or proxy in between"
    )]
    Wrong {
        /// What was asked for.
        url: String,
        /// `size`, or the kind of sum.
        what: &'static str,
        /// Of what came.
        found: String,
        /// Known beforehand.
        expected: String,
    },
    /// A file of this machine.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Files that came, or were there, are not what they should be.
    #[error("{path}: {problem}")]
    Content {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A model's weights are not those of its config.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// What is asked for makes no sense.
    #[error("{0}")]
    Usage(String),
}

impl FetchError {
    /// Whether it is the command line that is wrong.
    pub fn is_usage(&self) -> bool {
        matches!(self, FetchError::Usage(_))
    }

    /// Whether it is data that is wrong.
    pub fn is_bad_data(&self) -> bool {
        matches!(self, FetchError::Wrong { .. } | FetchError::Content { .. } | FetchError::Weights(_))
    }
}

/// The name of this machine, for advice on what to copy where.
fn this_host() -> String {
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
}

/// For `map_err` of what is done with a file.
fn io_error(path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Io { path, source }
}

/// Waits until nobody else is at it, and keeps others waiting for as long as the file is open. Where a file system has no locks,
/// nobody waits: sums and renames keep what is there whole.
fn lock(file: &File) -> io::Result<()> {
    match file.lock() {
        Err(e) if e.kind() == io::ErrorKind::Unsupported || e.raw_os_error() == Some(Errno::ENOLCK as i32) => Ok(()),
        done => done,
    }
}
