//! What every model offers the engine: sequences that fork, and one ragged forward.
//!
//! A step is a list of segments. Prefill is many tokens of one sequence, decode one token of each sequence, a
//! verification a few tokens of one, and continuous batching is all of these in one call; nothing is padded.

pub mod gpt2;
pub mod load;
pub mod step;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::config::ConfigFile;
use crate::error::{Error, Result};
use crate::kv;
use crate::layers::Runtime;
use crate::packed::Storage;
use crate::team;
use gpt2::Gpt2;
use load::{Loader, Weights};
use step::Trace;

pub use crate::layers::embedding::Input;

/// Rows of a segment whose logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// No logits (a chunk of prefill that is not the last).
    Nothing,
    /// Logits after the last token.
    Last,
    /// Logits after every token.
    All,
}

/// New tokens of one sequence in a step.
#[derive(Debug)]
pub struct Segment<'a, S> {
    /// Sequence that the tokens are appended to.
    pub sequence: &'a mut S,
    /// What is appended; at least one row.
    pub input: Input<'a>,
    /// Which rows' logits the step returns.
    pub logits: Wanted,
}

/// A run of cached positions; dropping it frees its blocks.
pub trait Sequence: Sized + Send {
    /// Number of cached positions.
    fn len(&self) -> usize;
    /// Whether nothing is cached yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// A second sequence with the same contents; full blocks are shared, the last partial one is copied when written.
    fn fork(&self) -> Self;
    /// Forgets all but the first `len` positions; `len <= self.len()`.
    fn truncate(&mut self, len: usize);
}

/// A model that turns appended tokens into logits.
///
/// Batch-invariance is the law: a row's logits are the same bits alone, in any batch, in a prefill of any split and for
/// any number of threads.
pub trait Decoder: Send + Sync {
    /// The model's kind of sequence.
    type Sequence: Sequence;
    /// Size of the vocabulary, `V`.
    fn vocab_size(&self) -> usize;
    /// Largest number of positions of a sequence, or `None` without a limit.
    fn context_limit(&self) -> Option<usize>;
    /// An empty sequence.
    fn start(&self) -> Self::Sequence;
    /// Appends every segment to its sequence and leaves the wanted logits in `logits`: one row of `V` per wanted token,
    /// in the order of the segments. On an error every sequence is as it was before.
    ///
    /// # Errors
    /// `Cancelled` when `cancel` was set, `OutOfMemory`, `Panicked`, `ContextLength`, `Option` for an id past `V`.
    fn forward(
        &self,
        batch: &mut [Segment<'_, Self::Sequence>],
        logits: &mut Vec<f32>,
        cancel: &AtomicBool,
    ) -> Result<()>;
}

impl Sequence for kv::Sequence {
    fn len(&self) -> usize {
        Self::len(self)
    }
    fn fork(&self) -> Self {
        Self::fork(self)
    }
    fn truncate(&mut self, len: usize) {
        Self::truncate(self, len);
    }
}

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
    fn weights(&self) -> Result<Weights> {
        match self.dtype.as_deref() {
            None | Some("auto") => Ok(Weights::Auto),
            Some("float32") => Ok(Weights::As(Storage::F32)),
            Some("bfloat16") => Ok(Weights::As(Storage::Bf16)),
            Some("float16") => Ok(Weights::As(Storage::F16)),
            Some(other) => Err(option("dtype", "\"auto\", \"float32\", \"bfloat16\" or \"float16\"", other)),
        }
    }

    fn bf16(&self) -> Result<bool> {
        match self.compute_dtype.as_deref() {
            None | Some("float32") => Ok(false),
            Some("bfloat16") => Ok(true),
            Some(other) => Err(option("compute_dtype", "None, \"float32\" or \"bfloat16\"", other)),
        }
    }

    fn threads(&self) -> Result<usize> {
        match self.num_threads {
            None => Ok(team::default_threads()),
            Some(n @ 1..=256) => Ok(n),
            Some(n) => Err(option("num_threads", "None, or 1 to 256", &n.to_string())),
        }
    }
}

fn option(option: &str, expected: &str, got: &str) -> Error {
    Error::Option { option: option.to_owned(), expected: expected.to_owned(), got: got.to_owned() }
}

/// What is known of a loaded model.
#[derive(Debug, Clone)]
pub struct Info {
    /// `model_type` of the config.
    pub architecture: &'static str,
    /// Elements of all tensors that the model uses.
    pub parameters: usize,
    /// Bytes of the packed matrices.
    pub weight_bytes: usize,
    /// Bytes of the cache for one token.
    pub cache_bytes_per_token: usize,
    /// Storage of the matrices, every kind that occurs.
    pub dtypes: Vec<&'static str>,
    /// How products are formed.
    pub compute_dtype: &'static str,
    /// Name of the kernel table.
    pub isa: &'static str,
    /// Threads of a step.
    pub num_threads: usize,
    /// Tensors of the checkpoint that the model does not know.
    pub unknown_tensors: Vec<String>,
}

