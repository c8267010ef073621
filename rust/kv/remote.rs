//! Blocks in memory that is not this machine's own: a GPU's. Their addresses are the device's, and nothing here follows them.

use std::fmt::Debug;

use crate::arena::Mapping;
use crate::error::Result;

/// A device in whose memory a pool's blocks lie.
pub trait Remote: Debug + Send + Sync {
    /// Memory for a slab of blocks.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::Error::OutOfMemory), or what keeps this process from using the device.
    fn memory(&self, bytes: usize) -> Result<Box<dyn Held>>;

    /// Copies a block onto another one, before anything that the device is told to do afterwards.
    ///
    /// # Errors
    /// What keeps the device from doing so.
    fn copy(&self, from: *const u8, to: *mut u8, bytes: usize) -> Result<()>;
}

/// Memory of a device, given back by dropping.
pub trait Held: Debug + Send + Sync {
    /// Its first byte, as the device sees it.
    fn at(&self) -> *mut u8;
}

/// Where a slab's blocks lie.
#[derive(Debug)]
pub(super) enum Memory {
    /// In this process.
    Own(Mapping),
    /// On a device, so many bytes.
    Remote(Box<dyn Held>, usize),
}

impl Memory {
    /// Memory for a slab; none where the system refuses it.
    ///
    /// # Errors
    /// Those of [`Remote::memory`].
    pub(super) fn new(bytes: usize, remote: Option<&dyn Remote>) -> Result<Option<Self>> {
        match remote {
            None => Ok(Mapping::new(bytes).map(Self::Own)),
            Some(remote) => Ok(Some(Self::Remote(remote.memory(bytes)?, bytes))),
        }
    }

    pub(super) fn at(&self) -> *mut u8 {
        match self {
            Self::Own(mapping) => mapping.at(),
            Self::Remote(held, _) => held.at(),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Own(mapping) => mapping.len(),
            Self::Remote(_, bytes) => *bytes,
        }
    }

    /// See [`Mapping::advise_huge`]. A device has no such pages, and always answers that they are there: it gives no part of a slab back.
    pub(super) fn advise_huge(&self, huge: bool) -> bool {
        match self {
            Self::Own(mapping) => mapping.advise_huge(huge),
            Self::Remote(..) => huge,
        }
    }

    /// See [`Mapping::give_back`].
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn give_back(&self, from: usize, bytes: usize) -> bool {
        match self {
            // SAFETY: handed on from the caller.
            Self::Own(mapping) => unsafe { mapping.give_back(from, bytes) },
            Self::Remote(..) => false,
        }
    }
}
