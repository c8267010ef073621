//! Whose turn it is: first come, first served.
//!
//! A turn is handed to the thread that has waited longest, and to no other one: who ends a turn and begins the next at once stands
//! in line behind those that wait. Only that thread is woken. A thread that stands in line may give up its place.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::cancel::{Cancel, PAUSE};
use super::waiting::{Waiting, lock};
use crate::error::{Error, Result};

thread_local! {
    /// Its address is this thread's number.
    static HERE: u8 = const { 0 };
}

/// The number of this thread, never 0, and no other thread's while this one lives.
pub fn here() -> usize {
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Queue {
    /// Locked for a moment at either end of a turn.
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    /// The thread whose turn it is; 0 for nobody's, and then nobody waits.
    holder: usize,
    waiting: VecDeque<Waiter>,
    /// Bells that nobody waits for, so that a wait allocates nothing.
    spare: Vec<Arc<Bell>>,
}

#[derive(Debug)]
struct Waiter {
    thread: usize,
    bell: Arc<Bell>,
}

/// Tells one thread that its turn has come. Shared with whoever rings it, who may do so a moment too late for anybody to hear: the
/// next one who waits for it then looks once more than it must.
#[derive(Debug, Default)]
struct Bell {
    rung: AtomicBool,
    waiting: Waiting,
}

/// The calling thread's turn, until it is dropped.
#[derive(Debug)]
pub struct Held<'a> {
    queue: &'a Queue,
    /// It is this thread that has the turn.
    here: PhantomData<*const ()>,
}

/// A place in line; dropping it gives it up, or passes the turn on where it has come meanwhile.
struct Place<'a> {
    queue: &'a Queue,
    bell: Arc<Bell>,
    /// Whether the caller has its turn, and the place is nobody's any more.
    served: bool,
}

impl Queue {
    /// The caller's turn, when it has come. None where the caller has a turn or waits for one: that one ends only behind this call,
    /// which comes from a hook.
    ///
    /// # Errors
    /// `Cancelled` when that was set while the caller waited.
    pub fn take(&self, cancel: &Cancel<'_>) -> Result<Option<Held<'_>>> {
        let thread = here();
        let mut line = lock(&self.line);
        if line.holder == 0 {
            line.holder = thread;
            return Ok(Some(Held::of(self)));
        }
        if line.holder == thread || line.waiting.iter().any(|waiter| waiter.thread == thread) {
            return Ok(None);
        }
        let bell = line.spare.pop().unwrap_or_default();
        bell.rung.store(false, Ordering::SeqCst);
        line.waiting.push_back(Waiter { thread, bell: Arc::clone(&bell) });
        drop(line);
        let mut place = Place { queue: self, bell, served: false };
        // Where there is no hook, the flag is still to be seen: whoever sets it does not know whom to wake.
        let ask = || _ = cancel.ask();
        place.bell.waiting.until_or(|| place.has_come() || cancel.is_set(), Some((PAUSE, &ask)));
        place.served = place.has_come();
        if place.served { Ok(Some(Held::of(self))) } else { Err(Error::Cancelled) }
    }

    /// Makes it the turn of the first in line, or nobody's.
    fn pass_on(mut line: MutexGuard<'_, Line>) {
        let next = line.waiting.pop_front();
        line.holder = next.as_ref().map_or(0, |waiter| waiter.thread);
        if let Some(Waiter { bell, .. }) = next {
            // Under the lock, so that who gives up a place knows whether its turn has come.
            bell.rung.store(true, Ordering::SeqCst);
            drop(line);
            bell.waiting.wake();
        }
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        lock(&self.line).waiting.len()
    }
}

impl<'a> Held<'a> {
    fn of(queue: &'a Queue) -> Self {
        Self { queue, here: PhantomData }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        Queue::pass_on(lock(&self.queue.line));
    }
}

impl Place<'_> {
    /// Whether it is the caller's turn.
    fn has_come(&self) -> bool {
        self.bell.rung.load(Ordering::SeqCst)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut line = lock(&self.queue.line);
        line.spare.push(Arc::clone(&self.bell));
        if self.served {
            return;
        }
        line.waiting.retain(|waiter| !Arc::ptr_eq(&waiter.bell, &self.bell));
        if self.has_come() {
            Queue::pass_on(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread::{self, Scope, ScopedJoinHandle};
    use std::time::{Duration, Instant};

    use super::*;

    /// Waits for what another thread is to do.
    fn wait_until(ready: impl Fn() -> bool) {
        let began = Instant::now();
        while !ready() {
            assert!(began.elapsed() < Duration::from_secs(60), "it never comes");
            thread::yield_now();
        }
    }

    /// Threads that stand in line in this order, and note their number when their turn has come; whether it came.
    fn line_up<'s>(
        scope: &'s Scope<'s, '_>,
        queue: &'s Queue,
        flags: &'s [AtomicBool],
        served: &'s Mutex<Vec<usize>>,
    ) -> Vec<ScopedJoinHandle<'s, bool>> {
        let wait = |(number, flag): (usize, &'s AtomicBool)| {
            let waiter = scope.spawn(move || {
                let turn = queue.take(&Cancel::new(flag));
                let came = matches!(turn, Ok(Some(_)));
                assert!(came || matches!(turn, Err(Error::Cancelled)), "{turn:?}");
                if came {
                    lock(served).push(number);
                }
                came
            });
            wait_until(|| queue.waiting() == number + 1);
            waiter
        };
        flags.iter().enumerate().map(wait).collect()
    }

    fn flags<const N: usize>() -> [AtomicBool; N] {
        std::array::from_fn(|_| AtomicBool::new(false))
    }

    fn take(queue: &Queue) -> Option<Held<'_>> {
        queue.take(&Cancel::never()).expect("nobody cancels")
    }

