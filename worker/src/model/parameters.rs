//! All parameters as views of one flat buffer, and all gradients as views of another, so that reduction, clipping and
//! the optimizer each make one pass.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::{Init, ParameterSpec};
use crate::gradient::TouchedRows;
use crate::tensor_memory::floats_mut;

/// A model's parameters and their gradients.
pub struct Parameters {
    specs: Vec<ParameterSpec>,
    ranges: Vec<Range<usize>>,
    values: Tensor,
    gradients: Tensor,
    /// The word embeddings whose gradients are not zero.
    words: TouchedRows,
    /// Gradients of the encoder's weights are what an earlier backward pass left, and wait for the next one's.
    is_stale: bool,
}

/// A parameter, or several that lie side by side, and its gradient, as views of the flat buffers.
pub(super) struct View {
    pub value: Tensor,
    pub gradient: Tensor,
}

impl Parameters {
    /// Parameters of these shapes, all zero.
    pub fn new(specs: Vec<ParameterSpec>) -> Self {
        let total = specs.iter().map(ParameterSpec::len).sum::<usize>() as i64;
        let [values, gradients] = [(); 2].map(|()| Tensor::zeros([total], (Kind::Float, Device::Cpu)));
        Parameters::within(specs, values, gradients)
    }

    /// Parameters of these shapes in these flat buffers. That of the gradients may be longer, for what travels with them in
    /// one reduction: the tail.
    pub fn within(specs: Vec<ParameterSpec>, values: Tensor, gradients: Tensor) -> Self {
        let ends = specs.iter().scan(0, |end, s| {
            let start = *end;
            *end += s.len();
            Some(start..*end)
        });
        let ranges: Vec<Range<usize>> = ends.collect();
        let width = specs.first().and_then(|spec| spec.shape.last()).map_or(1, |width| *width as usize);
        let words = TouchedRows::none(ranges.first().map_or(0, Range::len) / width, width);
        Parameters { specs, ranges, values, gradients, words, is_stale: false }
    }

    /// Parameter `index` and so many behind it, of the same shape, as one: their rows below one another.
    pub(super) fn joined(&self, index: usize, further: usize) -> View {
        let mut shape = self.specs[index].shape.clone();
        shape[0] *= further as i64 + 1;
        let (start, end) = (self.ranges[index].start, self.ranges[index + further].end);
        let view = |whole: &Tensor| whole.narrow(0, start as i64, (end - start) as i64).view(&shape[..]);
        View { value: view(&self.values), gradient: view(&self.gradients) }
    }

    /// Parameter `index` for libtorch to differentiate, which then adds to the flat buffer of gradients by itself.
    pub(super) fn leaf(&self, index: usize) -> Tensor {
        let View { value, gradient } = self.joined(index, 0);
        let leaf = value.detach().set_requires_grad(true);
        attach_gradient(&leaf, &gradient);
        leaf
    }

