//! Counts the allocations of the calling thread, or of a whole team, and notes the largest one.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use fastdecode::team::{self, Cancel};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One more allocation of so many bytes; a thread that is being torn down is not counted.
fn count_one(bytes: usize) {
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(bytes)));
}

// SAFETY: every call is handed on to the system's allocator unchanged; counting touches no allocated memory and does
// not allocate (the thread-local is const-initialized and has no destructor).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_one(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`; the memory came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_one(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count_one(size);
        // SAFETY: the caller keeps the contract of `realloc`; the memory came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Allocations of this thread while `work` runs.
pub(crate) fn allocations(work: impl FnOnce()) -> usize {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

/// Allocations while `work` runs, of this thread and of those with which it forms a team of `threads` members.
///
/// The same threads serve other tests between two regions of this one. So `work` is repeated, and the fewest count: what it
/// allocates itself, it allocates every time.
pub(crate) fn fewest_allocations(threads: usize, mut work: impl FnMut()) -> usize {
    let so_far = || {
        let sum = AtomicUsize::new(0);
        let add = |_: &team::Member<'_>| {
            sum.fetch_add(COUNT.get(), Ordering::Relaxed);
            Ok(())
        };
        team::run(threads, &Cancel::never(), add).expect("nothing fails there");
        sum.into_inner()
    };
    let once = |_| {
        let before = so_far();
        work();
        so_far() - before
    };
    (0..8).map(once).min().unwrap_or_default()
}

/// What `work` gives, and the bytes of the largest allocation of this thread meanwhile.
pub(crate) fn largest_allocation<T>(work: impl FnOnce() -> T) -> (T, usize) {
    LARGEST.set(0);
    let result = work();
    (result, LARGEST.get())
}

#[test]
fn allocations_are_seen() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![0_u8; 1000]))), 1, "one vector");
    let (taken, largest) = largest_allocation(|| std::hint::black_box((vec![0_u8; 5000], Box::new(1_u64))));
    assert_eq!((taken.0.len(), largest), (5000, 5000), "the larger of two");
    assert_eq!(largest_allocation(|| ()).1, 0, "nothing is taken");
    let of_a_worker = |member: &team::Member<'_>| {
        drop(std::hint::black_box((member.index() == 2).then(|| Box::new(1_u64))));
        member.barrier()
    };
    let count = fewest_allocations(3, || team::run(3, &Cancel::never(), of_a_worker).expect("it meets"));
    assert_eq!(count, 1, "one box of another thread");
}
