//! What a request may ask for: resolved values, checked against each other and against the model before any work.

use crate::decode::beam::EarlyStopping;
use crate::decode::processors::Processor;
use crate::decode::warpers::Warper;
use crate::error::{Error, Result};
use crate::headroom;
use crate::models::ContextLength;

/// Rows of a request, at most: prompts times `num_return_sequences`.
const MAX_ROWS: usize = 1 << 24;
/// Bytes that are kept of a row of the output, and of each of its tokens: ids, text, what is reported beside them.
const ROW_BYTES: usize = 1 << 10;
const TOKEN_BYTES: usize = 8;

/// How long rows may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// This many new tokens; an error where the model's context cannot hold them.
    NewTokens(usize),
    /// This many positions, prompt included (transformers' `max_length`); an error where the context is smaller.
    Length(usize),
    /// This many new tokens, or fewer where the context ends.
    UpToNewTokens(usize),
    /// The same where nobody has asked for a length: it also ends where the model's config says.
    Default(usize),
}

impl Limit {
    /// The number that it names: of new tokens, or of positions.
    pub(super) fn tokens(self) -> usize {
        match self {
            Self::NewTokens(count)
            | Self::Length(count)
            | Self::UpToNewTokens(count)
            | Self::Default(count) => count,
        }
    }
}

/// Where random numbers come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Seed {
    /// A fresh seed from the operating system.
    #[default]
    Entropy,
    /// One stream for all rows of the call, as `torch.manual_seed` before transformers' `generate`.
    One(u64),
    /// One stream per prompt, each as if its prompt ran alone.
    PerPrompt(Vec<u64>),
}

/// Options of a request, named as in transformers, every one resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// How long rows may become.
    pub limit: Limit,
    /// New tokens before which a row does not end by an id; above 0 it wins over `min_length`.
    pub min_new_tokens: usize,
    /// Positions, prompt included, before which a row does not end by an id.
    pub min_length: usize,
    /// Draw instead of taking the best.
    pub do_sample: bool,
    /// Divides scores before a draw; above 0.
    pub temperature: f64,
    /// Draw among the k best; `None` or 0 among all.
    pub top_k: Option<usize>,
    /// Draw among the most probable tokens that reach this sum, in `[0, 1]`; 1 keeps all.
    pub top_p: f64,
    /// Draw among tokens at least this many times as probable as the best, in `[0, 1]`.
    pub min_p: Option<f64>,
    /// Above 1: tokens that the row has become less likely; above 0.
    pub repetition_penalty: f64,
    /// Above 1: tokens of the source become likelier; above 0.
    pub encoder_repetition_penalty: f64,
    /// No n-gram of this size comes twice; 0 for off.
    pub no_repeat_ngram_size: usize,
    /// No n-gram of this size comes from the source; 0 for off.
    pub encoder_no_repeat_ngram_size: usize,
    /// Ids that end a row with the reason "eos"; kept in the output.
    pub eos_token_ids: Vec<u32>,
    /// Ids that end a row with the reason "stop"; kept in the output, treated as `eos_token_ids` otherwise.
    pub stop_token_ids: Vec<u32>,
    /// Rows per prompt; the prompt is computed once. With beams, the best of them, at most `num_beams`.
    pub num_return_sequences: usize,
    /// Beams that run side by side; 1 for none.
    pub num_beams: usize,
    /// With beams: sums of log-probabilities are divided by the length to this power.
    pub length_penalty: f64,
    /// With beams: when the search ends.
    pub early_stopping: EarlyStopping,
    /// Log-probabilities of each token and of this many best ones; not with beams.
    pub logprobs: Option<usize>,
    /// Where random numbers come from.
    pub seed: Seed,
    /// Whether what the only row has in the cache is left to the reader, see [`Generation::kept`](super::Generation::kept).
    pub keep: bool,
    /// Whether its reader may end rows at any token, by their text ([`Generation::finish`](super::Generation::finish)), so that the
    /// model is not asked for several tokens at once.
    pub watched: bool,
}

