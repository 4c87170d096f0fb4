//! BERT as its paper writes it, one sequence at a time and differentiated by libtorch: what the fast path is compared with.

use std::collections::HashMap;

use bam_cluster::encoder::EncoderConfig;
use tch::{Device, Kind, Tensor};

use super::Head;
use super::batch::{Batch, Sequence};
use super::bert::Bert;
use super::dropout::{DropoutKey, Rate, RowKey, Site, StepSeed, mask};
use crate::tensor_memory::floats_mut;

const HEADS: i64 = 2;
const LAYERS: usize = 3;

/// A model whose parameters libtorch differentiates, by name.
struct Plain {
    parameters: HashMap<String, Tensor>,
    config: EncoderConfig,
}

impl Plain {
    fn of(model: &mut Bert) -> Plain {
        let specs = model.parameters().specs().to_vec();
        let ranges = model.parameters().ranges().to_vec();
        let values = model.parameters_mut().values_mut();
        let tensor = |range: std::ops::Range<usize>, shape: &[i64]| {
            Tensor::from_slice(&values[range]).view(shape).set_requires_grad(true)
        };
        let named = specs.iter().zip(ranges).map(|(spec, range)| (spec.name.clone(), tensor(range, &spec.shape)));
        Plain { parameters: named.collect(), config: model.config().clone() }
    }

    fn dense(&self, name: &str, x: &Tensor) -> Tensor {
        x.linear(&self.parameters[&format!("{name}.weight")], Some(&self.parameters[&format!("{name}.bias")]))
    }

    fn norm(&self, name: &str, x: &Tensor) -> Tensor {
        let [weight, bias] = ["weight", "bias"].map(|part| Some(&self.parameters[&format!("{name}.{part}")]));
        x.layer_norm([self.config.hidden_size as i64], weight, bias, self.config.layer_norm_eps, false)
    }

    /// Each row of [rows, width] times the mask of its key.
    fn drop(&self, x: Tensor, probability: f64, key: impl Fn(usize) -> RowKey) -> Tensor {
        let Some(rate) = Rate::new(probability) else { return x };
        let mut masks = Tensor::zeros(x.size(), (Kind::Float, Device::Cpu));
        let width = *x.size().last().unwrap() as usize;
        floats_mut(&mut masks)
            .chunks_exact_mut(width)
            .enumerate()
            .for_each(|(row, values)| mask(key(row), rate, values));
        x * masks
    }

    /// The pooled output of one sequence, [1, hidden].
    fn pooled(&self, sequence: &Sequence, key: DropoutKey) -> Tensor {
        let (hidden, attention) = (self.config.hidden_dropout_prob, self.config.attention_probs_dropout_prob);
        let length = sequence.tokens.len() as i64;
        let look_up = |table: &str, ids: Tensor| {
            self.parameters[&format!("bert.embeddings.{table}_embeddings.weight")].index_select(0, &ids)
        };
        let ids = |ids: Vec<i64>| Tensor::from_slice(&ids);
        let sum = look_up("word", ids(sequence.tokens.iter().map(|&t| i64::from(t)).collect()))
            + look_up("position", ids((0..length).collect()))
            + look_up("token_type", ids(sequence.types.iter().map(|&t| i64::from(t)).collect()));
        let embedded = self.norm("bert.embeddings.LayerNorm", &sum);
        let mut x = self.drop(embedded, hidden, |row| key.row(Site::Embeddings, row));
        for layer in 0..LAYERS {
            let name = |part: &str| format!("bert.encoder.layer.{layer}.{part}");
            let by_head = |part: &str| {
                self.dense(&name(&format!("attention.self.{part}")), &x).view([length, HEADS, -1]).transpose(0, 1)
            };
            let width = self.config.hidden_size as f64 / HEADS as f64;
            let weights =
                (by_head("query").matmul(&by_head("key").transpose(1, 2)) / width.sqrt()).softmax(-1, Kind::Float);
            // A head's weights are one row of the mask. In the last layer, only the first token asks.
            let asking = if layer + 1 == LAYERS { 1 } else { length };
            let weights = weights.narrow(1, 0, asking).reshape([HEADS, -1]);
            let weights = self.drop(weights, attention, |head| key.row(Site::Attention(layer), head));
            let context = weights.view([HEADS, asking, length]).matmul(&by_head("value"));
            let context = context.transpose(0, 1).reshape([asking, -1]);
            let projected = self.dense(&name("attention.output.dense"), &context);
            let projected = self.drop(projected, hidden, |row| key.row(Site::Projection(layer), row));
            let middle = self.norm(&name("attention.output.LayerNorm"), &(projected + x.narrow(0, 0, asking)));
            let inner = self.dense(&name("intermediate.dense"), &middle).gelu("none");
            let outer = self.dense(&name("output.dense"), &inner);
            let outer = self.drop(outer, hidden, |row| key.row(Site::FeedForward(layer), row));
            x = self.norm(&name("output.LayerNorm"), &(outer + middle));
        }
        let pooled = self.dense("bert.pooler.dense", &x).tanh();
        self.drop(pooled, hidden, |_| key.row(Site::Pooler, 0))
    }
}

