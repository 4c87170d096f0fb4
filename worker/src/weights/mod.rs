//! Tensors in files, whatever the format: safetensors, whole or in shards, and PyTorch's pickles.

mod pickle;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use bam_cluster::encoder::Weights;
use safetensors::tensor::{Dtype, SafeTensors};

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
        "{path}: there is no tensor '{name}'\n  the file must hold a BERT encoder under Hugging Face's names (with or without 'bert.')"
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

/// What kind of numbers a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    F64,
    F32,
    F16,
    BF16,
    /// Anything else, of so many bytes.
    Other(usize),
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Element::F64 => 8,
            Element::F32 => 4,
            Element::F16 | Element::BF16 => 2,
            Element::Other(bytes) => bytes,
        }
    }

    /// Little-endian numbers as float32; `None` if they are no floating-point numbers.
    fn to_floats(self, data: &[u8]) -> Option<Vec<f32>> {
        fn convert<const N: usize>(data: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            data.as_chunks::<N>().0.iter().map(|bytes| f(*bytes)).collect()
        }
        match self {
            Element::F64 => Some(convert(data, |b| f64::from_le_bytes(b) as f32)),
            Element::F32 => Some(convert(data, f32::from_le_bytes)),
            Element::F16 => Some(convert(data, |b| half::f16::from_le_bytes(b).to_f32())),
            Element::BF16 => Some(convert(data, |b| half::bf16::from_le_bytes(b).to_f32())),
            Element::Other(_) => None,
        }
    }
}

/// A tensor in one of the buffers.
#[derive(Debug, Clone, PartialEq)]
struct Stored {
    element: Element,
    shape: Vec<usize>,
    /// Distance between neighbours along each dimension, in numbers.
    strides: Vec<usize>,
    buffer: usize,
    /// Where its first number is, in bytes.
    start: usize,
}

/// The tensors of a model, by name.
#[derive(Debug)]
pub struct WeightStore {
    path: PathBuf,
    tensors: HashMap<String, Stored>,
    buffers: Vec<Vec<u8>>,
}

impl WeightStore {
    /// Reads all files of a model's weights.
    ///
    /// # Errors
    /// A file is missing or damaged, or a pickle holds anything but tensors.
    pub fn open(weights: &Weights) -> Result<WeightStore, WeightsError> {
        match weights {
            Weights::Safetensors(files) => {
                let path = files.first().cloned().unwrap_or_default();
                let mut store = WeightStore { path, tensors: HashMap::new(), buffers: vec![] };
                files.iter().try_for_each(|file| store.add_safetensors(file))?;
                Ok(store)
            }
            Weights::Pickle(path) => {
                let refuse = |problem| WeightsError::Io { path: path.clone(), problem };
                let (tensors, buffers) = pickle::read(path).map_err(refuse)?;
                Ok(WeightStore { path: path.clone(), tensors, buffers })
            }
        }
    }

    /// Whether there is a tensor under one of these names.
    pub fn has(&self, names: &[String]) -> bool {
        names.iter().any(|name| self.tensors.contains_key(name))
    }

    /// Reads the tensor that has one of `names`, in the order of preference, as float32.
    ///
    /// # Errors
    /// There is none, or it has another shape or holds no floating-point numbers.
    pub fn read(&self, names: &[String], shape: &[i64], into: &mut [f32]) -> Result<(), WeightsError> {
        let path = || self.path.clone();
        let name = names.first().cloned().unwrap_or_default();
        let found = names.iter().find_map(|n| self.tensors.get(n));
        let tensor = found.ok_or_else(|| WeightsError::Missing { path: path(), name: name.clone() })?;
        if !tensor.shape.iter().map(|&n| n as i64).eq(shape.iter().copied()) {
            let (found, expected) = (tensor.shape.clone(), shape.to_vec());
            return Err(WeightsError::Shape { path: path(), name, found, expected });
        }
        let values = self.values(tensor).ok_or_else(|| WeightsError::Kind { path: path(), name })?;
        into.copy_from_slice(&values);
        Ok(())
    }

