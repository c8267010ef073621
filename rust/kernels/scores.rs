//! Scans of a row of scores: its largest, where it stands, exponentials and their sums.
//!
//! Where there is no search among the lanes they are plain Rust over slices, compiled once for every table, which the compiler turns
//! into vectors. The order of all sums is fixed, and products and sums are rounded apart, so that every table gives the same bits.

use super::lanes::{Lanes, WIDTH};

/// Sums run in this many lanes.
const SUM_LANES: usize = 8;

/// Scores between two looks at whether a value was found.
const LOOK: usize = 32 * WIDTH;

/// Below this the exponential would not be a normal number, and counts as zero.
const SMALLEST: f32 = -87.3;

/// What a scan for the largest score has met: vectors side by side, so that one need not wait for the other.
struct Met<L: Lanes> {
    largest: [L::F; SIDE],
    /// Not a number in a lane where there was one, and only there.
    nan: [L::F; SIDE],
}

/// Vectors of [`Met`].
const SIDE: usize = 4;

impl<L: Lanes> Met<L> {
    /// # Safety
    /// As for [`Lanes`], also below.
    #[inline(always)]
    unsafe fn nothing() -> Self {
        // SAFETY: the caller's contract.
        unsafe { Self { largest: [L::splat(f32::NEG_INFINITY); SIDE], nan: [L::splat(0.0); SIDE] } }
    }

    #[inline(always)]
    unsafe fn one(&mut self, side: usize, scores: L::F) {
        // SAFETY: the caller's contract.
        unsafe {
            // Where one is not a number, `max` gives the second.
            self.largest[side] = L::max(scores, self.largest[side]);
            // What is no number is neither below infinity nor gone when added; minus infinity is left out like any number.
            let strange = L::select_lt(scores, L::splat(f32::INFINITY), L::splat(0.0), scores);
            self.nan[side] = L::add(self.nan[side], strange);
        }
    }

    #[inline(always)]
    unsafe fn all(&mut self, scores: &[f32]) {
        let (blocks, rest) = scores.as_chunks::<{ SIDE * WIDTH }>();
        // SAFETY: vectors lie within a block, or are whole arrays; the rest is the caller's contract.
        unsafe {
            for block in blocks {
                for side in 0..SIDE {
                    self.one(side, L::load(block.as_ptr().add(side * WIDTH)));
                }
            }
            for part in rest.chunks(WIDTH) {
                let mut lanes = [f32::NEG_INFINITY; WIDTH];
                lanes[..part.len()].copy_from_slice(part);
                self.one(0, L::from_array(lanes));
            }
        }
    }

    #[inline(always)]
    unsafe fn maximum(&self) -> f32 {
        let [a, b, c, d] = self.largest;
        // SAFETY: the caller's contract.
        unsafe { L::largest(L::max(L::max(a, b), L::max(c, d))) }
    }

    #[inline(always)]
    unsafe fn has_nan(&self) -> bool {
        let [a, b, c, d] = self.nan;
        // SAFETY: the caller's contract.
        let lanes = unsafe { L::to_array(L::add(L::add(a, b), L::add(c, d))) };
        lanes.iter().any(|lane| lane.is_nan())
    }
}

/// The largest score, minus infinity for none; NaN where one is.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn maximum<L: Lanes>(scores: &[f32]) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        let mut met = Met::<L>::nothing();
        met.all(scores);
        if met.has_nan() { f32::NAN } else { met.maximum() }
    }
}

/// The largest score of every `run` scores in turn, those that are NaN left out; whether one was.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn maxima<L: Lanes>(scores: &[f32], run: usize, maxima: &mut [f32]) -> bool {
    // SAFETY: the caller's contract.
    unsafe {
        let mut met = Met::<L>::nothing();
        for (scores, maximum) in scores.chunks(run).zip(maxima) {
            met.largest = [L::splat(f32::NEG_INFINITY); SIDE];
            met.all(scores);
            *maximum = met.maximum();
        }
        met.has_nan()
    }
}

/// Where a score is first found, or the number of scores: many at a time, without a branch for each.
#[inline(always)]
pub(super) fn position(scores: &[f32], score: f32) -> usize {
    let mut at = 0;
    for run in scores.chunks(LOOK) {
        let mut found = 0;
        for &other in run {
            found |= u32::from(other == score);
        }
        if found != 0 {
            return at + run.iter().position(|&other| other == score).unwrap_or(0);
        }
        at += run.len();
    }
    at
}

