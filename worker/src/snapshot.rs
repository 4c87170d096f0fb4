//! Tensors to safetensors files and back: encoders to start from, checkpoints, published models.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use bam_cluster::encoder::{Weights, single_head_name, stored_names};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, View};

use crate::model::{Init, ParameterSpec, Parameters};
use crate::weights::{WeightStore, WeightsError};

/// Reads the pretrained part of a model: an encoder under Hugging Face's names, with or without `bert.`, of today or of
/// TensorFlow's days (`gamma`, `beta`). Heads keep their values, and so does the pooler if the encoder has none; returns
/// whether it has one.
///
/// # Errors
/// The files are damaged, lack a tensor of the right shape, or hold numbers that are not finite.
pub fn read_encoder(weights: &Weights, parameters: &mut Parameters) -> Result<bool, WeightsError> {
    let store = WeightStore::open(weights)?;
    let has_pooler = store.headers().has_pooler();
    let (specs, ranges) = (parameters.specs().to_vec(), parameters.ranges().to_vec());
    let wanted = |init: Init| init.is_stored(has_pooler);
    read(&store, WeightStore::read_finite, &specs, &ranges, parameters.values_mut(), wanted)?;
    Ok(has_pooler)
}

/// Reads a whole model: one that this program wrote, or Hugging Face's `BertForSequenceClassification` for a single head.
/// There may be more heads than are wanted.
///
/// # Errors
/// The files are damaged, or lack a tensor of the right shape.
pub fn read_model(weights: &Weights, parameters: &mut Parameters) -> Result<(), WeightsError> {
    let (specs, ranges) = (parameters.specs().to_vec(), parameters.ranges().to_vec());
    read_values(weights, &specs, &ranges, parameters.values_mut())
}

/// The same, into a flat buffer that holds parameters of these shapes in these places.
///
/// # Errors
/// As [`read_model`].
pub fn read_values(
    weights: &Weights,
    specs: &[ParameterSpec],
    ranges: &[Range<usize>],
    values: &mut [f32],
) -> Result<(), WeightsError> {
    let store = WeightStore::open(weights)?;
    read(&store, WeightStore::read, specs, ranges, values, |_| true)
}

/// As [`read_model`], of a model that is asked and not trained, which others may have made.
///
/// # Errors
/// As [`read_model`]; or numbers are not finite.
pub fn read_finite_model(weights: &Weights, parameters: &mut Parameters) -> Result<(), WeightsError> {
    let (specs, ranges) = (parameters.specs().to_vec(), parameters.ranges().to_vec());
    let store = WeightStore::open(weights)?;
    read(&store, WeightStore::read_finite, &specs, &ranges, parameters.values_mut(), |_| true)
}

/// Reads a tensor that has one of these names and this shape.
type ReadTensor = fn(&WeightStore, &[String], &[i64], &mut [f32]) -> Result<(), WeightsError>;

/// Reads parameter by parameter.
fn read(
    store: &WeightStore,
    tensor: ReadTensor,
    specs: &[ParameterSpec],
    ranges: &[Range<usize>],
    values: &mut [f32],
    wanted: impl Fn(Init) -> bool,
) -> Result<(), WeightsError> {
    for (spec, range) in specs.iter().zip(ranges).filter(|(spec, _)| wanted(spec.init)) {
        tensor(store, &stored_names(&spec.name), &spec.shape, &mut values[range.clone()])?;
    }
    Ok(())
}

/// One safetensors file.
pub fn one_file(path: &Path) -> Weights {
    Weights::Safetensors(vec![path.to_owned()])
}

/// Writes all parameters: the flat buffer `values` in the shapes and places that `specs` and `ranges` say. A single head
/// is named `classifier`, as Hugging Face's `BertForSequenceClassification` names it; several are named
/// `classifiers.TASK`.
///
/// # Errors
/// The file cannot be written.
pub fn write_values(
    path: &Path,
    specs: &[ParameterSpec],
    ranges: &[Range<usize>],
    values: &[f32],
    single_head: bool,
) -> io::Result<()> {
    let tensors = specs.iter().zip(ranges).map(|(spec, range)| {
        let name = if single_head { single_head_name(&spec.name) } else { spec.name.clone() };
        (name, Floats::of(spec, &values[range.clone()]))
    });
    write(path, tensors.collect())
}

const FIRST: &str = "first_moment.";
const SECOND: &str = "second_moment.";

/// Writes the optimizer's first and second moments, under the parameters' names.
///
/// # Errors
/// The file cannot be written.
pub fn write_moments(
    path: &Path,
    specs: &[ParameterSpec],
    ranges: &[Range<usize>],
    (first, second): (&[f32], &[f32]),
) -> io::Result<()> {
    let mut tensors = Vec::new();
    for (spec, range) in specs.iter().zip(ranges) {
        for (prefix, moments) in [(FIRST, first), (SECOND, second)] {
            tensors.push((format!("{prefix}{}", spec.name), Floats::of(spec, &moments[range.clone()])));
        }
    }
    write(path, tensors)
}

