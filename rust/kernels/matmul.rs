//! `C = epilogue(A · W)` for rows of f32 activations and packed weight panels: one algorithm for one row and for many.
//!
//! The law of this file: every output has one f32 accumulator, and k ascends by the format's step, whatever the number of
//! rows, the tile, the block or the thread. A block of K may end in a stored f32 that the next block loads again, which
//! changes no bits. So a row's result does not depend on its company.
//!
//! A panel is sixteen outputs; its lines are 64 bytes: sixteen lanes of one k (f32), of two (bf16: pairs in a lane; f16:
//! sixteen of k, then sixteen of k + 1), and those of two panels take turns. A few rows, at most a tile's height, are multiplied
//! straight from the weights' stream, two or four panels side by side to hide latency; some tiles share short blocks of a pair;
//! many rows go through long blocks of K. Above [`FEW_ROWS`] rows weights of 16 bits are widened once per block, where that is faster.

use std::ops::Range;

use super::activation::{EpilogueArgs, Scales};
use super::formats::{Kind, LINE, PAIR, panel_offset};
use super::lanes::{Lanes, WIDTH};
use super::rows::{FEW_ROWS, InputLayout, streamed};
use super::tile::{Ahead, FETCH, NEAR, PLAIN, TileRows, block, by_rows, turn};

/// Lines of each panel in a short block of a pair, which some tiles share: 16 KB, of which widened weights make half as many lines.
const SHORT_LINES: usize = 128;

/// Sizes that change speed and no bits; one set per CPU family, see `cpu.rs`.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Panels side by side for up to six rows: 2, one run of memory, or 4.
    pub panels: usize,
    /// For weights that are multiplied as they are stored.
    pub prefetch: Prefetch,
    /// For weights that are widened: more instructions to a line.
    pub widened_prefetch: Prefetch,
    /// Inputs in a block of weights that are multiplied as they are stored.
    pub block_k: usize,
    /// Inputs in a block of 16-bit weights that is widened once for all tiles. With 0 every tile widens the weights that it reads;
    /// high tiles (AVX-512) do so in short blocks whatever this says.
    pub widened: usize,
    /// Rows of activations that a block of weights serves before the next panel.
    pub block_m: usize,
    /// Up to this many rows of a job, at least [`FEW_ROWS`], all tiles share short blocks of lines instead.
    pub short_blocks: usize,
    /// Rows, at least [`FEW_ROWS`], for which it pays that a group of members reads all weights of a product by itself.
    pub group_rows: usize,
}

/// How far ahead of a stream of weights its lines are asked for: the more a core does with a line, the fewer it looks ahead by
/// itself. 0 is for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetch {
    /// Bytes ahead for one row, into the first level.
    pub one: usize,
    /// The fewest rows, at least 2, for which `more` holds.
    pub rows: usize,
    /// Bytes ahead for so many rows, into the second level.
    pub more: usize,
}

impl Prefetch {
    /// Bytes ahead for `m` rows.
    pub(super) fn of(self, m: usize) -> usize {
        match m {
            1 => self.one,
            _ if m >= self.rows => self.more,
            _ => 0,
        }
    }
}

impl Tuning {
    /// Floats of scratch that one thread needs for any product: a widened block of two panels.
    pub fn scratch(&self) -> usize {
        2 * WIDTH * (self.widened.max(SHORT_LINES) + LINE)
    }
}

/// One product of some rows over a run of panels.
#[derive(Debug, Clone, Copy)]
pub struct Matmul {
    /// Activations in the product's [`InputLayout`]: `m` rows of `k` floats, padded with finite values to an even number, or tiles.
    pub a: *const f32,
    /// Floats from one row of activations to the next, where they are not packed.
    pub a_stride: usize,
    /// Rows.
    pub m: usize,
    /// The first tile that is multiplied, of rows that were packed for several.
    pub tile: usize,
    /// Number of tiles that are multiplied; of no account for a few rows, which are all multiplied at once.
    pub tiles: usize,
    /// Inputs.
    pub k: usize,
    /// Inputs of a group, for kinds that sum by groups.
    pub group: usize,
    /// First panel, the first of its pair; pairs follow each other.
    pub w: *const u8,
    /// Number of panels.
    pub panels: usize,
    /// Output of the first panel, `m` rows of `16 * panels` floats.
    pub c: *mut f32,
    /// Floats from one row of output to the next.
    pub c_stride: usize,
    /// What finishes an output; its pointers are those of the first panel.
    pub epilogue: EpilogueArgs,
    /// Working memory of [`Tuning::scratch`] floats.
    pub scratch: *mut f32,
    /// Sizes of blocks.
    pub tuning: Tuning,
    /// The table's epilogue routine.
    pub finish: unsafe fn(*mut f32, usize, usize, usize, &EpilogueArgs),
}

