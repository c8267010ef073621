//! Who computes: callers lead steps for all calls of the model, one at a time, and nobody else does.
//!
//! A caller that waits for tokens leads a step where nobody else leads one, for all rows that may run, and returns with its own
//! tokens; then the caller that has waited longest leads the next one. The lock of the schedule is held for moments, never while
//! a model computes, and never by anybody who waits for something else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::budget::Account;
use super::call::Call;
use super::prefix::Prefix;
use super::schedule::{State, Ticket, again};
use super::step::panicked;
use super::{Event, Hook};
use crate::error::{Error, Result};
use crate::forks::{self, PerProcess};
use crate::models::Decoder;
use crate::team::{self, Cancel};

/// How often a caller that waits asks its hook.
const ASK: Duration = Duration::from_millis(50);

/// A model with the calls that it serves.
#[derive(Debug)]
pub struct Engine<M: Decoder>
where
    M::Sequence: 'static,
{
    model: Arc<M>,
    /// A forked child begins with none of its parent's calls; those of its own thread join again.
    schedule: PerProcess<Schedule<M::Sequence>>,
}

/// The calls of a model in one process.
#[derive(Debug)]
struct Schedule<S: 'static> {
    state: Mutex<State<S>>,
    /// Whether a call was dropped by somebody who could not wait for the lock; whoever holds it removes that call.
    departed: AtomicBool,
    /// Where callers wait who want to see a step end.
    stepped: Condvar,
}

impl<S> Default for Schedule<S> {
    fn default() -> Self {
        Self { state: Mutex::default(), departed: AtomicBool::new(false), stepped: Condvar::new() }
    }
}

type Locked<'a, M> = MutexGuard<'a, State<<M as Decoder>::Sequence>>;

