//! Sequences on their way: one that is advanced by hand, and those of a call.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use super::bytes;
use super::exceptions::detached;
use super::memory::SourceArgument;
use crate::engine::{Generation as EngineGeneration, Options, PREFILL_CHUNK, Prompt};
use crate::error::Result;
use crate::models::{Decoder, Input, Model, Segment, Sequence, Source, Wanted};

type ModelSequence = <Model as Decoder>::Sequence;

/// A new token: sequence, id, why it was the last one, its log-probability and the best ones, the score of a beam.
type Event = (usize, u32, Option<&'static str>, Option<f32>, Option<Vec<(u32, f32)>>, Option<f32>);

/// What a panic left behind is dropped or consistent: the engine undoes a step that fails.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One sequence, advanced by hand.
#[pyclass(frozen, module = "fastdecode._core")]
pub(super) struct State {
    model: Arc<Model>,
    sequence: Mutex<ModelSequence>,
}

#[pymethods]
impl State {
    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        detached(py, || Ok(lock(&self.sequence).len()))
    }

    #[pyo3(signature = (ids, wanted = "last"))]
    fn append<'py>(&self, py: Python<'py>, ids: Vec<u32>, wanted: &str) -> PyResult<Bound<'py, PyByteArray>> {
        let chunks: Vec<_> = ids.chunks(PREFILL_CHUNK).map(Input::Tokens).collect();
        self.append_chunks(py, &chunks, wanted)
    }

    #[pyo3(signature = (rows, wanted = "last"))]
    fn append_embeddings<'py>(
        &self,
        py: Python<'py>,
        rows: PyBuffer<f32>,
        wanted: &str,
    ) -> PyResult<Bound<'py, PyByteArray>> {
        let rows = rows.to_vec(py)?;
        let chunks: Vec<_> = rows.chunks(PREFILL_CHUNK * self.model.width()).map(Input::Embeddings).collect();
        self.append_chunks(py, &chunks, wanted)
    }

    fn fork(&self, py: Python<'_>) -> PyResult<Self> {
        let sequence = detached(py, || Ok(lock(&self.sequence).fork()))?;
        Ok(Self { model: Arc::clone(&self.model), sequence: Mutex::new(sequence) })
    }

    fn truncate(&self, py: Python<'_>, length: usize) -> PyResult<()> {
        detached(py, || {
            lock(&self.sequence).truncate(length);
            Ok(())
        })
    }
}

impl State {
    /// An empty sequence that looks at `source`.
    pub(super) fn new(model: &Arc<Model>, source: Source) -> Result<Self> {
        Ok(Self { model: Arc::clone(model), sequence: Mutex::new(model.start_from(source)?) })
    }

    /// All chunks or, on an error or Ctrl-C between two of them, none.
    fn append_chunks<'py>(
        &self,
        py: Python<'py>,
        chunks: &[Input<'_>],
        wanted: &str,
    ) -> PyResult<Bound<'py, PyByteArray>> {
        let before = detached(py, || Ok(lock(&self.sequence).len()))?;
        let mut logits = Vec::new();
        for (place, &input) in chunks.iter().enumerate() {
            let wanted = match wanted {
                "every" => Wanted::All,
                _ if place + 1 < chunks.len() => Wanted::Nothing,
                _ => Wanted::Last,
            };
            let step = detached(py, || {
                let mut sequence = lock(&self.sequence);
                let segment = Segment { sequence: &mut *sequence, input, logits: wanted };
                let mut rows = Vec::new();
                self.model.forward(&mut [segment], &mut rows, &AtomicBool::new(false))?;
                Ok(rows)
            });
            match step.and_then(|rows| py.check_signals().map(|()| rows)) {
                Ok(mut rows) => logits.append(&mut rows),
                Err(error) => {
                    detached(py, || {
                        lock(&self.sequence).truncate(before);
                        Ok(())
                    })?;
                    return Err(error);
                }
            }
        }
        bytes(py, &logits)
    }
}

/// The sequences of one call, advanced a step at a time.
#[pyclass(frozen, module = "fastdecode._core")]
pub(super) struct Generation {
    generation: Mutex<EngineGeneration<Model>>,
    cancel: Arc<AtomicBool>,
}

#[pymethods]
impl Generation {
    /// Seconds spent on the prompts, the choice of the first tokens included.
    #[getter]
    fn prefill_seconds(&self, py: Python<'_>) -> PyResult<f64> {
        detached(py, || Ok(lock(&self.generation).statistics().prefill_seconds))
    }

    fn advance(&self, py: Python<'_>) -> PyResult<Option<Vec<Event>>> {
        detached(py, || {
            let mut generation = lock(&self.generation);
            let Some(events) = generation.advance()? else { return Ok(None) };
            let events = events.iter().map(|event| {
                let reason = event.finish_reason.map(|reason| reason.as_str());
                let logprobs = event.logprobs.as_ref();
                let (logprob, best) = (logprobs.map(|l| l.logprob), logprobs.map(|l| l.best.clone()));
                (event.row, event.token_id, reason, logprob, best, event.score)
            });
            Ok(Some(events.collect()))
        })
    }

    fn finish(&self, py: Python<'_>, sequence: usize) -> PyResult<()> {
        detached(py, || lock(&self.generation).finish(sequence))
    }

    fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

impl Generation {
    /// Checks a call's options, prompts and, for a model with an encoder, a source for each; nothing is computed yet.
    pub(super) fn new(
        model: &Arc<Model>,
        prompts: Vec<Vec<u32>>,
        sources: Option<Vec<SourceArgument>>,
        options: Options,
    ) -> Result<Self> {
        let prompts = match sources {
            None => prompts.into_iter().map(Prompt::tokens).collect(),
            Some(sources) => std::iter::zip(prompts, sources)
                .map(|(ids, source)| {
                    let source_ids = source.ids();
                    let sequence = model.start_from(source.into_source())?;
                    Ok(Prompt::tokens(ids).in_sequence(sequence).with_source(source_ids))
                })
                .collect::<Result<_>>()?,
        };
        let generation = EngineGeneration::new(Arc::clone(model), prompts, options)?;
        Ok(Self { cancel: generation.cancel_handle(), generation: Mutex::new(generation) })
    }
}
