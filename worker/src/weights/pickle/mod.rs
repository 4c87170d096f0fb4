//! Reads `pytorch_model.bin` without running it: the few instructions of Python's pickle that PyTorch writes for a
//! mapping of names to tensors, in today's zip container and in the one from before 2020. Whatever else a pickle asks
//! for (any other function, any other object) is refused by name.

use std::collections::HashMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;
use std::rc::Rc;

mod machine;

use machine::{Machine, REMEDY, Tensor, Value, cut_short};

use super::Stored;

/// Tensors by name, and the buffers that they lie in.
pub(super) type Contents = (HashMap<String, Stored>, Vec<Vec<u8>>);

type Result<T> = std::result::Result<T, String>;

/// Reads a file; the error is a sentence about what is wrong with it.
pub(super) fn read(path: &Path) -> Result<Contents> {
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    if bytes.starts_with(b"PK") { read_zip(bytes) } else { read_legacy(bytes) }
}

/// One pickle, `data.pkl`, and a file of raw numbers for each storage.
fn read_zip(bytes: Vec<u8>) -> Result<Contents> {
    let damaged = |e: &dyn std::fmt::Display| format!("is no whole zip file: {e}\n  fetch or copy it again");
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| damaged(&e))?;
    let pickle = archive.file_names().find(|n| n.ends_with("/data.pkl")).map(str::to_owned);
    let pickle = pickle.ok_or("is a zip file without data.pkl: PyTorch did not write it")?;
    let root = pickle.trim_end_matches("data.pkl").to_owned();
    let mut file = |name: &str| -> Result<Vec<u8>> {
        let mut entry = archive.by_name(&format!("{root}{name}")).map_err(|e| damaged(&e))?;
        // PyTorch does not compress; what is compressed may fill all memory.
        if entry.compression() != zip::CompressionMethod::Stored {
            return Err(format!("its part '{name}' is compressed: PyTorch did not write it"));
        }
        let mut content = vec![];
        entry.read_to_end(&mut content).map_err(|e| damaged(&e))?;
        Ok(content)
    };
    if file("byteorder").is_ok_and(|order| order != b"little") {
        return Err("was written on a big-endian machine, which is not read here".to_owned());
    }
    let (mut tensors, mut buffers, mut places) = (HashMap::new(), vec![], HashMap::new());
    let code = file("data.pkl")?;
    let mut machine = Machine::new(&code);
    let state = machine.run()?;
    for (name, tensor) in tensors_of(&machine, &state)? {
        let buffer = match places.get(&tensor.storage.key) {
            Some(&place) => place,
            None => {
                buffers.push(file(&format!("data/{}", tensor.storage.key))?);
                places.insert(tensor.storage.key.clone(), buffers.len() - 1);
                buffers.len() - 1
            }
        };
        let stored = tensor.stored(&name, buffer, 0, buffers[buffer].len())?;
        tensors.insert(name, stored);
    }
    Ok((tensors, buffers))
}

