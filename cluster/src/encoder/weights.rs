//! The files of a model's weights, and what can be said of them by names and shapes alone: whether a model finds in them what it
//! needs. Of safetensors that is in their headers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::EncoderError;
use super::parameters::{Head, Init, specs, stored_names};
use crate::encoder::EncoderConfig;

/// The files that hold a model's weights, in the order in which they are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Weights {
    /// `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    Safetensors(Vec<PathBuf>),
    /// `pytorch_model.bin`.
    Pickle(PathBuf),
}

/// A weights file that does not fit.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// It cannot be read or written.
    #[error("{path}: {problem}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        problem: String,
    },
    /// A tensor is not in it.
    #[error(
        "{path}: there is no tensor '{name}'\n  the file must hold a BERT encoder under Hugging Face's names (with or without 'bert.'){}",
        head_advice(name)
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape.
    #[error(
        "{path}: tensor '{name}' has shape {found:?}, but the model needs {expected:?}\n  take config.json and the weights from the same model"
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// As in the file.
        found: Vec<usize>,
        /// As the model needs it.
        expected: Vec<i64>,
    },
    /// A tensor's numbers are of a kind that is not read here.
    #[error("{path}: tensor '{name}' does not hold floating-point numbers of 16, 32 or 64 bits")]
    Kind {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor holds NaN or an infinity.
    #[error(
        "{path}: tensor '{name}' holds {value}, with which nothing can be computed\n  the file is damaged, or of a training \
         that diverged: fetch or export it again, or choose another model"
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The first such value.
        value: f32,
    },
    /// There are more layers than there should be.
    #[error(
        "{path}: there are tensors of {found} layers, but num_hidden_layers in config.json is {said}\n  take config.json and the \
         weights from the same model; an encoder is cut to fewer layers by model.layers in the recipe"
    )]
    Layers {
        /// The file.
        path: PathBuf,
        /// Layers up to the last of which there is a tensor.
        found: usize,
        /// As config.json has it.
        said: usize,
    },
}

impl From<EncoderError> for WeightsError {
    fn from(EncoderError { path, problem }: EncoderError) -> Self {
        WeightsError::Io { path, problem }
    }
}

/// What a model of a task must have beyond its encoder.
fn head_advice(name: &str) -> &'static str {
    let of_task = name.starts_with(crate::published::HEADS) || name.starts_with("bert.pooler.");
    if of_task { "; a model of a task has a pooler and a 'classifier', too: is this one fine-tuned?" } else { "" }
}

/// What is known of a stored tensor without its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHeader {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether it holds floating-point numbers of 16, 32 or 64 bits.
    pub is_float: bool,
}

/// What is known of a model's weights without their numbers.
#[derive(Debug, Clone)]
pub struct TensorHeaders {
    path: PathBuf,
    tensors: HashMap<String, TensorHeader>,
}

impl TensorHeaders {
    /// Of tensors that were found in the file `path`.
    pub fn new(path: PathBuf, tensors: HashMap<String, TensorHeader>) -> TensorHeaders {
        TensorHeaders { path, tensors }
    }

    /// The name, among those under which the parameter `name` may be stored, under which there is one of this shape.
    ///
    /// # Errors
    /// There is none, or it has another shape or holds no floating-point numbers.
    pub fn find(&self, names: &[String], shape: &[i64]) -> Result<&str, WeightsError> {
        let path = || self.path.clone();
        let first = || names.first().cloned().unwrap_or_default();
        let found = names.iter().find_map(|name| self.tensors.get_key_value(name));
        let (name, tensor) = found.ok_or_else(|| WeightsError::Missing { path: path(), name: first() })?;
        if !tensor.shape.iter().map(|&n| n as i64).eq(shape.iter().copied()) {
            let (found, expected) = (tensor.shape.clone(), shape.to_vec());
            return Err(WeightsError::Shape { path: path(), name: name.clone(), found, expected });
        }
        if !tensor.is_float {
            return Err(WeightsError::Kind { path: path(), name: name.clone() });
        }
        Ok(name)
    }

    /// Whether the encoder has a pooler; one without starts training with a random one.
    pub fn has_pooler(&self) -> bool {
        stored_names("bert.pooler.dense.weight").iter().any(|name| self.tensors.contains_key(name))
    }

    /// Proves that there are tensors of no more encoder layers than `layers`.
    ///
    /// # Errors
    /// There are.
    pub(super) fn check_layers(&self, layers: usize) -> Result<(), WeightsError> {
        let last = self.tensors.keys().filter_map(|name| layer_of(name)).max();
        match last.map_or(0, |last| last.saturating_add(1)) {
            found if found > layers => Err(WeightsError::Layers { path: self.path.clone(), found, said: layers }),
            _ => Ok(()),
        }
    }

