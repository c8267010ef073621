//! Sixteen lanes as an array: runs on every CPU and is the reading copy of what the other tables do.
//!
//! A product and a sum are rounded apart in [`Portable`] (`a * b + c`): without an FMA instruction a fused one takes many. [`Fused`] takes
//! them. It serves models with matrices of integers: an activation that is rounded to another one of 256 steps, for a difference in the last
//! place, is followed by others, so only the same bits keep such a model the same on every table.

use super::lanes::{Lanes, QUAD, WIDTH, round_bf16, widen_bf16};
use super::twister::mix;

/// Lanes without any instruction set of their own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain<const FUSED: bool>;

/// Products and sums rounded apart.
pub(super) type Portable = Plain<false>;
/// Products and sums rounded once, as the other tables do.
pub(super) type Fused = Plain<true>;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; WIDTH] {
    std::array::from_fn(f)
}

#[inline(always)]
fn integers(f: impl Fn(usize) -> i32) -> [f32; WIDTH] {
    std::array::from_fn(|i| f32::from_bits(f(i).cast_unsigned()))
}

/// `a * b + c`, rounded once. The product is exact in double precision; of the sum an odd last bit tells that it is not exact, so that the second
/// rounding cannot take it for a value halfway between two (Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums").
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // What the sum lacks, exactly (Knuth).
    let of_c = sum - product;
    let error = (product - (sum - of_c)) + (c - of_c);
    let bits = sum.to_bits();
    let away = u64::from((error > 0.0) == (sum > 0.0));
    // Towards what it lacks; nothing for an exact sum, or one that is not finite (its error is no number).
    let step = u64::from(error.abs() > 0.0 && bits & 1 == 0);
    f64::from_bits(bits.wrapping_add(step * away).wrapping_sub(step * (1 - away))) as f32
}

/// The integer that a lane holds.
#[inline(always)]
fn whole(lane: f32) -> i32 {
    lane.to_bits().cast_signed()
}

