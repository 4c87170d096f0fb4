//! The part of `config.json` that decides an encoder's shape and arithmetic, and whether what it says is possible and BERT's.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::EncoderError;

/// The file.
const CONFIG: &str = "config.json";

/// The part of `config.json` that decides the encoder's shape and arithmetic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncoderConfig {
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of a token's state.
    pub hidden_size: usize,
    /// Encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads of a layer.
    pub num_attention_heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Longest input.
    pub max_position_embeddings: usize,
    /// Segment types, 2 in BERT.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// Activation; only `gelu` (the exact one) is BERT.
    #[serde(default = "gelu")]
    pub hidden_act: String,
    /// ε of LayerNorm.
    #[serde(default = "bert_eps")]
    pub layer_norm_eps: f64,
    /// Dropout on hidden states.
    #[serde(default = "bert_dropout")]
    pub hidden_dropout_prob: f64,
    /// Dropout on attention weights.
    #[serde(default = "bert_dropout")]
    pub attention_probs_dropout_prob: f64,
}

fn two() -> usize {
    2
}

fn gelu() -> String {
    "gelu".to_owned()
}

fn bert_eps() -> f64 {
    1e-12
}

fn bert_dropout() -> f64 {
    0.1
}

/// Reads the config of a model directory: of the whole encoder, whatever part of it a recipe uses.
///
/// # Errors
/// It is missing, no BERT's, or says what cannot be.
pub(super) fn read(directory: &Path) -> Result<EncoderConfig, EncoderError> {
    let path = directory.join(CONFIG);
    let refuse = |problem: String| EncoderError { path: path.clone(), problem };
    let text = fs::read(&path).map_err(|e| {
        refuse(format!(
            "{e}{}\n  model.path must be a directory with config.json, model.safetensors and vocab.txt",
            one_below(directory)
        ))
    })?;
    let no_config = |e: serde_json::Error| refuse(format!("is not the config of a BERT encoder: {e}"));
    let described: Value = serde_json::from_slice(&text).map_err(no_config)?;
    check_kind(&described).map_err(refuse)?;
    let config: EncoderConfig = serde_json::from_value(described).map_err(no_config)?;
    config.check().map_err(refuse)?;
    Ok(config)
}

/// Where the directory of a stage was named, the model is in the `model` below it; else nothing.
pub(crate) fn one_below(directory: &Path) -> String {
    let below = directory.join("model");
    if below.join(CONFIG).exists() { format!("; there is a model in {}", below.display()) } else { String::new() }
}

/// Refuses a model that is not BERT, or not its encoder; the error is a sentence.
fn check_kind(described: &Value) -> Result<(), String> {
    let kind = described.get("model_type").and_then(Value::as_str).unwrap_or("bert");
    if kind != "bert" {
        return Err(format!("model_type is '{kind}'; only 'bert' is read"));
    }
    if described.get("is_decoder") == Some(&Value::Bool(true)) {
        return Err("is_decoder is true; BERT is an encoder, in which words see those after them, too".to_owned());
    }
    let positions = described.get("position_embedding_type").and_then(Value::as_str).unwrap_or("absolute");
    if positions != "absolute" {
        return Err(format!("position_embedding_type is '{positions}'; BERT's is 'absolute'"));
    }
    Ok(())
}

impl EncoderConfig {
    /// Parameters of the encoder and pooler.
    pub fn parameters(&self) -> usize {
        let (h, f) = (self.hidden_size, self.intermediate_size);
        let embeddings = (self.vocab_size + self.max_position_embeddings + self.type_vocab_size + 2) * h;
        let layer = 4 * (h * h + h) + 2 * h * f + f + h + 4 * h;
        embeddings + self.num_hidden_layers * layer + h * h + h
    }

    /// Floating-point operations that a training step is credited with for a sequence of `length` tokens: two for each weight
    /// of each layer and token, and those of attention, times three, since the backward pass is worth two forward passes
    /// (Narayanan et al. 2021, section 5.1, without recomputation). What need not be computed (padding is not counted; of the
    /// last layer, most is left out) counts as done: it is the work that is asked for, not the way it is done.
    pub fn training_operations(&self, length: usize) -> f64 {
        let (h, f, n) = (self.hidden_size as f64, self.intermediate_size as f64, length as f64);
        let layer = 2.0 * n * (4.0 * h * h + 2.0 * h * f) + 4.0 * n * n * h;
        3.0 * (self.num_hidden_layers as f64 * layer + 2.0 * h * h)
    }

