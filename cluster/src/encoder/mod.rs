//! What can be known of a Hugging Face model directory without libtorch: its shape, that its vocabulary fits, how it cleans
//! text, and that its weights are not cut short and have the right names and shapes. Enough to plan a run and to refuse a bad
//! directory at once.

mod config;
mod normalizing;
mod parameters;
mod vocabulary;
mod weights;

use std::path::{Path, PathBuf};

use crate::digest;

pub use config::EncoderConfig;
pub(crate) use config::one_below;
pub use normalizing::{BertRules, Normalizing};
pub use parameters::{Head, Init, ParameterSpec, parameter_count, single_head_name, specs, stored_names};
pub use vocabulary::{SPECIAL_TOKENS, Vocabulary};
pub use weights::{TensorHeader, TensorHeaders, Weights, WeightsError};

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
    /// Layers that config.json says there are; the recipe may use fewer.
    pub whole_layers: usize,
    /// Its weights.
    pub weights: Weights,
}

impl Encoder {
    /// Looks at a directory. `layers`: use only so many.
    ///
    /// # Errors
    /// A file is missing, is no BERT, is cut short, or does not fit the others.
    pub fn inspect(directory: &Path, layers: Option<usize>, max_length: usize) -> Result<Encoder, EncoderError> {
        let mut config = config::read(directory)?;
        let refuse = |problem: String| EncoderError { path: directory.join("config.json"), problem };
        if max_length > config.max_position_embeddings {
            let longest = config.max_position_embeddings;
            return Err(refuse(format!(
                "model.max_length is {max_length}, but this encoder takes at most {longest} tokens"
            )));
        }
        let whole_layers = config.num_hidden_layers;
        if let Some(layers) = layers {
            if layers > whole_layers {
                return Err(refuse(format!("model.layers is {layers}, but this encoder has only {whole_layers}")));
            }
            config.num_hidden_layers = layers;
        }
        let weights = Weights::find(directory)?;
        let encoder = Encoder { directory: directory.to_owned(), config, whole_layers, weights };
        encoder.vocabulary()?.check(encoder.config.vocab_size)?;
        Ok(encoder)
    }

    /// The names of the tensors that training starts from, proved by names and shapes.
    ///
    /// # Errors
    /// A tensor is missing, or has another shape or kind, or there are more layers than config.json says.
    pub fn tensors<'a>(&self, headers: &'a TensorHeaders) -> Result<Vec<&'a str>, WeightsError> {
        headers.check_layers(self.whole_layers)?;
        headers.of_encoder(&self.config)
    }

    /// The same of a model with this head.
    ///
    /// # Errors
    /// As for [`Encoder::tensors`].
    pub fn model_tensors<'a>(&self, headers: &'a TensorHeaders, head: Head) -> Result<Vec<&'a str>, WeightsError> {
        headers.check_layers(self.whole_layers)?;
        headers.of_model(&self.config, head)
    }

    /// Proves by names and shapes that training can start from its weights, as far as that is known without reading a pickle.
    ///
    /// # Errors
    /// As for [`Encoder::tensors`].
    pub fn check_weights(&self) -> Result<(), WeightsError> {
        self.weights.headers()?.map_or(Ok(()), |headers| self.tensors(&headers).map(drop))
    }

    /// The same of a model with this head.
    ///
    /// # Errors
    /// As for [`Encoder::tensors`].
    pub fn check_model(&self, head: Head) -> Result<(), WeightsError> {
        self.weights.headers()?.map_or(Ok(()), |headers| self.model_tensors(&headers, head).map(drop))
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

fn sum(path: &Path) -> Result<String, EncoderError> {
    digest::of_file(path).map_err(|e| EncoderError { path: path.to_owned(), problem: e.to_string() })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;

    /// A directory with a vocabulary of eight tokens and one tensor of two floats.
    fn directory(change: impl Fn(&Path)) -> Result<Encoder, EncoderError> {
        let dir = tempfile::tempdir().unwrap();
        let small = json!({ "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 8, "max_position_embeddings": 40 });
        fs::write(dir.path().join("config.json"), small.to_string()).unwrap();
        fs::write(dir.path().join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\nc\nd\n").unwrap();
        let header = br#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let weights = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
        fs::write(dir.path().join("model.safetensors"), weights).unwrap();
        change(dir.path());
        Encoder::inspect(dir.path(), None, 32)
    }

    /// Changes a value in a directory's config.
    fn set(directory: &Path, key: &str, value: Value) {
        let path = directory.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
    }

    #[test]
    fn a_directory_without_vocab_txt_has_the_vocabulary_of_its_tokenizer() {
        let tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d"];
        let vocab: serde_json::Map<_, _> =
            tokens.iter().enumerate().map(|(i, t)| ((*t).to_owned(), i.into())).collect();
        let json = json!({ "model": { "type": "WordPiece", "vocab": vocab } }).to_string();
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
        let gone = files(&|d| shard(d, "c.safetensors")).unwrap_err();
        assert!(gone.path.ends_with("c.safetensors") && gone.problem.contains("model.safetensors.index.json names it"));
        let empty = files(&|d| {
            fs::rename(d.join("model.safetensors"), d.join("a.safetensors")).unwrap();
            fs::write(d.join("model.safetensors.index.json"), r#"{"weight_map":{}}"#).unwrap();
        });
        let empty = empty.unwrap_err();
        assert!(empty.path.ends_with("model.safetensors.index.json") && empty.problem.contains("names no file"));
        let sharded_pickles = files(&|d| {
            fs::remove_file(d.join("model.safetensors")).unwrap();
            fs::write(d.join("pytorch_model.bin.index.json"), r#"{"weight_map":{"x":"pytorch_model-1.bin"}}"#).unwrap();
        });
        let sharded_pickles = sharded_pickles.unwrap_err().to_string();
        assert!(
            sharded_pickles.contains("pytorch_model.bin.index.json") && sharded_pickles.contains("save_pretrained")
        );
        let pickled = |d: &Path| fs::rename(d.join("model.safetensors"), d.join("pytorch_model.bin")).unwrap();
        assert_eq!(files(&pickled).unwrap(), ["pytorch_model.bin"]);
        assert!(files(&|d| fs::remove_file(d.join("model.safetensors")).unwrap()).is_err());
    }

    #[test]
    fn each_fault_of_a_model_directory_is_named() {
        directory(|_| {}).unwrap();
        type Fault<'a> = (&'a dyn Fn(&Path), &'a str);
        let faults: [Fault; 8] = [
            (&|d| fs::remove_file(d.join("config.json")).unwrap(), "model.path must be a directory"),
            (&|d| fs::write(d.join("config.json"), "{}").unwrap(), "is not the config of a BERT encoder"),
            (&|d| fs::write(d.join("vocab.txt"), "[PAD]\n".repeat(9)).unwrap(), "the vocabulary has 9 tokens"),
            (&|d| fs::write(d.join("vocab.txt"), "a\nb\nc\nd\ne\nf\ng\nh\n").unwrap(), "has no [PAD]"),
            (&|d| fs::write(d.join("vocab.txt"), "a\nb\nc\nd\na\nf\ng\nh\n").unwrap(), "tokens 0 and 4"),
            (&|d| fs::remove_file(d.join("vocab.txt")).unwrap(), "neither vocab.txt nor tokenizer.json"),
            (&|d| set(d, "hidden_act", "relu".into()), "hidden_act is 'relu'"),
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
