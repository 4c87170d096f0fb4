//! A dense layer and a LayerNorm: views of the flat buffers that hold their parameters and gradients, and what is done with
//! them in the forward and in the backward pass.

use tch::Tensor;

use super::norm::{NormGradients, NormParameters, add_rows};
use super::parameters::{Parameters, View};
use crate::tensor_memory::{floats, floats_mut};

/// y = x·Wᵀ + b.
pub(super) struct Dense {
    /// [outputs, inputs].
    weight: View,
    /// [outputs].
    bias: View,
}

impl Dense {
    /// Parameter tensors `weight` and `bias`, counted from the model's first, each with so many more that lie behind it and
    /// are read as one with it: `further` layers of the same inputs.
    pub fn new(parameters: &Parameters, weight: usize, bias: usize, further: usize) -> Dense {
        Dense { weight: parameters.joined(weight, further), bias: parameters.joined(bias, further) }
    }

    /// x·Wᵀ + b, for x [rows, inputs].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.bias.value.addmm(x, &self.weight.value.tr())
    }

    /// x·Wᵀ: for those who add the bias themselves.
    pub fn product(&self, x: &Tensor) -> Tensor {
        x.mm(&self.weight.value.tr())
    }

    /// b.
    pub fn bias(&self) -> &[f32] {
        floats(&self.bias.value)
    }

    /// The gradient of x: dy·W.
    pub fn gradient_of_input(&self, dy: &Tensor) -> Tensor {
        dy.mm(&self.weight.value)
    }

    /// Adds the gradient of x to `dx`.
    pub fn add_gradient_of_input(&self, dx: &mut Tensor, dy: &Tensor) {
        let _ = dx.addmm_(dy, &self.weight.value);
    }

    /// The gradient of W: dyᵀ·x, which is added to what is there, or takes its place.
    pub fn weight_gradient(&mut self, dy: &Tensor, x: &Tensor, is_first: bool) {
        let gradient = &mut self.weight.gradient;
        if is_first {
            let _ = dy.tr().mm_out(gradient, x);
        } else {
            let _ = gradient.addmm_(&dy.tr(), x);
        }
    }

    /// Adds dy's sum over rows to the gradient of b.
    pub fn add_bias_gradient(&mut self, dy: &Tensor) {
        add_rows(self.bias_gradient(), floats(dy));
    }

    /// The gradient of b.
    pub fn bias_gradient(&mut self) -> &mut [f32] {
        floats_mut(&mut self.bias.gradient)
    }
}

/// A LayerNorm.
pub(super) struct Norm {
    weight: View,
    bias: View,
    epsilon: f32,
}

impl Norm {
    /// Parameter tensors `weight` and the one behind it.
    pub fn new(parameters: &Parameters, weight: usize, epsilon: f64) -> Norm {
        let [weight, bias] = [weight, weight + 1].map(|index| parameters.joined(index, 0));
        Norm { weight, bias, epsilon: epsilon as f32 }
    }

    /// What it does, and where its gradients belong.
    pub fn parts(&mut self) -> (NormParameters<'_>, NormGradients<'_>) {
        let parameters = NormParameters {
            weight: floats(&self.weight.value),
            bias: floats(&self.bias.value),
            epsilon: self.epsilon,
        };
        let gradients =
            NormGradients { weight: floats_mut(&mut self.weight.gradient), bias: floats_mut(&mut self.bias.gradient) };
        (parameters, gradients)
    }

    /// What it does.
    pub fn parameters(&self) -> NormParameters<'_> {
        NormParameters { weight: floats(&self.weight.value), bias: floats(&self.bias.value), epsilon: self.epsilon }
    }
}
