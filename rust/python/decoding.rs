//! The prompts of a call, and the call on its way.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;

use super::exceptions::detached;
use super::interrupt::interruptible_hook;
use super::memory::SourceArgument;
use super::prefix::Prefix;
use super::turn::Turn;
use crate::engine::{self, Canceller, Engine, Options, Start};
use crate::error::Result;
use crate::models::{Decoder, Model};

/// A new token: sequence, id, why it was the last one, its log-probability and the best ones, the score of a beam, seconds to the
/// first choice of its search, how much of its prompt was reused.
type Event = (
    usize,
    u32,
    Option<&'static str>,
    Option<f32>,
    Option<Vec<(u32, f32)>>,
    Option<f32>,
    Option<f64>,
    Option<usize>,
);

type EnginePrompts = engine::Prompts<<Model as Decoder>::Sequence>;

/// Prompts that a call will be made of, four bytes an id.
#[pyclass(frozen, module = "fastdecode._core")]
pub(super) struct Prompts {
    engine: Arc<Engine<Model>>,
    prompts: Mutex<EnginePrompts>,
}

impl Prompts {
    /// No prompts; those that come begin behind a prefix, where there is one.
    pub(super) fn of(
        engine: &Arc<Engine<Model>>,
        prefix: Option<Arc<engine::Prefix<<Model as Decoder>::Sequence>>>,
    ) -> Self {
        Self { engine: Arc::clone(engine), prompts: Mutex::new(EnginePrompts::behind(prefix)) }
    }

    /// The prompts that were added; none are left.
    pub(super) fn take(&self) -> EnginePrompts {
        std::mem::take(&mut self.prompts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[pymethods]
impl Prompts {
    /// Adds a prompt and, for a model with an encoder, its source.
    #[pyo3(signature = (ids, source = None))]
    fn push(&self, py: Python<'_>, ids: Vec<u32>, source: Option<SourceArgument>) -> PyResult<()> {
        detached(py, || {
            let start = match source {
                None => Start::Empty,
                Some(SourceArgument::Ids(ids)) => Start::Source(ids),
                Some(source) => Start::Sequence(self.engine.model().start_reserved(source.into_source())?),
            };
            self.prompts.lock().unwrap_or_else(PoisonError::into_inner).push(&ids, start);
            Ok(())
        })
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        detached(py, || Ok(self.prompts.lock().unwrap_or_else(PoisonError::into_inner).len()))
    }
}

/// The sequences of one call on their way.
#[pyclass(frozen, module = "fastdecode._core")]
pub(super) struct Generation {
    /// A signal handler runs in the middle of a step, and must not wait for that.
    generation: Turn<engine::Generation<Model>>,
    canceller: Canceller<Model>,
    engine: Arc<Engine<Model>>,
}

#[pymethods]
impl Generation {
    /// The next tokens of its sequences; waits for a step, or leads one.
    fn advance(&self, py: Python<'_>) -> PyResult<Option<Vec<Event>>> {
        let mut held = self.generation.wait(py)?;
        let generation = &mut *held;
        interruptible_hook(py, |hook| generation.advance(hook).map(events))
    }

    /// The tokens that are there, without waiting.
    fn take(&self, py: Python<'_>) -> PyResult<Option<Vec<Event>>> {
        let mut held = self.generation.wait(py)?;
        let generation = &mut *held;
        detached(py, || generation.take().map(events))
    }

    fn finish(&self, py: Python<'_>, sequence: usize) -> PyResult<()> {
        let mut held = self.generation.wait(py)?;
        let generation = &mut *held;
        detached(py, || generation.finish(sequence))
    }

    /// Tokens of a sequence's prompt and source.
    fn prompt_tokens(&self, py: Python<'_>, sequence: usize) -> PyResult<usize> {
        let mut held = self.generation.wait(py)?;
        let generation = &mut *held;
        detached(py, || Ok(generation.prompt_tokens(sequence)))
    }

    /// The last ids of a sequence's prompt, `most` of them or all that there are.
    fn prompt_end(&self, py: Python<'_>, sequence: usize, most: usize) -> PyResult<Vec<u32>> {
        let mut held = self.generation.wait(py)?;
        let generation = &mut *held;
        detached(py, || Ok(generation.prompt_end(sequence, most).to_vec()))
    }

    /// Ends the call, and gives what its only sequence has in the cache, where that was asked for.
    fn kept(&self, py: Python<'_>) -> PyResult<Option<Prefix>> {
        let mut held = self.generation.wait(py)?;
        let generation = &mut *held;
        let kept = interruptible_hook(py, |hook| generation.kept(hook))?;
        Ok(kept.map(|kept| Prefix::new(&self.engine, kept)))
    }

    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, || {
            self.canceller.cancel();
            Ok(())
        })
    }
}

impl Generation {
    /// Checks a call's options and prompts; nothing is computed yet.
    pub(super) fn new(engine: &Arc<Engine<Model>>, prompts: EnginePrompts, options: Options) -> Result<Self> {
        let generation = engine::Generation::new(engine, prompts, options)?;
        let (canceller, engine) = (generation.canceller(), Arc::clone(engine));
        Ok(Self { canceller, generation: Turn::new(generation), engine })
    }
}

/// Events as Python gets them.
fn events(events: Option<&[engine::Event]>) -> Option<Vec<Event>> {
    let event = |event: &engine::Event| {
        let reason = event.finish_reason.map(|reason| reason.as_str());
        let logprobs = event.logprobs.as_ref();
        let (logprob, best) = (logprobs.map(|l| l.logprob), logprobs.map(|l| l.best.clone()));
        (
            event.row,
            event.token_id,
            reason,
            logprob,
            best,
            event.score,
            event.first_seconds,
            event.cached_tokens,
        )
    };
    events.map(|events| events.iter().map(event).collect())
}
