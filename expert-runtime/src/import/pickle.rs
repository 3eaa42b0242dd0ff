//! The part of Python's pickle format that describes a dictionary of tensors, read without running anything.
//!
//! A pickle is a program for a stack machine. Here its values live in one flat list and refer to each other by index; a
//! class or function that the file names stays a name, and a call of any but PyTorch's two tensor builders gives an
//! [`Value::Opaque`]. So training arguments or an optimiser beside the weights do no harm and are not understood.

use std::collections::{BTreeMap, HashMap};
use tch::Kind;

/// Deepest nesting of dictionaries.
const DEPTH: usize = 8;
/// Most entries of all dictionaries together.
const ENTRIES: usize = 1 << 16;
/// Most sides of a tensor.
const SIDES: usize = 8;
/// Longest name, bytes; a longer text is none.
const TEXT: usize = 256;

type Id = usize;

/// A tensor that lies in a storage of the archive.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Name of the storage.
    pub storage: String,
    /// Kind of its elements; none for one that no weights have.
    pub kind: Option<Kind>,
    /// First element.
    pub offset: usize,
    /// Sides.
    pub shape: Vec<usize>,
    /// Elements from one index to the next, a side.
    pub strides: Vec<usize>,
}

#[derive(Debug, Clone)]
enum Value {
    Opaque,
    Number(i64),
    Text(String),
    Global(String),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Storage(String, Option<Kind>),
    Tensor(Stored),
}

