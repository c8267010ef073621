//! Products whose integers are summed by groups of inputs: each group's sum becomes f32 by its own scales, and is added to the one
//! accumulator of its output, groups ascending.
//!
//! A panel has a head and some lines for each group. A row of activations has two words and then its integers for each group: what
//! the head is multiplied by, which takes the zero points out of the sum, and the group's scale. So
//! `acc = fma(f32(head · word + sum), scale, acc)`, whatever the number of rows, the tile or the thread.

use super::activation::Scales;
use super::formats::{Grouped, HEAD_WORDS, LINE, PAIR, panel_offset};
use super::lanes::{Lanes, WIDTH};
use super::matmul::{Matmul, finish_with};
use super::rows::InputLayout;

/// Lines of each panel in a block of groups that was unpacked.
const BLOCK_LINES: usize = 128;

/// Rows of a tile: half of a product's, since integers and sums take a register each.
pub(super) const fn tile_rows<L: Lanes>() -> usize {
    L::ROWS / 2
}

/// Rows of words: row `r` of a tile begins `r * row` words behind the first, and its words are `next` apart.
#[derive(Clone, Copy)]
struct Words {
    at: *const f32,
    row: usize,
    next: usize,
}

/// What is the same for every tile of a product.
#[derive(Clone, Copy)]
struct Shape {
    /// Lines of a group behind its head, as a tile reads them.
    lines: usize,
    /// Words of a row for a group.
    words: usize,
    /// Bytes ahead of the stream at which lines are asked for; 0 for none.
    ahead: usize,
}

/// `C = epilogue(A · W)` for weights in groups.
///
/// # Safety
/// As for [`Lanes`]; the pointers of `job` hold what its fields say.
#[inline(always)]
pub(super) unsafe fn matmul<L: Lanes, K: Grouped<L>>(job: &Matmul) {
    let form = InputLayout::of_groups::<L, K>(job.m, job.group);
    let (groups, lines) = (job.k.div_ceil(job.group), job.group / K::STEP);
    let words = HEAD_WORDS + lines * K::WORDS;
    let all_lines = groups * (1 + lines) + K::SCALES;
    let few = job.m <= tile_rows::<L>();
    let rows = if few { 0..job.m } else { form.of_tiles(job.m, job.tile..job.tile + job.tiles) };
    // SAFETY: handed on from the caller; the scratch holds an unpacked block of two panels.
    unsafe {
        for p in (0..job.panels).step_by(2) {
            let here = (job.panels - p).min(2);
            let w = job.w.add(panel_offset(p, all_lines));
            let c = job.c.add(p * WIDTH);
            if few {
                // Rows lie one after the other, each a tile of its own.
                let rows = Words { at: job.a, row: groups * words, next: 1 };
                let shape = Shape { lines, words, ahead: job.tuning.widened_prefetch.of(job.m) };
                panels::<L, K>(c, job.c_stride, job.m, here, rows, w, groups, shape, true);
            } else {
                many::<L, K>(job, form, c, here, w, groups);
            }
            let columns = w.add(groups * (1 + lines) * PAIR);
            let scales =
                if K::SCALES == 0 { Scales::NONE } else { Scales::of_columns(columns, all_lines * PAIR) };
            finish_with(job, p, here, rows.clone(), scales);
        }
    }
}

/// Many rows: blocks of groups that are unpacked once for all tiles.
#[inline(always)]
unsafe fn many<L: Lanes, K: Grouped<L>>(
    job: &Matmul,
    form: InputLayout,
    c: *mut f32,
    here: usize,
    w: *const u8,
    groups: usize,
) {
    let lines = job.group / K::STEP;
    // Unpacked lines take a word each, as the lines that they come from take several.
    let unpacked = if K::UNPACKS { lines * K::WORDS } else { lines };
    let words = HEAD_WORDS + lines * K::WORDS;
    let per_block = (BLOCK_LINES / (1 + unpacked)).max(1);
    // SAFETY: handed on from the caller.
    unsafe {
        for first in (0..groups).step_by(per_block) {
            let n = per_block.min(groups - first);
            let mut from = w.add(first * (1 + lines) * PAIR);
            if K::UNPACKS {
                let block = job.scratch.cast::<u8>();
                for g in 0..n {
                    let (line, to) = (from.add(g * (1 + lines) * PAIR), block.add(g * (1 + unpacked) * PAIR));
                    for j in 0..here {
                        let (line, to) = (line.add(j * LINE), to.add(j * LINE));
                        L::store(to.cast(), L::load(line.cast()));
                        for l in 0..lines {
                            K::unpack(line.add((1 + l) * PAIR), to.add((1 + l * K::WORDS) * PAIR));
                        }
                    }
                }
                from = block;
            }
            let shape = Shape { lines: unpacked, words, ahead: 0 };
            for t in job.tile..job.tile + job.tiles {
                let (r, h) = form.tile(job.m, t);
                let at = job.a.add((r * groups + first * h) * words);
                let rows = Words { at, row: 1, next: h };
                let c = c.add(r * job.c_stride);
                panels::<L, K::Unpacked>(c, job.c_stride, h, here, rows, from, n, shape, first == 0);
            }
        }
    }
}