fn model(dropout: f64) -> Bert {
    let config = serde_json::json!({
        "vocab_size": 60, "hidden_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "intermediate_size": 80, "max_position_embeddings": 40, "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout / 2.0,
    });
    let heads = vec![Head { task: "a".into(), outputs: 3 }];
    let mut model = Bert::new(serde_json::from_value(config).unwrap(), heads);
    // Large enough for attention to be far from uniform.
    for (i, value) in model.parameters_mut().values_mut().iter_mut().enumerate() {
        *value = ((i as u64 * 2_654_435_761) % 1000) as f32 / 1500.0 - 0.3;
    }
    model
}

fn tokens() -> Vec<Vec<i32>> {
    let lengths = [7, 33, 1, 12, 7, 20, 12, 12];
    lengths.iter().enumerate().map(|(i, &n)| (0..n).map(|j| ((i * 31 + j * 17) % 60) as i32).collect()).collect()
}

#[test]
fn outputs_and_gradients_are_those_of_the_plain_path() {
    let (tokens, types) = (tokens(), [[0u8; 20], [1; 20]].concat());
    let sequences: Vec<Sequence> = tokens.iter().map(|t| Sequence { tokens: t, types: &types[..t.len()] }).collect();
    let keys: Vec<DropoutKey> = (0..tokens.len()).map(|i| StepSeed::new(3, 4).example(i)).collect();
    for (dropout, micro_batch) in [(0.0, 8), (0.3, 8), (0.3, 3), (0.3, 1)] {
        let mut model = model(dropout);
        let plain = Plain::of(&mut model);
        model.parameters_mut().gradients_mut().fill(f32::NAN);
        model.parameters_mut().gradients_and_words().1.touch_all();
        model.parameters_mut().zero_gradients();
        for start in (0..sequences.len()).step_by(micro_batch) {
            let end = sequences.len().min(start + micro_batch);
            let pass = model.encode(Batch::new(&sequences[start..end]), &keys[start..end]);
            let pooled = model.pooled_in_training(&pass);
            let expected: Vec<Tensor> =
                pass.batch().order().iter().map(|&i| start + i).map(|i| plain.pooled(&sequences[i], keys[i])).collect();
            let expected = Tensor::cat(&expected, 0);
            assert!((&pooled - &expected).abs().max().double_value(&[]) < 2e-6, "{dropout} {micro_batch}");
            let loss =
                |pooled: &Tensor, head: Tensor| (head.square() + pooled.sum(Kind::Float) * 0.01).sum(Kind::Float);
            loss(&expected, plain.dense("classifiers.a", &expected)).backward();
            loss(&pooled, model.head(0, &pooled)).backward();
            model.backward(pass);
        }
        let specs = model.parameters().specs().to_vec();
        let ranges = model.parameters().ranges().to_vec();
        let gradients = model.parameters_mut().gradients_mut();
        for (spec, range) in specs.iter().zip(ranges) {
            let expected: Vec<f32> = Vec::try_from(plain.parameters[&spec.name].grad().flatten(0, -1)).unwrap();
            let largest = expected.iter().fold(0f32, |m, g| m.max(g.abs()));
            for (found, expected) in gradients[range].iter().zip(&expected) {
                let error = (found - expected).abs();
                assert!(error <= 1e-5 * largest + 2e-6, "{} {dropout} {micro_batch}: {found} {expected}", spec.name);
            }
        }
    }
}
