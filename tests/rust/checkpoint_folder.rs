//! Which files of a folder are read, what an index may say, and what a lookup demands of a tensor.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use fastdecode::Error;
use fastdecode::checkpoint::{Checkpoint, Dtype, MemoryTensor};
use proptest::prelude::*;
use safetensors::tensor::{Dtype as ReferenceDtype, TensorView};
use tempfile::{TempDir, tempdir};

/// Writes a file of one-dimensional f32 tensors, each filled with a number.
fn write(path: &Path, tensors: &[(&str, f32, usize)]) {
    let data: Vec<Vec<u8>> = tensors.iter().map(|&(_, x, n)| x.to_le_bytes().repeat(n)).collect();
    let views = tensors.iter().zip(&data).map(|(&(name, _, n), bytes)| {
        (name.to_owned(), TensorView::new(ReferenceDtype::F32, vec![n], bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None::<HashMap<String, String>>, path).unwrap();
}

fn write_index(folder: &Path, weight_map: &[(&str, &str)]) {
    let weight_map: HashMap<_, _> = weight_map.iter().copied().collect();
    let index = serde_json::json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// Two shards with `a`, `b` in the first and `c` in the second.
fn sharded(weight_map: &[(&str, &str)]) -> TempDir {
    let folder = tempdir().unwrap();
    write(&folder.path().join("model-00001-of-00002.safetensors"), &[("a", 1.0, 2), ("b", 2.0, 3)]);
    write(&folder.path().join("model-00002-of-00002.safetensors"), &[("c", 3.0, 4)]);
    write_index(folder.path(), weight_map);
    folder
}

fn first_value(checkpoint: &Checkpoint, name: &str) -> f32 {
    let mut bytes = [0; 4];
    checkpoint.read(checkpoint.get(name).expect(name), 0, &mut bytes).unwrap();
    f32::from_le_bytes(bytes)
}

fn memory(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> MemoryTensor {
    MemoryTensor { name: name.into(), dtype, shape: shape.into(), bytes: Arc::new(bytes) }
}

#[track_caller]
fn assert_refused(result: Result<Checkpoint, Error>, tensor_wanted: Option<&str>, phrase: &str) {
    let error = result.expect_err("the folder should be refused");
    assert!(
        matches!(&error, Error::Checkpoint { tensor, .. } if tensor.as_deref() == tensor_wanted),
        "{error:?}"
    );
    assert!(error.to_string().contains(phrase), "{error}");
}

#[test]
fn a_single_file_goes_before_shards() {
    let folder = sharded(&[("a", "model-00001-of-00002.safetensors")]);
    write(&folder.path().join("model.safetensors"), &[("a", 7.0, 1)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a"]);
    assert_eq!(first_value(&checkpoint, "a"), 7.0);
}

#[test]
fn shards_are_joined_and_unlisted_tensors_count() {
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let folder = sharded(&[("a", one), ("c", two)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    for (name, value) in [("a", 1.0), ("b", 2.0), ("c", 3.0)] {
        assert_eq!(first_value(&checkpoint, name), value);
    }
    assert!(checkpoint.get("c").unwrap().file.ends_with(two));
}

/// Indexes of real folders name tied tensors and buffers that were never saved, and tensors in other shards.
#[test]
fn an_index_names_files_and_promises_no_tensor() {
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let folder = sharded(&[("a", one), ("b", two), ("h.0.attn.bias", one), ("tied", two)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(checkpoint.get("b").unwrap().file.ends_with(one));
    let error = checkpoint.require("", "tied", &[2]).unwrap_err();
    assert!(matches!(&error, Error::Checkpoint { tensor: Some(t), .. } if t == "tied"), "{error:?}");
    assert!(error.to_string().contains("index.json"), "{error}");

    // The later of two shards has the last word, wherever the index points.
    let twice = sharded(&[("a", one), ("c", two)]);
    write(&twice.path().join(two), &[("a", 9.0, 1), ("c", 3.0, 4)]);
    let checkpoint = Checkpoint::open(twice.path()).unwrap();
    assert_eq!(
        (first_value(&checkpoint, "a"), checkpoint.get("a").unwrap().shape.as_slice()),
        (9.0, &[1][..])
    );
    assert_eq!(first_value(&checkpoint, "b"), 2.0);
}

#[test]
fn an_index_may_not_lead_out_of_the_folder() {
    let outside = tempdir().unwrap();
    write(&outside.path().join("x.safetensors"), &[("a", 1.0, 1)]);
    let absolute = outside.path().join("x.safetensors");
    for file in ["../x.safetensors", "sub/../../x.safetensors", absolute.to_str().unwrap(), "", ".", "a\0b"] {
        assert_refused(Checkpoint::open(sharded(&[("a", file)]).path()), Some("a"), "inside of the folder");
    }
}

#[test]
fn hostile_indexes_are_refused() {
    let one = "model-00001-of-00002.safetensors";
    let missing_shard = sharded(&[("a", one), ("z", "model-00003-of-00002.safetensors")]);
    assert_refused(Checkpoint::open(missing_shard.path()), Some("z"), "no such file");
    assert_refused(Checkpoint::open(sharded(&[]).path()), None, "an empty one");

    for text in
        ["", "{", "[]", "{}", "{\"weight_map\": 3}", "{\"weight_map\": {\"a\": 1}}", "\u{feff}{}", "nul"]
    {
        let folder = sharded(&[]);
        fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
        assert_refused(Checkpoint::open(folder.path()), None, "weight_map gives each tensor's file");
    }
    let folder = sharded(&[]);
    fs::write(folder.path().join("model.safetensors.index.json"), [0xff, 0xfe]).unwrap();
    assert_refused(Checkpoint::open(folder.path()), None, "weight_map");
}

#[test]
fn folders_without_usable_weights() {
    let folder = tempdir().unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(&error, Error::Io { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("expected one of model.safetensors, model.safetensors.index.json, pytorch_model.bin"),
        "{error}"
    );

    fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    assert!(matches!(Checkpoint::open(folder.path()), Err(Error::Io { .. })));
    let error = Checkpoint::open_safetensors(&folder.path().join("model.safetensors")).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
    assert!(matches!(Checkpoint::open(&folder.path().join("nowhere")), Err(Error::Io { .. })));
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_instead_of_waited_for() {
    let folder = tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let error = Checkpoint::open_safetensors(&pipe).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
}

#[test]
fn a_file_cut_short_while_it_is_read_is_an_error() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, &[("a", 1.0, 100), ("b", 2.0, 100)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let info = checkpoint.get("b").unwrap();
    let mut buf = vec![0; info.bytes];
    checkpoint.read(info, 0, &mut buf).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(info.offset + 8).unwrap();
    checkpoint.read(info, 0, &mut buf[..8]).unwrap();
    let error = checkpoint.read(info, 0, &mut buf).unwrap_err();
    assert!(
        matches!(&error, Error::Checkpoint { tensor: Some(t), file, .. } if t == "b" && Path::new(file) == path),
        "{error:?}"
    );
}

#[test]
fn lookups_accept_a_prefix_and_say_what_is_wrong() {
    let checkpoint = Checkpoint::from_memory(vec![
        memory("transformer.wte.weight", Dtype::F32, &[3, 2], vec![0; 24]),
        memory("ln_f.bias", Dtype::BF16, &[2], vec![0; 4]),
        memory("both", Dtype::F16, &[1], vec![1; 2]),
        memory("transformer.both", Dtype::F16, &[1], vec![2; 2]),
        memory("double", Dtype::F64, &[1], vec![0; 8]),
        memory("eight", Dtype::F8E4M3, &[1], vec![0; 1]),
        memory("h.0.attn.bias", Dtype::BOOL, &[2], vec![0; 2]),
        memory("scalar", Dtype::F32, &[], vec![0; 4]),
    ])
    .unwrap();
    let prefix = "transformer.";
    assert_eq!(checkpoint.require(prefix, "wte.weight", &[3, 2]).unwrap().name, "transformer.wte.weight");
    assert_eq!(checkpoint.require(prefix, "ln_f.bias", &[2]).unwrap().dtype, Dtype::BF16);
    assert_eq!(checkpoint.find(prefix, "both").unwrap().name, "transformer.both");
    assert_eq!(checkpoint.find("", "both").unwrap().name, "both");
    assert_eq!(checkpoint.require("", "scalar", &[]).unwrap().elements(), 1);
    assert_eq!(checkpoint.require("", "double", &[1]).unwrap().dtype, Dtype::F64);
    assert!(checkpoint.find(prefix, "wpe.weight").is_none());

    for (name, shape, fragments) in [
        (
            "wpe.weight",
            &[4, 2][..],
            ["tensor wpe.weight", "[4, 2]", "transformer.wpe.weight", "none among its 8"],
        ),
        (
            "wte.weight",
            &[2, 3],
            ["tensor transformer.wte.weight", "expected shape [2, 3]", "got [3, 2]", "memory"],
        ),
        ("eight", &[1], ["tensor eight", "F64, F32, F16 or BF16", "got F8_E4M3", "convert"]),
        ("h.0.attn.bias", &[2], ["tensor h.0.attn.bias", "F64, F32, F16 or BF16", "got BOOL", "memory"]),
    ] {
        let error = checkpoint.require(prefix, name, shape).unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }));
        let text = error.to_string();
        assert!(fragments.iter().all(|part| text.contains(part)), "{text}");
    }

    let used = ["transformer.wte.weight", "ln_f.bias", "double", "eight", "scalar", "absent"];
    assert_eq!(checkpoint.unknown(used), ["both", "h.0.attn.bias", "transformer.both"]);
    assert_eq!(checkpoint.unknown(used.map(String::from)).len(), 3);
}

#[test]
fn tensors_in_memory_are_checked() {
    let short = memory("a", Dtype::F32, &[2], vec![0; 7]);
    assert_refused(Checkpoint::from_memory(vec![short]), Some("a"), "got 7 bytes");
    let huge = memory("a", Dtype::F32, &[usize::MAX, 2], vec![0; 8]);
    assert_refused(Checkpoint::from_memory(vec![huge]), Some("a"), "got 8 bytes");
    let odd = memory("a", Dtype::F4, &[1], vec![0; 1]);
    assert_refused(Checkpoint::from_memory(vec![odd]), Some("a"), "got 1 bytes");
    let twice = || memory("a", Dtype::U8, &[1], vec![0; 1]);
    assert_refused(Checkpoint::from_memory(vec![twice(), twice()]), Some("a"), "a second time");
    assert!(Checkpoint::from_memory(Vec::new()).unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any range of any tensor reads as the same range of the bytes it was written from, in files and in memory;
    /// a range that leaves the tensor is an error, even where other tensors follow.
    #[test]
    fn reads_give_the_bytes(
        contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..5),
        which in any::<prop::sample::Index>(),
        start in 0usize..50,
        len in 0usize..50,
    ) {
        let names: Vec<String> = (0..contents.len()).map(|i| format!("t{i}")).collect();
        let folder = tempdir().unwrap();
        let views = names.iter().zip(&contents).map(|(name, bytes)| {
            (name, TensorView::new(ReferenceDtype::U8, vec![bytes.len()], bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
        let tensors = names.iter().zip(&contents).map(|(n, b)| memory(n, Dtype::U8, &[b.len()], b.clone())).collect();
        let which = which.index(contents.len());
        for checkpoint in [Checkpoint::open(folder.path()).unwrap(), Checkpoint::from_memory(tensors).unwrap()] {
            let info = checkpoint.get(&names[which]).unwrap();
            let mut buf = vec![0; len];
            let read = checkpoint.read(info, start, &mut buf);
            match contents[which].get(start..start + len) {
                Some(bytes) => {
                    prop_assert!(read.is_ok());
                    prop_assert_eq!(&buf[..], bytes);
                }
                None => {
                    let refused = matches!(read, Err(Error::Checkpoint { tensor: Some(_), .. }));
                    prop_assert!(refused);
                }
            }
        }
    }
}
