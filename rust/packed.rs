//! Weights in one packed layout: panels of sixteen outputs in pairs, 64-byte lines, for matrix-vector and matrix-matrix alike.
//!
//! Lines of the two panels of a pair take turns, so that both come from one run of memory. A line holds, for sixteen outputs,
//! one input (f32), two side by side in a lane (bf16), or sixteen of k and then sixteen of k + 1 (f16). Outputs are padded to
//! whole panels and inputs to whole lines with zeros; an odd last panel's partner is room that nobody writes or reads. All
//! matrices of a model lie in one arena; they are written once, at load, in parallel.

use std::sync::Arc;

use half::{bf16, f16};

use crate::arena::Arena;
use crate::kernels::lanes::{round_bf16, widen_bf16};
use crate::kernels::{Format, LINE, PAIR, WIDTH, panel_offset};

/// How an element is stored, in a file or in a panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Storage {
    /// IEEE single precision.
    F32,
    /// The upper half of a single.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Storage {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// The name that users know.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// Inputs in a line.
    fn step(self) -> usize {
        if self == Self::F32 { 1 } else { 2 }
    }

    /// Element `i` of little-endian bytes, as f32.
    #[inline(always)]
    fn get(self, bytes: &[u8], i: usize) -> f32 {
        match self {
            Self::F32 => f32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap_or_default()),
            Self::Bf16 => widen_bf16(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])),
            Self::F16 => f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
        }
    }

    /// `x` rounded to what this storage can hold, ties to even.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::Bf16 => widen_bf16(round_bf16(x)),
            Self::F16 => f16::from_f32(x).to_f32(),
        }
    }

    /// Whether this storage holds every finite value of `bytes`, given as `from`, without a change.
    pub fn holds(self, from: Self, bytes: &[u8]) -> bool {
        (0..bytes.len() / from.bytes()).all(|i| {
            let x = from.get(bytes, i);
            self.round(x).to_bits() == x.to_bits() || x.is_nan()
        })
    }

    /// Elements of `bytes` as f32.
    pub fn widen(self, bytes: &[u8]) -> Vec<f32> {
        (0..bytes.len() / self.bytes()).map(|i| self.get(bytes, i)).collect()
    }
}

/// Orientation of a matrix in the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orientation {
    /// `[outputs, inputs]`: `torch.nn.Linear`, embeddings.
    OutIn,
    /// `[inputs, outputs]`: GPT-2's `Conv1D`.
    InOut,
}

/// A packed matrix of `outputs × inputs`.
#[derive(Debug, Clone)]
pub struct Packed {
    arena: Arc<Arena>,
    offset: usize,
    storage: Storage,
    outputs: usize,
    inputs: usize,
}

/// Bytes that a packed matrix takes, or `None` past the address space.
pub fn packed_bytes(storage: Storage, outputs: usize, inputs: usize) -> Option<usize> {
    outputs.div_ceil(2 * WIDTH).checked_mul(inputs.div_ceil(storage.step()))?.checked_mul(PAIR)
}

impl Packed {
    /// A matrix at `offset` of the arena; its contents are what [`Packed::write`] puts there.
    ///
    /// # Panics
    /// When the arena does not hold it.
    pub fn new(arena: &Arc<Arena>, offset: usize, storage: Storage, outputs: usize, inputs: usize) -> Self {
        let bytes = packed_bytes(storage, outputs, inputs).expect("a size that was planned");
        assert!(offset.is_multiple_of(LINE) && offset + bytes <= arena.len(), "the arena holds the matrix");
        Self { arena: Arc::clone(arena), offset, storage, outputs, inputs }
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

    /// How elements are stored.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// The kernel format that multiplies with this storage in f32.
    pub fn format(&self) -> Format {
        match self.storage {
            Storage::F32 => Format::F32,
            Storage::Bf16 => Format::Bf16,
            Storage::F16 => Format::F16,
        }
    }

    /// Lines of a panel.
    fn lines(&self) -> usize {
        self.inputs.div_ceil(self.storage.step())
    }

    /// Bytes of the panels, which a step reads; the room of [`packed_bytes`] may hold one panel more.
    pub fn bytes(&self) -> usize {
        self.panels() * self.lines() * LINE
    }

    /// First byte of panel `p`, whose lines are [`PAIR`] bytes apart.
    pub fn panel(&self, p: usize) -> *const u8 {
        assert!(p < self.panels(), "panel {p} of {}", self.panels());
        // SAFETY: inside the arena.
        unsafe { self.arena.at().add(self.offset + panel_offset(p, self.lines())) }
    }

    /// One output's inputs, widened, into `row` of `inputs` floats: an embedding's row.
    pub fn gather(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs && row.len() == self.inputs, "row {output} of {}", self.outputs);
        let (p, lane) = (self.panel(output / WIDTH), output % WIDTH);
        // SAFETY: the lane lies in the matrix, whose panel holds a line per `step` inputs.
        unsafe {
            match self.storage {
                Storage::F32 => {
                    for (k, x) in row.iter_mut().enumerate() {
                        *x = *p.add(k * PAIR).cast::<f32>().add(lane);
                    }
                }
                Storage::Bf16 => {
                    for (k, x) in row.iter_mut().enumerate() {
                        *x = widen_bf16(*p.add(k / 2 * PAIR).cast::<u16>().add(2 * lane + k % 2));
                    }
                }
                Storage::F16 => {
                    for (k, x) in row.iter_mut().enumerate() {
                        *x = (*p.add(k / 2 * PAIR).cast::<f16>().add(k % 2 * WIDTH + lane)).to_f32();
                    }
                }
            }
        }
    }

