//! The driver's functions (`libcuda.so.1`), as the header `cuda.h` of CUDA 12 declares them, and how they are opened.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::ptr::null;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use libloading::Library;

use super::errors;
use super::library::{function, functions, open};
use crate::error::Result;
use crate::forks::{self, PerProcess};

/// `CUresult`; 0 is success.
pub(super) type Code = c_int;
/// `CUdevice`
pub(super) type DeviceId = c_int;
/// `CUdeviceptr`
pub(super) type Address = c_ulonglong;
/// `CUcontext`
pub(super) type Context = *mut c_void;
/// `CUstream`
pub(super) type StreamHandle = *mut c_void;
/// `CUgraph`
pub(super) type GraphHandle = *mut c_void;
/// `CUgraphExec`
pub(super) type GraphExec = *mut c_void;
/// `CUmodule`
pub(super) type ModuleHandle = *mut c_void;
/// `CUfunction`
pub(super) type FunctionHandle = *mut c_void;

/// `CUDA_ERROR_OUT_OF_MEMORY`
pub(super) const OUT_OF_MEMORY: Code = 2;
/// `CUDA_ERROR_NOT_INITIALIZED`
pub(super) const NOT_INITIALIZED: Code = 3;
/// `CUDA_ERROR_NO_BINARY_FOR_GPU`
pub(super) const NO_BINARY: Code = 209;
/// `CUDA_ERROR_NO_DEVICE`
pub(super) const NO_DEVICE: Code = 100;

/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`
pub(super) const MULTIPROCESSOR_COUNT: c_int = 16;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`
pub(super) const CAPABILITY_MAJOR: c_int = 75;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR`
pub(super) const CAPABILITY_MINOR: c_int = 76;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`
pub(super) const MAX_DYNAMIC_SHARED: c_int = 8;
/// `CU_STREAM_NON_BLOCKING`: no waiting for, or of, the default stream.
pub(super) const NON_BLOCKING: c_uint = 1;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`: other calls of this process may go on while a stream is captured; of a thread: its calls may go on while
/// others capture.
pub(super) const CAPTURE_RELAXED: c_int = 2;

/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`: a kernel may begin before the one in front of it has ended.
pub(super) const SERIALIZATION: c_int = 6;

/// The oldest driver that runs what CUDA 12 compiles.
pub(super) const OLDEST: c_int = 12_000;
/// The oldest driver that records kernels which may begin early.
const OLDEST_EARLY: c_int = 12_030;

/// `CUlaunchAttribute`: its number, and a value of 64 bytes, of which those that are used here take the first four.
#[repr(C, align(8))]
pub(super) struct LaunchAttribute {
    pub(super) id: c_int,
    padding: [u8; 4],
    value: [c_int; 16],
}

impl LaunchAttribute {
    /// An attribute whose value is one number.
    pub(super) fn new(id: c_int, number: c_int) -> Self {
        let mut value = [0; 16];
        value[0] = number;
        Self { id, padding: [0; 4], value }
    }
}

/// `CUlaunchConfig`
#[repr(C)]
pub(super) struct LaunchConfig {
    pub(super) grid: [c_uint; 3],
    pub(super) block: [c_uint; 3],
    pub(super) shared: c_uint,
    pub(super) stream: StreamHandle,
    pub(super) attributes: *mut LaunchAttribute,
    pub(super) count: c_uint,
}

const _: () =
    assert!(size_of::<LaunchAttribute>() == 72 && size_of::<LaunchConfig>() == 56, "as cuda.h has them");

functions! {
    /// What is used of the driver.
    Functions {
        cuInit(flags: c_uint) -> Code;
        cuGetErrorName(code: Code, text: *mut *const c_char) -> Code;
        cuGetErrorString(code: Code, text: *mut *const c_char) -> Code;
        cuDeviceGetCount(count: *mut c_int) -> Code;
        cuDeviceGet(device: *mut DeviceId, ordinal: c_int) -> Code;
        cuDeviceGetName(name: *mut c_char, length: c_int, device: DeviceId) -> Code;
        cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: DeviceId) -> Code;
        cuDevicePrimaryCtxRetain(context: *mut Context, device: DeviceId) -> Code;
        cuDevicePrimaryCtxRelease_v2(device: DeviceId) -> Code;
        cuCtxGetCurrent(context: *mut Context) -> Code;
        cuCtxSetCurrent(context: Context) -> Code;
        cuThreadExchangeStreamCaptureMode(mode: *mut c_int) -> Code;
        cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code;
        cuMemAlloc_v2(at: *mut Address, bytes: usize) -> Code;
        cuMemFree_v2(at: Address) -> Code;
        cuMemHostAlloc(at: *mut *mut c_void, bytes: usize, flags: c_uint) -> Code;
        cuMemFreeHost(at: *mut c_void) -> Code;
        cuMemcpyHtoDAsync_v2(to: Address, from: *const c_void, bytes: usize, stream: StreamHandle) -> Code;
        cuMemcpyDtoHAsync_v2(to: *mut c_void, from: Address, bytes: usize, stream: StreamHandle) -> Code;
        cuMemcpyDtoDAsync_v2(to: Address, from: Address, bytes: usize, stream: StreamHandle) -> Code;
        cuMemsetD8Async(to: Address, value: c_uchar, bytes: usize, stream: StreamHandle) -> Code;
        cuStreamCreate(stream: *mut StreamHandle, flags: c_uint) -> Code;
        cuStreamDestroy_v2(stream: StreamHandle) -> Code;
        cuStreamSynchronize(stream: StreamHandle) -> Code;
        cuStreamBeginCapture_v2(stream: StreamHandle, mode: c_int) -> Code;
        cuStreamEndCapture(stream: StreamHandle, graph: *mut GraphHandle) -> Code;
        cuGraphInstantiateWithFlags(exec: *mut GraphExec, graph: GraphHandle, flags: c_ulonglong) -> Code;
        cuGraphLaunch(exec: GraphExec, stream: StreamHandle) -> Code;
        cuGraphExecDestroy(exec: GraphExec) -> Code;
        cuGraphDestroy(graph: GraphHandle) -> Code;
        cuModuleLoadData(module: *mut ModuleHandle, image: *const c_void) -> Code;
        cuModuleUnload(module: ModuleHandle) -> Code;
        cuModuleGetFunction(function: *mut FunctionHandle, module: ModuleHandle, name: *const c_char) -> Code;
        cuFuncSetAttribute(function: FunctionHandle, attribute: c_int, value: c_int) -> Code;
        cuLaunchKernelEx(config: *const LaunchConfig, function: FunctionHandle, arguments: *mut *mut c_void,
            extra: *mut *mut c_void) -> Code;
    }
}

