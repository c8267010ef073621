//! A table of weights, by slots; and the recorder that plans one while a model file records its programs.

use std::fmt::Debug;
use std::marker::PhantomData;

use crate::error::Result;
use crate::kernels::{Orientation, WeightType};
use crate::layers::linear::Linear;
use crate::layers::norm::{Norm, NormKind};
use crate::layers::relative_bias::{Distances, RelativeBias};
use crate::layers::rotary::Rotary;
use crate::load::{Loader, Ticket};
use crate::packed::Packed;

/// Place of one weight in a table.
#[derive(Debug)]
pub struct Slot<T> {
    index: usize,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slot<T> {}

impl<T> Slot<T> {
    /// A slot that names nothing, for records that are not run.
    #[cfg(test)]
    pub(super) fn unused() -> Self {
        Self { index: 0, of: PhantomData }
    }

    /// The slot of what is appended to a list.
    fn push<U>(list: &mut Vec<U>, value: U) -> Self {
        list.push(value);
        Self { index: list.len() - 1, of: PhantomData }
    }
}

/// All weights of a model: immutable, shared by every step.
#[derive(Debug)]
pub struct Weights {
    linears: Vec<Linear>,
    tables: Vec<Packed>,
    norms: Vec<Norm>,
    values: Vec<Vec<f32>>,
    biases: Vec<RelativeBias>,
    rotaries: Vec<Rotary>,
    bytes: usize,
}

impl Weights {
    /// A matrix with its bias.
    pub fn linear(&self, slot: Slot<Linear>) -> &Linear {
        &self.linears[slot.index]
    }

    /// A matrix that rows are gathered from.
    pub fn table(&self, slot: Slot<Packed>) -> &Packed {
        &self.tables[slot.index]
    }

    /// A norm.
    pub fn norm(&self, slot: Slot<Norm>) -> &Norm {
        &self.norms[slot.index]
    }

    /// Plain values.
    pub fn values(&self, slot: Slot<Vec<f32>>) -> &[f32] {
        &self.values[slot.index]
    }

    /// A relative position bias.
    pub fn bias(&self, slot: Slot<RelativeBias>) -> &RelativeBias {
        &self.biases[slot.index]
    }

    /// Rotary positions.
    pub fn rotary(&self, slot: Slot<Rotary>) -> &Rotary {
        &self.rotaries[slot.index]
    }

    /// Type of every matrix.
    pub fn types(&self) -> impl Iterator<Item = &'static dyn WeightType> {
        let linears = self.linears.iter().map(|linear| linear.weight().weight_type());
        linears.chain(self.tables.iter().map(Packed::weight_type))
    }

    /// Bytes of all packed matrices.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Plans the weights that programs name, and knows which slot each one takes.
#[derive(Debug)]
pub struct Recorder<'l> {
    loader: Loader<'l>,
    linears: Vec<(Ticket, Vec<f32>)>,
    tables: Vec<Ticket>,
    norms: Vec<Norm>,
    values: Vec<Vec<f32>>,
    biases: Vec<RelativeBias>,
    rotaries: Vec<Rotary>,
}

impl<'l> Recorder<'l> {
    /// A recorder of weights that `loader` reads.
    pub fn new(loader: Loader<'l>) -> Self {
        let (linears, tables, norms) = (Vec::new(), Vec::new(), Vec::new());
        let (values, biases, rotaries) = (Vec::new(), Vec::new(), Vec::new());
        Self { loader, linears, tables, norms, values, biases, rotaries }
    }

    /// Token embeddings of `rows × width`.
    ///
    /// # Errors
    /// As for [`Loader::matrix`].
    pub fn table(&mut self, name: &str, rows: usize, width: usize) -> Result<Slot<Packed>> {
        let ticket = self.loader.matrix(name, rows, width, Orientation::OutIn)?;
        Ok(Slot::push(&mut self.tables, ticket))
    }

    /// A table as the matrix of a product without a bias: a head that is tied to it.
    pub fn tied(&mut self, table: Slot<Packed>) -> Slot<Linear> {
        Slot::push(&mut self.linears, (self.tables[table.index], Vec::new()))
    }

    /// As [`Recorder::tied`], with the bias of this name.
    ///
    /// # Errors
    /// As for [`Loader::values`].
    pub fn tied_with(&mut self, table: Slot<Packed>, bias: &str, outputs: usize) -> Result<Slot<Linear>> {
        let bias = self.loader.values(bias, &[outputs])?;
        Ok(Slot::push(&mut self.linears, (self.tables[table.index], bias)))
    }

