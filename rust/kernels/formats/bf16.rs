//! bfloat16: a lane of a line holds two inputs of an output side by side. Products are formed in f32 after widening, or by the bf16
//! dot from activations that are rounded to bf16, too.

use super::floats::Float;
use super::sixteen::wide_kind;
use super::{Element, Format, Kind, Words};
use crate::kernels::lanes::{Lanes, round_bf16, widen_bf16};

/// The upper half of a single.
#[derive(Debug)]
pub(crate) struct Bf16;

/// Weights and activations in bf16.
pub(crate) struct Bf16Dot;

impl Float for Bf16 {
    const ELEMENT: Element = Element::Bf16;
    const BYTES: usize = 2;
    const STEP: usize = 2;
    type Bits = u16;
    #[inline(always)]
    fn raw(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes([bytes[at], bytes[at + 1]])
    }
    #[inline(always)]
    fn read(bytes: &[u8], at: usize) -> f32 {
        widen_bf16(Self::raw(bytes, at))
    }
    #[inline(always)]
    fn narrow(x: f32, fits: &mut bool) -> u16 {
        let bits = round_bf16(x);
        *fits &= bits & 0x7fff != 0x7f80 || !x.is_finite();
        bits
    }
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        widen_bf16(bits)
    }
    #[inline(always)]
    fn place(lane: usize, s: usize) -> usize {
        2 * lane + s
    }
    fn format(dot: bool) -> Format {
        if dot { Format::Bf16Dot } else { Format::Bf16 }
    }
}

wide_kind!(Bf16, p => L::load_bf16_pairs(p));

impl<L: Lanes> Kind<L> for Bf16Dot {
    const STEP: usize = 2;
    const WORDS: usize = 1;
    const INPUT: Words = Words::Pairs;
    type Line = *const u16;
    type Widened = Self;
    #[inline(always)]
    unsafe fn line(p: *const u8) -> *const u16 {
        p.cast()
    }
    #[inline(always)]
    unsafe fn apply(acc: L::F, line: *const u16, x: *const f32, _: usize) -> L::F {
        // SAFETY: handed on; the caller grants the line, the words and the lanes.
        unsafe { L::dot_bf16(acc, line, (*x).to_bits()) }
    }
}
