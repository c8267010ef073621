//! The archive that `torch.save` writes: a zip of stored entries, one pickle and one entry for each storage.
//!
//! Only the directory and the pickle are read when it is opened. A tensor that is contiguous in its storage is read
//! from the file like any other; one that is a strided view of it is put in order in memory.
//! Format: <https://github.com/pytorch/pytorch/blob/main/caffe2/serialize/inline_container.h>.

use std::collections::HashMap;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive};

use super::Entry;
use super::pickle::{self, StoredTensor};
use super::source::{SharedBytes, Source};
use crate::error::{Error, Result};

/// Longest pickle that is read, in bytes: enough for 100,000 tensors.
const MAX_PICKLE: u64 = 16_000_000;
/// How many times its size a file may make us read to put strided views in order: views can share one storage.
const MAX_REREADS: u64 = 4;
/// How a zip archive starts.
const ZIP_MAGIC: &[u8; 4] = b"PK\x03\x04";
/// How the older form starts: a pickle of protocol 2 that holds torch's magic number.
const LEGACY_MAGIC: &[u8; 2] = b"\x80\x02";

/// What an archive holds.
pub(super) struct Contents {
    /// Tensors that lie in the file as they are.
    pub(super) in_file: Vec<Entry>,
    /// Tensors that had to be put in order; their offset is 0.
    pub(super) in_memory: Vec<(Entry, SharedBytes)>,
}

/// Reads the directory and the pickle of `source`.
///
/// # Errors
/// `Checkpoint` when it is of another form, cut short, compressed, or holds anything but tensors; `Io` when the system
/// refuses a read.
pub(super) fn read_contents(source: &Source) -> Result<Contents> {
    check_form(source)?;
    let mut archive = Archive::open(source)?;
    archive.check_byte_order()?;
    let tensors = pickle::read_state_dict(source, &archive.read("data.pkl", MAX_PICKLE)?)?;
    let mut storages: HashMap<String, (u64, u64)> = HashMap::new();
    let mut contents = Contents { in_file: Vec::new(), in_memory: Vec::new() };
    let mut budget = source.len().saturating_mul(MAX_REREADS);
    for (name, tensor) in tensors {
        let (start, bytes) = match storages.get(&tensor.storage) {
            Some(&range) => range,
            None => {
                let range = archive.locate(&format!("data/{}", tensor.storage), Some(&name))?;
                storages.insert(tensor.storage.clone(), range);
                range
            }
        };
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

/// Refuses what is no zip archive, with a word about what it is.
fn check_form(source: &Source) -> Result<()> {
    let mut start = [0; 4];
    let length = source.len().min(4) as usize;
    source.read_at(0, &mut start[..length], None)?;
    if &start == ZIP_MAGIC {
        return Ok(());
    }
    let expected = "the zip archive that torch.save writes since torch 1.6";
    let got = if start.starts_with(LEGACY_MAGIC) {
        "the older form; load it with torch and save it again, best as safetensors"
    } else if &start == b"vers" {
        "a text file, as Git LFS leaves in the place of contents; run `git lfs pull`"
    } else {
        "something else"
    };
    Err(source.malformed(None, expected, got))
}

struct Archive<'a> {
    source: &'a Source,
    zip: ZipArchive<BufReader<Cursor<'a>>>,
    /// Folder in the archive that holds everything; its name is the file's when it was saved.
    root: String,
}

impl<'a> Archive<'a> {
    fn open(source: &'a Source) -> Result<Self> {
        let zip = ZipArchive::new(BufReader::new(Cursor { source, at: 0 })).map_err(|error| {
            let got = format!("{error}; the file may be cut short, download it again");
            source.malformed(None, "a zip archive with its directory at the end", got)
        })?;
        let root = zip.file_names().flatten().find_map(|name| {
            name.strip_suffix("/data.pkl").filter(|root| !root.contains('/')).map(str::to_owned)
        });
        let root = root.ok_or_else(|| {
            source.malformed(None, "an archive with a data.pkl, as torch.save writes it", "one without")
        })?;
        Ok(Self { source, zip, root })
    }

    /// Position and size of an entry's bytes in the file.
    fn locate(&mut self, name: &str, tensor: Option<&str>) -> Result<(u64, u64)> {
        let (source, path) = (self.source, format!("{}/{name}", self.root));
        let index = self.zip.index_for_name(&path).ok_or_else(|| {
            source.malformed(tensor, format!("the entry {path} in the archive"), "no such entry")
        })?;
        let broken = |error: String| source.malformed(tensor, format!("a sound entry {path}"), error);
        let entry = self.zip.by_index_raw(index).map_err(|error| broken(error.to_string()))?;
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            let got = format!("one that is compressed ({}) or encrypted", entry.compression());
            return Err(broken(format!("{got}; load it with torch and save it again")));
        }
        let start = entry.data_start().ok_or_else(|| broken("one without data".into()))?;
        let inside = start.checked_add(entry.size()).is_some_and(|end| end <= source.len());
        if !inside || entry.size() != entry.compressed_size() {
            return Err(broken(format!("{} bytes at {start} of {}", entry.size(), source.len())));
        }
        Ok((start, entry.size()))
    }

    /// The bytes of a small entry.
    fn read(&mut self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let (start, size) = self.locate(name, None)?;
        if size > limit {
            let expected = format!("at most {limit} bytes in {}/{name}", self.root);
            return Err(self.source.malformed(None, expected, format!("{size} bytes")));
        }
        let mut bytes = allocate(self.source, size as usize)?;
        self.source.read_at(start, &mut bytes, None)?;
        Ok(bytes)
    }

    fn check_byte_order(&mut self) -> Result<()> {
        if self.zip.index_for_name(&format!("{}/byteorder", self.root)).is_none() {
            return Ok(()); // Files before torch 2.1 do not say; they come from little-endian machines.
        }
        match self.read("byteorder", 16)?.as_slice() {
            b"little" => Ok(()),
            other => {
                let got = String::from_utf8_lossy(other).into_owned();
                Err(self.source.malformed(
                    None,
                    "little-endian tensors; save it again on such a machine",
                    got,
                ))
            }
        }
    }
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
        let StoredTensor { dtype, storage_len, offset, shape, strides, .. } = tensor;
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
        let inside = offset.checked_add(span).is_some_and(|end| end <= *storage_len);
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
fn allocate(source: &Source, bytes: usize) -> Result<Vec<u8>> {
    let mut buffer = Vec::new();
    let refused = |_| Error::OutOfMemory { what: format!("reading {}", source.label()), bytes };
    buffer.try_reserve_exact(bytes).map_err(refused)?;
    buffer.resize(bytes, 0);
    Ok(buffer)
}

/// A position in a source, for the zip reader.
struct Cursor<'a> {
    source: &'a Source,
    at: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.source.len().saturating_sub(self.at)).unwrap_or(usize::MAX);
        let count = buf.len().min(left);
        self.source.read_at(self.at, &mut buf[..count], None).map_err(std::io::Error::other)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.source.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
