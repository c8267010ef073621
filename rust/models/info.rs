//! What is known of a loaded model.

use super::rope::Rope;
use crate::layers::heads::Heads;
use crate::load::Share;
use crate::program::Program;

/// What is known of a loaded model.
#[derive(Debug, Clone)]
pub struct Info {
    /// `model_type` of the config.
    pub architecture: &'static str,
    /// Elements of all tensors that the model uses.
    pub parameters: usize,
    /// Bytes of the packed matrices.
    pub weight_bytes: usize,
    /// Bytes of those that a step with one new token reads, or a source where there is an encoder alone.
    pub step_weight_bytes: usize,
    /// Bytes of the cache for one token; in an encoder alone those of a source's token while it is read.
    pub cache_bytes_per_token: usize,
    /// Storage of the matrices, every kind that occurs.
    pub dtypes: Vec<&'static str>,
    /// Types and bytes of the matrices, those that differ only by their layer together.
    pub parts: Vec<Share>,
    /// Where steps run: `cpu`, or `cuda:N`.
    pub device: String,
    /// Why that is the CPU, where a GPU would have been taken.
    pub device_reason: Option<String>,
    /// What two loads of one checkpoint have in common when all of their weights are the same.
    pub digest: u64,
    /// How products are formed.
    pub compute_dtype: &'static str,
    /// Name of the kernel table.
    pub isa: String,
    /// Threads of a step.
    pub num_threads: usize,
    /// Tensors of the checkpoint that the model does not know.
    pub unknown_tensors: Vec<String>,
    /// What attends, of the decoder where there is one.
    pub attention: Attention,
}

/// Sizes of a model's attention to its own tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Layers.
    pub layers: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Keys that a row sees at most, in the layers that have a window.
    pub window: Option<usize>,
    /// How many layers have it.
    pub windowed: usize,
    /// Kind of the rotary positions, where there are.
    pub rope: Option<&'static str>,
}

impl Attention {
    /// That of a forward.
    pub(super) fn of(program: &Program, rope: Option<&Rope>) -> Self {
        let (windows, heads) = (program.windows(), program.heads());
        let size = |of: fn(Heads) -> usize| heads.map_or(0, of);
        Self {
            layers: windows.len(),
            heads: size(|heads| heads.heads),
            kv_heads: size(|heads| heads.kv_heads),
            head_dim: size(|heads| heads.head_dim),
            window: windows.iter().flatten().next().copied(),
            windowed: windows.iter().flatten().count(),
            rope: rope.map(|rope| rope.kind),
        }
    }
}

/// Memory that is in use now, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// Blocks of the model's caches that sequences and sources hold.
    pub cache_bytes_live: usize,
    /// Those and free blocks that the model keeps for reuse.
    pub cache_bytes_held: usize,
    /// Activations of steps, of all models of this process.
    pub activation_bytes: usize,
}
