//! Loaded models: the contract with the engine, the families, and what all of them share.

mod adapters;
mod causal;
pub mod decoder;
mod decoding;
mod device;
mod encoder_decoder;
pub mod gpt2;
mod info;
pub mod llama;
pub mod openai_gpt;
mod options;
pub mod phi;
mod profile;
mod registry;
mod rope;
pub mod sequence;
mod step;
pub mod t5;

use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::config::ConfigFile;
use crate::error::{Error, Result};
use crate::execute::{self, Backend, Executor, Trace};
use crate::headroom;
use crate::kernels::{BFLOAT16, BLOCK};
use crate::kv::{Account, Pool, Sequence as Cache, Shape};
use crate::layers::Runtime;
use crate::load::Loader;
use crate::packed::Packed;
use crate::program::{Program, Recorder, Weights, Work};
use encoder_decoder::{Encoder, no_decoder};
use registry::{Architecture, Network, Recorded};
use rope::Rope;
use step::{Bounds, Left};

pub use crate::execute::{Activation, Count, Line, Steps};
pub use crate::program::{Flops, Kind};
pub use crate::team::Cancel;
pub use adapters::modules;
pub use decoder::{
    Argmax, Asked, CacheBlock, ContextLength, Decoder, Input, Limits, NO_TOKEN, Scored, Segment, Sequence,
    Wanted,
};
pub use device::CudaFolders;
use device::OnDevice;
pub use encoder_decoder::Pooling;
pub use info::{Attention, Info, MemoryUse};
use options::option;
pub use options::{LoadOptions, Part};
pub use profile::{Choosing, Counts, Profile};
use sequence::Read;
pub use sequence::{DecoderSequence, EncoderOutput, Source};

/// A loaded model of any architecture: its forwards, one table of weights, and the memory of its caches.
#[derive(Debug)]
pub struct Model {
    network: Network,
    weights: Weights,
    runtime: Runtime,
    bounds: Bounds,
    /// Blocks of the decoder's caches and of what is kept of sources: both hold keys and values of every decoder layer. An encoder
    /// alone takes none.
    pool: Arc<Pool>,
    /// Blocks of one encoder layer's keys and values.
    source_pool: Arc<Pool>,
    limits: Limits,
    info: Info,
    profile: Arc<Profile>,
    /// The GPU that runs the programs, where there is one.
    device: Option<OnDevice>,
}

impl Model {
    /// Loads a Hugging Face folder as it is; setting `cancel` ends the loading.
    ///
    /// # Errors
    /// Every kind: files missing or malformed, an architecture that is not supported, options out of range, memory refused.
    pub fn load(folder: &Path, options: &LoadOptions, cancel: &Cancel<'_>) -> Result<Self> {
        let mut config = ConfigFile::open(folder)?;
        let architecture = registry::architecture(&config, options.part)?;
        let checkpoint =
            adapters::adapted(architecture, &mut config, Checkpoint::open(folder)?, &options.adapters)?;
        Self::build(architecture, config, &checkpoint, options, cancel)
    }

    /// Loads weights in memory under the configuration `config_json`.
    ///
    /// # Errors
    /// As for [`Model::load`].
    pub fn from_checkpoint(
        config_json: &str,
        weights: &Checkpoint,
        options: &LoadOptions,
        cancel: &Cancel<'_>,
    ) -> Result<Self> {
        let config = ConfigFile::from_json("config", config_json)?;
        Self::build(registry::architecture(&config, options.part)?, config, weights, options, cancel)
    }

