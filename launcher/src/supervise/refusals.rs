//! What the log says of refused connections: the first ones in full, then a count now and then, so that a flood of them
//! does not fill the disk.

use std::time::Duration;

/// So many get a line of their own.
const IN_FULL: u64 = 20;
/// So often the others are counted.
const COUNT_EVERY: Duration = Duration::from_secs(60);

/// The refusals of one stage.
#[derive(Debug, Default)]
pub struct Refusals {
    in_full: u64,
    uncounted: u64,
    counted: Duration,
}

impl Refusals {
    /// Takes note of one, `now` after the stage's start; what to log about it, if anything.
    pub fn note(&mut self, refusal: String, now: Duration) -> Option<String> {
        if self.in_full < IN_FULL {
            self.in_full += 1;
            self.counted = now;
            return Some(refusal);
        }
        self.uncounted += 1;
        if now.saturating_sub(self.counted) < COUNT_EVERY { None } else { self.count(now) }
    }

    /// A line on those that have had none so far.
    pub fn count(&mut self, now: Duration) -> Option<String> {
        let more = std::mem::take(&mut self.uncounted);
        let seconds = now.saturating_sub(self.counted).as_secs();
        self.counted = now;
        (more > 0).then(|| format!("refused {more} more connections in {seconds} s"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_few_lines_and_counted_to_the_last() {
        let mut refusals = Refusals::default();
        let lines: Vec<String> =
            (0..100_000).filter_map(|i| refusals.note("refused".into(), Duration::from_millis(i))).collect();
        assert_eq!(lines.len(), 21);
        // The 20th line was at 19 ms.
        assert_eq!(lines[20], "refused 60000 more connections in 60 s");
        let end = Duration::from_secs(100);
        assert_eq!(refusals.count(end).as_deref(), Some("refused 39980 more connections in 39 s"));
        assert_eq!(refusals.count(end), None);
    }
}
