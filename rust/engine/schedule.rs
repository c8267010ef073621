//! Which calls make the next step: who is admitted, who takes part, how a chunk of prompts is divided.
//!
//! Rules, in the order in which they are applied. A call whose reader is [`AHEAD`] tokens behind takes no part and keeps its cache.
//! Rows are admitted in turn from each call, while those that run are fewer than `max_rows` and their reservations, beside what
//! is not reserved at all, fit into `cache_bytes`; a row that runs alone is always admitted. Sources are read in steps of their
//! own, of [`CHUNK`] rows together or one that is larger, and never twice in a row where rows wait for tokens. Every other step
//! has a token of each row that has begun, and at most [`CHUNK`] tokens of prompts, shared among the calls that have any. Where it
//! would have nothing else than tokens of rows that take the best one, the model may choose some at once (`greedy.rs`).

use std::sync::Arc;
use std::sync::Condvar;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::Event;
use super::budget::Account;
use super::call::Call;
use super::prefix::Prefix;
use super::prefix_cache::PrefixCache;
use super::step::{Bench, Kind, Taken};
use crate::error::{Error, Result};
use crate::models::{Decoder, Sequence};

/// Rows of prompts in a step, over all calls together; the same for rows of sources. Enough for matrix products to run at full speed,
/// and what a token of another row waits for at most.
pub const CHUNK: usize = 512;
/// Tokens that a row runs ahead of its reader, at most.
pub const AHEAD: usize = 8;

/// A call as its reader, and whoever cancels it, know it.
#[derive(Debug, Default)]
pub(super) struct Ticket {
    /// Its number in the process that it has joined, and that process; 0 before it joins.
    pub(super) id: AtomicU64,
    pub(super) process: AtomicUsize,
    /// Whether nobody wants more of it.
    pub(super) cancelled: AtomicBool,
    /// Where its reader waits.
    pub(super) bell: Condvar,
}

impl Ticket {
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

/// A call in the schedule.
#[derive(Debug)]
pub(super) struct Slot<S> {
    pub(super) id: u64,
    pub(super) ticket: Arc<Ticket>,
    /// None while a step has it, and when it is over.
    pub(super) call: Option<Box<Call<S>>>,
    /// Whether a step has it.
    pub(super) away: bool,
    /// What it has reserved of the cache, wherever it is.
    pub(super) account: Account,
    /// What its only row left in the cache, where its reader wants that.
    pub(super) kept: Option<Prefix<S>>,
    /// Whether its reader waits for it to come back from its last step.
    pub(super) closing: bool,
    /// What its reader has not taken.
    pub(super) events: Vec<Event>,
    /// Steps since its reader was last here.
    pub(super) ahead: usize,
    /// Since when its reader waits, in the order of those that do.
    pub(super) waits: Option<u64>,
    /// Rows that were ended while a step had them.
    pub(super) finishing: Vec<usize>,
    /// How many rows had ended when memory was refused; it runs again when more have.
    pub(super) parked: Option<u64>,
    /// The last step in which its rows chose tokens.
    last_step: u64,
    /// How it ended.
    pub(super) outcome: Option<Result<()>>,
}

impl<S: Sequence> Slot<S> {
    /// The call, where it may take part in a step.
    pub(super) fn eligible(&mut self) -> Option<&mut Box<Call<S>>> {
        let out = self.ticket.is_cancelled() || self.closing || self.ahead >= AHEAD || self.parked.is_some();
        self.call.as_mut().filter(|_| !out)
    }
}

/// All calls of a model.
#[derive(Debug)]
pub(super) struct State<S: 'static> {
    /// In the order in which they joined.
    pub(super) slots: Vec<Slot<S>>,
    /// What was reserved by those who score, and join no schedule.
    pub(super) apart: Account,
    /// The thread that leads a step; 0 for none.
    pub(super) leader: usize,
    /// Stops the step that is led.
    pub(super) stop: Arc<AtomicBool>,
    pub(super) bench: Option<Box<Bench<S>>>,
    /// Steps so far.
    pub(super) steps: u64,
    /// Rows that have ended, and calls that have left.
    pub(super) ended: u64,
    /// Callers that wait for the end of a step, whatever it brings.
    pub(super) onlookers: usize,
    next_id: u64,
    next_wait: u64,
    /// The call that was last admitted from, and that a source was last read for.
    admitted: u64,
    sourced: u64,
    /// Whether the last step read sources.
    read_sources: bool,
    /// What calls have left for those that come, and how much of it those that read prompts have looked at.
    pub(super) prefixes: PrefixCache<S>,
    looked_at: u64,
    /// Prefixes that are to be dropped when the lock is let go of.
    pub(super) gone: Vec<Prefix<S>>,
}