impl Default for Options {
    /// transformers' defaults, with 256 new tokens or what the context leaves.
    fn default() -> Self {
        Self {
            limit: Limit::Default(256),
            min_new_tokens: 0,
            min_length: 0,
            do_sample: false,
            temperature: 1.0,
            top_k: Some(50),
            top_p: 1.0,
            min_p: None,
            repetition_penalty: 1.0,
            encoder_repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            encoder_no_repeat_ngram_size: 0,
            eos_token_ids: Vec::new(),
            stop_token_ids: Vec::new(),
            num_return_sequences: 1,
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Heuristic,
            logprobs: None,
            seed: Seed::Entropy,
            keep: false,
            watched: false,
        }
    }
}

impl Options {
    /// Checks every value, and those that exclude each other.
    ///
    /// # Errors
    /// `Error::Option` with the name, the accepted values and the value given.
    pub fn validate(&self, prompts: usize) -> Result<()> {
        let new_tokens = self.limit.tokens();
        let name = if matches!(self.limit, Limit::Length(_)) { "max_length" } else { "max_new_tokens" };
        check(new_tokens >= 1, name, "at least 1", new_tokens)?;
        let (temperature, top_p) = (self.temperature, self.top_p);
        let hint = "a finite number above 0 (for the best token always, set do_sample to false)";
        check(temperature.is_finite() && temperature as f32 > 0.0, "temperature", hint, temperature)?;
        check((0.0..=1.0).contains(&top_p), "top_p", "a number from 0 to 1", top_p)?;
        if let Some(min_p) = self.min_p {
            check((0.0..=1.0).contains(&min_p), "min_p", "a number from 0 to 1", min_p)?;
        }
        for (name, penalty) in [
            ("repetition_penalty", self.repetition_penalty),
            ("encoder_repetition_penalty", self.encoder_repetition_penalty),
        ] {
            check(penalty.is_finite() && penalty as f32 > 0.0, name, "a finite number above 0", penalty)?;
        }
        let rows = self.num_return_sequences;
        check(rows >= 1, "num_return_sequences", "at least 1", rows)?;
        let hint = format!("at most {MAX_ROWS} sequences, prompts x num_return_sequences");
        let in_all = prompts.saturating_mul(rows);
        check(in_all <= MAX_ROWS, "num_return_sequences", &hint, format_args!("{prompts} x {rows}"))?;
        let beams = self.num_beams;
        check(beams >= 1, "num_beams", "at least 1", beams)?;
        if beams > 1 {
            let hint = format!("at most num_beams ({beams})");
            check(rows <= beams, "num_return_sequences", &hint, rows)?;
            let penalty = self.length_penalty;
            check(penalty.is_finite(), "length_penalty", "a finite number", penalty)?;
            let given = self.logprobs.map_or(0, |count| count);
            check(self.logprobs.is_none(), "logprobs", "nothing with num_beams above 1", given)?;
        } else {
            let hint = "1 without sampling or beams (set do_sample or num_beams for several different rows)";
            check(rows == 1 || self.do_sample, "num_return_sequences", hint, rows)?;
        }
        let one = in_all == 1 && beams == 1;
        check(one || !self.keep, "keep", "false for more than one row, and with beams", self.keep)?;
        if let Seed::PerPrompt(seeds) = &self.seed {
            let hint = format!("one seed per prompt ({prompts})");
            check(seeds.len() == prompts, "seed", &hint, format_args!("{} seeds", seeds.len()))?;
        }
        Ok(())
    }

    /// Checks that the output of so many prompts fits into memory.
    ///
    /// # Errors
    /// `Option` with what would fit.
    pub(super) fn check_memory(&self, prompts: usize) -> Result<()> {
        let rows = self.num_return_sequences.saturating_mul(prompts);
        let each = ROW_BYTES.saturating_add(TOKEN_BYTES.saturating_mul(self.limit.tokens()));
        headroom::check("num_return_sequences", "sequences of all prompts together", rows, each)
    }

