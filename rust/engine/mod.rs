//! Requests in, tokens out: which rows make the next step. The only loop; it knows ids, never text.

mod options;
mod prompt;
mod selector;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub use crate::decode::logprobs::TokenLogprobs;
pub use crate::decode::stopping::FinishReason;
pub use options::{Limit, Options, Seed};
pub use prompt::{PREFILL_CHUNK, Prompt};

use crate::error::{Error, Result};
use crate::models::{Decoder, Input, Segment, Sequence, Wanted};
use prompt::{Feeding, feed_chunk};
use selector::{Draws, Selector};

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

/// One row of the output.
#[derive(Debug)]
struct Row<S> {
    /// Given up when the row ends.
    sequence: Option<S>,
    prompt: usize,
    /// Ids of the prompt and the generated ones.
    tokens: Vec<u32>,
    generated: usize,
    /// The newest token, which the next step feeds.
    newest: u32,
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
    selector: Selector,
    draws: Draws,
    prompts: Vec<Feeding<M::Sequence>>,
    /// First prompt that is not wholly in the cache; all of them are once rows exist.
    next_prompt: usize,
    rows_per_prompt: usize,
    rows: Vec<Row<M::Sequence>>,
    /// Last logits of every prompt, until the first tokens are chosen.
    prompt_logits: Vec<f32>,
    logits: Vec<f32>,
    events: Vec<Event>,
    batch: Vec<Segment<'static, M::Sequence>>,
    statistics: Statistics,
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
        let mut feeding = Vec::with_capacity(prompts.len());
        for (place, prompt) in prompts.into_iter().enumerate() {
            let mut prompt = Feeding::new(&*model, place, prompt)?;
            prompt.max_new_tokens = options.max_new_tokens(prompt.len(), model.context_limit())?;
            feeding.push(prompt);
        }
        let statistics =
            Statistics { prompt_tokens: feeding.iter().map(Feeding::len).sum(), ..Statistics::default() };
        Ok(Self {
            cancel: Arc::new(AtomicBool::new(false)),
            selector: Selector::new(&options),
            draws: Draws::new(&options, feeding.len(), model.vocab_size()),
            rows_per_prompt: options.num_return_sequences,
            prompts: feeding,
            next_prompt: 0,
            rows: Vec::new(),
            prompt_logits: Vec::new(),
            logits: Vec::new(),
            events: Vec::new(),
            batch: Vec::new(),
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
        self.events.clear();
        let started = Instant::now();
        if self.next_prompt < self.prompts.len() {
            self.check_cancel()?;
            self.prefill()?;
            self.statistics.prefill_seconds += started.elapsed().as_secs_f64();
        } else if self.rows.iter().any(|row| row.sequence.is_some()) {
            self.check_cancel()?;
            self.decode()?;
            self.statistics.decode_seconds += started.elapsed().as_secs_f64();
            self.statistics.decode_steps += 1;
        } else {
            return Ok(None);
        }
        self.statistics.new_tokens += self.events.len();
        Ok(Some(&self.events))
    }

    /// Ends a row early (its text has met a stop string) and frees its cache. No effect on a row that is done.
    ///
    /// # Errors
    /// `Option` where there is no such row.
    pub fn finish(&mut self, row: usize) -> Result<()> {
        let rows = self.row_count();
        if row >= rows {
            return Err(Error::Option {
                option: "row".to_owned(),
                expected: format!("a row below {rows}"),
                got: row.to_string(),
            });
        }
        if let Some(row) = self.rows.get_mut(row) {
            row.sequence = None;
        }
        Ok(())
    }

    fn check_cancel(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn prefill(&mut self) -> Result<()> {
        feed_chunk(
            &*self.model,
            &mut self.prompts,
            &mut self.next_prompt,
            &mut self.logits,
            &mut self.prompt_logits,
            &self.cancel,
        )?;
        if self.next_prompt < self.prompts.len() {
            return Ok(());
        }
        self.make_rows();
        let vocab_size = self.model.vocab_size();
        let prompt_logits = std::mem::take(&mut self.prompt_logits);
        for row in 0..self.rows.len() {
            let from = row / self.rows_per_prompt * vocab_size;
            self.logits.clear();
            self.logits.extend_from_slice(&prompt_logits[from..from + vocab_size]);
            self.choose(row, 0)?;
        }
        Ok(())
    }

    /// The rows of every prompt share its cache.
    fn make_rows(&mut self) {
        for (place, prompt) in self.prompts.iter_mut().enumerate() {
            let Some(sequence) = prompt.sequence.take() else { continue };
            let ids = prompt.ids();
            for _ in 0..self.rows_per_prompt {
                let mut tokens = Vec::with_capacity(ids.len() + prompt.max_new_tokens.min(4096));
                tokens.extend_from_slice(ids);
                self.rows.push(Row {
                    sequence: Some(sequence.fork()),
                    prompt: place,
                    tokens,
                    generated: 0,
                    newest: 0,
                });
            }
        }
    }

    fn decode(&mut self) -> Result<()> {
        let mut batch = reuse(std::mem::take(&mut self.batch));
        for row in &mut self.rows {
            let Some(sequence) = row.sequence.as_mut() else { continue };
            let input = Input::Tokens(std::slice::from_ref(&row.newest));
            batch.push(Segment { sequence, input, logits: Wanted::Last });
        }
        let outcome = self.model.forward(&mut batch, &mut self.logits, &self.cancel);
        self.batch = reuse(batch);
        outcome?;
        let vocab_size = self.model.vocab_size();
        let mut from = 0;
        for row in 0..self.rows.len() {
            if self.rows[row].sequence.is_some() {
                self.choose(row, from)?;
                from += vocab_size;
            } else {
                self.draws.skip_row(self.rows[row].prompt);
            }
        }
        Ok(())
    }

    /// Chooses the next token of a row from the logits that start at `from`.
    fn choose(&mut self, place: usize, from: usize) -> Result<()> {
        let row = &mut self.rows[place];
        let prompt = &self.prompts[row.prompt];
        let context = crate::decode::processors::Context {
            tokens: &row.tokens,
            length: prompt.len() + row.generated,
            generated: row.generated,
            source: prompt.source(),
        };
        let scores = &mut self.logits[from..from + self.model.vocab_size()];
        let choice =
            self.selector.choose(&context, scores, self.draws.stream(row.prompt)).map_err(|unusable| {
                self.next_prompt = self.prompts.len();
                Error::Scores {
                    row: place,
                    expected: "finite scores, and at least one token that the options allow".to_owned(),
                    got: unusable.as_str().to_owned(),
                }
            });
        let (token, logprobs) = match choice {
            Ok(choice) => choice,
            Err(error) => {
                self.rows.clear();
                return Err(error);
            }
        };
        row.tokens.push(token);
        row.newest = token;
        row.generated += 1;
        let finish_reason = self.selector.stopping().check(token, row.generated, prompt.max_new_tokens);
        if finish_reason.is_some() {
            row.sequence = None;
        }
        self.events.push(Event { row: place, token_id: token, logprobs, finish_reason });
        Ok(())
    }
}

/// Empties a vector and hands its memory on to segments of another lifetime: collecting in place allocates nothing.
fn reuse<'a, S>(mut batch: Vec<Segment<'_, S>>) -> Vec<Segment<'a, S>> {
    batch.clear();
    batch.into_iter().map(|_| unreachable!("the vector is empty")).collect()
}
