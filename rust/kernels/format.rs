//! How weights are stored in a panel's lines, and how a line meets activations: one [`Kind`] per format.
//!
//! Every kind adds to one f32 accumulator per output, inputs ascending, whatever the tile.

use super::lanes::{Lanes, WIDTH};

/// Bytes of a line of a panel.
pub const LINE: usize = 64;
/// Bytes from one line of a packed weight's panel to the next: the other panel's line of the pair lies between.
pub const PAIR: usize = 2 * LINE;

/// Bytes from a matrix's start to panel `p` of `lines` lines.
pub const fn panel_offset(p: usize, lines: usize) -> usize {
    p / 2 * lines * PAIR + p % 2 * LINE
}

/// How the weights are stored and how products are formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// f32 weights, f32 products.
    F32,
    /// bf16 weights widened, f32 products.
    Bf16,
    /// f16 weights widened, f32 products.
    F16,
    /// bf16 weights and activations, the bf16 dot.
    Bf16Dot,
}

/// A storage format as the algorithm sees it: lines of a panel, words of activations.
pub(super) trait Kind<L: Lanes> {
    /// Inputs in a line.
    const STEP: usize;
    /// 32-bit words of activations that a line needs.
    const WORDS: usize;
    /// Whether many rows take the line widened to f32.
    const WIDEN: bool;
    /// Whether activations must be turned into bf16 pairs first.
    const PAIRS: bool;
    /// A line in registers.
    type Line: Copy;
    unsafe fn line(p: *const u8) -> Self::Line;
    /// One more line: `x` points at the first word, the next one is `next` words on.
    unsafe fn apply(acc: L::F, line: Self::Line, x: *const f32, next: usize) -> L::F;
    /// The line as f32, `WORDS` vectors that lie `step` floats apart.
    unsafe fn widen(p: *const u8, out: *mut f32, step: usize);
}

/// f32 weights.
pub(super) struct F32;
/// bf16 weights, f32 products.
pub(super) struct Bf16;
/// f16 weights, f32 products.
pub(super) struct F16;
/// bf16 weights and activations.
pub(super) struct Bf16Dot;

mod kinds {
    use super::*;

    impl<L: Lanes> Kind<L> for F32 {
        const STEP: usize = 1;
        const WORDS: usize = 1;
        const WIDEN: bool = false;
        const PAIRS: bool = false;
        type Line = L::F;
        #[inline(always)]
        unsafe fn line(p: *const u8) -> L::F {
            // SAFETY: handed on; the caller grants the line, the words and the lanes.
            unsafe { L::load(p.cast()) }
        }
        #[inline(always)]
        unsafe fn apply(acc: L::F, line: L::F, x: *const f32, _: usize) -> L::F {
            // SAFETY: handed on; the caller grants the line, the words and the lanes.
            unsafe { L::fma(L::splat(*x), line, acc) }
        }
        #[inline(always)]
        unsafe fn widen(p: *const u8, out: *mut f32, _: usize) {
            // SAFETY: handed on; the caller grants the line, the words and the lanes.
            unsafe { L::store(out, L::load(p.cast())) }
        }
    }

    macro_rules! sixteen_bits {
        ($kind:ty, $p:ident => $line:expr) => {
            impl<L: Lanes> Kind<L> for $kind {
                const STEP: usize = 2;
                const WORDS: usize = 2;
                const WIDEN: bool = true;
                const PAIRS: bool = false;
                type Line = (L::F, L::F);
                #[inline(always)]
                unsafe fn line(p: *const u8) -> (L::F, L::F) {
                    let $p = p.cast::<u16>();
                    // SAFETY: handed on; the caller grants the line, the words and the lanes.
                    unsafe { $line }
                }
                #[inline(always)]
                unsafe fn apply(acc: L::F, line: (L::F, L::F), x: *const f32, next: usize) -> L::F {
                    // SAFETY: handed on; the caller grants the line, the words and the lanes.
                    unsafe {
                        let acc = L::fma(L::splat(*x), line.0, acc);
                        L::fma(L::splat(*x.add(next)), line.1, acc)
                    }
                }
                #[inline(always)]
                unsafe fn widen(p: *const u8, out: *mut f32, step: usize) {
                    // SAFETY: handed on; the caller grants the line, the words and the lanes.
                    unsafe {
                        let (even, odd) = <Self as Kind<L>>::line(p);
                        L::store(out, even);
                        L::store(out.add(step), odd);
                    }
                }
            }
        };
    }
    sixteen_bits!(Bf16, p => L::load_bf16_pairs(p));
    sixteen_bits!(F16, p => (L::load_f16(p), L::load_f16(p.add(WIDTH))));

    impl<L: Lanes> Kind<L> for Bf16Dot {
        const STEP: usize = 2;
        const WORDS: usize = 1;
        const WIDEN: bool = false;
        const PAIRS: bool = true;
        type Line = *const u16;
        #[inline(always)]
        unsafe fn line(p: *const u8) -> *const u16 {
            p.cast()
        }
        #[inline(always)]
        unsafe fn apply(acc: L::F, line: *const u16, x: *const f32, _: usize) -> L::F {
            // SAFETY: handed on; the caller grants the line, the words and the lanes.
            unsafe { L::dot_bf16(acc, line, (*x).to_bits()) }
        }
        #[inline(always)]
        unsafe fn widen(_: *const u8, _: *mut f32, _: usize) {}
    }
}
