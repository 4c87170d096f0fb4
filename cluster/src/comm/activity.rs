//! What a rank is doing right now, as its heartbeat tells it: written by the training thread, read by another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shared by the threads of a rank.
#[derive(Clone)]
pub struct Activity(Arc<Mutex<State>>);

struct State {
    phase: &'static str,
    step: Option<u64>,
    entered: Option<(&'static str, Instant)>,
    sequence: u64,
}

/// A copy of what a rank is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What part of its work it is in.
    pub phase: &'static str,
    /// The optimizer step, in training.
    pub step: Option<u64>,
    /// The collective it is in, and since when.
    pub collective: Option<(&'static str, Duration)>,
    /// How many collectives it has entered.
    pub sequence: u64,
}

impl Default for Activity {
    fn default() -> Self {
        Activity(Arc::new(Mutex::new(State { phase: "starting", step: None, entered: None, sequence: 0 })))
    }
}

impl Activity {
    /// Says what part of its work the rank is in.
    pub fn phase(&self, phase: &'static str) {
        self.state().phase = phase;
    }

    /// Says which optimizer step the rank is at.
    pub fn step(&self, step: u64) {
        self.state().step = Some(step);
    }

    /// Says that the rank enters a collective, until the guard is dropped.
    pub fn enter(&self, name: &'static str) -> InCollective<'_> {
        let mut state = self.state();
        state.sequence += 1;
        state.entered = Some((name, Instant::now()));
        InCollective(self)
    }

    /// What the rank is doing.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        Snapshot {
            phase: state.phase,
            step: state.step,
            collective: state.entered.map(|(name, since)| (name, since.elapsed())),
            sequence: state.sequence,
        }
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
        self.0.state().entered = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collective_is_seen_until_it_is_left() {
        let activity = Activity::default();
        let guard = activity.enter("gradients");
        assert_eq!(activity.snapshot().collective.map(|c| c.0), Some("gradients"));
        drop(guard);
        assert_eq!(activity.snapshot().collective, None);
        assert_eq!(activity.snapshot().sequence, 1);
    }
}
