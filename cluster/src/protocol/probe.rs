//! What ranks that have nothing to do find out about where they are.

use serde::{Deserialize, Serialize};

/// What ranks found out about their GPUs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Devices {
    /// What is as it should be, in sentences.
    pub good: Vec<String>,
    /// What makes a run slower.
    pub warnings: Vec<String>,
    /// What keeps a run from working.
    pub problems: Vec<String>,
}

/// What the ranks that `bam doctor` starts know of one another; rank 0 of each world prints it as a line of JSON. Ranks that
/// do not find one another are worlds of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// How many ranks have met.
    pub ranks: usize,
    /// Each rank's host.
    pub hosts: Vec<String>,
    /// Whether the ranks of a host see the same memory; true also where each is alone on its host.
    pub share_memory: bool,
    /// What MPI calls itself.
    pub mpi: String,
    /// HDF5's version.
    pub hdf5: String,
    /// GPUs that libtorch sees, on rank 0.
    pub gpus: i64,
    /// What ranks found out about their GPUs, where each has one.
    #[serde(default)]
    pub devices: Devices,
    /// libtorch's version, as the files beside it say.
    #[serde(default)]
    pub libtorch: String,
    /// Whether it was built with CUDA.
    #[serde(default)]
    pub libtorch_has_cuda: bool,
    /// Whether each rank sees the file that the launcher has written where runs are to be.
    #[serde(default)]
    pub sees_token: Vec<bool>,
    /// Seconds of a collective without content.
    pub latency: f64,
    /// Bytes that an all-reduce of 16 MiB adds up a second.
    pub bandwidth: f64,
    /// Seconds by which the hosts' clocks are apart.
    pub clocks: f64,
    /// Floating-point operations a second of each rank, while all multiply matrices.
    pub rates: Vec<f64>,
}
