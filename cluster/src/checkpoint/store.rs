//! A stage's checkpoints on disk: commit, find the newest good one, keep as many as asked for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{CheckpointError, Fence, Manifest, State};
use crate::files;

/// The checkpoints of one stage.
pub struct Store {
    directory: PathBuf,
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
    /// The checkpoints in `directory`, of which `keep` are kept.
    pub fn new(directory: PathBuf, keep: usize, fence: Fence) -> Self {
        Store { directory, keep, fence }
    }

    /// Begins a checkpoint.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn draft(&self) -> Result<Draft, CheckpointError> {
        let path = self.directory.join(format!(".draft-{}", self.fence.incarnation()));
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

    /// Makes a draft, with the files `names` in it, the newest checkpoint; then removes those that are too many.
    ///
    /// # Errors
    /// The file system refuses, or a newer start of the run exists. What was there before is untouched.
    pub fn commit(&self, draft: Draft, names: &[&str], state: &State) -> Result<PathBuf, CheckpointError> {
        let target = self.directory.join(name_of(state.step));
        let all: Vec<&str> = names.iter().copied().chain([STATE]).collect();
        self.io(&draft.path, files::write_json(&draft.file(STATE), state))?;
        self.io(&draft.path, Manifest::write(&draft.path, &all))?;
        self.io(&draft.path, files::sync_dir(&draft.path))?;
        self.fence.check()?;
        self.io(&target, replace_dir(&draft.path, &target))?;
        self.io(&self.directory, files::sync_dir(&self.directory))?;
        let latest = self.directory.join("LATEST");
        self.io(&latest, files::write_atomically(&latest, format!("{}\n", name_of(state.step)).as_bytes()))?;
        self.retire(state.step)?;
        Ok(target)
    }

    /// The newest checkpoint that is whole, and what is wrong with those newer than it.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn newest_good(&self) -> Result<(Option<Found>, Vec<CheckpointError>), CheckpointError> {
        let mut damaged = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            let path = self.directory.join(name_of(step));
            match read(&path, step) {
                Ok(state) => return Ok((Some(Found { path, state }), damaged)),
                Err(problem) => damaged.push(CheckpointError::Damaged { path, problem }),
            }
        }
        Ok((None, damaged))
    }

    fn retire(&self, committed: u64) -> Result<(), CheckpointError> {
        for step in too_many(&self.steps()?, committed, self.keep) {
            let path = self.directory.join(name_of(step));
            self.io(&path, fs::remove_dir_all(&path))?;
        }
        Ok(())
    }

    /// Steps of all checkpoints, damaged ones included, ascending.
    fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => self.io(&self.directory, entries)?,
        };
        let step = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("step-")?.parse::<u64>().ok();
        let mut steps: Vec<u64> = entries.filter_map(Result::ok).filter_map(step).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn io<T>(&self, path: &Path, result: io::Result<T>) -> Result<T, CheckpointError> {
        result.map_err(|source| CheckpointError::Io { path: path.to_owned(), source })
    }
}

const STATE: &str = "state.json";

fn name_of(step: u64) -> String {
    format!("step-{step:08}")
}

/// The checkpoints to remove: all but the newest `keep` up to the one just committed. Those after it are of a past
/// that is being written anew (they were damaged, or the resume skipped them).
fn too_many(steps: &[u64], committed: u64, keep: usize) -> Vec<u64> {
    let (past, future): (Vec<u64>, Vec<u64>) = steps.iter().partition(|s| **s <= committed);
    let surplus = past.len().saturating_sub(keep);
    past[..surplus].iter().copied().chain(future).collect()
}

fn read(path: &Path, step: u64) -> Result<State, String> {
    Manifest::verify(path)?;
    let state: State = match files::read_json(&path.join(STATE)) {
        Ok(Some(state)) => state,
        Ok(None) => return Err("has no state.json".to_owned()),
        Err(e) => return Err(format!("state.json: {e}")),
    };
    if state.step == step { Ok(state) } else { Err(format!("says that it is step {}", state.step)) }
}

