//! Beam search over caches that fork: what the beams of one prompt add to a step, and which cache every beam continues.

use super::budget::Charge;
use super::choice::Drawing;
use super::options::Options;
use super::request::Request;
use super::{Event, no_choice};
use crate::decode::Scratch;
use crate::decode::beam::{BeamSearch, BeamSettings, Continuations};
use crate::decode::logprobs::Normalizer;
use crate::decode::processors::{Context, Processors};
use crate::decode::sampler::Unusable;
use crate::decode::stopping::{FinishReason, Stopping};
use crate::decode::torch_rng::TorchRng;
use crate::decode::warpers::Warpers;
use crate::error::Result;
use crate::models::{Input, Segment, Sequence, Wanted};

/// The beams of one prompt.
#[derive(Debug)]
pub(super) struct Search<S> {
    search: BeamSearch,
    /// One per running beam; none while the prompt is not in the cache, and when the search is done.
    sequences: Vec<S>,
    /// Those of the step before, each taken by its last heir.
    outgoing: Vec<Option<S>>,
    continuations: Continuations,
    /// Tokens that the step feeds for each beam.
    feed: usize,
    /// The prompt's last logits, which all beams share in the first choice.
    pub(super) first: Vec<f32>,
    pub(super) drawing: Drawing,
    chosen: Option<Result<(), Unusable>>,
    /// Seconds from the beginning of the call to the first choice.
    first_seconds: Option<f64>,
    _reserved: Charge,
}

impl<S: Sequence> Search<S> {
    /// A search from a prompt that has not been read yet.
    pub(super) fn new(options: &Options, prompt: &[u32], max_new_tokens: usize, reserved: Charge) -> Self {
        let settings = BeamSettings {
            num_beams: options.num_beams,
            length_penalty: options.length_penalty,
            early_stopping: options.early_stopping,
            max_new_tokens,
        };
        Self {
            search: BeamSearch::new(settings, prompt),
            sequences: Vec::new(),
            outgoing: Vec::new(),
            continuations: Continuations::default(),
            feed: 0,
            first: Vec::new(),
            drawing: Drawing::None,
            chosen: None,
            first_seconds: None,
            _reserved: reserved,
        }
    }

    /// Beams that run side by side.
    pub(super) fn beams(&self) -> usize {
        self.search.settings().num_beams
    }

    /// Whether the first tokens are still to be chosen.
    pub(super) fn is_new(&self) -> bool {
        self.search.generated() == 0
    }

    /// Takes the cache of its prompt. The first step is not expanded: all beams look at the same row of logits, and fork its cache
    /// when they have chosen. A search that had chosen before goes on with a fork for each beam.
    pub(super) fn begin(&mut self, stem: S, logits: &[f32]) {
        if self.is_new() {
            self.first = logits.to_vec();
        } else {
            self.sequences.extend((1..self.beams()).map(|_| stem.fork()));
        }
        self.sequences.push(stem);
    }

    /// Tokens of a beam that are not in its cache; the newest is among them.
    fn pending(&self) -> usize {
        self.sequences.first().map_or(usize::MAX, |sequence| self.search.tokens(0).len() - sequence.len())
    }

    /// Whether tokens that were chosen have to be read again.
    pub(super) fn lags(&self) -> bool {
        !self.is_new() && self.pending() != 1
    }

    /// Feeds the newest tokens in this step, where these are all that is missing; returns the rows.
    pub(super) fn plan_decode(&mut self) -> usize {
        self.feed = usize::from(!self.is_new() && self.pending() == 1);
        self.feed * self.sequences.len()
    }

    /// Rows that are to be read again before the search goes on, the newest excepted.
    pub(super) fn behind(&self) -> usize {
        let reads = self.lags() && !self.sequences.is_empty();
        if reads { (self.pending() - 1) * self.sequences.len() } else { 0 }
    }

    /// Reads about `room` of those rows in this step; returns how many.
    pub(super) fn plan_reading(&mut self, room: usize) -> usize {
        let beams = self.sequences.len().max(1);
        self.feed = self.behind().min(room.next_multiple_of(beams)) / beams;
        self.feed * beams
    }

    pub(super) fn unplan(&mut self) {
        self.feed = 0;
    }

    /// Rows of logits that the step gives it.
    pub(super) fn logits_rows(&self) -> usize {
        if self.feed > 0 && self.pending() == 0 { self.sequences.len() } else { 0 }
    }

