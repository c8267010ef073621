//! Anonymous memory for weights, caches and activations, on huge pages where the system grants them: a mapped file would count
//! as ours and has small pages, and small pages cost a tenth of the read bandwidth.

use std::alloc::Layout;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Anonymous memory that is written at load and then only read.
#[derive(Debug)]
pub struct Arena {
    at: *mut u8,
    len: usize,
}

// SAFETY: plain memory; whoever writes through `at` keeps writers and readers apart.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

/// Size of a huge page.
const HUGE: usize = 2 << 20;
/// Size of a line of the cache.
const LINE: usize = 64;

impl Arena {
    /// Memory for `len` bytes, not yet written, on huge pages where the system grants them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system refuses.
    pub fn new(len: usize) -> Result<Arc<Self>> {
        Ok(Arc::new(Self::alone(len)?))
    }

    /// As [`Arena::new`], for one owner.
    fn alone(len: usize) -> Result<Self> {
        let refused = || Error::OutOfMemory { what: "weights".to_owned(), bytes: len };
        let layout = Self::layout(len).ok_or_else(refused)?;
        // SAFETY: the layout has a size above zero.
        let at = unsafe { std::alloc::alloc(layout) };
        if at.is_null() {
            return Err(refused());
        }
        ask_for_huge_pages(at, layout.size());
        Ok(Self { at, len })
    }

    /// From half of a huge page on, whole ones; less is only aligned to a line.
    fn layout(len: usize) -> Option<Layout> {
        if len < HUGE / 2 {
            return Layout::from_size_align(len.max(1), LINE).ok();
        }
        Layout::from_size_align(len.checked_next_multiple_of(HUGE)?, HUGE).ok()
    }

    /// Memory for `floats` numbers, all of them `value`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system refuses.
    pub fn filled(floats: usize, value: f32) -> Result<Filled> {
        let bytes = floats
            .checked_mul(size_of::<f32>())
            .ok_or_else(|| Error::OutOfMemory { what: "a buffer".to_owned(), bytes: usize::MAX })?;
        let memory = Self::alone(bytes)?;
        for i in 0..floats {
            // SAFETY: inside the allocation, aligned to a page, and nobody else's.
            unsafe { memory.at.cast::<f32>().add(i).write(value) };
        }
        Ok(Filled { memory, floats })
    }

    /// First byte; aligned to a line, or from half of a huge page on to a huge page.
    pub fn at(&self) -> *mut u8 {
        self.at
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Asks the system for huge pages under `len` bytes from `at` on, before they are touched. Memory and behaviour stay the
/// same where it refuses.
fn ask_for_huge_pages(at: *mut u8, len: usize) {
    let skipped = at.addr().next_multiple_of(HUGE) - at.addr();
    #[cfg(target_os = "linux")]
    if len >= skipped + HUGE {
        // SAFETY: advice on whole pages of memory that the caller holds; it changes no contents.
        unsafe {
            libc::madvise(at.wrapping_add(skipped).cast(), len - skipped, libc::MADV_HUGEPAGE);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (skipped, len);
}

impl Drop for Arena {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: the same layout as in `new`.
            unsafe { std::alloc::dealloc(self.at, layout) };
        }
    }
}

/// An arena of floats that have all been written.
#[derive(Debug)]
pub struct Filled {
    memory: Arena,
    floats: usize,
}

impl std::ops::Deref for Filled {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: every float was written when this was made, and nothing writes since.
        unsafe { std::slice::from_raw_parts(self.memory.at.cast(), self.floats) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_arena_is_an_error() {
        assert!(matches!(Arena::new(usize::MAX / 2), Err(Error::OutOfMemory { .. })), "no machine has that");
        assert!(
            matches!(Arena::filled(usize::MAX / 2, 0.0), Err(Error::OutOfMemory { .. })),
            "past any address"
        );
    }

    #[test]
    fn a_filled_arena_holds_its_value() {
        let a = Arena::filled(5, 1.5).unwrap();
        assert_eq!(*a, [1.5; 5], "every float");
        assert!(a.as_ptr().addr().is_multiple_of(LINE), "aligned to a line");
    }

    #[test]
    fn large_memory_begins_at_a_huge_page() {
        for len in [HUGE / 2, HUGE, 3 * HUGE + 1] {
            assert!(Arena::new(len).unwrap().at().addr().is_multiple_of(HUGE), "{len} bytes");
        }
    }
}
