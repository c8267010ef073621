//! The decoder: new tokens of a ragged batch of sequences, each looking at its own past and at its source's memory.

use std::sync::atomic::AtomicBool;

use super::T5;
use super::stack::{Between, Buffers, Layer, Place, Views};
use super::weights::Block;
use crate::error::Result;
use crate::layers::attention::{Keys, Look};
use crate::layers::embedding;
use crate::layers::{Buffer, Rows};
use crate::models::step::{Out, Plan, Trace};
use crate::team::{self, Member, Stop};

/// Logits that a state keeps room for, in floats; more is given back after the step.
const KEEP_LOGITS: usize = 1 << 20;

/// Activations of one step at a time, reused.
#[derive(Debug, Default)]
pub(super) struct State {
    buffers: Buffers,
    logits: Buffer,
}

/// One step's views of a state.
struct Step<'a> {
    plan: &'a Plan<'a>,
    views: Views<'a>,
    /// `W × V`.
    logits: Rows<'a>,
    /// Where the logits go.
    out: Out,
}

impl T5 {
    /// The steps of a plan whose sequences all have a memory.
    pub(super) fn decode(
        &self,
        plan: &Plan<'_>,
        out: &mut [f32],
        cancel: &AtomicBool,
        trace: Option<&Trace>,
    ) -> Result<()> {
        let mut state = self.decoder_states.take();
        let step = Step {
            plan,
            views: state.buffers.views(&self.config, &self.runtime, plan.rows)?,
            logits: state.logits.rows(plan.wanted.len(), self.config.vocab_size)?,
            out: Out::new(out),
        };
        let result =
            team::run(self.runtime.threads, cancel, |member| self.decode_member(member, &step, trace));
        state.logits.shrink(KEEP_LOGITS);
        self.decoder_states.put(state);
        result
    }

    /// What every member of the team does in a step.
    fn decode_member(&self, member: &Member<'_>, s: &Step<'_>, trace: Option<&Trace>) -> Result<(), Stop> {
        let (w, head, [mut x, mut y]) = (&self.weights.decoder, &self.weights.lm_head, s.views.x);
        let place = Place::new(member, &self.runtime, s.views, &self.config, trace);
        embedding::forward(&place.ctx, &w.embed_tokens, &[], &s.plan.sources, x); // (M, D)
        member.barrier()?;
        place.show(format_args!("decoder.embed_tokens"), x)?;
        for (i, block) in w.block.iter().enumerate() {
            self.decode_block(&place, s, i, block, [x, y])?;
            // Three sublayers lead from one residual to the other.
            (x, y) = (y, x);
        }
        // Members agree on the barrier here because all see the same number of wanted rows.
        w.final_layer_norm.gather(&place.ctx, x, &s.plan.wanted, s.views.normed); // (W, D)
        member.barrier()?;
        let last = s.views.normed.first(s.plan.wanted.len());
        place.show(format_args!("decoder.final_layer_norm"), last)?;
        s.out.logits(&place.ctx, head, last, s.logits)?; // (W, V)
        member.barrier()?;
        place.show(format_args!("lm_head"), s.logits)
    }

    /// One block, from `x` to `y`.
    fn decode_block(
        &self,
        place: &Place<'_>,
        s: &Step<'_>,
        i: usize,
        w: &Block,
        [x, y]: Between<'_>,
    ) -> Result<(), Stop> {
        let name = |layer| Layer { stack: "decoder", block: i, layer };
        let own = Keys { shape: self.pool.shape(), layer: i, batch: &s.plan.batch };
        let look = Look { causal: true, bias: Some(self.weights.decoder.bias(i)) };
        place.self_attention(&w.self_attention, own, look, [x, y], name(0))?;
        if let Some(cross) = &w.cross_attention {
            let memories = Keys { batch: &s.plan.memories, ..own };
            place.cross_attention(cross, memories, [y, x], name(1))?;
        }
        place.feed_forward(&w.feed_forward, [x, y], name(2))
    }
}
