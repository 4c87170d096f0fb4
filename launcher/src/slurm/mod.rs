//! Slurm: a run's jobs and their scripts, the commands that talk to the scheduler, and the job that this process may be in.

mod allocation;
mod chain;
mod client;
pub mod estimate;
mod job;
mod record;
mod script;

pub use allocation::Allocation;
pub use chain::{ALL, ChainJob, Element, REPORT, Ranks, chain};
pub use client::{After, Slurm};
pub use job::{Job, Phase};
pub use record::{Submission, SubmittedElement, SubmittedJob};
pub use script::{BatchScript, ScriptError, check_syntax};
