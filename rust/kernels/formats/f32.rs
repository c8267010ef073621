//! float32: a line holds one input of sixteen outputs.

use super::floats::Float;
use super::{Element, Format, Kind};
use crate::kernels::lanes::Lanes;

/// Single precision.
#[derive(Debug)]
pub(crate) struct F32;

impl Float for F32 {
    const ELEMENT: Element = Element::F32;
    const BYTES: usize = 4;
    const STEP: usize = 1;
    type Bits = f32;
    #[inline(always)]
    fn raw(bytes: &[u8], at: usize) -> f32 {
        Self::read(bytes, at)
    }
    #[inline(always)]
    fn read(bytes: &[u8], at: usize) -> f32 {
        f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    }
    #[inline(always)]
    fn narrow(x: f32, _: &mut bool) -> f32 {
        x
    }
    #[inline(always)]
    fn widen(bits: f32) -> f32 {
        bits
    }
    #[inline(always)]
    fn place(lane: usize, _: usize) -> usize {
        lane
    }
    fn format(_: bool) -> Format {
        Format::F32
    }
}

impl<L: Lanes> Kind<L> for F32 {
    const STEP: usize = 1;
    const WORDS: usize = 1;
    type Line = L::F;
    type Widened = Self;
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
}
