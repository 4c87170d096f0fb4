//! The command that starts ranks, as data: what is run can be read, logged and tested before it runs.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use bam_cluster::config::ClusterSection;
use bam_cluster::plan::Stage;
use bam_cluster::run_dir::RunDir;
use nix::sys::signal::Signal;

use super::{Programs, Scratch, Seats, Starter, mpirun, srun};
use crate::shell::quoted;

/// A command that starts ranks.
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

/// What ranks are started for.
#[derive(Debug, Clone, Copy)]
pub enum Duty<'a> {
    /// A stage of a run.
    Stage(&'a RunDir, &'a Stage),
    /// To find out where they are, and whether they see this file.
    Probe(Option<&'a Path>),
}

/// Of what a start of ranks is made.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// How it is spread.
    pub cluster: &'a ClusterSection,
    /// What the ranks do.
    pub duty: Duty<'a>,
    /// Where its ranks are.
    pub seats: &'a Seats,
    /// Its directories on this host.
    pub scratch: &'a Scratch,
}

impl Start<'_> {
    /// Its name, where somebody lists what runs.
    pub(super) fn name(&self) -> &str {
        match self.duty {
            Duty::Stage(_, stage) => &stage.name,
            Duty::Probe(_) => "probe",
        }
    }

    /// How many ranks it has.
    pub fn ranks(&self) -> usize {
        self.seats.count()
    }

    /// What every rank has in its environment, on whichever host.
    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        let unless_set = |name: &'static str, value: &str| (name, env::var(name).unwrap_or_else(|_| value.to_owned()));
        vec![
            ("OMP_NUM_THREADS", self.cluster.threads.to_string()),
            // Shared file systems often lack locks; files are written by one rank each and published by rename.
            unless_set("HDF5_USE_FILE_LOCKING", "FALSE"),
            // With this much room GPUs multiply in the same order every time.
            unless_set("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
        ]
    }

    /// The program of one rank with its arguments.
    pub(super) fn worker(&self, programs: &Programs) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec![programs.worker.clone().into()];
        match self.duty {
            Duty::Stage(run, stage) => {
                let (run, stage) = (run.path().into(), stage.name.clone().into());
                words.extend(["--run".into(), run, "--stage".into(), stage]);
            }
            Duty::Probe(token) => {
                words.push("--probe".into());
                words.extend(token.into_iter().flat_map(|token| ["--token".into(), token.into()]));
            }
        }
        words
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
