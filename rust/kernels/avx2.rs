//! Sixteen lanes as two 256-bit registers: AVX2, FMA and F16C (Haswell, Zen 1 and later).

use std::arch::x86_64::*;

use super::lanes::Lanes;
use super::twister::TWIST_MATRIX;

/// Lanes of the AVX2 table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2;

/// Lanes of the AVX2 table with the dot of bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct AvxVnni;

/// Low and high eight lanes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair(__m256, __m256);

/// Whether this CPU can run the table.
pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Whether this CPU can run [`AvxVnni`].
pub(super) fn detected_vnni() -> bool {
    detected() && is_x86_feature_detected!("avxvnni")
}

/// The dot of bytes by its instruction.
#[inline(always)]
unsafe fn bytes_by_instruction(acc: __m256i, u: __m256i, s: __m256i) -> __m256i {
    // SAFETY: the caller grants AVX-VNNI.
    unsafe { _mm256_dpbusd_avx_epi32(acc, u, s) }
}

/// The dot of bytes by way of sums of two, which saturate beyond 16 bits.
#[inline(always)]
unsafe fn bytes_by_pairs(acc: __m256i, u: __m256i, s: __m256i) -> __m256i {
    // SAFETY: the caller grants AVX2.
    unsafe {
        let pairs = _mm256_maddubs_epi16(u, s);
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// Eight lanes as integers.
#[inline(always)]
unsafe fn whole(v: __m256) -> __m256i {
    // SAFETY: the caller grants AVX2.
    unsafe { _mm256_castps_si256(v) }
}

/// Integers as eight lanes.
#[inline(always)]
unsafe fn lanes(v: __m256i) -> __m256 {
    // SAFETY: the caller grants AVX2.
    unsafe { _mm256_castsi256_ps(v) }
}

/// Eight lanes of [`Lanes::dot_pairs`].
#[inline(always)]
unsafe fn pairs(acc: __m256, a: __m256, b: __m256) -> __m256 {
    // SAFETY: the caller grants AVX2.
    unsafe { lanes(_mm256_add_epi32(whole(acc), _mm256_madd_epi16(whole(a), whole(b)))) }
}

/// The low four bits of every byte.
#[inline(always)]
unsafe fn low_bits(v: __m256i) -> __m256 {
    // SAFETY: the caller grants AVX2.
    unsafe { lanes(_mm256_and_si256(v, _mm256_set1_epi8(0x0f))) }
}

/// The second and the fourth byte of eight lanes as i16.
#[inline(always)]
unsafe fn odd_bytes(v: __m256i) -> __m256 {
    // SAFETY: the caller grants AVX2.
    unsafe { lanes(_mm256_srai_epi16::<8>(v)) }
}

/// [`Lanes::transpose`] by shuffles.
///
/// # Safety
/// As for [`Lanes`]: AVX2, and sixteen floats on both sides.
#[inline(always)]
pub(super) unsafe fn transpose_quads(from: *const f32, stride: usize, out: *mut f32, step: usize) {
    // SAFETY: handed on from the caller.
    unsafe {
        let (a, b) = (_mm_loadu_ps(from), _mm_loadu_ps(from.add(stride)));
        let (c, d) = (_mm_loadu_ps(from.add(2 * stride)), _mm_loadu_ps(from.add(3 * stride)));
        let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
        _mm_storeu_ps(out, _mm_movelh_ps(ab, cd));
        _mm_storeu_ps(out.add(step), _mm_movehl_ps(cd, ab));
        let (ab, cd) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
        _mm_storeu_ps(out.add(2 * step), _mm_movelh_ps(ab, cd));
        _mm_storeu_ps(out.add(3 * step), _mm_movehl_ps(cd, ab));
    }
}

/// [`Lanes::prefetch_write`]: the instruction itself, since the intrinsic is a plain prefetch unless the CPU's 3DNow! bit is
/// asked for. CPUs that do not know it do nothing.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn write_hint(p: *const u8) {
    // SAFETY: a hint; it changes no memory and never faults.
    unsafe { std::arch::asm!("prefetchw [{}]", in(reg) p, options(nostack, preserves_flags, readonly)) };
}

/// The end of [`Lanes::sum`]'s tree: (i, i + 4), (i, i + 2), (0, 1).
///
/// # Safety
/// As for [`Lanes`]: AVX2.
#[inline(always)]
pub(super) unsafe fn sum_halves(v: __m256) -> f32 {
    // SAFETY: the caller grants AVX2.
    unsafe {
        let fours = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let twos = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
        _mm_cvtss_f32(_mm_add_ss(twos, _mm_shuffle_ps::<1>(twos, twos)))
    }
}

/// Eight lanes rounded to bf16.
#[inline(always)]
unsafe fn round_half(v: __m256) -> __m256 {
    // SAFETY: the caller grants AVX2.
    unsafe {
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        // A NaN would round to infinity, or past it: it takes its quiet bit instead.
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v);
        let kept = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), nan);
        _mm256_and_ps(kept, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32.cast_signed())))
    }
}

