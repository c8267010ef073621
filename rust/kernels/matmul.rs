//! `C = epilogue(A · W)` for rows of f32 activations and packed weight panels: one algorithm for one row and for many.
//!
//! The law of this file: every output has one f32 accumulator, and k ascends by the format's step, whatever the number of
//! rows, the tile, the block or the thread. A block of K may end in a stored f32 that the next block loads again, which
//! changes no bits. So a row's result does not depend on its company.
//!
//! A panel is sixteen outputs; its lines are 64 bytes: sixteen lanes of one k (f32), of two (bf16: pairs in a lane; f16:
//! sixteen of k, then sixteen of k + 1). Up to [`Lanes`]' tile height the rows are multiplied straight from the weights'
//! stream, several panels side by side to hide latency; a few tiles share short blocks of a panel; many rows go through
//! blocks of K, weights of 16 bits being widened once per block for all of them.

use super::activation::Epilogue;
use super::format::{F32, Kind, LINE};
use super::lanes::{Lanes, WIDTH, round_bf16};

/// Rows that the largest tile of any table takes.
const MAX_ROWS: usize = 12;
/// Up to this many rows a panel is taken whole, above them in blocks of K.
const FEW_ROWS: usize = 16;
/// Lines of a panel that a few tiles share: 8 KB.
const FEW_LINES: usize = 128;
/// Bytes that a packed tile looks ahead in weights that are in the cache already: from L2 to L1.
const AHEAD: usize = 256;

/// Sizes that change speed and no bits; one set per CPU family, see `cpu.rs`.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Panels side by side for one row: 1, 2 or 4.
    pub panels: usize,
    /// Bytes ahead of the stream that are prefetched for one row; 0 for none.
    pub prefetch: usize,
    /// As `prefetch`, for more rows: they look less far ahead by themselves.
    pub rows_prefetch: usize,
    /// Inputs in a block of weights that are multiplied as they are stored.
    pub block_k: usize,
    /// Inputs in a block of widened weights.
    pub widened: usize,
    /// Rows of activations packed at a time.
    pub block_m: usize,
}

impl Tuning {
    /// Floats of scratch that one thread needs for any product.
    pub fn scratch(&self, max_k: usize) -> usize {
        let k = self.block_k.max(self.widened) + LINE;
        let packed = (self.block_m + MAX_ROWS) * k;
        // The whole K of a few rows, and a widened block of two panels.
        packed + FEW_ROWS * (max_k + LINE) + 2 * WIDTH * k
    }
}

/// One product over a run of panels.
#[derive(Debug, Clone, Copy)]
pub struct Matmul {
    /// Activations, `m` rows of `k` floats, padded with finite values to an even number.
    pub a: *const f32,
    /// Floats from one row of activations to the next.
    pub a_stride: usize,
    /// Rows.
    pub m: usize,
    /// Inputs.
    pub k: usize,
    /// First panel; panels follow each other.
    pub w: *const u8,
    /// Number of panels.
    pub panels: usize,
    /// Output of the first panel, `m` rows of `16 * panels` floats.
    pub c: *mut f32,
    /// Floats from one row of output to the next.
    pub c_stride: usize,
    /// What finishes an output; its pointers are those of the first panel.
    pub epilogue: Epilogue,
    /// Working memory of [`Tuning::scratch`] floats.
    pub scratch: *mut f32,
    /// Sizes of blocks.
    pub tuning: Tuning,
    /// The table's epilogue routine.
    pub finish: unsafe fn(*mut f32, usize, usize, usize, &Epilogue),
}

/// Activations as a tile reads them: word `w` of row `r` is at `r * row + w * word`.
#[derive(Clone, Copy)]
struct Rows {
    at: *const f32,
    row: usize,
    word: usize,
}