    /// Angles by position.
    pub fn rotary(&mut self, rotary: Rotary) -> Slot<Rotary> {
        Slot::push(&mut self.rotaries, rotary)
    }

    /// A table that the file may repeat under this name: the repetition where it is there and differs, the table otherwise.
    ///
    /// # Errors
    /// As for [`Loader::matrix`] and [`Loader::same`].
    pub fn own_table(
        &mut self,
        name: &str,
        table: (&str, Slot<Packed>),
        [rows, width]: [usize; 2],
    ) -> Result<Slot<Packed>> {
        let (original, slot) = table;
        if name == original || !self.has(name) || self.loader.same(original, name, &[rows, width])? {
            return Ok(slot);
        }
        self.table(name, rows, width)
    }

    /// Whether the checkpoint has a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.loader.has(name)
    }

    /// Whether the checkpoint has a tensor whose name is one of these.
    pub fn has_any(&self, wanted: impl Fn(&str) -> bool) -> bool {
        self.loader.has_any(wanted)
    }

    /// Plain values of this shape.
    ///
    /// # Errors
    /// As for [`Loader::values`].
    pub fn values(&mut self, name: &str, shape: &[usize]) -> Result<Slot<Vec<f32>>> {
        let values = self.loader.values(name, shape)?;
        Ok(Slot::push(&mut self.values, values))
    }

    /// A relative position bias: a value per bucket and head.
    ///
    /// # Errors
    /// As for [`Loader::values`].
    pub fn relative_bias(
        &mut self,
        name: &str,
        heads: usize,
        distances: &Distances,
    ) -> Result<Slot<RelativeBias>> {
        let table = self.loader.values(name, &[distances.buckets().count, heads])?;
        Ok(Slot::push(&mut self.biases, RelativeBias::new(&table, heads, distances)))
    }

    /// Notes tensors that are known and not needed, such as buffers of constants.
    pub fn ignore(&mut self, known: impl Fn(&str) -> bool) {
        self.loader.ignore(known);
    }

    /// A linear layer: a matrix, and a bias where it has one.
    pub(super) fn linear(
        &mut self,
        name: &str,
        [outputs, inputs]: [usize; 2],
        orientation: Orientation,
        bias: bool,
        delicate: bool,
    ) -> Result<Slot<Linear>> {
        let weight = format!("{name}.weight");
        let ticket = if delicate {
            self.loader.delicate_matrix(&weight, outputs, inputs)?
        } else {
            self.loader.matrix(&weight, outputs, inputs, orientation)?
        };
        let bias = if bias { self.loader.values(&format!("{name}.bias"), &[outputs])? } else { Vec::new() };
        Ok(Slot::push(&mut self.linears, (ticket, bias)))
    }

    /// A norm of rows of this width, multiplied by `scale`.
    pub(super) fn norm(
        &mut self,
        name: &str,
        kind: NormKind,
        eps: f32,
        scale: f32,
        width: usize,
    ) -> Result<Slot<Norm>> {
        let mut weight = self.loader.values(&format!("{name}.weight"), &[width])?;
        let bias = match kind {
            NormKind::Layer => self.loader.values(&format!("{name}.bias"), &[width])?,
            NormKind::Rms => Vec::new(),
        };
        if scale != 1.0 {
            weight.iter_mut().for_each(|w| *w *= scale);
        }
        Ok(Slot::push(&mut self.norms, Norm { kind, weight, bias, eps }))
    }

    /// Reads and packs everything that was planned. The loader then knows which tensors nothing asked for.
    ///
    /// # Errors
    /// As for [`Loader::finish`].
    pub fn finish(mut self) -> Result<(Weights, Loader<'l>)> {
        let packing = self.loader.finish()?;
        let linear = |(ticket, bias)| Linear::new(packing.get(ticket), bias);
        let weights = Weights {
            linears: self.linears.into_iter().map(linear).collect(),
            tables: self.tables.into_iter().map(|ticket| packing.get(ticket)).collect(),
            norms: self.norms,
            values: self.values,
            biases: self.biases,
            rotaries: self.rotaries,
            bytes: packing.bytes,
        };
        Ok((weights, self.loader))
    }
}
