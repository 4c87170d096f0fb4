//! How far a stage has come, how fast it goes and how long it will take, from what rank 0 reports.

use std::time::Duration;

use bam_cluster::protocol::StepReport;

use crate::numbers::brief;

/// Weight of the past in running means: about the last twenty steps count.
const MEMORY: f64 = 0.95;

/// What is said of a stage of which nothing is known yet.
pub const STARTING: &str = "starting";

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
    learning_rate: Option<f64>,
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
        self.learning_rate = Some(report.learning_rate);
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

    /// Seconds to the end of the stage; none before anything is done.
    pub fn left(&self) -> Option<f64> {
        let is_moving = self.weight > 0.0 && self.seconds > 0.0;
        is_moving.then(|| self.total.saturating_sub(self.done) as f64 * self.seconds / self.weight)
    }

    /// What is counted: `steps` or `examples`.
    pub fn unit(&self) -> &'static str {
        match self.unit {
            Unit::Examples => "examples",
            Unit::Steps => "steps",
        }
    }

    /// Everything but done and total; what matters most comes first, for a narrow terminal leaves out the rest.
    pub fn details(&self) -> Vec<String> {
        let mut parts = vec![];
        if let Some(left) = self.left() {
            let is_training = self.unit == Unit::Steps;
            // The model is judged on dev after its last step.
            let is_over = is_training && self.done >= self.total;
            parts.push(if is_over { "evaluating".to_owned() } else { format!("{} left", brief(left)) });
            parts.extend(is_training.then(|| format!("loss {:.3}", self.loss / self.weight)));
            parts.extend(self.lambda.map(|l| format!("λ {l:.2}")));
            parts.push(format!("{:.1} samples/s", self.examples / self.seconds));
            parts.extend(is_training.then(|| format!("MFU {:.0} %", 100.0 * self.utilised / self.seconds)));
            parts.extend(self.learning_rate.map(|rate| format!("lr {rate:.1e}")));
        }
        parts.extend(self.checkpoint.map(|step| format!("checkpoint {step}")));
        parts
    }

    /// The same as one line of a log.
    pub fn line(&self) -> String {
        if self.total == 0 {
            return STARTING.to_owned();
        }
        let all = std::iter::once(self.unit().to_owned()).chain(self.details());
        format!("{}/{} {}", self.done, self.total, all.collect::<Vec<_>>().join(", "))
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
        assert_eq!(figures.line(), "10/100 steps, checkpoint 10");
        figures.step(&report(10), true);
        assert_eq!(
            figures.line(),
            "11/100 steps, 2 min 58 s left, loss 0.500, λ 0.25, 16.0 samples/s, MFU 50 %, lr 1.0e-4, checkpoint 10"
        );
        figures.step(&report(11), false);
        figures.checkpoint(12);
        assert_eq!(
            figures.line(),
            "12/100 steps, 2 min 56 s left, loss 0.500, 16.0 samples/s, MFU 50 %, lr 1.0e-4, checkpoint 12"
        );
    }

    #[test]
    fn examples_have_a_rate_and_no_loss() {
        let mut figures = Figures::default();
        figures.examples(50, 200, Duration::from_secs(5));
        assert_eq!(figures.line(), "50/200 examples, 15 s left, 10.0 samples/s");
    }
}
