//! Memory of a device, and memory of the host that a device copies from and to by itself.

use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use super::Device;
use super::ffi::{Address, OUT_OF_MEMORY};
use crate::error::{Error, Result};

/// A run of a device's memory; freed when dropped, after the device has done what it was told before.
#[derive(Debug)]
pub struct Memory {
    device: Arc<Device>,
    at: Address,
    len: usize,
}

/// Page-locked memory of the host, zeroed; copies from and to it do not wait for the host.
#[derive(Debug)]
pub struct Pinned {
    device: Arc<Device>,
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: it is plain memory with one owner; the driver frees it in any thread.
unsafe impl Send for Pinned {}
// SAFETY: a shared reference gives out an address and a length only.
unsafe impl Sync for Pinned {}

impl Device {
    /// `bytes` of this device's memory, not initialized. `what` says in errors what it is for.
    ///
    /// # Errors
    /// [`OutOfMemory`](Error::OutOfMemory) with what is free where the device has not so much, else [`Cuda`](Error::Cuda).
    pub fn alloc(self: &Arc<Self>, bytes: usize, what: &str) -> Result<Memory> {
        let (_here, mut at) = (self.enter()?, 0);
        // The driver refuses to allocate nothing.
        // SAFETY: the driver writes one address.
        let code = unsafe { (self.driver().functions.cuMemAlloc_v2)(&raw mut at, bytes.max(1)) };
        if code == OUT_OF_MEMORY {
            return Err(self.refused(what, bytes));
        }
        self.check("cuMemAlloc_v2", code)?;
        Ok(Memory { device: Arc::clone(self), at, len: bytes })
    }

    /// `bytes` of page-locked memory of the host, zeroed.
    ///
    /// # Errors
    /// [`OutOfMemory`](Error::OutOfMemory), [`Cuda`](Error::Cuda).
    pub fn pinned(self: &Arc<Self>, bytes: usize) -> Result<Pinned> {
        let (_here, mut at) = (self.enter()?, null_mut());
        // SAFETY: the driver writes one pointer; 0 asks for nothing special.
        let code = unsafe { (self.driver().functions.cuMemHostAlloc)(&raw mut at, bytes.max(1), 0) };
        if code == OUT_OF_MEMORY {
            return Err(Error::OutOfMemory {
                what: format!("page-locked memory for {}", self.shown()),
                bytes,
            });
        }
        self.check("cuMemHostAlloc", code)?;
        let Some(at) = NonNull::new(at.cast::<u8>()) else {
            return Err(Error::OutOfMemory {
                what: format!("page-locked memory for {}", self.shown()),
                bytes,
            });
        };
        // SAFETY: the driver has just given these bytes to us alone.
        unsafe { at.write_bytes(0, bytes) };
        Ok(Pinned { device: Arc::clone(self), at, len: bytes })
    }
}

impl Memory {
    /// Where it begins, as the device sees it.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Its bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // In a forked child the address means nothing; the parent frees it.
        if let Ok(_here) = self.device.enter() {
            // SAFETY: `alloc` got it from the driver, and it is freed once.
            let _ = unsafe { (self.device.driver().functions.cuMemFree_v2)(self.at) };
        }
    }
}

impl Pinned {
    /// Where it begins. It is written through [`as_mut_ptr`](Self::as_mut_ptr) and by copies only.
    pub fn as_ptr(&self) -> *const u8 {
        self.at.as_ptr()
    }

    /// Where it begins, to be written.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.at.as_ptr()
    }

    /// Its bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A forked child leaves it: the driver of the parent's process has it locked.
        if let Ok(_here) = self.device.enter() {
            // SAFETY: `pinned` got it from the driver, and it is freed once.
            let _ = unsafe { (self.device.driver().functions.cuMemFreeHost)(self.at.as_ptr().cast()) };
        }
    }
}