impl Matmul {
    /// Rows of the tiles that are multiplied.
    fn rows(&self, form: InputLayout) -> Range<usize> {
        form.of_tiles(self.m, self.tile..self.tile + self.tiles)
    }
}

/// `C = epilogue(A · W)`.
///
/// # Safety
/// As for [`Lanes`]; the pointers of `job` hold what its fields say.
#[inline(always)]
pub(super) unsafe fn matmul<L: Lanes, K: Kind<L>>(job: &Matmul) {
    // SAFETY: handed on from the caller.
    unsafe {
        if streamed::<L, K>(job.m) {
            stream::<L, K>(job);
        } else {
            let rows = job.rows(InputLayout::of::<L, K>(job.m)).len();
            let some = rows <= job.tuning.short_blocks.max(FEW_ROWS);
            // High tiles that share a short block widen it themselves: that costs less than storing it.
            let high = L::ROWS >= 12;
            let widen = K::WIDEN && job.tuning.widened > 0 && job.m > FEW_ROWS && !(some && high);
            match (some, widen) {
                (true, true) => short::<L, K, K::Widened>(job),
                (true, false) => short::<L, K, K>(job),
                (false, true) => long::<L, K, K::Widened>(job),
                (false, false) => long::<L, K, K>(job),
            }
        }
    }
}

/// A few rows: every panel's whole K in one go, straight from the stream of weights.
#[inline(always)]
unsafe fn stream<L: Lanes, K: Kind<L>>(job: &Matmul) {
    // SAFETY: handed on from the caller.
    unsafe {
        let (lines, all_lines) = panel_lines::<L, K>(job.k);
        let pair_bytes = all_lines * PAIR;
        let form = InputLayout::of::<L, K>(job.m);
        let stride = if form.tiles > 0 { form.words(job.k) } else { job.a_stride };
        let a = TileRows { at: job.a, stride };
        let scales = RowScales { at: job.a.wrapping_add(form.words.inputs(job.k)), step: stride };
        let step = if K::WIDEN { job.tuning.widened_prefetch } else { job.tuning.prefetch }.of(job.m);
        let wide = job.tuning.panels >= 4;
        let mut done = 0;
        macro_rules! panels {
            ($m:literal, $n:literal) => {
                let ahead = Ahead::of(step, all_lines, $n);
                while job.panels - done >= $n {
                    let c = job.c.add(done * WIDTH);
                    let w = job.w.add(panel_offset(done, all_lines));
                    block::<L, K, $m, $n, PLAIN>(c, job.c_stride, a, w, pair_bytes, lines, true, ahead);
                    finish::<L, K>(job, done, $n, 0..$m, scales);
                    done += $n;
                }
            };
        }
        macro_rules! by_height {
            ($($m:literal),* => $n:literal) => {
                match job.m {
                    $($m => { panels!($m, $n); })*
                    _ => {}
                }
            };
        }
        if wide {
            by_height!(1 => 4);
            if L::ROWS >= 12 {
                by_height!(2, 3, 4, 5 => 4);
                // Six rows and four widened lines would need more registers than there are.
                if !K::WIDEN {
                    by_height!(6 => 4);
                }
            }
        }
        by_height!(1, 2 => 2);
        if !K::WIDEN || L::ROWS >= 12 {
            by_height!(3 => 2);
        }
        if L::ROWS >= 12 {
            by_height!(4, 5, 6, 7, 8, 9, 10, 11, 12 => 2);
        }
        // One panel at a time: both of a pair go through short blocks of it, so that memory is still read in one run.
        while done < job.panels {
            let here = (job.panels - done).min(2);
            for l0 in (0..lines).step_by(SHORT_LINES) {
                let n = SHORT_LINES.min(lines - l0);
                let a = TileRows { at: a.at.add(l0 * K::WORDS), stride };
                let ahead = Ahead { step, last: lines, ..Ahead::NONE };
                for p in done..done + here {
                    let c = job.c.add(p * WIDTH);
                    let w = job.w.add(panel_offset(p, all_lines) + l0 * PAIR);
                    by_rows!(job.m, L, K, 1, PLAIN, (c, job.c_stride, a, w, pair_bytes, n, l0 == 0, ahead));
                }
            }
            finish::<L, K>(job, done, here, 0..job.m, scales);
            done += here;
        }
    }
}

