//! Attention of a few query rows of one head over the cached keys and values of one sequence.
//!
//! Keys and values lie as `cache.rs` says: scores come out sixteen tokens wide. Keys are reduced in chunks of 256 absolute
//! positions from key 0, each alone (maximum, sum, weighted values, from zero), and merged in ascending order. A chunk's result
//! does not depend on how many queries go through it together: per query and output there is one accumulator, ascending in the
//! dimension, then in the token. Masked and unwritten lanes have weight exactly 0 and unwritten blocks hold zeros, so they add
//! exact zeros. Over a bf16 cache queries and weights are rounded to bf16, as the operands of a product; sums of weights are not.

use super::cache::BLOCK;
use super::formats::{Kind, LINE, Words};
use super::lanes::{Lanes, WIDTH};
use super::math;
use super::tile::TileRows;

/// Keys that are reduced together; a multiple of [`BLOCK`].
pub const CHUNK: usize = 256;
/// Query rows of a tile, at most; tables with half of the registers take half of them.
const MAX_ROWS: usize = 12;
/// Query rows of a pass that is bound by memory, at most: such a pass asks for what it reads next.
const FEW_ROWS: usize = 8;
/// The same in tables with half of the registers.
const FEW_ROWS_OF_HALF: usize = 6;

/// Which keys a query row may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visible {
    /// A row at position `p` sees the last `window` keys of `0..=p`.
    Causal {
        /// Position of the first query row.
        first: usize,
        /// Keys that a row sees at most, its own included; `usize::MAX` for all of them.
        window: usize,
    },
    /// Every row sees keys `0..keys`.
    All {
        /// Number of keys.
        keys: usize,
    },
}

impl Visible {
    /// The keys that a row of the `i`-th position sees.
    #[inline(always)]
    fn keys(self, i: usize) -> Seen {
        match self {
            Self::Causal { first, window } => {
                let end = first + i + 1;
                Seen { from: end.saturating_sub(window), end }
            }
            Self::All { keys } => Seen { from: 0, end: keys },
        }
    }
}

/// A run of keys, by position.
#[derive(Debug, Clone, Copy)]
struct Seen {
    from: usize,
    end: usize,
}

/// A score's addend by bucket of the distance: key `j` and query position `p` take that of `j - p`.
#[derive(Debug, Clone, Copy)]
pub struct Bias<'a> {
    /// The head's value by bucket.
    pub values: &'a [f32],
    /// Bucket by distance, an odd number of them with distance 0 in the middle, each below the number of values; distances
    /// past either end fall into the bucket there.
    pub buckets: &'a [u32],
    /// Position of the first query row.
    pub first: usize,
}

impl Bias<'_> {
    /// The values of `n` distances from `from` on.
    ///
    /// # Safety
    /// `out` has room for them, and the buckets are as the field says.
    #[inline(always)]
    unsafe fn spread(&self, from: isize, n: usize, out: *mut f32) {
        let reach = (self.buckets.len() / 2).cast_signed();
        let within = |distance: isize| distance.clamp(0, n.cast_signed()).unsigned_abs();
        let (near, far) = (within(-reach - from), within(reach + 1 - from));
        // SAFETY: `near..far` are the places whose distance is from -reach to reach; the caller grants the rest.
        unsafe {
            let value =
                |place: usize| *self.values.get_unchecked(*self.buckets.get_unchecked(place) as usize);
            for i in 0..near {
                *out.add(i) = value(0);
            }
            for i in near..far {
                *out.add(i) = value((from + reach + i.cast_signed()).unsigned_abs());
            }
            for i in far..n {
                *out.add(i) = value(self.buckets.len() - 1);
            }
        }
    }
}

/// Query rows of one sequence under one head of keys: position by position, those of the `group` query heads that share the keys.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// First query row's head, `d` floats.
    pub q: *const f32,
    /// Floats from one query row to the next.
    pub q_stride: usize,
    /// Query rows, a multiple of `group`.
    pub rows: usize,
    /// Query rows of one position, at least 1; only 1 where there is a bias.
    pub group: usize,
    /// Head dimension.
    pub d: usize,
    /// The sequence's blocks, each holding 16 tokens of every layer and head.
    pub blocks: &'a [*const u8],
    /// Bytes from a block's start to this head's keys.
    pub keys: usize,
    /// Bytes from a block's start to this head's values.
    pub values: usize,
    /// Which keys a row may see.
    pub visible: Visible,
    /// Multiplies the scores.
    pub scale: f32,
    /// Added to the scaled scores.
    pub bias: Option<Bias<'a>>,
    /// First result row's head, `d` floats; those of a position lie side by side.
    pub out: *mut f32,
    /// Floats from the results of one position to those of the next.
    pub out_stride: usize,
    /// Whether results are rounded to bf16.
    pub round: bool,
    /// What this thread attends to next: the blocks, and the bytes from a block's start to the keys. Asked for in good time.
    pub next: (&'a [*const u8], usize),
    /// Working memory of [`scratch`] floats.
    pub scratch: *mut f32,
}

