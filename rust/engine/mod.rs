//! Requests in, tokens out: one engine for all calls of a model. It knows ids, never text.
//!
//! A [`Generation`] is a call as its reader holds it, what was asked for in it is in `request.rs`, what runs of it in
//! `call.rs`. `schedule.rs` composes each step of what all calls add to it, and `lead.rs` says which of the waiting callers computes it.
//! Given tokens are scored apart from the schedule (`score.rs`), by the caller and in steps of their own.

mod beams;
mod budget;
mod call;
mod choice;
mod generation;
mod greedy;
mod item;
mod lead;
mod options;
mod prefix;
mod prefix_cache;
mod progress;
mod prompts;
mod request;
mod room;
mod rows;
mod schedule;
mod score;
mod selector;
mod step;
mod tree;

pub use crate::decode::beam::EarlyStopping;
pub use crate::decode::logprobs::TokenLogprobs;
pub use crate::decode::stopping::FinishReason;
pub use generation::{Canceller, Generation};
pub use lead::Engine;
pub use options::{Limit, Options, Seed};
pub use prefix::Prefix;
pub use prompts::{Prompts, Start};
pub use schedule::{AHEAD, CHUNK};
pub use score::Scoring;
pub use tree::Item;

use crate::decode::sampler::Unusable;
use crate::error::Error;

/// What a caller is asked now and then while it waits or computes: true ends its call.
pub type Hook<'a> = dyn Fn() -> bool + Sync + 'a;

/// One new token of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Row of the call: prompt by prompt, `num_return_sequences` rows each.
    pub row: usize,
    /// The token.
    pub token_id: u32,
    /// Its log-probability and the best ones, where asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Why the row ends with this token, if it does.
    pub finish_reason: Option<FinishReason>,
    /// With beams, on the last token of a row: its sum of log-probabilities over its length to `length_penalty`.
    pub score: Option<f32>,
    /// With beams, on the first token of a row: seconds from when the call was first asked for tokens to the first choice of its search.
    pub first_seconds: Option<f64>,
    /// On the first token of a row: tokens of its prompt that were reused and not read.
    pub cached_tokens: Option<usize>,
}

/// The error of a row that leaves no token to choose.
fn no_choice(row: usize, unusable: Unusable) -> Error {
    Error::Scores {
        row,
        expected: "finite scores, and at least one token that the options allow".to_owned(),
        got: unusable.as_str().to_owned(),
    }
}
