//! The architectures that can be loaded: a line for each.

use super::decoder::ContextLength;
use super::options::Part;
use super::rope::Rope;
use super::{gpt2, llama, openai_gpt, phi, t5};
use crate::checkpoint::config::ConfigFile;
use crate::error::{Error, Result};
use crate::program::{Program, Recorder};

/// What a model file records.
#[derive(Debug)]
pub(super) struct Recorded {
    /// The forwards.
    pub(super) network: Network,
    /// How long a sequence may become.
    pub(super) context: ContextLength,
    /// Rotary positions, where there are.
    pub(super) rope: Option<Rope>,
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
    /// An encoder alone, whose program ends in hidden states and keeps nothing.
    Encoder(Program),
}

impl Network {
    /// The forward whose results a caller is given: that of the decoder, or of an encoder alone.
    pub(super) fn main(&self) -> &Program {
        match self {
            Self::Decoder(main) | Self::EncoderDecoder { decoder: main, .. } | Self::Encoder(main) => main,
        }
    }

    /// All forwards.
    pub(super) fn programs(&self) -> impl Iterator<Item = &Program> {
        let (encoder, decoder) = match self {
            Self::Decoder(decoder) => (None, Some(decoder)),
            Self::EncoderDecoder { encoder, decoder } => (Some(encoder), Some(decoder)),
            Self::Encoder(encoder) => (Some(encoder), None),
        };
        encoder.into_iter().chain(decoder)
    }

    /// The forward that reads and writes tokens.
    pub(super) fn decoder(&self) -> Option<&Program> {
        match self {
            Self::Decoder(decoder) | Self::EncoderDecoder { decoder, .. } => Some(decoder),
            Self::Encoder(_) => None,
        }
    }
}

/// Reads a config and records the forward of its model, or of a part of it; the first argument is `model_type`.
type Record = fn(&str, Part, &mut ConfigFile, &mut Recorder<'_>) -> Result<Recorded>;

/// Values of `model_type`, what precedes names of tensors where a model was saved with its head, who records such a model, and whether it
/// has an encoder.
const ARCHITECTURES: [Architecture; 10] = [
    causal("gpt2", "transformer.", gpt2::record),
    causal("llama", "model.", llama::record),
    causal("mistral", "model.", llama::record),
    encoder_decoder("mt5", t5::record),
    causal("openai-gpt", "transformer.", openai_gpt::record),
    causal("phi", "model.", phi::record),
    causal("qwen2", "model.", llama::record),
    causal("qwen3", "model.", llama::record),
    encoder_decoder("t5", t5::record),
    encoder_decoder("umt5", t5::record),
];

const fn causal(name: &'static str, prefix: &'static str, record: Record) -> Architecture {
    Architecture { name, prefix, record, has_encoder: false }
}

const fn encoder_decoder(name: &'static str, record: Record) -> Architecture {
    Architecture { name, prefix: "transformer.", record, has_encoder: true }
}

/// An architecture that can be loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Architecture {
    /// Its `model_type`.
    pub(super) name: &'static str,
    /// Before the names of tensors where a model was saved with its head, for all but the head.
    pub(super) prefix: &'static str,
    pub(super) record: Record,
    /// Whether there is an encoder, whose models are saved without a prefix.
    pub(super) has_encoder: bool,
}

/// The architecture of a config, of which `part` is to be loaded.
///
/// # Errors
/// `UnsupportedModel` where it is none of those that can be loaded, or has no such part.
pub(super) fn architecture(config: &ConfigFile, part: Part) -> Result<Architecture> {
    let wanted = config.model_type()?;
    let fitting = || ARCHITECTURES.into_iter().filter(|known| known.has_encoder || part != Part::Encoder);
    let found = fitting().find(|known| known.name == wanted);
    found.ok_or_else(|| Error::UnsupportedModel {
        file: config.label().to_owned(),
        expected: fitting().map(|known| known.name).collect::<Vec<_>>().join(", "),
        got: wanted.to_owned(),
    })
}
