//! Which examples the global batch of each step holds: a pure function of seed and step, whatever the processes.

use super::mixture::Drawing;
use super::random::{Stream, shuffled};

/// One drawn example: task index and position in that task's training data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// Index into the stage's tasks.
    pub task: u16,
    /// Index into the task's training examples, 0 … size−1.
    pub example: u32,
}

/// Draws mixed-task batches. Examples come without replacement until what they are drawn from is used up, then in a new
/// order.
pub struct Sampler {
    batch_size: usize,
    source: Source,
    next_step: u64,
}

/// What examples are drawn from.
enum Source {
    /// Each task's data by itself.
    Tasks {
        /// Upper ends of the tasks' intervals in [0, 1).
        cumulative: Vec<f64>,
        drawn: Stream,
        passes: Vec<Pass>,
    },
    /// All tasks' data, each so many times.
    Epoch {
        /// Where each task's part of an epoch ends.
        ends: Vec<usize>,
        sizes: Vec<usize>,
        pass: Pass,
    },
}

/// One way through some data.
struct Pass {
    /// Seeds its orders, together with their number.
    name: Vec<String>,
    size: usize,
    /// How many passes were begun.
    number: u64,
    order: Vec<u32>,
    position: usize,
}

impl Sampler {
    /// A sampler at step 0. `sizes` are the tasks' numbers of training examples, each at least 1.
    pub fn new(seed: u64, sizes: &[usize], drawing: &Drawing, batch_size: usize) -> Self {
        let seed = seed.to_string();
        let source = match drawing {
            Drawing::Random(probabilities) => Source::Tasks {
                cumulative: running_sums(probabilities),
                drawn: Stream::named(&["tasks", &seed]),
                passes: sizes
                    .iter()
                    .enumerate()
                    .map(|(i, &n)| Pass::over(n, &["order", &seed, &i.to_string()]))
                    .collect(),
            },
            Drawing::Multiples(multiples) => {
                let parts: Vec<usize> = sizes.iter().zip(multiples).map(|(size, &m)| size * m as usize).collect();
                let ends = running_sums(&parts);
                let pass = Pass::over(parts.iter().sum(), &["epoch", &seed]);
                Source::Epoch { ends, sizes: sizes.to_vec(), pass }
            }
        };
        Sampler { batch_size, source, next_step: 0 }
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
        match &mut self.source {
            Source::Tasks { cumulative, drawn, passes } => {
                let u = drawn.uniform();
                let task = cumulative.partition_point(|&end| end <= u).min(passes.len() - 1);
                Draw { task: task as u16, example: passes[task].next() }
            }
            Source::Epoch { ends, sizes, pass } => {
                let position = pass.next() as usize;
                let task = ends.partition_point(|&end| end <= position);
                let start = if task == 0 { 0 } else { ends[task - 1] };
                Draw { task: task as u16, example: ((position - start) % sizes[task]) as u32 }
            }
        }
    }
}

impl Pass {
    fn over(size: usize, name: &[&str]) -> Pass {
        Pass { name: name.iter().map(|&part| part.to_owned()).collect(), size, number: 0, order: vec![], position: 0 }
    }

    fn next(&mut self) -> u32 {
        if self.position == self.order.len() {
            let number = self.number.to_string();
            let seed: Vec<&str> = self.name.iter().map(String::as_str).chain([number.as_str()]).collect();
            self.order = shuffled(self.size, &seed);
            self.number += 1;
            self.position = 0;
        }
        self.position += 1;
        self.order[self.position - 1]
    }
}

