//! What every decoder does around its forward: checks the segments, reserves their positions, lists the wanted rows, and
//! afterwards makes the positions part of the sequences or gives them up. And what forwards share: buffers that wait for
//! the next step, the trace, logits on their way out.

use std::fmt::Arguments;
use std::sync::Mutex;

use super::memory::Cached;
use super::{Input, Segment, Sequence, Wanted};
use crate::error::{Error, Result};
use crate::layers::attention::{Batch, Span};
use crate::layers::embedding::Source;
use crate::layers::linear::{Linear, Then};
use crate::layers::{Context, Rows};
use crate::team::Stop;

/// The rows of a step.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Number of rows, `M`.
    pub rows: usize,
    /// What the rows are, one entry per segment.
    pub sources: Vec<Source<'a>>,
    /// Where their keys and values go.
    pub batch: Batch,
    /// The memories that they look at, in a model with an encoder.
    pub memories: Batch,
    /// Rows whose logits are wanted, ascending.
    pub wanted: Vec<usize>,
}

/// Activations by name, in the order in which they were shown.
#[derive(Debug, Default)]
pub struct Trace {
    entries: Mutex<Vec<Activation>>,
}

/// One shown activation.
#[derive(Debug, Clone)]
pub struct Activation {
    /// Name of the module that made it, as in the checkpoint.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Values, row-major.
    pub values: Vec<f32>,
}

impl Trace {
    /// Adds an activation.
    pub fn note(&self, name: &str, shape: [usize; 2], values: Vec<f32>) {
        if let Ok(mut entries) = self.entries.lock() {
            entries.push(Activation { name: name.to_owned(), shape, values });
        }
    }

    /// All activations.
    pub fn into_entries(self) -> Vec<Activation> {
        self.entries.into_inner().unwrap_or_default()
    }
}

/// Shows rows to the trace, if there is one: the first member copies, the others wait.
///
/// # Errors
/// [`Stop`] from the barriers.
pub fn show(
    ctx: &Context<'_>,
    trace: Option<&Trace>,
    name: Arguments<'_>,
    rows: Rows<'_>,
) -> Result<(), Stop> {
    let Some(trace) = trace else { return Ok(()) };
    ctx.member.barrier()?;
    if ctx.member.index() == 0 {
        // SAFETY: all members are between this barrier and the next, and write nothing.
        let values = (0..rows.rows()).flat_map(|r| unsafe { rows.row(r) }).copied().collect();
        trace.note(&name.to_string(), [rows.rows(), rows.width()], values);
    }
    ctx.member.barrier()
}

/// Where a step's logits go: `W × V` without padding, each member writing pieces of its own.
#[derive(Debug, Clone, Copy)]
pub struct Out(*mut f32);

// SAFETY: the pointer is written by each member in pieces of its own.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// The logits of a step that lasts no longer than `logits` is borrowed.
    pub fn new(logits: &mut [f32]) -> Self {
        Self(logits.as_mut_ptr())
    }

    /// Logits of the rows: this member's pieces of the head's product, without the padding.
    ///
    /// # Errors
    /// [`Stop`] from a barrier.
    pub fn logits(
        self,
        ctx: &Context<'_>,
        head: &Linear,
        rows: Rows<'_>,
        logits: Rows<'_>,
    ) -> Result<(), Stop> {
        let (vocab, x) = (head.weight().outputs(), head.prepare(ctx, rows)?);
        for piece in head.pieces(ctx, x) {
            head.product(ctx, &piece, x, logits, Then::NOTHING);
            let columns = piece.columns;
            for r in piece.rows {
                // SAFETY: this member has just written this piece; the output has a row of `V` per wanted row.
                unsafe {
                    let from = logits.at(r, columns.start);
                    std::ptr::copy_nonoverlapping(from, self.0.add(r * vocab + columns.start), columns.len());
                }
            }
        }
        Ok(())
    }
}

/// Buffers that wait for the next step; a step that finds none makes its own.
#[derive(Debug, Default)]
pub struct Spare<T>(Mutex<Vec<T>>);

impl<T: Default> Spare<T> {
    /// One of them, or a new one.
    pub fn take(&self) -> T {
        self.0.try_lock().ok().and_then(|mut spare| spare.pop()).unwrap_or_default()
    }

    /// Keeps it for another step.
    pub fn put(&self, buffers: T) {
        if let Ok(mut spare) = self.0.try_lock() {
            spare.push(buffers);
        }
    }
}

