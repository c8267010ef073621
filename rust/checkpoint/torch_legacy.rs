//! The stream that `torch.save` wrote before torch 1.6, and still writes when it is asked to: pickles one behind the other, then the
//! storages.
//!
//! The pickles are torch's magic number, a version, facts about the machine, the tensors, and the list of the storages' keys. Each
//! storage follows as the number of its elements in eight bytes and the elements, little-endian wherever it was saved. Only the pickles
//! are read when it is opened. Format: `_legacy_save` in <https://github.com/pytorch/pytorch/blob/main/torch/serialization.py>.

use std::collections::HashMap;

use super::pickle::Stream;
use super::source::Source;
use super::torch::{Contents, MAX_PICKLE, allocate, arrange};
use crate::error::Result;

/// The pickle of torch's magic number, behind its protocol and the hint for buffering that later protocols have.
const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
/// Bytes of an instruction that names the protocol, and of the hint.
const PROTOCOL: usize = 2;
const FRAME: usize = 9;
/// The only version that there has been.
const VERSION: i64 = 1001;
/// Size of the number in front of a storage.
const COUNT: u64 = 8;

/// Position behind the magic number, where the file starts with it.
///
/// # Errors
/// `Io` when the system refuses the read.
pub(super) fn after_magic(source: &Source) -> Result<Option<usize>> {
    let mut start = [0; PROTOCOL + FRAME + MAGIC.len()];
    let length = source.len().min(start.len() as u64) as usize;
    source.read_at(0, &mut start[..length], None)?;
    let [0x80, 2..=5, rest @ ..] = &start[..length] else { return Ok(None) };
    let skipped = if rest.first() == Some(&0x95) { FRAME } else { 0 };
    let found = rest.get(skipped..).is_some_and(|rest| rest.starts_with(MAGIC));
    Ok(found.then_some(PROTOCOL + skipped + MAGIC.len()))
}

/// Reads the pickles behind the magic number, which ends at `start`, and finds the storages.
///
/// # Errors
/// `Checkpoint` when it is cut short, or without tensors; `Io` when the system refuses a read.
pub(super) fn read_contents(source: &Source, start: usize) -> Result<Contents> {
    // How long the pickles are is known when they have been run; what follows them is weights, and far longer.
    let mut bytes = allocate(source, source.len().min(MAX_PICKLE) as usize)?;
    source.read_at(0, &mut bytes, None)?;
    let mut stream = Stream::new(source, &bytes, start);
    let version = stream.integer()?;
    if version != VERSION {
        let expected = format!("version {VERSION} behind the magic number");
        return Err(source.malformed(None, expected, version.to_string()));
    }
    stream.skip()?; // The machine that wrote it: byte order and sizes of C's integers, on which nothing below depends.
    let (state, declared) = stream.state_dict()?;
    let keys = stream.names()?;

    let mut at = stream.at as u64;
    let mut storages = HashMap::with_capacity(keys.len().min(declared.len()));
    for key in keys {
        let Some(&(dtype, len)) = declared.get(&key) else {
            let got = format!("storage {key} in the list");
            return Err(source.malformed(None, "only storages that a tensor has", got));
        };
        let cut = |bytes: u64| {
            let expected = format!("{bytes} bytes of storage {key} at {at}");
            let got = format!("a file of {} bytes; it is cut short, download it again", source.len());
            source.malformed(None, expected, got)
        };
        if at.checked_add(COUNT).is_none_or(|end| end > source.len()) {
            return Err(cut(COUNT));
        }
        let mut count = [0; COUNT as usize];
        source.read_at(at, &mut count, None)?;
        let count = u64::from_le_bytes(count);
        if count != len as u64 {
            let expected = format!("{len} elements in storage {key}, as its tensors say");
            return Err(source.malformed(None, expected, format!("{count}")));
        }
        let bytes = count.saturating_mul(dtype.bits() as u64 / 8);
        let first = at + COUNT;
        let Some(end) = first.checked_add(bytes).filter(|&end| end <= source.len()) else {
            return Err(cut(bytes));
        };
        storages.insert(key, (first, bytes));
        at = end;
    }
    arrange(source, state, |key, name| {
        storages.get(key).copied().ok_or_else(|| {
            let expected = format!("storage {key} in the list of storages");
            source.malformed(Some(name), expected, "a list without it")
        })
    })
}
