//! Whether a stage that failed is started again: a pure function of how it failed before.

use std::time::Duration;

use super::verdict::Verdict;

/// The pause before the first restart; it doubles with each restart without progress.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is remembered of a stage's failures.
#[derive(Debug, Default)]
pub struct History {
    /// The last one's kind, and the step at which it came.
    last: Option<(String, Option<u64>)>,
    /// Restarts since the newest checkpoint was made.
    restarts: usize,
    checkpoint: Option<u64>,
}

/// What becomes of a stage that failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is started again.
    Restart {
        /// After so long.
        pause: Duration,
        /// It is the n-th restart without a new checkpoint.
        number: usize,
    },
    /// It is not; why, if the failure does not say so itself.
    GiveUp(Option<String>),
}

impl History {
    /// Takes a failure in and decides. At most `most` restarts come without a new checkpoint in between; the same failure
    /// at the same step twice is no accident.
    pub fn decide(&mut self, verdict: &Verdict, most: usize) -> Decision {
        if verdict.is_lasting {
            return Decision::GiveUp(None);
        }
        if verdict.checkpoint > self.checkpoint {
            self.restarts = 0;
            self.checkpoint = verdict.checkpoint;
        }
        let failure = (verdict.finding.kind.clone(), verdict.step);
        if self.last.as_ref().is_some_and(|last| alike(last, &failure)) {
            let why = "the same failure at the same step for the second time: it will not go away by itself";
            return Decision::GiveUp(Some(why.to_owned()));
        }
        self.last = Some(failure);
        if self.restarts >= most {
            let why = format!("{most} restarts without a new checkpoint (cluster.max_restarts)");
            return Decision::GiveUp((most > 0).then_some(why));
        }
        self.restarts += 1;
        let doubled = FIRST_PAUSE * 2u32.saturating_pow(u32::try_from(self.restarts - 1).unwrap_or(u32::MAX).min(16));
        Decision::Restart { pause: doubled.min(LONGEST_PAUSE), number: self.restarts }
    }
}

/// Which step is the newest that is known depends on what was on its way: one more or less is the same.
fn alike(a: &(String, Option<u64>), b: &(String, Option<u64>)) -> bool {
    let same_step = match (a.1, b.1) {
        (Some(a), Some(b)) => a.abs_diff(b) <= 1,
        (a, b) => a == b,
    };
    a.0 == b.0 && same_step
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::verdict::Finding;

    fn failure(kind: &str, step: u64, checkpoint: u64) -> Verdict {
        let finding = Finding { what: "rank 1 died".into(), last_lines: String::new(), kind: kind.into() };
        Verdict { finding, exit_code: 1, is_lasting: false, step: Some(step), checkpoint: Some(checkpoint) }
    }

    fn restart(seconds: u64, number: usize) -> Decision {
        Decision::Restart { pause: Duration::from_secs(seconds), number }
    }

    #[test]
    fn pauses_grow_until_there_is_progress() {
        let mut history = History::default();
        assert_eq!(history.decide(&failure("a", 5, 3), 3), restart(1, 1));
        assert_eq!(history.decide(&failure("a", 8, 3), 3), restart(2, 2));
        assert_eq!(history.decide(&failure("a", 12, 9), 3), restart(1, 1));
        assert_eq!(history.decide(&failure("b", 12, 9), 3), restart(2, 2));
        assert_eq!(history.decide(&failure("a", 10, 9), 3), restart(4, 3));
        let Decision::GiveUp(Some(why)) = history.decide(&failure("b", 17, 9), 3) else { panic!() };
        assert!(why.contains("3 restarts without a new checkpoint"), "{why}");
    }

    #[test]
    fn the_same_failure_at_the_same_step_is_not_tried_for_ever() {
        let mut history = History::default();
        assert_eq!(history.decide(&failure("a", 5, 3), 9), restart(1, 1));
        let Decision::GiveUp(Some(why)) = history.decide(&failure("a", 6, 3), 9) else { panic!() };
        assert!(why.contains("will not go away"), "{why}");
    }

    #[test]
    fn a_failure_that_lasts_is_not_tried_again_and_none_is_if_none_may() {
        let lasting = Verdict { is_lasting: true, ..failure("a", 5, 3) };
        assert_eq!(History::default().decide(&lasting, 3), Decision::GiveUp(None));
        assert_eq!(History::default().decide(&failure("a", 5, 3), 0), Decision::GiveUp(None));
    }

    #[test]
    fn no_pause_is_longer_than_a_minute() {
        let mut history = History::default();
        let pauses: Vec<Decision> = (0..100).map(|i| history.decide(&failure("a", 3 * i, 3), 1000)).collect();
        assert_eq!(pauses[99], restart(60, 100));
    }
}
