//! BERT with heads on one device (Devlin et al. 2019; BAM section 2.1), forward and backward: encoder and embeddings in the
//! numbers of the [place](super::Place) and differentiated by hand, pooler, heads and losses in float32 and by libtorch.

use bam_cluster::encoder::EncoderConfig;
use tch::{Kind, Tensor};

use super::attention::{drop, undrop};
use super::batch::DeviceBatch;
use super::layer::{DeviceLayer, DropoutRates, LayerPass, Norm, Normalised};
use super::parameters::DeviceParameters;
use super::place::{Numbers, Place};
use crate::eval::Scorer;
use crate::model::{Bert, EMBEDDING_TENSORS, Head, LAYER_TENSORS, Sequence, attach_gradient};
use crate::shim::TorchError;

/// Tokens that an evaluation computes at once on a GPU, and on a CPU, whose cache holds what lies between products then.
const EVALUATED_AT_ONCE: [usize; 2] = [16_384, 512];

/// A model on a device.
pub struct DeviceBert {
    config: EncoderConfig,
    heads: Vec<Head>,
    place: Place,
    parameters: DeviceParameters,
    /// Words, positions, segments: [entries, hidden].
    tables: [Tensor; 3],
    /// Their gradients, float32.
    of_tables: Option<[Tensor; 3]>,
    embedding_norm: Norm,
    layers: Vec<DeviceLayer>,
    /// Weight and bias of the pooler, and of each head: float32.
    top: Vec<[Tensor; 2]>,
}

/// One forward pass in training, which waits for its backward pass.
pub(super) struct Pass {
    batch: DeviceBatch,
    embedding: Normalised,
    /// Which of the embeddings' values were kept.
    kept: Option<Tensor>,
    layers: Vec<LayerPass>,
    /// The last layer's output for first tokens, float32 [sequences, hidden]: a leaf of libtorch's graph.
    first_tokens: Tensor,
}

impl DeviceBert {
    /// A copy of `model` at `place`, which is not trained.
    pub fn new(model: &mut Bert, place: Place) -> DeviceBert {
        DeviceBert::copy(model, place, None)
    }

    /// A copy of `model` at `place` to train, with a tail of so many values behind the gradients.
    pub(super) fn trainable(model: &mut Bert, place: Place, tail: usize) -> DeviceBert {
        DeviceBert::copy(model, place, Some(tail))
    }

    fn copy(model: &mut Bert, place: Place, tail: Option<usize>) -> DeviceBert {
        let (config, heads) = (model.config().clone(), model.heads().to_vec());
        let p = DeviceParameters::copy(model.parameters_mut(), place, tail);
        let trains = tail.is_some();
        let start = |layer: usize| EMBEDDING_TENSORS + LAYER_TENSORS * layer;
        let layers = config.num_hidden_layers;
        let leaf = |index: usize| {
            let leaf = p.value(index).detach().set_requires_grad(trains);
            if trains {
                attach_gradient(&leaf, &p.gradient(index, 0));
            }
            leaf
        };
        let top = (0..=heads.len()).map(|i| [0, 1].map(|j| leaf(start(layers) + 2 * i + j))).collect();
        DeviceBert {
            tables: [0, 1, 2].map(|i| p.computed(i, 0)),
            of_tables: trains.then(|| [0, 1, 2].map(|i| p.gradient(i, 0))),
            embedding_norm: Norm::new(&p, 3, config.layer_norm_eps, trains),
            layers: (0..layers).map(|i| DeviceLayer::new(&p, &config, start(i), trains)).collect(),
            top,
            config,
            heads,
            place,
            parameters: p,
        }
    }

    pub(super) fn parameters(&self) -> &DeviceParameters {
        &self.parameters
    }

    pub(super) fn parameters_mut(&mut self) -> &mut DeviceParameters {
        &mut self.parameters
    }

    /// Where the parameters of layer `layer` begin in the flat buffers.
    pub(super) fn start_of_layer(&self, layer: usize) -> usize {
        self.parameters.ranges()[EMBEDDING_TENSORS + LAYER_TENSORS * layer].start
    }

    /// Sends sequences to the device, in their order.
    pub(super) fn batch(&self, sequences: &[Sequence]) -> DeviceBatch {
        let has_kernel = self.place.is_cuda() && self.place.numbers == Numbers::Bf16;
        DeviceBatch::new(sequences, self.place.device, (!has_kernel).then(|| self.parameters.kind()))
    }

