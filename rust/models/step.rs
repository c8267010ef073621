//! One step of a decoder as a transaction: segments are checked, their positions reserved, the program run, and afterwards the
//! positions become part of the sequences or are given up.

use std::sync::Arc;

use super::decoder::{Argmax, Asked, ContextLength, Input, Scored, Segment, Sequence, check_asked};
use super::sequence::{DecoderSequence, EncoderOutput, Read};
use crate::error::{Error, Result};
use crate::execute::{Buffers, Executor, Inputs, Plan, Results, Trace};
use crate::team::Cancel;

/// What a model holds every segment to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Width of an embedding row, `D`.
    pub(super) width: usize,
    /// Size of the vocabulary, `V`.
    pub(super) vocab: usize,
    /// How long a sequence may become.
    pub(super) context: ContextLength,
    /// Positions of the longest sequence in which positions count as in short ones, where they count otherwise in long ones.
    pub(super) border: Option<usize>,
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
        self.context.check(len + rows)?;
        Ok(rows)
    }
}

/// What a step leaves of its wanted rows; on an error nothing is in it.
#[derive(Debug)]
pub(super) enum Left<'a> {
    /// Their logits, `W × V`.
    Logits(&'a mut Vec<f32>),
    /// What they say of the tokens that are asked for.
    Scores(&'a [Asked], &'a mut Vec<Scored>),
}

impl Left<'_> {
    /// Makes room for so many wanted rows. What is left of the last step is written over, all of it.
    fn make_room(&mut self, wanted: usize, vocab: usize) -> Result<()> {
        match self {
            Self::Logits(logits) => {
                let floats = wanted * vocab;
                logits.truncate(floats);
                if logits.try_reserve(floats - logits.len()).is_err() {
                    let bytes = floats * size_of::<f32>();
                    return Err(Error::OutOfMemory { what: "logits".to_owned(), bytes });
                }
                logits.resize(floats, 0.0);
            }
            Self::Scores(asked, scored) => {
                check_asked(asked, wanted, vocab)?;
                scored.clear();
                scored.resize(asked.len(), Scored::default());
            }
        }
        Ok(())
    }

    fn results(&mut self) -> Results<'_> {
        match self {
            Self::Logits(logits) => Results::Logits(logits),
            Self::Scores(asked, scored) => Results::Scores(asked, scored),
        }
    }

    fn clear(&mut self) {
        match self {
            Self::Logits(logits) => logits.clear(),
            Self::Scores(_, scored) => scored.clear(),
        }
    }
}

