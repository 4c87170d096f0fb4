//! Reads `pytorch_model.bin` without running it: the few instructions of Python's pickle that PyTorch writes for a
//! mapping of names to tensors, in today's zip container and in the one from before 2020. Whatever else a pickle asks
//! for (any other function, any other object) is refused by name.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;
use std::rc::Rc;

use super::{Element, Stored};

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
        let mut content = vec![];
        entry.read_to_end(&mut content).map_err(|e| damaged(&e))?;
        Ok(content)
    };
    if file("byteorder").is_ok_and(|order| order != b"little") {
        return Err("was written on a big-endian machine, which is not read here".to_owned());
    }
    let (mut tensors, mut buffers, mut places) = (HashMap::new(), vec![], HashMap::new());
    for (name, tensor) in tensors_of(Machine::new(&file("data.pkl")?).run()?)? {
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
    let foreign = || "is neither a zip file nor an old PyTorch file".to_owned();
    match machine.run().map_err(|_| foreign())? {
        Value::Long(number) if number == MAGIC => {}
        _ => return Err(foreign()),
    }
    for _ in 0..2 {
        machine.run()?;
    }
    let named = tensors_of(machine.run()?)?;
    let Value::List(keys) = machine.run()? else { return Err("has no list of storages".to_owned()) };
    let mut at = machine.at;
    let mut places = HashMap::new();
    for key in keys.borrow().iter() {
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

fn cut_short() -> String {
    "is cut short\n  fetch or copy it again".to_owned()
}

/// What PyTorch's pickles are made of.
#[derive(Debug, Clone)]
enum Value {
    Mark,
    Nothing,
    Number(i64),
    /// Little-endian bytes of a number that may be larger than 64 bits.
    Long(Vec<u8>),
    Text(String),
    Tuple(Vec<Value>),
    List(Rc<RefCell<Vec<Value>>>),
    Dict(Rc<RefCell<Vec<(Value, Value)>>>),
    /// A name that may be called or that says what a storage holds.
    Global(Global),
    Storage(Storage),
    Tensor(Tensor),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Element),
}

#[derive(Debug, Clone)]
struct Storage {
    element: Element,
    key: String,
}

#[derive(Debug, Clone)]
struct Tensor {
    storage: Storage,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Tensor {
    /// The tensor in a buffer whose part from `start` to `end` is its storage.
    fn stored(self, name: &str, buffer: usize, start: usize, end: usize) -> Result<Stored> {
        let Tensor { storage, offset, shape, strides } = self;
        // Number after the last one that is used.
        let last = shape.iter().zip(&strides).try_fold(offset, |at, (&length, &stride)| {
            length.saturating_sub(1).checked_mul(stride).and_then(|n| n.checked_add(at))
        });
        let used = if shape.contains(&0) { Some(0) } else { last.and_then(|n| n.checked_add(1)) };
        let bytes = used.and_then(|n| n.checked_mul(storage.element.bytes()));
        if strides.len() != shape.len() || bytes.is_none_or(|n| n > end - start) {
            return Err(format!("tensor '{name}' is larger than what is stored of it\n  fetch or copy the file again"));
        }
        let start = if shape.contains(&0) { start } else { start + offset * storage.element.bytes() };
        Ok(Stored { element: storage.element, shape, strides, buffer, start })
    }
}

impl Global {
    /// The few names that are known; none of them is ever run as Python.
    fn of(module: &str, name: &str) -> Result<Global> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", "DoubleStorage") => Global::Storage(Element::F64),
            ("torch", "FloatStorage") => Global::Storage(Element::F32),
            ("torch", "HalfStorage") => Global::Storage(Element::F16),
            ("torch", "BFloat16Storage") => Global::Storage(Element::BF16),
            ("torch", "LongStorage") => Global::Storage(Element::Other(8)),
            ("torch", "IntStorage") => Global::Storage(Element::Other(4)),
            ("torch", "ShortStorage") => Global::Storage(Element::Other(2)),
            ("torch", "CharStorage" | "ByteStorage" | "BoolStorage") => Global::Storage(Element::Other(1)),
            _ => {
                return Err(format!(
                    "asks for '{module}.{name}', and only tensors are read: a pickle can run anything\n  if you trust \
                     it, save the model again with transformers' save_pretrained, which writes model.safetensors"
                ));
            }
        })
    }
}

