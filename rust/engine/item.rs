//! A prompt under way: it is read into one sequence, which its rows fork, or the beams of its search.

use std::ops::Range;
use std::sync::Arc;

use super::beams::Search;
use super::budget::{Account, Charge, Needs};
use super::choice::{Choice, Chooser, Drawing, GROUP_ROWS, Scores};
use super::prefix::Prefix;
use super::prefix_cache::PrefixCache;
use super::prompts::{Entry, SourceOf};
use super::request::Request;
use super::rows::Row;
use super::{Event, no_choice};
use crate::decode::draws::{Draws, Group};
use crate::error::Result;
use crate::models::{Input, Segment, Sequence, Wanted};

/// What a step gives.
#[derive(Debug)]
pub(super) struct Given<S> {
    /// Tokens, for the reader.
    pub(super) events: Vec<Event>,
    /// What can be begun behind from now on.
    pub(super) kept: Vec<Prefix<S>>,
}

impl<S> Default for Given<S> {
    fn default() -> Self {
        Self { events: Vec::new(), kept: Vec::new() }
    }
}

/// What comes of a prompt.
#[derive(Debug)]
pub(super) enum Work<S> {
    /// Rows, in order; those that have ended are gone.
    Rows(Vec<Row<S>>),
    Search(Box<Search<S>>),
}

/// A prompt under way.
#[derive(Debug)]
pub(super) struct Item<S> {
    pub(super) entry: Entry,
    pub(super) max_new_tokens: usize,
    /// The prompt's sequence, while it is read and while rows that will fork it are still to come.
    pub(super) stem: Option<S>,
    /// Whether all of the prompt is in the cache.
    is_read: bool,
    /// Tokens of the prompt that the step feeds.
    feed: usize,
    /// Whether its source is read in the step.
    pub(super) is_marked: bool,
    /// Positions that its sequence held at the beginning: they were reused, and not read.
    held: usize,
    /// The prompt's last logits, while rows are still to come.
    logits: Vec<f32>,
    /// Rows that are still to come.
    pub(super) to_come: Range<usize>,
    pub(super) work: Work<S>,
    /// Where the prompt has a seed of its own.
    pub(super) draws: Option<Draws>,
    /// For the blocks that its rows share, as far as they are not open.
    shared: Charge,
    _source: Option<Arc<Charge>>,
}

impl<S: Sequence> Item<S> {
    /// A prompt whose reading begins with `stem`.
    pub(super) fn new(
        request: &Request<S>,
        entry: Entry,
        needs: Needs,
        max_new_tokens: usize,
        stem: S,
        account: &Account,
        source: Option<Arc<Charge>>,
    ) -> Self {
        let per_prompt = request.rows_per_prompt();
        let first = entry.place * per_prompt;
        let (work, to_come) = if request.searches() {
            let ids = request.prompts.ids(&entry.ids);
            let reserved = account.charge(needs.each.saturating_mul(request.options.num_beams));
            let search = Search::new(&request.options, ids, max_new_tokens, reserved);
            (Work::Search(Box::new(search)), first..first)
        } else {
            (Work::Rows(Vec::new()), first..first + per_prompt)
        };
        Self {
            draws: request.draws_of_prompt(entry.place),
            held: stem.len(),
            stem: Some(stem),
            is_read: false,
            feed: 0,
            is_marked: false,
            logits: Vec::new(),
            to_come,
            work,
            max_new_tokens,
            shared: account.charge(needs.shared),
            _source: source,
            entry,
        }
    }

    /// Rows that run or wait for their prompt.
    pub(super) fn running(&self) -> usize {
        match &self.work {
            Work::Rows(rows) => rows.len(),
            Work::Search(search) => search.beams(),
        }
    }

    /// Admits a row, which has generated the last `generated` of its tokens already.
    pub(super) fn admit(&mut self, row: Row<S>) {
        let Work::Rows(rows) = &mut self.work else { return };
        self.to_come.start = row.number + 1;
        rows.push(row);
        self.fork();
    }

    /// Passes over rows that have ended before.
    pub(super) fn pass_over(&mut self, to: usize) {
        self.to_come.start = to;
        self.fork();
    }

    /// Gives every row that has none a sequence, once the prompt is read; the last heir takes the prompt's own.
    fn fork(&mut self) {
        let Work::Rows(rows) = &mut self.work else { return };
        if !self.is_read {
            return;
        }
        let mut heirs = rows.iter_mut().filter(|row| row.sequence.is_none()).peekable();
        while let Some(row) = heirs.next() {
            let is_last = heirs.peek().is_none() && self.to_come.is_empty();
            row.sequence = if is_last { self.stem.take() } else { self.stem.as_ref().map(Sequence::fork) };
            if row.generated == 0 {
                row.first = if is_last { std::mem::take(&mut self.logits) } else { self.logits.clone() };
            }
        }
        if self.to_come.is_empty() {
            (self.stem, self.logits) = (None, Vec::new());
        }
    }

