//! int8: symmetric, a scale for each output; products with activations in u8, a scale and a zero point for each row.
//!
//! A lane of a line holds four inputs of an output. Two lines stand behind those of a panel's inputs: the scales in f32, and the
//! sums of the weights in i32, by which a row's zero point is taken out of its products: with `x = s (q - z)` and `w = t v` the
//! product is `s t (sum(q v) - z sum(v))`. The sums are integers, so they are exact in any order, and the same on every table.

use super::int8_groups::Int8Groups;
use super::{Element, Format, Kind, LINE, Orientation, PAIR, Panels, WeightType, Words, each_output};
use crate::kernels::lanes::{Lanes, WIDTH};

/// Words of a prepared row behind those of its inputs: its scale (f32), and its zero point (i32).
pub(crate) const SCALE_WORDS: usize = 2;
/// Inputs in a lane of a line.
pub(super) const STEP: usize = 4;
/// The largest weight, and the negative of the least.
const MOST: f32 = 127.0;

/// Inputs of an output at most: 255 times 127 for each of them stays below 2^31.
const MOST_INPUTS: usize = 66_000;

/// Eight bits, a scale for each output.
#[derive(Debug)]
pub(crate) struct Int8;

/// Widened weights: two inputs of an output in a lane, as i16.
pub(crate) struct Int16;

/// The nearest integer of `x`, ties to even; `|x|` is below 2^22.
#[inline(always)]
fn nearest(x: f32) -> i32 {
    // Adding puts the integer into the low bits of the sum, and loops over that become vectors; the CPU's own rounding is a
    // library call without SSE 4.1.
    const HIGH: f32 = 12_582_912.0;
    (x + HIGH).to_bits().cast_signed() - HIGH.to_bits().cast_signed()
}

/// Values as integers from -127 to 127 and their scale: the largest magnitude over 127. Where one is not finite the scale is NaN, and
/// so are all products.
pub(super) fn quantize(values: &[f32], quantized: &mut Vec<i8>) -> f32 {
    quantized.clear();
    let most = values.iter().fold(0.0_f32, |most, x| if x.abs() > most { x.abs() } else { most });
    let nothing = values.iter().fold(0.0, |sum, x| sum + 0.0 * x);
    if most == 0.0 || nothing != 0.0 {
        quantized.resize(values.len(), 0);
        return nothing;
    }
    // A scale below the normal numbers would be rounded coarsely.
    let scale = (most / MOST).max(f32::MIN_POSITIVE);
    quantized.extend(values.iter().map(|x| nearest(x / scale) as i8));
    scale
}

impl WeightType for Int8 {
    fn name(&self) -> &'static str {
        "int8"
    }

    fn lines(&self, inputs: usize) -> usize {
        inputs.div_ceil(STEP) + <Self as Kind<crate::kernels::portable::Portable>>::SCALES
    }

    fn format(&self, _: bool) -> Format {
        Format::Int8
    }

    fn most_inputs(&self) -> usize {
        MOST_INPUTS
    }

    fn element(&self) -> Option<Element> {
        None
    }

    fn takes_whole_columns(&self) -> bool {
        true
    }

    fn delicate(&self, _: Element) -> Option<&'static dyn WeightType> {
        Some(&Int8Groups)
    }

    unsafe fn write(
        &self,
        to: Panels,
        orientation: Orientation,
        first: usize,
        from: Element,
        rows: &[u8],
    ) -> bool {
        let mut quantized = Vec::with_capacity(to.inputs);
        let behind = to.inputs.div_ceil(STEP);
        each_output(to, orientation, first, from, rows, |at, lane, values| {
            let scale = quantize(values, &mut quantized);
            let sum: i32 = quantized.iter().map(|&v| i32::from(v)).sum();
            quantized.resize(behind * STEP, 0);
            // SAFETY: the panel is the caller's to write, and holds a line per four inputs and two more.
            unsafe {
                let lane_of = |line: usize| at.add(line * PAIR + 4 * lane);
                for (line, four) in quantized.as_chunks::<STEP>().0.iter().enumerate() {
                    lane_of(line).cast::<[i8; STEP]>().write_unaligned(*four);
                }
                lane_of(behind).cast::<f32>().write_unaligned(scale);
                lane_of(behind + 1).cast::<i32>().write_unaligned(sum);
            }
        });
        true
    }

    unsafe fn gather(&self, panel: *const u8, lane: usize, row: &mut [f32]) {
        let behind = row.len().div_ceil(STEP);
        // SAFETY: the panel holds a line per four inputs and two more.
        unsafe {
            let lane_of = |line: usize| panel.add(line * PAIR + 4 * lane);
            let scale = lane_of(behind).cast::<f32>().read_unaligned();
            for (k, x) in row.iter_mut().enumerate() {
                *x = scale * f32::from(*lane_of(k / STEP).cast::<i8>().add(k % STEP));
            }
        }
    }
}

