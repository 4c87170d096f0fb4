//! What became of the steps of a stage: `metrics.jsonl`, however long, as a few hundred points of curves and the sums over
//! all steps.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use bam_cluster::protocol::{Phases, StepReport};

/// Neighbouring steps, as one point of a curve.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Point {
    /// The first of the steps.
    pub first_step: u64,
    /// How many there are.
    pub steps: u64,
    /// Sum of losses.
    loss: f64,
    /// The lowest and the highest loss of a step.
    pub loss_range: (f64, f64),
    /// Each task's sum of mean losses, and of how many steps.
    task_losses: BTreeMap<String, (f64, u64)>,
    lambda: f64,
    learning_rate: f64,
    gradient_norm: f64,
    examples: u64,
    tokens: u64,
    seconds: f64,
    /// Seconds that ranks would have needed if they only multiplied.
    utilised: f64,
    phases: Phases,
    bytes_reduced: u64,
}

impl Point {
    /// One step.
    fn of(report: &StepReport) -> Point {
        Point {
            first_step: report.step,
            steps: 1,
            loss: report.loss,
            loss_range: (report.loss, report.loss),
            task_losses: report.task_losses.iter().map(|(task, loss)| (task.clone(), (*loss, 1))).collect(),
            lambda: report.lambda,
            learning_rate: report.learning_rate,
            gradient_norm: report.gradient_norm,
            examples: report.examples as u64,
            tokens: report.tokens,
            seconds: report.seconds,
            utilised: report.utilisation * report.seconds,
            phases: report.phases,
            bytes_reduced: report.bytes_reduced,
        }
    }

    /// Takes in the steps that follow.
    fn add(&mut self, next: &Point) {
        if self.steps == 0 {
            *self = next.clone();
            return;
        }
        self.steps += next.steps;
        self.loss += next.loss;
        let (low, high) = next.loss_range;
        self.loss_range = (self.loss_range.0.min(low), self.loss_range.1.max(high));
        for (task, (loss, steps)) in &next.task_losses {
            let known = self.task_losses.entry(task.clone()).or_default();
            *known = (known.0 + loss, known.1 + steps);
        }
        self.lambda += next.lambda;
        self.learning_rate += next.learning_rate;
        self.gradient_norm += next.gradient_norm;
        self.examples += next.examples;
        self.tokens += next.tokens;
        self.seconds += next.seconds;
        self.utilised += next.utilised;
        self.bytes_reduced += next.bytes_reduced;
        let (sums, more) = (&mut self.phases, &next.phases);
        sums.data += more.data;
        sums.forward += more.forward;
        sums.backward += more.backward;
        sums.waiting += more.waiting;
        sums.reduction += more.reduction;
        sums.optimizer += more.optimizer;
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.steps.max(1) as f64
    }

    fn rate(&self, count: f64) -> f64 {
        if self.seconds > 0.0 { count / self.seconds } else { 0.0 }
    }

    /// Mean loss.
    pub fn loss(&self) -> f64 {
        self.mean(self.loss)
    }

    /// Mean loss of a task's examples over the steps that had any.
    pub fn task_loss(&self, task: &str) -> Option<f64> {
        self.task_losses.get(task).map(|(sum, steps)| sum / *steps as f64)
    }

    /// Mean λ.
    pub fn lambda(&self) -> f64 {
        self.mean(self.lambda)
    }

    /// Mean learning rate before layer-wise factors.
    pub fn learning_rate(&self) -> f64 {
        self.mean(self.learning_rate)
    }

    /// Mean norm of the gradient before clipping.
    pub fn gradient_norm(&self) -> f64 {
        self.mean(self.gradient_norm)
    }

    /// Examples a second.
    pub fn samples_per_second(&self) -> f64 {
        self.rate(self.examples as f64)
    }

    /// Tokens a second, padding not counted.
    pub fn tokens_per_second(&self) -> f64 {
        self.rate(self.tokens as f64)
    }

    /// Model FLOPs utilisation.
    pub fn utilisation(&self) -> f64 {
        self.rate(self.utilised)
    }

    /// Seconds of a step, on the mean.
    pub fn step_seconds(&self) -> f64 {
        self.mean(self.seconds)
    }

    /// Bytes that a rank hands in for reduction in a step, on the mean.
    pub fn bytes_reduced(&self) -> f64 {
        self.mean(self.bytes_reduced as f64)
    }

