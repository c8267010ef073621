//! Files of torch.save read as what torch saved, and a pickle that wants anything but tensors is refused.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use fastdecode::Error;
use fastdecode::checkpoint::Checkpoint;
use proptest::prelude::*;
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

fn golden(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickle").join(name);
    assert!(path.exists(), "{} is missing; the repository holds it", path.display());
    path
}

fn assert_same_tensors(ours: &Checkpoint, truth: &str) {
    let truth = Checkpoint::open_safetensors(&golden(truth)).unwrap();
    assert_eq!(ours.names().collect::<Vec<_>>(), truth.names().collect::<Vec<_>>());
    for name in truth.names() {
        let (a, b) = (ours.get(name).unwrap(), truth.get(name).unwrap());
        assert_eq!((a.dtype, &a.shape, a.bytes), (b.dtype, &b.shape, b.bytes), "{name}");
        let (mut from_pickle, mut from_truth) = (vec![0; a.bytes], vec![0; b.bytes]);
        ours.read(a, 0, &mut from_pickle).unwrap();
        truth.read(b, 0, &mut from_truth).unwrap();
        assert_eq!(from_pickle, from_truth, "{name}");
    }
}

#[test]
fn every_dtype_and_layout_reads_as_torch_saved_it() {
    for file in ["tensors.bin", "tensors_protocol_4.bin", "legacy.bin", "legacy_protocol_4.bin"] {
        let checkpoint = Checkpoint::open_torch(&golden(file)).unwrap();
        assert_same_tensors(&checkpoint, "tensors.safetensors");
        let info = checkpoint.get("transposed").unwrap();
        assert_eq!(&*info.file, golden(file).display().to_string());
        let mut last = [0; 4];
        checkpoint.read(info, info.bytes - 4, &mut last).unwrap();
        assert!(checkpoint.read(info, info.bytes - 3, &mut last).is_err());
    }
}

#[test]
fn a_folder_is_searched_for_pickles_last() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden("tensors.bin"), folder.path().join("pytorch_model.bin")).unwrap();
    assert_same_tensors(&Checkpoint::open(folder.path()).unwrap(), "tensors.safetensors");
    fs::copy(golden("sharded.safetensors"), folder.path().join("model.safetensors")).unwrap();
    assert_same_tensors(&Checkpoint::open(folder.path()).unwrap(), "sharded.safetensors");
}

#[test]
fn shards_are_joined() {
    let checkpoint = Checkpoint::open(&golden("sharded")).unwrap();
    assert_same_tensors(&checkpoint, "sharded.safetensors");
    assert!(checkpoint.label().ends_with("pytorch_model.bin.index.json"));
}

#[track_caller]
fn assert_refused(path: &Path, phrases: &[&str]) {
    let error = Checkpoint::open_torch(path).expect_err("the file should be refused");
    assert!(matches!(&error, Error::Checkpoint { file, .. } if Path::new(file) == path), "{error:?}");
    let text = error.to_string();
    assert!(phrases.iter().all(|phrase| text.contains(phrase)), "{text}");
}

#[test]
fn files_that_are_no_state_dict_are_refused_by_name() {
    for (file, phrases) in [
        ("os_system.bin", &["tensors and nothing else", "posix.system"][..]),
        ("eval.bin", &["tensors and nothing else", "builtins.eval"]),
        ("whole_module.bin", &["torch.nn.modules.linear.Linear", "state_dict()"]),
        ("sparse.bin", &["torch._utils._rebuild_sparse_tensor"]),
        ("negated.bin", &["lazy view"]),
        ("nested.bin", &["tensor model", "a dict"]),
        ("list.bin", &["a list instead of a dict of tensors"]),
        ("expanded.bin", &["tensor w", "inside of its storage of 1 elements", "[1000, 1000]"]),
        ("compressed.bin", &["compressed", "save it again"]),
        ("big_endian.bin", &["little-endian", "got big"]),
        ("short_storage.bin", &["tensor f32", "15 elements of F32", "1 bytes"]),
        ("tensors.safetensors", &["zip archive", "something else"]),
    ] {
        assert_refused(&golden(file), phrases);
    }
}

#[test]
fn what_is_no_tensor_is_passed_over_and_told() {
    let checkpoint = Checkpoint::open_torch(&golden("not_a_tensor.bin")).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["w"]);
    assert_eq!(checkpoint.unknown(["w"]), ["step"]);
    assert_eq!(checkpoint.unknown::<&str>([]), ["w", "step"]);
}

#[test]
fn what_a_server_answers_is_told() {
    for (text, told) in [
        (&b""[..], "an empty file"),
        (b"<!DOCTYPE html><html>", "text, as a server answers"),
        (b"{\"error\":\"Entry not found\"}", "text, as a server answers"),
        (b"<\x02\0\0\0\0\0\0{}", "something else"),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        assert_refused(file.path(), &["expected a zip archive", told]);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), b"<!DOCTYPE html><html>").unwrap();
    let error = Checkpoint::open_safetensors(file.path()).unwrap_err().to_string();
    assert!(error.contains("got text, as a server answers"), "{error}");
}

