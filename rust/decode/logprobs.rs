//! Log-probabilities: the log-softmax of raw scores and its best entries.

use crate::decode::sampler::{Unusable, largest, maximum};
use crate::decode::scratch::Scratch;
use crate::kernels::Scans;

/// What is known about one generated token before any processor changed the scores.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the token's probability under the model.
    pub logprob: f32,
    /// The most probable ids with theirs, best first; the lower id first where they are equal.
    pub best: Vec<(u32, f32)>,
}

/// The normalizer of a log-softmax: `log_softmax(x) = x - maximum - log_sum`, in this order, in f32 as torch does it.
#[derive(Debug, Clone, Copy)]
pub struct Normalizer {
    maximum: f32,
    log_sum: f32,
}

impl Normalizer {
    /// Of `scores`; the sum is formed in f64.
    ///
    /// # Errors
    /// `Unusable` where there are no probabilities: a NaN, plus infinity, minus infinity alone.
    pub fn new(scans: &Scans, scores: &[f32]) -> Result<Self, Unusable> {
        let maximum = maximum(scans, scores)?;
        if maximum == f32::NEG_INFINITY {
            return Err(Unusable::AllForbidden);
        }
        if maximum == f32::INFINITY {
            return Err(Unusable::Infinite);
        }
        Ok(Self { maximum, log_sum: scans.sum_of_exponentials(scores, maximum).ln() as f32 })
    }

    /// The log-probability of a score.
    pub fn apply(self, score: f32) -> f32 {
        score - self.maximum - self.log_sum
    }

    /// Turns all scores into log-probabilities.
    pub fn normalize(self, scans: &Scans, scores: &mut [f32]) {
        scans.subtract(scores, self.maximum, self.log_sum);
    }
}

/// Log-probability of `token` and the `count` best of all, from raw scores.
///
/// # Errors
/// As [`Normalizer::new`].
pub fn token_logprobs(
    scores: &[f32],
    token: u32,
    count: usize,
    scratch: &mut Scratch,
) -> Result<TokenLogprobs, Unusable> {
    let normalizer = Normalizer::new(scratch.scans, scores)?;
    largest(scores, count, scratch);
    Ok(TokenLogprobs {
        logprob: normalizer.apply(scores[token as usize]),
        best: scratch.best.iter().map(|&(id, score)| (id, normalizer.apply(score))).collect(),
    })
}
