//! λ, learning rate and layer-wise factors as functions of the optimizer step.

use serde::{Deserialize, Serialize};

/// The schedule of one training run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Optimizer steps in all.
    pub total_steps: u64,
    /// Steps of linear warm-up: ⌊warmup · total⌋.
    pub warmup_steps: u64,
    /// Peak learning rate.
    pub base_rate: f64,
    /// λ when it is constant; `None`: it rises linearly from 0 to 1 (teacher annealing, BAM section 2.2).
    pub constant_lambda: Option<f64>,
}

impl Schedule {
    /// λ, the weight of the gold label, at step 0 … total−1: step / total.
    pub fn lambda(&self, step: u64) -> f64 {
        self.constant_lambda.unwrap_or(step as f64 / self.total_steps as f64)
    }

    /// Learning rate at step 0 … total−1: base·step/warmup, then base·(1 − step/total), as BERT does it.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            self.base_rate * step as f64 / self.warmup_steps as f64
        } else {
            self.base_rate * (1.0 - step as f64 / self.total_steps as f64)
        }
    }
}

/// Layer-wise factor on the learning rate: factor^(layers + 2 − depth). `depth` is 0 for the embeddings, i + 1 for
/// encoder layer i, layers + 1 for the pooler, layers + 2 for the heads.
pub fn layer_multiplier(factor: f64, layers: usize, depth: usize) -> f64 {
    factor.powi((layers + 2).saturating_sub(depth) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bam() -> Schedule {
        Schedule { total_steps: 50_646, warmup_steps: 5_064, base_rate: 1e-4, constant_lambda: None }
    }

    #[test]
    fn the_learning_rate_rises_to_its_peak_and_falls_towards_zero() {
        let s = bam();
        assert_eq!(s.learning_rate(0), 0.0);
        assert!((s.learning_rate(2_532) - 0.5e-4).abs() < 1e-12);
        assert!((s.learning_rate(5_064) - 1e-4 * (1.0 - 5_064.0 / 50_646.0)).abs() < 1e-12);
        assert!(s.learning_rate(50_645) > 0.0 && s.learning_rate(50_645) < 3e-9);
    }

    #[test]
    fn lambda_starts_at_zero_and_never_quite_reaches_one() {
        let s = bam();
        assert_eq!(s.lambda(0), 0.0);
        assert_eq!(s.lambda(25_323), 0.5);
        assert!(s.lambda(50_645) < 1.0);
        assert_eq!(Schedule { constant_lambda: Some(0.5), ..s }.lambda(7), 0.5);
    }

    #[test]
    fn layer_multipliers_of_bert_large_are_those_of_the_paper() {
        let m = |depth| layer_multiplier(0.9, 24, depth);
        for (depth, expected) in [(26, 1.0), (25, 0.9), (24, 0.81), (1, 0.0718), (0, 0.0646)] {
            assert!((m(depth) - expected).abs() < 5e-5, "depth {depth}: {}", m(depth));
        }
    }
}
