//! What surrounds every dense layer of BERT but the inner one: LayerNorm(dropout(x + bias) + residual), forward and backward,
//! each in one pass over memory.

use multiversion::multiversion;

use super::dropout::{Rate, RowKey, mask};

/// Sums go over so many lanes, which are added up at the end.
const LANES: usize = 16;

/// A LayerNorm's parameters.
pub(super) struct NormParameters<'a> {
    /// γ, [width].
    pub weight: &'a [f32],
    /// β, [width].
    pub bias: &'a [f32],
    pub epsilon: f32,
}

/// The gradients of γ and β, [width] each, which are added to.
pub(super) struct NormGradients<'a> {
    pub weight: &'a mut [f32],
    pub bias: &'a mut [f32],
}

/// Mean and 1/standard deviation of a row.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RowStatistics {
    mean: f32,
    inverse: f32,
}

/// Dropout of rows of values, in their order; no rate: nothing is dropped.
pub(super) struct RowDropout<'a> {
    pub rate: Option<Rate>,
    pub keys: &'a [RowKey],
}

impl RowDropout<'_> {
    /// Multiplies a row by its mask; `room` is room for it.
    fn apply(&self, row: usize, values: &mut [f32], room: &mut [f32]) {
        if let Some(rate) = self.rate {
            mask(self.keys[row], rate, room);
            multiply(values, room);
        }
    }
}

/// out = LayerNorm(sum) with sum = dropout(sum + bias) + residual, for all rows. `sum` is [rows, width] and keeps the
/// new values, which the backward pass needs, along with the statistics that are returned.
pub(super) fn forward(
    sum: &mut [f32],
    bias: &[f32],
    residual: &[f32],
    dropout: &RowDropout,
    norm: &NormParameters,
    out: &mut [f32],
) -> Vec<RowStatistics> {
    let width = bias.len();
    let mut room = vec![0f32; width];
    let rows = sum.chunks_exact_mut(width).zip(residual.chunks_exact(width)).zip(out.chunks_exact_mut(width));
    rows.enumerate()
        .map(|(row, ((sum, residual), out))| {
            add(sum, bias);
            dropout.apply(row, sum, &mut room);
            add(sum, residual);
            normalise(sum, norm, out)
        })
        .collect()
}

/// out = dropout(LayerNorm(sum)), as the embeddings have it.
pub(super) fn forward_then_drop(
    sum: &[f32],
    norm: &NormParameters,
    dropout: &RowDropout,
    out: &mut [f32],
) -> Vec<RowStatistics> {
    let width = norm.weight.len();
    let mut room = vec![0f32; width];
    let rows = sum.chunks_exact(width).zip(out.chunks_exact_mut(width));
    rows.enumerate()
        .map(|(row, (sum, out))| {
            let statistics = normalise(sum, norm, out);
            dropout.apply(row, out, &mut room);
            statistics
        })
        .collect()
}

/// The gradient of [`forward`]: `gradient`, [rows, width], is that of its output and becomes that of the residual; `inner`
/// becomes that of the values before dropout, whose sum over rows is added to `bias`, the gradient of the bias.
#[allow(clippy::too_many_arguments, reason = "each is another buffer of one fused pass")]
pub(super) fn backward(
    gradient: &mut [f32],
    sum: &[f32],
    statistics: &[RowStatistics],
    norm: &NormParameters,
    dropout: &RowDropout,
    inner: &mut [f32],
    bias: &mut [f32],
    of_norm: &mut NormGradients,
) {
    let width = bias.len();
    let mut room = vec![0f32; width];
    let rows = gradient.chunks_exact_mut(width).zip(sum.chunks_exact(width)).zip(inner.chunks_exact_mut(width));
    for (row, (((gradient, sum), inner), statistics)) in rows.zip(statistics).enumerate() {
        denormalise(gradient, sum, *statistics, norm.weight, of_norm.weight, of_norm.bias);
        inner.copy_from_slice(gradient);
        dropout.apply(row, inner, &mut room);
        add(bias, inner);
    }
}

/// The gradient of [`forward_then_drop`]: `gradient` is that of its output and becomes that of `sum`.
pub(super) fn backward_after_drop(
    gradient: &mut [f32],
    sum: &[f32],
    statistics: &[RowStatistics],
    norm: &NormParameters,
    dropout: &RowDropout,
    of_norm: &mut NormGradients,
) {
    let width = norm.weight.len();
    let mut room = vec![0f32; width];
    let rows = gradient.chunks_exact_mut(width).zip(sum.chunks_exact(width)).zip(statistics);
    for (row, ((gradient, sum), statistics)) in rows.enumerate() {
        dropout.apply(row, gradient, &mut room);
        denormalise(gradient, sum, *statistics, norm.weight, of_norm.weight, of_norm.bias);
    }
}

/// Adds the rows of `matrix` to `sum`, one value a column.
pub(super) fn add_rows(sum: &mut [f32], matrix: &[f32]) {
    for row in matrix.chunks_exact(sum.len()) {
        add(sum, row);
    }
}

/// Adds `other` to `sum`, value by value.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
pub(super) fn add(sum: &mut [f32], other: &[f32]) {
    for (sum, other) in sum.iter_mut().zip(other) {
        *sum += other;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
pub(super) fn multiply(product: &mut [f32], other: &[f32]) {
    for (product, other) in product.iter_mut().zip(other) {
        *product *= other;
    }
}

/// One row: out = (x − mean)/√(variance + ε)·γ + β.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
fn normalise(x: &[f32], norm: &NormParameters, out: &mut [f32]) -> RowStatistics {
    let n = x.len() as f32;
    let mean = lane_sum(x, |x| x) / n;
    let variance = lane_sum(x, |x| (x - mean) * (x - mean)) / n;
    let inverse = 1.0 / (variance + norm.epsilon).sqrt();
    for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(norm.weight).zip(norm.bias) {
        *out = ((x - mean) * inverse).mul_add(*weight, *bias);
    }
    RowStatistics { mean, inverse }
}

/// One row back: `gradient` is that of the output and becomes that of `x`, with x̂ = (x − mean)/σ and g = gradient·γ
/// (g − mean(g) − x̂·mean(g·x̂))/σ.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
fn denormalise(
    gradient: &mut [f32],
    x: &[f32],
    statistics: RowStatistics,
    weight: &[f32],
    of_weight: &mut [f32],
    of_bias: &mut [f32],
) {
    let RowStatistics { mean, inverse } = statistics;
    let parts = of_weight.iter_mut().zip(of_bias).zip(weight);
    for ((gradient, x), ((of_weight, of_bias), weight)) in gradient.iter_mut().zip(x).zip(parts) {
        *of_weight += *gradient * ((x - mean) * inverse);
        *of_bias += *gradient;
        *gradient *= weight;
    }
    let n = x.len() as f32;
    let level = lane_sum(gradient, |g| g) / n;
    let slope = lane_dot(gradient, x, |x| (x - mean) * inverse) / n;
    for (gradient, x) in gradient.iter_mut().zip(x) {
        *gradient = (*gradient - level - (x - mean) * inverse * slope) * inverse;
    }
}

/// Σ term(x), in lanes.
#[inline(always)]
fn lane_sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += term(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += term(*x);
    }
    lanes.iter().sum()
}

/// Σ a·term(b), in lanes.
#[inline(always)]
fn lane_dot(a: &[f32], b: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0f32; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * term(*b);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += a * term(*b);
    }
    lanes.iter().sum()
}