    /// The names of the tensors that an encoder of this shape starts from.
    ///
    /// # Errors
    /// A tensor is missing, or has another shape or kind.
    pub(super) fn of_encoder(&self, config: &EncoderConfig) -> Result<Vec<&str>, WeightsError> {
        let has_pooler = self.has_pooler();
        self.names(config, &[], |init| init.is_stored(has_pooler))
    }

    /// The names of the tensors that a model with this head consists of.
    ///
    /// # Errors
    /// A tensor is missing, or has another shape or kind.
    pub(super) fn of_model(&self, config: &EncoderConfig, head: Head) -> Result<Vec<&str>, WeightsError> {
        self.names(config, &[head], |_| true)
    }

    fn names(
        &self,
        config: &EncoderConfig,
        heads: &[Head],
        wanted: impl Fn(Init) -> bool,
    ) -> Result<Vec<&str>, WeightsError> {
        // Of a config that claims millions of layers, the first that is missing is enough.
        let num_hidden_layers = config.num_hidden_layers.min(self.tensors.len() + 1);
        let specs = specs(&EncoderConfig { num_hidden_layers, ..config.clone() }, heads);
        let wanted = specs.iter().filter(|spec| wanted(spec.init));
        wanted.map(|spec| self.find(&stored_names(&spec.name), &spec.shape)).collect()
    }
}

/// Which of the encoder's layers, from 0 on, a tensor is of.
fn layer_of(name: &str) -> Option<usize> {
    let bare = name.strip_prefix("bert.").unwrap_or(name);
    bare.strip_prefix("encoder.layer.")?.split('.').next()?.parse().ok()
}

impl Weights {
    /// Finds the weights of a directory.
    ///
    /// # Errors
    /// There are none, or they are cut short.
    pub fn find(directory: &Path) -> Result<Weights, EncoderError> {
        let [whole, index, pickle, pickles] =
            ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"]
                .map(|name| directory.join(name));
        let weights = if !whole.exists() && index.exists() {
            Weights::Safetensors(shards(&index)?)
        } else if !whole.exists() && pickle.exists() {
            Weights::Pickle(pickle)
        } else if !whole.exists() && pickles.exists() {
            let problem = "of weights in several files, safetensors alone are read\n  save the model again with transformers' \
                           save_pretrained, which writes them (before 4.35, with safe_serialization=True)";
            return Err(EncoderError { path: pickles, problem: problem.to_owned() });
        } else {
            Weights::Safetensors(vec![whole])
        };
        if let Weights::Safetensors(files) = &weights {
            files.iter().try_for_each(|file| read_header(file).map(drop))?;
        }
        Ok(weights)
    }

    /// The files.
    pub fn files(&self) -> &[PathBuf] {
        match self {
            Weights::Safetensors(files) => files,
            Weights::Pickle(file) => std::slice::from_ref(file),
        }
    }

    /// What the headers of safetensors say; nothing of a pickle, which only the worker reads.
    ///
    /// # Errors
    /// A file cannot be read or is cut short.
    pub fn headers(&self) -> Result<Option<TensorHeaders>, EncoderError> {
        let Weights::Safetensors(files) = self else { return Ok(None) };
        let mut tensors = HashMap::new();
        for file in files {
            tensors.extend(read_header(file)?);
        }
        Ok(Some(TensorHeaders::new(files.first().cloned().unwrap_or_default(), tensors)))
    }
}

/// The files that an index names, each once.
fn shards(index: &Path) -> Result<Vec<PathBuf>, EncoderError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let refuse = |problem: String| EncoderError { path: index.to_owned(), problem };
    let bytes = fs::read(index).map_err(|e| refuse(e.to_string()))?;
    let Index { weight_map } =
        serde_json::from_slice(&bytes).map_err(|e| refuse(format!("is not an index of safetensors shards: {e}")))?;
    let names: BTreeSet<String> = weight_map.into_values().collect();
    if names.is_empty() {
        return Err(refuse("names no file: its weight_map is empty\n  fetch or copy it again".to_owned()));
    }
    let beside = |name: String| match Path::new(&name).file_name() {
        Some(file) if file == name.as_str() => there(index, index.with_file_name(file)),
        _ => Err(refuse(format!("names the file '{name}', which is not beside it"))),
    };
    names.into_iter().map(beside).collect()
}

/// A shard that an index names, if it is there.
fn there(index: &Path, shard: PathBuf) -> Result<PathBuf, EncoderError> {
    if shard.exists() {
        return Ok(shard);
    }
    let index = index.file_name().unwrap_or_default().to_string_lossy();
    let problem = format!("is not there, and {index} names it\n  copy or fetch it again");
    Err(EncoderError { path: shard, problem })
}

