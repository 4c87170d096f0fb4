//! Names, shapes, depths and initial values of all parameters: Hugging Face's names, in the order of the forward pass; and
//! the names under which files may hold them.

use crate::encoder::EncoderConfig;
use crate::published::HEADS;
use crate::task::Task;

/// One task's head: a dense layer from the pooled output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The task.
    pub task: String,
    /// Classes, or 1 for regression.
    pub outputs: usize,
}

impl Head {
    /// The head that answers a task.
    pub fn of(task: &Task) -> Head {
        Head { task: task.name.clone(), outputs: task.kind.outputs() }
    }
}

/// One parameter tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterSpec {
    /// `bert.encoder.layer.0.attention.self.query.weight`, `classifiers.rte.bias`, …
    pub name: String,
    /// As PyTorch has it: a dense weight is [outputs, inputs].
    pub shape: Vec<i64>,
    /// 0 for embeddings, i + 1 for encoder layer i, layers + 1 for the pooler, layers + 2 for heads.
    pub depth: usize,
    /// Where its first value comes from.
    pub init: Init,
}

/// Where a parameter's first value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// The pretrained encoder.
    Pretrained,
    /// The pretrained encoder; where it has no pooler, as a head's.
    PretrainedPooler,
    /// Truncated normal, standard deviation 0.02.
    TruncatedNormal,
    /// Zero.
    Zero,
}

impl Init {
    /// Whether the files of an encoder hold such a parameter, with a pooler or without.
    pub fn is_stored(self, has_pooler: bool) -> bool {
        match self {
            Init::Pretrained => true,
            Init::PretrainedPooler => has_pooler,
            Init::TruncatedNormal | Init::Zero => false,
        }
    }
}

impl ParameterSpec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }

    /// Whether weight decay applies: to all but LayerNorm and biases.
    pub fn is_decayed(&self) -> bool {
        !self.name.contains("LayerNorm") && !self.name.ends_with("bias")
    }

    /// Whether it is the weight of a dense layer of the encoder: the bulk of the model.
    pub fn is_encoder_weight(&self) -> bool {
        self.name.starts_with("bert.encoder.") && self.shape.len() == 2
    }

    /// True if there is no value in it, which never happens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How many values the parameters of such a model have.
pub fn parameter_count(config: &EncoderConfig, heads: &[Head]) -> usize {
    specs(config, heads).iter().map(ParameterSpec::len).sum()
}

/// The names under which a file may hold the parameter `name`, the best first: with `bert.` or without, of today or of
/// TensorFlow's days (`gamma`, `beta`), and a head as the only one of its model.
pub fn stored_names(name: &str) -> Vec<String> {
    let bare = name.strip_prefix("bert.").unwrap_or(name);
    let old = |n: &str| n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
    let mut names = vec![name.to_owned(), bare.to_owned(), old(name), old(bare), single_head_name(name)];
    names.dedup();
    names
}

/// The name of a parameter in a model of one task: its head is `classifier`, as in Hugging Face's
/// `BertForSequenceClassification`.
pub fn single_head_name(name: &str) -> String {
    match name.strip_prefix(HEADS).and_then(|rest| rest.rsplit_once('.')) {
        Some((_, part)) => format!("classifier.{part}"),
        None => name.to_owned(),
    }
}

/// All parameters of an encoder with `heads`.
pub fn specs(config: &EncoderConfig, heads: &[Head]) -> Vec<ParameterSpec> {
    let mut list = Specs(Vec::new());
    let (h, f) = (config.hidden_size, config.intermediate_size);
    let e = "bert.embeddings";
    list.add(0, format!("{e}.word_embeddings.weight"), &[config.vocab_size, h]);
    list.add(0, format!("{e}.position_embeddings.weight"), &[config.max_position_embeddings, h]);
    list.add(0, format!("{e}.token_type_embeddings.weight"), &[config.type_vocab_size, h]);
    list.affine(0, format!("{e}.LayerNorm"), &[h], h);
    for i in 0..config.num_hidden_layers {
        let l = format!("bert.encoder.layer.{i}");
        // Neighbours of one kind, so that two or three of them can be read as one matrix.
        for (kind, shape) in [("weight", &[h, h][..]), ("bias", &[h])] {
            for part in ["query", "key", "value"] {
                list.add(i + 1, format!("{l}.attention.self.{part}.{kind}"), shape);
            }
        }
        list.affine(i + 1, format!("{l}.attention.output.dense"), &[h, h], h);
        list.affine(i + 1, format!("{l}.attention.output.LayerNorm"), &[h], h);
        list.affine(i + 1, format!("{l}.intermediate.dense"), &[f, h], f);
        list.affine(i + 1, format!("{l}.output.dense"), &[h, f], h);
        list.affine(i + 1, format!("{l}.output.LayerNorm"), &[h], h);
    }
    let layers = config.num_hidden_layers;
    list.affine(layers + 1, "bert.pooler.dense".to_owned(), &[h, h], h);
    for head in heads {
        list.affine(layers + 2, format!("classifiers.{}", head.task), &[head.outputs, h], head.outputs);
    }
    list.0
}

struct Specs(Vec<ParameterSpec>);

impl Specs {
    fn add(&mut self, depth: usize, name: String, shape: &[usize]) {
        let init = match (name.starts_with("classifiers."), name.ends_with("bias")) {
            (false, _) if name.starts_with("bert.pooler.") => Init::PretrainedPooler,
            (false, _) => Init::Pretrained,
            (true, false) => Init::TruncatedNormal,
            (true, true) => Init::Zero,
        };
        self.0.push(ParameterSpec { name, shape: shape.iter().map(|&n| n as i64).collect(), depth, init });
    }

    /// A weight and a bias of `outputs` values.
    fn affine(&mut self, depth: usize, name: String, weight: &[usize], outputs: usize) {
        self.add(depth, format!("{name}.weight"), weight);
        self.add(depth, format!("{name}.bias"), &[outputs]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_the_clusters_and_decay_spares_layer_norm_and_biases() {
        let config: EncoderConfig = serde_json::from_str(
            r#"{"vocab_size":50,"hidden_size":8,"num_hidden_layers":2,"num_attention_heads":2,"intermediate_size":16,
                "max_position_embeddings":20}"#,
        )
        .unwrap();
        let list = specs(&config, &[Head { task: "rte".into(), outputs: 2 }]);
        assert_eq!(list.iter().map(ParameterSpec::len).sum::<usize>(), config.parameters() + 2 * 8 + 2);
        let decayed: Vec<_> = list.iter().filter(|s| s.is_decayed()).map(|s| s.name.as_str()).collect();
        assert!(
            decayed.contains(&"classifiers.rte.weight") && decayed.contains(&"bert.embeddings.word_embeddings.weight")
        );
        assert!(decayed.iter().all(|n| !n.contains("LayerNorm") && !n.ends_with("bias")));
        assert_eq!(list.last().map(|s| s.depth), Some(4));
    }
}
