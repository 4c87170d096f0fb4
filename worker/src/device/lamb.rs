//! LAMB (You et al. 2020, algorithm 2) on a device: a few kernels for each tensor, which large batches pay for.

use tch::{Kind, Tensor};

use crate::optim::Span;

/// LAMB.
pub(super) struct Lamb {
    spans: Vec<Span>,
    /// Values, gradients, first and second moments of each span.
    tensors: Vec<[Tensor; 4]>,
}

impl Lamb {
    /// For flat buffers: values, gradients, first and second moments.
    pub fn new(spans: &[Span], flat: [&Tensor; 4]) -> Lamb {
        let part = |s: &Span| flat.map(|t| t.narrow(0, s.range.start as i64, s.range.len() as i64));
        Lamb { spans: spans.to_vec(), tensors: spans.iter().map(part).collect() }
    }

    /// Step number `step` (from 0) with gradients `scale`·gradients: r = m̂/(√v̂ + ε) + decay·p; p −= rate·(‖p‖/‖r‖)·r, where
    /// a ratio without a norm is 1.
    pub fn step(&self, scale: f64, rate: f64, step: u64) {
        let t = i32::try_from(step + 1).unwrap_or(i32::MAX);
        let (first, root) = (1.0 - 0.9f64.powi(t), (1.0 - 0.999f64.powi(t)).sqrt());
        for (span, [p, g, m, v]) in self.spans.iter().zip(&self.tensors) {
            let [mut p, mut m, mut v] = [p, m, v].map(Tensor::shallow_clone);
            let g = g * scale;
            m *= 0.9;
            m += &g * 0.1;
            v *= 0.999;
            v += g.square() * 0.001;
            let mut r = &m / (v.sqrt() / root + 1e-6) / first;
            if span.weight_decay != 0.0 {
                r += &p * span.weight_decay;
            }
            let (length, of_step) = (p.norm(), r.norm());
            let is_there = (length.gt(0.0)).logical_and(&of_step.gt(0.0));
            let trust = (length / of_step).where_self(&is_there, &Tensor::ones([], (Kind::Float, p.device())));
            p -= r * trust * (rate * span.rate_factor);
        }
    }
}
