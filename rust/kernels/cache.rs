//! How keys and values of one head lie in a block of the cache, and how rows are put there.
//!
//! Keys: one line of sixteen tokens per dimension, or per pair of dimensions in bf16, the first of a pair in the low half of a
//! token's word. Values: one row of the dimensions per token, or per pair of tokens in bf16, the first of a pair in the low half
//! of a dimension's word; rows are padded to whole vectors. So either is a run of lines as products read weights, with an
//! output per lane: a token for the scores, a dimension for the weighted values. What is not written yet is zero.

use super::formats::LINE;
use super::lanes::{Lanes, WIDTH};
use super::rows;

/// Tokens in a block.
pub const BLOCK: usize = WIDTH;

/// Bytes of a block of keys of head dimension `d`.
pub fn key_bytes(bf16: bool, d: usize) -> usize {
    if bf16 { d.div_ceil(2) * LINE } else { d * LINE }
}

/// Bytes of a block of values of head dimension `d`.
pub fn value_bytes(bf16: bool, d: usize) -> usize {
    let tokens = if bf16 { BLOCK / 2 } else { BLOCK };
    tokens * d.div_ceil(WIDTH) * LINE
}

/// How the cache is stored and how products with it are formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheProducts {
    /// f32, f32 products.
    F32,
    /// bf16 widened, f32 products of rounded factors.
    Bf16,
    /// bf16, the bf16 dot.
    Bf16Dot,
}

/// Rows of keys and values of one head on their way into a block.
#[derive(Debug, Clone, Copy)]
pub struct AppendKv {
    /// First row of keys, `d` floats.
    pub key: *const f32,
    /// Floats from one row of keys to the next.
    pub key_stride: usize,
    /// First row of values, `d` floats.
    pub value: *const f32,
    /// Floats from one row of values to the next.
    pub value_stride: usize,
    /// Rows.
    pub rows: usize,
    /// Head dimension.
    pub d: usize,
    /// Token of the first row in the block.
    pub token: usize,
    /// The head's keys in the block, [`key_bytes`].
    pub keys: *mut u8,
    /// The head's values in the block, [`value_bytes`].
    pub values: *mut u8,
}

/// Puts rows into an f32 block.
///
/// # Safety
/// As for [`Lanes`]; the pointers of `job` hold what its fields say.
#[inline(always)]
pub(super) unsafe fn put_f32<L: Lanes>(job: &AppendKv) {
    // SAFETY: handed on from the caller: `rows` tokens from `token` on lie in the block.
    unsafe {
        let keys = job.keys.cast::<f32>().add(job.token);
        rows::interleave::<L>(job.key, job.key_stride, job.rows, job.d, keys, BLOCK);
        let width = job.d.next_multiple_of(WIDTH);
        for i in 0..job.rows {
            let to = job.values.cast::<f32>().add((job.token + i) * width);
            std::ptr::copy_nonoverlapping(job.value.add(i * job.value_stride), to, job.d);
        }
    }
}

/// Puts rows into a bf16 block, rounded.
///
/// # Safety
/// As for [`Lanes`]; the pointers of `job` hold what its fields say.
#[inline(always)]
pub(super) unsafe fn put_bf16<L: Lanes>(job: &AppendKv) {
    // SAFETY: handed on from the caller: `rows` tokens from `token` on lie in the block.
    unsafe {
        let keys = job.keys.cast::<f32>().add(job.token);
        rows::pairs::<L>(job.key, job.key_stride, job.rows, job.d, keys, BLOCK);
        let width = job.d.next_multiple_of(WIDTH);
        let (mut token, end) = (job.token, job.token + job.rows);
        while token < end {
            let row = job.value.add((token - job.token) * job.value_stride);
            let (odd, both) = (token % 2 == 1, token % 2 == 0 && token + 1 < end);
            for v in (0..job.d).step_by(WIDTH) {
                let n = (job.d - v).min(WIDTH);
                let to = job.values.cast::<f32>().add(token / 2 * width + v);
                let (low, high) = if odd {
                    (L::load_bf16_pairs(to.cast()).0, L::load_part(row.add(v), n))
                } else if both {
                    (L::load_part(row.add(v), n), L::load_part(row.add(job.value_stride + v), n))
                } else {
                    (L::load_part(row.add(v), n), L::splat(0.0))
                };
                L::store(to, L::join_bf16(low, high));
            }
            token += if both { 2 } else { 1 };
        }
    }
}

/// Zeroes the tokens of a head from `from` on.
///
/// # Safety
/// `keys` and `values` point at [`key_bytes`] and [`value_bytes`] that nobody else uses.
pub unsafe fn clear(bf16: bool, d: usize, keys: *mut u8, values: *mut u8, from: usize) {
    // SAFETY: tokens from `from` to the block's end lie in what the caller grants.
    unsafe {
        for line in 0..key_bytes(bf16, d) / LINE {
            keys.cast::<f32>().add(line * WIDTH + from).write_bytes(0, BLOCK - from);
        }
        let width = d.next_multiple_of(WIDTH);
        let (tokens, first) = if bf16 { (2, from.div_ceil(2)) } else { (1, from) };
        let row = width * size_of::<f32>();
        values.add(first * row).write_bytes(0, (BLOCK / tokens - first) * row);
        if first * tokens > from {
            // The first token of a pair stays.
            for word in 0..width {
                *values.cast::<u16>().add(((first - 1) * width + word) * 2 + 1) = 0;
            }
        }
    }
}
