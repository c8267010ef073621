//! How a model file records its forward: values that come from values, with the checkpoint's names.
//!
//! Every method adds one phase and gives back what the phase makes. Widths are held against each other and against the tensors'
//! shapes at once, so that a mistake in a model file is an error when the model is loaded.

use std::ops::Range;

use super::weights::{Recorder, Slot};
use super::{Cache, Op, Part, Phase, Product, Program, Which, plan};
use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::kernels::Orientation;
use crate::layers::heads::Heads;
use crate::layers::linear::Linear;
use crate::layers::norm::{Norm, NormKind};
use crate::layers::relative_bias::RelativeBias;
use crate::layers::rotary::Rotary;
use crate::packed::Packed;

/// Rows of activations that a phase makes: one row per row of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value {
    /// Number of the value in its program.
    pub(super) id: usize,
    width: usize,
}

/// Some columns of a value.
pub type Columns = Part<Value>;

impl Value {
    /// A value of this number and width.
    #[cfg(test)]
    pub(super) fn numbered(id: usize, width: usize) -> Self {
        Self { id, width }
    }

    /// Floats in a row.
    pub fn width(self) -> usize {
        self.width
    }

    /// Some of its columns.
    pub fn columns(self, range: Range<usize>) -> Columns {
        Columns { of: self, from: range.start, width: range.len() }
    }

    /// Queries, keys and values that lie side by side.
    pub fn thirds(self) -> [Columns; 3] {
        let third = self.width / 3;
        [self.columns(0..third), self.columns(third..2 * third), self.columns(2 * third..3 * third)]
    }
}

impl From<Value> for Columns {
    fn from(value: Value) -> Self {
        value.columns(0..value.width)
    }
}

/// A linear layer to record: its name, its outputs, and how the checkpoint holds it.
#[derive(Debug, Clone)]
pub struct Dense {
    name: String,
    outputs: usize,
    orientation: Orientation,
    bias: bool,
    delicate: bool,
    activation: Option<Activation>,
}

/// A matrix `[outputs, inputs]` without a bias (`torch.nn.Linear`).
pub fn dense(name: &str, outputs: usize) -> Dense {
    let (orientation, name) = (Orientation::OutIn, name.to_owned());
    Dense { name, outputs, orientation, bias: false, delicate: false, activation: None }
}

/// A matrix `[inputs, outputs]` with a bias (transformers' `Conv1D`).
pub fn conv1d(name: &str, outputs: usize) -> Dense {
    Dense { orientation: Orientation::InOut, bias: true, ..dense(name, outputs) }
}

impl Dense {
    /// With an activation behind the product.
    #[must_use]
    pub fn then(self, activation: Activation) -> Self {
        Self { activation: Some(activation), ..self }
    }

    /// With a bias, if so.
    #[must_use]
    pub fn biased(self, bias: bool) -> Self {
        Self { bias, ..self }
    }

    /// Not rounded where the weights are rounded to float16 (transformers' `_keep_in_fp32_modules`).
    #[must_use]
    pub fn delicate(self) -> Self {
        Self { delicate: true, ..self }
    }
}

/// A norm to record.
#[derive(Debug, Clone)]
pub struct Normed {
    name: String,
    kind: NormKind,
    eps: f32,
    scale: f32,
}

/// A norm by mean and variance, with a bias (Ba et al. 2016).
pub fn layer_norm(name: &str, eps: f32) -> Normed {
    Normed { name: name.to_owned(), kind: NormKind::Layer, eps, scale: 1.0 }
}

/// A norm by the root of the mean square, without a bias (Zhang and Sennrich 2019).
pub fn rms_norm(name: &str, eps: f32) -> Normed {
    Normed { kind: NormKind::Rms, ..layer_norm(name, eps) }
}

impl Normed {
    /// With a result that is multiplied by a number.
    #[must_use]
    pub fn scaled(self, scale: f32) -> Self {
        Self { scale, ..self }
    }
}