impl<S> Default for State<S> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            apart: Account::default(),
            leader: 0,
            stop: Arc::default(),
            bench: None,
            steps: 0,
            ended: 0,
            onlookers: 0,
            next_id: 1,
            next_wait: 0,
            admitted: 0,
            sourced: 0,
            read_sources: false,
            prefixes: PrefixCache::default(),
            looked_at: 0,
            gone: Vec::new(),
        }
    }
}

impl<S: Sequence> State<S> {
    /// A call joins.
    pub(super) fn join(&mut self, ticket: &Arc<Ticket>, call: Call<S>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.slots.push(Slot {
            id,
            ticket: Arc::clone(ticket),
            account: call.account.clone(),
            call: Some(Box::new(call)),
            away: false,
            kept: None,
            closing: false,
            events: Vec::new(),
            ahead: 0,
            waits: None,
            finishing: Vec::new(),
            parked: None,
            last_step: 0,
            outcome: None,
        });
        id
    }

    /// Bytes of the cache that are reserved, by calls in the schedule and apart from them.
    pub(super) fn reserved(&self) -> usize {
        let calls = self.slots.iter().map(|slot| slot.account.bytes());
        calls.fold(self.apart.bytes(), usize::saturating_add)
    }

    pub(super) fn place(&self, id: u64) -> Option<usize> {
        self.slots.binary_search_by_key(&id, |slot| slot.id).ok()
    }

    pub(super) fn slot(&mut self, id: u64) -> Option<&mut Slot<S>> {
        self.place(id).map(|place| &mut self.slots[place])
    }

    /// Notes that a reader waits.
    pub(super) fn wait(&mut self, id: u64) {
        self.next_wait += 1;
        let now = self.next_wait;
        if let Some(slot) = self.slot(id) {
            slot.waits.get_or_insert(now);
        }
    }

    /// Removes calls that nobody wants, unless a step has them; stops that step where it has no other. Gives what was removed, to be
    /// dropped without the lock.
    pub(super) fn sweep<M: Decoder<Sequence = S>>(&mut self, model: &M) -> Vec<Box<Call<S>>> {
        let mut removed = Vec::new();
        self.slots.retain_mut(|slot| {
            let remove = slot.ticket.is_cancelled() && !slot.away;
            if remove {
                slot.ticket.bell.notify_all();
                removed.extend(slot.call.take());
            }
            !remove
        });
        self.ended += removed.len() as u64;
        for call in &mut removed {
            call.keep();
            self.store(model, std::mem::take(&mut call.given.kept));
        }
        let mut away = self.slots.iter().filter(|slot| slot.away).peekable();
        if away.peek().is_some() && away.all(|slot| slot.ticket.is_cancelled()) {
            self.stop.store(true, Ordering::SeqCst);
        }
        removed
    }

    /// Wakes those who wait for something that is there now.
    pub(super) fn wake(&mut self) {
        for slot in &mut self.slots {
            if slot.waits.is_some() && (!slot.events.is_empty() || slot.outcome.is_some()) {
                slot.ticket.bell.notify_all();
            }
        }
    }

    /// Where nobody leads, wakes the one who has waited longest to do so; whether there was one.
    pub(super) fn pass_on(&mut self) -> bool {
        if self.leader != 0 {
            return true;
        }
        let waiting = self.slots.iter().filter(|slot| {
            slot.waits.is_some()
                && slot.events.is_empty()
                && slot.outcome.is_none()
                && !slot.ticket.is_cancelled()
        });
        let longest = waiting.min_by_key(|slot| slot.waits);
        longest.inspect(|slot| slot.ticket.bell.notify_all()).is_some()
    }

