//! Waiting for another thread: spin, then yield, then park.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pauses before a waiter yields: some ten microseconds, the length of a short phase.
const SPINS: usize = 400;
/// How long a waiter yields before it parks.
const YIELD_FOR: Duration = Duration::from_micros(200);

/// A place to wait in: spin, then yield, then park.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    parked: AtomicUsize,
    lock: Mutex<()>,
    woken: Condvar,
}

/// A waiter that is parked; dropping it says that it is not any more, after a panic too.
struct Parked<'a>(&'a AtomicUsize);

impl<'a> Parked<'a> {
    fn new(parked: &'a AtomicUsize) -> Self {
        parked.fetch_add(1, Ordering::SeqCst);
        Self(parked)
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Locks, whatever a panic left behind.
pub(super) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiting {
    /// Returns once `ready` holds; whoever makes it hold calls [`Waiting::wake`] afterwards.
    pub(super) fn until(&self, ready: impl Fn() -> bool) {
        self.until_or(ready, None);
    }

    /// As [`Waiting::until`], and calls what `look` names as often as it says, for as long as the caller is parked: `ready` may
    /// then hold for what it has seen.
    pub(super) fn until_or(&self, ready: impl Fn() -> bool, look: Option<(Duration, &dyn Fn())>) {
        for _ in 0..SPINS {
            if ready() {
                return;
            }
            std::hint::spin_loop();
        }
        let start = Instant::now();
        while start.elapsed() < YIELD_FOR {
            if ready() {
                return;
            }
            std::thread::yield_now();
        }
        let _parked = Parked::new(&self.parked);
        let mut guard = lock(&self.lock);
        while !ready() {
            guard = match look {
                None => self.woken.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some((every, look)) => {
                    let (guard, timeout) =
                        self.woken.wait_timeout(guard, every).unwrap_or_else(PoisonError::into_inner);
                    // Whoever wakes others does not wait for a look, which may take long.
                    drop(guard);
                    if timeout.timed_out() {
                        look();
                    }
                    lock(&self.lock)
                }
            };
        }
    }

    /// Wakes whoever is parked. The condition was made true by a sequentially consistent store before.
    pub(super) fn wake(&self) {
        if self.parked.load(Ordering::SeqCst) > 0 {
            // Taking the lock orders this after a waiter's last look at its condition.
            drop(lock(&self.lock));
            self.woken.notify_all();
        }
    }
}
