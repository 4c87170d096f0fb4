//! What a rank is doing right now, as its heartbeat tells it: written by the training thread, read by another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shared by the threads of a rank.
#[derive(Clone)]
pub struct Activity(Arc<Mutex<State>>);

struct State {
    phase: &'static str,
    step: Option<u64>,
    collective: Option<&'static str>,
    sequence: u64,
    /// Since when the rank has been in the collective that it entered last, if it has not left it.
    entered: Option<Instant>,
    /// When it last showed that it gets on.
    moved: Instant,
}

/// A copy of what a rank is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What part of its work it is in.
    pub phase: &'static str,
    /// The optimizer step, in training.
    pub step: Option<u64>,
    /// The collective that it entered last.
    pub collective: Option<&'static str>,
    /// How many collectives it has entered.
    pub sequence: u64,
    /// For how long it has been in that collective; none: it has left it.
    pub waiting: Option<Duration>,
    /// How long ago it last got on: began a phase, a step or a batch, entered or left a collective.
    pub idle: Duration,
}

impl Default for Activity {
    fn default() -> Self {
        Activity(Arc::new(Mutex::new(State {
            phase: "starting",
            step: None,
            collective: None,
            sequence: 0,
            entered: None,
            moved: Instant::now(),
        })))
    }
}

impl Activity {
    /// Says what part of its work the rank is in.
    pub fn phase(&self, phase: &'static str) {
        self.moving().phase = phase;
    }

    /// Says which optimizer step the rank is at.
    pub fn step(&self, step: u64) {
        self.moving().step = Some(step);
    }

    /// Says that the rank gets on with the phase that it is in.
    pub fn progress(&self) {
        drop(self.moving());
    }

    /// Says that the rank enters a collective, until the guard is dropped.
    pub fn enter(&self, name: &'static str) -> InCollective<'_> {
        let mut state = self.moving();
        state.sequence += 1;
        state.collective = Some(name);
        state.entered = Some(state.moved);
        InCollective(self)
    }

    /// What the rank is doing.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        Snapshot {
            phase: state.phase,
            step: state.step,
            collective: state.collective,
            sequence: state.sequence,
            waiting: state.entered.map(|since| since.elapsed()),
            idle: state.moved.elapsed(),
        }
    }

    fn moving(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.moved = Instant::now();
        state
    }

    // A thread that panicked while holding the lock leaves a state that is still worth telling.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A rank is in a collective for as long as this lives.
pub struct InCollective<'a>(&'a Activity);

impl Drop for InCollective<'_> {
    fn drop(&mut self) {
        self.0.moving().entered = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collective_is_seen_until_it_is_left_and_remembered_after() {
        let activity = Activity::default();
        assert_eq!(activity.snapshot().collective, None);
        let guard = activity.enter("gradients");
        let inside = activity.snapshot();
        assert_eq!((inside.collective, inside.sequence, inside.waiting.is_some()), (Some("gradients"), 1, true));
        drop(guard);
        let outside = activity.snapshot();
        assert_eq!((outside.collective, outside.sequence, outside.waiting), (Some("gradients"), 1, None));
    }

    #[test]
    fn whatever_a_rank_says_shows_that_it_gets_on() {
        let activity = Activity::default();
        let says: [fn(&Activity); 4] =
            [|a| a.phase("loading"), |a| a.step(1), |a| a.progress(), |a| drop(a.enter("gradients"))];
        for say in says {
            std::thread::sleep(Duration::from_millis(20));
            let before = activity.snapshot().idle;
            say(&activity);
            assert!(before >= Duration::from_millis(20) && activity.snapshot().idle < before);
        }
    }
}
