//! Weight types: what a matrix of one takes, how it is packed and gathered, and how its lines meet activations.
//!
//! A type is one file: an object that says how its matrices lie ([`WeightType`]), and one [`Kind`] or several of products with
//! them. [`TYPES`] lists the objects, `each_kind` the products; nothing else names them all. Which kind serves a product is
//! settled once per product, never for each tile.
//!
//! Weights lie in panels of sixteen outputs, whose lines of 64 bytes follow the inputs. Lines of the two panels of a pair take
//! turns, so that both come from one run of memory.

mod bf16;
mod element;
mod f16;
mod f32;
mod floats;
mod int8;
mod sixteen;

use std::fmt::Debug;

pub use element::Element;

use super::lanes::{Lanes, WIDTH};

pub(super) use bf16::{Bf16, Bf16Dot};
pub(super) use f16::F16;
pub(super) use f32::F32;
pub(super) use int8::{Int8, SCALE_WORDS};

/// Bytes of a line of a panel.
pub const LINE: usize = 64;
/// Bytes from one line of a packed weight's panel to the next: the other panel's line of the pair lies between.
pub const PAIR: usize = 2 * LINE;

/// Bytes from a matrix's start to panel `p` of `lines` lines.
pub const fn panel_offset(p: usize, lines: usize) -> usize {
    p / 2 * lines * PAIR + p % 2 * LINE
}

/// float32.
pub const FLOAT32: &dyn WeightType = &F32;
/// bfloat16.
pub const BFLOAT16: &dyn WeightType = &Bf16;
/// float16.
pub const FLOAT16: &dyn WeightType = &F16;
/// int8, a scale for each output.
pub const INT8: &dyn WeightType = &Int8;

/// Every weight type that can be asked for by name.
pub const TYPES: [&dyn WeightType; 4] = [FLOAT32, BFLOAT16, FLOAT16, INT8];

/// Hands every kind of product to a macro: `$then!(arguments; kinds)`.
macro_rules! each_kind {
    ($then:ident!($($arguments:tt)*)) => { $then!($($arguments)*; F32, Bf16, F16, Bf16Dot, Int8); };
}
pub(super) use each_kind;

macro_rules! formats {
    (; $($kind:ident),*) => {
        /// How products are formed: the kinds by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "the kinds of these names say what they are")]
        pub enum Format { $($kind),* }

        /// Number of kinds.
        pub(super) const FORMATS: usize = [$(Format::$kind),*].len();
    };
}
each_kind!(formats!());

