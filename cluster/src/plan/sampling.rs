//! Which examples the global batch of each step holds: a pure function of seed and step, whatever the processes.

use super::random::{Stream, shuffled};

/// One drawn example: task index and position in that task's training data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// Index into the stage's tasks.
    pub task: u16,
    /// Index into the task's training examples, 0 … size−1.
    pub example: u32,
}

/// Draws mixed-task batches. The task of each example is drawn with p(τ) ∝ |D_τ|^exponent (Bowman et al. 2018; BAM
/// section 3); within a task examples come without replacement until its data is used up, then in a new order.
pub struct Sampler {
    seed: String,
    batch_size: usize,
    /// Upper ends of the tasks' intervals in [0, 1).
    cumulative: Vec<f64>,
    tasks: Vec<Pass>,
    tasks_drawn: Stream,
    next_step: u64,
}

/// One task's way through its data.
struct Pass {
    size: usize,
    /// How many passes were begun.
    number: u64,
    order: Vec<u32>,
    position: usize,
}

impl Sampler {
    /// A sampler at step 0. `sizes` are the tasks' numbers of training examples, each at least 1.
    pub fn new(seed: u64, sizes: &[usize], exponent: f64, batch_size: usize) -> Self {
        let seed = seed.to_string();
        Sampler {
            batch_size,
            cumulative: cumulative(&probabilities(sizes, exponent)),
            tasks: sizes.iter().map(|&size| Pass { size, number: 0, order: vec![], position: 0 }).collect(),
            tasks_drawn: Stream::named(&["tasks", &seed]),
            next_step: 0,
            seed,
        }
    }

    /// The global batch of the next step.
    pub fn next_batch(&mut self) -> Vec<Draw> {
        self.next_step += 1;
        (0..self.batch_size).map(|_| self.draw()).collect()
    }

    /// Goes forward to `step`, so that [`next_batch`](Self::next_batch) gives that step's batch: draws all before it,
    /// which takes nanoseconds an example.
    pub fn skip_to(&mut self, step: u64) {
        while self.next_step < step {
            self.next_batch();
        }
    }

    fn draw(&mut self) -> Draw {
        let u = self.tasks_drawn.uniform();
        let task = self.cumulative.partition_point(|&end| end <= u).min(self.tasks.len() - 1);
        Draw { task: task as u16, example: self.tasks[task].next(&self.seed, task) }
    }
}

impl Pass {
    fn next(&mut self, seed: &str, task: usize) -> u32 {
        if self.position == self.order.len() {
            self.order = shuffled(self.size, &["order", seed, &task.to_string(), &self.number.to_string()]);
            self.number += 1;
            self.position = 0;
        }
        self.position += 1;
        self.order[self.position - 1]
    }
}

/// p(τ) ∝ |D_τ|^exponent.
pub(super) fn probabilities(sizes: &[usize], exponent: f64) -> Vec<f64> {
    let weights: Vec<f64> = sizes.iter().map(|&n| (n as f64).powf(exponent)).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

fn cumulative(probabilities: &[f64]) -> Vec<f64> {
    let running = |sum: &mut f64, p: &f64| {
        *sum += p;
        Some(*sum)
    };
    probabilities.iter().scan(0.0, running).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The table in BAM's seed: QNLI v2 sizes, MRPC and STS-B not doubled.
    #[test]
    fn probabilities_on_glue_are_the_published_ones() {
        let sizes = [392_702, 363_846, 104_743, 67_349, 8_551, 5_749, 3_668, 2_490];
        let expected = [0.36586, 0.34550, 0.13579, 0.09750, 0.02074, 0.01540, 0.01099, 0.00822];
        for (p, e) in probabilities(&sizes, 0.75).iter().zip(expected) {
            assert!((p - e).abs() < 1e-4, "{p} against {e}");
        }
    }

    #[test]
    fn frequencies_approach_the_probabilities() {
        let sizes = [1000, 100, 10];
        let mut sampler = Sampler::new(3, &sizes, 0.75, 1000);
        let mut counts = [0.0; 3];
        for _ in 0..100 {
            for draw in sampler.next_batch() {
                counts[draw.task as usize] += 1e-5;
            }
        }
        for (count, p) in counts.iter().zip(probabilities(&sizes, 0.75)) {
            assert!((count - p).abs() < 0.01, "{count} against {p}");
        }
    }

    proptest! {
        #[test]
        fn the_batch_of_a_step_does_not_depend_on_how_one_got_there(
            seed in any::<u64>(), step in 0u64..40, batch in 1usize..20, sizes in proptest::collection::vec(1usize..60, 1..5),
        ) {
            let mut walked = Sampler::new(seed, &sizes, 0.75, batch);
            for _ in 0..step {
                walked.next_batch();
            }
            let mut skipped = Sampler::new(seed, &sizes, 0.75, batch);
            skipped.skip_to(step);
            prop_assert_eq!(walked.next_batch(), skipped.next_batch());
        }

        #[test]
        fn each_pass_over_a_task_uses_every_example_once(seed in any::<u64>(), size in 1usize..50, passes in 1usize..4) {
            let mut sampler = Sampler::new(seed, &[size], 0.75, size);
            for _ in 0..passes {
                let mut examples: Vec<u32> = sampler.next_batch().iter().map(|d| d.example).collect();
                examples.sort_unstable();
                prop_assert_eq!(examples, (0..size as u32).collect::<Vec<_>>());
            }
        }
    }
}
