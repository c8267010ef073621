//! One step of a decoder as a transaction: segments are checked, their positions reserved, the program run, and afterwards the
//! positions become part of the sequences or are given up.

use std::sync::Arc;

use super::decoder::{Input, Segment, Sequence};
use super::sequence::DecoderSequence;
use crate::error::{Error, Result};
use crate::execute::{Buffers, Executor, Inputs, Plan, Trace};
use crate::team::{self, Cancel};

/// What a model holds every segment to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Width of an embedding row, `D`.
    pub(super) width: usize,
    /// Size of the vocabulary, `V`.
    pub(super) vocab: usize,
    /// Largest number of positions of a sequence, or `None` without a limit.
    pub(super) context: Option<usize>,
}

impl Bounds {
    /// Checks what a segment appends to `len` positions; returns its rows.
    fn check(self, input: Input<'_>, len: usize) -> Result<usize> {
        let option = |option: &str, expected: String, got: String| {
            Err(Error::Option { option: option.to_owned(), expected, got })
        };
        let rows = input.rows(self.width);
        match input {
            Input::Tokens(ids) => {
                if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab) {
                    let expected = format!("less than the vocabulary size {}", self.vocab);
                    return option("token id", expected, id.to_string());
                }
            }
            Input::Embeddings(e) if !e.len().is_multiple_of(self.width) => {
                let got = format!("{} values", e.len());
                return option("embeddings", format!("rows of {} values", self.width), got);
            }
            Input::Embeddings(_) => {}
        }
        if rows == 0 {
            return option("input", "at least one token or embedding row".to_owned(), "none".to_owned());
        }
        match self.context {
            Some(limit) if len + rows > limit => Err(Error::ContextLength { limit, requested: len + rows }),
            _ => Ok(rows),
        }
    }
}

/// Appends every segment to its sequence and leaves the wanted rows' logits in `logits`, `W × V`.
///
/// # Errors
/// Those of the executor; `Option` for an id past the vocabulary, a wrong width or an empty segment; `ContextLength`. On an
/// error every sequence is as it was before.
pub(super) fn run(
    executor: Executor<'_>,
    bounds: Bounds,
    segments: &mut [Segment<'_, DecoderSequence>],
    logits: &mut Vec<f32>,
    cancel: &Cancel<'_>,
    trace: Option<&Trace>,
) -> Result<()> {
    let mut wanted = 0;
    for segment in segments.iter() {
        wanted += segment.logits.count(bounds.check(segment.input, segment.sequence.len())?);
    }
    let floats = wanted * bounds.vocab;
    // What is left of the last step is written over, all of it; an error from here on clears it.
    logits.truncate(floats);
    if logits.try_reserve(floats - logits.len()).is_err() {
        logits.clear();
        return Err(Error::OutOfMemory { what: "logits".to_owned(), bytes: floats * size_of::<f32>() });
    }
    logits.resize(floats, 0.0);
    if segments.is_empty() {
        return Ok(());
    }
    let mut turn = team::turn(executor.runtime.threads, cancel).inspect_err(|_| logits.clear())?;
    let mut buffers = Buffers::take();
    let result = reserve(segments, bounds.width, &mut buffers.plan).and_then(|()| {
        let segments = &*segments;
        let of = |i: usize| segments[i].input;
        executor.run(&mut turn, &mut buffers, Inputs { of: &of, cancel, trace }, logits)?;
        Ok(())
    });
    for segment in segments.iter_mut() {
        match result {
            Ok(()) => segment.sequence.cache.advance(segment.input.rows(bounds.width)),
            Err(_) => segment.sequence.cache.abandon(),
        }
    }
    if result.is_err() {
        logits.clear();
    }
    result
}

/// Gets every segment's positions and notes where they are, and what they look at.
fn reserve(segments: &mut [Segment<'_, DecoderSequence>], width: usize, plan: &mut Plan) -> Result<()> {
    let mut last = std::ptr::null();
    for Segment { sequence, input, logits } in segments {
        let rows = input.rows(width);
        sequence.cache.reserve(rows)?;
        let position = sequence.len();
        plan.add(rows, position, logits.count(rows), |blocks| sequence.cache.pointers(blocks));
        if let Some(output) = sequence.encoder_output() {
            let here = Arc::as_ptr(output);
            if std::mem::replace(&mut last, here) == here {
                plan.look_at_the_same();
            } else {
                plan.look_at(output.keys_values.len(), |blocks| output.keys_values.pointers(blocks));
            }
        }
    }
    Ok(())
}
