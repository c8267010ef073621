//! Beam search over caches that fork: which sequences make the next step, and which cache every beam continues.

use std::sync::atomic::AtomicBool;

use super::prompt::PromptState;
use super::selector::Draws;
use super::{Event, Options, no_choice, reuse};
use crate::decode::beam::{BeamSearch, BeamSettings, Continuations};
use crate::decode::logprobs::Normalizer;
use crate::decode::processors::{Context, Processors};
use crate::decode::sampler::{Candidate, Unusable};
use crate::decode::scratch::Scratch;
use crate::decode::stopping::{FinishReason, Stopping};
use crate::decode::warpers::Warpers;
use crate::error::{Error, Result};
use crate::models::{Decoder, Input, Segment, Sequence, Wanted};

/// The beams of one prompt.
#[derive(Debug)]
struct Item<S> {
    search: BeamSearch,
    /// One per running beam; only the prompt's before the first step, none when the search is done.
    sequences: Vec<S>,
    /// Those of the step before, each taken by its last heir.
    outgoing: Vec<Option<S>>,
    /// Newest token of every beam.
    newest: Vec<u32>,
}

/// The beams of a request.
#[derive(Debug)]
pub(super) struct Beams<S: 'static> {
    options: Options,
    stopping: Stopping,
    scoring: Scoring,
    draws: Draws,
    items: Vec<Item<S>>,
    logits: Vec<f32>,
    batch: Vec<Segment<'static, S>>,
}

impl<S: Sequence> Beams<S> {
    /// # Errors
    /// `Option` where there are more beams than can be told apart.
    pub(super) fn new(options: &Options, prompts: usize, vocab_size: usize) -> Result<Self> {
        let most = u32::MAX as usize / vocab_size.max(1);
        if options.num_beams > most {
            return Err(Error::Option {
                option: "num_beams".to_owned(),
                expected: format!("at most {most} with a vocabulary of {vocab_size}"),
                got: options.num_beams.to_string(),
            });
        }
        let stopping = Stopping::new(&options.eos_token_ids, &options.stop_token_ids);
        Ok(Self {
            options: options.clone(),
            scoring: Scoring::new(options, stopping.id_count()),
            stopping,
            draws: Draws::new(options, prompts),
            items: Vec::new(),
            logits: Vec::new(),
            batch: Vec::new(),
        })
    }

    pub(super) fn is_done(&self) -> bool {
        self.items.iter().all(|item| item.search.is_done())
    }

    /// Rows that the next step feeds.
    pub(super) fn running(&self) -> usize {
        self.items.iter().map(|item| item.sequences.len()).sum()
    }

    /// Begins every prompt's search from its last logits, `P × V`. The first step is not expanded: all beams of a prompt
    /// look at the same row, and fork its cache when they have chosen.
    pub(super) fn start(
        &mut self,
        prompts: &mut [PromptState<S>],
        prompt_logits: &mut [f32],
        events: &mut Vec<Event>,
    ) -> Result<()> {
        let vocab_size = prompt_logits.len() / prompts.len();
        for (place, (prompt, logits)) in
            prompts.iter_mut().zip(prompt_logits.chunks_mut(vocab_size)).enumerate()
        {
            let settings = BeamSettings {
                num_beams: self.options.num_beams,
                length_penalty: self.options.length_penalty,
                early_stopping: self.options.early_stopping,
                max_new_tokens: prompt.max_new_tokens,
            };
            self.items.push(Item {
                search: BeamSearch::new(settings, prompt.ids()),
                sequences: prompt.sequence.take().into_iter().collect(),
                outgoing: Vec::new(),
                newest: Vec::new(),
            });
            self.continue_item(place, prompt, logits, vocab_size, events)?;
        }
        Ok(())
    }

    /// One step for the beams of all prompts whose search is not done.
    pub(super) fn step<M: Decoder<Sequence = S>>(
        &mut self,
        model: &M,
        prompts: &[PromptState<S>],
        cancel: &AtomicBool,
        events: &mut Vec<Event>,
    ) -> Result<()> {
        let mut batch = reuse(std::mem::take(&mut self.batch));
        for item in &mut self.items {
            for (sequence, newest) in item.sequences.iter_mut().zip(&item.newest) {
                let input = Input::Tokens(std::slice::from_ref(newest));
                batch.push(Segment { sequence, input, logits: Wanted::Last });
            }
        }
        let outcome = model.forward(&mut batch, &mut self.logits, cancel);
        self.batch = reuse(batch);
        outcome?;
        let vocab_size = model.vocab_size();
        let mut logits = std::mem::take(&mut self.logits);
        let mut rest = logits.as_mut_slice();
        for (place, prompt) in prompts.iter().enumerate() {
            let beams = self.items[place].sequences.len();
            if beams == 0 {
                // torch draws for every prompt of the batch at once, done or not.
                self.draws.skip(place, self.options.num_beams * vocab_size);
                continue;
            }
            let (own, others) = rest.split_at_mut(beams * vocab_size);
            rest = others;
            self.continue_item(place, prompt, own, vocab_size, events)?;
        }
        self.logits = logits;
        Ok(())
    }

