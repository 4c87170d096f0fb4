//! What can be known of a Hugging Face model directory without libtorch: its shape, that its vocabulary fits, how it cleans
//! text, and that its weights are not cut short and have the right names and shapes. Enough to plan a run and to refuse a bad
//! directory at once.

mod normalizing;
mod parameters;
mod vocabulary;
mod weights;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest;

pub use normalizing::{BertRules, Normalizing};
pub use parameters::{Head, Init, ParameterSpec, parameter_count, single_head_name, specs, stored_names};
pub use vocabulary::{SPECIAL_TOKENS, Vocabulary};
pub use weights::{TensorHeader, TensorHeaders, Weights, WeightsError};

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

/// A model directory that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct EncoderError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong and what to do.
    pub problem: String,
}

/// A model directory that was looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoder {
    /// The directory.
    pub directory: PathBuf,
    /// Its shape, cut to the layers that the recipe asks for.
    pub config: EncoderConfig,
    /// Its weights.
    pub weights: Weights,
}

impl Encoder {
    /// Looks at a directory. `layers`: use only so many.
    ///
    /// # Errors
    /// A file is missing, is no BERT, is cut short, or does not fit the others.
    pub fn inspect(directory: &Path, layers: Option<usize>, max_length: usize) -> Result<Encoder, EncoderError> {
        let path = directory.join("config.json");
        let refuse = |problem: String| EncoderError { path: path.clone(), problem };
        let text = fs::read(&path).map_err(|e| {
            refuse(format!("{e}\n  model.path must be a directory with config.json, model.safetensors and vocab.txt"))
        })?;
        let no_config = |e: serde_json::Error| refuse(format!("is not the config of a BERT encoder: {e}"));
        let described: Value = serde_json::from_slice(&text).map_err(no_config)?;
        let positions = described.get("position_embedding_type").and_then(Value::as_str).unwrap_or("absolute");
        if positions != "absolute" {
            return Err(refuse(format!("position_embedding_type is '{positions}'; BERT's is 'absolute'")));
        }
        let mut config: EncoderConfig = serde_json::from_value(described).map_err(no_config)?;
        if config.hidden_act != "gelu" {
            return Err(refuse(format!("hidden_act is '{}'; BERT's is 'gelu'", config.hidden_act)));
        }
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(refuse("hidden_size is not a multiple of num_attention_heads".to_owned()));
        }
        if max_length > config.max_position_embeddings {
            let longest = config.max_position_embeddings;
            return Err(refuse(format!(
                "model.max_length is {max_length}, but this encoder takes at most {longest} tokens"
            )));
        }
        if let Some(layers) = layers {
            if layers > config.num_hidden_layers {
                let has = config.num_hidden_layers;
                return Err(refuse(format!("model.layers is {layers}, but this encoder has only {has}")));
            }
            config.num_hidden_layers = layers;
        }
        let encoder = Encoder { directory: directory.to_owned(), config, weights: Weights::find(directory)? };
        encoder.vocabulary()?.check(encoder.config.vocab_size)?;
        Ok(encoder)
    }

    /// Proves by names and shapes that training can start from its weights, as far as that is known without reading a pickle.
    ///
    /// # Errors
    /// A tensor is missing, or has another shape or kind.
    pub fn check_weights(&self) -> Result<(), WeightsError> {
        self.weights.headers()?.map_or(Ok(()), |headers| headers.check_encoder(&self.config))
    }

    /// The same of a model with this head.
    ///
    /// # Errors
    /// As for [`Encoder::check_weights`].
    pub fn check_model(&self, head: Head) -> Result<(), WeightsError> {
        self.weights.headers()?.map_or(Ok(()), |headers| headers.check_model(&self.config, head))
    }

    /// Its vocabulary.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn vocabulary(&self) -> Result<Vocabulary, EncoderError> {
        Vocabulary::read(&self.directory)
    }

    /// What becomes of a text before it is cut into words.
    ///
    /// # Errors
    /// A file of the tokenizer cannot be read.
    pub fn normalizing(&self) -> Result<Normalizing, EncoderError> {
        normalizing::read(&self.directory).map(|(rules, _)| rules)
    }

    /// The file that defines how text becomes tokens: `tokenizer.json` where there is one, else `vocab.txt`.
    pub fn tokenizer(&self) -> PathBuf {
        let whole = self.directory.join(vocabulary::TOKENIZER);
        if whole.exists() { whole } else { self.directory.join(vocabulary::VOCABULARY) }
    }

    /// Hash of what tokenising depends on.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn vocabulary_sha256(&self) -> Result<String, EncoderError> {
        let files = [self.directory.join(vocabulary::VOCABULARY), self.tokenizer()];
        let mut sums: Vec<String> =
            files.iter().filter(|file| file.exists()).map(|file| sum(file)).collect::<Result<_, _>>()?;
        let settings = self.directory.join(normalizing::SETTINGS);
        let (rules, is_own) = normalizing::read(&self.directory)?;
        if self.tokenizer() == files[0] {
            // Without a tokenizer.json this file decides about lower-casing and accents.
            if settings.exists() {
                sums.push(sum(&settings)?);
            }
        } else if !is_own {
            sums.push(digest::of_json(&rules));
        }
        Ok(digest::of_bytes(sums.join(" ")))
    }

    /// Hash of what training starts from.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn weights_sha256(&self) -> Result<String, EncoderError> {
        let mut sums = vec![sum(&self.directory.join("config.json"))?];
        for file in self.weights.files() {
            sums.push(sum(file)?);
        }
        Ok(digest::of_bytes(sums.join(" ")))
    }
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
}

fn sum(path: &Path) -> Result<String, EncoderError> {
    digest::of_file(path).map_err(|e| EncoderError { path: path.to_owned(), problem: e.to_string() })
}

