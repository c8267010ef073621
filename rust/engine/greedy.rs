//! Steps in which the model chooses tokens itself: when it may, how many, and how calls take what it chose.
//!
//! It may where nothing but newest tokens of rows would be in the step, and all of these rows take the best token always. A call takes
//! what was chosen step by step, as if each had been a step of its own; a row that ends forgets what was read behind its end. Where
//! the model has no token for a row, its call takes no more, and goes on with an ordinary step.

use super::call::Call;
use super::item::Work;
use super::rows::Row;
use super::schedule::{AHEAD, State};
use super::step::{Bench, recycle};
use crate::error::{Error, Result};
use crate::models::{Argmax, Decoder, Sequence};
use crate::team::Cancel;

impl<S: Sequence> State<S> {
    /// Tokens that the model may choose at once in the step that is planned: no more than any row may still have, or than readers
    /// who are behind may be given. None where it has to be an ordinary step, as it is where `others` take part or wait for it.
    pub(super) fn greedy_steps<M: Decoder<Sequence = S>>(
        &mut self,
        model: &M,
        others: bool,
    ) -> Option<usize> {
        let mut steps = if others { 0 } else { model.argmax_steps() };
        if steps > 0 {
            for slot in &mut self.slots {
                let room = AHEAD.saturating_sub(slot.ahead);
                if let Some(call) = slot.eligible().filter(|call| call.is_planned()) {
                    steps = steps.min(room).min(call.greedy_steps(model.border()));
                }
            }
        }
        (steps > 0).then_some(steps)
    }
}

impl<S: Sequence> Call<S> {
    /// Its rows, none of which is a beam.
    fn rows(&mut self) -> impl Iterator<Item = &mut Row<S>> {
        self.items.iter_mut().flat_map(|item| match &mut item.work {
            Work::Rows(rows) => rows.as_mut_slice(),
            Work::Search(_) => &mut [],
        })
    }

    /// Tokens that the model may choose for each of its rows at once; 0 where a row has to be in an ordinary step.
    fn greedy_steps(&self, border: Option<usize>) -> usize {
        if !self.request.is_greedy() {
            return 0;
        }
        let each = self.items.iter().flat_map(|item| {
            match &item.work {
                Work::Rows(rows) => rows.as_slice(),
                Work::Search(_) => &[],
            }
            .iter()
            .map(|row| row.greedy_steps(item.max_new_tokens, border))
        });
        each.min().unwrap_or(0)
    }

    /// What it adds to the step.
    fn argmax<'a>(&'a mut self, batch: &mut Vec<Argmax<'a, S>>) {
        for row in self.rows() {
            batch.extend(row.argmax(batch.len()));
        }
    }

    /// Gives each row its token among those of all rows, where it has rows, and each of these has one; whether that is so.
    fn receive(&mut self, chosen: &[u32]) -> bool {
        let (mut rows, mut tokens) = (0, 0);
        for row in self.rows() {
            (rows, tokens) = (rows + 1, tokens + usize::from(row.has_token(chosen)));
        }
        let is_whole = rows > 0 && tokens == rows;
        if is_whole {
            self.rows().for_each(|row| row.receive(chosen));
        }
        is_whole
    }
}

impl<S: Sequence> Bench<S> {
    /// Lets the model choose `steps` tokens for every row. Where it does not, or has no room for so many, the step is an ordinary one.
    ///
    /// # Errors
    /// As for [`Bench::run`].
    pub(super) fn read_greedily<M: Decoder<Sequence = S>>(
        &mut self,
        model: &M,
        steps: usize,
        cancel: &Cancel<'_>,
    ) -> Result<()> {
        let Self { taken, rows, ids, .. } = self;
        let mut batch = recycle(std::mem::take(rows));
        for taken in taken.iter_mut().filter(|taken| !taken.is_parked) {
            taken.call.argmax(&mut batch);
        }
        let (outcome, count) = (model.argmax(&mut batch, steps, ids, cancel), batch.len());
        *rows = recycle(batch);
        match outcome {
            Ok(Some(())) => {}
            Ok(None) | Err(Error::OutOfMemory { .. }) => return self.read_tokens(model, cancel),
            Err(error) => return Err(error),
        }
        for taken in taken.iter_mut().filter(|taken| !taken.is_parked) {
            taken.tokens = 0;
            for chosen in ids.chunks_exact(count).take(steps) {
                let Ok(ended) = taken.outcome else { break };
                if !taken.call.receive(chosen) {
                    break;
                }
                taken.tokens += 1;
                taken.outcome = taken.call.settle().map(|more| ended + more);
            }
            taken.call.rows().for_each(Row::cut);
        }
        Ok(())
    }
}