/// Floats of working memory for head dimension `d`.
pub fn scratch(d: usize) -> usize {
    spread_at(d) + CHUNK + MAX_ROWS
}

/// Where the addends of a chunk's scores are in the working memory: behind scores, sums and queries.
fn spread_at(d: usize) -> usize {
    MAX_ROWS * (CHUNK + 2 * d.next_multiple_of(WIDTH)) + WIDTH
}

/// Attention of `job.rows` rows.
///
/// # Safety
/// As for [`Lanes`]; the pointers of `job` hold what its fields say, and `blocks` cover every visible key.
#[inline(always)]
pub(super) unsafe fn attention<L: Lanes, K: Kind<L>>(job: &Attention<'_>) {
    // SAFETY: handed on from the caller.
    unsafe {
        let mut i = 0;
        while L::ROWS >= MAX_ROWS && i + MAX_ROWS <= job.rows {
            rows::<L, K, MAX_ROWS, 1>(job, i);
            i += MAX_ROWS;
        }
        // Every pass reads all keys and values, so what is left takes as few passes as it can, of nearly the same height.
        let most = if L::ROWS >= MAX_ROWS { FEW_ROWS } else { FEW_ROWS_OF_HALF };
        while i < job.rows {
            let left = job.rows - i;
            let height = left.div_ceil(left.div_ceil(most));
            match height {
                1 => rows::<L, K, 1, 4>(job, i),
                2 => rows::<L, K, 2, 2>(job, i),
                3 => rows::<L, K, 3, 2>(job, i),
                4 => rows::<L, K, 4, 1>(job, i),
                5 => rows::<L, K, 5, 1>(job, i),
                6 => rows::<L, K, 6, 1>(job, i),
                7 if L::ROWS >= MAX_ROWS => rows::<L, K, 7, 1>(job, i),
                8 if L::ROWS >= MAX_ROWS => rows::<L, K, 8, 1>(job, i),
                _ => unreachable!("a pass of {height} rows"),
            }
            i += height;
        }
    }
}

/// What is known of a row's softmax after some chunks.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
    /// Factors of the older chunks and of the newest one in this merge.
    older: f32,
    newest: f32,
}

/// `R` rows from row `i0` on, through every chunk that the last of them sees. `N` blocks of keys, or vectors of values, go side
/// by side: an accumulator waits for its own last addition only, so few rows need several of them.
#[inline(always)]
unsafe fn rows<L: Lanes, K: Kind<L>, const R: usize, const N: usize>(job: &Attention<'_>, i0: usize) {
    // SAFETY: handed on from the caller.
    unsafe {
        let width = job.d.next_multiple_of(WIDTH);
        let scores = job.scratch;
        let total = scores.add(R * CHUNK);
        for x in 0..R * width {
            *total.add(x) = 0.0;
        }
        let q = queries::<L, K, R>(job, i0, total.add(R * width));
        let mut run = [Running { max: f32::NEG_INFINITY, sum: 0.0, older: 0.0, newest: 0.0 }; R];
        let seen: [Seen; R] = std::array::from_fn(|r| job.visible.keys((i0 + r) / job.group));
        let keys = seen[R - 1].end;
        let spread = scores.add(spread_at(job.d));
        // Chunks begin at absolute positions, and those in front of every row's window change nothing.
        for c0 in (seen[0].from / CHUNK * CHUNK..keys).step_by(CHUNK) {
            let blocks = (keys - c0).min(CHUNK).div_ceil(BLOCK);
            // Neighbouring rows look at the same distances, shifted by one: they are looked up once for all of them.
            if let Some(bias) = &job.bias {
                let last_row = (bias.first + i0 + R - 1).cast_signed();
                bias.spread(c0.cast_signed() - last_row, blocks * BLOCK + R - 1, spread);
            }
            let mut b = 0;
            while b + N <= blocks {
                score::<L, K, R, N>(
                    job,
                    q,
                    &seen,
                    c0 / BLOCK + b,
                    spread.add(b * BLOCK),
                    scores.add(b * BLOCK),
                );
                b += N;
            }
            while b < blocks {
                score::<L, K, R, 1>(
                    job,
                    q,
                    &seen,
                    c0 / BLOCK + b,
                    spread.add(b * BLOCK),
                    scores.add(b * BLOCK),
                );
                b += 1;
            }
            for (r, run) in run.iter_mut().enumerate() {
                let sees = seen[r].end > c0 && seen[r].from < c0 + CHUNK;
                weigh::<L, K>(scores.add(r * CHUNK), blocks, sees, run);
            }
            // What comes next: the keys of the chunk behind this one, or the first ones of what follows.
            let (behind, first) = (c0 + CHUNK, c0 / BLOCK);
            let next = if behind < keys { (&job.blocks[behind / BLOCK..], job.keys) } else { job.next };
            let mut v = 0;
            while v + N * WIDTH <= width {
                values::<L, K, R, N>(job, first, blocks, v, scores, &run, next, total.add(v));
                v += N * WIDTH;
            }
            while v < width {
                values::<L, K, R, 1>(job, first, blocks, v, scores, &run, next, total.add(v));
                v += WIDTH;
            }
        }
        for (r, run) in run.iter().enumerate() {
            let scale = L::splat(run.sum);
            for v in (0..job.d).step_by(WIDTH) {
                let mut x = L::div(L::load(total.add(r * width + v)), scale);
                if job.round {
                    x = L::round_bf16(x);
                }
                let (position, head) = ((i0 + r) / job.group, (i0 + r) % job.group);
                let out = job.out.add(position * job.out_stride + head * job.d + v);
                let rest = (job.d - v).min(WIDTH);
                if rest == WIDTH { L::store(out, x) } else { L::store_part(out, x, rest) }
            }
        }
    }
}

