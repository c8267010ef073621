//! The architectures that can be loaded: a line for each.

use super::{gpt2, t5};
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

/// Values of `model_type`, and who records such a model.
const ARCHITECTURES: [(&str, Record); 4] =
    [("gpt2", gpt2::record), ("mt5", t5::record), ("t5", t5::record), ("umt5", t5::record)];

/// An architecture that can be loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Architecture {
    /// Its `model_type`.
    pub(super) name: &'static str,
    pub(super) record: Record,
}

/// The architecture of a config.
///
/// # Errors
/// `UnsupportedModel` where it is none of those that can be loaded.
pub(super) fn architecture(config: &ConfigFile) -> Result<Architecture> {
    let wanted = config.model_type()?;
    let found = ARCHITECTURES.into_iter().find(|(name, _)| *name == wanted);
    found.map(|(name, record)| Architecture { name, record }).ok_or_else(|| Error::UnsupportedModel {
        file: config.label().to_owned(),
        expected: ARCHITECTURES.map(|(name, _)| name).join(", "),
        got: wanted.to_owned(),
    })
}
