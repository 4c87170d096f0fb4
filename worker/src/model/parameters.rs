//! All parameters as views of one flat buffer, and all gradients as views of another, so that reduction, clipping and
//! the optimizer each make one pass.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::shape::{Init, ParameterSpec};
use crate::tensor_memory::floats_mut;

/// A model's parameters and their gradients.
pub struct Parameters {
    specs: Vec<ParameterSpec>,
    ranges: Vec<Range<usize>>,
    leaves: Vec<Tensor>,
    values: Tensor,
    gradients: Tensor,
}

impl Parameters {
    /// Parameters of these shapes, all zero, with `tail` more values at the end of the gradient buffer (for what
    /// travels with the gradients in one reduction).
    pub fn new(specs: Vec<ParameterSpec>, tail: usize) -> Self {
        let ends = specs.iter().scan(0, |end, s| {
            let start = *end;
            *end += s.len();
            Some(start..*end)
        });
        let ranges: Vec<Range<usize>> = ends.collect();
        let total = ranges.last().map_or(0, |r| r.end);
        let options = (Kind::Float, Device::Cpu);
        let values = Tensor::zeros([total as i64], options);
        let gradients = Tensor::zeros([(total + tail) as i64], options);
        let view = |whole: &Tensor, spec: &ParameterSpec, range: &Range<usize>| {
            whole.narrow(0, range.start as i64, range.len() as i64).view(&spec.shape[..])
        };
        let leaf = |(spec, range)| view(&values, spec, range).detach().set_requires_grad(true);
        let leaves: Vec<Tensor> = specs.iter().zip(&ranges).map(leaf).collect();
        for ((spec, range), leaf) in specs.iter().zip(&ranges).zip(&leaves) {
            attach_gradient(leaf, &view(&gradients, spec, range));
        }
        Parameters { specs, ranges, leaves, values, gradients }
    }

    /// Gives the parameters that are not pretrained their first values.
    pub fn initialise(&mut self, seed: u64) {
        tch::manual_seed(seed as i64);
        let _no_grad = tch::no_grad_guard();
        let is_pooler = |spec: &ParameterSpec| spec.init == Init::PretrainedPooler;
        // The pooler comes last, so that heads start from the same values whether it is pretrained or not.
        for pooler in [false, true] {
            for (spec, leaf) in self.specs.iter().zip(&mut self.leaves).filter(|(s, _)| is_pooler(s) == pooler) {
                match spec.init {
                    Init::Pretrained => {}
                    Init::PretrainedPooler if spec.name.ends_with("bias") => _ = leaf.zero_(),
                    Init::TruncatedNormal | Init::PretrainedPooler => {
                        leaf.copy_(&truncated_normal(&spec.shape, 0.02));
                    }
                    Init::Zero => _ = leaf.zero_(),
                }
            }
        }
    }

    /// What each parameter is.
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// Where each parameter lies in the flat buffers.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// The parameter tensors, in the order of [`specs`](Self::specs).
    pub fn leaves(&self) -> &[Tensor] {
        &self.leaves
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.values.numel()
    }

    /// True if the model has no parameters, which never happens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values.
    pub fn values_mut(&mut self) -> &mut [f32] {
        floats_mut(&mut self.values)
    }

    /// All gradients, and the tail.
    pub fn gradients_mut(&mut self) -> &mut [f32] {
        floats_mut(&mut self.gradients)
    }

    /// Values to change and gradients to read (without the tail).
    pub fn values_and_gradients(&mut self) -> (&mut [f32], &mut [f32]) {
        let n = self.len();
        (floats_mut(&mut self.values), &mut floats_mut(&mut self.gradients)[..n])
    }

    /// Sets all gradients, and the tail, to zero.
    pub fn zero_gradients(&mut self) {
        let _ = self.gradients.zero_();
    }
}

/// Makes `view` the memory of the leaf's gradient: backward passes then add to the flat buffer themselves.
fn attach_gradient(leaf: &Tensor, view: &Tensor) {
    // libtorch makes a gradient only in a backward pass: this one gives zeros of the leaf's shape, and further ones
    // add to it in place. Its memory is then exchanged.
    (leaf * 0.0).sum(Kind::Float).backward();
    leaf.grad().set_data(view);
}

/// Normal values with standard deviation `std`, none further than two standard deviations from 0 (TensorFlow's
/// `truncated_normal`), by inverting the distribution function.
fn truncated_normal(shape: &[i64], std: f64) -> Tensor {
    const WITHIN_TWO: f64 = 0.954_499_736_103_641_6;
    let uniform = Tensor::rand(shape, (Kind::Float, Device::Cpu)) * 2.0 - 1.0;
    (uniform * WITHIN_TWO).erfinv() * (std * std::f64::consts::SQRT_2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: &[i64], init: Init) -> ParameterSpec {
        ParameterSpec { name: name.into(), shape: shape.to_vec(), depth: 0, init }
    }

    #[test]
    fn backward_adds_into_the_flat_buffer() {
        let specs = vec![spec("a", &[2, 2], Init::Zero), spec("b", &[3], Init::Zero)];
        let mut p = Parameters::new(specs, 1);
        p.values_mut().copy_from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        for _ in 0..2 {
            let loss = (&p.leaves()[0] * &p.leaves()[0]).sum(Kind::Float) + p.leaves()[1].sum(Kind::Float);
            loss.backward();
        }
        assert_eq!(p.gradients_mut(), [4.0, 8.0, 12.0, 16.0, 2.0, 2.0, 2.0, 0.0]);
        p.zero_gradients();
        p.leaves()[1].sum(Kind::Float).backward();
        assert_eq!(p.gradients_mut(), [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn a_truncated_normal_stays_within_two_deviations() {
        tch::manual_seed(1);
        let x = truncated_normal(&[10_000], 0.02);
        assert!(x.abs().max().double_value(&[]) <= 0.04 + 1e-6);
        // The standard deviation of a normal cut at two deviations is 0.8796 of the whole one's.
        assert!((x.std(true).double_value(&[]) - 0.02 * 0.8796).abs() < 5e-4);
    }
}
