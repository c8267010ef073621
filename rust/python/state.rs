//! One sequence that is advanced by hand: its cache, its tokens, and the logits after the last of them.
//!
//! All three change together or not at all, whatever other threads and signals do: they lie behind one turn, which a call
//! holds from its beginning to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use super::bytes;
use super::exceptions::{detached, raised};
use super::interrupt::interruptible;
use super::turn::{Taken, Turn};
use crate::engine::{CHUNK, Engine};
use crate::error::{Error, Result};
use crate::models::{Cancel, Decoder, Input, Model, Segment, Sequence, Source, Wanted};

/// Among the tokens, a row that was given as an embedding.
const EMBEDDING: i64 = -1;

/// One sequence, advanced by hand.
#[pyclass(frozen, module = "fastdecode._core")]
pub(super) struct State {
    engine: Arc<Engine<Model>>,
    turn: Turn<Held>,
    /// Whether the logits have to be computed when they are asked for: what is known of them without a turn.
    stale: AtomicBool,
}

/// What a turn is about.
struct Held {
    sequence: <Model as Decoder>::Sequence,
    /// Ids of the positions, or [`EMBEDDING`].
    tokens: Vec<i64>,
    /// Rows of the first positions, where these were given as embeddings; to compute the logits there again.
    embeddings: Arc<[f32]>,
    /// Logits after the last position, unless they are still to be computed.
    logits: Option<Vec<f32>>,
}

#[pymethods]
impl State {
    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.turn.wait(py)?.tokens.len())
    }

    #[getter]
    fn tokens(&self, py: Python<'_>) -> PyResult<Vec<i64>> {
        Ok(self.turn.wait(py)?.tokens.clone())
    }

    /// Logits after the last position, computed again where a truncation forgot them.
    fn logits<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyByteArray>> {
        let mut held = match self.turn.take() {
            Err(_) if !self.stale.load(Ordering::Relaxed) => self.turn.wait(py)?,
            taken => taken.or_else(|busy| raised(py, Err(busy)))?,
        };
        if held.logits.is_none() {
            let (model, held) = (&**self.engine.model(), &mut *held);
            let outcome = interruptible(py, |cancel| held.recompute(model, cancel));
            // A signal that raises may come when the logits are there; they are as good then.
            self.note(held);
            outcome?;
        }
        bytes(py, held.logits.as_deref().unwrap_or_default())
    }

    /// Appends ids; the sequence is read as one that will have `expected` positions at least.
    #[pyo3(signature = (ids, wanted = "last", expected = 0))]
    fn append<'py>(
        &self,
        py: Python<'py>,
        ids: Vec<u32>,
        wanted: &str,
        expected: usize,
    ) -> PyResult<Bound<'py, PyByteArray>> {
        let mut held = self.turn.take_or_raise(py)?;
        let chunks: Vec<_> = ids.chunks(CHUNK).map(Input::Tokens).collect();
        let logits = self.append_chunks(py, &mut held, &chunks, (wanted, expected))?;
        held.tokens.extend(ids.iter().map(|&id| i64::from(id)));
        bytes(py, &logits)
    }

    /// Appends embeddings to a sequence that is empty.
    #[pyo3(signature = (rows, wanted = "last"))]
    fn append_embeddings<'py>(
        &self,
        py: Python<'py>,
        rows: PyBuffer<f32>,
        wanted: &str,
    ) -> PyResult<Bound<'py, PyByteArray>> {
        let (rows, width): (Arc<[f32]>, usize) = (rows.to_vec(py)?.into(), self.engine.model().width());
        let mut held = self.turn.take_or_raise(py)?;
        if !held.tokens.is_empty() {
            let (option, expected) = ("embeddings".to_owned(), "a sequence without tokens".to_owned());
            let got = held.tokens.len().to_string();
            return raised(py, Err(Error::Option { option, expected, got }));
        }
        let chunks: Vec<_> = rows.chunks(CHUNK * width).map(Input::Embeddings).collect();
        let logits = self.append_chunks(py, &mut held, &chunks, (wanted, 0))?;
        held.tokens.resize(rows.len() / width, EMBEDDING);
        held.embeddings = Arc::clone(&rows);
        bytes(py, &logits)
    }

    fn fork(&self, py: Python<'_>) -> PyResult<Self> {
        let held = self.turn.wait(py)?;
        let inner = &*held;
        let fork = detached(py, || Ok(inner.fork()))?;
        Ok(Self::of(&self.engine, fork))
    }

    /// Keeps the first `n` tokens, at least one.
    fn truncate(&self, py: Python<'_>, n: i64) -> PyResult<()> {
        let mut held = self.turn.take_or_raise(py)?;
        let inner = &mut *held;
        detached(py, || inner.truncate(n))?;
        self.note(inner);
        Ok(())
    }
}