/// Adds `lines` lines of `N` panels to `M` rows of accumulators. `PACKED` says that `a` is a packed tile of `M` rows.
#[inline(always)]
#[allow(
    clippy::needless_range_loop,
    reason = "indices keep the accumulators in registers without iterators' closures"
)]
unsafe fn tile<L: Lanes, K: Kind<L>, const M: usize, const N: usize, const PACKED: bool>(
    acc: &mut [[L::F; N]; M],
    a: Rows,
    w: [*const u8; N],
    lines: usize,
    prefetch: usize,
) {
    // SAFETY: the caller grants `lines` lines of every panel and `lines * WORDS` words of every row.
    unsafe {
        // No closures here: one that is not inlined would call every vector operation.
        let mut l = 0;
        if PACKED {
            // Constant offsets and two words a turn: what is not a load or an FMA is kept small, since a core that shares its
            // front end with another thread is bound by the number of instructions.
            let turn = 2 / K::WORDS;
            let mut x = a.at;
            let mut at = w;
            while l + turn <= lines {
                for u in 0..turn {
                    let mut line = [K::line(at[0].add(u * LINE)); N];
                    for j in 1..N {
                        line[j] = K::line(at[j].add(u * LINE));
                    }
                    for j in 0..N {
                        L::prefetch(at[j].wrapping_add(u * LINE + prefetch));
                    }
                    for r in 0..M {
                        for j in 0..N {
                            acc[r][j] = K::apply(acc[r][j], line[j], x.add(u * K::WORDS * M + r), M);
                        }
                    }
                }
                x = x.add(2 * M);
                for j in 0..N {
                    at[j] = at[j].add(turn * LINE);
                }
                l += turn;
            }
        }
        let (row, word) = if PACKED { (1, M) } else { (a.row, a.word) };
        while l < lines {
            let mut line = [K::line(w[0].add(l * LINE)); N];
            for j in 1..N {
                line[j] = K::line(w[j].add(l * LINE));
            }
            if prefetch > 0 {
                for p in w {
                    L::prefetch(p.wrapping_add(l * LINE + prefetch));
                }
            }
            for r in 0..M {
                let x = a.at.add(r * row + l * K::WORDS * word);
                for j in 0..N {
                    acc[r][j] = K::apply(acc[r][j], line[j], x, word);
                }
            }
            l += 1;
        }
    }
}

/// A tile over one block of K: accumulators from zero or from `c`, and back to `c`.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the innermost seam: everything is a register")]
unsafe fn block<L: Lanes, K: Kind<L>, const M: usize, const N: usize, const PACKED: bool>(
    c: *mut f32,
    c_stride: usize,
    a: Rows,
    w: *const u8,
    w_stride: usize,
    lines: usize,
    first: bool,
    prefetch: usize,
) {
    // SAFETY: the caller grants the tile of `c`, the lines and the words.
    unsafe {
        let at = |r: usize, j: usize| c.add(r * c_stride + j * WIDTH);
        // Rows of outputs lie in pages of their own: the next tile's come while this one is multiplied.
        for r in M..2 * M {
            L::prefetch(c.wrapping_add(r * c_stride).cast());
        }
        let mut acc = [[L::splat(0.0); N]; M];
        if !first {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (j, acc) in acc.iter_mut().enumerate() {
                    *acc = L::load(at(r, j));
                }
            }
        }
        tile::<L, K, M, N, PACKED>(
            &mut acc,
            a,
            std::array::from_fn(|j| w.add(j * w_stride)),
            lines,
            prefetch,
        );
        for (r, acc) in acc.iter().enumerate() {
            for (j, acc) in acc.iter().enumerate() {
                L::store(at(r, j), *acc);
            }
        }
    }
}

