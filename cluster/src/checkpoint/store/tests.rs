//! Whatever happens to a commit, the old checkpoint or the new one is there, and an orphan does no harm.

use proptest::prelude::*;

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

/// Steps and owners of all checkpoints that have their names.
fn names(store: &Store) -> Vec<(u64, u64)> {
    store.names().unwrap().into_iter().map(|name| (name.step, name.start)).collect()
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
    assert_eq!(names(&store), [(20, 1), (30, 1)]);
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
        let (found, set_aside) = store.take_over().unwrap();
        assert_eq!((found.unwrap().state.step, set_aside.len()), (10, 1));
        assert_eq!(newest(&store), (Some(10), 0));
        assert!(store.entries().unwrap().contains(&"damaged-step-00000020-start-1".to_owned()));
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
    // With one checkpoint kept, the new one is all that is left of it.
    for keep in [1, 2] {
        let (dir, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let before = store(dir.path(), keep);
        for step in [5, 10] {
            commit(&before, step).unwrap();
        }
        let mut points = vec![];
        let draft = before.draft().unwrap();
        fs::write(draft.file("model"), "20").unwrap();
        let look = |point: CommitPoint| {
            points.push(point);
            copy(dir.path(), &left.path().join(point.number().to_string()));
        };
        before.commit(draft, &state(20), look).unwrap();
        // The first points are the tensors', which the caller writes.
        assert_eq!(points, CommitPoint::ALL[3..]);
        for point in points {
            let after = store(&left.path().join(point.number().to_string()), keep);
            let (found, damaged) = after.take_over().unwrap();
            let found = found.unwrap();
            let is_there = point >= CommitPoint::Renamed;
            assert_eq!((found.state.step, damaged.len()), (if is_there { 20 } else { 10 }, 0), "{point:?}");
            assert_eq!(fs::read_to_string(found.path.join("model")).unwrap(), found.state.step.to_string());
            assert!(after.entries().unwrap().iter().all(|n| !n.starts_with('.')), "{point:?}");
            commit(&after, 30).unwrap();
            commit(&after, 40).unwrap();
            assert_eq!(names(&after), [(30, 2), (40, 2)][2 - keep..], "{point:?}");
        }
    }
}

/// It is held up at each point of its commit in turn, and goes on after newer starts have taken over and committed.
#[test]
fn an_orphan_that_was_held_up_anywhere_takes_nothing_from_a_newer_start() {
    for held_at in &CommitPoint::ALL[3..] {
        for steps_of_newer in [&[][..], &[20], &[15, 20, 30], &[30, 40]] {
            let dir = tempfile::tempdir().unwrap();
            let orphan = store(dir.path(), 1);
            commit(&orphan, 10).unwrap();
            let draft = orphan.draft().unwrap();
            fs::write(draft.file("model"), "20").unwrap();
            let mut newer = None;
            let meanwhile = |point| {
                if point == *held_at {
                    let started = store(dir.path(), 1);
                    let base = started.take_over().unwrap().0.unwrap().state.step;
                    let steps = steps_of_newer.iter().copied().filter(|step| *step > base);
                    steps.for_each(|step| drop(commit(&started, step).unwrap()));
                    newer = Some((names(&started), started));
                }
            };
            let _ = orphan.commit(draft, &state(20), meanwhile);
            let case = format!("held at {held_at:?} while a newer start came to {steps_of_newer:?}");
            let (had, newer) = newer.unwrap();
            let now = names(&newer);
            assert!(had.iter().all(|name| now.contains(name)), "{case}: {had:?} became {now:?}");
            // What is gone on from is the newer start's, or the orphan's of a later step, which is whole, too.
            let (found, damaged) = newer.newest_good().unwrap();
            assert_eq!(damaged.len(), 0, "{case}");
            assert!(found.unwrap().state.step >= had.last().unwrap().0, "{case}");
            commit(&newer, 50).unwrap();
            let third = store(dir.path(), 1);
            assert_eq!(third.take_over().unwrap().0.map(|f| f.state.step), Some(50), "{case}");
        }
    }
}

/// It was about to go on from a checkpoint when a newer start did.
#[test]
fn of_two_starts_that_go_on_from_one_checkpoint_the_newer_one_has_it() {
    let dir = tempfile::tempdir().unwrap();
    commit(&store(dir.path(), 1), 10).unwrap();
    let orphan = store(dir.path(), 1);
    let newer = store(dir.path(), 1);
    assert_eq!(newer.take_over().unwrap().0.unwrap().state.step, 10);
    assert!(matches!(orphan.take_over(), Err(CheckpointError::Fenced { own: 2, current: 3 })));
    assert_eq!(names(&newer), [(10, 3)]);
    assert_eq!(fs::read_to_string(dir.path().join("stages/s/checkpoints/LATEST")).unwrap(), "step-00000010-start-3\n");
}

#[test]
fn a_checkpoint_of_before_starts_were_in_names_is_gone_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(dir.path(), 1);
    let path = commit(&first, 10).unwrap();
    fs::rename(&path, path.with_file_name("step-00000010")).unwrap();
    let second = store(dir.path(), 1);
    assert_eq!(second.take_over().unwrap().0.unwrap().state.step, 10);
    commit(&second, 20).unwrap();
    assert_eq!(names(&second), [(20, 2)]);
}

