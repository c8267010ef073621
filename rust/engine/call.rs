//! A call that runs: which of its prompts are under way, what it adds to a step, and what it takes from it.
//!
//! A step is three things for a call: it says what it feeds ([`Call::segments`]); the model runs; it takes the logits of its rows
//! ([`Call::choices`], made side by side with those of other calls, then [`Call::settle`]). All rows of a call that have begun take
//! part in the same steps, so that neighbours keep drawing from one stream.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::budget::{Account, Charge, Needs};
use super::choice::Choice;
use super::item::{Given, Item, Run, Work};
use super::prefix_cache::PrefixCache;
use super::progress::Progress;
use super::prompts::{Cursor, Entry, SourceOf};
use super::request::Request;
use super::rows::Row;
use crate::decode::draws::Draws;
use crate::error::Result;
use crate::models::{Decoder, Segment, Sequence};

/// Most places for tokens that a row makes at once.
pub(super) const ROOM: usize = 4096;

/// What the next row of a call would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Demand {
    pub(super) rows: usize,
    pub(super) bytes: usize,
    /// Whether it is the first of a prompt.
    pub(super) is_prompt: bool,
}

/// A source that neighbouring prompts share: where its ids are, a sequence over it, its reservation.
#[derive(Debug)]
struct Shared<S> {
    ids: Range<usize>,
    sequence: S,
    charge: Arc<Charge>,
}

/// A call that runs.
#[derive(Debug)]
pub(super) struct Call<S> {
    pub(super) request: Arc<Request<S>>,
    /// What it has reserved of the cache.
    pub(super) account: Account,
    began: Instant,
    cursor: Cursor,
    /// What its reader had got of it in another process.
    before: Progress,
    /// Prompts under way, in order.
    pub(super) items: Vec<Item<S>>,
    /// The draws of all prompts together.
    draws: Option<Draws>,
    source: Option<Shared<S>>,
    is_planned: bool,
    /// What the step gave.
    pub(super) given: Given<S>,
}

impl<S: Sequence> Call<S> {
    /// A call that goes on behind what its reader has got.
    pub(super) fn new(request: Arc<Request<S>>, before: Progress) -> Self {
        Self {
            draws: request.draws(),
            account: Account::default(),
            began: Instant::now(),
            cursor: Cursor::default(),
            before,
            items: Vec::new(),
            source: None,
            is_planned: false,
            given: Given::default(),
            request,
        }
    }

    /// Whether nothing more comes of it.
    pub(super) fn is_done(&mut self) -> bool {
        self.items.is_empty() && self.peek().is_none()
    }

    /// Rows that run, or that wait for their prompts only.
    pub(super) fn running(&self) -> usize {
        self.items.iter().map(Item::running).sum()
    }

    /// The next prompt of which a row is still to come.
    fn peek(&mut self) -> Option<Entry> {
        loop {
            let (per_prompt, mut behind) = (self.request.rows_per_prompt(), self.cursor.clone());
            let entry = behind.next(&self.request.prompts)?;
            let rows = entry.place * per_prompt..(entry.place + 1) * per_prompt;
            if !rows.clone().all(|row| self.before.is_done(row)) {
                return Some(entry);
            }
            self.cursor = behind;
        }
    }

    /// What the next row, or search, would take; none where all have been admitted.
    pub(super) fn demand(&mut self) -> Option<Demand> {
        let request = Arc::clone(&self.request);
        if let Some(last) = self.items.last().filter(|item| !item.to_come.is_empty()) {
            let needs = request.needs(last.entry.ids.len(), last.max_new_tokens);
            return Some(Demand { rows: 1, bytes: needs.each, is_prompt: false });
        }
        let entry = self.peek()?;
        // The request's prompts were checked when it was made.
        let new = request.max_new_tokens(entry.ids.len()).unwrap_or(1);
        let rows = if request.searches() { request.options.num_beams } else { 1 };
        let source = if self.shared(&entry.source).is_some() { 0 } else { request.source_bytes(&entry) };
        let needs = request.needs(entry.ids.len(), new).behind(request.block, request.prompts.spared(&entry));
        Some(Demand { rows, bytes: needs.rows(rows).saturating_add(source), is_prompt: true })
    }

    fn shared(&self, source: &SourceOf) -> Option<&Shared<S>> {
        let SourceOf::Ids(ids) = source else { return None };
        self.source.as_ref().filter(|shared| shared.ids == *ids)
    }

    /// The ids of the next prompt, where it has no source, and how many of them its prefix spares.
    pub(super) fn next_prompt(&mut self) -> Option<(&[u32], usize)> {
        let entry = self.peek().filter(|entry| entry.source == SourceOf::Nothing)?;
        let prompts = &self.request.prompts;
        Some((prompts.ids(&entry.ids), prompts.spared(&entry)))
    }

