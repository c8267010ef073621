//! Attention over a ragged batch: keys and values go into blocks, then every row attends to the keys of its span.
//!
//! One routine serves the three kinds. Causal self-attention: the blocks are a sequence's cache, and a row sees what came
//! before it. An encoder's self-attention: the blocks hold one source, and every row sees all of it. Cross-attention: the
//! blocks belong to a memory that many sequences share, and every row sees all of it.

use super::relative_bias::RelativeBias;
use super::{Context, Rows};
use crate::kernels::{self, BLOCK, CacheProducts, Put, Visible};
use crate::kv::Shape;
use crate::team::Stop;

/// Query rows of one task, at most: enough to amortize, few enough to spread over the members.
const TASK_ROWS: usize = 24;

/// Rows of a step that look at the same keys.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// First row of the step.
    pub row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Position of the first row in its sequence.
    pub position: usize,
    /// Number of keys, those of the rows themselves included where they have any.
    pub keys: usize,
    /// Index of the keys' first block in [`Batch::blocks`].
    pub block: usize,
}

/// The keys of a step as attention sees them.
#[derive(Debug, Default)]
pub struct Batch {
    /// One span per sequence, or per run of neighbours that look at the same memory, in the order of the rows.
    pub spans: Vec<Span>,
    /// Blocks of all spans, each covering its keys.
    pub blocks: Vec<*const u8>,
}

/// What a row sees of its span's keys, and what is added to their scores.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// Whether a row sees only the keys up to its own position.
    pub causal: bool,
    /// Added to the scores by distance between key and row.
    pub bias: Option<&'a RelativeBias>,
}

impl Look<'_> {
    /// Up to the row itself, nothing added (GPT-2).
    pub const CAUSAL: Self = Self { causal: true, bias: None };
    /// Everything, nothing added (cross-attention).
    pub const ALL: Self = Self { causal: false, bias: None };
}

impl Batch {
    /// The blocks of a span's keys.
    fn blocks_of(&self, span: &Span) -> &[*const u8] {
        &self.blocks[span.block..][..span.keys.div_ceil(BLOCK)]
    }
}

// SAFETY: the blocks are kept alive and exclusively reserved by the step that made the batch.
unsafe impl Send for Batch {}
// SAFETY: as above; members write different heads.
unsafe impl Sync for Batch {}

/// Sizes of a layer's heads; queries and keys have the same number.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Number of heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Multiplies the scores.
    pub scale: f32,
}

/// Keys and values of a step's rows: rows that hold the heads side by side, from the given column on.
#[derive(Debug, Clone, Copy)]
pub struct KeysValues<'a> {
    /// Keys.
    pub keys: (Rows<'a>, usize),
    /// Values.
    pub values: (Rows<'a>, usize),
}

/// Where a layer's keys and values are.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    /// Sizes of the cache.
    pub shape: &'a Shape,
    /// Layer of the cache.
    pub layer: usize,
    /// Which blocks, and who looks at them.
    pub batch: &'a Batch,
}

impl Heads {
    /// Puts this member's share of the rows' keys and values into their blocks.
    pub fn append(&self, ctx: &Context<'_>, at: Keys<'_>, new: KeysValues<'_>) {
        for task in ctx.member.share(at.batch.spans.len() * self.heads) {
            self.put(ctx, at, new, &at.batch.spans[task / self.heads], task % self.heads);
        }
    }

    /// Puts the rows of one span under one head, which is this member's alone.
    fn put(&self, ctx: &Context<'_>, at: Keys<'_>, new: KeysValues<'_>, span: &Span, head: usize) {
        let Keys { shape, layer, batch } = at;
        let (column, mut done) = (head * self.head_dim, 0);
        while done < span.rows {
            let (position, row) = (span.position + done, span.row + done);
            let token = position % BLOCK;
            let rows = (BLOCK - token).min(span.rows - done);
            let block = batch.blocks[span.block + position / BLOCK].cast_mut();
            // SAFETY: the block is reserved for these rows, and the head is this member's alone.
            unsafe {
                let job = Put {
                    key: new.keys.0.at(row, new.keys.1 + column),
                    key_stride: new.keys.0.stride(),
                    value: new.values.0.at(row, new.values.1 + column),
                    value_stride: new.values.0.stride(),
                    rows,
                    d: self.head_dim,
                    token,
                    keys: block.add(shape.keys(layer, head)),
                    values: block.add(shape.values(layer, head)),
                };
                ctx.runtime.kernels.put(shape.bf16, &job);
            }
            done += rows;
        }
    }