/// The tensors of a model's state.
fn tensors_of(state: Value) -> Result<Vec<(String, Tensor)>> {
    let Value::Dict(entries) = state else { return Err("holds no mapping of names to tensors".to_owned()) };
    let entries = entries.borrow();
    let tensor = |(name, value): &(Value, Value)| match (name, value) {
        (Value::Text(name), Value::Tensor(tensor)) => Ok((name.clone(), tensor.clone())),
        (Value::Text(name), _) => Err(format!("holds '{name}', which is no tensor: it is no model's state alone")),
        _ => Err("holds an entry without a name".to_owned()),
    };
    entries.iter().map(tensor).collect()
}

/// Python's pickle machine, as far as tensors need it.
struct Machine<'a> {
    code: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    memo: HashMap<usize, Value>,
}

impl<'a> Machine<'a> {
    fn new(code: &'a [u8]) -> Self {
        Machine { code, at: 0, stack: vec![], memo: HashMap::new() }
    }

    /// Runs one pickle, up to its end.
    fn run(&mut self) -> Result<Value> {
        self.stack.clear();
        self.memo.clear();
        loop {
            let instruction = self.take(1)?[0];
            match instruction {
                b'.' => return self.pop(),
                0x80 => _ = self.take(1)?,
                b'(' => self.stack.push(Value::Mark),
                b'N' | 0x88 | 0x89 => self.stack.push(Value::Nothing),
                b'}' => self.stack.push(Value::Dict(Rc::default())),
                b']' => self.stack.push(Value::List(Rc::default())),
                b')' => self.stack.push(Value::Tuple(vec![])),
                b'K' | b'M' | b'J' => {
                    let bytes = self.take(match instruction {
                        b'K' => 1,
                        b'M' => 2,
                        _ => 4,
                    })?;
                    let unsigned = little_endian(bytes) as i64;
                    let number = if instruction == b'J' { i64::from(unsigned as u32 as i32) } else { unsigned };
                    self.stack.push(Value::Number(number));
                }
                0x8a => {
                    let length = self.take_length(1)?;
                    let bytes = self.take(length)?.to_vec();
                    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
                    let small = bytes.len() <= 8 && !negative;
                    let value = if small { Value::Number(little_endian(&bytes) as i64) } else { Value::Long(bytes) };
                    self.stack.push(value);
                }
                b'G' => {
                    self.take(8)?;
                    self.stack.push(Value::Nothing);
                }
                b'X' | b'T' | b'U' => {
                    let length = self.take_length(if instruction == b'U' { 1 } else { 4 })?;
                    let text = String::from_utf8_lossy(self.take(length)?).into_owned();
                    self.stack.push(Value::Text(text));
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.stack.push(Value::Global(Global::of(&module, &name)?));
                }
                b'q' | b'r' => {
                    let place = self.take_length(if instruction == b'q' { 1 } else { 4 })?;
                    let top = self.stack.last().cloned().ok_or_else(malformed)?;
                    self.memo.insert(place, top);
                }
                b'h' | b'j' => {
                    let place = self.take_length(if instruction == b'h' { 1 } else { 4 })?;
                    self.stack.push(self.memo.get(&place).cloned().ok_or_else(malformed)?);
                }
                0x85..=0x87 => {
                    let count = usize::from(instruction - 0x84);
                    let start = self.stack.len().checked_sub(count).ok_or_else(malformed)?;
                    let items = self.stack.split_off(start);
                    self.stack.push(Value::Tuple(items));
                }
                b't' => {
                    let items = self.since_mark()?;
                    self.stack.push(Value::Tuple(items));
                }
                b's' | b'u' => {
                    let items = if instruction == b'u' { self.since_mark()? } else { self.two()? };
                    let Some(Value::Dict(dict)) = self.stack.last() else { return Err(malformed()) };
                    let mut pairs = items.into_iter();
                    while let (Some(key), Some(value)) = (pairs.next(), pairs.next()) {
                        dict.borrow_mut().push((key, value));
                    }
                }
                b'a' | b'e' => {
                    let items = if instruction == b'e' { self.since_mark()? } else { vec![self.pop()?] };
                    let Some(Value::List(list)) = self.stack.last() else { return Err(malformed()) };
                    list.borrow_mut().extend(items);
                }
                b'Q' => {
                    let storage = storage(self.pop()?)?;
                    self.stack.push(Value::Storage(storage));
                }
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.stack.push(call(&function, arguments)?);
                }
                // Sets attributes of an object; on a mapping of tensors they are notes on versions.
                b'b' => {
                    self.pop()?;
                    let Some(Value::Dict(_)) = self.stack.last() else { return Err(malformed()) };
                }
                other => {
                    return Err(format!(
                        "its pickle has the instruction {other:#04x}, which no mapping of tensors needs"
                    ));
                }
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let bytes = self.at.checked_add(count).and_then(|end| self.code.get(self.at..end)).ok_or_else(cut_short)?;
        self.at += count;
        Ok(bytes)
    }

    fn take_length(&mut self, bytes: usize) -> Result<usize> {
        Ok(little_endian(self.take(bytes)?) as usize)
    }

    fn line(&mut self) -> Result<String> {
        let length = self.code[self.at..].iter().position(|b| *b == b'\n').ok_or_else(cut_short)?;
        let line = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Ok(line)
    }

    fn pop(&mut self) -> Result<Value> {
        self.stack.pop().ok_or_else(malformed)
    }

    fn two(&mut self) -> Result<Vec<Value>> {
        let (second, first) = (self.pop()?, self.pop()?);
        Ok(vec![first, second])
    }

    fn since_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.stack.iter().rposition(|v| matches!(v, Value::Mark)).ok_or_else(malformed)?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }
}

