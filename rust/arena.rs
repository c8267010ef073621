//! Anonymous memory for weights, caches and activations, on huge pages where the system grants them: a mapped file would count
//! as ours and has small pages, and small pages cost a tenth of the read bandwidth.
//!
//! Large memory is mapped from the system directly and goes back to it when it is dropped. `malloc` would keep it: each large
//! block that is freed raises the size from which `malloc` maps, up to 32 MB.

use std::alloc::Layout;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Size of a huge page.
pub const HUGE: usize = 2 << 20;
/// Size of a line of the cache.
const LINE: usize = 64;

/// Whole pages of zeroed memory, the first one aligned to a huge page. On Linux they come from the system and go back to it,
/// a part at a time where that is asked for; elsewhere they are an allocation.
#[derive(Debug)]
pub struct Mapping {
    at: *mut u8,
    len: usize,
}

// SAFETY: plain memory; whoever writes through `at` keeps writers and readers apart.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// At least `len` bytes, up to a whole page; none when the system refuses.
    pub fn new(len: usize) -> Option<Self> {
        let len = len.max(1).checked_next_multiple_of(page())?;
        Some(Self { at: system::map(len)?, len })
    }

    /// First byte, aligned to a huge page.
    pub fn at(&self) -> *mut u8 {
        self.at
    }

    /// Size in bytes, a multiple of the page.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte; there always is one.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Asks for huge pages, or for small ones only. Contents stay the same. False where the system does not listen.
    pub fn advise_huge(&self, huge: bool) -> bool {
        system::advise_huge(self.at, self.len, huge)
    }

    /// Gives the memory of `len` bytes from `from` on back to the system; they read as zeros afterwards and take memory again when
    /// they are written. False where the system does not do so, and the contents are then as they were.
    ///
    /// # Safety
    /// Both numbers are multiples of [`page`] within the mapping, and nobody reads or writes there meanwhile.
    pub unsafe fn give_back(&self, from: usize, len: usize) -> bool {
        debug_assert!(from.is_multiple_of(page()) && len.is_multiple_of(page()), "whole pages");
        debug_assert!(from + len <= self.len, "within the mapping");
        // SAFETY: the caller keeps to the mapping and is alone there.
        unsafe { system::give_back(self.at.add(from), len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nobody reaches it through it any more.
        unsafe { system::unmap(self.at, self.len) };
    }
}

/// Size of a page of the system.
pub fn page() -> usize {
    system::page()
}

/// Memory by the calls of Linux.
#[cfg(target_os = "linux")]
mod system {
    use super::HUGE;
    use std::ptr::null_mut;
    use std::sync::atomic::{AtomicUsize, Ordering};

    pub(super) fn page() -> usize {
        static PAGE: AtomicUsize = AtomicUsize::new(0);
        let known = PAGE.load(Ordering::Relaxed);
        if known != 0 {
            return known;
        }
        // SAFETY: a question without side effects.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        PAGE.store(page, Ordering::Relaxed);
        page
    }

    pub(super) fn map(len: usize) -> Option<*mut u8> {
        // Room for the alignment; what is left of it on both sides goes back at once.
        let room = len.checked_add(HUGE)?;
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place that the system chooses.
        let start = unsafe { libc::mmap(null_mut(), room, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let start = start.cast::<u8>();
        let before = start.addr().next_multiple_of(HUGE) - start.addr();
        let at = start.wrapping_add(before);
        let after = HUGE - before;
        // SAFETY: both parts are whole pages of the new mapping, outside what is kept.
        unsafe {
            unmap(start, before);
            unmap(at.wrapping_add(len), after);
        }
        Some(at)
    }

    /// # Safety
    /// The pages are the caller's, mapped by [`map`], and nobody reaches them any more.
    pub(super) unsafe fn unmap(at: *mut u8, len: usize) {
        if len > 0 {
            // SAFETY: the caller's promise. The call fails only where the system has no more room for borders between mappings;
            // the memory is then given back without its addresses.
            unsafe {
                if libc::munmap(at.cast(), len) != 0 {
                    give_back(at, len);
                }
            }
        }
    }

    pub(super) fn advise_huge(at: *mut u8, len: usize, huge: bool) -> bool {
        let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: advice on whole pages that the caller holds; it changes no contents.
        unsafe { libc::madvise(at.cast(), len, advice) == 0 }
    }

    /// # Safety
    /// The pages are the caller's, mapped by [`map`], and nobody reads or writes them meanwhile.
    pub(super) unsafe fn give_back(at: *mut u8, len: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe { libc::madvise(at.cast(), len, libc::MADV_DONTNEED) == 0 }
    }
}

/// Memory by the allocator, where there are no such calls.
#[cfg(not(target_os = "linux"))]
mod system {
    use super::{HUGE, Layout};

    pub(super) fn page() -> usize {
        4096
    }

    pub(super) fn map(len: usize) -> Option<*mut u8> {
        let layout = Layout::from_size_align(len, HUGE).ok()?;
        // SAFETY: a mapping has at least one byte.
        let at = unsafe { std::alloc::alloc_zeroed(layout) };
        (!at.is_null()).then_some(at)
    }

    /// # Safety
    /// The pages are the caller's, from [`map`] with this length, and nobody reaches them any more.
    pub(super) unsafe fn unmap(at: *mut u8, len: usize) {
        if let Ok(layout) = Layout::from_size_align(len, HUGE) {
            // SAFETY: the same layout as in `map`.
            unsafe { std::alloc::dealloc(at, layout) };
        }
    }

    pub(super) fn advise_huge(_at: *mut u8, _len: usize, _huge: bool) -> bool {
        false
    }

    /// # Safety
    /// None here; the signature is that of the other module.
    pub(super) unsafe fn give_back(_at: *mut u8, _len: usize) -> bool {
        false
    }
}

/// Anonymous memory that is written at load and then only read.
#[derive(Debug)]
pub struct Arena {
    memory: Memory,
    len: usize,
}

/// Where an arena's bytes are.
#[derive(Debug)]
enum Memory {
    /// From half of a huge page on.
    Mapped(Mapping),
    /// Less, from the allocator, aligned to a line.
    Allocated { at: *mut u8, layout: Layout },
}

// SAFETY: plain memory; whoever writes through `at` keeps writers and readers apart.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Memory for `len` bytes, not yet written, on huge pages where the system grants them. `what` names it in the error.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system refuses.
    pub fn new(len: usize, what: &str) -> Result<Arc<Self>> {
        Ok(Arc::new(Self::alone(len, what)?))
    }

    /// As [`Arena::new`], for one owner.
    fn alone(len: usize, what: &str) -> Result<Self> {
        let refused = || Error::OutOfMemory { what: what.to_owned(), bytes: len };
        if len < HUGE / 2 {
            let layout = Layout::from_size_align(len.max(1), LINE).map_err(|_| refused())?;
            // SAFETY: the layout has a size above zero.
            let at = unsafe { std::alloc::alloc(layout) };
            if at.is_null() {
                return Err(refused());
            }
            return Ok(Self { memory: Memory::Allocated { at, layout }, len });
        }
        // Whole huge pages: the last one is not worse than the others.
        let whole = len.checked_next_multiple_of(HUGE).ok_or_else(refused)?;
        let mapping = Mapping::new(whole).ok_or_else(refused)?;
        mapping.advise_huge(true);
        Ok(Self { memory: Memory::Mapped(mapping), len })
    }

    /// Memory for `floats` numbers, all of them `value`. `what` names it in the error.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system refuses.
    pub fn filled(floats: usize, value: f32, what: &str) -> Result<Filled> {
        let bytes = floats
            .checked_mul(size_of::<f32>())
            .ok_or_else(|| Error::OutOfMemory { what: what.to_owned(), bytes: usize::MAX })?;
        let memory = Self::alone(bytes, what)?;
        for i in 0..floats {
            // SAFETY: inside the allocation, which is aligned to a line at least, and nobody else's.
            unsafe { memory.at().cast::<f32>().add(i).write(value) };
        }
        Ok(Filled { memory, floats })
    }

    /// First byte; aligned to a line, or from half of a huge page on to a huge page.
    pub fn at(&self) -> *mut u8 {
        match &self.memory {
            Memory::Mapped(mapping) => mapping.at(),
            Memory::Allocated { at, .. } => *at,
        }
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

impl Drop for Memory {
    fn drop(&mut self) {
        if let Self::Allocated { at, layout } = self {
            // SAFETY: the layout with which it was allocated.
            unsafe { std::alloc::dealloc(*at, *layout) };
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
        unsafe { std::slice::from_raw_parts(self.memory.at().cast(), self.floats) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_arena_is_an_error_that_names_it() {
        let named = |what: &str, error: Option<Error>| {
            let message = error.map(|e| e.to_string()).unwrap_or_default();
            assert!(message.starts_with(&format!("{what}: expected ")), "{what} is not named: {message}");
        };
        named("a test", Arena::new(usize::MAX / 2, "a test").err());
        named("numbers", Arena::filled(usize::MAX / 2, 0.0, "numbers").err());
        named("half", Arena::new(usize::MAX / 2 + HUGE, "half").err());
    }

    #[test]
    fn a_filled_arena_holds_its_value() {
        let a = Arena::filled(5, 1.5, "a test").unwrap();
        assert_eq!(*a, [1.5; 5], "every float");
        assert!(a.as_ptr().addr().is_multiple_of(LINE), "aligned to a line");
    }

    #[test]
    fn large_memory_begins_at_a_huge_page() {
        for len in [HUGE / 2, HUGE, 3 * HUGE + 1] {
            assert!(Arena::new(len, "a test").unwrap().at().addr().is_multiple_of(HUGE), "{len} bytes");
        }
    }

    #[test]
    fn what_is_given_back_reads_as_zeros_and_the_rest_stays() {
        let page = page();
        let mapping = Mapping::new(5 * page - 1).unwrap();
        assert_eq!(mapping.len(), 5 * page, "up to a whole page");
        // SAFETY: inside the mapping, which is ours alone.
        unsafe {
            assert!((0..mapping.len()).all(|i| *mapping.at().add(i) == 0), "zeroed at first");
            mapping.at().write_bytes(7, mapping.len());
            let given = mapping.give_back(page, 2 * page);
            assert_eq!(given, cfg!(target_os = "linux"), "only Linux gives back parts");
            for i in 0..mapping.len() {
                let hole = given && (page..3 * page).contains(&i);
                assert_eq!(*mapping.at().add(i), if hole { 0 } else { 7 }, "byte {i}");
            }
        }
    }
}