    /// Writes rows of the checkpoint's matrix into their panels, converting elements.
    ///
    /// `rows` are whole rows from row `first` on, as little-endian elements of `from`. For [`Orientation::OutIn`] `first`
    /// is a multiple of 16 and every panel comes whole, save the last; for [`Orientation::InOut`] `first` is even, and so
    /// is the number of rows, save at the end. Padding is written, too. Returns false when a finite value became infinite.
    ///
    /// # Safety
    /// No other thread reads the matrix or writes the same rows meanwhile.
    pub unsafe fn write(&self, orientation: Orientation, first: usize, from: Storage, rows: &[u8]) -> bool {
        macro_rules! by {
            ($from:ident, $($to:ident),*) => {
                match self.storage {
                    // SAFETY: handed on from the caller.
                    $(Storage::$to => unsafe {
                        match orientation {
                            Orientation::OutIn => self.out_in::<$from, $to>(first, rows),
                            Orientation::InOut => self.in_out::<$from, $to>(first, rows),
                        }
                    },)*
                }
            };
        }
        match from {
            Storage::F32 => by!(F32, F32, Bf16, F16),
            Storage::Bf16 => by!(Bf16, F32, Bf16, F16),
            Storage::F16 => by!(F16, F32, Bf16, F16),
        }
    }

    unsafe fn out_in<S: Element, D: Element>(&self, first: usize, rows: &[u8]) -> bool {
        let (row, n) = (self.inputs * S::BYTES, rows.len() / (self.inputs * S::BYTES));
        assert!(first.is_multiple_of(WIDTH) && first + n <= self.outputs, "whole panels of the matrix");
        let mut fits = true;
        let lines = self.inputs.div_ceil(D::STEP);
        for p in 0..n.div_ceil(WIDTH) {
            let panel = self.panel(first / WIDTH + p).cast_mut();
            let lanes = (n - p * WIDTH).min(WIDTH);
            // Lines that one turn transposes: sixteen inputs of every lane.
            let turn = WIDTH / D::STEP;
            let mut l = 0;
            while lanes == WIDTH && (l + turn) * D::STEP <= self.inputs {
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
                    unsafe { D::store(panel.add(l * PAIR), line) };
                    l += 1;
                }
            }
            for l in l..lines {
                let mut line = [D::Bits::default(); LINE_ELEMENTS];
                for lane in 0..lanes {
                    for k in l * D::STEP..((l + 1) * D::STEP).min(self.inputs) {
                        let at = (p * WIDTH + lane) * row + k * S::BYTES;
                        line[D::place(lane, k % D::STEP)] = convert::<S, D>(rows, at, &mut fits);
                    }
                }
                // SAFETY: as above.
                unsafe { D::store(panel.add(l * PAIR), &line) };
            }
        }
        fits
    }

    unsafe fn in_out<S: Element, D: Element>(&self, first: usize, rows: &[u8]) -> bool {
        let row = self.outputs * S::BYTES;
        let n = rows.len() / row;
        assert!(first.is_multiple_of(2) && first + n <= self.inputs, "pairs of rows of the matrix");
        let mut fits = true;
        for p in 0..self.panels() {
            let panel = self.panel(p).cast_mut();
            let lanes = (self.outputs - p * WIDTH).min(WIDTH);
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
                unsafe { D::store(panel.add((first + i) / D::STEP * PAIR), &line) };
            }
        }
        fits
    }
}

/// Elements of a line, at most.
const LINE_ELEMENTS: usize = 2 * WIDTH;

/// A storage as the packing loops see it.
trait Element {
    const STORAGE: Storage;
    const BYTES: usize;
    const STEP: usize;
    type Bits: Copy + Default;
    /// An element as it is stored.
    fn raw(bytes: &[u8], at: usize) -> Self::Bits;
    fn read(bytes: &[u8], at: usize) -> f32;
    /// `x` in this storage; `fits` turns false when a finite value became infinite.
    fn narrow(x: f32, fits: &mut bool) -> Self::Bits;
    /// Index in the line of input `s` of lane `lane`.
    fn place(lane: usize, s: usize) -> usize;
    /// # Safety
    /// `at` has room for a line.
    unsafe fn store(at: *mut u8, line: &[Self::Bits; LINE_ELEMENTS]);
}

