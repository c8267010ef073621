//! int4: unsigned, with a scale and a zero point for each output and group of inputs; activations in i8, a scale for each group.
//!
//! A lane of a line holds eight inputs of an output: four in the low halves of its bytes, the next four in the high halves. In
//! front of a group's lines stands one with the zero points (i16, the lower half of a lane) and the scales (bf16, the upper half).
//! With `w = t (v - z)` and `x = s q` a group's part of a product is `t s (sum(v q) - z sum(q))`: exact integers, and one addition
//! in f32 for each group.

use super::{Element, Format, Grouped, INT8, Orientation, PAIR, Panels, WeightType, each_output};
use crate::kernels::lanes::{Lanes, round_bf16, widen_bf16};

/// Inputs in a lane of a line.
const STEP: usize = 8;
/// The largest integer.
const MOST: f32 = 15.0;
/// Ranges that are tried for a group's values: all of them, and ever less of what lies at their ends.
const TRIED: usize = 14;

/// Four bits, so many inputs in a group.
#[derive(Debug)]
pub(crate) struct Int4 {
    pub(super) group: usize,
}

/// Products of four bits.
pub(crate) struct Nibbles;

/// Weights that were unpacked: four inputs of an output in a lane.
pub(crate) struct Bytes;

/// A group's integers, all of them below 16.
struct Quantized {
    scale: u16,
    zero: u16,
}

/// The nearest integer from 0 to 15.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    // Adding and taking away rounds to an integer, ties to even, and loops over it become vectors.
    const HIGH: f32 = 12_582_912.0;
    ((x + HIGH) - HIGH).clamp(0.0, MOST)
}

/// The squared error of values as multiples of `scale` from `zero` on, and `integers` that give it.
fn error(values: &[f32], scale: f32, zero: f32, integers: &mut [f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (values, rest) = values.as_chunks::<8>();
    debug_assert!(rest.is_empty(), "groups are whole lines");
    for (values, integers) in values.iter().zip(integers.as_chunks_mut::<8>().0) {
        for i in 0..8 {
            integers[i] = nearest(values[i] / scale + zero);
            let difference = scale * (integers[i] - zero) - values[i];
            sums[i] += difference * difference;
        }
    }
    sums.iter().sum()
}

/// Scale, zero point and integers of a group with the least squared error of those that are tried: the range of the values, parts of
/// that, and for each the scale that fits its integers best. Every operation is rounded by itself, so every CPU finds the same.
fn quantize(values: &[f32], integers: &mut [f32], tried: &mut [f32]) -> Quantized {
    let (mut least, mut most, mut nothing) = (0.0_f32, 0.0_f32, 0.0_f32);
    for &x in values {
        least = if x < least { x } else { least };
        most = if x > most { x } else { most };
        nothing += 0.0 * x;
    }
    if nothing != 0.0 || (least == 0.0 && most == 0.0) {
        // Infinity or NaN: products with this output are NaN. Or zeros.
        integers.fill(0.0);
        return Quantized { scale: round_bf16(nothing), zero: 0 };
    }
    let mut best = (f32::INFINITY, 0, 0.0);
    let mut consider = |scale: f32, zero: f32, integers: &mut [f32], tried: &mut [f32]| {
        let bits = round_bf16(scale.max(f32::MIN_POSITIVE));
        let found = error(values, widen_bf16(bits), zero, tried);
        if found < best.0 {
            best = (found, bits, zero);
            integers.copy_from_slice(tried);
        }
    };
    for step in 0..TRIED {
        let part = 1.0 - 0.04 * step as f32;
        let scale = part * (most / MOST - least / MOST);
        let zero = nearest(-part * least / scale);
        consider(scale, zero, integers, tried);
        // The scale that fits these integers best.
        let (mut with, mut square) = (0.0_f32, 0.0_f32);
        for (&integer, &x) in tried.iter().zip(values) {
            let multiple = integer - zero;
            with += multiple * x;
            square += multiple * multiple;
        }
        if square > 0.0 && with > 0.0 {
            consider(with / square, zero, integers, tried);
        }
    }
    Quantized { scale: best.1, zero: best.2 as u16 }
}

impl Int4 {
    /// Lines of a group, with the one in front.
    fn group_lines(&self) -> usize {
        1 + self.group / STEP
    }
}

impl WeightType for Int4 {
    fn name(&self) -> &'static str {
        "int4"
    }

    fn lines(&self, inputs: usize) -> usize {
        inputs.div_ceil(self.group) * self.group_lines()
    }

    fn format(&self, _: bool) -> Format {
        Format::Nibbles
    }

    fn group(&self) -> usize {
        self.group
    }

    fn element(&self) -> Option<Element> {
        None
    }

    fn takes_whole_columns(&self) -> bool {
        true
    }

    fn vocabulary(&self) -> Option<&'static dyn WeightType> {
        Some(INT8)
    }

    unsafe fn write(
        &self,
        to: Panels,
        orientation: Orientation,
        first: usize,
        from: Element,
        rows: &[u8],
    ) -> bool {
        let group = self.group;
        let padded = to.inputs.next_multiple_of(group);
        let (mut whole, mut integers, mut tried) = (vec![0.0; padded], vec![0.0; group], vec![0.0; group]);
        each_output(to, orientation, first, from, rows, |at, lane, values| {
            whole[..values.len()].copy_from_slice(values);
            for (g, values) in whole.chunks_exact(group).enumerate() {
                let found = quantize(values, &mut integers, &mut tried);
                // SAFETY: the panel is the caller's to write, and holds these lines for every group.
                unsafe {
                    let lane_of = |line: usize| at.add((g * self.group_lines() + line) * PAIR + 4 * lane);
                    let head = u32::from(found.zero) | (u32::from(found.scale) << 16);
                    lane_of(0).cast::<u32>().write_unaligned(head);
                    for (line, eight) in integers.as_chunks::<STEP>().0.iter().enumerate() {
                        let byte = |b: usize| eight[b] as u8 | ((eight[b + 4] as u8) << 4);
                        let bytes: [u8; 4] = std::array::from_fn(byte);
                        lane_of(1 + line).cast::<[u8; 4]>().write_unaligned(bytes);
                    }
                }
            }
        });
        true
    }

    unsafe fn gather(&self, panel: *const u8, lane: usize, row: &mut [f32]) {
        for (g, values) in row.chunks_mut(self.group).enumerate() {
            // SAFETY: the panel holds these lines for every group.
            unsafe {
                let lane_of = |line: usize| panel.add((g * self.group_lines() + line) * PAIR + 4 * lane);
                let head = lane_of(0).cast::<u32>().read_unaligned();
                let (scale, zero) = (f32::from_bits(head & 0xffff_0000), (head & 0xffff) as f32);
                for (k, x) in values.iter_mut().enumerate() {
                    let byte = *lane_of(1 + k / STEP).add(k % 4);
                    let integer = if k % STEP < 4 { byte & 0x0f } else { byte >> 4 };
                    *x = scale * (f32::from(integer) - zero);
                }
            }
        }
    }
}

