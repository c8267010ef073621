//! A model that computes nothing: logits are a hash of all tokens so far. Its twin in Python is in
//! `tools/make_decode_golden.py`; both must give the same numbers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use fastdecode::models::{
    Argmax, CacheBlock, Cancel, ContextLength, Decoder, Input, Limits, NO_TOKEN, Segment, Sequence, Wanted,
};
use fastdecode::{Error, Result};

/// Blocks that sequences hold: how many there are, and how many of them no request answers for.
#[derive(Debug, Default)]
pub(crate) struct FakePool {
    pub(crate) live: AtomicUsize,
    pub(crate) open: AtomicUsize,
}

/// Sixteen positions of a sequence, and of its forks.
#[derive(Debug)]
struct FakeBlock {
    is_open: AtomicBool,
    pool: Arc<FakePool>,
}

impl FakeBlock {
    fn new(pool: &Arc<FakePool>, is_open: bool) -> Arc<Self> {
        pool.live.fetch_add(1, Ordering::SeqCst);
        pool.open.fetch_add(usize::from(is_open), Ordering::SeqCst);
        Arc::new(Self { is_open: AtomicBool::new(is_open), pool: Arc::clone(pool) })
    }
}

impl Drop for FakeBlock {
    fn drop(&mut self) {
        self.pool.live.fetch_sub(1, Ordering::SeqCst);
        self.pool.open.fetch_sub(usize::from(*self.is_open.get_mut()), Ordering::SeqCst);
    }
}

/// Tokens so far, as their hash and their number after every one.
#[derive(Debug)]
pub(crate) struct FakeSequence {
    hashes: Vec<u32>,
    /// Its blocks and where they come from, where the model counts them; whether new ones are nobody's.
    blocks: Vec<Arc<FakeBlock>>,
    pool: Option<Arc<FakePool>>,
    is_open: bool,
    /// Ids of a source that the encoder is still to read, or has read.
    source: Vec<u32>,
    /// Rows of it that are still to be read, for all forks together.
    pending: Arc<AtomicUsize>,
    live: Arc<AtomicUsize>,
    held: Arc<AtomicUsize>,
    fork_fails: Arc<AtomicBool>,
}

impl FakeSequence {
    fn hash(&self) -> u32 {
        self.hashes.last().copied().unwrap_or(0x9e37_79b9)
    }

    fn append(&mut self, token: u32) {
        let mixed = (self.hash() ^ token).wrapping_mul(0x0100_0193);
        if let Some(pool) = &self.pool {
            let is_new = self.hashes.len().is_multiple_of(16);
            if is_new || self.blocks.last_mut().is_some_and(|last| Arc::get_mut(last).is_none()) {
                self.blocks.truncate(self.hashes.len() / 16);
                self.blocks.push(FakeBlock::new(pool, self.is_open));
            }
        }
        self.hashes.push(mixed ^ (mixed >> 15));
        self.held.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for FakeSequence {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        self.held.fetch_sub(self.hashes.len(), Ordering::SeqCst);
    }
}

impl Sequence for FakeSequence {
    fn len(&self) -> usize {
        self.hashes.len()
    }

    fn pending(&self) -> usize {
        self.pending.load(Ordering::SeqCst)
    }

    fn source(&self) -> &[u32] {
        &self.source
    }

    fn fork(&self) -> Self {
        assert!(!self.fork_fails.swap(false, Ordering::SeqCst), "a fork that was told to fail");
        self.live.fetch_add(1, Ordering::Relaxed);
        // Room to grow, so that the steady loop allocates nothing on the model's account.
        let mut hashes = Vec::with_capacity(self.hashes.len() + 256);
        hashes.extend_from_slice(&self.hashes);
        self.held.fetch_add(hashes.len(), Ordering::SeqCst);
        Self {
            hashes,
            blocks: self.blocks.clone(),
            pool: self.pool.clone(),
            is_open: self.is_open,
            source: self.source.clone(),
            pending: Arc::clone(&self.pending),
            live: Arc::clone(&self.live),
            held: Arc::clone(&self.held),
            fork_fails: Arc::clone(&self.fork_fails),
        }
    }