fn running_sums<T: Copy + Default + std::ops::AddAssign>(values: &[T]) -> Vec<T> {
    let running = |sum: &mut T, value: &T| {
        *sum += *value;
        Some(*sum)
    };
    values.iter().scan(T::default(), running).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const THREE: [usize; 3] = [1000, 100, 10];

    fn proportional(sizes: &[usize]) -> Drawing {
        let roots: Vec<f64> = sizes.iter().map(|&n| (n as f64).powf(0.75)).collect();
        Drawing::Random(roots.iter().map(|r| r / roots.iter().sum::<f64>()).collect())
    }

    #[test]
    fn frequencies_approach_the_probabilities() {
        let Drawing::Random(probabilities) = proportional(&THREE) else { panic!() };
        let mut sampler = Sampler::new(3, &THREE, &proportional(&THREE), 1000);
        let mut counts = [0.0; 3];
        for _ in 0..100 {
            for draw in sampler.next_batch() {
                counts[draw.task as usize] += 1e-5;
            }
        }
        for (count, p) in counts.iter().zip(probabilities) {
            assert!((count - p).abs() < 0.01, "{count} against {p}");
        }
    }

    /// Training examples of GLUE's tasks: MNLI, QQP, QNLI, SST-2, CoLA, STS-B, MRPC, RTE.
    const GLUE: [usize; 8] = [392_702, 363_846, 104_743, 67_349, 8_551, 5_749, 3_668, 2_490];

    #[test]
    fn an_epoch_on_glue_draws_each_task_within_its_bounds() {
        let Drawing::Random(probabilities) = proportional(&GLUE) else { panic!() };
        let mut sampler = Sampler::new(1, &GLUE, &proportional(&GLUE), 128);
        let steps = GLUE.iter().sum::<usize>().div_ceil(128);
        let mut counts = [0u32; 8];
        for draw in (0..steps).flat_map(|_| sampler.next_batch()).collect::<Vec<_>>() {
            counts[draw.task as usize] += 1;
        }
        let n = (steps * 128) as f64;
        for (count, p) in counts.iter().zip(probabilities) {
            // 99.9 % of all epochs lie within 3.3 standard deviations.
            let deviations = (f64::from(*count) - n * p) / (n * p * (1.0 - p)).sqrt();
            assert!(deviations.abs() < 3.3, "{count} of {n} with p = {p} are {deviations} deviations off");
        }
    }

    #[test]
    fn an_epoch_of_multiples_holds_every_example_so_many_times() {
        let drawing = Drawing::Multiples(vec![1, 2, 5]);
        let mut sampler = Sampler::new(3, &THREE, &drawing, 1250);
        let epoch = |sampler: &mut Sampler| {
            let mut draws: Vec<(u16, u32)> = sampler.next_batch().iter().map(|d| (d.task, d.example)).collect();
            let order = draws.clone();
            draws.sort_unstable();
            (draws, order)
        };
        let expected: Vec<(u16, u32)> = [(0, 1000, 1), (1, 100, 2), (2, 10, 5)]
            .iter()
            .flat_map(|&(task, size, times)| (0..size).flat_map(move |i| vec![(task, i); times]))
            .collect();
        let (first, second) = (epoch(&mut sampler), epoch(&mut sampler));
        assert_eq!((&first.0, &second.0), (&expected, &expected));
        assert_ne!(first.1, second.1, "each epoch has an order of its own");
    }

    proptest! {
        #[test]
        fn the_batch_of_a_step_does_not_depend_on_how_one_got_there(
            seed in any::<u64>(), step in 0u64..40, batch in 1usize..20, sizes in proptest::collection::vec(1usize..60, 1..5),
            multiples in any::<bool>(),
        ) {
            let drawing = if multiples {
                Drawing::Multiples((1..=sizes.len() as u64).collect())
            } else {
                proportional(&sizes)
            };
            let mut walked = Sampler::new(seed, &sizes, &drawing, batch);
            for _ in 0..step {
                walked.next_batch();
            }
            let mut skipped = Sampler::new(seed, &sizes, &drawing, batch);
            skipped.skip_to(step);
            prop_assert_eq!(walked.next_batch(), skipped.next_batch());
        }

        #[test]
        fn each_pass_over_a_task_uses_every_example_once(seed in any::<u64>(), size in 1usize..50, passes in 1usize..4) {
            let mut sampler = Sampler::new(seed, &[size], &proportional(&[size]), size);
            for _ in 0..passes {
                let mut examples: Vec<u32> = sampler.next_batch().iter().map(|d| d.example).collect();
                examples.sort_unstable();
                prop_assert_eq!(examples, (0..size as u32).collect::<Vec<_>>());
            }
        }
    }
}
