//! The choice of one row's next token: processors, warpers, draw; and which random stream serves which row.

use std::hash::{BuildHasher, Hasher};

use crate::decode::logprobs::{TokenLogprobs, token_logprobs};
use crate::decode::processors::{Context, Processors};
use crate::decode::sampler::{Best, Candidate, Unusable, draw, greedy};
use crate::decode::stopping::Stopping;
use crate::decode::torch_rng::TorchRng;
use crate::decode::warpers::Warpers;
use crate::engine::options::{Options, Seed};

/// Everything between logits and a token.
#[derive(Debug)]
pub(crate) struct Selector {
    processors: Processors,
    warpers: Warpers,
    stopping: Stopping,
    logprobs: Option<usize>,
    candidates: Vec<Candidate>,
    probabilities: Vec<f32>,
    best: Best,
}

impl Selector {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            processors: Processors::new(options.processors()),
            warpers: Warpers::new(options.warpers(), 1),
            stopping: Stopping::new(&options.eos_token_ids, &options.stop_token_ids),
            logprobs: options.logprobs,
            candidates: Vec::new(),
            probabilities: Vec::new(),
            best: Vec::new(),
        }
    }

    /// When rows end.
    pub(crate) fn stopping(&self) -> &Stopping {
        &self.stopping
    }

    /// The next token, drawn where there is a stream and the best one otherwise. `scores` are raw logits and are spoilt.
    pub(crate) fn choose(
        &mut self,
        context: &Context<'_>,
        scores: &mut [f32],
        stream: Option<&mut TorchRng>,
    ) -> Result<(u32, Option<TokenLogprobs>), Unusable> {
        // The choice spoils the scores, and what is asked of the raw ones depends on the choice.
        let raw = self.logprobs.map(|_| scores.to_vec());
        if !self.processors.is_empty() {
            self.processors.apply(context, scores);
        }
        let token = match stream {
            None => greedy(scores)?,
            Some(rng) => {
                self.warpers.apply(scores, &mut self.candidates)?;
                let place = draw(rng, &self.candidates, scores.len(), &mut self.probabilities)?;
                self.candidates[place].0
            }
        };
        let logprobs = self
            .logprobs
            .zip(raw)
            .map(|(count, raw)| token_logprobs(&raw, token, count, &mut self.best))
            .transpose()?;
        Ok((token, logprobs))
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
