//! What every model offers the engine: sequences that fork, and one ragged forward.
//!
//! A step is a list of segments. Prefill is many tokens of one sequence, decode one token of each sequence, a
//! verification a few tokens of one, and continuous batching is all of these in one call; nothing is padded.

pub mod gpt2;
pub mod load;
pub mod memory;
pub mod step;
pub mod t5;

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::config::ConfigFile;
use crate::error::{Error, Result};
use crate::headroom;
use crate::kv;
use crate::layers::Runtime;
use crate::packed::{Packed, Storage};
use crate::team;
use load::{Loader, Weights};
use step::Trace;

pub use crate::layers::embedding::Input;
pub use memory::{Cached, Memory, Source};

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
    /// Rows of other work that the sequence's first forward does before its own (an encoder's source).
    fn pending(&self) -> usize {
        0
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
    /// Bytes that every row of a request takes at least: a block of the cache, and its logits twice.
    fn row_bytes(&self) -> usize {
        2 * self.vocab_size() * size_of::<f32>()
    }
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

/// What a model's folder under this one offers; [`Model`] adds loading and checks.
trait Architecture: Debug + Send + Sync {
    /// Size of the vocabulary, `V`.
    fn vocab_size(&self) -> usize;
    /// Width of an embedding row, `D`.
    fn width(&self) -> usize;
    /// Largest number of positions of a sequence, or `None` without a limit.
    fn context_limit(&self) -> Option<usize>;
    /// Kernels and threads.
    fn runtime(&self) -> &Runtime;
    /// Memory of the cache's blocks.
    fn pool(&self) -> &Arc<kv::Pool>;
    /// Storage of every matrix.
    fn storages(&self) -> Vec<Storage>;
    /// Bytes of the matrices that a step with one new token reads, but for a row of the embedding.
    fn step_bytes(&self) -> usize;
    /// Token embeddings of the decoder, `V × D`.
    fn embedding(&self) -> &Packed;
    /// One step, see [`Decoder::forward`]; with a trace, every activation is shown by name.
    fn forward(
        &self,
        batch: &mut [Segment<'_, Cached>],
        logits: &mut Vec<f32>,
        cancel: &AtomicBool,
        trace: Option<&Trace>,
    ) -> Result<()>;
    /// The encoder, where there is one.
    fn encoder(&self) -> Option<&dyn Encoder> {
        None
    }
}

/// The half of a model that reads a source.
trait Encoder {
    /// Bytes that a token of a source takes while it is encoded: activations, keys and values.
    fn source_token_bytes(&self) -> usize;
    /// Encodes sources of any lengths in one step; results are the same bits as alone. Every source has at least one id,
    /// all below the vocabulary size.
    fn encode(
        &self,
        sources: &[&[u32]],
        cancel: &AtomicBool,
        trace: Option<&Trace>,
    ) -> Result<Vec<Arc<Memory>>>;
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
    /// Bytes of those that a step with one new token reads.
    pub step_weight_bytes: usize,
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
    network: Box<dyn Architecture>,
    info: Info,
}

/// Values of `model_type` that can be loaded.
const SUPPORTED: [&str; 4] = ["gpt2", "mt5", "t5", "umt5"];
/// Before the names of tensors where a model was saved with its head, for all of them.
const PREFIX: &str = "transformer.";

impl Model {
    /// Loads a Hugging Face folder as it is.
    ///
    /// # Errors
    /// Every kind: files missing or malformed, an architecture that is not supported, options out of range, memory refused;
    /// `Cancelled` when `cancel` was set.
    pub fn load(folder: &Path, options: &LoadOptions, cancel: &AtomicBool) -> Result<Self> {
        let config = ConfigFile::open(folder)?;
        let architecture = Self::architecture(&config)?;
        Self::build(architecture, config, &Checkpoint::open(folder)?, options, cancel)
    }

    /// Loads weights in memory under the configuration `config_json`.
    ///
    /// # Errors
    /// As for [`Model::load`].
    pub fn from_checkpoint(
        config_json: &str,
        weights: &Checkpoint,
        options: &LoadOptions,
        cancel: &AtomicBool,
    ) -> Result<Self> {
        let config = ConfigFile::from_json("config", config_json)?;
        Self::build(Self::architecture(&config)?, config, weights, options, cancel)
    }

    fn architecture(config: &ConfigFile) -> Result<&'static str> {
        let name = config.model_type()?;
        SUPPORTED.into_iter().find(|&known| known == name).ok_or_else(|| Error::UnsupportedModel {
            file: config.label().to_owned(),
            expected: SUPPORTED.join(", "),
            got: name.to_owned(),
        })
    }

    fn build(
        architecture: &'static str,
        mut file: ConfigFile,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        cancel: &AtomicBool,
    ) -> Result<Self> {
        let (weights, bf16, threads) = (options.weights()?, options.bf16()?, options.threads()?);
        let runtime = Runtime::new(threads, bf16)?;
        let mut loader = Loader::new(checkpoint, PREFIX, weights, threads, cancel);
        let (network, weight_bytes): (Box<dyn Architecture>, usize) = if architecture == "gpt2" {
            let (model, bytes) = gpt2::Gpt2::load(&mut file, &mut loader, runtime)?;
            (Box::new(model), bytes)
        } else {
            let (model, bytes) = t5::T5::load(architecture, &mut file, &mut loader, runtime)?;
            (Box::new(model), bytes)
        };
        let mut dtypes: Vec<&str> = network.storages().into_iter().map(Storage::name).collect();
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
        let info = Info {
            architecture,
            parameters: loader.parameters(),
            weight_bytes,
            step_weight_bytes: network.step_bytes(),
            cache_bytes_per_token: network.pool().shape().block_bytes() / crate::kernels::BLOCK,
            dtypes,
            compute_dtype: if bf16 { "bfloat16" } else { "float32" },
            isa: network.runtime().kernels.name,
            num_threads: threads,
            unknown_tensors: loader.unknown(),
        };
        Ok(Self { network, info })
    }

    /// What is known of the model.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Width of an embedding row, `D`.
    pub fn width(&self) -> usize {
        self.network.width()
    }

    /// Whether sequences look at a source that an encoder reads.
    pub fn has_encoder(&self) -> bool {
        self.network.encoder().is_some()
    }

    /// Token embeddings alone, `T × D` row-major.
    ///
    /// # Errors
    /// [`Error::Option`] for an id past the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>> {
        self.check_ids("token id", ids)?;
        let (embedding, width) = (self.network.embedding(), self.width());
        let mut out = vec![0.0; ids.len() * width];
        for (&id, row) in std::iter::zip(ids, out.chunks_exact_mut(width)) {
            embedding.gather(id as usize, row);
        }
        Ok(out)
    }

    /// Encodes sources of any lengths, each as if it were alone, to the bit.
    ///
    /// # Errors
    /// `Option` for a model without an encoder, a source without ids or an id past the vocabulary; `Cancelled`,
    /// `OutOfMemory`, `Panicked`.
    pub fn encode(&self, sources: &[&[u32]], cancel: &AtomicBool) -> Result<Vec<Arc<Memory>>> {
        for ids in sources {
            self.check_source(ids)?;
        }
        self.encoder()?.encode(sources, cancel, None)
    }

    /// An empty sequence that looks at `source`.
    ///
    /// # Errors
    /// `Option` where the model has an encoder and there is no source, or the other way round, for a source that cannot be
    /// encoded, and for a memory of another model.
    pub fn start_from(&self, source: Source) -> Result<Cached> {
        match &source {
            Source::None if !self.has_encoder() => {}
            Source::None => return Err(no_source()),
            Source::Ids(ids) => self.encoder().and_then(|_| self.check_source(ids))?,
            Source::Memory(memory) => {
                self.encoder()?;
                if !memory.keys_values.is_of(self.network.pool()) {
                    let expected = "one that this very model encoded";
                    return Err(option("memory", expected, "a memory of another model"));
                }
            }
        }
        Ok(Cached { cache: kv::Sequence::new(self.network.pool()), source })
    }

    /// Every activation of one forward over `ids`, by name, in the order in which they are made; of the encoder over
    /// `source` before them, in a model that has one.
    ///
    /// # Errors
    /// As for [`Decoder::forward`] and [`Model::encode`].
    pub fn trace(
        &self,
        source: Option<&[u32]>,
        ids: &[u32],
        cancel: &AtomicBool,
    ) -> Result<Vec<step::Activation>> {
        let trace = Trace::default();
        let source = match source {
            None => Source::None,
            Some(source) => {
                self.check_source(source)?;
                let mut memories = self.encoder()?.encode(&[source], cancel, Some(&trace))?;
                memories.pop().map_or(Source::None, Source::Memory)
            }
        };
        let mut sequence = self.start_from(source)?;
        let segment = Segment { sequence: &mut sequence, input: Input::Tokens(ids), logits: Wanted::All };
        self.network.forward(&mut [segment], &mut Vec::new(), cancel, Some(&trace))?;
        Ok(trace.into_entries())
    }

    fn encoder(&self) -> Result<&dyn Encoder> {
        let hint = "nothing (this model has no encoder; give it a prompt)";
        self.network.encoder().ok_or_else(|| option("source", hint, "a source"))
    }

    fn check_source(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(option("source", "at least one token", "none"));
        }
        self.check_ids("source", ids)?;
        headroom::check("source", "tokens", ids.len(), self.encoder()?.source_token_bytes())
    }

    fn check_ids(&self, what: &str, ids: &[u32]) -> Result<()> {
        let vocab = self.vocab_size();
        match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(id) => {
                Err(option(what, &format!("ids less than the vocabulary size {vocab}"), &id.to_string()))
            }
            None => Ok(()),
        }
    }
}

/// The error of a sequence of an encoder-decoder that looks at nothing.
fn no_source() -> Error {
    option("source", "a source or a memory (this model has an encoder)", "none")
}

impl Decoder for Model {
    type Sequence = Cached;

    fn vocab_size(&self) -> usize {
        self.network.vocab_size()
    }

    fn context_limit(&self) -> Option<usize> {
        self.network.context_limit()
    }

    fn row_bytes(&self) -> usize {
        self.network.pool().shape().block_bytes() + 2 * self.vocab_size() * size_of::<f32>()
    }

    fn start(&self) -> Cached {
        Cached { cache: kv::Sequence::new(self.network.pool()), source: Source::None }
    }

    fn forward(
        &self,
        batch: &mut [Segment<'_, Cached>],
        logits: &mut Vec<f32>,
        cancel: &AtomicBool,
    ) -> Result<()> {
        self.network.forward(batch, logits, cancel, None)
    }
}
