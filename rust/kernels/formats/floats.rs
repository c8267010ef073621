//! What the floating-point types have in common: how their lines are filled from a file's elements and read again.

use std::fmt::Debug;

use super::bf16::Bf16;
use super::f16::F16;
use super::f32::F32;
use super::{Element, Format, LINE, Orientation, PAIR, Panels, WeightType};
use crate::kernels::lanes::WIDTH;

/// Elements of a line, at most.
const LINE_ELEMENTS: usize = 2 * WIDTH;

/// An element as the packing loops see it.
pub(super) trait Float {
    const ELEMENT: Element;
    const BYTES: usize;
    /// Inputs in a line.
    const STEP: usize;
    type Bits: Copy + Default;
    /// An element as it is stored.
    fn raw(bytes: &[u8], at: usize) -> Self::Bits;
    fn read(bytes: &[u8], at: usize) -> f32;
    /// `x` as this type; `fits` turns false when a finite value became infinite.
    fn narrow(x: f32, fits: &mut bool) -> Self::Bits;
    fn widen(bits: Self::Bits) -> f32;
    /// Index in the line of input `s` of lane `lane`.
    fn place(lane: usize, s: usize) -> usize;
    /// As [`WeightType::format`].
    fn format(dot: bool) -> Format;
    /// As [`WeightType::delicate`].
    fn delicate(from: Element) -> Option<&'static dyn WeightType> {
        let _ = from;
        None
    }
}

impl<D: Float + Debug + Sync> WeightType for D {
    fn name(&self) -> &'static str {
        D::ELEMENT.name()
    }

    fn lines(&self, inputs: usize) -> usize {
        inputs.div_ceil(D::STEP)
    }

    fn format(&self, dot: bool) -> Format {
        D::format(dot)
    }

    fn element(&self) -> Option<Element> {
        Some(D::ELEMENT)
    }

    fn delicate(&self, from: Element) -> Option<&'static dyn WeightType> {
        D::delicate(from)
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
        unsafe { write::<D>(to, orientation, first, from, rows) }
    }

    unsafe fn gather(&self, panel: *const u8, lane: usize, row: &mut [f32]) {
        // SAFETY: handed on from the caller.
        unsafe { gather::<D>(panel, lane, row) }
    }
}

/// An element of one type in another; the bits stay where both are the same.
#[inline(always)]
fn convert<S: Float, D: Float>(bytes: &[u8], at: usize, fits: &mut bool) -> D::Bits {
    if S::ELEMENT == D::ELEMENT { D::raw(bytes, at) } else { D::narrow(S::read(bytes, at), fits) }
}

/// Writes a line of elements.
///
/// # Safety
/// `at` has room for a line, and `line` is as long.
#[inline(always)]
unsafe fn store<D: Float>(at: *mut u8, line: &[D::Bits; LINE_ELEMENTS]) {
    // SAFETY: the caller grants a line; the array is as long, or twice as long.
    unsafe { std::ptr::copy_nonoverlapping(line.as_ptr().cast(), at, LINE) }
}

/// One output's inputs, widened.
///
/// # Safety
/// As for [`super::WeightType::gather`].
unsafe fn gather<D: Float>(panel: *const u8, lane: usize, row: &mut [f32]) {
    for (k, x) in row.iter_mut().enumerate() {
        // SAFETY: the panel holds a line per `STEP` inputs.
        let bits =
            unsafe { *panel.add(k / D::STEP * PAIR).cast::<D::Bits>().add(D::place(lane, k % D::STEP)) };
        *x = D::widen(bits);
    }
}

/// Writes rows of a checkpoint's matrix, see [`super::WeightType::write`].
///
/// # Safety
/// As there.
unsafe fn write<D: Float>(
    to: Panels,
    orientation: Orientation,
    first: usize,
    from: Element,
    rows: &[u8],
) -> bool {
    // SAFETY: handed on from the caller.
    unsafe {
        match from {
            Element::F32 => write_from::<F32, D>(to, orientation, first, rows),
            Element::Bf16 => write_from::<Bf16, D>(to, orientation, first, rows),
            Element::F16 => write_from::<F16, D>(to, orientation, first, rows),
        }
    }
}

