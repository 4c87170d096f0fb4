//! The MPI backend of the cluster's `Communicator`: only this program links MPI.

mod mpi_world;

pub use mpi_world::MpiWorld;
