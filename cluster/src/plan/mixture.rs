//! How much of each task a stage learns: how often its examples are drawn, and what their losses weigh.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{Sampling, SamplingMethod};

/// How the examples of several tasks are mixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mixture {
    /// How often each task is drawn.
    pub drawing: Drawing,
    /// What the losses of each task's examples are multiplied with.
    pub loss_weights: Vec<f64>,
}

/// How often each task is drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Drawing {
    /// The task of each example is drawn at random, with these probabilities.
    Random(Vec<f64>),
    /// An epoch holds each task's examples so many times, all shuffled together.
    Multiples(Vec<u64>),
}

impl Mixture {
    /// The mixture of tasks with so many training examples (at least 1 each).
    pub fn of(sampling: &Sampling, sizes: &[usize]) -> Mixture {
        let even = vec![1.0; sizes.len()];
        match sampling.method {
            SamplingMethod::Proportional => {
                Mixture { drawing: Drawing::Random(probabilities(sizes, sampling.exponent)), loss_weights: even }
            }
            SamplingMethod::Uniform => {
                Mixture { drawing: Drawing::Random(probabilities(sizes, 0.0)), loss_weights: even }
            }
            SamplingMethod::Multiples => {
                let multiples = multiples(sizes, sampling.exponent);
                let loss_weights = loss_weights(sizes, &multiples, sampling.exponent);
                Mixture { drawing: Drawing::Multiples(multiples), loss_weights }
            }
        }
    }

    /// The same with each task's losses multiplied with its factor, 1 if it has none. A model of one task has none to be
    /// weighed against.
    #[must_use]
    pub fn weighted(mut self, tasks: &[String], factors: &BTreeMap<String, f64>) -> Mixture {
        if tasks.len() > 1 {
            let factors = tasks.iter().map(|task| factors.get(task).copied().unwrap_or(1.0));
            self.loss_weights.iter_mut().zip(factors).for_each(|(weight, factor)| *weight *= factor);
        }
        self
    }

    /// Examples that make an epoch.
    pub fn examples_per_epoch(&self, sizes: &[usize]) -> u64 {
        let times = |task: usize| match &self.drawing {
            Drawing::Random(_) => 1,
            Drawing::Multiples(multiples) => multiples[task],
        };
        sizes.iter().enumerate().map(|(task, &size)| times(task) * size as u64).sum()
    }

    /// Share of each task in what is drawn.
    pub fn shares(&self, sizes: &[usize]) -> Vec<f64> {
        match &self.drawing {
            Drawing::Random(probabilities) => probabilities.clone(),
            Drawing::Multiples(multiples) => {
                let all = self.examples_per_epoch(sizes) as f64;
                sizes.iter().zip(multiples).map(|(&size, &m)| m as f64 * size as f64 / all).collect()
            }
        }
    }
}

