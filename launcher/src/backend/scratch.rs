//! The directories that one start of ranks has on this host: for Open MPI's session, and for the memory by which its ranks
//! talk. They vanish with the start; those of a bam that was killed are removed by the next one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bam_cluster::files;
use tempfile::TempDir;

/// How the names of these directories begin.
const PREFIX: &str = "bam-";
/// Locked as long as the directory's owner lives: the kernel drops the lock when it dies.
const HELD: &str = "held";
/// Where files are memory.
const MEMORY: &str = "/dev/shm";

/// The directories. Dropped, they are removed.
#[derive(Debug)]
pub struct Scratch {
    session: Held,
    memory: Option<Held>,
}

#[derive(Debug)]
struct Held {
    directory: TempDir,
    /// None where the file system has no locks: then nobody takes it for an orphan's.
    _lock: Option<File>,
}

impl Scratch {
    /// Makes them.
    ///
    /// # Errors
    /// The directory for temporary files cannot be written.
    pub fn new() -> io::Result<Scratch> {
        Scratch::new_in(&std::env::temp_dir(), Path::new(MEMORY))
    }

    fn new_in(temporary: &Path, memory: &Path) -> io::Result<Scratch> {
        let session = Held::make(temporary)?;
        let user = session.directory.path().metadata()?.uid();
        [temporary, memory].iter().for_each(|parent| sweep(parent, user));
        // Without such a place, Open MPI finds one by itself.
        Ok(Scratch { session, memory: Held::make(memory).ok() })
    }

    /// Where Open MPI may keep its sessions.
    pub fn session(&self) -> &Path {
        self.session.directory.path()
    }

    /// Where it may keep what ranks share in memory, if this host has such a place.
    pub fn memory(&self) -> Option<&Path> {
        self.memory.as_ref().map(|held| held.directory.path())
    }
}

impl Held {
    fn make(parent: &Path) -> io::Result<Held> {
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        // Locked before it has the name by which others find it.
        let unnamed = directory.path().join(format!("{HELD}.new"));
        let locked = files::open_to_lock(&unnamed).and_then(|file| {
            file.try_lock()?;
            fs::rename(&unnamed, directory.path().join(HELD))?;
            Ok(file)
        });
        Ok(Held { directory, _lock: locked.ok() })
    }
}

/// Removes directories of a user whose owner is dead. What cannot be removed stays: it is in nobody's way.
fn sweep(parent: &Path, user: u32) {
    for orphan in entries(parent).filter(|path| is_orphan(path, user)) {
        let _ = fs::remove_dir_all(orphan);
    }
}

fn entries(parent: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(parent).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

fn is_orphan(path: &Path, user: u32) -> bool {
    let is_named = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    // No link is followed: in such places, everybody may write.
    let is_own = || path.symlink_metadata().is_ok_and(|about| about.is_dir() && about.uid() == user);
    is_named && is_own() && File::open(path.join(HELD)).is_ok_and(|held| held.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_one_left_is_removed_and_nothing_else() {
        let (temporary, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let living = Scratch::new_in(temporary.path(), memory.path()).unwrap();
        let dead = Scratch::new_in(temporary.path(), memory.path()).unwrap();
        let left = [dead.session().to_owned(), dead.memory().unwrap().to_owned()];
        fs::write(left[1].join("vader_segment.n1.0.1.0"), "memory").unwrap();
        // As a kill does: the locks are gone, the directories are not.
        let Scratch { session, memory: of_memory } = dead;
        for held in [Some(session), of_memory].into_iter().flatten() {
            let _ = held.directory.keep();
        }
        // Of somebody who has not got so far, or is no start of ranks.
        fs::create_dir(temporary.path().join("bam-mine")).unwrap();
        fs::create_dir(temporary.path().join("other")).unwrap();
        fs::write(temporary.path().join("other").join(HELD), "").unwrap();
        drop(Scratch::new_in(temporary.path(), memory.path()).unwrap());
        assert!(left.iter().all(|path| !path.exists()), "{left:?}");
        assert!(living.session().exists() && living.memory().unwrap().exists());
        assert_eq!((entries(temporary.path()).count(), entries(memory.path()).count()), (3, 1));
        drop(living);
        assert_eq!((entries(temporary.path()).count(), entries(memory.path()).count()), (2, 0));
    }

    #[test]
    fn a_host_without_a_place_for_memory_has_none() {
        let temporary = tempfile::tempdir().unwrap();
        let scratch = Scratch::new_in(temporary.path(), &temporary.path().join("nowhere")).unwrap();
        assert!(scratch.memory().is_none() && scratch.session().exists());
    }
}