/// [`block`] for a number of rows known only at run time; never more than `L::ROWS`, and never less than half of them where
/// the rows are packed, because [`height`] splits them evenly.
macro_rules! by_rows {
    ($rows:expr, $L:ty, $K:ty, $N:literal, $P:literal, $args:tt) => {
        match $rows {
            1 if !$P || <$L>::ROWS <= 3 => block::<$L, $K, 1, $N, $P> $args,
            2 if !$P || <$L>::ROWS <= 5 => block::<$L, $K, 2, $N, $P> $args,
            3 if !$P || <$L>::ROWS <= 7 => block::<$L, $K, 3, $N, $P> $args,
            4 if !$P || <$L>::ROWS <= 9 => block::<$L, $K, 4, $N, $P> $args,
            5 if <$L>::ROWS >= 5 && (!$P || <$L>::ROWS <= 11) => block::<$L, $K, 5, $N, $P> $args,
            6 if <$L>::ROWS >= 6 => block::<$L, $K, 6, $N, $P> $args,
            7 if <$L>::ROWS >= 7 => block::<$L, $K, 7, $N, $P> $args,
            8 if <$L>::ROWS >= 8 => block::<$L, $K, 8, $N, $P> $args,
            9 if <$L>::ROWS >= 9 => block::<$L, $K, 9, $N, $P> $args,
            10 if <$L>::ROWS >= 10 => block::<$L, $K, 10, $N, $P> $args,
            11 if <$L>::ROWS >= 11 => block::<$L, $K, 11, $N, $P> $args,
            12 if <$L>::ROWS >= 12 => block::<$L, $K, 12, $N, $P> $args,
            n => unreachable!("a tile of {n} rows"),
        }
    };
}

/// `C = epilogue(A · W)`.
///
/// # Safety
/// As for [`Lanes`]; the pointers of `job` hold what its fields say.
#[inline(always)]
pub(super) unsafe fn matmul<L: Lanes, K: Kind<L>>(job: &Matmul) {
    let mut job = *job;
    let words = job.k.div_ceil(K::STEP) * K::WORDS;
    // SAFETY: handed on from the caller; the scratch has room for the pairs of `FEW_ROWS` rows.
    unsafe {
        if K::PAIRS && job.m <= L::ROWS {
            for r in 0..job.m {
                pair_row(job.a.add(r * job.a_stride), job.k, job.scratch.add(r * words), 1);
            }
            job.a = job.scratch;
            job.a_stride = words;
            job.scratch = job.scratch.add(FEW_ROWS * words);
        }
        if job.m <= L::ROWS {
            stream::<L, K>(&job);
        } else if job.m <= FEW_ROWS {
            few::<L, K>(&job);
        } else if K::WIDEN {
            many::<L, K, F32>(&job);
        } else {
            many::<L, K, K>(&job);
        }
    }
}

/// One row of activations as words of bf16 pairs, `step` words apart.
#[inline(always)]
unsafe fn pair_row(a: *const f32, k: usize, out: *mut f32, step: usize) {
    // SAFETY: the caller grants `k` floats and room for the words.
    unsafe {
        for i in 0..k.div_ceil(2) {
            let low = u32::from(round_bf16(*a.add(2 * i)));
            let high = if 2 * i + 1 < k { u32::from(round_bf16(*a.add(2 * i + 1))) } else { 0 };
            *out.add(i * step) = f32::from_bits(low | (high << 16));
        }
    }
}

/// A few rows: every panel's whole K in one go, straight from the stream of weights.
#[inline(always)]
unsafe fn stream<L: Lanes, K: Kind<L>>(job: &Matmul) {
    // SAFETY: handed on from the caller.
    unsafe {
        let lines = job.k.div_ceil(K::STEP);
        let panel = lines * LINE;
        let a = Rows { at: job.a, row: job.a_stride, word: 1 };
        let ahead = if job.m == 1 { job.tuning.prefetch } else { job.tuning.rows_prefetch };
        let mut done = 0;
        macro_rules! panels {
            ($m:literal, $n:literal) => {
                while job.panels - done >= $n {
                    let c = job.c.add(done * WIDTH);
                    let w = job.w.add(done * panel);
                    block::<L, K, $m, $n, false>(c, job.c_stride, a, w, panel, lines, true, ahead);
                    finish(job, done, $n, 0, $m);
                    done += $n;
                }
            };
        }
        let wide = L::ROWS >= 12;
        match job.m {
            1 => {
                if job.tuning.panels >= 4 {
                    panels!(1, 4);
                }
                if job.tuning.panels >= 2 {
                    panels!(1, 2);
                }
            }
            2 => {
                if wide {
                    panels!(2, 4);
                }
                panels!(2, 2);
            }
            3 if wide => panels!(3, 4),
            4 if wide => panels!(4, 4),
            5 if wide => panels!(5, 4),
            6 if wide => panels!(6, 4),
            7 if wide => panels!(7, 2),
            8 if wide => panels!(8, 2),
            9 if wide => panels!(9, 2),
            10 if wide => panels!(10, 2),
            11 if wide => panels!(11, 2),
            12 if wide => panels!(12, 2),
            _ => {}
        }
        while done < job.panels {
            let c = job.c.add(done * WIDTH);
            let w = job.w.add(done * panel);
            by_rows!(job.m, L, K, 1, false, (c, job.c_stride, a, w, panel, lines, true, ahead));
            finish(job, done, 1, 0, job.m);
            done += 1;
        }
    }
}

