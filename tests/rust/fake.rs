//! A model that computes nothing: logits are a hash of all tokens so far. Its twin in Python is in
//! `tools/make_decode_golden.py`; both must give the same numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fastdecode::models::{CacheBlock, Cancel, Decoder, Input, Limits, Segment, Sequence, Wanted};
use fastdecode::{Error, Result};

/// Tokens so far, as their hash and their number after every one.
#[derive(Debug)]
pub(crate) struct FakeSequence {
    hashes: Vec<u32>,
    /// Rows of a source that the first forward reads.
    pending: usize,
    live: Arc<AtomicUsize>,
}

impl FakeSequence {
    /// With a source of `rows` rows.
    pub(crate) fn over(mut self, rows: usize) -> Self {
        self.pending = rows;
        self
    }

    fn hash(&self) -> u32 {
        self.hashes.last().copied().unwrap_or(0x9e37_79b9)
    }

    fn append(&mut self, token: u32) {
        let mixed = (self.hash() ^ token).wrapping_mul(0x0100_0193);
        self.hashes.push(mixed ^ (mixed >> 15));
    }
}

impl Drop for FakeSequence {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Sequence for FakeSequence {
    fn len(&self) -> usize {
        self.hashes.len()
    }

    fn pending(&self) -> usize {
        self.pending
    }

    fn fork(&self) -> Self {
        self.live.fetch_add(1, Ordering::Relaxed);
        // Room to grow, so that the steady loop allocates nothing on the model's account.
        let mut hashes = Vec::with_capacity(self.hashes.len() + 256);
        hashes.extend_from_slice(&self.hashes);
        Self { hashes, pending: self.pending, live: Arc::clone(&self.live) }
    }

    fn truncate(&mut self, len: usize) {
        assert!(len <= self.len(), "truncate({len}) of {} positions", self.len());
        self.hashes.truncate(len);
    }
}

/// See the head of the file.
#[derive(Debug)]
pub(crate) struct FakeModel {
    pub(crate) vocab_size: usize,
    pub(crate) context_limit: Option<usize>,
    /// Logits lie in `[-spread, spread)`; a power of two keeps them exact.
    pub(crate) spread: f32,
    /// Sequences that exist.
    pub(crate) live: Arc<AtomicUsize>,
    /// Positions of every forward, those of sources included.
    pub(crate) fed: std::sync::Mutex<Vec<usize>>,
    /// What every logit is instead, if anything.
    pub(crate) constant: Option<f32>,
    /// What requests may use.
    pub(crate) limits: Limits,
}

impl FakeModel {
    pub(crate) fn new(vocab_size: usize, spread: f32) -> Self {
        Self {
            vocab_size,
            context_limit: None,
            spread,
            live: Arc::default(),
            fed: std::sync::Mutex::new(Vec::with_capacity(4096)),
            constant: None,
            limits: Limits::default(),
        }
    }

    fn logit(&self, hash: u32, token: u32) -> f32 {
        if let Some(constant) = self.constant {
            return constant;
        }
        let mut x = hash.wrapping_add(token.wrapping_mul(0x9e37_79b1));
        x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
        x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
        x ^= x >> 16;
        // The low bits hold the token, so that no two logits of a small vocabulary are equal.
        let bits = ((x >> 8) & 0x00ff_ff00) | (token & 0xff);
        bits as f32 * (2.0 * self.spread / 16_777_216.0) - self.spread
    }
}

impl Decoder for FakeModel {
    type Sequence = FakeSequence;

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_limit(&self) -> Option<usize> {
        self.context_limit
    }

    fn cache_block(&self) -> CacheBlock {
        CacheBlock { positions: 16, bytes: 1024 }
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn start(&self) -> FakeSequence {
        self.live.fetch_add(1, Ordering::Relaxed);
        FakeSequence { hashes: Vec::with_capacity(2048), pending: 0, live: Arc::clone(&self.live) }
    }

    fn forward(
        &self,
        batch: &mut [Segment<'_, FakeSequence>],
        logits: &mut Vec<f32>,
        cancel: &Cancel<'_>,
    ) -> Result<()> {
        assert!(!batch.is_empty(), "a step without segments");
        if cancel.is_set() {
            return Err(Error::Cancelled);
        }
        logits.clear();
        let mut positions = 0;
        for segment in batch {
            let tokens: &[u32] = match segment.input {
                Input::Tokens(tokens) => tokens,
                // One value per row.
                Input::Embeddings(values) => &values.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
            };
            assert!(!tokens.is_empty(), "a segment without rows");
            positions += tokens.len() + std::mem::take(&mut segment.sequence.pending);
            for (place, &token) in tokens.iter().enumerate() {
                segment.sequence.append(token);
                let last = place + 1 == tokens.len();
                if segment.logits == Wanted::All || (segment.logits == Wanted::Last && last) {
                    let hash = segment.sequence.hash();
                    logits.extend((0..self.vocab_size as u32).map(|token| self.logit(hash, token)));
                }
            }
            if let Some(limit) = self.context_limit {
                assert!(segment.sequence.len() <= limit, "{} positions of {limit}", segment.sequence.len());
            }
        }
        self.fed.lock().expect("no test panics while it holds the lock").push(positions);
        Ok(())
    }
}
