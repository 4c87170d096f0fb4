//! How ranks exchange data on the host. `solo` and `threads` live here; the `mpi` backend lives in the worker, the
//! only program that links MPI.

mod activity;
mod solo;
mod threads;

use std::ops::Range;
use std::time::Duration;

pub use activity::{Activity, InCollective, Snapshot};
pub use solo::Solo;
pub use threads::Threads;

/// Collective operations among the ranks of one stage. All ranks call the same operations in the same order, each
/// under the same name; the name tells people where a rank is.
pub trait Communicator {
    /// This rank, 0 … size−1.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// The bytes of every rank, by rank.
    ///
    /// # Errors
    /// The deadline passed, or a rank called something else.
    fn all_gather(&self, name: &'static str, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError>;

    /// The bytes of `root`; what the others pass is ignored.
    ///
    /// # Errors
    /// As [`all_gather`](Self::all_gather).
    fn broadcast(&self, name: &'static str, root: usize, bytes: Vec<u8>) -> Result<Vec<u8>, CommError>;

    /// Replaces `values` by their sums over all ranks: the same bits on every rank.
    ///
    /// # Errors
    /// As [`all_gather`](Self::all_gather).
    fn all_reduce_sum(&self, name: &'static str, values: &mut [f32]) -> Result<(), CommError>;

    /// Sends `send[to[r]]` to every rank r, and puts what rank r sends to this one into `receive[from[r]]`. Ranges to send
    /// may overlap; those to receive may not, and are as long as what the other rank sends. Neither buffer is empty,
    /// though ranges may be.
    ///
    /// # Errors
    /// As [`all_gather`](Self::all_gather).
    fn all_to_all(
        &self,
        name: &'static str,
        send: &[f32],
        to: &[Range<usize>],
        receive: &mut [f32],
        from: &[Range<usize>],
    ) -> Result<(), CommError>;

    /// The ranks that name the same color as this one, in the same order. What they do together is named in the same way, and
    /// all ranks of this communicator take part in making them.
    ///
    /// # Errors
    /// As [`all_gather`](Self::all_gather).
    fn split(&self, name: &'static str, color: u32) -> Result<Box<dyn Communicator>, CommError>;

    /// Waits for all ranks.
    ///
    /// # Errors
    /// As [`all_gather`](Self::all_gather).
    fn barrier(&self, name: &'static str) -> Result<(), CommError> {
        self.all_gather(name, &[]).map(|_| ())
    }
}

/// A collective that did not come about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    /// Not all ranks arrived in time.
    #[error("collective '{name}' was given up after {waited:?}: {arrived} of {size} ranks arrived")]
    Deadline {
        /// Which collective.
        name: &'static str,
        /// How many ranks came.
        arrived: usize,
        /// How many were expected.
        size: usize,
        /// For how long.
        waited: Duration,
    },
    /// Ranks are in different collectives: a bug.
    #[error("ranks disagree: one is in collective '{one}', another in '{other}'")]
    Mismatch {
        /// One rank's collective.
        one: &'static str,
        /// Another rank's collective.
        other: &'static str,
    },
}
