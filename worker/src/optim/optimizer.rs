//! The optimizer's state, and one step of it over a whole model.

use std::ops::Range;

use bam_cluster::config::OptimizerKind;
use bam_cluster::plan::layer_multiplier;
use tch::Tensor;

use super::{adam, lamb};
use crate::model::ParameterSpec;
use crate::tensor_memory::{floats, floats_mut};

pub(super) const BETA1: f32 = 0.9;
pub(super) const BETA2: f32 = 0.999;
pub(super) const EPSILON: f32 = 1e-6;
// Written out: 1 − 0.999 computed in float32 is off by 1e-5 of itself, and every step with it.
pub(super) const ONE_MINUS_BETA1: f32 = 0.1;
pub(super) const ONE_MINUS_BETA2: f32 = 0.001;

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

/// The spans of a model's parameters, one for each tensor.
pub fn spans(
    specs: &[ParameterSpec],
    ranges: &[Range<usize>],
    layers: usize,
    layerwise_decay: f64,
    weight_decay: f64,
) -> Vec<Span> {
    let span = |(spec, range): (&ParameterSpec, &Range<usize>)| Span {
        range: range.clone(),
        rate_factor: layer_multiplier(layerwise_decay, layers, spec.depth),
        weight_decay: if spec.is_decayed() { weight_decay } else { 0.0 },
    };
    specs.iter().zip(ranges).map(span).collect()
}

/// Whether the bias of the moments, which begin at zero, is corrected.
pub fn is_corrected(kind: OptimizerKind) -> bool {
    match kind {
        OptimizerKind::BertAdam => false,
        OptimizerKind::AdamW | OptimizerKind::Lamb => true,
    }
}

/// The optimizer and its moments.
pub struct Optimizer {
    kind: OptimizerKind,
    spans: Vec<Span>,
    moments: [Tensor; 2],
    /// LAMB's update of one tensor, before it is known how long it is.
    direction: Vec<f32>,
}

/// What one span's update needs besides its numbers.
pub(super) struct Factors {
    /// On the gradient.
    pub gradient: f32,
    /// Learning rate.
    pub rate: f32,
    /// On the first moment: its bias correction.
    pub first: f32,
    /// On the root of the second moment: its bias correction.
    pub root: f32,
    /// Weight decay.
    pub decay: f32,
}

impl Optimizer {
    /// An optimizer with these moments, which are flat buffers.
    pub fn new(kind: OptimizerKind, spans: Vec<Span>, moments: [Tensor; 2]) -> Self {
        Optimizer { kind, spans, moments, direction: vec![] }
    }

    /// The flat buffers cut into so many shares, of which each can be updated alone; if possible, at the end of a row of
    /// `width` values.
    pub fn shares(&self, count: usize, width: usize) -> Vec<Range<usize>> {
        let end = self.spans.last().map_or(0, |span| span.range.end);
        let cut = |i: usize| {
            let place = end * i / count;
            match self.kind {
                OptimizerKind::BertAdam | OptimizerKind::AdamW => place.next_multiple_of(width).min(end),
                // A tensor's step depends on the norm of all of it.
                OptimizerKind::Lamb => {
                    let cuts = self.spans.iter().map(|span| span.range.end).chain([0]);
                    cuts.min_by_key(|cut| cut.abs_diff(place)).unwrap_or(0)
                }
            }
        };
        (0..count).map(|i| cut(i)..if i + 1 == count { end } else { cut(i + 1) }).collect()
    }

    /// Running means of gradients and of their squares, in the order of the flat buffers.
    pub fn moments(&self) -> (&[f32], &[f32]) {
        let [first, second] = &self.moments;
        (floats(first), floats(second))
    }

