//! What a choice works on, apart from what it is asked for: one per thread, used again for every row.

use crate::decode::processors::Seen;
use crate::decode::sampler::{Best, Candidate};
use crate::decode::warpers::Ranked;
use crate::kernels::{Kernels, Scans};

/// Memory of a choice, and the table of kernels that computes it. Which one it is changes no result.
#[derive(Debug)]
pub struct Scratch {
    /// The kernels.
    pub scans: &'static Scans,
    /// What may be drawn, in rising order of id: the result of [`crate::decode::warpers::Warpers::apply`].
    pub candidates: Vec<Candidate>,
    /// Their probabilities.
    pub probabilities: Vec<f32>,
    /// The best entries of a row.
    pub best: Best,
    /// A row of scores as it was before anything changed it.
    pub(crate) raw: Vec<f32>,
    /// The largest scores of runs.
    pub(super) maxima: Vec<f32>,
    pub(super) seen: Seen,
    pub(super) buffer: Best,
    pub(super) ranked: Vec<Ranked>,
    pub(super) masses: Vec<f64>,
}

impl Scratch {
    /// Scratch that computes with one table.
    pub fn new(scans: &'static Scans) -> Self {
        Self {
            scans,
            candidates: Vec::new(),
            probabilities: Vec::new(),
            best: Vec::new(),
            raw: Vec::new(),
            maxima: Vec::new(),
            seen: Seen::default(),
            buffer: Vec::new(),
            ranked: Vec::new(),
            masses: Vec::new(),
        }
    }
}

impl Default for Scratch {
    /// With the table of this process.
    fn default() -> Self {
        Self::new(Kernels::chosen_scans())
    }
}
