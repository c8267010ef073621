//! The pool of a model's cache blocks: hands them out, reuses them, and gives memory back to the system.
//!
//! Blocks lie in [slabs](super::slab) of some 8 MB. A block always returns to its slab, and the fullest slab hands out first, so that
//! the others become free as a whole. Memory that no block uses is kept for reuse up to [`RESERVE`]. When there is more of it, all
//! but half of the reserve goes back at once, so that the system is called once for many blocks: first slabs that are wholly free,
//! then idle chunks of the others, which become holes. So what a pool holds follows what is handed out, whatever stays alive in
//! between.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::block::Block;
use super::remote::{Memory, Remote};
use super::slab::{Counts, Sizes, Slab};
use super::{Account, Shape};
use crate::error::{Error, Result};
use crate::forks::PerProcess;
use crate::kernels;

/// Idle bytes that a pool keeps for reuse, at most.
const RESERVE: usize = 32 << 20;

/// Blocks from which on their memory is asked for at once, first.
const PROBED: usize = 16;

/// The slabs of a pool in one process. A slab's place does not change, so that blocks can name it.
#[derive(Debug, Default)]
struct Slabs {
    slabs: Vec<Option<Slab>>,
    counts: Counts,
    /// Blocks that were handed out on nobody's account and have not come back.
    open: usize,
    /// Slab that handed out last.
    current: usize,
    /// Idle bytes above which some are given back, where the system refused to take enough the last time.
    refused: usize,
}

impl Slabs {
    /// Changes one slab, and the sums with it.
    fn change<T>(&mut self, place: usize, change: impl FnOnce(&mut Slab) -> T) -> Option<T> {
        let slab = self.slabs.get_mut(place)?.as_mut()?;
        let before = slab.counts;
        let result = change(slab);
        let after = slab.counts;
        self.counts.replace(before, after);
        Some(result)
    }

    /// The slab to hand out from: one that takes no new memory for it before one that does, the fullest first. The one that handed
    /// out last goes on while nothing speaks against it.
    fn fullest(&self) -> Option<usize> {
        let serves = |slab: &Slab| !slab.is_full() && (slab.counts.ready > 0 || self.counts.ready == 0);
        let slab = |place: usize| self.slabs.get(place).and_then(Option::as_ref);
        if slab(self.current).is_some_and(serves) {
            return Some(self.current);
        }
        (0..self.slabs.len())
            .filter_map(|place| slab(place).filter(|slab| serves(slab)).map(|slab| (place, slab.counts.live)))
            .reduce(|best, next| if next.1 > best.1 { next } else { best })
            .map(|(place, _)| place)
    }

    /// Hands out a block: its slab, its number there and its first byte. None when the system refuses memory.
    fn take(
        &mut self,
        sizes: Sizes,
        account: Account,
        remote: Option<&dyn Remote>,
    ) -> Result<Option<(usize, usize, *mut u8)>> {
        self.current = match self.fullest() {
            Some(place) => place,
            None => match self.grow(sizes, remote)? {
                Some(place) => place,
                None => return Ok(None),
            },
        };
        let place = self.current;
        let taken = self.change(place, |slab| {
            let block = slab.take();
            (place, block, slab.at(block))
        });
        self.open += usize::from(account == Account::Open && taken.is_some());
        Ok(taken)
    }

    /// Asks the system for a slab.
    fn grow(&mut self, sizes: Sizes, remote: Option<&dyn Remote>) -> Result<Option<usize>> {
        let Some(slab) = Slab::new(sizes, remote)? else { return Ok(None) };
        let place = self.slabs.iter().position(Option::is_none).unwrap_or(self.slabs.len());
        if place == self.slabs.len() {
            self.slabs.push(None);
        }
        self.slabs[place] = Some(slab);
        Ok(Some(place))
    }

    /// Gives a slab back to the system.
    fn remove(&mut self, place: usize) {
        if let Some(slab) = self.slabs[place].take() {
            self.counts.replace(slab.counts, Counts::default());
        }
    }

    /// Takes a block back that was handed out on `account`.
    fn put(&mut self, (place, block): (usize, usize), account: Account, reserve: usize) {
        self.open -= usize::from(account == Account::Open);
        let worn = self.change(place, |slab| {
            slab.put(block);
            slab.counts.live == 0 && slab.holed
        });
        if worn == Some(true) {
            // A free slab with holes has small pages and little memory to keep: a new one serves better.
            self.remove(place);
        }
        if self.counts.idle > reserve.max(self.refused) {
            self.trim(reserve / 2);
        }
    }

    /// Gives idle memory back until at most `keep` bytes are left.
    #[cold]
    fn trim(&mut self, keep: usize) {
        for place in 0..self.slabs.len() {
            let free = self.slabs[place].as_ref().is_some_and(|slab| slab.counts.live == 0);
            if free && self.counts.idle > keep {
                self.remove(place);
            }
        }
        // The emptiest first: they are the last to hand out.
        let idle = |slab: &Option<Slab>| slab.as_ref().filter(|s| s.counts.idle > 0).map(|s| s.counts.live);
        let mut order: Vec<(usize, usize)> =
            self.slabs.iter().enumerate().filter_map(|(place, slab)| Some((idle(slab)?, place))).collect();
        order.sort_unstable();
        for (_, place) in order {
            let beyond = self.counts.idle.saturating_sub(keep);
            if beyond > 0 {
                self.change(place, |slab| slab.give_back(slab.counts.idle.saturating_sub(beyond)));
            }
        }
        // Memory that the system does not take back is not offered to it again with every block.
        self.refused = if self.counts.idle > keep { self.counts.idle + keep } else { 0 };
    }
}

