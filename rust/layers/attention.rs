//! Attention over a ragged batch: keys and values go into blocks, then every row attends to the keys of its span.
//!
//! One routine serves the three kinds. Causal self-attention: the blocks are a sequence's cache, and a row sees what came
//! before it. An encoder's self-attention: the blocks hold one source, and every row sees all of it. Cross-attention: the
//! blocks belong to a memory that many sequences share, and every row sees all of it.

use std::ops::Range;

use super::heads::{HeadRows, Heads, Preparation};
use super::relative_bias::RelativeBias;
use super::{Context, Rows};
use crate::kernels::{self, AppendKv, BLOCK, CacheProducts, Visible, WIDTH};
use crate::kv::Shape;
use crate::team::{Stop, share};

/// Rows of a step that look at the same keys; at least one.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// First row of the step, where the span's queries, keys and values are.
    pub row: usize,
    /// First row of the result: `row` itself, or a place among the wanted rows.
    pub out: usize,
    /// Number of rows.
    pub rows: usize,
    /// Position of the first row in its sequence.
    pub position: usize,
    /// Number of keys, those of the rows themselves included where they have any.
    pub keys: usize,
    /// Index of the keys' first block in [`Batch::blocks`].
    pub block: usize,
    /// Whether the sequence is longer than the border of its rotary positions.
    pub is_long: bool,
}

/// The keys of a step as attention sees them.
#[derive(Debug, Default)]
pub struct Batch {
    /// One span per sequence, or per run of neighbours that look at the same memory; together all rows, in their order.
    pub spans: Vec<Span>,
    /// Blocks of all spans, each covering its keys.
    pub blocks: Vec<*const u8>,
}

/// What a row sees of its span's keys, and what is added to their scores.
#[derive(Debug, Clone, Copy)]
pub struct AttentionMask<'a> {
    /// Whether a row sees only the keys up to its own position.
    pub causal: bool,
    /// How many of those it sees at most, its own included.
    pub window: Option<usize>,
    /// Added to the scores by distance between key and row.
    pub bias: Option<&'a RelativeBias>,
}

impl AttentionMask<'_> {
    /// Up to the row itself, nothing added (GPT-2).
    pub const CAUSAL: Self = Self { causal: true, window: None, bias: None };
    /// Everything, nothing added (cross-attention).
    pub const ALL: Self = Self { causal: false, window: None, bias: None };
}

impl Span {
    /// Those of the rows `own` of a step that are this span's, counted from its first one, moved to the borders of blocks: a block
    /// belongs to whoever has the first of its rows.
    fn whole_blocks(&self, own: &Range<usize>) -> Range<usize> {
        let border = |row: usize| match row.saturating_sub(self.row).min(self.rows) {
            0 => 0,
            before => ((self.position + before).next_multiple_of(BLOCK) - self.position).min(self.rows),
        };
        border(own.start)..border(own.end)
    }
}

impl Batch {
    /// The blocks of a span's keys.
    fn blocks_of(&self, span: &Span) -> &[*const u8] {
        &self.blocks[span.block..][..span.keys.div_ceil(BLOCK)]
    }
}

/// Rows of some spans together.
fn rows(spans: &[Span]) -> usize {
    spans.iter().map(|span| span.rows).sum()
}

/// Positions of one task where `rows` rows attend: on many members few rows are split further, so that all of them have work.
pub fn task_rows(rows: usize, heads: Heads, members: usize) -> usize {
    (rows * heads.kv_heads / (2 * members)).clamp(1, heads.most_positions())
}

// SAFETY: the blocks are kept alive and exclusively reserved by the step that made the batch.
unsafe impl Send for Batch {}
// SAFETY: as above; members write different blocks, or different heads of one.
unsafe impl Sync for Batch {}

/// Keys and values of a step's rows: rows that hold the heads side by side, from the given column on.
#[derive(Debug, Clone, Copy)]
pub struct KeysValues<'a> {
    /// Keys.
    pub keys: HeadRows<'a>,
    /// Values.
    pub values: HeadRows<'a>,
}

/// Where a layer's keys and values are.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    /// Sizes of the cache.
    pub shape: &'a Shape,
    /// Layer of the cache.
    pub layer: usize,
    /// Which blocks, and whose rows append to them.
    pub batch: &'a Batch,
    /// Who looks at them, if these are not all rows: spans over the blocks of `batch`.
    pub wanted: Option<&'a [Span]>,
}