fn malformed() -> String {
    "its pickle is damaged\n  fetch or copy it again".to_owned()
}

/// Up to eight bytes as a number.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// `('storage', torch.FloatStorage, key, location, count)`.
fn storage(reference: Value) -> Result<Storage> {
    let Value::Tuple(parts) = reference else { return Err(malformed()) };
    match parts.as_slice() {
        [Value::Text(kind), Value::Global(Global::Storage(element)), Value::Text(key), ..]
            if kind == "storage" && !key.contains('/') =>
        {
            Ok(Storage { element: *element, key: key.clone() })
        }
        _ => Err(malformed()),
    }
}

fn call(function: &Value, arguments: Value) -> Result<Value> {
    let (Value::Global(function), Value::Tuple(arguments)) = (function, arguments) else { return Err(malformed()) };
    match (function, arguments.as_slice()) {
        (Global::OrderedDict, []) => Ok(Value::Dict(Rc::default())),
        (Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
        (
            Global::RebuildTensor,
            [Value::Storage(storage), Value::Number(offset), Value::Tuple(shape), Value::Tuple(strides), ..],
        ) => Ok(Value::Tensor(Tensor {
            storage: storage.clone(),
            offset: usize::try_from(*offset).map_err(|_| malformed())?,
            shape: numbers(shape)?,
            strides: numbers(strides)?,
        })),
        _ => Err(malformed()),
    }
}

fn numbers(values: &[Value]) -> Result<Vec<usize>> {
    let number = |value: &Value| match value {
        Value::Number(n) => usize::try_from(*n).map_err(|_| malformed()),
        _ => Err(malformed()),
    };
    values.iter().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(code: &[u8]) -> Result<Value> {
        Machine::new(code).run()
    }

    #[test]
    fn code_is_refused_by_name_and_never_run() {
        for code in [&b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02R."[..], b"cposix\nsystem\n."] {
            let message = run(code).unwrap_err();
            assert!(message.contains("system"), "{message}");
            assert!(message.contains("only tensors are read"), "{message}");
        }
        let reduced = run(b"\x80\x02c__builtin__\neval\n.").unwrap_err();
        assert!(reduced.contains("'__builtin__.eval'"), "{reduced}");
        assert!(run(b"i__builtin__\neval\n.").unwrap_err().contains("instruction 0x69"));
    }

    #[test]
    fn damage_is_an_error_wherever_it_is() {
        let whole = b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00bM\x01\x02u.";
        let Value::Dict(entries) = run(whole).unwrap() else { panic!() };
        assert_eq!(entries.borrow().len(), 2);
        for end in 0..whole.len() {
            assert!(run(&whole[..end]).is_err(), "{end}");
        }
        assert!(tensors_of(run(whole).unwrap()).unwrap_err().contains("'a', which is no tensor"));
    }

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
}
