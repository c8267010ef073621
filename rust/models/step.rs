//! What every decoder does around its forward: checks the segments, reserves their positions, lists the wanted rows, and
//! afterwards makes the positions part of the sequences or gives them up.

use std::sync::Mutex;

use super::{Input, Segment, Wanted};
use crate::error::{Error, Result};
use crate::kv::Sequence;
use crate::layers::attention::{Batch, Span};
use crate::layers::embedding::Source;

/// The rows of a step.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Number of rows, `M`.
    pub rows: usize,
    /// What the rows are, one entry per segment.
    pub sources: Vec<Source<'a>>,
    /// Where their keys and values go.
    pub batch: Batch,
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
    segments: &mut [Segment<'_, Sequence>],
    width: usize,
    vocab: usize,
    limit: Option<usize>,
    logits: &mut Vec<f32>,
    forward: impl FnOnce(&Plan<'_>, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let mut plan = Plan { rows: 0, sources: Vec::new(), batch: Batch::default(), wanted: Vec::new() };
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
    logits.clear();
    logits
        .try_reserve(floats)
        .map_err(|_| Error::OutOfMemory { what: "logits".to_owned(), bytes: floats * 4 })?;
    logits.resize(floats, 0.0);
    let result = reserve(segments, &counts, &mut plan)
        .and_then(|()| if plan.rows == 0 { Ok(()) } else { forward(&plan, logits) });
    for (s, n) in segments.iter_mut().zip(counts) {
        match result {
            Ok(()) => s.sequence.advance(n),
            Err(_) => s.sequence.abandon(),
        }
    }
    if result.is_err() {
        logits.clear();
    }
    result
}

/// Gets every segment's positions and notes where they are.
fn reserve(segments: &mut [Segment<'_, Sequence>], counts: &[usize], plan: &mut Plan<'_>) -> Result<()> {
    for ((s, &n), source) in segments.iter_mut().zip(counts).zip(&plan.sources) {
        s.sequence.reserve(n)?;
        let block = plan.batch.blocks.len();
        s.sequence.pointers(&mut plan.batch.blocks);
        plan.batch.spans.push(Span { row: source.row, rows: n, position: source.position, block });
    }
    Ok(())
}
