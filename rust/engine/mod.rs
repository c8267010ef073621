//! Requests in, tokens out: which rows make the next step. The only loop; it knows ids, never text.

mod beams;
mod options;
mod prompt;
mod rows;
mod selector;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub use crate::decode::beam::EarlyStopping;
pub use crate::decode::logprobs::TokenLogprobs;
pub use crate::decode::stopping::FinishReason;
pub use options::{Limit, Options, Seed};
pub use prompt::{PREFILL_CHUNK, Prompt};

use crate::decode::sampler::Unusable;
use crate::error::{Error, Result};
use crate::models::{Cancel, Decoder, Segment};
use beams::Beams;
use prompt::{PromptState, feed_chunk};
use rows::Rows;

/// One new token of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Row of the request: prompt by prompt, `num_return_sequences` rows each.
    pub row: usize,
    /// The token.
    pub token_id: u32,
    /// Its log-probability and the best ones, where asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Why the row ends with this token, if it does.
    pub finish_reason: Option<FinishReason>,
    /// With beams, on the last token of a row: its sum of log-probabilities over its length to `length_penalty`.
    pub score: Option<f32>,
}

/// What a request cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Statistics {
    /// Positions of all prompts, each counted once.
    pub prompt_tokens: usize,
    /// Tokens generated over all rows.
    pub new_tokens: usize,
    /// Steps of decoding after the prefill.
    pub decode_steps: usize,
    /// Seconds spent on prompts, the choice of the first tokens included.
    pub prefill_seconds: f64,
    /// Seconds spent on the steps after them.
    pub decode_seconds: f64,
}

/// A running request.
///
/// ```
/// # use std::sync::Arc;
/// # use fastdecode::{engine::{Generation, Limit, Options, Prompt}, models::Decoder, Result};
/// fn run<M: Decoder>(model: Arc<M>) -> Result<Vec<u32>> where M::Sequence: 'static {
///     let options = Options { limit: Limit::NewTokens(8), ..Options::default() };
///     let mut generation = Generation::new(model, vec![Prompt::tokens(vec![1, 2, 3])], options)?;
///     let mut ids = Vec::new();
///     while let Some(events) = generation.advance()? {
///         ids.extend(events.iter().map(|event| event.token_id));
///     }
///     Ok(ids)
/// }
/// ```
#[derive(Debug)]
pub struct Generation<M: Decoder>
where
    M::Sequence: 'static,
{
    model: Arc<M>,
    cancel: Arc<AtomicBool>,
    method: Method<M::Sequence>,
    prompts: Vec<PromptState<M::Sequence>>,
    /// First prompt that is not wholly in the cache.
    next_prompt: usize,
    rows_per_prompt: usize,
    /// Last logits of every prompt, until the first tokens are chosen.
    prompt_logits: Vec<f32>,
    logits: Vec<f32>,
    events: Vec<Event>,
    statistics: Statistics,
}

/// How tokens are found after the prompts.
#[derive(Debug)]
enum Method<S: 'static> {
    Rows(Box<Rows<S>>),
    Beams(Box<Beams<S>>),
}

