//! What a decoder sequence of any model holds: its own cache and, where the model has an encoder, the source it looks at.
//!
//! A memory is what a decoder needs of one source: cross-attention keys and values of every layer, computed once. Sequences,
//! forks and beams share it by reference.

use std::sync::Arc;

use super::Sequence;
use crate::kv;

/// One encoded source; immutable.
#[derive(Debug)]
pub struct Memory {
    /// Ids that went into the encoder.
    pub source_ids: Vec<u32>,
    /// Last hidden states of the encoder, `S × D` row-major.
    pub hidden: Vec<f32>,
    /// Cross-attention keys and values of every decoder layer, a position per source id.
    pub keys_values: kv::Sequence,
}

/// What a decoder sequence looks at beside itself.
#[derive(Debug, Clone, Default)]
pub enum Source {
    /// Nothing: a decoder without an encoder.
    #[default]
    None,
    /// Ids that the sequence's first forward encodes.
    Ids(Arc<[u32]>),
    /// A source that has been encoded.
    Memory(Arc<Memory>),
}

/// A run of cached positions, and what they look at beside each other.
#[derive(Debug)]
pub struct Cached {
    /// Keys and values of the positions.
    pub cache: kv::Sequence,
    /// The source, in a model with an encoder.
    pub source: Source,
}

impl Cached {
    /// The encoded source, if there is one.
    pub fn memory(&self) -> Option<&Arc<Memory>> {
        match &self.source {
            Source::Memory(memory) => Some(memory),
            Source::None | Source::Ids(_) => None,
        }
    }
}

impl Sequence for Cached {
    fn len(&self) -> usize {
        self.cache.len()
    }

    fn pending(&self) -> usize {
        match &self.source {
            Source::Ids(ids) => ids.len(),
            Source::None | Source::Memory(_) => 0,
        }
    }

    fn fork(&self) -> Self {
        Self { cache: self.cache.fork(), source: self.source.clone() }
    }

    fn truncate(&mut self, len: usize) {
        self.cache.truncate(len);
    }
}
