//! What a program costs, counted over its phases: sizes of working memory, floating-point operations, bytes read, barriers.

use super::{Cache, Mask, Op, Operand, Phase, Program, Weights, Which};
use crate::kernels::{FEW_ROWS, row_room};
use crate::layers::attention;
use crate::layers::norm::PRIVATE_ROWS;
use crate::layers::stride;

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

impl Program {
    /// The widest input of a product.
    pub fn most_inputs(&self) -> usize {
        self.widest(|op| match op {
            Op::Linear { x, .. } | Op::Head { x, .. } => x.width,
            _ => 0,
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

    /// Floating-point operations of a step, those of all phases.
    pub fn flops(&self, weights: &Weights, work: Work) -> f64 {
        self.phases.iter().map(|phase| phase.flops(weights, work)).sum()
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
    /// Floating-point operations of a step's part: two per weight and row of every product, and two per dimension for each of the two
    /// products of attention with a visible key.
    pub fn flops(&self, weights: &Weights, work: Work) -> f64 {
        let rows = work.rows_of(self.rows);
        let count = match &self.op {
            Op::Linear { x, products, .. } => {
                2 * rows * x.width * products.iter().map(|p| p.out.width).sum::<usize>()
            }
            Op::Attend { cache, heads, mask, .. } => {
                4 * heads.heads * heads.head_dim * work.pairs(*cache, *mask, rows)
            }
            Op::Head { x, linear, .. } => 2 * rows * x.width * weights.linear(*linear).weight().outputs(),
            Op::Embed { .. } | Op::Keep { .. } | Op::Norm { .. } => 0,
        };
        count as f64
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
