//! The innermost loops of a product: a tile of rows by panels, its accumulators in registers from the first line to the last.
//!
//! Lines are added in ascending order, one accumulator per output; nothing here depends on what lies beside the tile.

use super::formats::{Kind, LINE, PAIR};
use super::lanes::{Lanes, WIDTH};

/// Activations as a tile reads them: rows of words, or a packed tile.
#[derive(Clone, Copy)]
pub(super) struct TileRows {
    pub(super) at: *const f32,
    /// Words from one row to the next, where they are not packed.
    pub(super) stride: usize,
}

impl TileRows {
    /// A packed tile.
    pub(super) fn packed(at: *const f32) -> Self {
        Self { at, stride: 1 }
    }
}

/// What a tile asks the memory for while it multiplies.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// The first byte of a tile that fetches.
    pub(super) at: *const u8,
    /// Bytes from there with every turn of such a tile, or ahead of the stream of rows as they lie; 0 for nothing.
    pub(super) step: usize,
    /// For rows as they lie: the line from which on `step` would lead past the panel's end, and takes `jump` more, to the
    /// panels that come next.
    pub(super) last: usize,
    /// Bytes of the panels between.
    pub(super) jump: usize,
}

impl Ahead {
    /// Nothing.
    pub(super) const NONE: Self = Self { at: std::ptr::null(), step: 0, last: 0, jump: 0 };

    /// For `n` panels side by side of `lines` lines each: `step` bytes ahead in each, or in the one that takes its place.
    pub(super) fn of(step: usize, lines: usize, n: usize) -> Self {
        let pairs_between = n.div_ceil(2) - 1;
        Self {
            step,
            last: lines.saturating_sub(step / PAIR),
            jump: pairs_between * lines * PAIR,
            ..Self::NONE
        }
    }
}

/// Rows as they lie: every line of every panel is fetched ahead.
pub(super) const PLAIN: u8 = 0;
/// A packed tile whose lines are near already.
pub(super) const NEAR: u8 = 1;
/// A packed tile that fetches its part of the lines that come after it.
pub(super) const FETCH: u8 = 2;

/// Lines of a turn of a packed tile.
pub(super) const fn turn<L: Lanes, K: Kind<L>>() -> usize {
    2 / K::WORDS
}

/// Adds `lines` lines of `N` panels to `M` rows of accumulators; a panel's lines are [`PAIR`] bytes apart.
#[inline(always)]
#[allow(
    clippy::needless_range_loop,
    reason = "indices keep the accumulators in registers without iterators' closures"
)]
unsafe fn tile<L: Lanes, K: Kind<L>, const M: usize, const N: usize, const A: u8>(
    acc: &mut [[L::F; N]; M],
    a: TileRows,
    w: [*const u8; N],
    lines: usize,
    ahead: Ahead,
) {
    // SAFETY: the caller grants `lines` lines of every panel and `lines * WORDS` words of every row.
    unsafe {
        // No closures here: one that is not inlined would call every vector operation.
        let mut l = 0;
        if A != PLAIN {
            // Constant offsets and two words a turn: what is not a load or an FMA is kept small, since a core that shares its
            // front end with another thread is bound by the number of instructions.
            let turn = turn::<L, K>();
            let mut x = a.at;
            let mut at = w;
            let mut next = ahead.at;
            while l + turn <= lines {
                if A == FETCH {
                    L::prefetch(next);
                    next = next.wrapping_add(ahead.step);
                }
                for u in 0..turn {
                    let mut line = [K::line(at[0].add(u * PAIR)); N];
                    for j in 1..N {
                        line[j] = K::line(at[j].add(u * PAIR));
                    }
                    for r in 0..M {
                        for j in 0..N {
                            acc[r][j] = K::apply(acc[r][j], line[j], x.add(u * K::WORDS * M + r), M);
                        }
                    }
                }
                x = x.add(2 * M);
                for j in 0..N {
                    at[j] = at[j].wrapping_add(turn * PAIR);
                }
                l += turn;
            }
        }
        let (row, word) = if A == PLAIN { (a.stride, 1) } else { (1, M) };
        while l < lines {
            let mut line = [K::line(w[0].add(l * PAIR)); N];
            for j in 1..N {
                line[j] = K::line(w[j].add(l * PAIR));
            }
            if A == PLAIN && ahead.step > 0 {
                let step = if l < ahead.last { ahead.step } else { ahead.step + ahead.jump };
                for p in w {
                    let line = p.wrapping_add(l * PAIR + step);
                    // What comes much later would be pushed out of the first level again.
                    if M == 1 { L::prefetch(line) } else { L::prefetch_near(line) }
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

/// A tile over one block of K: accumulators from zero or from `c`, and back to `c`. `pair_bytes` lead from one pair of panels to
/// the next, where there are more than two panels.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the innermost seam: everything is a register")]
pub(super) unsafe fn block<L: Lanes, K: Kind<L>, const M: usize, const N: usize, const A: u8>(
    c: *mut f32,
    c_stride: usize,
    a: TileRows,
    w: *const u8,
    pair_bytes: usize,
    lines: usize,
    first: bool,
    ahead: Ahead,
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
        let panels = std::array::from_fn(|j| w.add(j / 2 * pair_bytes + j % 2 * LINE));
        tile::<L, K, M, N, A>(&mut acc, a, panels, lines, ahead);
        for (r, acc) in acc.iter().enumerate() {
            for (j, acc) in acc.iter().enumerate() {
                L::store(at(r, j), *acc);
            }
        }
    }
}

/// [`block`] for a number of rows known only at run time; never more than `L::ROWS`, and never less than half of them where
/// the rows are packed into several tiles, because `rows::height` splits them evenly.
macro_rules! by_rows {
    ($rows:expr, $L:ty, $K:ty, $N:literal, $A:expr, $args:tt) => {
        match $rows {
            1 if $A == PLAIN || <$L>::ROWS <= 3 => block::<$L, $K, 1, $N, { $A }> $args,
            2 if $A == PLAIN || <$L>::ROWS <= 5 => block::<$L, $K, 2, $N, { $A }> $args,
            3 if $A == PLAIN || <$L>::ROWS <= 7 => block::<$L, $K, 3, $N, { $A }> $args,
            4 if $A == PLAIN || <$L>::ROWS <= 9 => block::<$L, $K, 4, $N, { $A }> $args,
            5 if <$L>::ROWS >= 5 && ($A == PLAIN || <$L>::ROWS <= 11) => block::<$L, $K, 5, $N, { $A }> $args,
            6 if <$L>::ROWS >= 6 => block::<$L, $K, 6, $N, { $A }> $args,
            7 if <$L>::ROWS >= 7 => block::<$L, $K, 7, $N, { $A }> $args,
            8 if <$L>::ROWS >= 8 => block::<$L, $K, 8, $N, { $A }> $args,
            9 if <$L>::ROWS >= 9 => block::<$L, $K, 9, $N, { $A }> $args,
            10 if <$L>::ROWS >= 10 => block::<$L, $K, 10, $N, { $A }> $args,
            11 if <$L>::ROWS >= 11 => block::<$L, $K, 11, $N, { $A }> $args,
            12 if <$L>::ROWS >= 12 => block::<$L, $K, 12, $N, { $A }> $args,
            n => unreachable!("a tile of {n} rows"),
        }
    };
}
pub(super) use by_rows;
