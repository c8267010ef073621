//! How a model is to be loaded, and the checks of what was asked for.

use super::decoder::Limits;
use super::device::{Choice, CudaFolders};
use crate::checkpoint::Adapter;
use crate::error::{Error, Result};
use crate::kernels::{INT4, TYPES, WeightType};
use crate::load::{Rounding, Stored};
use crate::team;

/// Largest number of bytes that can be asked for, far below the one that stands for no limit.
const MOST_BYTES: u64 = i64::MAX as u64;
/// Largest number of rows that can be asked for.
const MOST_ROWS: usize = 1 << 16;

/// Which part of a folder is to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    /// What the folder is: an encoder alone where it says so, or where it holds nothing else and says nothing else.
    #[default]
    Folder,
    /// Encoder and decoder, where the folder has both, whatever it says.
    Whole,
    /// The encoder alone: nothing of a decoder is read.
    Encoder,
}

/// How a model is to be loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Which part of the folder.
    pub part: Part,
    /// `auto`, or the name of a weight type: how weights are stored.
    pub dtype: Option<String>,
    /// Parts of the model with a type of their own: a key and a name as above, see [`Rounding`].
    pub dtype_by_part: Vec<(String, String)>,
    /// Inputs of a group of int4; 64 where none is given.
    pub int4_group: Option<usize>,
    /// `float32` or `bfloat16`: how products are formed.
    pub compute_dtype: Option<String>,
    /// Threads of a step; all cores where none is given.
    pub num_threads: Option<usize>,
    /// Bytes of the cache that running requests may reserve; half of what the system has left after loading where none is given.
    pub cache_bytes: Option<u64>,
    /// Sequences that decode side by side in one step; 64 where none is given.
    pub max_rows: Option<usize>,
    /// Bytes among these in which prefixes are kept from one request to the next; none where they are not given.
    pub prefix_cache_bytes: Option<u64>,
    /// `cpu`, `auto`, `cuda` or `cuda:N`: where steps run; on the CPU where nothing is given.
    pub device: Option<String>,
    /// Where kernels of a GPU are found.
    pub cuda_folders: CudaFolders,
    /// Applied to the folder's weights, in order.
    pub adapters: Vec<Adapter>,
}

impl LoadOptions {
    pub(super) fn device(&self) -> Result<Choice> {
        Choice::read(self.device.as_deref())
    }

    pub(super) fn rounding(&self) -> Result<Rounding> {
        let int4 = self.int4()?;
        let default = self.dtype.as_deref().map_or(Ok(Stored::Auto), |name| stored(name, int4, name))?;
        let of_part = |(key, name): &(String, String)| {
            let got = format!("\"{name}\" for \"{key}\"");
            Ok((key.clone(), stored(name, int4, &got)?))
        };
        Ok(Rounding::new(default, self.dtype_by_part.iter().map(of_part).collect::<Result<_>>()?))
    }

    /// What int4 means here.
    fn int4(&self) -> Result<&'static dyn WeightType> {
        let usual = INT4[0];
        let group = self.int4_group.unwrap_or(usual.group());
        let Some(int4) = INT4.into_iter().find(|known| known.group() == group) else {
            return Err(option("int4_group", "32, 64 or 128", &group.to_string()));
        };
        let mut asked = self.dtype.iter().chain(self.dtype_by_part.iter().map(|(_, name)| name));
        if group != usual.group() && !asked.any(|name| name == usual.name()) {
            let expected = format!("{} where no dtype is \"{}\"", usual.group(), usual.name());
            return Err(option("int4_group", &expected, &group.to_string()));
        }
        Ok(int4)
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

    pub(super) fn cache_bytes(&self) -> Result<Option<usize>> {
        match self.cache_bytes {
            Some(n) if n == 0 || n > MOST_BYTES => {
                Err(option("cache_bytes", "None, or 1 to 2^63 - 1", &n.to_string()))
            }
            given => Ok(given.map(|n| usize::try_from(n).unwrap_or(usize::MAX))),
        }
    }

    /// What is asked for of so many bytes, by a model with an encoder or without one.
    pub(super) fn prefix_cache_bytes(&self, cache_bytes: usize, has_encoder: bool) -> Result<usize> {
        let given = self.prefix_cache_bytes.unwrap_or(0);
        if given > 0 && has_encoder {
            let expected = "0 with an encoder (sources are shared by memory=, which encode gives)";
            return Err(option("prefix_cache_bytes", expected, &given.to_string()));
        }
        match usize::try_from(given) {
            Ok(bytes) if bytes <= cache_bytes => Ok(bytes),
            _ => {
                let expected = format!("0 to {cache_bytes}, which is cache_bytes");
                Err(option("prefix_cache_bytes", &expected, &given.to_string()))
            }
        }
    }

    pub(super) fn max_rows(&self) -> Result<usize> {
        match self.max_rows {
            None => Ok(Limits::default().max_rows),
            Some(n @ 1..=MOST_ROWS) => Ok(n),
            Some(n) => Err(option("max_rows", "None, or 1 to 65536", &n.to_string())),
        }
    }
}

/// How weights of a type of this name are stored; `got` says what was asked for.
fn stored(name: &str, int4: &'static dyn WeightType, got: &str) -> Result<Stored> {
    if name == "auto" {
        return Ok(Stored::Auto);
    }
    let known = TYPES.into_iter().map(|known| if known.name() == int4.name() { int4 } else { known });
    known.clone().find(|known| known.name() == name).map(Stored::As).ok_or_else(|| {
        let names: Vec<_> = known.map(|known| format!("\"{}\"", known.name())).collect();
        option("dtype", &format!("\"auto\" or one of {}", names.join(", ")), got)
    })
}

/// The error of an option that cannot be used.
pub(super) fn option(option: &str, expected: &str, got: &str) -> Error {
    Error::Option { option: option.to_owned(), expected: expected.to_owned(), got: got.to_owned() }
}
