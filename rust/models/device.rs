//! Where a model's programs run: by the team on this CPU, or on a GPU.

use std::path::PathBuf;
use std::sync::Arc;

use super::options::{LoadOptions, option};
use super::registry::Network;
use crate::error::{Error, Result};
use crate::execute::Backend;
use crate::kv::{Pool, Remote, Shape};
use crate::program::Weights;
use crate::team::Cancel;

/// Where NVIDIA's run-time compiler and compiled kernels may be found.
#[derive(Debug, Clone, Default)]
pub struct CudaFolders {
    /// Kernels that were compiled when the package was built.
    pub shipped: Option<PathBuf>,
    /// Folders in which NVRTC may be.
    pub nvrtc: Vec<PathBuf>,
}

/// The device that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    Cpu,
    /// The first GPU where it can be used, else the CPU.
    Auto,
    Cuda(usize),
}

/// A GPU on which a model's programs run.
#[derive(Debug)]
pub(super) struct OnDevice {
    /// `cuda:N`.
    pub(super) name: String,
    /// The architecture of its kernels.
    pub(super) architecture: String,
    /// Whether weights and cache are bfloat16.
    pub(super) bf16: bool,
    /// Bytes of its memory that are free.
    pub(super) free: usize,
    pub(super) encoder: Option<Arc<dyn Backend>>,
    pub(super) decoder: Option<Arc<dyn Backend>>,
    remote: Arc<dyn Remote>,
}

impl OnDevice {
    /// A pool of cache blocks in the GPU's memory.
    pub(super) fn pool(&self, shape: Shape) -> Arc<Pool> {
        Pool::remote(shape, Arc::clone(&self.remote))
    }

    /// What runs the main program: the decoder's, where there is one.
    pub(super) fn main(&self) -> Option<&dyn Backend> {
        self.decoder.as_deref().or(self.encoder.as_deref())
    }

    /// Bytes of the GPU's memory that steps have taken.
    pub(super) fn activation_bytes(&self) -> usize {
        [&self.encoder, &self.decoder].into_iter().flatten().map(|backend| backend.activation_bytes()).sum()
    }
}

/// Names of devices.
const EXPECTED: &str = "\"cpu\", \"auto\", \"cuda\" or \"cuda:N\" with a number of a GPU";

impl Choice {
    /// Reads the name of a device.
    ///
    /// # Errors
    /// `Option` for anything else.
    pub(super) fn read(name: Option<&str>) -> Result<Self> {
        match name {
            None | Some("cpu") => Ok(Self::Cpu),
            Some("auto") => Ok(Self::Auto),
            Some("cuda") => Ok(Self::Cuda(0)),
            Some(name) => {
                let number = name.strip_prefix("cuda:").filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
                let number = number.and_then(|number| number.parse().ok());
                number.map(Self::Cuda).ok_or_else(|| option("device", EXPECTED, name))
            }
        }
    }

    /// Sees to it that the device can be opened, before anything is read for it.
    ///
    /// # Errors
    /// `Cuda` where it cannot.
    pub(super) fn check(self) -> Result<()> {
        if let Self::Cuda(ordinal) = self { backend::check(ordinal) } else { Ok(()) }
    }

    /// Puts a model on the device; nothing, and why, where the CPU is to run it.
    ///
    /// # Errors
    /// Where a GPU was asked for and cannot run the model: `Cuda`, `Option` for its types, `OutOfMemory`. `Cancelled`.
    pub(super) fn place(
        self,
        network: &Network,
        weights: &Weights,
        dtypes: &[&str],
        shape: Shape,
        options: &LoadOptions,
        cancel: &Cancel<'_>,
    ) -> Result<(Option<OnDevice>, Option<String>)> {
        let (ordinal, or_cpu) = match self {
            Self::Cpu => return Ok((None, None)),
            Self::Auto => (0, true),
            Self::Cuda(ordinal) => (ordinal, false),
        };
        let placed = compute_type(dtypes, options).and_then(|bf16| {
            backend::open(ordinal, network, weights, Shape { bf16, ..shape }, &options.cuda_folders, cancel)
        });
        match placed {
            Ok(device) => Ok((Some(device), None)),
            Err(Error::Cancelled) => Err(Error::Cancelled),
            Err(error) if or_cpu => Ok((None, Some(error.to_string()))),
            Err(error) => Err(error),
        }
    }
}

