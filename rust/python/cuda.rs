//! GPUs, as Python sees them: what there are, and the kernels of a file.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

#[cfg(not(feature = "cuda"))]
use crate::Error;
#[cfg(feature = "cuda")]
use crate::cuda::driver::{self, store};

#[cfg(feature = "cuda")]
use super::exceptions::detached;
#[cfg(not(feature = "cuda"))]
use super::exceptions::raised;

/// Every GPU that the driver shows: its number, its name, its memory, or why it cannot be used.
#[cfg(feature = "cuda")]
#[pyfunction]
pub(super) fn cuda_devices(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let list = detached(py, driver::devices)?;
    let shown = |device: driver::Listed| {
        let values = PyDict::new(py);
        values.set_item("ordinal", device.ordinal)?;
        values.set_item("name", device.name)?;
        values.set_item("capability", device.capability)?;
        values.set_item("multiprocessors", device.multiprocessors)?;
        let (memory, reason) = match device.memory {
            Ok(memory) => (Some(memory), None),
            Err(error) => (None, Some(error.to_string())),
        };
        values.set_item("free_bytes", memory.map(|(free, _)| free))?;
        values.set_item("total_bytes", memory.map(|(_, total)| total))?;
        values.set_item("reason", reason)?;
        Ok(values)
    };
    list.into_iter().map(shown).collect()
}

/// A build without CUDA sees no GPU.
#[cfg(not(feature = "cuda"))]
#[pyfunction]
pub(super) fn cuda_devices(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    raised(py, Err(Error::built_without_cuda()))
}

/// Names and texts of sources that are compiled as one.
type Sources = Vec<(String, String)>;

/// The compiled kernels of a file for GPUs of a capability, and whether they were shipped, cached or compiled just now.
#[cfg(feature = "cuda")]
#[pyfunction]
pub(super) fn cuda_cubin<'py>(
    py: Python<'py>,
    capability: (u32, u32),
    sources: Sources,
    shipped: Option<PathBuf>,
    nvrtc: Vec<PathBuf>,
) -> PyResult<(Bound<'py, PyBytes>, &'static str)> {
    let cubin = detached(py, || {
        let sources: Vec<(&str, &str)> = sources.iter().map(|(name, text)| (&**name, &**text)).collect();
        store::cubin(capability, &sources, &store::Folders { shipped, nvrtc })
    })?;
    let origin = match cubin.origin {
        store::Origin::Shipped => "shipped",
        store::Origin::Cached => "cached",
        store::Origin::Compiled => "compiled",
    };
    Ok((PyBytes::new(py, &cubin), origin))
}

/// A build without CUDA has no kernels.
#[cfg(not(feature = "cuda"))]
#[pyfunction]
pub(super) fn cuda_cubin<'py>(
    py: Python<'py>,
    capability: (u32, u32),
    sources: Sources,
    shipped: Option<PathBuf>,
    nvrtc: Vec<PathBuf>,
) -> PyResult<(Bound<'py, PyBytes>, &'static str)> {
    let _ = (capability, sources, shipped, nvrtc);
    raised(py, Err(Error::built_without_cuda()))
}