/// Number and version of the old container.
const MAGIC: &[u8] = &[0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Five pickles (magic number, version, machine, tensors, keys of storages), then each storage with its length.
fn read_legacy(bytes: Vec<u8>) -> Result<Contents> {
    let mut machine = Machine::new(&bytes);
    let foreign = || {
        format!(
            "is neither a zip file nor an old PyTorch file of the pickle protocols 2 to 5\n  fetch it again, or {REMEDY}"
        )
    };
    match machine.run().map_err(|_| foreign())? {
        Value::Long(number) if *number == *MAGIC => {}
        _ => return Err(foreign()),
    }
    for _ in 0..2 {
        machine.run()?;
    }
    let state = machine.run()?;
    let named = tensors_of(&machine, &state)?;
    let Value::List(keys) = machine.run()? else { return Err("has no list of storages".to_owned()) };
    let mut at = machine.at;
    let mut places = HashMap::new();
    for key in machine.items(keys) {
        let Value::Text(key) = key else { return Err("has a storage without a name".to_owned()) };
        let element = named.iter().find(|(_, t)| t.storage.key == *key).map(|(_, t)| t.storage.element);
        let length = bytes.get(at..at + 8).and_then(|b| b.first_chunk::<8>()).map(|b| u64::from_le_bytes(*b));
        let count = length.and_then(|n| usize::try_from(n).ok()).ok_or_else(cut_short)?;
        // A storage that no tensor uses has an unknown width; there is none in what PyTorch writes.
        let width = element.ok_or("holds a storage that belongs to no tensor")?.bytes();
        let end = count.checked_mul(width).and_then(|n| n.checked_add(at + 8)).filter(|end| *end <= bytes.len());
        let end = end.ok_or_else(cut_short)?;
        places.insert(key.clone(), (at + 8, end));
        at = end;
    }
    let mut tensors = HashMap::new();
    for (name, tensor) in named {
        let (start, end) = *places.get(&tensor.storage.key).ok_or_else(cut_short)?;
        let stored = tensor.stored(&name, 0, start, end)?;
        tensors.insert(name, stored);
    }
    Ok((tensors, vec![bytes]))
}

impl Tensor {
    /// The tensor in a buffer whose part from `start` to `end` is its storage.
    fn stored(&self, name: &str, buffer: usize, start: usize, end: usize) -> Result<Stored> {
        let Tensor { storage, offset, shape, strides } = self;
        let offset = *offset;
        // Number after the last one that is used.
        let last = shape.iter().zip(strides).try_fold(offset, |at, (&length, &stride)| {
            length.saturating_sub(1).checked_mul(stride).and_then(|n| n.checked_add(at))
        });
        let used = if shape.contains(&0) { Some(0) } else { last.and_then(|n| n.checked_add(1)) };
        let bytes = used.and_then(|n| n.checked_mul(storage.element.bytes()));
        if strides.len() != shape.len() || bytes.is_none_or(|n| n > end - start) {
            return Err(format!("tensor '{name}' is larger than what is stored of it\n  fetch or copy the file again"));
        }
        let start = if shape.contains(&0) { start } else { start + offset * storage.element.bytes() };
        let (shape, strides) = (shape.clone(), strides.clone());
        Ok(Stored { element: storage.element, shape, strides, buffer, start })
    }
}

/// The tensors of a model's state.
fn tensors_of(machine: &Machine, state: &Value) -> Result<Vec<(String, Rc<Tensor>)>> {
    let Value::Dict(entries) = state else { return Err("holds no mapping of names to tensors".to_owned()) };
    let tensor = |entry: &[Value]| match entry {
        [Value::Text(name), Value::Tensor(tensor)] => Ok((name.to_string(), tensor.clone())),
        [Value::Text(name), _] => Err(format!("holds '{name}', which is no tensor: it is no model's state alone")),
        _ => Err("holds an entry without a name".to_owned()),
    };
    machine.items(*entries).chunks(2).map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Element;
    use super::machine::Storage;
    use super::*;

    #[test]
    fn a_tensor_that_claims_more_than_is_stored_is_refused() {
        let storage = Storage { element: Element::F32, key: "0".into() };
        let tensor = |offset, shape: &[usize], strides: &[usize]| {
            let (shape, strides) = (shape.to_vec(), strides.to_vec());
            Tensor { storage: storage.clone(), offset, shape, strides }.stored("x", 0, 0, 24)
        };
        assert_eq!(tensor(0, &[2, 3], &[1, 2]).unwrap().start, 0);
        assert_eq!(tensor(2, &[4], &[1]).unwrap().start, 8);
        assert_eq!(tensor(9, &[0], &[1]).unwrap().start, 0);
        for bad in [
            tensor(1, &[2, 3], &[3, 1]),
            tensor(0, &[7], &[1]),
            tensor(0, &[2, 2], &[1]),
            tensor(0, &[2], &[usize::MAX]),
        ] {
            assert!(bad.is_err());
        }
    }

    #[test]
    fn a_file_that_is_no_pickle_of_tensors_is_refused_with_a_remedy() {
        // A pointer to a file that was not fetched, and the magic number as protocol 0 writes it.
        for bytes in [&b"version https://git-lfs.github.com/spec/v1\n"[..], b"L119547037146038801333356L\n.", b""] {
            let problem = read_legacy(bytes.to_vec()).unwrap_err();
            assert!(problem.contains("neither a zip file") && problem.contains("save_pretrained"), "{problem}");
        }
    }

    #[test]
    fn a_state_holds_tensors_alone() {
        let mut machine = Machine::new(b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x01s.");
        let state = machine.run().unwrap();
        assert!(tensors_of(&machine, &state).unwrap_err().contains("'a', which is no tensor"));
        assert!(tensors_of(&machine, &Value::Nothing).unwrap_err().contains("no mapping"));
    }
}
