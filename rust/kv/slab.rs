//! A slab: memory for many blocks that is mapped from the system at once, with a note of which parts take memory.
//!
//! A slab lies on huge pages, since a step that reads the caches of several sequences would else spend its time on looking pages
//! up. It is divided into chunks: whole pages that hold one or more whole blocks. A chunk is resident or a hole: a hole takes no
//! memory until one of its blocks is handed out. A resident chunk without a handed-out block is idle. While a slab has holes that
//! were given back, it is kept off huge pages, which would fill them.

use super::remote::{Memory, Remote};
use crate::arena::{HUGE, page};
use crate::error::Result;

/// Bytes to which a block's first one is aligned.
const ALIGN: usize = 64;

/// Bytes that are asked of the system at a time, for as many blocks as they hold, or one.
const SLAB_BYTES: usize = 8 << 20;

/// How blocks lie in slabs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Bytes from one block of a chunk to the next.
    block: usize,
    /// Blocks of a chunk.
    blocks: usize,
    /// Bytes of a chunk, whole pages.
    pub(super) chunk: usize,
    /// Chunks of a slab.
    pub(super) chunks: usize,
}

impl Sizes {
    /// Sizes for blocks of `bytes` bytes; none when they are past any address.
    pub(super) fn of(bytes: usize) -> Option<Self> {
        let block = bytes.max(1).checked_next_multiple_of(ALIGN)?;
        // The fewest blocks that leave at most a sixteenth of their pages unused; fifteen pages of blocks do so at the latest.
        let mut blocks = 0;
        let mut chunk = 0;
        while blocks == 0 || (chunk - blocks * block) * 16 > chunk {
            blocks += 1;
            chunk = block.checked_mul(blocks)?.checked_next_multiple_of(page())?;
        }
        Some(Self { block, blocks, chunk, chunks: (SLAB_BYTES / chunk).max(1) })
    }

    /// Bytes of a slab.
    pub(super) fn slab(&self) -> Option<usize> {
        self.chunk.checked_mul(self.chunks)?.checked_next_multiple_of(HUGE)
    }

    /// Bytes from a slab's start to a block.
    fn offset(&self, block: usize) -> usize {
        block / self.blocks * self.chunk + block % self.blocks * self.block
    }
}

/// Some whole pages of a slab.
#[derive(Debug, Clone, Copy, Default)]
struct Chunk {
    /// Blocks that are handed out.
    live: usize,
    /// Whether it takes memory; it does when it has live blocks.
    resident: bool,
}

impl Chunk {
    fn is_idle(&self) -> bool {
        self.resident && self.live == 0
    }
}

/// Blocks that were asked of the system together.
#[derive(Debug)]
pub(super) struct Slab {
    sizes: Sizes,
    mapping: Memory,
    /// Whether a block is handed out.
    taken: Box<[bool]>,
    chunks: Box<[Chunk]>,
    /// Every block before this one is handed out.
    first: usize,
    /// Whether the system may put huge pages under it.
    huge: bool,
    /// Whether chunks were given back, and not all of them take memory again.
    pub(super) holed: bool,
    pub(super) counts: Counts,
}

/// Sums over a slab, or over all of a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Blocks that are handed out.
    pub(super) live: usize,
    /// Blocks that are not, in resident chunks.
    pub(super) ready: usize,
    /// Bytes of resident chunks.
    pub(super) resident: usize,
    /// Bytes of idle chunks.
    pub(super) idle: usize,
}

impl Counts {
    /// Puts one part of a sum in the place of another.
    pub(super) fn replace(&mut self, before: Self, after: Self) {
        self.live = self.live - before.live + after.live;
        self.ready = self.ready - before.ready + after.ready;
        self.resident = self.resident - before.resident + after.resident;
        self.idle = self.idle - before.idle + after.idle;
    }
}

