//! Rows of activations: views that the members of a region share, and the memory behind them.

use std::marker::PhantomData;

use super::linear::Piece;
use super::runtime::Context;
use crate::arena::Arena;
use crate::error::{Error, Result};
use crate::kernels::WIDTH;

/// Floats from one row of a buffer to the next: whole panels, and never a multiple of a kilobyte, so that rows do not
/// meet in the same cache sets.
pub fn stride(width: usize) -> usize {
    let s = width.next_multiple_of(WIDTH);
    if s.is_multiple_of(256) { s + WIDTH } else { s }
}

/// Floats of `rows` rows of a buffer.
pub fn floats(rows: usize, width: usize) -> usize {
    rows * stride(width)
}

/// Memory for rows of activations, reused from step to step; all of it was written once.
#[derive(Debug, Default)]
pub struct Buffer {
    memory: Option<std::sync::Arc<Arena>>,
}

impl Buffer {
    /// The first of at least `floats` floats; takes larger memory when it must.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system refuses.
    pub fn reserve(&mut self, floats: usize) -> Result<*mut f32> {
        let refused = || Error::OutOfMemory { what: "activations".to_owned(), bytes: usize::MAX };
        let bytes = floats.checked_mul(size_of::<f32>()).ok_or_else(refused)?;
        if self.bytes() < bytes {
            self.memory = None;
            let memory = Arena::new(bytes, "activations")?;
            // SAFETY: nobody else has it yet.
            unsafe { memory.at().write_bytes(0, memory.len()) };
            self.memory = Some(memory);
        }
        Ok(self.memory.as_ref().map_or(std::ptr::null_mut(), |memory| memory.at().cast()))
    }

    /// All of the memory as `rows` rows of `width` floats.
    ///
    /// # Errors
    /// As for [`Buffer::reserve`].
    pub fn rows(&mut self, rows: usize, width: usize) -> Result<Rows<'_>> {
        let at = self.reserve(floats(rows, width))?;
        // SAFETY: the memory is large enough, and borrowed as long as the rows.
        Ok(unsafe { Rows::new(at, rows, width) })
    }

    /// Size of the memory in bytes.
    pub fn bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.len())
    }
}

/// A view of rows that the members of a region share; who may write which part is settled between barriers.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    at: *mut f32,
    stride: usize,
    rows: usize,
    width: usize,
    memory: PhantomData<&'a mut f32>,
}

// SAFETY: the pointer is only followed through `unsafe` accessors, whose callers keep writers apart.
unsafe impl Send for Rows<'_> {}
// SAFETY: as above.
unsafe impl Sync for Rows<'_> {}

impl Rows<'_> {
    /// Rows at `at`.
    ///
    /// # Safety
    /// [`floats`] floats from `at` on were written once and live as long as the rows; who writes which part of them, and reads
    /// it behind which barrier, is settled by whoever hands the rows out.
    pub unsafe fn new(at: *mut f32, rows: usize, width: usize) -> Self {
        Self { at, stride: stride(width), rows, width, memory: PhantomData }
    }

    /// The first `rows` rows.
    #[must_use]
    pub fn first(self, rows: usize) -> Self {
        assert!(rows <= self.rows, "{rows} rows of {}", self.rows);
        Self { rows, ..self }
    }

    /// Some of the rows.
    #[must_use]
    pub fn part(self, rows: std::ops::Range<usize>) -> Self {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "rows {} to {} of {}",
            rows.start,
            rows.end,
            self.rows
        );
        Self { at: self.at(rows.start, 0), rows: rows.len(), ..self }
    }

    /// Row `r` taken as `rows` rows of `width` floats, as a buffer of that width would hold them.
    #[must_use]
    pub fn window(self, r: usize, rows: usize, width: usize) -> Self {
        let stride = stride(width);
        assert!(
            r < self.rows && rows * stride <= self.stride,
            "{rows} x {stride} in a row of {}",
            self.stride
        );
        Self { at: self.at(r, 0), stride, rows, width, memory: PhantomData }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Floats that count in a row; more are there as padding.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Floats from one row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// First float of row `r`, from column `c` on.
    pub fn at(&self, r: usize, c: usize) -> *mut f32 {
        assert!(r <= self.rows && c <= self.stride, "row {r}, column {c} of {} x {}", self.rows, self.stride);
        // SAFETY: inside the buffer, or one row past its end.
        unsafe { self.at.add(r * self.stride + c) }
    }

    /// Multiplies a piece of the rows by the same piece of `other`: the second half of a gated product, whose halves the same
    /// member computed. Rounded to bf16 where products are formed in it.
    pub fn multiply(self, ctx: &Context<'_>, other: Self, piece: &Piece) {
        assert!(self.rows == other.rows && self.width == other.width, "two halves of one shape");
        let columns = &piece.columns;
        let floats = columns.len().next_multiple_of(WIDTH);
        for r in piece.rows.clone() {
            // SAFETY: rows are padded to whole panels, and the piece is this member's alone.
            unsafe {
                let (gate, up) = (self.at(r, columns.start), other.at(r, columns.start));
                ctx.runtime.kernels.multiply(gate, up, floats, ctx.runtime.bf16);
            }
        }
    }

    /// Zeroes the floats behind every row's width, up to a whole panel.
    ///
    /// # Safety
    /// No other thread touches the rows meanwhile.
    pub unsafe fn clear_padding(self) {
        for r in 0..self.rows {
            // SAFETY: rows have room for whole panels, and the caller keeps others away.
            unsafe { self.at(r, self.width).write_bytes(0, self.width.next_multiple_of(WIDTH) - self.width) };
        }
    }

    /// A row to read.
    ///
    /// # Safety
    /// No member writes the row meanwhile.
    pub unsafe fn row(&self, r: usize) -> &[f32] {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        // SAFETY: inside the buffer; the caller keeps writers away.
        unsafe { std::slice::from_raw_parts(self.at(r, 0), self.width) }
    }

    /// A row to write.
    ///
    /// # Safety
    /// No other member touches the row meanwhile.
    #[allow(clippy::mut_from_ref, reason = "a view shared by the team; the caller keeps members apart")]
    pub unsafe fn row_mut(&self, r: usize) -> &mut [f32] {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        // SAFETY: inside the buffer; the caller keeps others away.
        unsafe { std::slice::from_raw_parts_mut(self.at(r, 0), self.width) }
    }
}