#[test]
fn the_payload_of_a_hostile_pickle_does_not_run() {
    let before = fs::metadata("owned").is_ok();
    assert_refused(&golden("os_system.bin"), &["posix.system"]);
    assert!(
        !before && fs::metadata("owned").is_err(),
        "os.system was called, or a file `owned` was there before"
    );
}

/// An archive as torch.save writes it, with this pickle and one storage of eight bytes.
fn archive(program: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut zip = ZipWriter::new(file.reopen().unwrap());
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in [("archive/data.pkl", program), ("archive/data/0", &[1, 2, 3, 4, 5, 6, 7, 8])] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    file
}

/// The instructions for the storage of two f32.
const STORAGE: &[u8] = b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x02tQ";

/// A state dict of one tensor `w`: arguments for storage, first element, shape and strides.
fn one_tensor(storage: &[u8], offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let head = b"\x80\x02}\x8c\x01wctorch._utils\n_rebuild_tensor_v2\n(";
    [head, storage, offset, shape, strides, b"\x89NtRs."].concat()
}

#[test]
fn a_program_by_hand() {
    let file = archive(&one_tensor(STORAGE, b"K\x01", b"K\x01\x85", b"K\x01\x85"));
    let checkpoint = Checkpoint::open_torch(file.path()).unwrap();
    let mut bytes = [0; 4];
    checkpoint.read(checkpoint.get("w").unwrap(), 0, &mut bytes).unwrap();
    assert_eq!(bytes, [5, 6, 7, 8]);
}

#[test]
fn views_must_lie_inside_of_their_storage() {
    const MINUS_ONE: &[u8] = b"J\xff\xff\xff\xff";
    const HUGE: &[u8] = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    let (zero, one, two) = (b"K\x00", b"K\x01", b"K\x02");
    let tuple = |item: &[u8]| [item, b"\x85"].concat();
    let pair = |a: &[u8], b: &[u8]| [a, b, b"\x86"].concat();
    for (offset, shape, strides) in [
        (&one[..], tuple(two), tuple(one)),
        (two, tuple(one), tuple(one)),
        (zero, tuple(two), tuple(two)),
        (HUGE, tuple(one), tuple(one)),
        (zero, tuple(HUGE), tuple(one)),
        (zero, tuple(two), tuple(HUGE)),
        (zero, pair(HUGE, HUGE), pair(one, one)),
        (zero, pair(HUGE, zero), pair(HUGE, HUGE)),
        (zero, pair(two, two), pair(zero, one)),
    ] {
        let file = archive(&one_tensor(STORAGE, offset, &shape, &strides));
        let error = Checkpoint::open_torch(file.path()).err();
        // A shape with a zero in it has no element that could lie outside, whatever its strides.
        let empty = shape == pair(HUGE, zero);
        assert!(empty || error.is_some_and(|e| e.to_string().contains("inside of its storage")), "{shape:?}");
    }
    for (offset, shape, strides) in [
        (MINUS_ONE, tuple(one), tuple(one)),
        (zero, tuple(MINUS_ONE), tuple(one)),
        (zero, tuple(one), tuple(MINUS_ONE)),
        (zero, tuple(one), pair(one, one)),
        (zero, one.to_vec(), tuple(one)),
        (zero, tuple(b"N"), tuple(one)),
        (zero, [b"(".to_vec(), one.repeat(9), b"t".to_vec()].concat(), tuple(one)),
    ] {
        assert_refused(archive(&one_tensor(STORAGE, offset, &shape, &strides)).path(), &["a sound pickle"]);
    }
    for storage in [
        &b"N"[..],
        b"NQ",
        b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuNtQ",
        b"(\x8c\x07storageN\x8c\x010\x8c\x03cpuK\x02tQ",
        b"(\x8c\x05otherctorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x02tQ",
        b"ccollections\nOrderedDict\n",
    ] {
        assert_refused(
            archive(&one_tensor(storage, zero, &tuple(one), &tuple(one))).path(),
            &["a sound pickle"],
        );
    }
    let missing = b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x09../escape\x8c\x03cpuK\x02tQ";
    let file = archive(&one_tensor(missing, zero, &tuple(one), &tuple(one)));
    assert_refused(file.path(), &["tensor w", "archive/data/../escape", "no such entry"]);
}

