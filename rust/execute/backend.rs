//! A device that runs programs in the team's place: it is given the same plan and leaves the same results.

use std::fmt::Debug;

use super::plan::Plan;
use super::scores::{Asked, Scored, score_row};
use super::{Inputs, Results};
use crate::error::Result;
use crate::kernels::Scans;
use crate::layers::Rows;
use crate::program::Program;

/// What runs one program on a device.
pub trait Backend: Debug + Send + Sync {
    /// Runs a step. What it leaves is in the host's memory when it returns.
    ///
    /// # Errors
    /// `OutOfMemory`, `Cancelled`, and those of the device.
    fn run(&self, step: Remote<'_, '_>) -> Result<()>;

    /// Rows of the program's table of token embeddings, one for each id, which is less than the vocabulary's size.
    ///
    /// # Errors
    /// `OutOfMemory`, and those of the device.
    fn embed(&self, program: &Program, ids: &[u32], rows: &mut [f32]) -> Result<()>;

    /// Bytes of the device's memory that steps have taken.
    fn activation_bytes(&self) -> usize;

    /// Runs `steps` steps of one row for each sequence, each of which appends the first of the largest logits of the one before, and
    /// leaves what was chosen in `ids`, a row for each step; `u32::MAX` where a row's logits say nothing.
    ///
    /// # Errors
    /// As for [`Backend::run`].
    fn argmax(
        &self,
        program: &Program,
        plan: &Plan,
        inputs: Inputs<'_>,
        steps: usize,
        ids: &mut [u32],
    ) -> Result<()>;
}

/// A step for a device.
pub struct Remote<'a, 'i> {
    /// The forward.
    pub program: &'a Program,
    /// The rows.
    pub plan: &'a Plan,
    /// What the rows of each span are.
    pub inputs: Inputs<'i>,
    /// What is left of the wanted rows.
    pub results: Results<'a>,
    /// Where the rows go that the program ends in, where it has no head and somebody wants them.
    pub last: Option<Rows<'a>>,
    /// Scans of scores.
    pub scans: &'a Scans,
}

impl Remote<'_, '_> {
    /// Answers what is asked of rows from `first` on, from their logits.
    pub fn score(
        scans: &Scans,
        asked: &[Asked],
        scored: &mut [Scored],
        first: usize,
        logits: &[f32],
        vocab: usize,
    ) {
        for (row, logits) in logits.chunks_exact(vocab.max(1)).enumerate() {
            let from = asked.partition_point(|asked| asked.row < first + row);
            let end = asked.partition_point(|asked| asked.row <= first + row);
            score_row(scans, logits, &asked[from..end], &mut scored[from..end]);
        }
    }
}
