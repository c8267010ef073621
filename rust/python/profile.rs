//! Where the time of a model's calls goes, as rows of numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;

use super::exceptions::detached;
use crate::models;

/// Calls, rows, nanoseconds and bytes of a line, and its operations in f32, by the dot of bf16, and by that of integers.
type Numbers = (u64, u64, u64, u64, u64, u64, u64);

/// A reader of what is counted of a model. It holds no weights.
#[pyclass(frozen, module = "fastdecode._core")]
pub(super) struct Profile {
    profile: Arc<models::Profile>,
    reads: AtomicBool,
}

impl Profile {
    /// One that has not started.
    pub(super) fn new(profile: &Arc<models::Profile>) -> Self {
        Self { profile: Arc::clone(profile), reads: AtomicBool::new(false) }
    }
}

#[pymethods]
impl Profile {
    /// From now on steps are counted.
    fn start(&self) {
        if !self.reads.swap(true, Ordering::SeqCst) {
            self.profile.begin();
        }
    }

    /// From now on this reader needs no counts.
    fn stop(&self) {
        if self.reads.swap(false, Ordering::SeqCst) {
            self.profile.end();
        }
    }

    /// Kind of steps, kind of work (empty for the rest of a step) and place of every line.
    fn lines(&self) -> Vec<(&'static str, &'static str, String)> {
        let named = |line: &models::Line| {
            (line.steps.name(), line.kind.map_or("", models::Kind::name), line.place.clone())
        };
        self.profile.lines().map(named).collect()
    }

    /// What this process has counted of every line, of choosing tokens, and since it began.
    fn counts(&self, py: Python<'_>) -> PyResult<Vec<Numbers>> {
        let counts = detached(py, || Ok(self.profile.counts()))?;
        let numbers = |count: models::Count| {
            let models::Flops { f32, bf16, int8 } = count.flops;
            (count.calls, count.rows, count.nanos, count.bytes, f32, bf16, int8)
        };
        let all = counts.lines.into_iter().chain([counts.choosing]);
        Ok(all.map(numbers).chain([(0, 0, counts.nanos, 0, 0, 0, 0)]).collect())
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.stop();
    }
}
