//! One encoder layer of BERT, forward and backward, written out: so each product goes straight to where it belongs, and what
//! surrounds it is one pass over memory.

use bam_cluster::encoder::EncoderConfig;
use tch::Tensor;

use super::attention::{Attended, Attention};
use super::batch::Batch;
use super::dense::{Dense, Norm};
use super::dropout::{DropoutKey, Rate, RowKey, Site};
use super::norm::{self, RowDropout, RowStatistics};
use super::parameters::Parameters;
use crate::tensor_memory::{floats, floats_mut};

/// Parameter tensors of a layer, in the order of `specs`.
pub(crate) const LAYER_TENSORS: usize = 16;

/// One layer's parameters and gradients.
pub(super) struct Layer {
    number: usize,
    heads: i64,
    query: Dense,
    /// The projections to keys and values, as one.
    key_value: Dense,
    projection: Dense,
    attention_norm: Norm,
    inner: Dense,
    outer: Dense,
    norm: Norm,
}

/// How values are dropped in one pass; none in an evaluation. One key a sequence, in the batch's order.
#[derive(Clone, Copy)]
pub(super) struct Dropout<'a> {
    pub hidden: Option<Rate>,
    pub attention: Option<Rate>,
    pub keys: &'a [DropoutKey],
}

/// What the backward pass needs of the forward pass. Rows are tokens, or first tokens alone in the last layer.
pub(super) struct LayerPass {
    /// [rows, hidden].
    input: Tensor,
    /// The rows that ask: the input, or its first tokens.
    asking: Tensor,
    attended: Vec<Attended>,
    context: Tensor,
    attention_sum: Tensor,
    attention_statistics: Vec<RowStatistics>,
    middle: Tensor,
    /// Before GELU, and after it: [rows, intermediate].
    inner: Tensor,
    activated: Tensor,
    sum: Tensor,
    statistics: Vec<RowStatistics>,
}

impl Layer {
    /// Layer `number`, whose parameters begin with tensor `start`.
    pub fn new(parameters: &Parameters, config: &EncoderConfig, number: usize, start: usize) -> Layer {
        let dense = |weight: usize| Dense::new(parameters, start + weight, start + weight + 1, 0);
        let norm = |weight: usize| Norm::new(parameters, start + weight, config.layer_norm_eps);
        Layer {
            number,
            heads: config.num_attention_heads as i64,
            query: Dense::new(parameters, start, start + 3, 0),
            key_value: Dense::new(parameters, start + 1, start + 4, 1),
            projection: dense(6),
            attention_norm: norm(8),
            inner: dense(10),
            outer: dense(12),
            norm: norm(14),
        }
    }

    /// [rows, hidden] → [rows, hidden], or [sequences, hidden] with `first_only`: after the last layer nothing but first
    /// tokens is looked at.
    pub fn forward(&self, input: Tensor, batch: &Batch, dropout: Dropout, first_only: bool) -> (Tensor, LayerPass) {
        let asking = if first_only { input.index_select(0, batch.first_rows()) } else { input.shallow_clone() };
        let attention = self.attention(batch, dropout);
        let (context, attended) = attention.forward(&self.query.forward(&asking), &self.key_value.forward(&input));
        let keys = |site| row_keys(batch, dropout, site, first_only);
        let (middle, attention_sum, attention_statistics) = add_and_normalise(
            self.projection.product(&context),
            &self.projection,
            &asking,
            &RowDropout { rate: dropout.hidden, keys: &keys(Site::Projection(self.number)) },
            &self.attention_norm,
        );
        let inner = self.inner.forward(&middle);
        let activated = inner.gelu("none");
        let (output, sum, statistics) = add_and_normalise(
            self.outer.product(&activated),
            &self.outer,
            &middle,
            &RowDropout { rate: dropout.hidden, keys: &keys(Site::FeedForward(self.number)) },
            &self.norm,
        );
        let pass = LayerPass {
            input,
            asking,
            attended,
            context,
            attention_sum,
            attention_statistics,
            middle,
            inner,
            activated,
            sum,
            statistics,
        };
        (output, pass)
    }

