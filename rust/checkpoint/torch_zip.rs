//! The archive that `torch.save` writes: a zip of stored entries, one pickle and one entry for each storage.
//!
//! Only the directory and the pickle are read when it is opened.
//! Format: <https://github.com/pytorch/pytorch/blob/main/caffe2/serialize/inline_container.h>.

use std::collections::HashMap;
use std::io::{BufReader, Read, Seek, SeekFrom};

use zip::{CompressionMethod, ZipArchive};

use super::pickle;
use super::source::Source;
use super::torch::{Contents, MAX_PICKLE, allocate, arrange};
use crate::error::Result;

/// Reads the directory and the pickle of `source`.
///
/// # Errors
/// `Checkpoint` when it is cut short, compressed, or without tensors; `Io` when the system refuses a read.
pub(super) fn read_contents(source: &Source) -> Result<Contents> {
    let mut archive = Archive::open(source)?;
    archive.check_byte_order()?;
    let state = pickle::read_state_dict(source, &archive.read("data.pkl", MAX_PICKLE)?)?;
    let mut storages: HashMap<String, (u64, u64)> = HashMap::new();
    arrange(source, state, |key, name| match storages.get(key) {
        Some(&range) => Ok(range),
        None => {
            let range = archive.locate(&format!("data/{key}"), Some(name))?;
            storages.insert(key.to_owned(), range);
            Ok(range)
        }
    })
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
