//! What a decoder sequence of any model holds: its own cache and, where the model has an encoder, the source it looks at.
//!
//! An encoder's output is what a decoder needs of one source: cross-attention keys and values of every layer, computed once.
//! Sequences, forks and beams share it by reference.

use std::sync::{Arc, OnceLock};

use super::decoder::Sequence;
use crate::kv;

/// One encoded source; immutable.
#[derive(Debug)]
pub struct EncoderOutput {
    /// Ids that went into the encoder.
    pub source_ids: Vec<u32>,
    /// Last hidden states of the encoder, `S × D` row-major, where they were asked for.
    pub hidden: Option<Vec<f32>>,
    /// Cross-attention keys and values of every decoder layer, a position per source id.
    pub keys_values: kv::Sequence,
}

/// A source that is to be encoded by the first forward that needs it, for all sequences that share it.
#[derive(Debug)]
pub struct PendingSource {
    pub(super) ids: Vec<u32>,
    pub(super) output: OnceLock<Arc<EncoderOutput>>,
}

/// What a decoder sequence looks at beside itself.
#[derive(Debug, Clone, Default)]
pub enum Source {
    /// Nothing: a decoder without an encoder.
    #[default]
    None,
    /// Ids that a first forward encodes.
    Pending(Arc<PendingSource>),
    /// A source that has been encoded.
    Encoded(Arc<EncoderOutput>),
}

impl Source {
    /// Ids that are to be encoded; clones share the outcome.
    pub fn pending(ids: Vec<u32>) -> Self {
        Self::Pending(Arc::new(PendingSource { ids, output: OnceLock::new() }))
    }
}

/// A run of cached positions, and what they look at beside each other.
#[derive(Debug)]
pub struct DecoderSequence {
    /// Keys and values of the positions.
    pub cache: kv::Sequence,
    /// The source, in a model with an encoder.
    pub source: Source,
    /// Where positions count otherwise in long sequences: what the sequence holds, of which the cache may lack a part or all.
    pub(super) read: Option<Read>,
}

/// What a sequence holds whose cache depends on its length: when it crosses a border, in either direction, its keys are wrong, and
/// are made anew from its tokens.
#[derive(Debug, Clone)]
pub(super) struct Read {
    /// Positions of the longest sequence that is not long.
    pub(super) border: usize,
    /// Its tokens; embeddings that were appended have none, and cannot be read again.
    pub(super) ids: Vec<Option<u32>>,
    /// Whether the keys in the cache are those of a long sequence.
    pub(super) is_long: bool,
    /// Positions that it will have at least, while a prompt is read.
    pub(super) expected: usize,
}

impl Read {
    pub(super) fn new(border: usize) -> Self {
        Self { border, ids: Vec::new(), is_long: false, expected: 0 }
    }
}

impl DecoderSequence {
    /// The encoded source, if there is one.
    pub fn encoder_output(&self) -> Option<&Arc<EncoderOutput>> {
        match &self.source {
            Source::Encoded(output) => Some(output),
            Source::None | Source::Pending(_) => None,
        }
    }
}

impl Sequence for DecoderSequence {
    fn len(&self) -> usize {
        self.read.as_ref().map_or(self.cache.len(), |read| read.ids.len())
    }

    fn expect(&mut self, len: usize) {
        if let Some(read) = &mut self.read {
            read.expected = len;
        }
    }

    fn pending(&self) -> usize {
        match &self.source {
            Source::Pending(source) if source.output.get().is_none() => source.ids.len(),
            Source::None | Source::Pending(_) | Source::Encoded(_) => 0,
        }
    }

    fn source(&self) -> &[u32] {
        match &self.source {
            Source::None => &[],
            Source::Pending(source) => &source.ids,
            Source::Encoded(output) => &output.source_ids,
        }
    }

    fn reusable(&self, len: usize) -> usize {
        match &self.read {
            Some(read) if (len > read.border) != read.is_long => 0,
            Some(_) | None => self.cache.len(),
        }
    }

    fn claim(&mut self) {
        self.cache.claim();
    }

    fn release(&mut self, first: usize) -> usize {
        self.cache.release(first)
    }

    fn blocks(&self, out: &mut Vec<usize>) {
        self.cache.blocks(out);
    }

    fn share(&mut self, other: &Self, positions: usize) {
        let is_long = |sequence: &Self| sequence.read.as_ref().is_some_and(|read| read.is_long);
        if is_long(self) == is_long(other) {
            self.cache.share(&other.cache, positions);
        }
    }

    fn fork(&self) -> Self {
        Self { cache: self.cache.fork(), source: self.source.clone(), read: self.read.clone() }
    }

    fn truncate(&mut self, len: usize) {
        if let Some(read) = &mut self.read {
            read.ids.truncate(len);
            read.expected = 0;
        }
        self.cache.truncate(len.min(self.cache.len()));
    }
}
