//! The pool of a model's cache blocks: hands them out, reuses them, and gives memory back to the system.
//!
//! Blocks lie in [slabs](super::slab) of some 8 MB. A block always returns to its slab, and the fullest slab hands out first, so that
//! the others become free as a whole. Memory that no block uses is kept for reuse up to [`RESERVE`]. When there is more of it, all
//! but half of the reserve goes back at once, so that the system is called once for many blocks: first slabs that are wholly free,
//! then idle chunks of the others, which become holes. So what a pool holds follows what is handed out, whatever stays alive in
//! between. (More than half of the file are its tests, which look at what only the pool knows.)

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
        Self::with_reserve(shape, RESERVE, Some(remote))
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
        if blocks < PROBED {
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
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::{Just, Strategy, any, prop_oneof};

    use super::*;
    use crate::arena::{HUGE, page};

    /// A pool whose blocks take 2 KB for every `heads` and two dimensions of a head.
    fn pool(heads: usize, head_dim: usize, reserve: usize) -> Arc<Pool> {
        Pool::with_reserve(Shape { layers: 1, heads, head_dim, bf16: false }, reserve, None)
    }

    /// Bytes of the pool's slabs that are in memory as the system says, and the number of slabs.
    #[cfg(target_os = "linux")]
    fn resident(pool: &Pool) -> (usize, usize) {
        let slabs = pool.lock();
        let mappings: Vec<(*mut u8, usize)> = slabs.slabs.iter().flatten().map(Slab::extent).collect();
        let bytes = mappings.iter().map(|&(at, len)| {
            let mut pages = vec![0u8; len / page()];
            // SAFETY: the mapping is alive while the pool is locked, and there is a byte for each of its pages.
            let outcome = unsafe { libc::mincore(at.cast(), len, pages.as_mut_ptr()) };
            assert_eq!(outcome, 0, "the pages are mapped");
            pages.iter().filter(|page| **page & 1 == 1).count() * page()
        });
        (bytes.sum(), mappings.len())
    }

    #[cfg(not(target_os = "linux"))]
    fn resident(pool: &Pool) -> (usize, usize) {
        (0, pool.lock().slabs.iter().flatten().count())
    }

    /// What must hold at any time: the sums are those of the slabs, and memory follows what is handed out.
    fn check(pool: &Pool, live: usize) {
        let (resident, slabs) = resident(pool);
        let (held, sizes) = (pool.held_bytes(), pool.sizes.unwrap());
        assert_eq!(pool.live_bytes(), live * pool.shape.block_bytes(), "blocks handed out");
        assert_eq!(pool.open_bytes(), pool.live_bytes(), "all of them on nobody's account");
        assert!(resident <= held, "{resident} bytes are resident where the pool says {held}");
        let counts = pool.lock().counts;
        let mut sum = Counts::default();
        for slab in pool.lock().slabs.iter().flatten() {
            slab.check();
            sum.replace(Counts::default(), slab.counts);
        }
        assert_eq!(counts, sum, "sums over the slabs");
        if cfg!(target_os = "linux") {
            // A slab that was just begun is counted by huge pages.
            let idle = pool.reserve.max(sizes.chunk.next_multiple_of(HUGE) + HUGE);
            assert!(counts.idle <= idle, "{} idle bytes", counts.idle);
            // A chunk stays for one block of it, and a slab's last chunk fills up its huge page.
            let tail = sizes.slab().unwrap() - sizes.chunks * sizes.chunk;
            let used = live * sizes.chunk + live.min(slabs) * tail;
            assert!(held <= used + idle, "{held} bytes are held for {live} blocks");
        }
    }

    #[test]
    fn memory_comes_back_whatever_stays_alive() {
        // As four layers of 128 dimensions: 64 KB.
        let pool = pool(4, 128, RESERVE);
        assert_eq!(pool.shape().block_bytes(), 64 << 10, "bytes of a block");
        let sequence = || (0..13).map(|_| pool.block(Account::Open).unwrap()).collect::<Vec<_>>();
        let mut kept = Vec::new();
        for round in 0..4 {
            let mut all: Vec<_> = (0..300).map(|_| sequence()).collect();
            let mut number = 0;
            all.retain(|_| {
                number += 1;
                (number + round) % 37 == 0
            });
            kept.extend(all);
            let (live, held) = (pool.live_bytes(), pool.held_bytes());
            assert_eq!(live, (kept.len() * 13) << 16, "what is kept is live");
            assert!(held <= live + RESERVE, "{held} bytes are held for {live} after round {round}");
            check(&pool, kept.len() * 13);
        }
        drop(kept);
        assert_eq!(pool.live_bytes(), 0, "nothing is live");
        assert!(pool.held_bytes() <= RESERVE, "{} bytes are held for nothing", pool.held_bytes());
        check(&pool, 0);
        assert!(resident(&pool).1 <= RESERVE / (8 << 20), "free slabs go back with their addresses");
    }

    #[test]
    fn blocks_are_handed_out_from_the_fullest_slab_lowest_first() {
        let pool = pool(4, 128, RESERVE);
        let mut blocks: Vec<_> = (0..3 * 128).map(|_| pool.block(Account::Open).unwrap()).collect();
        let place = |block: &Block| block.place;
        assert_eq!(place(&blocks[0]), (0, 0), "the first");
        assert_eq!(place(&blocks[383]), (2, 127), "the last of three slabs");
        // Of the second slab two are free, of the first one three.
        for i in [130, 131, 1, 2, 3] {
            blocks[i] = Arc::clone(&blocks[0]);
        }
        let again: Vec<_> = (0..5).map(|_| pool.block(Account::Open).unwrap()).collect();
        let places: Vec<_> = again.iter().map(|block| place(block)).collect();
        assert_eq!(places, [(1, 2), (1, 3), (0, 1), (0, 2), (0, 3)]);
    }

    #[test]
    fn blocks_are_zeroed_and_refusals_are_errors() {
        let pool = pool(1, 3, RESERVE);
        let bytes = pool.shape().block_bytes();
        for _ in 0..3 {
            let blocks: Vec<_> = (0..5).map(|_| pool.block(Account::Open).unwrap()).collect();
            for block in &blocks {
                // SAFETY: the block is ours.
                unsafe {
                    assert!((0..bytes).all(|i| *block.at().add(i) == 0), "zeroed");
                    block.at().write_bytes(0xff, bytes);
                }
            }
        }
        let huge = Pool::new(Shape { layers: 1 << 20, heads: 1 << 10, head_dim: 1 << 10, bf16: false });
        assert!(matches!(huge.block(Account::Open), Err(Error::OutOfMemory { .. })), "2^47 bytes");
        assert!(matches!(pool.probe(1 << 50), Err(Error::OutOfMemory { .. })), "2^50 blocks");
        let counted = (huge.live_bytes(), huge.open_bytes(), huge.held_bytes());
        assert_eq!(counted, (0, 0, 0), "nothing came of it");
    }

    #[test]
    fn no_block_is_lost_by_contention() {
        let pool = pool(1, 3, 1 << 20);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..300 {
                        drop((0..round % 17).map(|_| pool.block(Account::Open).unwrap()).collect::<Vec<_>>());
                    }
                });
            }
        });
        assert_eq!(pool.live_bytes(), 0, "all came back");
        check(&pool, 0);
    }

    #[cfg(unix)]
    #[test]
    fn a_child_forked_under_the_lock_goes_on_to_work() {
        let pool = pool(4, 128, RESERVE);
        let bytes = pool.shape().block_bytes();
        let old = pool.block(Account::Open).unwrap();
        // SAFETY: the block is ours.
        unsafe { old.at().write_bytes(5, bytes) };
        let (locked, is_locked) = std::sync::mpsc::channel();
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let other = Arc::clone(&pool);
        let holder = std::thread::spawn(move || {
            let guard = other.lock();
            locked.send(()).unwrap();
            // Until the child is gone.
            _ = is_done.recv();
            drop(guard);
        });
        is_locked.recv().unwrap();
        // SAFETY: the child allocates, which the C library allows after a fork, and leaves at once.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "the system forks");
        if child == 0 {
            // SAFETY: a child that waits for the lock is ended by the system; the block is its own copy.
            let same = unsafe {
                libc::alarm(30);
                (0..bytes).all(|i| *old.at().add(i) == 5)
            };
            drop(old);
            let fresh: Option<Vec<_>> = (0..40).map(|_| pool.block(Account::Open).ok()).collect();
            let counted = (pool.live_bytes(), pool.open_bytes()) == (40 * bytes, 40 * bytes);
            drop(fresh);
            let gone = (pool.live_bytes(), pool.open_bytes()) == (0, 0);
            let whole = same && counted && gone && pool.held_bytes() <= SLAB;
            drop(pool);
            // SAFETY: ends this process without running anything else.
            unsafe { libc::_exit(if whole { 7 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child, "the child was waited for");
        drop(done);
        holder.join().unwrap();
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "the child's status: {status}");
        let counted = (pool.live_bytes(), pool.open_bytes());
        assert_eq!(counted, (bytes, bytes), "the parent's block is still the parent's");
    }

    /// A slab.
    const SLAB: usize = 8 << 20;

    /// A step in the life of a pool.
    #[derive(Debug, Clone)]
    enum Act {
        Take(usize),
        /// Lets go of every so manyth, from the given one on.
        Drop(usize, usize),
        /// Shares every so manyth once more, or lets go of the share.
        Share(usize),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            3 => (1usize..120).prop_map(Act::Take),
            3 => (1usize..9, any::<usize>()).prop_map(|(every, first)| Act::Drop(every, first % every)),
            1 => (1usize..9).prop_map(Act::Share),
            1 => Just(Act::Drop(1, 0)),
        ];
        vec(act, 1..14)
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
        #[test]
        fn blocks_do_not_overlap_and_keep_their_contents(
            (heads, head_dim, acts) in (1usize..5, proptest::sample::select(vec![1usize, 3, 16, 37, 128, 600]), acts())
        ) {
            let pool = pool(heads, head_dim, 3 << 20);
            let bytes = pool.shape().block_bytes();
            let mut live: BTreeMap<usize, Vec<Arc<Block>>> = BTreeMap::new();
            let mut serial = 0usize;
            let marks = |block: &Block| {
                let mut at: Vec<usize> = (0..bytes).step_by(page()).collect();
                at.push(bytes - size_of::<usize>());
                at.into_iter().map(|i| block.at().wrapping_add(i).cast::<usize>()).collect::<Vec<_>>()
            };
            for act in acts {
                match act {
                    Act::Take(n) => for _ in 0..n {
                        let block = pool.block(Account::Open).unwrap();
                        for mark in marks(&block) {
                            // SAFETY: inside the block.
                            unsafe {
                                assert_eq!(mark.read(), 0, "zeroed");
                                mark.write(serial);
                            }
                        }
                        live.insert(serial, vec![block]);
                        serial += 1;
                    },
                    Act::Drop(every, first) => {
                        let mut number = first;
                        live.retain(|_, shares| {
                            number += 1;
                            if number % every == 0 {
                                shares.pop();
                            }
                            !shares.is_empty()
                        });
                    }
                    Act::Share(every) => for shares in live.values_mut().step_by(every) {
                        shares.push(Arc::clone(&shares[0]));
                    },
                }
                check(&pool, live.len());
                let mut places: Vec<usize> = live.values().map(|shares| shares[0].at().addr()).collect();
                places.sort_unstable();
                assert!(places.windows(2).all(|pair| pair[0] + bytes <= pair[1]), "blocks overlap");
                assert!(places.iter().all(|at| at.is_multiple_of(64)), "aligned to a line");
                for (serial, shares) in &live {
                    for mark in marks(&shares[0]) {
                        // SAFETY: inside the block.
                        assert_eq!(unsafe { mark.read() }, *serial, "contents survive");
                    }
                }
            }
        }
    }
}
