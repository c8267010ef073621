//! The encoder: sources of any lengths side by side, without padding, and the memories that decoders look at.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::T5;
use super::stack::{Buffers, Layer, Place, Views};
use crate::error::{Error, Result};
use crate::kv::{Pool, Sequence};
use crate::layers::attention::{Batch, Keys, KeysValues, Look, Span};
use crate::layers::embedding::{self, Input, Source};
use crate::layers::linear::Then;
use crate::layers::{Buffer, Rows};
use crate::models::memory::Memory;
use crate::models::step::Trace;
use crate::team::{self, Member, Stop};

/// Rows of a step past which its buffers are given back.
const KEEP_ROWS: usize = 1024;

/// Activations of one encoding at a time, reused.
#[derive(Debug, Default)]
pub(super) struct State {
    buffers: Buffers,
    hidden: Buffer,
}

/// One encoding's views of a state.
struct Step<'a> {
    sources: Vec<Source<'a>>,
    /// Every row, for the last norm.
    rows: Vec<usize>,
    /// Keys and values of the layer at hand.
    own: Batch,
    /// Cross-attention keys and values of every decoder layer.
    memories: Batch,
    views: Views<'a>,
    /// `M × D`.
    hidden: Rows<'a>,
}

/// Blocks of a sequence per source, reserved, and where they are.
fn reserve(pool: &Arc<Pool>, sources: &[&[u32]]) -> Result<(Vec<Sequence>, Batch)> {
    let (mut sequences, mut batch, mut row) = (Vec::with_capacity(sources.len()), Batch::default(), 0);
    for ids in sources {
        let mut sequence = Sequence::new(pool);
        sequence.reserve(ids.len())?;
        let (rows, keys) = (ids.len(), ids.len());
        batch.spans.push(Span { row, rows, position: 0, keys, block: batch.blocks.len() });
        sequence.pointers(&mut batch.blocks);
        sequences.push(sequence);
        row += rows;
    }
    Ok((sequences, batch))
}

impl T5 {
    /// Encodes sources in one step; see [`super::super::Encoder`].
    pub(super) fn encode_sources(
        &self,
        sources: &[&[u32]],
        cancel: &AtomicBool,
        trace: Option<&Trace>,
    ) -> Result<Vec<Arc<Memory>>> {
        let rows = sources.iter().map(|ids| ids.len()).sum();
        let mut state = self.encoder_states.take();
        // The largest pieces of memory first: what comes after them is small.
        let views = state.buffers.views(&self.config, &self.runtime, rows)?;
        let hidden = state.hidden.rows(rows, self.config.d_model)?;
        let (_blocks, own) = reserve(&self.encoder_pool, sources)?;
        let (memories, memory_batch) = reserve(&self.pool, sources)?;
        let spans: Vec<Span> = own.spans.clone();
        let step = Step {
            sources: std::iter::zip(sources, &spans)
                .map(|(ids, span)| Source { row: span.row, position: 0, input: Input::Tokens(ids) })
                .collect(),
            rows: (0..rows).collect(),
            own,
            memories: memory_batch,
            views,
            hidden,
        };
        team::run(self.runtime.threads, cancel, |member| self.encode_member(member, &step, trace))?;
        let found = std::iter::zip(sources, memories)
            .zip(&spans)
            .map(|((ids, keys_values), span)| memory(ids, keys_values, span, step.hidden))
            .collect();
        if rows <= KEEP_ROWS {
            self.encoder_states.put(state);
        }
        found
    }

    /// What every member of the team does in an encoding.
    fn encode_member(&self, member: &Member<'_>, s: &Step<'_>, trace: Option<&Trace>) -> Result<(), Stop> {
        let (w, [x, y]) = (&self.weights.encoder, s.views.x);
        let place = Place::new(member, &self.runtime, s.views, &self.config, trace);
        embedding::forward(&place.ctx, &w.embed_tokens, &[], &s.sources, x); // (M, D)
        member.barrier()?;
        place.show(format_args!("encoder.embed_tokens"), x)?;
        for (i, block) in w.block.iter().enumerate() {
            let name = |layer| Layer { stack: "encoder", block: i, layer };
            let keys = Keys { shape: self.encoder_pool.shape(), layer: 0, batch: &s.own };
            let look = Look { causal: false, bias: Some(w.bias(i)) };
            place.self_attention(&block.self_attention, keys, look, [x, y], name(0))?;
            place.feed_forward(&block.feed_forward, [y, x], name(1))?;
        }
        w.final_layer_norm.gather(&place.ctx, x, &s.rows, s.hidden); // (M, D)
        member.barrier()?;
        place.show(format_args!("encoder.final_layer_norm"), s.hidden)?;
        self.remember(&place, s)
    }

    /// Keys and values of every decoder layer's cross-attention.
    fn remember(&self, place: &Place<'_>, s: &Step<'_>) -> Result<(), Stop> {
        let (ctx, [_, k, v]) = (&place.ctx, s.views.qkv);
        let mut x = None;
        for (i, block) in self.weights.decoder.block.iter().enumerate() {
            let Some(w) = &block.cross_attention else { continue };
            let keys = match x {
                None => w.k.prepare(ctx, s.hidden)?,
                Some(values) => w.k.prepare_again(ctx, values)?,
            };
            w.k.forward(ctx, keys, k, Then::NOTHING); // (M, I)
            let values = w.v.prepare_again(ctx, keys)?;
            w.v.forward(ctx, values, v, Then::NOTHING); // (M, I)
            x = Some(values);
            ctx.member.barrier()?;
            let memories = Keys { shape: self.pool.shape(), layer: i, batch: &s.memories };
            w.heads.append(ctx, memories, KeysValues { keys: (k, 0), values: (v, 0) });
            ctx.member.barrier()?;
        }
        Ok(())
    }
}

/// What is kept of one source.
fn memory(ids: &[u32], mut keys_values: Sequence, span: &Span, hidden: Rows<'_>) -> Result<Arc<Memory>> {
    let floats = ids.len() * hidden.width();
    let mut values = Vec::new();
    values.try_reserve_exact(floats).map_err(|_| Error::OutOfMemory {
        what: "hidden states".to_owned(),
        bytes: floats * size_of::<f32>(),
    })?;
    for row in span.row..span.row + span.rows {
        // SAFETY: the step is over, and nobody writes any more.
        values.extend_from_slice(unsafe { hidden.row(row) });
    }
    keys_values.advance(ids.len());
    Ok(Arc::new(Memory { source_ids: ids.to_vec(), hidden: values, keys_values }))
}
