//! Which files of a folder hold its weights: one file, or shards that an index lists.
//!
//! The order of preference is that of transformers 5.24: `model.safetensors`, its index, `pytorch_model.bin`, its index.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::Checkpoint;
use super::source::Source;
use crate::error::{Error, Result};

/// A format that weights come in.
struct Format {
    /// Name of the file, where there is one only.
    single: &'static str,
    /// Name of the file that lists shards.
    index: &'static str,
    add: fn(&mut Checkpoint, Source) -> Result<()>,
}

/// The formats, the preferred one first.
const FORMATS: [Format; 2] = [
    Format {
        single: "model.safetensors",
        index: "model.safetensors.index.json",
        add: Checkpoint::add_safetensors,
    },
    Format { single: "pytorch_model.bin", index: "pytorch_model.bin.index.json", add: Checkpoint::add_torch },
];

/// Longest index that is read, in bytes: the limit of a safetensors header, which names the same tensors.
const MAX_INDEX: u64 = 100_000_000;

/// The part of an index that is needed.
#[derive(Deserialize)]
struct Index {
    /// Name of each tensor to the file that should hold it.
    weight_map: BTreeMap<String, String>,
}

/// See [`Checkpoint::open`].
pub(super) fn open(folder: &Path) -> Result<Checkpoint> {
    if !std::fs::metadata(folder).map_err(|e| Error::io(folder, e))?.is_dir() {
        return Err(Error::io(folder, std::io::Error::new(ErrorKind::NotADirectory, "not a folder")));
    }
    for format in &FORMATS {
        let (single, index) = (folder.join(format.single), folder.join(format.index));
        if single.is_file() {
            let mut checkpoint = Checkpoint::empty(single.display().to_string());
            (format.add)(&mut checkpoint, Source::open(&single)?)?;
            return Ok(checkpoint);
        }
        if index.is_file() {
            return open_shards(folder, &index, format);
        }
    }
    let names: Vec<&str> = FORMATS.iter().flat_map(|format| [format.single, format.index]).collect();
    let reason = format!("no weights: expected one of {}", names.join(", "));
    Err(Error::io(folder, std::io::Error::new(ErrorKind::NotFound, reason)))
}

/// Opens all shards that the index names, in the order of their names. The index is a list of files and no contract, as in transformers:
/// what counts is what the shards hold, and a tensor that comes twice is the later one. Indexes of real folders name tied tensors
/// and buffers that were never saved; a tensor that a model needs and no shard has is missed when it is asked for.
fn open_shards(folder: &Path, index_path: &Path, format: &Format) -> Result<Checkpoint> {
    let index_source = Source::open(index_path)?;
    let weight_map = read_index(&index_source)?;
    let mut shards: BTreeMap<&str, PathBuf> = BTreeMap::new();
    for (name, file) in &weight_map {
        if shards.contains_key(file.as_str()) {
            continue;
        }
        let path = shard_path(folder, file).ok_or_else(|| {
            let expected = "a file inside of the folder, by its relative path";
            index_source.malformed(Some(name), expected, format!("{file:?}"))
        })?;
        if !path.is_file() {
            let expected = format!("the shard {file} beside the index; download the folder again");
            return Err(index_source.malformed(Some(name), expected, "no such file"));
        }
        shards.insert(file, path);
    }

    let mut checkpoint = Checkpoint::empty(index_path.display().to_string());
    for path in shards.values() {
        (format.add)(&mut checkpoint, Source::open(path)?)?;
    }
    Ok(checkpoint)
}

fn read_index(source: &Source) -> Result<BTreeMap<String, String>> {
    if source.len() > MAX_INDEX {
        let expected = format!("an index of at most {MAX_INDEX} bytes");
        return Err(source.malformed(None, expected, format!("{} bytes", source.len())));
    }
    let mut text = vec![0; source.len() as usize];
    source.read_at(0, &mut text, None)?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| {
        let expected = "a JSON object whose weight_map gives each tensor's file";
        source.malformed(None, expected, error.to_string())
    })?;
    if index.weight_map.is_empty() {
        return Err(source.malformed(None, "a weight_map with tensors", "an empty one"));
    }
    Ok(index.weight_map)
}

/// The shard's path, unless it leads out of the folder. Links are followed: the hub's cache consists of them.
fn shard_path(folder: &Path, file: &str) -> Option<PathBuf> {
    let relative = Path::new(file);
    let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
    (inside && !file.is_empty() && !file.contains('\0')).then(|| folder.join(relative))
}
