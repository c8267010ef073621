//! The Python module `fastdecode._core`: conversions, released locks and exceptions, no arithmetic.
//!
//! Every call into the engine runs detached from the interpreter, inside of one function that turns errors and panics
//! into exceptions of `fastdecode.errors`; those that may take long end when Python hears a signal. Nothing here knows text; the Python side does.

mod adapter;
mod cuda;
mod decoding;
mod exceptions;
mod interrupt;
mod load_options;
mod memory;
mod prefix;
mod profile;
mod score;
mod state;
mod turn;

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict, PyList};

use crate::checkpoint::{Checkpoint, Dtype, MemoryTensor};
use crate::engine::{CHUNK, EarlyStopping, Engine, Limit, Options, Seed};
use crate::kernels::{self, Kernels};
use crate::models::{self, Decoder, LoadOptions, Pooling};
use crate::{forks, limits, team};
use adapter::{AdapterArgument, AdapterFile, adaptable_modules};
use cuda::{cuda_cubin, cuda_devices};
use decoding::{Generation, Prompts};
use exceptions::detached;
use interrupt::{interruptible, interruptible_hook};
use load_options::{DeviceArgument, DtypeArgument, load_options, part_of};
use memory::{Memory, SourceArgument};
use prefix::Prefix;
use profile::Profile;
use state::State;

/// Floats as bytes that numpy can view without another copy.
fn bytes<'py>(py: Python<'py>, values: &[f32]) -> PyResult<Bound<'py, PyByteArray>> {
    PyByteArray::new_with(py, size_of_val(values), |out| {
        for (out, value) in out.chunks_exact_mut(size_of::<f32>()).zip(values) {
            out.copy_from_slice(&value.to_ne_bytes());
        }
        Ok(())
    })
}

/// A shown activation: its name, its shape, its values as f32.
type Shown<'py> = (String, Vec<usize>, Bound<'py, PyByteArray>);

/// Weights and what is known about them, immutable, and the engine of its calls; shared by every state and generation.
#[pyclass(frozen, module = "fastdecode._core")]
struct Model(Arc<Engine<models::Model>>);

impl Model {
    fn of(model: models::Model) -> Self {
        Self(Arc::new(Engine::new(Arc::new(model))))
    }
}

#[pymethods]
impl Model {
    #[staticmethod]
    #[pyo3(signature = (folder, dtype, compute_dtype, num_threads, cache_bytes, max_rows, prefix_cache_bytes, device, part="folder", adapters=Vec::new()))]
    #[expect(clippy::too_many_arguments, reason = "one argument per option, as the stub lists them")]
    fn load(
        py: Python<'_>,
        folder: PathBuf,
        dtype: DtypeArgument,
        compute_dtype: Option<&str>,
        num_threads: Option<usize>,
        cache_bytes: Option<u64>,
        max_rows: Option<usize>,
        prefix_cache_bytes: u64,
        device: DeviceArgument,
        part: &str,
        adapters: Vec<AdapterArgument<'_>>,
    ) -> PyResult<Self> {
        let adapters = adapter::adapters(adapters);
        interruptible(py, |cancel| {
            let options = load_options(
                dtype,
                compute_dtype,
                num_threads,
                cache_bytes,
                max_rows,
                prefix_cache_bytes,
                device,
            );
            let options = LoadOptions { part: part_of(part), adapters, ..options };
            Ok(Self::of(models::Model::load(&folder, &options, cancel)?))
        })
    }

    #[staticmethod]
    #[pyo3(signature = (config, tensors, dtype, compute_dtype, num_threads, cache_bytes, max_rows, prefix_cache_bytes, device, part = "folder"))]
    #[expect(clippy::too_many_arguments, reason = "one argument per option, as the stub lists them")]
    fn from_tensors(
        py: Python<'_>,
        config: &str,
        tensors: Vec<(String, String, Vec<usize>, PyBuffer<u8>)>,
        dtype: DtypeArgument,
        compute_dtype: Option<&str>,
        num_threads: Option<usize>,
        cache_bytes: Option<u64>,
        max_rows: Option<usize>,
        prefix_cache_bytes: u64,
        device: DeviceArgument,
        part: &str,
    ) -> PyResult<Self> {
        const ELEMENTS: [Dtype; 10] = [
            Dtype::F32,
            Dtype::F16,
            Dtype::BF16,
            Dtype::F64,
            Dtype::I64,
            Dtype::I32,
            Dtype::I16,
            Dtype::I8,
            Dtype::U8,
            Dtype::BOOL,
        ];
        let mut memory = Vec::with_capacity(tensors.len());
        for (name, element, shape, buffer) in tensors {
            let dtype = ELEMENTS.into_iter().find(|dtype| dtype.name() == element).unwrap_or(Dtype::F64);
            memory.push(MemoryTensor { name, dtype, shape, bytes: Arc::new(buffer.to_vec(py)?) });
        }
        interruptible(py, |cancel| {
            let options = load_options(
                dtype,
                compute_dtype,
                num_threads,
                cache_bytes,
                max_rows,
                prefix_cache_bytes,
                device,
            );
            let options = LoadOptions { part: part_of(part), ..options };
            let checkpoint = Checkpoint::from_memory(memory)?;
            Ok(Self::of(models::Model::from_checkpoint(config, &checkpoint, &options, cancel)?))
        })
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.model().vocab_size()
    }

