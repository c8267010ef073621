//! Long calls that Ctrl-C ends: the thread that computes looks at Python's signals now and then.
//!
//! Python runs signal handlers in its main thread only, and only when that thread asks. So a call that computes there has a hook,
//! which its steps ask from time to time (see [`Cancel`]): it takes the interpreter back for a moment and asks. Where a handler
//! raises, the exception is kept, the call ends as soon as all its threads have seen it, and the exception is what it raises. Every
//! other thread hears no signals: it has no hook, and never waits for the interpreter within a step.
//!
//! The handler runs in the middle of a step. What it computes with a model of its own accord is computed by its thread alone, since
//! the team is in that step.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::exceptions::{caught, raised};
use crate::engine::Hook;
use crate::error::Result;
use crate::forks::generation;
use crate::team::Cancel;

thread_local! {
    /// Whether this is Python's main thread, and of which process: in a forked child it may be another one.
    static IS_MAIN: Cell<Option<(usize, bool)>> = const { Cell::new(None) };
}

/// Runs work without the interpreter; a signal that raises an exception in Python sets its [`Cancel`].
///
/// The exception is raised even where the work has succeeded meanwhile, and what the work returns is then lost: whoever changes
/// something undoes it on an error, or can do without the result.
pub(super) fn interruptible<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&Cancel<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    interruptible_hook(py, |hook| match hook {
        Some(hook) => work(&Cancel::new(&AtomicBool::new(false)).asking(&|| hook())),
        None => work(&Cancel::never()),
    })
}

/// As [`interruptible`], for work that asks by itself whether it is to end.
pub(super) fn interruptible_hook<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(Option<&Hook<'_>>) -> Result<T> + Send,
) -> PyResult<T> {
    let (is_main, heard) = (is_main_thread(py)?, Mutex::new(None));
    let outcome = py.detach(|| {
        let hook = || hears(&heard);
        caught(|| work(is_main.then_some(&hook as &Hook<'_>)))
    });
    match heard.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(exception) => Err(exception),
        None => raised(py, outcome),
    }
}

/// Runs the handlers of signals that have come; whether one has raised an exception, which is then kept.
fn hears(heard: &Mutex<Option<PyErr>>) -> bool {
    // An interpreter that is about to end runs no handlers any more.
    let signal = Python::try_attach(|py| py.check_signals()).unwrap_or(Ok(()));
    signal.is_err_and(|exception| {
        heard.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(exception);
        true
    })
}

/// Whether this is the thread that runs Python's signal handlers, as far as Python's `threading` knows; where nobody has
/// imported that, there is hardly another one.
fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    let process = generation();
    if let Some((of, known)) = IS_MAIN.get()
        && of == process
    {
        return Ok(known);
    }
    let modules = py.import("sys")?.getattr("modules")?.cast_into::<PyDict>()?;
    let Some(threading) = modules.get_item("threading")? else { return Ok(true) };
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    let is_main = main.eq(threading.call_method0("get_ident")?)?;
    IS_MAIN.set(Some((process, is_main)));
    Ok(is_main)
}
