//! A model's forward as data: what a step embeds, multiplies, attends to and keeps, phase by phase.
//!
//! A model file records its forward once, at load, through a [`Builder`]; the [executor](crate::execute) runs the phases on the
//! team, and everything else that is to be known of a forward is derived from them: sizes of buffers and of working memory,
//! floating-point operations, bytes that a step reads, the number of barriers. A phase ends with one barrier, so no phase may read
//! what another member writes in the same phase; [`Builder::finish`] proves this for every program. Weights are named by slots,
//! so that a second table of weights can run the same program.

mod builder;
mod cost;
mod kinds;
mod plan;
mod weights;

pub use builder::{
    Builder, Columns, Dense, Mask, Normed, Turned, Value, conv1d, dense, layer_norm, rms_norm,
};
pub use cost::{Flops, Work};
pub use kinds::Kind;
pub use weights::{Named, Recorder, Slot, Weights};

use crate::kernels::Activation;
use crate::layers::heads::Heads;
use crate::layers::linear::Linear;
use crate::layers::norm::Norm;
use crate::layers::rotary::Rotary;
use crate::packed::Packed;

/// Which rows of a step a phase computes, or a buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Every row.
    All,
    /// The rows whose logits are wanted, one after the other.
    Wanted,
}

/// Rows of activations in a buffer of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    /// Number of the buffer.
    pub buffer: usize,
    /// Floats that count in a row.
    pub width: usize,
    /// Which rows it holds.
    pub rows: Which,
}

/// Some columns of rows of activations: the heads of queries, keys or values side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<R> {
    /// The rows.
    pub of: R,
    /// First column.
    pub from: usize,
    /// Number of columns.
    pub width: usize,
}

/// The keys and values that rows attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// The sequence's own cache, in this layer.
    Own(usize),
    /// What was kept of the sequence's source, in this layer.
    Memory(usize),
    /// The rows of the same source; nothing is kept of them.
    Source,
}

/// One matrix of a linear phase, and what is fused behind its product.
#[derive(Debug, Clone)]
pub struct Product<R> {
    /// Name of the module, as in the checkpoint.
    pub name: String,
    /// Matrix and bias.
    pub linear: Slot<Linear>,
    /// Applied to the product with its bias.
    pub activation: Activation,
    /// Whether the result is the input of another product and is rounded where products are formed in bf16.
    pub round_output: bool,
    /// The result.
    pub out: R,
}

/// What a phase does. `R` is how it names rows of activations: [`Operand`] in a finished program, [`Value`] while one is recorded.
#[derive(Debug, Clone)]
pub enum Op<R> {
    /// Token embeddings, with those of positions where a model has them.
    Embed {
        /// Embeddings, `V × D`.
        table: Slot<Packed>,
        /// One row of `D` per position.
        positions: Option<Slot<Vec<f32>>>,
        /// Angles by position, where heads are turned, and the rows that they become.
        angles: Option<(Slot<Rotary>, R)>,
        /// `M × D`.
        out: R,
    },
    /// One input, normalized first where there is a norm, times one matrix or several.
    Linear {
        /// The input.
        x: R,
        /// Applied to the input, with the name of its module.
        norm: Option<(String, Slot<Norm>)>,
        /// The matrices; all of one input width.
        products: Vec<Product<R>>,
        /// Whether the first of two results is multiplied by the second, value by value, and is the result of the phase.
        gated: bool,
        /// Added last to the only product.
        residual: Option<R>,
        /// Whether the input is that of the linear phase before, which may have left it packed.
        packed_before: bool,
    },
    /// Attention of some rows to the keys and values in a cache.
    Attend {
        /// Queries.
        queries: Part<R>,
        /// Keys and values of the same rows, put into the cache first.
        new: Option<[Part<R>; 2]>,
        /// Where keys and values are.
        cache: Cache,
        /// Sizes of the heads.
        heads: Heads,
        /// Norms of every query and of every key, with the names of their modules.
        norms: Option<[(String, Slot<Norm>); 2]>,
        /// Angles by which queries and keys are turned.
        angles: Option<R>,
        /// What a row sees, and what is added to the scores.
        mask: Mask,
        /// The result, the heads side by side.
        out: R,
        /// The wanted rows of what later phases still read, copied out of all rows: from there on only wanted rows are computed.
        gather: Vec<(Operand, Operand)>,
    },
    /// Keys and values of a source, kept for the decoder.
    Keep {
        /// Keys and values.
        keys_values: [Part<R>; 2],
        /// Layer of the decoder.
        layer: usize,
        /// Sizes of the heads.
        heads: Heads,
    },
    /// A norm whose result is more than the input of one phase.
    Norm {
        /// The input.
        x: R,
        /// The norm.
        norm: Slot<Norm>,
        /// The result.
        out: R,
    },
    /// Logits of the wanted rows.
    Head {
        /// The input.
        x: R,
        /// Applied to the input, with the name of its module.
        norm: Option<(String, Slot<Norm>)>,
        /// The head, `D -> V`.
        linear: Slot<Linear>,
    },
}

