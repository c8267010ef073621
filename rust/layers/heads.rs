//! Heads of queries, keys and values: their sizes, and what is done to each query and key on its way to attention.

use super::norm::Norm;
use super::rotary;
use super::{Context, Rows};
use crate::kernels::{BLOCK, WIDTH};

/// Query rows of one task, at most: enough to amortize, few enough to spread over the members. More where more heads share a key.
pub const TASK_ROWS: usize = 24;

/// Sizes of a layer's heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Heads of queries, a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values. Neighbouring query heads share one.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Multiplies the scores.
    pub scale: f32,
}

impl Heads {
    /// As many heads of keys as of queries.
    pub const fn alike(heads: usize, head_dim: usize, scale: f32) -> Self {
        Self { heads, kv_heads: heads, head_dim, scale }
    }

    /// Query heads that share a head of keys.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Positions of one task, at most.
    pub fn most_positions(&self) -> usize {
        (TASK_ROWS / self.group()).max(1)
    }
}

/// What is done to every query and key.
#[derive(Debug, Clone, Copy, Default)]
pub struct Preparation<'a> {
    /// Norms of a head's width, of queries and of keys.
    pub norms: Option<[&'a Norm; 2]>,
    /// Cosines and sines by row of the step; applied behind the norms.
    pub angles: Option<Rows<'a>>,
}

/// Working memory for the queries of one task and the keys of one block, in floats.
pub fn scratch(heads: Heads) -> usize {
    (TASK_ROWS.max(heads.group()) + BLOCK) * heads.head_dim.next_multiple_of(WIDTH)
}

/// Heads side by side in rows of the step, from the given column on.
pub type HeadRows<'a> = (Rows<'a>, usize);

impl Preparation<'_> {
    /// Whether keys are used as they are.
    pub fn is_nothing(&self) -> bool {
        self.norms.is_none() && self.angles.is_none()
    }

    /// Writes some queries to `out`, position by position, `group` heads each from head `first` on; returns the floats from one to the
    /// next.
    ///
    /// # Safety
    /// The rows exist and have been written (a barrier); `out` has room for them, this member's alone.
    pub unsafe fn queries(
        &self,
        ctx: &Context<'_>,
        (from, column): HeadRows<'_>,
        heads: Heads,
        (rows, first): (std::ops::Range<usize>, usize),
        out: *mut f32,
    ) -> usize {
        let (d, group, stride) = (heads.head_dim, heads.group(), heads.head_dim.next_multiple_of(WIDTH));
        let norm = self.norms.map(|[queries, _]| queries);
        for (i, row) in rows.enumerate() {
            for head in 0..group {
                // SAFETY: handed on from the caller.
                unsafe {
                    let to = out.add((i * group + head) * stride);
                    self.head(ctx, norm, from.at(row, column + (first + head) * d), d, row, to);
                }
            }
        }
        stride
    }

    /// Writes some keys of a head to `out`; returns the floats from one to the next.
    ///
    /// # Safety
    /// As for [`Preparation::queries`].
    pub unsafe fn keys(
        &self,
        ctx: &Context<'_>,
        (from, column): HeadRows<'_>,
        d: usize,
        rows: std::ops::Range<usize>,
        out: *mut f32,
    ) -> usize {
        let stride = d.next_multiple_of(WIDTH);
        let norm = self.norms.map(|[_, keys]| keys);
        for (i, row) in rows.enumerate() {
            // SAFETY: handed on from the caller.
            unsafe { self.head(ctx, norm, from.at(row, column), d, row, out.add(i * stride)) };
        }
        stride
    }

    /// One head of one row.
    ///
    /// # Safety
    /// `x` has `d` floats, `out` room for as many up to whole vectors.
    unsafe fn head(
        &self,
        ctx: &Context<'_>,
        norm: Option<&Norm>,
        x: *const f32,
        d: usize,
        row: usize,
        out: *mut f32,
    ) {
        // SAFETY: handed on from the caller; angles were written in an earlier phase.
        unsafe {
            match norm {
                Some(norm) => norm.head(ctx, x, d, out),
                None => std::ptr::copy_nonoverlapping(x, out, d),
            }
            if let Some(angles) = self.angles {
                rotary::turn(std::slice::from_raw_parts_mut(out, d), angles.row(row));
            }
        }
    }
}
