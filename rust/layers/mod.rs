//! One network operation a file, split over the team: a layer knows shapes, not models.
//!
//! A layer writes outputs that belong to its member alone and holds no barrier, unless its documentation says so: the model's
//! forward says where members meet.

pub mod attention;
pub mod embedding;
pub mod linear;
pub mod norm;
pub mod relative_bias;

use std::marker::PhantomData;
use std::sync::Arc;

use crate::arena::Arena;
use crate::error::Result;
use crate::kernels::{self, Family, Kernels, Tuning, WIDTH};
use crate::team::Member;

/// What every step of a model needs beside its weights.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Kernels of the chosen instruction set.
    pub kernels: Kernels,
    /// Sizes of blocks for this CPU.
    pub tuning: Tuning,
    /// Members of a region.
    pub threads: usize,
    /// Whether products are formed in bf16 (`compute_dtype="bfloat16"`): activations are rounded, the cache is bf16.
    pub bf16: bool,
    /// Whether the bf16 dot instruction forms them.
    pub dot: bool,
}

impl Runtime {
    /// The chosen kernels on this CPU.
    ///
    /// # Errors
    /// [`Error::Isa`] when `FASTDECODE_ISA` names a table that this CPU cannot run.
    pub fn new(threads: usize, bf16: bool) -> Result<Self> {
        let kernels = Kernels::chosen()?;
        let family = kernels::identify().family;
        Ok(Self::with(kernels, family, threads, bf16))
    }

    /// A runtime of these kernels, tuned for this family.
    pub fn with(kernels: Kernels, family: Family, threads: usize, bf16: bool) -> Self {
        let dot = bf16 && kernels.has_bf16_dot && family.fast_bf16_dot();
        Self { kernels, tuning: family.with_table(&kernels).tuning(), threads, bf16, dot }
    }
}

/// Floats from one row of a buffer to the next: whole panels, and never a multiple of a kilobyte, so that rows do not
/// meet in the same cache sets.
pub fn stride(width: usize) -> usize {
    let s = width.next_multiple_of(WIDTH);
    if s.is_multiple_of(256) { s + WIDTH } else { s }
}

/// Rows of activations, reused from step to step: zeroed at first, padding stays finite.
#[derive(Debug, Default)]
pub struct Buffer {
    memory: Option<Arc<Arena>>,
}

impl Buffer {
    /// A view of `rows` rows of `width` floats; takes larger memory when it must.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system refuses.
    pub fn rows(&mut self, rows: usize, width: usize) -> Result<Rows<'_>> {
        let stride = stride(width);
        let bytes = rows * stride * size_of::<f32>();
        if self.memory.as_ref().is_none_or(|memory| memory.len() < bytes) {
            self.memory = None;
            let memory = Arena::new(bytes, "activations")?;
            // SAFETY: nobody else has it yet.
            unsafe { memory.at().write_bytes(0, memory.len()) };
            self.memory = Some(memory);
        }
        let at = self.memory.as_ref().map_or(std::ptr::null_mut(), |memory| memory.at().cast());
        Ok(Rows { at, stride, rows, width, memory: PhantomData })
    }

    /// Gives the memory back when it is larger than `floats`.
    pub fn shrink(&mut self, floats: usize) {
        if self.memory.as_ref().is_some_and(|memory| memory.len() > floats * size_of::<f32>()) {
            self.memory = None;
        }
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

impl<'a> Rows<'a> {
    /// The first `rows` rows.
    #[must_use]
    pub fn first(self, rows: usize) -> Self {
        assert!(rows <= self.rows, "{rows} rows of {}", self.rows);
        Self { rows, ..self }
    }

    /// The same rows with fewer columns that count.
    #[must_use]
    pub fn narrow(self, width: usize) -> Self {
        assert!(width <= self.width, "{width} columns of {}", self.width);
        Self { width, ..self }
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
    pub fn multiply(self, ctx: &Context<'_>, other: Self, piece: &linear::Piece) {
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

/// One member's place in a step, with working memory of its own.
pub struct Context<'a> {
    /// The member.
    pub member: &'a Member<'a>,
    /// Kernels and their sizes.
    pub runtime: &'a Runtime,
    /// Working memory of [`scratch`] floats, this member's alone.
    pub scratch: *mut f32,
    /// One row of [`packed_rows`] floats, common to all members.
    pub packed_rows: Rows<'a>,
}

impl Context<'_> {
    /// Into how many groups a step's rows are divided, each with as many members: what a member reads, its own group has mostly
    /// written, and only the weights are read by every group.
    pub fn groups(&self, rows: usize) -> usize {
        let count = self.member.count();
        // More rows than the highest tile has: every group has tiles.
        let least = self.runtime.tuning.group_rows.max(kernels::FEW_ROWS);
        let most = (rows / least).clamp(1, count);
        (1..=most).rev().find(|groups| count.is_multiple_of(*groups)).unwrap_or(1)
    }
}

/// Floats of working memory that a member needs for products of up to `max_k` inputs and heads of up to `max_d`.
pub fn scratch(runtime: &Runtime, max_k: usize, max_d: usize) -> usize {
    let product = runtime.tuning.scratch() + kernels::FEW_ROWS * max_k.next_multiple_of(2);
    product.max(kernels::attention_scratch(max_d))
}

/// Floats of common memory for the packed rows of products with `rows` rows of up to `max_k` inputs.
pub fn packed_rows(rows: usize, max_k: usize) -> usize {
    if rows > kernels::FEW_ROWS { rows * max_k.next_multiple_of(2) } else { 0 }
}
