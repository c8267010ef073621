//! Files and options from anywhere: whatever is changed in a valid one, it is read, or refused with an error of its kind, and
//! memory is taken in proportion to what there is to read.
//!
//! Panics and overflows of the stack end a test by themselves.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use fastdecode::Error;
use fastdecode::checkpoint::Checkpoint;
use fastdecode::decode::beam::EarlyStopping;
use fastdecode::engine::{Limit, Options, Seed};
use fastdecode::models::{Cancel, ContextLength, LoadOptions, Model};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use zip::write::{SimpleFileOptions, ZipWriter};

use super::allocation::largest_allocation;

/// What a reader may take at once, whatever the file: buffers of files and of the zip reader, first growth of tables.
const ANYWAY: usize = 1 << 17;
/// What it may take at once for each byte of the file: an entry of a table is larger than the fewest bytes that name it.
const PER_BYTE: usize = 8;
/// What a model may take at once beside that: the bucket of every distance, of which there may be 65,536 either way.
const DISTANCES: usize = 4 * (2 * 65_536 + 1) + 64;

fn golden(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    assert!(path.exists(), "{} is missing; the repository holds it", path.display());
    path
}

/// A change of some bytes.
#[derive(Debug, Clone)]
enum Edit {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// Copies some bytes to another place.
    Repeat(Index, Index, usize),
    Cut(Index),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    // Digits, brackets and the ends of numbers: what sizes, lengths and nesting are written with.
    let telling = prop::sample::select(vec![
        b"9".to_vec(),
        b"-".to_vec(),
        b"[".to_vec(),
        b"{".to_vec(),
        b"\"".to_vec(),
        b"99999999999".to_vec(),
        vec![0xff; 4],
        vec![0xff; 8],
        vec![0; 8],
        vec![b'['; 300],
        vec![b'('; 300],
    ]);
    let edit = prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        2 => (any::<Index>(), telling).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        1 => (any::<Index>(), 1usize..20).prop_map(|(at, count)| Edit::Remove(at, count)),
        1 => (any::<Index>(), any::<Index>(), 1usize..60).prop_map(|(from, to, count)| Edit::Repeat(from, to, count)),
        1 => any::<Index>().prop_map(Edit::Cut),
    ];
    prop::collection::vec(edit, 1..6)
}

/// The bytes after some changes.
fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let place = |index: &Index| index.index(bytes.len() + 1);
        match edit {
            Edit::Set(at, byte) => {
                let at = place(at);
                if let Some(here) = bytes.get_mut(at) {
                    *here = *byte;
                }
            }
            Edit::Insert(at, new) => {
                let at = place(at);
                drop(bytes.splice(at..at, new.iter().copied()));
            }
            Edit::Remove(at, count) => {
                let at = place(at);
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Edit::Repeat(from, to, count) => {
                let (from, to) = (place(from), place(to));
                let copy = bytes[from..(from + count).min(bytes.len())].to_vec();
                drop(bytes.splice(to..to, copy));
            }
            Edit::Cut(at) => bytes.truncate(place(at)),
        }
    }
    bytes
}

/// Opens a file of weights and reads all of it; memory is held against its size.
fn hold(bytes: &[u8], open: fn(&Path) -> Result<Checkpoint, Error>) -> Result<(), TestCaseError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let (opened, largest) = largest_allocation(|| open(file.path()));
    prop_assert!(
        largest <= ANYWAY + PER_BYTE * bytes.len(),
        "{largest} bytes at once for a file of {}",
        bytes.len()
    );
    match opened {
        Ok(checkpoint) => {
            for name in checkpoint.names() {
                let info = checkpoint.get(name).unwrap();
                prop_assert_eq!(Some(info.bytes), info.dtype.bytes_of(&info.shape), "{}", name);
                prop_assert!(info.bytes <= bytes.len(), "{name}: no more than the file has");
                prop_assert!(checkpoint.read(info, 0, &mut vec![0; info.bytes]).is_ok(), "{name} is read");
            }
        }
        Err(error) => {
            prop_assert!(matches!(error, Error::Checkpoint { .. }), "{error:?}");
            prop_assert!(!error.to_string().is_empty(), "an error says something");
        }
    }
    Ok(())
}

