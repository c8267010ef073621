//! Rows of activations as products read them: where they lie, or packed once for all panels.
//!
//! A packed tile holds the words of its rows word by word, the rows side by side, all of K; tiles follow each other. What a word
//! is depends on how products are formed: one f32, a pair of bf16, or some integers, behind which stand the rows' scales. K is padded
//! to whole words, f32 to an even number of them.

use std::ops::Range;

use super::formats::{Grouped, Kind, Words};
use super::grouped;
use super::lanes::{Lanes, QUAD, WIDTH};
use super::quantize;

/// Up to this many rows each thread packs its own copy of a product's input, and each tile widens 16-bit weights for itself. Above
/// them the threads share one packed copy, and low tiles read blocks of weights that were widened once.
pub const FEW_ROWS: usize = 16;

/// How a product wants its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputLayout {
    /// Number of packed tiles; 0 for rows as they lie.
    pub tiles: usize,
    /// What words are.
    pub words: Words,
}

impl InputLayout {
    /// The form of `m` rows for the kind `K`.
    pub(super) fn of<L: Lanes, K: Kind<L>>(m: usize) -> Self {
        let tiles = if !streamed::<L, K>(m) {
            m.div_ceil(L::ROWS)
        } else if K::INPUT == Words::Floats {
            0
        } else {
            m // Each row its own tile: a row of words.
        };
        Self { tiles, words: K::INPUT }
    }

    /// The form of `m` rows for the kind `K`, `group` inputs to a group.
    pub(super) fn of_groups<L: Lanes, K: Grouped<L>>(m: usize, group: usize) -> Self {
        let most = grouped::tile_rows::<L>();
        let tiles = if m <= most { m } else { m.div_ceil(most) };
        let pairs = K::WORDS * 4 > K::STEP;
        Self { tiles, words: Words::Groups { size: group, signed: K::SIGNED, pairs } }
    }

    /// Rows of tile `t` of `m` rows.
    pub fn rows(self, m: usize, t: usize) -> Range<usize> {
        let (first, height) = self.tile(m, t);
        first..first + height
    }

    /// Rows of some tiles of `m` rows.
    pub fn of_tiles(self, m: usize, tiles: Range<usize>) -> Range<usize> {
        start(m, self.tiles, tiles.start)..start(m, self.tiles, tiles.end)
    }

    /// First row and height of tile `t` of `m` rows.
    #[inline(always)]
    pub(super) fn tile(self, m: usize, t: usize) -> (usize, usize) {
        (start(m, self.tiles, t), height(m, self.tiles, t))
    }

    /// Words of a row of `k` inputs, its scales counted.
    pub fn words(self, k: usize) -> usize {
        self.words.inputs(k) + self.words.scales()
    }
}

/// Whether `m` rows are multiplied straight from the stream of weights, one tile high.
pub(super) fn streamed<L: Lanes, K: Kind<L>>(m: usize) -> bool {
    // A line of two widened vectors takes registers that row pointers would need.
    m <= if K::WIDEN { L::WIDENED_ROWS } else { L::ROWS }
}

/// Rows of tile `t` when `rows` are split into `tiles` of nearly equal height.
pub(super) fn height(rows: usize, tiles: usize, t: usize) -> usize {
    rows / tiles + usize::from(t < rows % tiles)
}

/// First row of tile `t`.
pub(super) fn start(rows: usize, tiles: usize, t: usize) -> usize {
    rows / tiles * t + t.min(rows % tiles)
}

/// Packs some tiles of some rows.
#[derive(Debug, Clone)]
pub struct Pack {
    /// Activations, `m` rows of `k` floats, padded with finite values to an even number.
    pub a: *const f32,
    /// Floats from one row to the next.
    pub a_stride: usize,
    /// Rows.
    pub m: usize,
    /// Inputs.
    pub k: usize,
    /// The product's form of these rows.
    pub form: InputLayout,
    /// Which tiles.
    pub tiles: Range<usize>,
    /// Room for `form.words(k)` floats per row, at most [`row_room`](super::row_room), all tiles counted.
    pub out: *mut f32,
}