/// Number of rows of a segment.
fn rows(input: Input<'_>, width: usize) -> usize {
    match input {
        Input::Tokens(ids) => ids.len(),
        Input::Embeddings(e) => e.len() / width,
    }
}

/// Checks what a segment appends.
fn check(input: Input<'_>, width: usize, vocab: usize, len: usize, limit: Option<usize>) -> Result<usize> {
    let option = |option: &str, expected: String, got: String| {
        Err(Error::Option { option: option.to_owned(), expected, got })
    };
    let n = rows(input, width);
    match input {
        Input::Tokens(ids) => {
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
                return option("token id", format!("less than the vocabulary size {vocab}"), id.to_string());
            }
        }
        Input::Embeddings(e) if !e.len().is_multiple_of(width) => {
            let got = format!("{} values", e.len());
            return option("embeddings", format!("rows of {width} values"), got);
        }
        Input::Embeddings(_) => {}
    }
    if n == 0 {
        return option("input", "at least one token or embedding row".to_owned(), "none".to_owned());
    }
    match limit {
        Some(limit) if len + n > limit => Err(Error::ContextLength { limit, requested: len + n }),
        _ => Ok(n),
    }
}

/// Runs one step: `forward` fills the plan's positions and the wanted logits, `W × V`.
///
/// # Errors
/// Those of `forward`; `Option` for an id past the vocabulary, a wrong width or an empty segment; `ContextLength`;
/// `OutOfMemory`. On an error every sequence is as it was before.
pub fn run(
    segments: &mut [Segment<'_, Cached>],
    width: usize,
    vocab: usize,
    limit: Option<usize>,
    logits: &mut Vec<f32>,
    forward: impl FnOnce(&Plan<'_>, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let mut plan = Plan {
        rows: 0,
        sources: Vec::new(),
        batch: Batch::default(),
        memories: Batch::default(),
        wanted: Vec::new(),
    };
    let mut counts = Vec::with_capacity(segments.len());
    for s in segments.iter() {
        let n = check(s.input, width, vocab, s.sequence.len(), limit)?;
        let position = s.sequence.len();
        plan.sources.push(Source { row: plan.rows, position, input: s.input });
        match s.logits {
            Wanted::Nothing => {}
            Wanted::Last => plan.wanted.push(plan.rows + n - 1),
            Wanted::All => plan.wanted.extend(plan.rows..plan.rows + n),
        }
        counts.push(n);
        plan.rows += n;
    }
    let floats = plan.wanted.len() * vocab;
    // What is left of the last step is written over, all of it; an error from here on clears it.
    logits.truncate(floats);
    if logits.try_reserve(floats - logits.len()).is_err() {
        logits.clear();
        return Err(Error::OutOfMemory { what: "logits".to_owned(), bytes: floats * 4 });
    }
    logits.resize(floats, 0.0);
    let result = reserve(segments, &counts, &mut plan)
        .and_then(|()| if plan.rows == 0 { Ok(()) } else { forward(&plan, logits) });
    for (s, n) in segments.iter_mut().zip(counts) {
        match result {
            Ok(()) => s.sequence.cache.advance(n),
            Err(_) => s.sequence.cache.abandon(),
        }
    }
    if result.is_err() {
        logits.clear();
    }
    result
}

/// Gets every segment's positions and notes where they are, and what they look at.
fn reserve(segments: &mut [Segment<'_, Cached>], counts: &[usize], plan: &mut Plan<'_>) -> Result<()> {
    let Plan { batch, memories, sources, .. } = plan;
    let mut last = std::ptr::null();
    for ((s, &rows), source) in segments.iter_mut().zip(counts).zip(sources.iter()) {
        s.sequence.cache.reserve(rows)?;
        let (row, position, keys) = (source.row, source.position, source.position + rows);
        batch.spans.push(Span { row, rows, position, keys, block: batch.blocks.len() });
        s.sequence.cache.pointers(&mut batch.blocks);
        if let Some(memory) = s.sequence.memory() {
            // Neighbours that look at one memory (beams, sequences of one prompt) read it together.
            let here = std::sync::Arc::as_ptr(memory);
            if std::mem::replace(&mut last, here) == here
                && let Some(span) = memories.spans.last_mut().filter(|span| span.row + span.rows == row)
            {
                span.rows += rows;
                continue;
            }
            let keys = memory.keys_values.len();
            memories.spans.push(Span { row, rows, position, keys, block: memories.blocks.len() });
            memory.keys_values.pointers(&mut memories.blocks);
        }
    }
    Ok(())
}
