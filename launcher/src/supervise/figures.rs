//! How far a stage has come, how fast it goes and how long it will take, from what rank 0 reports.

use std::time::Duration;

use bam_cluster::protocol::StepReport;

/// Weight of the past in running means: about the last twenty steps count.
const MEMORY: f64 = 0.95;

/// Progress of one stage.
#[derive(Debug, Default)]
pub struct Figures {
    unit: Unit,
    done: u64,
    total: u64,
    /// Running sums that forget: of weights, losses, examples and seconds.
    weight: f64,
    loss: f64,
    examples: f64,
    seconds: f64,
    /// Model FLOPs utilisation, weighted by the seconds.
    utilised: f64,
    lambda: Option<f64>,
    checkpoint: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Unit {
    #[default]
    Examples,
    Steps,
}

impl Figures {
    /// Of a training stage that has `done` of `total` steps behind it.
    pub fn of_training(done: u64, total: u64) -> Figures {
        Figures { unit: Unit::Steps, done, total, checkpoint: (done > 0).then_some(done), ..Figures::default() }
    }

    /// Takes in one optimizer step. `distilled`: λ is of interest.
    pub fn step(&mut self, report: &StepReport, distilled: bool) {
        self.done = report.step + 1;
        for (sum, value) in [
            (&mut self.weight, 1.0),
            (&mut self.loss, report.loss),
            (&mut self.examples, report.examples as f64),
            (&mut self.seconds, report.seconds),
            (&mut self.utilised, report.utilisation * report.seconds),
        ] {
            *sum = *sum * MEMORY + value;
        }
        self.lambda = distilled.then_some(report.lambda);
    }

    /// Takes in how many examples of a stage without steps are done, `elapsed` after its start.
    pub fn examples(&mut self, done: u64, total: u64, elapsed: Duration) {
        (self.done, self.total) = (done, total);
        (self.weight, self.examples, self.seconds) = (done as f64, done as f64, elapsed.as_secs_f64());
    }

    /// Takes in a checkpoint.
    pub fn checkpoint(&mut self, step: u64) {
        self.checkpoint = Some(step);
    }

    /// Steps or examples done.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Steps or examples in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Everything but done and total; what matters most comes first, for a narrow terminal cuts the rest off.
    pub fn details(&self) -> String {
        let mut parts = vec![];
        match self.unit {
            Unit::Examples => parts.push("examples".to_owned()),
            Unit::Steps => parts.push("steps".to_owned()),
        }
        if self.weight > 0.0 && self.seconds > 0.0 {
            let remaining = self.total.saturating_sub(self.done) as f64 * self.seconds / self.weight;
            parts.push(format!("{} left", brief(remaining)));
            if self.unit == Unit::Steps {
                parts.push(format!("loss {:.3}", self.loss / self.weight));
            }
            parts.extend(self.lambda.map(|l| format!("λ {l:.2}")));
            parts.push(format!("{:.1} samples/s", self.examples / self.seconds));
            if self.unit == Unit::Steps {
                parts.push(format!("MFU {:.0} %", 100.0 * self.utilised / self.seconds));
            }
        }
        parts.extend(self.checkpoint.map(|step| format!("checkpoint {step}")));
        parts.join(", ")
    }
}

/// Seconds for people: `40 s`, `3 min 20 s`, `2 h 5 min`.
pub fn brief(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, _) if seconds < 9.95 => format!("{seconds:.1} s"),
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: u64) -> StepReport {
        StepReport {
            step,
            loss: 0.5,
            task_losses: Default::default(),
            lambda: 0.25,
            learning_rate: 1e-4,
            gradient_norm: 1.0,
            examples: 32,
            tokens: 1000,
            seconds: 2.0,
            phases: Default::default(),
            bytes_reduced: 0,
            utilisation: 0.5,
            device_memory: None,
        }
    }

    #[test]
    fn means_are_unbiased_from_the_first_step_on() {
        let mut figures = Figures::of_training(10, 100);
        assert_eq!(figures.details(), "steps, checkpoint 10");
        figures.step(&report(10), true);
        assert_eq!(
            figures.details(),
            "steps, 2 min 58 s left, loss 0.500, λ 0.25, 16.0 samples/s, MFU 50 %, checkpoint 10"
        );
        figures.step(&report(11), false);
        figures.checkpoint(12);
        assert_eq!(figures.details(), "steps, 2 min 56 s left, loss 0.500, 16.0 samples/s, MFU 50 %, checkpoint 12");
    }

    #[test]
    fn examples_have_a_rate_and_no_loss() {
        let mut figures = Figures::default();
        figures.examples(50, 200, Duration::from_secs(5));
        assert_eq!(figures.details(), "examples, 15 s left, 10.0 samples/s");
    }

    #[test]
    fn durations_are_brief() {
        assert_eq!([4.2, 40.4, 200.0, 7500.0].map(brief), ["4.2 s", "40 s", "3 min 20 s", "2 h 5 min"]);
    }
}
