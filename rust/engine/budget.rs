//! What a call has reserved of the cache. A charge is given back where its owner is dropped, however that comes about.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::models::CacheBlock;

/// Bytes that one call has reserved.
#[derive(Debug, Clone, Default)]
pub(super) struct Account(Arc<AtomicUsize>);

impl Account {
    /// Bytes reserved now.
    pub(super) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Reserves bytes for as long as the charge lives.
    pub(super) fn charge(&self, bytes: usize) -> Charge {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Charge { account: self.clone(), bytes }
    }
}

/// Bytes reserved in an account.
#[derive(Debug)]
pub(super) struct Charge {
    account: Account,
    bytes: usize,
}

impl Charge {
    /// Reserves so many bytes less, or nothing any more.
    pub(super) fn reduce(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.account.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes that a prompt takes: blocks that all of its rows share, and those of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) shared: usize,
    pub(super) each: usize,
}

impl Needs {
    /// Of a prompt of so many positions, whose `rows` may grow by `new` tokens each.
    pub(super) fn of(block: CacheBlock, prompt: usize, new: usize, rows: usize) -> Self {
        let whole = prompt / block.positions;
        let each = prompt.saturating_add(new).div_ceil(block.positions) - whole;
        // Rows that begin later fork the prompt's last block, too, which may not be full.
        let kept = if rows > 1 { prompt.div_ceil(block.positions) } else { whole };
        Self { shared: kept.saturating_mul(block.bytes), each: each.saturating_mul(block.bytes) }
    }

    /// The same where the blocks of the first `held` positions are there, and nobody's reservation.
    pub(super) fn behind(self, block: CacheBlock, held: usize) -> Self {
        let there = (held / block.positions).saturating_mul(block.bytes);
        Self { shared: self.shared.saturating_sub(there), ..self }
    }

    /// Of so many rows of the prompt together.
    pub(super) fn rows(self, rows: usize) -> usize {
        self.shared.saturating_add(self.each.saturating_mul(rows))
    }
}

/// Bytes of what is kept of a source.
pub(super) fn source_bytes(block: CacheBlock, positions: usize) -> usize {
    positions.div_ceil(block.positions).saturating_mul(block.bytes)
}
