//! What a call asks for, checked; it never changes while the call runs.

use std::hash::{BuildHasher, Hasher};

use super::beams::Scoring;
use super::budget::{Needs, source_bytes};
use super::options::{Limit, Options, Seed};
use super::prompts::{Cursor, Entry, Prompts, SourceOf};
use super::selector::Selector;
use crate::decode::draws::Draws;
use crate::error::{Error, Result};
use crate::models::{CacheBlock, ContextLength, Decoder, Sequence};

/// Prompts and options of a call.
#[derive(Debug)]
pub(super) struct Request<S> {
    pub(super) prompts: Prompts<S>,
    pub(super) options: Options,
    /// How rows without beams choose, and beams.
    pub(super) selector: Selector,
    pub(super) scoring: Scoring,
    pub(super) vocab_size: usize,
    context: ContextLength,
    pub(super) block: CacheBlock,
    seed: Seed,
    /// Whether what its prompts and rows leave in the cache is kept for other calls.
    pub(super) caches: bool,
}

impl<S: Sequence> Request<S> {
    /// Checks a call against the model and its limits.
    ///
    /// # Errors
    /// `Option` for an option or a prompt that cannot be used, or that an empty cache could not hold; `ContextLength` for a length
    /// that the model cannot hold.
    pub(super) fn new<M: Decoder<Sequence = S>>(
        model: &M,
        prompts: Prompts<S>,
        options: Options,
    ) -> Result<Self> {
        options.validate(prompts.len())?;
        let vocab_size = model.vocab_size();
        options.check_beams(vocab_size)?;
        let seed = match &options.seed {
            Seed::Entropy => Seed::One(entropy()),
            given => given.clone(),
        };
        let request = Self {
            selector: Selector::new(&options),
            scoring: Scoring::new(&options),
            vocab_size,
            context: model.context_length(),
            block: model.cache_block(),
            caches: model.limits().prefix_cache_bytes > 0,
            seed,
            prompts,
            options,
        };
        let (mut cursor, budget) = (Cursor::default(), model.limits().cache_bytes);
        let mut before = SourceOf::Nothing;
        while let Some(entry) = cursor.next(&request.prompts) {
            request.prompts.check(&entry, vocab_size)?;
            match &entry.source {
                SourceOf::Nothing => drop(model.start(None)?),
                SourceOf::Ids(ids) if entry.source != before => {
                    drop(model.start(Some(request.prompts.ids(ids)))?);
                }
                SourceOf::Ids(_) | SourceOf::Given(_) => {}
            }
            request.check_budget(&entry, budget)?;
            before = entry.source;
        }
        request.options.check_memory(request.prompts.len())?;
        Ok(request)
    }

    /// Holds one row of a prompt, or the beams of its search, and its source against what the cache may take at all.
    fn check_budget(&self, entry: &Entry, budget: usize) -> Result<()> {
        let (block, new) = (self.block, self.max_new_tokens(entry.ids.len())?);
        let refused = |option: &str, expected: String, got: usize| {
            Err(Error::Option {
                option: option.to_owned(),
                expected: format!("{expected} (all that fits into cache_bytes={budget})"),
                got: got.to_string(),
            })
        };
        let source = self.source_bytes(entry);
        if source > budget {
            let most = budget / block.bytes * block.positions;
            let got = self.prompts.source_length(&entry.source);
            return refused("source", format!("at most {most} tokens"), got);
        }
        let (left, beams, prompt) = (budget - source, self.options.num_beams, entry.ids.len());
        let needs = Needs::of(block, prompt, new, 1);
        if needs.rows(beams) <= left {
            return Ok(());
        }
        if needs.rows(1) <= left {
            return refused("num_beams", format!("at most {}", (left - needs.shared) / needs.each), beams);
        }
        let most = left / block.bytes * block.positions;
        match self.options.limit {
            _ if most <= prompt => refused(
                &format!("prompt {}", entry.place),
                format!("fewer than {} tokens", most.max(1)),
                prompt,
            ),
            Limit::Length(length) => refused("max_length", format!("at most {most}"), length),
            Limit::NewTokens(_) | Limit::UpToNewTokens(_) | Limit::Default(_) => {
                refused("max_new_tokens", format!("at most {}", most - prompt), new)
            }
        }
    }

    /// Rows of the output for each prompt, and of all.
    pub(super) fn rows_per_prompt(&self) -> usize {
        self.options.num_return_sequences
    }

    pub(super) fn row_count(&self) -> usize {
        self.prompts.len() * self.rows_per_prompt()
    }

    /// Whether results are the outcome of searches.
    pub(super) fn searches(&self) -> bool {
        self.options.num_beams > 1
    }

    /// Whether its rows take the best token always, and nobody looks at anything else than ids to say when they end.
    pub(super) fn is_greedy(&self) -> bool {
        let Options { do_sample, watched, .. } = self.options;
        !do_sample && !watched && !self.searches() && self.selector.takes_the_best()
    }

    /// Whether what its rows leave in the cache is kept, for other calls or for its reader.
    pub(super) fn keeps(&self) -> bool {
        self.caches || self.options.keep
    }

    /// New tokens of a row whose prompt has so many positions.
    pub(super) fn max_new_tokens(&self, prompt: usize) -> Result<usize> {
        self.options.max_new_tokens(prompt, self.context)
    }

    /// What the rows of a prompt take of the cache.
    pub(super) fn needs(&self, prompt: usize, max_new_tokens: usize) -> Needs {
        let rows = if self.searches() { 1 } else { self.rows_per_prompt() };
        Needs::of(self.block, prompt, max_new_tokens, rows)
    }

    /// What a prompt's source will take of the cache; what has been read already is nobody's reservation.
    pub(super) fn source_bytes(&self, entry: &Entry) -> usize {
        match &entry.source {
            SourceOf::Ids(ids) => source_bytes(self.block, ids.len()),
            SourceOf::Nothing | SourceOf::Given(_) => 0,
        }
    }

    /// The draws of all prompts together; none without sampling, or where each prompt has a seed of its own.
    pub(super) fn draws(&self) -> Option<Draws> {
        match self.seed {
            Seed::One(seed) if self.options.do_sample => Some(self.draws_of(seed, self.prompts.len())),
            Seed::One(_) | Seed::Entropy | Seed::PerPrompt(_) => None,
        }
    }

    /// The draws of one prompt that has a seed of its own.
    pub(super) fn draws_of_prompt(&self, place: usize) -> Option<Draws> {
        match &self.seed {
            Seed::PerPrompt(seeds) if self.options.do_sample => Some(self.draws_of(seeds[place], 1)),
            Seed::One(_) | Seed::Entropy | Seed::PerPrompt(_) => None,
        }
    }

    /// The draws of so many prompts from one seed. A search draws for all of its beams at once.
    fn draws_of(&self, seed: u64, prompts: usize) -> Draws {
        let (beams, rows) = (self.options.num_beams, self.rows_per_prompt());
        let (width, rows) = if self.searches() { (beams, prompts) } else { (1, prompts * rows) };
        Draws::new(seed, (width * self.vocab_size) as u64, rows as u64)
    }
}

/// A number that the operating system made up (the standard library's keys for hash maps come from it).
fn entropy() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}
