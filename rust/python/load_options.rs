//! Options of loading, as Python gives them.

use std::path::PathBuf;

use crate::models::{CudaFolders, LoadOptions, Part};

/// A type of weights, the parts that have another one, and the inputs of a group of int4.
pub(super) type DtypeArgument = (String, Vec<(String, String)>, usize);

/// A device, the folder of the kernels that the package ships, and folders in which NVRTC may be.
pub(super) type DeviceArgument = (String, PathBuf, Vec<PathBuf>);

/// Options of loading a whole folder without adapters.
pub(super) fn load_options(
    (dtype, dtype_by_part, int4_group): DtypeArgument,
    compute_dtype: Option<&str>,
    num_threads: Option<usize>,
    cache_bytes: Option<u64>,
    max_rows: Option<usize>,
    prefix_cache_bytes: u64,
    (device, shipped, nvrtc): DeviceArgument,
) -> LoadOptions {
    LoadOptions {
        part: Part::Folder,
        dtype: Some(dtype),
        dtype_by_part,
        int4_group: Some(int4_group),
        compute_dtype: compute_dtype.map(str::to_owned),
        num_threads,
        cache_bytes,
        max_rows,
        prefix_cache_bytes: Some(prefix_cache_bytes),
        device: Some(device),
        cuda_folders: CudaFolders { shipped: Some(shipped), nvrtc },
        adapters: Vec::new(),
    }
}

/// The part of a folder that this name means.
pub(super) fn part_of(name: &str) -> Part {
    match name {
        "encoder" => Part::Encoder,
        "whole" => Part::Whole,
        _ => Part::Folder,
    }
}
