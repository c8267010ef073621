//! Weights in one packed layout: panels of sixteen outputs in pairs, 64-byte lines, for matrix-vector and matrix-matrix alike.
//!
//! What a line holds is the [weight type](WeightType)'s to say. Outputs are padded to whole panels and inputs to whole lines with
//! zeros; an odd last panel's partner is room that nobody writes or reads. All matrices of a model lie in one arena; they are
//! written once, at load, in parallel.

use std::sync::Arc;

use crate::arena::Arena;
use crate::kernels::{Element, Format, LINE, Orientation, PAIR, Panels, WIDTH, WeightType};

/// A packed matrix of `outputs × inputs`.
#[derive(Debug, Clone)]
pub struct Packed {
    /// None once a device has the panels.
    arena: Option<Arc<Arena>>,
    offset: usize,
    weight_type: &'static dyn WeightType,
    outputs: usize,
    inputs: usize,
}

/// Bytes that a packed matrix takes, or `None` past the address space.
pub fn packed_bytes(weight_type: &dyn WeightType, outputs: usize, inputs: usize) -> Option<usize> {
    outputs.div_ceil(2 * WIDTH).checked_mul(weight_type.lines(inputs))?.checked_mul(PAIR)
}

impl Packed {
    /// A matrix at `offset` of the arena; its contents are what [`Packed::write`] puts there.
    ///
    /// # Panics
    /// When the arena does not hold it.
    pub fn new(
        arena: &Arc<Arena>,
        offset: usize,
        weight_type: &'static dyn WeightType,
        outputs: usize,
        inputs: usize,
    ) -> Self {
        let bytes = packed_bytes(weight_type, outputs, inputs).expect("a size that was planned");
        assert!(offset.is_multiple_of(LINE) && offset + bytes <= arena.len(), "the arena holds the matrix");
        Self { arena: Some(Arc::clone(arena)), offset, weight_type, outputs, inputs }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of panels of sixteen outputs.
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(WIDTH)
    }

    /// How weights are stored.
    pub fn weight_type(&self) -> &'static dyn WeightType {
        self.weight_type
    }

    /// How products with these weights are formed, see [`WeightType::format`].
    pub fn format(&self, dot: bool) -> Format {
        self.weight_type.format(dot)
    }

    /// Bytes of the panels with their scales, which a step reads; the room of [`packed_bytes`] may hold one panel more.
    pub fn bytes(&self) -> usize {
        self.panels() * self.weight_type.lines(self.inputs) * LINE
    }

    /// Where the panels are.
    ///
    /// # Panics
    /// After [`Packed::release`].
    fn panels_at(&self) -> Panels {
        let arena = self.arena.as_ref().expect("a matrix that a device has is read there");
        // SAFETY: inside the arena.
        let at = unsafe { arena.at().add(self.offset) };
        let lines = self.weight_type.lines(self.inputs);
        Panels { at, outputs: self.outputs, inputs: self.inputs, lines }
    }

    /// Lets go of the panels, since a device has them. What is known of the matrix stays, and nobody reads its weights any more.
    pub fn release(&mut self) {
        self.arena = None;
    }

    /// First byte of panel `p`, whose lines are [`PAIR`] bytes apart.
    pub fn panel(&self, p: usize) -> *const u8 {
        self.panels_at().panel(p)
    }

    /// One output's inputs, widened, into `row` of `inputs` floats: an embedding's row.
    pub fn gather(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs && row.len() == self.inputs, "row {output} of {}", self.outputs);
        // SAFETY: the panel is this matrix's, which was written at load.
        unsafe { self.weight_type.gather(self.panel(output / WIDTH), output % WIDTH, row) }
    }

    /// Writes rows of the checkpoint's matrix into their panels, see [`WeightType::write`].
    ///
    /// # Safety
    /// No other thread reads the matrix or writes the same rows meanwhile.
    pub unsafe fn write(&self, orientation: Orientation, first: usize, from: Element, rows: &[u8]) -> bool {
        // SAFETY: the panels are this matrix's; the rest is handed on from the caller.
        unsafe { self.weight_type.write(self.panels_at(), orientation, first, from, rows) }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::kernels::lanes::round_bf16;
    use crate::kernels::{FLOAT16, of_element};

    fn bytes(element: Element, values: &[f32]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|&x| match element {
                Element::F32 => x.to_le_bytes().to_vec(),
                Element::Bf16 => round_bf16(x).to_le_bytes().to_vec(),
                Element::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
            })
            .collect()
    }

    #[test]
    fn every_storage_and_orientation_gathers_what_was_written() {
        let all = [Element::F32, Element::Bf16, Element::F16];
        for (outputs, inputs) in [(1, 1), (3, 5), (16, 16), (17, 7), (40, 6), (50, 33), (64, 2)] {
            let value = |o: usize, i: usize| ((o * 37 + i * 11) % 101) as f32 * 0.25 - 12.0;
            for (from, to) in all.iter().flat_map(|f| all.map(|t| (*f, of_element(t)))) {
                for orientation in [Orientation::OutIn, Orientation::InOut] {
                    let arena =
                        Arena::new(packed_bytes(to, outputs, inputs).unwrap() + LINE, "a test").unwrap();
                    let m = Packed::new(&arena, LINE, to, outputs, inputs);
                    let (rows, cols) = match orientation {
                        Orientation::OutIn => (outputs, inputs),
                        Orientation::InOut => (inputs, outputs),
                    };
                    let of = |r: usize, c: usize| match orientation {
                        Orientation::OutIn => value(r, c),
                        Orientation::InOut => value(c, r),
                    };
                    let values: Vec<f32> = (0..rows * cols).map(|i| of(i / cols, i % cols)).collect();
                    let data = bytes(from, &values);
                    let row = cols * from.bytes();
                    for first in (0..rows).step_by(WIDTH) {
                        let end = (first + WIDTH).min(rows);
                        // SAFETY: one thread.
                        let fits =
                            unsafe { m.write(orientation, first, from, &data[first * row..end * row]) };
                        assert!(fits, "these values fit");
                    }
                    for o in 0..outputs {
                        let mut got = vec![0.0; inputs];
                        m.gather(o, &mut got);
                        let want: Vec<f32> = (0..inputs).map(|i| value(o, i)).collect();
                        assert_eq!(
                            got, want,
                            "{from:?} to {to:?}, {orientation:?}, {outputs}x{inputs}, row {o}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_value_that_becomes_infinite_is_told() {
        let arena = Arena::new(1 << 12, "a test").unwrap();
        let m = Packed::new(&arena, 0, FLOAT16, 1, 2);
        for (x, fits) in [(65504.0, true), (65519.0, true), (65520.0, false), (f32::INFINITY, true)] {
            let data = bytes(Element::F32, &[1.0, x]);
            // SAFETY: one thread.
            assert_eq!(unsafe { m.write(Orientation::OutIn, 0, Element::F32, &data) }, fits, "{x}");
        }
    }
}
