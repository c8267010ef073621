//! Activations by name, in the order in which they are made.

use std::sync::Mutex;

use crate::layers::{Context, Rows};
use crate::team::Stop;

/// Activations that were shown so far.
#[derive(Debug, Default)]
pub struct Trace {
    entries: Mutex<Vec<Activation>>,
}

/// One shown activation.
#[derive(Debug, Clone)]
pub struct Activation {
    /// Name of the module that made it, as in the checkpoint.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Values, row-major.
    pub values: Vec<f32>,
}

impl Trace {
    /// Adds rows under a name: the first member copies them, the others wait.
    ///
    /// # Errors
    /// [`Stop`] from the barriers.
    pub(super) fn show(&self, ctx: &Context<'_>, name: &str, rows: Rows<'_>) -> Result<(), Stop> {
        ctx.member.barrier()?;
        if ctx.member.index() == 0 {
            // SAFETY: all members are between this barrier and the next, and write nothing.
            let values = (0..rows.rows()).flat_map(|r| unsafe { rows.row(r) }).copied().collect();
            if let Ok(mut entries) = self.entries.lock() {
                let (name, shape) = (name.to_owned(), [rows.rows(), rows.width()]);
                entries.push(Activation { name, shape, values });
            }
        }
        ctx.member.barrier()
    }

    /// All activations.
    pub fn into_entries(self) -> Vec<Activation> {
        self.entries.into_inner().unwrap_or_default()
    }
}
