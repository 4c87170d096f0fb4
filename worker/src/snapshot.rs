//! Tensors to safetensors files and back: encoders to start from, checkpoints, published models.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, View};

use crate::model::{Init, Parameters};
use crate::optim::Optimizer;

/// A weights file that does not fit.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
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
        "{path}: there is no tensor '{name}'\n  the file must hold a BERT encoder with pooler under Hugging Face's names (with or without 'bert.')"
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape.
    #[error(
        "{path}: tensor '{name}' has shape {found:?}, but the model needs {expected:?}\n  take config.json and model.safetensors from the same model"
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
    #[error("{path}: tensor '{name}' is stored as {kind:?}; F32, F16 and BF16 are read")]
    Kind {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// As in the file.
        kind: Dtype,
    },
}

/// Which tensors of a file are wanted, and under which names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Only what is pretrained; names may lack `bert.` and may be of TensorFlow's days (`gamma`, `beta`).
    Encoder,
    /// Everything, as this program writes it; the file may hold more heads.
    Whole,
}

/// Reads parameters from a safetensors file into place.
///
/// # Errors
/// The file is damaged, or lacks a tensor of the right shape.
pub fn read_parameters(path: &Path, parameters: &mut Parameters, reading: Reading) -> Result<(), SnapshotError> {
    let bytes = read(path)?;
    let file = parse(path, &bytes)?;
    let specs = parameters.specs().to_vec();
    let ranges = parameters.ranges().to_vec();
    let values = parameters.values_mut();
    for (spec, range) in specs.iter().zip(ranges) {
        if reading == Reading::Encoder && spec.init != Init::Pretrained {
            continue;
        }
        let names = if reading == Reading::Encoder { aliases(&spec.name) } else { whole_model_names(&spec.name) };
        read_tensor(path, &file, &names, &spec.shape, &mut values[range])?;
    }
    Ok(())
}

/// Writes all parameters. A single head is named `classifier`, as Hugging Face's `BertForSequenceClassification`
/// names it; several are named `classifiers.TASK`.
///
/// # Errors
/// The file cannot be written.
pub fn write_parameters(path: &Path, parameters: &mut Parameters, single_head: bool) -> Result<(), SnapshotError> {
    let specs = parameters.specs().to_vec();
    let ranges = parameters.ranges().to_vec();
    let values = &*parameters.values_mut();
    let tensors = specs.iter().zip(ranges).map(|(spec, range)| {
        let name = if single_head { single_head_name(&spec.name) } else { spec.name.clone() };
        (name, Floats { shape: spec.shape.iter().map(|&n| n as usize).collect(), values: &values[range] })
    });
    write(path, tensors.collect())
}

const FIRST: &str = "first_moment.";
const SECOND: &str = "second_moment.";

/// Writes the optimizer's moments, under the parameters' names.
///
/// # Errors
/// The file cannot be written.
pub fn write_moments(path: &Path, parameters: &Parameters, optimizer: &Optimizer) -> Result<(), SnapshotError> {
    let (first, second) = optimizer.moments();
    let mut tensors = Vec::new();
    for (spec, range) in parameters.specs().iter().zip(parameters.ranges()) {
        let shape: Vec<usize> = spec.shape.iter().map(|&n| n as usize).collect();
        for (prefix, moments) in [(FIRST, first), (SECOND, second)] {
            let values = &moments[range.clone()];
            tensors.push((format!("{prefix}{}", spec.name), Floats { shape: shape.clone(), values }));
        }
    }
    write(path, tensors)
}

/// Reads what [`write_moments`] wrote.
///
/// # Errors
/// The file is damaged, or of another model.
pub fn read_moments(path: &Path, parameters: &Parameters, optimizer: &mut Optimizer) -> Result<(), SnapshotError> {
    let bytes = read(path)?;
    let file = parse(path, &bytes)?;
    let (first, second) = optimizer.moments_mut();
    for (spec, range) in parameters.specs().iter().zip(parameters.ranges()) {
        for (prefix, moments) in [(FIRST, &mut *first), (SECOND, &mut *second)] {
            read_tensor(path, &file, &[format!("{prefix}{}", spec.name)], &spec.shape, &mut moments[range.clone()])?;
        }
    }
    Ok(())
}

fn single_head_name(name: &str) -> String {
    match name.strip_prefix("classifiers.").and_then(|rest| rest.rsplit_once('.')) {
        Some((_, part)) => format!("classifier.{part}"),
        None => name.to_owned(),
    }
}

fn whole_model_names(name: &str) -> Vec<String> {
    vec![name.to_owned(), single_head_name(name)]
}

/// The names under which a pretrained tensor may be found.
fn aliases(name: &str) -> Vec<String> {
    let bare = name.strip_prefix("bert.").unwrap_or(name);
    let old = |n: &str| n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
    vec![name.to_owned(), bare.to_owned(), old(name), old(bare)]
}

