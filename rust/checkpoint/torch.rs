//! Files of `torch.save`, in either form: which one it is, and where the tensors lie in their storages.
//!
//! A tensor that is contiguous in its storage is read from the file like any other; one that is a strided view of it is
//! put in order in memory.

use std::sync::Arc;

use super::pickle::{StateDict, StoredTensor};
use super::source::{SharedBytes, Source};
use super::{Entry, is_answer, torch_legacy, torch_zip};
use crate::error::{Error, Result};

/// Longest pickle that is read, in bytes: enough for 100,000 tensors.
pub(super) const MAX_PICKLE: u64 = 16_000_000;
/// How many times its size a file may make us read to put strided views in order: views can share one storage.
const MAX_REREADS: u64 = 4;
/// How a zip archive starts.
const ZIP_MAGIC: &[u8; 4] = b"PK\x03\x04";

/// What a file holds.
pub(super) struct Contents {
    /// Tensors that lie in the file as they are.
    pub(super) in_file: Vec<Entry>,
    /// Tensors that had to be put in order; their offset is 0.
    pub(super) in_memory: Vec<(Entry, SharedBytes)>,
    /// Names of values that are no tensors.
    pub(super) others: Vec<String>,
}

/// Reads what describes the tensors of `source`, and puts in order those that need it.
///
/// # Errors
/// `Checkpoint` when it is of another form, cut short, compressed, or without tensors; `Io` when the system refuses a
/// read.
pub(super) fn read_contents(source: &Source) -> Result<Contents> {
    let mut start = [0; 4];
    let length = source.len().min(4) as usize;
    source.read_at(0, &mut start[..length], None)?;
    if &start == ZIP_MAGIC {
        return torch_zip::read_contents(source);
    }
    if let Some(start) = torch_legacy::after_magic(source)? {
        return torch_legacy::read_contents(source, start);
    }
    let expected = "a zip archive as torch.save writes it, or the stream that it wrote before torch 1.6";
    let got = if &start == b"vers" {
        "a text file, as Git LFS leaves in the place of contents; run `git lfs pull`"
    } else if length == 0 {
        "an empty file; download it again"
    } else if is_answer(&start) {
        "text, as a server answers where there is no such file; download it again"
    } else {
        "something else"
    };
    Err(source.malformed(None, expected, got))
}

/// Finds each tensor's bytes; `locate` gives position and size of a storage, by its key and for the tensor of a name.
pub(super) fn arrange(
    source: &Source,
    StateDict { tensors, others }: StateDict,
    mut locate: impl FnMut(&str, &str) -> Result<(u64, u64)>,
) -> Result<Contents> {
    let mut contents = Contents { in_file: Vec::new(), in_memory: Vec::new(), others };
    let mut budget = source.len().saturating_mul(MAX_REREADS);
    for (name, tensor) in tensors {
        let (start, bytes) = locate(&tensor.storage, &name)?;
        let view = View::check(source, &name, &tensor, bytes)?;
        let entry = |offset| Entry {
            name: name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            offset,
            bytes: view.elements * view.width,
        };
        let first = start + (tensor.offset * view.width) as u64;
        if view.contiguous {
            contents.in_file.push(entry(first));
            continue;
        }
        let bytes = view.gather(source, &name, &tensor, first, &mut budget)?;
        contents.in_memory.push((entry(0), Arc::new(bytes)));
    }
    Ok(contents)
}

/// A tensor's view of its storage, checked to lie inside.
struct View {
    elements: usize,
    /// Bytes of one element.
    width: usize,
    /// Elements from the view's first to its last, both included.
    span: usize,
    contiguous: bool,
}

impl View {
    fn check(source: &Source, name: &str, tensor: &StoredTensor, storage_bytes: u64) -> Result<Self> {
        let StoredTensor { dtype, storage_len, limit, offset, shape, strides, .. } = tensor;
        let width = dtype.bits() / 8;
        if storage_len.checked_mul(width).is_none_or(|bytes| bytes as u64 != storage_bytes) {
            let expected = format!("{storage_len} elements of {dtype} in its storage");
            return Err(source.malformed(Some(name), expected, format!("{storage_bytes} bytes")));
        }
        let outside = || {
            let expected = format!("a view inside of its storage of {storage_len} elements");
            let got = format!("shape {shape:?} with strides {strides:?} from element {offset} on");
            source.malformed(Some(name), expected, got)
        };
        let elements = dtype.bytes_of(shape).ok_or_else(outside)? / width;
        let mut span = usize::from(elements > 0);
        let mut contiguous = true;
        let mut row_major = 1;
        for (&extent, &stride) in shape.iter().zip(strides).rev() {
            if elements > 0 && extent > 1 {
                contiguous &= stride == row_major;
                let reach = stride.checked_mul(extent - 1).and_then(|reach| reach.checked_add(span));
                span = reach.ok_or_else(outside)?;
                row_major *= extent;
            }
        }
        let inside = offset.checked_add(span).is_some_and(|end| end <= *limit);
        // A view with more elements than its storage repeats some; no weight is saved so.
        if !inside || elements > *storage_len {
            return Err(outside());
        }
        Ok(Self { elements, width, span, contiguous })
    }

    /// The elements in row-major order; `first` is the position of the first one in the file.
    fn gather(
        &self,
        source: &Source,
        name: &str,
        tensor: &StoredTensor,
        first: u64,
        budget: &mut u64,
    ) -> Result<Vec<u8>> {
        let size = self.elements * self.width;
        let span = self.span * self.width;
        *budget = budget.checked_sub(size.max(span) as u64).ok_or_else(|| {
            let expected =
                format!("strided views of at most {MAX_REREADS} times the file; save contiguous tensors");
            source.malformed(Some(name), expected, "more")
        })?;
        let mut span = allocate(source, span)?;
        source.read_at(first, &mut span, Some(name))?;
        let mut ordered = allocate(source, size)?;
        let mut index = vec![0; tensor.shape.len()];
        for element in ordered.chunks_exact_mut(self.width) {
            let at: usize = index.iter().zip(&tensor.strides).map(|(i, stride)| i * stride).sum();
            element.copy_from_slice(&span[at * self.width..][..self.width]);
            for (i, &extent) in index.iter_mut().zip(&tensor.shape).rev() {
                *i += 1;
                if *i < extent {
                    break;
                }
                *i = 0;
            }
        }
        Ok(ordered)
    }
}

/// Zeroed bytes, or an error where the system has none.
pub(super) fn allocate(source: &Source, bytes: usize) -> Result<Vec<u8>> {
    let mut buffer = Vec::new();
    let refused = |_| Error::OutOfMemory { what: format!("reading {}", source.label()), bytes };
    buffer.try_reserve_exact(bytes).map_err(refused)?;
    buffer.resize(bytes, 0);
    Ok(buffer)
}