    /// A forward pass in training, with dropout from libtorch's generator.
    pub(super) fn encode(&self, batch: DeviceBatch) -> Result<Pass, TorchError> {
        let _no_grad = tch::no_grad_guard();
        let rates = self.rates();
        let (x, embedding) = self.embedding_norm.forward(self.embed(&batch));
        let (mut x, kept) = drop(&x, rates.hidden);
        let mut layers = vec![];
        for (i, layer) in self.layers.iter().enumerate() {
            let (output, pass) = layer.forward(x, &batch, rates, i + 1 == self.layers.len())?;
            x = output;
            layers.push(pass);
        }
        let first_tokens = x.to_kind(Kind::Float).detach().set_requires_grad(true);
        Ok(Pass { batch, embedding, kept, layers, first_tokens })
    }

    /// Pooled outputs with dropout, float32 [sequences, hidden], for libtorch to differentiate.
    pub(super) fn pooled_in_training(&self, pass: &Pass) -> Tensor {
        self.pool(&pass.first_tokens).dropout(self.config.hidden_dropout_prob, true)
    }

    /// Outputs of head `head` for pooled rows: float32 [rows, outputs].
    pub(super) fn head(&self, head: usize, pooled: &Tensor) -> Tensor {
        let [weight, bias] = &self.top[1 + head];
        pooled.linear(weight, Some(bias))
    }

    /// The gradients of all parameters, after libtorch has added those of what is above the encoder: layers' are added, or with
    /// `is_first` take the place of what was there; the embeddings' are added. `complete` hears where in the flat buffers
    /// everything from there on is complete.
    pub(super) fn backward(
        &mut self,
        pass: Pass,
        is_first: bool,
        mut complete: impl FnMut(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let _no_grad = tch::no_grad_guard();
        let rates = self.rates();
        let Pass { batch, embedding, kept, layers, first_tokens } = pass;
        let mut gradient = first_tokens.grad().to_kind(self.parameters.kind());
        std::mem::drop(first_tokens);
        for (i, pass) in layers.into_iter().enumerate().rev() {
            gradient = self.layers[i].backward(&gradient, pass, &batch, rates, is_first)?;
            complete(self.start_of_layer(i))?;
        }
        let gradient = undrop(gradient, kept.as_ref(), rates.hidden);
        let gradient = self.embedding_norm.backward(&gradient, &embedding, is_first)?.to_kind(Kind::Float);
        for (table, entries) in self.of_tables.iter_mut().flatten().zip(&batch.inputs) {
            let _ = table.index_add_(0, entries, &gradient);
        }
        Ok(())
    }

    /// Sets the gradients to zero to which backward passes add: all but those of the layers and of the embeddings' norm, which
    /// the first one replaces.
    pub(super) fn zero_what_is_added_to(&mut self) {
        let all = self.parameters.gradients_and_tail();
        let tables = self.parameters.ranges()[2].end as i64;
        let top = self.parameters.ranges()[EMBEDDING_TENSORS + LAYER_TENSORS * self.layers.len()].start as i64;
        let _ = all.narrow(0, 0, tables).zero_();
        let _ = all.narrow(0, top, all.numel() as i64 - top).zero_();
    }

    /// Pooled outputs without dropout, float32 [sequences, hidden].
    fn pooled(&self, batch: &DeviceBatch) -> Result<Tensor, TorchError> {
        let (mut x, _) = self.embedding_norm.forward(self.embed(batch));
        for (i, layer) in self.layers.iter().enumerate() {
            (x, _) = layer.forward(x, batch, DropoutRates::NONE, i + 1 == self.layers.len())?;
        }
        Ok(self.pool(&x.to_kind(Kind::Float)))
    }

    /// The sum of the three embeddings, [rows, hidden].
    fn embed(&self, batch: &DeviceBatch) -> Tensor {
        let [words, positions, segments] = [0, 1, 2].map(|i| self.tables[i].index_select(0, &batch.inputs[i]));
        words + positions + segments
    }

    fn pool(&self, first_tokens: &Tensor) -> Tensor {
        let [weight, bias] = &self.top[0];
        first_tokens.linear(weight, Some(bias)).tanh()
    }

    fn rates(&self) -> DropoutRates {
        DropoutRates { hidden: self.config.hidden_dropout_prob, attention: self.config.attention_probs_dropout_prob }
    }
}

impl Scorer for DeviceBert {
    fn config(&self) -> &EncoderConfig {
        &self.config
    }

    fn heads(&self) -> &[Head] {
        &self.heads
    }

    fn tokens_at_once(&self) -> usize {
        EVALUATED_AT_ONCE[usize::from(!self.place.is_cuda())]
    }

    fn outputs(&self, head: usize, sequences: &[Sequence]) -> anyhow::Result<Vec<f32>> {
        tch::no_grad(|| {
            let pooled = self.pooled(&self.batch(sequences))?;
            Ok(Vec::try_from(self.head(head, &pooled).flatten(0, -1))?)
        })
    }
}