/// A file of torch.save with its program changed, as a zip archive whose checksums are right.
fn with_program(path: &Path, edits: &[Edit]) -> Vec<u8> {
    let mut archive = zip::ZipArchive::new(fs::File::open(path).unwrap()).unwrap();
    let mut out = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let name = entry.name().unwrap().into_owned();
        if name.ends_with("data.pkl") {
            bytes = edited(bytes, edits);
        }
        let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        out.start_file(name, stored).unwrap();
        out.write_all(&bytes).unwrap();
    }
    out.finish().unwrap().into_inner()
}

/// Values that a field of a config may hold by mistake or by malice.
fn odd_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => prop::sample::select(vec![0i64, -1, 1, 2, 3, 7, 64, 65536, 1 << 31, i64::MAX]).prop_map(Value::from),
        1 => prop::sample::select(vec![0.5, -0.0, 1e-30, 1e30, 1e300]).prop_map(Value::from),
        1 => prop::sample::select(vec!["", "relu", "gated-gelu", "gpt2", "t5", "12"]).prop_map(Value::from),
        1 => prop::sample::select(vec![json!(null), json!(true), json!([]), json!([1, 2]), json!({"a": {}})]),
    ]
}

/// Loads a model, and asks for something from whatever can be loaded.
fn hold_model(text: &str, weights: &Checkpoint) -> Result<(), TestCaseError> {
    let options = LoadOptions { num_threads: Some(1), ..LoadOptions::default() };
    let bytes: usize = weights.names().map(|name| weights.get(name).unwrap().bytes).sum();
    let (loaded, largest) =
        largest_allocation(|| Model::from_checkpoint(text, weights, &options, &Cancel::never()));
    let most = ANYWAY + DISTANCES + PER_BYTE * (bytes + text.len());
    prop_assert!(largest <= most, "{largest} bytes at once for weights of {bytes}");
    match loaded {
        Ok(model) => prop_assert!(model.embed(&[0]).is_ok(), "every model has a first token"),
        Err(error) => prop_assert!(
            matches!(error, Error::Config { .. } | Error::Checkpoint { .. } | Error::UnsupportedModel { .. }),
            "{error:?}"
        ),
    }
    Ok(())
}

fn some_usize() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..4, Just(1000), Just(u32::MAX as usize), Just(usize::MAX - 1), Just(usize::MAX)]
}

fn some_f64() -> impl Strategy<Value = f64> {
    prop_oneof![any::<f64>(), prop::sample::select(vec![0.0, 1.0, -1.0, 0.5, 1e-46, f64::NAN, f64::INFINITY])]
}

prop_compose! {
    fn options()(
        limit in (0usize..4, some_usize()),
        mins in (some_usize(), some_usize()),
        numbers in (some_f64(), some_f64(), prop::option::of(some_f64()), some_f64(), some_f64(), some_f64()),
        counts in (some_usize(), some_usize(), some_usize(), some_usize()),
        filters in (prop::option::of(some_usize()), prop::option::of(some_usize())),
        flags in (any::<bool>(), prop::option::of(0usize..4)),
    ) -> Options {
        Options {
            limit: [Limit::NewTokens as fn(usize) -> Limit, Limit::Length, Limit::UpToNewTokens, Limit::Default][limit.0](limit.1),
            min_new_tokens: mins.0,
            min_length: mins.1,
            do_sample: flags.0,
            temperature: numbers.0,
            top_k: filters.0,
            top_p: numbers.1,
            min_p: numbers.2,
            repetition_penalty: numbers.3,
            encoder_repetition_penalty: numbers.4,
            no_repeat_ngram_size: counts.0,
            encoder_no_repeat_ngram_size: counts.1,
            num_return_sequences: counts.2,
            num_beams: counts.3,
            length_penalty: numbers.5,
            early_stopping: EarlyStopping::Heuristic,
            logprobs: filters.1,
            seed: flags.1.map_or(Seed::Entropy, |seeds| Seed::PerPrompt(vec![1; seeds])),
            ..Options::default()
        }
    }
}

