//! Rows that each choose one token per step: greedy search and sampling.

use std::sync::atomic::AtomicBool;

use super::prompt::PromptState;
use super::selector::{Draws, Selector};
use super::{Event, Options, no_choice, reuse};
use crate::decode::processors::Context;
use crate::decode::scratch::Scratch;
use crate::error::Result;
use crate::models::{Decoder, Input, Segment, Sequence, Wanted};

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

/// All rows of a request.
#[derive(Debug)]
pub(super) struct Rows<S: 'static> {
    selector: Selector,
    scratch: Scratch,
    draws: Draws,
    rows_per_prompt: usize,
    rows: Vec<Row<S>>,
    logits: Vec<f32>,
    batch: Vec<Segment<'static, S>>,
}

impl<S: Sequence> Rows<S> {
    pub(super) fn new(options: &Options, prompts: usize) -> Self {
        Self {
            selector: Selector::new(options),
            scratch: Scratch::default(),
            draws: Draws::new(options, prompts),
            rows_per_prompt: options.num_return_sequences,
            rows: Vec::new(),
            logits: Vec::new(),
            batch: Vec::new(),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.rows.iter().all(|row| row.sequence.is_none())
    }

    /// Rows that the next step feeds.
    pub(super) fn running(&self) -> usize {
        self.rows.iter().filter(|row| row.sequence.is_some()).count()
    }

    /// Forks every prompt for its rows and chooses their first tokens from the prompts' last logits, `P × V`.
    pub(super) fn start(
        &mut self,
        prompts: &mut [PromptState<S>],
        prompt_logits: &[f32],
        events: &mut Vec<Event>,
    ) -> Result<()> {
        let vocab_size = prompt_logits.len() / prompts.len();
        for (place, prompt) in prompts.iter_mut().enumerate() {
            let Some(sequence) = prompt.sequence.take() else { continue };
            let ids = prompt.ids();
            let room = ids.len() + prompt.max_new_tokens.min(4096);
            let mut sequence = Some(sequence);
            for left in (0..self.rows_per_prompt).rev() {
                let mut tokens = Vec::with_capacity(room);
                tokens.extend_from_slice(ids);
                let own = if left == 0 { sequence.take() } else { sequence.as_ref().map(Sequence::fork) };
                self.rows.push(Row { sequence: own, prompt: place, tokens, generated: 0, newest: 0 });
            }
        }
        for row in 0..self.rows.len() {
            let from = row / self.rows_per_prompt * vocab_size;
            self.logits.clear();
            self.logits.extend_from_slice(&prompt_logits[from..from + vocab_size]);
            self.choose(row, 0, vocab_size, prompts, events)?;
        }
        Ok(())
    }

    /// One step for all rows that are not done.
    pub(super) fn step<M: Decoder<Sequence = S>>(
        &mut self,
        model: &M,
        prompts: &[PromptState<S>],
        cancel: &AtomicBool,
        events: &mut Vec<Event>,
    ) -> Result<()> {
        let mut batch = reuse(std::mem::take(&mut self.batch));
        for row in &mut self.rows {
            let Some(sequence) = row.sequence.as_mut() else { continue };
            let input = Input::Tokens(std::slice::from_ref(&row.newest));
            batch.push(Segment { sequence, input, logits: Wanted::Last });
        }
        let outcome = model.forward(&mut batch, &mut self.logits, cancel);
        self.batch = reuse(batch);
        outcome?;
        let vocab_size = model.vocab_size();
        let mut from = 0;
        for row in 0..self.rows.len() {
            if self.rows[row].sequence.is_some() {
                self.choose(row, from, vocab_size, prompts, events)?;
                from += vocab_size;
            } else {
                self.draws.skip(self.rows[row].prompt, vocab_size);
            }
        }
        Ok(())
    }

    /// Ends a row.
    pub(super) fn finish(&mut self, row: usize) {
        if let Some(row) = self.rows.get_mut(row) {
            row.sequence = None;
        }
    }

    /// Chooses the next token of a row from the logits that start at `from`.
    fn choose(
        &mut self,
        place: usize,
        from: usize,
        vocab_size: usize,
        prompts: &[PromptState<S>],
        events: &mut Vec<Event>,
    ) -> Result<()> {
        let row = &mut self.rows[place];
        let prompt = &prompts[row.prompt];
        let context = Context {
            tokens: &row.tokens,
            length: prompt.len() + row.generated,
            generated: row.generated,
            source: prompt.source(),
        };
        let scores = &mut self.logits[from..from + vocab_size];
        let stream = self.draws.stream(row.prompt);
        let (token, logprobs) = match self.selector.choose(&context, scores, stream, &mut self.scratch) {
            Ok(choice) => choice,
            Err(unusable) => {
                self.rows.clear();
                return Err(no_choice(place, unusable));
            }
        };
        row.tokens.push(token);
        row.newest = token;
        row.generated += 1;
        let finish_reason = self.selector.stopping().check(token, row.generated, prompt.max_new_tokens);
        if finish_reason.is_some() {
            row.sequence = None;
        }
        events.push(Event { row: place, token_id: token, logprobs, finish_reason, score: None });
        Ok(())
    }
}