/// Reads what [`write_moments`] wrote.
///
/// # Errors
/// The file is damaged, or of another model.
pub fn read_moments(
    path: &Path,
    (specs, ranges): (&[ParameterSpec], &[Range<usize>]),
    (first, second): (&mut [f32], &mut [f32]),
) -> Result<(), WeightsError> {
    let store = WeightStore::open(&one_file(path))?;
    for (spec, range) in specs.iter().zip(ranges) {
        for (prefix, moments) in [(FIRST, &mut *first), (SECOND, &mut *second)] {
            store.read(&[format!("{prefix}{}", spec.name)], &spec.shape, &mut moments[range.clone()])?;
        }
    }
    Ok(())
}

/// A tensor to write.
struct Floats<'a> {
    shape: Vec<usize>,
    values: &'a [f32],
}

impl<'a> Floats<'a> {
    fn of(spec: &ParameterSpec, values: &'a [f32]) -> Self {
        Floats { shape: spec.shape.iter().map(|&n| n as usize).collect(), values }
    }
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

fn write(path: &Path, tensors: Vec<(String, Floats)>) -> io::Result<()> {
    // Hugging Face's readers refuse files without this note.
    let note = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(note), path).map_err(|e| match e {
        SafeTensorError::IoError(e) => e,
        other => io::Error::other(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::Optimizer;
    use bam_cluster::config::OptimizerKind;

    fn parameters() -> Parameters {
        let spec = |name: &str, shape: &[i64], init| ParameterSpec {
            name: name.into(),
            shape: shape.to_vec(),
            depth: 0,
            init,
        };
        let mut p = Parameters::new(vec![
            spec("bert.embeddings.LayerNorm.weight", &[2], Init::Pretrained),
            spec("bert.pooler.dense.weight", &[1], Init::PretrainedPooler),
            spec("classifiers.rte.weight", &[1, 2], Init::Zero),
        ]);
        p.values_mut().copy_from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        p
    }

    #[test]
    fn a_model_is_read_back_under_either_head_name() {
        let dir = tempfile::tempdir().unwrap();
        for single in [false, true] {
            let path = dir.path().join("m.safetensors");
            let mut p = parameters();
            let (specs, ranges) = (p.specs().to_vec(), p.ranges().to_vec());
            write_values(&path, &specs, &ranges, p.values_mut(), single).unwrap();
            let mut read = parameters();
            read.values_mut().fill(0.0);
            read_model(&one_file(&path), &mut read).unwrap();
            assert_eq!(read.values_mut(), [1.0, 2.0, 3.0, 4.0, 5.0]);
        }
    }

    #[test]
    fn encoders_may_have_bare_and_old_names_and_no_pooler() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let floats = |values: &'static [f32]| Floats { shape: vec![values.len()], values };
        let norm = || ("embeddings.LayerNorm.gamma".to_owned(), floats(&[1.5, -2.0]));
        let mut p = parameters();
        write(&path, vec![norm()]).unwrap();
        assert!(!read_encoder(&one_file(&path), &mut p).unwrap());
        assert_eq!(p.values_mut(), [1.5, -2.0, 3.0, 4.0, 5.0]);
        write(&path, vec![norm(), ("pooler.dense.weight".to_owned(), floats(&[7.0]))]).unwrap();
        assert!(read_encoder(&one_file(&path), &mut p).unwrap());
        assert_eq!(p.values_mut(), [1.5, -2.0, 7.0, 4.0, 5.0]);
        let missing = read_model(&one_file(&path), &mut p).unwrap_err();
        assert!(matches!(missing, WeightsError::Missing { .. }), "{missing}");
    }

    #[test]
    fn what_others_made_is_finite_and_a_checkpoint_is_read_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let mut p = parameters();
        let (specs, ranges) = (p.specs().to_vec(), p.ranges().to_vec());
        // The head's, which an encoder does not need.
        p.values_mut()[4] = f32::NAN;
        write_values(&path, &specs, &ranges, p.values_mut(), true).unwrap();
        read_model(&one_file(&path), &mut parameters()).unwrap();
        read_encoder(&one_file(&path), &mut parameters()).unwrap();
        let refused = read_finite_model(&one_file(&path), &mut parameters()).unwrap_err();
        assert!(matches!(&refused, WeightsError::NotFinite { name, .. } if name == "classifier.weight"), "{refused}");
        p.values_mut()[0] = f32::INFINITY;
        write_values(&path, &specs, &ranges, p.values_mut(), true).unwrap();
        let refused = read_encoder(&one_file(&path), &mut parameters()).unwrap_err().to_string();
        assert!(refused.contains("tensor 'bert.embeddings.LayerNorm.weight' holds inf"), "{refused}");
    }

    #[test]
    fn moments_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.safetensors");
        let p = parameters();
        let spans = crate::optim::spans(p.specs(), p.ranges(), 1, 0.9, 0.01);
        let zeros = || [(); 2].map(|()| tch::Tensor::zeros([5], (tch::Kind::Float, tch::Device::Cpu)));
        let mut written = Optimizer::new(OptimizerKind::BertAdam, spans.clone(), zeros());
        written.moments_mut().0.copy_from_slice(&[1.0, 2.0, 3.0, 4.0, 4.5]);
        written.moments_mut().1.copy_from_slice(&[5.0, 6.0, 7.0, 8.0, 9.0]);
        write_moments(&path, p.specs(), p.ranges(), written.moments()).unwrap();
        let mut read = Optimizer::new(OptimizerKind::BertAdam, spans, zeros());
        read_moments(&path, (p.specs(), p.ranges()), read.moments_mut()).unwrap();
        assert_eq!(read.moments(), written.moments());
    }
}
