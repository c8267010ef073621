//! Rows of activations as eight-bit integers: `q = clamp(round(x / s) + z, 0, 255)`, ties to even, with a scale `s` and a zero point
//! `z` for each row, by its least and greatest value.
//!
//! Zero is always among the values, so that it is held exactly. Every operation here is rounded by itself and none is fused, so
//! `q` is the same on every table.

use super::formats::{SCALE_WORDS, Words};
use super::lanes::{Lanes, WIDTH};
use super::rows::interleave;

/// The largest integer.
const MOST: f32 = 255.0;
/// Inputs that are made at a time, before the rows are laid side by side.
const MADE: usize = 256;
/// Words of these, at most.
const MADE_WORDS: usize = MADE / 2;
/// Rows that are laid side by side, at most.
const HIGHEST: usize = WIDTH;

/// Scale and zero point of a row.
#[derive(Debug, Clone, Copy)]
struct Scale {
    scale: f32,
    zero: f32,
}

/// Scale and zero point of `k` floats. Where one of them is not finite the scale is NaN, and so are all products.
#[inline(always)]
unsafe fn scale_of<L: Lanes>(x: *const f32, k: usize) -> Scale {
    // SAFETY: the caller grants `k` readable floats.
    unsafe {
        let zero = L::splat(0.0);
        let (mut least, mut most, mut nothing) = (zero, zero, zero);
        for j in (0..k).step_by(WIDTH) {
            let v = L::load_part(x.add(j), (k - j).min(WIDTH));
            least = L::min(v, least);
            most = L::max(v, most);
            // Infinity and NaN times zero are NaN.
            nothing = L::add(nothing, L::mul(v, zero));
        }
        let least = -L::largest(L::sub(zero, least));
        let most = L::largest(most);
        // The quotients are taken apart, since the difference of two floats may be infinite.
        let scale = (most / MOST - least / MOST).max(f32::MIN_POSITIVE);
        let zero = (-least / scale).round_ties_even().clamp(0.0, MOST);
        Scale { scale: scale + L::sum(nothing), zero }
    }
}

/// Quantizes `n` floats; `out` has room for whole vectors.
#[inline(always)]
unsafe fn bytes<L: Lanes>(x: *const f32, n: usize, by: Scale, out: *mut u8) {
    // SAFETY: the caller grants the floats and the room.
    unsafe {
        let (scale, zero) = (L::splat(by.scale), L::splat(by.zero));
        let (low, high) = (L::splat(0.0), L::splat(MOST));
        for j in (0..n).step_by(WIDTH) {
            let v = L::load_part(x.add(j), (n - j).min(WIDTH));
            let q = L::add(L::round(L::div(v, scale)), zero);
            // Of two operands the second is taken where one is NaN.
            L::store_bytes(out.add(j), L::min(L::max(q, low), high));
        }
    }
}

/// Packs `h` rows of `k` floats, `stride` apart, as tiles of integers: word by word, the rows side by side, and then the rows' scales
/// and zero points, one row after the other.
///
/// # Safety
/// As for [`Lanes`]; `out` has room for the words of every row and their scales.
#[inline(always)]
pub(super) unsafe fn tile<L: Lanes>(
    from: *const f32,
    stride: usize,
    h: usize,
    k: usize,
    words: Words,
    out: *mut f32,
) {
    assert!(h <= HIGHEST, "{h} rows side by side");
    let mut scales = [Scale { scale: 0.0, zero: 0.0 }; HIGHEST];
    let mut made = [0_u32; HIGHEST * MADE_WORDS];
    let mut quantized = [0_u8; MADE];
    let behind = words.inputs(k) * h;
    // SAFETY: the caller grants `k` floats of every row, and room for all words.
    unsafe {
        for (i, by) in scales.iter_mut().enumerate().take(h) {
            *by = scale_of::<L>(from.add(i * stride), k);
            *out.add(behind + i * SCALE_WORDS) = by.scale;
            *out.add(behind + i * SCALE_WORDS + 1) = f32::from_bits(by.zero as u32);
        }
        for first in (0..k).step_by(MADE) {
            let n = (k - first).min(MADE);
            let fours = n.div_ceil(4);
            for i in 0..h {
                bytes::<L>(from.add(i * stride + first), n, scales[i], quantized.as_mut_ptr());
                let row = &mut made[i * MADE_WORDS..(i + 1) * MADE_WORDS];
                let four =
                    quantized.as_chunks::<4>().0.iter().take(fours).map(|four| u32::from_le_bytes(*four));
                if words == Words::BytePairs {
                    for (four, pair) in four.zip(row.as_chunks_mut::<2>().0) {
                        *pair = [four & 0x00ff_00ff, (four >> 8) & 0x00ff_00ff];
                    }
                } else {
                    four.zip(row).for_each(|(four, word)| *word = four);
                }
            }
            let (n, at) = (words.inputs(n), words.inputs(first) * h);
            interleave::<L>(made.as_ptr().cast(), MADE_WORDS, h, n, out.add(at), h);
        }
    }
}