/// Eight words: the upper half of `low` below that of `high`.
#[inline(always)]
unsafe fn join_halves(low: __m256, high: __m256) -> __m256 {
    // SAFETY: the caller grants AVX2.
    unsafe { _mm256_or_ps(high, _mm256_castsi256_ps(_mm256_srli_epi32::<16>(_mm256_castps_si256(low)))) }
}

/// Eight words of [`Lanes::twist`].
#[inline(always)]
unsafe fn twist_eight(word: __m256, following: __m256, middle: __m256) -> __m256 {
    // SAFETY: the caller grants AVX2; nothing is read or written.
    unsafe {
        let high = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MIN));
        let y =
            _mm256_castps_si256(_mm256_or_ps(_mm256_and_ps(high, word), _mm256_andnot_ps(high, following)));
        let odd = _mm256_srai_epi32::<31>(_mm256_slli_epi32::<31>(y));
        let matrix = _mm256_and_si256(odd, _mm256_set1_epi32(TWIST_MATRIX.cast_signed()));
        let twisted = _mm256_xor_si256(_mm256_srli_epi32::<1>(y), matrix);
        _mm256_xor_ps(_mm256_castsi256_ps(twisted), middle)
    }
}

macro_rules! lanes {
    ($name:ty, $bytes:path, dots_bytes: $dots_bytes:literal) => {
        // SAFETY: AVX2, FMA and F16C intrinsics alone; the table is handed out only after `detected()`. Pointers' room is the
        // caller's to grant, and every memory access is an unaligned one.
        #[allow(
            clippy::undocumented_unsafe_blocks,
            reason = "one contract for all functions, stated on the impl"
        )]
        unsafe impl Lanes for $name {
            type F = Pair;
            const ROWS: usize = 6;
            const WIDENED_ROWS: usize = 4;
            const PANELS: usize = 1;
            const DOTS_BYTES: bool = $dots_bytes;

            #[inline(always)]
            unsafe fn splat(x: f32) -> Pair {
                unsafe {
                    let v = _mm256_set1_ps(x);
                    Pair(v, v)
                }
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> Pair {
                unsafe { Pair(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
            }
            #[inline(always)]
            unsafe fn store(p: *mut f32, v: Pair) {
                unsafe {
                    _mm256_storeu_ps(p, v.0);
                    _mm256_storeu_ps(p.add(8), v.1);
                }
            }
            #[inline(always)]
            unsafe fn add(a: Pair, b: Pair) -> Pair {
                unsafe { Pair(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
            }
            #[inline(always)]
            unsafe fn sub(a: Pair, b: Pair) -> Pair {
                unsafe { Pair(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
            }
            #[inline(always)]
            unsafe fn mul(a: Pair, b: Pair) -> Pair {
                unsafe { Pair(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
            }
            #[inline(always)]
            unsafe fn div(a: Pair, b: Pair) -> Pair {
                unsafe { Pair(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
            }
            #[inline(always)]
            unsafe fn max(a: Pair, b: Pair) -> Pair {
                unsafe { Pair(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
            }
            #[inline(always)]
            unsafe fn min(a: Pair, b: Pair) -> Pair {
                unsafe { Pair(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
            }
            #[inline(always)]
            unsafe fn xor(a: Pair, b: Pair) -> Pair {
                unsafe { Pair(_mm256_xor_ps(a.0, b.0), _mm256_xor_ps(a.1, b.1)) }
            }
            #[inline(always)]
            unsafe fn twist(word: Pair, following: Pair, middle: Pair) -> Pair {
                unsafe {
                    Pair(
                        twist_eight(word.0, following.0, middle.0),
                        twist_eight(word.1, following.1, middle.1),
                    )
                }
            }
            #[inline(always)]
            unsafe fn fma(a: Pair, b: Pair, c: Pair) -> Pair {
                unsafe { Pair(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
            }
            #[inline(always)]
            unsafe fn round(a: Pair) -> Pair {
                unsafe {
                    Pair(
                        _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a.0),
                        _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a.1),
                    )
                }
            }
            #[inline(always)]
            unsafe fn pow2(n: Pair) -> Pair {
                unsafe {
                    let bias = _mm256_set1_epi32(127);
                    let low = _mm256_add_epi32(_mm256_cvtps_epi32(n.0), bias);
                    let high = _mm256_add_epi32(_mm256_cvtps_epi32(n.1), bias);
                    Pair(
                        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)),
                        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)),
                    )
                }
            }
            #[inline(always)]
            unsafe fn select_lt(a: Pair, b: Pair, yes: Pair, no: Pair) -> Pair {
                unsafe {
                    Pair(
                        _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)),
                        _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1)),
                    )
                }
            }
            #[inline(always)]
            unsafe fn load_f16(p: *const u16) -> Pair {
                unsafe {
                    Pair(
                        _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
                        _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())),
                    )
                }
            }
            #[inline(always)]
            unsafe fn load_bf16_pairs(p: *const u16) -> (Pair, Pair) {
                unsafe {
                    let (v, w) = (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast()));
                    let high = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
                    let even = Pair(
                        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v)),
                        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w)),
                    );
                    let odd = Pair(
                        _mm256_castsi256_ps(_mm256_and_si256(v, high)),
                        _mm256_castsi256_ps(_mm256_and_si256(w, high)),
                    );
                    (even, odd)
                }
            }
            #[inline(always)]
            unsafe fn dot_bf16(acc: Pair, line: *const u16, pair: u32) -> Pair {
                unsafe {
                    let (even, odd) = Self::load_bf16_pairs(line);
                    let acc = Self::fma(Self::splat(f32::from_bits(pair & 0xffff_0000)), odd, acc);
                    Self::fma(Self::splat(f32::from_bits(pair << 16)), even, acc)
                }
            }
            #[inline(always)]
            unsafe fn dot_bytes(acc: Pair, u: Pair, s: Pair) -> Pair {
                unsafe {
                    Pair(
                        lanes($bytes(whole(acc.0), whole(u.0), whole(s.0))),
                        lanes($bytes(whole(acc.1), whole(u.1), whole(s.1))),
                    )
                }
            }
            #[inline(always)]
            unsafe fn dot_pairs(acc: Pair, a: Pair, b: Pair) -> Pair {
                unsafe { Pair(pairs(acc.0, a.0, b.0), pairs(acc.1, a.1, b.1)) }
            }
            #[inline(always)]
            unsafe fn widen_bytes(v: Pair) -> (Pair, Pair) {
                unsafe {
                    let (low, high) = (whole(v.0), whole(v.1));
                    let even =
                        Pair(odd_bytes(_mm256_slli_epi16::<8>(low)), odd_bytes(_mm256_slli_epi16::<8>(high)));
                    (even, Pair(odd_bytes(low), odd_bytes(high)))
                }
            }
            #[inline(always)]
            unsafe fn nibbles(v: Pair) -> (Pair, Pair) {
                unsafe {
                    let (low, high) = (whole(v.0), whole(v.1));
                    (
                        Pair(low_bits(low), low_bits(high)),
                        Pair(low_bits(_mm256_srli_epi32::<4>(low)), low_bits(_mm256_srli_epi32::<4>(high))),
                    )
                }
            }
            #[inline(always)]
            unsafe fn to_float(v: Pair) -> Pair {
                unsafe { Pair(_mm256_cvtepi32_ps(whole(v.0)), _mm256_cvtepi32_ps(whole(v.1))) }
            }
            #[inline(always)]
            unsafe fn sub_integers(a: Pair, b: Pair) -> Pair {
                unsafe {
                    Pair(
                        lanes(_mm256_sub_epi32(whole(a.0), whole(b.0))),
                        lanes(_mm256_sub_epi32(whole(a.1), whole(b.1))),
                    )
                }
            }
            #[inline(always)]
            unsafe fn mul_integers(a: Pair, b: Pair) -> Pair {
                unsafe {
                    Pair(
                        lanes(_mm256_mullo_epi32(whole(a.0), whole(b.0))),
                        lanes(_mm256_mullo_epi32(whole(a.1), whole(b.1))),
                    )
                }
            }
            #[inline(always)]
            unsafe fn store_bytes(p: *mut u8, v: Pair) {
                unsafe {
                    let low = _mm256_set1_epi32(0xff);
                    let (a, b) = (_mm256_cvtps_epi32(v.0), _mm256_cvtps_epi32(v.1));
                    let words = _mm256_packus_epi32(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
                    // Packing takes the quarters of both in turn.
                    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
                    let halves =
                        _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                    _mm_storeu_si128(p.cast(), halves);
                }
            }
            #[inline(always)]
            unsafe fn round_bf16(v: Pair) -> Pair {
                unsafe { Pair(round_half(v.0), round_half(v.1)) }
            }
            #[inline(always)]
            unsafe fn pair_bf16(p: *const f32, out: *mut f32) {
                unsafe {
                    let Pair(a, b) = Self::round_bf16(Self::load(p));
                    let even = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
                    let odd = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(a, b));
                    let both = _mm256_or_si256(odd, _mm256_srli_epi32::<16>(even));
                    // The shuffles took quarters of both in turn.
                    _mm256_storeu_si256(out.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(both));
                }
            }
            #[inline(always)]
            unsafe fn join_bf16(low: Pair, high: Pair) -> Pair {
                unsafe {
                    let (low, high) = (Self::round_bf16(low), Self::round_bf16(high));
                    Pair(join_halves(low.0, high.0), join_halves(low.1, high.1))
                }
            }
            #[inline(always)]
            unsafe fn transpose(from: *const f32, stride: usize, out: *mut f32, step: usize) {
                unsafe { transpose_quads(from, stride, out, step) }
            }
            #[inline(always)]
            unsafe fn prefetch_write(p: *const u8) {
                unsafe { write_hint(p) }
            }
            #[inline(always)]
            unsafe fn sum(v: Pair) -> f32 {
                unsafe { sum_halves(_mm256_add_ps(v.0, v.1)) }
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

lanes!(Avx2, bytes_by_pairs, dots_bytes: false);
lanes!(AvxVnni, bytes_by_instruction, dots_bytes: true);
