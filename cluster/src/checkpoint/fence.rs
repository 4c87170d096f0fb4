//! Incarnations: each start of a stage has a number, and only the newest may commit.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::CheckpointError;
use crate::files;
use crate::run_dir::RunDir;

/// One start's number, and where the number of the stage's newest start stands.
#[derive(Debug, Clone)]
pub struct Fence {
    path: PathBuf,
    own: u64,
}

impl Fence {
    /// Begins a new start of a stage: takes the run's next number. From now on, whoever has another one must not write
    /// in this stage. Only for the holder of the stage's lock, or the run's.
    ///
    /// # Errors
    /// A number cannot be read or written.
    pub fn advance(run: &RunDir, stage: &str) -> Result<Fence, CheckpointError> {
        // The run counts, not the stage: a number that was once given is never given again, even if the stage's
        // directory is removed to make it anew.
        let counter = run.incarnation();
        // Stages may start side by side, also under several launchers.
        let _one_at_a_time = lock(&run.incarnation_lock())?;
        let own = read(&counter)?.checked_add(1).ok_or_else(|| no_number(&counter))?;
        let fence = Fence::of(run, stage, own);
        for path in [counter, fence.path.clone()] {
            files::write_atomically(&path, format!("{own}\n").as_bytes())
                .map_err(|source| CheckpointError::Io { path, source })?;
        }
        Ok(fence)
    }

    /// The fence of a process that belongs to start `own` of `stage`.
    pub fn of(run: &RunDir, stage: &str, own: u64) -> Fence {
        Fence { path: run.stage_incarnation(stage), own }
    }

    /// This start's number.
    pub fn incarnation(&self) -> u64 {
        self.own
    }

    /// Fails if the stage has a newer start.
    ///
    /// # Errors
    /// [`CheckpointError::Fenced`], or the number cannot be read.
    pub fn check(&self) -> Result<(), CheckpointError> {
        let current = read(&self.path)?;
        if current == self.own { Ok(()) } else { Err(CheckpointError::Fenced { own: self.own, current }) }
    }
}

/// Waits for a lock that lasts as long as the file is open.
fn lock(path: &Path) -> Result<File, CheckpointError> {
    let locked = (|| {
        let file = files::open_to_lock(path)?;
        file.lock()?;
        Ok(file)
    })();
    locked.map_err(|source| CheckpointError::Io { path: path.to_owned(), source })
}

/// The number in a file; 0 if there is none.
fn read(path: &Path) -> Result<u64, CheckpointError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(CheckpointError::Io { path: path.to_owned(), source }),
    };
    text.trim().parse().map_err(|_| no_number(path))
}

fn no_number(path: &Path) -> CheckpointError {
    let problem = "is not a number of starts; write the number of starts so far into it".to_owned();
    CheckpointError::Damaged { path: path.to_owned(), problem }
}
