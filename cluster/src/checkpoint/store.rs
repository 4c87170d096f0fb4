//! A stage's checkpoints on disk: commit, find the newest good one, keep as many as asked for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::name::{Name, too_many};
use super::{CheckpointError, CommitPoint, Fence, Manifest, State};
use crate::files;

/// The checkpoints of one stage.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
    /// The files of a checkpoint, besides state and manifest.
    files: &'static [&'static str],
    keep: usize,
    fence: Fence,
}

/// A checkpoint being written, out of every reader's sight. Dropped before its commit, it vanishes.
pub struct Draft {
    path: PathBuf,
}

/// A checkpoint that its manifest vouches for.
#[derive(Debug)]
pub struct Found {
    /// Its directory.
    pub path: PathBuf,
    /// Its state.
    pub state: State,
}

impl Draft {
    /// Where to write the file `name`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Store {
    /// The checkpoints in `directory`, each of these `files`; the newest `keep` are kept.
    pub fn new(directory: PathBuf, files: &'static [&'static str], keep: usize, fence: Fence) -> Self {
        Store { directory, files, keep, fence }
    }

    /// Fails if the stage has a newer start.
    ///
    /// # Errors
    /// [`CheckpointError::Fenced`], or the number of starts cannot be read.
    pub fn check_fence(&self) -> Result<(), CheckpointError> {
        self.fence.check()
    }

    /// Begins a checkpoint.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn draft(&self) -> Result<Draft, CheckpointError> {
        let path = self.directory.join(format!("{DRAFT}{}", self.fence.incarnation()));
        self.io(
            &path,
            (|| {
                if path.exists() {
                    fs::remove_dir_all(&path)?;
                }
                fs::create_dir_all(&path)
            })(),
        )?;
        Ok(Draft { path })
    }

    /// Makes a draft, with all files written, the newest checkpoint; then removes those that are too many. `passed` hears
    /// of each point of the protocol as it is passed.
    ///
    /// # Errors
    /// The file system refuses, or a newer start of the stage exists. What was there before is untouched.
    pub fn commit(
        &self,
        draft: Draft,
        state: &State,
        mut passed: impl FnMut(CommitPoint),
    ) -> Result<PathBuf, CheckpointError> {
        let new = Name { step: state.step, start: self.fence.incarnation() };
        let target = self.path(new);
        self.io(&draft.path, files::write_json(&draft.file(STATE), state))?;
        passed(CommitPoint::StateWritten);
        self.io(&draft.path, Manifest::write(&draft.path, &self.all_files()))?;
        passed(CommitPoint::ManifestWritten);
        self.io(&draft.path, files::sync_dir(&draft.path))?;
        passed(CommitPoint::DraftSynced);
        self.fence.check()?;
        passed(CommitPoint::FenceChecked);
        self.io(&target, fs::rename(&draft.path, &target))?;
        passed(CommitPoint::Renamed);
        self.io(&self.directory, files::sync_dir(&self.directory))?;
        passed(CommitPoint::Synced);
        self.name_latest(new)?;
        passed(CommitPoint::LatestWritten);
        for surplus in too_many(&self.own_or_earlier()?, new, self.keep) {
            let (path, hidden) = (self.path(surplus), self.directory.join(format!("{OLD}{surplus}")));
            self.io(&path, rename_over(&path, &hidden))?;
        }
        passed(CommitPoint::SurplusHidden);
        self.sweep()?;
        passed(CommitPoint::SurplusRemoved);
        Ok(target)
    }

    /// The newest checkpoint that is whole, and what is wrong with those newer than it.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn newest_good(&self) -> Result<(Option<Found>, Vec<CheckpointError>), CheckpointError> {
        let (found, damaged) = self.newest_of(&self.names()?);
        let damaged = damaged.into_iter();
        let damaged =
            damaged.map(|(name, problem)| CheckpointError::Damaged { path: self.path(name), problem }).collect();
        Ok((found.map(|(name, state)| Found { path: self.path(name), state }), damaged))
    }

    /// What this start goes on from: the newest checkpoint that is whole, which gets this start's name, so that no earlier
    /// start can remove it any more; and what is wrong with those newer than it, which are set aside under another name.
    /// What earlier starts left half-done is removed.
    ///
    /// # Errors
    /// The file system refuses, or a newer start of the stage exists.
    pub fn take_over(&self) -> Result<(Option<Found>, Vec<CheckpointError>), CheckpointError> {
        let mut set_aside = Vec::new();
        loop {
            let listed = self.own_or_earlier()?;
            let (found, damaged) = self.newest_of(&listed);
            for (name, problem) in damaged {
                let (from, to) = (self.path(name), self.directory.join(format!("damaged-{name}")));
                if self.io(&from, rename_over(&from, &to))? {
                    set_aside.push(CheckpointError::Damaged { path: from, problem });
                }
            }
            let Some((name, state)) = found else {
                self.sweep()?;
                return Ok((None, set_aside));
            };
            let own = Name { start: self.fence.incarnation(), ..name };
            let (from, path) = (self.path(name), self.path(own));
            // If it is not there any more, an earlier start has just removed it: there is a newer one.
            if self.io(&from, rename_over(&from, &path))? {
                self.io(&self.directory, files::sync_dir(&self.directory))?;
                self.name_latest(own)?;
                self.sweep()?;
                return Ok((Some(Found { path, state }), set_aside));
            }
        }
    }

    /// The checkpoints of this start and earlier ones, in order. Only these may be renamed or removed: a newer start's may
    /// come to be at any time.
    fn own_or_earlier(&self) -> Result<Vec<Name>, CheckpointError> {
        let listed = self.names()?;
        self.fence.check()?;
        // There was no newer start when the check was made, and so none when they were listed.
        Ok(listed)
    }

    /// The newest of these that is whole, and what is wrong with those newer than it.
    fn newest_of(&self, names: &[Name]) -> Looked {
        let mut damaged = Vec::new();
        for &name in names.iter().rev() {
            match self.read(name) {
                Ok(state) => return (Some((name, state)), damaged),
                Err(problem) => damaged.push((name, problem)),
            }
        }
        (None, damaged)
    }

    /// Removes what has lost its name, and what this start or an earlier one has left half-done.
    fn sweep(&self) -> Result<(), CheckpointError> {
        let own = self.fence.incarnation();
        let is_left = |entry: &String| {
            let draft = entry.strip_prefix(DRAFT).and_then(|start| start.parse().ok());
            entry.starts_with(OLD) || draft.is_some_and(|start: u64| start <= own)
        };
        for entry in self.entries()?.into_iter().filter(is_left) {
            let path = self.directory.join(entry);
            match fs::remove_dir_all(&path) {
                // Another start sweeps, too.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                removed => self.io(&path, removed)?,
            }
        }
        Ok(())
    }

    fn name_latest(&self, name: Name) -> Result<(), CheckpointError> {
        let latest = self.directory.join("LATEST");
        self.io(&latest, files::write_atomically(&latest, format!("{name}\n").as_bytes()))
    }

    /// The names of all checkpoints, damaged ones included, in order.
    fn names(&self) -> Result<Vec<Name>, CheckpointError> {
        let mut names: Vec<Name> = self.entries()?.iter().filter_map(|entry| Name::parse(entry)).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn entries(&self) -> Result<Vec<String>, CheckpointError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => self.io(&self.directory, entries)?,
        };
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
    }

    fn path(&self, name: Name) -> PathBuf {
        self.directory.join(name.to_string())
    }

    fn all_files(&self) -> Vec<&'static str> {
        self.files.iter().copied().chain([STATE]).collect()
    }

    fn read(&self, name: Name) -> Result<State, String> {
        let path = self.path(name);
        Manifest::verify(&path, &self.all_files())?;
        let state: State = match files::read_json(&path.join(STATE)) {
            Ok(Some(state)) => state,
            Ok(None) => return Err("has no state.json".to_owned()),
            Err(e) => return Err(format!("state.json: {e}")),
        };
        if state.step == name.step { Ok(state) } else { Err(format!("says that it is step {}", state.step)) }
    }

    fn io<T>(&self, path: &Path, result: io::Result<T>) -> Result<T, CheckpointError> {
        result.map_err(|source| CheckpointError::Io { path: path.to_owned(), source })
    }
}

const STATE: &str = "state.json";

/// How the names of drafts begin; the number of the start follows.
const DRAFT: &str = ".draft-";
/// How the names of checkpoints begin that are about to be removed, so that no reader finds one while it is.
const OLD: &str = ".old-";

/// A checkpoint that is whole, and what is wrong with others.
type Looked = (Option<(Name, State)>, Vec<(Name, String)>);

/// Renames a directory; one that has the new name already is removed. False if it is not there: for a reader of its old name
/// it is gone, whoever has renamed or removed it.
fn rename_over(from: &Path, to: &Path) -> io::Result<bool> {
    if from != to && from.exists() && to.exists() {
        fs::remove_dir_all(to)?;
    }
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        renamed => renamed.map(|()| true),
    }
}

#[cfg(test)]
mod tests;