impl Slab {
    /// A slab in this process's memory, or in a device's; none where the system refuses it.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn new(sizes: Sizes, remote: Option<&dyn Remote>) -> Result<Option<Self>> {
        let Some(bytes) = sizes.slab() else { return Ok(None) };
        let Some(mapping) = Memory::new(bytes, remote)? else { return Ok(None) };
        Ok(Some(Self {
            sizes,
            huge: mapping.advise_huge(true),
            mapping,
            taken: vec![false; sizes.chunks * sizes.blocks].into(),
            chunks: vec![Chunk::default(); sizes.chunks].into(),
            first: 0,
            holed: false,
            counts: Counts::default(),
        }))
    }

    /// Bytes from the slab's start to a chunk; the last one reaches to the slab's end.
    fn start(&self, chunk: usize) -> usize {
        if chunk == self.chunks.len() { self.mapping.len() } else { chunk * self.sizes.chunk }
    }

    /// Bytes of a chunk.
    fn bytes(&self, chunk: usize) -> usize {
        self.start(chunk + 1) - self.start(chunk)
    }

    /// First byte of a block.
    pub(super) fn at(&self, block: usize) -> *mut u8 {
        self.mapping.at().wrapping_add(self.sizes.offset(block))
    }

    pub(super) fn is_full(&self) -> bool {
        self.counts.live == self.taken.len()
    }

    /// Hands out a block: the first one that takes no new memory, or the first one. The slab is not full.
    pub(super) fn take(&mut self) -> usize {
        let free = self.taken.iter().enumerate().skip(self.first).filter(|(_, taken)| !**taken);
        let mut free = free.map(|(block, _)| block);
        let (ready, blocks) = (self.counts.ready > 0, self.sizes.blocks);
        let found = free.find(|block| !ready || self.chunks[block / blocks].resident);
        let Some(block) = found else { unreachable!("a slab that is not full has a free block") };
        let chunk = block / blocks;
        if self.counts.live + self.counts.ready < self.taken.len() {
            self.touch(chunk);
        }
        if self.chunks[chunk].live == 0 {
            self.counts.idle -= self.bytes(chunk);
        }
        self.chunks[chunk].live += 1;
        self.taken[block] = true;
        self.counts.live += 1;
        self.counts.ready -= 1;
        if block == self.first {
            self.first += 1;
        }
        block
    }

    /// Notes that a chunk of a slab with holes is about to be written, whereby whatever shares its huge pages takes memory too.
    fn touch(&mut self, chunk: usize) {
        let (mut start, mut end) = (self.start(chunk), self.start(chunk + 1));
        if self.huge {
            (start, end) = (start / HUGE * HUGE, end.next_multiple_of(HUGE));
        }
        for other in start / self.sizes.chunk..self.chunks.len().min(end.div_ceil(self.sizes.chunk)) {
            if !self.chunks[other].resident {
                self.chunks[other].resident = true;
                self.counts.ready += self.sizes.blocks;
                self.counts.resident += self.bytes(other);
                self.counts.idle += self.bytes(other);
            }
        }
        if self.holed && self.counts.live + self.counts.ready == self.taken.len() {
            // There is no hole left that a huge page would fill.
            self.holed = false;
            self.huge = self.mapping.advise_huge(true);
        }
    }

    /// Takes a block back.
    pub(super) fn put(&mut self, block: usize) {
        debug_assert!(self.taken[block], "a block comes back once");
        let chunk = block / self.sizes.blocks;
        self.taken[block] = false;
        self.first = self.first.min(block);
        self.counts.live -= 1;
        self.counts.ready += 1;
        self.chunks[chunk].live -= 1;
        if self.chunks[chunk].live == 0 {
            self.counts.idle += self.bytes(chunk);
        }
    }

    /// Gives idle chunks back to the system until at most `keep` bytes of them are left, or the system refuses.
    pub(super) fn give_back(&mut self, keep: usize) {
        if self.huge {
            // A hole under huge pages would be filled again with the next block beside it, or by the system on its own.
            self.huge = !self.mapping.advise_huge(false);
            if self.huge {
                return;
            }
        }
        let mut end = self.chunks.len();
        // From the back: the first blocks are handed out first.
        while end > 0 && self.counts.idle > keep {
            if !self.chunks[end - 1].is_idle() {
                end -= 1;
                continue;
            }
            let (mut start, mut bytes) = (end, 0);
            while start > 0 && self.chunks[start - 1].is_idle() && self.counts.idle > keep + bytes {
                start -= 1;
                bytes += self.bytes(start);
            }
            // SAFETY: whole chunks, so whole pages of the mapping; no block of theirs is handed out, and the pool is locked.
            if !unsafe { self.mapping.give_back(self.start(start), bytes) } {
                return;
            }
            self.chunks[start..end].fill(Chunk::default());
            self.holed = true;
            self.counts.ready -= (end - start) * self.sizes.blocks;
            self.counts.resident -= bytes;
            self.counts.idle -= bytes;
            end = start;
        }
    }

    /// First byte and length.
    #[cfg(test)]
    pub(super) fn extent(&self) -> (*mut u8, usize) {
        (self.mapping.at(), self.mapping.len())
    }

    /// Counts everything anew.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut counts = Counts::default();
        for (i, chunk) in self.chunks.iter().enumerate() {
            let taken = self.taken.chunks(self.sizes.blocks).nth(i).unwrap_or_default();
            assert_eq!(chunk.live, taken.iter().filter(|taken| **taken).count(), "blocks of chunk {i}");
            assert!(chunk.resident || chunk.live == 0, "a hole has no live block");
            counts.live += chunk.live;
            if chunk.resident {
                counts.ready += self.sizes.blocks - chunk.live;
                counts.resident += self.bytes(i);
                counts.idle += if chunk.live == 0 { self.bytes(i) } else { 0 };
            }
        }
        assert_eq!(counts, self.counts, "sums of a slab");
        assert!(self.taken[..self.first].iter().all(|taken| *taken), "no free block before the first");
    }
}