/// `R` rows of queries from row `i0` on as words that keys are multiplied by: where they lie, or rounded to bf16 at `out`.
#[inline(always)]
unsafe fn queries<L: Lanes, K: Kind<L>, const R: usize>(
    job: &Attention<'_>,
    i0: usize,
    out: *mut f32,
) -> TileRows {
    // SAFETY: handed on from the caller; `out` has room for `R` rows padded to whole vectors.
    unsafe {
        let q = job.q.add(i0 * job.q_stride);
        if K::STEP == 1 {
            return TileRows { at: q, stride: job.q_stride };
        }
        let width = job.d.next_multiple_of(WIDTH);
        for r in 0..R {
            for x in (0..job.d).step_by(WIDTH) {
                let part = L::load_part(q.add(r * job.q_stride + x), (job.d - x).min(WIDTH));
                operands::<L, K>(part, out.add(r * width + x / K::STEP * K::WORDS));
            }
        }
        TileRows { at: out, stride: width }
    }
}

/// Sixteen factors of a product as words of the kind `K`: themselves, rounded to bf16, or in pairs.
#[inline(always)]
unsafe fn operands<L: Lanes, K: Kind<L>>(v: L::F, out: *mut f32) {
    // SAFETY: the caller grants room for the words.
    unsafe {
        if K::INPUT == Words::Pairs {
            let lanes = L::to_array(v);
            L::pair_bf16(lanes.as_ptr(), out);
        } else {
            L::store(out, if K::STEP == 1 { v } else { L::round_bf16(v) });
        }
    }
}

/// Scores of `N` blocks of keys: scaled, biased by the last row's addends at `spread` and the others' behind them, masked with
/// -inf.
#[inline(always)]
#[allow(
    clippy::needless_range_loop,
    reason = "indices keep the accumulators in registers without iterators' closures"
)]
unsafe fn score<L: Lanes, K: Kind<L>, const R: usize, const N: usize>(
    job: &Attention<'_>,
    q: TileRows,
    seen: &[Seen; R],
    block: usize,
    spread: *const f32,
    out: *mut f32,
) {
    // SAFETY: handed on from the caller; the blocks are the sequence's.
    unsafe {
        let mut keys = [job.blocks[block].add(job.keys); N];
        for n in 1..N {
            keys[n] = job.blocks[block + n].add(job.keys);
        }
        let mut acc = [[L::splat(0.0); N]; R];
        for x in 0..job.d.div_ceil(K::STEP) {
            let mut line = [K::line(keys[0].add(x * LINE)); N];
            for n in 1..N {
                line[n] = K::line(keys[n].add(x * LINE));
            }
            // Few rows wait for memory: a block's values are as many lines as its keys, and come meanwhile, into the
            // second level, since the first has no room for both.
            if R <= FEW_ROWS {
                for key in keys {
                    L::prefetch_near(key.wrapping_add(job.values - job.keys + x * LINE));
                }
            }
            for r in 0..R {
                let query = q.at.add(r * q.stride + x * K::WORDS);
                for n in 0..N {
                    acc[r][n] = K::apply(acc[r][n], line[n], query, 1);
                }
            }
        }
        for r in 0..R {
            let Seen { from, end } = seen[r];
            for n in 0..N {
                let first_key = (block + n) * BLOCK;
                let mut s = L::mul(acc[r][n], L::splat(job.scale));
                if job.bias.is_some() {
                    s = L::add(s, L::load(spread.add(n * BLOCK + R - 1 - r)));
                }
                if end < first_key + BLOCK || from > first_key {
                    let mut a = L::to_array(s);
                    a[end.saturating_sub(first_key).min(BLOCK)..].fill(f32::NEG_INFINITY);
                    a[..from.saturating_sub(first_key).min(BLOCK)].fill(f32::NEG_INFINITY);
                    s = L::from_array(a);
                }
                L::store(out.add(r * CHUNK + n * BLOCK), s);
            }
        }
    }
}

