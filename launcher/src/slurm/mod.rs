//! Slurm: the batch script, the commands that talk to the scheduler, and the job that this process may be in.

mod allocation;
mod client;
mod job;
mod record;
mod script;

pub use allocation::Allocation;
pub use client::Slurm;
pub use job::{Job, Phase};
pub use record::JobRecord;
pub use script::{BatchScript, ScriptError, check_syntax};
