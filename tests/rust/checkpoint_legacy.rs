//! The stream of pickles that torch.save wrote before its archives: what it holds is read, and nothing else is believed or executed.

use std::fs;
use std::path::{Path, PathBuf};

use fastdecode::Error;
use fastdecode::checkpoint::Checkpoint;
use proptest::prelude::*;

use super::allocation::largest_allocation;

const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
/// The version, 1001, and the facts about the machine, of which none are needed.
const VERSION: &[u8] = b"\x80\x02M\xe9\x03.";
const MACHINE: &[u8] = b"\x80\x02}q\x00X\x0d\x00\x00\x00little_endianq\x01\x88s.";
/// The list of one storage, `7`, and the two elements that follow it.
const KEYS: &[u8] = b"\x80\x02]q\x00X\x01\x00\x00\x007q\x01a.";
const ELEMENTS: &[u8] = b"\x02\0\0\0\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08";
/// The storage as a persistent id, whose last item says which part of it is meant.
const WHOLE: &[u8] = b"N";

fn golden(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickle").join(name);
    assert!(path.exists(), "{} is missing; the repository holds it", path.display());
    path
}

/// A storage of `len` f32, of which `part` is meant.
fn storage(len: &[u8], part: &[u8]) -> Vec<u8> {
    [b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x007X\x03\0\0\0cpu", len, part, b"tQ"].concat()
}

/// The state dict of one tensor `w`.
fn tensor(storage: &[u8], offset: u8, count: u8) -> Vec<u8> {
    let head = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(";
    [&head[..], storage, &[b'K', offset, b'K', count], b"\x85K\x01\x85\x89NtRs."].concat()
}

fn stream(parts: &[&[u8]]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), parts.concat()).unwrap();
    file
}

/// A file with these tensors, of which everything else is sound.
fn with_tensors(program: &[u8]) -> tempfile::NamedTempFile {
    stream(&[MAGIC, VERSION, MACHINE, program, KEYS, ELEMENTS])
}

fn sound() -> Vec<u8> {
    tensor(&storage(b"K\x02", WHOLE), 0, 2)
}

fn values(checkpoint: &Checkpoint) -> Vec<u8> {
    let info = checkpoint.get("w").unwrap();
    let mut bytes = vec![0; info.bytes];
    checkpoint.read(info, 0, &mut bytes).unwrap();
    bytes
}

#[track_caller]
fn assert_refused(path: &Path, phrases: &[&str]) {
    let (opened, largest) = largest_allocation(|| Checkpoint::open_torch(path));
    let error = opened.expect_err("the file should be refused");
    assert!(matches!(&error, Error::Checkpoint { file, .. } if Path::new(file) == path), "{error:?}");
    let text = error.to_string();
    assert!(phrases.iter().all(|phrase| text.contains(phrase)), "{text}");
    assert!(largest < 1 << 20, "{largest} bytes at once");
}

#[test]
fn a_stream_by_hand() {
    let file = with_tensors(&sound());
    assert_eq!(values(&Checkpoint::open_torch(file.path()).unwrap()), [1, 2, 3, 4, 5, 6, 7, 8]);
    let second = with_tensors(&tensor(&storage(b"K\x02", WHOLE), 1, 1));
    assert_eq!(values(&Checkpoint::open_torch(second.path()).unwrap()), [5, 6, 7, 8]);
    // What follows the last storage is nobody's, as for torch.
    let longer = stream(&[MAGIC, VERSION, MACHINE, &sound(), KEYS, ELEMENTS, b"more"]);
    assert!(Checkpoint::open_torch(longer.path()).is_ok());
}

/// Files of the oldest torch name parts of a storage: a key, the first element and the number of elements.
#[test]
fn a_part_of_a_storage() {
    let part = |first: u8, count: u8| [b"X\x01\0\0\x008K", &[first, b'K', count, 0x87][..]].concat();
    let read = |part: &[u8], offset, count| {
        Checkpoint::open_torch(with_tensors(&tensor(&storage(b"K\x02", part), offset, count)).path())
    };
    assert_eq!(values(&read(&part(1, 1), 0, 1).unwrap()), [5, 6, 7, 8]);
    assert_eq!(values(&read(&part(0, 1), 0, 1).unwrap()), [1, 2, 3, 4]);
    for (part, offset, count, phrase) in [
        (part(0, 1), 0, 2, "inside of its storage"),
        (part(0, 1), 1, 1, "inside of its storage"),
        (part(1, 1), 1, 1, "inside of its storage"),
        (part(1, 2), 0, 1, "outside of its storage"),
        (
            b"X\x01\0\0\x008K\x01\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x87".to_vec(),
            0,
            1,
            "outside of its storage",
        ),
        (b"X\x01\0\0\x008J\xff\xff\xff\xffK\x01\x87".to_vec(), 0, 1, "at least 0"),
        (b"K\x01".to_vec(), 0, 1, "no storage"),
        (b")".to_vec(), 0, 1, "no storage"),
        (Vec::new(), 0, 1, "no storage"),
        (b"NN".to_vec(), 0, 1, "no storage"),
    ] {
        let text = read(&part, offset, count).expect_err("the part should be refused").to_string();
        assert!(text.contains(phrase), "{text}");
    }
}

