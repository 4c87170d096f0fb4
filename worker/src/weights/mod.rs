//! Tensors in files, whatever the format: safetensors, whole or in shards, and PyTorch's pickles.

mod pickle;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use bam_cluster::encoder::{TensorHeader, TensorHeaders, Weights};
use safetensors::tensor::{Dtype, SafeTensors};

pub use bam_cluster::encoder::WeightsError;

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

    /// Little-endian numbers as float32; of anything else there are none.
    fn to_floats(self, data: &[u8]) -> Vec<f32> {
        fn convert<const N: usize>(data: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            data.as_chunks::<N>().0.iter().map(|bytes| f(*bytes)).collect()
        }
        match self {
            Element::F64 => convert(data, |b| f64::from_le_bytes(b) as f32),
            Element::F32 => convert(data, f32::from_le_bytes),
            Element::F16 => convert(data, |b| half::f16::from_le_bytes(b).to_f32()),
            Element::BF16 => convert(data, |b| half::bf16::from_le_bytes(b).to_f32()),
            Element::Other(_) => vec![],
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
    weights: Weights,
    headers: TensorHeaders,
    tensors: HashMap<String, Stored>,
    buffers: Vec<Vec<u8>>,
}

impl WeightStore {
    /// Reads all files of a model's weights.
    ///
    /// # Errors
    /// A file is missing or damaged, or a pickle holds anything but tensors.
    pub fn open(weights: &Weights) -> Result<WeightStore, WeightsError> {
        let (mut tensors, mut buffers) = (HashMap::new(), vec![]);
        match weights {
            Weights::Safetensors(files) => {
                files.iter().try_for_each(|file| add_safetensors(file, &mut tensors, &mut buffers))?;
            }
            Weights::Pickle(path) => {
                let refuse = |problem| WeightsError::Io { path: path.clone(), problem };
                (tensors, buffers) = pickle::read(path).map_err(refuse)?;
            }
        }
        let header = |(name, stored): (&String, &Stored)| {
            let is_float = !matches!(stored.element, Element::Other(_));
            (name.clone(), TensorHeader { shape: stored.shape.clone(), is_float })
        };
        let path = weights.files().first().cloned().unwrap_or_default();
        let headers = TensorHeaders::new(path, tensors.iter().map(header).collect());
        Ok(WeightStore { weights: weights.clone(), headers, tensors, buffers })
    }

    /// Names and shapes of the tensors.
    pub fn headers(&self) -> &TensorHeaders {
        &self.headers
    }

    /// Reads the tensor that has one of `names`, in the order of preference, as float32.
    ///
    /// # Errors
    /// There is none, or it has another shape or holds no floating-point numbers.
    pub fn read(&self, names: &[String], shape: &[i64], into: &mut [f32]) -> Result<(), WeightsError> {
        self.copy(names, shape, into).map(drop)
    }

    /// The same of a model that others may have made, whose numbers have to be finite.
    ///
    /// # Errors
    /// As [`WeightStore::read`]; or one of the numbers is NaN or an infinity.
    pub fn read_finite(&self, names: &[String], shape: &[i64], into: &mut [f32]) -> Result<(), WeightsError> {
        let name = self.copy(names, shape, into)?;
        self.refuse_not_finite(name, into)
    }

    /// Proves that these tensors, whose names are among those of [`WeightStore::headers`], hold finite numbers alone.
    ///
    /// # Errors
    /// One of them does not.
    pub fn check_finite(&self, names: &[&str]) -> Result<(), WeightsError> {
        names.iter().try_for_each(|name| self.refuse_not_finite(name, &self.values(&self.tensors[*name])))
    }

    fn refuse_not_finite(&self, name: &str, values: &[f32]) -> Result<(), WeightsError> {
        match values.iter().find(|value| !value.is_finite()) {
            None => Ok(()),
            Some(&value) => {
                let path = self.file(&self.tensors[name]).clone();
                Err(WeightsError::NotFinite { path, name: name.to_owned(), value })
            }
        }
    }

    /// The file that a tensor is from.
    fn file(&self, tensor: &Stored) -> &PathBuf {
        match &self.weights {
            Weights::Safetensors(files) => &files[tensor.buffer],
            Weights::Pickle(file) => file,
        }
    }

    /// Copies a tensor's numbers; returns the name under which it is stored.
    fn copy(&self, names: &[String], shape: &[i64], into: &mut [f32]) -> Result<&str, WeightsError> {
        let name = self.headers.find(names, shape)?;
        into.copy_from_slice(&self.values(&self.tensors[name]));
        Ok(name)
    }

    /// A tensor's numbers in row-major order; none if they are no floating-point numbers.
    fn values(&self, tensor: &Stored) -> Vec<f32> {
        let Stored { element, shape, strides, .. } = tensor;
        // How many bytes others take is unknown: some formats put several numbers into one.
        if let Element::Other(_) = element {
            return vec![];
        }
        let used = span(shape, strides) * element.bytes();
        let stored = element.to_floats(&self.buffers[tensor.buffer][tensor.start..][..used]);
        if *strides == row_major(shape) {
            return stored;
        }
        (0..shape.iter().product()).map(|i| stored[position(i, shape, strides)]).collect()
    }
}

fn add_safetensors(
    path: &Path,
    tensors: &mut HashMap<String, Stored>,
    buffers: &mut Vec<Vec<u8>>,
) -> Result<(), WeightsError> {
    let refuse = |problem: String| WeightsError::Io { path: path.to_owned(), problem };
    let damaged =
        |e: &dyn std::fmt::Display| refuse(format!("is no whole safetensors file: {e}\n  fetch or copy it again"));
    let bytes = fs::read(path).map_err(|e| refuse(e.to_string()))?;
    // This checks that every tensor lies within the file.
    SafeTensors::deserialize(&bytes).map_err(|e| damaged(&e))?;
    let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(&e))?;
    // The header's length comes first, in eight bytes.
    let data = header + 8;
    let buffer = buffers.len();
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
        tensors.insert(name, stored);
    }
    buffers.push(bytes);
    Ok(())
}