    /// What part of the time each part of a step took, and what lies between steps; of all, 1.
    pub fn parts(&self) -> [(&'static str, f64); 7] {
        let Phases { data, forward, backward, waiting, reduction, optimizer } = self.phases;
        let known = data + forward + backward + waiting + reduction + optimizer;
        let share = |seconds: f64| if self.seconds > 0.0 { (seconds / self.seconds).clamp(0.0, 1.0) } else { 0.0 };
        [
            ("data", share(data)),
            ("forward", share(forward)),
            ("backward", share(backward)),
            ("waiting for the slowest rank", share(waiting)),
            ("reduction", share(reduction)),
            ("optimizer", share(optimizer)),
            ("between steps", share(self.seconds - known)),
        ]
    }
}

/// All steps of a stage so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curves {
    /// In the order of steps.
    pub points: Vec<Point>,
    /// Over all of them.
    pub whole: Point,
}

impl Curves {
    /// Of a stage of `total` steps, as at most `most` points.
    pub fn of(reports: impl IntoIterator<Item = StepReport>, total: u64, most: u64) -> Curves {
        let width = total.div_ceil(most.max(1)).max(1);
        let mut curves = Curves::default();
        for report in reports {
            let is_next = curves.points.last().is_none_or(|p| report.step / width != p.first_step / width);
            if is_next {
                curves.points.push(Point::default());
            }
            let one = Point::of(&report);
            if let Some(point) = curves.points.last_mut() {
                point.add(&one);
            }
            curves.whole.add(&one);
        }
        curves
    }

    /// The same as at most `most` points, each of as many of these.
    pub fn coarse(&self, most: usize) -> Vec<Point> {
        let joined = |points: &[Point]| {
            let mut sum = Point::default();
            points.iter().for_each(|point| sum.add(point));
            sum
        };
        self.points.chunks(self.points.len().div_ceil(most.max(1)).max(1)).map(joined).collect()
    }

    /// Reads `metrics.jsonl`; nothing where there is none. A line that is just being written is left out.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn read(path: &Path, total: u64, most: u64) -> io::Result<Curves> {
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Curves::default()),
            file => file?,
        };
        let lines = BufReader::new(file).split(b'\n').map_while(Result::ok);
        Ok(Curves::of(lines.filter_map(|line| serde_json::from_slice(&line).ok()), total, most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: u64) -> StepReport {
        StepReport {
            step,
            loss: step as f64,
            task_losses: if step.is_multiple_of(2) { BTreeMap::from([("a".to_owned(), 1.0)]) } else { BTreeMap::new() },
            lambda: step as f64 / 100.0,
            learning_rate: 0.1,
            gradient_norm: 2.0,
            examples: 10,
            tokens: 100,
            seconds: 0.5,
            phases: Phases { forward: 0.1, backward: 0.3, ..Phases::default() },
            bytes_reduced: 8,
            utilisation: 0.5,
            device_memory: None,
        }
    }

    #[test]
    fn many_steps_are_a_few_points_and_nothing_is_left_out() {
        let curves = Curves::of((0..95).map(report), 100, 10);
        assert_eq!(
            curves.points.iter().map(|p| p.first_step).collect::<Vec<_>>(),
            (0..95).step_by(10).collect::<Vec<_>>()
        );
        let last = curves.points.last().unwrap();
        assert_eq!((last.steps, last.loss(), last.loss_range), (5, 92.0, (90.0, 94.0)));
        assert!((last.lambda() - 0.92).abs() < 1e-9 && (last.learning_rate() - 0.1).abs() < 1e-9);
        assert_eq!((last.task_loss("a"), last.task_loss("b")), (Some(1.0), None));
        assert_eq!(
            (curves.whole.steps, curves.whole.samples_per_second(), curves.whole.utilisation()),
            (95, 20.0, 0.5)
        );
        let coarse = curves.coarse(3);
        assert_eq!(coarse.iter().map(|p| (p.first_step, p.steps)).collect::<Vec<_>>(), [(0, 40), (40, 40), (80, 15)]);
        assert_eq!((coarse[1].loss(), coarse[1].loss_range), (59.5, (40.0, 79.0)));
        let parts = curves.whole.parts();
        assert!((parts.iter().map(|(_, share)| share).sum::<f64>() - 1.0).abs() < 1e-9);
        assert!((parts[6].1 - 0.2).abs() < 1e-9, "{parts:?}");
    }

    #[test]
    fn few_steps_are_a_point_each() {
        assert_eq!(Curves::of((0..7).map(report), 7, 10).points.len(), 7);
        assert_eq!(Curves::of(std::iter::empty(), 0, 0), Curves::default());
        assert_eq!(Curves::read(Path::new("/nowhere"), 7, 10).unwrap(), Curves::default());
    }
}