    /// A tensor's numbers in row-major order.
    fn values(&self, tensor: &Stored) -> Option<Vec<f32>> {
        // How many bytes these take is unknown: some formats put several numbers into one.
        if let Element::Other(_) = tensor.element {
            return None;
        }
        let data = &self.buffers[tensor.buffer][tensor.start..];
        let count: usize = tensor.shape.iter().product();
        if tensor.strides == row_major(&tensor.shape) {
            return tensor.element.to_floats(&data[..count * tensor.element.bytes()]);
        }
        let all = tensor.element.to_floats(data)?;
        Some((0..count).map(|i| all[position(i, &tensor.shape, &tensor.strides)]).collect())
    }

    fn add_safetensors(&mut self, path: &Path) -> Result<(), WeightsError> {
        let refuse = |problem: String| WeightsError::Io { path: path.to_owned(), problem };
        let damaged =
            |e: &dyn std::fmt::Display| refuse(format!("is no whole safetensors file: {e}\n  fetch or copy it again"));
        let bytes = fs::read(path).map_err(|e| refuse(e.to_string()))?;
        // This checks that every tensor lies within the file.
        SafeTensors::deserialize(&bytes).map_err(|e| damaged(&e))?;
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(&e))?;
        // The header's length comes first, in eight bytes.
        let data = header + 8;
        let buffer = self.buffers.len();
        for (name, info) in metadata.tensors() {
            let element = match info.dtype {
                Dtype::F64 => Element::F64,
                Dtype::F32 => Element::F32,
                Dtype::F16 => Element::F16,
                Dtype::BF16 => Element::BF16,
                _ => Element::Other(1),
            };
            let (shape, start) = (info.shape.clone(), data + info.data_offsets.0);
            let stored = Stored { element, strides: row_major(&shape), shape, buffer, start };
            self.tensors.insert(name, stored);
        }
        self.buffers.push(bytes);
        Ok(())
    }
}

/// Strides of a tensor whose last dimension is dense.
fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        // An empty tensor may claim any other length.
        strides[i - 1] = strides[i].wrapping_mul(shape[i]);
    }
    strides
}

/// Where the `index`-th number in row-major order lies.
fn position(mut index: usize, shape: &[usize], strides: &[usize]) -> usize {
    let mut at = 0;
    for (&length, &stride) in shape.iter().zip(strides).rev() {
        at += index % length * stride;
        index /= length;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) {
        let tensor = safetensors::tensor::TensorView::new(dtype, shape.to_vec(), data).unwrap();
        safetensors::serialize_to_file([(name, tensor)], None, path).unwrap();
    }

    #[test]
    fn shards_are_one_model_and_narrow_numbers_are_widened() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|n| dir.path().join(n));
        let half: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
        write(&a, "x", Dtype::F16, &[2], &half);
        write(&b, "y", Dtype::F64, &[1, 1], &0.25f64.to_le_bytes());
        let store = WeightStore::open(&Weights::Safetensors(vec![a, b])).unwrap();
        let read = |name: &str, shape: &[i64], into: &mut [f32]| store.read(&[name.to_owned()], shape, into);
        let (mut x, mut y) = ([0.0; 2], [0.0]);
        read("x", &[2], &mut x).unwrap();
        read("y", &[1, 1], &mut y).unwrap();
        assert_eq!((x, y), ([1.5, -2.0], [0.25]));
        assert!(matches!(read("y", &[1], &mut y), Err(WeightsError::Shape { .. })));
        assert!(matches!(read("z", &[1], &mut y), Err(WeightsError::Missing { .. })));
    }

    #[test]
    fn numbers_that_are_no_floats_are_refused_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, "ids", Dtype::I64, &[1], &7i64.to_le_bytes());
        let store = WeightStore::open(&Weights::Safetensors(vec![path])).unwrap();
        assert!(matches!(store.read(&["ids".to_owned()], &[1], &mut [0.0]), Err(WeightsError::Kind { .. })));
    }

    #[test]
    fn transposed_tensors_are_read_in_row_major_order() {
        // Stored 0 1 2 3 4 5 as [3, 2], seen as [2, 3].
        let order: Vec<usize> = (0..6).map(|i| position(i, &[2, 3], &[1, 2])).collect();
        assert_eq!(order, [0, 2, 4, 1, 3, 5]);
        assert_eq!(row_major(&[2, 3, 4]), [12, 4, 1]);
    }
}