/// How many numbers there are from a tensor's first to its last, both included.
fn span(shape: &[usize], strides: &[usize]) -> usize {
    if shape.contains(&0) {
        return 0;
    }
    shape.iter().zip(strides).map(|(length, stride)| (length - 1) * stride).sum::<usize>() + 1
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
    fn numbers_that_are_not_finite_are_refused_with_their_own_shard() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|n| dir.path().join(n));
        let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        write(&a, "x", Dtype::F32, &[2], &floats(&[1.0, -1.0]));
        write(&b, "y", Dtype::F32, &[3], &floats(&[1.0, f32::NEG_INFINITY, f32::NAN]));
        let store = WeightStore::open(&Weights::Safetensors(vec![a, b.clone()])).unwrap();
        let (mut x, mut y) = ([0.0; 2], [0.0; 3]);
        store.read_finite(&["x".to_owned()], &[2], &mut x).unwrap();
        store.read(&["y".to_owned()], &[3], &mut y).unwrap();
        store.check_finite(&["x"]).unwrap();
        for refused in [store.read_finite(&["y".to_owned()], &[3], &mut y), store.check_finite(&["x", "y"])] {
            let message = refused.unwrap_err().to_string();
            assert!(message.starts_with(&format!("{}: tensor 'y' holds -inf", b.display())), "{message}");
            assert!(message.contains("fetch or export it again"), "{message}");
        }
        // Too large for float32.
        let c = dir.path().join("c");
        write(&c, "z", Dtype::F64, &[1], &1e39f64.to_le_bytes());
        let store = WeightStore::open(&Weights::Safetensors(vec![c])).unwrap();
        assert!(matches!(store.check_finite(&["z"]), Err(WeightsError::NotFinite { .. })));
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
        // Of what is stored, no more is converted than a tensor uses.
        assert_eq!(
            [span(&[2, 3], &[1, 2]), span(&[2, 2], &[5, 1]), span(&[], &[]), span(&[3, 0], &[0, 1])],
            [6, 7, 1, 0]
        );
        let numbers: Vec<u8> = (0..9u8).flat_map(|n| f32::from(n).to_le_bytes()).collect();
        let stored = Stored { element: Element::F32, shape: vec![2, 2], strides: vec![1, 3], buffer: 0, start: 4 };
        let headers = TensorHeaders::new("x".into(), HashMap::new());
        let weights = Weights::Pickle("x".into());
        let store = WeightStore { weights, headers, tensors: HashMap::new(), buffers: vec![numbers] };
        assert_eq!(store.values(&stored), [1.0, 4.0, 2.0, 5.0]);
    }
}
