//! T5 (Raffel et al. 2020) and its relatives T5 1.1, Flan-T5, mT5 and UMT5: an encoder, and a decoder that looks at it. Norms
//! by root mean square before every sublayer, no biases, positions as an addend of the scores by distance.

pub mod config;
mod decoder;
mod encoder;
mod stack;
pub mod weights;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::load::Loader;
use super::memory::{Cached, Memory, Source};
use super::step::{Spare, Trace};
use super::{Architecture, Encoder, Segment, no_source};
use crate::checkpoint::config::ConfigFile;
use crate::error::Result;
use crate::kv::{Pool, Shape};
use crate::layers::Runtime;
use crate::packed::{Packed, Storage};
use config::Config;
use weights::Weights;

/// A loaded model of the T5 family.
#[derive(Debug)]
pub struct T5 {
    /// Sizes and switches.
    pub config: Config,
    /// Weights, shared and never written.
    pub weights: Weights,
    /// Kernels and threads.
    pub runtime: Runtime,
    /// Blocks of the decoder's caches and of memories: both hold keys and values of every decoder layer.
    pub pool: Arc<Pool>,
    /// Blocks of one encoder layer's keys and values.
    encoder_pool: Arc<Pool>,
    encoder_states: Spare<encoder::State>,
    decoder_states: Spare<decoder::State>,
}

impl T5 {
    /// Loads a model; returns the bytes of its matrices, too.
    ///
    /// # Errors
    /// Those of its config and of its weights.
    pub fn load(
        model_type: &str,
        file: &mut ConfigFile,
        loader: &mut Loader<'_>,
        runtime: Runtime,
    ) -> Result<(Self, usize)> {
        let config = Config::read(model_type, file)?;
        let (weights, bytes) = Weights::load(loader, &config)?;
        let shape = Shape {
            layers: config.num_decoder_layers,
            heads: config.num_heads,
            head_dim: config.d_kv,
            bf16: runtime.bf16,
        };
        let model = Self {
            config,
            weights,
            runtime,
            pool: Pool::new(shape),
            encoder_pool: Pool::new(Shape { layers: 1, ..shape }),
            encoder_states: Spare::default(),
            decoder_states: Spare::default(),
        };
        Ok((model, bytes))
    }

    /// Encodes the sources that sequences of the batch still have as ids.
    fn encode_pending(&self, batch: &mut [Segment<'_, Cached>], cancel: &AtomicBool) -> Result<()> {
        let pending: Vec<Arc<[u32]>> = batch
            .iter()
            .filter_map(|s| match &s.sequence.source {
                Source::Ids(ids) => Some(Arc::clone(ids)),
                Source::None | Source::Memory(_) => None,
            })
            .collect();
        if pending.is_empty() {
            return Ok(());
        }
        let sources: Vec<&[u32]> = pending.iter().map(|ids| &**ids).collect();
        let mut memories = self.encode_sources(&sources, cancel, None)?.into_iter();
        for segment in batch {
            if matches!(segment.sequence.source, Source::Ids(_))
                && let Some(memory) = memories.next()
            {
                segment.sequence.source = Source::Memory(memory);
            }
        }
        Ok(())
    }
}

impl Architecture for T5 {
    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn width(&self) -> usize {
        self.config.d_model
    }

    fn context_limit(&self) -> Option<usize> {
        None
    }

    fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    fn storages(&self) -> Vec<Storage> {
        self.weights.storages().collect()
    }

    fn step_bytes(&self) -> usize {
        self.weights.decoder_linears().map(|l| l.weight().bytes()).sum()
    }

    fn embedding(&self) -> &Packed {
        &self.weights.decoder.embed_tokens
    }

    fn forward(
        &self,
        batch: &mut [Segment<'_, Cached>],
        logits: &mut Vec<f32>,
        cancel: &AtomicBool,
        trace: Option<&Trace>,
    ) -> Result<()> {
        if batch.iter().any(|s| matches!(s.sequence.source, Source::None)) {
            return Err(no_source());
        }
        self.encode_pending(batch, cancel)?;
        let (width, vocab) = (self.config.d_model, self.config.vocab_size);
        super::step::run(batch, width, vocab, None, logits, |plan, out| self.decode(plan, out, cancel, trace))
    }

    fn encoder(&self) -> Option<&dyn Encoder> {
        Some(self)
    }
}

impl Encoder for T5 {
    fn source_token_bytes(&self) -> usize {
        let (c, inner) = (&self.config, self.config.inner_dim());
        let floats = 5 * c.d_model + 4 * inner + (1 + usize::from(c.is_gated_act)) * c.d_ff;
        let blocks = self.encoder_pool.shape().block_bytes() + self.pool.shape().block_bytes();
        floats * size_of::<f32>() + blocks / crate::kernels::BLOCK
    }

    fn encode(
        &self,
        sources: &[&[u32]],
        cancel: &AtomicBool,
        trace: Option<&Trace>,
    ) -> Result<Vec<Arc<Memory>>> {
        self.encode_sources(sources, cancel, trace)
    }
}