    fn truncate(&mut self, len: usize) {
        assert!(len <= self.len(), "truncate({len}) of {} positions", self.len());
        self.held.fetch_sub(self.hashes.len() - len, Ordering::SeqCst);
        self.hashes.truncate(len);
        self.blocks.truncate(len.div_ceil(16));
    }

    fn claim(&mut self) {
        self.is_open = false;
    }

    fn release(&mut self, first: usize) -> usize {
        self.is_open = true;
        let released = self.blocks.iter().enumerate().filter(|(_, block)| {
            let was_reserved = !block.is_open.swap(true, Ordering::SeqCst);
            block.pool.open.fetch_add(usize::from(was_reserved), Ordering::SeqCst);
            was_reserved
        });
        released.filter(|&(place, _)| place < first).count()
    }

    fn blocks(&self, out: &mut Vec<usize>) {
        out.extend(self.blocks.iter().map(|block| Arc::as_ptr(block).addr()));
    }

    fn share(&mut self, other: &Self, positions: usize) {
        assert_eq!(self.hashes[..positions], other.hashes[..positions], "sequences that hold the same");
        for place in 0..(positions / 16).min(self.blocks.len()) {
            self.blocks[place] = Arc::clone(&other.blocks[place]);
        }
    }
}

/// What happens at the beginning of a step.
#[derive(Default)]
pub(crate) struct Begins(pub(crate) Option<Box<Beginning>>);

pub(crate) type Beginning = dyn Fn(&Cancel<'_>) -> Result<()> + Send + Sync;

impl std::fmt::Debug for Begins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Begins")
    }
}

/// What one forward was given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Rows that choose their next token from it: segments that want logits and do not end a prompt.
    pub(crate) decodes: usize,
    /// Prompts that end in it.
    pub(crate) prompts: usize,
    /// Tokens of other segments, and of prompts.
    pub(crate) reads: usize,
}

/// See the head of the file.
#[derive(Debug)]
pub(crate) struct FakeModel {
    pub(crate) vocab_size: usize,
    pub(crate) context_limit: Option<usize>,
    pub(crate) usual_length: Option<usize>,
    /// Logits lie in `[-spread, spread)`; a power of two keeps them exact.
    pub(crate) spread: f32,
    /// Sequences that exist.
    pub(crate) live: Arc<AtomicUsize>,
    /// Positions that they hold, and how many they may.
    pub(crate) held: Arc<AtomicUsize>,
    pub(crate) memory: Option<usize>,
    /// Whether the next fork of a sequence panics.
    pub(crate) fork_fails: Arc<AtomicBool>,
    /// Positions of every forward, and rows of sources of every step that read some.
    pub(crate) fed: Mutex<Vec<usize>>,
    pub(crate) encoded: Mutex<Vec<usize>>,
    /// Threads that choose.
    pub(crate) threads: usize,
    /// What happens at the beginning of every step.
    pub(crate) begins: Begins,
    /// What every logit is instead, if anything.
    pub(crate) constant: Option<f32>,
    /// What the logits of a row are instead whose hash is a multiple of the number.
    pub(crate) strange: Option<(u32, f32)>,
    /// Tokens that it chooses at once; how often it has, and one in how many times it does not.
    pub(crate) at_once: usize,
    pub(crate) asked: AtomicUsize,
    pub(crate) declines: Option<usize>,
    /// Positions of the longest sequence that is not long.
    pub(crate) border: Option<usize>,
    /// What requests may use, and what is used by nobody's request.
    pub(crate) limits: Limits,
    pub(crate) open_bytes: usize,
    /// Where blocks are counted.
    pub(crate) pool: Option<Arc<FakePool>>,
    /// An id that is never chosen. Where every prompt ends with it, and only there, steps are noted.
    pub(crate) mark: Option<u32>,
    pub(crate) steps: Mutex<Vec<Step>>,
}

