//! A linear layer: packed weights, a bias, and what is fused behind the product.

use std::ops::Range;

use super::{Context, Rows};
use crate::kernels::{Activation, Epilogue, Format, Matmul, WIDTH};
use crate::packed::{Packed, Storage};
use crate::team::Pieces;

/// Up to this many rows every table multiplies straight from the stream of weights.
const STREAMED: usize = 4;
/// Panels of a claimed piece, at least: as many as a table takes side by side.
const PIECE: usize = 4;

/// `y = x · W + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Packed,
    /// Padded to whole panels; empty for none.
    bias: Vec<f32>,
}

/// What follows a product.
#[derive(Debug, Clone, Copy)]
pub struct Then<'a> {
    /// Applied after the bias.
    pub activation: Activation,
    /// Added last; another buffer than the output.
    pub residual: Option<Rows<'a>>,
    /// Whether the result feeds another product and is rounded where products are formed in bf16.
    pub feeds: bool,
}

impl Then<'_> {
    /// Nothing follows.
    pub const NOTHING: Self = Self { activation: Activation::Linear, residual: None, feeds: false };
}

impl Linear {
    /// A layer of these weights; `bias` holds one value per output, or none.
    ///
    /// # Panics
    /// When the bias has another length.
    pub fn new(weight: Packed, mut bias: Vec<f32>) -> Self {
        assert!(bias.is_empty() || bias.len() == weight.outputs(), "one bias per output");
        if !bias.is_empty() {
            bias.resize(weight.panels() * WIDTH, 0.0);
        }
        Self { weight, bias }
    }

    /// The weights.
    pub fn weight(&self) -> &Packed {
        &self.weight
    }

    /// This member's pieces of the panels, for a product with `rows` rows. Pieces are claimed where a product only streams
    /// the weights; many rows are packed once per piece, so there a member has one.
    pub fn pieces<'a>(&self, ctx: &Context<'a>, rows: usize) -> Pieces<'a> {
        let panels = self.weight.panels();
        if rows <= STREAMED { ctx.member.pieces(panels, PIECE) } else { ctx.member.one_piece(panels) }
    }

    /// The outputs of a piece.
    pub fn columns(&self, panels: &Range<usize>) -> Range<usize> {
        panels.start * WIDTH..(panels.end * WIDTH).min(self.weight.outputs())
    }

    /// Writes this member's pieces of the outputs of every row; others may be read behind a barrier only.
    ///
    /// Bits of a row do not depend on the other rows or on the number of members.
    pub fn forward(&self, ctx: &Context<'_>, x: Rows<'_>, out: Rows<'_>, then: Then<'_>) {
        for panels in self.pieces(ctx, x.rows()) {
            self.product(ctx, panels, x, out, then);
        }
    }

    /// Writes one piece of the outputs of every row.
    pub fn product(
        &self,
        ctx: &Context<'_>,
        panels: Range<usize>,
        x: Rows<'_>,
        out: Rows<'_>,
        then: Then<'_>,
    ) {
        if panels.is_empty() || x.rows() == 0 {
            return;
        }
        assert!(x.width() == self.weight.inputs() && out.width() == self.weight.outputs(), "widths agree");
        assert!(x.rows() == out.rows(), "a row out for a row in");
        let first = panels.start * WIDTH;
        let format = if ctx.runtime.dot && self.weight.storage() == Storage::Bf16 {
            Format::Bf16Dot
        } else {
            self.weight.format()
        };
        let epilogue = Epilogue {
            bias: if self.bias.is_empty() { std::ptr::null() } else { self.bias[first..].as_ptr() },
            activation: then.activation,
            residual: then.residual.map_or(std::ptr::null(), |r| {
                assert!(
                    r.rows() == x.rows() && r.width() == out.width(),
                    "the residual has the output's shape"
                );
                r.at(0, first).cast_const()
            }),
            residual_stride: then.residual.map_or(0, |r| r.stride()),
            round: then.feeds && ctx.runtime.bf16,
        };
        let job = Matmul {
            a: x.at(0, 0),
            a_stride: x.stride(),
            m: x.rows(),
            k: x.width(),
            w: self.weight.panel(panels.start),
            panels: panels.len(),
            c: out.at(0, first),
            c_stride: out.stride(),
            epilogue,
            scratch: ctx.scratch,
            tuning: ctx.runtime.tuning,
            finish: ctx.runtime.kernels.finish(),
        };
        // SAFETY: the buffers hold `rows` rows padded to whole panels, inputs to an even number; these panels' outputs are
        // this member's alone, and the scratch, too.
        unsafe { ctx.runtime.kernels.matmul(format, &job) }
    }
}
