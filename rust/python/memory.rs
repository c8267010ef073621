//! Encoded sources, and what may stand for one in a call.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use super::bytes;
use crate::engine::CHUNK;
use crate::models;

/// One encoded source.
#[pyclass(frozen, module = "fastdecode._core")]
pub(super) struct Memory {
    memory: Arc<models::EncoderOutput>,
    width: usize,
}

#[pymethods]
impl Memory {
    #[getter]
    fn source_ids(&self) -> Vec<u32> {
        self.memory.source_ids.clone()
    }

    #[getter]
    fn width(&self) -> usize {
        self.width
    }

    fn hidden<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyByteArray>> {
        bytes(py, self.memory.hidden.as_deref().unwrap_or_default())
    }

    fn __len__(&self) -> usize {
        self.memory.source_ids.len()
    }
}

impl Memory {
    /// Of a model of this width.
    pub(super) fn new(memory: Arc<models::EncoderOutput>, width: usize) -> Self {
        Self { memory, width }
    }
}

/// A source: ids that are still to be encoded, or what was made of them.
#[derive(FromPyObject)]
pub(super) enum SourceArgument {
    Memory(Py<Memory>),
    Ids(Vec<u32>),
}

impl SourceArgument {
    /// What a sequence looks at.
    pub(super) fn into_source(self) -> models::Source {
        match self {
            Self::Ids(ids) => models::Source::pending(ids),
            Self::Memory(memory) => models::Source::Encoded(Arc::clone(&memory.get().memory)),
        }
    }
}

/// How many of the sources, at least one, make a chunk of work.
pub(super) fn group(sources: &[Vec<u32>]) -> usize {
    let mut rows = 0;
    let fits = sources.iter().take_while(|ids| {
        rows += ids.len();
        rows <= CHUNK
    });
    fits.count().max(1)
}