    /// A sequence for a prompt, and the reservation of its source.
    fn start<M: Decoder<Sequence = S>>(
        &mut self,
        model: &M,
        entry: &Entry,
    ) -> Result<(S, Option<Arc<Charge>>)> {
        let ids = match &entry.source {
            SourceOf::Nothing => {
                let begun = self.request.prompts.begin(entry);
                return Ok((begun.map_or_else(|| model.start(None), Ok)?, None));
            }
            SourceOf::Given(number) => return Ok((self.request.prompts.given(*number).fork(), None)),
            SourceOf::Ids(ids) => ids,
        };
        if let Some(shared) = self.shared(&entry.source) {
            return Ok((shared.sequence.fork(), Some(Arc::clone(&shared.charge))));
        }
        let sequence = model.start(Some(self.request.prompts.ids(ids)))?;
        let charge = Arc::new(self.account.charge(self.request.source_bytes(entry)));
        let kept = Shared { ids: ids.clone(), sequence: sequence.fork(), charge: Arc::clone(&charge) };
        self.source = Some(kept);
        Ok((sequence, Some(charge)))
    }

    /// What the rows of a prompt take, where its sequence begins with `held` positions; those of a given one are reserved, too.
    fn needs(&self, entry: &Entry, max_new_tokens: usize, held: usize) -> Needs {
        let needs = self.request.needs(entry.ids.len(), max_new_tokens);
        if entry.source == SourceOf::Nothing { needs.behind(self.request.block, held) } else { needs }
    }

    /// Admits the next row, or search; a prompt begins with `found`, where that is there.
    ///
    /// # Errors
    /// Those of [`Decoder::start`].
    pub(super) fn admit<M: Decoder<Sequence = S>>(&mut self, model: &M, found: Option<S>) -> Result<()> {
        let request = Arc::clone(&self.request);
        if self.items.last().is_none_or(|item| item.to_come.is_empty()) {
            let Some(entry) = self.peek() else { return Ok(()) };
            self.cursor.next(&request.prompts);
            let (mut stem, source) = match found {
                Some(found) => (found, None),
                None => self.start(model, &entry)?,
            };
            stem.expect(entry.ids.len());
            let new = request.max_new_tokens(entry.ids.len())?;
            let needs = self.needs(&entry, new, stem.len());
            self.items.push(Item::new(&request, entry, needs, new, stem, &self.account, source));
            if self.cursor.place() == request.prompts.len() {
                self.source = None;
            }
        }
        self.pass_over();
        if let Some(item) = self.items.last_mut()
            && let Some(number) = item.to_come.clone().next()
        {
            let (ids, given) = (request.prompts.ids(&item.entry.ids), self.before.tokens(number));
            let needs = request.needs(ids.len(), item.max_new_tokens);
            let mut tokens = Vec::with_capacity(ids.len() + given.len() + item.max_new_tokens.min(ROOM));
            tokens.extend_from_slice(ids);
            tokens.extend_from_slice(given);
            item.admit(Row::new(number, tokens, given.len(), self.account.charge(needs.each)));
        }
        self.pass_over();
        Ok(())
    }

    /// Passes over rows that come next and had ended before, so that nothing waits for them.
    fn pass_over(&mut self) {
        let Some(item) = self.items.last_mut() else { return };
        while let Some(number) = item.to_come.clone().next()
            && self.before.is_done(number)
        {
            item.pass_over(number + 1);
        }
    }

    /// Whether a source of it is still to be read.
    pub(super) fn waits_for_source(&self) -> bool {
        self.items.iter().any(|item| item.pending_source() > 0)
    }

    /// Marks the next source that is to be read in this step, where it fits into `room` rows, or none is marked yet.
    pub(super) fn mark_source(&mut self, room: &mut usize, any: bool) -> bool {
        let mut before = &SourceOf::Nothing;
        for item in &mut self.items {
            let rows = item.pending_source();
            // What shares a source with the prompt before it has it read for that one.
            let is_next =
                rows > 0 && !item.is_marked && (item.entry.source != *before || *before == SourceOf::Nothing);
            if is_next {
                item.is_marked = !any || rows <= *room;
                *room = room.saturating_sub(if item.is_marked { rows } else { 0 });
                return item.is_marked;
            }
            before = &item.entry.source;
        }
        false
    }

    /// Whether a source of it is read in this step.
    pub(super) fn has_marked_source(&self) -> bool {
        self.items.iter().any(|item| item.is_marked)
    }

