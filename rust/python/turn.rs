//! A value that one call at a time may use: whoever finds it taken is refused, or waits.
//!
//! A call holds its turn for as long as it computes, without the interpreter. Who holds it is one number, of the thread and
//! of how often the process was forked, so that two cases are told apart in which nobody would ever give it back: a signal
//! handler that meets its own thread's call, and a child that was forked while a thread of its parent was in a call.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;

use super::exceptions::raised;
use crate::error::Error;
use crate::forks::generation;
use crate::team;

/// Bits of an address, below the count of forks.
const ADDRESS_BITS: u32 = 48;
/// First and longest pause of a call that waits.
const PAUSES: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];

fn forks() -> u64 {
    (generation() as u64) << ADDRESS_BITS
}

/// The number of this thread in this process, never 0.
fn here() -> u64 {
    let address = team::here() as u64;
    forks() | (address & ((1 << ADDRESS_BITS) - 1))
}

/// See the top of the file.
pub(super) struct Turn<T> {
    /// Whose turn it is; 0 for nobody's.
    holder: AtomicU64,
    /// Never contended: whoever locks it holds the turn.
    value: Mutex<T>,
}

impl<T: Send> Turn<T> {
    pub(super) fn new(value: T) -> Self {
        Self { holder: AtomicU64::new(0), value: Mutex::new(value) }
    }

    /// The value, if nobody uses it.
    ///
    /// # Errors
    /// `StateBusy`.
    pub(super) fn take(&self) -> Result<Taken<'_, T>, Error> {
        match self.holder.compare_exchange(0, here(), Ordering::Acquire, Ordering::Relaxed) {
            // What a panic left behind is consistent: calls undo what fails.
            Ok(_) => Ok(Taken {
                holder: &self.holder,
                value: Some(self.value.lock().unwrap_or_else(PoisonError::into_inner)),
            }),
            Err(holder) => Err(Error::StateBusy { got: Self::user(holder) }),
        }
    }

    /// As [`Turn::take`], and raises what it says.
    pub(super) fn take_or_raise(&self, py: Python<'_>) -> PyResult<Taken<'_, T>> {
        self.take().or_else(|busy| raised(py, Err(busy)))
    }

    /// The value as soon as nobody uses it; waits without the interpreter, and hears signals.
    pub(super) fn wait(&self, py: Python<'_>) -> PyResult<Taken<'_, T>> {
        let [mut pause, longest] = PAUSES;
        loop {
            match self.take() {
                Ok(taken) => return Ok(taken),
                Err(busy) if !self.will_be_free() => return raised(py, Err(busy)),
                Err(_) => py.detach(|| std::thread::sleep(pause)),
            }
            py.check_signals()?;
            pause = longest.min(2 * pause);
        }
    }

    /// Whether another thread of this process holds it, which will give it back.
    fn will_be_free(&self) -> bool {
        let holder = self.holder.load(Ordering::Relaxed);
        holder == 0 || (holder != here() && holder >> ADDRESS_BITS == forks() >> ADDRESS_BITS)
    }

    /// Who is in the way, as an error says it.
    fn user(holder: u64) -> &'static str {
        if holder == here() {
            "a call from within another one of the same thread (a signal handler)"
        } else if holder >> ADDRESS_BITS == forks() >> ADDRESS_BITS {
            "a call while another thread is in one"
        } else {
            "a state that another thread was using when this process was forked; make a new one"
        }
    }
}

/// A turn; dropping it ends it.
pub(super) struct Taken<'a, T> {
    holder: &'a AtomicU64,
    /// Taken when the turn ends, before anybody else may have it.
    value: Option<MutexGuard<'a, T>>,
}

impl<T> Deref for Taken<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_deref().expect("a turn that has not ended")
    }
}

impl<T> DerefMut for Taken<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_deref_mut().expect("a turn that has not ended")
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        self.holder.store(0, Ordering::Release);
    }
}
