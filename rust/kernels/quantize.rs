//! Rows of activations as eight-bit integers: `q = clamp(round(x / s) + z, 0, 255)`, ties to even, with a scale `s` and a zero point
//! `z` for each row, by its least and greatest value.
//!
//! Zero is always among the values, so that it is held exactly. Every operation here is rounded by itself and none is fused, so
//! `q` is the same on every table.

use super::formats::{HEAD_WORDS, SCALE_WORDS, Words};
use super::lanes::{Lanes, WIDTH};
use super::rows::interleave;

/// The largest integer.
const MOST: f32 = 255.0;
/// The largest magnitude of signed ones.
const SIGNED_MOST: f32 = 127.0;
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

/// Inputs of a group, at most.
const MOST_GROUP: usize = 128;

/// Packs `h` rows of `k` floats, `stride` apart, as tiles of integers by groups: for each group the words of the rows side by side, first
/// what its head is multiplied by, then its scale, then its integers.
///
/// Unsigned integers are made as by [`tile`], with the group's own scale and zero point; signed ones are `round(x / s)`, ties to even, with
/// the largest magnitude at 127.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
pub(super) unsafe fn groups<L: Lanes>(
    from: *const f32,
    stride: usize,
    h: usize,
    k: usize,
    (size, signed, pairs): (usize, bool, bool),
    out: *mut f32,
) {
    assert!(size <= MOST_GROUP, "{size} inputs of a group");
    let words = Words::Groups { size, signed, pairs };
    // SAFETY: the caller grants `k` floats of every row, and room for all words.
    unsafe {
        for i in 0..h {
            for first in (0..k).step_by(size) {
                let (x, n) = (from.add(i * stride + first), (k - first).min(size));
                let to = out.add(words.inputs(first) * h + i);
                let mut made = [0_u8; MOST_GROUP];
                let (head, scale) = if signed {
                    let scale = signed_bytes::<L>(x, n, made.as_mut_ptr());
                    let sum: i32 = made.iter().map(|&q| i32::from(q.cast_signed())).sum();
                    (-sum, scale)
                } else {
                    let by = scale_of::<L>(x, n);
                    bytes::<L>(x, n, by, made.as_mut_ptr());
                    (-(by.zero as i32), by.scale)
                };
                // The upper half of a head's lane is met by zeros.
                *to = f32::from_bits(head.cast_unsigned() & 0xffff);
                *to.add(h) = scale;
                let mut word = to.add(HEAD_WORDS * h);
                for four in made.as_chunks::<4>().0.iter().take(size / 4) {
                    let four = u32::from_le_bytes(*four);
                    if pairs {
                        *word = f32::from_bits(four & 0x00ff_00ff);
                        *word.add(h) = f32::from_bits((four >> 8) & 0x00ff_00ff);
                        word = word.wrapping_add(2 * h);
                    } else {
                        *word = f32::from_bits(four);
                        word = word.wrapping_add(h);
                    }
                }
            }
        }
    }
}

/// Quantizes `n` floats around zero; returns their scale, NaN where one of them is not finite.
#[inline(always)]
unsafe fn signed_bytes<L: Lanes>(x: *const f32, n: usize, out: *mut u8) -> f32 {
    // SAFETY: the caller grants the floats, and room for whole vectors.
    unsafe {
        let zero = L::splat(0.0);
        let (mut most, mut nothing) = (zero, zero);
        for j in (0..n).step_by(WIDTH) {
            let v = L::load_part(x.add(j), (n - j).min(WIDTH));
            most = L::max(v, L::max(L::sub(zero, v), most));
            nothing = L::add(nothing, L::mul(v, zero));
        }
        let scale = (L::largest(most) / SIGNED_MOST).max(f32::MIN_POSITIVE);
        let (low, high) = (L::splat(-SIGNED_MOST), L::splat(SIGNED_MOST));
        for j in (0..n).step_by(WIDTH) {
            let v = L::load_part(x.add(j), (n - j).min(WIDTH));
            let q = L::round(L::div(v, L::splat(scale)));
            L::store_bytes(out.add(j), L::min(L::max(q, low), high));
        }
        scale + L::sum(nothing)
    }
}
