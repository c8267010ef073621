//! Where a step's logits go.

use crate::layers::linear::{Epilogue, Linear, Prepared};
use crate::layers::{Context, Rows};

/// The caller's `W × V` logits without padding, each member writing pieces of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogitsWriter(*mut f32);

// SAFETY: the pointer is written by each member in pieces of its own.
unsafe impl Send for LogitsWriter {}
// SAFETY: as above.
unsafe impl Sync for LogitsWriter {}

impl LogitsWriter {
    /// The logits of a step that lasts no longer than `logits` is borrowed.
    pub(super) fn new(logits: &mut [f32]) -> Self {
        Self(logits.as_mut_ptr())
    }

    /// Writes this member's pieces of the head's product, by way of `padded`.
    pub(super) fn write(self, ctx: &Context<'_>, head: &Linear, x: Prepared<'_>, padded: Rows<'_>) {
        let vocab = head.weight().outputs();
        for piece in head.pieces(ctx, x) {
            head.product(ctx, &piece, x, padded, Epilogue::NOTHING);
            let columns = piece.columns;
            for r in piece.rows {
                // SAFETY: this member has just written this piece; the caller's logits have a row of `V` per wanted row.
                unsafe {
                    let from = padded.at(r, columns.start);
                    std::ptr::copy_nonoverlapping(from, self.0.add(r * vocab + columns.start), columns.len());
                }
            }
        }
    }
}
