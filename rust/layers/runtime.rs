//! What a member of the team needs for any layer: kernels and their sizes for this CPU, its place in the region, working memory.

use crate::error::Result;
use crate::kernels::{self, Family, Kernels, Tuning};
use crate::team::Member;

use super::heads::{self, Heads};
use super::rows::Rows;

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
    /// [`Isa`](crate::Error::Isa) when `FASTDECODE_ISA` names a table that this CPU cannot run.
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

/// Floats of working memory that a member needs for products of up to `max_k` inputs and attention with these heads.
pub fn scratch(runtime: &Runtime, max_k: usize, heads: Option<Heads>) -> usize {
    let product = runtime.tuning.scratch() + kernels::FEW_ROWS * kernels::row_room(max_k);
    let attention =
        heads.map_or(0, |heads| kernels::attention_scratch(heads.head_dim) + heads::scratch(heads));
    product.max(attention)
}

/// Floats of common memory for the packed rows of products with `rows` rows of up to `max_k` inputs.
pub fn packed_rows(rows: usize, max_k: usize) -> usize {
    if rows > kernels::FEW_ROWS { rows * kernels::row_room(max_k) } else { 0 }
}
