//! int4: unsigned, with a scale and a zero point for each output and group of inputs; activations in i8, a scale for each group.
//!
//! A lane of a line holds eight inputs of an output: four in the low halves of its bytes, the next four in the high halves. In
//! front of a group's lines stands one with the zero points (i16, the lower half of a lane) and the scales (bf16, the upper half).
//! With `w = t (v - z)` and `x = s q` a group's part of a product is `t s (sum(v q) - z sum(q))`: exact integers, and one addition
//! in f32 for each group.

use std::ops::RangeInclusive;

use super::{Element, Format, Grouped, INT8, Orientation, PAIR, Panels, WeightType, each_output};
use crate::kernels::lanes::{Lanes, round_bf16, widen_bf16};

/// Inputs in a lane of a line.
const STEP: usize = 8;
/// The largest integer.
const MOST: f32 = 15.0;
/// Ranges that are tried for a group's values: all of them, and ever less of what lies at their ends.
const TRIED: usize = 14;
/// Ranges that are computed side by side, so that loops over them become vectors: those that are tried, and two more.
const SIDE: usize = 16;
/// Largest magnitudes of a group's values whose squared errors are computed as they are, without an overflow or a loss below.
const ORDINARY: RangeInclusive<f32> = 9.094_947e-13..=1.099_511_6e12;

/// Four bits, so many inputs in a group.
#[derive(Debug)]
pub(crate) struct Int4 {
    pub(super) group: usize,
}

/// Products of four bits.
pub(crate) struct Nibbles;

/// Weights that were unpacked: four inputs of an output in a lane.
pub(crate) struct Bytes;

/// Scale and zero point of a group, as they lie in a line.
struct Quantized {
    scale: u16,
    zero: u16,
}

/// A number for each range.
type Each = [f32; SIDE];

/// The nearest integer from 0 to 15.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    // Adding and taking away rounds to an integer, ties to even, and loops over it become vectors.
    const HIGH: f32 = 12_582_912.0;
    ((x + HIGH) - HIGH).clamp(0.0, MOST)
}

/// The squared errors of values as integer multiples of each of the scales from its zero point on; where `FITS`, the scale that fits
/// the integers of each best, too, or 0 where none does.
#[inline(always)]
fn attempt<const FITS: bool>(values: &[f32], scales: &Each, zeros: &Each) -> (Each, Each) {
    let (mut sums, mut with, mut square) = ([[0.0; SIDE]; 8], [0.0; SIDE], [0.0; SIDE]);
    let (values, rest) = values.as_chunks::<8>();
    debug_assert!(rest.is_empty(), "groups are whole lines");
    for eight in values {
        for (sums, &x) in sums.iter_mut().zip(eight) {
            for i in 0..SIDE {
                let multiple = nearest(x / scales[i] + zeros[i]) - zeros[i];
                let difference = scales[i] * multiple - x;
                sums[i] += difference * difference;
                if FITS {
                    with[i] += multiple * x;
                    square[i] += multiple * multiple;
                }
            }
        }
    }
    let errors = std::array::from_fn(|i| sums.iter().map(|sums| sums[i]).sum());
    let fitting = std::array::from_fn(|i| if square[i] > 0.0 { with[i] / square[i] } else { 0.0 });
    (errors, fitting)
}

/// The power of two by which a group is multiplied whose largest magnitude is this, before it is searched: 1 save where squares would
/// overflow or vanish.
fn factor(largest: f32) -> f32 {
    if ORDINARY.contains(&largest) {
        return 1.0;
    }
    let exponent = (largest.to_bits() >> 23) as i32 - 127;
    f32::from_bits(((127 - exponent.clamp(-126, 126)) as u32) << 23)
}

/// Scale, zero point and `integers` of a group with the least squared error of those that are tried: the range of the values, parts of
/// that, and for each the scale that fits its integers best. Every operation is rounded by itself, so every CPU finds the same.
#[inline(always)]
fn quantize(values: &mut [f32], integers: &mut [f32]) -> Quantized {
    let (mut least, mut most, mut nothing) = (0.0_f32, 0.0_f32, 0.0_f32);
    for &x in values.iter() {
        least = if x < least { x } else { least };
        most = if x > most { x } else { most };
        nothing += 0.0 * x;
    }
    if nothing != 0.0 || (least == 0.0 && most == 0.0) {
        // Infinity or NaN: products with this output are NaN. Or zeros.
        integers.fill(0.0);
        return Quantized { scale: round_bf16(nothing), zero: 0 };
    }
    let by = factor(most.max(-least));
    if by != 1.0 {
        values.iter_mut().for_each(|x| *x *= by);
        (least, most) = (least * by, most * by);
    }
    let smallest = f32::MIN_POSITIVE.max(f32::MIN_POSITIVE * by);
    let rounded = |scale: f32| widen_bf16(round_bf16(scale.max(smallest)));
    let parts: Each = std::array::from_fn(|step| 1.0 - 0.04 * step as f32);
    let scales = parts.map(|part| part * (most / MOST - least / MOST));
    let zeros = std::array::from_fn(|i| nearest(-parts[i] * least / scales[i]));
    let scales = scales.map(rounded);
    let (errors, fits) = attempt::<true>(values, &scales, &zeros);
    let fitting = fits.map(rounded);
    let (fitted, _) = attempt::<false>(values, &fitting, &zeros);
    let mut best = (f32::INFINITY, scales[0], zeros[0]);
    for i in 0..TRIED {
        let fitted = if fits[i] > 0.0 { fitted[i] } else { f32::INFINITY };
        for (error, scale) in [(errors[i], scales[i]), (fitted, fitting[i])] {
            // The largest multiple of a scale that was rounded up may be past all floats.
            let is_finite = (scale / by * zeros[i].max(MOST - zeros[i])).is_finite();
            if error < best.0 && is_finite {
                best = (error, scale, zeros[i]);
            }
        }
    }
    let (_, scale, zero) = best;
    for (integer, x) in integers.iter_mut().zip(values) {
        *integer = nearest(*x / scale + zero);
    }
    Quantized { scale: round_bf16(scale / by), zero: zero as u16 }
}

