//! One step for all calls that take part: what the thread that leads it does, without the schedule's lock.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use super::call::Call;
use super::choice::{self, Choice, Unit};
use crate::decode::Scratch;
use crate::error::{Error, Result};
use crate::models::{Argmax, Decoder, Segment, Sequence};
use crate::team::Cancel;

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Encoders read sources.
    Sources,
    /// Decoders read tokens, and rows choose their next ones.
    Tokens,
    /// Decoders choose the best token of every row, read it, and so on for so many tokens.
    Greedy(usize),
}

/// A call in a step.
#[derive(Debug)]
pub(super) struct Taken<S> {
    pub(super) id: u64,
    pub(super) call: Box<Call<S>>,
    /// Rows that ended, or why the call did.
    pub(super) outcome: Result<usize>,
    /// Tokens that each of its rows has chosen, at most.
    pub(super) tokens: usize,
    /// Whether it had to leave for want of memory.
    pub(super) is_parked: bool,
}

/// What a step works with, kept for the next one.
pub(super) struct Bench<S: 'static> {
    pub(super) taken: Vec<Taken<S>>,
    batch: Vec<Segment<'static, S>>,
    pub(super) rows: Vec<Argmax<'static, S>>,
    pub(super) ids: Vec<u32>,
    logits: Vec<f32>,
    choices: Vec<Choice<'static, S>>,
    units: Vec<Unit<'static, 'static, S>>,
    scratches: Vec<Mutex<Scratch>>,
}

impl<S> Default for Bench<S> {
    fn default() -> Self {
        Self {
            taken: Vec::new(),
            batch: Vec::new(),
            rows: Vec::new(),
            ids: Vec::new(),
            logits: Vec::new(),
            choices: Vec::new(),
            units: Vec::new(),
            scratches: Vec::new(),
        }
    }
}

impl<S> std::fmt::Debug for Bench<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").finish_non_exhaustive()
    }
}

impl<S: Sequence> Bench<S> {
    /// Runs the step. Where memory is refused, what nobody needs is given up first, if there is any; then the call that joined last
    /// leaves it, until one is left.
    ///
    /// # Errors
    /// Those of the model: `Cancelled`, after which every call is as it was; `OutOfMemory` where one call was left; `Panicked`.
    pub(super) fn run<M: Decoder<Sequence = S>>(
        &mut self,
        model: &M,
        kind: Kind,
        cancel: &Cancel<'_>,
        give_up: &dyn Fn() -> bool,
    ) -> Result<()> {
        loop {
            let outcome = catch_unwind(AssertUnwindSafe(|| match kind {
                Kind::Sources => self.read_sources(model, cancel),
                Kind::Tokens => self.read_tokens(model, cancel),
                Kind::Greedy(steps) => self.read_greedily(model, steps, cancel),
            }));
            match outcome.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))) {
                Err(Error::OutOfMemory { .. }) if give_up() => {}
                Err(Error::OutOfMemory { .. })
                    if self.taken.iter().filter(|call| !call.is_parked).count() > 1 =>
                {
                    let youngest =
                        self.taken.iter_mut().filter(|call| !call.is_parked).max_by_key(|call| call.id);
                    if let Some(taken) = youngest {
                        taken.is_parked = true;
                        taken.call.evict(model)?;
                    }
                }
                outcome => return outcome,
            }
        }
    }

    fn read_sources<M: Decoder<Sequence = S>>(&mut self, model: &M, cancel: &Cancel<'_>) -> Result<()> {
        let mut sequences = Vec::new();
        for taken in self.taken.iter_mut().filter(|taken| !taken.is_parked) {
            taken.call.marked_sources(&mut sequences);
        }
        model.encode(&mut sequences, cancel)
    }

    pub(super) fn read_tokens<M: Decoder<Sequence = S>>(
        &mut self,
        model: &M,
        cancel: &Cancel<'_>,
    ) -> Result<()> {
        let Self { taken, batch, logits, choices, units, scratches, .. } = self;
        let mut feeds = recycle(std::mem::take(batch));
        for taken in taken.iter_mut().filter(|taken| !taken.is_parked) {
            taken.call.segments(&mut feeds);
        }
        // A forward writes over what is left of the last step; emptied, its memory would be filled with zeros first.
        let outcome = if feeds.is_empty() {
            logits.clear();
            Ok(())
        } else {
            model.forward(&mut feeds, logits, cancel)
        };
        *batch = recycle(feeds);
        outcome?;
        let _choosing = model.choosing();
        let mut seen = logits.as_slice();
        for taken in taken.iter_mut().filter(|taken| !taken.is_parked) {
            taken.call.take_in(&mut seen);
        }
        let (mut to_make, mut rest) = (recycle(std::mem::take(choices)), logits.as_mut_slice());
        for taken in taken.iter_mut().filter(|taken| !taken.is_parked) {
            taken.call.choices(&mut rest, &mut to_make);
        }
        let mut pieces = recycle(std::mem::take(units));
        let made = choice::make_all(model.threads(), &mut to_make, &mut pieces, scratches);
        (*units, *choices) = (recycle(pieces), recycle(to_make));
        made?;
        for taken in taken.iter_mut().filter(|taken| !taken.is_parked) {
            taken.outcome = taken.call.settle();
        }
        Ok(())
    }
}

/// The error of a step that panicked outside of the team.
pub(super) fn panicked(panic: &(dyn Any + Send)) -> Error {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Error::Panicked { message: message.to_owned() }
}

/// Empties a vector and hands its memory on to elements of another lifetime: collecting in place allocates nothing.
pub(super) fn recycle<A, B>(mut all: Vec<A>) -> Vec<B> {
    all.clear();
    all.into_iter().map(|_| unreachable!("the vector is empty")).collect()
}