    /// Whether its numbers can be, and are BERT's; the error is a sentence.
    fn check(&self) -> Result<(), String> {
        if self.hidden_act != "gelu" {
            return Err(format!("hidden_act is '{}'; BERT's is 'gelu'", self.hidden_act));
        }
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err("hidden_size is not a multiple of num_attention_heads".to_owned());
        }
        if self.num_hidden_layers == 0 {
            return Err("num_hidden_layers is 0; an encoder has at least one layer".to_owned());
        }
        let eps = self.layer_norm_eps;
        if !eps.is_finite() || eps <= 0.0 {
            return Err(format!("layer_norm_eps is {eps}, and must be above 0; BERT's is 1e-12"));
        }
        let (hidden, attention) = (self.hidden_dropout_prob, self.attention_probs_dropout_prob);
        for (name, p) in [("hidden_dropout_prob", hidden), ("attention_probs_dropout_prob", attention)] {
            if !(0.0..1.0).contains(&p) {
                return Err(format!("{name} is {p}, and must be from 0 to below 1; BERT's is 0.1"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config() -> EncoderConfig {
        EncoderConfig {
            vocab_size: 30_522,
            hidden_size: 1024,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            intermediate_size: 4096,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-12,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
        }
    }

    #[test]
    fn bert_large_has_its_published_number_of_parameters() {
        assert_eq!(config().parameters(), 335_141_888);
    }

    #[test]
    fn training_is_credited_with_six_operations_a_weight_and_token() {
        // 302,309,376 weights in the layers, and attention's 12·24·35²·1024 beside them.
        let expected =
            6.0 * (24.0 * 12.0 * 1024.0 * 1024.0 * 35.0 + 1024.0 * 1024.0) + 12.0 * 24.0 * 35.0 * 35.0 * 1024.0;
        assert!((config().training_operations(35) / expected - 1.0).abs() < 1e-12);
    }

    #[test]
    fn what_is_not_berts_or_cannot_be_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let with = |key: &str, value: Value| {
            let mut described = serde_json::to_value(config()).unwrap();
            described[key] = value;
            fs::write(dir.path().join(CONFIG), described.to_string()).unwrap();
            read(dir.path()).map_err(|error| error.problem)
        };
        for (key, value) in [
            ("model_type", json!("bert")),
            ("model_type", Value::Null),
            ("is_decoder", json!(false)),
            ("hidden_dropout_prob", json!(0)),
            ("attention_probs_dropout_prob", json!(0.99)),
        ] {
            with(key, value).unwrap();
        }
        for (key, value, expected) in [
            ("model_type", json!("roberta"), "model_type is 'roberta'"),
            ("is_decoder", json!(true), "is_decoder is true"),
            ("position_embedding_type", json!("relative_key"), "BERT's is 'absolute'"),
            ("hidden_act", json!("relu"), "hidden_act is 'relu'"),
            ("num_attention_heads", json!(3), "not a multiple of num_attention_heads"),
            ("num_hidden_layers", json!(0), "num_hidden_layers is 0"),
            ("layer_norm_eps", json!(0.0), "layer_norm_eps is 0"),
            ("layer_norm_eps", json!(-1e-12), "must be above 0"),
            ("hidden_dropout_prob", json!(1), "hidden_dropout_prob is 1, and must be from 0 to below 1"),
            ("hidden_dropout_prob", json!(-0.1), "hidden_dropout_prob is -0.1"),
            ("attention_probs_dropout_prob", json!(7.0), "attention_probs_dropout_prob is 7"),
        ] {
            let problem = with(key, value).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
        let no_number = EncoderConfig { hidden_dropout_prob: f64::NAN, ..config() };
        assert!(no_number.check().unwrap_err().contains("is NaN"));
        let endless = EncoderConfig { layer_norm_eps: f64::INFINITY, ..config() };
        assert!(endless.check().unwrap_err().contains("is inf"));
    }

    #[test]
    fn a_directory_without_a_config_points_to_the_model_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let missing = || read(dir.path()).unwrap_err().problem;
        assert!(missing().contains("model.path must be a directory") && !missing().contains("there is a model in"));
        fs::create_dir(dir.path().join("model")).unwrap();
        fs::write(dir.path().join("model").join(CONFIG), "{}").unwrap();
        assert!(missing().contains(&format!("there is a model in {}/model", dir.path().display())), "{}", missing());
    }
}