impl<L: Lanes> Kind<L> for Int8 {
    const STEP: usize = STEP;
    const WORDS: usize = if L::DOTS_BYTES { 1 } else { 2 };
    const WIDEN: bool = !L::DOTS_BYTES;
    const INPUT: Words = if L::DOTS_BYTES { Words::Bytes } else { Words::BytePairs };
    const SCALES: usize = 2;
    type Line = (L::F, L::F);
    type Widened = Int16;
    #[inline(always)]
    unsafe fn line(p: *const u8) -> (L::F, L::F) {
        // SAFETY: handed on; the caller grants the line, the words and the lanes.
        unsafe {
            let line = L::load(p.cast());
            if L::DOTS_BYTES { (line, line) } else { L::widen_bytes(line) }
        }
    }
    #[inline(always)]
    unsafe fn apply(acc: L::F, line: (L::F, L::F), x: *const f32, next: usize) -> L::F {
        // SAFETY: handed on; the caller grants the line, the words and the lanes.
        unsafe {
            if L::DOTS_BYTES {
                return L::dot_bytes(acc, L::splat(*x), line.0);
            }
            let acc = L::dot_pairs(acc, L::splat(*x), line.0);
            L::dot_pairs(acc, L::splat(*x.add(next)), line.1)
        }
    }
    #[inline(always)]
    unsafe fn widen(p: *const u8, out: *mut f32, step: usize) {
        // SAFETY: handed on; the caller grants the line, the words and the lanes.
        unsafe {
            let (even, odd) = L::widen_bytes(L::load(p.cast()));
            L::store(out, even);
            L::store(out.add(step), odd);
        }
    }
}

impl<L: Lanes> Kind<L> for Int16 {
    const STEP: usize = 2;
    const WORDS: usize = 1;
    type Line = *const f32;
    type Widened = Self;
    #[inline(always)]
    unsafe fn line(p: *const u8) -> *const f32 {
        p.cast()
    }
    #[inline(always)]
    unsafe fn apply(acc: L::F, line: *const f32, x: *const f32, _: usize) -> L::F {
        // SAFETY: handed on; the caller grants the line, the words and the lanes.
        unsafe { L::dot_pairs(acc, L::splat(*x), L::load(line)) }
    }
}

const _: () = assert!(LINE == STEP * WIDTH, "a line holds four inputs of sixteen outputs");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_to_the_nearest_step() {
        let mut quantized = Vec::new();
        for (values, scale, expected) in [
            (vec![127.0, -126.5, 0.5, 1.5, -0.49], 1.0, vec![127, -126, 0, 2, 0]),
            (vec![-254.0, 3.0, 0.0], 2.0, vec![-127, 2, 0]),
            (vec![0.0, -0.0], 0.0, vec![0, 0]),
            (vec![], 0.0, vec![]),
        ] {
            assert_eq!((quantize(&values, &mut quantized), &quantized), (scale, &expected), "{values:?}");
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(quantize(&[1.0, bad], &mut quantized).is_nan(), "{bad}");
        }
        let tiny = f32::from_bits(1);
        assert_eq!(quantize(&[tiny], &mut quantized), f32::MIN_POSITIVE);
    }
}
