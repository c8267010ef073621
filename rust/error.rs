//! The one error enum of the engine: fields, not sentences.
//!
//! Every variant says what was got, what was expected and where, so that the Python layer can hand the same fields on
//! as attributes of a typed exception. Nothing here knows how an error is shown to a user beyond one line of text.

use std::path::PathBuf;

/// What every fallible function of the engine returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a state expects of those who use it.
pub const ONE_CALL: &str =
    "one call of step, truncate or logits at a time (fork() gives each thread a state of its own)";

/// Everything that can go wrong, with the place, what was expected and what was got.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// File or folder that was being read.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A weight file or its index is malformed, or a tensor in it is not what the model needs.
    #[error("{file}: {}expected {expected}, got {got}", tensor.as_ref().map(|t| format!("tensor {t}: ")).unwrap_or_default())]
    Checkpoint {
        /// File (or "tensors in memory") in which it was found.
        file: String,
        /// Name of the tensor as written in the file, when one is concerned.
        tensor: Option<String>,
        /// What a valid file would hold, and what to do.
        expected: String,
        /// What the file holds.
        got: String,
    },
    /// A field of config.json cannot be used.
    #[error("{file}: {field}: expected {expected}, got {got}")]
    Config {
        /// Path of the configuration file.
        file: String,
        /// Key in the file.
        field: String,
        /// Accepted values.
        expected: String,
        /// Value in the file.
        got: String,
    },
    /// The folder is sound but of an architecture that is not supported.
    #[error("{file}: expected a model_type among {expected}, got {got}")]
    UnsupportedModel {
        /// Path of the configuration file.
        file: String,
        /// Supported values.
        expected: String,
        /// Value in the file.
        got: String,
    },
    /// An argument or option of a call cannot be used.
    #[error("{option}: expected {expected}, got {got}")]
    Option {
        /// Name of the option.
        option: String,
        /// Accepted values, and what to do.
        expected: String,
        /// Value given.
        got: String,
    },
    /// A request needs more positions than the model has.
    #[error(
        "expected at most {limit} positions (prompt and new tokens together), got a request for {requested}; {reason}"
    )]
    ContextLength {
        /// Positions of the model.
        limit: usize,
        /// Positions asked for.
        requested: usize,
        /// Why there are no more, and what to do.
        reason: &'static str,
    },
    /// The scores of a row leave no token to choose.
    #[error("row {row}: expected {expected}, got {got}")]
    Scores {
        /// Row of the request, prompt by prompt.
        row: usize,
        /// What scores must look like, and what to do.
        expected: String,
        /// What was found.
        got: String,
    },
    /// The operating system refused memory.
    #[error(
        "{what}: expected {}, got none; free memory or choose a smaller model, dtype or length", asked(*bytes)
    )]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Size of the refused request in bytes; 0 where only the driver of a GPU knows it.
        bytes: usize,
    },
    /// An instruction set was forced that this CPU does not have, or that does not exist.
    #[error("FASTDECODE_ISA: expected one of {available}, got {requested}")]
    Isa {
        /// Value of `FASTDECODE_ISA`.
        requested: String,
        /// Tables that this CPU can run.
        available: String,
    },
    /// A GPU cannot be used, or what was asked of it failed.
    #[error("{what}: expected {expected}, got {got}")]
    Cuda {
        /// The device, library, function or kernel file that is concerned.
        what: String,
        /// What is needed, and what to do.
        expected: String,
        /// What was found, in the driver's or compiler's words where it is theirs.
        got: String,
    },
    /// A model file records a forward that cannot be run.
    #[error(
        "internal error: the forward of this model, at {phase}: expected {expected}, got {got}; please report it"
    )]
    Program {
        /// Name of the phase.
        phase: String,
        /// What a sound record has there.
        expected: String,
        /// What the model file recorded.
        got: String,
    },
    /// A state is in use.
    #[error("state: expected {ONE_CALL}, got {got}")]
    StateBusy {
        /// Who uses it.
        got: &'static str,
    },
    /// The caller asked the running step to stop.
    #[error("cancelled")]
    Cancelled,
    /// A thread of the team panicked; the step was abandoned and the team is usable again.
    #[error("internal error: a computing thread panicked: {message}; please report it")]
    Panicked {
        /// Message of the panic.
        message: String,
    },
}

impl Error {
    /// Wraps an I/O error with the path that was being read.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// A GPU was asked for, but this build leaves the CUDA backend out.
    pub fn built_without_cuda() -> Self {
        Self::Cuda {
            what: "CUDA".to_owned(),
            expected: "a build with CUDA (a released wheel, or cargo's feature `cuda`), or device=\"cpu\""
                .to_owned(),
            got: "a build of fastdecode without CUDA".to_owned(),
        }
    }
}
/// What was asked of the memory.
fn asked(bytes: usize) -> String {
    if bytes == 0 { "memory".to_owned() } else { format!("{bytes} bytes of memory") }
}