    /// As [`moments`](Self::moments), to restore them.
    pub fn moments_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        let [first, second] = &mut self.moments;
        (floats_mut(first), floats_mut(second))
    }

    /// Step number `step` (from 0) of one of the [shares](Self::shares), with gradients `gradient_scale`·`gradients`.
    pub fn step(
        &mut self,
        share: &Range<usize>,
        values: &mut [f32],
        gradients: &[f32],
        gradient_scale: f64,
        rate: f64,
        step: u64,
    ) {
        let t = i32::try_from(step + 1).unwrap_or(i32::MAX);
        let corrected = is_corrected(self.kind);
        let correction = |beta: f64| if corrected { 1.0 - beta.powi(t) } else { 1.0 };
        let factors = |span: &Span| Factors {
            gradient: gradient_scale as f32,
            rate: (rate * span.rate_factor) as f32,
            first: (1.0 / correction(0.9)) as f32,
            root: (1.0 / correction(0.999).sqrt()) as f32,
            decay: span.weight_decay as f32,
        };
        let [first, second] = &mut self.moments;
        let (first, second) = (floats_mut(first), floats_mut(second));
        for span in &self.spans {
            let f = factors(span);
            let r = span.range.start.max(share.start)..span.range.end.min(share.end);
            if r.is_empty() {
                continue;
            }
            let (p, g) = (&mut values[r.clone()], &gradients[r.clone()]);
            let (m, v) = (&mut first[r.clone()], &mut second[r]);
            match self.kind {
                OptimizerKind::BertAdam | OptimizerKind::AdamW => adam::update(p, g, m, v, &f),
                OptimizerKind::Lamb => lamb::update(p, g, m, v, &f, &mut self.direction),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Init;

    const RATE: f64 = 2e-3;
    const DECAY: f64 = 0.01;

    /// What each optimizer's paper says, in double precision and without a thought of speed: `p` after steps with
    /// these gradients.
    fn plain(kind: OptimizerKind, mut p: Vec<f64>, gradients: &[Vec<f64>], rate: f64, decay: f64) -> Vec<f64> {
        let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
        for (i, g) in gradients.iter().enumerate() {
            let t = i as i32 + 1;
            let (cm, cv) = match kind {
                OptimizerKind::BertAdam => (1.0, 1.0),
                _ => (1.0 - 0.9f64.powi(t), 1.0 - 0.999f64.powi(t)),
            };
            let mut r = vec![0.0; p.len()];
            for j in 0..p.len() {
                m[j] = 0.9 * m[j] + 0.1 * g[j];
                v[j] = 0.999 * v[j] + 0.001 * g[j] * g[j];
                r[j] = (m[j] / cm) / ((v[j] / cv).sqrt() + 1e-6) + decay * p[j];
            }
            let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
            let trust = match kind {
                OptimizerKind::Lamb if norm(&p) > 0.0 && norm(&r) > 0.0 => norm(&p) / norm(&r),
                _ => 1.0,
            };
            for j in 0..p.len() {
                p[j] -= rate * trust * r[j];
            }
        }
        p
    }

    fn zeros(n: i64) -> [Tensor; 2] {
        [(); 2].map(|()| Tensor::zeros([n], (tch::Kind::Float, tch::Device::Cpu)))
    }

    /// Three tensors at different depths: an embedding, a bias that starts at zero, a head.
    fn model() -> (Vec<ParameterSpec>, Vec<Range<usize>>) {
        let spec =
            |name: &str, n: i64, depth| ParameterSpec { name: name.into(), shape: vec![n], depth, init: Init::Zero };
        (vec![spec("a.weight", 5, 0), spec("b.bias", 2, 1), spec("c.weight", 3, 4)], vec![0..5, 5..7, 7..10])
    }

    #[test]
    fn five_steps_agree_with_double_precision_at_every_depth() {
        let (specs, ranges) = model();
        let start: Vec<f32> = vec![0.5, -0.3, 0.02, 1.5, -2.0, 0.0, 0.0, 0.1, 0.2, -0.4];
        let gradient = |step: usize, j: usize| ((step * 7 + j * 3) % 11) as f64 * 0.1 - 0.45;
        for kind in [OptimizerKind::BertAdam, OptimizerKind::AdamW, OptimizerKind::Lamb] {
            let spans = spans(&specs, &ranges, 2, 0.5, DECAY);
            let mut optimizer = Optimizer::new(kind, spans.clone(), zeros(10));
            let mut p = start.clone();
            for step in 0..5 {
                // Four times as long as it should be, and scaled back.
                let g: Vec<f32> = (0..10).map(|j| gradient(step, j) as f32 * 4.0).collect();
                for share in optimizer.shares(3, 2) {
                    optimizer.step(&share, &mut p, &g, 0.25, RATE, step as u64);
                }
            }
            for span in &spans {
                let r = span.range.clone();
                let gradients: Vec<Vec<f64>> = (0..5).map(|s| r.clone().map(|j| gradient(s, j)).collect()).collect();
                let before = start[r.clone()].iter().map(|x| f64::from(*x)).collect();
                let after = plain(kind, before, &gradients, RATE * span.rate_factor, span.weight_decay);
                for (found, expected) in p[r].iter().zip(after) {
                    assert!((f64::from(*found) - expected).abs() < 1e-6, "{kind:?}: {found} against {expected}");
                }
            }
        }
    }

    #[test]
    fn shares_are_of_a_size_and_leave_tensors_whole_where_they_must() {
        let spans = |lengths: &[usize]| -> Vec<Span> {
            let mut end = 0;
            let span = |n: &usize| {
                end += n;
                Span { range: end - n..end, rate_factor: 1.0, weight_decay: 0.0 }
            };
            lengths.iter().map(span).collect()
        };
        let of = |kind, lengths: &[usize], count| Optimizer::new(kind, spans(lengths), zeros(0)).shares(count, 16);
        assert_eq!(of(OptimizerKind::AdamW, &[60, 40], 3), [0..48, 48..80, 80..100]);
        assert_eq!(of(OptimizerKind::Lamb, &[60, 40], 2), [0..60, 60..100]);
        assert_eq!(of(OptimizerKind::Lamb, &[95, 5], 4), [0..0, 0..95, 95..95, 95..100]);
        // More shares than there is to share.
        assert_eq!(of(OptimizerKind::BertAdam, &[10], 3), [0..10, 10..10, 10..10]);
    }

    #[test]
    fn every_tensor_is_a_span_with_its_rate_and_decay() {
        let (specs, ranges) = model();
        let found: Vec<_> = spans(&specs, &ranges, 2, 0.5, DECAY)
            .into_iter()
            .map(|s| (s.range, s.rate_factor, s.weight_decay))
            .collect();
        assert_eq!(found, [(0..5, 0.0625, DECAY), (5..7, 0.125, 0.0), (7..10, 1.0, DECAY)]);
    }
}