#[test]
fn nothing_is_executed_wherever_it_stands() {
    let payload = b"\x80\x02cposix\nsystem\nX\x12\0\0\0echo owned > ownedq\x00\x85R.";
    for parts in [
        [MAGIC, payload, MACHINE, &sound(), KEYS, ELEMENTS],
        [MAGIC, VERSION, payload, &sound(), KEYS, ELEMENTS],
        [MAGIC, VERSION, MACHINE, payload, KEYS, ELEMENTS],
        [MAGIC, VERSION, MACHINE, &sound(), payload, ELEMENTS],
    ] {
        assert_refused(stream(&parts).path(), &["tensors and nothing else", "posix.system"]);
    }
    let whole = b"\x80\x02(X\x06\0\0\0moduleccollections\nOrderedDict\nNNtQ.";
    assert_refused(with_tensors(whole).path(), &["no storage"]);
    assert!(fs::metadata("owned").is_err(), "os.system was called");
}

#[test]
fn lists_and_counts_must_fit() {
    let storages =
        |keys: &[u8], elements: &[u8]| stream(&[MAGIC, VERSION, MACHINE, &sound(), keys, elements]);
    for (keys, elements, phrases) in [
        (&b"\x80\x02]."[..], ELEMENTS, &["tensor w", "storage 7 in the list"][..]),
        (
            b"\x80\x02](X\x01\0\0\x007X\x01\0\0\x008e.",
            &[ELEMENTS, ELEMENTS].concat(),
            &["storage 8 in the list"],
        ),
        (b"\x80\x02](X\x01\0\0\x007X\x01\0\0\x007e.", &[ELEMENTS, ELEMENTS].concat(), &["one twice"]),
        (b"\x80\x02]K\x07a.", ELEMENTS, &["something else in it"]),
        (b"\x80\x02}.", ELEMENTS, &["a dict instead of a list of names"]),
        (KEYS, b"\x01\0\0\0\0\0\0\0\x01\x02\x03\x04", &["2 elements in storage 7", "got 1"]),
        (KEYS, &[0xff; 16], &["2 elements in storage 7", "18446744073709551615"]),
        (KEYS, &ELEMENTS[..15], &["8 bytes of storage 7", "cut short"]),
        (KEYS, &ELEMENTS[..7], &["cut short"]),
        (KEYS, b"", &["cut short"]),
    ] {
        assert_refused(storages(keys, elements).path(), phrases);
    }
    // Sizes are held against the file, not believed.
    let huge = tensor(&storage(b"\x8a\x08\0\0\0\0\0\0\0\x40", WHOLE), 0, 2);
    let count = b"\0\0\0\0\0\0\0\x40\x01\x02\x03\x04\x05\x06\x07\x08";
    assert_refused(
        stream(&[MAGIC, VERSION, MACHINE, &huge, KEYS, count]).path(),
        &["storage 7", "cut short"],
    );
    let negative = tensor(&storage(b"J\xff\xff\xff\xff", WHOLE), 0, 2);
    assert_refused(with_tensors(&negative).path(), &["no storage"]);
}

#[test]
fn other_streams_are_told_apart() {
    let other_magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x18.";
    let zip = "a zip archive as torch.save writes it";
    assert_refused(
        stream(&[other_magic, VERSION, MACHINE, &sound(), KEYS, ELEMENTS]).path(),
        &[zip, "something else"],
    );
    assert_refused(stream(&[&sound()]).path(), &[zip, "before torch 1.6", "something else"]);
    assert_refused(stream(&[b"version https://git-lfs"]).path(), &[zip, "git lfs pull"]);
    assert_refused(stream(&[MAGIC, b"\x80\x02M\xe8\x03.", MACHINE]).path(), &["version 1001", "got 1000"]);
    assert_refused(stream(&[MAGIC, b"\x80\x02}."]).path(), &["a dict instead of an int"]);
    assert_refused(with_tensors(b"\x80\x02].").path(), &["a list instead of a dict of tensors"]);
}

#[test]
fn a_stream_cut_anywhere_is_an_error() {
    let whole = fs::read(golden("legacy.bin")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert_refused(&path, &["expected"]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// A damaged file gives tensors that can be read, or an error that names it; never a panic.
    #[test]
    fn damage_never_panics(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = fs::read(golden("legacy.bin")).unwrap();
        for (at, byte) in edits {
            *at.get_mut(&mut bytes) = byte;
        }
        let file = stream(&[&bytes]);
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
    }
}