    /// Rows of one task: on many members few rows are split further, so that all of them have work.
    fn task_rows(&self, ctx: &Context<'_>, batch: &Batch) -> usize {
        let rows: usize = batch.spans.iter().map(|span| span.rows).sum();
        (rows * self.heads / (2 * ctx.member.count())).clamp(1, TASK_ROWS)
    }

    /// Attends with this member's pieces of (head, sequence, rows) to the rows' own sequences, whose keys and values are put into
    /// their blocks first; `queries`, and what is `new`, must have been written (a barrier).
    ///
    /// # Errors
    /// [`Stop`] from a barrier.
    pub fn append_and_attend(
        &self,
        ctx: &Context<'_>,
        at: Keys<'_>,
        look: Look<'_>,
        new: KeysValues<'_>,
        queries: Rows<'_>,
        out: Rows<'_>,
    ) -> Result<(), Stop> {
        let at_once = self.task_rows(ctx, at.batch);
        if at.batch.spans.iter().all(|span| span.rows <= at_once) {
            // A span's head is one task: whoever attends puts, and nobody waits.
            self.tasks(ctx, at, look, Some(new), queries, out);
        } else {
            self.append(ctx, at, new);
            ctx.member.barrier()?;
            self.tasks(ctx, at, look, None, queries, out);
        }
        Ok(())
    }

    /// Attends with this member's pieces of (head, sequence, rows); every key must be in its block (a barrier).
    pub fn attend(&self, ctx: &Context<'_>, at: Keys<'_>, look: Look<'_>, queries: Rows<'_>, out: Rows<'_>) {
        self.tasks(ctx, at, look, None, queries, out);
    }

    /// This member's tasks; what is `new` is put by the task of its span and head.
    fn tasks(
        &self,
        ctx: &Context<'_>,
        at: Keys<'_>,
        look: Look<'_>,
        new: Option<KeysValues<'_>>,
        queries: Rows<'_>,
        out: Rows<'_>,
    ) {
        let Keys { shape, layer, batch } = at;
        let at_once = self.task_rows(ctx, batch);
        // Tasks of one head follow each other: they read the same keys, as forks of a sequence do.
        let of_head = batch.spans.iter().map(|span| span.rows.div_ceil(at_once)).sum::<usize>();
        // Where there is little to do, whoever comes first would take it all.
        let little = at_once < TASK_ROWS;
        let tasks = of_head * self.heads;
        let products = match (shape.bf16, ctx.runtime.dot) {
            (false, _) => CacheProducts::F32,
            (true, false) => CacheProducts::Bf16,
            (true, true) => CacheProducts::Bf16Dot,
        };
        for piece in if little { ctx.member.fixed(tasks) } else { ctx.member.pieces(tasks, 1) } {
            let (mut head, mut s, mut first) = (piece.start / of_head, 0, piece.start % of_head * at_once);
            for _ in piece {
                while first >= batch.spans[s].rows {
                    first -= batch.spans[s].rows.next_multiple_of(at_once);
                    s += 1;
                    if s == batch.spans.len() {
                        (head, s) = (head + 1, 0);
                    }
                }
                let span = &batch.spans[s];
                if let Some(new) = new {
                    debug_assert!(span.rows <= at_once, "one task puts and attends");
                    self.put(ctx, at, new, span, head);
                }
                let column = head * self.head_dim;
                let position = span.position + first;
                let job = kernels::Attention {
                    q: queries.at(span.row + first, column),
                    q_stride: queries.stride(),
                    rows: at_once.min(span.rows - first),
                    d: self.head_dim,
                    blocks: batch.blocks_of(span),
                    keys: shape.keys(layer, head),
                    values: shape.values(layer, head),
                    visible: if look.causal {
                        Visible::Causal { first: position }
                    } else {
                        Visible::All { keys: span.keys }
                    },
                    scale: self.scale,
                    bias: look.bias.map(|bias| bias.of(head, position)),
                    out: out.at(span.row + first, column),
                    out_stride: out.stride(),
                    round: ctx.runtime.bf16,
                    next: self.next(at, head, s),
                    scratch: ctx.scratch,
                };
                // SAFETY: the blocks cover every visible key; these rows' head is this member's alone.
                unsafe { ctx.runtime.kernels.attention(products, &job) }
                first += at_once;
            }
        }
    }

    /// Blocks that come after those of span `s` under this head, and where their keys begin.
    fn next<'a>(&self, at: Keys<'a>, head: usize, s: usize) -> (&'a [*const u8], usize) {
        let Keys { shape, layer, batch } = at;
        let (span, head) = if s + 1 < batch.spans.len() { (s + 1, head) } else { (0, head + 1) };
        if head == self.heads {
            return (&[], 0);
        }
        (batch.blocks_of(&batch.spans[span]), shape.keys(layer, head))
    }
}