/// Whether products are formed in bfloat16 on a GPU: as the weights are.
fn compute_type(dtypes: &[&str], options: &LoadOptions) -> Result<bool> {
    let bf16 = match dtypes {
        ["bfloat16"] => true,
        ["float32"] => false,
        other => {
            let expected = "\"float32\" or \"bfloat16\" for all of a model on a GPU; give one of these, or device=\"cpu\"";
            return Err(option("dtype", expected, &other.join(", ")));
        }
    };
    match options.compute_dtype.as_deref() {
        Some(asked) if asked != dtypes[0] => {
            let expected = format!("None or \"{}\", as the weights are (on a GPU)", dtypes[0]);
            Err(option("compute_dtype", &expected, asked))
        }
        _ => Ok(bf16),
    }
}

#[cfg(feature = "cuda")]
mod backend {
    use std::sync::Arc;

    use super::{CudaFolders, OnDevice};
    use crate::cuda::driver::Device;
    use crate::cuda::driver::store::Folders;
    use crate::cuda::{Gpu, forwards};
    use crate::error::Result;
    use crate::execute::Backend;
    use crate::kv::Shape;
    use crate::models::registry::Network;
    use crate::program::Weights;
    use crate::team::Cancel;

    pub(super) fn check(ordinal: usize) -> Result<()> {
        Device::look(ordinal)
    }

    pub(super) fn open(
        ordinal: usize,
        network: &Network,
        weights: &Weights,
        shape: Shape,
        folders: &CudaFolders,
        cancel: &Cancel<'_>,
    ) -> Result<OnDevice> {
        let folders = Folders { shipped: folders.shipped.clone(), nvrtc: folders.nvrtc.clone() };
        let gpu = Gpu::open(ordinal, shape.bf16, &folders)?;
        let of_source = Shape { layers: 1, ..shape };
        let programs = match network {
            Network::Decoder(decoder) => vec![(decoder, shape)],
            Network::EncoderDecoder { encoder, decoder } => vec![(encoder, of_source), (decoder, shape)],
            Network::Encoder(encoder) => vec![(encoder, of_source)],
        };
        let has_encoder = !matches!(network, Network::Decoder(_));
        let mut forwards = forwards(&gpu, &programs, shape, weights, cancel)?
            .into_iter()
            .map(|forward| Arc::new(forward) as Arc<dyn Backend>);
        let encoder = if has_encoder { forwards.next() } else { None };
        let (free, _) = gpu.free_and_total()?;
        let (name, architecture, bf16) = (gpu.name(), gpu.architecture(), shape.bf16);
        Ok(OnDevice { name, architecture, bf16, free, encoder, decoder: forwards.next(), remote: gpu })
    }
}

#[cfg(not(feature = "cuda"))]
mod backend {
    use super::{CudaFolders, OnDevice};
    use crate::error::{Error, Result};
    use crate::kv::Shape;
    use crate::models::registry::Network;
    use crate::program::Weights;
    use crate::team::Cancel;

    pub(super) fn check(_: usize) -> Result<()> {
        Err(Error::built_without_cuda())
    }

    pub(super) fn open(
        _: usize,
        _: &Network,
        _: &Weights,
        _: Shape,
        _: &CudaFolders,
        _: &Cancel<'_>,
    ) -> Result<OnDevice> {
        Err(Error::built_without_cuda())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        let read = |name| Choice::read(Some(name));
        assert_eq!(Choice::read(None).unwrap(), Choice::Cpu);
        let good = [
            ("cpu", Choice::Cpu),
            ("auto", Choice::Auto),
            ("cuda", Choice::Cuda(0)),
            ("cuda:3", Choice::Cuda(3)),
        ];
        for (name, choice) in good {
            assert_eq!(read(name).unwrap(), choice, "{name}");
        }
        for name in [
            "",
            "gpu",
            "CUDA",
            "cuda:",
            "cuda:x",
            "cuda:-1",
            "cuda:+1",
            "cuda: 1",
            "cuda:99999999999999999999",
        ] {
            assert!(matches!(read(name), Err(Error::Option { option, .. }) if option == "device"), "{name}");
        }
    }

    #[test]
    fn a_build_without_cuda_says_so() {
        assert!(Choice::Cpu.check().is_ok() && Choice::Auto.check().is_ok());
        // A build with CUDA cannot be asked; the error is the same in both.
        let error = match Choice::Cuda(0).check() {
            Err(error) if !cfg!(feature = "cuda") => error,
            _ => Error::built_without_cuda(),
        };
        assert!(error.to_string().contains("without CUDA"), "{error}");
        assert!(error.to_string().contains("device=\"cpu\""), "{error}");
    }
}
