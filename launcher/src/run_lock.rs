//! Who may work in a run directory: one launcher on the whole run, or several, each on stages of its own. The kernel drops
//! a lock when its holder dies.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use bam_cluster::run_dir::RunDir;

use crate::backend::host_name;

/// How often, and how far apart, it is tried again.
const LOOKS: usize = 10;
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The right to work in a run directory, held for as long as this lives.
#[derive(Debug)]
pub struct RunLock {
    _files: Vec<File>,
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

/// Whether others may hold the same lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    Alone,
    Together,
}

impl RunLock {
    /// Makes the run directory if need be and takes all of it.
    ///
    /// # Errors
    /// Another launcher works there, or it cannot be written.
    pub fn acquire(run: &RunDir) -> Result<RunLock, LockError> {
        match lock(&run.lock(), Share::Alone)? {
            Some(file) => Ok(RunLock { _files: vec![file] }),
            None => Err(held(run, holder(run)?)),
        }
    }

    /// Takes some stages of a run, beside launchers that have taken others.
    ///
    /// # Errors
    /// Another launcher works on the whole run or on one of the stages, or the directory cannot be written.
    pub fn acquire_stages<'a>(run: &RunDir, stages: impl IntoIterator<Item = &'a str>) -> Result<RunLock, LockError> {
        let mut files = vec![];
        match lock(&run.lock(), Share::Together)? {
            Some(file) => files.push(file),
            None => return Err(held(run, holder(run)?)),
        }
        for stage in stages {
            let path = run.stage_lock(stage);
            match lock(&path, Share::Alone)? {
                Some(file) => files.push(file),
                None => return Err(held(run, holder_of(&path)?.map(|who| format!("{who}: {stage}")))),
            }
        }
        Ok(RunLock { _files: files })
    }
}

fn held(run: &RunDir, holder: Option<String>) -> LockError {
    // It may have let go in the meantime.
    let holder = holder.unwrap_or_else(|| "which has just ended".to_owned());
    LockError::Held { directory: run.path().to_owned(), holder }
}

/// Opens a lock file, made if need be, and locks it, unless somebody else holds it; its holder, if it is alone, writes into
/// it who it is.
fn lock(path: &Path, share: Share) -> Result<Option<File>, LockError> {
    let io = |source| LockError::Io { path: path.to_owned(), source };
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(|source| LockError::Io { path: directory.to_owned(), source })?;
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
    let try_lock = |file: &File| match share {
        Share::Alone => file.try_lock(),
        Share::Together => file.try_lock_shared(),
    };
    let mut locked = try_lock(&file);
    // Whoever only looks (`bam status`) holds it for a moment.
    for _ in 0..LOOKS {
        if !matches!(locked, Err(TryLockError::WouldBlock)) {
            break;
        }
        thread::sleep(LOOK_EVERY);
        locked = try_lock(&file);
    }
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    if share == Share::Alone {
        let since = humantime::format_rfc3339_seconds(SystemTime::now());
        let who = format!("pid {} on {} since {since}\n", std::process::id(), host_name());
        file.set_len(0).and_then(|()| file.write_all(who.as_bytes())).map_err(io)?;
    }
    Ok(Some(file))
}

/// Who works in the run directory, as they wrote about themselves; nothing is made or changed.
///
/// # Errors
/// A lock cannot be read.
pub fn holder(run: &RunDir) -> Result<Option<String>, LockError> {
    if let Some(who) = holder_of(&run.lock())? {
        return Ok(Some(who));
    }
    let mut stages: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for stage in names_in(&run.stages()) {
        if let Some(who) = holder_of(&run.stage_lock(&stage))? {
            stages.entry(who).or_default().push(stage);
        }
    }
    let each: Vec<String> = stages.into_iter().map(|(who, stages)| format!("{who}: {}", stages.join(", "))).collect();
    Ok((!each.is_empty()).then(|| each.join("; ")))
}

/// Whether somebody works on a stage, or on the whole run.
///
/// # Errors
/// A lock cannot be read.
pub fn is_held(run: &RunDir, stage: &str) -> Result<bool, LockError> {
    Ok(holder_of(&run.lock())?.is_some() || holder_of(&run.stage_lock(stage))?.is_some())
}

/// Who holds a lock alone.
fn holder_of(path: &Path) -> Result<Option<String>, LockError> {
    let io = |source| LockError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(io)?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(fs::read_to_string(path).map_err(io)?.trim().to_owned())),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

/// What is in a directory, in order; nothing if it cannot be read.
fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
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

    #[test]
    fn stages_are_shared_out_and_the_whole_run_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        let first = RunLock::acquire_stages(&run, ["a", "b"]).unwrap();
        let second = RunLock::acquire_stages(&run, ["c"]).unwrap();
        assert!(holder(&run).unwrap().is_some_and(|who| who.ends_with(": a, b, c")));
        let message = RunLock::acquire(&run).unwrap_err().to_string();
        assert!(message.contains(": a, b, c)"), "{message}");
        let message = RunLock::acquire_stages(&run, ["d", "b"]).unwrap_err().to_string();
        assert!(message.contains(": b)"), "{message}");
        assert!(is_held(&run, "c").unwrap() && !is_held(&run, "d").unwrap());
        drop(first);
        assert!(holder(&run).unwrap().is_some_and(|who| who.ends_with(": c")));
        drop(second);
        let _whole = RunLock::acquire(&run).unwrap();
        RunLock::acquire_stages(&run, ["a"]).unwrap_err();
    }
}