#[test]
fn programs_that_do_not_run() {
    for program in [
        &b""[..],
        b".",
        b"\x80\x02",
        b"\x80\x01}.",
        b"\x80\x02N.",
        b"\x80\x02h\x00.",
        b"\x80\x02t.",
        b"\x80\x02\x86.",
        b"\x80\x02}K\x01K\x02s.",
        b"\x80\x02Na.",
        b"\x80\x02NNs.",
        b"\x80\x02}(Nu.",
        b"\x80\x02NNR.",
        b"\x80\x02NNb.",
        b"\x80\x02NNo.",
        b"\x80\x02N\x81.",
        b"\x80\x02\x8a\xff.",
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x80\x02\x8c\x01\xff.",
        b"\x80\x02cos\nsystem",
        b"\x80\x02cos\nsystem\n.",
        b"\x80\x02\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02NN\x93.",
        b"\x80\x02ccollections\nOrderedDict\nNR.",
        b"\x80\x02ccollections\nOrderedDict\n]\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\nN\x85R.",
    ] {
        assert_refused(archive(program).path(), &["a"]);
    }
}

/// Nesting, cycles and repetition cost no stack and no more than their length.
#[test]
fn deep_and_cyclic_programs_end() {
    let deep = [&b"\x80\x02"[..], b"N", &b"\x85".repeat(1_000_000), b"."].concat();
    assert_refused(archive(&deep).path(), &["a tuple instead of a dict of tensors"]);
    assert_refused(archive(b"\x80\x02]q\x00h\x00a.").path(), &["a list instead"]);
    let doubling = [&b"\x80\x02]q\x00"[..], &b"(h\x00h\x00e".repeat(100_000), b"."].concat();
    assert_refused(archive(&doubling).path(), &["a list instead"]);
}

#[test]
fn a_name_that_comes_again_is_refused() {
    let tensor =
        [&b"ctorch._utils\n_rebuild_tensor_v2\n("[..], STORAGE, b"K\x00K\x01\x85K\x01\x85\x89NtR"].concat();
    let twice = [&b"\x80\x02}\x8c\x01w"[..], &tensor, b"s\x8c\x01w", &tensor, b"s."].concat();
    assert_refused(archive(&twice).path(), &["tensor w", "every name once", "again"]);
    // One name of megabytes and one tensor, a million times: to copy it each time would take hours.
    let name = [&b"X"[..], &8_000_000_u32.to_le_bytes(), &vec![b'n'; 8_000_000], b"q\x00"].concat();
    let head = [&b"\x80\x02}q\x02"[..], &name, b"0", &tensor, b"q\x010h\x02"].concat();
    let program = [&head[..], b"(", &b"h\x00h\x01".repeat(1_000_000), b"u."].concat();
    assert_refused(archive(&program).path(), &["every name once"]);
    // As the name of something else it is shown in part, too.
    let other = [&head[..], b"(", b"h\x00N", b"u."].concat();
    let text = Checkpoint::open_torch(archive(&other).path()).unwrap_err().to_string();
    assert!(text.len() < 1000, "{} characters", text.len());
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let whole = fs::read(golden("tensors.bin")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    for length in (0..whole.len()).step_by(61).chain(whole.len() - 30..whole.len()) {
        fs::write(&path, &whole[..length]).unwrap();
        assert_refused(&path, &["expected"]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// A damaged file gives tensors that can be read, or an error that names it; never a panic.
    #[test]
    fn damage_never_panics(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = fs::read(golden("tensors.bin")).unwrap();
        for (at, byte) in edits {
            *at.get_mut(&mut bytes) = byte;
        }
        read_everything(&bytes)?;
    }

    /// The same for a random program of known instructions and of arbitrary bytes.
    #[test]
    fn random_programs_never_panic(
        parts in prop::collection::vec(
            prop_oneof![
                4 => prop::sample::select(vec![
                    &b"("[..], b")", b"}", b"]", b"N", b"K\x01", b"K\x02", b"\x85", b"\x86", b"t", b"a", b"e", b"s", b"u",
                    b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"0", b"1", b"2", b"R", b"Q", b"b", b"\x94", b"\x88",
                    b"\x8c\x01w", STORAGE, b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n",
                    b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nHalfStorage\n", b"\x93",
                ]).prop_map(<[u8]>::to_vec),
                1 => Just(one_tensor(STORAGE, b"K\x00", b"K\x02\x85", b"K\x01\x85")[2..].to_vec()),
                1 => prop::collection::vec(any::<u8>(), 1..4),
            ],
            0..30,
        ),
    ) {
        let program = [&b"\x80\x02"[..], &parts.concat(), b"."].concat();
        read_everything(&fs::read(archive(&program).path()).unwrap())?;
    }
}

fn read_everything(bytes: &[u8]) -> Result<(), TestCaseError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    match Checkpoint::open_torch(file.path()) {
        Ok(checkpoint) => {
            for name in checkpoint.names() {
                let info = checkpoint.get(name).unwrap();
                prop_assert_eq!(Some(info.bytes), info.dtype.bytes_of(&info.shape));
                prop_assert!(checkpoint.read(info, 0, &mut vec![0; info.bytes]).is_ok());
            }
        }
        Err(error) => prop_assert!(matches!(error, Error::Checkpoint { .. }), "{error:?}"),
    }
    Ok(())
}