/// The header of a safetensors file, whose length has to be what that promises.
fn read_header(path: &Path) -> Result<HashMap<String, TensorHeader>, EncoderError> {
    let refuse = |problem: String| EncoderError { path: path.to_owned(), problem };
    let cut = || refuse("the file is cut short or damaged\n  fetch or copy it again".to_owned());
    let mut file = File::open(path).map_err(|e| refuse(e.to_string()))?;
    let length = file.metadata().map_err(|e| refuse(e.to_string()))?.len();
    let mut size = [0u8; 8];
    file.read_exact(&mut size).map_err(|_| cut())?;
    let header_length = u64::from_le_bytes(size);
    if header_length > length.saturating_sub(8) {
        return Err(cut());
    }
    let mut header = vec![0u8; header_length as usize];
    file.read_exact(&mut header).map_err(|_| cut())?;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&header).map_err(|_| cut())?;
    let end = |tensor: &Value| tensor.get("data_offsets")?.get(1)?.as_u64();
    let data = header.values().filter_map(end).max().unwrap_or(0);
    if (8 + header_length).checked_add(data) != Some(length) {
        return Err(cut());
    }
    // Notes of whoever wrote the file.
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    tensors.map(|(name, tensor)| Ok((name, described(&tensor).ok_or_else(cut)?))).collect()
}

/// What a header says of one tensor, if it is what the format wants.
fn described(tensor: &Value) -> Option<TensorHeader> {
    let shape: Vec<usize> = serde_json::from_value(tensor.get("shape")?.clone()).ok()?;
    let is_float = ["F64", "F32", "F16", "BF16"].contains(&tensor.get("dtype")?.as_str()?);
    Some(TensorHeader { shape, is_float })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::{ParameterSpec, single_head_name};

    fn config() -> EncoderConfig {
        serde_json::from_str(
            r#"{"vocab_size":8,"hidden_size":4,"num_hidden_layers":1,"num_attention_heads":2,"intermediate_size":8,
                "max_position_embeddings":40}"#,
        )
        .unwrap()
    }

    /// Headers of the model of a task with two classes, as Hugging Face would name its tensors.
    fn headers() -> TensorHeaders {
        let list = specs(&config(), &[Head { task: "rte".into(), outputs: 2 }]);
        let header = |spec: &ParameterSpec| {
            let shape = spec.shape.iter().map(|&n| n as usize).collect();
            (single_head_name(&spec.name), TensorHeader { shape, is_float: true })
        };
        TensorHeaders::new("m".into(), list.iter().map(header).collect())
    }

    #[test]
    fn a_model_without_a_head_or_of_another_shape_is_refused_by_its_header() {
        let head = |outputs| Head { task: "rte".into(), outputs };
        let whole = headers();
        whole.of_model(&config(), head(2)).unwrap();
        whole.of_encoder(&config()).unwrap();
        let classes = whole.of_model(&config(), head(3)).unwrap_err().to_string();
        assert!(classes.contains("'classifier.weight' has shape [2, 4], but the model needs [3, 4]"), "{classes}");
        let without = |start: &str| {
            let mut headers = headers();
            headers.tensors.retain(|name, _| !name.starts_with(start));
            headers
        };
        let missing = without("classifier.").of_model(&config(), head(2)).unwrap_err().to_string();
        assert!(missing.contains("classifiers.rte.weight") && missing.contains("is this one fine-tuned?"), "{missing}");
        assert!(without("bert.pooler").of_model(&config(), head(2)).is_err());
        without("bert.pooler").of_encoder(&config()).unwrap();
        let layer = without("bert.encoder.layer.0.output.dense.bias").of_encoder(&config()).unwrap_err();
        assert!(matches!(&layer, WeightsError::Missing { name, .. } if name.ends_with("output.dense.bias")), "{layer}");
        assert!(whole.of_encoder(&config()).unwrap().iter().all(|name| whole.tensors.contains_key(*name)));
        let mut integers = headers();
        integers.tensors.values_mut().for_each(|tensor| tensor.is_float = false);
        assert!(matches!(integers.of_encoder(&config()), Err(WeightsError::Kind { .. })));
    }

    #[test]
    fn more_layers_than_the_config_says_are_refused() {
        headers().check_layers(1).unwrap();
        let cut = headers().check_layers(0).unwrap_err().to_string();
        assert!(cut.contains("tensors of 1 layers") && cut.contains("num_hidden_layers in config.json is 0"), "{cut}");
        // Without `bert.`, and of other parts of a model.
        let named = |name: &str| {
            let mut headers = headers();
            headers.tensors.insert(name.to_owned(), TensorHeader { shape: vec![1], is_float: true });
            headers.check_layers(1)
        };
        assert!(matches!(named("encoder.layer.11.output.dense.bias"), Err(WeightsError::Layers { found: 12, .. })));
        for other in ["cls.predictions.bias", "decoder.layer.7.x", "encoder.layer.x.y", "encoder.layer."] {
            named(other).unwrap();
        }
    }
}
