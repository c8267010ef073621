//! The rows of a step: which sequence's they are, which keys they look at, and which of them are wanted.

use crate::layers::attention::{Batch, Span};
use crate::program::{Cache, Which};

/// The rows of a step. Its lists are reused from step to step.
#[derive(Debug, Default)]
pub struct Plan {
    rows: usize,
    /// Rows whose logits are wanted, ascending.
    pub(super) wanted: Vec<usize>,
    /// Every row over its own sequence or source, one span for each.
    pub(super) own: Batch,
    /// The wanted rows over the same blocks; results lie side by side.
    pub(super) own_wanted: Vec<Span>,
    /// Every row over what was kept of its sequence's source; or, while a source is read, where that is put.
    pub(super) memories: Batch,
    /// The wanted rows, side by side, over the same blocks.
    pub(super) memories_wanted: Vec<Span>,
}

/// Rows of one sequence that a plan has just taken.
#[derive(Debug, Clone, Copy)]
struct Added {
    row: usize,
    rows: usize,
    /// Place among the wanted rows, and how many of these rows are wanted.
    out: usize,
    wanted: usize,
}

impl Plan {
    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.rows = 0;
        self.wanted.clear();
        for batch in [&mut self.own, &mut self.memories] {
            batch.spans.clear();
            batch.blocks.clear();
        }
        self.own_wanted.clear();
        self.memories_wanted.clear();
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of wanted rows.
    pub fn wanted(&self) -> usize {
        self.wanted.len()
    }

    /// Number of rows, position of the first one, and the row itself, of every sequence's part of the step.
    pub fn spans(&self) -> &[Span] {
        &self.own.spans
    }

    /// Adds `rows` rows of a sequence from `position` on, the last `wanted` of which are wanted; `blocks` appends the blocks of
    /// its cache.
    pub fn add(
        &mut self,
        rows: usize,
        position: usize,
        wanted: usize,
        blocks: impl FnOnce(&mut Vec<*const u8>),
    ) {
        self.add_of(rows, position, wanted, false, blocks);
    }

    /// As [`Plan::add`], for a sequence that may be longer than the border of its rotary positions.
    pub fn add_of(
        &mut self,
        rows: usize,
        position: usize,
        wanted: usize,
        is_long: bool,
        blocks: impl FnOnce(&mut Vec<*const u8>),
    ) {
        let at = Added { row: self.rows, rows, out: self.wanted.len(), wanted };
        let (keys, block) = (position + rows, self.own.blocks.len());
        self.own.spans.push(Span { row: at.row, out: at.row, rows, position, keys, block, is_long });
        if wanted > 0 {
            let (row, position) = (at.row + rows - wanted, position + rows - wanted);
            self.own_wanted.push(Span { row, out: at.out, rows: wanted, position, keys, block, is_long });
        }
        blocks(&mut self.own.blocks);
        self.rows += rows;
        self.wanted.extend(self.rows - wanted..self.rows);
    }

    /// The rows added last look at a memory of `keys` positions; `blocks` appends its blocks.
    pub fn look_at(&mut self, keys: usize, blocks: impl FnOnce(&mut Vec<*const u8>)) {
        let (Some(at), block) = (self.added(), self.memories.blocks.len()) else { return };
        let span = |row, rows| Span { row, out: row, rows, position: 0, keys, block, is_long: false };
        self.memories.spans.push(span(at.row, at.rows));
        if at.wanted > 0 {
            self.memories_wanted.push(span(at.out, at.wanted));
        }
        blocks(&mut self.memories.blocks);
    }

    /// The rows added last look at the memory of the rows before them, and read it together with those.
    pub fn look_at_the_same(&mut self) {
        let (Some(at), Some(&last)) = (self.added(), self.memories.spans.last()) else { return };
        if let Some(span) = self.memories.spans.last_mut() {
            span.rows += at.rows;
        }
        if at.wanted == 0 {
            return;
        }
        // Rows that are not wanted may have left the memory without a span here, and other memories' rows are not between.
        match self.memories_wanted.last_mut().filter(|span| span.block == last.block) {
            Some(span) => span.rows += at.wanted,
            None => {
                let (row, rows) = (at.out, at.wanted);
                self.memories_wanted.push(Span { row, out: row, rows, ..last });
            }
        }
    }

    /// The wanted rows, ascending.
    pub fn wanted_rows(&self) -> &[usize] {
        &self.wanted
    }

    /// The spans of rows over the keys in a cache, and the blocks of those keys.
    pub fn looks(&self, cache: Cache, which: Which) -> (&[Span], &[*const u8]) {
        let (batch, wanted) = self.looked_at(cache, which);
        (wanted.unwrap_or(&batch.spans), &batch.blocks)
    }

    /// Whether there are rows that nobody wants.
    pub fn is_narrowed(&self) -> bool {
        self.wanted() < self.rows()
    }

    /// The keys that some rows look at in a cache, and the spans of those rows where they are not all of them.
    pub(super) fn looked_at(&self, cache: Cache, which: Which) -> (&Batch, Option<&[Span]>) {
        let (batch, wanted) = match cache {
            Cache::Own(_) | Cache::Source => (&self.own, &self.own_wanted),
            Cache::Memory(_) => (&self.memories, &self.memories_wanted),
        };
        let narrowed = self.is_narrowed() && which == Which::Wanted;
        (batch, narrowed.then_some(wanted))
    }

    /// The rows added last.
    fn added(&self) -> Option<Added> {
        let span = self.own.spans.last()?;
        let wanted = self.wanted.iter().rev().take_while(|&&row| row >= span.row).count();
        Some(Added { row: span.row, rows: span.rows, out: self.wanted.len() - wanted, wanted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row, place of the result, number of rows, number of keys and first block of some spans.
    fn told(spans: &[Span]) -> Vec<[usize; 5]> {
        spans.iter().map(|s| [s.row, s.out, s.rows, s.keys, s.block]).collect()
    }

    #[test]
    fn wanted_rows_have_spans_of_their_own_over_the_same_blocks() {
        let (mut plan, block) = (Plan::default(), std::ptr::null::<u8>());
        for _ in 0..2 {
            plan.clear();
            // Three sequences over one memory, of which the first wants nothing; one over another memory.
            plan.add(5, 0, 0, |blocks| blocks.push(block));
            plan.look_at(7, |blocks| blocks.push(block));
            plan.add(3, 20, 1, |blocks| blocks.extend([block; 2]));
            plan.look_at_the_same();
            plan.add(2, 4, 2, |blocks| blocks.push(block));
            plan.look_at_the_same();
            plan.add(1, 0, 1, |blocks| blocks.push(block));
            plan.look_at(40, |blocks| blocks.extend([block; 3]));
            assert_eq!((plan.rows(), plan.wanted()), (11, 4));
            assert_eq!(plan.wanted, [7, 8, 9, 10]);
            let own = [[0, 0, 5, 5, 0], [5, 5, 3, 23, 1], [8, 8, 2, 6, 3], [10, 10, 1, 1, 4]];
            assert_eq!(told(&plan.own.spans), own);
            assert_eq!(told(&plan.own_wanted), [[7, 0, 1, 23, 1], [8, 1, 2, 6, 3], [10, 3, 1, 1, 4]]);
            assert_eq!(plan.own_wanted[0].position, 22, "the last of three rows from 20 on");
            assert_eq!(told(&plan.memories.spans), [[0, 0, 10, 7, 0], [10, 10, 1, 40, 1]]);
            assert_eq!(told(&plan.memories_wanted), [[0, 0, 3, 7, 0], [3, 3, 1, 40, 1]]);
        }
    }
}