/// A loaded model of any architecture.
#[derive(Debug)]
pub struct Model {
    model: Gpt2,
    info: Info,
}

/// Values of `model_type` that can be loaded.
const SUPPORTED: &str = "gpt2";

impl Model {
    /// Loads a Hugging Face folder as it is.
    ///
    /// # Errors
    /// Every kind: files missing or malformed, an architecture that is not supported, options out of range, memory refused.
    pub fn load(folder: &Path, options: &LoadOptions) -> Result<Self> {
        let config = ConfigFile::open(folder)?;
        Self::supported(&config)?;
        Self::build(config, &Checkpoint::open(folder)?, options)
    }

    /// Loads weights in memory under the configuration `config_json`.
    ///
    /// # Errors
    /// As for [`Model::load`].
    pub fn from_checkpoint(config_json: &str, weights: &Checkpoint, options: &LoadOptions) -> Result<Self> {
        let config = ConfigFile::from_json("config", config_json)?;
        Self::supported(&config)?;
        Self::build(config, weights, options)
    }

    fn supported(config: &ConfigFile) -> Result<()> {
        match config.model_type()? {
            "gpt2" => Ok(()),
            other => Err(Error::UnsupportedModel {
                file: config.label().to_owned(),
                expected: SUPPORTED.to_owned(),
                got: other.to_owned(),
            }),
        }
    }

    fn build(mut file: ConfigFile, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self> {
        let (weights, bf16, threads) = (options.weights()?, options.bf16()?, options.threads()?);
        let runtime = Runtime::new(threads, bf16)?;
        let config = gpt2::config::Config::read(&mut file)?;
        let mut loader = Loader::new(checkpoint, gpt2::weights::PREFIX, weights, threads);
        let (weights, weight_bytes) = gpt2::weights::Weights::load(&mut loader, &config)?;
        let mut dtypes: Vec<&str> = weights.storages().map(Storage::name).collect();
        dtypes.sort_unstable();
        dtypes.dedup();
        if bf16 && dtypes != [Storage::Bf16.name()] {
            let expected = "\"float32\", or bfloat16 weights: load with dtype=\"bfloat16\"";
            return Err(option(
                "compute_dtype",
                expected,
                &format!("bfloat16 with weights in {}", dtypes.join(", ")),
            ));
        }
        let (parameters, unknown_tensors) = (loader.parameters(), loader.unknown());
        let model = Gpt2::new(config, weights, runtime);
        let shape = model.pool.shape();
        let info = Info {
            architecture: "gpt2",
            parameters,
            weight_bytes,
            cache_bytes_per_token: shape.block_bytes() / crate::kernels::BLOCK,
            dtypes,
            compute_dtype: if bf16 { "bfloat16" } else { "float32" },
            isa: model.runtime.kernels.name,
            num_threads: threads,
            unknown_tensors,
        };
        Ok(Self { model, info })
    }

    /// What is known of the model.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Width of an embedding row, `D`.
    pub fn width(&self) -> usize {
        self.model.config.n_embd
    }

    /// Token embeddings alone, `T × D` row-major.
    ///
    /// # Errors
    /// [`Error::Option`] for an id past the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let vocab = self.vocab_size();
        match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(id) => {
                Err(option("token id", &format!("less than the vocabulary size {vocab}"), &id.to_string()))
            }
            None => Ok(self.model.embed(ids)),
        }
    }

    /// Every activation of one forward over `ids`, by name, in the order in which they are made.
    ///
    /// # Errors
    /// As for [`Decoder::forward`].
    pub fn trace(&self, ids: &[u32]) -> Result<Vec<step::Activation>> {
        let trace = Trace::default();
        let mut sequence = self.start();
        let segment = Segment { sequence: &mut sequence, input: Input::Tokens(ids), logits: Wanted::All };
        self.model.forward(&mut [segment], &mut Vec::new(), &AtomicBool::new(false), Some(&trace))?;
        Ok(trace.into_entries())
    }
}

impl Decoder for Model {
    type Sequence = kv::Sequence;

    fn vocab_size(&self) -> usize {
        self.model.config.vocab_size
    }

    fn context_limit(&self) -> Option<usize> {
        Some(self.model.config.n_positions)
    }

    fn start(&self) -> kv::Sequence {
        kv::Sequence::new(&self.model.pool)
    }

    fn forward(
        &self,
        batch: &mut [Segment<'_, kv::Sequence>],
        logits: &mut Vec<f32>,
        cancel: &AtomicBool,
    ) -> Result<()> {
        self.model.forward(batch, logits, cancel, None)
    }
}
