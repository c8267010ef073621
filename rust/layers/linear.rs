//! A linear layer: packed weights, a bias, and what is fused behind the product.

use std::ops::Range;

use super::{Context, Rows, Runtime};
use crate::kernels::{
    Activation, EpilogueArgs, FEW_ROWS, Format, InputLayout, Matmul, Numbers, Pack, Scales, WIDTH,
};
use crate::packed::Packed;
use crate::team::{Stop, share};

/// Pairs of panels of a claimed piece, at least: as many as a table takes side by side.
const PIECE: usize = 2;
/// Multiply-adds of a piece, at most: a member that works on it sees no cancel meanwhile.
const LONG: usize = 1 << 31;

/// What a member does of a product at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Tiles of the packed rows; none where rows are multiplied as they lie, all at once.
    tiles: Range<usize>,
    /// The rows of those tiles.
    pub rows: Range<usize>,
    /// Panels of outputs, from the first of a pair on.
    panels: Range<usize>,
    /// The outputs of those panels.
    pub columns: Range<usize>,
}

/// `y = x · W + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Packed,
    /// Padded to whole panels; empty for none.
    bias: Vec<f32>,
}

/// Rows as the products of a layer read them, made by [`Linear::prepare`]; good until the next one is made, or until attention
/// takes the same working memory.
#[derive(Debug, Clone, Copy)]
pub struct Prepared<'a> {
    rows: Rows<'a>,
    form: InputLayout,
    at: *const f32,
}

impl<'a> Prepared<'a> {
    /// The rows that were prepared.
    pub fn rows(&self) -> Rows<'a> {
        self.rows
    }
}

/// Packs some tiles of the rows, which no other member touches.
fn pack(ctx: &Context<'_>, x: Rows<'_>, form: InputLayout, tiles: Range<usize>, out: *mut f32) {
    let (a, m, k) = (x.at(0, 0), x.rows(), x.width());
    let job = Pack { a, a_stride: x.stride(), m, k, form, tiles, out };
    // SAFETY: the rows are padded to an even number; the callers give room for the words.
    unsafe { ctx.runtime.kernels.pack(&job) }
}

/// What follows a product.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue<'a> {
    /// Applied after the bias.
    pub activation: Activation,
    /// Added last; another buffer than the output.
    pub residual: Option<Rows<'a>>,
    /// Whether the result feeds another product and is rounded where products are formed in bf16.
    pub round_output: bool,
}