    /// What it adds to the step.
    pub(super) fn segments<'a>(&'a mut self, batch: &mut Vec<Segment<'a, S>>) {
        if self.feed == 0 {
            return;
        }
        let (feed, pending) = (self.feed, self.pending());
        let logits = if feed == pending { Wanted::Last } else { Wanted::Nothing };
        for (beam, sequence) in self.sequences.iter_mut().enumerate() {
            let tokens = self.search.tokens(beam);
            let from = tokens.len() - pending;
            batch.push(Segment { sequence, input: Input::Tokens(&tokens[from..from + feed]), logits });
        }
    }

    /// Whether it holds anything of the cache.
    pub(super) fn holds_cache(&self) -> bool {
        !self.sequences.is_empty()
    }

    /// Gives its caches back; what it has chosen stays.
    pub(super) fn evict(&mut self) {
        self.sequences.clear();
        self.feed = 0;
        self.first = Vec::new();
    }

    /// Chooses the continuations from raw logits, which are spoilt, and hands the caches on.
    pub(super) fn choose(
        &mut self,
        request: &Request<S>,
        prompt: &[u32],
        scores: &mut [f32],
        stream: Option<&mut TorchRng>,
        scratch: &mut Scratch,
    ) {
        let Self { search, sequences, outgoing, continuations, .. } = self;
        let source = sequences.first().map_or(&[] as &[u32], Sequence::source);
        let source = if source.is_empty() { prompt } else { source };
        let vocab_size = request.vocab_size;
        let scoring = &request.scoring;
        let chosen =
            match scoring.continuations(search, source, scores, vocab_size, stream, continuations, scratch) {
                Ok(chosen) => chosen,
                Err(unusable) => {
                    self.chosen = Some(Err(unusable));
                    return;
                }
            };
        search.advance(chosen, vocab_size, request.selector.stopping());
        if search.is_done() {
            sequences.clear();
        } else {
            inherit(search.parents(), sequences, outgoing);
        }
        self.first = Vec::new();
        self.chosen = Some(Ok(()));
    }

    /// Reports the results when the search is done, of a prompt of which `held` positions were reused; whether it is.
    ///
    /// # Errors
    /// `Scores` where nothing could be chosen.
    pub(super) fn settle(
        &mut self,
        request: &Request<S>,
        place: usize,
        seconds: f64,
        held: usize,
        events: &mut Vec<Event>,
    ) -> Result<bool> {
        self.feed = 0;
        let row = place * request.rows_per_prompt();
        match self.chosen.take() {
            None => return Ok(false),
            Some(Err(unusable)) => return Err(no_choice(row, unusable)),
            Some(Ok(())) => {}
        }
        let first_seconds = *self.first_seconds.get_or_insert(seconds);
        if !self.search.is_done() {
            return Ok(false);
        }
        let Some(results) = self.search.results(request.rows_per_prompt()) else {
            return Err(no_choice(row, Unusable::AllForbidden));
        };
        for (offset, (tokens, score)) in results.enumerate() {
            for (index, &token_id) in tokens.iter().enumerate() {
                let last = index + 1 == tokens.len();
                let stopping = request.selector.stopping();
                let reason = stopping.check(token_id, index + 1, usize::MAX).unwrap_or(FinishReason::Length);
                events.push(Event {
                    row: row + offset,
                    token_id,
                    logprobs: None,
                    finish_reason: last.then_some(reason),
                    score: last.then_some(score),
                    first_seconds: (index == 0).then_some(first_seconds),
                    cached_tokens: (index == 0).then_some(held),
                });
            }
        }
        Ok(true)
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
pub(super) struct Scoring {
    processors: Processors,
    warpers: Warpers,
    /// Ids that end a beam.
    ending_ids: usize,
}

impl Scoring {
    pub(super) fn new(options: &Options) -> Self {
        let ending_ids = Stopping::new(&options.eos_token_ids, &options.stop_token_ids).id_count();
        // A draw must leave a token that does not end the beam.
        let min_tokens_to_keep = ending_ids.max(1) + 1;
        Self {
            processors: Processors::new(options.processors()),
            warpers: Warpers::new(options.warpers(), min_tokens_to_keep),
            ending_ids,
        }
    }

    /// `logits` has a row per beam, or one row that all beams share; it is spoilt.
    #[expect(
        clippy::too_many_arguments,
        reason = "the search, what it looks at, and three kinds of working memory"
    )]
    fn continuations<'c>(
        &self,
        search: &BeamSearch,
        source: &[u32],
        logits: &mut [f32],
        vocab_size: usize,
        stream: Option<&mut TorchRng>,
        continuations: &'c mut Continuations,
        scratch: &mut Scratch,
    ) -> Result<&'c [crate::decode::sampler::Candidate], Unusable> {
        let settings = search.settings();
        let count = settings.continuations(self.ending_ids, vocab_size);
        let rows = logits.len() / vocab_size;
        continuations.clear();
        for beam in 0..settings.num_beams {
            if beam < rows {
                let scores = &mut logits[beam * vocab_size..(beam + 1) * vocab_size];
                Normalizer::new(scratch.scans, scores)?.normalize(scratch.scans, scores);
                let context = Context {
                    tokens: search.tokens(beam),
                    length: search.tokens(beam).len(),
                    generated: search.generated(),
                    source,
                };
                self.processors.apply(&context, scores, scratch);
                if stream.is_some() {
                    self.warpers.apply(scores, scratch)?;
                }
            }
            if stream.is_some() {
                continuations.add_all(beam, search.score(beam), &scratch.candidates, vocab_size);
            } else {
                let row = beam.min(rows - 1) * vocab_size;
                continuations.add_best(
                    beam,
                    search.score(beam),
                    &logits[row..row + vocab_size],
                    count,
                    scratch,
                );
            }
        }
        match stream {
            Some(rng) => continuations.drawn(rng, settings.num_beams * vocab_size, count, scratch),
            None => Ok(continuations.best(count)),
        }
    }
}
