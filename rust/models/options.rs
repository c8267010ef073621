//! How a model is to be loaded, and the checks of what was asked for.

use crate::error::{Error, Result};
use crate::load::Rounding;
use crate::packed::Storage;
use crate::team;

/// How a model is to be loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// `auto`, `float32`, `bfloat16` or `float16`: how weights are stored.
    pub dtype: Option<String>,
    /// `float32` or `bfloat16`: how products are formed.
    pub compute_dtype: Option<String>,
    /// Threads of a step; all cores where none is given.
    pub num_threads: Option<usize>,
}

impl LoadOptions {
    pub(super) fn rounding(&self) -> Result<Rounding> {
        match self.dtype.as_deref() {
            None | Some("auto") => Ok(Rounding::Auto),
            Some("float32") => Ok(Rounding::As(Storage::F32)),
            Some("bfloat16") => Ok(Rounding::As(Storage::Bf16)),
            Some("float16") => Ok(Rounding::As(Storage::F16)),
            Some(other) => Err(option("dtype", "\"auto\", \"float32\", \"bfloat16\" or \"float16\"", other)),
        }
    }

    pub(super) fn bf16(&self) -> Result<bool> {
        match self.compute_dtype.as_deref() {
            None | Some("float32") => Ok(false),
            Some("bfloat16") => Ok(true),
            Some(other) => Err(option("compute_dtype", "None, \"float32\" or \"bfloat16\"", other)),
        }
    }

    pub(super) fn threads(&self) -> Result<usize> {
        match self.num_threads {
            None => Ok(team::default_threads()),
            Some(n @ 1..=256) => Ok(n),
            Some(n) => Err(option("num_threads", "None, or 1 to 256", &n.to_string())),
        }
    }
}

/// The error of an option that cannot be used.
pub(super) fn option(option: &str, expected: &str, got: &str) -> Error {
    Error::Option { option: option.to_owned(), expected: expected.to_owned(), got: got.to_owned() }
}