#[cfg(test)]
mod tests {
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

    /// A directory with a vocabulary of eight tokens and one tensor of two floats.
    fn directory(change: impl Fn(&Path)) -> Result<Encoder, EncoderError> {
        let dir = tempfile::tempdir().unwrap();
        let small = EncoderConfig { vocab_size: 8, max_position_embeddings: 40, ..config() };
        fs::write(dir.path().join("config.json"), serde_json::to_vec(&small).unwrap()).unwrap();
        fs::write(dir.path().join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\nc\nd\n").unwrap();
        let header = br#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let weights = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
        fs::write(dir.path().join("model.safetensors"), weights).unwrap();
        change(dir.path());
        Encoder::inspect(dir.path(), None, 32)
    }

    /// Changes a text in a directory's config.
    fn set(directory: &Path, key: &str, value: &str) {
        let path = directory.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value.into();
        fs::write(path, config.to_string()).unwrap();
    }

    #[test]
    fn a_directory_without_vocab_txt_has_the_vocabulary_of_its_tokenizer() {
        let tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d"];
        let vocab: serde_json::Map<_, _> =
            tokens.iter().enumerate().map(|(i, t)| ((*t).to_owned(), i.into())).collect();
        let json = serde_json::json!({ "model": { "type": "WordPiece", "vocab": vocab } }).to_string();
        let dir = tempfile::tempdir().unwrap();
        let encoder = directory(|d| {
            fs::remove_file(d.join("vocab.txt")).unwrap();
            fs::write(d.join("tokenizer.json"), &json).unwrap();
            for entry in fs::read_dir(d).unwrap() {
                let from = entry.unwrap().path();
                fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
            }
        });
        assert_eq!(encoder.unwrap().config.vocab_size, 8);
        let here = || Encoder::inspect(dir.path(), None, 32).unwrap();
        assert_eq!(here().vocabulary().unwrap().tokens, tokens);
        let sum = here().vocabulary_sha256().unwrap();
        // A setting that changes nothing is another file, and the same tokens.
        fs::write(dir.path().join("tokenizer_config.json"), r#"{"model_max_length": 9}"#).unwrap();
        assert_eq!(here().vocabulary_sha256().unwrap(), sum);
        fs::write(dir.path().join("tokenizer_config.json"), r#"{"do_lower_case": false}"#).unwrap();
        let json = json.replacen('{', r#"{"normalizer":{"type":"BertNormalizer","lowercase":true},"#, 1);
        fs::write(dir.path().join("tokenizer.json"), &json).unwrap();
        let overridden = here().vocabulary_sha256().unwrap();
        fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
        assert_ne!(here().vocabulary_sha256().unwrap(), overridden);
    }

    #[test]
    fn weights_may_be_sharded_or_pickled() {
        let files = |change: &dyn Fn(&Path)| {
            let encoder = directory(change)?;
            let name = |p: &PathBuf| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok::<_, EncoderError>(encoder.weights.files().iter().map(name).collect::<Vec<_>>())
        };
        let shard = |d: &Path, second: &str| {
            fs::copy(d.join("model.safetensors"), d.join("b.safetensors")).unwrap();
            fs::rename(d.join("model.safetensors"), d.join("a.safetensors")).unwrap();
            let index = format!(
                r#"{{"metadata":{{}},"weight_map":{{"x":"a.safetensors","y":"{second}","z":"a.safetensors"}}}}"#
            );
            fs::write(d.join("model.safetensors.index.json"), index).unwrap();
        };
        assert_eq!(files(&|d| shard(d, "b.safetensors")).unwrap(), ["a.safetensors", "b.safetensors"]);
        assert!(files(&|d| shard(d, "../b.safetensors")).unwrap_err().problem.contains("not beside it"));
        assert!(files(&|d| shard(d, "c.safetensors")).unwrap_err().path.ends_with("c.safetensors"));
        let pickled = |d: &Path| fs::rename(d.join("model.safetensors"), d.join("pytorch_model.bin")).unwrap();
        assert_eq!(files(&pickled).unwrap(), ["pytorch_model.bin"]);
        assert!(files(&|d| fs::remove_file(d.join("model.safetensors")).unwrap()).is_err());
    }

    #[test]
    fn each_fault_of_a_model_directory_is_named() {
        directory(|_| {}).unwrap();
        type Fault<'a> = (&'a dyn Fn(&Path), &'a str);
        let faults: [Fault; 9] = [
            (&|d| fs::remove_file(d.join("config.json")).unwrap(), "model.path must be a directory"),
            (&|d| fs::write(d.join("config.json"), "{}").unwrap(), "is not the config of a BERT encoder"),
            (&|d| fs::write(d.join("vocab.txt"), "[PAD]\n".repeat(9)).unwrap(), "the vocabulary has 9 tokens"),
            (&|d| fs::write(d.join("vocab.txt"), "a\nb\nc\nd\ne\nf\ng\nh\n").unwrap(), "has no [PAD]"),
            (&|d| fs::write(d.join("vocab.txt"), "a\nb\nc\nd\na\nf\ng\nh\n").unwrap(), "tokens 0 and 4"),
            (&|d| fs::remove_file(d.join("vocab.txt")).unwrap(), "neither vocab.txt nor tokenizer.json"),
            (&|d| set(d, "position_embedding_type", "relative_key"), "BERT's is 'absolute'"),
            (&|d| set(d, "hidden_act", "relu"), "hidden_act is 'relu'"),
            (
                &|d| fs::File::options().write(true).open(d.join("model.safetensors")).unwrap().set_len(66).unwrap(),
                "cut short",
            ),
        ];
        for (fault, expected) in faults {
            let message = directory(fault).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
