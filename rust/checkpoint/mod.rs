//! Bytes on disk to named tensors and config values: safetensors and files of `torch.save`, single and in shards, and
//! config.json. Adapters lie over them: what they change is computed as it is read.
//!
//! Only headers are read when a checkpoint is opened; weights are read by position, piece by piece, by whoever packs
//! them. Hostile input is an error that names file, tensor, expected and got. Knows names, types and shapes, but no
//! model: what a tensor means is for `models` to say.

mod adapted;
pub mod config;
mod dtype;
mod folder;
mod merged;
mod pickle;
mod safetensors;
mod source;
mod torch;
mod torch_legacy;
mod torch_zip;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

pub use adapted::{Adapter, Edit, Layout, ModuleKind};
pub use dtype::Dtype;
pub use source::SharedBytes;

use crate::error::{Error, Result};
use source::Source;

/// Where a tensor lies, of which type and shape.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Name as in the file.
    pub name: String,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Extents, outermost first; empty for a scalar. Elements are contiguous in row-major order.
    pub shape: Vec<usize>,
    /// File that holds it, as errors name it.
    pub file: Arc<str>,
    /// Position of its first byte in the file; no alignment is promised.
    pub offset: u64,
    /// Size in bytes: the number of elements times the size of one.
    pub bytes: usize,
    source: usize,
}

/// A tensor as a reader of one format found it in a source.
struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Position of the first byte.
    offset: u64,
    /// Number of bytes.
    bytes: usize,
}

/// A tensor handed in from memory; little-endian, row-major, contiguous.
pub struct MemoryTensor {
    /// Name as a checkpoint would have it.
    pub name: String,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// The elements.
    pub bytes: SharedBytes,
}

/// The tensors of a model, by name; reading is by position and safe from several threads at once.
///
/// # Examples
/// ```
/// use fastdecode::checkpoint::{Checkpoint, Dtype, MemoryTensor};
/// let bytes: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
/// let tensor = MemoryTensor { name: "ln_f.bias".into(), dtype: Dtype::F32, shape: vec![2], bytes: std::sync::Arc::new(bytes) };
/// let checkpoint = Checkpoint::from_memory(vec![tensor])?;
/// let info = checkpoint.require("transformer.", "ln_f.bias", &[2])?;
/// let mut second = [0; 4];
/// checkpoint.read(info, 4, &mut second)?;
/// assert_eq!(f32::from_le_bytes(second), 2.0);
/// # Ok::<(), fastdecode::Error>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    label: String,
    sources: Vec<Arc<Source>>,
    tensors: BTreeMap<String, TensorInfo>,
    /// Names of values beside the tensors, which nothing reads.
    others: BTreeSet<String>,
}

