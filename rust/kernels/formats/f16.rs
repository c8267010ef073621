//! float16: a line holds one input of sixteen outputs, and then the next input of the same outputs, as widening wants them.

use half::f16;

use super::floats::{self, Float};
use super::sixteen::wide_kind;
use super::{Element, Format, Kind, Orientation, Panels, WeightType};
use crate::kernels::lanes::{Lanes, WIDTH};

/// Half precision.
#[derive(Debug)]
pub(crate) struct F16;

impl Float for F16 {
    const ELEMENT: Element = Element::F16;
    const BYTES: usize = 2;
    const STEP: usize = 2;
    type Bits = u16;
    #[inline(always)]
    fn raw(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes([bytes[at], bytes[at + 1]])
    }
    #[inline(always)]
    fn read(bytes: &[u8], at: usize) -> f32 {
        <Self as Float>::widen(Self::raw(bytes, at))
    }
    #[inline(always)]
    fn narrow(x: f32, fits: &mut bool) -> u16 {
        let half = f16::from_f32(x);
        *fits &= !half.is_infinite() || !x.is_finite();
        half.to_bits()
    }
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f16::from_bits(bits).to_f32()
    }
    #[inline(always)]
    fn place(lane: usize, s: usize) -> usize {
        s * WIDTH + lane
    }
}

impl WeightType for F16 {
    fn name(&self) -> &'static str {
        "float16"
    }

    fn lines(&self, inputs: usize) -> usize {
        inputs.div_ceil(2)
    }

    fn format(&self, _: bool) -> Format {
        Format::F16
    }

    fn element(&self) -> Option<Element> {
        Some(Element::F16)
    }

    fn delicate(&self, from: Element) -> Option<&'static dyn WeightType> {
        // transformers keeps such matrices as they are in the file (`_keep_in_fp32_modules`).
        Some(super::of_element(from))
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

wide_kind!(F16, p => (L::load_f16(p), L::load_f16(p.add(WIDTH))));