/// Hands the outputs of `panels` panels from `panel` on, `rows` rows from `row` on, to the epilogue.
#[inline(always)]
unsafe fn finish(job: &Matmul, panel: usize, panels: usize, row: usize, rows: usize) {
    if job.epilogue.is_none() {
        return;
    }
    // SAFETY: handed on from the caller: the tile lies inside the job.
    unsafe {
        let mut e = job.epilogue;
        if !e.bias.is_null() {
            e.bias = e.bias.add(panel * WIDTH);
        }
        if !e.residual.is_null() {
            e.residual = e.residual.add(row * e.residual_stride + panel * WIDTH);
        }
        let c = job.c.add(row * job.c_stride + panel * WIDTH);
        (job.finish)(c, job.c_stride, rows, panels * WIDTH, &e);
    }
}

/// A few tiles of rows, packed: panel by panel, in short blocks of lines that every tile takes while they are in L1. The first
/// tile fetches what comes after, so that memory is busy during the others, too.
#[inline(always)]
unsafe fn few<L: Lanes, K: Kind<L>>(job: &Matmul) {
    // SAFETY: handed on from the caller; the scratch has room for the words of `FEW_ROWS` rows.
    unsafe {
        let lines = job.k.div_ceil(K::STEP);
        let (panel, words) = (lines * LINE, lines * K::WORDS);
        let tiles = job.m.div_ceil(L::ROWS);
        pack::<L, K>(job, job.a, job.m, tiles, 0, lines);
        for p in 0..job.panels {
            for l0 in (0..lines).step_by(FEW_LINES) {
                let n = FEW_LINES.min(lines - l0);
                let w = job.w.add(p * panel + l0 * LINE);
                let mut r = 0;
                for t in 0..tiles {
                    let h = height(job.m, tiles, t);
                    let at = job.scratch.add(r * words + l0 * K::WORDS * h);
                    let a = Rows { at, row: 1, word: h };
                    let c = job.c.add(r * job.c_stride + p * WIDTH);
                    let ahead = if t == 0 { job.tuning.rows_prefetch } else { AHEAD };
                    by_rows!(h, L, K, 1, true, (c, job.c_stride, a, w, panel, n, l0 == 0, ahead));
                    r += h;
                }
            }
            finish(job, p, 1, 0, job.m);
        }
    }
}

/// Rows of tile `t` when `rows` are split into `tiles` of nearly equal height.
#[inline(always)]
fn height(rows: usize, tiles: usize, t: usize) -> usize {
    rows / tiles + usize::from(t < rows % tiles)
}

