//! GPUs: which there are, and one that was opened.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::ptr::null_mut;
use std::sync::Arc;

use super::errors::{self, OLDEST_CAPABILITY};
use super::ffi::{
    CAPABILITY_MAJOR, CAPABILITY_MINOR, CAPTURE_RELAXED, Code, Context, DeviceId, Driver,
    MULTIPROCESSOR_COUNT, OUT_OF_MEMORY,
};
use crate::error::Result;
use crate::forks;

/// A GPU that was opened by this process; memory, streams and modules of it hold it open.
pub struct Device {
    driver: &'static Driver,
    known: Known,
    /// The context that all users of the GPU in this process share.
    context: Context,
    /// Which process opened it.
    generation: usize,
}

/// What the driver says of a GPU that need not be opened for it.
#[derive(Debug, Clone)]
struct Known {
    ordinal: usize,
    id: DeviceId,
    name: String,
    capability: (u32, u32),
    multiprocessors: u32,
}

/// A GPU of a list.
#[derive(Debug)]
pub struct Listed {
    /// Its number, N of cuda:N.
    pub ordinal: usize,
    /// The name that its maker gave it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory that are free, and all of them; or why the GPU cannot be used.
    pub memory: Result<(usize, usize)>,
}

// SAFETY: the context is a handle that the driver lets any thread use; nothing else in a device is bound to a thread.
unsafe impl Send for Device {}
// SAFETY: as above; no method changes a device, and the driver's calls may come from several threads at once.
unsafe impl Sync for Device {}

/// Every GPU that the driver shows, at least one. Memory is asked for by opening each for a moment.
///
/// # Errors
/// [`Cuda`](crate::Error::Cuda) where there is no driver, or it shows none.
pub fn devices() -> Result<Vec<Listed>> {
    let list = |ordinal| {
        let known = Known::ask(Driver::get()?, ordinal)?;
        let memory = Device::open(ordinal).and_then(|device| device.free_and_total());
        let Known { name, capability, multiprocessors, .. } = known;
        Ok(Listed { ordinal, name, capability, multiprocessors, memory })
    };
    (0..Device::count()?).map(list).collect()
}

impl Known {
    /// Its number and name, as errors show them.
    fn shown(&self) -> String {
        format!("cuda:{} ({})", self.ordinal, self.name)
    }

    fn ask(driver: &Driver, ordinal: usize) -> Result<Self> {
        let (what, functions) = (format!("cuda:{ordinal}"), &driver.functions);
        let (mut id, mut name) = (0, [0 as c_char; 256]);
        let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        // SAFETY: the driver writes one number.
        let code = unsafe { (functions.cuDeviceGet)(&raw mut id, number) };
        driver.check(&what, "cuDeviceGet", code)?;
        // SAFETY: the driver writes at most the 255 bytes that it is told of; the last one stays 0.
        let code = unsafe { (functions.cuDeviceGetName)(name.as_mut_ptr(), 255, id) };
        driver.check(&what, "cuDeviceGetName", code)?;
        // SAFETY: the last byte of the array is 0.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: the driver writes one number.
            let code = unsafe { (functions.cuDeviceGetAttribute)(&raw mut value, attribute, id) };
            driver.check(&what, "cuDeviceGetAttribute", code)?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        Ok(Self {
            ordinal,
            id,
            name,
            capability: (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?),
            multiprocessors: attribute(MULTIPROCESSOR_COUNT)?,
        })
    }
}

impl Device {
    /// How many GPUs the driver shows, at least one.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda) where there is no driver, or it shows none.
    pub fn count() -> Result<usize> {
        let (driver, mut count) = (Driver::get()?, 0);
        // SAFETY: the driver writes one number.
        let code = unsafe { (driver.functions.cuDeviceGetCount)(&raw mut count) };
        driver.check("CUDA", "cuDeviceGetCount", code)?;
        match usize::try_from(count) {
            Ok(count @ 1..) => Ok(count),
            _ => Err(errors::no_gpu("0 devices")),
        }
    }

    /// Sees to it that there is a GPU of this number that is not too old, without opening it: that takes tenths of a second.
    ///
    /// # Errors
    /// As for [`Device::open`].
    pub fn look(ordinal: usize) -> Result<()> {
        Self::known(ordinal).map(drop)
    }

