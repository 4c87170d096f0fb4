//! BERT's encoder, its pooler, and one head per task (Devlin et al. 2019; BAM section 2.1), forward and backward.
//!
//! The backward pass of encoder and embeddings is written out, layer by layer. What is above them (pooler, heads, losses)
//! is small and varied, and libtorch differentiates it.

use bam_cluster::encoder::EncoderConfig;
use tch::Tensor;

use super::batch::Batch;
use super::dropout::{DropoutKey, Rate, Site, mask};
use super::embedding::{EMBEDDING_TENSORS, Embedding, EmbeddingPass};
use super::layer::{Dropout, LAYER_TENSORS, Layer, LayerPass};
use super::parameters::Parameters;
use super::{Head, specs};
use crate::comm::Host;
use crate::tensor_memory::floats_mut;

/// BERT with heads.
pub struct Bert {
    config: EncoderConfig,
    heads: Vec<Head>,
    parameters: Parameters,
    embedding: Embedding,
    layers: Vec<Layer>,
    /// Weight and bias of the pooler, and of each head.
    top: Vec<[Tensor; 2]>,
}

/// One forward pass in training, which waits for its backward pass.
pub struct Pass {
    batch: Batch,
    keys: Vec<DropoutKey>,
    embedding: EmbeddingPass,
    layers: Vec<LayerPass>,
    /// The last layer's output for first tokens, [sequences, hidden]: a leaf of libtorch's graph.
    first_tokens: Tensor,
}

impl Bert {
    /// A model whose parameters are all zero.
    pub fn new(config: EncoderConfig, heads: Vec<Head>) -> Self {
        let parameters = Parameters::new(specs(&config, &heads));
        Bert::of(config, heads, parameters)
    }

    /// A model in the memory of a host's ranks, with the values that are there.
    pub fn on_host(config: EncoderConfig, heads: Vec<Head>, host: &Host) -> Self {
        let parameters = Parameters::within(specs(&config, &heads), host.values(), host.gradients());
        Bert::of(config, heads, parameters)
    }

    fn of(config: EncoderConfig, heads: Vec<Head>, parameters: Parameters) -> Self {
        let start = |layer: usize| EMBEDDING_TENSORS + LAYER_TENSORS * layer;
        let layers = config.num_hidden_layers;
        let top = (0..=heads.len()).map(|i| [0, 1].map(|j| parameters.leaf(start(layers) + 2 * i + j)));
        Bert {
            embedding: Embedding::new(&parameters, config.layer_norm_eps),
            layers: (0..layers).map(|i| Layer::new(&parameters, &config, i, start(i))).collect(),
            top: top.collect(),
            config,
            heads,
            parameters,
        }
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

    /// Pooled outputs without dropout, [sequences, hidden], in the order of the batch.
    pub fn pooled(&self, batch: &Batch) -> Tensor {
        tch::no_grad(|| {
            let dropout = Dropout { hidden: None, attention: None, keys: &[] };
            let (mut x, _) = self.embedding.forward(batch, dropout);
            for (i, layer) in self.layers.iter().enumerate() {
                (x, _) = layer.forward(x, batch, dropout, i + 1 == self.layers.len());
            }
            self.pool(&x)
        })
    }

    /// A forward pass in training, with dropout; `keys` are those of the sequences in the order in which they were given.
    pub fn encode(&self, batch: Batch, keys: &[DropoutKey]) -> Pass {
        let keys: Vec<DropoutKey> = batch.order().iter().map(|&i| keys[i]).collect();
        let _no_grad = tch::no_grad_guard();
        let dropout = dropout(&self.config, &keys);
        let (mut x, embedding) = self.embedding.forward(&batch, dropout);
        let mut layers = vec![];
        for (i, layer) in self.layers.iter().enumerate() {
            let (output, pass) = layer.forward(x, &batch, dropout, i + 1 == self.layers.len());
            x = output;
            layers.push(pass);
        }
        Pass { batch, keys, embedding, layers, first_tokens: x.set_requires_grad(true) }
    }

    /// Pooled outputs with dropout, [sequences, hidden], in the order of the batch, for libtorch to differentiate.
    pub fn pooled_in_training(&self, pass: &Pass) -> Tensor {
        let pooled = self.pool(&pass.first_tokens);
        let Some(rate) = Rate::new(self.config.hidden_dropout_prob) else { return pooled };
        let mut masks = tch::no_grad(|| pooled.empty_like());
        for (row, key) in floats_mut(&mut masks).chunks_exact_mut(self.config.hidden_size).zip(&pass.keys) {
            mask(key.row(Site::Pooler, 0), rate, row);
        }
        pooled * masks
    }

    /// Outputs of head `head` for pooled rows: [rows, outputs].
    pub fn head(&self, head: usize, pooled: &Tensor) -> Tensor {
        let [weight, bias] = &self.top[1 + head];
        pooled.linear(weight, Some(bias))
    }

    /// Adds to the gradients of all parameters, after libtorch has done so for what is above the encoder.
    pub fn backward(&mut self, pass: Pass) {
        let _no_grad = tch::no_grad_guard();
        let Pass { batch, keys, embedding, layers, first_tokens } = pass;
        let is_first = self.parameters.begin_backward(batch.inputs().map(|[word, _, _]| word));
        let dropout = dropout(&self.config, &keys);
        let mut gradient = first_tokens.grad();
        drop(first_tokens);
        for (layer, pass) in self.layers.iter_mut().zip(layers).rev() {
            gradient = layer.backward(gradient, pass, &batch, dropout, is_first);
        }
        self.embedding.backward(gradient, &embedding, &batch, dropout);
    }

    fn pool(&self, first_tokens: &Tensor) -> Tensor {
        let [weight, bias] = &self.top[0];
        first_tokens.linear(weight, Some(bias)).tanh()
    }
}

fn dropout<'a>(config: &EncoderConfig, keys: &'a [DropoutKey]) -> Dropout<'a> {
    let rates = [config.hidden_dropout_prob, config.attention_probs_dropout_prob];
    let [hidden, attention] = rates.map(Rate::new);
    Dropout { hidden, attention, keys }
}

impl Pass {
    /// What was encoded.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }
}
