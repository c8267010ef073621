//! A table of weights, by slots; and the recorder that plans one while a model file records its programs.

use std::fmt::Debug;
use std::marker::PhantomData;

use crate::error::Result;
use crate::kernels::{Orientation, WeightType};
use crate::layers::linear::Linear;
use crate::layers::norm::{Norm, NormKind};
use crate::layers::relative_bias::{Distances, RelativeBias};
use crate::layers::rotary::Rotary;
use crate::load::{HEAD, Loader, Matrix, Role, Share, Ticket};
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
    shares: Vec<Share>,
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

    /// Whether there are products with matrices of this type.
    pub fn multiplies(&self, name: &str) -> bool {
        self.linears.iter().any(|linear| linear.weight().weight_type().name() == name)
    }

    /// What each type takes of the matrices.
    pub fn shares(&self) -> &[Share] {
        &self.shares
    }

    /// Lets go of the matrices' bytes, since a device has them and runs all programs. Norms, biases and tables of positions stay.
    pub fn release(&mut self) {
        self.linears.iter_mut().for_each(|linear| linear.weight_mut().release());
        self.tables.iter_mut().for_each(Packed::release);
    }

    /// Bytes of all packed matrices.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Names of a table.
#[derive(Debug, Clone, Copy)]
pub struct Named<'n> {
    /// Its name in the model.
    pub name: &'n str,
    /// Another name that means it.
    pub alias: Option<&'n str>,
    /// The tensor that it is read from.
    pub tensor: &'n str,
}

impl<'n> Named<'n> {
    /// A table of a tensor that has its name.
    pub fn of(tensor: &'n str) -> Self {
        Self { name: module(tensor), alias: None, tensor }
    }
}

/// Name of the module that a tensor belongs to.
fn module(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
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

    /// Token embeddings of `rows × width`, read from a tensor.
    ///
    /// # Errors
    /// As for [`Loader::matrix`].
    pub fn table(&mut self, named: Named<'_>, rows: usize, width: usize) -> Result<Slot<Packed>> {
        let Named { name, alias, tensor } = named;
        let (role, orientation) = (Role::Embedding, Orientation::OutIn);
        let matrix = Matrix { name, alias, tensor, role, outputs: rows, inputs: width, orientation };
        let ticket = self.loader.matrix(&matrix)?;
        Ok(Slot::push(&mut self.tables, ticket))
    }

    /// The matrix of the head, `rows × width`, read from a tensor that may be the embeddings', with the bias of this name. A head of
    /// the same type as the embeddings of its tensor is the same matrix.
    ///
    /// # Errors
    /// As for [`Loader::matrix`] and [`Loader::values`].
    pub fn head(
        &mut self,
        tensor: &str,
        [rows, width]: [usize; 2],
        bias: Option<&str>,
    ) -> Result<Slot<Linear>> {
        let (role, orientation) = (Role::Head, Orientation::OutIn);
        let matrix =
            Matrix { name: HEAD, alias: None, tensor, role, outputs: rows, inputs: width, orientation };
        let ticket = self.loader.matrix(&matrix)?;
        let bias = bias.map_or(Ok(Vec::new()), |name| self.loader.values(name, &[rows]))?;
        Ok(Slot::push(&mut self.linears, (ticket, bias)))
    }

    /// Angles by position.
    pub fn rotary(&mut self, rotary: Rotary) -> Slot<Rotary> {
        Slot::push(&mut self.rotaries, rotary)
    }

    /// Which of two tensors holds a table that the file may repeat as `name`: the repetition where it is there and differs, the
    /// original otherwise.
    ///
    /// # Errors
    /// As for [`Loader::same`].
    pub fn own<'n>(&mut self, name: &'n str, original: &'n str, shape: [usize; 2]) -> Result<&'n str> {
        let is_own = name != original && self.has(name) && !self.loader.same(original, name, &shape)?;
        Ok(if is_own { name } else { original })
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
        let tensor = format!("{name}.weight");
        let role = if delicate { Role::Delicate } else { Role::Plain };
        let matrix = Matrix { name, alias: None, tensor: &tensor, role, outputs, inputs, orientation };
        let ticket = self.loader.matrix(&matrix)?;
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
            shares: packing.shares,
        };
        Ok((weights, self.loader))
    }
}
