//! The NVIDIA driver and its run-time compiler as safe verbs: devices, memory, streams, graphs, modules, and the store of compiled kernels.
//!
//! Both libraries are opened when they are first needed, and whatever is missing is an error of type [`Cuda`](crate::Error::Cuda). Every verb
//! asks first whether this process made the device: a child of `fork` cannot use a GPU that its parent has opened. Nothing here knows models.

mod device;
mod errors;
mod ffi;
mod image;
mod library;
mod memory;
mod module;
mod nvrtc;
pub mod store;
mod stream;

pub use device::{Device, Listed, devices};
pub use memory::{Memory, Pinned};
pub use module::{Function, Module};
pub use stream::{Graph, Stream};
