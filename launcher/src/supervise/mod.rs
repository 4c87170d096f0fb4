//! Runs one stage: starts its ranks, gives orders, listens to them, and ends with the stage's products or with one
//! sentence on what went wrong. One owner of all state (`dispatcher`), messages in.

mod control;
mod dispatcher;
mod event;
mod evidence;
mod figures;
mod interrupts;
mod lobby;
mod mpirun_output;
mod orders;
mod refusals;
mod screen;
mod sentence;
mod stage_log;
mod verdict;

pub use dispatcher::{End, StageFailed, StageJob, supervise};
pub use figures::brief;
pub use interrupts::Interrupts;
pub use screen::Screen;
