//! Streams: what a device does one thing after the other; and graphs, which are recorded once and repeated as a whole.

use std::ffi::c_void;
use std::ptr::{from_ref, null_mut};
use std::sync::Arc;

use super::ffi::{
    CAPTURE_RELAXED, GraphExec, LaunchAttribute, LaunchConfig, NON_BLOCKING, SERIALIZATION, StreamHandle,
};
use super::{Device, Function};
use crate::error::Result;

/// A queue of a device. Verbs return before the device has done what they ask; it does so in their order.
#[derive(Debug)]
pub struct Stream {
    device: Arc<Device>,
    handle: StreamHandle,
}

/// Copies and kernels that were recorded, ready to be repeated. What it points to must outlive its launches.
#[derive(Debug)]
pub struct Graph {
    device: Arc<Device>,
    exec: GraphExec,
}

// SAFETY: the handle may be used by any thread; the driver orders calls that come at once.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}
// SAFETY: the handle may be used by any thread, and no method changes the graph.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Device {
    /// A new stream, which waits for no other.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda).
    pub fn stream(self: &Arc<Self>) -> Result<Stream> {
        let (_here, mut handle) = (self.enter()?, null_mut());
        // SAFETY: the driver writes one pointer.
        let code = unsafe { (self.driver().functions.cuStreamCreate)(&raw mut handle, NON_BLOCKING) };
        self.check("cuStreamCreate", code)?;
        Ok(Stream { device: Arc::clone(self), handle })
    }
}

impl Stream {
    /// The device whose queue it is.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Copies `bytes` of the host to the device.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda).
    ///
    /// # Safety
    /// Both runs are valid, and neither is freed, nor the host's changed, before the stream was synchronized; in a graph, before its last launch was.
    pub unsafe fn to_device(&self, to: u64, from: *const u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let (_here, copy) = (self.device.enter()?, self.device.driver().functions.cuMemcpyHtoDAsync_v2);
        // SAFETY: the caller answers for both runs.
        self.device.check("cuMemcpyHtoDAsync_v2", unsafe { copy(to, from.cast(), bytes, self.handle) })
    }

    /// Copies `bytes` of the device to the host.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda).
    ///
    /// # Safety
    /// Both runs are valid, and neither is freed, nor the host's read or changed, before the stream was synchronized; in a graph, before its last launch
    /// was.
    pub unsafe fn to_host(&self, to: *mut u8, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let (_here, copy) = (self.device.enter()?, self.device.driver().functions.cuMemcpyDtoHAsync_v2);
        // SAFETY: the caller answers for both runs.
        self.device.check("cuMemcpyDtoHAsync_v2", unsafe { copy(to.cast(), from, bytes, self.handle) })
    }

