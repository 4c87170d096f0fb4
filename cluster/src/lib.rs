//! What all processes of a bam run agree on: the recipe, the plan that follows from it, how ranks talk to one
//! another and to the launcher, and the files by which a run survives. No libtorch, no MPI, no HDF5.

pub mod aside;
pub mod checkpoint;
pub mod comm;
pub mod config;
pub mod digest;
pub mod encoder;
pub mod exit_code;
pub mod fault;
pub mod files;
pub mod hub_cache;
pub mod metrics;
pub mod plan;
pub mod protocol;
pub mod published;
pub mod run_dir;
pub mod stage_record;
pub mod task;
pub mod teacher;