/// Appends every segment to its sequence and leaves in `left` what is asked of the wanted rows.
///
/// # Errors
/// Those of the executor; `Option` for an id past the vocabulary, a wrong width or an empty segment; `ContextLength`. On an
/// error every sequence is as it was before.
pub(super) fn run(
    executor: Executor<'_>,
    bounds: Bounds,
    segments: &mut [Segment<'_, DecoderSequence>],
    mut left: Left<'_>,
    cancel: &Cancel<'_>,
    trace: Option<&Trace>,
) -> Result<()> {
    let mut wanted = 0;
    for segment in segments.iter() {
        wanted += segment.logits.count(bounds.check(segment.input, segment.sequence.len())?);
    }
    // An error from here on clears what is left.
    if let Err(error) = left.make_room(wanted, bounds.vocab) {
        left.clear();
        return Err(error);
    }
    if segments.is_empty() {
        return Ok(());
    }
    let again = match bounds.border {
        Some(_) => read_again(segments, bounds.width).inspect_err(|_| left.clear())?,
        None => Vec::new(),
    };
    // What is fed for a segment: its own input, behind what the cache lacks of its sequence.
    let lacking = |i: usize| again.get(i).and_then(Option::as_ref);
    let mut turn = executor.turn(cancel).inspect_err(|_| left.clear())?;
    let mut buffers = Buffers::take();
    let result = reserve(segments, bounds.width, lacking, &mut buffers.plan).and_then(|()| {
        let segments = &*segments;
        let of = |i: usize| lacking(i).map_or(segments[i].input, |ids| Input::Tokens(ids));
        executor.run(&mut turn, &mut buffers, Inputs { of: &of, cancel, trace }, left.results())?;
        Ok(())
    });
    for (i, segment) in segments.iter_mut().enumerate() {
        let rows = segment.input.rows(bounds.width);
        match result {
            Ok(()) => {
                segment.sequence.cache.advance(lacking(i).map_or(rows, Vec::len));
                if let Some(read) = &mut segment.sequence.read {
                    match segment.input {
                        Input::Tokens(ids) => read.ids.extend(ids.iter().copied().map(Some)),
                        Input::Embeddings(_) => read.ids.extend(std::iter::repeat_n(None, rows)),
                    }
                }
            }
            Err(_) => segment.sequence.cache.abandon(),
        }
    }
    if result.is_err() {
        left.clear();
    }
    result
}

/// Runs `steps` steps of one row for each sequence on a device, see [`Decoder::argmax`](super::Decoder::argmax). Nothing is done, and `false`
/// returned, where there is no device, or where a sequence's positions would not count as those in its cache do.
///
/// # Errors
/// As for [`run`].
pub(super) fn argmax(
    executor: Executor<'_>,
    bounds: Bounds,
    rows: &mut [Argmax<'_, DecoderSequence>],
    steps: usize,
    ids: &mut Vec<u32>,
    cancel: &Cancel<'_>,
) -> Result<bool> {
    ids.clear();
    let Some(backend) = executor.backend else { return Ok(false) };
    for row in rows.iter() {
        let after =
            bounds.check(Input::Tokens(&[row.token]), row.sequence.len())? + row.sequence.len() + steps - 1;
        bounds.context.check(after)?;
        let other =
            |read: &Read| read.ids.len() != row.sequence.cache.len() || (after > read.border) != read.is_long;
        if row.sequence.read.as_ref().is_some_and(other) {
            return Ok(false);
        }
    }
    let count = rows.len();
    ids.resize(count * steps, 0);
    let _turn = executor.turn(cancel).inspect_err(|_| ids.clear())?;
    let mut buffers = Buffers::take();
    let result = reserve_each(rows, steps, &mut buffers.plan).and_then(|()| {
        let rows = &*rows;
        let of = |i: usize| Input::Tokens(std::slice::from_ref(&rows[i].token));
        let inputs = Inputs { of: &of, cancel, trace: None };
        backend.argmax(executor.program, &buffers.plan, inputs, steps, ids)
    });
    for (i, row) in rows.iter_mut().enumerate() {
        let sequence = &mut *row.sequence;
        if result.is_err() {
            sequence.cache.abandon();
            continue;
        }
        sequence.cache.advance(steps);
        if let Some(read) = &mut sequence.read {
            let chosen = ids.iter().skip(i).step_by(count).map(|&id| Some(id));
            read.ids.extend(std::iter::once(Some(row.token)).chain(chosen).take(steps));
        }
    }
    result.map(|()| true).inspect_err(|_| ids.clear())
}

/// Lets go of keys that are no longer those of their sequence's length, and gives, for every segment whose cache lacks positions, the
/// tokens of those and of the segment.
fn read_again(segments: &mut [Segment<'_, DecoderSequence>], width: usize) -> Result<Vec<Option<Vec<u32>>>> {
    let mut all = Vec::with_capacity(segments.len());
    for Segment { sequence, input, .. } in segments {
        let Some(read) = &mut sequence.read else {
            all.push(None);
            continue;
        };
        let is_long = (read.ids.len() + input.rows(width)).max(read.expected) > read.border;
        let held = if is_long == read.is_long { sequence.cache.len() } else { 0 };
        if held == read.ids.len() {
            read.is_long = is_long;
            all.push(None);
            continue;
        }
        let lacking = read.ids[held..].iter().copied().collect::<Option<Vec<u32>>>();
        let (Some(mut ids), Input::Tokens(new)) = (lacking, *input) else {
            return Err(Error::Option {
                option: "embeddings".to_owned(),
                expected: format!(
                    "token ids in a sequence that crosses {} positions (longrope)",
                    read.border
                ),
                got: "embeddings".to_owned(),
            });
        };
        ids.extend_from_slice(new);
        sequence.cache.truncate(held);
        read.is_long = is_long;
        all.push(Some(ids));
    }
    Ok(all)
}

/// Gets positions for `steps` steps of every row, and notes where they are and what they look at.
fn reserve_each(rows: &mut [Argmax<'_, DecoderSequence>], steps: usize, plan: &mut Plan) -> Result<()> {
    let mut last = std::ptr::null();
    for Argmax { sequence, .. } in rows {
        sequence.cache.reserve(steps)?;
        add(sequence, (1, 1), plan, &mut last);
    }
    Ok(())
}

/// Adds rows of a sequence to a plan, of which the last ones are wanted. `last` is the source that the rows before look at.
fn add(
    sequence: &DecoderSequence,
    (rows, wanted): (usize, usize),
    plan: &mut Plan,
    last: &mut *const EncoderOutput,
) {
    let is_long = sequence.read.as_ref().is_some_and(|read| read.is_long);
    plan.add_of(rows, sequence.cache.len(), wanted, is_long, |blocks| sequence.cache.pointers(blocks));
    if let Some(output) = sequence.encoder_output() {
        let here = Arc::as_ptr(output);
        if std::mem::replace(last, here) == here {
            plan.look_at_the_same();
        } else {
            plan.look_at(output.keys_values.len(), |blocks| output.keys_values.pointers(blocks));
        }
    }
}

/// Gets every segment's positions and notes where they are, and what they look at.
fn reserve<'a>(
    segments: &mut [Segment<'_, DecoderSequence>],
    width: usize,
    lacking: impl Fn(usize) -> Option<&'a Vec<u32>>,
    plan: &mut Plan,
) -> Result<()> {
    let mut last = std::ptr::null();
    for (i, Segment { sequence, input, logits }) in segments.iter_mut().enumerate() {
        let wanted = logits.count(input.rows(width));
        let rows = lacking(i).map_or(input.rows(width), Vec::len);
        sequence.cache.reserve(rows)?;
        add(sequence, (rows, wanted), plan, &mut last);
    }
    Ok(())
}
