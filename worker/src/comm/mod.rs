//! The MPI backend of the cluster's `Communicator`, since only this program links MPI; and what the ranks of one host do
//! without it.

mod device_reducer;
mod host;
mod mpi_world;
mod shared_memory;

pub use device_reducer::{DeviceReducer, Staged};
pub use host::{Host, identity as host_identity};
pub use mpi_world::MpiWorld;
