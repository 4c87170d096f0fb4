//! One encoder layer of BERT on a device, forward and backward, written out as on CPUs (`model/layer`): so gradients go straight
//! to where they belong, activations go as soon as they have served, and it is known when a layer's gradients are complete.

use bam_cluster::encoder::EncoderConfig;
use tch::{Kind, Tensor};

use super::attention::{Attended, Attention, drop, undrop};
use super::batch::DeviceBatch;
use super::parameters::DeviceParameters;
use crate::shim::{TorchError, layer_norm_backward};

/// Probabilities with which values are dropped in a training pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct DropoutRates {
    pub hidden: f64,
    pub attention: f64,
}

impl DropoutRates {
    /// Of an evaluation.
    pub const NONE: DropoutRates = DropoutRates { hidden: 0.0, attention: 0.0 };
}

/// y = x·Wᵀ + b.
pub(super) struct Dense {
    /// [outputs, inputs].
    weight: Tensor,
    bias: Tensor,
    /// Their gradients; none in a model that is not trained.
    gradients: Option<[Tensor; 2]>,
}

impl Dense {
    /// Parameters `weight` and `bias`, each with so many `further` ones behind it that are read as one with it.
    pub fn new(p: &DeviceParameters, weight: usize, bias: usize, further: usize, trains: bool) -> Dense {
        let gradients = trains.then(|| [p.gradient(weight, further), p.gradient(bias, further)]);
        Dense { weight: p.computed(weight, further), bias: p.computed(bias, further), gradients }
    }

    /// x·Wᵀ + b, for x [rows, inputs].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.bias.addmm(x, &self.weight.tr())
    }

    /// The gradient of x: dy·W.
    pub fn gradient_of_input(&self, dy: &Tensor) -> Tensor {
        dy.mm(&self.weight)
    }

    /// The gradients of W and b: dyᵀ·x, and dy's sum over rows.
    pub fn backward(&mut self, dy: &Tensor, x: &Tensor, is_first: bool) {
        let Some([of_weight, of_bias]) = &mut self.gradients else { return };
        put(of_weight, &dy.tr().mm(x), is_first);
        put(of_bias, &dy.sum_dim_intlist([0].as_slice(), false, Kind::Float), is_first);
    }
}

/// A LayerNorm.
pub(super) struct Norm {
    weight: Tensor,
    bias: Tensor,
    gradients: Option<[Tensor; 2]>,
    epsilon: f64,
}

/// What a LayerNorm's backward pass needs: its input, and each row's mean and 1/standard deviation.
pub(super) struct Normalised {
    input: Tensor,
    statistics: [Tensor; 2],
}

impl Norm {
    /// Parameter `weight` and the one behind it.
    pub fn new(p: &DeviceParameters, weight: usize, epsilon: f64, trains: bool) -> Norm {
        let [weight_value, bias] = [weight, weight + 1].map(|i| p.computed(i, 0));
        let gradients = trains.then(|| [weight, weight + 1].map(|i| p.gradient(i, 0)));
        Norm { weight: weight_value, bias, gradients, epsilon }
    }

    /// LayerNorm(input).
    pub fn forward(&self, input: Tensor) -> (Tensor, Normalised) {
        let width = input.size()[1];
        let (out, mean, inverse) = input.native_layer_norm([width], Some(&self.weight), Some(&self.bias), self.epsilon);
        (out, Normalised { input, statistics: [mean, inverse] })
    }

    /// The gradient of the input.
    pub fn backward(&mut self, gradient: &Tensor, of: &Normalised, is_first: bool) -> Result<Tensor, TorchError> {
        let [mean, inverse] = &of.statistics;
        let [of_input, of_weight, of_bias] =
            layer_norm_backward(gradient, &of.input, [mean, inverse], [&self.weight, &self.bias])?;
        if let Some([weight, bias]) = &mut self.gradients {
            put(weight, &of_weight, is_first);
            put(bias, &of_bias, is_first);
        }
        Ok(of_input)
    }
}

/// Adds to a float32 gradient, or takes its place.
fn put(gradient: &mut Tensor, part: &Tensor, is_first: bool) {
    if is_first {
        gradient.copy_(part);
    } else {
        *gradient += part;
    }
}

/// LayerNorm(dropout(x·Wᵀ + b) + residual).
struct AddAndNormalise {
    dense: Dense,
    norm: Norm,
}

/// What its backward pass needs.
struct Added {
    input: Tensor,
    kept: Option<Tensor>,
    normalised: Normalised,
}

impl AddAndNormalise {
    fn forward(&self, input: Tensor, residual: &Tensor, rate: f64) -> (Tensor, Added) {
        let (dropped, kept) = drop(&self.dense.forward(&input), rate);
        let (out, normalised) = self.norm.forward(dropped + residual);
        (out, Added { input, kept, normalised })
    }