    /// Checks that all tokens of all beams of a search can be told apart.
    ///
    /// # Errors
    /// `Option` with the most beams.
    pub(super) fn check_beams(&self, vocab_size: usize) -> Result<()> {
        let most = u32::MAX as usize / vocab_size.max(1);
        let hint = format!("at most {most} with a vocabulary of {vocab_size}");
        check(self.num_beams <= most, "num_beams", &hint, self.num_beams)
    }

    /// New tokens of a prompt of `prompt_length` positions.
    ///
    /// # Errors
    /// `ContextLength` where an explicit length does not fit or the prompt leaves no room; `Option` where `max_length`
    /// does not exceed the prompt.
    pub fn max_new_tokens(&self, prompt_length: usize, context: ContextLength) -> Result<usize> {
        let context = if matches!(self.limit, Limit::Default(_)) { context.of_no_length() } else { context };
        let limit = context.limit.unwrap_or(usize::MAX);
        let wanted = match self.limit {
            Limit::NewTokens(count) => count,
            Limit::UpToNewTokens(count) | Limit::Default(count) => {
                count.min(limit.saturating_sub(prompt_length)).max(1)
            }
            Limit::Length(length) if length <= prompt_length => {
                return Err(Error::Option {
                    option: "max_length".to_owned(),
                    expected: format!(
                        "more than the {prompt_length} positions of the prompt (max_new_tokens counts new ones only)"
                    ),
                    got: length.to_string(),
                });
            }
            Limit::Length(length) => length - prompt_length,
        };
        let requested = prompt_length.saturating_add(wanted);
        // The last new token is never fed back, so a count of new tokens may end one past the positions, as in transformers.
        let unfed = usize::from(matches!(self.limit, Limit::NewTokens(_)) && prompt_length <= limit);
        if requested - unfed > limit {
            return Err(Error::ContextLength { limit, requested, reason: context.reason });
        }
        Ok(wanted)
    }

    /// The processors asked for, in the order of transformers.
    pub(crate) fn processors(&self) -> Vec<Processor> {
        let ending = [self.eos_token_ids.as_slice(), self.stop_token_ids.as_slice()].concat();
        let mut list = Vec::new();
        if self.encoder_repetition_penalty != 1.0 {
            list.push(Processor::EncoderRepetitionPenalty { penalty: self.encoder_repetition_penalty });
        }
        if self.repetition_penalty != 1.0 {
            list.push(Processor::RepetitionPenalty { penalty: self.repetition_penalty });
        }
        if self.no_repeat_ngram_size > 0 {
            list.push(Processor::NoRepeatNgram { size: self.no_repeat_ngram_size });
        }
        if self.encoder_no_repeat_ngram_size > 0 {
            list.push(Processor::EncoderNoRepeatNgram { size: self.encoder_no_repeat_ngram_size });
        }
        // transformers sets min_length from min_new_tokens where both are given.
        if self.min_length > 0 && self.min_new_tokens == 0 && !ending.is_empty() {
            list.push(Processor::MinLength { length: self.min_length, ending: ending.clone() });
        }
        if self.min_new_tokens > 0 && !ending.is_empty() {
            list.push(Processor::MinNewTokens { tokens: self.min_new_tokens, ending });
        }
        list
    }

    /// The warpers asked for, in the order of transformers.
    pub(crate) fn warpers(&self) -> Vec<Warper> {
        let mut list = Vec::new();
        if self.temperature != 1.0 {
            list.push(Warper::Temperature(self.temperature));
        }
        if let Some(k) = self.top_k.filter(|&k| k > 0) {
            list.push(Warper::TopK(k));
        }
        if self.top_p < 1.0 {
            list.push(Warper::TopP(self.top_p));
        }
        if let Some(p) = self.min_p {
            list.push(Warper::MinP(p));
        }
        list
    }
}

/// `Error::Option` unless `good`.
fn check(good: bool, option: &str, expected: &str, got: impl std::fmt::Display) -> Result<()> {
    if good {
        return Ok(());
    }
    Err(Error::Option { option: option.to_owned(), expected: expected.to_owned(), got: got.to_string() })
}
