//! The choice of one row's next token: processors, warpers, draw.

use crate::decode::logprobs::{TokenLogprobs, token_logprobs};
use crate::decode::processors::{Context, Processors};
use crate::decode::sampler::{Unusable, draw, greedy};
use crate::decode::scratch::Scratch;
use crate::decode::stopping::Stopping;
use crate::decode::torch_rng::TorchRng;
use crate::decode::warpers::Warpers;
use crate::engine::options::Options;

/// Everything between logits and a token; several threads may choose with one, each with its own scratch.
#[derive(Debug)]
pub(crate) struct Selector {
    processors: Processors,
    warpers: Warpers,
    stopping: Stopping,
    logprobs: Option<usize>,
}

impl Selector {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            processors: Processors::new(options.processors()),
            warpers: Warpers::new(options.warpers(), 1),
            stopping: Stopping::new(&options.eos_token_ids, &options.stop_token_ids),
            logprobs: options.logprobs,
        }
    }

    /// When rows end.
    pub(crate) fn stopping(&self) -> &Stopping {
        &self.stopping
    }

    /// Whether the best token of the raw logits is all that is wanted of them, where nothing is drawn.
    pub(crate) fn takes_the_best(&self) -> bool {
        self.processors.is_empty() && self.logprobs.is_none()
    }

    /// The next token, drawn where there is a stream and the best one otherwise. `scores` are raw logits and are spoilt.
    pub(crate) fn choose(
        &self,
        context: &Context<'_>,
        scores: &mut [f32],
        stream: Option<&mut TorchRng>,
        scratch: &mut Scratch,
    ) -> Result<(u32, Option<TokenLogprobs>), Unusable> {
        // The choice spoils the scores, and what is asked of the raw ones depends on the choice.
        if self.logprobs.is_some() {
            scratch.raw.clear();
            scratch.raw.extend_from_slice(scores);
        }
        if !self.processors.is_empty() {
            self.processors.apply(context, scores, scratch);
        }
        let token = match stream {
            None => greedy(scratch.scans, scores)?,
            Some(rng) => {
                self.warpers.apply(scores, scratch)?;
                let Scratch { scans, candidates, probabilities, .. } = scratch;
                let place = draw(scans, rng, candidates, scores.len(), probabilities)?;
                candidates[place].0
            }
        };
        let Some(count) = self.logprobs else { return Ok((token, None)) };
        let raw = std::mem::take(&mut scratch.raw);
        let logprobs = token_logprobs(&raw, token, count, scratch);
        scratch.raw = raw;
        Ok((token, Some(logprobs?)))
    }
}