/// As many cases for each kind, and no file of failures in the repository.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(1500))]

    #[test]
    fn any_safetensors_file_is_read_or_refused(
        file in prop::sample::select(vec!["pickle/tensors.safetensors", "pickle/sharded.safetensors", "safetensors/own_bf16_f16.safetensors"]),
        edits in edits(),
    ) {
        hold(&edited(fs::read(golden(file)).unwrap(), &edits), Checkpoint::open_safetensors)?;
    }

    #[test]
    fn any_file_of_torch_is_read_or_refused(
        file in prop::sample::select(vec![
            "tensors.bin", "tensors_protocol_4.bin", "compressed.bin", "sparse.bin", "legacy.bin", "legacy_protocol_4.bin",
        ]),
        edits in edits(),
        inside: bool,
    ) {
        let path = golden("pickle").join(file);
        let stored = file != "compressed.bin" && !file.starts_with("legacy");
        let bytes = if inside && stored {
            with_program(&path, &edits)
        } else {
            edited(fs::read(&path).unwrap(), &edits)
        };
        hold(&bytes, Checkpoint::open_torch)?;
    }

    #[test]
    fn any_options_are_taken_or_refused(
        options in options(),
        prompts in 0usize..4,
        length in some_usize(),
        // A config holds at most this.
        context in prop::option::of(prop_oneof![0usize..6, Just(1000), Just(i32::MAX as usize)]),
        usual in prop::option::of(prop_oneof![0usize..6, Just(1000), Just(i32::MAX as usize)]),
    ) {
        let refused = |error: &Error| matches!(error, Error::Option { .. } | Error::ContextLength { .. });
        let known = ContextLength { limit: context, usual, reason: "" };
        let taken = options.validate(prompts).and_then(|()| options.max_new_tokens(length, known));
        match taken {
            Ok(count) => {
                prop_assert!(count >= 1, "a row gets a token");
                // The last new token is never fed back, so that a number of new tokens may end one past the positions.
                let unfed = u128::from(matches!(options.limit, Limit::NewTokens(_)));
                let end = length as u128 + count as u128 - unfed;
                prop_assert!(context.is_none_or(|context| end <= context as u128), "{count} new tokens");
                let asked = !matches!(options.limit, Limit::Default(_));
                prop_assert!(asked || usual.is_none_or(|usual| end <= usual as u128), "{count} new tokens");
                let sound = options.temperature > 0.0 && (0.0..=1.0).contains(&options.top_p);
                prop_assert!(sound && options.num_beams >= 1, "{options:?}");
            }
            Err(error) => prop_assert!(refused(&error), "{error:?}"),
        }
    }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn any_config_is_taken_or_refused(
        folder in prop::sample::select(vec!["random-smallest", "random-odd", "seq2seq-t5", "seq2seq-gated", "seq2seq-umt5"]),
        values in prop::collection::vec((any::<Index>(), odd_value()), 0..4),
        edits in prop::option::of(edits()),
    ) {
        let weights = Checkpoint::open(&golden(folder)).unwrap();
        let text = fs::read_to_string(golden(folder).join("config.json")).unwrap();
        let mut config: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        // A key that comes with a default may be absent from the file.
        for key in ["relative_attention_max_distance", "relative_attention_num_buckets", "n_inner", "num_decoder_layers"] {
            config.entry(key).or_insert(json!(null));
        }
        for (at, value) in values {
            let key = config.keys().nth(at.index(config.len())).unwrap().clone();
            config.insert(key, value);
        }
        config.retain(|key, value| !value.is_null() || !key.starts_with("relative"));
        let mut text = Value::Object(config).to_string();
        if let Some(edits) = edits {
            text = String::from_utf8_lossy(&edited(text.into_bytes(), &edits)).into_owned();
        }
        hold_model(&text, &weights)?;
    }
}