    fn known(ordinal: usize) -> Result<Known> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(errors::no_such_gpu(ordinal, count));
        }
        let known = Known::ask(Driver::get()?, ordinal)?;
        if known.capability < OLDEST_CAPABILITY {
            return Err(errors::old_gpu(&known.shown(), known.capability));
        }
        Ok(known)
    }

    /// Opens the GPU of this number, counted as the driver does.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda) where there is no driver, no such GPU, or it is too old; `OutOfMemory` where it is full.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let known = Self::known(ordinal)?;
        let (driver, shown, mut context) = (Driver::get()?, known.shown(), null_mut());
        // SAFETY: the driver writes one pointer.
        let code = unsafe { (driver.functions.cuDevicePrimaryCtxRetain)(&raw mut context, known.id) };
        if code == OUT_OF_MEMORY {
            return Err(errors::out_of_memory("the context", 0, &shown, None));
        }
        driver.check(&shown, "cuDevicePrimaryCtxRetain", code)?;
        Ok(Arc::new(Self { driver, known, context, generation: forks::generation() }))
    }

    /// Whether kernels may begin before the one in front of them has ended, and be recorded so.
    pub fn begins_early(&self) -> bool {
        self.known.capability >= (9, 0) && self.driver.records_early()
    }

    /// Its number, N of cuda:N.
    pub fn ordinal(&self) -> usize {
        self.known.ordinal
    }

    /// The name that its maker gave it.
    pub fn name(&self) -> &str {
        &self.known.name
    }

    /// Compute capability, major and minor.
    pub fn capability(&self) -> (u32, u32) {
        self.known.capability
    }

    /// Multiprocessors, which run blocks side by side.
    pub fn multiprocessors(&self) -> u32 {
        self.known.multiprocessors
    }

    /// Bytes of its memory that are free, and all of them.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda).
    pub fn free_and_total(&self) -> Result<(usize, usize)> {
        let (_here, mut free, mut total) = (self.enter()?, 0, 0);
        // SAFETY: the driver writes two numbers.
        let code = unsafe { (self.driver.functions.cuMemGetInfo_v2)(&raw mut free, &raw mut total) };
        self.driver.check(&self.shown(), "cuMemGetInfo_v2", code)?;
        Ok((free, total))
    }

    /// The driver that it was opened with.
    pub(super) fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// Its number and name, as errors show them.
    pub(super) fn shown(&self) -> String {
        self.known.shown()
    }

    /// What a call of the driver came to. Many take memory of the device for the driver's own use.
    ///
    /// # Errors
    /// `OutOfMemory`, or [`Cuda`](crate::Error::Cuda) for every other code but 0.
    pub(super) fn check(&self, function: &str, code: Code) -> Result<()> {
        match code {
            0 => Ok(()),
            OUT_OF_MEMORY => Err(self.refused(&format!("what {function} takes"), 0)),
            _ => Err(self.driver.failure(&self.shown(), function, code)),
        }
    }

    /// The error of memory that the device has not.
    pub(super) fn refused(&self, what: &str, bytes: usize) -> crate::Error {
        errors::out_of_memory(what, bytes, &self.shown(), self.free_and_total().ok())
    }

    /// Makes this device the one that calls of this thread mean, until the result is dropped; then it is again what it was, since other
    /// parts of the program (torch, for one) use the same thread for a device of theirs. Meanwhile calls of this thread, such as those that
    /// take or free memory, are not part of what others capture, and do not end it.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda) in a forked child, or where the driver refuses.
    pub(crate) fn enter(&self) -> Result<Entered<'_>> {
        if self.generation != forks::generation() {
            return Err(errors::forked(&self.shown()));
        }
        let (functions, mut before) = (&self.driver.functions, null_mut());
        let check = |function, code| self.driver.check(&self.shown(), function, code);
        // SAFETY: the driver writes one pointer.
        check("cuCtxGetCurrent", unsafe { (functions.cuCtxGetCurrent)(&raw mut before) })?;
        if before != self.context {
            // SAFETY: the context was retained when the device was opened, and is released when it is dropped.
            check("cuCtxSetCurrent", unsafe { (functions.cuCtxSetCurrent)(self.context) })?;
        }
        let mut entered = Entered { device: self, before, mode: None };
        let mut mode = CAPTURE_RELAXED;
        // SAFETY: the driver reads one number and writes another.
        let code = unsafe { (functions.cuThreadExchangeStreamCaptureMode)(&raw mut mode) };
        check("cuThreadExchangeStreamCaptureMode", code)?;
        entered.mode = Some(mode);
        Ok(entered)
    }
}

/// A thread's calls mean a device while this lives.
pub(crate) struct Entered<'a> {
    device: &'a Device,
    before: Context,
    /// The thread's mode of captures before, once it was changed.
    mode: Option<c_int>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if let Some(mut mode) = self.mode {
            // SAFETY: the driver reads one number, which it has given itself, and writes another.
            let _ =
                unsafe { (self.device.driver.functions.cuThreadExchangeStreamCaptureMode)(&raw mut mode) };
        }
        if self.before != self.device.context {
            // A refusal leaves the device current, and there is nobody to tell.
            // SAFETY: this context (or none) was current in this thread a moment ago.
            let _ = unsafe { (self.device.driver.functions.cuCtxSetCurrent)(self.before) };
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.generation == forks::generation() {
            // SAFETY: `open` retained it once, and all that holds the device has been dropped.
            let _ = unsafe { (self.driver.functions.cuDevicePrimaryCtxRelease_v2)(self.known.id) };
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.shown())
    }
}