    fn build(
        architecture: Architecture,
        mut file: ConfigFile,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        cancel: &Cancel<'_>,
    ) -> Result<Self> {
        let (rounding, bf16, threads) = (options.rounding()?, options.bf16()?, options.threads()?);
        let (cache_bytes, max_rows) = (options.cache_bytes()?, options.max_rows()?);
        let choice = options.device()?;
        choice.check()?;
        let mut runtime = Runtime::new(threads, bf16)?;
        let mut recorder =
            Recorder::new(Loader::new(checkpoint, architecture.prefix, &rounding, threads, cancel));
        let Recorded { network, context, rope } =
            (architecture.record)(architecture.name, options.part, &mut file, &mut recorder)?;
        let (mut weights, loader) = recorder.finish()?;
        let mut dtypes: Vec<&str> = weights.types().map(|of| of.name()).collect();
        dtypes.sort_unstable();
        dtypes.dedup();
        if network.programs().any(|program| program.rounds_to_integers(&weights)) {
            runtime.kernels = runtime.kernels.for_integers();
        }
        let main = network.main();
        let embedding = embedding(main, &weights)?;
        let border = rope.as_ref().and_then(Rope::border);
        let bounds = Bounds { width: embedding.inputs(), vocab: embedding.outputs(), context, border };
        let attention = Attention::of(main, rope.as_ref());
        let (kv_heads, head_dim) = (attention.kv_heads.max(1), attention.head_dim.max(1));
        let shape = Shape { layers: main.layers(), heads: kv_heads, head_dim, bf16 };
        let (device, device_reason) = choice.place(&network, &weights, &dtypes, shape, options, cancel)?;
        let bf16 = device.as_ref().map_or(bf16, |device| device.bf16);
        if device.is_some() {
            weights.release();
        } else if bf16 {
            check_bf16(&weights, &dtypes)?;
        }
        let (main, shape) = (network.main(), Shape { bf16, ..shape });
        let info = Info {
            architecture: architecture.name,
            parameters: loader.parameters(),
            weight_bytes: weights.bytes(),
            step_weight_bytes: main.matrix_bytes(&weights),
            cache_bytes_per_token: shape.block_bytes() / BLOCK,
            dtypes,
            parts: weights.shares().to_vec(),
            digest: loader.digest(),
            compute_dtype: if bf16 { "bfloat16" } else { "float32" },
            device: device.as_ref().map_or_else(|| "cpu".to_owned(), |device| device.name.clone()),
            device_reason,
            isa: device
                .as_ref()
                .map_or_else(|| runtime.kernels.name.to_owned(), |device| device.architecture.clone()),
            num_threads: threads,
            unknown_tensors: loader.unknown(),
            attention,
        };
        let pool_of = |shape| device.as_ref().map_or_else(|| Pool::new(shape), |device| device.pool(shape));
        let (pool, source_pool) = (pool_of(shape), pool_of(Shape { layers: 1, ..shape }));
        // The weights are in memory by now: what is left beside them is for the cache and everything else.
        let left = || device.as_ref().map_or_else(headroom::available, |device| Some(device.free));
        let half = || left().map_or(usize::MAX, |left| left / 2);
        let cache_bytes = cache_bytes.unwrap_or_else(half);
        let has_encoder = !matches!(network, Network::Decoder(_));
        let prefix_cache_bytes = options.prefix_cache_bytes(cache_bytes, has_encoder)?;
        let limits = Limits { cache_bytes, max_rows, prefix_cache_bytes };
        let profile = Arc::new(Profile::of(&network));
        Ok(Self { network, weights, runtime, bounds, pool, source_pool, limits, info, profile, device })
    }

    /// What is known of the model.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Where the time of its calls goes, while somebody reads it; it outlives the model where it is held.
    pub fn profile(&self) -> &Arc<Profile> {
        &self.profile
    }

    /// Memory that the model's caches and the process's steps hold now.
    pub fn memory(&self) -> MemoryUse {
        let pools = [&self.pool, &self.source_pool];
        MemoryUse {
            cache_bytes_live: pools.iter().map(|pool| pool.live_bytes()).sum(),
            cache_bytes_held: pools.iter().map(|pool| pool.held_bytes()).sum(),
            activation_bytes: execute::activation_bytes()
                + self.device.as_ref().map_or(0, OnDevice::activation_bytes),
        }
    }

    /// Operations of reading `tokens` tokens and giving the logits of the last `wanted` of them. In a model with an
    /// encoder the tokens are a source, and the logits those of the decoder's first `wanted` tokens over it, where it has one.
    pub fn flops(&self, tokens: usize, wanted: usize) -> Flops {
        let of = |program: &Program, work: Work| program.flops(&self.weights, &self.runtime, work);
        match &self.network {
            Network::Encoder(encoder) => {
                of(encoder, Work { position: 0, rows: tokens, wanted: 0, source: 0 })
            }
            Network::Decoder(decoder) => of(decoder, Work { position: 0, rows: tokens, wanted, source: 0 }),
            Network::EncoderDecoder { encoder, decoder } => {
                let source = Work { position: 0, rows: tokens, wanted: 0, source: 0 };
                let first = Work { position: 0, rows: wanted, wanted, source: tokens };
                of(encoder, source) + of(decoder, first)
            }
        }
    }

    /// Width of an embedding row, `D`.
    pub fn width(&self) -> usize {
        self.bounds.width
    }

    /// Whether an encoder reads sources.
    pub fn has_encoder(&self) -> bool {
        matches!(self.network, Network::EncoderDecoder { .. } | Network::Encoder(_))
    }

    /// Whether there are sequences, which a decoder reads and writes.
    pub fn has_decoder(&self) -> bool {
        self.network.decoder().is_some()
    }