/// The weight type that holds a file's elements as they are.
pub fn of_element(element: Element) -> &'static dyn WeightType {
    match element {
        Element::F32 => FLOAT32,
        Element::Bf16 => BFLOAT16,
        Element::F16 => FLOAT16,
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

/// Where a matrix lies in memory, and its sizes.
#[derive(Debug, Clone, Copy)]
pub struct Panels {
    /// The first byte.
    pub at: *mut u8,
    /// Number of outputs.
    pub outputs: usize,
    /// Number of inputs.
    pub inputs: usize,
    /// Lines of a panel, as the type counts them.
    pub lines: usize,
}

impl Panels {
    /// First byte of panel `p`, whose lines are [`PAIR`] bytes apart.
    pub fn panel(self, p: usize) -> *mut u8 {
        assert!(p < self.outputs.div_ceil(WIDTH), "panel {p} of {} outputs", self.outputs);
        self.at.wrapping_add(panel_offset(p, self.lines))
    }
}

/// How the matrices of one type are stored.
pub trait WeightType: Debug + Sync {
    /// The name that users know.
    fn name(&self) -> &'static str;

    /// Lines of a panel of so many inputs, with those that hold scales.
    fn lines(&self, inputs: usize) -> usize;

    /// How products with these weights are formed; `dot` asks for bf16 products, where this type has them.
    fn format(&self, dot: bool) -> Format;

    /// The elements that a rounding to this type gives; none where that takes whole rows of a matrix, so that other tensors of a
    /// model stay as they are.
    fn element(&self) -> Option<Element>;

    /// The type of a matrix that this one would serve badly, by the family's own account; `from` is how the file stores it.
    fn delicate(&self, from: Element) -> &'static dyn WeightType {
        let _ = from;
        TYPES.into_iter().find(|known| known.name() == self.name()).unwrap_or(FLOAT32)
    }

    /// Whether a matrix of [`Orientation::InOut`] must be written in one piece.
    fn takes_whole_columns(&self) -> bool {
        false
    }

    /// Writes rows of the checkpoint's matrix into their panels.
    ///
    /// `rows` are whole rows from row `first` on, as little-endian elements of `from`. For [`Orientation::OutIn`] `first`
    /// is a multiple of 16 and every panel comes whole, save the last; for [`Orientation::InOut`] `first` is even, and so
    /// is the number of rows, save at the end. Padding is written, too. Returns false when a finite value became infinite.
    ///
    /// # Safety
    /// The memory of `to` is the matrix's; no other thread reads it or writes the same rows meanwhile.
    unsafe fn write(
        &self,
        to: Panels,
        orientation: Orientation,
        first: usize,
        from: Element,
        rows: &[u8],
    ) -> bool;

    /// Inputs of the output in lane `lane` of a panel, as f32.
    ///
    /// # Safety
    /// `panel` is one of a matrix of this type with as many inputs as `row` has floats, and is not written meanwhile.
    unsafe fn gather(&self, panel: *const u8, lane: usize, row: &mut [f32]);
}

/// What a word of activations is, as a kind reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// One f32.
    Floats,
    /// Two bf16.
    Pairs,
    /// Four u8, with the row's scale and zero point behind the row.
    Bytes,
    /// Two u8 as i16, every second one of four; with the row's scale and zero point behind the row.
    BytePairs,
}

impl Words {
    /// Words of a row of `k` inputs, without scales.
    pub(super) fn inputs(self, k: usize) -> usize {
        match self {
            Self::Floats => k.next_multiple_of(2),
            Self::Pairs => k.div_ceil(2),
            Self::Bytes => k.div_ceil(4),
            Self::BytePairs => 2 * k.div_ceil(4),
        }
    }

    /// Words that say how a row was scaled.
    pub(super) fn scales(self) -> usize {
        match self {
            Self::Floats | Self::Pairs => 0,
            Self::Bytes | Self::BytePairs => SCALE_WORDS,
        }
    }
}

/// Floats that hold a row of `k` inputs in whatever form a product wants it.
pub const fn row_room(k: usize) -> usize {
    k.next_multiple_of(4) + SCALE_WORDS
}

/// How a line of a panel meets activations. Every kind adds to one accumulator per output, inputs ascending, whatever the tile.
pub(super) trait Kind<L: Lanes> {
    /// Inputs in a line.
    const STEP: usize;
    /// 32-bit words of activations that a line needs.
    const WORDS: usize;
    /// Whether a line is widened before it is multiplied, and many rows take it as [`Kind::Widened`].
    const WIDEN: bool = false;
    /// How rows of activations are prepared.
    const INPUT: Words = Words::Floats;
    /// Lines behind those of the inputs, which hold the outputs' scales.
    const SCALES: usize = 0;
    /// A line in registers.
    type Line: Copy;
    /// The kind of the widened lines, one for each word.
    type Widened: Kind<L>;
    unsafe fn line(p: *const u8) -> Self::Line;
    /// One more line: `x` points at the first word, the next one is `next` words on.
    unsafe fn apply(acc: L::F, line: Self::Line, x: *const f32, next: usize) -> L::F;
    /// The line widened, `WORDS` vectors that lie `step` floats apart.
    unsafe fn widen(p: *const u8, out: *mut f32, step: usize) {
        let _ = (p, out, step);
        unreachable!("lines of this kind are multiplied as they are");
    }
}
