//! NCCL: collectives among GPUs, for ranks that have met through MPI.
//!
//! NCCL is loaded when a run uses GPUs and is not needed to build. A communicator never blocks the host for longer than its
//! deadline: NCCL is asked not to block, its state is looked at, and what is stuck is aborted. Collectives run on a stream
//! of their own, beside torch's: each begins when torch's stream has come to where it was started, and torch's stream waits
//! for them when it is told to.

mod abort;
mod communicator;
mod describe;
mod error;
mod functions;
mod join;
mod library;
mod tree_sum;

pub use abort::AbortHandle;
pub use communicator::Nccl;
pub use describe::Description;
pub use error::{NcclError, RankTrouble};
pub use library::{Library, Version};
pub use tree_sum::DeviceTreeSum;