    /// Whether tokens that its rows had chosen have to be read again.
    pub(super) fn lags(&self) -> bool {
        match &self.work {
            Work::Rows(rows) => rows.iter().any(Row::lags),
            Work::Search(search) => search.lags(),
        }
    }

    /// Whether a first token can be chosen without another step.
    pub(super) fn has_first(&self) -> bool {
        match &self.work {
            Work::Rows(rows) => rows.iter().any(|row| !row.first.is_empty()),
            Work::Search(search) => !search.first.is_empty(),
        }
    }

    /// Rows of a source that the encoder is still to read.
    pub(super) fn pending_source(&self) -> usize {
        self.stem.as_ref().map_or(0, Sequence::pending)
    }

    /// Tokens that are to be read before rows of the prompt can go on; none while its source is not read.
    pub(super) fn behind(&self) -> usize {
        if self.pending_source() > 0 {
            return 0;
        }
        let prompt = match &self.stem {
            Some(stem) if !self.is_read => self.entry.ids.len() - stem.len(),
            Some(_) | None => 0,
        };
        prompt
            + match &self.work {
                Work::Rows(rows) => rows.iter().map(Row::behind).sum(),
                Work::Search(search) => search.behind(),
            }
    }

    /// Rows that choose their next token in this step.
    pub(super) fn plan_decode(&mut self) -> usize {
        match &mut self.work {
            Work::Rows(rows) => rows.iter_mut().map(|row| usize::from(row.plan_decode())).sum(),
            Work::Search(search) => search.plan_decode(),
        }
    }

    /// Reads about `room` of the tokens behind in this step; returns how many.
    pub(super) fn plan_reading(&mut self, room: usize) -> usize {
        if self.pending_source() > 0 {
            return 0;
        }
        let mut left = room;
        if let Some(stem) = self.stem.as_ref().filter(|_| !self.is_read) {
            self.feed = (self.entry.ids.len() - stem.len()).min(left);
            left -= self.feed;
        }
        match &mut self.work {
            Work::Rows(rows) => {
                for row in rows.iter_mut().filter(|row| row.behind() > 0) {
                    left -= row.plan_reading(left);
                }
            }
            Work::Search(search) if search.behind() > 0 && left > 0 => {
                left = left.saturating_sub(search.plan_reading(left));
            }
            Work::Search(_) => {}
        }
        room - left
    }

    /// Takes part in no step.
    pub(super) fn unplan(&mut self) {
        (self.feed, self.is_marked) = (0, false);
        match &mut self.work {
            Work::Rows(rows) => rows.iter_mut().for_each(Row::unplan),
            Work::Search(search) => search.unplan(),
        }
    }