    /// Gives the parameters that are not pretrained their first values.
    pub fn initialise(&mut self, seed: u64) {
        tch::manual_seed(seed as i64);
        let _no_grad = tch::no_grad_guard();
        let is_pooler = |spec: &ParameterSpec| spec.init == Init::PretrainedPooler;
        // The pooler comes last, so that heads start from the same values whether it is pretrained or not.
        for pooler in [false, true] {
            for (index, spec) in self.specs.iter().enumerate().filter(|(_, s)| is_pooler(s) == pooler) {
                let mut value = self.joined(index, 0).value;
                match spec.init {
                    Init::Pretrained => {}
                    Init::PretrainedPooler if spec.name.ends_with("bias") => _ = value.zero_(),
                    Init::TruncatedNormal | Init::PretrainedPooler => {
                        value.copy_(&truncated_normal(&spec.shape, 0.02));
                    }
                    Init::Zero => _ = value.zero_(),
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
        self.settle();
        floats_mut(&mut self.gradients)
    }

    /// All gradients, the tail, and which word embeddings' gradients are not zero.
    pub fn gradients_and_words(&mut self) -> (&mut [f32], &mut TouchedRows) {
        self.settle();
        (floats_mut(&mut self.gradients), &mut self.words)
    }

    /// Values to change and gradients to read (without the tail).
    pub fn values_and_gradients(&mut self) -> (&mut [f32], &mut [f32]) {
        let n = self.len();
        self.settle();
        (floats_mut(&mut self.values), &mut floats_mut(&mut self.gradients)[..n])
    }

    /// Sets all gradients, and the tail, to zero; those that the next backward pass writes anyway only then, should it not
    /// come.
    pub fn zero_gradients(&mut self) {
        let gradients = floats_mut(&mut self.gradients);
        for range in self.words.ranges() {
            gradients[range].fill(0.0);
        }
        self.words.clear();
        for (spec, range) in self.specs.iter().zip(&self.ranges).skip(1) {
            if !spec.is_encoder_weight() {
                gradients[range.clone()].fill(0.0);
            }
        }
        gradients[self.ranges.last().map_or(0, |r| r.end)..].fill(0.0);
        self.is_stale = true;
    }

    /// Whether the backward pass that begins, with these words, is the first one since gradients were set to zero: it has to
    /// write the gradients of the encoder's weights, others add to them.
    pub(super) fn begin_backward(&mut self, words: impl Iterator<Item = usize>) -> bool {
        self.words.extend(words);
        std::mem::replace(&mut self.is_stale, false)
    }

    /// Makes the gradients those of the backward passes so far, should there have been none.
    fn settle(&mut self) {
        if std::mem::replace(&mut self.is_stale, false) {
            let gradients = floats_mut(&mut self.gradients);
            for (_, range) in self.specs.iter().zip(&self.ranges).filter(|(spec, _)| spec.is_encoder_weight()) {
                gradients[range.clone()].fill(0.0);
            }
        }
    }
}

/// Makes `view` the memory of the leaf's gradient: backward passes then add to the flat buffer themselves.
pub(crate) fn attach_gradient(leaf: &Tensor, view: &Tensor) {
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

    /// With a tail of one value.
    fn with_tail(specs: Vec<ParameterSpec>) -> Parameters {
        let total = specs.iter().map(ParameterSpec::len).sum::<usize>() as i64;
        let [values, gradients] = [total, total + 1].map(|n| Tensor::zeros([n], (Kind::Float, Device::Cpu)));
        Parameters::within(specs, values, gradients)
    }

    #[test]
    fn libtorch_adds_into_the_flat_buffer() {
        let specs = vec![spec("a", &[2, 2], Init::Zero), spec("b", &[3], Init::Zero)];
        let mut p = with_tail(specs);
        p.values_mut().copy_from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let [a, b] = [0, 1].map(|i| p.leaf(i));
        for _ in 0..2 {
            let loss = (&a * &a).sum(Kind::Float) + b.sum(Kind::Float);
            loss.backward();
        }
        assert_eq!(
            p.gradients_mut(),
            [2.0, 4.0, 6.0, 8.0, 1.0, 1.0, 1.0, 0.0].map(|g| if g > 0.0 { g * 2.0 } else { g })
        );
        p.begin_backward([0, 1].into_iter());
        p.zero_gradients();
        b.sum(Kind::Float).backward();
        assert_eq!(p.gradients_mut(), [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn weights_of_the_encoder_are_zeroed_when_somebody_looks() {
        let mut p = with_tail(vec![
            spec("words", &[2, 1], Init::Zero),
            spec("bert.encoder.layer.0.x.weight", &[2, 1], Init::Zero),
            spec("bert.encoder.layer.0.x.bias", &[1], Init::Zero),
        ]);
        p.gradients_mut().fill(1.0);
        p.begin_backward([1].into_iter());
        p.zero_gradients();
        // Words that did not occur are zero anyway.
        assert_eq!(floats_mut(&mut p.gradients), [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(p.gradients_mut(), [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        p.zero_gradients();
        assert!(p.begin_backward([].into_iter()) && !p.begin_backward([].into_iter()));
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