/// The tensors of a pickled, possibly nested dictionary; names of nested ones are joined by dots.
///
/// # Errors
/// What is wrong, in words: a truncated program, an instruction that no dictionary of tensors needs, too many entries.
pub fn tensors(program: &[u8]) -> Result<BTreeMap<String, Stored>, String> {
    let mut machine =
        Machine { rest: program, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let root = machine.run()?;
    let (mut found, mut left) = (BTreeMap::new(), ENTRIES);
    machine.collect(root, "", DEPTH, &mut left, &mut found)?;
    Ok(found)
}

struct Machine<'a> {
    rest: &'a [u8],
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Id, String> {
        loop {
            match self.byte()? {
                b'.' => return self.pop(),
                0x80 => drop(self.byte()?),  // protocol
                0x95 => drop(self.take(8)?), // frame
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'N' | 0x88 | 0x89 | b']' | 0x8f => self.push(Value::Opaque), // None, True, False, list, set
                b'}' => self.push(Value::Dict(Vec::new())),
                b')' => self.push(Value::Tuple(Vec::new())),
                b'K' => self.number(1)?,
                b'M' => self.number(2)?,
                b'J' => self.number(4)?,
                0x8a => {
                    let n = self.byte()?.into();
                    self.number(n)?;
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Opaque);
                }
                b'X' => self.text(4)?,
                0x8c | b'U' => self.text(1)?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Value::Global(format!("{module}.{name}")));
                }
                0x93 => {
                    let (name, module) = (self.pop_text()?, self.pop_text()?);
                    self.push(Value::Global(format!("{module}.{name}")));
                }
                b'q' => {
                    let place = self.byte()?.into();
                    self.remember(place)?;
                }
                b'r' => {
                    let place = self.length(4)? as u32;
                    self.remember(place)?;
                }
                0x94 => self.remember(self.memo.len() as u32)?,
                b'h' => {
                    let place = self.byte()?.into();
                    self.recall(place)?;
                }
                b'j' => {
                    let place = self.length(4)? as u32;
                    self.recall(place)?;
                }
                b't' => {
                    let items = self.since_mark()?;
                    self.push(Value::Tuple(items));
                }
                n @ 0x85..=0x87 => {
                    let from =
                        self.stack.len().checked_sub(usize::from(n - 0x84)).ok_or("it takes from an empty stack")?;
                    let items = self.stack.split_off(from);
                    self.push(Value::Tuple(items));
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.insert(&[key, value])?;
                }
                b'u' => {
                    let items = self.since_mark()?;
                    self.insert(&items)?;
                }
                b'a' => drop(self.pop()?), // into a list, of which nothing is kept
                b'e' | 0x90 => drop(self.since_mark()?), // the same, several; into a set
                b'b' => drop(self.pop()?), // an object's state
                b'Q' => self.storage()?,
                b'R' | 0x81 => {
                    let (arguments, callee) = (self.pop()?, self.pop()?);
                    let value = self.call(callee, arguments)?;
                    self.push(value);
                }
                other => {
                    return Err(format!(
                        "its pickle has the instruction {other:#04x}, which no plain dictionary of tensors needs"
                    ));
                }
            }
        }
    }

    /// Calls what weights need; everything else stays uncalled.
    fn call(&self, callee: Id, arguments: Id) -> Result<Value, String> {
        let (Value::Global(name), Value::Tuple(arguments)) = (self.value(callee), self.value(arguments)) else {
            return Ok(Value::Opaque);
        };
        Ok(match (name.as_str(), arguments.as_slice()) {
            ("collections.OrderedDict", _) => Value::Dict(Vec::new()),
            ("torch._utils._rebuild_parameter", [data, ..]) => match self.value(*data) {
                Value::Tensor(tensor) => Value::Tensor(tensor.clone()),
                _ => Value::Opaque,
            },
            ("torch._utils._rebuild_tensor_v2", [storage, offset, shape, strides, ..]) => {
                let Value::Storage(storage, kind) = self.value(*storage) else {
                    return Err("it builds a tensor from no storage".into());
                };
                let offset = self.size(*offset)?;
                let (shape, strides) = (self.sizes(*shape)?, self.sizes(*strides)?);
                Value::Tensor(Stored { storage: storage.clone(), kind: *kind, offset, shape, strides })
            }
            _ => Value::Opaque,
        })
    }

    /// `('storage', kind, name, device, elements)`.
    fn storage(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let Value::Tuple(parts) = self.value(id) else { return Err("a storage has no description".into()) };
        let [_, kind, name, ..] = parts.as_slice() else { return Err("a storage's description is too short".into()) };
        let (Value::Global(kind), Value::Text(name)) = (self.value(*kind), self.value(*name)) else {
            return Err("a storage's description has no kind or name".into());
        };
        let kind = match kind.as_str() {
            "torch.FloatStorage" => Some(Kind::Float),
            "torch.HalfStorage" => Some(Kind::Half),
            "torch.BFloat16Storage" => Some(Kind::BFloat16),
            "torch.DoubleStorage" => Some(Kind::Double),
            _ => None,
        };
        self.push(Value::Storage(name.clone(), kind));
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<(), String> {
        let target = *self.stack.last().ok_or("it fills a dictionary that is not there")?;
        if let Some(Value::Dict(entries)) = self.values.get_mut(target) {
            entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        }
        Ok(())
    }

    fn collect(
        &self,
        id: Id,
        prefix: &str,
        depth: usize,
        left: &mut usize,
        found: &mut BTreeMap<String, Stored>,
    ) -> Result<(), String> {
        let Value::Dict(entries) = self.value(id) else { return Ok(()) };
        if depth == 0 {
            return Err(format!("its dictionaries are nested more than {DEPTH} deep"));
        }
        for (key, value) in entries {
            *left = left.checked_sub(1).ok_or_else(|| format!("it holds more than {ENTRIES} entries"))?;
            let name = match self.value(*key) {
                Value::Text(text) => format!("{prefix}{text}"),
                Value::Number(n) => format!("{prefix}{n}"),
                _ => continue,
            };
            match self.value(*value) {
                Value::Tensor(tensor) => drop(found.insert(name, tensor.clone())),
                _ => self.collect(*value, &format!("{name}."), depth - 1, left, found)?,
            }
        }
        Ok(())
    }

    fn value(&self, id: Id) -> &Value {
        self.values.get(id).unwrap_or(&Value::Opaque)
    }

    fn size(&self, id: Id) -> Result<usize, String> {
        match self.value(id) {
            Value::Number(n) => usize::try_from(*n).map_err(|_| format!("a size is {n}")),
            _ => Err("a size is no number".into()),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, String> {
        match self.value(id) {
            Value::Tuple(items) if items.len() <= SIDES => items.iter().map(|item| self.size(*item)).collect(),
            Value::Tuple(items) => Err(format!("a tensor has {} sides, at most {SIDES} are read", items.len())),
            _ => Err("a shape is no tuple".into()),
        }
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.stack.pop().ok_or_else(|| "it takes from an empty stack".into())
    }

    fn pop_text(&mut self) -> Result<String, String> {
        let id = self.pop()?;
        if let Value::Text(text) = self.value(id) { Ok(text.clone()) } else { Err("a name is no text".into()) }
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len()).ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, place: u32) -> Result<(), String> {
        let top = *self.stack.last().ok_or("it remembers from an empty stack")?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<(), String> {
        let id = *self.memo.get(&place).ok_or("it recalls what it never remembered")?;
        self.stack.push(id);
        Ok(())
    }

    fn take(&mut self, n: usize) -> Result<&[u8], String> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or("its pickle is truncated")?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned number of `bytes` bytes, at most 8.
    fn length(&mut self, bytes: usize) -> Result<usize, String> {
        let mut whole = [0; 8];
        whole[..bytes].copy_from_slice(self.take(bytes)?);
        usize::try_from(u64::from_le_bytes(whole)).map_err(|_| "a length is too large".into())
    }

    /// A number of `bytes` bytes; signed where it has 4 or more. Longer ones than 8 bytes are opaque.
    fn number(&mut self, bytes: usize) -> Result<(), String> {
        let taken = self.take(bytes)?;
        let negative = bytes >= 4 && taken[bytes - 1] & 0x80 != 0;
        let mut whole = [if negative { 0xff } else { 0 }; 8];
        let value = whole.get_mut(..bytes).map(|place| place.copy_from_slice(taken));
        let value = value.map_or(Value::Opaque, |()| Value::Number(i64::from_le_bytes(whole)));
        self.push(value);
        Ok(())
    }

    fn text(&mut self, bytes: usize) -> Result<(), String> {
        let n = self.length(bytes)?;
        let text = self.take(n)?;
        let value = match str::from_utf8(text) {
            Ok(text) if n <= TEXT => Value::Text(text.to_owned()),
            _ => Value::Opaque,
        };
        self.push(value);
        Ok(())
    }

    fn line(&mut self) -> Result<String, String> {
        let n = self.rest.iter().position(|&b| b == b'\n').ok_or("its pickle is truncated")?;
        let line = String::from_utf8_lossy(self.take(n)?).into_owned();
        self.byte()?;
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{"w": a 2x3 tensor, "n": {5: the same}}`, with a call of something else beside it.
    const PROGRAM: &[u8] = b"\x80\x02}q\x00(X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage\
        ctorch\nHalfStorage\nX\x01\0\0\x004X\x03\0\0\0cpuK\x08tQK\x02K\x02K\x03\x86K\x03K\x01\x86\x89Ntq\x01Rq\x02\
        X\x01\0\0\0n}K\x05h\x02sX\x01\0\0\0xcos\nsystem\nX\x04\0\0\0true\x85Ru.";

    #[test]
    fn tensors_are_found_and_nothing_is_called() {
        let found = tensors(PROGRAM).unwrap();
        let expected =
            Stored { storage: "4".into(), kind: Some(Kind::Half), offset: 2, shape: vec![2, 3], strides: vec![3, 1] };
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [("n.5".into(), expected.clone()), ("w".into(), expected)]);
    }

    #[test]
    fn altered_programs_end_in_words() {
        for cut in 0..PROGRAM.len() {
            tensors(&PROGRAM[..cut]).unwrap_err();
        }
        for place in 0..PROGRAM.len() {
            for value in 0..=255 {
                let mut altered = PROGRAM.to_vec();
                altered[place] = value;
                let _ = tensors(&altered);
            }
        }
        // Dictionaries that hold each other, and a tree that doubles at every level.
        assert!(tensors(b"}q\0X\x01\0\0\0ah\0s.").unwrap_err().contains("nested more than 8"));
        let level = b"}q\x01(K\x01h\0K\x02h\0K\x03h\0K\x04h\0K\x05h\0K\x06h\0uq\0";
        let bomb = [&b"}q\0"[..], &level.repeat(7), b"."].concat();
        assert!(tensors(&bomb).unwrap_err().contains("more than 65536 entries"));
        assert!(tensors(b"ctorch._utils\n_rebuild_tensor_v2\n(((NNNtQK\0))tR.").is_err());
    }
}
