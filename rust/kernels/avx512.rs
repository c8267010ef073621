//! Sixteen lanes as one 512-bit register: AVX-512 F, BW, DQ and VL (Skylake-X, Zen 4 and later).
//!
//! [`Avx512Vnni`] is the same with `vpdpbusd` for products of bytes, [`Avx512Bf16`] with `vdpbf16ps` for the bf16 dot, too.

use std::arch::x86_64::*;

use super::lanes::Lanes;
use super::twister::TWIST_MATRIX;

/// Lanes of the AVX-512 table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512;

/// Lanes of the AVX-512 table with the dot of bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512Vnni;

/// Lanes of the AVX-512 table with the dots of bytes and of bf16.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512Bf16;

/// Whether this CPU can run [`Avx512`].
pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// Whether this CPU can run [`Avx512Vnni`].
pub(super) fn detected_vnni() -> bool {
    detected() && is_x86_feature_detected!("avx512vnni")
}

/// Whether this CPU can run [`Avx512Bf16`]; every CPU that has the bf16 dot has that of bytes.
pub(super) fn detected_bf16() -> bool {
    detected_vnni() && is_x86_feature_detected!("avx512bf16")
}

/// The dot of bytes by its instruction.
#[inline(always)]
unsafe fn bytes_by_instruction(acc: __m512i, u: __m512i, s: __m512i) -> __m512i {
    // SAFETY: the caller grants AVX512-VNNI.
    unsafe { _mm512_dpbusd_epi32(acc, u, s) }
}

/// The dot of bytes by way of sums of two, which saturate beyond 16 bits.
#[inline(always)]
unsafe fn bytes_by_pairs(acc: __m512i, u: __m512i, s: __m512i) -> __m512i {
    // SAFETY: the caller grants AVX-512BW.
    unsafe {
        let pairs = _mm512_maddubs_epi16(u, s);
        _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
    }
}

/// The bf16 dot by two fused multiply-adds, odd product first, as the instruction orders them.
#[inline(always)]
unsafe fn dot_by_fma(acc: __m512, line: *const u16, pair: u32) -> __m512 {
    // SAFETY: the caller grants a whole line and AVX-512F.
    unsafe {
        let (even, odd) = Avx512::load_bf16_pairs(line);
        let acc = Avx512::fma(Avx512::splat(f32::from_bits(pair & 0xffff_0000)), odd, acc);
        Avx512::fma(Avx512::splat(f32::from_bits(pair << 16)), even, acc)
    }
}

/// The bf16 dot by its instruction.
#[inline(always)]
unsafe fn dot_by_instruction(acc: __m512, line: *const u16, pair: u32) -> __m512 {
    // SAFETY: the caller grants a whole line and AVX512-BF16; the vectors are reinterpreted at equal size.
    unsafe {
        let w: __m512bh = std::mem::transmute(_mm512_loadu_si512(line.cast()));
        let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(pair.cast_signed()));
        _mm512_dpbf16_ps(acc, w, x)
    }
}

