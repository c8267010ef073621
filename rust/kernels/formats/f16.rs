//! float16: a line holds one input of sixteen outputs, and then the next input of the same outputs, as widening wants them.

use half::f16;

use super::floats::Float;
use super::sixteen::wide_kind;
use super::{Element, Format, Kind, WeightType};
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
    fn format(_: bool) -> Format {
        Format::F16
    }
    fn delicate(from: Element) -> Option<&'static dyn WeightType> {
        // transformers keeps such matrices as they are in the file (`_keep_in_fp32_modules`).
        Some(super::of_element(from))
    }
}

wide_kind!(F16, p => (L::load_f16(p), L::load_f16(p.add(WIDTH))));
