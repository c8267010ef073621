//! The sequences of a call on their way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;

use super::exceptions::detached;
use super::interrupt::{interruptible_by, is_long};
use super::memory::SourceArgument;
use crate::engine::{Generation as EngineGeneration, Options, Prompt};
use crate::error::Result;
use crate::models;
use crate::models::{Cancel, Model};

/// A new token: sequence, id, why it was the last one, its log-probability and the best ones, the score of a beam.
type Event = (usize, u32, Option<&'static str>, Option<f32>, Option<Vec<(u32, f32)>>, Option<f32>);

/// What a panic left behind is dropped or consistent: the engine undoes a step that fails.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sequences of one call, advanced a step at a time.
#[pyclass(frozen, module = "fastdecode._core")]
pub(super) struct Generation {
    model: Arc<Model>,
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
        let rows = detached(py, || Ok(lock(&self.generation).next_rows()))?;
        // The request has a flag of its own, which ends it.
        let step = |_: &Cancel<'_>| self.step();
        if is_long(&self.model, rows) {
            interruptible_by(py, &self.cancel, step)
        } else {
            detached(py, || self.step())
        }
    }

    fn finish(&self, py: Python<'_>, sequence: usize) -> PyResult<()> {
        detached(py, || lock(&self.generation).finish(sequence))
    }

    fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

impl Generation {
    fn step(&self) -> Result<Option<Vec<Event>>> {
        let mut generation = lock(&self.generation);
        let Some(events) = generation.advance()? else { return Ok(None) };
        let events = events.iter().map(|event| {
            let reason = event.finish_reason.map(|reason| reason.as_str());
            let logprobs = event.logprobs.as_ref();
            let (logprob, best) = (logprobs.map(|l| l.logprob), logprobs.map(|l| l.best.clone()));
            (event.row, event.token_id, reason, logprob, best, event.score)
        });
        Ok(Some(events.collect()))
    }

    /// Checks a call's options, prompts and, for a model with an encoder, a source for each; nothing is computed yet.
    pub(super) fn new(
        model: &Arc<Model>,
        prompts: Vec<Vec<u32>>,
        sources: Option<Vec<SourceArgument>>,
        options: Options,
    ) -> Result<Self> {
        let prompts = match sources {
            None => prompts.into_iter().map(Prompt::tokens).collect(),
            Some(sources) => {
                // Neighbours with the same source (several prompts over one) have it encoded once.
                let mut last: Option<(Vec<u32>, models::Source)> = None;
                let mut shared = |source: SourceArgument| {
                    let ids = source.ids();
                    let same = last.take().filter(|(before, _)| source.is_ids() && *before == ids);
                    let (ids, source) = same.unwrap_or_else(|| (ids, source.into_source()));
                    last =
                        matches!(source, models::Source::Pending(_)).then(|| (ids.clone(), source.clone()));
                    (ids, source)
                };
                std::iter::zip(prompts, sources)
                    .map(|(ids, source)| {
                        let (source_ids, source) = shared(source);
                        let sequence = model.start_from(source)?;
                        Ok(Prompt::tokens(ids).in_sequence(sequence).with_source(source_ids))
                    })
                    .collect::<Result<_>>()?
            }
        };
        let generation = EngineGeneration::new(Arc::clone(model), prompts, options)?;
        let cancel = generation.cancel_handle();
        Ok(Self { model: Arc::clone(model), generation: Mutex::new(generation), cancel })
    }
}
