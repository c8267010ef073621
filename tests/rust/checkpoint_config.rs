//! Values of a config.json: strict as transformers 5.24 is, and every refusal names file, field, expected and got.

use std::fs;

use fastdecode::Error;
use fastdecode::checkpoint::config::ConfigFile;
use proptest::prelude::*;
use tempfile::tempdir;

fn config(text: &str) -> ConfigFile {
    ConfigFile::from_json("config.json", text).unwrap()
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, Error>, field_wanted: &str, got_wanted: &str) {
    match result.expect_err("the value should be refused") {
        Error::Config { file, field, expected, got } => {
            assert_eq!((file.as_str(), field.as_str()), ("config.json", field_wanted));
            assert!(got.contains(got_wanted), "{got}");
            assert!(!expected.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn sizes_are_positive_integers() {
    let sound = config(r#"{"n_layer": 12, "n_inner": null, "largest": 2147483647}"#);
    assert_eq!(sound.usize("n_layer").unwrap(), 12);
    assert_eq!(sound.usize_or("n_layer", 1).unwrap(), 12);
    assert_eq!(sound.usize_or("n_head", 7).unwrap(), 7);
    assert_eq!(sound.usize_opt("n_inner").unwrap(), None);
    assert_eq!(sound.usize_opt("absent").unwrap(), None);
    assert_eq!(sound.usize("largest").unwrap(), 2147483647);
    assert_refused(sound.usize("absent"), "absent", "no such field");
    for (text, got) in [
        ("0", "0"),
        ("-1", "-1"),
        ("12.0", "12.0"),
        ("12.5", "12.5"),
        ("\"12\"", "\"12\""),
        ("true", "true"),
        ("[12]", "[12]"),
        ("2147483648", "2147483648"),
        ("18446744073709551616", "1.8446744073709552e+19"),
        ("1000000000000000000000000000000", "1e+30"),
    ] {
        let odd = config(&format!(r#"{{"n_layer": {text}}}"#));
        assert_refused(odd.usize("n_layer"), "n_layer", got);
        assert_refused(odd.usize_or("n_layer", 12), "n_layer", got);
        assert_refused(odd.usize_opt("n_layer"), "n_layer", got);
    }
    assert_refused(config(r#"{"n_layer": null}"#).usize_or("n_layer", 12), "n_layer", "null");
}

#[test]
fn numbers_truth_values_and_strings() {
    let sound =
        config(r#"{"eps": 1e-5, "one": 1, "tie": false, "null": null, "act": "gelu_new", "big": 1e300}"#);
    assert_eq!(sound.f32_or("eps", 0.0).unwrap(), 1e-5);
    assert_eq!(sound.f64_or("eps", 0.0).unwrap(), 1e-5);
    assert_eq!(sound.f64_or("one", 0.0).unwrap(), 1.0);
    assert_refused(sound.f32_or("one", 0.0), "one", "1");
    assert_eq!(sound.f32_or("absent", 0.5).unwrap(), 0.5);
    assert_eq!(sound.f64_or("big", 0.0).unwrap(), 1e300);
    assert_refused(sound.f32_or("big", 0.0), "big", "1e+300");
    assert_refused(sound.f32_or("act", 0.0), "act", "gelu_new");
    assert_refused(sound.f64_or("null", 0.0), "null", "null");
    assert!(!sound.bool_or("tie", true).unwrap());
    assert!(sound.bool_or("absent", true).unwrap());
    assert_refused(sound.bool_or("one", true), "one", "1");
    assert_refused(sound.bool_or("null", true), "null", "null");
    assert_eq!(sound.bool_opt("null").unwrap(), None);
    assert_eq!(sound.bool_opt("tie").unwrap(), Some(false));
    assert_refused(sound.bool_opt("act"), "act", "gelu_new");
    assert_eq!(sound.str_or("act", "relu").unwrap(), "gelu_new");
    assert_eq!(sound.str_or("absent", "relu").unwrap(), "relu");
    assert_refused(sound.str_or("null", "relu"), "null", "null");
    assert_eq!(sound.str_opt("null").unwrap(), None);
    assert_refused(sound.str_opt("one"), "one", "1");
    assert_refused(sound.model_type().map(str::to_owned), "model_type", "no such field");
    let message = sound.invalid("act", "one of relu, silu").to_string();
    assert_eq!(message, r#"config.json: act: expected one of relu, silu, got "gelu_new""#);
}

#[test]
fn token_ids_are_one_many_or_none() {
    let sound = config(r#"{"one": 5, "many": [1, 2], "null": null, "none": []}"#);
    assert_eq!(sound.token_ids("one").unwrap(), Some(vec![5]));
    assert_eq!(sound.token_ids("many").unwrap(), Some(vec![1, 2]));
    assert_eq!(sound.token_ids("null").unwrap(), Some(vec![]));
    assert_eq!(sound.token_ids("none").unwrap(), Some(vec![]));
    assert_eq!(sound.token_ids("absent").unwrap(), None);
    for text in ["-1", "1.0", "\"x\"", "[1, null]", "[[1]]", "{}", "true", "4294967296"] {
        assert_refused(
            config(&format!(r#"{{"eos": {text}}}"#)).token_ids("eos"),
            "eos",
            text.split(' ').next().unwrap(),
        );
    }
}

#[test]
fn an_alias_wins_and_is_named_in_errors() {
    let aliases = [("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer")];
    let mut both = config(r#"{"n_embd": 64, "hidden_size": 48, "num_hidden_layers": 0}"#);
    both.apply_aliases(&aliases);
    assert_eq!(both.usize("n_embd").unwrap(), 48);
    assert!(both.value("hidden_size").is_none());
    assert_refused(both.usize("n_layer"), "num_hidden_layers", "0");
    let mut neither = config("{}");
    neither.apply_aliases(&aliases);
    assert_refused(neither.usize("n_embd"), "n_embd", "no such field");
}

#[test]
fn values_that_are_not_finite_are_refused_where_they_are_read() {
    for (text, got) in [
        (r#"{"a": 1, "eps": NaN}"#, "NaN"),
        (r#"{"a": "NaN \" Infinity", "eps" : -Infinity, "b": 1}"#, "-Infinity"),
        (r#"{"nested": {"NaN": [1, Infinity]}, "eps":Infinity}"#, "Infinity"),
        // Too large for double precision: Python reads infinity.
        (r#"{"a": 1e308, "eps": -1e999, "b": "2e999"}"#, "-1e999"),
    ] {
        let config = ConfigFile::from_json("config.json", text).unwrap();
        assert_refused(config.f64_or("eps", 1.0), "eps", got);
        assert_refused(config.f32_or("eps", 1.0), "eps", got);
        assert_refused(config.usize_or("eps", 1), "eps", got);
        assert_refused(config.bool_or("eps", true), "eps", got);
        assert_eq!(config.f64_or("other", 0.5).unwrap(), 0.5);
    }
}

#[test]
fn values_that_are_not_finite_leave_the_others_as_they_are() {
    let text =
        r#"{"a": "NaN \" -Infinity", "é": [NaN, {"x": -1e400}], "n": -12, "f": 1.5e3, "b\\": "Infinity"}"#;
    let config = ConfigFile::from_json("config.json", text).unwrap();
    assert_eq!(config.str_or("a", "").unwrap(), "NaN \" -Infinity");
    assert_eq!(config.str_or("b\\", "").unwrap(), "Infinity");
    assert_eq!(config.f64_or("n", 0.0).unwrap(), -12.0);
    assert_eq!(config.f64_or("f", 0.0).unwrap(), 1500.0);
    for text in ["{NaN: 1}", "{\"a\": NaN,}", "NaN", "{\"a\": NaNs}", "{\"a\": - Infinity}"] {
        assert_refused(ConfigFile::from_json("config.json", text), "the document", "");
    }
}

#[test]
fn documents_that_are_no_object() {
    for text in ["", "[]", "null", "3", "{", "{\"a\": 1,}", "{} x", "\u{feff}{}", "\"N", "{\"\\"] {
        assert_refused(ConfigFile::from_json("config.json", text), "the document", "");
    }
    let deep = "[".repeat(100_000);
    assert_refused(ConfigFile::from_json("config.json", &deep), "the document", "");
}

#[test]
fn files_are_opened_by_folder() {
    let folder = tempdir().unwrap();
    assert!(matches!(ConfigFile::open(folder.path()), Err(Error::Io { .. })));
    let path = folder.path().join("config.json");
    fs::write(&path, r#"{"model_type": "gpt2"}"#).unwrap();
    let config = ConfigFile::open(folder.path()).unwrap();
    assert_eq!(config.model_type().unwrap(), "gpt2");
    assert_eq!(config.label(), path.display().to_string());
    fs::write(&path, b"{\"model_type\": \"gpt\xff\"}").unwrap();
    let error = ConfigFile::open(folder.path()).unwrap_err();
    assert!(matches!(&error, Error::Config { file, .. } if *file == path.display().to_string()), "{error:?}");
}

#[test]
fn long_values_are_cut_in_errors() {
    let long = config(&format!(r#"{{"n_layer": "{}"}}"#, "é".repeat(10_000)));
    let message = long.usize("n_layer").unwrap_err().to_string();
    assert!(message.len() < 400, "{} bytes", message.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// No text makes the reader or a getter panic, and a refusal names the file.
    #[test]
    fn no_text_panics(text in r#"[\[\]{}:,"\\ NaInfty0-9eE.+é-]{0,40}"#) {
        match ConfigFile::from_json("config.json", &text) {
            Err(Error::Config { file, .. }) => prop_assert_eq!(file, "config.json"),
            Err(other) => prop_assert!(false, "{other:?}"),
            Ok(config) => drop((config.usize_or("", 1), config.f32_or("N", 0.0), config.token_ids("a"))),
        }
    }

    /// Integers in range are read as they are; everything else is refused.
    #[test]
    fn sizes_keep_their_value(x in prop_oneof![any::<i64>(), -3i64..100, (1i64 << 31) - 3..(1i64 << 31) + 3]) {
        let config = ConfigFile::from_json("config.json", &format!("{{\"x\": {x}}}")).unwrap();
        let expected = (1..1i64 << 31).contains(&x).then_some(x as usize);
        prop_assert_eq!(config.usize("x").ok(), expected);
    }
}
