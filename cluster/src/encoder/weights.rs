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

    /// Proves that an encoder of this shape can start from these weights.
    ///
    /// # Errors
    /// A tensor is missing, or has another shape or kind.
    pub fn check_encoder(&self, config: &EncoderConfig) -> Result<(), WeightsError> {
        let has_pooler = self.has_pooler();
        self.check(config, &[], |init| init.is_stored(has_pooler))
    }

    /// Proves that a model with this head is in these weights.
    ///
    /// # Errors
    /// A tensor is missing, or has another shape or kind.
    pub fn check_model(&self, config: &EncoderConfig, head: Head) -> Result<(), WeightsError> {
        self.check(config, &[head], |_| true)
    }

    fn check(&self, config: &EncoderConfig, heads: &[Head], wanted: impl Fn(Init) -> bool) -> Result<(), WeightsError> {
        // Of a config that claims millions of layers, the first that is missing is enough.
        let num_hidden_layers = config.num_hidden_layers.min(self.tensors.len() + 1);
        let specs = specs(&EncoderConfig { num_hidden_layers, ..config.clone() }, heads);
        let mut wanted = specs.iter().filter(|spec| wanted(spec.init));
        wanted.try_for_each(|spec| self.find(&stored_names(&spec.name), &spec.shape).map(drop))
    }
}

impl Weights {
    /// Finds the weights of a directory.
    ///
    /// # Errors
    /// There are none, or they are cut short.
    pub fn find(directory: &Path) -> Result<Weights, EncoderError> {
        let (whole, index, pickle) = (
            directory.join("model.safetensors"),
            directory.join("model.safetensors.index.json"),
            directory.join("pytorch_model.bin"),
        );
        let weights = if !whole.exists() && index.exists() {
            Weights::Safetensors(shards(&index)?)
        } else if !whole.exists() && pickle.exists() {
            Weights::Pickle(pickle)
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
    let beside = |name: String| match Path::new(&name).file_name() {
        Some(file) if file == name.as_str() => Ok(index.with_file_name(file)),
        _ => Err(refuse(format!("names the file '{name}', which is not beside it"))),
    };
    names.into_iter().map(beside).collect()
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
        whole.check_model(&config(), head(2)).unwrap();
        whole.check_encoder(&config()).unwrap();
        let classes = whole.check_model(&config(), head(3)).unwrap_err().to_string();
        assert!(classes.contains("'classifier.weight' has shape [2, 4], but the model needs [3, 4]"), "{classes}");
        let without = |start: &str| {
            let mut headers = headers();
            headers.tensors.retain(|name, _| !name.starts_with(start));
            headers
        };
        let missing = without("classifier.").check_model(&config(), head(2)).unwrap_err().to_string();
        assert!(missing.contains("classifiers.rte.weight") && missing.contains("is this one fine-tuned?"), "{missing}");
        assert!(without("bert.pooler").check_model(&config(), head(2)).is_err());
        without("bert.pooler").check_encoder(&config()).unwrap();
        let layer = without("bert.encoder.layer.0.output.dense.bias").check_encoder(&config()).unwrap_err();
        assert!(matches!(&layer, WeightsError::Missing { name, .. } if name.ends_with("output.dense.bias")), "{layer}");
        let mut integers = headers();
        integers.tensors.values_mut().for_each(|tensor| tensor.is_float = false);
        assert!(matches!(integers.check_encoder(&config()), Err(WeightsError::Kind { .. })));
    }
}
