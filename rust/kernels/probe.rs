//! What the machine can do at most: register-only multiply-adds and plain reads, the limits that speed is stated against.
//!
//! A probe is code, too: its chains stay in registers and stay distinct, or it shows half of the peak, or three times it.

use std::time::Instant;

use super::lanes::{Lanes, WIDTH};

/// The probes of one table; each is one thread's work.
#[derive(Debug, Clone, Copy)]
pub struct Probes {
    pub(super) fma: unsafe fn(usize) -> f32,
    pub(super) dot: unsafe fn(usize) -> f32,
    pub(super) integers: unsafe fn(usize) -> f32,
    /// Operations on integers in a lane, by one instruction.
    pub(super) in_lane: f64,
    pub(super) read: unsafe fn(*const f32, usize, usize) -> f32,
    pub(super) chains: usize,
}

/// FLOP per second of one thread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arithmetic {
    /// In the best of many short runs.
    pub peak: f64,
    /// Over all of them: less where something else takes its turns, be it in the other half of the core.
    pub sustained: f64,
}

impl Probes {
    /// FLOP per second of f32 multiply-adds of the calling thread, over about `seconds`.
    pub fn fma_flops(&self, seconds: f64) -> Arithmetic {
        // SAFETY: the table is only handed out where its features are.
        self.rate(seconds, 2.0, |n| unsafe { (self.fma)(n) })
    }

    /// FLOP per second of the bf16 dot of the calling thread, over about `seconds`.
    pub fn dot_flops(&self, seconds: f64) -> Arithmetic {
        // SAFETY: the table is only handed out where its features are.
        self.rate(seconds, 4.0, |n| unsafe { (self.dot)(n) })
    }

    /// Operations per second on eight-bit weights of the calling thread, over about `seconds`: by the dot of bytes, or by that of pairs where
    /// that is what products are formed by.
    pub fn integer_ops(&self, seconds: f64) -> Arithmetic {
        // SAFETY: the table is only handed out where its features are.
        self.rate(seconds, self.in_lane, |n| unsafe { (self.integers)(n) })
    }

    fn rate(&self, seconds: f64, per_lane: f64, run: impl Fn(usize) -> f32) -> Arithmetic {
        let steps = 20_000;
        let (mut best, mut total, mut runs) = (f64::INFINITY, 0.0, 0.0);
        while total < seconds {
            let start = Instant::now();
            std::hint::black_box(run(std::hint::black_box(steps)));
            let t = start.elapsed().as_secs_f64();
            best = best.min(t);
            total += t;
            runs += 1.0;
        }
        let flops = steps as f64 * (self.chains * WIDTH) as f64 * per_lane;
        Arithmetic { peak: flops / best, sustained: runs * flops / total }
    }

    /// Reads the whole slice once, in order; `ahead` bytes of prefetch.
    pub fn read(&self, data: &[f32], ahead: usize) {
        // SAFETY: the table is only handed out where its features are; the slice is readable.
        std::hint::black_box(unsafe { (self.read)(data.as_ptr(), data.len(), ahead) });
    }
}

/// As many independent chains of multiply-adds as the tile has rows, `n` steps each.
#[inline(always)]
pub(super) unsafe fn fma<L: Lanes>(n: usize) -> f32 {
    // SAFETY: the caller's contract is that of `Lanes`.
    unsafe {
        match L::ROWS {
            4 => fma_chains::<L, 4>(n),
            6 => fma_chains::<L, 6>(n),
            12 => fma_chains::<L, 12>(n),
            rows => unreachable!("no probe with {rows} chains"),
        }
    }
}

#[inline(always)]
unsafe fn fma_chains<L: Lanes, const N: usize>(n: usize) -> f32 {
    // SAFETY: the caller's contract is that of `Lanes`.
    unsafe {
        let mut acc = [L::splat(0.0); N];
        for (i, x) in acc.iter_mut().enumerate() {
            *x = L::splat(std::hint::black_box(i as f32));
        }
        let (a, b) = (L::splat(std::hint::black_box(0.999)), L::splat(std::hint::black_box(0.001)));
        for _ in 0..n {
            for x in &mut acc {
                *x = L::fma(*x, a, b);
            }
        }
        let mut sum = 0.0;
        for x in acc {
            sum += L::sum(x);
        }
        sum
    }
}