fn read(path: &Path) -> Result<Vec<u8>, SnapshotError> {
    std::fs::read(path).map_err(|e| SnapshotError::Io { path: path.to_owned(), problem: e.to_string() })
}

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, SnapshotError> {
    SafeTensors::deserialize(bytes).map_err(|e| SnapshotError::Io {
        path: path.to_owned(),
        problem: format!("is no whole safetensors file: {e}\n  fetch or copy it again"),
    })
}

fn read_tensor(
    path: &Path,
    file: &SafeTensors,
    names: &[String],
    shape: &[i64],
    into: &mut [f32],
) -> Result<(), SnapshotError> {
    let found = names.iter().find_map(|n| file.tensor(n).ok());
    let name = names.first().cloned().unwrap_or_default();
    let tensor = found.ok_or_else(|| SnapshotError::Missing { path: path.to_owned(), name: name.clone() })?;
    if !tensor.shape().iter().map(|&n| n as i64).eq(shape.iter().copied()) {
        let (found, expected) = (tensor.shape().to_vec(), shape.to_vec());
        return Err(SnapshotError::Shape { path: path.to_owned(), name, found, expected });
    }
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::F32 => convert(data, into, f32::from_le_bytes),
        Dtype::F16 => convert(data, into, |b| half::f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => convert(data, into, |b| half::bf16::from_le_bytes(b).to_f32()),
        kind => return Err(SnapshotError::Kind { path: path.to_owned(), name, kind }),
    }
    Ok(())
}

fn convert<const N: usize>(data: &[u8], into: &mut [f32], f: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in into.iter_mut().zip(data.as_chunks::<N>().0) {
        *value = f(*bytes);
    }
}

/// A tensor to write.
struct Floats<'a> {
    shape: Vec<usize>,
    values: &'a [f32],
}

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // Little-endian, as the format wants it, on every machine that libtorch runs on.
        Cow::Borrowed(bytemuck::cast_slice(self.values))
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

fn write(path: &Path, tensors: Vec<(String, Floats)>) -> Result<(), SnapshotError> {
    // Hugging Face's readers refuse files without this note.
    let note = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(note), path)
        .map_err(|e| SnapshotError::Io { path: path.to_owned(), problem: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ParameterSpec;
    use bam_cluster::config::OptimizerKind;

    fn parameters() -> Parameters {
        let spec = |name: &str, shape: &[i64], init| ParameterSpec {
            name: name.into(),
            shape: shape.to_vec(),
            depth: 0,
            init,
        };
        let mut p = Parameters::new(
            vec![
                spec("bert.embeddings.LayerNorm.weight", &[2], Init::Pretrained),
                spec("classifiers.rte.weight", &[1, 2], Init::Zero),
            ],
            0,
        );
        p.values_mut().copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        p
    }

    #[test]
    fn a_model_is_read_back_under_either_head_name() {
        let dir = tempfile::tempdir().unwrap();
        for single in [false, true] {
            let path = dir.path().join("m.safetensors");
            write_parameters(&path, &mut parameters(), single).unwrap();
            let mut read = parameters();
            read.values_mut().fill(0.0);
            read_parameters(&path, &mut read, Reading::Whole).unwrap();
            assert_eq!(read.values_mut(), [1.0, 2.0, 3.0, 4.0]);
        }
    }

    #[test]
    fn encoders_may_have_bare_and_old_names_and_half_precision() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let values: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
        let tensor = safetensors::tensor::TensorView::new(Dtype::F16, vec![2], &values).unwrap();
        safetensors::serialize_to_file([("embeddings.LayerNorm.gamma", tensor)], None, &path).unwrap();
        let mut p = parameters();
        read_parameters(&path, &mut p, Reading::Encoder).unwrap();
        assert_eq!(p.values_mut(), [1.5, -2.0, 3.0, 4.0]);
        let missing = read_parameters(&path, &mut p, Reading::Whole).unwrap_err();
        assert!(matches!(missing, SnapshotError::Missing { .. }), "{missing}");
    }

    #[test]
    fn moments_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.safetensors");
        let p = parameters();
        let spans = crate::optim::spans(p.specs(), p.ranges(), 1, 0.9, 0.01);
        let mut written = Optimizer::new(OptimizerKind::BertAdam, spans.clone());
        written.moments_mut().0.copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        written.moments_mut().1.copy_from_slice(&[5.0, 6.0, 7.0, 8.0]);
        write_moments(&path, &p, &written).unwrap();
        let mut read = Optimizer::new(OptimizerKind::BertAdam, spans);
        read_moments(&path, &p, &mut read).unwrap();
        assert_eq!(read.moments(), written.moments());
    }
}