/// Copies the rows of `job.tiles` into their tiles.
///
/// # Safety
/// The pointers of `job` hold what its fields say.
#[inline(always)]
pub(super) unsafe fn pack<L: Lanes>(job: &Pack) {
    let words = job.form.words(job.k);
    for t in job.tiles.clone() {
        let (r, h) = (start(job.m, job.form.tiles, t), height(job.m, job.form.tiles, t));
        // SAFETY: handed on from the caller.
        unsafe {
            let (from, out) = (job.a.add(r * job.a_stride), job.out.add(r * words));
            match job.form.words {
                Words::Pairs => pairs::<L>(from, job.a_stride, h, job.k, out, h),
                Words::Bytes | Words::BytePairs => {
                    quantize::tile::<L>(from, job.a_stride, h, job.k, job.form.words, out);
                }
                Words::Groups { size, signed, pairs } => {
                    quantize::groups::<L>(from, job.a_stride, h, job.k, (size, signed, pairs), out);
                }
                Words::Floats if h == L::ROWS => {
                    interleave::<L>(from, job.a_stride, L::ROWS, words, out, L::ROWS);
                }
                Words::Floats => interleave::<L>(from, job.a_stride, h, words, out, h),
            }
        }
    }
}

/// Words of a row that are made at a time, before the rows are laid side by side.
const MADE: usize = 64;
/// Rows that are laid side by side, at most: those of a block of the cache.
const HIGHEST: usize = WIDTH;

/// As [`interleave`] for words that are pairs of bf16, made of `k` floats a row.
#[inline(always)]
pub(super) unsafe fn pairs<L: Lanes>(
    from: *const f32,
    stride: usize,
    h: usize,
    k: usize,
    out: *mut f32,
    step: usize,
) {
    assert!(h <= HIGHEST, "{h} rows side by side");
    if h == 1 && step == 1 {
        // SAFETY: handed on from the caller.
        unsafe { row_of_pairs::<L>(from, k, out) }
        return;
    }
    let mut made = [0.0; HIGHEST * MADE];
    for first in (0..k).step_by(2 * MADE) {
        let n = (k - first).min(2 * MADE);
        // SAFETY: the caller grants `k` floats of every row, and room for all words.
        unsafe {
            for i in 0..h {
                row_of_pairs::<L>(from.add(i * stride + first), n, made.as_mut_ptr().add(i * MADE));
            }
            interleave::<L>(made.as_ptr(), MADE, h, n.div_ceil(2), out.add(first / 2 * step), step);
        }
    }
}

/// The words of one row of `k` floats, one after the other.
#[inline(always)]
unsafe fn row_of_pairs<L: Lanes>(from: *const f32, k: usize, out: *mut f32) {
    let whole = k - k % WIDTH;
    // SAFETY: the caller grants the floats, and room for the words.
    unsafe {
        for j in (0..whole).step_by(WIDTH) {
            L::pair_bf16(from.add(j), out.add(j / 2));
        }
        if whole < k {
            let (mut rest, mut words) = ([0.0; WIDTH], [0.0; WIDTH / 2]);
            std::ptr::copy_nonoverlapping(from.add(whole), rest.as_mut_ptr(), k - whole);
            L::pair_bf16(rest.as_ptr(), words.as_mut_ptr());
            std::ptr::copy_nonoverlapping(words.as_ptr(), out.add(whole / 2), (k - whole).div_ceil(2));
        }
    }
}

/// Floats ahead of the stores at which packed rows are asked for.
const WRITE_AHEAD: usize = 512;

/// Writes `words` words of `h` rows word by word, the rows side by side and a word `step` floats after the last; stores follow
/// each other, which is what counts.
#[inline(always)]
pub(super) unsafe fn interleave<L: Lanes>(
    from: *const f32,
    stride: usize,
    h: usize,
    words: usize,
    out: *mut f32,
    step: usize,
) {
    // SAFETY: the caller grants the words of every row, and room for all of them.
    unsafe {
        let mut w = 0;
        while w + QUAD <= words {
            // What was read by other members last is to be written: its lines are asked for well before.
            for line in (0..QUAD * step).step_by(WIDTH) {
                L::prefetch_write(out.wrapping_add(w * step + line + WRITE_AHEAD).cast());
            }
            let mut i = 0;
            while i + QUAD <= h {
                L::transpose(from.add(i * stride + w), stride, out.add(w * step + i), step);
                i += QUAD;
            }
            for w in w..w + QUAD {
                for i in i..h {
                    *out.add(w * step + i) = *from.add(i * stride + w);
                }
            }
            w += QUAD;
        }
        for w in w..words {
            for i in 0..h {
                *out.add(w * step + i) = *from.add(i * stride + w);
            }
        }
    }
}
