//! BERT's input: LayerNorm of the sum of word, position and segment embeddings, forward and backward. Only the rows of words
//! that occur get a gradient, and it is known which ones these are.

use tch::{Kind, Tensor};

use super::batch::Batch;
use super::dense::Norm;
use super::dropout::Site;
use super::layer::{Dropout, row_keys};
use super::norm::{self, RowDropout, RowStatistics, add};
use super::parameters::{Parameters, View};
use crate::tensor_memory::{floats, floats_mut};

/// Parameter tensors before the first layer, in the order of `specs`.
pub(crate) const EMBEDDING_TENSORS: usize = 5;

/// Tables [entries, hidden] of words, positions and segments, and the norm.
pub(super) struct Embedding {
    tables: [View; 3],
    norm: Norm,
}

/// What the backward pass needs.
pub(super) struct EmbeddingPass {
    sum: Tensor,
    statistics: Vec<RowStatistics>,
}

impl Embedding {
    /// The first tensors of the model.
    pub fn new(parameters: &Parameters, epsilon: f64) -> Embedding {
        Embedding { tables: [0, 1, 2].map(|i| parameters.joined(i, 0)), norm: Norm::new(parameters, 3, epsilon) }
    }

    /// [rows, hidden].
    pub fn forward(&self, batch: &Batch, dropout: Dropout) -> (Tensor, EmbeddingPass) {
        let width = self.tables[0].value.size()[1];
        let mut sum = Tensor::empty([batch.rows(), width], (Kind::Float, tch::Device::Cpu));
        let width = width as usize;
        let [words, positions, segments] = self.tables.each_ref().map(|table| floats(&table.value));
        let entry = |i: usize| i * width..(i + 1) * width;
        for (row, [word, position, segment]) in floats_mut(&mut sum).chunks_exact_mut(width).zip(batch.inputs()) {
            row.copy_from_slice(&words[entry(word)]);
            add(row, &positions[entry(position)]);
            add(row, &segments[entry(segment)]);
        }
        let mut out = sum.empty_like();
        let keys = row_keys(batch, dropout, Site::Embeddings, false);
        let dropout = RowDropout { rate: dropout.hidden, keys: &keys };
        let statistics = norm::forward_then_drop(floats(&sum), &self.norm.parameters(), &dropout, floats_mut(&mut out));
        (out, EmbeddingPass { sum, statistics })
    }

    /// Adds to the gradients of all tables, given the gradient of the output.
    pub fn backward(&mut self, mut gradient: Tensor, pass: &EmbeddingPass, batch: &Batch, dropout: Dropout) {
        let keys = row_keys(batch, dropout, Site::Embeddings, false);
        let dropout = RowDropout { rate: dropout.hidden, keys: &keys };
        let width = gradient.size()[1] as usize;
        let gradient = floats_mut(&mut gradient);
        let (norm, mut of_norm) = self.norm.parts();
        norm::backward_after_drop(gradient, floats(&pass.sum), &pass.statistics, &norm, &dropout, &mut of_norm);
        let [words, positions, segments] = self.tables.each_mut().map(|table| floats_mut(&mut table.gradient));
        let entry = |i: usize| i * width..(i + 1) * width;
        for (row, [word, position, segment]) in gradient.chunks_exact(width).zip(batch.inputs()) {
            add(&mut words[entry(word)], row);
            add(&mut positions[entry(position)], row);
            add(&mut segments[entry(segment)], row);
        }
    }
}
