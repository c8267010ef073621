//! Token embeddings, read from the same packed matrix that a tied head multiplies with.

use super::rotary::Rotary;
use super::{Context, Rows};
use crate::packed::Packed;

/// What a segment appends to its sequence.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// Token ids, each below the vocabulary size.
    Tokens(&'a [u32]),
    /// Embedding rows, `T × D` row-major, to which positions are added.
    Embeddings(&'a [f32]),
}

impl Input<'_> {
    /// Number of rows, in a model of this width.
    pub fn rows(&self, width: usize) -> usize {
        match self {
            Self::Tokens(ids) => ids.len(),
            Self::Embeddings(e) => e.len() / width,
        }
    }
}

/// Rows of the step that come from one segment.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// First row of the step.
    pub row: usize,
    /// Position of the first row in its sequence.
    pub position: usize,
    /// Whether the sequence is longer than the border of its rotary positions.
    pub is_long: bool,
    /// Tokens or embedding rows.
    pub input: Input<'a>,
}

/// Writes the angles of this member's share of the rows.
pub fn angles<'a>(
    ctx: &Context<'_>,
    rotary: &Rotary,
    sources: impl Iterator<Item = Source<'a>>,
    width: usize,
    out: Rows<'_>,
) {
    let mine = ctx.member.share(out.rows());
    for s in sources {
        for i in mine.start.max(s.row)..mine.end.min(s.row + s.input.rows(width)) {
            // SAFETY: row `i` is this member's alone until the next barrier.
            rotary.angles(s.position + i - s.row, s.is_long, unsafe { out.row_mut(i) });
        }
    }
}

/// Writes this member's share of the rows: token embedding plus position embedding.
///
/// `positions` holds one row of the model's width per position, or nothing. The sources cover the rows one after the other.
pub fn forward<'a>(
    ctx: &Context<'_>,
    table: &Packed,
    positions: &[f32],
    sources: impl Iterator<Item = Source<'a>>,
    out: Rows<'_>,
) {
    let width = out.width();
    let mine = ctx.member.share(out.rows());
    for s in sources {
        for i in mine.start.max(s.row)..mine.end.min(s.row + s.input.rows(width)) {
            // SAFETY: row `i` is this member's alone until the next barrier.
            let row = unsafe { out.row_mut(i) };
            let t = i - s.row;
            match s.input {
                Input::Tokens(ids) => table.gather(ids[t] as usize, row),
                Input::Embeddings(e) => row.copy_from_slice(&e[t * width..(t + 1) * width]),
            }
            if !positions.is_empty() {
                let p = s.position + t;
                for (x, y) in row.iter_mut().zip(&positions[p * width..(p + 1) * width]) {
                    *x += y;
                }
            }
        }
    }
}
