//! How the ranks of one stage are started: the command is described first, as data, and then run.

mod mpirun;
mod process;
mod programs;

pub use mpirun::{Launch, reach};
pub use process::{Process, ProcessEvent};
pub use programs::Programs;

/// This machine's name.
pub fn host_name() -> String {
    nix::unistd::gethostname().map_or_else(|_| "this host".to_owned(), |name| name.to_string_lossy().into_owned())
}
