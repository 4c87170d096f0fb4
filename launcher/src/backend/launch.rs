//! The command that starts the ranks of one stage, as data: what is run can be read, logged and tested before it runs.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use bam_cluster::config::ClusterSection;
use bam_cluster::plan::Stage;
use bam_cluster::run_dir::RunDir;
use nix::sys::signal::Signal;

use super::{Programs, Starter, mpirun, srun};
use crate::shell::quoted;

/// A command that starts all ranks of a stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Set in its environment, and so in every local rank's.
    pub environment: Vec<(&'static str, String)>,
    /// Taken out of its environment.
    pub without: &'static [&'static str],
    /// The signal on which it ends all ranks without asking them, or its own group is ended.
    pub kill: Signal,
}

/// Of what a start of a stage is made.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// How it is spread.
    pub cluster: &'a ClusterSection,
    /// Its run.
    pub run: &'a RunDir,
    /// The stage.
    pub stage: &'a Stage,
    /// A directory of this start's own, on this host.
    pub scratch: &'a Path,
    /// Which start of the run this is.
    pub incarnation: u64,
}

impl Start<'_> {
    /// How many ranks it has.
    pub fn ranks(&self) -> usize {
        self.cluster.ranks(self.stage.tasks_learnt())
    }

    /// What every rank has in its environment, on whichever host.
    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        let file_locking = env::var("HDF5_USE_FILE_LOCKING").ok();
        // Shared file systems often lack locks; files are written by one rank each and published by rename.
        let file_locking = file_locking.unwrap_or_else(|| "FALSE".to_owned());
        vec![("OMP_NUM_THREADS", self.cluster.threads.to_string()), ("HDF5_USE_FILE_LOCKING", file_locking)]
    }

    /// The program of one rank with its arguments.
    pub(super) fn worker(&self, programs: &Programs) -> Vec<OsString> {
        let (run, stage) = (self.run.path().into(), self.stage.name.clone().into());
        vec![programs.worker.clone().into(), "--run".into(), run, "--stage".into(), stage]
    }
}

impl Launch {
    /// The command for a start of a stage.
    pub fn new(programs: &Programs, start: &Start) -> Launch {
        match &programs.starter {
            Starter::Mpirun(mpirun) => mpirun::launch(mpirun, programs, start),
            Starter::Srun(srun) => srun::launch(srun, programs, start),
        }
    }

    /// The command as one would type it.
    pub fn command_line(&self) -> String {
        let environment = self.environment.iter().map(|(name, value)| format!("{name}={value}"));
        let words = std::iter::once(self.program.as_os_str()).chain(self.arguments.iter().map(OsString::as_os_str));
        environment.chain(words.map(|w| quoted(&w.to_string_lossy()))).collect::<Vec<_>>().join(" ")
    }
}
