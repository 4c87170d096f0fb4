//! How this program's ranks talk: the MPI backend of the cluster's `Communicator`, since only this program links MPI; what the
//! ranks of one host do without it; and NCCL among GPUs.

mod device_reducer;
mod host;
mod mpi_world;
pub mod nccl;
pub mod preflight;
mod shared_memory;

pub use device_reducer::{DeviceReducer, ReduceError, Staged};
pub use host::{Host, identity as host_identity};
pub use mpi_world::MpiWorld;
