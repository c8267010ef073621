//! Processors: what changes the scores of all tokens before one is chosen, with or without sampling.
//!
//! The order is that of transformers 5.24 (`GenerationMixin._get_logits_processor`), and so is the arithmetic: options
//! are rounded to f32 and applied to f32 scores. What only sampling applies stands in `warpers`.

use crate::decode::scratch::Scratch;

/// What a processor may look at beside the scores.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Token ids of the row so far: the prompt's (none for a prompt of embeddings), then the generated ones.
    pub tokens: &'a [u32],
    /// Positions of the row so far, embeddings included.
    pub length: usize,
    /// Generated tokens among them.
    pub generated: usize,
    /// Ids that went into the encoder; for a decoder-only model, the prompt.
    pub source: &'a [u32],
}

/// One change to the scores.
#[derive(Debug, Clone, PartialEq)]
pub enum Processor {
    /// Makes every id of the source likelier (Keskar et al. 2019, arXiv:1909.05858, inverted).
    EncoderRepetitionPenalty {
        /// Above 1: the source's ids are preferred.
        penalty: f64,
    },
    /// Divides positive scores of ids already in the row by `penalty`, multiplies negative ones (arXiv:1909.05858).
    RepetitionPenalty {
        /// Above 1: less repetition.
        penalty: f64,
    },
    /// Forbids every token that would complete an n-gram the row already has.
    NoRepeatNgram {
        /// Length of the n-gram, at least 1.
        size: usize,
    },
    /// Forbids every token that would complete an n-gram of the source.
    EncoderNoRepeatNgram {
        /// Length of the n-gram, at least 1.
        size: usize,
    },
    /// Forbids the ending ids while the row, prompt included, is shorter than `length`.
    MinLength {
        /// Positions, prompt included.
        length: usize,
        /// Ids that would end the row.
        ending: Vec<u32>,
    },
    /// Forbids the ending ids while there are fewer than `tokens` new ones.
    MinNewTokens {
        /// New tokens.
        tokens: usize,
        /// Ids that would end the row.
        ending: Vec<u32>,
    },
}

/// The processors of a request, in order.
#[derive(Debug, Default)]
pub struct Processors {
    list: Vec<Processor>,
}

impl Processors {
    /// Applies the processors of `list` one after the other.
    pub fn new(list: Vec<Processor>) -> Self {
        Self { list }
    }

    /// Whether scores pass unchanged.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Changes `scores` (`V` values, one per token) in place.
    pub fn apply(&self, context: &Context<'_>, scores: &mut [f32], scratch: &mut Scratch) {
        for processor in &self.list {
            match processor {
                Processor::EncoderRepetitionPenalty { penalty } => {
                    penalize(&mut scratch.seen, context.source, (1.0 / penalty) as f32, scores);
                }
                Processor::RepetitionPenalty { penalty } => {
                    penalize(&mut scratch.seen, context.tokens, *penalty as f32, scores);
                }
                Processor::NoRepeatNgram { size } => {
                    ban_ngrams(context.tokens, context.tokens, *size, scores);
                }
                Processor::EncoderNoRepeatNgram { size } => {
                    ban_ngrams(context.source, context.tokens, *size, scores);
                }
                Processor::MinLength { length, ending } => {
                    if context.length < *length {
                        ban(ending, scores);
                    }
                }
                Processor::MinNewTokens { tokens, ending } => {
                    if context.generated < *tokens {
                        ban(ending, scores);
                    }
                }
            }
        }
    }
}

/// Marks of ids already met; cleared in constant time.
#[derive(Debug, Default)]
pub(super) struct Seen {
    marks: Vec<u32>,
    round: u32,
}

impl Seen {
    /// Starts a round over `vocab_size` ids.
    fn begin(&mut self, vocab_size: usize) {
        if self.marks.len() != vocab_size || self.round == u32::MAX {
            self.marks.clear();
            self.marks.resize(vocab_size, 0);
            self.round = 0;
        }
        self.round += 1;
    }

    /// Whether `id` is met for the first time in this round.
    fn first(&mut self, id: usize) -> bool {
        std::mem::replace(&mut self.marks[id], self.round) != self.round
    }
}

/// Penalizes each distinct id of `tokens` once. Ids that have no score are left out, as transformers does.
fn penalize(seen: &mut Seen, tokens: &[u32], penalty: f32, scores: &mut [f32]) {
    seen.begin(scores.len());
    for &token in tokens {
        let id = token as usize;
        if id < scores.len() && seen.first(id) {
            let score = &mut scores[id];
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
}

/// Forbids what would complete, after the last `size - 1` of `tokens`, an n-gram that stands in `text`.
fn ban_ngrams(text: &[u32], tokens: &[u32], size: usize, scores: &mut [f32]) {
    if tokens.len() + 1 < size {
        return;
    }
    let prefix = &tokens[tokens.len() + 1 - size..];
    for window in text.windows(size) {
        let (start, last) = window.split_at(size - 1);
        if start == prefix {
            ban(last, scores);
        }
    }
}

/// Forbids ids; those that have no score are left out.
fn ban(ids: &[u32], scores: &mut [f32]) {
    for &id in ids {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = f32::NEG_INFINITY;
        }
    }
}
