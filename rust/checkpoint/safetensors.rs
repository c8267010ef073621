//! The header of a safetensors file: which tensors lie where.
//!
//! A file is accepted exactly when the reference reader (safetensors 0.8.0) accepts it; what ours adds is that an error
//! says which tensor, what was expected and what was got, and that only the header is read. Format:
//! <https://github.com/huggingface/safetensors#format>.

use std::collections::HashMap;

use serde::Deserialize;

use super::dtype::Dtype;
use super::source::Source;
use super::{Entry, is_answer};
use crate::error::{Error, Result};

/// Longest header that the reference reader accepts, in bytes.
const MAX_HEADER: u64 = 100_000_000;
/// Size of the number that opens a file, the header's length in bytes.
const LENGTH_BYTES: u64 = 8;
/// How a file starts that Git LFS has not replaced by its contents.
const LFS_POINTER: &[u8; 8] = b"version ";

/// The JSON document of a header.
///
/// The shape of these two types decides which documents pass (a tensor named twice counts as its last mention, unknown
/// fields of a tensor pass, metadata must be strings), so they mirror what the reference reader declares.
#[derive(Deserialize)]
struct Document {
    #[serde(rename = "__metadata__")]
    _metadata: Option<HashMap<String, String>>,
    #[serde(flatten)]
    tensors: HashMap<String, Declared>,
}

/// One tensor of a header; `data_offsets` are relative to the end of the header.
#[derive(Deserialize)]
struct Declared {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Reads and checks the header of `source`; the tensors come in the order of their bytes.
///
/// # Errors
/// `Checkpoint` for everything that the reference reader rejects, `Io` when the system refuses a read.
pub(super) fn read_header(source: &Source) -> Result<Vec<Entry>> {
    let (text, data_start) = read_text(source)?;
    let document: Document = serde_json::from_str(&text).map_err(|error| explain(source, &text, &error))?;
    let mut declared: Vec<_> = document.tensors.into_iter().collect();
    declared.sort_unstable_by(|(a_name, a), (b_name, b)| {
        a.data_offsets.cmp(&b.data_offsets).then_with(|| a_name.cmp(b_name))
    });

    let mut entries = Vec::with_capacity(declared.len());
    let mut covered = 0;
    for (name, Declared { dtype, shape, data_offsets: (begin, end) }) in declared {
        let malformed = |expected: String, got: String| source.malformed(Some(&name), expected, got);
        if begin != covered {
            let expected = format!("data_offsets that begin at {covered}, where the tensor before ends");
            return Err(malformed(expected, format!("[{begin}, {end}]")));
        }
        if end < begin {
            let expected = format!("data_offsets that end at {begin} or after");
            return Err(malformed(expected, format!("[{begin}, {end}]")));
        }
        let Some(bytes) = dtype.bytes_of(&shape) else {
            let expected = "a shape whose size is a whole number of bytes that fits the address space";
            return Err(malformed(expected.into(), format!("{dtype} {shape:?}")));
        };
        if end - begin != bytes {
            let expected = format!("{bytes} bytes for {dtype} {shape:?}");
            return Err(malformed(
                expected,
                format!("data_offsets [{begin}, {end}] ({} bytes)", end - begin),
            ));
        }
        covered = end;
        entries.push(Entry { name, dtype, shape, offset: data_start.saturating_add(begin as u64), bytes });
    }

    let data = source.len() - data_start;
    if covered as u64 != data {
        let expected = format!("{covered} bytes after the header, as its tensors cover");
        let hint = if (covered as u64) > data { "; the file is cut short, download it again" } else { "" };
        return Err(source.malformed(None, expected, format!("{data} bytes{hint}")));
    }
    Ok(entries)
}

/// The header's text and the position of the first byte after it.
fn read_text(source: &Source) -> Result<(String, u64)> {
    let mut length = [0; LENGTH_BYTES as usize];
    if source.len() < LENGTH_BYTES {
        let expected = "a safetensors file, which starts with the header's length in 8 bytes";
        return Err(source.malformed(None, expected, format!("a file of {} bytes", source.len())));
    }
    source.read_at(0, &mut length, None)?;
    if &length == LFS_POINTER {
        let expected = "a safetensors file; fetch the contents with `git lfs pull`";
        return Err(source.malformed(None, expected, "a text file, as Git LFS leaves in their place"));
    }
    if is_answer(&length) {
        let got = "text, as a server answers where there is no such file; download it again";
        return Err(source.malformed(None, "a safetensors file", got));
    }
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        let expected = format!("a header of at most {MAX_HEADER} bytes");
        return Err(source.malformed(None, expected, format!("{length} bytes")));
    }
    if length > source.len() - LENGTH_BYTES {
        let expected = format!("a header of {length} bytes, as the file's first 8 bytes say");
        let got = format!("{} bytes; the file is cut short, download it again", source.len() - LENGTH_BYTES);
        return Err(source.malformed(None, expected, got));
    }
    let mut bytes = Vec::new();
    let size = length as usize;
    bytes
        .try_reserve_exact(size)
        .map_err(|_| Error::OutOfMemory { what: format!("header of {}", source.label()), bytes: size })?;
    bytes.resize(size, 0);
    source.read_at(LENGTH_BYTES, &mut bytes, None)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let got = format!("another byte at {} of the header", error.utf8_error().valid_up_to());
        source.malformed(None, "a header in UTF-8", got)
    })?;
    Ok((text, LENGTH_BYTES + length))
}

/// Turns the JSON reader's message into an error that names the first tensor it concerns, if one.
fn explain(source: &Source, text: &str, error: &serde_json::Error) -> Error {
    let document: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_str(text).ok();
    let culprit = document
        .into_iter()
        .flatten()
        .filter(|(name, _)| name != "__metadata__")
        .find_map(|(name, value)| Declared::deserialize(&value).err().map(|error| (name, error)));
    match culprit {
        Some((name, error)) => {
            source.malformed(Some(&name), "an object with dtype, shape and data_offsets", error.to_string())
        }
        None => source.malformed(None, "a header that is a JSON object of tensors", error.to_string()),
    }
}