impl<R: Copy> Op<R> {
    /// Rows of activations that the phase reads.
    fn reads(&self) -> Vec<R> {
        match self {
            Self::Embed { .. } => Vec::new(),
            Self::Linear { x, residual, .. } => std::iter::once(*x).chain(*residual).collect(),
            Self::Attend { queries, new, angles, .. } => {
                let parts = std::iter::once(queries).chain(new.iter().flatten()).map(|part| part.of);
                parts.chain(*angles).collect()
            }
            Self::Keep { keys_values, .. } => keys_values.iter().map(|part| part.of).collect(),
            Self::Norm { x, .. } | Self::Head { x, .. } => vec![*x],
        }
    }

    /// Rows of activations that the phase writes.
    fn writes(&self) -> Vec<R> {
        match self {
            Self::Embed { angles, out, .. } => {
                std::iter::once(*out).chain(angles.map(|(_, angles)| angles)).collect()
            }
            Self::Attend { out, .. } | Self::Norm { out, .. } => vec![*out],
            Self::Linear { products, .. } => products.iter().map(|product| product.out).collect(),
            Self::Keep { .. } | Self::Head { .. } => Vec::new(),
        }
    }

    /// Whether the phase leaves the padding of the rows that it writes as it was.
    fn leaves_padding(&self) -> bool {
        matches!(self, Self::Embed { .. } | Self::Attend { .. })
    }
}

/// One step of a forward for all members of the team; a barrier follows.
#[derive(Debug, Clone)]
pub struct Phase<R> {
    /// Name of the module or sublayer, as in the checkpoint.
    pub name: String,
    /// What is done.
    pub op: Op<R>,
    /// Which rows are computed.
    pub rows: Which,
}

/// A buffer of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Floats that count in a row.
    pub width: usize,
    /// Which rows it holds.
    pub rows: Which,
}

/// A forward: its phases in order, and the buffers between them.
#[derive(Debug)]
pub struct Program {
    phases: Vec<Phase<Operand>>,
    buffers: Vec<Shape>,
    /// Buffers that hold the wanted rows of other ones: the same memory where every row is wanted.
    copies: Vec<(usize, usize)>,
    layers: usize,
}

impl Program {
    /// The phases, in order.
    pub fn phases(&self) -> &[Phase<Operand>] {
        &self.phases
    }

    /// The buffers between the phases.
    pub fn buffers(&self) -> &[Shape] {
        &self.buffers
    }

    /// Pairs of buffers of which the second holds the wanted rows of the first.
    pub fn copies(&self) -> &[(usize, usize)] {
        &self.copies
    }

    /// Layers of the sequences' own cache, or 1 where phases attend to the rows of one source.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Sizes of the heads; every phase that attends has the same.
    pub fn heads(&self) -> Option<Heads> {
        self.phases.iter().find_map(|phase| match &phase.op {
            Op::Attend { heads, .. } => Some(*heads),
            _ => None,
        })
    }

    /// How many keys a row sees at most, for every layer that attends to the rows' own sequence or source; `None` for all.
    pub fn windows(&self) -> Vec<Option<usize>> {
        let of = |phase: &Phase<Operand>| match &phase.op {
            Op::Attend { cache: Cache::Own(_) | Cache::Source, mask, .. } => Some(mask.window),
            _ => None,
        };
        self.phases.iter().filter_map(of).collect()
    }

    /// The token embeddings that the program begins with.
    pub fn embedding(&self) -> Option<Slot<Packed>> {
        self.phases.iter().find_map(|phase| match &phase.op {
            Op::Embed { table, .. } => Some(*table),
            _ => None,
        })
    }

    /// The matrix of the head.
    pub fn head(&self) -> Option<Slot<Linear>> {
        self.phases.iter().find_map(|phase| match &phase.op {
            Op::Head { linear, .. } => Some(*linear),
            _ => None,
        })
    }

    /// The last rows that a program without a head leaves, such as an encoder's hidden states.
    pub fn result(&self) -> Option<Operand> {
        if self.head().is_some() {
            return None;
        }
        self.phases.iter().rev().find_map(|phase| match &phase.op {
            Op::Norm { out, .. } => Some(*out),
            _ => None,
        })
    }
}