/// An element of one storage in another; the bits stay where both are the same.
#[inline(always)]
fn convert<S: Element, D: Element>(bytes: &[u8], at: usize, fits: &mut bool) -> D::Bits {
    if S::STORAGE == D::STORAGE { D::raw(bytes, at) } else { D::narrow(S::read(bytes, at), fits) }
}

struct F32;
struct Bf16;
struct F16;

impl Element for F32 {
    const STORAGE: Storage = Storage::F32;
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
    fn place(lane: usize, _: usize) -> usize {
        lane
    }
    #[inline(always)]
    unsafe fn store(at: *mut u8, line: &[f32; LINE_ELEMENTS]) {
        // SAFETY: the caller grants a line; the first half of the array is one.
        unsafe { std::ptr::copy_nonoverlapping(line.as_ptr().cast(), at, LINE) }
    }
}

macro_rules! sixteen_bits {
    ($name:ident, $read:expr, $narrow:expr, $place:expr) => {
        impl Element for $name {
            const STORAGE: Storage = Storage::$name;
            const BYTES: usize = 2;
            const STEP: usize = 2;
            type Bits = u16;
            #[inline(always)]
            fn raw(bytes: &[u8], at: usize) -> u16 {
                u16::from_le_bytes([bytes[at], bytes[at + 1]])
            }
            #[inline(always)]
            fn read(bytes: &[u8], at: usize) -> f32 {
                $read(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
            }
            #[inline(always)]
            fn narrow(x: f32, fits: &mut bool) -> u16 {
                let (bits, infinite): (u16, bool) = $narrow(x);
                *fits &= !infinite || !x.is_finite();
                bits
            }
            #[inline(always)]
            fn place(lane: usize, s: usize) -> usize {
                $place(lane, s)
            }
            #[inline(always)]
            unsafe fn store(at: *mut u8, line: &[u16; LINE_ELEMENTS]) {
                // SAFETY: the caller grants a line; the array is one.
                unsafe { std::ptr::copy_nonoverlapping(line.as_ptr().cast(), at, LINE) }
            }
        }
    };
}
sixteen_bits!(
    Bf16,
    |b| bf16::from_bits(b).to_f32(),
    |x| {
        let b = round_bf16(x);
        (b, b & 0x7fff == 0x7f80)
    },
    |lane: usize, s: usize| 2 * lane + s
);
sixteen_bits!(
    F16,
    |b| f16::from_bits(b).to_f32(),
    |x| {
        let h = f16::from_f32(x);
        (h.to_bits(), h.is_infinite())
    },
    |lane: usize, s: usize| s * WIDTH + lane
);

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(storage: Storage, values: &[f32]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|&x| match storage {
                Storage::F32 => x.to_le_bytes().to_vec(),
                Storage::Bf16 => round_bf16(x).to_le_bytes().to_vec(),
                Storage::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
            })
            .collect()
    }

    #[test]
    fn every_storage_and_orientation_gathers_what_was_written() {
        let all = [Storage::F32, Storage::Bf16, Storage::F16];
        for (outputs, inputs) in [(1, 1), (3, 5), (16, 16), (17, 7), (40, 6), (50, 33), (64, 2)] {
            let value = |o: usize, i: usize| ((o * 37 + i * 11) % 101) as f32 * 0.25 - 12.0;
            for (from, to) in all.iter().flat_map(|f| all.map(|t| (*f, t))) {
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
        let m = Packed::new(&arena, 0, Storage::F16, 1, 2);
        for (x, fits) in [(65504.0, true), (65519.0, true), (65520.0, false), (f32::INFINITY, true)] {
            let data = bytes(Storage::F32, &[1.0, x]);
            // SAFETY: one thread.
            assert_eq!(unsafe { m.write(Orientation::OutIn, 0, Storage::F32, &data) }, fits, "{x}");
        }
    }

    #[test]
    fn narrow_storage_is_recognized() {
        assert!(Storage::Bf16.holds(Storage::F32, &bytes(Storage::F32, &[1.5, -0.0, f32::INFINITY])));
        assert!(!Storage::Bf16.holds(Storage::F32, &bytes(Storage::F32, &[1.5, 1.0009766])));
        assert!(Storage::F16.holds(Storage::F32, &bytes(Storage::F32, &[1.5, 1.0009766])));
        assert!(!Storage::F16.holds(Storage::F32, &bytes(Storage::F32, &[70000.0])));
    }
}
