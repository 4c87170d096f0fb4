//! Where the programs are that a run needs: `mpirun`, and the worker beside this executable.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What is started.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Open MPI's launcher.
    pub mpirun: PathBuf,
    /// The program of one rank.
    pub worker: PathBuf,
}

/// A program that is not there.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// No mpirun.
    #[error(
        "{program} is not an executable program or not on PATH\n  install Open MPI (Debian: apt-get install openmpi-bin), or set BAM_MPIRUN to its mpirun"
    )]
    NoMpirun {
        /// What was looked for.
        program: PathBuf,
    },
    /// No worker.
    #[error(
        "{program} is not an executable program\n  bam-worker must stand beside bam (cargo build --release makes both), or set BAM_WORKER to it"
    )]
    NoWorker {
        /// What was looked for.
        program: PathBuf,
    },
}

impl Programs {
    /// Finds both; `BAM_MPIRUN` and `BAM_WORKER` say otherwise.
    ///
    /// # Errors
    /// One is missing.
    pub fn find() -> Result<Programs, ProgramError> {
        let mpirun = env::var_os("BAM_MPIRUN").unwrap_or_else(|| "mpirun".into());
        let path = env::var_os("PATH").unwrap_or_default();
        let mpirun = on_path(&mpirun, &path).ok_or_else(|| ProgramError::NoMpirun { program: mpirun.into() })?;
        let worker = env::var_os("BAM_WORKER").map_or_else(beside_this_program, PathBuf::from);
        if !is_program(&worker) {
            return Err(ProgramError::NoWorker { program: worker });
        }
        // The ranks may start in another directory.
        let worker = std::path::absolute(&worker).unwrap_or(worker);
        Ok(Programs { mpirun, worker })
    }
}

fn beside_this_program() -> PathBuf {
    // Through links: `bam` on PATH may be a link into the place where both programs are.
    let own = env::current_exe().and_then(fs::canonicalize).unwrap_or_default();
    own.with_file_name("bam-worker")
}

fn on_path(program: &OsStr, path: &OsStr) -> Option<PathBuf> {
    let as_given = Path::new(program);
    if as_given.components().count() > 1 {
        return is_program(as_given).then(|| as_given.to_owned());
    }
    env::split_paths(path).map(|directory| directory.join(program)).find(|candidate| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_files_on_the_path_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("mpirun");
        let path = dir.path().as_os_str();
        assert_eq!(on_path("mpirun".as_ref(), path), None);
        fs::write(&program, "").unwrap();
        assert_eq!(on_path("mpirun".as_ref(), path), None);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(on_path("mpirun".as_ref(), path), Some(program.clone()));
        assert_eq!(on_path(program.as_os_str(), "".as_ref()), Some(program));
    }
}
