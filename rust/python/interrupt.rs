//! Long calls that Ctrl-C ends: the work runs in a thread of its own, while the calling thread looks at Python's signals.
//!
//! Python runs signal handlers in its main thread only, and only when that thread asks. So a long call of the main thread
//! hands its work to a helper, waits, and asks every [`LOOK`]; where a handler raises, the work's flag is set, and the call
//! ends as soon as the work has seen it. What is short is not worth a thread, and every other thread hears no signals: both
//! run as they are.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::exceptions::{caught, detached, raised};
use crate::error::Result;
use crate::models::Model;
use crate::team::Cancel;

/// How long the calling thread waits between two looks at the signals. Every look takes a core from the work for a moment, which
/// shows in the time of a prompt where looks are five times as frequent.
const LOOK: Duration = Duration::from_millis(250);
/// Rows from which a step counts as long whatever the model: attention grows with their square.
const LONG_ROWS: usize = 256;
/// Products (rows by parameters) from which a step counts as long: a tenth of a second at the speed of two good cores, two
/// seconds at a slow one's.
const LONG_PRODUCTS: usize = 1 << 33;

/// Whether a step of so many rows takes long enough to be heard within.
pub(super) fn is_long(model: &Model, rows: usize) -> bool {
    rows >= LONG_ROWS || rows.saturating_mul(model.info().parameters) >= LONG_PRODUCTS
}

/// Runs work that ends early when its flag is set; a signal that raises an exception in Python sets it.
pub(super) fn interruptible<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&Cancel<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    interruptible_by(py, &AtomicBool::new(false), work)
}

/// As [`interruptible`] where the work is long, and without a look at signals where it is not.
pub(super) fn interruptible_if<T: Send>(
    py: Python<'_>,
    long: bool,
    work: impl FnOnce(&Cancel<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    if long { interruptible(py, work) } else { detached(py, || work(&Cancel::never())) }
}

/// As [`interruptible`], with a flag that others may set, too.
pub(super) fn interruptible_by<T: Send>(
    py: Python<'_>,
    cancel: &AtomicBool,
    work: impl FnOnce(&Cancel<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    if !is_main_thread(py)? {
        return detached(py, || work(&Cancel::new(cancel)));
    }
    let caller = thread::current();
    let ended = AtomicBool::new(false);
    // Where the system refuses a thread, the work is still here.
    let work = Mutex::new(Some(work));
    let take = || work.lock().unwrap_or_else(PoisonError::into_inner).take();
    thread::scope(|scope| {
        let body = || {
            let outcome = take().map(|work| caught(|| work(&Cancel::new(cancel))));
            ended.store(true, Ordering::Release);
            caller.unpark();
            outcome
        };
        let Ok(helper) = thread::Builder::new().name("fastdecode-call".to_owned()).spawn_scoped(scope, body)
        else {
            let work = take().expect("no thread took the work");
            return detached(py, || work(&Cancel::new(cancel)));
        };
        let mut signal = Ok(());
        while signal.is_ok() && !py.detach(|| wait(&ended)) {
            signal = py.check_signals();
        }
        if signal.is_err() {
            cancel.store(true, Ordering::Relaxed);
        }
        let outcome = py.detach(|| helper.join());
        signal?;
        let outcome =
            outcome.expect("a panic of the work is caught inside").expect("the thread took the work");
        raised(py, outcome)
    })
}

/// Waits until the flag is set, or for [`LOOK`]; whether it is set.
fn wait(ended: &AtomicBool) -> bool {
    let began = Instant::now();
    while !ended.load(Ordering::Acquire) {
        match LOOK.checked_sub(began.elapsed()) {
            Some(left) if !left.is_zero() => thread::park_timeout(left),
            _ => return false,
        }
    }
    true
}

/// Whether this is the thread that runs Python's signal handlers, as far as Python's `threading` knows; where nobody has
/// imported that, there is hardly another one.
fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    let modules = py.import("sys")?.getattr("modules")?.cast_into::<PyDict>()?;
    let Some(threading) = modules.get_item("threading")? else { return Ok(true) };
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    main.eq(threading.call_method0("get_ident")?)
}