    /// Takes the calls of the next step, planned; none where no call may run. A call that cannot begin ends with its error.
    pub(super) fn compose<M: Decoder<Sequence = S>>(
        &mut self,
        model: &M,
        bench: &mut Bench<S>,
    ) -> Option<Kind> {
        self.unpark();
        self.admit(model);
        if std::mem::replace(&mut self.looked_at, self.prefixes.additions()) != self.prefixes.additions() {
            let Self { slots, prefixes, .. } = self;
            slots.iter_mut().filter_map(Slot::eligible).for_each(|call| call.take_over(prefixes));
        }
        self.steps += 1;
        let limit = model.limits().max_rows;
        let (mut rows, mut behind, mut sources, mut first) = (0, 0, false, false);
        for slot in &mut self.slots {
            if let Some(call) = slot.eligible() {
                rows += call.plan_decode();
                behind += call.behind();
                sources |= call.waits_for_source();
                first |= call.has_first();
            }
        }
        let tokens = rows + behind > 0 || first;
        self.read_sources = sources && !(self.read_sources && tokens);
        if self.read_sources {
            self.compose_sources(bench);
            return Some(Kind::Sources);
        }
        if !tokens {
            return None;
        }
        if rows > limit {
            self.rotate(limit);
        }
        if behind > 0 {
            self.divide_chunk();
        }
        let others = behind > 0 || first || sources;
        let kind = self.greedy_steps(model, others).map_or(Kind::Tokens, Kind::Greedy);
        let step = self.steps;
        for slot in &mut self.slots {
            if let Some(call) = slot.eligible()
                && (call.is_planned() || call.has_first())
            {
                bench.taken.extend(take(slot));
                slot.last_step = step;
            }
        }
        Some(kind)
    }

    /// Lets calls run again that had to leave, where memory may have become free or nobody else runs.
    fn unpark(&mut self) {
        let ended = self.ended;
        for slot in &mut self.slots {
            slot.parked = slot.parked.filter(|&then| then >= ended);
        }
        if !self.slots.iter_mut().any(|slot| slot.eligible().is_some())
            && let Some(slot) = self.slots.iter_mut().find(|slot| slot.parked.is_some() && slot.ahead < AHEAD)
        {
            slot.parked = None;
        }
    }

    /// Admits rows in turn from each call while they fit.
    fn admit<M: Decoder<Sequence = S>>(&mut self, model: &M) {
        let limits = model.limits();
        let (mut rows, mut reserved) = (0, self.apart.bytes());
        for slot in &mut self.slots {
            if let Some(call) = slot.eligible() {
                rows += call.running();
                reserved = reserved.saturating_add(call.account.bytes());
            }
        }
        while rows < limits.max_rows {
            let count = self.slots.len();
            let begin = self.slots.partition_point(|slot| slot.id <= self.admitted);
            let next = (0..count).map(|step| (begin + step) % count).find_map(|place| {
                let demand = self.slots[place].eligible()?.demand()?;
                Some((place, demand))
            });
            let Some((place, demand)) = next else { return };
            if rows > 0 && rows + demand.rows > limits.max_rows {
                return;
            }
            let reserved_then = reserved.saturating_add(demand.bytes);
            let Some((found, bytes)) = self.find_room(model, place, demand, reserved_then, rows == 0) else {
                return;
            };
            let slot = &mut self.slots[place];
            self.admitted = slot.id;
            if let Some(Err(error)) = slot.call.as_mut().map(|call| call.admit(model, found)) {
                (slot.call, slot.outcome) = (None, Some(Err(error)));
                continue;
            }
            (rows, reserved) = (rows + demand.rows, reserved.saturating_add(bytes));
        }
    }

    /// Takes the calls whose sources are read next, in turn.
    fn compose_sources(&mut self, bench: &mut Bench<S>) {
        let (mut room, count) = (CHUNK, self.slots.len());
        let begin = self.slots.partition_point(|slot| slot.id <= self.sourced);
        self.slots.iter_mut().filter_map(Slot::eligible).for_each(|call| call.unplan());
        let mut any = false;
        loop {
            let mut marked = false;
            for place in (0..count).map(|step| (begin + step) % count) {
                let slot = &mut self.slots[place];
                if let Some(call) = slot.eligible()
                    && call.mark_source(&mut room, any)
                {
                    (marked, any) = (true, true);
                    self.sourced = slot.id;
                }
            }
            if !marked {
                break;
            }
        }
        for slot in &mut self.slots {
            if slot.eligible().is_some_and(|call| call.has_marked_source()) {
                bench.taken.extend(take(slot));
            }
        }
    }

    /// Leaves out calls that have chosen tokens most recently, until no more than `limit` rows do. One call's rows are never more,
    /// unless it is a search, which then goes alone.
    fn rotate(&mut self, limit: usize) {
        let mut order: Vec<(u64, usize)> =
            self.slots.iter().enumerate().map(|(place, slot)| (slot.last_step, place)).collect();
        order.sort_unstable();
        let mut rows = 0;
        for (_, place) in order {
            let Some(call) = self.slots[place].eligible() else { continue };
            let own = call.plan_decode();
            if rows > 0 && rows + own > limit {
                call.unplan();
            } else {
                rows += own;
            }
        }
    }

