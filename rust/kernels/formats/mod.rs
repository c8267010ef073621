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
mod int4;
mod int8;
mod int8_groups;
mod sixteen;

use std::fmt::Debug;

pub use element::Element;

use super::grouped;
use super::lanes::{Lanes, WIDTH};
use super::matmul::{self, Matmul};
use super::rows::InputLayout;

pub(super) use bf16::{Bf16, Bf16Dot};
pub(super) use f16::F16;
pub(super) use f32::F32;
pub(super) use int4::Nibbles;
pub(super) use int8::{Int8, SCALE_WORDS};
pub(super) use int8_groups::Int8Groups;

use int4::Int4;

/// Bytes of a line of a panel.
pub const LINE: usize = 64;
/// Bytes from one line of a packed weight's panel to the next: the other panel's line of the pair lies between.
pub const PAIR: usize = 2 * LINE;

/// Words of a group of activations in front of its integers: what the head of the group's lines is multiplied by, and its scale.
pub(super) const HEAD_WORDS: usize = 2;
/// Inputs of a group, at most.
const MOST_GROUP: usize = 128;

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

/// int4, by the inputs of a group; the first is what "int4" means by itself.
pub const INT4: [&dyn WeightType; 3] = [&Int4 { group: 64 }, &Int4 { group: 32 }, &Int4 { group: 128 }];

/// Every weight type that can be asked for by name.
pub const TYPES: [&dyn WeightType; 5] = [FLOAT32, BFLOAT16, FLOAT16, INT8, INT4[0]];

/// Hands every kind of product to a macro: `$then!(arguments; kinds)`.
macro_rules! each_kind {
    ($then:ident!($($arguments:tt)*)) => { $then!($($arguments)*; F32, Bf16, F16, Bf16Dot, Int8, Int8Groups, Nibbles); };
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

    /// Inputs of a group, where products are summed by groups; 0 where they are not.
    fn group(&self) -> usize {
        0
    }

    /// The most inputs that a matrix may have.
    fn most_inputs(&self) -> usize {
        usize::MAX
    }

    /// Another type of embeddings and head where this one is asked for.
    fn vocabulary(&self) -> Option<&'static dyn WeightType> {
        None
    }

    /// The elements that a rounding to this type gives; none where that takes whole rows of a matrix, so that other tensors of a
    /// model stay as they are.
    fn element(&self) -> Option<Element>;

    /// Another type of a matrix that this one would serve badly, by the family's own account; `from` is how the file stores it.
    fn delicate(&self, from: Element) -> Option<&'static dyn WeightType> {
        let _ = from;
        None
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
    /// Integers by groups of inputs, in front of each of which stand a word for its head and its scale.
    Groups {
        /// Inputs of a group.
        size: usize,
        /// Whether the integers are i8 around zero; u8 with a zero point otherwise.
        signed: bool,
        /// Whether a word is two integers as i16, every second one of four; four bytes otherwise.
        pairs: bool,
    },
}

/// What numbers a product multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// Floats, in f32.
    F32,
    /// bf16, by their dot.
    Bf16,
    /// Integers, by the dot of bytes or what stands for it.
    Integers,
}

impl Words {
    /// The numbers that products of these words multiply.
    pub fn numbers(self) -> Numbers {
        match self {
            Self::Floats => Numbers::F32,
            Self::Pairs => Numbers::Bf16,
            Self::Bytes | Self::BytePairs | Self::Groups { .. } => Numbers::Integers,
        }
    }

    /// Words of a row of `k` inputs, without scales.
    pub(super) fn inputs(self, k: usize) -> usize {
        match self {
            Self::Floats => k.next_multiple_of(2),
            Self::Pairs => k.div_ceil(2),
            Self::Bytes => k.div_ceil(4),
            Self::BytePairs => 2 * k.div_ceil(4),
            Self::Groups { size, pairs, .. } => {
                k.div_ceil(size) * (HEAD_WORDS + size / if pairs { 2 } else { 4 })
            }
        }
    }

    /// Words that say how a row was scaled.
    pub(super) fn scales(self) -> usize {
        match self {
            Self::Floats | Self::Pairs | Self::Groups { .. } => 0,
            Self::Bytes | Self::BytePairs => SCALE_WORDS,
        }
    }
}