impl<M: Decoder> Generation<M>
where
    M::Sequence: 'static,
{
    /// Prepares a request; nothing is computed yet. No prompts give no rows.
    ///
    /// # Errors
    /// `Option` for an option or a prompt that cannot be used, `ContextLength` for a length that the model cannot hold.
    pub fn new(model: Arc<M>, prompts: Vec<Prompt<M::Sequence>>, options: Options) -> Result<Self> {
        options.validate(prompts.len())?;
        options.check_memory(prompts.len(), model.row_bytes())?;
        let mut feeding = Vec::with_capacity(prompts.len());
        for (place, prompt) in prompts.into_iter().enumerate() {
            let mut prompt = PromptState::new(&*model, place, prompt)?;
            prompt.max_new_tokens = options.max_new_tokens(prompt.len(), model.context_limit())?;
            feeding.push(prompt);
        }
        let statistics =
            Statistics { prompt_tokens: feeding.iter().map(PromptState::len).sum(), ..Statistics::default() };
        let count = feeding.len();
        let method = if options.num_beams > 1 {
            Method::Beams(Box::new(Beams::new(&options, count, model.vocab_size())?))
        } else {
            Method::Rows(Box::new(Rows::new(&options, count)))
        };
        Ok(Self {
            cancel: Arc::new(AtomicBool::new(false)),
            method,
            rows_per_prompt: options.num_return_sequences,
            prompts: feeding,
            next_prompt: 0,
            prompt_logits: Vec::new(),
            logits: Vec::new(),
            events: Vec::new(),
            statistics,
            model,
        })
    }

    /// Setting the flag stops the request: the running or the next step ends with `Cancelled`.
    pub fn cancel_handle(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancel)
    }

    /// Number of rows of the output.
    pub fn row_count(&self) -> usize {
        self.prompts.len() * self.rows_per_prompt
    }

    /// What the request cost so far.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Does one chunk of prefill, or one step for all rows that are not done.
    ///
    /// Gives the new tokens, in the order of rows; none after a chunk of prefill that is not the last; `None` when
    /// everything is done.
    ///
    /// # Errors
    /// Those of [`Decoder::forward`], after which the call may be repeated, and `Scores` where a row leaves no token to
    /// choose, after which the request is over.
    pub fn advance(&mut self) -> Result<Option<&[Event]>> {
        let flag = Arc::clone(&self.cancel);
        self.advance_until(&Cancel::new(&flag))
    }

    /// As [`Generation::advance`], and ends early when `cancel` is set: one of the request's own flag, with a hook.
    ///
    /// # Errors
    /// As for [`Generation::advance`].
    pub fn advance_until(&mut self, cancel: &Cancel<'_>) -> Result<Option<&[Event]>> {
        self.events.clear();
        let started = Instant::now();
        if self.next_prompt < self.prompts.len() {
            self.check_cancel()?;
            self.prefill(cancel)?;
            self.statistics.prefill_seconds += started.elapsed().as_secs_f64();
        } else if !self.is_done() {
            self.check_cancel()?;
            let (prompts, events) = (&self.prompts, &mut self.events);
            match &mut self.method {
                Method::Rows(rows) => rows.step(&*self.model, prompts, cancel, events)?,
                Method::Beams(beams) => beams.step(&*self.model, prompts, cancel, events)?,
            }
            self.statistics.decode_seconds += started.elapsed().as_secs_f64();
            self.statistics.decode_steps += 1;
        } else {
            return Ok(None);
        }
        self.statistics.new_tokens += self.events.len();
        Ok(Some(&self.events))
    }

    /// Ends a row early (its text has met a stop string) and frees its cache. No effect on a row that is done, or whose
    /// prompt is not.
    ///
    /// # Errors
    /// `Option` where there is no such row, or where rows are the outcome of a search.
    pub fn finish(&mut self, row: usize) -> Result<()> {
        let rows = self.row_count();
        if row >= rows {
            return Err(Error::Option {
                option: "row".to_owned(),
                expected: format!("a row below {rows}"),
                got: row.to_string(),
            });
        }
        match &mut self.method {
            Method::Rows(rows) => {
                rows.finish(row);
                Ok(())
            }
            Method::Beams(_) => Err(Error::Option {
                option: "num_beams".to_owned(),
                expected: "1 for a row that is ended from outside (stop strings)".to_owned(),
                got: "beams".to_owned(),
            }),
        }
    }

    fn check_cancel(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn prefill(&mut self, cancel: &Cancel<'_>) -> Result<()> {
        feed_chunk(
            &*self.model,
            &mut self.prompts,
            &mut self.next_prompt,
            &mut self.logits,
            &mut self.prompt_logits,
            cancel,
        )?;
        if self.next_prompt < self.prompts.len() {
            return Ok(());
        }
        let mut prompt_logits = std::mem::take(&mut self.prompt_logits);
        let (prompts, events) = (&mut self.prompts, &mut self.events);
        match &mut self.method {
            Method::Rows(rows) => rows.start(prompts, &prompt_logits, events),
            Method::Beams(beams) => beams.start(prompts, &mut prompt_logits, events),
        }
    }

    fn is_done(&self) -> bool {
        match &self.method {
            Method::Rows(rows) => rows.is_done(),
            Method::Beams(beams) => beams.is_done(),
        }
    }
}

/// The error of a row that leaves no token to choose.
fn no_choice(row: usize, unusable: Unusable) -> Error {
    Error::Scores {
        row,
        expected: "finite scores, and at least one token that the options allow".to_owned(),
        got: unusable.as_str().to_owned(),
    }
}

/// Empties a vector and hands its memory on to segments of another lifetime: collecting in place allocates nothing.
fn reuse<'a, S>(mut batch: Vec<Segment<'_, S>>) -> Vec<Segment<'a, S>> {
    batch.clear();
    batch.into_iter().map(|_| unreachable!("the vector is empty")).collect()
}
