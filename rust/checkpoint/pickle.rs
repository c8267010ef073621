//! An unpickler that knows state dicts of tensors and nothing else.
//!
//! A pickle is a program for a stack machine that may name any Python function and call it. This one knows six names,
//! none of which does anything but describe a tensor; any other is an error that says which. What it builds lies in one
//! list of nodes that refer to each other by index, so that no nesting or cycle can exhaust the stack, and every
//! instruction adds a bounded amount: memory is proportional to the pickle's length. The instructions are those of
//! protocols 2 to 5, as `pickletools` of CPython documents them. What the nodes mean is read in `pickle/tensors.rs`.

mod tensors;

use std::collections::{BTreeMap, HashMap};

use super::dtype::Dtype;
use super::source::Source;
use crate::error::{Error, Result};

/// Characters of a name that an error shows.
const MAX_SHOWN: usize = 200;

/// A tensor as a pickle describes it: a strided view of a storage.
#[derive(Debug, Clone)]
pub(super) struct StoredTensor {
    /// Type of the elements.
    pub(super) dtype: Dtype,
    /// Name of the storage in the file.
    pub(super) storage: String,
    /// Elements of the storage.
    pub(super) storage_len: usize,
    /// Element of the storage before which the view has to end.
    pub(super) limit: usize,
    /// First element of the view.
    pub(super) offset: usize,
    /// Extents, outermost first.
    pub(super) shape: Vec<usize>,
    /// Distance in elements between neighbours along each dimension.
    pub(super) strides: Vec<usize>,
}

/// What a pickle's dict holds.
#[derive(Debug)]
pub(super) struct StateDict {
    pub(super) tensors: BTreeMap<String, StoredTensor>,
    /// Names of values that are no tensors, such as a number of steps; transformers passes over them.
    pub(super) others: Vec<String>,
}

/// Runs the pickle in `bytes` and gives what the dict that it builds holds.
///
/// # Errors
/// `Checkpoint` when it is malformed, calls for anything but tensors, or builds anything but a dict with some of them.
pub(super) fn read_state_dict(source: &Source, bytes: &[u8]) -> Result<StateDict> {
    let mut machine = Machine::new(source, bytes, 0, Form::Archive);
    let root = machine.run()?;
    machine.state_dict(root)
}

/// Storages by key, with the type that they are first asked for as and the number of their elements.
pub(super) type Declared = BTreeMap<String, (Dtype, usize)>;

/// Several pickles one behind the other, as in files from before the archives.
pub(super) struct Stream<'a> {
    source: &'a Source,
    bytes: &'a [u8],
    /// Position of the next pickle, or behind the last one.
    pub(super) at: usize,
}

impl<'a> Stream<'a> {
    /// The pickles of `bytes` from position `at` on.
    pub(super) fn new(source: &'a Source, bytes: &'a [u8], at: usize) -> Self {
        Self { source, bytes, at }
    }

    /// Runs the next pickle; each has a memo of its own.
    fn next(&mut self) -> Result<(Machine<'a>, Id)> {
        let mut machine = Machine::new(self.source, self.bytes, self.at, Form::Stream);
        let root = machine.run()?;
        self.at = machine.at;
        Ok((machine, root))
    }

    /// Passes over a pickle.
    ///
    /// # Errors
    /// `Checkpoint` when it is malformed or names anything but tensors.
    pub(super) fn skip(&mut self) -> Result<()> {
        self.next().map(drop)
    }

    /// A pickle that is an integer.
    ///
    /// # Errors
    /// As for [`Stream::skip`]; `Checkpoint` when it is something else.
    pub(super) fn integer(&mut self) -> Result<i64> {
        let (machine, root) = self.next()?;
        match machine.nodes[root] {
            Node::Int(value) => Ok(value),
            ref other => Err(machine.malformed(format!("{} instead of an int", other.kind()))),
        }
    }

    /// A pickle that is a dict of tensors, and all storages that it mentions.
    ///
    /// # Errors
    /// As for [`read_state_dict`].
    pub(super) fn state_dict(&mut self) -> Result<(StateDict, Declared)> {
        let (mut machine, root) = self.next()?;
        let declared = std::mem::take(&mut machine.declared);
        Ok((machine.state_dict(root)?, declared))
    }

    /// A pickle that is a list of names, each there once.
    ///
    /// # Errors
    /// As for [`Stream::skip`]; `Checkpoint` when it is something else.
    pub(super) fn names(&mut self) -> Result<Vec<String>> {
        let (machine, root) = self.next()?;
        machine.names(root)
    }
}

/// Index of a node.
type Id = usize;

/// What an instruction may push.
enum Node {
    Mark,
    None,
    Bool,
    Int(i64),
    Float,
    Bytes,
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Box<Storage>),
    Tensor(Box<StoredTensor>),
}