/// Renames directory `from` to `to`. A directory that is in the way is moved aside first and removed last.
fn replace_dir(from: &Path, to: &Path) -> io::Result<()> {
    let old = to.with_extension("old");
    if old.exists() {
        fs::remove_dir_all(&old)?;
    }
    if to.exists() {
        fs::rename(to, &old)?;
    }
    fs::rename(from, to)?;
    if old.exists() {
        fs::remove_dir_all(&old)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Receipt, Schedule};
    use crate::run_dir::RunDir;

    fn state(step: u64) -> State {
        let schedule = Schedule { total_steps: 100, warmup_steps: 10, base_rate: 1e-4, constant_lambda: None };
        let inputs = String::new();
        State { step, receipt: Receipt::empty(), schedule, inputs, incarnation: 1, world_size: 1 }
    }

    fn commit(store: &Store, step: u64) -> Result<PathBuf, CheckpointError> {
        let draft = store.draft()?;
        fs::write(draft.file("model"), step.to_string()).unwrap();
        store.commit(draft, &["model"], &state(step))
    }

    fn store(dir: &Path, keep: usize) -> Store {
        let run = RunDir::new(dir);
        Store::new(run.checkpoints("s"), keep, Fence::advance(&run).unwrap())
    }

    fn newest(store: &Store) -> (Option<u64>, usize) {
        let (found, damaged) = store.newest_good().unwrap();
        (found.map(|f| f.state.step), damaged.len())
    }

    #[test]
    fn the_newest_is_found_and_the_oldest_retired() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 2);
        assert_eq!(newest(&store), (None, 0));
        for step in [10, 20, 30] {
            commit(&store, step).unwrap();
        }
        assert_eq!(newest(&store), (Some(30), 0));
        assert_eq!(store.steps().unwrap(), [20, 30]);
    }

    #[test]
    fn a_damaged_checkpoint_is_skipped_and_named_whatever_the_damage() {
        let truncate = |p: &Path| fs::write(p.join("model"), "").unwrap();
        let flip = |p: &Path| fs::write(p.join("model"), "21").unwrap();
        let lose = |p: &Path| fs::remove_file(p.join("state.json")).unwrap();
        let unname = |p: &Path| fs::remove_file(p.join("manifest.json")).unwrap();
        let garble = |p: &Path| fs::write(p.join("manifest.json"), "{").unwrap();
        let damages: [&dyn Fn(&Path); 5] = [&truncate, &flip, &lose, &unname, &garble];
        for damage in damages {
            let dir = tempfile::tempdir().unwrap();
            let store = store(dir.path(), 3);
            commit(&store, 10).unwrap();
            damage(&commit(&store, 20).unwrap());
            assert_eq!(newest(&store), (Some(10), 1));
            // Going on from 10 writes 20 anew.
            commit(&store, 20).unwrap();
            assert_eq!(newest(&store), (Some(20), 0));
        }
    }

    #[test]
    fn a_draft_that_is_not_committed_is_never_seen() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 3);
        let draft = store.draft().unwrap();
        fs::write(draft.file("model"), "half").unwrap();
        std::mem::forget(draft);
        assert_eq!(newest(&store), (None, 0));
        commit(&store, 1).unwrap();
        assert_eq!(newest(&store), (Some(1), 0));
    }

    #[test]
    fn an_orphan_of_an_earlier_start_cannot_commit() {
        let dir = tempfile::tempdir().unwrap();
        let orphan = store(dir.path(), 3);
        commit(&orphan, 1).unwrap();
        let newer = store(dir.path(), 3);
        assert!(matches!(commit(&orphan, 2), Err(CheckpointError::Fenced { own: 1, current: 2 })));
        commit(&newer, 2).unwrap();
        assert_eq!(newest(&newer), (Some(2), 0));
    }

    #[test]
    fn retention_keeps_the_committed_one_and_drops_an_overwritten_future() {
        assert_eq!(too_many(&[1, 2, 3], 3, 2), [1]);
        assert_eq!(too_many(&[1, 2, 3, 9], 3, 5), [9]);
        assert!(too_many(&[3], 3, 1).is_empty());
    }
}
