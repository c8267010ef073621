//! What a step's kernels are told of its rows: ids, positions, which keys each looks at. One run of memory, written by the host in the
//! same places as the GPU reads it.

use std::ops::Range;

use super::args::Look;
use crate::execute::{Inputs, Plan};
use crate::layers::attention::Span;
use crate::layers::embedding::Input;
use crate::program::{Cache, Which};

/// Stands for an id where the row's embedding is given.
const GIVEN: u32 = u32::MAX;
/// Rows of a tile of attention.
const TILE_ROWS: usize = 16;

/// For how much there is room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Room {
    pub(super) rows: usize,
    pub(super) wanted: usize,
    pub(super) own_blocks: usize,
    pub(super) memory_blocks: usize,
    pub(super) steps: usize,
}

impl Room {
    /// As much as a plan needs.
    pub(super) fn of(plan: &Plan) -> Self {
        let blocks = |cache| plan.looks(cache, Which::All).1.len();
        Self {
            rows: plan.rows(),
            wanted: plan.wanted(),
            own_blocks: blocks(Cache::Own(0)),
            memory_blocks: blocks(Cache::Memory(0)),
            steps: 0,
        }
    }
}

/// Which rows look at which keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Own,
    OwnWanted,
    Memory,
    MemoryWanted,
}

impl List {
    pub(super) const ALL: [Self; 4] = [Self::Own, Self::OwnWanted, Self::Memory, Self::MemoryWanted];

    pub(super) fn of(cache: Cache, which: Which) -> Self {
        match (cache, which) {
            (Cache::Own(_) | Cache::Source, Which::All) => Self::Own,
            (Cache::Own(_) | Cache::Source, Which::Wanted) => Self::OwnWanted,
            (Cache::Memory(_), Which::All) => Self::Memory,
            (Cache::Memory(_), Which::Wanted) => Self::MemoryWanted,
        }
    }

    fn cache(self) -> Cache {
        if matches!(self, Self::Own | Self::OwnWanted) { Cache::Own(0) } else { Cache::Memory(0) }
    }

    fn which(self) -> Which {
        if matches!(self, Self::Own | Self::Memory) { Which::All } else { Which::Wanted }
    }
}

/// Places of everything, in bytes from the first.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tables {
    pub(super) ids: usize,
    pub(super) positions: usize,
    pub(super) is_long: usize,
    pub(super) wanted: usize,
    pub(super) looks: [usize; 4],
    pub(super) tiles: [usize; 4],
    pub(super) own_blocks: usize,
    pub(super) memory_blocks: usize,
    pub(super) step: usize,
    /// What the host writes ends here.
    pub(super) sent: usize,
    pub(super) chosen: usize,
    pub(super) bytes: usize,
}

/// How many there are of what differs from list to list.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) looks: [usize; 4],
    pub(super) tiles: [usize; 4],
}

impl Tables {
    pub(super) fn of(room: Room) -> Self {
        let Room { rows, wanted, own_blocks, memory_blocks, steps } = room;
        let mut end = 0;
        let mut place = |count: usize, size: usize| {
            let at = end;
            end += (count * size).next_multiple_of(16);
            at
        };
        let of_list = |list: List| if list.which() == Which::All { rows } else { wanted };
        let mut tables = Self {
            ids: place(rows, 4),
            positions: place(rows, 4),
            is_long: place(rows, 4),
            wanted: place(wanted, 4),
            looks: List::ALL.map(|list| place(of_list(list), size_of::<Look>())),
            tiles: List::ALL.map(|list| place(of_list(list), 8)),
            own_blocks: place(own_blocks, 8),
            memory_blocks: place(memory_blocks, 8),
            step: place(1, 4),
            ..Self::default()
        };
        tables.sent = place(0, 1);
        tables.chosen = place(rows * steps, 4);
        tables.bytes = place(0, 1);
        tables
    }

    /// Blocks of the keys of a list.
    pub(super) fn blocks(&self, list: List) -> usize {
        if list.cache() == Cache::Own(0) { self.own_blocks } else { self.memory_blocks }
    }

    /// Writes a plan for `room`, which has room for it; rows past the plan's are of no sequence. Returns how many there are.
    pub(super) fn write(&self, to: &mut [u8], room: Room, plan: &Plan, inputs: &Inputs<'_>) -> Counts {
        to[..self.sent].fill(0);
        let mut out = Writer(to);
        for (i, span) in plan.spans().iter().enumerate() {
            for t in 0..span.rows {
                let (row, id) = match (inputs.of)(i) {
                    Input::Tokens(ids) => (span.row + t, ids[t]),
                    Input::Embeddings(_) => (span.row + t, GIVEN),
                };
                out.word(self.ids, row, id);
                out.word(self.positions, row, as_word(span.position + t));
                out.word(self.is_long, row, u32::from(span.is_long));
            }
        }
        for (place, &row) in plan.wanted_rows().iter().enumerate() {
            out.word(self.wanted, place, as_word(row));
        }
        let mut counts = Counts::default();
        for list in List::ALL {
            let (spans, blocks) = plan.looks(list.cache(), list.which());
            (counts.looks[list as usize], counts.tiles[list as usize]) = out.spans(self, list, spans);
            let places: Range<usize> = 0..blocks.len();
            debug_assert!(
                places.end
                    <= if list.cache() == Cache::Own(0) { room.own_blocks } else { room.memory_blocks }
            );
            for place in places {
                out.long(self.blocks(list), place, blocks[place].addr() as u64);
            }
        }
        counts
    }
}

/// Numbers that count rows, positions and blocks, all of them far below what a word holds.
fn as_word(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn word(&mut self, table: usize, place: usize, word: u32) {
        self.0[table + place * 4..][..4].copy_from_slice(&word.to_ne_bytes());
    }

    fn long(&mut self, table: usize, place: usize, long: u64) {
        self.0[table + place * 8..][..8].copy_from_slice(&long.to_ne_bytes());
    }

    /// Writes the rows of some spans and their tiles; returns how many there are of each.
    fn spans(&mut self, tables: &Tables, list: List, spans: &[Span]) -> (usize, usize) {
        let (mut looks, mut tiles) = (0, 0);
        for span in spans {
            for first in (0..span.rows).step_by(TILE_ROWS) {
                self.word(tables.tiles[list as usize], 2 * tiles, as_word(looks + first));
                self.word(
                    tables.tiles[list as usize],
                    2 * tiles + 1,
                    as_word((span.rows - first).min(TILE_ROWS)),
                );
                tiles += 1;
            }
            for t in 0..span.rows {
                let values = [span.row + t, span.out + t, span.position + t, span.keys, span.block];
                for (i, value) in values.into_iter().enumerate() {
                    self.word(tables.looks[list as usize], looks * 5 + i, as_word(value));
                }
                looks += 1;
            }
        }
        (looks, tiles)
    }
}
