//! Where a step's rows lie in the GPU's memory, for so many rows and keys: the same places for every step of that size.

use super::driver::Memory;
use super::gpu::{FEW, Gpu};
use super::tables::{Room, Tables};
use crate::error::{Error, Result};
use crate::layers::heads::Heads;
use crate::program::{Op, Operand, Program, Which};

/// Positions of a chunk of attention, as `attend.cu` has them.
pub(super) const CHUNK: usize = 256;
/// Parts in which a row's largest logit is searched, as `choose.cu` has them.
pub(super) const PARTS: usize = 32;

/// Sizes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Size {
    /// Rows, blocks and steps for which there are tables.
    pub(super) room: Room,
    /// Rows whose logits are there at once.
    pub(super) side_by_side: usize,
    pub(super) vocab: usize,
    /// Chunks of keys that the rows' attention is divided into, at most: over their own sequences, and over sources.
    pub(super) chunks: [usize; 2],
    /// Whether rows are given as embeddings.
    pub(super) given: bool,
}

/// Addresses of a step's rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    buffers: Vec<u64>,
    pub(super) tables_at: u64,
    pub(super) tables: Tables,
    pub(super) normed: u64,
    pub(super) given: u64,
    pub(super) partial: u64,
    pub(super) logits: u64,
    pub(super) best: u64,
    bytes: usize,
}

/// Floats from one row of a buffer to the next: whole sixteen bytes.
pub(super) fn stride(width: usize) -> usize {
    width.next_multiple_of(4)
}

impl Places {
    /// Places from address 0 on.
    fn lay_out(program: &Program, size: &Size) -> Self {
        let Size { room, side_by_side, vocab, chunks, given } = *size;
        let tables = Tables::of(room);
        let mut end = tables.bytes.next_multiple_of(256);
        let mut place = |bytes: usize| {
            let at = end;
            end += bytes.next_multiple_of(256);
            at as u64
        };
        let of = |which: Which| if which == Which::All { room.rows } else { room.wanted };
        let mut buffers: Vec<u64> =
            program.buffers().iter().map(|b| place(of(b.rows) * stride(b.width) * 4)).collect();
        if room.rows == room.wanted {
            for &(from, copy) in program.copies() {
                buffers[copy] = buffers[from];
            }
        }
        let embedded = program.phases().iter().find_map(|phase| match &phase.op {
            Op::Embed { out, .. } => Some(out.width),
            _ => None,
        });
        let heads = program.heads().unwrap_or(Heads::alike(0, 0, 1.0));
        let most_chunks = chunks[0].max(chunks[1]);
        let partial =
            if most_chunks > 1 { room.rows * heads.heads * most_chunks * (heads.head_dim + 2) } else { 0 };
        Self {
            buffers,
            tables_at: 0,
            tables,
            normed: place(if room.rows > FEW { room.rows * stride(program.most_normed()) * 4 } else { 0 }),
            given: place(if given { room.rows * embedded.unwrap_or(0) * 4 } else { 0 }),
            partial: place(partial * 4),
            logits: place(side_by_side * vocab * 4),
            best: place(if room.steps > 0 { room.rows * PARTS * 8 } else { 0 }),
            bytes: end,
        }
    }

    /// Address of a buffer.
    pub(super) fn of(&self, operand: Operand) -> u64 {
        self.buffers[operand.buffer]
    }

    /// Address of a table.
    pub(super) fn table(&self, at: usize) -> u64 {
        self.tables_at + at as u64
    }
}

/// The memory of steps, reused by later ones.
#[derive(Debug, Default)]
pub(super) struct Activations {
    memory: Option<Memory>,
    /// A counter for every row and head of attention, all zero between kernels.
    tickets: Option<Memory>,
    /// Whether a step may have left counters in the middle.
    pub(super) is_spoilt: bool,
    /// Whether the memory is another than before, so that what was recorded of it is void. Whoever forgets those records takes it back.
    pub(super) moved: bool,
}

impl Activations {
    /// Places for a step of this size, and where its counters are. Sets `moved` where the memory has become another one, also in an error.
    ///
    /// # Errors
    /// `OutOfMemory`, and those of the device.
    pub(super) fn place(&mut self, gpu: &Gpu, program: &Program, size: &Size) -> Result<(Places, u64)> {
        let mut places = Places::lay_out(program, size);
        let heads = program.heads().map_or(0, |heads| heads.heads);
        let counters = (size.room.rows * heads * 4).max(4);
        if self.memory.as_ref().is_none_or(|memory| memory.len() < places.bytes) {
            // The old memory goes first: both at once may be too much.
            self.memory = None;
            self.moved = true;
            // A little more, so that the next longer step does not move everything again.
            let memory = match gpu.device.alloc(places.bytes + places.bytes / 4, "activations") {
                Err(Error::OutOfMemory { .. }) => gpu.device.alloc(places.bytes, "activations"),
                other => other,
            };
            self.memory = Some(memory?);
        }
        if self.tickets.as_ref().is_none_or(|memory| memory.len() < counters) {
            self.tickets = None;
            self.moved = true;
            let memory = gpu.device.alloc(counters, "activations")?;
            self.is_spoilt = true;
            self.tickets = Some(memory);
        }
        if let Some(memory) = self.tickets.as_ref().filter(|_| self.is_spoilt) {
            // SAFETY: the memory is as long, and is freed only when the GPU has done what it was told before.
            unsafe { gpu.stream.zero(memory.at(), memory.len())? };
        }
        // Until the step has ended well.
        self.is_spoilt = true;
        let at = |memory: &Option<Memory>| memory.as_ref().map_or(0, Memory::at);
        let base = at(&self.memory);
        places.tables_at = base;
        for place in places.buffers.iter_mut().chain([
            &mut places.normed,
            &mut places.given,
            &mut places.partial,
            &mut places.logits,
            &mut places.best,
        ]) {
            *place += base;
        }
        Ok((places, at(&self.tickets)))
    }

    /// Bytes of the GPU's memory.
    pub(super) fn bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, Memory::len)
    }
}