impl<M: Decoder> Engine<M>
where
    M::Sequence: 'static,
{
    /// Serves calls of a model.
    pub fn new(model: Arc<M>) -> Self {
        Self { model, schedule: PerProcess::new() }
    }

    /// The model.
    pub fn model(&self) -> &Arc<M> {
        &self.model
    }

    fn schedule(&self) -> &Schedule<M::Sequence> {
        self.schedule.get(Schedule::default)
    }

    fn lock(&self) -> Locked<'_, M> {
        self.schedule().state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where those reserve who compute with the model apart from its schedule, and how much everybody has reserved.
    pub(super) fn apart(&self) -> (Account, usize) {
        let state = self.lock();
        let found = (state.apart.clone(), state.reserved());
        self.unlock(state);
        found
    }

    /// Lets go of the lock, and of calls that were dropped meanwhile.
    fn unlock(&self, mut state: Locked<'_, M>) {
        let gone = std::mem::take(&mut state.gone);
        drop(state);
        drop(gone);
        self.tidy();
    }

    /// Removes calls that were dropped, unless somebody holds the lock, who will do so.
    fn tidy(&self) {
        let schedule = self.schedule();
        while schedule.departed.load(Ordering::SeqCst) {
            let Ok(mut state) = schedule.state.try_lock() else { return };
            schedule.departed.store(false, Ordering::SeqCst);
            let removed = state.sweep(&*self.model);
            let gone = std::mem::take(&mut state.gone);
            drop(state);
            drop((removed, gone));
        }
    }

    /// A call was dropped, by somebody who must not wait.
    pub(super) fn depart(&self) {
        self.schedule().departed.store(true, Ordering::SeqCst);
        self.tidy();
    }

    /// A call was cancelled.
    pub(super) fn sweep(&self) {
        let mut state = self.lock();
        let removed = state.sweep(&*self.model);
        for slot in state.slots.iter().filter(|slot| slot.ticket.is_cancelled()) {
            slot.ticket.bell.notify_all();
        }
        self.unlock(state);
        drop(removed);
    }

    /// A call joins the schedule of this process.
    pub(super) fn join(&self, ticket: &Arc<Ticket>, mut call: Call<M::Sequence>) {
        let is_empty = call.is_done();
        let mut state = self.lock();
        let id = state.join(ticket, call);
        if is_empty && let Some(slot) = state.slot(id) {
            (slot.call, slot.outcome) = (None, Some(Ok(())));
        }
        ticket.id.store(id, Ordering::SeqCst);
        ticket.process.store(forks::generation(), Ordering::SeqCst);
        self.unlock(state);
    }

    /// Ends a row of a call, and drops those of its tokens that nobody has taken.
    pub(super) fn finish(&self, ticket: &Ticket, row: usize) {
        let mut state = self.lock();
        let (mut ended, mut kept) = (0, Vec::new());
        if let Some(slot) = state.slot(ticket.id.load(Ordering::SeqCst)) {
            slot.events.retain(|event| event.row != row);
            if slot.away {
                slot.finishing.push(row);
            } else if let Some(mut call) = slot.call.take() {
                ended += u64::from(call.finish(row));
                kept = slot.collect(&mut call);
                if call.is_done() {
                    slot.outcome = Some(Ok(()));
                } else {
                    slot.call = Some(call);
                }
            }
        }
        state.ended += ended;
        state.store(&*self.model, kept);
        self.unlock(state);
    }

    /// Ends a call, and gives what its only row has in the cache, where its reader wants that. Waits for the step that has it.
    ///
    /// # Errors
    /// `Cancelled` where the hook says so.
    pub(super) fn close(
        &self,
        ticket: &Ticket,
        hook: Option<&Hook<'_>>,
    ) -> Result<Option<Prefix<M::Sequence>>> {
        let id = ticket.id.load(Ordering::SeqCst);
        let mut state = self.lock();
        loop {
            let is_here = state.leader == team::here();
            match state.slot(id) {
                Some(slot) if slot.away && !is_here => slot.closing = true,
                Some(slot) if !slot.away => break,
                // In the middle of its own step, it leaves nothing.
                Some(_) | None => {
                    self.unlock(state);
                    return Ok(None);
                }
            }
            let stepped = &self.schedule().stepped;
            let (woken, timeout) = stepped.wait_timeout(state, ASK).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if timeout.timed_out()
                && let Some(hook) = hook
            {
                self.unlock(state);
                let stop = hook();
                state = self.lock();
                if stop {
                    if let Some(slot) = state.slot(id) {
                        slot.closing = false;
                    }
                    self.unlock(state);
                    return Err(Error::Cancelled);
                }
            }
        }
        let slot = state.place(id).map(|place| state.slots.remove(place));
        let mut call = None;
        let kept = slot.and_then(|mut slot| {
            call = slot.call.take();
            if let Some(call) = &mut call {
                call.keep();
                let kept = slot.collect(call);
                state.ended += 1;
                state.store(&*self.model, kept);
            }
            slot.kept
        });
        self.unlock(state);
        drop(call);
        Ok(kept)
    }

    /// Lets go of what calls have left for others; whether there was anything.
    pub fn give_up(&self) -> bool {
        let mut state = self.lock();
        let any = state.give_up();
        self.unlock(state);
        any
    }

    /// Lets go of what calls have left for others until `more` bytes of the cache are free, for somebody who makes no call.
    pub fn make_room(&self, more: usize) {
        if self.model.limits().prefix_cache_bytes > 0 {
            let mut state = self.lock();
            state.make_room(&*self.model, more);
            self.unlock(state);
        }
    }

    /// What calls have left for others: prefixes, and bytes of the cache.
    pub fn prefixes_kept(&self) -> (usize, usize) {
        let state = self.lock();
        let bytes = state.prefixes.block_count().saturating_mul(self.model.cache_block().bytes);
        let kept = (state.prefixes.len(), bytes);
        self.unlock(state);
        kept
    }

    /// Takes what there is for a reader: true where more may come.
    pub(super) fn take(&self, ticket: &Ticket, events: &mut Vec<Event>) -> Result<bool> {
        let mut state = self.lock();
        let taken = Self::take_from(&mut state, ticket, events);
        self.unlock(state);
        taken.map(|taken| taken.unwrap_or(true))
    }

    /// Takes what there is for a reader: `Some(true)` for tokens, `Some(false)` at the end, `None` where there is nothing yet.
    fn take_from(
        state: &mut State<M::Sequence>,
        ticket: &Ticket,
        events: &mut Vec<Event>,
    ) -> Result<Option<bool>> {
        if ticket.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let place = state.place(ticket.id.load(Ordering::SeqCst));
        let Some(place) = place else { return Ok(Some(false)) };
        let slot = &mut state.slots[place];
        slot.ahead = 0;
        if !slot.events.is_empty() {
            slot.waits = None;
            std::mem::swap(events, &mut slot.events);
            return Ok(Some(true));
        }
        match slot.outcome.take() {
            None => Ok(None),
            Some(outcome) => {
                slot.waits = None;
                // What is kept for the reader waits for it.
                if slot.kept.is_none() {
                    state.slots.remove(place);
                }
                outcome.map(|()| Some(false))
            }
        }
    }

    /// As [`Engine::take`]; where there is nothing, waits for it or leads one step.
    pub(super) fn wait(
        &self,
        ticket: &Ticket,
        events: &mut Vec<Event>,
        hook: Option<&Hook<'_>>,
    ) -> Result<bool> {
        let (mut state, mut led) = (self.lock(), false);
        let outcome = loop {
            match Self::take_from(&mut state, ticket, events) {
                Ok(None) => {}
                Ok(Some(more)) => break Ok(more),
                Err(error) => break Err(error),
            }
            if led {
                break Ok(true);
            }
            let id = ticket.id.load(Ordering::SeqCst);
            if state.leader == 0 || state.leader == team::here() {
                if let Some(slot) = state.slot(id) {
                    slot.waits = None;
                }
                let interrupted;
                (state, interrupted) = self.lead(state, hook);
                if interrupted {
                    break Err(Error::Cancelled);
                }
                led = true;
                continue;
            }
            state.wait(id);
            let Some(hook) = hook else {
                state = ticket.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (woken, timeout) =
                ticket.bell.wait_timeout(state, ASK).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if timeout.timed_out() {
                self.unlock(state);
                let stop = hook();
                state = self.lock();
                if stop {
                    if let Some(slot) = state.slot(id) {
                        slot.waits = None;
                    }
                    break Err(Error::Cancelled);
                }
            }
        };
        self.pass_on(state);
        outcome
    }

    /// Wakes whoever is to lead next, and lets go of the lock.
    fn pass_on(&self, mut state: Locked<'_, M>) {
        if !state.pass_on() && state.onlookers > 0 {
            self.schedule().stepped.notify_all();
        }
        self.unlock(state);
    }

    /// Leads a step for all calls, or waits for the end of the one that is being led: for somebody who looks after several calls.
    ///
    /// # Errors
    /// `Cancelled` where the hook says so.
    pub fn step(&self, hook: Option<&Hook<'_>>) -> Result<()> {
        let mut state = self.lock();
        let mut interrupted = false;
        if state.leader != 0 && state.leader != team::here() {
            let now = state.steps;
            state.onlookers += 1;
            while state.leader != 0 && state.steps == now && !interrupted {
                let stepped = &self.schedule().stepped;
                let (woken, timeout) =
                    stepped.wait_timeout(state, ASK).unwrap_or_else(PoisonError::into_inner);
                state = woken;
                if timeout.timed_out()
                    && let Some(hook) = hook
                {
                    self.unlock(state);
                    interrupted = hook();
                    state = self.lock();
                }
            }
            state.onlookers -= 1;
        } else {
            (state, interrupted) = self.lead(state, hook);
        }
        self.pass_on(state);
        if interrupted { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Leads one step; whether the hook ended it. A hook may lead another step in the middle of one that its own thread leads (a
    /// signal handler that generates): that step has the calls that are not in the first.
    fn lead<'a>(&'a self, mut state: Locked<'a, M>, hook: Option<&Hook<'_>>) -> (Locked<'a, M>, bool) {
        let mut bench = state.bench.take().unwrap_or_default();
        let outer = std::mem::replace(&mut state.leader, team::here());
        let outer_stop = Arc::clone(&state.stop);
        if outer != 0 {
            state.stop = Arc::default();
        }
        let stop = Arc::clone(&state.stop);
        stop.store(false, Ordering::SeqCst);
        let compose = || state.compose(&*self.model, &mut bench);
        let composed = catch_unwind(AssertUnwindSafe(compose)).map_err(|panic| panicked(panic.as_ref()));
        let mut interrupted = false;
        if let Some(kind) = composed.transpose() {
            let asked = AtomicBool::new(false);
            let ask = || {
                let stop = hook.is_some_and(|hook| hook());
                asked.fetch_or(stop, Ordering::Relaxed);
                stop
            };
            let cancel = Cancel::new(&stop);
            let cancel = if hook.is_some() { cancel.asking(&ask) } else { cancel };
            let mut outcome;
            loop {
                self.unlock(state);
                outcome = kind.as_ref().map_or_else(
                    |error| Err(again(error)),
                    |&kind| bench.run(&*self.model, kind, &cancel, &|| self.give_up()),
                );
                state = self.lock();
                let refused = matches!(outcome, Err(Error::OutOfMemory { .. }));
                // What readers who are behind keep goes before a call that somebody waits for.
                match if refused { state.evict_idle(&*self.model) } else { Ok(false) } {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
            }
            interrupted = asked.into_inner();
            let over = state.put_back(&*self.model, &mut bench, &outcome);
            // The lock is not held while caches go back.
            self.unlock(state);
            drop(over);
            state = self.lock();
        }
        (state.bench, state.leader, state.stop) = (Some(bench), outer, outer_stop);
        state.wake();
        self.schedule().stepped.notify_all();
        (state, interrupted)
    }
}