/// As [`quantize`], with the wider vectors that nearly every CPU has.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantize_avx2(values: &mut [f32], integers: &mut [f32]) -> Quantized {
    quantize(values, integers)
}

/// The search that this CPU does fastest.
fn search() -> unsafe fn(&mut [f32], &mut [f32]) -> Quantized {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        return quantize_avx2;
    }
    quantize
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
        let (search, mut whole, mut integers) = (search(), vec![0.0; padded], vec![0.0; group]);
        each_output(to, orientation, first, from, rows, |at, lane, values| {
            whole[..values.len()].copy_from_slice(values);
            for (g, values) in whole.chunks_exact_mut(group).enumerate() {
                // SAFETY: the CPU has what the search needs; the panel is the caller's to write, and holds these lines for every group.
                unsafe {
                    let found = search(values, &mut integers);
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

    /// Values that were quantized, and what they became.
    fn quantized(original: &[f32]) -> (f32, f32, Vec<f32>) {
        let (mut values, mut integers) = (original.to_vec(), vec![f32::NAN; original.len()]);
        let found = quantize(&mut values, &mut integers);
        let (mut again, mut others) = (original.to_vec(), vec![f32::NAN; original.len()]);
        // SAFETY: it is this CPU's.
        let fastest = unsafe { search()(&mut again, &mut others) };
        assert_eq!(
            (fastest.scale, fastest.zero, &others),
            (found.scale, found.zero, &integers),
            "the same by any vectors"
        );
        assert!(integers.iter().all(|v| (0.0..=MOST).contains(v) && v.fract() == 0.0), "{integers:?}");
        (widen_bf16(found.scale), f32::from(found.zero), integers)
    }

    fn values() -> Vec<f32> {
        (0..64).map(|i| ((i * 37 % 64) as f32 - 20.0).powi(3) / 9000.0).collect()
    }

    #[test]
    fn searched_scales_err_less_than_the_whole_range() {
        let values = values();
        let (scale, zero, integers) = quantized(&values);
        let squared: f32 = values.iter().zip(&integers).map(|(x, v)| (scale * (v - zero) - x).powi(2)).sum();
        let (least, most) = (-0.888_889_f32, 8.834_111);
        let whole = (most - least) / MOST;
        let zeros = [nearest(-least / whole); SIDE];
        let plain = attempt::<false>(&values, &[whole; SIDE], &zeros).0[0];
        assert!(squared < plain, "{squared} of {plain}");
    }

    #[test]
    fn huge_and_tiny_groups_are_searched_like_others() {
        let values = values();
        let (scale, zero, integers) = quantized(&values);
        for exponent in [-110, -100, -60, -41, -39, 39, 41, 60, 71, 90, 124] {
            let by = 2.0_f64.powi(exponent) as f32;
            let scaled: Vec<f32> = values.iter().map(|x| x * by).collect();
            assert_eq!(quantized(&scaled), (scale * by, zero, integers.clone()), "2^{exponent}");
        }
        // Below the smallest scale values are as near as its multiples are, and never further.
        for exponent in [-149, -140, -130] {
            let by = 2.0_f64.powi(exponent) as f32;
            let scaled: Vec<f32> = values.iter().map(|x| x * by).collect();
            let (scale, zero, integers) = quantized(&scaled);
            assert!(scale >= f32::MIN_POSITIVE, "{scale}");
            for (x, v) in scaled.iter().zip(integers) {
                assert!(
                    (scale * (v - zero) - x).abs() <= 0.51 * scale,
                    "2^{exponent}: {x} as {v} of {scale}"
                );
            }
        }
    }

    #[test]
    fn the_largest_floats_stay_finite() {
        for least in [-1.0, -0.9, -0.5, -0.1, 0.0] {
            for most in (0..64).map(|i| f32::MAX * (1.0 - i as f32 / 2048.0)) {
                let values: Vec<f32> =
                    (0..32).map(|i| most * (least + (1.0 - least) * (i as f32 / 31.0))).collect();
                let (scale, zero, integers) = quantized(&values);
                for (x, v) in values.iter().zip(integers) {
                    let found = f64::from(scale) * f64::from(v - zero);
                    assert!((scale * (v - zero)).is_finite(), "{scale} {v} {zero}");
                    let step = (1.0 - f64::from(least)) * f64::from(most) / f64::from(MOST);
                    assert!((found - f64::from(*x)).abs() < 2.0 * step, "{x} became {found}");
                }
            }
        }
    }

    #[test]
    fn groups_of_nothing_and_of_what_is_not_finite() {
        let (scale, zero, integers) = quantized(&[0.0; 32]);
        assert_eq!((scale, zero, integers[0]), (0.0, 0.0, 0.0));
        for (place, bad) in [(7, f32::INFINITY), (0, f32::NEG_INFINITY), (31, f32::NAN)] {
            let mut values = [1e30; 32];
            values[place] = bad;
            assert!(quantized(&values).0.is_nan());
        }
    }
}