    /// Copies `bytes` within the device; the runs do not overlap.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda).
    ///
    /// # Safety
    /// Both runs are valid, and stay so until the stream was synchronized; in a graph, until its last launch was.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let (_here, copy) = (self.device.enter()?, self.device.driver().functions.cuMemcpyDtoDAsync_v2);
        // SAFETY: the caller answers for both runs.
        self.device.check("cuMemcpyDtoDAsync_v2", unsafe { copy(to, from, bytes, self.handle) })
    }

    /// Sets `bytes` of the device to 0.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda).
    ///
    /// # Safety
    /// The run is valid, and stays so until the stream was synchronized; in a graph, until its last launch was.
    pub unsafe fn zero(&self, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let (_here, set) = (self.device.enter()?, self.device.driver().functions.cuMemsetD8Async);
        // SAFETY: the caller answers for the run.
        self.device.check("cuMemsetD8Async", unsafe { set(to, 0, bytes, self.handle) })
    }

    /// Runs a kernel over `grid` blocks of `block` threads, with `shared` bytes of dynamic shared memory. The arguments are copied now. A kernel that
    /// may begin `early` waits by itself for the one in front of it, where the [device](Device::begins_early) can do so.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda).
    ///
    /// # Safety
    /// The kernel's one parameter is a struct of the layout of `A`; what it points to is valid, as long as the kernel reads and writes it, and
    /// until the stream was synchronized; in a graph, until its last launch was. An early kernel waits in every thread.
    pub unsafe fn launch<A>(
        &self,
        function: &Function,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        early: bool,
        args: &A,
    ) -> Result<()> {
        let (_here, launch) = (self.device.enter()?, self.device.driver().functions.cuLaunchKernelEx);
        let mut arguments = [from_ref(args).cast_mut().cast::<c_void>()];
        let mut attribute = LaunchAttribute::new(SERIALIZATION, 1);
        let config = LaunchConfig {
            grid,
            block: [block, 1, 1],
            shared,
            stream: self.handle,
            attributes: &raw mut attribute,
            count: u32::from(early),
        };
        // SAFETY: the driver reads the configuration and one pointer, and behind it the parameter, whose layout the caller answers for; it
        // changes nothing.
        let code =
            unsafe { launch(&raw const config, function.handle(), arguments.as_mut_ptr(), null_mut()) };
        if code == 0 { Ok(()) } else { Err(function.failure(code)) }
    }

    /// Waits until the device has done all that this stream was told. Errors of kernels and copies show here, or at any verb before.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda).
    pub fn synchronize(&self) -> Result<()> {
        let (_here, wait) = (self.device.enter()?, self.device.driver().functions.cuStreamSynchronize);
        // SAFETY: the stream is ours and alive.
        self.device.check("cuStreamSynchronize", unsafe { wait(self.handle) })
    }

    /// From now on verbs of this stream are recorded, and not done.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda).
    pub fn begin_capture(&self) -> Result<()> {
        let (_here, begin) = (self.device.enter()?, self.device.driver().functions.cuStreamBeginCapture_v2);
        // SAFETY: the stream is ours and alive.
        self.device.check("cuStreamBeginCapture_v2", unsafe { begin(self.handle, CAPTURE_RELAXED) })
    }

    /// Ends the record, whatever comes of it: afterwards verbs are done again.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda) where a verb failed in between, or the driver has no room for the graph.
    pub fn end_capture(&self) -> Result<Graph> {
        let (_here, functions) = (self.device.enter()?, &self.device.driver().functions);
        let (mut graph, mut exec) = (null_mut(), null_mut());
        // SAFETY: the driver writes one pointer.
        let code = unsafe { (functions.cuStreamEndCapture)(self.handle, &raw mut graph) };
        self.device.check("cuStreamEndCapture", code)?;
        // SAFETY: the graph was just made; the driver writes one pointer.
        let code = unsafe { (functions.cuGraphInstantiateWithFlags)(&raw mut exec, graph, 0) };
        // SAFETY: the graph is ours, and what was instantiated from it does not need it.
        let _ = unsafe { (functions.cuGraphDestroy)(graph) };
        self.device.check("cuGraphInstantiateWithFlags", code)?;
        Ok(Graph { device: Arc::clone(&self.device), exec })
    }

    /// What `record` asks of this stream, as a graph. Where it fails, the stream is as it was before.
    ///
    /// # Errors
    /// Those of `record`; [`Cuda`](crate::Error::Cuda).
    pub fn capture(&self, record: impl FnOnce() -> Result<()>) -> Result<Graph> {
        /// Ends a record that a panic or an error leaves open.
        struct Open<'a>(Option<&'a Stream>);
        impl Drop for Open<'_> {
            fn drop(&mut self) {
                if let Some(stream) = self.0.take() {
                    let _ = stream.end_capture();
                }
            }
        }
        self.begin_capture()?;
        let mut open = Open(Some(self));
        record()?;
        open.0 = None;
        self.end_capture()
    }

    /// Repeats a graph.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda).
    ///
    /// # Safety
    /// What the graph's copies and kernels read and write is valid until the stream was synchronized.
    pub unsafe fn launch_graph(&self, graph: &Graph) -> Result<()> {
        let (_here, launch) = (self.device.enter()?, self.device.driver().functions.cuGraphLaunch);
        // SAFETY: the graph is alive, and the caller answers for what it points to.
        self.device.check("cuGraphLaunch", unsafe { launch(graph.exec, self.handle) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_here) = self.device.enter() {
            // SAFETY: the stream is ours, and nobody uses it any more; the device finishes what it was told, and memory is freed after that.
            let _ = unsafe { (self.device.driver().functions.cuStreamDestroy_v2)(self.handle) };
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(_here) = self.device.enter() {
            // SAFETY: the graph is ours; the driver frees it after launches that are under way.
            let _ = unsafe { (self.device.driver().functions.cuGraphExecDestroy)(self.exec) };
        }
    }
}