/// `e^x` for `x <= 0`: `x = n ln 2 + r`, then a polynomial in `r`, then `2^n` through the exponent's bits. The polynomial
/// and the two parts of ln 2 are those of Cephes' expf (Moshier, netlib.org/cephes). It is right to two units in the last place.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding it rounds to a whole number, which then stands in the lowest bits.
    const ROUNDER: f32 = 12_582_912.0;
    let bounded = if x > SMALLEST { x } else { SMALLEST };
    let shifted = bounded * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = bounded - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4_f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
        p = p * r + coefficient;
    }
    let power = p * r * r + r + 1.0;
    let scaled = f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x > SMALLEST { scaled } else { 0.0 }
}

/// Replaces every value by `e^(value - maximum)`, where none exceeds `maximum`.
#[inline(always)]
pub(super) fn exponentiate(values: &mut [f32], maximum: f32) {
    for value in values {
        *value = exp(*value - maximum);
    }
}

/// The sum of `e^(value - maximum)`, where none exceeds `maximum`.
#[inline(always)]
pub(super) fn sum_of_exponentials(values: &[f32], maximum: f32) -> f64 {
    let mut lanes = [0.0_f64; SUM_LANES];
    let (chunks, rest) = values.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        // A plain loop: what `map` makes of an array is called lane by lane.
        let mut powers = [0.0_f32; SUM_LANES];
        for (power, &value) in powers.iter_mut().zip(chunk) {
            *power = exp(value - maximum);
        }
        for (lane, power) in lanes.iter_mut().zip(powers) {
            *lane += f64::from(power);
        }
    }
    let rest: f64 = rest.iter().map(|&value| f64::from(exp(value - maximum))).sum();
    lanes.iter().sum::<f64>() + rest
}

/// `e^x` in double precision for `x <= 0`, right to `2e-14` of itself: as [`exp`], with as many terms of the exponential series as the
/// remainder of at most half of ln 2 needs. What is below `e^-700` counts as zero.
#[inline(always)]
fn exp_double(x: f64) -> f64 {
    // Adding it rounds to a whole number, which then stands in the lowest bits.
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    const SMALLEST_DOUBLE: f64 = -700.0;
    // ln 2 in two parts, of which the first has so few bits that a whole number times it is exact.
    const HIGH: f64 = 0.693_147_180_369_123_8;
    const LOW: f64 = 1.908_214_929_270_587_7e-10;
    let bounded = if x > SMALLEST_DOUBLE { x } else { SMALLEST_DOUBLE };
    let shifted = bounded * std::f64::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = bounded - n * HIGH - n * LOW;
    let mut p = 1.0 / 39_916_800.0;
    for factorial in [3_628_800.0, 362_880.0, 40_320.0, 5_040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        p = p * r + 1.0 / factorial;
    }
    let scaled = f64::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 52));
    if x > SMALLEST_DOUBLE { scaled } else { 0.0 }
}

/// As [`sum_of_exponentials`], each of them in double precision.
#[inline(always)]
pub(super) fn sum_in_double(values: &[f32], maximum: f32) -> f64 {
    let mut lanes = [0.0_f64; SUM_LANES];
    let (chunks, rest) = values.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += exp_double(f64::from(value) - f64::from(maximum));
        }
    }
    let rest: f64 = rest.iter().map(|&value| exp_double(f64::from(value) - f64::from(maximum))).sum();
    lanes.iter().sum::<f64>() + rest
}

/// The sum of the values.
#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; SUM_LANES];
    let (chunks, rest) = values.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&value| f64::from(value)).sum::<f64>()
}

/// Divides every value.
#[inline(always)]
pub(super) fn divide(values: &mut [f32], divisor: f32) {
    for value in values {
        *value /= divisor;
    }
}

/// Subtracts two numbers from every value, one after the other.
#[inline(always)]
pub(super) fn subtract(values: &mut [f32], first: f32, second: f32) {
    for value in values {
        *value = *value - first - second;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_right_to_two_units() {
        let mut worst = 0.0_f64;
        for step in 0..2_000_000 {
            let x = -(step as f32) * (88.0 / 2_000_000.0);
            let exact = f64::from(x).exp();
            let got = exp(x);
            if x > SMALLEST {
                let unit = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
                worst = worst.max((f64::from(got) - exact).abs() / unit);
            } else {
                assert_eq!(got, 0.0, "{x}");
            }
        }
        assert!(worst <= 2.0, "{worst}");
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(f32::MIN)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn exponentials_in_double_precision_are_right() {
        for step in 0..1_000_000 {
            let x = -(f64::from(step)) * (700.0 / 1_000_000.0);
            let (exact, got) = (x.exp(), exp_double(x));
            assert!((got - exact).abs() <= 2e-14 * exact, "e^{x}: {got} for {exact}");
        }
        assert_eq!((exp_double(0.0), exp_double(f64::NEG_INFINITY), exp_double(-701.0)), (1.0, 0.0, 0.0));
    }
}
