//! What encoder and decoder have in common: the views of a step, and the sublayers of a block, each from one residual to the
//! other.
//!
//! Letters: `M` rows of the step, `D` width, `I` heads side by side, `F` width of the feed-forward layer. A sublayer ends
//! with a barrier.

use std::fmt::{Arguments, Display, Formatter};

use super::config::Config;
use super::weights::{Attention, FeedForward};
use crate::error::Result;
use crate::kernels::Activation;
use crate::layers::attention::{Keys, KeysValues, Look};
use crate::layers::linear::Then;
use crate::layers::norm::PRIVATE_ROWS;
use crate::layers::{self, Buffer, Context, Rows, Runtime, stride};
use crate::models::step::{Trace, show};
use crate::team::{Member, Stop};

/// Activations of one step at a time, reused.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    residual: [Buffer; 2],
    normed: Buffer,
    qkv: [Buffer; 3],
    attended: Buffer,
    inner: [Buffer; 2],
    members: Buffer,
    packed_rows: Buffer,
}

/// One step's views of the buffers.
#[derive(Clone, Copy)]
pub(super) struct Views<'a> {
    /// `M × D`; sublayers lead from one to the other and back.
    pub(super) x: [Rows<'a>; 2],
    /// `M × D`.
    pub(super) normed: Rows<'a>,
    /// `M × I` each.
    pub(super) qkv: [Rows<'a>; 3],
    /// `M × I`.
    pub(super) attended: Rows<'a>,
    /// `M × F` each: the gate, and what it lets through.
    pub(super) inner: [Rows<'a>; 2],
    /// One row of working memory per member: its normed rows, then its scratch.
    pub(super) members: Rows<'a>,
    /// One row of common memory for packed inputs of products.
    pub(super) packed_rows: Rows<'a>,
}

impl Buffers {
    /// Views of `rows` rows.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn views(&mut self, c: &Config, runtime: &Runtime, rows: usize) -> Result<Views<'_>> {
        let (d, inner) = (c.d_model, c.inner_dim());
        let inputs = d.max(inner).max(c.d_ff);
        let scratch = layers::scratch(runtime, inputs, c.d_kv);
        let [x, y] = &mut self.residual;
        let [q, k, v] = &mut self.qkv;
        let [gate, up] = &mut self.inner;
        Ok(Views {
            x: [x.rows(rows, d)?, y.rows(rows, d)?],
            normed: self.normed.rows(rows, d)?,
            qkv: [q.rows(rows, inner)?, k.rows(rows, inner)?, v.rows(rows, inner)?],
            attended: self.attended.rows(rows, inner)?,
            inner: [gate.rows(rows, c.d_ff)?, up.rows(if c.is_gated_act { rows } else { 0 }, c.d_ff)?],
            members: self.members.rows(runtime.threads, PRIVATE_ROWS * stride(d) + scratch)?,
            packed_rows: self.packed_rows.rows(1, layers::packed_rows(rows, inputs))?,
        })
    }
}

/// One member's place in a step.
pub(super) struct Place<'a> {
    pub(super) ctx: Context<'a>,
    pub(super) views: Views<'a>,
    pub(super) activation: Activation,
    pub(super) trace: Option<&'a Trace>,
}

/// Name of a sublayer, as in the checkpoint.
#[derive(Clone, Copy)]
pub(super) struct Layer {
    pub(super) stack: &'static str,
    pub(super) block: usize,
    pub(super) layer: usize,
}

impl Display for Layer {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.block.{}.layer.{}", self.stack, self.block, self.layer)
    }
}

/// What to read, and where the result with its residual goes.
pub(super) type Between<'a> = [Rows<'a>; 2];

impl<'a> Place<'a> {
    pub(super) fn new(
        member: &'a Member<'a>,
        runtime: &'a Runtime,
        views: Views<'a>,
        c: &Config,
        trace: Option<&'a Trace>,
    ) -> Self {
        // SAFETY: the row holds the member's normed rows first, and its scratch after them.
        let scratch = unsafe { views.members.at(member.index(), 0).add(PRIVATE_ROWS * stride(c.d_model)) };
        Self {
            ctx: Context { member, runtime, scratch, packed_rows: views.packed_rows },
            views,
            activation: c.dense_act_fn,
            trace,
        }
    }