impl<L: Lanes> Grouped<L> for Nibbles {
    const STEP: usize = STEP;
    const WORDS: usize = 2;
    const SCALES: usize = 0;
    const SIGNED: bool = true;
    const UNPACKS: bool = true;
    type Line = (L::F, L::F);
    type Unpacked = Bytes;
    #[inline(always)]
    unsafe fn line(p: *const u8) -> (L::F, L::F) {
        // SAFETY: handed on; the caller grants the line, the words and the lanes.
        unsafe { L::nibbles(L::load(p.cast())) }
    }
    #[inline(always)]
    unsafe fn apply(sums: L::F, line: (L::F, L::F), x: *const f32, next: usize) -> L::F {
        // SAFETY: handed on; the caller grants the line, the words and the lanes.
        unsafe {
            let sums = L::dot_bytes(sums, line.0, L::splat(*x));
            L::dot_bytes(sums, line.1, L::splat(*x.add(next)))
        }
    }
    #[inline(always)]
    unsafe fn scale(head: *const u8, row: L::F) -> L::F {
        // SAFETY: handed on; the caller grants the line in front.
        unsafe { L::mul(L::load_bf16_pairs(head.cast()).1, row) }
    }
    #[inline(always)]
    unsafe fn unpack(from: *const u8, to: *mut u8) {
        // SAFETY: handed on; the caller grants the line, and room for two lines of a pair of panels.
        unsafe {
            let (low, high) = L::nibbles(L::load(from.cast()));
            L::store(to.cast(), low);
            L::store(to.add(PAIR).cast(), high);
        }
    }
}

impl<L: Lanes> Grouped<L> for Bytes {
    const STEP: usize = STEP / 2;
    const WORDS: usize = 1;
    const SCALES: usize = 0;
    const SIGNED: bool = true;
    type Line = L::F;
    type Unpacked = Self;
    #[inline(always)]
    unsafe fn line(p: *const u8) -> L::F {
        // SAFETY: handed on; the caller grants the line, the words and the lanes.
        unsafe { L::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn apply(sums: L::F, line: L::F, x: *const f32, _: usize) -> L::F {
        // SAFETY: handed on; the caller grants the line, the words and the lanes.
        unsafe { L::dot_bytes(sums, line, L::splat(*x)) }
    }
    #[inline(always)]
    unsafe fn scale(head: *const u8, row: L::F) -> L::F {
        // SAFETY: handed on; the caller grants the line in front.
        unsafe { <Nibbles as Grouped<L>>::scale(head, row) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searched_scales_err_less_than_the_whole_range() {
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 20.0).powi(3) / 9000.0).collect();
        let (mut integers, mut tried) = (vec![0.0; 64], vec![0.0; 64]);
        let found = quantize(&values, &mut integers, &mut tried);
        let (scale, zero) = (widen_bf16(found.scale), f32::from(found.zero));
        let squared: f32 = values.iter().zip(&integers).map(|(x, v)| (scale * (v - zero) - x).powi(2)).sum();
        let (least, most) = (-0.888_889_f32, 8.834_111);
        let whole = (most - least) / MOST;
        let plain = error(&values, whole, nearest(-least / whole), &mut tried);
        assert!(squared < plain, "{squared} of {plain}");
        assert!(integers.iter().all(|v| (0.0..=MOST).contains(v) && v.fract() == 0.0), "{integers:?}");
    }

    #[test]
    fn groups_of_nothing_and_of_what_is_not_finite() {
        let (mut integers, mut tried) = (vec![1.0; 32], vec![0.0; 32]);
        let found = quantize(&[0.0; 32], &mut integers, &mut tried);
        assert_eq!((found.scale, found.zero, integers[0]), (0, 0, 0.0));
        let mut values = [1.0; 32];
        values[7] = f32::INFINITY;
        assert!(widen_bf16(quantize(&values, &mut integers, &mut tried).scale).is_nan());
    }
}