    /// The gradients of the residual and of the input.
    fn backward(
        &mut self,
        gradient: &Tensor,
        added: &Added,
        rate: f64,
        is_first: bool,
    ) -> Result<(Tensor, Tensor), TorchError> {
        let of_sum = self.norm.backward(gradient, &added.normalised, is_first)?;
        let of_product = undrop(of_sum.shallow_clone(), added.kept.as_ref(), rate);
        self.dense.backward(&of_product, &added.input, is_first);
        let of_input = self.dense.gradient_of_input(&of_product);
        Ok((of_sum, of_input))
    }
}

/// One layer.
pub(super) struct DeviceLayer {
    heads: i64,
    query: Dense,
    /// The projections to keys and values, as one.
    key_value: Dense,
    projection: AddAndNormalise,
    inner: Dense,
    outer: AddAndNormalise,
}

/// What the backward pass needs of the forward pass.
pub(super) struct LayerPass {
    input: Tensor,
    /// The rows that ask: the input, or its first tokens.
    asking: Tensor,
    attended: Attended,
    projected: Added,
    middle: Tensor,
    /// Before GELU.
    inner: Tensor,
    outer: Added,
}

impl DeviceLayer {
    /// The layer whose parameters begin with tensor `start`, in the order of `model/shape`.
    pub fn new(p: &DeviceParameters, config: &EncoderConfig, start: usize, trains: bool) -> DeviceLayer {
        let dense = |weight: usize| Dense::new(p, start + weight, start + weight + 1, 0, trains);
        let norm = |weight: usize| Norm::new(p, start + weight, config.layer_norm_eps, trains);
        DeviceLayer {
            heads: config.num_attention_heads as i64,
            query: Dense::new(p, start, start + 3, 0, trains),
            key_value: Dense::new(p, start + 1, start + 4, 1, trains),
            projection: AddAndNormalise { dense: dense(6), norm: norm(8) },
            inner: dense(10),
            outer: AddAndNormalise { dense: dense(12), norm: norm(14) },
        }
    }

    /// [rows, hidden] → [rows, hidden], or [sequences, hidden] with `first_only`.
    pub fn forward(
        &self,
        input: Tensor,
        batch: &DeviceBatch,
        rates: DropoutRates,
        first_only: bool,
    ) -> Result<(Tensor, LayerPass), TorchError> {
        let asking = if first_only { input.index_select(0, &batch.first_rows) } else { input.shallow_clone() };
        let attention = self.attention(batch, rates);
        let (context, attended) = attention.forward(&self.query.forward(&asking), &self.key_value.forward(&input))?;
        let (middle, projected) = self.projection.forward(context, &asking, rates.hidden);
        let inner = self.inner.forward(&middle);
        let (out, outer) = self.outer.forward(inner.gelu("none"), &middle, rates.hidden);
        Ok((out, LayerPass { input, asking, attended, projected, middle, inner, outer }))
    }

    /// The gradient of the input from that of the output. Gradients of parameters are added to those that are there; with
    /// `is_first` they take their place.
    pub fn backward(
        &mut self,
        gradient: &Tensor,
        pass: LayerPass,
        batch: &DeviceBatch,
        rates: DropoutRates,
        is_first: bool,
    ) -> Result<Tensor, TorchError> {
        let (mut of_middle, of_activated) = self.outer.backward(gradient, &pass.outer, rates.hidden, is_first)?;
        let of_inner = pass.inner.gelu_backward(&of_activated, "none");
        self.inner.backward(&of_inner, &pass.middle, is_first);
        of_middle = of_middle.addmm_(&of_inner, &self.inner.weight);
        let (of_asking, of_context) = self.projection.backward(&of_middle, &pass.projected, rates.hidden, is_first)?;
        let (of_query, of_key_value) = self.attention(batch, rates).backward(pass.attended, &of_context);
        self.query.backward(&of_query, &pass.asking, is_first);
        self.key_value.backward(&of_key_value, &pass.input, is_first);
        let mut of_asking = of_asking;
        of_asking = of_asking.addmm_(&of_query, &self.query.weight);
        if pass.asking.size()[0] != pass.input.size()[0] {
            let mut of_input = self.key_value.gradient_of_input(&of_key_value);
            Ok(of_input.index_add_(0, &batch.first_rows, &of_asking))
        } else {
            Ok(of_asking.addmm_(&of_key_value, &self.key_value.weight))
        }
    }

    fn attention<'a>(&self, batch: &'a DeviceBatch, rates: DropoutRates) -> Attention<'a> {
        Attention { heads: self.heads, batch, dropout: rates.attention }
    }
}
