//! The forward pass: BERT's encoder, its pooler, and one head per task (Devlin et al. 2019; BAM section 2.1).

use bam_cluster::encoder::EncoderConfig;
use tch::Tensor;

use super::attention::Attention;
use super::batch::Batch;
use super::parameters::Parameters;
use super::shape::{Head, specs};

/// BERT with heads.
pub struct Bert {
    config: EncoderConfig,
    heads: Vec<Head>,
    parameters: Parameters,
}

/// Parameters before the first encoder layer, and of each layer, in the order of `specs`.
const EMBEDDING_TENSORS: usize = 5;
const LAYER_TENSORS: usize = 16;

impl Bert {
    /// A model whose parameters are all zero. `gradient_tail`: see [`Parameters::new`].
    pub fn new(config: EncoderConfig, heads: Vec<Head>, gradient_tail: usize) -> Self {
        let parameters = Parameters::new(specs(&config, &heads), gradient_tail);
        Bert { config, heads, parameters }
    }

    /// Its shape.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Its heads.
    pub fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// Its parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Its parameters, to change.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// Pooled outputs, [sequences, hidden], in the order of the batch; `train` switches dropout on.
    pub fn pooled(&self, batch: &Batch, train: bool) -> Tensor {
        let mut x = self.embed(batch, train);
        for layer in 0..self.config.num_hidden_layers {
            // After the last layer nothing but the first tokens is looked at.
            x = self.layer(layer, &x, batch, train, layer + 1 == self.config.num_hidden_layers);
        }
        let p = &self.parameters.leaves()[EMBEDDING_TENSORS + LAYER_TENSORS * self.config.num_hidden_layers..];
        let pooled = x.linear(&p[0], Some(&p[1])).tanh();
        pooled.dropout(self.config.hidden_dropout_prob, train)
    }

    /// Outputs of head `head` for pooled rows: [rows, outputs].
    pub fn head(&self, head: usize, pooled: &Tensor) -> Tensor {
        let start = EMBEDDING_TENSORS + LAYER_TENSORS * self.config.num_hidden_layers + 2 + 2 * head;
        let p = &self.parameters.leaves()[start..];
        pooled.linear(&p[0], Some(&p[1]))
    }

    fn embed(&self, batch: &Batch, train: bool) -> Tensor {
        let p = &self.parameters.leaves()[..EMBEDDING_TENSORS];
        let look_up = |table: &Tensor, ids: &Tensor| Tensor::embedding(table, ids, -1, false, false);
        let sum = look_up(&p[0], &batch.ids) + look_up(&p[1], &batch.positions) + look_up(&p[2], &batch.types);
        self.layer_norm(&sum, &p[3], &p[4]).dropout(self.config.hidden_dropout_prob, train)
    }

    /// One encoder layer: [rows, hidden] → [rows, hidden], or [sequences, hidden] with `first_only`.
    fn layer(&self, index: usize, x: &Tensor, batch: &Batch, train: bool, first_only: bool) -> Tensor {
        let start = EMBEDDING_TENSORS + LAYER_TENSORS * index;
        let p = &self.parameters.leaves()[start..start + LAYER_TENSORS];
        let dense = |x: &Tensor, i: usize| x.linear(&p[i], Some(&p[i + 1]));
        let dropout = |x: Tensor| x.dropout(self.config.hidden_dropout_prob, train);
        let attention = Attention {
            heads: self.config.num_attention_heads as i64,
            dropout: self.config.attention_probs_dropout_prob,
            train,
            rectangles: &batch.rectangles,
            mask: batch.mask.as_ref(),
        };
        let residual = if first_only { x.index_select(0, &batch.first_rows) } else { x.shallow_clone() };
        let context = attention.apply(&dense(&residual, 0), &dense(x, 2), &dense(x, 4));
        let x = self.layer_norm(&(dropout(dense(&context, 6)) + residual), &p[8], &p[9]);
        let inner = dense(&x, 10).gelu("none");
        self.layer_norm(&(dropout(dense(&inner, 12)) + &x), &p[14], &p[15])
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
        let width = [self.config.hidden_size as i64];
        x.layer_norm(width, Some(weight), Some(bias), self.config.layer_norm_eps, false)
    }
}