    /// Token embeddings alone, `T × D` row-major.
    ///
    /// # Errors
    /// [`Error::Option`] for an id past the vocabulary; those of a device.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>> {
        self.check_ids("token id", ids)?;
        let (main, width) = (self.network.main(), self.width());
        let mut out = vec![0.0; ids.len() * width];
        if let Some(backend) = self.device.as_ref().and_then(OnDevice::main) {
            backend.embed(main, ids, &mut out)?;
            return Ok(out);
        }
        let embedding = embedding(main, &self.weights)?;
        for (&id, row) in std::iter::zip(ids, out.chunks_exact_mut(width)) {
            embedding.gather(id as usize, row);
        }
        Ok(out)
    }

    /// Encodes sources of any lengths, each as if it were alone, to the bit, and keeps their hidden states.
    ///
    /// # Errors
    /// `Option` for a model without an encoder or a decoder, a source without ids or an id past the vocabulary; `Cancelled`,
    /// `OutOfMemory`, `Panicked`.
    pub fn encode(&self, sources: &[&[u32]], cancel: &Cancel<'_>) -> Result<Vec<Arc<EncoderOutput>>> {
        for ids in sources {
            self.check_source(ids)?;
        }
        let sources: Vec<_> = sources.iter().map(|&ids| (ids, Account::Open)).collect();
        self.encoder()?.encode(&sources, true, cancel, None)
    }

    /// Hidden states of sources, read in one step, by an encoder alone: `S × D` row-major, or pooled. Each is as if it were
    /// alone, to the bit, and nothing else is kept of them.
    ///
    /// # Errors
    /// `Option` for a model that is not an encoder alone, and for sources that [`Model::check_sources`] refuses; `Cancelled`,
    /// `OutOfMemory`, `Panicked`.
    pub fn hidden_states(
        &self,
        sources: &[&[u32]],
        pooling: Pooling,
        cancel: &Cancel<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        let encoder = self.encoder()?;
        self.check_sources(sources)?;
        encoder.hidden_states(sources, pooling, cancel)
    }

    /// Checks that each of the sources can be read: it has ids, all in the vocabulary, and its keys and values fit into
    /// `cache_bytes` by themselves.
    ///
    /// # Errors
    /// `Option` for one that cannot.
    pub fn check_sources(&self, sources: &[&[u32]]) -> Result<()> {
        let most = self.limits.cache_bytes / self.source_pool.shape().block_bytes() * BLOCK;
        for ids in sources {
            self.check_source(ids)?;
            if ids.len() > most {
                let budget = self.limits.cache_bytes;
                let expected = format!("at most {most} tokens (all that fits into cache_bytes={budget})");
                return Err(option("source", &expected, &ids.len().to_string()));
            }
        }
        Ok(())
    }

    /// How many of the first sources are read in one step: as many as the limits allow and have at most `tokens` tokens together,
    /// and at least one.
    pub fn side_by_side(&self, sources: &[&[u32]], tokens: usize) -> usize {
        let (mut rows, mut bytes) = (0, 0);
        let fits = sources.iter().take(self.limits.max_rows).take_while(|ids| {
            rows += ids.len();
            bytes += self.source_bytes(ids);
            rows <= tokens && bytes <= self.limits.cache_bytes
        });
        fits.count().max(1)
    }

    /// Bytes of a source's keys and values while it is read.
    fn source_bytes(&self, ids: &[u32]) -> usize {
        ids.len().div_ceil(BLOCK) * self.source_pool.shape().block_bytes()
    }

    /// An empty sequence that looks at `source` and is advanced by hand: no request answers for its blocks, nor for those of a
    /// source that its first forward encodes.
    ///
    /// # Errors
    /// As for [`Model::start_reserved`].
    pub fn start_from(&self, source: Source) -> Result<DecoderSequence> {
        self.start_on(Account::Open, source)
    }

    /// An empty sequence of a request that looks at `source`. The request reserves its blocks, and those of a source that its
    /// first forward encodes.
    ///
    /// # Errors
    /// `Option` where the model has an encoder and there is no source, or the other way round, for a source that cannot be
    /// encoded, and for the encoder's output of another model.
    pub fn start_reserved(&self, source: Source) -> Result<DecoderSequence> {
        self.start_on(Account::Reserved, source)
    }

    fn start_on(&self, account: Account, source: Source) -> Result<DecoderSequence> {
        self.network.decoder().ok_or_else(no_decoder)?;
        match &source {
            Source::None if !self.has_encoder() => {}
            Source::None => return Err(no_source()),
            Source::Pending(source) => self.encoder().and_then(|_| self.check_source(&source.ids))?,
            Source::Encoded(output) => {
                self.encoder()?;
                if !output.keys_values.is_of(&self.pool) {
                    let expected = "one that this very model encoded";
                    return Err(option("memory", expected, "a memory of another model"));
                }
            }
        }
        let read = self.bounds.border.map(Read::new);
        Ok(DecoderSequence { cache: Cache::on(&self.pool, account), source, read })
    }

    /// Every activation of one forward over `ids`, by name, in the order in which they are made; of the encoder over
    /// `source` before them, in a model that has one.
    ///
    /// # Errors
    /// As for [`Decoder::forward`] and [`Model::encode`].
    pub fn trace(&self, source: Option<&[u32]>, ids: &[u32], cancel: &Cancel<'_>) -> Result<Vec<Activation>> {
        if let Some(device) = &self.device {
            let expected = "\"cpu\" (activations are traced where the CPU computes them)";
            return Err(option("device", expected, &device.name));
        }
        let trace = Trace::default();
        let source = match source {
            None => Source::None,
            Some(source) => {
                self.check_source(source)?;
                let mut outputs =
                    self.encoder()?.encode(&[(source, Account::Open)], false, cancel, Some(&trace))?;
                outputs.pop().map_or(Source::None, Source::Encoded)
            }
        };
        let mut sequence = self.start_from(source)?;
        let segment = Segment { sequence: &mut sequence, input: Input::Tokens(ids), logits: Wanted::All };
        self.step(&mut [segment], Left::Logits(&mut Vec::new()), cancel, Some(&trace))?;
        Ok(trace.into_entries())
    }

    fn step(
        &self,
        batch: &mut [Segment<'_, DecoderSequence>],
        left: Left<'_>,
        cancel: &Cancel<'_>,
        trace: Option<&Trace>,
    ) -> Result<()> {
        let decoder = self.network.decoder().ok_or_else(no_decoder)?;
        if self.has_encoder() {
            if batch.iter().any(|segment| matches!(segment.sequence.source, Source::None)) {
                return Err(no_source());
            }
            if batch.iter().any(|segment| matches!(segment.sequence.source, Source::Pending(_))) {
                let mut sequences: Vec<_> = batch.iter_mut().map(|segment| &mut *segment.sequence).collect();
                Decoder::encode(self, &mut sequences, cancel)?;
            }
        }
        step::run(self.decoder(decoder), self.bounds, batch, left, cancel, trace)
    }

    fn decoder<'a>(&'a self, program: &'a Program) -> Executor<'a> {
        let backend = self.device.as_ref().and_then(|device| device.decoder.as_deref());
        self.executor(program, self.pool.shape(), self.profile.of_decoder(), backend)
    }

    fn executor<'a>(
        &'a self,
        program: &'a Program,
        own: &'a Shape,
        profile: Option<&'a execute::Profile>,
        backend: Option<&'a dyn Backend>,
    ) -> Executor<'a> {
        let (weights, runtime, memory) = (&self.weights, &self.runtime, self.pool.shape());
        Executor { program, weights, runtime, own, memory, profile, backend }
    }

    fn encoder(&self) -> Result<Encoder<'_>> {
        let (encoder, kept) = match &self.network {
            Network::EncoderDecoder { encoder, .. } => (encoder, Some(&self.pool)),
            Network::Encoder(encoder) => (encoder, None),
            Network::Decoder(_) => {
                let hint = "nothing (this model has no encoder; give it a prompt)";
                return Err(option("source", hint, "a source"));
            }
        };
        let own = &self.source_pool;
        let backend = self.device.as_ref().and_then(|device| device.encoder.as_deref());
        let executor = self.executor(encoder, own.shape(), self.profile.of_encoder(), backend);
        Ok(Encoder { executor, own, kept })
    }

    fn check_source(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(option("source", "at least one token", "none"));
        }
        self.check_ids("source", ids)?;
        headroom::check("source", "tokens", ids.len(), self.encoder()?.token_bytes())
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