macro_rules! lanes {
    ($name:ty, $dot:path, $bytes:path, dots_bytes: $dots_bytes:literal) => {
        // SAFETY: AVX-512 F/BW/DQ/VL intrinsics alone (and BF16 where `detected_bf16()` was asked); the table is handed
        // out only after detection. Pointers' room is the caller's to grant; every access is an unaligned one.
        #[allow(
            clippy::undocumented_unsafe_blocks,
            reason = "one contract for all functions, stated on the impl"
        )]
        unsafe impl Lanes for $name {
            type F = __m512;
            const ROWS: usize = 12;
            const WIDENED_ROWS: usize = 12;
            const PANELS: usize = 2;
            const DOTS_BYTES: bool = $dots_bytes;

            #[inline(always)]
            unsafe fn splat(x: f32) -> __m512 {
                unsafe { _mm512_set1_ps(x) }
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> __m512 {
                unsafe { _mm512_loadu_ps(p) }
            }
            #[inline(always)]
            unsafe fn store(p: *mut f32, v: __m512) {
                unsafe { _mm512_storeu_ps(p, v) }
            }
            #[inline(always)]
            unsafe fn add(a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_add_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn sub(a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_sub_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn mul(a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_mul_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn div(a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_div_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn max(a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_max_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn min(a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_min_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn xor(a: __m512, b: __m512) -> __m512 {
                unsafe { _mm512_xor_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn twist(word: __m512, following: __m512, middle: __m512) -> __m512 {
                unsafe {
                    let (word, following) = (_mm512_castps_si512(word), _mm512_castps_si512(following));
                    let middle = _mm512_castps_si512(middle);
                    // Where a bit of the mask is set the word's bit, else that of the one that follows.
                    const SELECT: i32 = 0xca;
                    let high = _mm512_set1_epi32(i32::MIN);
                    let y = _mm512_ternarylogic_epi32::<SELECT>(high, word, following);
                    let odd = _mm512_test_epi32_mask(following, _mm512_set1_epi32(1));
                    let matrix = _mm512_set1_epi32(TWIST_MATRIX.cast_signed());
                    let middle = _mm512_mask_xor_epi32(middle, odd, middle, matrix);
                    _mm512_castsi512_ps(_mm512_xor_si512(middle, _mm512_srli_epi32::<1>(y)))
                }
            }
            #[inline(always)]
            unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
                unsafe { _mm512_fmadd_ps(a, b, c) }
            }
            #[inline(always)]
            unsafe fn round(a: __m512) -> __m512 {
                unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
            }
            #[inline(always)]
            unsafe fn pow2(n: __m512) -> __m512 {
                unsafe {
                    let e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<23>(e))
                }
            }
            #[inline(always)]
            unsafe fn select_lt(a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
                unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
            }
            #[inline(always)]
            unsafe fn load_f16(p: *const u16) -> __m512 {
                unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
            }
            #[inline(always)]
            unsafe fn load_bf16_pairs(p: *const u16) -> (__m512, __m512) {
                unsafe {
                    let v = _mm512_loadu_si512(p.cast());
                    let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
                    (
                        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v)),
                        _mm512_castsi512_ps(_mm512_and_si512(v, high)),
                    )
                }
            }
            #[inline(always)]
            unsafe fn dot_bf16(acc: __m512, line: *const u16, pair: u32) -> __m512 {
                unsafe { $dot(acc, line, pair) }
            }
            #[inline(always)]
            unsafe fn dot_bytes(acc: __m512, u: __m512, s: __m512) -> __m512 {
                unsafe {
                    let (acc, u, s) =
                        (_mm512_castps_si512(acc), _mm512_castps_si512(u), _mm512_castps_si512(s));
                    _mm512_castsi512_ps($bytes(acc, u, s))
                }
            }
            #[inline(always)]
            unsafe fn dot_pairs(acc: __m512, a: __m512, b: __m512) -> __m512 {
                unsafe {
                    let products = _mm512_madd_epi16(_mm512_castps_si512(a), _mm512_castps_si512(b));
                    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(acc), products))
                }
            }
            #[inline(always)]
            unsafe fn widen_bytes(v: __m512) -> (__m512, __m512) {
                unsafe {
                    let v = _mm512_castps_si512(v);
                    let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(v));
                    (_mm512_castsi512_ps(even), _mm512_castsi512_ps(_mm512_srai_epi16::<8>(v)))
                }
            }
            #[inline(always)]
            unsafe fn nibbles(v: __m512) -> (__m512, __m512) {
                unsafe {
                    let (v, low) = (_mm512_castps_si512(v), _mm512_set1_epi8(0x0f));
                    let high = _mm512_and_si512(_mm512_srli_epi32::<4>(v), low);
                    (_mm512_castsi512_ps(_mm512_and_si512(v, low)), _mm512_castsi512_ps(high))
                }
            }
            #[inline(always)]
            unsafe fn to_float(v: __m512) -> __m512 {
                unsafe { _mm512_cvtepi32_ps(_mm512_castps_si512(v)) }
            }
            #[inline(always)]
            unsafe fn sub_integers(a: __m512, b: __m512) -> __m512 {
                unsafe {
                    let difference = _mm512_sub_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b));
                    _mm512_castsi512_ps(difference)
                }
            }
            #[inline(always)]
            unsafe fn mul_integers(a: __m512, b: __m512) -> __m512 {
                unsafe {
                    let product = _mm512_mullo_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b));
                    _mm512_castsi512_ps(product)
                }
            }
            #[inline(always)]
            unsafe fn store_bytes(p: *mut u8, v: __m512) {
                unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) }
            }
            #[inline(always)]
            unsafe fn round_bf16(v: __m512) -> __m512 {
                unsafe {
                    let bits = _mm512_castps_si512(v);
                    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                    let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                    // A NaN would round to infinity, or past it: it takes its quiet bit instead.
                    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
                    let kept = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x40_0000));
                    _mm512_castsi512_ps(_mm512_and_si512(
                        kept,
                        _mm512_set1_epi32(0xffff_0000_u32.cast_signed()),
                    ))
                }
            }
            #[inline(always)]
            unsafe fn pair_bf16(p: *const f32, out: *mut f32) {
                unsafe {
                    let v = _mm512_castps_si512(Self::round_bf16(Self::load(p)));
                    // The low half of a 64-bit lane is the first of the pair.
                    let first = _mm512_srli_epi64::<48>(_mm512_slli_epi64::<32>(v));
                    let both = _mm512_or_si512(_mm512_srli_epi64::<32>(v), first);
                    _mm256_storeu_si256(out.cast(), _mm512_cvtepi64_epi32(both));
                }
            }
            #[inline(always)]
            unsafe fn join_bf16(low: __m512, high: __m512) -> __m512 {
                unsafe {
                    let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(Self::round_bf16(low)));
                    let high = _mm512_castps_si512(Self::round_bf16(high));
                    _mm512_castsi512_ps(_mm512_or_si512(low, high))
                }
            }
            #[inline(always)]
            unsafe fn transpose(from: *const f32, stride: usize, out: *mut f32, step: usize) {
                unsafe { super::avx2::transpose_quads(from, stride, out, step) }
            }
            #[inline(always)]
            unsafe fn prefetch_write(p: *const u8) {
                unsafe { super::avx2::write_hint(p) }
            }
            #[inline(always)]
            unsafe fn sum(v: __m512) -> f32 {
                unsafe {
                    let low = _mm512_castps512_ps256(v);
                    super::avx2::sum_halves(_mm256_add_ps(low, _mm512_extractf32x8_ps::<1>(v)))
                }
            }
            #[inline(always)]
            unsafe fn largest(v: __m512) -> f32 {
                unsafe { _mm512_reduce_max_ps(v) }
            }
            #[inline(always)]
            unsafe fn prefetch(p: *const u8) {
                unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
            }
            #[inline(always)]
            unsafe fn prefetch_near(p: *const u8) {
                unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
            }
        }
    };
}

lanes!(Avx512, dot_by_fma, bytes_by_pairs, dots_bytes: false);
lanes!(Avx512Vnni, dot_by_fma, bytes_by_instruction, dots_bytes: true);
lanes!(Avx512Bf16, dot_by_instruction, bytes_by_instruction, dots_bytes: true);
