//! A GPU with the kernels of one type of weights, and the stream on which a model's steps run.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::driver::store::{self, Folders};
use super::driver::{Device, Function, Memory, Module, Stream};
use crate::error::Result;
use crate::kv::{Held, Remote};
use crate::team::Queue;

/// What precedes the text of every kernel file.
const COMMON: &str = include_str!("kernels/common.cuh");
/// Names and texts of the kernel files.
const FILES: [(&str, &str); 5] = [
    ("rows.cu", include_str!("kernels/rows.cu")),
    ("few.cu", include_str!("kernels/few.cu")),
    ("many.cu", include_str!("kernels/many.cu")),
    ("attend.cu", include_str!("kernels/attend.cu")),
    ("choose.cu", include_str!("kernels/choose.cu")),
];

/// Threads of a block, unless a kernel says otherwise.
pub(super) const BLOCK: u32 = 128;
/// Rows up to which products read their rows with every block.
pub(super) const FEW: usize = 8;
/// Widest head that attention has room for.
pub(super) const MOST_HEAD: usize = 256;
/// Bytes of shared memory that a product of [`FEW`] rows takes, at most.
const FEW_SHARED: u32 = 64 << 10;

/// Bytes of shared memory that products of more rows take in bfloat16: so many tiles of 32 inputs, for 64 rows and 64 or 16 outputs, as
/// `many.cu` has them.
pub(super) const MANY_SHARED: u32 = 4 * (64 * 40 * 4 + 64 * 40 * 2);
pub(super) const NARROW_SHARED: u32 = 6 * (64 * 40 * 4 + 16 * 40 * 2);

/// A GPU that runs programs of one compute type.
#[derive(Debug)]
pub struct Gpu {
    pub(super) device: Arc<Device>,
    pub(super) stream: Stream,
    pub(super) kernels: Kernels,
    /// Whether weights and cache are bfloat16.
    pub(super) bf16: bool,
    /// Whether steps that only decode are recorded as graphs.
    pub(super) graphs: bool,
    /// Whether a kernel may begin before the one in front of it has ended.
    pub(super) early: bool,
    /// Whose step is next; who waits there can be cancelled.
    pub(super) queue: Queue,
    /// Held by whoever gives the stream work: what one thread records, another must not add to.
    turn: Mutex<()>,
}

/// The kernels.
#[derive(Debug)]
pub(super) struct Kernels {
    pub(super) embed: Function,
    pub(super) norm: Function,
    pub(super) gather: Function,
    /// Of one, two, four and eight rows.
    pub(super) few: [Function; 4],
    pub(super) many: Function,
    /// As `many`, with tiles of few outputs; only bfloat16 has one.
    pub(super) narrow: Option<Function>,
    pub(super) append: Function,
    pub(super) attend_rows: Function,
    pub(super) attend_tile: Function,
    pub(super) best: Function,
    pub(super) advance: Function,
}

/// Floats of shared memory that attention of a tile takes for heads of this width.
pub(super) fn tile_floats(d: usize) -> usize {
    let line = d.next_multiple_of(4);
    16 * line + 16 * (line + 4) + 16 * line + 16 * 16
}

impl Gpu {
    /// Opens the GPU of this number with the kernels for bfloat16 or float32.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda) where there is no driver, no such GPU, or there are no kernels for it.
    pub fn open(ordinal: usize, bf16: bool, folders: &Folders) -> Result<Arc<Self>> {
        let device = Device::open(ordinal)?;
        let module = |file| -> Result<Module> {
            let (name, text) = FILES[file];
            let sources = [("common.cuh", COMMON), (name, text)];
            let cubin = store::cubin(device.capability(), &sources, folders)?;
            if let Some(module) = device.module(&cubin)? {
                return Ok(module);
            }
            // What serves others of its generation does not serve this GPU.
            let exact = store::exact(device.capability(), &sources, folders)?;
            device.module(&exact)?.ok_or_else(|| device.no_binary())
        };
        let kind = if bf16 { "bf16" } else { "f32" };
        let (rows, few, many, attend, choose) = (module(0)?, module(1)?, module(2)?, module(3)?, module(4)?);
        let of = |module: &Module, name: &str| module.function(&format!("fd_{name}_{kind}"));
        let few_of = |rows: usize| few.function(&format!("fd_few_{kind}_{rows}"));
        let kernels = Kernels {
            embed: of(&rows, "embed")?,
            norm: rows.function("fd_norm")?,
            gather: rows.function("fd_gather")?,
            few: [few_of(1)?, few_of(2)?, few_of(4)?, few_of(8)?],
            narrow: if bf16 { Some(of(&many, "narrow")?) } else { None },
            many: of(&many, "many")?,
            append: of(&attend, "append")?,
            attend_rows: of(&attend, "attend_rows")?,
            attend_tile: of(&attend, "attend_tile")?,
            best: choose.function("fd_best")?,
            advance: choose.function("fd_advance")?,
        };
        kernels.few[3].allow_shared(FEW_SHARED)?;
        if let Some(narrow) = &kernels.narrow {
            kernels.many.allow_shared(MANY_SHARED)?;
            narrow.allow_shared(NARROW_SHARED)?;
        }
        let most = u32::try_from(tile_floats(MOST_HEAD) * size_of::<f32>()).unwrap_or(u32::MAX);
        kernels.attend_tile.allow_shared(most)?;
        let stream = device.stream()?;
        // For finding faults, and for GPUs whose driver has one in these.
        let wanted = |name| std::env::var_os(name).is_none_or(|value| value != "0");
        let graphs = wanted("FASTDECODE_CUDA_GRAPH");
        let early = device.begins_early() && wanted("FASTDECODE_CUDA_EARLY");
        Ok(Arc::new(Self {
            device,
            stream,
            kernels,
            bf16,
            graphs,
            early,
            queue: Queue::default(),
            turn: Mutex::new(()),
        }))
    }

    /// The stream, for whoever gives it work.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device as options name it.
    pub fn name(&self) -> String {
        format!("cuda:{}", self.device.ordinal())
    }

    /// The architecture whose kernels run.
    pub fn architecture(&self) -> String {
        let (major, minor) = self.device.capability();
        format!("sm_{major}{minor}")
    }

    /// Bytes of its memory that are free, and all of them.
    ///
    /// # Errors
    /// [`Cuda`](crate::Error::Cuda).
    pub fn free_and_total(&self) -> Result<(usize, usize)> {
        self.device.free_and_total()
    }
}

/// Blocks of the cache on the GPU.
#[derive(Debug)]
struct Slab(Memory);

impl Held for Slab {
    fn at(&self) -> *mut u8 {
        std::ptr::without_provenance_mut(usize::try_from(self.0.at()).unwrap_or(usize::MAX))
    }
}

impl Remote for Gpu {
    fn memory(&self, bytes: usize) -> Result<Box<dyn Held>> {
        Ok(Box::new(Slab(self.device.alloc(bytes, "key-value cache")?)))
    }

    fn copy(&self, from: *const u8, to: *mut u8, bytes: usize) -> Result<()> {
        // Asked before anything is locked: in a forked child a lock may be held for ever.
        let _here = self.device.enter()?;
        let _turn = self.turn();
        // SAFETY: both are blocks of a pool on this GPU, and memory is freed only when the GPU has done what it was told before.
        unsafe { self.stream.copy(to.addr() as u64, from.addr() as u64, bytes) }
    }
}
