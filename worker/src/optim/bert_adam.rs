//! Adam as BERT does it: decoupled weight decay, no bias correction unless asked for, a learning rate for each layer.

use std::ops::Range;

use bam_cluster::plan::layer_multiplier;

use crate::model::ParameterSpec;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-6;
// Written out: 1 − 0.999 computed in float32 is off by 1e-5 of itself, and every step with it.
const ONE_MINUS_BETA1: f32 = 0.1;
const ONE_MINUS_BETA2: f32 = 0.001;

/// A part of the flat buffers that shares its settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Where it lies.
    pub range: Range<usize>,
    /// Factor on the learning rate.
    pub rate_factor: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

/// The spans of a model's parameters; neighbours with the same settings are one span.
pub fn spans(
    specs: &[ParameterSpec],
    ranges: &[Range<usize>],
    layers: usize,
    layerwise_decay: f64,
    weight_decay: f64,
) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (spec, range) in specs.iter().zip(ranges) {
        let span = Span {
            range: range.clone(),
            rate_factor: layer_multiplier(layerwise_decay, layers, spec.depth),
            weight_decay: if spec.is_decayed() { weight_decay } else { 0.0 },
        };
        match spans.last_mut() {
            Some(last) if (last.rate_factor, last.weight_decay) == (span.rate_factor, span.weight_decay) => {
                last.range.end = span.range.end;
            }
            _ => spans.push(span),
        }
    }
    spans
}

/// The optimizer and its moments.
pub struct BertAdam {
    spans: Vec<Span>,
    bias_correction: bool,
    first_moment: Vec<f32>,
    second_moment: Vec<f32>,
}

impl BertAdam {
    /// An optimizer whose moments are zero.
    pub fn new(spans: Vec<Span>, bias_correction: bool) -> Self {
        let n = spans.last().map_or(0, |s| s.range.end);
        BertAdam { spans, bias_correction, first_moment: vec![0.0; n], second_moment: vec![0.0; n] }
    }

    /// Running means of gradients and of their squares, in the order of the flat buffers.
    pub fn moments(&self) -> (&[f32], &[f32]) {
        (&self.first_moment, &self.second_moment)
    }

    /// As [`moments`](Self::moments), to restore them.
    pub fn moments_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        (&mut self.first_moment, &mut self.second_moment)
    }

    /// Step number `step` (from 0): m = β₁m + (1−β₁)g; v = β₂v + (1−β₂)g²; p −= rate·(m/(√v + ε) + decay·p), with
    /// g = `gradient_scale`·`gradients`.
    pub fn step(&mut self, values: &mut [f32], gradients: &[f32], gradient_scale: f64, rate: f64, step: u64) {
        let t = i32::try_from(step + 1).unwrap_or(i32::MAX);
        let correction = |beta: f64| if self.bias_correction { 1.0 - beta.powi(t) } else { 1.0 };
        let (first, second) = (correction(0.9), correction(0.999));
        for span in &self.spans {
            let rate = rate * span.rate_factor;
            let factors = Factors {
                gradient: gradient_scale as f32,
                rate: (rate / first) as f32,
                root: (1.0 / second.sqrt()) as f32,
                decay: (rate * span.weight_decay) as f32,
            };
            let r = span.range.clone();
            update(
                &mut values[r.clone()],
                &gradients[r.clone()],
                &mut self.first_moment[r.clone()],
                &mut self.second_moment[r],
                &factors,
            );
        }
    }
}

struct Factors {
    gradient: f32,
    rate: f32,
    root: f32,
    decay: f32,
}

/// One pass over four arrays of equal length; written so that the compiler vectorises it.
fn update(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], f: &Factors) {
    for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * f.gradient;
        *m = BETA1 * *m + ONE_MINUS_BETA1 * g;
        *v = BETA2 * *v + ONE_MINUS_BETA2 * g * g;
        *p -= f.rate * (*m / (v.sqrt() * f.root + EPSILON)) + f.decay * *p;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formula in double precision, one value at a time.
    fn plain(g: &[f64], rate: f64, decay: f64, correct: bool) -> f64 {
        let (mut p, mut m, mut v) = (0.5, 0.0, 0.0);
        for (i, g) in g.iter().enumerate() {
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            let t = i as i32 + 1;
            let (cm, cv) = if correct { (1.0 - 0.9f64.powi(t), 1.0 - 0.999f64.powi(t)) } else { (1.0, 1.0) };
            p -= rate * ((m / cm) / ((v / cv).sqrt() + 1e-6) + decay * p);
        }
        p
    }

    #[test]
    fn steps_agree_with_the_plain_formula() {
        for correct in [false, true] {
            let gradients = [0.3, -0.2, 1e-4, 0.0];
            let spans = vec![Span { range: 0..1, rate_factor: 0.5, weight_decay: 0.01 }];
            let mut adam = BertAdam::new(spans, correct);
            let mut p = [0.5f32];
            for (i, g) in gradients.iter().enumerate() {
                adam.step(&mut p, &[*g as f32 * 4.0], 0.25, 2e-3, i as u64);
            }
            let expected = plain(&gradients, 1e-3, 0.01, correct);
            assert!((f64::from(p[0]) - expected).abs() < 2e-7, "{} against {expected}", p[0]);
        }
    }

    #[test]
    fn spans_merge_neighbours_and_cover_everything() {
        let spec = |name: &str, depth| ParameterSpec {
            name: name.into(),
            shape: vec![2],
            depth,
            init: crate::model::Init::Zero,
        };
        let specs = [spec("a.weight", 0), spec("b.weight", 0), spec("b.bias", 0), spec("c.weight", 3)];
        let ranges = [0..2, 2..4, 4..6, 6..8];
        let spans = spans(&specs, &ranges, 1, 0.5, 0.01);
        let expected = [(0..4, 0.125, 0.01), (4..6, 0.125, 0.0), (6..8, 1.0, 0.01)];
        let found: Vec<_> = spans.iter().map(|s| (s.range.clone(), s.rate_factor, s.weight_decay)).collect();
        assert_eq!(found, expected);
    }
}