    #[getter]
    fn width(&self) -> usize {
        self.0.model().width()
    }

    #[getter]
    fn context_limit(&self) -> Option<usize> {
        self.0.model().context_length().limit
    }

    /// A number that two loads of one folder have in common when all of their weights are the same.
    #[getter]
    fn weights_digest(&self) -> u64 {
        self.0.model().info().digest
    }

    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let info = self.0.model().info();
        let values = PyDict::new(py);
        values.set_item("architecture", info.architecture)?;
        values.set_item("parameters", info.parameters)?;
        values.set_item("weight_bytes", info.weight_bytes)?;
        values.set_item("step_weight_bytes", info.step_weight_bytes)?;
        values.set_item("cache_bytes_per_token", info.cache_bytes_per_token)?;
        values.set_item("dtype", info.dtypes.join(", "))?;
        let parts = PyList::empty(py);
        for share in &info.parts {
            let part = PyDict::new(py);
            part.set_item("name", &share.name)?;
            part.set_item("dtype", share.dtype)?;
            part.set_item("group", (share.group > 0).then_some(share.group))?;
            part.set_item("matrices", share.matrices)?;
            part.set_item("bytes", share.bytes)?;
            part.set_item("shared_with", share.shared_with.as_deref())?;
            parts.append(part)?;
        }
        values.set_item("parts", parts)?;
        values.set_item("compute_dtype", info.compute_dtype)?;
        values.set_item("device", &info.device)?;
        values.set_item("device_reason", info.device_reason.as_deref())?;
        values.set_item("isa", &info.isa)?;
        values.set_item("num_threads", info.num_threads)?;
        let limits = self.0.model().limits();
        let cache_bytes = (limits.cache_bytes != usize::MAX).then_some(limits.cache_bytes);
        values.set_item("cache_bytes", cache_bytes)?;
        values.set_item("max_rows", limits.max_rows)?;
        values.set_item("prefix_cache_bytes", limits.prefix_cache_bytes)?;
        let context = self.0.model().context_length();
        values.set_item("context_length", context.limit)?;
        values.set_item("max_position_embeddings", context.usual)?;
        values.set_item("vocab_size", self.0.model().vocab_size())?;
        let attention = info.attention;
        values.set_item("num_hidden_layers", attention.layers)?;
        values.set_item("num_attention_heads", attention.heads)?;
        values.set_item("num_key_value_heads", attention.kv_heads)?;
        values.set_item("head_dim", attention.head_dim)?;
        values.set_item("sliding_window", attention.window)?;
        values.set_item("sliding_window_layers", attention.windowed)?;
        values.set_item("rope_type", attention.rope)?;
        values.set_item("unknown_tensors", info.unknown_tensors.clone())?;
        let memory = detached(py, || Ok(self.0.model().memory()))?;
        values.set_item("cache_bytes_live", memory.cache_bytes_live)?;
        values.set_item("cache_bytes_held", memory.cache_bytes_held)?;
        values.set_item("activation_bytes", memory.activation_bytes)?;
        let (prefixes, bytes) = detached(py, || Ok(self.0.prefixes_kept()))?;
        values.set_item("prefix_cache_entries", prefixes)?;
        values.set_item("prefix_cache_bytes_live", bytes)?;
        Ok(values)
    }

    /// Floating-point operations of reading so many tokens, and giving the logits of the last `wanted` of them.
    fn flops(&self, tokens: usize, wanted: usize) -> f64 {
        self.0.model().flops(tokens, wanted).all() as f64
    }

    /// The same in f32, by the dot of bf16, and by that of integers.
    fn flops_by_numbers(&self, tokens: usize, wanted: usize) -> (u64, u64, u64) {
        let models::Flops { f32, bf16, int8 } = self.0.model().flops(tokens, wanted);
        (f32, bf16, int8)
    }

    /// A reader of where the time of calls goes, not yet started.
    fn profile(&self) -> Profile {
        Profile::new(self.0.model().profile())
    }

    #[getter]
    fn has_encoder(&self) -> bool {
        self.0.model().has_encoder()
    }

    #[getter]
    fn has_decoder(&self) -> bool {
        self.0.model().has_decoder()
    }

    /// An empty sequence that is meant to hold `length` tokens, over a source in a model with an encoder.
    #[pyo3(signature = (length, source = None))]
    fn start(&self, py: Python<'_>, length: usize, source: Option<SourceArgument>) -> PyResult<State> {
        detached(py, || {
            self.0.model().context_length().check(length)?;
            State::new(&self.0, source.map_or(models::Source::None, SourceArgument::into_source))
        })
    }

    /// Reads ids, for calls to begin behind.
    fn prefix(&self, py: Python<'_>, ids: Vec<u32>) -> PyResult<Prefix> {
        Prefix::read(py, &self.0, &ids)
    }

    /// An empty list of prompts for a call, which begin behind a prefix as far as they go along with it.
    #[pyo3(signature = (prefix = None))]
    fn prompts(&self, py: Python<'_>, prefix: Option<Py<Prefix>>) -> PyResult<Prompts> {
        detached(py, || Ok(Prompts::of(&self.0, prefix.map(|prefix| prefix.get().of(&self.0)).transpose()?)))
    }

    /// Leads a step for all calls, or waits for the end of the one that another thread leads.
    fn step(&self, py: Python<'_>) -> PyResult<()> {
        interruptible_hook(py, |hook| self.0.step(hook))
    }

    /// Encodes sources, some at a time.
    fn encode(&self, py: Python<'_>, sources: Vec<Vec<u32>>) -> PyResult<Vec<Memory>> {
        interruptible(py, |cancel| {
            let mut memories = Vec::with_capacity(sources.len());
            let mut rest = sources.as_slice();
            while !rest.is_empty() {
                let (group, others) = rest.split_at(memory::group(rest));
                rest = others;
                let ids: Vec<&[u32]> = group.iter().map(Vec::as_slice).collect();
                let found = self.0.model().encode(&ids, cancel)?;
                memories.extend(found.into_iter().map(|memory| Memory::new(memory, self.0.model().width())));
            }
            Ok(memories)
        })
    }

    /// Log-probabilities of given tokens, and whether they were the best, item by item.
    #[pyo3(signature = (items, prefix = None))]
    fn score(
        &self,
        py: Python<'_>,
        items: Vec<score::ItemArgument>,
        prefix: Option<&Prefix>,
    ) -> PyResult<Vec<score::Found>> {
        score::score(py, &self.0, items, prefix)
    }

    /// Hidden states of sources by an encoder alone, or their means, some sources at a time. What has been read is converted
    /// before the next ones are read, so that nothing is held twice but what one step makes.
    fn hidden_states<'py>(
        &self,
        py: Python<'py>,
        sources: Vec<Vec<u32>>,
        mean: bool,
    ) -> PyResult<Vec<Bound<'py, PyByteArray>>> {
        let (model, pooling) = (self.0.model(), if mean { Pooling::Mean } else { Pooling::Nothing });
        let sources: Vec<&[u32]> = sources.iter().map(Vec::as_slice).collect();
        detached(py, || model.check_sources(&sources))?;
        let mut states = Vec::with_capacity(sources.len());
        while let Some(rest) = sources.get(states.len()..).filter(|rest| !rest.is_empty()) {
            // A step may be over before its hook is ever asked.
            py.check_signals()?;
            let group = &rest[..model.side_by_side(rest, CHUNK)];
            let found = interruptible(py, |cancel| model.hidden_states(group, pooling, cancel))?;
            for values in found {
                states.push(bytes(py, &values)?);
            }
        }
        Ok(states)
    }

    fn embed<'py>(&self, py: Python<'py>, ids: Vec<u32>) -> PyResult<Bound<'py, PyByteArray>> {
        bytes(py, &detached(py, || self.0.model().embed(&ids))?)
    }

    #[pyo3(signature = (ids, source = None))]
    fn trace<'py>(
        &self,
        py: Python<'py>,
        ids: Vec<u32>,
        source: Option<Vec<u32>>,
    ) -> PyResult<Vec<Shown<'py>>> {
        let activations = interruptible(py, |cancel| self.0.model().trace(source.as_deref(), &ids, cancel))?;
        activations.into_iter().map(|a| Ok((a.name, a.shape.to_vec(), bytes(py, &a.values)?))).collect()
    }

    #[pyo3(signature = (prompts, *, limit, min_new_tokens, min_length, do_sample, temperature,
        top_k, top_p, min_p, seed, num_return_sequences, num_beams, length_penalty, early_stopping, repetition_penalty,
        encoder_repetition_penalty, no_repeat_ngram_size, encoder_no_repeat_ngram_size, eos_token_id, stop_token_ids,
        logprobs, keep=false, watched=false))]
    #[expect(clippy::too_many_arguments, reason = "one keyword per option, as the stub lists them")]
    fn generate(
        &self,
        py: Python<'_>,
        prompts: Bound<'_, Prompts>,
        limit: (&str, usize),
        min_new_tokens: usize,
        min_length: usize,
        do_sample: bool,
        temperature: f64,
        top_k: usize,
        top_p: f64,
        min_p: Option<f64>,
        seed: Option<SeedArgument>,
        num_return_sequences: usize,
        num_beams: usize,
        length_penalty: f64,
        early_stopping: EarlyStoppingArgument,
        repetition_penalty: f64,
        encoder_repetition_penalty: f64,
        no_repeat_ngram_size: usize,
        encoder_no_repeat_ngram_size: usize,
        eos_token_id: Vec<u32>,
        stop_token_ids: Vec<u32>,
        logprobs: Option<usize>,
        keep: bool,
        watched: bool,
    ) -> PyResult<Generation> {
        let options = Options {
            limit: match limit.0 {
                "new_tokens" => Limit::NewTokens(limit.1),
                "length" => Limit::Length(limit.1),
                "up_to_new_tokens" => Limit::UpToNewTokens(limit.1),
                _ => Limit::Default(limit.1),
            },
            min_new_tokens,
            min_length,
            do_sample,
            temperature,
            top_k: Some(top_k),
            top_p,
            min_p,
            repetition_penalty,
            encoder_repetition_penalty,
            no_repeat_ngram_size,
            encoder_no_repeat_ngram_size,
            eos_token_ids: eos_token_id,
            stop_token_ids,
            num_return_sequences,
            num_beams,
            length_penalty,
            early_stopping: match early_stopping {
                EarlyStoppingArgument::Flag(false) => EarlyStopping::Heuristic,
                EarlyStoppingArgument::Flag(true) => EarlyStopping::Full,
                EarlyStoppingArgument::Never(_) => EarlyStopping::Never,
            },
            logprobs,
            seed: match seed {
                None => Seed::Entropy,
                Some(SeedArgument::One(seed)) => Seed::One(seed),
                Some(SeedArgument::PerPrompt(seeds)) => Seed::PerPrompt(seeds),
            },
            keep,
            watched,
        };
        let prompts = prompts.get();
        detached(py, || Generation::new(&self.0, prompts.take(), options))
    }
}