impl State {
    /// An empty sequence that looks at `source`.
    pub(super) fn new(engine: &Arc<Engine<Model>>, source: Source) -> Result<Self> {
        let (sequence, embeddings) = (engine.model().start_from(source)?, Arc::default());
        Ok(Self::of(engine, Held { sequence, tokens: Vec::new(), embeddings, logits: None }))
    }

    fn of(engine: &Arc<Engine<Model>>, held: Held) -> Self {
        let stale = AtomicBool::new(held.logits.is_none());
        Self { engine: Arc::clone(engine), turn: Turn::new(held), stale }
    }

    /// Says to those without a turn whether the logits are there.
    fn note(&self, held: &Held) {
        self.stale.store(held.logits.is_none(), Ordering::Relaxed);
    }

    /// All chunks or, on an error or a signal, none; gives the wanted logits. The caller adds the tokens.
    fn append_chunks(
        &self,
        py: Python<'_>,
        held: &mut Taken<'_, Held>,
        chunks: &[Input<'_>],
        (wanted, expected): (&str, usize),
    ) -> PyResult<Vec<f32>> {
        let (model, held) = (&**self.engine.model(), &mut **held);
        let asked = (wanted == "every", expected);
        let (before, sequence) = (held.sequence.len(), &mut held.sequence);
        let rows: usize = chunks.iter().map(|input| input.rows(model.width())).sum();
        let outcome = interruptible(py, |cancel| {
            let block = model.cache_block();
            self.engine.make_room((rows.div_ceil(block.positions)).saturating_mul(block.bytes));
            loop {
                match feed(model, sequence, chunks, asked, cancel) {
                    // What calls have left for others is given up before somebody is refused memory.
                    Err(Error::OutOfMemory { .. }) if self.engine.give_up() => sequence.truncate(before),
                    outcome => return outcome,
                }
            }
        });
        match outcome {
            Ok(logits) => {
                let from = logits.len().saturating_sub(model.vocab_size());
                held.logits = Some(logits[from..].to_vec());
                self.note(held);
                Ok(logits)
            }
            // A signal that raises is an error even where everything was appended meanwhile: that is undone, too.
            Err(error) => {
                detached(py, || {
                    sequence.truncate(before);
                    Ok(())
                })?;
                Err(error)
            }
        }
    }
}

/// Appends chunks to a sequence that will have `expected` positions at least, and gives their logits, all or the last ones.
fn feed(
    model: &Model,
    sequence: &mut <Model as Decoder>::Sequence,
    chunks: &[Input<'_>],
    (every, expected): (bool, usize),
    cancel: &Cancel<'_>,
) -> Result<Vec<f32>> {
    let (mut logits, mut rows) = (Vec::new(), Vec::new());
    let new: usize = chunks.iter().map(|input| input.rows(model.width())).sum();
    sequence.expect(expected.max(sequence.len() + new));
    for (place, &input) in chunks.iter().enumerate() {
        let wanted = match every {
            true => Wanted::All,
            false if place + 1 < chunks.len() => Wanted::Nothing,
            false => Wanted::Last,
        };
        model.forward(
            &mut [Segment { sequence: &mut *sequence, input, logits: wanted }],
            &mut rows,
            cancel,
        )?;
        // Most calls have one chunk, and its rows are what they return.
        if logits.is_empty() {
            std::mem::swap(&mut logits, &mut rows);
        } else {
            logits.append(&mut rows);
        }
    }
    Ok(logits)
}

impl Held {
    fn fork(&self) -> Self {
        Self {
            sequence: self.sequence.fork(),
            tokens: self.tokens.clone(),
            embeddings: Arc::clone(&self.embeddings),
            logits: self.logits.clone(),
        }
    }

    fn truncate(&mut self, n: i64) -> Result<()> {
        let len = self.tokens.len();
        let Some(n) = usize::try_from(n).ok().filter(|n| (1..=len).contains(n)) else {
            let expected = format!("a number of tokens from 1 to {len}");
            return Err(Error::Option { option: "n".to_owned(), expected, got: n.to_string() });
        };
        if n < len {
            self.sequence.truncate(n);
            self.tokens.truncate(n);
            self.logits = None;
        }
        Ok(())
    }

    /// Feeds the last position again, in a fork that takes the sequence's place when this has succeeded.
    fn recompute(&mut self, model: &Model, cancel: &Cancel<'_>) -> Result<()> {
        let Some(last) = self.tokens.len().checked_sub(1) else {
            self.logits = Some(Vec::new());
            return Ok(());
        };
        let mut sequence = self.sequence.fork();
        sequence.truncate(last);
        let (id, width) = (u32::try_from(self.tokens[last]), model.width());
        let input = match &id {
            Ok(id) => Input::Tokens(std::slice::from_ref(id)),
            Err(_) => Input::Embeddings(&self.embeddings[last * width..][..width]),
        };
        self.logits = Some(feed(model, &mut sequence, &[input], (false, 0), cancel)?);
        self.sequence = sequence;
        Ok(())
    }
}
