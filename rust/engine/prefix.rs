//! What has been read once: ids, and a sequence that holds them. Prompts that go along with the ids begin behind those.
//!
//! A caller's handle, what a reader keeps of its call, and an entry of the cache of prefixes are all this. A prompt's sequence is a
//! fork that is cut to what the two have in common, so that every bit is that of a prompt read from its first token.

use std::sync::Arc;

use crate::models::Sequence;

/// Ids, and a sequence that holds them. No request answers for its blocks.
#[derive(Debug)]
pub struct Prefix<S> {
    ids: Arc<[u32]>,
    sequence: S,
}

impl<S: Sequence> Prefix<S> {
    /// The first of `ids`, as far as `sequence` holds them.
    pub fn new(ids: &[u32], mut sequence: S) -> Self {
        let held = sequence.len().min(ids.len());
        if held < sequence.len() {
            sequence.truncate(held);
        }
        sequence.release(0);
        Self { ids: ids[..held].into(), sequence }
    }

    /// The ids.
    pub fn ids(&self) -> &Arc<[u32]> {
        &self.ids
    }

    /// What holds them.
    pub(super) fn sequence(&self) -> &S {
        &self.sequence
    }

    pub(super) fn sequence_mut(&mut self) -> &mut S {
        &mut self.sequence
    }

    /// A second one, which shares its blocks.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { ids: Arc::clone(&self.ids), sequence: self.sequence.fork() }
    }

    /// Forgets all but the first `len` ids.
    pub(super) fn truncate(&mut self, len: usize) {
        if len < self.ids.len() {
            self.sequence.truncate(len);
            self.ids = self.ids[..len].into();
        }
    }

    /// How many of a prompt's first ids need not be read again. Its last one always is: its logits are wanted.
    pub fn reusable(&self, prompt: &[u32]) -> usize {
        self.spares(&prompt[..prompt.len().saturating_sub(1)], prompt.len())
    }

    /// How many of the first ids of a sequence, which will have `len` positions, need not be read again.
    pub fn spares(&self, ids: &[u32], len: usize) -> usize {
        common(&self.ids, ids).min(self.sequence.reusable(len))
    }

    /// A sequence for a prompt behind its first `len` ids, on the account of whoever holds the prefix.
    pub fn begin(&self, len: usize) -> S {
        let mut sequence = self.sequence.fork();
        sequence.truncate(len);
        sequence
    }
}

/// How many ids two lists have in common at their beginnings.
pub(super) fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}
