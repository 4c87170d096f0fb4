//! Python's pickle machine, as far as a mapping of names to tensors needs it. Nothing that a pickle asks for is run: the
//! few names that PyTorch writes are known, all others are refused. Protocols 2 to 5 are read, as far as PyTorch needs them.

use std::collections::HashMap;
use std::rc::Rc;

use super::super::Element;

type Result<T> = std::result::Result<T, String>;

/// No tensor has more dimensions.
const MOST_DIMENSIONS: usize = 64;

/// What to do about a pickle that is whole and not read.
pub(super) const REMEDY: &str =
    "save the model again with transformers' save_pretrained, which writes model.safetensors";

/// What PyTorch's pickles are made of. A copy is cheap, and nothing is nested in memory: a few bytes of a hostile pickle
/// can ask for more copies than there is memory, or for more levels than there is stack.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Mark,
    Nothing,
    Number(i64),
    /// Little-endian bytes of a number that may be larger than 64 bits.
    Long(Rc<[u8]>),
    Text(Rc<str>),
    Tuple(Place),
    List(Place),
    /// Keys and values by turns.
    Dict(Place),
    /// A name that may be called or that says what a storage holds.
    Global(Global),
    Storage(Storage),
    Tensor(Rc<Tensor>),
}

/// Where a machine keeps what a tuple, a list or a dict holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place(usize);

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Element),
}

#[derive(Debug, Clone)]
pub(super) struct Storage {
    pub(super) element: Element,
    pub(super) key: Rc<str>,
}

#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) storage: Storage,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
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
                     it, {REMEDY}"
                ));
            }
        })
    }
}

