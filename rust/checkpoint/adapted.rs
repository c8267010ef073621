//! Adapters over a checkpoint: which tensors they replace, add to, or take apart that were one.
//!
//! Tied tensors are one tensor under several names, as they are in transformers: what is added or loaded under one name changes all
//! of them. A module that was saved whole is a copy of its own from there on, and those that were tied to it stay as they were.
//! Knows tensors and their shapes; what the names of an adapter's file mean is for its reader to say, and which names a
//! model ties is for `models`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::merged::{Change, Merged, Stored};
use super::source::Source;
use super::{Checkpoint, Dtype, TensorInfo};
use crate::error::{Error, Result};

/// What an adapter does to one tensor of the base. Targets are named as in the base, with or without its prefix.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// The values are those of the adapter's tensor.
    Replace {
        /// Tensor of the base.
        target: String,
        /// Tensor of the adapter.
        tensor: String,
        /// Whether the target becomes a tensor of its own, and what was tied to it stays as it was.
        apart: bool,
    },
    /// The product of two thin matrices is added.
    Product {
        /// Tensor of the base.
        target: String,
        /// Tensor of the adapter: `rank × inputs`.
        down: String,
        /// Tensor of the adapter: `outputs × rank`.
        up: String,
        /// Rank that both must have.
        rank: usize,
        /// What the product is multiplied by.
        scale: f32,
        /// Whether they are for an embedding.
        embedding: bool,
    },
    /// A vector is added.
    Sum {
        /// Tensor of the base.
        target: String,
        /// Tensor of the adapter.
        tensor: String,
        /// What it is multiplied by.
        scale: f32,
    },
    /// Some rows are replaced.
    Rows {
        /// Tensor of the base.
        target: String,
        /// Tensor of the adapter, a row for each of `rows`.
        tensor: String,
        /// Rows of the target.
        rows: Vec<usize>,
    },
}

/// The tensors of an adapter, and what it does with them, in order.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Its tensors.
    pub tensors: Arc<Checkpoint>,
    /// What they are for.
    pub edits: Vec<Edit>,
}

/// How the matrix of a module lies, and what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleKind {
    /// `outputs × inputs`.
    Linear,
    /// `inputs × outputs`.
    Conv1d,
    /// `ids × width`; an adapter has matrices of another name for it.
    Embedding,
}

/// What an adapter has to know of a model.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// What may stand before every name.
    pub prefix: &'a str,
    /// Tensors with a row for each token, in the model's order: an adapter may bring them with other rows.
    pub vocabulary: &'a [&'a str],
    /// The head's bias, a value for each token, where a head has one.
    pub bias: Option<&'a str>,
    /// Whether those are one tensor where the file does not say otherwise.
    pub tied: bool,
    /// The kind of a module by its name without the prefix; `None` for modules that take no matrices.
    pub kind: fn(&str) -> Option<ModuleKind>,
}

impl Layout<'_> {
    /// A name without the prefix.
    pub fn own<'n>(&self, name: &'n str) -> &'n str {
        name.strip_prefix(self.prefix).unwrap_or(name)
    }
}

/// A tensor under one or several names.
struct Cell {
    stored: Stored,
    changes: Vec<Change>,
    /// File of the last adapter that changed it.
    file: Option<Arc<str>>,
}

struct Overlay<'a> {
    base: Checkpoint,
    layout: &'a Layout<'a>,
    cells: Vec<Cell>,
    /// Cell of each name that something was done to, and of what is tied to it.
    names: BTreeMap<String, usize>,
    /// Whether the tensors of the vocabulary are still tied, as peft sees it when it applies the adapter at hand.
    tied: bool,
    /// Whether a tensor of the vocabulary came with other rows.
    resized: bool,
}

impl Checkpoint {
    /// The checkpoint with adapters applied one after the other, and the rows of its vocabulary where they have changed.
    ///
    /// Thin matrices are read; what they are added to is computed when it is read.
    ///
    /// # Errors
    /// `Checkpoint` where a tensor is not there, or of another shape, kind or type; `Io`, `OutOfMemory`.
    pub fn adapted(self, layout: &Layout<'_>, adapters: &[Adapter]) -> Result<(Self, Option<usize>)> {
        let (cells, names) = (Vec::new(), BTreeMap::new());
        let mut overlay = Overlay { base: self, layout, cells, names, tied: layout.tied, resized: false };
        for (place, adapter) in adapters.iter().enumerate() {
            if place > 0 {
                overlay.see_ties(&adapter.edits)?;
            }
            for edit in &adapter.edits {
                overlay.apply(&adapter.tensors, edit)?;
            }
        }
        overlay.finish()
    }