impl Node {
    fn kind(&self) -> &'static str {
        match self {
            Self::Mark => "a mark",
            Self::None => "None",
            Self::Bool => "a bool",
            Self::Int(_) => "an int",
            Self::Float => "a float",
            Self::Bytes => "bytes",
            Self::Text(_) => "a str",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a function or class",
            Self::Storage(_) => "a storage without a tensor",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// What a persistent id stands for.
struct Storage {
    dtype: Dtype,
    key: String,
    len: usize,
    /// First element of the part that is meant, and the one behind its last.
    part: (usize, usize),
}

/// The names that a pickle may use.
#[derive(Clone, Copy)]
enum Global {
    OrderedDict,
    /// `_rebuild_tensor(storage, offset, size, stride)`, or `_v2` with three or four more that carry no data.
    RebuildTensor,
    /// A parameter is its tensor, the first argument.
    RebuildParameter,
    Storage(Dtype),
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Self::RebuildParameter
            }
            ("torch", storage) => Self::Storage(match storage {
                "FloatStorage" => Dtype::F32,
                "HalfStorage" => Dtype::F16,
                "BFloat16Storage" => Dtype::BF16,
                "DoubleStorage" => Dtype::F64,
                "LongStorage" => Dtype::I64,
                "IntStorage" => Dtype::I32,
                "ShortStorage" => Dtype::I16,
                "CharStorage" => Dtype::I8,
                "ByteStorage" => Dtype::U8,
                "BoolStorage" => Dtype::BOOL,
                "ComplexFloatStorage" => Dtype::C64,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

/// Where a pickle stands, which decides what a persistent id looks like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// In a zip archive.
    Archive,
    /// In a stream from before the archives, where a storage may be a part of another.
    Stream,
}

struct Machine<'a> {
    source: &'a Source,
    bytes: &'a [u8],
    at: usize,
    form: Form,
    declared: Declared,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    memo: HashMap<usize, Id>,
}

impl<'a> Machine<'a> {
    fn new(source: &'a Source, bytes: &'a [u8], at: usize, form: Form) -> Self {
        let (nodes, stack, memo) = (Vec::new(), Vec::new(), HashMap::new());
        Self { source, bytes, at, form, declared: Declared::new(), nodes, stack, memo }
    }

    /// Executes instructions up to the final one and returns what is on top of the stack then.
    fn run(&mut self) -> Result<Id> {
        loop {
            match self.take(1)?[0] {
                0x80 => self.protocol()?,
                0x95 => drop(self.take(8)?), // FRAME: a hint for buffering.
                b'.' => return self.pop(),
                b'(' => self.push(Node::Mark),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_to_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.push(Node::None),
                0x88 | 0x89 => self.push(Node::Bool),
                b'G' => {
                    self.take(8)?;
                    self.push(Node::Float);
                }
                b'K' => self.integer(1, false)?,
                b'M' => self.integer(2, false)?,
                b'J' => self.integer(4, true)?,
                0x8a => {
                    let width = self.length(1)?;
                    self.integer(width, true)?;
                }
                0x8c | b'U' => self.text(1)?,
                b'X' | b'T' => self.text(4)?,
                0x8d => self.text(8)?,
                b'C' => self.opaque(1)?,
                b'B' => self.opaque(4)?,
                0x8e => self.opaque(8)?,
                b'}' => self.push(Node::Dict(Vec::new())),
                b']' => self.push(Node::List(Vec::new())),
                b')' => self.push(Node::Tuple(Vec::new())),
                count @ 0x85..=0x87 => {
                    let start = self.below_top(usize::from(count - 0x84))?;
                    let items = self.stack.split_off(start);
                    self.push(Node::Tuple(items));
                }
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::Tuple(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend_list(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.extend_list(items)?;
                }
                b's' => {
                    let start = self.below_top(2)?;
                    let items = self.stack.split_off(start);
                    self.extend_dict(&items)?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.extend_dict(&items)?;
                }
                code @ (b'q' | b'r') => {
                    let slot = self.length(if code == b'q' { 1 } else { 4 })?;
                    self.remember(slot)?;
                }
                0x94 => self.remember(self.memo.len())?,
                code @ (b'h' | b'j') => {
                    let slot = self.length(if code == b'h' { 1 } else { 4 })?;
                    self.recall(slot)?;
                }
                b'c' => self.global()?,
                0x93 => self.stack_global()?,
                b'Q' => self.storage()?,
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                other => {
                    let got = format!("instruction 0x{other:02x}, which builds something else");
                    return Err(self.unwanted(got));
                }
            }
        }
    }

    fn protocol(&mut self) -> Result<()> {
        match self.take(1)?[0] {
            2..=5 => Ok(()),
            other => Err(self.malformed(format!("protocol {other} instead of 2 to 5"))),
        }
    }

    fn integer(&mut self, width: usize, signed: bool) -> Result<()> {
        if width > 8 {
            return Err(self.malformed("an integer of more than 64 bits"));
        }
        let digits = self.take(width)?;
        let negative = signed && digits.last().is_some_and(|&byte| byte >= 0x80);
        let mut value = [if negative { 0xff } else { 0 }; 8];
        value[..width].copy_from_slice(digits);
        self.push(Node::Int(i64::from_le_bytes(value)));
        Ok(())
    }

    fn text(&mut self, width: usize) -> Result<()> {
        let length = self.length(width)?;
        match std::str::from_utf8(self.take(length)?) {
            Ok(text) => {
                let text = text.to_owned();
                self.push(Node::Text(text));
                Ok(())
            }
            Err(_) => Err(self.malformed("a string that is not UTF-8")),
        }
    }

    fn opaque(&mut self, width: usize) -> Result<()> {
        let length = self.length(width)?;
        self.take(length)?;
        self.push(Node::Bytes);
        Ok(())
    }

    fn global(&mut self) -> Result<()> {
        let mut line = || {
            let length = self.bytes[self.at..].iter().position(|&byte| byte == b'\n');
            let text =
                length.map(|length| String::from_utf8_lossy(&self.bytes[self.at..][..length]).into_owned());
            self.at += length.map_or(0, |length| length + 1);
            text
        };
        let (module, name) = (line(), line());
        match module.zip(name) {
            Some((module, name)) => self.push_global(&module, &name),
            None => Err(self.malformed("an end inside of a name")),
        }
    }

    fn stack_global(&mut self) -> Result<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (&self.nodes[module], &self.nodes[name]) {
            (Node::Text(module), Node::Text(name)) => {
                let (module, name) = (module.clone(), name.clone());
                self.push_global(&module, &name)
            }
            _ => Err(self.malformed("a name that is no str")),
        }
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<()> {
        let Some(global) = Global::named(module, name) else {
            let shown: String = format!("{module}.{name}").chars().take(MAX_SHOWN).collect();
            return Err(self.unwanted(format!("a request for {shown}")));
        };
        self.push(Node::Global(global));
        Ok(())
    }

    /// Attributes of an `OrderedDict`; modules keep version numbers there. Everything else has none.
    fn build(&mut self) -> Result<()> {
        let _attributes = self.pop()?;
        match self.nodes[self.top()?] {
            Node::Dict(_) => Ok(()),
            _ => Err(self.malformed("attributes of something that has none")),
        }
    }

    fn extend_list(&mut self, items: Vec<Id>) -> Result<()> {
        let list = self.top()?;
        match &mut self.nodes[list] {
            Node::List(list) => list.extend(items),
            _ => return Err(self.malformed("items for something that is no list")),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<()> {
        let dict = self.top()?;
        match &mut self.nodes[dict] {
            Node::Dict(dict) if items.len().is_multiple_of(2) => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => return Err(self.malformed("items for something that is no dict")),
        }
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&[u8]> {
        match self.at.checked_add(count).filter(|&end| end <= self.bytes.len()) {
            Some(end) => {
                let start = std::mem::replace(&mut self.at, end);
                Ok(&self.bytes[start..end])
            }
            None => Err(self.malformed("an end inside of an instruction")),
        }
    }

    /// An unsigned number of `width` bytes that says how long something is, or where.
    fn length(&mut self, width: usize) -> Result<usize> {
        let mut value = [0; 8];
        value[..width].copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(value))
            .map_err(|_| self.malformed("a length past the address space"))
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or_else(|| self.malformed("an empty stack"))
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Position in the stack of the item that has `count` items from it to the top.
    fn below_top(&self, count: usize) -> Result<usize> {
        self.stack.len().checked_sub(count).ok_or_else(|| self.malformed("too short a stack"))
    }

    /// What was pushed since the last mark, which goes too.
    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        match self.stack.iter().rposition(|&id| matches!(self.nodes[id], Node::Mark)) {
            Some(mark) => {
                let items = self.stack.split_off(mark + 1);
                self.stack.pop();
                Ok(items)
            }
            None => Err(self.malformed("no mark where one is needed")),
        }
    }

    fn remember(&mut self, slot: usize) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: usize) -> Result<()> {
        match self.memo.get(&slot) {
            Some(&id) => self.stack.push(id),
            None => return Err(self.malformed("a reference to nothing")),
        }
        Ok(())
    }

    fn malformed(&self, got: impl AsRef<str>) -> Error {
        let got = format!("{} before byte {} of it", got.as_ref(), self.at);
        self.source.malformed(None, "a sound pickle, as torch.save writes it", got)
    }

    fn unwanted(&self, got: String) -> Error {
        let expected =
            "a pickle of tensors and nothing else (save a model's state_dict(), best as safetensors)";
        self.source.malformed(None, expected, got)
    }
}