    /// Adds the sequences whose sources are read in this step.
    pub(super) fn marked_sources<'a>(&'a mut self, out: &mut Vec<&'a mut S>) {
        out.extend(self.items.iter_mut().filter(|item| item.is_marked).filter_map(|item| item.stem.as_mut()));
    }

    /// Tokens that are to be read before all rows can go on.
    pub(super) fn behind(&self) -> usize {
        self.items.iter().map(Item::behind).sum()
    }

    /// Whether a first token can be chosen without another step.
    pub(super) fn has_first(&self) -> bool {
        self.items.iter().any(Item::has_first)
    }

    /// Plans a token for every row that can choose one; returns the rows. Where some have to be read again first, all wait for them.
    pub(super) fn plan_decode(&mut self) -> usize {
        let rows = match self.items.iter().any(Item::lags) {
            true => 0,
            false => self.items.iter_mut().map(Item::plan_decode).sum(),
        };
        self.is_planned = rows > 0;
        rows
    }

    /// Plans about `room` tokens of prompts, in their order.
    pub(super) fn plan_reading(&mut self, mut room: usize) {
        for item in &mut self.items {
            if room == 0 {
                return;
            }
            let read = item.plan_reading(room);
            self.is_planned |= read > 0;
            room = room.saturating_sub(read);
        }
    }

    /// Whether it feeds anything in this step.
    pub(super) fn is_planned(&self) -> bool {
        self.is_planned
    }

    /// Takes part in no step.
    pub(super) fn unplan(&mut self) {
        self.is_planned = false;
        self.items.iter_mut().for_each(Item::unplan);
    }

    /// What it adds to the step.
    pub(super) fn segments<'a>(&'a mut self, batch: &mut Vec<Segment<'a, S>>) {
        let Self { request, items, .. } = self;
        for item in items {
            let ids = request.prompts.ids(&item.entry.ids);
            item.segments(ids, batch);
        }
    }

    /// Takes logits of prompts that are complete now from the front of the step's, and steps over those of its rows.
    pub(super) fn take_in(&mut self, logits: &mut &[f32]) {
        for item in &mut self.items {
            item.take_in(&self.request, logits, &mut self.given.kept);
        }
        let mut run = Run::default();
        for item in &mut self.items {
            item.begin_draws(&self.request, self.draws.as_mut(), &mut run);
        }
    }

    /// The choices that the step allows, with their scores from the front of the step's logits.
    pub(super) fn choices<'a>(&'a mut self, logits: &mut &'a mut [f32], out: &mut Vec<Choice<'a, S>>) {
        let Self { request, items, .. } = self;
        for item in items {
            item.choices(request, logits, out);
        }
    }

    /// Takes what the step chose into its events, and drops what has ended; returns how many rows have.
    ///
    /// # Errors
    /// `Scores` where a row could choose nothing; the call is over then.
    pub(super) fn settle(&mut self) -> Result<usize> {
        let seconds = self.began.elapsed().as_secs_f64();
        let before = self.running();
        let mut inherited = None;
        for item in &mut self.items {
            item.settle(&self.request, seconds, &mut inherited, &mut self.given)?;
        }
        self.items.retain(|item| !item.is_done());
        Ok(before - self.running())
    }

    /// Ends a row of which a token was given out; whether it ran.
    pub(super) fn finish(&mut self, number: usize) -> bool {
        for item in &mut self.items {
            if let Work::Rows(rows) = &mut item.work
                && let Some(row) = rows.iter_mut().find(|row| row.number == number && row.generated > 0)
            {
                row.ended = true;
                // Nothing was chosen, so nothing can fail.
                return self.settle().is_ok();
            }
        }
        // It may have begun in another process, and wait for its turn in this one.
        if !self.before.tokens(number).is_empty() {
            self.before.finish(number);
            self.pass_over();
            self.items.retain(|item| !item.is_done());
        }
        false
    }

    /// Lets prompts that are being read go on behind what others have read meanwhile.
    pub(super) fn take_over(&mut self, prefixes: &mut PrefixCache<S>) {
        self.items.iter_mut().for_each(|item| item.take_over(&self.request, prefixes));
    }

    /// The call ends early: what it has in the cache is kept, where that is wanted.
    pub(super) fn keep(&mut self) {
        if self.request.keeps() {
            self.items.iter_mut().for_each(|item| item.keep(&self.request, &mut self.given.kept));
        }
    }

    /// Whether it holds anything of the cache.
    pub(super) fn holds_cache(&self) -> bool {
        self.items.iter().any(Item::holds_cache)
    }

    /// Gives its caches back, to be read again in later steps; what was chosen stays.
    ///
    /// # Errors
    /// Those of [`Decoder::start`].
    pub(super) fn evict<M: Decoder<Sequence = S>>(&mut self, model: &M) -> Result<()> {
        self.source = None;
        for index in 0..self.items.len() {
            let entry = self.items[index].entry.clone();
            let (mut stem, source) = self.start(model, &entry)?;
            stem.expect(entry.ids.len());
            let shared = self.needs(&entry, self.items[index].max_new_tokens, stem.len()).shared;
            self.items[index].evict(stem, self.account.charge(shared), source);
        }
        if self.cursor.place() == self.request.prompts.len() {
            self.source = None;
        }
        Ok(())
    }
}