/// The driver, opened and initialized.
pub(super) struct Driver {
    pub(super) functions: Functions,
    /// 12080 is CUDA 12.8.
    version: c_int,
}

/// This process's driver. A library stays open for ever: the driver has threads of its own.
static DRIVER: PerProcess<OnceLock<Driver>> = PerProcess::new();
/// The generation of the process that initialized the driver, plus one; 0 before that.
static INITIALIZED: AtomicUsize = AtomicUsize::new(0);

impl Driver {
    /// The driver, opened and initialized at the first call. What fails is tried again at the next.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda): no library, one without a function that is needed, a driver that is too old or sees no GPU; a child of a process
    /// that has used the driver.
    pub(super) fn get() -> Result<&'static Self> {
        let here = DRIVER.get(OnceLock::new);
        if let Some(driver) = here.get() {
            return Ok(driver);
        }
        if ![0, forks::generation() + 1].contains(&INITIALIZED.load(Ordering::Acquire)) {
            return Err(errors::forked("CUDA"));
        }
        let driver = Self::open()?;
        Ok(here.get_or_init(|| driver))
    }

    /// Major version of the CUDA of the driver, where this process has opened it.
    pub(super) fn major() -> Option<u32> {
        DRIVER.get(OnceLock::new).get().and_then(|driver| u32::try_from(driver.version / 1000).ok())
    }

    /// Whether kernels that may begin early can be recorded.
    pub(super) fn records_early(&self) -> bool {
        self.version >= OLDEST_EARLY
    }

    fn open() -> Result<Self> {
        let name = std::env::var_os("FASTDECODE_CUDA_DRIVER").filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| "libcuda.so.1".into());
        // SAFETY: the name is the driver's, or the one that the user names as such.
        let library = unsafe { open(&name) }.map_err(|reason| errors::no_driver(&reason))?;
        // It stays open: functions of the table are called at any time, and threads of the driver run until the process ends.
        let library: &'static Library = Box::leak(Box::new(library));
        // An old driver has not all of the functions, and is to be named as what it is.
        // SAFETY: this is the signature in cuda.h, and the library stays open.
        let (version, code) = unsafe {
            function::<unsafe extern "C" fn(*mut c_int) -> Code>(library, "cuDriverGetVersion")
                .map(|ask| {
                    let mut version = 0;
                    let code = ask(&raw mut version);
                    (version, code)
                })
                .map_err(|missing| errors::no_function(&name, missing))?
        };
        if code != 0 {
            // The function that would put the code into words may be missing.
            return Err(errors::failed("CUDA", "cuDriverGetVersion", code, &format!("error {code}")));
        }
        if version < OLDEST {
            return Err(errors::old_driver(version));
        }
        // SAFETY: as above.
        let functions =
            unsafe { Functions::of(library) }.map_err(|missing| errors::no_function(&name, missing))?;
        let driver = Self { functions, version };
        // SAFETY: a call without pointers; 0 is the only value that flags may have.
        match unsafe { (driver.functions.cuInit)(0) } {
            0 => INITIALIZED.store(forks::generation() + 1, Ordering::Release),
            NO_DEVICE => return Err(errors::no_gpu(&driver.described(NO_DEVICE))),
            // Another part of the program used the driver before the fork.
            NOT_INITIALIZED => return Err(errors::forked("CUDA")),
            code => return Err(driver.failure("CUDA", "cuInit", code)),
        }
        Ok(driver)
    }

    /// What a call of the driver came to.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda) for every code but 0.
    pub(super) fn check(&self, what: &str, function: &str, code: Code) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(self.failure(what, function, code)) }
    }

    /// The error of a code that is not success.
    pub(super) fn failure(&self, what: &str, function: &str, code: Code) -> crate::Error {
        errors::failed(what, function, code, &self.described(code))
    }

    /// A code in the driver's words.
    pub(super) fn described(&self, code: Code) -> String {
        let text = |ask: unsafe extern "C" fn(Code, *mut *const c_char) -> Code| {
            let mut text = null();
            // SAFETY: the driver writes a pointer to a constant text that ends with 0, or null for a code that it does not know.
            let known = unsafe { ask(code, &raw mut text) } == 0 && !text.is_null();
            // SAFETY: as above; it was found to be a text.
            known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let name = text(self.functions.cuGetErrorName).unwrap_or_else(|| "an unknown error".to_owned());
        match text(self.functions.cuGetErrorString) {
            Some(sentence) => format!("{name} ({code}): {sentence}"),
            None => format!("{name} ({code})"),
        }
    }
}