/// Lines of a panel of `k` inputs, and those with the ones that hold scales.
#[inline(always)]
fn panel_lines<L: Lanes, K: Kind<L>>(k: usize) -> (usize, usize) {
    let lines = k.div_ceil(K::STEP);
    (lines, lines + K::SCALES)
}

/// Where rows' scales are: those of the first row, and the words from one row's to the next.
#[derive(Clone, Copy)]
struct RowScales {
    at: *const f32,
    step: usize,
}

impl RowScales {
    /// Of a kind that has none.
    const NONE: Self = Self { at: std::ptr::null(), step: 0 };

    /// Those of a packed tile of `h` rows from row `r` on.
    #[inline(always)]
    fn of_tile(job: &Matmul, form: InputLayout, r: usize, h: usize) -> Self {
        let at = job.a.wrapping_add(r * form.words(job.k) + form.words.inputs(job.k) * h);
        Self { at, step: form.words.scales() }
    }
}

/// Hands the outputs of `panels` panels from `panel` on, the first of a pair, to the epilogue, for some rows; `scales` are those of
/// the first of these rows, where the kind has any.
#[inline(always)]
unsafe fn finish<L: Lanes, K: Kind<L>>(
    job: &Matmul,
    panel: usize,
    panels: usize,
    rows: Range<usize>,
    scales: RowScales,
) {
    let mut by = Scales::NONE;
    if K::SCALES > 0 {
        let (lines, all_lines) = panel_lines::<L, K>(job.k);
        // The lines behind those of the inputs.
        let columns = job.w.wrapping_add(panel_offset(panel, all_lines) + lines * PAIR);
        by = Scales { rows: scales.at, step: scales.step, columns, pair_bytes: all_lines * PAIR };
    }
    // SAFETY: handed on from the caller.
    unsafe { finish_with(job, panel, panels, rows, by) }
}

/// As [`finish`], where the scales of rows and outputs are known.
#[inline(always)]
pub(super) unsafe fn finish_with(
    job: &Matmul,
    panel: usize,
    panels: usize,
    rows: Range<usize>,
    scales: Scales,
) {
    let mut e = EpilogueArgs { scales, ..job.epilogue };
    if e.is_none() {
        return;
    }
    // SAFETY: handed on from the caller: the tile lies inside the job.
    unsafe {
        if !e.bias.is_null() {
            e.bias = e.bias.add(panel * WIDTH);
        }
        if !e.residual.is_null() {
            e.residual = e.residual.add(rows.start * e.residual_stride + panel * WIDTH);
        }
        let c = job.c.add(rows.start * job.c_stride + panel * WIDTH);
        (job.finish)(c, job.c_stride, rows.len(), panels * WIDTH, &e);
    }
}

/// Some tiles of rows: pair by pair of panels, in short blocks of lines that every tile takes while they are in L1. Each tile
/// fetches its part of the block that comes next, so that memory is busy all the time. `T` is the kind that the tiles multiply:
/// `K` itself, or f32 after widening.
#[inline(always)]
unsafe fn short<L: Lanes, K: Kind<L>, T: Kind<L>>(job: &Matmul) {
    let widen = K::STEP != T::STEP;
    // What tiles take from the first level is as much, widened or not.
    let most = if widen { SHORT_LINES / K::WORDS } else { SHORT_LINES };
    // SAFETY: handed on from the caller; the scratch holds a widened block of two panels.
    unsafe {
        let (lines, all_lines) = panel_lines::<L, K>(job.k);
        let form = InputLayout::of::<L, K>(job.m);
        let (pair_bytes, words) = (all_lines * PAIR, form.words(job.k));
        let (rows, tiles) = (job.rows(form), job.tiles);
        for p in (0..job.panels).step_by(2) {
            let here = (job.panels - p).min(2);
            for l0 in (0..lines).step_by(most) {
                let n = most.min(lines - l0);
                let from = job.w.add(panel_offset(p, all_lines) + l0 * PAIR);
                let (mut w, mut tile_lines) = (from, n);
                if widen {
                    // Pairs of lines of f32, as the tiles would find them in packed weights.
                    for l in 0..n {
                        for j in 0..here {
                            let vectors = job.scratch.add(l * K::WORDS * 2 * WIDTH + j * WIDTH);
                            K::widen(from.add(l * PAIR + j * LINE), vectors, 2 * WIDTH);
                        }
                    }
                    (w, tile_lines) = (job.scratch.cast_const().cast(), n * K::WORDS);
                }
                let step = (n * PAIR * turn::<L, T>()).div_ceil(tiles * here * tile_lines);
                for t in 0..tiles {
                    let (r, h) = form.tile(job.m, job.tile + t);
                    let a = TileRows::packed(job.a.add(r * words + l0 * K::WORDS * h));
                    for j in 0..here {
                        let c = job.c.add(r * job.c_stride + (p + j) * WIDTH);
                        let at = from.wrapping_add(n * PAIR + (t * here + j) * n / (tiles * here) * PAIR);
                        let ahead = Ahead { at, step, ..Ahead::NONE };
                        let w = w.add(j * LINE);
                        by_rows!(
                            h,
                            L,
                            T,
                            1,
                            FETCH,
                            (c, job.c_stride, a, w, pair_bytes, tile_lines, l0 == 0, ahead)
                        );
                    }
                }
            }
            if K::SCALES == 0 {
                finish::<L, K>(job, p, here, rows.clone(), RowScales::NONE);
                continue;
            }
            for t in 0..tiles {
                let (r, h) = form.tile(job.m, job.tile + t);
                finish::<L, K>(job, p, here, r..r + h, RowScales::of_tile(job, form, r, h));
            }
        }
    }
}

