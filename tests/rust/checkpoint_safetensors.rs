//! A safetensors file gets the reference reader's verdict: 51 fixed files, and random ones that are bent and broken.

use std::path::{Path, PathBuf};

use fastdecode::Error;
use fastdecode::checkpoint::Checkpoint;
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/safetensors")
}

/// What our error says for each kind of error that the reference reader names.
const PHRASES: [(&str, &str); 10] = [
    ("InvalidOffset", "expected data_offsets that begin at"),
    ("MetadataIncompleteBuffer", "after the header, as its tensors cover"),
    ("HeaderTooLarge", "expected a header of at most 100000000 bytes"),
    ("HeaderTooSmall", "starts with the header's length in 8 bytes"),
    ("InvalidHeaderLength", "as the file's first 8 bytes say"),
    ("InvalidHeaderDeserialization", "expected a header that is a JSON object of tensors"),
    ("InvalidHeader", "expected a header in UTF-8"),
    ("TensorInvalidInfo", "bytes for"),
    ("ValidationOverflow", "whole number of bytes that fits the address space"),
    ("reject", ""),
];

#[test]
fn all_51_files_get_the_reference_verdict() {
    let manifest =
        std::fs::read_to_string(golden().join("manifest.json")).expect("manifest.json is in the repository");
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let cases = manifest["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 51);
    for case in cases {
        let file = case["file"].as_str().unwrap();
        let path = golden().join(file);
        assert_eq!(std::fs::metadata(&path).expect(file).len(), case["bytes"].as_u64().unwrap(), "{file}");
        let verdict = Checkpoint::open_safetensors(&path);
        if case["reference_safe_open"] == "accept" {
            let checkpoint = verdict.unwrap_or_else(|e| panic!("{file}: {e}"));
            let keys: Vec<&str> =
                case["keys"].as_array().unwrap().iter().map(|k| k.as_str().unwrap()).collect();
            assert_eq!(checkpoint.names().collect::<Vec<_>>(), keys, "{file}");
            continue;
        }
        let error = verdict.expect_err(file);
        assert!(matches!(&error, Error::Checkpoint { file, .. } if Path::new(file) == path), "{error:?}");
        let kind = case["expected"].as_str().unwrap();
        let phrase = PHRASES.iter().find(|(name, _)| *name == kind).expect(kind).1;
        assert!(error.to_string().contains(phrase), "{file} ({kind}): {error}");
    }
}

#[test]
fn errors_name_the_tensor() {
    for (file, tensor) in [
        ("rust_invalid_info", "test"),
        ("own_bad_dtype", "a"),
        ("own_negative_dim", "a"),
        ("own_missing_dtype", "a"),
        ("own_hole_between", "b"),
    ] {
        let error = Checkpoint::open_safetensors(&golden().join(format!("{file}.safetensors"))).unwrap_err();
        assert!(
            matches!(&error, Error::Checkpoint { tensor: Some(t), .. } if t == tensor),
            "{file}: {error:?}"
        );
    }
}

#[test]
fn a_git_lfs_pointer_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 548105171\n")
        .unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("git lfs pull"), "{error}");
}

/// Both readers on the same bytes: the same verdict, and the same tensors in the same place.
fn assert_same_verdict(bytes: &[u8]) -> Result<(), TestCaseError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let ours = Checkpoint::open_safetensors(file.path());
    match (SafeTensors::deserialize(bytes), ours) {
        (Ok(reference), Ok(ours)) => {
            let mut names: Vec<&str> = reference.names();
            names.sort_unstable();
            prop_assert_eq!(ours.names().collect::<Vec<_>>(), names);
            for (name, view) in reference.iter() {
                let info = ours.get(name).unwrap();
                prop_assert_eq!(info.dtype.name(), view.dtype().to_string());
                prop_assert_eq!(&info.shape[..], view.shape());
                let mut data = vec![0; info.bytes];
                ours.read(info, 0, &mut data).unwrap();
                prop_assert_eq!(&data[..], view.data());
            }
        }
        (Err(_), Err(ours)) => prop_assert!(matches!(ours, Error::Checkpoint { .. }), "{ours:?}"),
        (reference, ours) => {
            let reference = reference.map(|tensors| tensors.len());
            prop_assert!(false, "the reference says {reference:?}, ours {:?}", ours.map(|c| c.len()));
        }
    }
    Ok(())
}

