//! What a program costs, counted over its phases: sizes of working memory, floating-point operations, bytes read, barriers.

use std::iter::Sum;
use std::ops::Add;

use super::{Cache, Mask, Op, Operand, Phase, Program, Weights, Which};
use crate::kernels::{FEW_ROWS, Numbers, row_room};
use crate::layers::norm::PRIVATE_ROWS;
use crate::layers::{Runtime, attention, stride};

/// A step of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Position of the first row.
    pub position: usize,
    /// Number of rows.
    pub rows: usize,
    /// How many of them, from the last one back, are wanted.
    pub wanted: usize,
    /// Tokens of the source that the sequence looks at.
    pub source: usize,
}

impl Work {
    /// Number of rows that a phase computes.
    pub fn rows_of(&self, which: Which) -> usize {
        match which {
            Which::All => self.rows,
            Which::Wanted => self.wanted,
        }
    }

    /// Keys that there are for the last row.
    fn keys(&self, cache: Cache) -> usize {
        match cache {
            Cache::Memory(_) => self.source,
            Cache::Own(_) | Cache::Source => self.position + self.rows,
        }
    }

    /// Pairs of a query and a key that it sees.
    fn pairs(&self, cache: Cache, mask: Mask, rows: usize) -> usize {
        let keys = self.keys(cache);
        match (mask.causal, mask.window) {
            // The last row sees every key, and each one before it a key less.
            (true, None) => rows * keys - rows * rows.saturating_sub(1) / 2,
            (true, Some(window)) => (keys - rows.min(keys)..keys).map(|before| window.min(before + 1)).sum(),
            (false, _) => rows * keys,
        }
    }
}

/// Multiplications and additions, by the numbers that are multiplied: a machine has a peak of its own for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flops {
    /// In f32.
    pub f32: u64,
    /// By the dot of bf16.
    pub bf16: u64,
    /// By the dot of integers.
    pub int8: u64,
}

impl Flops {
    fn of(numbers: Numbers, count: usize) -> Self {
        let mut flops = Self::default();
        *match numbers {
            Numbers::F32 => &mut flops.f32,
            Numbers::Bf16 => &mut flops.bf16,
            Numbers::Integers => &mut flops.int8,
        } = count as u64;
        flops
    }

    /// All of them.
    pub fn all(self) -> u64 {
        self.f32 + self.bf16 + self.int8
    }
}

impl Add for Flops {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self { f32: self.f32 + more.f32, bf16: self.bf16 + more.bf16, int8: self.int8 + more.int8 }
    }
}

impl Sum for Flops {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Self::add)
    }
}

impl Program {
    /// The widest input of a product.
    pub fn most_inputs(&self) -> usize {
        self.widest(|op| match op {
            Op::Linear { x, .. } | Op::Head { x, .. } => x.width,
            _ => 0,
        })
    }

    /// Whether a product before the head is one of integers: what it rounds, later phases see.
    pub fn rounds_to_integers(&self, weights: &Weights) -> bool {
        self.phases().iter().any(|phase| match &phase.op {
            Op::Linear { products, .. } => products
                .iter()
                .any(|product| weights.linear(product.linear).weight().weight_type().element().is_none()),
            _ => false,
        })
    }

    /// The widest row that is normalized on its way into a product.
    pub fn most_normed(&self) -> usize {
        self.widest(|op| match op {
            Op::Linear { x, norm: Some(_), .. } | Op::Head { x, norm: Some(_), .. } => x.width,
            _ => 0,
        })
    }

    /// The widest result of a product.
    pub fn most_outputs(&self) -> usize {
        self.widest(|op| match op {
            Op::Linear { products, .. } => products.iter().map(|p| p.out.width).max().unwrap_or(0),
            _ => 0,
        })
    }

    /// Bytes of buffers that each row of a step takes, the room for its norms and its packed input counted.
    pub fn row_bytes(&self) -> usize {
        let buffers: usize = self.buffers.iter().map(|b| stride(b.width)).sum();
        (buffers + stride(self.most_normed()) + row_room(self.most_inputs())) * size_of::<f32>()
    }