    #[test]
    fn who_comes_first_is_served_first() {
        let (queue, flags, served) = (Queue::default(), flags::<12>(), Mutex::new(Vec::new()));
        let turn = take(&queue);
        thread::scope(|scope| {
            line_up(scope, &queue, &flags, &served);
            assert!(lock(&served).is_empty(), "it is another one's turn");
            drop(turn);
        });
        assert_eq!(served.into_inner().unwrap(), Vec::from_iter(0..12));
        assert!(take(&queue).is_some() && queue.waiting() == 0, "nobody is left");
    }

    #[test]
    fn who_gives_up_leaves_the_others_in_their_order() {
        for gone in [0, 1, 3] {
            let (queue, flags, served) = (Queue::default(), flags::<4>(), Mutex::new(Vec::new()));
            let turn = take(&queue);
            thread::scope(|scope| {
                let mut waiters = line_up(scope, &queue, &flags, &served);
                flags[gone].store(true, Ordering::Relaxed);
                assert!(
                    !waiters.remove(gone).join().unwrap(),
                    "{gone} gives up while it is another one's turn"
                );
                assert_eq!(queue.waiting(), 3, "{gone} has left");
                drop(turn);
                assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap()), "the others are served");
            });
            let expected: Vec<_> = (0..4).filter(|&number| number != gone).collect();
            assert_eq!(served.into_inner().unwrap(), expected);
        }
    }

    #[test]
    fn a_turn_that_comes_to_one_who_gives_up_is_passed_on() {
        for round in 0..200 {
            let (queue, flags, served) = (Queue::default(), flags::<2>(), Mutex::new(Vec::new()));
            let turn = take(&queue);
            thread::scope(|scope| {
                line_up(scope, &queue, &flags, &served);
                let gone = &flags[round % 2];
                scope.spawn(|| gone.store(true, Ordering::Relaxed));
                drop(turn);
            });
            assert!(take(&queue).is_some(), "round {round}: nobody has it any more");
            assert!(lock(&served).contains(&(1 - round % 2)), "round {round}: the other one is served");
        }
    }

    #[test]
    fn a_hook_ends_a_wait() {
        let (queue, began) = (Queue::default(), Instant::now());
        let turn = take(&queue);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| queue.take(&Cancel::never().asking(&|| true)).map(|_| ()));
            assert!(matches!(waiter.join().unwrap(), Err(Error::Cancelled)), "told so by its hook");
        });
        assert!(began.elapsed() >= PAUSE && queue.waiting() == 0, "it waited, and left");
        drop(turn);
    }

    #[test]
    fn a_call_from_a_hook_does_not_wait_for_its_own_thread() {
        let (queue, asked) = (Queue::default(), AtomicBool::new(false));
        let turn = take(&queue);
        assert!(take(&queue).is_none(), "this thread has the turn");
        let hook = || {
            assert!(take(&queue).is_none(), "this thread is in line");
            asked.store(true, Ordering::SeqCst);
            false
        };
        thread::scope(|scope| {
            let waiter =
                scope.spawn(|| queue.take(&Cancel::never().asking(&hook)).map(|turn| turn.is_some()));
            wait_until(|| asked.load(Ordering::SeqCst));
            drop(turn);
            assert!(waiter.join().unwrap().unwrap(), "its turn came");
        });
        assert!(take(&queue).is_some(), "nobody has it any more");
    }

    #[test]
    fn a_panic_ends_a_turn_and_a_wait() {
        let queue = Queue::default();
        let failed = catch_unwind(AssertUnwindSafe(|| {
            let _turn = take(&queue);
            panic!("told to fail");
        }));
        assert!(failed.is_err(), "it fails");
        let turn = take(&queue);
        assert!(turn.is_some(), "usable");
        thread::scope(|scope| {
            let waiter =
                scope.spawn(|| queue.take(&Cancel::never().asking(&|| panic!("told to fail"))).is_ok());
            assert!(waiter.join().is_err(), "it fails in line");
        });
        assert_eq!(queue.waiting(), 0, "it has left");
        drop(turn);
        assert!(take(&queue).is_some(), "usable");
    }
}