/// Many rows: long blocks of K, so that tiles begin and end rarely; `T` as for [`short`].
#[inline(always)]
unsafe fn long<L: Lanes, K: Kind<L>, T: Kind<L>>(job: &Matmul) {
    let widen = K::STEP != T::STEP;
    let (lines, all_lines) = panel_lines::<L, K>(job.k);
    let pair_bytes = all_lines * PAIR;
    let t = &job.tuning;
    let per_block = if widen { t.widened } else { t.block_k }.div_ceil(K::STEP).max(1);
    let form = InputLayout::of::<L, K>(job.m);
    let (words, tiles) = (form.words(job.k), job.tiles);
    // Blocks of nearly equal size.
    let blocks = tiles.div_ceil((t.block_m / L::ROWS).max(1));
    // SAFETY: handed on from the caller; the scratch holds a widened block of two panels.
    unsafe {
        // A block of K serves all rows before the next one, so that the weights come from memory once.
        for l0 in (0..lines).step_by(per_block) {
            let n = per_block.min(lines - l0);
            let (first, last) = (l0 == 0, l0 + n == lines);
            for b in 0..blocks {
                let tiles_here = tiles * b / blocks..tiles * (b + 1) / blocks;
                let part = n.div_ceil(tiles_here.len());
                let mut p = 0;
                while p < job.panels {
                    let np = (job.panels - p).min(2);
                    let from = job.w.add(panel_offset(p, all_lines) + l0 * PAIR);
                    let next = job.w.wrapping_add(panel_offset(p + np, all_lines) + l0 * PAIR);
                    let (mut w, mut tile_lines) = (from, n);
                    if widen {
                        for l in 0..n {
                            for j in 0..np {
                                let vectors = job.scratch.add(l * K::WORDS * 2 * WIDTH + j * WIDTH);
                                K::widen(from.add(l * PAIR + j * LINE), vectors, 2 * WIDTH);
                            }
                        }
                        (w, tile_lines) = (job.scratch.cast_const().cast(), n * K::WORDS);
                    }
                    for ti in tiles_here.clone() {
                        let (r, h) = form.tile(job.m, job.tile + ti);
                        let a = TileRows::packed(job.a.add(r * words + l0 * K::WORDS * h));
                        let c = job.c.add(r * job.c_stride + p * WIDTH);
                        let ahead = Ahead::NONE;
                        if L::PANELS == 2 && np == 2 {
                            by_rows!(
                                h,
                                L,
                                T,
                                2,
                                NEAR,
                                (c, job.c_stride, a, w, pair_bytes, tile_lines, first, ahead)
                            );
                        } else {
                            for j in 0..np {
                                let (c, w) = (c.add(j * WIDTH), w.add(j * LINE));
                                by_rows!(
                                    h,
                                    L,
                                    T,
                                    1,
                                    NEAR,
                                    (c, job.c_stride, a, w, pair_bytes, tile_lines, first, ahead)
                                );
                            }
                        }
                        // Each tile asks for its part of the next panels.
                        let done = (ti - tiles_here.start) * part;
                        for l in done..(done + part).min(n) {
                            for j in 0..np {
                                L::prefetch_near(next.wrapping_add(l * PAIR + j * LINE));
                            }
                        }
                        if last {
                            finish::<L, K>(job, p, np, r..r + h, RowScales::of_tile(job, form, r, h));
                        }
                    }
                    p += np;
                }
            }
        }
    }
}