/// Turns a chunk's scores into weights relative to the chunk's own maximum, as words of the kind `K`, and updates the row's
/// softmax; a row that `sees` no key of the chunk stays as it was.
#[inline(always)]
unsafe fn weigh<L: Lanes, K: Kind<L>>(scores: *mut f32, blocks: usize, sees: bool, run: &mut Running) {
    // SAFETY: the caller grants `blocks` blocks of scores.
    unsafe {
        if !sees {
            for b in 0..blocks {
                operands::<L, K>(L::splat(0.0), scores.add(b * BLOCK / K::STEP * K::WORDS));
            }
            (run.older, run.newest) = (1.0, 0.0);
            return;
        }
        let mut max = L::splat(f32::NEG_INFINITY);
        for b in 0..blocks {
            max = L::max(L::load(scores.add(b * BLOCK)), max);
        }
        let max = L::largest(max);
        let mut sum = L::splat(0.0);
        for b in 0..blocks {
            let e = math::exp::<L>(L::sub(L::load(scores.add(b * BLOCK)), L::splat(max)));
            // Words are never more than scores, so none is written over that is still to be read.
            operands::<L, K>(e, scores.add(b * BLOCK / K::STEP * K::WORDS));
            sum = L::add(sum, e);
        }
        let merged = if run.max > max { run.max } else { max };
        let factors = math::exp::<L>(L::from_array(std::array::from_fn(|i| {
            if i == 0 { run.max - merged } else { max - merged }
        })));
        let factors = L::to_array(factors);
        (run.older, run.newest) = (factors[0], factors[1]);
        run.sum = run.sum * run.older + L::sum(sum) * run.newest;
        run.max = merged;
    }
}

/// Weighted values of a chunk, `N` vectors of dimensions from `v` on, merged into `total` for every row.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the innermost seam: everything is a register")]
#[allow(
    clippy::needless_range_loop,
    reason = "indices keep the accumulators in registers without iterators' closures"
)]
unsafe fn values<L: Lanes, K: Kind<L>, const R: usize, const N: usize>(
    job: &Attention<'_>,
    first_block: usize,
    blocks: usize,
    v: usize,
    weights: *const f32,
    run: &[Running; R],
    next: (&[*const u8], usize),
    total: *mut f32,
) {
    // SAFETY: handed on from the caller.
    unsafe {
        let width = job.d.next_multiple_of(WIDTH);
        let mut acc = [[L::splat(0.0); N]; R];
        for b in 0..blocks {
            let p = job.blocks[first_block + b].add(job.values + v / WIDTH * LINE);
            for t in 0..BLOCK / K::STEP {
                let at = p.add(t * width / WIDTH * LINE);
                let mut line = [K::line(at); N];
                for n in 1..N {
                    line[n] = K::line(at.add(n * LINE));
                }
                // As many lines of keys as there are of values, a step ahead.
                if R <= FEW_ROWS && b < next.0.len() {
                    let key = next.0[b].wrapping_add(next.1);
                    for n in 0..N {
                        L::prefetch_near(key.wrapping_add((t * width / WIDTH + v / WIDTH + n) * LINE));
                    }
                }
                for r in 0..R {
                    let weight = weights.add(r * CHUNK + (b * BLOCK / K::STEP + t) * K::WORDS);
                    for n in 0..N {
                        acc[r][n] = K::apply(acc[r][n], line[n], weight, 1);
                    }
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                // A row that sees nothing of the chunk has weights 0 there, and factors 1 and 0.
                let t = total.add(r * width + n * WIDTH);
                let older = L::mul(L::load(t), L::splat(run[r].older));
                L::store(t, L::fma(acc[r][n], L::splat(run[r].newest), older));
            }
        }
    }
}
