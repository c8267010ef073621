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

/// Locks, whatever a panic left behind.
pub(super) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiting {
    /// Returns once `ready` holds; whoever makes it hold calls [`Waiting::wake`] afterwards.
    pub(super) fn until(&self, ready: impl Fn() -> bool) {
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
        self.parked.fetch_add(1, Ordering::SeqCst);
        let mut guard = lock(&self.lock);
        while !ready() {
            guard = self.woken.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.parked.fetch_sub(1, Ordering::SeqCst);
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
