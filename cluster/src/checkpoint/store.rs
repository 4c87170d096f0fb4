//! A stage's checkpoints on disk: commit, find the newest good one, keep as many as asked for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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
        let target = self.directory.join(name_of(state.step));
        self.io(&draft.path, files::write_json(&draft.file(STATE), state))?;
        passed(CommitPoint::StateWritten);
        self.io(&draft.path, Manifest::write(&draft.path, &self.all_files()))?;
        passed(CommitPoint::ManifestWritten);
        self.io(&draft.path, files::sync_dir(&draft.path))?;
        passed(CommitPoint::DraftSynced);
        self.fence.check()?;
        passed(CommitPoint::FenceChecked);
        self.io(&target, hide(&target))?;
        passed(CommitPoint::OldMovedAside);
        self.io(&target, fs::rename(&draft.path, &target))?;
        passed(CommitPoint::Renamed);
        self.io(&self.directory, files::sync_dir(&self.directory))?;
        passed(CommitPoint::Synced);
        let latest = self.directory.join("LATEST");
        self.io(&latest, files::write_atomically(&latest, format!("{}\n", name_of(state.step)).as_bytes()))?;
        passed(CommitPoint::LatestWritten);
        // An orphan that was held up since the check above must not remove what a newer start has made.
        self.fence.check()?;
        for step in too_many(&self.steps()?, state.step, self.keep) {
            let path = self.directory.join(name_of(step));
            self.io(&path, hide(&path))?;
        }
        passed(CommitPoint::SurplusHidden);
        self.sweep(&[OLD])?;
        passed(CommitPoint::SurplusRemoved);
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
            match self.read(&path, step) {
                Ok(state) => return Ok((Some(Found { path, state }), damaged)),
                Err(problem) => damaged.push(CheckpointError::Damaged { path, problem }),
            }
        }
        Ok((None, damaged))
    }

    /// Prepares the directory for going on after `step` optimizer steps (0: from the beginning): damaged checkpoints of
    /// later steps are set aside under another name, and what earlier starts left half-done is removed.
    ///
    /// # Errors
    /// The file system refuses, or a newer start of the stage exists.
    pub fn go_on_after(&self, step: u64) -> Result<(), CheckpointError> {
        self.fence.check()?;
        for later in self.steps()?.into_iter().filter(|s| *s > step) {
            let (from, to) = (self.directory.join(name_of(later)), self.directory.join(format!("damaged-{later:08}")));
            let moved = (|| {
                if to.exists() {
                    fs::remove_dir_all(&to)?;
                }
                fs::rename(&from, &to)
            })();
            self.io(&from, moved)?;
        }
        self.sweep(&[OLD, DRAFT])
    }

    /// Removes entries whose names begin so.
    fn sweep(&self, beginnings: &[&str]) -> Result<(), CheckpointError> {
        for name in self.names()?.iter().filter(|name| beginnings.iter().any(|b| name.starts_with(b))) {
            let path = self.directory.join(name);
            self.io(&path, fs::remove_dir_all(&path))?;
        }
        Ok(())
    }

    /// Steps of all checkpoints, damaged ones included, ascending.
    fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let mut steps: Vec<u64> = self.names()?.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn names(&self) -> Result<Vec<String>, CheckpointError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => self.io(&self.directory, entries)?,
        };
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
    }

    fn all_files(&self) -> Vec<&'static str> {
        self.files.iter().copied().chain([STATE]).collect()
    }

    fn read(&self, path: &Path, step: u64) -> Result<State, String> {
        Manifest::verify(path, &self.all_files())?;
        let state: State = match files::read_json(&path.join(STATE)) {
            Ok(Some(state)) => state,
            Ok(None) => return Err("has no state.json".to_owned()),
            Err(e) => return Err(format!("state.json: {e}")),
        };
        if state.step == step { Ok(state) } else { Err(format!("says that it is step {}", state.step)) }
    }

    fn io<T>(&self, path: &Path, result: io::Result<T>) -> Result<T, CheckpointError> {
        result.map_err(|source| CheckpointError::Io { path: path.to_owned(), source })
    }
}

const STATE: &str = "state.json";

/// How the names of drafts begin; the number of the start follows.
const DRAFT: &str = ".draft-";
/// How the names of checkpoints begin that are about to be removed.
const OLD: &str = ".old-";

fn name_of(step: u64) -> String {
    format!("step-{step:08}")
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}

/// The step of the newest checkpoint in a stage's directory of checkpoints, for those who only look: whether it is whole
/// is not asked.
pub fn newest_step(directory: &Path) -> Option<u64> {
    let names = fs::read_dir(directory).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| step_of(&name)).max()
}