    /// Rows that are this member's alone, for norms of a few.
    pub(super) fn private(&self) -> Rows<'a> {
        self.views.members.window(self.ctx.member.index(), PRIVATE_ROWS, self.views.normed.width())
    }

    /// Shows rows under a name, where a trace wants them.
    pub(super) fn show(&self, name: Arguments<'_>, rows: Rows<'_>) -> Result<(), Stop> {
        show(&self.ctx, self.trace, name, rows)
    }

    /// Attention of the rows to their own sequences or sources, whose keys and values they add first.
    pub(super) fn self_attention(
        &self,
        w: &Attention,
        keys: Keys<'_>,
        look: Look<'_>,
        [from, to]: Between<'_>,
        name: Layer,
    ) -> Result<(), Stop> {
        let (ctx, views, [q, k, v]) = (&self.ctx, &self.views, self.views.qkv);
        let x = w.layer_norm.prepare(ctx, from, views.normed, self.private(), &w.q)?; // (M, D)
        self.show(format_args!("{name}.layer_norm"), x.rows())?;
        w.q.forward(ctx, x, q, Then::NOTHING); // (M, I)
        let x = w.k.prepare_again(ctx, x)?;
        w.k.forward(ctx, x, k, Then::NOTHING); // (M, I)
        let x = w.v.prepare_again(ctx, x)?;
        w.v.forward(ctx, x, v, Then::NOTHING); // (M, I)
        ctx.member.barrier()?;
        let new = KeysValues { keys: (k, 0), values: (v, 0) };
        w.heads.append_and_attend(ctx, keys, look, new, q, views.attended)?; // (M, I)
        self.finish_attention(w, [from, to], format_args!("{name}.SelfAttention"))
    }

    /// Attention of the rows to the memories of their sources.
    pub(super) fn cross_attention(
        &self,
        w: &Attention,
        keys: Keys<'_>,
        [from, to]: Between<'_>,
        name: Layer,
    ) -> Result<(), Stop> {
        let (ctx, views) = (&self.ctx, &self.views);
        let x = w.layer_norm.prepare(ctx, from, views.normed, self.private(), &w.q)?; // (M, D)
        self.show(format_args!("{name}.layer_norm"), x.rows())?;
        w.q.forward(ctx, x, views.qkv[0], Then::NOTHING); // (M, I)
        ctx.member.barrier()?;
        w.heads.attend(ctx, keys, Look::ALL, views.qkv[0], views.attended); // (M, I)
        self.finish_attention(w, [from, to], format_args!("{name}.EncDecAttention"))
    }

    /// From what the heads attended to, still to be waited for, to the sublayer's result.
    fn finish_attention(
        &self,
        w: &Attention,
        [from, to]: Between<'_>,
        name: Arguments<'_>,
    ) -> Result<(), Stop> {
        let (ctx, attended) = (&self.ctx, self.views.attended);
        ctx.member.barrier()?;
        self.show(format_args!("{name}.heads"), attended)?;
        let attended = w.o.prepare(ctx, attended)?;
        w.o.forward(ctx, attended, to, Then { residual: Some(from), ..Then::NOTHING }); // (M, D)
        ctx.member.barrier()?;
        self.show(format_args!("{name}.residual"), to)
    }

    /// The feed-forward sublayer.
    pub(super) fn feed_forward(
        &self,
        w: &FeedForward,
        [from, to]: Between<'_>,
        name: Layer,
    ) -> Result<(), Stop> {
        let (ctx, views, [gate, up]) = (&self.ctx, &self.views, self.views.inner);
        let x = w.layer_norm.prepare(ctx, from, views.normed, self.private(), &w.gate)?; // (M, D)
        self.show(format_args!("{name}.layer_norm"), x.rows())?;
        let then = Then { activation: self.activation, feeds: w.up.is_none(), residual: None };
        match &w.up {
            None => w.gate.forward(ctx, x, gate, then), // (M, F)
            Some(wi) if wi.takes(ctx, x) => {
                for piece in w.gate.pieces(ctx, x) {
                    w.gate.product(ctx, &piece, x, gate, then); // (M, F)
                    wi.product(ctx, &piece, x, up, Then::NOTHING); // (M, F)
                    gate.multiply(ctx, up, &piece);
                }
            }
            Some(wi) => {
                w.gate.forward(ctx, x, gate, then); // (M, F)
                // A barrier: whoever multiplies sees the gate.
                let x = wi.prepare_again(ctx, x)?;
                for piece in wi.pieces(ctx, x) {
                    wi.product(ctx, &piece, x, up, Then::NOTHING); // (M, F)
                    gate.multiply(ctx, up, &piece);
                }
            }
        }
        ctx.member.barrier()?;
        self.show(format_args!("{name}.DenseReluDense.act"), gate)?;
        let gate = w.wo.prepare(ctx, gate)?;
        w.wo.forward(ctx, gate, to, Then { residual: Some(from), ..Then::NOTHING }); // (M, D)
        ctx.member.barrier()?;
        self.show(format_args!("{name}.DenseReluDense.residual"), to)
    }
}