impl FakeModel {
    pub(crate) fn new(vocab_size: usize, spread: f32) -> Self {
        Self {
            vocab_size,
            context_limit: None,
            usual_length: None,
            spread,
            live: Arc::default(),
            held: Arc::default(),
            memory: None,
            fork_fails: Arc::default(),
            fed: Mutex::new(Vec::with_capacity(4096)),
            encoded: Mutex::default(),
            threads: 1,
            begins: Begins::default(),
            constant: None,
            strange: None,
            at_once: 0,
            asked: AtomicUsize::new(0),
            declines: None,
            border: None,
            limits: Limits::default(),
            open_bytes: 0,
            pool: None,
            mark: None,
            steps: Mutex::default(),
        }
    }

    /// A step begins.
    fn step(&self, cancel: &Cancel<'_>) -> Result<()> {
        if let Begins(Some(begins)) = &self.begins {
            begins(cancel)?;
        }
        if cancel.is_set() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// The first of the largest logits; none for a NaN, or nothing above minus infinity.
    fn best(&self, hash: u32) -> Option<u32> {
        let mut best = (None, f32::NEG_INFINITY);
        for token in 0..self.vocab_size as u32 {
            let logit = self.logit(hash, token);
            if logit.is_nan() {
                return None;
            }
            if logit > best.1 {
                best = (Some(token), logit);
            }
        }
        best.0
    }

    /// Refuses memory for so many more positions.
    fn check_memory(&self, more: usize) -> Result<()> {
        if self.memory.is_some_and(|most| self.held.load(Ordering::SeqCst) + more > most) {
            return Err(Error::OutOfMemory { what: "the fake cache".to_owned(), bytes: more });
        }
        Ok(())
    }

    /// One step of [`Decoder::argmax`]: appends each row's token, and leaves the next one there.
    fn argmax_step(
        &self,
        rows: &mut [Argmax<'_, FakeSequence>],
        ids: &mut Vec<u32>,
        cancel: &Cancel<'_>,
    ) -> Result<()> {
        self.step(cancel)?;
        self.check_memory(rows.len())?;
        for Argmax { sequence, token } in &mut *rows {
            sequence.append(*token);
            assert!(self.context_limit.is_none_or(|limit| sequence.len() <= limit), "{}", sequence.len());
            if *token != NO_TOKEN {
                *token = self.best(sequence.hash()).unwrap_or(NO_TOKEN);
            }
            ids.push(*token);
        }
        self.fed.lock().expect("no test panics while it holds the lock").push(rows.len());
        if self.mark.is_some() {
            let step = Step { decodes: rows.len(), prompts: 0, reads: 0 };
            self.steps.lock().expect("no test panics while it holds the lock").push(step);
        }
        Ok(())
    }

    fn logit(&self, hash: u32, token: u32) -> f32 {
        if let Some(constant) = self.constant {
            return constant;
        }
        if let Some((_, strange)) = self.strange.filter(|&(every, _)| hash.is_multiple_of(every)) {
            return strange;
        }
        if self.mark == Some(token) {
            return f32::NEG_INFINITY;
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

    fn context_length(&self) -> ContextLength {
        ContextLength {
            limit: self.context_limit,
            usual: self.usual_length.or(self.context_limit),
            reason: "",
        }
    }

    fn cache_block(&self) -> CacheBlock {
        CacheBlock { positions: 16, bytes: 1024 }
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn open_bytes(&self) -> usize {
        let open = self.pool.as_ref().map_or(0, |pool| pool.open.load(Ordering::SeqCst));
        self.open_bytes.saturating_add(1024 * open)
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn border(&self) -> Option<usize> {
        self.border
    }

    fn argmax_steps(&self) -> usize {
        self.at_once
    }

    fn argmax(
        &self,
        rows: &mut [Argmax<'_, FakeSequence>],
        steps: usize,
        ids: &mut Vec<u32>,
        cancel: &Cancel<'_>,
    ) -> Result<Option<()>> {
        assert!((1..=self.at_once).contains(&steps) && !rows.is_empty(), "{steps} steps of {rows:?}");
        let asked = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        if self.declines.is_some_and(|every| asked.is_multiple_of(every)) {
            return Ok(None);
        }
        for row in &*rows {
            let (len, border) = (row.sequence.len(), self.border.unwrap_or(usize::MAX));
            assert_eq!(row.sequence.pending(), 0, "a row whose source was not read");
            assert!(len > border || len + steps <= border, "{len} positions and {steps} cross {border}");
        }
        ids.clear();
        for done in 0..steps {
            if let Err(error) = self.argmax_step(rows, ids, cancel) {
                rows.iter_mut().for_each(|row| row.sequence.truncate(row.sequence.len() - done));
                return Err(error);
            }
        }
        Ok(Some(()))
    }

    fn start(&self, source: Option<&[u32]>) -> Result<FakeSequence> {
        self.live.fetch_add(1, Ordering::Relaxed);
        let source = source.unwrap_or_default().to_vec();
        Ok(FakeSequence {
            hashes: Vec::with_capacity(2048),
            blocks: Vec::new(),
            pool: self.pool.clone(),
            is_open: false,
            pending: Arc::new(AtomicUsize::new(source.len())),
            source,
            live: Arc::clone(&self.live),
            held: Arc::clone(&self.held),
            fork_fails: Arc::clone(&self.fork_fails),
        })
    }

    fn encode(&self, sequences: &mut [&mut FakeSequence], cancel: &Cancel<'_>) -> Result<()> {
        assert!(!sequences.is_empty(), "a step without sources");
        self.step(cancel)?;
        let rows = sequences.iter_mut().map(|sequence| sequence.pending.swap(0, Ordering::SeqCst)).sum();
        self.encoded.lock().expect("no test panics while it holds the lock").push(rows);
        Ok(())
    }

    fn forward(
        &self,
        batch: &mut [Segment<'_, FakeSequence>],
        logits: &mut Vec<f32>,
        cancel: &Cancel<'_>,
    ) -> Result<()> {
        assert!(!batch.is_empty(), "a step without segments");
        self.step(cancel)?;
        let more: usize = batch.iter().map(|segment| segment.input.rows(1)).sum();
        self.check_memory(more)?;
        logits.clear();
        let (mut positions, mut step) = (0, Step::default());
        for segment in batch {
            let Input::Tokens(tokens) = segment.input else { panic!("embeddings in a request") };
            assert!(!tokens.is_empty(), "a segment without rows");
            assert_eq!(segment.sequence.pending(), 0, "a segment whose source was not read");
            positions += tokens.len();
            match (segment.logits != Wanted::Nothing, tokens.last().copied() == self.mark) {
                (true, false) => step.decodes += 1,
                (true, true) => (step.prompts, step.reads) = (step.prompts + 1, step.reads + tokens.len()),
                (false, _) => step.reads += tokens.len(),
            }
            for (place, &token) in tokens.iter().enumerate() {
                segment.sequence.append(token);
                if place + segment.logits.count(tokens.len()) >= tokens.len() {
                    let hash = segment.sequence.hash();
                    logits.extend((0..self.vocab_size as u32).map(|token| self.logit(hash, token)));
                }
            }
            if let Some(limit) = self.context_limit {
                assert!(segment.sequence.len() <= limit, "{} positions of {limit}", segment.sequence.len());
            }
        }
        self.fed.lock().expect("no test panics while it holds the lock").push(positions);
        if self.mark.is_some() {
            self.steps.lock().expect("no test panics while it holds the lock").push(step);
        }
        Ok(())
    }
}