/// As [`fma`], for the bf16 dot.
#[inline(always)]
pub(super) unsafe fn dot<L: Lanes>(n: usize) -> f32 {
    // SAFETY: the caller's contract is that of `Lanes`.
    unsafe {
        match L::ROWS {
            4 => dot_chains::<L, 4>(n),
            6 => dot_chains::<L, 6>(n),
            12 => dot_chains::<L, 12>(n),
            rows => unreachable!("no probe with {rows} chains"),
        }
    }
}

#[inline(always)]
unsafe fn dot_chains<L: Lanes, const N: usize>(n: usize) -> f32 {
    // SAFETY: the caller's contract is that of `Lanes`; the line is 64 bytes.
    unsafe {
        let line = std::hint::black_box([0x3c00_u16; 2 * WIDTH]);
        let mut acc = [L::splat(0.0); N];
        for (i, x) in acc.iter_mut().enumerate() {
            *x = L::splat(std::hint::black_box(i as f32));
        }
        let pair = std::hint::black_box(0x3c00_3c00);
        for _ in 0..n {
            for x in &mut acc {
                *x = L::dot_bf16(*x, line.as_ptr(), pair);
            }
        }
        let mut sum = 0.0;
        for x in acc {
            sum += L::sum(x);
        }
        sum
    }
}

/// As [`fma`], for products of integers.
#[inline(always)]
pub(super) unsafe fn integers<L: Lanes>(n: usize) -> f32 {
    // SAFETY: the caller's contract is that of `Lanes`.
    unsafe {
        match L::ROWS {
            4 => integer_chains::<L, 4>(n),
            6 => integer_chains::<L, 6>(n),
            12 => integer_chains::<L, 12>(n),
            rows => unreachable!("no probe with {rows} chains"),
        }
    }
}

/// Operations on integers in a lane, by the instruction that products are formed with.
pub(super) const fn in_lane<L: Lanes>() -> f64 {
    if L::DOTS_BYTES { 8.0 } else { 4.0 }
}

/// Steps between which the factors of products of integers stay the same; a divisor of a run's steps.
const ROUNDS: usize = 10;

/// A vector that lies in one line of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([f32; WIDTH]);

#[inline(always)]
unsafe fn integer_chains<L: Lanes, const N: usize>(n: usize) -> f32 {
    // SAFETY: the caller's contract is that of `Lanes`.
    unsafe {
        let mut acc = [L::splat(0.0); N];
        for (i, x) in acc.iter_mut().enumerate() {
            *x = L::splat(std::hint::black_box(f32::from_bits(i as u32)));
        }
        let a = L::splat(std::hint::black_box(f32::from_bits(0x0102_0301)));
        // Where a dot is several instructions, products of factors that no step changes would be formed once. So each chain has factors
        // of its own in memory, and every few steps nobody knows any more what they are.
        let mut lines = [[Line([f32::from_bits(0x0100_0201); WIDTH]); N]; ROUNDS];
        for _ in (0..n).step_by(ROUNDS) {
            std::hint::black_box(&mut lines);
            for factors in &lines {
                for (x, line) in acc.iter_mut().zip(factors) {
                    let b = L::load(line.0.as_ptr());
                    *x = if L::DOTS_BYTES { L::dot_bytes(*x, a, b) } else { L::dot_pairs(*x, a, b) };
                }
            }
        }
        let mut sum = 0.0;
        for x in acc {
            sum += L::sum(L::to_float(x));
        }
        sum
    }
}

/// Sums `n` floats from `p` on, four lines at a time.
#[inline(always)]
pub(super) unsafe fn read<L: Lanes>(p: *const f32, n: usize, ahead: usize) -> f32 {
    // SAFETY: the caller grants `n` readable floats.
    unsafe {
        let mut acc = [L::splat(0.0); 4];
        let step = 4 * WIDTH;
        for i in (0..n - n % step).step_by(step) {
            for (j, acc) in acc.iter_mut().enumerate() {
                let at = p.add(i + j * WIDTH);
                if ahead > 0 {
                    L::prefetch(at.cast::<u8>().wrapping_add(ahead));
                }
                *acc = L::add(*acc, L::load(at));
            }
        }
        let mut sum = 0.0;
        for x in acc {
            sum += L::sum(x);
        }
        sum
    }
}
