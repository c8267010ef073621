//! The choice of one row's next token: processors, warpers, draw; and which random stream serves which row.

use std::hash::{BuildHasher, Hasher};

use crate::decode::logprobs::{TokenLogprobs, token_logprobs};
use crate::decode::processors::{Context, Processors};
use crate::decode::sampler::{Unusable, draw, greedy};
use crate::decode::scratch::Scratch;
use crate::decode::stopping::Stopping;
use crate::decode::torch_rng::TorchRng;
use crate::decode::warpers::Warpers;
use crate::engine::options::{Options, Seed};

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

/// The random streams of a request.
#[derive(Debug)]
pub(crate) struct Draws {
    /// One for all prompts, one per prompt, or none without sampling.
    streams: Vec<TorchRng>,
}

impl Draws {
    pub(crate) fn new(options: &Options, prompts: usize) -> Self {
        let streams = match &options.seed {
            _ if !options.do_sample => Vec::new(),
            Seed::Entropy => vec![TorchRng::from_seed(entropy())],
            Seed::One(seed) => vec![TorchRng::from_seed(*seed)],
            Seed::PerPrompt(seeds) => seeds.iter().map(|&seed| TorchRng::from_seed(seed)).collect(),
        };
        debug_assert!(streams.len() <= 1 || streams.len() == prompts, "one stream per prompt");
        Self { streams }
    }

    /// The stream that serves a prompt's rows.
    pub(crate) fn stream(&mut self, prompt: usize) -> Option<&mut TorchRng> {
        if self.streams.len() > 1 { self.streams.get_mut(prompt) } else { self.streams.first_mut() }
    }

    /// What is done takes its numbers too: torch draws for every row of the batch at once.
    pub(crate) fn skip(&mut self, prompt: usize, count: usize) {
        if let Some(stream) = self.stream(prompt) {
            stream.skip_exponentials(count as u64);
        }
    }
}

/// A number that the operating system made up (the standard library's keys for hash maps come from it).
fn entropy() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}
