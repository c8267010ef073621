//! Errors and panics of the engine as exceptions of `fastdecode.errors`; the map is exhaustive.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{Error, ONE_CALL, Result};

/// Runs `work` without holding the interpreter.
pub(super) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    let outcome = py.detach(|| caught(work));
    raised(py, outcome)
}

/// What `work` comes to; a panic is an error, too.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(Error::Panicked { message: message.to_owned() })
    })
}

/// An outcome with its error as an exception.
pub(super) fn raised<T>(py: Python<'_>, outcome: Result<T>) -> PyResult<T> {
    outcome.map_err(|error| exception(py, &error).unwrap_or_else(|failure| failure))
}

/// The exception of `fastdecode.errors` for an error, with its fields as attributes.
fn exception(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let fields = PyDict::new(py);
    let class = match error {
        Error::Io { path, source } => {
            fields.set_item("file", path.display().to_string())?;
            fields.set_item("errno", source.raw_os_error())?;
            match source.kind() {
                std::io::ErrorKind::NotFound => "FileMissingError",
                std::io::ErrorKind::PermissionDenied => "FileForbiddenError",
                _ => "FileReadError",
            }
        }
        Error::Checkpoint { file, tensor, expected, got } => {
            fields.set_item("file", file)?;
            fields.set_item("tensor", tensor)?;
            described(&fields, expected, got)?;
            "CheckpointError"
        }
        Error::Config { file, field, expected, got } => {
            fields.set_item("file", file)?;
            fields.set_item("field", field)?;
            described(&fields, expected, got)?;
            "ConfigError"
        }
        Error::UnsupportedModel { file, expected, got } => {
            fields.set_item("file", file)?;
            described(&fields, expected, got)?;
            "UnsupportedModelError"
        }
        Error::Option { option, expected, got } => {
            fields.set_item("option", option)?;
            described(&fields, expected, got)?;
            "OptionError"
        }
        Error::ContextLength { limit, requested, reason } => {
            fields.set_item("limit", limit)?;
            fields.set_item("requested", requested)?;
            fields.set_item("reason", reason)?;
            "ContextLengthError"
        }
        Error::Scores { row, expected, got } => {
            fields.set_item("row", row)?;
            described(&fields, expected, got)?;
            "ScoresError"
        }
        Error::OutOfMemory { what, bytes } => {
            fields.set_item("what", what)?;
            fields.set_item("bytes", bytes)?;
            "OutOfMemoryError"
        }
        Error::Isa { requested, available } => {
            described(&fields, available, requested)?;
            "IsaError"
        }
        Error::Cuda { what, expected, got } => {
            fields.set_item("what", what)?;
            described(&fields, expected, got)?;
            "CudaError"
        }
        Error::Program { phase, expected, got } => {
            fields.set_item("got", format!("{phase}: expected {expected}, got {got}"))?;
            "EngineError"
        }
        Error::StateBusy { got } => {
            described(&fields, ONE_CALL, got)?;
            "StateBusyError"
        }
        Error::Cancelled => "CancelledError",
        Error::Panicked { message } => {
            fields.set_item("got", message)?;
            "EngineError"
        }
    };
    let class = py.import("fastdecode.errors")?.getattr(class)?;
    Ok(PyErr::from_value(class.call((error.to_string(),), Some(&fields))?))
}

fn described(fields: &Bound<'_, PyDict>, expected: &str, got: &str) -> PyResult<()> {
    fields.set_item("expected", expected)?;
    fields.set_item("got", got)
}