impl Checkpoint {
    /// Opens the weights of a Hugging Face folder: `model.safetensors`, else the shards that
    /// `model.safetensors.index.json` lists, else `pytorch_model.bin` or its shards in the same way.
    ///
    /// # Errors
    /// `Io` when there are no weights or the system refuses to read them; `Checkpoint` when a file is malformed, cut
    /// short, not there though the index names it, or a pickle that wants anything but tensors.
    pub fn open(folder: &Path) -> Result<Self> {
        folder::open(folder)
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// `Io` when the system refuses to read it, `Checkpoint` when it is malformed.
    pub fn open_safetensors(file: &Path) -> Result<Self> {
        let mut checkpoint = Self::empty(file.display().to_string());
        checkpoint.add_safetensors(Source::open(file)?)?;
        Ok(checkpoint)
    }

    /// Opens one file of `torch.save`: the zip archive that torch writes since 1.6, or the stream of pickles from before.
    ///
    /// Nothing in it is executed: it is read as a description of tensors, and anything else in it is an error. Tensors
    /// that are no contiguous part of their storage are put in order in memory.
    ///
    /// # Errors
    /// `Io` when the system refuses to read it, `Checkpoint` when it is malformed or holds anything but tensors.
    pub fn open_torch(file: &Path) -> Result<Self> {
        let mut checkpoint = Self::empty(file.display().to_string());
        checkpoint.add_torch(Source::open(file)?)?;
        Ok(checkpoint)
    }

    /// Wraps tensors that are in memory already.
    ///
    /// # Errors
    /// `Checkpoint` when a name comes twice or the bytes do not fit the shape.
    pub fn from_memory(tensors: Vec<MemoryTensor>) -> Result<Self> {
        const LABEL: &str = "tensors in memory";
        let mut checkpoint = Self::empty(LABEL.into());
        for MemoryTensor { name, dtype, shape, bytes } in tensors {
            let source = Source::memory(LABEL, bytes);
            if checkpoint.get(&name).is_some() {
                return Err(source.malformed(Some(&name), "each tensor once", "it a second time"));
            }
            let Some(size) = dtype.bytes_of(&shape).filter(|&size| size as u64 == source.len()) else {
                let expected = format!("as many bytes as {dtype} {shape:?} has");
                return Err(source.malformed(Some(&name), expected, format!("{} bytes", source.len())));
            };
            checkpoint.add(&source, Entry { name, dtype, shape, offset: 0, bytes: size });
            checkpoint.sources.push(Arc::new(source));
        }
        Ok(checkpoint)
    }

    fn empty(label: String) -> Self {
        Self { label, sources: Vec::new(), tensors: BTreeMap::new(), others: BTreeSet::new() }
    }

    /// Adds every tensor of a safetensors file.
    fn add_safetensors(&mut self, source: Source) -> Result<()> {
        for entry in safetensors::read_header(&source)? {
            self.add(&source, entry);
        }
        self.sources.push(Arc::new(source));
        Ok(())
    }

    /// Adds every tensor of a file of torch.
    fn add_torch(&mut self, source: Source) -> Result<()> {
        let contents = torch::read_contents(&source)?;
        self.others.extend(contents.others);
        for entry in contents.in_file {
            self.add(&source, entry);
        }
        let label = source.label().clone();
        self.sources.push(Arc::new(source));
        for (entry, bytes) in contents.in_memory {
            let source = Source::memory(&label, bytes);
            self.add(&source, entry);
            self.sources.push(Arc::new(source));
        }
        Ok(())
    }

    /// Adds a tensor of the source that is about to be pushed, in the place of one of that name from an earlier file.
    fn add(&mut self, source: &Source, entry: Entry) {
        let Entry { name, dtype, shape, offset, bytes } = entry;
        let file = source.label().clone();
        let info = TensorInfo { name, dtype, shape, file, offset, bytes, source: self.sources.len() };
        self.tensors.insert(info.name.clone(), info);
    }

    /// What errors about no single file name: the file, the index of the shards, or "tensors in memory".
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Names of all tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor of exactly this name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The tensor `prefix` + `name`, else the tensor `name`.
    ///
    /// Checkpoints are saved both from a bare model (`wte.weight`) and from a model with a head on it
    /// (`transformer.wte.weight`); transformers loads either into either.
    pub fn find(&self, prefix: &str, name: &str) -> Option<&TensorInfo> {
        self.get(&format!("{prefix}{name}")).or_else(|| self.get(name))
    }

    /// The tensor that [`find`](Self::find) finds, checked to be of this shape and of a weight's type.
    ///
    /// # Errors
    /// `Checkpoint` when it is missing, of another shape, or not f64, f32, f16 or bf16.
    pub fn require(&self, prefix: &str, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let info = self.find(prefix, name).ok_or_else(|| self.missing(prefix, name, shape))?;
        info.expect(shape)?;
        Ok(info)
    }

    /// Names of the tensors that are not among `used`, and of values that are no tensors, each in alphabetical order.
    pub fn unknown<S: AsRef<str>>(&self, used: impl IntoIterator<Item = S>) -> Vec<String> {
        let used: Vec<S> = used.into_iter().collect();
        let used: HashSet<&str> = used.iter().map(AsRef::as_ref).collect();
        let tensors = self.names().filter(|name| !used.contains(name));
        tensors.chain(self.others.iter().map(String::as_str)).map(str::to_owned).collect()
    }

    /// Reads `buf.len()` bytes of a tensor of this checkpoint, from its byte `start` on.
    ///
    /// # Errors
    /// `Checkpoint` when the file has been cut short since it was opened, or the range lies outside of the tensor;
    /// `Io` when the system refuses the read.
    pub fn read(&self, info: &TensorInfo, start: usize, buf: &mut [u8]) -> Result<()> {
        let inside = start.checked_add(buf.len()).is_some_and(|end| end <= info.bytes);
        let (Some(source), true) = (self.sources.get(info.source), inside) else {
            let got = format!("a read of {} bytes from byte {start} on", buf.len());
            return Err(info.malformed(format!("a read inside of the tensor's {} bytes", info.bytes), got));
        };
        source.read_at(info.offset + start as u64, buf, Some(&info.name))
    }

    fn missing(&self, prefix: &str, name: &str, shape: &[usize]) -> Error {
        let or =
            if prefix.is_empty() { String::new() } else { format!(", under this name or {prefix}{name}") };
        Error::Checkpoint {
            file: self.label.clone(),
            tensor: Some(name.to_owned()),
            expected: format!("a tensor of shape {shape:?}{or}"),
            got: format!("none among its {} tensors", self.len()),
        }
    }
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Checks shape and type.
    ///
    /// # Errors
    /// `Checkpoint` when the shape is another, or the type not f64, f32, f16 or bf16.
    pub fn expect(&self, shape: &[usize]) -> Result<()> {
        if self.shape != shape {
            return Err(self.malformed(format!("shape {shape:?}"), format!("{:?}", self.shape)));
        }
        if !self.dtype.is_weight() {
            let expected =
                "weights in F64, F32, F16 or BF16; convert it, for example with torch's `.to(torch.float32)`";
            return Err(self.malformed(expected, self.dtype.name()));
        }
        Ok(())
    }

    /// An error about this tensor.
    pub fn malformed(&self, expected: impl Into<String>, got: impl Into<String>) -> Error {
        Error::Checkpoint {
            file: self.file.to_string(),
            tensor: Some(self.name.clone()),
            expected: expected.into(),
            got: got.into(),
        }
    }
}

/// Whether a file begins as HTML or JSON does, which a server answers where there is no such file.
fn is_answer(start: &[u8]) -> bool {
    let printable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    matches!(start.first(), Some(b'<' | b'{')) && start.iter().all(printable)
}
