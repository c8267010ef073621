//! When a row is done: end-of-sequence ids, stop ids, length. Strings are the text layer's affair.

/// Why a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model produced one of `eos_token_ids`.
    Eos,
    /// One of `stop_token_ids`, or the caller ended the row (a stop string).
    Stop,
    /// The row reached its length.
    Length,
}

impl FinishReason {
    /// The name that the outside knows: "eos", "stop" or "length".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Ids that end a row.
#[derive(Debug, Clone, Default)]
pub struct Stopping {
    eos_token_ids: Vec<u32>,
    stop_token_ids: Vec<u32>,
}

impl Stopping {
    /// Ends rows at any of these ids.
    pub fn new(eos_token_ids: &[u32], stop_token_ids: &[u32]) -> Self {
        Self { eos_token_ids: eos_token_ids.to_vec(), stop_token_ids: stop_token_ids.to_vec() }
    }

    /// Every id that ends a row, as given; what transformers would have in `eos_token_id`.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.eos_token_ids.iter().chain(&self.stop_token_ids).copied()
    }

    /// How many ids there are, repeated ones counted as often as given.
    pub fn id_count(&self) -> usize {
        self.eos_token_ids.len() + self.stop_token_ids.len()
    }

    /// Whether a row ends with `token`, its `generated`-th new token of at most `max_new_tokens`.
    pub fn check(&self, token: u32, generated: usize, max_new_tokens: usize) -> Option<FinishReason> {
        if self.eos_token_ids.contains(&token) {
            Some(FinishReason::Eos)
        } else if self.stop_token_ids.contains(&token) {
            Some(FinishReason::Stop)
        } else if generated >= max_new_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}