/// Floats that hold a row of `k` inputs in whatever form a product wants it.
pub const fn row_room(k: usize) -> usize {
    // Pairs of the smallest and of the largest group take most.
    k.next_multiple_of(MOST_GROUP) + MOST_GROUP
}

/// Calls `of` with panel, lane and inputs of each output in some rows of a checkpoint's matrix, see [`WeightType::write`], and with
/// zeros for the lanes behind the last one. A matrix of [`Orientation::InOut`] comes whole.
fn each_output(
    to: Panels,
    orientation: Orientation,
    first: usize,
    from: Element,
    rows: &[u8],
    mut of: impl FnMut(*mut u8, usize, &[f32]),
) {
    let (bytes, inputs) = (from.bytes(), to.inputs);
    let outputs = match orientation {
        Orientation::OutIn => rows.len() / (inputs * bytes),
        Orientation::InOut => {
            assert!(first == 0 && rows.len() == inputs * to.outputs * bytes, "the whole matrix");
            to.outputs
        }
    };
    assert!(first.is_multiple_of(WIDTH) && first + outputs <= to.outputs, "whole panels of the matrix");
    let mut values = vec![0.0; inputs];
    for output in 0..outputs.next_multiple_of(WIDTH) {
        match orientation {
            _ if output >= outputs => values.fill(0.0),
            Orientation::OutIn => from.widen_into(&rows[output * inputs * bytes..], 1, &mut values),
            Orientation::InOut => from.widen_into(&rows[output * bytes..], outputs, &mut values),
        }
        of(to.panel((first + output) / WIDTH), output % WIDTH, &values);
    }
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

/// As [`Kind`], for products whose integers are summed by groups of inputs, see `grouped.rs`.
pub(super) trait Grouped<L: Lanes> {
    /// Inputs in a line.
    const STEP: usize;
    /// 32-bit words of activations that a line needs.
    const WORDS: usize;
    /// Lines behind those of all groups, which hold the outputs' scales.
    const SCALES: usize;
    /// Whether activations are i8 around zero; u8 with a zero point otherwise.
    const SIGNED: bool;
    /// Whether many rows take lines as [`Grouped::Unpacked`].
    const UNPACKS: bool = false;
    /// A line in registers.
    type Line: Copy;
    /// The kind of unpacked lines, one for each word.
    type Unpacked: Grouped<L>;
    unsafe fn line(p: *const u8) -> Self::Line;
    /// Sums of integers, one more line added: `x` points at the first word, the next one is `next` words on.
    unsafe fn apply(sums: L::F, line: Self::Line, x: *const f32, next: usize) -> L::F;
    /// By what a group's sum is multiplied: from the line in front of it, and the group's scale in a row.
    unsafe fn scale(head: *const u8, row: L::F) -> L::F;
    /// The line unpacked to `WORDS` lines of a panel.
    unsafe fn unpack(from: *const u8, to: *mut u8) {
        let _ = (from, to);
        unreachable!("lines of this kind are multiplied as they are");
    }
}

/// How products of one kind are formed.
pub(super) trait Product<L: Lanes> {
    /// `C = epilogue(A · W)`.
    ///
    /// # Safety
    /// As for [`Lanes`]; the pointers of `job` hold what its fields say.
    unsafe fn product(job: &Matmul);
    /// How a product wants `m` rows, with so many inputs in a group.
    fn form(m: usize, group: usize) -> InputLayout;
}

macro_rules! products_of {
    ($through:ident, $form:expr; $($kind:ty),*) => {
        $(impl<L: Lanes> Product<L> for $kind {
            #[inline(always)]
            unsafe fn product(job: &Matmul) {
                // SAFETY: handed on from the caller.
                unsafe { $through::matmul::<L, Self>(job) }
            }
            fn form(m: usize, group: usize) -> InputLayout {
                $form(m, group)
            }
        })*
    };
}
products_of!(matmul, |m, _| InputLayout::of::<L, Self>(m); F32, Bf16, F16, Bf16Dot, Int8);
products_of!(grouped, |m, group| InputLayout::of_groups::<L, Self>(m, group); Int8Groups, Nibbles);