/// The token embeddings of a program.
fn embedding<'a>(program: &Program, weights: &'a Weights) -> Result<&'a Packed> {
    program.embedding().map(|slot| weights.table(slot)).ok_or_else(|| Error::Program {
        phase: "the first".to_owned(),
        expected: "token embeddings".to_owned(),
        got: "none".to_owned(),
    })
}

/// Sees to it that there are products in bfloat16, and no float products in anything else. Those of integers are as they are: what
/// is rounded to eight bits gains nothing from being rounded to bfloat16 before.
fn check_bf16(weights: &Weights, dtypes: &[&str]) -> Result<()> {
    let mut floats = weights.types().filter(|of| of.element().is_some());
    let expected = if floats.any(|of| of.name() != BFLOAT16.name()) {
        "\"float32\", or bfloat16 weights: load with dtype=\"bfloat16\""
    } else if !weights.multiplies(BFLOAT16.name()) {
        "\"float32\" (products of int8 and int4 weights are formed of integers), or bfloat16 for a part that has products, as in \
         dtype={\"default\": \"bfloat16\", \"lm_head\": \"int8\"}"
    } else {
        return Ok(());
    };
    Err(option("compute_dtype", expected, &format!("bfloat16 with weights in {}", dtypes.join(", "))))
}

/// The error of a sequence of an encoder-decoder that looks at nothing.
fn no_source() -> Error {
    option("source", "a source or a memory (this model has an encoder)", "none")
}
