//! Incarnations: each start of a run has a number, and only the newest may commit.

use std::path::PathBuf;

use super::CheckpointError;
use crate::files;
use crate::run_dir::RunDir;

/// This start's number and where the newest start's number stands.
#[derive(Debug, Clone)]
pub struct Fence {
    path: PathBuf,
    own: u64,
}

impl Fence {
    /// Begins a new start of the run: takes the next number. Only for the holder of the run's lock.
    ///
    /// # Errors
    /// The number cannot be read or written.
    pub fn advance(run: &RunDir) -> Result<Fence, CheckpointError> {
        let mut fence = Fence { path: run.incarnation(), own: 0 };
        fence.own = fence.current()?.checked_add(1).ok_or_else(|| fence.no_number())?;
        let io = |source| CheckpointError::Io { path: fence.path.clone(), source };
        files::write_atomically(&fence.path, format!("{}\n", fence.own).as_bytes()).map_err(io)?;
        Ok(fence)
    }

    /// The fence of a process that belongs to start `own`.
    pub fn of(run: &RunDir, own: u64) -> Fence {
        Fence { path: run.incarnation(), own }
    }

    /// This start's number.
    pub fn incarnation(&self) -> u64 {
        self.own
    }

    /// Fails if a newer start exists.
    ///
    /// # Errors
    /// [`CheckpointError::Fenced`], or the number cannot be read.
    pub fn check(&self) -> Result<(), CheckpointError> {
        let current = self.current()?;
        if current == self.own { Ok(()) } else { Err(CheckpointError::Fenced { own: self.own, current }) }
    }

    fn current(&self) -> Result<u64, CheckpointError> {
        let io = |source| CheckpointError::Io { path: self.path.clone(), source };
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(io(e)),
        };
        text.trim().parse().map_err(|_| self.no_number())
    }

    fn no_number(&self) -> CheckpointError {
        let problem = "is not a number of starts; write the number of starts so far into it".to_owned();
        CheckpointError::Damaged { path: self.path.clone(), problem }
    }
}