/// What a row sees of the keys, and what is added to their scores.
#[derive(Debug, Clone, Copy)]
pub struct Mask {
    /// Whether a row sees only the keys up to its own position.
    pub causal: bool,
    /// How many of those it sees at most, its own included.
    pub window: Option<usize>,
    /// Added to the scores by distance.
    pub bias: Option<Slot<RelativeBias>>,
}

impl Mask {
    /// Up to the row itself, nothing added.
    pub const CAUSAL: Self = Self { causal: true, window: None, bias: None };
    /// Everything, nothing added.
    pub const ALL: Self = Self { causal: false, window: None, bias: None };
}

/// Heads, and what is done to every query and key on its way to attention.
#[derive(Debug, Clone)]
pub struct Turned {
    heads: Heads,
    norms: Option<[Normed; 2]>,
    angles: Option<Value>,
}

impl From<Heads> for Turned {
    fn from(heads: Heads) -> Self {
        Self { heads, norms: None, angles: None }
    }
}

impl Turned {
    /// Queries and keys are turned by these angles.
    #[must_use]
    pub fn by(self, angles: Value) -> Self {
        Self { angles: Some(angles), ..self }
    }

    /// Every query and every key is normalized first.
    #[must_use]
    pub fn normed(self, queries: Normed, keys: Normed) -> Self {
        Self { norms: Some([queries, keys]), ..self }
    }
}

/// Records one program.
#[derive(Debug)]
pub struct Builder<'b, 'l> {
    recorder: &'b mut Recorder<'l>,
    scope: String,
    phases: Vec<Phase<Value>>,
    /// Width of every value, and the name of the module that made it.
    values: Vec<(usize, String)>,
}

impl<'b, 'l> Builder<'b, 'l> {
    /// A program whose weights `recorder` plans.
    pub fn new(recorder: &'b mut Recorder<'l>) -> Self {
        Self { recorder, scope: String::new(), phases: Vec::new(), values: Vec::new() }
    }

