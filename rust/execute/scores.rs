//! What a step says of given tokens: the head's product some rows at a time, each reduced to a few numbers before the next.
//!
//! The logits of a long text are more than all of its other activations: at a vocabulary of 150,000 a row has 600 kB. Whoever asks
//! how probable a token was needs a maximum, a sum and one logit of its row.

use crate::kernels::Scans;
use crate::layers::linear::{Epilogue, Linear, Prepared};
use crate::layers::{Context, Rows, stride};
use crate::team::Stop;

/// Bytes of logits that are there at once, unless one row has more.
pub const LOGITS_BYTES: usize = 32 << 20;

/// A token that a row is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Place among the wanted rows of the step.
    pub row: usize,
    /// Id below the vocabulary size.
    pub token: u32,
}

/// What a row says of a token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Scored {
    /// Natural logarithm of its probability, computed in double precision from the row's logits. NaN where these give no probabilities.
    pub logprob: f64,
    /// Whether its logit is the largest, and the first of those that are equal.
    pub is_best: bool,
}

/// How many of the wanted rows have their logits there at once.
pub fn side_by_side(wanted: usize, vocab: usize) -> usize {
    wanted.min((LOGITS_BYTES / (stride(vocab) * size_of::<f32>()).max(1)).max(1))
}

/// What a row of logits says of some tokens; `scored` has a place for each.
pub fn score_row(scans: &Scans, logits: &[f32], asked: &[Asked], scored: &mut [Scored]) {
    if asked.is_empty() {
        return;
    }
    let maximum = scans.maximum(logits);
    // A logit that is no number is taken for the largest, as torch does.
    let best = match maximum.is_nan() {
        true => logits.iter().position(|logit| logit.is_nan()),
        false => scans.position(logits, maximum),
    };
    let log_sum = match maximum.is_nan() {
        true => f64::NAN,
        false => scans.sum_in_double(logits, maximum).ln(),
    };
    for (asked, scored) in std::iter::zip(asked, scored) {
        let token = asked.token as usize;
        let logprob = f64::from(logits[token]) - f64::from(maximum) - log_sum;
        *scored = Scored { logprob, is_best: best == Some(token) };
    }
}

/// Answers to what is asked, each written by one member.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScoresWriter<'a> {
    asked: &'a [Asked],
    scored: *mut Scored,
}

// SAFETY: the pointer is written by each member in rows of its own.
unsafe impl Send for ScoresWriter<'_> {}
// SAFETY: as above.
unsafe impl Sync for ScoresWriter<'_> {}

impl<'a> ScoresWriter<'a> {
    /// The answers of a step that lasts no longer than `scored` is borrowed; there is a place for each that is asked.
    pub(super) fn new(asked: &'a [Asked], scored: &'a mut [Scored]) -> Self {
        assert!(asked.len() == scored.len(), "a place for every answer");
        Self { asked, scored: scored.as_mut_ptr() }
    }

    /// Multiplies as many rows as `logits` has room for, and answers what they are asked, until all rows have been.
    ///
    /// # Errors
    /// [`Stop`] from the barriers.
    pub(super) fn write<'r>(
        self,
        ctx: &Context<'_>,
        head: &Linear,
        rows: Rows<'r>,
        prepare: impl Fn(Rows<'r>) -> Result<Prepared<'r>, Stop>,
        logits: Rows<'_>,
    ) -> Result<(), Stop> {
        let scans = ctx.runtime.kernels.scans();
        for first in (0..rows.rows()).step_by(logits.rows().max(1)) {
            if first > 0 {
                // Logits and what was packed are written over.
                ctx.member.barrier()?;
            }
            let part = rows.part(first..rows.rows().min(first + logits.rows()));
            let (x, logits) = (prepare(part)?, logits.first(part.rows()));
            head.forward(ctx, x, logits, Epilogue::NOTHING);
            ctx.member.barrier()?;
            for row in ctx.member.share(part.rows()) {
                let from = self.asked.partition_point(|asked| asked.row < first + row);
                let count = self.asked[from..].partition_point(|asked| asked.row == first + row);
                // SAFETY: nobody writes logits before the next barrier, and the answers of a row are this member's alone.
                unsafe {
                    let scored = std::slice::from_raw_parts_mut(self.scored.add(from), count);
                    score_row(scans, logits.row(row), &self.asked[from..from + count], scored);
                }
            }
        }
        Ok(())
    }
}
