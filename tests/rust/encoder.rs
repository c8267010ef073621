//! An encoder alone over the golden models: the hidden states of the whole model, nothing kept, nothing of a decoder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastdecode::Error;
use fastdecode::checkpoint::{Checkpoint, MemoryTensor};
use fastdecode::models::{Cancel, Decoder, LoadOptions, Model, Part, Pooling, Source};

/// Golden models with an encoder.
const MODELS: [&str; 4] = ["seq2seq-t5", "seq2seq-gated", "seq2seq-mt5", "seq2seq-umt5"];
/// What is only in a decoder, but for its embeddings.
const DECODER: &str = "decoder.block.";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn options(part: Part) -> LoadOptions {
    LoadOptions { part, num_threads: Some(2), ..LoadOptions::default() }
}

fn load(name: &str, part: Part) -> Result<Model, Error> {
    Model::load(&folder(name), &options(part), &Cancel::never())
}

/// A golden model of the tensors that are wanted; config.json names `class`, or no class.
fn rebuilt(
    name: &str,
    class: Option<&str>,
    part: Part,
    wanted: impl Fn(&str) -> bool,
) -> Result<Model, Error> {
    let checkpoint = Checkpoint::open(&folder(name)).unwrap();
    let tensor = |name: &str| {
        let info = checkpoint.get(name).unwrap();
        let mut bytes = vec![0; info.bytes];
        checkpoint.read(info, 0, &mut bytes).unwrap();
        let (name, shape) = (name.to_owned(), info.shape.clone());
        MemoryTensor { name, dtype: info.dtype, shape, bytes: Arc::new(bytes) }
    };
    let tensors = checkpoint.names().filter(|name| wanted(name)).map(tensor).collect();
    let text = std::fs::read_to_string(folder(name).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["architectures"] = class.into_iter().collect();
    let checkpoint = Checkpoint::from_memory(tensors)?;
    Model::from_checkpoint(&config.to_string(), &checkpoint, &options(part), &Cancel::never())
}

/// Sources of these lengths.
fn sources(lengths: &[usize]) -> Vec<Vec<u32>> {
    lengths.iter().map(|&n| (0..n as u32).map(|i| (i * 7 + n as u32) % 90).collect()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn hidden_states_are_those_of_the_whole_model() {
    let cancel = Cancel::never();
    for name in MODELS {
        let (whole, alone) = (load(name, Part::Folder).unwrap(), load(name, Part::Encoder).unwrap());
        let owned = sources(&[1, 40, 7, 300]);
        let sources: Vec<&[u32]> = owned.iter().map(Vec::as_slice).collect();
        let wanted = whole.encode(&sources, &cancel).unwrap();
        let states = alone.hidden_states(&sources, Pooling::Nothing, &cancel).unwrap();
        let means = alone.hidden_states(&sources, Pooling::Mean, &cancel).unwrap();
        for (place, wanted) in wanted.iter().enumerate() {
            assert_eq!(bits(&states[place]), bits(wanted.hidden.as_ref().unwrap()), "{name}, source {place}");
            let width = alone.width();
            let column = |x: usize| states[place].iter().skip(x).step_by(width).copied().map(f64::from);
            let mean = |x: usize| (column(x).sum::<f64>() / owned[place].len() as f64) as f32;
            let mean: Vec<f32> = (0..width).map(mean).collect();
            assert_eq!(bits(&means[place]), bits(&mean), "{name}, mean of source {place}");
        }
    }
}

#[test]
fn nothing_is_kept_and_nothing_is_computed_for_a_decoder() {
    for name in MODELS {
        let (whole, alone) = (load(name, Part::Whole).unwrap(), load(name, Part::Encoder).unwrap());
        assert!(alone.has_encoder() && !alone.has_decoder() && whole.has_decoder(), "{name}");
        // Keys and values of every decoder layer are the only other products that a source is in.
        let checkpoint = Checkpoint::open(&folder(name)).unwrap();
        let of_source = |name: &&str| {
            name.ends_with("EncDecAttention.k.weight") || name.ends_with("EncDecAttention.v.weight")
        };
        let weights = |name: &str| checkpoint.get(name).unwrap().elements();
        let kept: usize = checkpoint.names().filter(of_source).map(weights).sum();
        assert!(kept > 0, "{name} has a decoder");
        assert_eq!(whole.flops(50, 0).all() - alone.flops(50, 0).all(), (2 * 50 * kept) as u64, "{name}");
        let ids = [1; 33];
        alone.hidden_states(&[&ids], Pooling::Nothing, &Cancel::never()).unwrap();
        assert_eq!((alone.memory().cache_bytes_live, alone.open_bytes()), (0, 0), "{name}");
        let layers = checkpoint.names().filter(|name| name.ends_with("EncDecAttention.k.weight")).count();
        let (of_whole, of_alone) = (whole.info(), alone.info());
        assert!(of_alone.weight_bytes < of_whole.weight_bytes, "{name}");
        // A token takes keys and values of one layer of the encoder, and only while its source is read.
        assert_eq!(of_alone.cache_bytes_per_token * layers, of_whole.cache_bytes_per_token, "{name}");
    }
}

#[test]
fn what_needs_a_decoder_is_refused() {
    let (cancel, alone) = (Cancel::never(), load("seq2seq-t5", Part::Encoder).unwrap());
    let whole = load("seq2seq-t5", Part::Whole).unwrap();
    let refusals = [
        alone.encode(&[&[1, 2]], &cancel).map(drop),
        alone.start(Some(&[1, 2])).map(drop),
        alone.start(None).map(drop),
        alone.start_from(Source::pending(vec![1])).map(drop),
        alone.trace(Some(&[1]), &[1], &cancel).map(drop),
        Decoder::encode(&alone, &mut [&mut whole.start(Some(&[1])).unwrap()], &cancel),
        alone.forward(&mut [], &mut Vec::new(), &cancel),
        whole.hidden_states(&[&[1]], Pooling::Mean, &cancel).map(drop),
    ];
    for (place, refusal) in refusals.into_iter().enumerate() {
        assert!(
            matches!(&refusal, Err(Error::Option { option, .. }) if option == "model"),
            "{place}: {refusal:?}"
        );
    }
    let causal = load("random-plain", Part::Encoder).unwrap_err();
    let Error::UnsupportedModel { expected, got, .. } = causal else { panic!("{causal:?}") };
    assert_eq!((&*expected, &*got), ("mt5, t5, umt5", "gpt2"));
    let causal = load("random-plain", Part::Whole).unwrap();
    let refusal = causal.hidden_states(&[&[1]], Pooling::Mean, &cancel);
    assert!(matches!(refusal, Err(Error::Option { .. })), "{refusal:?}");
}

#[test]
fn a_folder_says_whether_it_is_an_encoder_alone() {
    let (class, encoder) = (Some("T5ForConditionalGeneration"), Some("T5EncoderModel"));
    let without = |name: &str| !name.contains("decoder.") && !name.contains("lm_head");
    // Class in config.json, part, whether the decoder's tensors are there; the outcome: None for an error.
    let cases = [
        (class, Part::Folder, true, Some(true)),
        (class, Part::Whole, true, Some(true)),
        (class, Part::Encoder, true, Some(false)),
        (class, Part::Folder, false, None),
        (class, Part::Whole, false, None),
        (class, Part::Encoder, false, Some(false)),
        (encoder, Part::Folder, true, Some(false)),
        (encoder, Part::Whole, true, Some(true)),
        (encoder, Part::Folder, false, Some(false)),
        (encoder, Part::Whole, false, Some(false)),
        (None, Part::Folder, true, Some(true)),
        (None, Part::Folder, false, Some(false)),
        (None, Part::Whole, false, Some(false)),
        (Some("MT5Model"), Part::Folder, false, None),
        (Some("T5ForTokenClassification"), Part::Folder, false, Some(false)),
    ];
    for (class, part, is_whole, outcome) in cases {
        let what = format!("{class:?}, {part:?}, a decoder's tensors: {is_whole}");
        match rebuilt("seq2seq-t5", class, part, |name| is_whole || without(name)) {
            Ok(model) => {
                assert_eq!(Some(model.has_decoder()), outcome, "{what}");
                assert!(model.info().unknown_tensors.is_empty(), "{what}");
            }
            Err(Error::Checkpoint { tensor: Some(tensor), expected, .. }) => {
                assert_eq!(outcome, None, "{what}");
                assert!(tensor.starts_with(DECODER), "{what}: {tensor}");
                assert!(
                    expected.contains(class.unwrap()) && expected.contains("TextEncoder.load"),
                    "{expected}"
                );
            }
            Err(other) => panic!("{what}: {other:?}"),
        }
    }
    // A decoder of which a part is missing is a damaged one.
    let damaged = |name: &str| !name.contains("decoder.block.0.layer.2");
    match rebuilt("seq2seq-t5", None, Part::Folder, damaged) {
        Err(Error::Checkpoint { expected, .. }) => assert!(!expected.contains("TextEncoder"), "{expected}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_step_reads_as_many_sources_as_the_limits_allow() {
    let with = |cache_bytes: Option<usize>, max_rows| {
        let cache_bytes = cache_bytes.map(|bytes| bytes as u64);
        let options = LoadOptions { cache_bytes, max_rows, ..options(Part::Encoder) };
        Model::load(&folder("seq2seq-t5"), &options, &Cancel::never()).unwrap()
    };
    let owned = sources(&[10, 20, 30, 4]);
    let sources: Vec<&[u32]> = owned.iter().map(Vec::as_slice).collect();
    let model = with(None, None);
    let bytes = model.cache_block().bytes;
    for (tokens, count) in [(64, 4), (63, 3), (60, 3), (59, 2), (10, 1), (1, 1)] {
        assert_eq!(model.side_by_side(&sources, tokens), count, "{tokens} tokens");
    }
    for (blocks, count) in [(6, 4), (5, 3), (4, 2), (3, 2), (2, 1)] {
        assert_eq!(with(Some(blocks * bytes), None).side_by_side(&sources, 64), count, "{blocks} blocks");
    }
    for (rows, count) in [(1, 1), (2, 2), (4, 4), (9, 4)] {
        assert_eq!(with(None, Some(rows)).side_by_side(&sources, 64), count, "{rows} rows");
    }
    let small = with(Some(2 * bytes - 1), None);
    assert!(small.check_sources(&[&[1; 16]]).is_ok(), "one block");
    let refusal = small.check_sources(&[&[1], &[1; 17]]).unwrap_err();
    let Error::Option { option, expected, got } = refusal else { panic!("{refusal:?}") };
    assert_eq!((&*option, &*got), ("source", "17"));
    assert!(expected.starts_with("at most 16 tokens"), "{expected}");
    for bad in [&[][..], &[97]] {
        assert!(matches!(model.check_sources(&[bad]), Err(Error::Option { .. })), "{bad:?}");
    }
}