/// What may happen between two looks at a directory of checkpoints.
#[derive(Debug, Clone, Copy)]
enum Happening {
    /// So many more steps, and a checkpoint.
    Commit(u64),
    /// A kill at the n-th point of a commit, and a new start.
    KilledIn(u64, usize),
    /// The newest checkpoint is damaged; then a new start.
    Damaged,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => (1u64..20).prop_map(Happening::Commit),
        3 => (1u64..20, 3usize..12).prop_map(|(steps, point)| Happening::KilledIn(steps, point)),
        1 => Just(Happening::Damaged),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn retention_never_removes_the_last_good_one(
        keep in 1usize..4,
        happenings in prop::collection::vec(happening(), 1..12),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut current = store(dir.path(), keep);
        // The whole checkpoints that a run may go on from, and the step that it is at.
        let (mut whole, mut step) = (vec![], 0);
        for what in happenings {
            match what {
                Happening::Commit(steps) => {
                    step += steps;
                    commit(&current, step).unwrap();
                    whole.push(step);
                    whole = whole.split_off(whole.len().saturating_sub(keep));
                }
                Happening::KilledIn(steps, point) => {
                    let draft = current.draft().unwrap();
                    fs::write(draft.file("model"), (step + steps).to_string()).unwrap();
                    let left = dir.path().join(format!("left-{}", current.fence.incarnation()));
                    let look = |at| if at == CommitPoint::ALL[point] { copy(&current.directory, &left) };
                    current.commit(draft, &state(step + steps), look).unwrap();
                    fs::remove_dir_all(&current.directory).unwrap();
                    fs::rename(&left, &current.directory).unwrap();
                    if CommitPoint::ALL[point] >= CommitPoint::Renamed {
                        whole.push(step + steps);
                    }
                    if CommitPoint::ALL[point] >= CommitPoint::SurplusHidden {
                        whole = whole.split_off(whole.len().saturating_sub(keep));
                    }
                    current = store(dir.path(), keep);
                }
                Happening::Damaged => {
                    if let Some(found) = current.newest_good().unwrap().0 {
                        fs::write(found.path.join("model"), "damaged").unwrap();
                        whole.pop();
                    }
                    current = store(dir.path(), keep);
                }
            }
            let found = current.take_over().unwrap().0.map(|found| found.state.step);
            prop_assert_eq!(found, whole.last().copied());
            step = found.unwrap_or(0);
        }
    }
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