unsafe fn write_from<S: Float, D: Float>(
    to: Panels,
    orientation: Orientation,
    first: usize,
    rows: &[u8],
) -> bool {
    // SAFETY: handed on from the caller.
    unsafe {
        match orientation {
            Orientation::OutIn => out_in::<S, D>(to, first, rows),
            Orientation::InOut => in_out::<S, D>(to, first, rows),
        }
    }
}

unsafe fn out_in<S: Float, D: Float>(to: Panels, first: usize, rows: &[u8]) -> bool {
    let (row, n) = (to.inputs * S::BYTES, rows.len() / (to.inputs * S::BYTES));
    assert!(first.is_multiple_of(WIDTH) && first + n <= to.outputs, "whole panels of the matrix");
    let mut fits = true;
    let lines = to.inputs.div_ceil(D::STEP);
    for p in 0..n.div_ceil(WIDTH) {
        let panel = to.panel(first / WIDTH + p);
        let lanes = (n - p * WIDTH).min(WIDTH);
        // Lines that one turn transposes: sixteen inputs of every lane.
        let turn = WIDTH / D::STEP;
        let mut l = 0;
        while lanes == WIDTH && (l + turn) * D::STEP <= to.inputs {
            let mut block = [[D::Bits::default(); LINE_ELEMENTS]; WIDTH];
            for lane in 0..WIDTH {
                let at = (p * WIDTH + lane) * row + l * D::STEP * S::BYTES;
                let from = &rows[at..at + WIDTH * S::BYTES];
                for i in 0..WIDTH {
                    block[i / D::STEP][D::place(lane, i % D::STEP)] =
                        convert::<S, D>(from, i * S::BYTES, &mut fits);
                }
            }
            for line in &block[..turn] {
                // SAFETY: the line lies in the panel, and is the caller's alone to write.
                unsafe { store::<D>(panel.add(l * PAIR), line) };
                l += 1;
            }
        }
        for l in l..lines {
            let mut line = [D::Bits::default(); LINE_ELEMENTS];
            for lane in 0..lanes {
                for k in l * D::STEP..((l + 1) * D::STEP).min(to.inputs) {
                    let at = (p * WIDTH + lane) * row + k * S::BYTES;
                    line[D::place(lane, k % D::STEP)] = convert::<S, D>(rows, at, &mut fits);
                }
            }
            // SAFETY: as above.
            unsafe { store::<D>(panel.add(l * PAIR), &line) };
        }
    }
    fits
}

unsafe fn in_out<S: Float, D: Float>(to: Panels, first: usize, rows: &[u8]) -> bool {
    let row = to.outputs * S::BYTES;
    let n = rows.len() / row;
    assert!(first.is_multiple_of(2) && first + n <= to.inputs, "pairs of rows of the matrix");
    let mut fits = true;
    for p in 0..to.outputs.div_ceil(WIDTH) {
        let panel = to.panel(p);
        let lanes = (to.outputs - p * WIDTH).min(WIDTH);
        for i in (0..n).step_by(D::STEP) {
            let mut line = [D::Bits::default(); LINE_ELEMENTS];
            for s in 0..D::STEP.min(n - i) {
                let at = (i + s) * row + p * WIDTH * S::BYTES;
                let from = &rows[at..at + lanes * S::BYTES];
                if lanes == WIDTH {
                    // A constant number of lanes, which the compiler copies as vectors.
                    for lane in 0..WIDTH {
                        line[D::place(lane, s)] = convert::<S, D>(from, lane * S::BYTES, &mut fits);
                    }
                    continue;
                }
                for lane in 0..lanes {
                    line[D::place(lane, s)] = convert::<S, D>(from, lane * S::BYTES, &mut fits);
                }
            }
            // SAFETY: the line lies in the panel, and is the caller's alone to write.
            unsafe { store::<D>(panel.add((first + i) / D::STEP * PAIR), &line) };
        }
    }
    fits
}
