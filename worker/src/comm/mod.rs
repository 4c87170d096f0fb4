//! The MPI backend of the cluster's `Communicator`, since only this program links MPI; and what the ranks of one host do
//! without it.

mod host;
mod mpi_world;
mod shared_memory;

pub use host::Host;
pub use mpi_world::MpiWorld;