/// A file with this header and this much data after it.
fn assemble(header: &[u8], data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

const DTYPES: [(&str, usize); 22] = [
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("C64", 64),
    ("F64", 64),
    ("I64", 64),
    ("U64", 64),
];

/// Headers whose tensors follow one another, in any order, now and then with a gap, and the size of their data.
fn plausible_header() -> impl Strategy<Value = (String, usize)> {
    let tensor =
        (0..DTYPES.len(), prop::collection::vec(0usize..5, 0..4), prop::bool::weighted(0.03), 0usize..3);
    let tensors = prop::collection::vec(tensor, 0..6);
    (tensors, any::<prop::sample::Index>(), prop::option::weighted(0.2, "[a-z]{0,3}")).prop_map(
        |(tensors, rotation, metadata)| {
            let mut fields = Vec::new();
            let mut end = 0;
            for (i, (dtype, shape, gap, padding)) in tensors.into_iter().enumerate() {
                let (dtype, bits) = DTYPES[dtype];
                let begin = end + usize::from(gap);
                end = begin + shape.iter().product::<usize>() * bits / 8;
                let space = " ".repeat(padding);
                fields.push(format!(
                    "{space}\"t{i}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},{space}\"data_offsets\":[{begin},{end}]}}"
                ));
            }
            if let Some(value) = metadata {
                fields.push(format!("\"__metadata__\":{{\"format\":\"{value}\"}}"));
            }
            if !fields.is_empty() {
                let by = rotation.index(fields.len());
                fields.rotate_left(by);
            }
            (format!("{{{}}}", fields.join(",")), end)
        },
    )
}

/// Pieces of JSON in places where they do not belong, and in unusual places where the reference takes them.
fn odd_value() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "null",
        "true",
        "-0",
        "0",
        "1",
        "2.0",
        "1e2",
        "-1",
        "18446744073709551615",
        "18446744073709551616",
        "\"F32\"",
        "\"F99\"",
        "\"\\ud800\"",
        "\"\\u0041\"",
        "[]",
        "{}",
        "[0,0]",
        "[1]",
        "[0,4]",
        "[0,0,0]",
        "NaN",
        "1e999",
        "{\"F32\":null}",
        "{\"U8\":1}",
        "\"x\\ny\"",
        "\"\\q\"",
    ])
    .prop_map(str::to_owned);
    let key = prop::sample::select(vec!["dtype", "shape", "data_offsets", "extra", "", "__metadata__"]);
    leaf.prop_recursive(3, 12, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|list| format!("[{}]", list.join(","))),
            prop::collection::vec((key.clone(), inner), 0..4).prop_map(|fields| {
                let fields: Vec<String> = fields.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

/// A tensor's entry with one of its fields replaced, repeated or in another form.
fn odd_entry() -> impl Strategy<Value = String> {
    prop_oneof![
        odd_value(),
        odd_value().prop_map(|v| format!(r#"{{"dtype":{v},"shape":[1],"data_offsets":[0,4]}}"#)),
        odd_value().prop_map(|v| format!(r#"{{"dtype":"F32","shape":{v},"data_offsets":[0,4]}}"#)),
        odd_value().prop_map(|v| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":{v}}}"#)),
        odd_value().prop_map(|v| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":{v}}}"#)),
        odd_value()
            .prop_map(|v| format!(r#"{{"dtype":"F32","shape":[1],"shape":{v},"data_offsets":[0,4]}}"#)),
        odd_value().prop_map(|v| format!(r#"["F32",{v},[0,4]]"#)),
        odd_value().prop_map(|v| format!(r#"[{v},[1],[0,4]]"#)),
        Just(r#"["F32",[1],[0,4]]"#.to_owned()),
        Just(r#"{"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]}"#.to_owned()),
    ]
}

fn odd_header() -> impl Strategy<Value = String> {
    let good = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let key = prop::sample::select(vec!["a", "b", "__metadata__", ""]);
    let entries =
        prop::collection::vec((key, prop_oneof![4 => odd_entry(), 1 => Just(good.to_owned())]), 0..4);
    let around = prop::sample::select(vec![
        ("", ""),
        (" ", "\n\t"),
        ("", "\0"),
        ("", "x"),
        ("\u{feff}", ""),
        ("[", "]"),
    ]);
    (entries, around).prop_map(|(entries, (before, after))| {
        let fields: Vec<String> = entries.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
        format!("{before}{{{}}}{after}", fields.join(","))
    })
}

#[test]
fn unusual_forms_pass_as_in_the_reference() {
    for header in [
        r#"{"a":["F32",[1],[0,4]]}"#,
        r#"{"a":{"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"__metadata__":null,"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":{"x":[1.5]}}}"#,
        r#"{"a":3,"a":{"data_offsets":[0,4],"shape":[1],"dtype":"F32"}}"#,
    ] {
        let bytes = assemble(header.as_bytes(), 4);
        assert_eq!(SafeTensors::deserialize(&bytes).is_ok(), header.find(":3").is_none(), "{header}");
        assert_same_verdict(&bytes).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plausible_files_agree(
        (header, size) in plausible_header(),
        short_or_long in prop::sample::select(vec![0i64, 0, 0, 0, -1, 1]),
    ) {
        let data = (size as i64 + short_or_long).max(0) as usize;
        assert_same_verdict(&assemble(header.as_bytes(), data))?;
    }

    #[test]
    fn odd_headers_agree(header in odd_header(), data in prop::sample::select(vec![0usize, 4, 8])) {
        assert_same_verdict(&assemble(header.as_bytes(), data))?;
    }

    #[test]
    fn broken_bytes_agree(
        (header, size) in plausible_header(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..3, any::<u8>()), 1..4),
    ) {
        let mut header = header.into_bytes();
        for (at, kind, byte) in edits {
            let at = at.index(header.len().max(1));
            match kind {
                0 => header.insert(at, byte),
                1 if at < header.len() => drop(header.remove(at)),
                _ if at < header.len() => header[at] = byte,
                _ => {}
            }
        }
        assert_same_verdict(&assemble(&header, size))?;
    }

    #[test]
    fn cut_files_agree((header, size) in plausible_header(), cut in any::<prop::sample::Index>()) {
        let bytes = assemble(header.as_bytes(), size);
        assert_same_verdict(&bytes[..cut.index(bytes.len())])?;
    }

    #[test]
    fn noise_agrees(bytes in prop::collection::vec(any::<u8>(), 0..64), length in 0u64..40) {
        assert_same_verdict(&bytes)?;
        let mut framed = length.to_le_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        assert_same_verdict(&framed)?;
    }
}