// SAFETY: plain Rust on arrays; only the pointers' room is the caller's to grant.
unsafe impl<const FUSED: bool> Lanes for Plain<FUSED> {
    type F = [f32; WIDTH];
    const ROWS: usize = 4;
    const WIDENED_ROWS: usize = 4;
    const PANELS: usize = 1;
    const DOTS_BYTES: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; WIDTH]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the caller grants sixteen readable floats.
        unsafe { p.cast::<[f32; WIDTH]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: the caller grants room for sixteen floats.
        unsafe { p.cast::<[f32; WIDTH]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn xor(a: Self::F, b: Self::F) -> Self::F {
        each(|i| f32::from_bits(a[i].to_bits() ^ b[i].to_bits()))
    }
    #[inline(always)]
    unsafe fn twist(word: Self::F, following: Self::F, middle: Self::F) -> Self::F {
        each(|i| f32::from_bits(mix(word[i].to_bits(), following[i].to_bits()) ^ middle[i].to_bits()))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| if FUSED { fused(a[i], b[i], c[i]) } else { a[i] * b[i] + c[i] })
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        each(|i| a[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::F) -> Self::F {
        each(|i| f32::from_bits((((n[i] as i32) + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: the caller grants sixteen readable values.
        let v = unsafe { p.cast::<[u16; WIDTH]>().read_unaligned() };
        each(|i| half::f16::from_bits(v[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self::F, Self::F) {
        // SAFETY: the caller grants thirty-two readable values.
        let v = unsafe { p.cast::<[u16; 2 * WIDTH]>().read_unaligned() };
        (each(|i| widen_bf16(v[2 * i])), each(|i| widen_bf16(v[2 * i + 1])))
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::F, line: *const u16, pair: u32) -> Self::F {
        // SAFETY: the caller grants a whole line.
        let (even, odd) = unsafe { Self::load_bf16_pairs(line) };
        let (x0, x1) = (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000));
        each(|i| (acc[i] + odd[i] * x1) + even[i] * x0)
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: Self::F, u: Self::F, s: Self::F) -> Self::F {
        integers(|i| {
            let (u, s) = (u[i].to_bits().to_le_bytes(), s[i].to_bits().to_le_bytes());
            let product = |b: usize| i32::from(u[b]) * i32::from(s[b].cast_signed());
            whole(acc[i]) + product(0) + product(1) + product(2) + product(3)
        })
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Self::F, a: Self::F, b: Self::F) -> Self::F {
        integers(|i| {
            let (a, b) = (whole(a[i]), whole(b[i]));
            whole(acc[i]) + i32::from(a as i16) * i32::from(b as i16) + (a >> 16) * (b >> 16)
        })
    }
    #[inline(always)]
    unsafe fn widen_bytes(v: Self::F) -> (Self::F, Self::F) {
        let pair = |i: usize, first: usize| {
            let bytes = v[i].to_bits().to_le_bytes();
            let wide = |b: usize| i32::from(bytes[b].cast_signed());
            (wide(first) & 0xffff) | (wide(first + 2) << 16)
        };
        (integers(|i| pair(i, 0)), integers(|i| pair(i, 1)))
    }
    #[inline(always)]
    unsafe fn nibbles(v: Self::F) -> (Self::F, Self::F) {
        const LOW: u32 = 0x0f0f_0f0f;
        (each(|i| f32::from_bits(v[i].to_bits() & LOW)), each(|i| f32::from_bits(v[i].to_bits() >> 4 & LOW)))
    }
    #[inline(always)]
    unsafe fn to_float(v: Self::F) -> Self::F {
        each(|i| whole(v[i]) as f32)
    }
    #[inline(always)]
    unsafe fn sub_integers(a: Self::F, b: Self::F) -> Self::F {
        integers(|i| whole(a[i]).wrapping_sub(whole(b[i])))
    }
    #[inline(always)]
    unsafe fn mul_integers(a: Self::F, b: Self::F) -> Self::F {
        integers(|i| whole(a[i]).wrapping_mul(whole(b[i])))
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: Self::F) {
        let bytes: [u8; WIDTH] = std::array::from_fn(|i| v[i] as i32 as u8);
        // SAFETY: the caller grants room for sixteen bytes.
        unsafe { p.cast::<[u8; WIDTH]>().write_unaligned(bytes) }
    }
    #[inline(always)]
    unsafe fn round_bf16(v: Self::F) -> Self::F {
        each(|i| widen_bf16(round_bf16(v[i])))
    }
    #[inline(always)]
    unsafe fn pair_bf16(p: *const f32, out: *mut f32) {
        for i in 0..WIDTH / 2 {
            // SAFETY: the caller grants sixteen readable floats, and room for eight words.
            unsafe {
                let (low, high) = (round_bf16(*p.add(2 * i)), round_bf16(*p.add(2 * i + 1)));
                *out.add(i) = f32::from_bits(u32::from(low) | (u32::from(high) << 16));
            }
        }
    }
    #[inline(always)]
    unsafe fn join_bf16(low: Self::F, high: Self::F) -> Self::F {
        each(|i| f32::from_bits(u32::from(round_bf16(low[i])) | (u32::from(round_bf16(high[i])) << 16)))
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, out: *mut f32, step: usize) {
        for i in 0..QUAD {
            for w in 0..QUAD {
                // SAFETY: the caller grants the sixteen floats on both sides.
                unsafe { *out.add(w * step + i) = *from.add(i * stride + w) };
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch_write(_: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_near(_: *const u8) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fused_is_rounded_once() {
        let mut state = 1_u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        for i in 0..2_000_000 {
            let [a, b, mut c] = [draw(), draw(), draw()].map(f32::from_bits);
            if i % 2 == 0 {
                // A sum that nearly cancels, or lies next to half a unit in the last place.
                c = -(a * b) * (1.0 + (c.to_bits() % 5) as f32 * f32::EPSILON);
            }
            let (want, got) = (a.mul_add(b, c), fused(a, b, c));
            assert!(
                want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan(),
                "{a:e} {b:e} {c:e}: {got:e} for {want:e}"
            );
        }
    }
}
