//! Whether there is time for a checkpoint between the scheduler's signal and the end.

use std::time::Duration;

use crate::numbers::brief;

/// What was measured of a stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Seconds of the slowest step.
    pub step: f64,
    /// Seconds of the slowest checkpoint, from the first byte to the last sync.
    pub checkpoint: f64,
}

/// A warning, if what has to happen after the signal may take longer than `lead`: the step under way, the step in which
/// the ranks agree, the checkpoint that is just being written, and the last one.
pub fn shortage(lead: Duration, measured: Measured) -> Option<String> {
    let needed = 2.0 * measured.step + 2.0 * measured.checkpoint;
    (needed > lead.as_secs_f64()).then(|| {
        format!(
            "stopping in good order may take {} (two steps of {}, two checkpoints of {}), but the signal comes only {} before \
             the end (checkpoint.lead): have it sent earlier (Slurm: --signal=USR1@{}), or what was done since the last \
             checkpoint will be done again",
            brief(needed),
            brief(measured.step),
            brief(measured.checkpoint),
            brief(lead.as_secs_f64()),
            (1.5 * needed).ceil()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lead_that_is_too_short_is_told_with_one_that_is_not() {
        let measured = Measured { step: 4.0, checkpoint: 30.0 };
        assert_eq!(shortage(Duration::from_secs(68), measured), None);
        let warning = shortage(Duration::from_secs(60), measured).unwrap();
        assert!(warning.contains("1 min 8 s") && warning.contains("USR1@102"), "{warning}");
    }
}
