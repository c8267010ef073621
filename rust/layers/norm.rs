//! Normalization of rows, each by itself.

use std::ops::Range;

use super::linear::{Linear, Prepared};
use super::{Context, Rows};
use crate::kernels;
use crate::team::Stop;

/// Rows up to which every member normalizes all of them into memory of its own: cheaper than a barrier.
pub const PRIVATE_ROWS: usize = 8;

/// Which statistics a row is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Mean and variance, with a bias (GPT-2).
    Layer,
    /// Root mean square, without a bias (T5).
    Rms,
}

/// A normalization layer.
#[derive(Debug, Clone)]
pub struct Norm {
    /// Statistics.
    pub kind: NormKind,
    /// Scale by column.
    pub weight: Vec<f32>,
    /// Shift by column; empty for none.
    pub bias: Vec<f32>,
    /// Added to the variance.
    pub eps: f32,
}

impl Norm {
    /// Normalizes row `r` of `x` into row `r` of `out`; the result feeds a product.
    fn row(&self, ctx: &Context<'_>, x: Rows<'_>, r: usize, out: Rows<'_>) {
        assert!(x.width() == self.weight.len() && out.width() == x.width(), "widths agree");
        assert!(r < x.rows() && r < out.rows(), "rows exist");
        // SAFETY: the rows are padded to whole panels; the output row is this member's alone.
        unsafe { self.apply(ctx, x.at(r, 0), out.at(r, 0), ctx.runtime.bf16) }
    }

    /// Normalizes one head; what it becomes is not yet the input of a product.
    ///
    /// # Safety
    /// `x` has `d` floats, `out` room for as many up to whole panels.
    pub(super) unsafe fn head(&self, ctx: &Context<'_>, x: *const f32, d: usize, out: *mut f32) {
        assert!(d == self.weight.len(), "widths agree");
        // SAFETY: handed on from the caller.
        unsafe { self.apply(ctx, x, out, false) }
    }

    /// Normalizes as many floats as there are weights.
    ///
    /// # Safety
    /// As for [`Norm::head`].
    unsafe fn apply(&self, ctx: &Context<'_>, x: *const f32, out: *mut f32, round: bool) {
        let job = kernels::Norm {
            x,
            out,
            n: self.weight.len(),
            weight: self.weight.as_ptr(),
            bias: if self.bias.is_empty() { std::ptr::null() } else { self.bias.as_ptr() },
            eps: self.eps,
            round,
        };
        // SAFETY: handed on from the caller.
        unsafe {
            match self.kind {
                NormKind::Layer => ctx.runtime.kernels.layer_norm(&job),
                NormKind::Rms => ctx.runtime.kernels.rms_norm(&job),
            }
        }
    }

    /// Normalizes every row and makes the result ready for `layer`: each member's own `private` rows for up to
    /// [`PRIVATE_ROWS`], otherwise `shared` ones behind a barrier.
    ///
    /// # Errors
    /// [`Stop`] from the barrier.
    pub fn prepare<'a>(
        &self,
        ctx: &Context<'_>,
        x: Rows<'_>,
        shared: Rows<'a>,
        private: Rows<'a>,
        layer: &Linear,
    ) -> Result<Prepared<'a>, Stop> {
        let normalize = |rows: Range<usize>, out: Rows<'_>| {
            for r in rows {
                self.row(ctx, x, r, out);
            }
        };
        if x.rows() <= PRIVATE_ROWS {
            let own = private.first(x.rows());
            normalize(0..x.rows(), own);
            return layer.prepare(ctx, own);
        }
        let out = shared.first(x.rows());
        layer.prepare_made(ctx, out, |rows| normalize(rows, out))
    }

    /// Normalizes this member's share of the rows.
    pub fn forward(&self, ctx: &Context<'_>, x: Rows<'_>, out: Rows<'_>) {
        for r in ctx.member.share(x.rows()) {
            self.row(ctx, x, r, out);
        }
    }
}
