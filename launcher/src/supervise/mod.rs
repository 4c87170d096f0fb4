//! Runs one stage: starts its ranks, gives orders, listens to them, and ends with the stage's products or with one
//! sentence on what went wrong. One owner of all state (`dispatcher`), messages in.

mod bar;
mod control;
mod dispatcher;
mod ears;
mod event;
mod evidence;
mod figures;
mod grace;
mod host;
mod interrupts;
mod lobby;
mod mpirun_output;
mod orders;
mod refusals;
mod restart;
mod screen;
mod sentence;
mod srun_output;
mod stage_log;
mod starter_output;
mod verdict;

pub use control::STRANGERS;
pub use dispatcher::{End, StageJob, supervise};
pub use figures::Figures;
pub use interrupts::{Interrupts, Wish};
pub use restart::{Decision, History};
pub use screen::{Screen, Verbosity};
pub use stage_log::ANNOUNCEMENT;
pub use verdict::{Finding, Verdict};
