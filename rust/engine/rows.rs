//! Rows that each choose one token per step: greedy search and sampling.

use super::budget::Charge;
use super::choice::Drawing;
use super::prefix::Prefix;
use super::request::Request;
use crate::decode::Scratch;
use crate::decode::logprobs::TokenLogprobs;
use crate::decode::processors::Context;
use crate::decode::sampler::Unusable;
use crate::decode::torch_rng::TorchRng;
use crate::models::{Argmax, Input, NO_TOKEN, Segment, Sequence, Wanted};

/// One row of the output on its way.
#[derive(Debug)]
pub(super) struct Row<S> {
    /// Its number among the rows of the call.
    pub(super) number: usize,
    /// None while its prompt is not in the cache.
    pub(super) sequence: Option<S>,
    /// Ids of the prompt and the generated ones.
    pub(super) tokens: Vec<u32>,
    pub(super) generated: usize,
    /// Tokens that the step feeds.
    feed: usize,
    /// Its place among the rows for which the model chooses in the step.
    place: usize,
    /// Whether the model could choose nothing for it, so that its next token is chosen from its logits.
    needs_logits: bool,
    /// The prompt's last logits, until the first token is chosen from them.
    pub(super) first: Vec<f32>,
    pub(super) drawing: Drawing,
    /// What the step chose.
    pub(super) chosen: Option<Result<(u32, Option<TokenLogprobs>), Unusable>>,
    /// Whether its reader wants no more of it.
    pub(super) ended: bool,
    _reserved: Charge,
}

impl<S: Sequence> Row<S> {
    /// A row that has generated the last `generated` of its tokens already.
    pub(super) fn new(number: usize, tokens: Vec<u32>, generated: usize, reserved: Charge) -> Self {
        Self {
            number,
            sequence: None,
            tokens,
            generated,
            feed: 0,
            place: 0,
            needs_logits: false,
            first: Vec::new(),
            drawing: Drawing::None,
            chosen: None,
            ended: false,
            _reserved: reserved,
        }
    }

    /// Tokens that are not in the cache; the newest is among them.
    fn pending(&self) -> usize {
        self.tokens.len() - self.sequence.as_ref().map_or(0, Sequence::len)
    }

    /// Whether its next step chooses a token.
    fn is_ready(&self) -> bool {
        self.generated > 0 && self.sequence.is_some() && self.pending() == 1
    }

    /// Whether tokens that it had chosen have to be read again.
    pub(super) fn lags(&self) -> bool {
        self.generated > 0 && !self.is_ready()
    }

    /// Feeds the newest token in this step, where that is all that is missing; whether it does.
    pub(super) fn plan_decode(&mut self) -> bool {
        self.feed = usize::from(self.is_ready());
        self.feed > 0
    }

    /// Tokens that it has to read again before it goes on, the newest excepted.
    pub(super) fn behind(&self) -> usize {
        if self.lags() && self.sequence.is_some() { self.pending() - 1 } else { 0 }
    }

    /// Reads at most `room` of those in this step; returns how many.
    pub(super) fn plan_reading(&mut self, room: usize) -> usize {
        self.feed = self.behind().min(room);
        self.feed
    }

    pub(super) fn unplan(&mut self) {
        self.feed = 0;
    }

    /// Whether the step gives it a row of logits.
    pub(super) fn has_logits(&self) -> bool {
        self.feed > 0 && self.pending() == 0
    }

    /// What it adds to the step.
    pub(super) fn segment(&mut self) -> Option<Segment<'_, S>> {
        let (feed, pending) = (self.feed, self.pending());
        let sequence = self.sequence.as_mut().filter(|_| feed > 0)?;
        let from = self.tokens.len() - pending;
        let logits = if feed == pending { Wanted::Last } else { Wanted::Nothing };
        Some(Segment { sequence, input: Input::Tokens(&self.tokens[from..from + feed]), logits })
    }

    /// Tokens that the model may choose for it at once: as many as it may still have, and none where it feeds anything else than its
    /// newest one, or its sequence would cross `border` with it. In the step that crosses, what was read before is read again.
    pub(super) fn greedy_steps(&self, max_new_tokens: usize, border: Option<usize>) -> usize {
        let ready = self.feed > 0 && self.is_ready() && !self.needs_logits;
        let Some(sequence) = self.sequence.as_ref().filter(|_| ready) else { return 0 };
        let left = border.and_then(|border| border.checked_sub(sequence.len())).unwrap_or(usize::MAX);
        max_new_tokens.saturating_sub(self.generated).min(left)
    }

    /// What it adds to a step in which the model chooses, as the row at `place` of it.
    pub(super) fn argmax(&mut self, place: usize) -> Option<Argmax<'_, S>> {
        self.place = place;
        let &token = self.tokens.last()?;
        self.sequence.as_mut().map(|sequence| Argmax { sequence, token })
    }

    /// Looks whether the model has chosen a token for it among those of all rows.
    pub(super) fn has_token(&mut self, chosen: &[u32]) -> bool {
        self.needs_logits |= chosen[self.place] == NO_TOKEN;
        !self.needs_logits
    }

    /// Takes the token that the model has chosen for it.
    pub(super) fn receive(&mut self, chosen: &[u32]) {
        self.chosen = Some(Ok((chosen[self.place], None)));
    }

    /// Forgets what the model has read behind its newest token, or behind its end: the newest one is never in the cache.
    pub(super) fn cut(&mut self) {
        let read = self.tokens.len().saturating_sub(1);
        if let Some(sequence) = self.sequence.as_mut().filter(|sequence| sequence.len() > read) {
            sequence.truncate(read);
        }
    }

    /// What it has in the cache, for others to begin behind; and for how many of the first `blocks` of it the call had answered.
    pub(super) fn keep(&mut self, blocks: usize) -> Option<(Prefix<S>, usize)> {
        let mut sequence = self.sequence.take().filter(|sequence| sequence.source().is_empty())?;
        let released = sequence.release(blocks);
        Some((Prefix::new(&self.tokens, sequence), released))
    }

    /// Gives its cache back; what it has chosen stays.
    pub(super) fn evict(&mut self) {
        (self.sequence, self.feed) = (None, 0);
        self.first = Vec::new();
    }

    /// Chooses the next token from raw logits, which are spoilt.
    pub(super) fn choose(
        &mut self,
        request: &Request<S>,
        prompt: &[u32],
        scores: &mut [f32],
        stream: Option<&mut TorchRng>,
        scratch: &mut Scratch,
    ) {
        let source = self.sequence.as_ref().map_or(&[] as &[u32], Sequence::source);
        let context = Context {
            tokens: &self.tokens,
            length: self.tokens.len(),
            generated: self.generated,
            source: if source.is_empty() { prompt } else { source },
        };
        self.chosen = Some(request.selector.choose(&context, scores, stream, scratch));
    }

    /// Takes a token that was chosen.
    pub(super) fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.generated += 1;
        self.needs_logits = false;
        self.first = Vec::new();
    }
}