/// Many rows: blocks of K, activations packed into tiles, weights of 16 bits widened once per block for all of them. `T` is
/// the kind that the tiles multiply: `K` itself, or f32 after widening.
#[inline(always)]
unsafe fn many<L: Lanes, K: Kind<L>, T: Kind<L>>(job: &Matmul) {
    let widen = K::STEP != T::STEP;
    let lines = job.k.div_ceil(K::STEP);
    let panel = lines * LINE;
    let t = &job.tuning;
    let per_block = if widen { t.widened } else { t.block_k }.div_ceil(K::STEP).max(1);
    // SAFETY: handed on from the caller; the scratch holds the packed rows and after them the widened block.
    unsafe {
        let widened = job.scratch.add((t.block_m + MAX_ROWS) * (t.block_k.max(t.widened) + LINE));
        // A block of K serves all rows before the next one, so that the weights come from memory once.
        for l0 in (0..lines).step_by(per_block) {
            let n = per_block.min(lines - l0);
            let (first, last) = (l0 == 0, l0 + n == lines);
            let words = n * K::WORDS;
            // Blocks of nearly equal size, so that no tile is lower than half of the largest.
            let blocks = job.m.div_ceil(t.block_m.max(L::ROWS));
            for block in 0..blocks {
                let m0 = job.m * block / blocks;
                let rows = job.m * (block + 1) / blocks - m0;
                let tiles = rows.div_ceil(L::ROWS);
                pack::<L, K>(job, job.a.add(m0 * job.a_stride), rows, tiles, l0, n);
                let mut p = 0;
                while p < job.panels {
                    let np = L::PANELS.min(job.panels - p);
                    let mut w = job.w.add(p * panel + l0 * LINE);
                    let (mut w_stride, mut tile_lines) = (panel, n);
                    if widen {
                        for j in 0..np {
                            for l in 0..n {
                                let to = (j * words + l * K::WORDS) * WIDTH;
                                K::widen(w.add(j * panel + l * LINE), widened.add(to));
                            }
                        }
                        w = widened.cast();
                        (w_stride, tile_lines) = (words * LINE, words);
                    }
                    let mut r = 0;
                    for ti in 0..tiles {
                        let h = height(rows, tiles, ti);
                        let a = Rows { at: job.scratch.add(r * words), row: 1, word: h };
                        let c = job.c.add((m0 + r) * job.c_stride + p * WIDTH);
                        let ahead = if ti == 0 && !widen { t.rows_prefetch } else { AHEAD };
                        if L::PANELS == 2 && np == 2 {
                            by_rows!(
                                h,
                                L,
                                T,
                                2,
                                true,
                                (c, job.c_stride, a, w, w_stride, tile_lines, first, ahead)
                            );
                        } else {
                            by_rows!(
                                h,
                                L,
                                T,
                                1,
                                true,
                                (c, job.c_stride, a, w, w_stride, tile_lines, first, ahead)
                            );
                        }
                        if last {
                            finish(job, p, np, m0 + r, h);
                        }
                        r += h;
                    }
                    p += np;
                }
            }
        }
    }
}

/// Copies the words of lines `l0..l0 + n` of `rows` rows into tiles: word by word, the tile's rows side by side.
#[inline(always)]
unsafe fn pack<L: Lanes, K: Kind<L>>(
    job: &Matmul,
    a: *const f32,
    rows: usize,
    tiles: usize,
    l0: usize,
    n: usize,
) {
    // SAFETY: handed on from the caller.
    unsafe {
        let words = n * K::WORDS;
        let mut r = 0;
        for t in 0..tiles {
            let h = height(rows, tiles, t);
            let out = job.scratch.add(r * words);
            let from = a.add(r * job.a_stride + l0 * K::STEP);
            if K::PAIRS {
                for i in 0..h {
                    let row = from.add(i * job.a_stride);
                    pair_row(row, (n * K::STEP).min(job.k - l0 * K::STEP), out.add(i), h);
                }
            } else if h == L::ROWS {
                interleave(from, job.a_stride, L::ROWS, words, out);
            } else {
                interleave(from, job.a_stride, h, words, out);
            }
            r += h;
        }
    }
}

/// Writes `words` words of `h` rows word by word, the rows side by side; stores follow each other, which is what counts.
#[inline(always)]
unsafe fn interleave(from: *const f32, stride: usize, h: usize, words: usize, out: *mut f32) {
    // SAFETY: the caller grants the words of every row, and room for all of them.
    unsafe {
        for w in 0..words {
            for i in 0..h {
                *out.add(w * h + i) = *from.add(i * stride + w);
            }
        }
    }
}