    /// Divides a chunk among the calls that have tokens to read: equal parts, where one that needs less leaves the rest to the others.
    fn divide_chunk(&mut self) {
        let mut wants: Vec<(usize, usize)> = Vec::new();
        for (place, slot) in self.slots.iter_mut().enumerate() {
            if let Some(call) = slot.eligible() {
                wants.push((call.behind(), place));
            }
        }
        wants.retain(|&(want, _)| want > 0);
        wants.sort_unstable();
        let (mut room, mut calls) = (CHUNK, wants.len());
        for (want, place) in wants {
            let part = want.min(room.div_ceil(calls));
            if let Some(call) = self.slots[place].eligible() {
                call.plan_reading(part);
            }
            room -= part.min(room);
            calls -= 1;
        }
    }

    /// Takes the call of a step that is refused memory though it has no other: one that is not in a step, holds a cache, and joined
    /// last.
    ///
    /// # Errors
    /// Those of [`Decoder::start`].
    pub(super) fn evict_idle<M: Decoder<Sequence = S>>(&mut self, model: &M) -> Result<bool> {
        let ended = self.ended;
        let holds = |slot: &&mut Slot<S>| slot.call.as_ref().is_some_and(|call| call.holds_cache());
        let Some(slot) = self.slots.iter_mut().rev().find(holds) else { return Ok(false) };
        slot.parked = Some(ended);
        slot.call.as_mut().map_or(Ok(()), |call| call.evict(model))?;
        Ok(true)
    }

    /// Puts the calls of a step back, with what it came to; gives what is over, to be dropped without the lock.
    pub(super) fn put_back<M: Decoder<Sequence = S>>(
        &mut self,
        model: &M,
        bench: &mut Bench<S>,
        step: &Result<()>,
    ) -> Vec<Box<Call<S>>> {
        let mut over = Vec::new();
        let mut taken = std::mem::take(&mut bench.taken);
        // Rows that end in this step make room for the calls that had to leave it.
        let ended = self.ended;
        for Taken { id, mut call, outcome, tokens, is_parked } in taken.drain(..) {
            let Some(place) = self.place(id) else { continue };
            let slot = &mut self.slots[place];
            slot.away = false;
            if slot.ticket.is_cancelled() {
                self.slots.remove(place).ticket.bell.notify_all();
                self.ended += 1;
                call.keep();
                self.store(model, std::mem::take(&mut call.given.kept));
                over.push(call);
                continue;
            }
            let outcome = match step {
                _ if is_parked => {
                    slot.parked = Some(ended);
                    Ok(0)
                }
                Ok(()) => outcome,
                // The step is repeated.
                Err(Error::Cancelled) => Ok(0),
                Err(error) => Err(again(error)),
            };
            call.unplan();
            match outcome {
                Ok(rows) => self.ended += rows as u64,
                Err(error) => {
                    slot.outcome = Some(Err(error));
                    self.ended += 1;
                    over.push(call);
                    continue;
                }
            }
            for row in std::mem::take(&mut slot.finishing) {
                call.given.events.retain(|event| event.row != row);
                self.ended += u64::from(call.finish(row));
            }
            let is_there = call.given.events.is_empty() && slot.waits.is_some();
            slot.ahead += if step.is_ok() && !is_there { tokens } else { 0 };
            slot.events.append(&mut call.given.events);
            let kept = slot.collect(&mut call);
            if call.is_done() {
                slot.outcome = Some(Ok(()));
                over.push(call);
            } else {
                slot.call = Some(call);
            }
            self.store(model, kept);
        }
        bench.taken = taken;
        over
    }
}

/// Takes a slot's call into a step.
fn take<S>(slot: &mut Slot<S>) -> Option<Taken<S>> {
    let call = slot.call.take()?;
    slot.away = true;
    Some(Taken { id: slot.id, call, outcome: Ok(0), tokens: 1, is_parked: false })
}

/// The same error for one more call of the step.
pub(super) fn again(error: &Error) -> Error {
    match error {
        Error::OutOfMemory { what, bytes } => Error::OutOfMemory { what: what.clone(), bytes: *bytes },
        Error::Cuda { what, expected, got } => {
            Error::Cuda { what: what.clone(), expected: expected.clone(), got: got.clone() }
        }
        Error::Panicked { message } => Error::Panicked { message: message.clone() },
        other => Error::Panicked { message: other.to_string() },
    }
}