/// Python's pickle machine, as far as tensors need it.
pub(super) struct Machine<'a> {
    code: &'a [u8],
    /// Where the next instruction is.
    pub(super) at: usize,
    stack: Vec<Value>,
    memo: HashMap<usize, Value>,
    containers: Vec<Vec<Value>>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(code: &'a [u8]) -> Self {
        Machine { code, at: 0, stack: vec![], memo: HashMap::new(), containers: vec![] }
    }

    /// What a tuple, a list or a dict of this machine holds.
    pub(super) fn items(&self, place: Place) -> &[Value] {
        &self.containers[place.0]
    }

    fn keep(&mut self, items: Vec<Value>) -> Place {
        self.containers.push(items);
        Place(self.containers.len() - 1)
    }

    /// Runs one pickle, up to its end.
    pub(super) fn run(&mut self) -> Result<Value> {
        self.stack.clear();
        self.memo.clear();
        loop {
            let instruction = self.take(1)?[0];
            match instruction {
                b'.' => return self.pop(),
                0x80 => _ = self.take(1)?,
                // So many bytes belong together, which is of use to who reads from a pipe.
                0x95 => _ = self.take(8)?,
                b'(' => self.stack.push(Value::Mark),
                b'N' | 0x88 | 0x89 => self.stack.push(Value::Nothing),
                b'}' | b']' | b')' => {
                    let place = self.keep(vec![]);
                    self.stack.push(match instruction {
                        b'}' => Value::Dict(place),
                        b']' => Value::List(place),
                        _ => Value::Tuple(place),
                    });
                }
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
                    let bytes = self.take(length)?;
                    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
                    let small = bytes.len() <= 8 && !negative;
                    let value =
                        if small { Value::Number(little_endian(bytes) as i64) } else { Value::Long(bytes.into()) };
                    self.stack.push(value);
                }
                b'G' => {
                    self.take(8)?;
                    self.stack.push(Value::Nothing);
                }
                b'X' | b'T' | b'U' | 0x8c => {
                    let length = self.take_length(if matches!(instruction, b'U' | 0x8c) { 1 } else { 4 })?;
                    let text = String::from_utf8_lossy(self.take(length)?);
                    self.stack.push(Value::Text(text.into()));
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.stack.push(Value::Global(Global::of(&module, &name)?));
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) = (module, name) else { return Err(malformed()) };
                    self.stack.push(Value::Global(Global::of(&module, &name)?));
                }
                // Keeps the top as `q` does, under the next number.
                0x94 => {
                    let top = self.stack.last().cloned().ok_or_else(malformed)?;
                    self.memo.insert(self.memo.len(), top);
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
                    let place = self.keep(items);
                    self.stack.push(Value::Tuple(place));
                }
                b't' => {
                    let items = self.since_mark()?;
                    let place = self.keep(items);
                    self.stack.push(Value::Tuple(place));
                }
                b's' | b'u' => {
                    let items = if instruction == b'u' { self.since_mark()? } else { self.two()? };
                    let Some(Value::Dict(dict)) = self.stack.last() else { return Err(malformed()) };
                    if items.len() % 2 != 0 {
                        return Err(malformed());
                    }
                    self.containers[dict.0].extend(items);
                }
                b'a' | b'e' => {
                    let items = if instruction == b'e' { self.since_mark()? } else { vec![self.pop()?] };
                    let Some(Value::List(list)) = self.stack.last() else { return Err(malformed()) };
                    self.containers[list.0].extend(items);
                }
                b'Q' => {
                    let reference = self.pop()?;
                    let storage = self.storage(&reference)?;
                    self.stack.push(Value::Storage(storage));
                }
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    let result = self.call(&function, &arguments)?;
                    self.stack.push(result);
                }
                // Sets attributes of an object; on a mapping of tensors they are notes on versions.
                b'b' => {
                    self.pop()?;
                    let Some(Value::Dict(_)) = self.stack.last() else { return Err(malformed()) };
                }
                other => {
                    return Err(format!(
                        "its pickle has the instruction {other:#04x}, which no mapping of tensors needs in the pickle \
                         protocols 2 to 5\n  {REMEDY}"
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

    /// `('storage', torch.FloatStorage, key, location, count)`.
    fn storage(&self, reference: &Value) -> Result<Storage> {
        let Value::Tuple(parts) = reference else { return Err(malformed()) };
        match self.items(*parts) {
            [Value::Text(kind), Value::Global(Global::Storage(element)), Value::Text(key), ..]
                if &**kind == "storage" && !key.contains('/') =>
            {
                Ok(Storage { element: *element, key: key.clone() })
            }
            _ => Err(malformed()),
        }
    }

    fn call(&mut self, function: &Value, arguments: &Value) -> Result<Value> {
        let (Value::Global(function), Value::Tuple(arguments)) = (function, arguments) else { return Err(malformed()) };
        match (function, self.items(*arguments)) {
            (Global::OrderedDict, []) => Ok(Value::Dict(self.keep(vec![]))),
            (Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
            (
                Global::RebuildTensor,
                [Value::Storage(storage), Value::Number(offset), Value::Tuple(shape), Value::Tuple(strides), ..],
            ) => Ok(Value::Tensor(Rc::new(Tensor {
                storage: storage.clone(),
                offset: usize::try_from(*offset).map_err(|_| malformed())?,
                shape: numbers(self.items(*shape))?,
                strides: numbers(self.items(*strides))?,
            }))),
            _ => Err(malformed()),
        }
    }
}

fn numbers(values: &[Value]) -> Result<Vec<usize>> {
    let number = |value: &Value| match value {
        Value::Number(n) => usize::try_from(*n).map_err(|_| malformed()),
        _ => Err(malformed()),
    };
    if values.len() > MOST_DIMENSIONS { Err(malformed()) } else { values.iter().map(number).collect() }
}

fn malformed() -> String {
    "its pickle is damaged\n  fetch or copy it again".to_owned()
}

/// Up to eight bytes as a number.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

pub(super) fn cut_short() -> String {
    "is cut short\n  fetch or copy it again".to_owned()
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
        // As Python writes it from protocol 4 on.
        let stacked = run(
            b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94.",
        );
        assert!(stacked.unwrap_err().contains("asks for 'posix.system', and only tensors are read"));
        for no_name in [&b"\x80\x04\x8c\x05posix\x93."[..], b"\x80\x04K\x01\x8c\x06system\x93."] {
            assert!(run(no_name).unwrap_err().contains("damaged"));
        }
    }

    #[test]
    fn a_tensor_of_protocol_4_is_read_and_one_of_protocol_0_is_refused_with_a_remedy() {
        let reference = b"(\x8c\x07storage\x94\x8c\x05torch\x94\x8c\x0cFloatStorage\x94\x93\x94\x8c\x010\x94\x8c\x03cpu\x94K\x04t\x94Q";
        let code = [
            &b"\x80\x04\x95\x80\0\0\0\0\0\0\0}\x94\x8c\x01a\x94\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_v2\x94\x93\x94("[..],
            reference,
            b"K\x00K\x02K\x02\x86\x94K\x02K\x01\x86\x94\x89\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93\x94)R\x94t\x94R\x94s",
            // The second and the sixth of what was kept.
            b"h\x01h\x05s.",
        ]
        .concat();
        let mut machine = Machine::new(&code);
        let Value::Dict(entries) = machine.run().unwrap() else { panic!() };
        let [Value::Text(name), Value::Tensor(tensor), Value::Text(again), Value::Text(fifth)] = machine.items(entries)
        else {
            panic!("{:?}", machine.items(entries))
        };
        assert_eq!((&**name, &**again, &**fifth), ("a", "a", "storage"));
        assert_eq!((&*tensor.shape, &*tensor.strides, tensor.offset), (&[2, 2][..], &[2, 1][..], 0));
        assert_eq!((&*tensor.storage.key, tensor.storage.element), ("0", Element::F32));
        for end in 0..code.len() {
            assert!(run(&code[..end]).is_err(), "{end}");
        }
        let zero = run(b"(dp0\nVa\np1\nI1\ns.").unwrap_err();
        assert!(zero.contains("protocols 2 to 5") && zero.contains("save_pretrained"), "{zero}");
    }

    #[test]
    fn damage_is_an_error_wherever_it_is() {
        let whole = b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00bM\x01\x02u.";
        let mut machine = Machine::new(whole);
        let Value::Dict(entries) = machine.run().unwrap() else { panic!() };
        assert_eq!(machine.items(entries).len(), 4);
        for end in 0..whole.len() {
            assert!(run(&whole[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn a_small_pickle_asks_for_no_large_memory_and_no_deep_stack() {
        let depth = [&b"\x80\x02)"[..], &b"\x85".repeat(1 << 20), b"."].concat();
        assert!(matches!(run(&depth), Ok(Value::Tuple(_))));
        let lists = [&b"\x80\x02]"[..], &b"q\x00]h\x00a".repeat(1 << 18), b"."].concat();
        assert!(matches!(run(&lists), Ok(Value::List(_))));
        // A pair of itself, sixty times over.
        let pairs = [&b"\x80\x02)q\x00"[..], &b"h\x00h\x00\x86q\x00".repeat(60), b"."].concat();
        assert!(matches!(run(&pairs), Ok(Value::Tuple(_))));
        let kept = [&b"\x80\x04)"[..], &b"\x94".repeat(1 << 20), b"."].concat();
        assert!(matches!(run(&kept), Ok(Value::Tuple(_))));
    }
}