#[derive(FromPyObject)]
enum SeedArgument {
    One(u64),
    PerPrompt(Vec<u64>),
}

#[derive(FromPyObject)]
enum EarlyStoppingArgument {
    Flag(bool),
    Never(#[expect(dead_code, reason = "the only word there is")] String),
}

/// What this CPU offers and which kernels were chosen.
#[pyfunction]
fn cpu_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let isa = detached(py, Kernels::chosen)?.name;
    let cpu = kernels::identify();
    let values = PyDict::new(py);
    values.set_item("vendor", cpu.vendor)?;
    values.set_item("name", cpu.name)?;
    values.set_item("family", format!("{:?}", cpu.family).to_lowercase())?;
    values.set_item("isa", isa)?;
    values.set_item("available", Kernels::available().iter().map(|table| table.name).collect::<Vec<_>>())?;
    values.set_item("num_threads", team::default_threads())?;
    Ok(values)
}

/// A number that a forked child does not share with its parent.
#[pyfunction]
fn process_number() -> usize {
    forks::generation()
}

/// Measures what the machine can do at most, with `num_threads` threads on a buffer of `size` bytes.
#[pyfunction]
#[pyo3(signature = (size, num_threads=None))]
fn measure_limits(py: Python<'_>, size: usize, num_threads: Option<usize>) -> PyResult<Bound<'_, PyDict>> {
    let threads = num_threads.unwrap_or_else(team::default_threads);
    let found = detached(py, || limits::measure(size, threads))?;
    let values = PyDict::new(py);
    values.set_item("read_bytes_per_second", found.read)?;
    values.set_item("f32_flops_per_second", found.f32.peak)?;
    values.set_item("f32_sustained_flops_per_second", found.f32.sustained)?;
    values.set_item("bf16_dot_flops_per_second", found.bf16.map(|dot| dot.peak))?;
    values.set_item("bf16_dot_sustained_flops_per_second", found.bf16.map(|dot| dot.sustained))?;
    values.set_item("int8_ops_per_second", found.int8.peak)?;
    values.set_item("int8_sustained_ops_per_second", found.int8.sustained)?;
    Ok(values)
}

// Free-threaded builds are not supported yet: they would need every lock here looked at again.
#[pymodule(gil_used = true)]
mod _core {
    #[pymodule_export]
    use super::{
        AdapterFile, Generation, Memory, Model, Prefix, Profile, Prompts, State, adaptable_modules, cpu_info,
        cuda_cubin, cuda_devices, measure_limits, process_number,
    };

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name that Python expects")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
