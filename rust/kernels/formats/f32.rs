//! float32: a line holds one input of sixteen outputs.

use super::floats::{self, Float};
use super::{Element, Format, Kind, Orientation, Panels, WeightType};
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
}

impl WeightType for F32 {
    fn name(&self) -> &'static str {
        "float32"
    }

    fn lines(&self, inputs: usize) -> usize {
        inputs
    }

    fn format(&self, _: bool) -> Format {
        Format::F32
    }

    fn element(&self) -> Option<Element> {
        Some(Element::F32)
    }

    unsafe fn write(
        &self,
        to: Panels,
        orientation: Orientation,
        first: usize,
        from: Element,
        rows: &[u8],
    ) -> bool {
        // SAFETY: handed on from the caller.
        unsafe { floats::write::<Self>(to, orientation, first, from, rows) }
    }

    unsafe fn gather(&self, panel: *const u8, lane: usize, row: &mut [f32]) {
        // SAFETY: handed on from the caller.
        unsafe { floats::gather::<Self>(panel, lane, row) }
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