impl<'a> Keys<'a> {
    /// The spans whose rows attend.
    fn spans(&self) -> &'a [Span] {
        self.wanted.unwrap_or(&self.batch.spans)
    }
}

/// Order of the attention tasks, chosen so that neighbouring tasks read the same keys: by group of rows, then by head of keys, then
/// by run of at most `at_once` positions of a span. Forks of a sequence share keys, too, and are neighbours under a head.
#[derive(Clone, Copy)]
struct Order<'a> {
    spans: &'a [Span],
    at_once: usize,
    /// Runs under a head.
    runs: usize,
    heads: usize,
    groups: usize,
}

/// Where a member makes queries and keys.
struct Made {
    keys: *mut f32,
    queries: *mut f32,
}

/// Where a task is.
#[derive(Debug, Default)]
struct TaskPos {
    head: usize,
    span: usize,
    /// First row within the span.
    first: usize,
    /// Tasks up to the last one of this head and group, itself counted.
    left: usize,
}

impl<'a> Order<'a> {
    /// Where a task is.
    fn place(&self, task: usize) -> TaskPos {
        let of = |group| share(self.runs, group, self.groups);
        let group = (0..self.groups).find(|group| task < of(*group).end * self.heads).unwrap_or(0);
        let runs = of(group);
        let of_group = task - runs.start * self.heads;
        let (head, run) = (of_group / runs.len(), runs.start + of_group % runs.len());
        let (mut span, mut before) = (0, run);
        while before >= self.spans[span].rows.div_ceil(self.at_once) {
            before -= self.spans[span].rows.div_ceil(self.at_once);
            span += 1;
        }
        TaskPos { head, span, first: before * self.at_once, left: runs.end - run }
    }

    /// Head, span, and first row within the span of some tasks that follow each other.
    fn tasks(self, mut some: Range<usize>) -> impl Iterator<Item = (usize, usize, usize)> + use<'a> {
        let mut at = TaskPos::default();
        std::iter::from_fn(move || {
            let task = some.next()?;
            if at.left == 0 {
                at = self.place(task);
            }
            let found = (at.head, at.span, at.first);
            at.left -= 1;
            at.first += self.at_once;
            if at.first >= self.spans[at.span].rows {
                (at.span, at.first) = (at.span + 1, 0);
            }
            Some(found)
        })
    }
}

/// Attention of one layer.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Sizes of the heads.
    pub heads: Heads,
    /// What is done to queries and keys first.
    pub preparation: Preparation<'a>,
    /// What a row sees.
    pub mask: AttentionMask<'a>,
}