    /// Chooses the continuations of one prompt's beams and hands the caches on; reports the results when it is done.
    fn continue_item(
        &mut self,
        place: usize,
        prompt: &PromptState<S>,
        logits: &mut [f32],
        vocab_size: usize,
        events: &mut Vec<Event>,
    ) -> Result<()> {
        let row = place * self.options.num_return_sequences;
        let Item { search, sequences, outgoing, newest } = &mut self.items[place];
        let chosen =
            match self.scoring.continuations(search, prompt, logits, vocab_size, &mut self.draws, place) {
                Ok(chosen) => chosen,
                Err(unusable) => {
                    self.items.clear();
                    return Err(no_choice(row, unusable));
                }
            };
        search.advance(chosen, vocab_size, &self.stopping);
        if !search.is_done() {
            newest.clear();
            newest.extend((0..search.parents().len()).filter_map(|beam| search.tokens(beam).last()));
            inherit(search.parents(), sequences, outgoing);
            return Ok(());
        }
        sequences.clear();
        let Some(results) = search.results(self.options.num_return_sequences) else {
            self.items.clear();
            return Err(no_choice(row, Unusable::AllForbidden));
        };
        for (offset, (tokens, score)) in results.enumerate() {
            for (index, &token_id) in tokens.iter().enumerate() {
                let last = index + 1 == tokens.len();
                let reason =
                    self.stopping.check(token_id, index + 1, usize::MAX).unwrap_or(FinishReason::Length);
                events.push(Event {
                    row: row + offset,
                    token_id,
                    logprobs: None,
                    finish_reason: last.then_some(reason),
                    score: last.then_some(score),
                });
            }
        }
        Ok(())
    }
}

/// Gives every beam the cache of its parent: the last heir takes it, the others fork it; caches without heirs are freed.
fn inherit<S: Sequence>(parents: &[usize], sequences: &mut Vec<S>, outgoing: &mut Vec<Option<S>>) {
    outgoing.clear();
    outgoing.extend(sequences.drain(..).map(Some));
    for (beam, &parent) in parents.iter().enumerate() {
        // Before the first step all beams stand in the one cache of the prompt.
        let parent = parent.min(outgoing.len() - 1);
        let last_heir = !parents[beam + 1..].iter().any(|&other| other.min(outgoing.len() - 1) == parent);
        let inherited =
            if last_heir { outgoing[parent].take() } else { outgoing[parent].as_ref().map(Sequence::fork) };
        sequences.extend(inherited);
    }
    outgoing.clear();
}

/// From logits to the continuations of a prompt's beams.
#[derive(Debug)]
struct Scoring {
    processors: Processors,
    warpers: Warpers,
    /// Ids that end a beam.
    ending_ids: usize,
    continuations: Continuations,
    scratch: Scratch,
}

impl Scoring {
    fn new(options: &Options, ending_ids: usize) -> Self {
        // A draw must leave a token that does not end the beam.
        let min_tokens_to_keep = ending_ids.max(1) + 1;
        Self {
            processors: Processors::new(options.processors()),
            warpers: Warpers::new(options.warpers(), min_tokens_to_keep),
            ending_ids,
            continuations: Continuations::default(),
            scratch: Scratch::default(),
        }
    }

    /// `logits` has a row per beam, or one row that all beams share; it is spoilt.
    fn continuations<S: Sequence>(
        &mut self,
        search: &BeamSearch,
        prompt: &PromptState<S>,
        logits: &mut [f32],
        vocab_size: usize,
        draws: &mut Draws,
        place: usize,
    ) -> Result<&[Candidate], Unusable> {
        let settings = search.settings();
        let count = settings.continuations(self.ending_ids, vocab_size);
        let stream = draws.stream(place);
        let rows = logits.len() / vocab_size;
        self.continuations.clear();
        for beam in 0..settings.num_beams {
            if beam < rows {
                let scores = &mut logits[beam * vocab_size..(beam + 1) * vocab_size];
                let scans = self.scratch.scans;
                Normalizer::new(scans, scores)?.normalize(scans, scores);
                let context = Context {
                    tokens: search.tokens(beam),
                    length: prompt.len() + search.generated(),
                    generated: search.generated(),
                    source: prompt.source(),
                };
                self.processors.apply(&context, scores, &mut self.scratch);
                if stream.is_some() {
                    self.warpers.apply(scores, &mut self.scratch)?;
                }
            }
            if stream.is_some() {
                self.continuations.add_all(beam, search.score(beam), &self.scratch.candidates, vocab_size);
            } else {
                let row = beam.min(rows - 1) * vocab_size;
                let row = &logits[row..row + vocab_size];
                self.continuations.add_best(beam, search.score(beam), row, count, &mut self.scratch);
            }
        }
        match stream {
            Some(rng) => {
                self.continuations.drawn(rng, settings.num_beams * vocab_size, count, &mut self.scratch)
            }
            None => Ok(self.continuations.best(count)),
        }
    }
}