/// Some groups of one panel or two for a tile of `h` rows.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the inner seam: everything is a register")]
unsafe fn panels<L: Lanes, K: Grouped<L>>(
    c: *mut f32,
    c_stride: usize,
    h: usize,
    here: usize,
    rows: Words,
    w: *const u8,
    groups: usize,
    shape: Shape,
    first: bool,
) {
    macro_rules! tiles {
        ($($m:literal),*) => {
            match h {
                $($m if $m <= tile_rows::<L>() => {
                    if here == 2 && L::PANELS == 2 {
                        tile::<L, K, $m, 2>(c, c_stride, rows, w, groups, shape, first);
                    } else {
                        for j in 0..here {
                            let (c, w) = (c.add(j * WIDTH), w.add(j * LINE));
                            tile::<L, K, $m, 1>(c, c_stride, rows, w, groups, shape, first);
                        }
                    }
                })*
                _ => unreachable!("a tile of {h} rows"),
            }
        };
    }
    // SAFETY: handed on from the caller.
    unsafe { tiles!(1, 2, 3, 4, 5, 6) }
}

/// A tile over some groups: accumulators from zero or from `c`, and back to `c`.
#[inline(always)]
#[allow(
    clippy::needless_range_loop,
    reason = "indices keep the accumulators in registers without iterators' closures"
)]
unsafe fn tile<L: Lanes, K: Grouped<L>, const M: usize, const N: usize>(
    c: *mut f32,
    c_stride: usize,
    rows: Words,
    w: *const u8,
    groups: usize,
    shape: Shape,
    first: bool,
) {
    // SAFETY: the caller grants the tile of `c`, the lines and the words.
    unsafe {
        let mut acc = [[L::splat(0.0); N]; M];
        if !first {
            for r in 0..M {
                for n in 0..N {
                    acc[r][n] = L::load(c.add(r * c_stride + n * WIDTH));
                }
            }
        }
        let (mut at, mut x) = (w, rows.at);
        for _ in 0..groups {
            let mut sums = [[L::splat(0.0); N]; M];
            for r in 0..M {
                for n in 0..N {
                    let head = L::load(at.add(n * LINE).cast());
                    sums[r][n] = L::dot_pairs(L::splat(0.0), head, L::splat(*x.add(r * rows.row)));
                }
            }
            let mut line = at.add(PAIR);
            let mut word = x.add(HEAD_WORDS * rows.next);
            for _ in 0..shape.lines {
                let mut lines = [K::line(line); N];
                for n in 1..N {
                    lines[n] = K::line(line.add(n * LINE));
                }
                if shape.ahead > 0 {
                    for n in 0..N {
                        L::prefetch(line.wrapping_add(n * LINE + shape.ahead));
                    }
                }
                for r in 0..M {
                    for n in 0..N {
                        sums[r][n] = K::apply(sums[r][n], lines[n], word.add(r * rows.row), rows.next);
                    }
                }
                line = line.add(PAIR);
                word = word.add(K::WORDS * rows.next);
            }
            for r in 0..M {
                let scale = L::splat(*x.add(r * rows.row + rows.next));
                for n in 0..N {
                    let scale = K::scale(at.add(n * LINE), scale);
                    acc[r][n] = L::fma(L::to_float(sums[r][n]), scale, acc[r][n]);
                }
            }
            at = at.add((1 + shape.lines) * PAIR);
            x = x.add(shape.words * rows.next);
        }
        for r in 0..M {
            for n in 0..N {
                L::store(c.add(r * c_stride + n * WIDTH), acc[r][n]);
            }
        }
    }
}
