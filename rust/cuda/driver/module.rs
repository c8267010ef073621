//! Compiled kernels on a device: a module for each cubin, and its functions by name.

use std::ffi::{CString, c_int};
use std::ptr::null_mut;
use std::sync::Arc;

use super::Device;
use super::errors;
use super::ffi::{Code, FunctionHandle, MAX_DYNAMIC_SHARED, ModuleHandle, NO_BINARY, OUT_OF_MEMORY};
use super::image;
use crate::error::Result;

/// A cubin that was loaded; its functions hold it.
#[derive(Debug, Clone)]
pub struct Module(Arc<Loaded>);

/// A kernel.
#[derive(Debug, Clone)]
pub struct Function {
    module: Module,
    handle: FunctionHandle,
    name: Arc<str>,
}

#[derive(Debug)]
struct Loaded {
    device: Arc<Device>,
    handle: ModuleHandle,
}

// SAFETY: the handle may be used by any thread.
unsafe impl Send for Loaded {}
// SAFETY: as above; nothing changes it.
unsafe impl Sync for Loaded {}
// SAFETY: the handle may be used by any thread, and the module behind it is held.
unsafe impl Send for Function {}
// SAFETY: as above; the driver orders changes of attributes.
unsafe impl Sync for Function {}

impl Device {
    /// Loads a cubin; none where the driver says that this is one for other GPUs.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda) where the bytes are no whole cubin.
    pub fn module(self: &Arc<Self>, cubin: &[u8]) -> Result<Option<Module>> {
        // The driver is not told how many bytes there are: it believes the header.
        if !image::is_whole(cubin) {
            return Err(errors::no_image(cubin.len()));
        }
        let (_here, mut handle) = (self.enter()?, null_mut());
        // SAFETY: the driver writes one pointer, and reads what the image's header tells of, all of which lies in `cubin`.
        let code =
            unsafe { (self.driver().functions.cuModuleLoadData)(&raw mut handle, cubin.as_ptr().cast()) };
        if code == NO_BINARY {
            return Ok(None);
        }
        self.check("cuModuleLoadData", code)?;
        Ok(Some(Module(Arc::new(Loaded { device: Arc::clone(self), handle }))))
    }

    /// The error of a driver that refuses what was compiled for this very GPU.
    pub fn no_binary(&self) -> crate::Error {
        self.driver().failure(&self.shown(), "cuModuleLoadData", NO_BINARY)
    }
}

impl Module {
    /// The kernel of this name.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda) where there is none.
    pub fn function(&self, name: &str) -> Result<Function> {
        let (device, mut handle) = (&self.0.device, null_mut());
        let text = CString::new(name)
            .map_err(|_| errors::failed(name, "cuModuleGetFunction", 500, "a name with a zero byte"))?;
        let _here = device.enter()?;
        // SAFETY: the driver writes one pointer; the module is alive and the name ends with 0.
        let code = unsafe {
            (device.driver().functions.cuModuleGetFunction)(&raw mut handle, self.0.handle, text.as_ptr())
        };
        let function = Function { module: self.clone(), handle, name: name.into() };
        if code == 0 { Ok(function) } else { Err(function.error("cuModuleGetFunction", code)) }
    }
}

impl Function {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets launches have this many bytes of dynamic shared memory; without it 48 KiB are the most.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda) where the device has not so much.
    pub fn allow_shared(&self, bytes: u32) -> Result<()> {
        let device = &self.module.0.device;
        let _here = device.enter()?;
        let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
        // SAFETY: the function's module is held.
        let code =
            unsafe { (device.driver().functions.cuFuncSetAttribute)(self.handle, MAX_DYNAMIC_SHARED, bytes) };
        if code == 0 { Ok(()) } else { Err(self.error("cuFuncSetAttribute", code)) }
    }

    pub(super) fn handle(&self) -> FunctionHandle {
        self.handle
    }

    /// The error of a launch.
    pub(super) fn failure(&self, code: Code) -> crate::Error {
        self.error("cuLaunchKernelEx", code)
    }

    fn error(&self, function: &str, code: Code) -> crate::Error {
        let device = &self.module.0.device;
        match code {
            OUT_OF_MEMORY => device.refused(&format!("what the kernel {} takes", self.name), 0),
            _ => device.driver().failure(
                &format!("kernel {} on {}", self.name, device.shown()),
                function,
                code,
            ),
        }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Ok(_here) = self.device.enter() {
            // SAFETY: `module` loaded it, its functions are gone, and it is unloaded once.
            let _ = unsafe { (self.device.driver().functions.cuModuleUnload)(self.handle) };
        }
    }
}
