//! int8 with activations in groups: for matrices whose inputs have a few that are far larger than the others, such as the second of
//! T5's feed-forward.
//!
//! Weights are those of [`super::int8`]. In front of a group's lines stands one with the sums of its weights, by which the group's
//! zero point is taken out; the outputs' scales stand behind all groups.

use super::int8::{self, STEP};
use super::{Element, Format, Grouped, HEAD_WORDS, Orientation, PAIR, Panels, WeightType};
use crate::kernels::lanes::Lanes;

/// Inputs of a group.
const GROUP: usize = 64;
/// Lines of a group, with the one in front.
const LINES: usize = 1 + GROUP / STEP;

/// Eight bits, a scale for each output; activations have one for each group.
#[derive(Debug)]
pub(crate) struct Int8Groups;

impl WeightType for Int8Groups {
    fn name(&self) -> &'static str {
        "int8"
    }

    fn lines(&self, inputs: usize) -> usize {
        inputs.div_ceil(GROUP) * LINES + 1
    }

    fn format(&self, _: bool) -> Format {
        Format::Int8Groups
    }

    fn group(&self) -> usize {
        GROUP
    }

    fn element(&self) -> Option<Element> {
        None
    }

    fn takes_whole_columns(&self) -> bool {
        true
    }

    unsafe fn write(
        &self,
        to: Panels,
        orientation: Orientation,
        first: usize,
        from: Element,
        rows: &[u8],
    ) -> bool {
        let (mut quantized, groups) = (Vec::with_capacity(to.inputs), to.inputs.div_ceil(GROUP));
        super::each_output(to, orientation, first, from, rows, |at, lane, values| {
            let scale = int8::quantize(values, &mut quantized);
            quantized.resize(groups * GROUP, 0);
            // SAFETY: the panel is the caller's to write, and holds these lines for every group and one more.
            unsafe {
                let lane_of = |line: usize| at.add(line * PAIR + 4 * lane);
                for (g, group) in quantized.chunks_exact(GROUP).enumerate() {
                    let sum: i32 = group.iter().map(|&v| i32::from(v)).sum();
                    // The upper half of the lane meets zeros.
                    lane_of(g * LINES).cast::<i32>().write_unaligned(sum & 0xffff);
                    for (line, four) in group.as_chunks::<STEP>().0.iter().enumerate() {
                        lane_of(g * LINES + 1 + line).cast::<[i8; STEP]>().write_unaligned(*four);
                    }
                }
                lane_of(groups * LINES).cast::<f32>().write_unaligned(scale);
            }
        });
        true
    }

    unsafe fn gather(&self, panel: *const u8, lane: usize, row: &mut [f32]) {
        // SAFETY: the panel holds the lines of every group and one more.
        unsafe {
            let lane_of = |line: usize| panel.add(line * PAIR + 4 * lane);
            let scale = lane_of(row.len().div_ceil(GROUP) * LINES).cast::<f32>().read_unaligned();
            for (k, x) in row.iter_mut().enumerate() {
                let line = k / GROUP * LINES + 1 + k % GROUP / STEP;
                *x = scale * f32::from(*lane_of(line).cast::<i8>().add(k % STEP));
            }
        }
    }
}

impl<L: Lanes> Grouped<L> for Int8Groups {
    const STEP: usize = STEP;
    const WORDS: usize = if L::DOTS_BYTES { 1 } else { 2 };
    const SCALES: usize = 1;
    const SIGNED: bool = false;
    type Line = (L::F, L::F);
    type Unpacked = Self;
    #[inline(always)]
    unsafe fn line(p: *const u8) -> (L::F, L::F) {
        // SAFETY: handed on; the caller grants the line, the words and the lanes.
        unsafe {
            let line = L::load(p.cast());
            if L::DOTS_BYTES { (line, line) } else { L::widen_bytes(line) }
        }
    }
    #[inline(always)]
    unsafe fn apply(sums: L::F, line: (L::F, L::F), x: *const f32, next: usize) -> L::F {
        // SAFETY: handed on; the caller grants the line, the words and the lanes.
        unsafe {
            if L::DOTS_BYTES {
                return L::dot_bytes(sums, L::splat(*x), line.0);
            }
            let sums = L::dot_pairs(sums, L::splat(*x), line.0);
            L::dot_pairs(sums, L::splat(*x.add(next)), line.1)
        }
    }
    #[inline(always)]
    unsafe fn scale(_: *const u8, row: L::F) -> L::F {
        row
    }
}

const _: () = assert!(HEAD_WORDS == 2, "a word for the sums and one for the scale");