/// p(τ) ∝ |D_τ|^exponent (Bowman et al. 2018; BAM section 3).
fn probabilities(sizes: &[usize], exponent: f64) -> Vec<f64> {
    // Relative to the size that weighs most no power overflows. Between 0 and 1 none does, and probabilities remain, to
    // the last bit, what runs were begun with.
    let unit = match exponent {
        e if (0.0..=1.0).contains(&e) => 1.0,
        e if e > 1.0 => sizes.iter().copied().max().unwrap_or(1) as f64,
        _ => sizes.iter().copied().min().unwrap_or(1) as f64,
    };
    let weights: Vec<f64> = sizes.iter().map(|&n| (n as f64 / unit).powf(exponent)).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

/// How many times the reference implementation repeats each task: as often as brings its size next to
/// n_max·(n/n_max)^exponent, and at least once.
fn multiples(sizes: &[usize], exponent: f64) -> Vec<u64> {
    let largest = sizes.iter().copied().max().unwrap_or(1) as f64;
    let multiple = |&size: &usize| {
        let target = largest * (size as f64 / largest).powf(exponent);
        // As the reference rounds it; the hundredth keeps the largest task's own quotient from falling below 1.
        ((target + 0.01) / size as f64).round().max(1.0) as u64
    };
    sizes.iter().map(multiple).collect()
}

/// Weights that make up for the rounding of multiples: ∝ n^exponent / (n·multiple), 1 on the mean over the tasks.
fn loss_weights(sizes: &[usize], multiples: &[u64], exponent: f64) -> Vec<f64> {
    let raw = |(&size, &multiple): (&usize, &u64)| (size as f64).powf(exponent) / (size as f64 * multiple as f64);
    let raw: Vec<f64> = sizes.iter().zip(multiples).map(raw).collect();
    let mean = raw.iter().sum::<f64>() / raw.len() as f64;
    raw.iter().map(|w| w / mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table in BAM's seed: QNLI v2 sizes, MRPC and STS-B not doubled.
    #[test]
    fn probabilities_on_glue_are_the_published_ones() {
        let sizes = [392_702, 363_846, 104_743, 67_349, 8_551, 5_749, 3_668, 2_490];
        let expected = [0.36586, 0.34550, 0.13579, 0.09750, 0.02074, 0.01540, 0.01099, 0.00822];
        for (p, e) in probabilities(&sizes, 0.75).iter().zip(expected) {
            assert!((p - e).abs() < 0.5e-5, "{p} against {e}");
        }
    }

    #[test]
    fn any_exponent_gives_probabilities() {
        let close = |exponent: f64, expected: [f64; 3]| {
            let found = probabilities(&[100, 10, 1], exponent);
            assert!(found.iter().zip(expected).all(|(p, e)| (p - e).abs() < 1e-12), "{exponent}: {found:?}");
        };
        let sum = 1_000.0 + 10f64.powf(1.5) + 1.0;
        close(1.5, [1_000.0 / sum, 10f64.powf(1.5) / sum, 1.0 / sum]);
        close(-1.0, [1.0 / 111.0, 10.0 / 111.0, 100.0 / 111.0]);
        close(0.0, [1.0 / 3.0; 3]);
        for exponent in [500.0, 1e300, f64::MAX] {
            close(exponent, [1.0, 0.0, 0.0]);
            close(-exponent, [0.0, 0.0, 1.0]);
        }
    }

    /// Task sizes, multiples and loss weights of the reference implementation (MRPC and STS-B doubled, QNLI v1).
    const REFERENCE: [(usize, u64, f64); 8] = [
        (392_702, 1, 0.99505),
        (363_869, 1, 1.01421),
        (108_436, 1, 1.37268),
        (67_349, 2, 0.77312),
        (11_498, 2, 1.20275),
        (8_551, 3, 0.86345),
        (7_336, 3, 0.89717),
        (2_490, 4, 0.88156),
    ];

    #[test]
    fn multiples_on_glue_are_the_references() {
        let sizes = REFERENCE.map(|(size, _, _)| size);
        let sampling = Sampling { method: SamplingMethod::Multiples, ..Sampling::default() };
        let mixture = Mixture::of(&sampling, &sizes);
        assert_eq!(mixture.drawing, Drawing::Multiples(REFERENCE.map(|(_, multiple, _)| multiple).to_vec()));
        for (weight, (size, _, expected)) in mixture.loss_weights.iter().zip(REFERENCE) {
            assert!((weight - expected).abs() < 0.5e-5, "{size}: {weight} against {expected}");
        }
        assert_eq!(mixture.examples_per_epoch(&sizes), 1_080_322);
        assert_eq!(mixture.examples_per_epoch(&sizes).div_ceil(128), 8_441);
        assert!((mixture.shares(&sizes).iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn uniform_draws_all_tasks_alike() {
        let sampling = Sampling { method: SamplingMethod::Uniform, ..Sampling::default() };
        let mixture = Mixture::of(&sampling, &[1000, 10]);
        assert_eq!(mixture.drawing, Drawing::Random(vec![0.5, 0.5]));
        assert_eq!((mixture.loss_weights.as_slice(), mixture.examples_per_epoch(&[1000, 10])), (&[1.0, 1.0][..], 1010));
    }

    #[test]
    fn a_task_may_weigh_more_than_it_would_among_others() {
        let sizes = REFERENCE.map(|(size, _, _)| size);
        let mixture = Mixture::of(&Sampling { method: SamplingMethod::Multiples, ..Sampling::default() }, &sizes);
        let tasks = ["mnli", "qqp", "qnli", "sst2", "stsb", "cola", "mrpc", "rte"].map(str::to_owned);
        let factors = BTreeMap::from([("stsb".to_owned(), 10.0)]);
        let weighted = mixture.clone().weighted(&tasks, &factors);
        for (i, (found, usual)) in weighted.loss_weights.iter().zip(&mixture.loss_weights).enumerate() {
            assert_eq!(*found, if i == 4 { 10.0 * usual } else { *usual });
        }
        assert_eq!(weighted.drawing, mixture.drawing);
        let alone = Mixture::of(&Sampling::default(), &[5_749]);
        assert_eq!(alone.clone().weighted(&["stsb".to_owned()], &factors), alone);
    }
}
