//! A block of the cache, as the sequences that share it hold it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Account;
use super::pool::Pool;
use crate::forks;

/// A block; when the last sequence lets go of it, its memory goes back to the pool.
#[derive(Debug)]
pub(super) struct Block {
    at: *mut u8,
    /// Its slab, and its number there.
    pub(super) place: (usize, usize),
    /// Whether no request answers for it.
    is_open: AtomicBool,
    /// The process that handed it out.
    generation: usize,
    pool: Arc<Pool>,
}

// SAFETY: plain memory, owned by one value.
unsafe impl Send for Block {}
// SAFETY: reached through a sequence; writers are kept apart by `Sequence::reserve`'s contract.
unsafe impl Sync for Block {}

impl Block {
    /// The block at `place` of the pool, which has its first byte `at`.
    pub(super) fn new(pool: &Arc<Pool>, at: *mut u8, place: (usize, usize), account: Account) -> Self {
        let is_open = AtomicBool::new(account == Account::Open);
        Self { at, place, is_open, generation: forks::generation(), pool: Arc::clone(pool) }
    }

    /// First byte.
    pub(super) fn at(&self) -> *mut u8 {
        self.at
    }

    /// From now on no request answers for it; whether one did.
    pub(super) fn open(&self) -> bool {
        let did = !self.is_open.swap(true, Ordering::Relaxed);
        // A pool counts what its own process handed out.
        if did && self.generation == forks::generation() {
            self.pool.opened();
        }
        did
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // A block that a forked child has from its parent belongs to slabs that the child has left behind.
        if self.generation == forks::generation() {
            let account = if *self.is_open.get_mut() { Account::Open } else { Account::Reserved };
            self.pool.put(self.place, account);
        }
    }
}
