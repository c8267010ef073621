//! Adapters as Python sees them: the tensors of a file, and what is to be done with them.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;

use super::exceptions::detached;
use crate::checkpoint::{Adapter, Checkpoint, Edit};
use crate::models;

/// The tensors of an adapter's file.
#[pyclass(frozen, module = "fastdecode._core")]
pub(super) struct AdapterFile(Arc<Checkpoint>);

#[pymethods]
impl AdapterFile {
    /// Opens a file of weights, in the format that its name says.
    #[staticmethod]
    fn open(py: Python<'_>, file: PathBuf) -> PyResult<Self> {
        detached(py, || {
            let is_safe = file.extension().is_some_and(|extension| extension == "safetensors");
            let checkpoint =
                if is_safe { Checkpoint::open_safetensors(&file)? } else { Checkpoint::open_torch(&file)? };
            Ok(Self(Arc::new(checkpoint)))
        })
    }

    /// Names and shapes of its tensors, in alphabetical order.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let shape = |name: &str| self.0.get(name).map(|info| info.shape.clone()).unwrap_or_default();
        self.0.names().map(|name| (name.to_owned(), shape(name))).collect()
    }
}

/// What an adapter does to a tensor of the base.
#[derive(FromPyObject)]
pub(super) enum EditArgument {
    /// Tensors of the adapter (down, up), rank, scale, whether they are for an embedding.
    Product(String, (String, String), usize, f64, bool),
    /// Rows of the target, for those of the adapter's tensor.
    Rows(String, String, Vec<usize>),
    /// Whether the target becomes a tensor of its own.
    Replace(String, String, bool),
    /// What the adapter's tensor is multiplied by.
    Sum(String, String, f64),
}

impl From<EditArgument> for Edit {
    fn from(edit: EditArgument) -> Self {
        match edit {
            EditArgument::Product(target, (down, up), rank, scale, embedding) => {
                Self::Product { target, down, up, rank, scale: scale as f32, embedding }
            }
            EditArgument::Rows(target, tensor, rows) => Self::Rows { target, tensor, rows },
            EditArgument::Replace(target, tensor, apart) => Self::Replace { target, tensor, apart },
            EditArgument::Sum(target, tensor, scale) => Self::Sum { target, tensor, scale: scale as f32 },
        }
    }
}

/// An adapter's file with what is to be done with its tensors.
pub(super) type AdapterArgument<'py> = (Bound<'py, AdapterFile>, Vec<EditArgument>);

/// Adapters as the loader takes them.
pub(super) fn adapters(given: Vec<AdapterArgument<'_>>) -> Vec<Adapter> {
    let adapter = |(file, edits): AdapterArgument<'_>| {
        let edits = edits.into_iter().map(Edit::from).collect();
        Adapter { tensors: file.get().0.clone(), edits }
    };
    given.into_iter().map(adapter).collect()
}

/// Names of the modules of a folder's model that can take the matrices of an adapter, as transformers names them.
#[pyfunction]
pub(super) fn adaptable_modules(py: Python<'_>, folder: PathBuf) -> PyResult<Vec<String>> {
    detached(py, || models::modules(&folder))
}
