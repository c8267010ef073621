//! The sequences of a call on their way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;

use super::exceptions::detached;
use super::interrupt::interruptible_by;
use super::memory::SourceArgument;
use super::turn::Turn;
use crate::engine::{Generation as EngineGeneration, Options, Prompt};
use crate::error::Result;
use crate::models;
use crate::models::{Cancel, Model};

/// A new token: sequence, id, why it was the last one, its log-probability and the best ones, the score of a beam.
type Event = (usize, u32, Option<&'static str>, Option<f32>, Option<Vec<(u32, f32)>>, Option<f32>);

/// The sequences of one call, advanced a step at a time.
#[pyclass(frozen, module = "fastdecode._core")]
pub(super) struct Generation {
    /// A signal handler runs in the middle of a step, and must not wait for that.
    generation: Turn<EngineGeneration<Model>>,
    cancel: Arc<AtomicBool>,
}

#[pymethods]
impl Generation {
    /// Seconds spent on the prompts, the choice of the first tokens included.
    #[getter]
    fn prefill_seconds(&self, py: Python<'_>) -> PyResult<f64> {
        Ok(self.generation.wait(py)?.statistics().prefill_seconds)
    }

    fn advance(&self, py: Python<'_>) -> PyResult<Option<Vec<Event>>> {
        let mut held = self.generation.wait(py)?;
        let generation = &mut *held;
        // The request has a flag of its own, which ends it.
        interruptible_by(py, &self.cancel, |cancel| step(generation, cancel))
    }

    fn finish(&self, py: Python<'_>, sequence: usize) -> PyResult<()> {
        let mut held = self.generation.wait(py)?;
        let generation = &mut *held;
        detached(py, || generation.finish(sequence))
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
        Ok(Self { generation: Turn::new(generation), cancel })
    }
}

/// One step, and its events as Python gets them.
fn step(generation: &mut EngineGeneration<Model>, cancel: &Cancel<'_>) -> Result<Option<Vec<Event>>> {
    let Some(events) = generation.advance_until(cancel)? else { return Ok(None) };
    let events = events.iter().map(|event| {
        let reason = event.finish_reason.map(|reason| reason.as_str());
        let logprobs = event.logprobs.as_ref();
        let (logprob, best) = (logprobs.map(|l| l.logprob), logprobs.map(|l| l.best.clone()));
        (event.row, event.token_id, reason, logprob, best, event.score)
    });
    Ok(Some(events.collect()))
}
