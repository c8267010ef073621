//! What the nodes of a pickle say about tensors: storages, views of them, the dict of all, and lists of names.

use std::collections::{BTreeMap, BTreeSet};

use super::{Form, Global, Id, MAX_SHOWN, Machine, Node, StateDict, Storage, StoredTensor};
use crate::error::Result;

/// More dimensions than any weight has.
const MAX_DIMS: usize = 8;
/// Longer than any name of a storage, which is a number.
const MAX_KEY: usize = 64;

impl Machine<'_> {
    /// A persistent id: `("storage", type, key, location, number of elements)`. In a stream a sixth item follows, which is None or says
    /// which part of the storage is meant: `(key of the part, first element, number of elements)`.
    pub(super) fn storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let Node::Tuple(parts) = &self.nodes[id] else {
            return Err(self.malformed("a persistent id that is no tuple"));
        };
        let parts: Vec<&Node> = parts.iter().take(7).map(|&part| &self.nodes[part]).collect();
        let (parts, part) = match (self.form, &parts[..]) {
            (Form::Archive, parts) => (parts, &Node::None),
            (Form::Stream, [parts @ .., part]) => (parts, *part),
            (Form::Stream, []) => return Err(self.malformed("a persistent id that is no storage")),
        };
        let &[Node::Text(tag), Node::Global(Global::Storage(dtype)), Node::Text(key), _, Node::Int(len)] =
            parts
        else {
            return Err(self.malformed("a persistent id that is no storage"));
        };
        let (Ok(len), "storage", 0..=MAX_KEY) = (usize::try_from(*len), tag.as_str(), key.len()) else {
            return Err(self.malformed("a persistent id that is no storage"));
        };
        let part = match part {
            Node::None => (0, len),
            Node::Tuple(items) if items.len() == 3 => {
                let (first, count) = (self.extent(items[1])?, self.extent(items[2])?);
                match first.checked_add(count).filter(|&end| end <= len) {
                    Some(end) => (first, end),
                    None => return Err(self.malformed("a part that lies outside of its storage")),
                }
            }
            _ => return Err(self.malformed("a persistent id that is no storage")),
        };
        let storage = Storage { dtype: *dtype, key: key.clone(), len, part };
        if self.form == Form::Stream && !self.declared.contains_key(&storage.key) {
            self.declared.insert(storage.key.clone(), (storage.dtype, len));
        }
        self.push(Node::Storage(Box::new(storage)));
        Ok(())
    }

    /// A call of one of the functions that are known.
    pub(super) fn reduce(&mut self) -> Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Node::Global(function), Node::Tuple(arguments)) =
            (&self.nodes[function], &self.nodes[arguments])
        else {
            return Err(self.malformed("a call of something that is no function"));
        };
        match (function, &arguments[..]) {
            (Global::OrderedDict, []) => self.push(Node::Dict(Vec::new())),
            (Global::RebuildParameter, &[tensor, ..]) if matches!(self.nodes[tensor], Node::Tensor(_)) => {
                self.stack.push(tensor);
            }
            (Global::RebuildTensor, &[storage, offset, size, stride, ref rest @ ..]) => {
                // `requires_grad` and `backward_hooks` change no value; the marks of a lazy negation would.
                let lazy = rest
                    .get(2)
                    .is_some_and(|&marks| !matches!(&self.nodes[marks], Node::Dict(m) if m.is_empty()));
                if lazy {
                    return Err(self.unwanted(
                        "a tensor whose values are a lazy view; save it with .resolve_neg()".into(),
                    ));
                }
                let tensor = self.tensor(storage, offset, size, stride)?;
                self.push(Node::Tensor(Box::new(tensor)));
            }
            _ => return Err(self.malformed("a call with arguments that do not fit")),
        }
        Ok(())
    }

    fn tensor(&self, storage: Id, offset: Id, size: Id, stride: Id) -> Result<StoredTensor> {
        let Node::Storage(storage) = &self.nodes[storage] else {
            return Err(self.malformed("a tensor without a storage"));
        };
        let (offset, shape, strides) = (self.extent(offset)?, self.extents(size)?, self.extents(stride)?);
        if shape.len() != strides.len() {
            return Err(self.malformed("a tensor with as many strides as it has not dimensions"));
        }
        let Storage { dtype, ref key, len, part: (first, limit) } = **storage;
        let offset = offset.checked_add(first).ok_or_else(|| self.malformed("a tensor past its storage"))?;
        Ok(StoredTensor { dtype, storage: key.clone(), storage_len: len, limit, offset, shape, strides })
    }

    fn extent(&self, id: Id) -> Result<usize> {
        match self.nodes[id] {
            Node::Int(value) if value >= 0 => Ok(value as usize),
            _ => Err(self.malformed("a tensor whose extents are no integers of at least 0")),
        }
    }

    fn extents(&self, id: Id) -> Result<Vec<usize>> {
        match &self.nodes[id] {
            Node::Tuple(items) | Node::List(items) if items.len() <= MAX_DIMS => {
                items.iter().map(|&item| self.extent(item)).collect()
            }
            _ => Err(self.malformed(format!("a tensor whose extents are no tuple of at most {MAX_DIMS}"))),
        }
    }

    pub(super) fn state_dict(self, root: Id) -> Result<StateDict> {
        let Node::Dict(items) = &self.nodes[root] else {
            return Err(self.unwanted(format!("{} instead of a dict of tensors", self.nodes[root].kind())));
        };
        // By reference until all is known: one name of megabytes can be referred to millions of times.
        let mut tensors: BTreeMap<&str, &StoredTensor> = BTreeMap::new();
        let mut others: BTreeMap<&str, &'static str> = BTreeMap::new();
        for &(key, value) in items {
            match (&self.nodes[key], &self.nodes[value]) {
                (Node::Text(name), Node::Tensor(tensor)) => {
                    if tensors.insert(name, tensor).is_some() {
                        let shown: String = name.chars().take(MAX_SHOWN).collect();
                        return Err(self.source.malformed(
                            Some(&shown),
                            "every name once in a state dict",
                            "the name again",
                        ));
                    }
                }
                (Node::Text(name), other) => drop(others.insert(name, other.kind())),
                (other, _) => return Err(self.unwanted(format!("a name that is {}", other.kind()))),
            }
        }
        // A dictionary within says best what the file is: a training checkpoint, with the tensors one level down.
        let inner = others.iter().find(|(_, kind)| **kind == "a dict").or_else(|| others.iter().next());
        if let (true, Some((name, kind))) = (tensors.is_empty(), inner) {
            let expected = "a tensor, as in a model's state_dict()";
            let shown: String = name.chars().take(MAX_SHOWN).collect();
            return Err(self.source.malformed(Some(&shown), expected, *kind));
        }
        let tensors = tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
        Ok(StateDict { tensors, others: others.into_keys().map(str::to_owned).collect() })
    }

    /// The names of a list, in its order. By reference until it is known that none comes twice, as in a dict.
    pub(super) fn names(&self, root: Id) -> Result<Vec<String>> {
        let Node::List(items) = &self.nodes[root] else {
            return Err(self.malformed(format!("{} instead of a list of names", self.nodes[root].kind())));
        };
        let mut seen = BTreeSet::new();
        for &item in items {
            match &self.nodes[item] {
                Node::Text(name) if name.len() <= MAX_KEY && seen.insert(name) => {}
                _ => return Err(self.malformed("a list of storages with something else in it, or one twice")),
            }
        }
        let names = items.iter().filter_map(|&item| match &self.nodes[item] {
            Node::Text(name) => Some(name.clone()),
            _ => None,
        });
        Ok(names.collect())
    }
}
