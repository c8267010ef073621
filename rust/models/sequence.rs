//! What a decoder sequence of any model holds: its own cache and, where the model has an encoder, the source it looks at.
//!
//! An encoder's output is what a decoder needs of one source: cross-attention keys and values of every layer, computed once.
//! Sequences, forks and beams share it by reference.

use std::sync::Arc;

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

/// What a decoder sequence looks at beside itself.
#[derive(Debug, Clone, Default)]
pub enum Source {
    /// Nothing: a decoder without an encoder.
    #[default]
    None,
    /// Ids that the sequence's first forward encodes.
    Ids(Arc<[u32]>),
    /// A source that has been encoded.
    Encoded(Arc<EncoderOutput>),
}

/// A run of cached positions, and what they look at beside each other.
#[derive(Debug)]
pub struct DecoderSequence {
    /// Keys and values of the positions.
    pub cache: kv::Sequence,
    /// The source, in a model with an encoder.
    pub source: Source,
}

impl DecoderSequence {
    /// The encoded source, if there is one.
    pub fn encoder_output(&self) -> Option<&Arc<EncoderOutput>> {
        match &self.source {
            Source::Encoded(output) => Some(output),
            Source::None | Source::Ids(_) => None,
        }
    }
}

impl Sequence for DecoderSequence {
    fn len(&self) -> usize {
        self.cache.len()
    }

    fn pending(&self) -> usize {
        match &self.source {
            Source::Ids(ids) => ids.len(),
            Source::None | Source::Encoded(_) => 0,
        }
    }

    fn fork(&self) -> Self {
        Self { cache: self.cache.fork(), source: self.source.clone() }
    }

    fn truncate(&mut self, len: usize) {
        self.cache.truncate(len);
    }
}