    /// What it adds to the step.
    pub(super) fn segments<'a>(&'a mut self, ids: &'a [u32], batch: &mut Vec<Segment<'a, S>>) {
        if let Some(stem) = self.stem.as_mut().filter(|_| self.feed > 0) {
            let (from, to) = (stem.len(), stem.len() + self.feed);
            let logits = if to == ids.len() { Wanted::Last } else { Wanted::Nothing };
            batch.push(Segment { sequence: stem, input: Input::Tokens(&ids[from..to]), logits });
        }
        match &mut self.work {
            Work::Rows(rows) => batch.extend(rows.iter_mut().filter_map(Row::segment)),
            Work::Search(search) => search.segments(batch),
        }
    }

    /// Whether the step has read the last of the prompt, so that it has a row of logits for it.
    fn was_completed(&self) -> bool {
        self.feed > 0 && self.stem.as_ref().is_some_and(|stem| stem.len() == self.entry.ids.len())
    }

    /// Takes the prompt's logits from the front of the step's, where the step has read its last token, and steps over those of its
    /// rows.
    pub(super) fn take_in(&mut self, request: &Request<S>, logits: &mut &[f32], kept: &mut Vec<Prefix<S>>) {
        let vocab_size = request.vocab_size;
        let completed = self.was_completed();
        let own = if completed { logits.split_off(..vocab_size).unwrap_or_default() } else { &[] };
        let others = match &self.work {
            Work::Rows(rows) => rows.iter().filter(|row| row.has_logits()).count(),
            Work::Search(search) => search.logits_rows(),
        };
        let _ = logits.split_off(..others * vocab_size);
        if !completed {
            return;
        }
        self.is_read = true;
        if request.caches {
            self.keep_prompt(request, kept);
        }
        match &mut self.work {
            Work::Rows(_) => {
                self.logits = own.to_vec();
                self.fork();
            }
            Work::Search(search) => {
                if let Some(stem) = self.stem.take() {
                    search.begin(stem, own);
                }
            }
        }
    }

    /// Keeps the whole blocks of the prompt, which nobody writes any more, for others to begin behind.
    fn keep_prompt(&mut self, request: &Request<S>, kept: &mut Vec<Prefix<S>>) {
        let whole = self.entry.ids.len() / request.block.positions;
        let Some(stem) = self.stem.as_ref().filter(|stem| whole > 0 && stem.source().is_empty()) else {
            return;
        };
        let mut sequence = stem.fork();
        sequence.truncate(whole * request.block.positions);
        self.shared.reduce(sequence.release(whole).saturating_mul(request.block.bytes));
        kept.push(Prefix::new(request.prompts.ids(&self.entry.ids), sequence));
    }

    /// Goes on behind what others have read meanwhile, where that is more than it has read itself.
    pub(super) fn take_over(&mut self, request: &Request<S>, prefixes: &mut PrefixCache<S>) {
        let Some(stem) = self.stem.as_ref().filter(|_| !self.is_read) else { return };
        if self.entry.source != SourceOf::Nothing {
            return;
        }
        let ids = request.prompts.ids(&self.entry.ids);
        let Some(mut found) = prefixes.begin(ids, stem.len()) else { return };
        found.expect(ids.len());
        let blocks = |positions: usize| positions / request.block.positions;
        self.shared.reduce((blocks(found.len()) - blocks(self.held)).saturating_mul(request.block.bytes));
        (self.held, self.stem) = (found.len(), Some(found));
    }

    /// Keeps what it has in the cache, for others to begin behind, where the call ends early.
    pub(super) fn keep(&mut self, request: &Request<S>, kept: &mut Vec<Prefix<S>>) {
        if let Work::Rows(rows) = &mut self.work {
            kept.extend(rows.iter_mut().filter_map(|row| row.keep(0)).map(|(prefix, _)| prefix));
        }
        if let Some(stem) = self.stem.take().filter(|stem| !stem.is_empty() && stem.source().is_empty()) {
            kept.push(Prefix::new(request.prompts.ids(&self.entry.ids), stem));
        }
    }

    /// The choices that the step allows, with their scores from the front of the step's logits.
    pub(super) fn choices<'a>(
        &'a mut self,
        request: &'a Request<S>,
        logits: &mut &'a mut [f32],
        out: &mut Vec<Choice<'a, S>>,
    ) {
        let (vocab_size, place) = (request.vocab_size, self.entry.place);
        if self.feed > 0 && self.is_read {
            let _ = logits.split_off_mut(..vocab_size);
        }
        let prompt = request.prompts.ids(&self.entry.ids);
        let shared = self.draws.is_none();
        match &mut self.work {
            Work::Rows(rows) => {
                let begin = if shared { 0 } else { place * request.rows_per_prompt() };
                for row in rows {
                    let drawer = (row.number - begin) as u64;
                    let scores = if row.has_logits() {
                        logits.split_off_mut(..vocab_size).map(Scores::Step)
                    } else {
                        Scores::own(&mut row.first)
                    };
                    if let Some(scores) = scores {
                        out.push(Choice { chooser: Chooser::Row(row), scores, request, prompt, drawer });
                    }
                }
            }
            Work::Search(search) => {
                let drawer = if shared { place as u64 } else { 0 };
                let scores = match search.logits_rows() {
                    0 => Scores::own(&mut search.first),
                    rows => logits.split_off_mut(..rows * vocab_size).map(Scores::Step),
                };
                if let Some(scores) = scores {
                    out.push(Choice { chooser: Chooser::Search(search), scores, request, prompt, drawer });
                }
            }
        }
    }

    /// Takes what the step chose, and drops rows that have ended; their groups go on with `inherited`.
    ///
    /// # Errors
    /// `Scores`, which ends the call.
    pub(super) fn settle(
        &mut self,
        request: &Request<S>,
        seconds: f64,
        inherited: &mut Option<Box<Group>>,
        given: &mut Given<S>,
    ) -> Result<()> {
        self.feed = 0;
        let (max_new_tokens, held, block) = (self.max_new_tokens, self.held, request.block);
        let prompt_blocks = self.entry.ids.len() / block.positions;
        match &mut self.work {
            Work::Search(search) => {
                search.drawing.inherit(inherited);
                if search.settle(request, self.entry.place, seconds, held, &mut given.events)? {
                    *inherited = search.drawing.take();
                    self.work = Work::Rows(Vec::new());
                }
            }
            Work::Rows(rows) => {
                let (mut error, shared) = (None, &mut self.shared);
                rows.retain_mut(|row| {
                    row.unplan();
                    row.drawing.inherit(inherited);
                    match row.chosen.take() {
                        None => {}
                        Some(_) if row.ended => {}
                        Some(Err(unusable)) => {
                            error.get_or_insert(no_choice(row.number, unusable));
                        }
                        Some(Ok((token_id, logprobs))) => {
                            row.push(token_id);
                            let stopping = request.selector.stopping();
                            let finish_reason = stopping.check(token_id, row.generated, max_new_tokens);
                            row.ended = finish_reason.is_some();
                            given.events.push(Event {
                                row: row.number,
                                token_id,
                                logprobs,
                                finish_reason,
                                score: None,
                                first_seconds: None,
                                cached_tokens: (row.generated == 1).then_some(held),
                            });
                        }
                    }
                    if row.ended {
                        row.cut();
                        *inherited = row.drawing.take();
                        if request.keeps()
                            && let Some((prefix, released)) = row.keep(prompt_blocks)
                        {
                            // What is open now is reserved for the other rows no longer.
                            shared.reduce(released.saturating_mul(block.bytes));
                            given.kept.push(prefix);
                        }
                    }
                    !row.ended
                });
                if let Some(error) = error {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether nothing more comes of it.
    pub(super) fn is_done(&self) -> bool {
        self.to_come.is_empty() && matches!(&self.work, Work::Rows(rows) if rows.is_empty())
    }

    /// Whether it holds anything of the cache.
    pub(super) fn holds_cache(&self) -> bool {
        self.stem.as_ref().is_some_and(|stem| stem.len() > self.held)
            || match &self.work {
                Work::Rows(rows) => rows.iter().any(|row| row.sequence.is_some()),
                Work::Search(search) => search.holds_cache(),
            }
    }

    /// Gives its caches back, to be read again from `stem` on, with what its rows share and its source reserved anew; what was
    /// chosen stays.
    pub(super) fn evict(&mut self, stem: S, shared: Charge, source: Option<Arc<Charge>>) {
        (self.held, self.shared, self._source) = (stem.len(), shared, source);
        (self.stem, self.is_read, self.feed, self.logits) = (Some(stem), false, 0, Vec::new());
        match &mut self.work {
            Work::Rows(rows) => rows.iter_mut().for_each(Row::evict),
            Work::Search(search) => search.evict(),
        }
    }

    /// Makes the draws of rows that choose their first token in this step, and of those that go on where they were before.
    pub(super) fn begin_draws(&mut self, request: &Request<S>, all: Option<&mut Draws>, run: &mut Run) {
        let (place, own) = (self.entry.place, self.draws.is_some());
        let Some(draws) = self.draws.as_mut().or(all) else { return };
        match &mut self.work {
            Work::Rows(rows) => {
                let begin = if own { place * request.rows_per_prompt() } else { 0 };
                for row in rows {
                    let begins =
                        (!row.first.is_empty()).then_some(0).or((row.generated > 0).then_some(row.generated));
                    run.assign(draws, row.number - begin, begins, &mut row.drawing);
                }
            }
            Work::Search(search) => {
                let begins = (!search.first.is_empty()).then_some(0);
                run.assign(draws, if own { 0 } else { place }, begins, &mut search.drawing);
            }
        }
    }
}

/// Neighbours that draw from one generator, as they are met in the order of rows.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// Whoever follows the last one.
    next: usize,
    /// How many there are.
    length: usize,
}

impl Run {
    /// Gives a row that has no draws a generator, or lets it follow the row before it. `token` is the number of the token that it
    /// chooses next; none where the row is still to be read.
    fn assign(&mut self, draws: &mut Draws, row: usize, token: Option<usize>, drawing: &mut Drawing) {
        let Some(token) = token.filter(|_| matches!(drawing, Drawing::None)) else {
            self.length = 0;
            return;
        };
        let follows = self.next == row && (1..GROUP_ROWS).contains(&self.length);
        if follows && token == 0 {
            *drawing = Drawing::Follows;
            self.length += 1;
        } else {
            *drawing = Drawing::Leads(Box::new(draws.group(row as u64, token as u64)));
            self.length = usize::from(token == 0);
        }
        self.next = row + 1;
    }
}
