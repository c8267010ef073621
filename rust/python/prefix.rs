//! A prefix that was read once, as its caller holds it.

use std::sync::Arc;

use pyo3::prelude::*;

use super::interrupt::interruptible;
use crate::engine::{self, CHUNK, Engine};
use crate::error::{Error, Result};
use crate::models::{Decoder, Input, Model, Segment, Sequence, Source, Wanted};

/// Ids that were read, and a sequence that holds them.
type Read = engine::Prefix<<Model as Decoder>::Sequence>;

/// A prefix; immutable.
#[pyclass(frozen, module = "fastdecode._core")]
pub(super) struct Prefix {
    engine: Arc<Engine<Model>>,
    read: Arc<Read>,
}

#[pymethods]
impl Prefix {
    #[getter]
    fn tokens(&self) -> Vec<u32> {
        self.read.ids().to_vec()
    }

    fn __len__(&self) -> usize {
        self.read.ids().len()
    }
}

impl Prefix {
    /// One that an engine's call has left.
    pub(super) fn new(engine: &Arc<Engine<Model>>, read: Read) -> Self {
        Self { engine: Arc::clone(engine), read: Arc::new(read) }
    }

    /// Reads ids, chunk by chunk.
    pub(super) fn read(py: Python<'_>, engine: &Arc<Engine<Model>>, ids: &[u32]) -> PyResult<Self> {
        let model = engine.model();
        let sequence = interruptible(py, |cancel| {
            model.context_length().check(ids.len())?;
            let block = model.cache_block();
            engine.make_room(ids.len().div_ceil(block.positions).saturating_mul(block.bytes));
            let mut sequence = model.start_from(Source::None)?;
            sequence.expect(ids.len());
            let mut rest = ids;
            while !rest.is_empty() {
                let (chunk, others) = rest.split_at(rest.len().min(CHUNK));
                let (input, logits) = (Input::Tokens(chunk), Wanted::Nothing);
                let segment = Segment { sequence: &mut sequence, input, logits };
                match model.forward(&mut [segment], &mut Vec::new(), cancel) {
                    Err(Error::OutOfMemory { .. }) if engine.give_up() => {}
                    outcome => {
                        outcome?;
                        rest = others;
                    }
                }
            }
            Ok(sequence)
        })?;
        Ok(Self::new(engine, Read::new(ids, sequence)))
    }

    /// What calls of `engine` begin behind.
    ///
    /// # Errors
    /// `Option` where another model has read it.
    pub(super) fn of(&self, engine: &Arc<Engine<Model>>) -> Result<Arc<Read>> {
        if Arc::ptr_eq(&self.engine, engine) {
            return Ok(Arc::clone(&self.read));
        }
        let expected = "one that this very model has read (model.prefix)".to_owned();
        Err(Error::Option {
            option: "prefix".to_owned(),
            expected,
            got: "a prefix of another model".to_owned(),
        })
    }
}
