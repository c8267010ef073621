//! A loaded model as the engine knows it: the decoder's contract.

use super::Model;
use super::decoder::{Argmax, Asked, CacheBlock, ContextLength, Decoder, Limits, Scored, Segment};
use super::encoder_decoder::no_decoder;
use super::profile::Choosing;
use super::sequence::{DecoderSequence, Source};
use super::step::{self, Left};
use crate::error::Result;
use crate::kernels::BLOCK;
use crate::team::Cancel;

/// Tokens that a device chooses before it is asked again: enough that the host's part between two questions counts little, few enough
/// that a stream flows.
const DEVICE_STEPS: usize = 8;

impl Decoder for Model {
    type Sequence = DecoderSequence;

    fn vocab_size(&self) -> usize {
        self.bounds.vocab
    }

    fn context_length(&self) -> ContextLength {
        self.bounds.context
    }

    fn cache_block(&self) -> CacheBlock {
        CacheBlock { positions: BLOCK, bytes: self.pool.shape().block_bytes() }
    }

    fn open_bytes(&self) -> usize {
        self.pool.open_bytes() + self.source_pool.open_bytes()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn threads(&self) -> usize {
        self.runtime.threads
    }

    fn start(&self, source: Option<&[u32]>) -> Result<DecoderSequence> {
        self.start_reserved(source.map_or(Source::None, |ids| Source::pending(ids.to_vec())))
    }

    fn encode(&self, sequences: &mut [&mut DecoderSequence], cancel: &Cancel<'_>) -> Result<()> {
        self.encoder()?.encode_pending(sequences, cancel)
    }

    fn forward(
        &self,
        batch: &mut [Segment<'_, DecoderSequence>],
        logits: &mut Vec<f32>,
        cancel: &Cancel<'_>,
    ) -> Result<()> {
        self.step(batch, Left::Logits(logits), cancel, None)
    }

    fn argmax_steps(&self) -> usize {
        if self.device.is_some() { DEVICE_STEPS } else { 0 }
    }

    fn argmax(
        &self,
        rows: &mut [Argmax<'_, DecoderSequence>],
        steps: usize,
        ids: &mut Vec<u32>,
        cancel: &Cancel<'_>,
    ) -> Result<Option<()>> {
        let decoder = self.network.decoder().ok_or_else(no_decoder)?;
        if self.has_encoder() {
            let mut sequences: Vec<_> = rows.iter_mut().map(|row| &mut *row.sequence).collect();
            Decoder::encode(self, &mut sequences, cancel)?;
        }
        let done = step::argmax(self.decoder(decoder), self.bounds, rows, steps, ids, cancel)?;
        Ok(done.then_some(()))
    }

    fn border(&self) -> Option<usize> {
        self.bounds.border
    }

    fn choosing(&self) -> Option<Choosing<'_>> {
        self.profile.choosing()
    }

    fn score(
        &self,
        batch: &mut [Segment<'_, DecoderSequence>],
        asked: &[Asked],
        scored: &mut Vec<Scored>,
        cancel: &Cancel<'_>,
    ) -> Result<()> {
        self.step(batch, Left::Scores(asked, scored), cancel, None)
    }
}