    /// Where weights are planned.
    pub fn weights(&mut self) -> &mut Recorder<'l> {
        self.recorder
    }

    /// Names from here on are of modules within this one; of the model itself where it is empty.
    pub fn enter(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// Token embeddings, with those of positions where the model has them; traced under `name`.
    ///
    /// # Errors
    /// `Program` where the widths disagree.
    pub fn embed(
        &mut self,
        name: &str,
        table: Slot<Packed>,
        width: usize,
        positions: Option<Slot<Vec<f32>>>,
    ) -> Result<Value> {
        let name = self.full(name);
        let out = self.value(width, &name);
        self.push(name, Op::Embed { table, positions, angles: None, out })?;
        Ok(out)
    }

    /// Token embeddings, and the angles of the rows' positions: their cosines and their sines.
    ///
    /// # Errors
    /// `Program` where the widths disagree.
    pub fn embed_turned(
        &mut self,
        name: &str,
        table: Slot<Packed>,
        width: usize,
        rotary: Rotary,
    ) -> Result<[Value; 2]> {
        let name = self.full(name);
        let out = self.value(width, &name);
        let angles = self.value(rotary.width(), "rotary_emb");
        let slot = self.recorder.rotary(rotary);
        self.push(name, Op::Embed { table, positions: None, angles: Some((slot, angles)), out })?;
        Ok([out, angles])
    }

    /// `x`, normalized where there is a norm, times one matrix.
    ///
    /// # Errors
    /// As for the loader's tensors; `Program` for a value of another program.
    pub fn project(&mut self, x: Value, norm: impl Into<Option<Normed>>, dense: Dense) -> Result<Value> {
        let [out] = self.linear(x, norm.into(), [dense], false, None)?;
        Ok(out)
    }

    /// `x`, normalized where there is a norm, times several matrices in one phase.
    ///
    /// # Errors
    /// As for [`Builder::project`].
    pub fn project_each<const N: usize>(
        &mut self,
        x: Value,
        norm: impl Into<Option<Normed>>,
        all: [Dense; N],
    ) -> Result<[Value; N]> {
        self.linear(x, norm.into(), all, false, None)
    }

    /// `x`, normalized where there is a norm, times `gate` with its activation, times the product with `up`, value by value.
    ///
    /// # Errors
    /// As for [`Builder::project`].
    pub fn gated(
        &mut self,
        x: Value,
        norm: impl Into<Option<Normed>>,
        gate: Dense,
        up: Dense,
    ) -> Result<Value> {
        let [out, _] = self.linear(x, norm.into(), [gate, up], true, None)?;
        Ok(out)
    }

    /// `residual` plus `x` times a matrix.
    ///
    /// # Errors
    /// As for [`Builder::project`]; `Program` where the residual has another width.
    pub fn add(&mut self, residual: Value, x: Value, dense: Dense) -> Result<Value> {
        let [out] = self.linear(x, None, [dense], false, Some(residual))?;
        Ok(out)
    }

    /// Attention of `queries` to their sequence's or source's keys and values, the rows' own included.
    ///
    /// # Errors
    /// `Program` where the columns are not as wide as the heads.
    pub fn attend(
        &mut self,
        [queries, keys, values]: [Columns; 3],
        cache: Cache,
        heads: impl Into<Turned>,
        mask: Mask,
    ) -> Result<Value> {
        self.attention(queries, Some([keys, values]), cache, heads.into(), mask)
    }

    /// Attention of `queries` to what was kept of their sequence's source.
    ///
    /// # Errors
    /// As for [`Builder::attend`].
    pub fn attend_memory(&mut self, queries: Value, layer: usize, heads: Heads) -> Result<Value> {
        self.attention(queries.into(), None, Cache::Memory(layer), heads.into(), Mask::ALL)
    }

    /// Keeps keys and values of a source for a layer of the decoder.
    ///
    /// # Errors
    /// As for [`Builder::attend`].
    pub fn keep(&mut self, [keys, values]: [Value; 2], layer: usize, heads: Heads) -> Result<()> {
        let keys_values = [keys.into(), values.into()];
        let name = format!("{}.keep", parent(&self.values[keys.id].1));
        check_heads(&name, heads.kv_heads, heads.head_dim, keys_values)?;
        self.push(name, Op::Keep { keys_values, layer, heads })
    }

    /// A norm whose result is more than the input of the next phase.
    ///
    /// # Errors
    /// As for the loader's tensors.
    pub fn norm(&mut self, x: Value, norm: Normed) -> Result<Value> {
        let (name, norm) = self.plan_norm(norm, x.width)?;
        let out = self.value(x.width, &name);
        self.push(name, Op::Norm { x, norm, out })?;
        Ok(out)
    }

    /// Logits of the wanted rows: `x`, normalized where there is a norm, times the head; traced under `name`.
    ///
    /// # Errors
    /// As for the loader's tensors.
    pub fn head(
        &mut self,
        name: &str,
        x: Value,
        norm: impl Into<Option<Normed>>,
        linear: Slot<Linear>,
    ) -> Result<()> {
        let norm = norm.into().map(|norm| self.plan_norm(norm, x.width)).transpose()?;
        let name = self.full(name);
        self.push(name, Op::Head { x, norm, linear })
    }

    /// The program, with a buffer for every value.
    ///
    /// # Errors
    /// `Program` for a phase that reads what it writes or what was written over, or layers of the cache that do not follow each
    /// other.
    pub fn finish(self) -> Result<Program> {
        plan::assign(self.phases, self.values.len())
    }

    fn attention(
        &mut self,
        queries: Columns,
        new: Option<[Columns; 2]>,
        cache: Cache,
        turned: Turned,
        mask: Mask,
    ) -> Result<Value> {
        let Turned { heads, norms, angles } = turned;
        let name = format!("{}.heads", parent(&self.values[queries.of.id].1));
        if heads.kv_heads == 0 || !heads.heads.is_multiple_of(heads.kv_heads) {
            let expected = format!("a divisor of {} heads of queries", heads.heads);
            return Err(wrong(&name, expected, format!("{} heads of keys", heads.kv_heads)));
        }
        if mask.bias.is_some() && heads.group() > 1 {
            return Err(wrong(&name, "a head of keys per head with a bias".to_owned(), format!("{heads:?}")));
        }
        check_heads(&name, heads.heads, heads.head_dim, [queries])?;
        check_heads(&name, heads.kv_heads, heads.head_dim, new.into_iter().flatten())?;
        if let Some(angles) = angles.filter(|angles| angles.width > heads.head_dim) {
            let expected = format!("angles for at most {} values", heads.head_dim);
            return Err(wrong(&name, expected, angles.width.to_string()));
        }
        let mut plan = |norm: Normed| self.plan_norm(norm, heads.head_dim);
        let norms = match norms {
            Some([queries, keys]) => Some([plan(queries)?, plan(keys)?]),
            None => None,
        };
        let out = self.value(queries.width, &name);
        let gather = Vec::new();
        self.push(name, Op::Attend { queries, new, cache, heads, norms, angles, mask, out, gather })?;
        Ok(out)
    }

    fn linear<const N: usize>(
        &mut self,
        x: Value,
        norm: Option<Normed>,
        all: [Dense; N],
        gated: bool,
        residual: Option<Value>,
    ) -> Result<[Value; N]> {
        let norm = norm.map(|norm| self.plan_norm(norm, x.width)).transpose()?;
        let mut name = self.full(&all[0].name);
        if residual.is_some() {
            name = format!("{}.residual", parent(&name));
        } else if all[0].activation.is_some() {
            name = format!("{}.act", parent(&name));
        }
        let widths = all.each_ref().map(|dense| dense.outputs);
        if gated && widths.iter().any(|&width| width != widths[0]) {
            return Err(wrong(&name, format!("gates of {} values", widths[0]), format!("{widths:?}")));
        }
        if let Some(r) = residual.filter(|r| r.width != widths[0]) {
            return Err(wrong(&name, format!("a residual of {} values", widths[0]), r.width.to_string()));
        }
        let mut products = Vec::with_capacity(N);
        for dense in all {
            let module = self.full(&dense.name);
            let shape = [dense.outputs, x.width];
            let linear =
                self.recorder.linear(&module, shape, dense.orientation, dense.bias, dense.delicate)?;
            let out = self.value(dense.outputs, &module);
            let activation = dense.activation.unwrap_or(Activation::Linear);
            products.push(Product { name: module, linear, activation, round_output: false, out });
        }
        let outs = std::array::from_fn(|i| products[i].out);
        self.push(name, Op::Linear { x, norm, products, gated, residual, packed_before: false })?;
        Ok(outs)
    }

    fn plan_norm(&mut self, norm: Normed, width: usize) -> Result<(String, Slot<Norm>)> {
        let name = self.full(&norm.name);
        let slot = self.recorder.norm(&name, norm.kind, norm.eps, norm.scale, width)?;
        Ok((name, slot))
    }

    /// Name of a module in the present scope.
    fn full(&self, name: &str) -> String {
        if self.scope.is_empty() { name.to_owned() } else { format!("{}.{name}", self.scope) }
    }

    fn value(&mut self, width: usize, name: &str) -> Value {
        self.values.push((width, name.to_owned()));
        Value { id: self.values.len() - 1, width }
    }

    fn push(&mut self, name: String, op: Op<Value>) -> Result<()> {
        for value in op.reads() {
            if self.values.get(value.id).is_none_or(|(width, _)| *width != value.width) {
                return Err(wrong(&name, "values of its own program".to_owned(), format!("{value:?}")));
            }
        }
        self.phases.push(Phase { name, op, rows: Which::All });
        Ok(())
    }
}

/// Holds columns to as many heads of this width.
fn check_heads(
    name: &str,
    heads: usize,
    head_dim: usize,
    parts: impl IntoIterator<Item = Columns>,
) -> Result<()> {
    for part in parts {
        if part.width != heads * head_dim || part.from + part.width > part.of.width {
            let expected = format!("{heads} heads of {head_dim} values");
            return Err(wrong(name, expected, format!("{part:?}")));
        }
    }
    Ok(())
}

/// Name of the module that holds the one of this name.
fn parent(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(parent, _)| parent)
}

/// The error of a record that cannot be run.
pub(super) fn wrong(phase: &str, expected: String, got: String) -> Error {
    Error::Program { phase: phase.to_owned(), expected, got }
}
