//! What `mpirun` or `srun` prints while ranks run, made one: whose line it is, and how ranks ended.

use super::{mpirun_output, srun_output};
use crate::backend::Starter;

/// One printed line.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Whose; none: the starter's own.
    pub rank: Option<usize>,
    /// Without the tag.
    pub text: &'a str,
}

/// How the starter says that a rank ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RankEnd {
    /// Killed by a signal, such as `9 (Killed)`.
    Signal {
        /// Which rank.
        rank: usize,
        /// On which host.
        host: String,
        /// Number and name.
        signal: String,
    },
    /// It ended with this status other than 0.
    Status {
        /// Which rank.
        rank: usize,
        /// Its exit status.
        status: i32,
    },
    /// It could not be started.
    NotStarted {
        /// Which rank.
        rank: usize,
        /// Why, in the starter's words.
        why: String,
    },
    /// Its host failed, and all ranks there with it.
    Host {
        /// Which host.
        host: String,
    },
}

/// Understands the starter's words, some of which take two lines.
#[derive(Debug)]
pub enum Words {
    /// `mpirun`'s.
    Mpirun(mpirun_output::Words),
    /// `srun`'s.
    Srun(srun_output::Words),
}

impl Words {
    /// None read yet.
    pub fn of(starter: &Starter) -> Words {
        match starter {
            Starter::Mpirun(_) => Words::Mpirun(mpirun_output::Words::default()),
            Starter::Srun(_) => Words::Srun(srun_output::Words::default()),
        }
    }

    /// Takes the tag that says whose a line is off.
    pub fn untagged<'a>(&self, line: &'a str) -> Line<'a> {
        match self {
            Words::Mpirun(_) => mpirun_output::untagged(line),
            Words::Srun(_) => srun_output::untagged(line),
        }
    }

    /// Reads one line of the starter's own: the ranks that ended for reasons of their own.
    pub fn read(&mut self, line: &str) -> Vec<RankEnd> {
        match self {
            Words::Mpirun(words) => words.read(line).into_iter().collect(),
            Words::Srun(words) => words.read(line),
        }
    }
}