/// The checkpoints to remove: all but the newest `keep` up to the one just committed, which is good and always kept.
fn too_many(steps: &[u64], committed: u64, keep: usize) -> Vec<u64> {
    let past: Vec<u64> = steps.iter().copied().filter(|s| *s <= committed).collect();
    past[..past.len().saturating_sub(keep)].to_vec()
}

/// Takes a checkpoint's name away, if it is there, so that no reader finds it while it is being removed.
fn hide(checkpoint: &Path) -> io::Result<()> {
    let name = checkpoint.file_name().unwrap_or_default().to_string_lossy();
    let hidden = checkpoint.with_file_name(format!("{OLD}{name}"));
    if hidden.exists() {
        fs::remove_dir_all(&hidden)?;
    }
    match fs::rename(checkpoint, &hidden) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        moved => moved,
    }
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
        store.commit(draft, &state(step), |_| {})
    }

    fn store(dir: &Path, keep: usize) -> Store {
        let run = RunDir::new(dir);
        Store::new(run.checkpoints("s"), &["model"], keep, Fence::advance(&run, "s").unwrap())
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
        let omit = |p: &Path| drop(Manifest::write(p, &["state.json"]).unwrap());
        let damages: [&dyn Fn(&Path); 6] = [&truncate, &flip, &lose, &unname, &garble, &omit];
        for damage in damages {
            let dir = tempfile::tempdir().unwrap();
            let store = store(dir.path(), 3);
            commit(&store, 10).unwrap();
            damage(&commit(&store, 20).unwrap());
            assert_eq!(newest(&store), (Some(10), 1));
            // Going on from 10 sets the damaged one aside and writes 20 anew.
            store.go_on_after(10).unwrap();
            assert_eq!(newest(&store), (Some(10), 0));
            assert!(store.names().unwrap().contains(&"damaged-00000020".to_owned()));
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

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }

    /// What a process leaves that is killed at a point is what is there at that point.
    #[test]
    fn whatever_point_a_commit_dies_at_the_old_or_the_new_checkpoint_is_there() {
        for is_rewritten in [false, true] {
            let (dir, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let before = store(dir.path(), 2);
            for step in [5, 10].into_iter().chain(is_rewritten.then_some(20)) {
                commit(&before, step).unwrap();
            }
            let mut points = vec![];
            let draft = before.draft().unwrap();
            fs::write(draft.file("model"), "20").unwrap();
            let keep = |point: CommitPoint| {
                points.push(point);
                copy(dir.path(), &left.path().join(point.number().to_string()));
            };
            before.commit(draft, &state(20), keep).unwrap();
            // The first points are the tensors', which the caller writes.
            assert_eq!(points, CommitPoint::ALL[3..]);
            for point in points {
                let after = store(&left.path().join(point.number().to_string()), 2);
                let (found, damaged) = newest(&after);
                let is_there = if point < CommitPoint::Renamed { is_rewritten } else { true };
                let is_moving = point == CommitPoint::OldMovedAside;
                assert_eq!(found, Some(if is_there && !is_moving { 20 } else { 10 }), "{point:?}");
                assert_eq!(damaged, 0, "{point:?}");
                after.go_on_after(found.unwrap()).unwrap();
                assert!(after.names().unwrap().iter().all(|n| !n.starts_with('.')), "{point:?}");
                commit(&after, 20).unwrap();
                commit(&after, 30).unwrap();
                assert_eq!(after.steps().unwrap(), [20, 30], "{point:?}");
            }
        }
    }

    /// It had passed the check of the fence when it was held up, and goes on after a newer start has committed.
    #[test]
    fn an_orphan_that_was_held_up_removes_nothing_of_a_newer_start() {
        let dir = tempfile::tempdir().unwrap();
        let orphan = store(dir.path(), 1);
        commit(&orphan, 10).unwrap();
        let draft = orphan.draft().unwrap();
        fs::write(draft.file("model"), "20").unwrap();
        let meanwhile = |point| {
            if point == CommitPoint::FenceChecked {
                let newer = store(dir.path(), 2);
                commit(&newer, 15).unwrap();
                commit(&newer, 30).unwrap();
            }
        };
        let outcome = orphan.commit(draft, &state(20), meanwhile);
        assert!(matches!(outcome, Err(CheckpointError::Fenced { .. })));
        let newer = store(dir.path(), 2);
        assert_eq!(newest(&newer), (Some(30), 0));
        assert!(newer.steps().unwrap().contains(&15));
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
    fn retention_keeps_the_committed_one_and_leaves_later_ones_alone() {
        assert_eq!(too_many(&[1, 2, 3], 3, 2), [1]);
        assert!(too_many(&[1, 2, 3, 9], 3, 5).is_empty());
        assert_eq!(too_many(&[1, 2, 3, 9], 3, 1), [1, 2]);
        assert!(too_many(&[3], 3, 1).is_empty());
    }
}