    /// The gradient of the input from that of the output. Gradients of parameters are added to those that are there; with
    /// `is_first` those of dense weights take their place.
    pub fn backward(
        &mut self,
        gradient: Tensor,
        pass: LayerPass,
        batch: &Batch,
        dropout: Dropout,
        is_first: bool,
    ) -> Tensor {
        let first_only = pass.asking.size()[0] != pass.input.size()[0];
        let keys = |site| row_keys(batch, dropout, site, first_only);
        let feed_forward = keys(Site::FeedForward(self.number));
        let projection = keys(Site::Projection(self.number));
        let drop = |keys| RowDropout { rate: dropout.hidden, keys };

        let (sum, statistics) = (&pass.sum, &pass.statistics[..]);
        let (mut of_middle, of_outer) =
            unnormalise(gradient, sum, statistics, &drop(&feed_forward), &mut self.outer, &mut self.norm);
        self.outer.weight_gradient(&of_outer, &pass.activated, is_first);
        let of_inner = pass.inner.gelu_backward(&self.outer.gradient_of_input(&of_outer), "none");
        self.inner.weight_gradient(&of_inner, &pass.middle, is_first);
        self.inner.add_bias_gradient(&of_inner);
        self.inner.add_gradient_of_input(&mut of_middle, &of_inner);

        let (sum, statistics) = (&pass.attention_sum, &pass.attention_statistics[..]);
        let (mut of_asking, of_projection) =
            unnormalise(of_middle, sum, statistics, &drop(&projection), &mut self.projection, &mut self.attention_norm);
        self.projection.weight_gradient(&of_projection, &pass.context, is_first);
        let of_context = self.projection.gradient_of_input(&of_projection);
        let (of_query, of_key_value) = self.attention(batch, dropout).backward(pass.attended, &of_context);
        self.query.weight_gradient(&of_query, &pass.asking, is_first);
        self.query.add_bias_gradient(&of_query);
        self.query.add_gradient_of_input(&mut of_asking, &of_query);
        self.key_value.weight_gradient(&of_key_value, &pass.input, is_first);
        self.key_value.add_bias_gradient(&of_key_value);
        if first_only {
            let mut of_input = self.key_value.gradient_of_input(&of_key_value);
            of_input.index_add_(0, batch.first_rows(), &of_asking)
        } else {
            self.key_value.add_gradient_of_input(&mut of_asking, &of_key_value);
            of_asking
        }
    }

    fn attention<'a>(&self, batch: &'a Batch, dropout: Dropout<'a>) -> Attention<'a> {
        Attention { heads: self.heads, batch, layer: self.number, rate: dropout.attention, keys: dropout.keys }
    }
}

/// LayerNorm(dropout(product + bias) + residual), the sum under it, and that sum's statistics.
fn add_and_normalise(
    mut product: Tensor,
    dense: &Dense,
    residual: &Tensor,
    dropout: &RowDropout,
    norm: &Norm,
) -> (Tensor, Tensor, Vec<RowStatistics>) {
    let mut out = product.empty_like();
    let (sum, residual) = (floats_mut(&mut product), floats(residual));
    let statistics = norm::forward(sum, dense.bias(), residual, dropout, &norm.parameters(), floats_mut(&mut out));
    (out, product, statistics)
}

/// The gradients of the residual and of the product, from that of what [`add_and_normalise`] made of them.
fn unnormalise(
    mut gradient: Tensor,
    sum: &Tensor,
    statistics: &[RowStatistics],
    dropout: &RowDropout,
    dense: &mut Dense,
    norm: &mut Norm,
) -> (Tensor, Tensor) {
    let mut of_product = gradient.empty_like();
    let (norm, mut of_norm) = norm.parts();
    norm::backward(
        floats_mut(&mut gradient),
        floats(sum),
        statistics,
        &norm,
        dropout,
        floats_mut(&mut of_product),
        dense.bias_gradient(),
        &mut of_norm,
    );
    (gradient, of_product)
}

/// The keys of all rows; none if nothing is dropped.
pub(super) fn row_keys(batch: &Batch, dropout: Dropout, site: Site, first_only: bool) -> Vec<RowKey> {
    if dropout.hidden.is_none() {
        return vec![];
    }
    let of_sequence = |(key, length): (&DropoutKey, usize)| {
        let (key, rows) = (*key, if first_only { 1 } else { length });
        (0..rows).map(move |token| key.row(site, token))
    };
    dropout.keys.iter().zip(batch.lengths()).flat_map(of_sequence).collect()
}
