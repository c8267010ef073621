//! The architectures that can be loaded: a line for each.

use super::{gpt2, llama, openai_gpt, phi, t5};
use crate::checkpoint::config::ConfigFile;
use crate::error::{Error, Result};
use crate::program::{Program, Recorder};

/// What a model file records.
#[derive(Debug)]
pub(super) struct Recorded {
    /// The forwards.
    pub(super) network: Network,
    /// Largest number of positions of a sequence, or `None` without a limit.
    pub(super) context_limit: Option<usize>,
    /// Positions of the longest sequence in which positions count as in short ones, where they count otherwise in long ones.
    pub(super) border: Option<usize>,
}

/// The forwards of a model.
#[derive(Debug)]
pub(super) enum Network {
    /// A decoder alone.
    Decoder(Program),
    /// An encoder, whose program keeps keys and values of sources for a decoder.
    EncoderDecoder {
        /// Reads sources.
        encoder: Program,
        /// Reads and writes tokens, and looks at what was kept.
        decoder: Program,
    },
}

impl Network {
    /// The forward that reads and writes tokens.
    pub(super) fn decoder(&self) -> &Program {
        match self {
            Self::Decoder(decoder) | Self::EncoderDecoder { decoder, .. } => decoder,
        }
    }
}

/// Reads a config and records the forward of its model; the first argument is `model_type`.
type Record = fn(&str, &mut ConfigFile, &mut Recorder<'_>) -> Result<Recorded>;

/// Values of `model_type`, what precedes names of tensors where a model was saved with its head, and who records such a model.
const ARCHITECTURES: [Architecture; 10] = [
    Architecture { name: "gpt2", prefix: "transformer.", record: gpt2::record },
    Architecture { name: "llama", prefix: "model.", record: llama::record },
    Architecture { name: "mistral", prefix: "model.", record: llama::record },
    Architecture { name: "mt5", prefix: "transformer.", record: t5::record },
    Architecture { name: "openai-gpt", prefix: "transformer.", record: openai_gpt::record },
    Architecture { name: "phi", prefix: "model.", record: phi::record },
    Architecture { name: "qwen2", prefix: "model.", record: llama::record },
    Architecture { name: "qwen3", prefix: "model.", record: llama::record },
    Architecture { name: "t5", prefix: "transformer.", record: t5::record },
    Architecture { name: "umt5", prefix: "transformer.", record: t5::record },
];

/// An architecture that can be loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Architecture {
    /// Its `model_type`.
    pub(super) name: &'static str,
    /// Before the names of tensors where a model was saved with its head, for all but the head.
    pub(super) prefix: &'static str,
    pub(super) record: Record,
}

/// The architecture of a config.
///
/// # Errors
/// `UnsupportedModel` where it is none of those that can be loaded.
pub(super) fn architecture(config: &ConfigFile) -> Result<Architecture> {
    let wanted = config.model_type()?;
    let found = ARCHITECTURES.into_iter().find(|architecture| architecture.name == wanted);
    found.ok_or_else(|| Error::UnsupportedModel {
        file: config.label().to_owned(),
        expected: ARCHITECTURES.map(|architecture| architecture.name).join(", "),
        got: wanted.to_owned(),
    })
}