    /// The tensor of exactly this name, where it lies.
    fn stored(&self, name: &str) -> Result<Stored> {
        let missing = || Error::Checkpoint {
            file: self.label.clone(),
            tensor: Some(name.to_owned()),
            expected: "a tensor of this name".to_owned(),
            got: format!("none among its {} tensors", self.len()),
        };
        let info = self.get(name).ok_or_else(missing)?.clone();
        let source = self.sources.get(info.source).ok_or_else(missing)?.clone();
        Ok(Stored { info, source })
    }
}

impl Overlay<'_> {
    fn apply(&mut self, tensors: &Checkpoint, edit: &Edit) -> Result<()> {
        match edit {
            Edit::Replace { target, tensor, apart } => {
                let new = tensors.stored(tensor)?;
                let at = self.cell(target, &new.info)?;
                if self.is_resized(target, &new.info, &self.cells[at].stored.info)? {
                    self.resized = true;
                    if self.layout.bias != Some(self.layout.own(target)) {
                        self.tie(at);
                    }
                }
                let file = Some(new.info.file.clone());
                let cell = Cell { stored: new, changes: Vec::new(), file };
                if *apart {
                    self.cells.push(cell);
                    self.names.insert(self.layout.own(target).to_owned(), self.cells.len() - 1);
                } else {
                    self.cells[at] = cell;
                }
            }
            Edit::Product { target, down, up, rank, scale, embedding } => {
                let (down, up) = (tensors.stored(down)?, tensors.stored(up)?);
                let at = self.cell(target, &down.info)?;
                let flipped = self.is_flipped(target, &down.info, *embedding)?;
                let [rows, columns] = matrix(&self.cells[at].stored.info)?;
                let (inputs, outputs) = if flipped { (rows, columns) } else { (columns, rows) };
                if *rank == 0 {
                    return Err(down.info.malformed("a rank of at least 1", "0"));
                }
                down.info.expect(&[*rank, inputs])?;
                up.info.expect(&[outputs, *rank])?;
                let file = down.info.file.clone();
                let (down, up) = (down.values()?, up.values()?);
                let (left, right) = if flipped {
                    (transposed(&down, *rank, inputs), transposed(&up, outputs, *rank))
                } else {
                    (up, down)
                };
                let (left, right) = (left.into(), right.into());
                self.change(at, Change::Product { left, right, rank: *rank, scale: *scale }, file);
            }
            Edit::Sum { target, tensor, scale } => {
                let new = tensors.stored(tensor)?;
                let at = self.cell(target, &new.info)?;
                new.info.expect(&self.cells[at].stored.info.shape)?;
                let values = new.values()?.into();
                self.change(at, Change::Sum { values, scale: *scale }, new.info.file);
            }
            Edit::Rows { target, tensor, rows } => {
                let new = tensors.stored(tensor)?;
                let at = self.cell(target, &new.info)?;
                let [count, columns] = matrix(&self.cells[at].stored.info)?;
                new.info.expect(&[rows.len(), columns])?;
                if let Some(row) = rows.iter().find(|&&row| row >= count) {
                    return Err(new
                        .info
                        .malformed(format!("rows for tokens below {count}"), row.to_string()));
                }
                // Of a row that comes twice the later one counts.
                let pairs: BTreeMap<usize, usize> =
                    rows.iter().enumerate().map(|(n, &row)| (row, n)).collect();
                let (rows, values): (Arc<[_]>, Arc<[f32]>) =
                    (pairs.into_iter().collect(), new.values()?.into());
                // Rows of the input embedding are those of what is tied to it, even where the file has other values for that.
                let all = self.tied && self.layout.vocabulary.first() == Some(&self.layout.own(target));
                let tied = self.layout.vocabulary.iter().filter_map(|name| self.names.get(*name)).copied();
                let fits = |&cell: &usize| all && self.cells[cell].stored.info.shape == [count, columns];
                let cells: BTreeSet<usize> = tied.filter(fits).chain([at]).collect();
                for at in cells {
                    let (rows, values) = (rows.clone(), values.clone());
                    self.change(at, Change::Rows { rows, values }, new.info.file.clone());
                }
            }
        }
        Ok(())
    }

    fn change(&mut self, at: usize, change: Change, file: Arc<str>) {
        self.cells[at].changes.push(change);
        self.cells[at].file = Some(file);
    }

    /// The cell of a name of the base, for a tensor of an adapter that is at fault where there is none.
    fn cell(&mut self, target: &str, wanted_by: &TensorInfo) -> Result<usize> {
        let layout = self.layout;
        let name = layout.own(target);
        if !self.names.contains_key(name) {
            if layout.tied && layout.vocabulary.contains(&name) {
                self.open_vocabulary()?;
            } else if let Some(stored) = self.in_base(name)? {
                self.open(name, stored);
            }
        }
        self.names.get(name).copied().ok_or_else(|| {
            let expected = format!("a tensor for one of the base model ({})", self.base.label);
            wanted_by.malformed(expected, format!("one for {target}, which it does not have"))
        })
    }

    /// A tensor of the base by its name without the prefix.
    fn in_base(&self, name: &str) -> Result<Option<Stored>> {
        let Some(info) = self.base.find(self.layout.prefix, name) else {
            return Ok(None);
        };
        info.expect(&info.shape)?;
        self.base.stored(&info.name.clone()).map(Some)
    }

    fn open(&mut self, name: &str, stored: Stored) -> usize {
        self.cells.push(Cell { stored, changes: Vec::new(), file: None });
        self.names.insert(name.to_owned(), self.cells.len() - 1);
        self.cells.len() - 1
    }

    /// Cells of the tied tensors: the first that the file has, under every name but those that the file has with other values.
    fn open_vocabulary(&mut self) -> Result<()> {
        let mut first = None;
        let mut absent = Vec::new();
        for name in self.layout.vocabulary {
            match (self.in_base(name)?, first) {
                (None, _) => absent.push(*name),
                (Some(stored), None) => first = Some(self.open(name, stored)),
                (Some(stored), Some(at)) => {
                    let one = &self.cells[at].stored;
                    if one.info.shape == stored.info.shape && one.same(&stored)? {
                        self.names.insert((*name).to_owned(), at);
                    } else {
                        self.open(name, stored);
                    }
                }
            }
        }
        if let Some(at) = first {
            self.names.extend(absent.into_iter().map(|name| (name.to_owned(), at)));
        }
        Ok(())
    }

    /// Looks, before another adapter is applied, whether the one before has left embedding and head apart, where that matters.
    fn see_ties(&mut self, edits: &[Edit]) -> Result<()> {
        let matters = |edit: &Edit| matches!(edit, Edit::Rows { .. } | Edit::Replace { .. });
        if self.tied && edits.iter().any(matters) {
            if !self.layout.vocabulary.iter().any(|name| self.names.contains_key(*name)) {
                self.open_vocabulary()?;
            }
            let cell = |name: Option<&&str>| name.and_then(|name| self.names.get(*name));
            self.tied = cell(self.layout.vocabulary.first()) == cell(self.layout.vocabulary.last());
        }
        Ok(())
    }

    /// Makes one tensor of the vocabulary what was one or several: where tied tables get other rows, transformers ties them anew.
    fn tie(&mut self, at: usize) {
        if self.tied {
            self.names.extend(self.layout.vocabulary.iter().map(|name| ((*name).to_owned(), at)));
        }
    }

    /// Checks what takes a tensor's place; a tensor of the vocabulary may come with other rows, and so may the head's bias.
    /// Whether it does.
    fn is_resized(&self, target: &str, new: &TensorInfo, old: &TensorInfo) -> Result<bool> {
        let is_table = self.layout.vocabulary.contains(&self.layout.own(target));
        if let (true, [rows, width], [before, columns]) =
            (is_table, new.shape.as_slice(), old.shape.as_slice())
            && width == columns
            && *rows > 0
        {
            new.expect(&new.shape)?;
            return Ok(rows != before);
        }
        let is_bias = self.layout.bias == Some(self.layout.own(target));
        if let (true, [values], [before]) = (is_bias, new.shape.as_slice(), old.shape.as_slice())
            && *values > 0
        {
            new.expect(&new.shape)?;
            return Ok(values != before);
        }
        new.expect(&old.shape)?;
        Ok(false)
    }

    /// Whether the matrix of a tensor lies as `inputs × outputs`.
    fn is_flipped(&self, target: &str, wanted_by: &TensorInfo, embedding: bool) -> Result<bool> {
        let module = self.layout.own(target).strip_suffix(".weight").unwrap_or(target);
        let kind = (self.layout.kind)(module);
        let (is, takes) = match kind {
            None => ("neither a linear layer nor an embedding", "no matrices of LoRA"),
            Some(ModuleKind::Embedding) => ("an embedding", "lora_embedding_A and lora_embedding_B"),
            Some(_) => ("a linear layer", "lora_A and lora_B"),
        };
        if kind.is_none_or(|kind| embedding != (kind == ModuleKind::Embedding)) {
            return Err(wanted_by.malformed(format!("{takes} for {module}, which is {is}"), "this tensor"));
        }
        Ok(kind != Some(ModuleKind::Linear))
    }

    /// The checkpoint with the cells in it.
    fn finish(mut self) -> Result<(Checkpoint, Option<usize>)> {
        let names = std::mem::take(&mut self.names);
        let first = self.layout.vocabulary.first().and_then(|name| names.get(*name).map(|&at| (*name, at)));
        for (name, at) in &names {
            let key = self.base.find(self.layout.prefix, name).map_or(name.clone(), |info| info.name.clone());
            for spelt in [format!("{}{name}", self.layout.prefix), name.clone()] {
                self.base.tensors.remove(&spelt);
            }
            let tied = self.layout.tied
                && self.layout.vocabulary.contains(&name.as_str())
                && first.is_some_and(|(first, cell)| first != name.as_str() && cell == *at);
            if !tied {
                self.put(key, *at);
            }
        }
        let rows = self.vocabulary_rows()?;
        Ok((self.base, rows))
    }

    /// Puts a cell under a name.
    fn put(&mut self, name: String, at: usize) {
        let cell = &self.cells[at];
        let file = cell.file.clone().unwrap_or_else(|| cell.stored.info.file.clone());
        let mut info = TensorInfo { name, source: self.base.sources.len(), ..cell.stored.info.clone() };
        if cell.changes.is_empty() {
            self.base.sources.push(cell.stored.source.clone());
        } else {
            let bytes = info.elements() * size_of::<f32>();
            info = TensorInfo { dtype: Dtype::F32, offset: 0, bytes, file: file.clone(), ..info };
            // A vector is one row.
            let columns = info.shape.iter().skip(usize::from(info.shape.len() > 1)).product::<usize>().max(1);
            let (stored, changes) = (cell.stored.clone(), cell.changes.clone());
            let merged = Merged { stored, columns, changes };
            self.base.sources.push(Arc::new(Source::computed(&file, bytes as u64, Box::new(merged))));
        }
        self.base.tensors.insert(info.name.clone(), info);
    }

    /// The rows that all tensors of the vocabulary have, where an adapter has changed them.
    fn vocabulary_rows(&self) -> Result<Option<usize>> {
        if !self.resized {
            return Ok(None);
        }
        let found = |name: &&str| self.base.find(self.layout.prefix, name);
        let mut infos = self.layout.vocabulary.iter().filter_map(found);
        let Some(first) = infos.next() else { return Ok(None) };
        let rows = first.shape.first().copied().unwrap_or_default();
        if let Some(other) = infos.find(|info| info.shape.first() != Some(&rows)) {
            let expected = format!("{rows} rows, as {} has with the adapters", first.name);
            return Err(other.malformed(expected, format!("shape {:?}", other.shape)));
        }
        let bias = self.layout.bias.and_then(|name| self.base.find(self.layout.prefix, name));
        if let Some(bias) = bias.filter(|info| info.shape != [rows]) {
            let expected = format!(
                "{rows} values, as many as {} has rows with the adapters (none of them brings a bias of that size, and new \
                 values are in no file)",
                first.name
            );
            return Err(bias.malformed(expected, format!("shape {:?}", bias.shape)));
        }
        Ok(Some(rows))
    }
}

/// Rows and columns of a tensor that has both.
fn matrix(info: &TensorInfo) -> Result<[usize; 2]> {
    let refused = |_| info.malformed("a matrix", format!("shape {:?}", info.shape));
    info.shape.as_slice().try_into().map_err(refused)
}

/// `columns × rows` from `rows × columns`.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}
