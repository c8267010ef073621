//! Counts the forks between the first process and this one, so that a forked child is known for what it is.
//!
//! A forked child has the memory of its parent, but none of its threads, and a lock that one of them held stays locked for ever.
//! Whatever holds threads or locks is therefore kept [`PerProcess`]: a child finds that what is there belongs to another
//! [`generation`], leaves it as it was and makes its own. A process id does not serve: in a pid namespace of its own a child can
//! have the id of its parent.

use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// Forks so far, counted by the handler in each child.
static FORKS: AtomicUsize = AtomicUsize::new(0);
/// Whether the handler is registered.
static REGISTERED: AtomicBool = AtomicBool::new(false);

#[cfg(unix)]
unsafe extern "C" {
    fn pthread_atfork(
        prepare: Option<extern "C" fn()>,
        parent: Option<extern "C" fn()>,
        child: Option<extern "C" fn()>,
    ) -> std::ffi::c_int;
}

/// Runs in every forked child before `fork` returns there; an atomic addition is all that it may do.
#[cfg(unix)]
extern "C" fn forked() {
    FORKS.fetch_add(1, Ordering::SeqCst);
}

/// A number that is the same for the life of a process and differs from that of every process it was forked from.
///
/// Processes that were made without the C library's `fork` (by a raw system call) are not told apart.
pub fn generation() -> usize {
    if !REGISTERED.load(Ordering::Acquire) {
        register();
    }
    FORKS.load(Ordering::SeqCst)
}

/// Registers the handler. Two threads at once may both do so; each fork then counts twice, which tells it apart as well. A lock
/// here would be one more that a fork can leave locked.
#[cold]
fn register() {
    #[cfg(unix)]
    // SAFETY: the handler only adds to an atomic number, which is allowed between `fork` and its return in the child.
    let registered = unsafe { pthread_atfork(None, None, Some(forked)) } == 0;
    #[cfg(not(unix))]
    let registered = true;
    // Where the system has no memory for the handler, the next call tries again.
    REGISTERED.store(registered, Ordering::Release);
}

/// A value that every process makes for itself when it first asks for it.
#[derive(Debug)]
pub struct PerProcess<T> {
    current: AtomicPtr<Made<T>>,
    owns: PhantomData<Made<T>>,
}

/// A value, and the generation of the process that made it.
#[derive(Debug)]
struct Made<T> {
    generation: usize,
    value: T,
}

impl<T: Send + Sync> PerProcess<T> {
    /// No value yet.
    pub const fn new() -> Self {
        Self { current: AtomicPtr::new(null_mut()), owns: PhantomData }
    }

    /// This process's value, made now where there is none. A parent's value is never touched again: other threads of the parent
    /// may have been in the middle of changing it at the fork.
    pub fn get(&self, make: impl Fn() -> T) -> &T {
        let now = generation();
        loop {
            let seen = self.current.load(Ordering::Acquire);
            // SAFETY: a value that was ever current is freed by `drop` at the earliest, so the pointer is null or good.
            if let Some(made) = unsafe { seen.as_ref() }
                && made.generation == now
            {
                return &made.value;
            }
            let fresh = Box::into_raw(Box::new(Made { generation: now, value: make() }));
            if self.current.compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
                // SAFETY: nobody else has seen the fresh value.
                drop(unsafe { Box::from_raw(fresh) });
            }
        }
    }
}

impl<T: Send + Sync> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let current = *self.current.get_mut();
        // SAFETY: as in `get`.
        if unsafe { current.as_ref() }.is_some_and(|made| made.generation == generation()) {
            // SAFETY: it was made by a box, is ours, and nobody borrows from `self` any more.
            drop(unsafe { Box::from_raw(current) });
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::sync::atomic::AtomicU8;

    use super::*;

    /// Forks, runs `f` in the child, and gives what it returned there.
    fn in_a_child(f: impl FnOnce() -> u8) -> u8 {
        // SAFETY: the child calls `f`, which allocates nothing and takes no lock, and leaves at once.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "the system forks");
        if child == 0 {
            // SAFETY: a child that hangs is ended by the system, and counts as failed.
            unsafe { libc::alarm(60) };
            let code = f();
            // SAFETY: ends this process without running anything else.
            unsafe { libc::_exit(i32::from(code)) };
        }
        let mut status = 0;
        // SAFETY: waits for our own child.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(waited, child, "the child was waited for");
        assert!(libc::WIFEXITED(status), "the child ended by itself: {status}");
        libc::WEXITSTATUS(status) as u8
    }

    #[test]
    fn a_child_and_a_grandchild_are_generations_of_their_own() {
        let before = generation();
        let seen = in_a_child(|| {
            let child = generation();
            let grandchild_differs = in_a_child(|| u8::from(generation() != child && generation() != before));
            u8::from(child != before && generation() == child) + 2 * grandchild_differs
        });
        assert_eq!(seen, 3, "bit 0: the child differs and stays; bit 1: the grandchild differs from both");
        assert_eq!(generation(), before, "the parent stays what it was");
    }
    #[test]
    fn every_process_has_a_value_of_its_own() {
        static DROPPED: AtomicU8 = AtomicU8::new(0);
        struct Counted(u8);
        impl Drop for Counted {
            fn drop(&mut self) {
                DROPPED.fetch_add(self.0, Ordering::SeqCst);
            }
        }
        let cell = PerProcess::new();
        assert_eq!(cell.get(|| Counted(1)).0, 1, "made");
        assert_eq!(cell.get(|| Counted(2)).0, 1, "kept");
        // The child leaves the parent's value, makes and keeps its own, and drops that one alone. (Its box is an allocation; glibc
        // and the other C libraries of today keep their allocators usable in a child.)
        let seen = in_a_child(|| {
            let own = cell.get(|| Counted(4)).0 + cell.get(|| Counted(8)).0;
            // SAFETY: the child's copy, which nobody looks at afterwards.
            drop(unsafe { std::ptr::read(&raw const cell) });
            16 * own + DROPPED.load(Ordering::SeqCst)
        });
        assert_eq!(seen, 16 * 8 + 4, "its own twice, and that one is dropped");
        // A child that never asked drops nothing.
        let seen = in_a_child(|| {
            // SAFETY: as above.
            drop(unsafe { std::ptr::read(&raw const cell) });
            DROPPED.load(Ordering::SeqCst)
        });
        assert_eq!(seen, 0, "the parent's value is left alone");
        drop(cell);
        assert_eq!(DROPPED.load(Ordering::SeqCst), 1, "the parent drops its own");
    }
}