    fn widest(&self, width: impl Fn(&Op<Operand>) -> usize) -> usize {
        self.phases.iter().map(|phase| width(&phase.op)).max().unwrap_or(0)
    }

    /// Operations of a step, those of all phases.
    pub fn flops(&self, weights: &Weights, runtime: &Runtime, work: Work) -> Flops {
        self.phases.iter().map(|phase| phase.flops(weights, runtime, work)).sum()
    }

    /// Bytes of the matrices that a step multiplies with, each counted once.
    pub fn matrix_bytes(&self, weights: &Weights) -> usize {
        self.phases.iter().map(|phase| phase.matrix_bytes(weights)).sum()
    }

    /// Barriers of a step over matrices of one format: one behind every phase that has rows; one more where members pack the
    /// rows of a product together or share their norms, and where keys and values are appended before others attend.
    pub fn barriers(&self, work: Work, members: usize) -> usize {
        let of = |phase: &Phase<Operand>| {
            let rows = work.rows_of(phase.rows);
            let normed = usize::from(rows > PRIVATE_ROWS);
            match &phase.op {
                Op::Attend { new: Some(_), heads, .. } => {
                    let at_once = attention::task_rows(rows, *heads, members);
                    // Rows that nobody wants are appended, and attend to nothing.
                    let apart = rows > 0 && (rows < work.rows || rows > at_once);
                    1 + usize::from(apart)
                }
                _ if rows == 0 => 0,
                Op::Linear { packed_before: true, .. } => 1,
                Op::Linear { norm: None, .. } | Op::Head { norm: None, .. } => {
                    1 + usize::from(rows > FEW_ROWS)
                }
                Op::Linear { norm: Some(_), .. } | Op::Head { norm: Some(_), .. } => 1 + normed,
                _ => 1,
            }
        };
        self.phases.iter().map(of).sum()
    }
}

impl Phase<Operand> {
    /// Operations of a step's part: two per weight and row of every product, and two per dimension for each of the two products of
    /// attention with a visible key.
    pub fn flops(&self, weights: &Weights, runtime: &Runtime, work: Work) -> Flops {
        let rows = work.rows_of(self.rows);
        let product = |slot, width: usize| {
            let linear = weights.linear(slot);
            Flops::of(linear.numbers(runtime), 2 * rows * width * linear.weight().outputs())
        };
        match &self.op {
            Op::Linear { x, products, .. } => products.iter().map(|p| product(p.linear, x.width)).sum(),
            Op::Head { x, linear, .. } => product(*linear, x.width),
            Op::Attend { cache, heads, mask, .. } => {
                let numbers = if runtime.dot { Numbers::Bf16 } else { Numbers::F32 };
                Flops::of(numbers, 4 * heads.heads * heads.head_dim * work.pairs(*cache, *mask, rows))
            }
            Op::Embed { .. } | Op::Keep { .. } | Op::Norm { .. } => Flops::default(),
        }
    }

    /// Bytes of the matrices that the phase multiplies with.
    pub fn matrix_bytes(&self, weights: &Weights) -> usize {
        let bytes = |slot| weights.linear(slot).weight().bytes();
        match &self.op {
            Op::Linear { products, .. } => products.iter().map(|p| bytes(p.linear)).sum(),
            Op::Head { linear, .. } => bytes(*linear),
            Op::Embed { .. } | Op::Attend { .. } | Op::Keep { .. } | Op::Norm { .. } => 0,
        }
    }

    /// Cached positions whose keys and values the phase reads: those that any of its rows sees, each counted once.
    pub fn positions_read(&self, work: Work) -> usize {
        let rows = work.rows_of(self.rows);
        match &self.op {
            Op::Attend { cache, mask, .. } if rows > 0 => {
                let keys = work.keys(*cache);
                // The first row's window begins `rows - 1` positions before that of the last row.
                mask.window
                    .filter(|_| mask.causal)
                    .map_or(keys, |window| keys.min(window.saturating_add(rows - 1)))
            }
            _ => 0,
        }
    }
}