impl Epilogue<'_> {
    /// Nothing follows.
    pub const NOTHING: Self = Self { activation: Activation::Linear, residual: None, round_output: false };
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

    /// The weights, to be let go of.
    pub fn weight_mut(&mut self) -> &mut Packed {
        &mut self.weight
    }

    /// A value per output, and zeros up to whole panels; empty for none.
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// What numbers its products multiply.
    pub fn numbers(&self, runtime: &Runtime) -> Numbers {
        let (format, group) = (self.weight.format(runtime.dot), self.weight.weight_type().group());
        runtime.kernels.form(format, 1, group).words.numbers()
    }

    /// How this layer's products are formed.
    fn format(&self, ctx: &Context<'_>) -> Format {
        self.weight.format(ctx.runtime.dot)
    }

    /// How this layer's products want so many rows.
    fn form(&self, ctx: &Context<'_>, rows: usize) -> InputLayout {
        ctx.runtime.kernels.form(self.format(ctx), rows, self.weight.weight_type().group())
    }

    /// Makes `x` ready for this layer: as it lies, packed by every member for itself where rows are few, or packed by all
    /// members together, behind a barrier. Either memory holds the rows of one call at a time: the next may be made behind a
    /// barrier after the last product of this one, and every member must make it.
    ///
    /// # Errors
    /// [`Stop`] from the barrier.
    pub fn prepare<'a>(&self, ctx: &Context<'_>, x: Rows<'a>) -> Result<Prepared<'a>, Stop> {
        assert!(x.width() == self.weight.inputs(), "widths agree");
        if x.rows() > FEW_ROWS {
            return self.pack_together(ctx, x, |_| ());
        }
        let form = self.form(ctx, x.rows());
        if form.tiles == 0 {
            return Ok(Prepared { rows: x, form, at: x.at(0, 0) });
        }
        // SAFETY: behind the product's scratch there is room for this many rows.
        let out = unsafe { ctx.scratch.add(ctx.runtime.tuning.scratch()) };
        pack(ctx, x, form, 0..form.tiles, out);
        Ok(Prepared { rows: x, form, at: out })
    }

    /// As [`Linear::prepare`] for rows that are still to be made: `make` fills those of its range, each row by one of the members;
    /// where members pack together, the one that packs it, while it is near.
    ///
    /// # Errors
    /// [`Stop`] from the barrier.
    pub fn prepare_made<'a>(
        &self,
        ctx: &Context<'_>,
        x: Rows<'a>,
        make: impl Fn(Range<usize>),
    ) -> Result<Prepared<'a>, Stop> {
        if x.rows() > FEW_ROWS {
            return self.pack_together(ctx, x, make);
        }
        make(ctx.member.share(x.rows()));
        ctx.member.barrier()?;
        self.prepare(ctx, x)
    }

    /// Makes and packs this member's share of the tiles; then a barrier.
    fn pack_together<'a>(
        &self,
        ctx: &Context<'_>,
        x: Rows<'a>,
        make: impl Fn(Range<usize>),
    ) -> Result<Prepared<'a>, Stop> {
        assert!(x.width() == self.weight.inputs(), "widths agree");
        let form = self.form(ctx, x.rows());
        assert!(x.rows() * form.words(x.width()) <= ctx.packed_rows.stride(), "room for the packed rows");
        let out = ctx.packed_rows.at(0, 0);
        for tile in ctx.member.share(form.tiles) {
            make(form.rows(x.rows(), tile));
            pack(ctx, x, form, tile..tile + 1, out);
        }
        ctx.member.barrier()?;
        Ok(Prepared { rows: x, form, at: out })
    }

    /// Whether what another layer was prepared for serves this one, too.
    pub fn takes(&self, ctx: &Context<'_>, x: Prepared<'_>) -> bool {
        self.form(ctx, x.rows.rows()) == x.form
    }

    /// What another layer was prepared for as this one reads it: the same, or made again behind a barrier where it is not.
    ///
    /// # Errors
    /// [`Stop`] from a barrier.
    pub fn prepare_again<'a>(&self, ctx: &Context<'_>, x: Prepared<'a>) -> Result<Prepared<'a>, Stop> {
        if self.takes(ctx, x) {
            return Ok(x);
        }
        ctx.member.barrier()?;
        self.prepare(ctx, x.rows)
    }

    /// This member's pieces of a product, claimed as it goes: whole pairs of panels under its group's rows. Long ones come in
    /// parts, and none comes once the step is cancelled.
    pub fn pieces<'a>(&self, ctx: &Context<'a>, x: Prepared<'_>) -> impl Iterator<Item = Piece> + use<'a> {
        let (panels, outputs) = (self.weight.panels(), self.weight.outputs());
        let (rows, form, member) = (x.rows.rows(), x.form, ctx.member);
        let (pairs, groups) = (panels.div_ceil(2), ctx.groups(rows));
        let part = (LONG / (2 * WIDTH * rows * self.weight.inputs()).max(1)).max(PIECE);
        let parts = member.pieces(groups * pairs, PIECE).flat_map(move |piece| {
            let end = piece.end;
            piece.step_by(part).map(move |start| start..(start + part).min(end))
        });
        parts.take_while(|_| !member.cancelled()).map(move |piece| {
            // As many members to each group: a member's share lies within one, and so does a piece of it.
            let (group, first) = (piece.start / pairs, piece.start % pairs);
            let tiles = share(form.tiles, group, groups);
            let panels = 2 * first..(2 * (first + piece.len())).min(panels);
            let rows = if form.tiles > 0 { form.of_tiles(rows, tiles.clone()) } else { 0..rows };
            let columns = panels.start * WIDTH..(panels.end * WIDTH).min(outputs);
            Piece { tiles, rows, panels, columns }
        })
    }

    /// Writes this member's pieces of the outputs; others may be read behind a barrier only.
    ///
    /// Bits of a row do not depend on the other rows or on the number of members.
    pub fn forward(&self, ctx: &Context<'_>, x: Prepared<'_>, out: Rows<'_>, then: Epilogue<'_>) {
        for piece in self.pieces(ctx, x) {
            self.product(ctx, &piece, x, out, then);
        }
    }

    /// Writes one piece of the outputs.
    pub fn product(
        &self,
        ctx: &Context<'_>,
        piece: &Piece,
        x: Prepared<'_>,
        out: Rows<'_>,
        then: Epilogue<'_>,
    ) {
        let (rows, panels) = (x.rows, &piece.panels);
        if panels.is_empty() || rows.rows() == 0 {
            return;
        }
        assert!(rows.width() == self.weight.inputs() && out.width() == self.weight.outputs(), "widths agree");
        assert!(rows.rows() == out.rows(), "a row out for a row in");
        assert!(
            panels.start.is_multiple_of(2) && panels.end <= self.weight.panels(),
            "whole pairs of panels"
        );
        assert!(piece.tiles.end <= x.form.tiles, "tiles of these rows");
        let (first, format) = (panels.start * WIDTH, self.format(ctx));
        assert!(self.takes(ctx, x), "an input for this layer");
        let epilogue = EpilogueArgs {
            bias: if self.bias.is_empty() { std::ptr::null() } else { self.bias[first..].as_ptr() },
            activation: then.activation,
            residual: then.residual.map_or(std::ptr::null(), |r| {
                assert!(
                    r.rows() == rows.rows() && r.width() == out.width(),
                    "the residual has the output's shape"
                );
                r.at(0, first).cast_const()
            }),
            residual_stride: then.residual.map_or(0, |r| r.stride()),
            round: then.round_output && ctx.runtime.bf16,
            scales: Scales::NONE,
        };
        let job = Matmul {
            a: x.at,
            a_stride: rows.stride(),
            m: rows.rows(),
            tile: piece.tiles.start,
            tiles: piece.tiles.len(),
            k: rows.width(),
            group: self.weight.weight_type().group(),
            w: self.weight.panel(panels.start),
            panels: panels.len(),
            c: out.at(0, first),
            c_stride: out.stride(),
            epilogue,
            scratch: ctx.scratch,
            tuning: ctx.runtime.tuning,
            finish: ctx.runtime.kernels.finish(),
        };
        // Pieces come from `pieces`, which gives each part of a product to one member, and nothing else in the phase of a program
        // touches the output (`program::Builder::finish` proves that); tests that call a layer by itself keep to the same.
        // SAFETY: the buffers hold `rows` rows padded to whole panels, inputs to an even number, or tiles of them; the piece's
        // outputs are this member's alone, as said, and the scratch, too.
        unsafe { ctx.runtime.kernels.matmul(format, &job) }
    }
}
