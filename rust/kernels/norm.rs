//! Normalization of one row: sixteen fixed lanes and a fixed tree, so that the sums are the same bits in every table.

use super::lanes::{Lanes, WIDTH};

/// One row to normalize; `out` may be `x`.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// Row of `n` floats.
    pub x: *const f32,
    /// Result, `n` floats and zeros up to the next multiple of 16.
    pub out: *mut f32,
    /// Width of the row.
    pub n: usize,
    /// Scale, `n` floats.
    pub weight: *const f32,
    /// Shift, `n` floats; null for none.
    pub bias: *const f32,
    /// Added to the variance (or the mean square).
    pub eps: f32,
    /// Whether the result is rounded to bf16.
    pub round: bool,
}

/// One more deviation, or its square.
#[inline(always)]
unsafe fn term<L: Lanes>(d: L::F, acc: L::F, square: bool) -> L::F {
    // SAFETY: the caller's contract is that of `Lanes`.
    unsafe { if square { L::fma(d, d, acc) } else { L::add(acc, d) } }
}

/// Sixteen floats, or the `rest` that there are.
#[inline(always)]
unsafe fn part<L: Lanes>(p: *const f32, rest: usize) -> L::F {
    // SAFETY: the caller grants `rest` readable floats, at most the width.
    unsafe { if rest == WIDTH { L::load(p) } else { L::load_part(p, rest) } }
}

/// Sum over the row of `x - shift`, or of its square.
#[inline(always)]
unsafe fn sum_row<L: Lanes>(n: usize, x: *const f32, shift: f32, square: bool) -> f32 {
    // SAFETY: the caller grants `n` readable floats.
    unsafe {
        let mut acc = L::splat(0.0);
        let s = L::splat(shift);
        let whole = n - n % WIDTH;
        for j in (0..whole).step_by(WIDTH) {
            acc = term::<L>(L::sub(L::load(x.add(j)), s), acc, square);
        }
        let rest = n - whole;
        if rest > 0 {
            // Lanes past the end hold `shift`, so that their deviation is an exact zero.
            let mut a = [shift; WIDTH];
            std::ptr::copy_nonoverlapping(x.add(whole), a.as_mut_ptr(), rest);
            acc = term::<L>(L::sub(L::from_array(a), s), acc, square);
        }
        L::sum(acc)
    }
}

/// Writes `(x - mean) * scale * weight + bias`, and zeros up to the next multiple of 16.
#[inline(always)]
unsafe fn write_row<L: Lanes>(job: &Norm, mean: f32, scale: f32) {
    // SAFETY: the caller grants the row and its padded output.
    unsafe {
        let (m, s) = (L::splat(mean), L::splat(scale));
        for j in (0..job.n).step_by(WIDTH) {
            let rest = (job.n - j).min(WIDTH);
            let mut v = L::mul(
                L::mul(L::sub(part::<L>(job.x.add(j), rest), m), s),
                part::<L>(job.weight.add(j), rest),
            );
            if !job.bias.is_null() {
                v = L::add(v, part::<L>(job.bias.add(j), rest));
            }
            if job.round {
                v = L::round_bf16(v);
            }
            // Lanes past the end had weight and bias 0; a non-finite row must not leave NaN in the padding.
            if rest < WIDTH {
                let mut a = L::to_array(v);
                a[rest..].fill(0.0);
                v = L::from_array(a);
            }
            L::store(job.out.add(j), v);
        }
    }
}

/// Layer normalization (Ba et al. 2016): mean and variance over the row, two passes.
///
/// # Safety
/// As for [`Lanes`]; the pointers of `job` hold the row, `out` a whole number of panels.
#[inline(always)]
pub(super) unsafe fn layer_norm<L: Lanes>(job: &Norm) {
    // SAFETY: handed on from the caller.
    unsafe {
        let n = job.n as f32;
        let mean = sum_row::<L>(job.n, job.x, 0.0, false) / n;
        let variance = sum_row::<L>(job.n, job.x, mean, true) / n;
        write_row::<L>(job, mean, 1.0 / (variance + job.eps).sqrt());
    }
}

/// Root-mean-square normalization (Zhang and Sennrich 2019), as T5 uses it: no mean, no bias.
///
/// # Safety
/// As for [`layer_norm`].
#[inline(always)]
pub(super) unsafe fn rms_norm<L: Lanes>(job: &Norm) {
    // SAFETY: handed on from the caller.
    unsafe {
        let square = sum_row::<L>(job.n, job.x, 0.0, true) / job.n as f32;
        write_row::<L>(job, 0.0, 1.0 / (square + job.eps).sqrt());
    }
}
