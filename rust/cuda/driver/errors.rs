//! What can go wrong with a GPU, as errors: each says what was got, what was expected and what to do.

use std::ffi::OsStr;

use super::ffi::{Code, OLDEST};
use crate::error::Error;

/// Oldest compute capability whose tensor cores multiply bfloat16.
pub(super) const OLDEST_CAPABILITY: (u32, u32) = (8, 0);

const OR_CPU: &str = "or use device=\"cpu\"";

fn cuda(what: impl Into<String>, expected: impl Into<String>, got: impl Into<String>) -> Error {
    Error::Cuda { what: what.into(), expected: expected.into(), got: got.into() }
}

/// There is no driver, or the loader refuses it.
pub(super) fn no_driver(reason: &str) -> Error {
    cuda(
        "CUDA",
        format!("an NVIDIA driver (libcuda.so.1, version 525 or later); install one, {OR_CPU}"),
        format!("no driver that can be opened ({reason})"),
    )
}

/// A library that lacks a function.
pub(super) fn no_function(library: &OsStr, function: &str) -> Error {
    cuda(
        "CUDA",
        format!(
            "a library of NVIDIA with the function {function}; update the driver (525 or later), {OR_CPU}"
        ),
        format!("{}, which has no such function", library.display()),
    )
}

/// The driver sees no GPU.
pub(super) fn no_gpu(reason: &str) -> Error {
    cuda(
        "CUDA",
        format!("at least one NVIDIA GPU; see nvidia-smi and CUDA_VISIBLE_DEVICES, {OR_CPU}"),
        format!("a driver that sees none ({reason})"),
    )
}

/// There is a GPU, but not this one.
pub(super) fn no_such_gpu(ordinal: usize, count: usize) -> Error {
    let expected = match count {
        1 => "cuda:0, the only GPU of this machine".to_owned(),
        _ => format!("one of cuda:0 to cuda:{}", count.saturating_sub(1)),
    };
    cuda("device", format!("{expected}, or \"cpu\""), format!("cuda:{ordinal}"))
}

/// The driver is from before CUDA 12.
pub(super) fn old_driver(version: i32) -> Error {
    let expected = format!(
        "a driver for CUDA {}.{} or later (version 525); update the driver, {OR_CPU}",
        OLDEST / 1000,
        OLDEST % 1000 / 10
    );
    let got = match version {
        1.. => format!("one for CUDA {}.{}", version / 1000, version % 1000 / 10),
        _ => "one that does not tell its version".to_owned(),
    };
    cuda("CUDA", expected, got)
}

/// The GPU is too old for the kernels.
pub(super) fn old_gpu(device: &str, (major, minor): (u32, u32)) -> Error {
    let (oldest_major, oldest_minor) = OLDEST_CAPABILITY;
    cuda(
        device,
        format!(
            "compute capability {oldest_major}.{oldest_minor} or later (Ampere), since kernels multiply bfloat16 on tensor cores; take \
             another GPU, {OR_CPU}"
        ),
        format!("compute capability {major}.{minor}"),
    )
}

/// There are no kernels for a GPU, and nothing that would compile them.
pub(super) fn no_kernels(file: &str, architecture: &str, tried: &str) -> Error {
    cuda(
        format!("kernels of {file} for {architecture}"),
        format!("compiled ones, or NVRTC to compile them; pip install \"fastdecode[cuda]\", {OR_CPU}"),
        format!("none in the package or the cache, and no NVRTC that serves ({tried})"),
    )
}

/// A kernel file does not compile.
pub(super) fn not_compiled(file: &str, architecture: &str, compiler: &str, log: &str) -> Error {
    cuda(
        format!("kernels of {file} for {architecture}"),
        format!(
            "a source that {compiler} compiles; a newer NVRTC knows newer GPUs (pip install -U \"fastdecode[cuda]\"), {OR_CPU}"
        ),
        log.trim_end(),
    )
}

/// A call of NVRTC that is no compilation failed.
pub(super) fn compiler_failed(function: &str, reason: &str) -> Error {
    cuda("NVRTC", format!("{function} to succeed; install another version, {OR_CPU}"), reason)
}

/// Bytes that are no compiled kernels.
pub(super) fn no_image(bytes: usize) -> Error {
    cuda(
        "kernels",
        "a whole cubin as NVRTC writes it; install the package anew",
        format!("{bytes} bytes of something else"),
    )
}

/// A process that did not open the device itself.
pub(super) fn forked(what: &str) -> Error {
    cuda(
        what,
        "the process that opened the GPU; load the model in the child, and leave CUDA alone before the fork (multiprocessing: the start \
         method \"spawn\")",
        "a forked child of it",
    )
}

/// Whatever else the driver refuses.
pub(super) fn failed(what: &str, function: &str, code: Code, described: &str) -> Error {
    cuda(what, format!("{function} to succeed; {}", advice(code)), described)
}

/// What to do about a code of the driver.
fn advice(code: Code) -> &'static str {
    match code {
        2 => "free memory of the GPU, or choose a smaller model, dtype or length",
        34 => "install a driver in place of the stub of the toolkit",
        46 | 101 | 102 => "see nvidia-smi for what the GPU is reserved for",
        209 | 218 | 221..=223 => "update the driver, or install the package anew",
        214 | 220 | 226 => "the GPU's hardware reports a fault; see nvidia-smi and the system's log",
        // Errors of kernels, after which the process cannot use the GPU any more.
        700 | 702 | 710 | 714..=719 => "the process must be started anew; please report it",
        802 => "wait for the system (nvidia-fabricmanager) to be ready",
        803 | 804 => {
            "the driver's library and its kernel module must be of one version; restart the machine after an update"
        }
        999 => "see the system's log; restarting the machine or loading the module nvidia_uvm may help",
        _ => "see the driver's documentation of the code",
    }
}

/// The device has not the memory. Whoever evicts where memory is refused sees the same variant as on a CPU.
pub(super) fn out_of_memory(what: &str, bytes: usize, device: &str, room: Option<(usize, usize)>) -> Error {
    let room = match room {
        Some((free, total)) => format!("{free} bytes free of {total}"),
        None => "its free memory is not known".to_owned(),
    };
    Error::OutOfMemory { what: format!("{what} on {device} ({room})"), bytes }
}
