//! One launcher at a time in a run directory: an exclusive lock that the kernel drops when its holder dies.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime};

use bam_cluster::run_dir::RunDir;

use crate::backend::host_name;

/// How often, and how far apart, it is tried again.
const LOOKS: usize = 10;
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The lock, held for as long as this lives.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

/// A run directory that cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else works here.
    #[error(
        "{directory} is in use by another bam ({holder})\n  wait for it or stop it, or choose another name (-o name=…)"
    )]
    Held {
        /// The run directory.
        directory: PathBuf,
        /// What the holder wrote about itself.
        holder: String,
    },
    /// The file system says no.
    #[error("{path}: {source}\n  the run directory must be writable; --run-dir chooses another place")]
    Io {
        /// The lock file or its directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl RunLock {
    /// Makes the run directory if need be and locks it.
    ///
    /// # Errors
    /// Another launcher holds it, or it cannot be written.
    pub fn acquire(run: &RunDir) -> Result<RunLock, LockError> {
        let path = run.lock();
        let io = |source| LockError::Io { path: path.clone(), source };
        fs::create_dir_all(run.path()).map_err(|source| LockError::Io { path: run.path().to_owned(), source })?;
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        let mut locked = file.try_lock();
        // Whoever only looks (`bam status`) holds it for a moment.
        for _ in 0..LOOKS {
            if !matches!(locked, Err(TryLockError::WouldBlock)) {
                break;
            }
            thread::sleep(LOOK_EVERY);
            locked = file.try_lock();
        }
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(&path).map_err(io)?.trim().to_owned();
                return Err(LockError::Held { directory: run.path().to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let since = humantime::format_rfc3339_seconds(SystemTime::now());
        let holder = format!("pid {} on {} since {since}\n", std::process::id(), host_name());
        file.set_len(0).and_then(|()| file.write_all(holder.as_bytes())).map_err(io)?;
        Ok(RunLock { _file: file })
    }
}

/// Who works in the run directory, as it wrote about itself; nothing is made or changed.
///
/// # Errors
/// The lock cannot be read.
pub fn holder(run: &RunDir) -> Result<Option<String>, LockError> {
    let path = run.lock();
    let io = |source| LockError::Io { path: path.clone(), source };
    let file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(io)?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(fs::read_to_string(&path).map_err(io)?.trim().to_owned())),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path().join("new"));
        let lock = RunLock::acquire(&run).unwrap();
        let message = RunLock::acquire(&run).unwrap_err().to_string();
        assert!(message.contains(&format!("pid {} on ", std::process::id())), "{message}");
        assert!(holder(&run).unwrap().is_some_and(|who| message.contains(&who)));
        drop(lock);
        assert_eq!(holder(&run).unwrap(), None);
        RunLock::acquire(&run).unwrap();
    }
}
