//! Adam on a device, through libtorch's fused kernel: one call for all tensors that share rate and decay.

use tch::{Device, Kind, Tensor};

use crate::optim::{Span, is_corrected};
use crate::shim::{AdamStep, TorchError, fused_adamw};

use bam_cluster::config::OptimizerKind;

/// BERT's Adam and AdamW.
pub(super) struct Adam {
    groups: Vec<Group>,
    is_corrected: bool,
    device: Device,
}

/// Tensors that share their settings: value, gradient, first and second moment of each.
struct Group {
    rate_factor: f64,
    decay: f64,
    tensors: Vec<[Tensor; 4]>,
}

/// libtorch always corrects the moments' bias. So late that there is nothing left to correct, which is BERT's Adam.
const NEVER_CORRECTED: f32 = 1e9;

impl Adam {
    /// For flat buffers: values, gradients, first and second moments.
    pub fn new(kind: OptimizerKind, spans: &[Span], flat: [&Tensor; 4]) -> Adam {
        let mut groups: Vec<Group> = vec![];
        for Span { range, rate_factor, weight_decay } in spans {
            let tensors = flat.map(|t| t.narrow(0, range.start as i64, range.len() as i64));
            let alike = |g: &&mut Group| (g.rate_factor, g.decay) == (*rate_factor, *weight_decay);
            match groups.iter_mut().find(alike) {
                Some(group) => group.tensors.push(tensors),
                None => groups.push(Group { rate_factor: *rate_factor, decay: *weight_decay, tensors: vec![tensors] }),
            }
        }
        Adam { groups, is_corrected: is_corrected(kind), device: flat[0].device() }
    }

    /// Step number `step` (from 0) with gradients `scale`·gradients, which they become.
    pub fn step(&self, scale: f64, rate: f64, step: u64) -> Result<(), TorchError> {
        let number = if self.is_corrected { (step + 1) as f32 } else { NEVER_CORRECTED };
        let scalar = |value: f32| Tensor::from_slice(&[value]).to_device(self.device).squeeze();
        let (number, divisor) = (scalar(number), scalar((1.0 / scale) as f32));
        for Group { rate_factor, decay, tensors } in &self.groups {
            let settings = AdamStep { rate: rate * rate_factor, betas: [0.9, 0.999], decay: *decay, epsilon: 1e-6 };
            let tensors: Vec<[&Tensor; 4]> = tensors.iter().map(|t| t.each_ref()).collect();
            fused_adamw(&tensors, &number, &divisor, settings)?;
        }
        Ok(())
    }
}

/// Moments of so many parameters, all zero.
pub(super) fn moments(parameters: usize, device: Device) -> [Tensor; 2] {
    [(); 2].map(|()| Tensor::zeros([parameters as i64], (Kind::Float, device)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::lamb::Lamb;
    use crate::optim::Optimizer;
    use crate::tensor_memory::{floats, floats_mut};

    const KINDS: [OptimizerKind; 3] = [OptimizerKind::BertAdam, OptimizerKind::AdamW, OptimizerKind::Lamb];

    #[test]
    fn steps_are_those_of_the_optimizer_for_cpus() {
        let span = |range, rate_factor, weight_decay| Span { range, rate_factor, weight_decay };
        let spans = vec![span(0..40, 0.25, 0.01), span(40..56, 0.5, 0.0), span(56..80, 1.0, 0.01)];
        let n = 80;
        for kind in KINDS {
            let options = (Kind::Float, Device::Cpu);
            let mut values = Tensor::randn([n], options);
            let mut plain = values.copy();
            let _ = values.narrow(0, 40, 16).zero_();
            let _ = plain.narrow(0, 40, 16).zero_();
            let [first, second] = moments(n as usize, Device::Cpu);
            let mut gradients = Tensor::zeros([n], options);
            let device: Box<dyn Fn(u64)> = {
                let flat = [&values, &gradients, &first, &second];
                match kind {
                    OptimizerKind::Lamb => {
                        let lamb = Lamb::new(&spans, flat);
                        Box::new(move |step| lamb.step(0.25, 2e-3, step))
                    }
                    _ => {
                        let adam = Adam::new(kind, &spans, flat);
                        Box::new(move |step| adam.step(0.25, 2e-3, step).unwrap())
                    }
                }
            };
            let mut host = Optimizer::new(kind, spans.clone(), moments(n as usize, Device::Cpu));
            for step in 0..5 {
                gradients.copy_(&(Tensor::randn([n], options) * 4.0));
                let given = floats(&gradients).to_vec();
                host.step(&(0..n as usize), floats_mut(&mut plain), &given, 0.25, 2e-3, step);
                device(step);
            }
            let off = (&values - &plain).abs().max().double_value(&[]);
            assert!(off < 1e-6, "{kind:?}: off by {off}");
            let (expected, _) = host.moments();
            assert!(floats(&first).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{kind:?}");
            values.copy_(&plain);
        }
    }
}