/// Memory of blocks of one shape, reused within a model.
#[derive(Debug)]
pub struct Pool {
    shape: Shape,
    /// None where a block is past any address.
    sizes: Option<Sizes>,
    /// Idle bytes that are kept for reuse, at most.
    reserve: usize,
    /// The device in whose memory the blocks lie, where that is not this process's own.
    remote: Option<Arc<dyn Remote>>,
    slabs: PerProcess<Mutex<Slabs>>,
}

impl Pool {
    /// An empty pool.
    pub fn new(shape: Shape) -> Arc<Self> {
        Self::with_reserve(shape, RESERVE, None)
    }

    /// An empty pool whose blocks lie in a device's memory. They are not zeroed: a device reads no position that was not written.
    pub fn remote(shape: Shape, remote: Arc<dyn Remote>) -> Arc<Self> {
        // A device's memory costs a wait to take and to give back, and no system has other use for it: what was taken is kept.
        Self::with_reserve(shape, usize::MAX, Some(remote))
    }

    fn with_reserve(shape: Shape, reserve: usize, remote: Option<Arc<dyn Remote>>) -> Arc<Self> {
        let (sizes, slabs) = (Sizes::of(shape.block_bytes()), PerProcess::new());
        Arc::new(Self { shape, sizes, reserve, remote, slabs })
    }

    /// Sizes of the cache.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Bytes of the blocks that this process has handed out and not got back. A forked child counts only its own.
    pub fn live_bytes(&self) -> usize {
        self.lock().counts.live * self.shape.block_bytes()
    }

    /// Bytes of those that sequences took which no request answers for. A forked child counts only its own.
    pub fn open_bytes(&self) -> usize {
        self.lock().open * self.shape.block_bytes()
    }

    /// Bytes of memory that the pool holds in this process: blocks handed out, what is kept for reuse, and what fills up their
    /// pages. Where the system grants no huge pages it can be less by up to one of them per slab.
    pub fn held_bytes(&self) -> usize {
        self.lock().counts.resident
    }

    /// This process's slabs. They are locked for a few additions, or for a batch of system calls.
    fn lock(&self) -> MutexGuard<'_, Slabs> {
        self.slabs.get(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(bytes: usize) -> Error {
        Error::OutOfMemory { what: "key-value cache".to_owned(), bytes }
    }

    /// Asks for the memory of many blocks at once and gives it back: a refusal comes while there is still room for the small
    /// things around them, whose allocation cannot fail softly.
    pub(super) fn probe(&self, blocks: usize) -> Result<()> {
        if blocks < PROBED || self.remote.is_some() {
            return Ok(());
        }
        let missing = blocks.saturating_sub(self.lock().counts.ready);
        if missing == 0 {
            return Ok(());
        }
        let bytes = missing.saturating_mul(self.shape.block_bytes());
        Memory::new(bytes, self.remote.as_deref())?.map(drop).ok_or_else(|| Self::refused(bytes))
    }

    /// A zeroed block; on a device one whose contents are whatever was there.
    pub(super) fn block(self: &Arc<Self>, account: Account) -> Result<Arc<Block>> {
        let block = self.unwritten(account)?;
        if self.remote.is_none() {
            // SAFETY: the memory is this process's, and this block's alone, of this size.
            unsafe { block.at().write_bytes(0, self.shape.block_bytes()) };
        }
        Ok(block)
    }

    /// A block whose contents are whatever was there; its owner writes all of it.
    pub(super) fn unwritten(self: &Arc<Self>, account: Account) -> Result<Arc<Block>> {
        let bytes = self.shape.block_bytes();
        let sizes = self.sizes.ok_or_else(|| Self::refused(bytes))?;
        let taken = self.lock().take(sizes, account, self.remote.as_deref())?;
        let (slab, number, at) = taken.ok_or_else(|| Self::refused(bytes))?;
        Ok(Arc::new(Block::new(self, at, (slab, number), account)))
    }

    /// Writes one block over another, which is its owner's alone.
    pub(super) fn copy(&self, from: &Block, to: &Block) -> Result<()> {
        let bytes = self.shape.block_bytes();
        match &self.remote {
            Some(remote) => remote.copy(from.at(), to.at(), bytes),
            None => {
                // SAFETY: both blocks have the pool's size, and the copy is its owner's alone.
                unsafe { std::ptr::copy_nonoverlapping(from.at(), to.at(), bytes) };
                Ok(())
            }
        }
    }

    /// Zeroes the tokens of a block from `from` on, which is its owner's alone. A device reads none of them, and needs no zeros.
    pub(super) fn clear(&self, block: &Block, from: usize) {
        if self.remote.is_none() {
            // SAFETY: the memory is this process's, and the block its owner's alone.
            unsafe { clear(&self.shape, block.at(), from) };
        }
    }

    /// Takes a block of this process back.
    pub(super) fn put(&self, place: (usize, usize), account: Account) {
        self.lock().put(place, account, self.reserve);
    }

    /// A block that a request answered for is nobody's now.
    pub(super) fn opened(&self) {
        self.lock().open += 1;
    }
}

/// Zeroes the tokens from `from` on of every head of a block.
///
/// # Safety
/// The block has this shape and is the caller's alone.
unsafe fn clear(shape: &Shape, block: *mut u8, from: usize) {
    for (layer, head) in (0..shape.layers).flat_map(|l| (0..shape.heads).map(move |h| (l, h))) {
        // SAFETY: the offsets lie in the block.
        unsafe {
            let (keys, values) = (block.add(shape.keys(layer, head)), block.add(shape.values(layer, head)));
            kernels::clear(shape.bf16, shape.head_dim, keys, values, from);
        }
    }
}

#[cfg(test)]
mod tests;