impl Attention<'_> {
    /// Puts this member's share of the rows' keys and values into their blocks: of every span its group's rows, under some heads.
    pub fn append(&self, ctx: &Context<'_>, at: Keys<'_>, new: KeysValues<'_>) {
        let (batch, rows) = (at.batch, rows(&at.batch.spans));
        let groups = ctx.groups(rows);
        let of_group = ctx.member.count() / groups;
        let (group, place) = (ctx.member.index() / of_group, ctx.member.index() % of_group);
        let own = share(rows, group, groups);
        let spans = batch.spans.len();
        for task in share(spans * self.heads.kv_heads, place, of_group) {
            if ctx.member.cancelled() {
                break;
            }
            let (head, span) = (task / spans, &batch.spans[task % spans]);
            self.put(ctx, at, new, span, span.whole_blocks(&own), head);
        }
    }

    /// Puts some rows of a span under one head; their blocks are this member's alone there.
    fn put(
        &self,
        ctx: &Context<'_>,
        at: Keys<'_>,
        new: KeysValues<'_>,
        span: &Span,
        some: Range<usize>,
        head: usize,
    ) {
        let Keys { shape, layer, batch, .. } = at;
        let d = self.heads.head_dim;
        let (column, mut done) = (head * d, some.start);
        while done < some.end {
            let (position, row) = (span.position + done, span.row + done);
            let token = position % BLOCK;
            let rows = (BLOCK - token).min(some.end - done);
            let block = batch.blocks[span.block + position / BLOCK].cast_mut();
            // SAFETY: the block is reserved for these rows, and under this head it is this member's alone, as its working memory is.
            unsafe {
                let (key, key_stride) = if self.preparation.is_nothing() {
                    (new.keys.0.at(row, new.keys.1 + column), new.keys.0.stride())
                } else {
                    let made = self.made(ctx).keys;
                    let from = (new.keys.0, new.keys.1 + column);
                    (made, self.preparation.keys(ctx, from, d, row..row + rows, made))
                };
                let job = AppendKv {
                    key,
                    key_stride,
                    value: new.values.0.at(row, new.values.1 + column),
                    value_stride: new.values.0.stride(),
                    rows,
                    d,
                    token,
                    keys: block.add(shape.keys(layer, head)),
                    values: block.add(shape.values(layer, head)),
                };
                ctx.runtime.kernels.put(shape.bf16, &job);
            }
            done += rows;
        }
    }

    /// Positions of one task.
    fn task_rows(&self, ctx: &Context<'_>, spans: &[Span]) -> usize {
        task_rows(rows(spans), self.heads, ctx.member.count())
    }

    /// Where this member makes queries and keys: behind the working memory of the kernel.
    fn made(&self, ctx: &Context<'_>) -> Made {
        let d = self.heads.head_dim;
        let keys = ctx.scratch.wrapping_add(kernels::attention_scratch(d));
        Made { keys, queries: keys.wrapping_add(BLOCK * d.next_multiple_of(WIDTH)) }
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
        new: KeysValues<'_>,
        queries: HeadRows<'_>,
        out: Rows<'_>,
    ) -> Result<(), Stop> {
        let at_once = self.task_rows(ctx, at.spans());
        if at.wanted.is_none() && at.batch.spans.iter().all(|span| span.rows <= at_once) {
            // A span's head is one task: whoever attends puts, and nobody waits.
            self.tasks(ctx, at, Some(new), queries, out);
        } else {
            self.append(ctx, at, new);
            ctx.member.barrier()?;
            self.tasks(ctx, at, None, queries, out);
        }
        Ok(())
    }

    /// Attends with this member's pieces of (head, sequence, rows); every key must be in its block (a barrier).
    pub fn attend(&self, ctx: &Context<'_>, at: Keys<'_>, queries: HeadRows<'_>, out: Rows<'_>) {
        self.tasks(ctx, at, None, queries, out);
    }

    /// This member's tasks; what is `new` is put by the task of its span and head. A long prompt or source has tasks for seconds, so
    /// each of them first looks whether the step was cancelled.
    fn tasks(
        &self,
        ctx: &Context<'_>,
        at: Keys<'_>,
        new: Option<KeysValues<'_>>,
        queries: HeadRows<'_>,
        out: Rows<'_>,
    ) {
        let Keys { shape, layer, batch, .. } = at;
        let spans = at.spans();
        let at_once = self.task_rows(ctx, spans);
        let runs = spans.iter().map(|span| span.rows.div_ceil(at_once)).sum();
        // Later rows of a sequence see more keys: where a member does not reach everyone's share, heads are shared out instead.
        let uneven = self.mask.causal && ctx.member.count() > ctx.member.reach();
        let (heads, groups) = (self.heads.kv_heads, if uneven { 1 } else { ctx.groups(rows(spans)) });
        let order = Order { spans, at_once, runs, heads, groups };
        // Where there is little to do, whoever comes first would take it all.
        let (little, tasks) = (at_once < self.heads.most_positions(), runs * heads);
        let pieces = if little { ctx.member.fixed(tasks) } else { ctx.member.pieces(tasks, 1) };
        let products = match (shape.bf16, ctx.runtime.dot) {
            (false, _) => CacheProducts::F32,
            (true, false) => CacheProducts::Bf16,
            (true, true) => CacheProducts::Bf16Dot,
        };
        for (head, s, first) in pieces.flat_map(|piece| order.tasks(piece)) {
            if ctx.member.cancelled() {
                break;
            }
            let span = &spans[s];
            if let Some(new) = new {
                debug_assert!(span.rows <= at_once, "one task puts and attends");
                self.put(ctx, at, new, span, 0..span.rows, head);
            }
            let (group, d) = (self.heads.group(), self.heads.head_dim);
            let (row, position) = (span.row + first, span.position + first);
            let (first_head, positions) = (head * group, at_once.min(span.rows - first));
            let (q, q_stride) = if group == 1 && self.preparation.is_nothing() {
                (queries.0.at(row, queries.1 + first_head * d).cast_const(), queries.0.stride())
            } else {
                let (made, some) = (self.made(ctx).queries, (row..row + positions, first_head));
                // SAFETY: queries were written before a barrier; the working memory is this member's alone.
                (made.cast_const(), unsafe { self.preparation.queries(ctx, queries, self.heads, some, made) })
            };
            let job = kernels::Attention {
                q,
                q_stride,
                rows: positions * group,
                group,
                d,
                blocks: batch.blocks_of(span),
                keys: shape.keys(layer, head),
                values: shape.values(layer, head),
                visible: if self.mask.causal {
                    Visible::Causal { first: position, window: self.mask.window.unwrap_or(usize::MAX) }
                } else {
                    Visible::All { keys: span.keys }
                },
                scale: self.heads.scale,
                bias: self.mask.bias.map(|bias| bias.of(head, position)),
                out: out.at(span.out + first, first_head * d),
                out_stride: out.stride(),
                round: ctx.runtime.bf16,
                next: self.next(at, head, s),
                scratch: ctx.scratch,
            };
            // SAFETY: the blocks cover every visible key; these rows' outputs under this head are this member's alone.
            unsafe { ctx.runtime.kernels.attention(products, &job) }
        }
    }

    /// Blocks that come after those of span `s` under this head, and where their keys begin.
    fn next<'a>(&self, at: Keys<'a>, head: usize, s: usize) -> (&'a [*const u8], usize) {
        let Keys { shape, layer, batch, .. } = at;
        let spans = at.spans();
        let (span, head) = if s + 1 < spans.len() { (s + 1, head) } else { (0, head + 1) };
        if head == self.heads.kv_heads {
            return (&[], 0);
        }
        (batch.blocks_of(&spans[span]), shape.keys(layer, head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spans of these rows, one after the other, at these positions.
    fn spans(rows: &[(usize, usize)]) -> Vec<Span> {
        let mut row = 0;
        let mut span = |&(rows, position): &(usize, usize)| {
            row += rows;
            Span {
                row: row - rows,
                out: row - rows,
                rows,
                position,
                keys: position + rows,
                block: 0,
                is_long: false,
            }
        };
        rows.iter().map(&mut span).collect()
    }

    fn batches() -> Vec<Vec<Span>> {
        [
            vec![(1, 0)],
            vec![(300, 0)],
            vec![(257, 37)],
            vec![(1, 5); 40],
            vec![(24, 0), (25, 16), (1, 15), (90, 31)],
        ]
        .iter()
        .map(|rows| spans(rows))
        .collect()
    }

    #[test]
    fn every_task_comes_once_however_they_are_cut() {
        for spans in batches() {
            for (at_once, groups, heads) in
                [(1, 1, 3), (7, 2, 2), (24, 1, 3), (24, 2, 3), (24, 7, 1), (24, 3, 5)]
            {
                let runs = spans.iter().map(|span| span.rows.div_ceil(at_once)).sum();
                let order = Order { spans: &spans, at_once, runs, heads, groups };
                let mut want: Vec<_> = (0..heads)
                    .flat_map(|head| spans.iter().enumerate().map(move |(s, span)| (head, s, span.rows)))
                    .flat_map(|(head, s, rows)| (0..rows).step_by(at_once).map(move |first| (head, s, first)))
                    .collect();
                want.sort_unstable();
                for cut in [1, 2, 5, runs * heads] {
                    let pieces = (0..runs * heads).step_by(cut).map(|i| i..(i + cut).min(runs * heads));
                    let mut found: Vec<_> = pieces.flat_map(|piece| order.tasks(piece)).collect();
                    found.sort_unstable();
                    assert!(found == want, "{spans:?} {at_once} {groups} {heads} in pieces of {cut}");
                }
            }
        }
    }

    #[test]
    fn every_block_is_put_by_one_group() {
        for spans in batches() {
            let rows = spans.iter().map(|span| span.rows).sum();
            for groups in 1..8 {
                for span in &spans {
                    let mut end = 0;
                    for group in 0..groups {
                        let own = span.whole_blocks(&share(rows, group, groups));
                        assert_eq!(own.start, end, "{span:?} {groups}");
                        end = own.end;
                        let border = (span.position + end).is_multiple_of(BLOCK);
                        assert!(border || end == span.rows || end == 0, "{span:?} {groups}: {end}");
                    }
                    assert_eq!(end, span.rows, "{span:?} {groups}");
                }
            }
        }
    }
}
