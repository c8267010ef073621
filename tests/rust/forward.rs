//! The real forward over the golden models: a steady step allocates nothing, and waiting callers hold no activations.

use std::path::Path;
use std::sync::Arc;

use fastdecode::Error;
use fastdecode::models::{
    Cancel, Decoder, Input, Limits, LoadOptions, Model, Segment, Sequence, Source, Wanted,
};

use super::allocation::fewest_allocations;

/// Models of both kinds, with the lengths of their sources.
const MODELS: [(&str, usize); 4] =
    [("random-plain", 0), ("random-odd", 0), ("seq2seq-gated", 40), ("seq2seq-umt5", 21)];

fn load(name: &str, threads: usize) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let options = LoadOptions { num_threads: Some(threads), ..LoadOptions::default() };
    Model::load(&folder, &options, &Cancel::never()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Sequences of these lengths, read by the model; sources are of as many tokens as `source` and fewer.
fn sequences(model: &Model, lengths: &[usize], source: usize) -> Vec<<Model as Decoder>::Sequence> {
    let cancel = Cancel::never();
    let begin = |(i, &length): (usize, &usize)| {
        let ids: Vec<u32> = (0..source.saturating_sub(i)).map(|t| (t % 7) as u32).collect();
        let source = if source > 0 { Source::pending(ids) } else { Source::None };
        let mut sequence = model.start_from(source).unwrap();
        let tokens: Vec<u32> = (0..length).map(|t| ((t + i) % 5) as u32).collect();
        let segment =
            Segment { sequence: &mut sequence, input: Input::Tokens(&tokens), logits: Wanted::Nothing };
        model.forward(&mut [segment], &mut Vec::new(), &cancel).unwrap();
        sequence
    };
    lengths.iter().enumerate().map(begin).collect()
}

#[test]
fn a_steady_step_allocates_nothing_on_any_thread() {
    let (cancel, token) = (Cancel::never(), [1]);
    for (name, source) in MODELS {
        for threads in [1, 3] {
            let model = load(name, threads);
            // None of them opens a block of sixteen positions in the steps below.
            let mut all = sequences(&model, &[17, 3, 4, 1], source);
            let mut batch: Vec<Segment<'_, _>> = all
                .iter_mut()
                .map(|sequence| Segment { sequence, input: Input::Tokens(&token), logits: Wanted::Last })
                .collect();
            let mut logits = Vec::new();
            model.forward(&mut batch, &mut logits, &cancel).unwrap();
            let step = || model.forward(&mut batch, &mut logits, &cancel).unwrap();
            let count = fewest_allocations(threads, step);
            assert_eq!(count, 0, "{name}, {threads} threads");
            assert_eq!(logits.len(), 4 * model.vocab_size(), "there were steps");
            let unread = model.profile().counts();
            assert!(unread.lines.iter().all(|line| line.calls == 0), "{name}: nobody asked for counts");
            model.profile().begin();
            let step = || model.forward(&mut batch, &mut logits, &cancel).unwrap();
            let count = fewest_allocations(threads, step);
            assert_eq!(count, 0, "{name}, {threads} threads, with a profile");
        }
    }
}

#[test]
fn hidden_states_are_kept_for_whoever_asks() {
    let model = load("seq2seq-gated", 1);
    let generating = sequences(&model, &[3], 9);
    let output = generating[0].encoder_output().expect("the first forward encodes the source");
    assert!(output.hidden.is_none(), "a sequence needs keys and values alone");
    let encoded = model.encode(&[&[1, 2, 3]], &Cancel::never()).unwrap();
    let hidden = encoded[0].hidden.as_ref().expect("`encode` was asked for them");
    assert_eq!(hidden.len(), 3 * model.width(), "a row for each token");
}

#[test]
fn what_no_request_has_reserved_is_open() {
    let cancel = Cancel::never();
    for (name, source) in MODELS {
        let model = load(name, 1);
        let block = model.cache_block();
        assert_eq!(block.bytes, block.positions * model.info().cache_bytes_per_token, "{name}: a block");
        let blocks = |positions: usize| positions.div_ceil(block.positions) * block.bytes;
        let ids: Vec<u32> = (0..source).map(|t| (t % 7) as u32).collect();
        let looked_at = || if source > 0 { Source::pending(ids.clone()) } else { Source::None };
        let feed = |sequence: &mut _| {
            let segment = Segment { sequence, input: Input::Tokens(&[1; 20]), logits: Wanted::Nothing };
            model.forward(&mut [segment], &mut Vec::new(), &cancel).unwrap();
        };
        let mut request = model.start_reserved(looked_at()).unwrap();
        feed(&mut request);
        let mut beam = request.fork();
        feed(&mut beam);
        assert_eq!(model.open_bytes(), 0, "{name}: a request has reserved its blocks and its source's");
        // Its last block is copied, since the fork writes it.
        let reserved = model.memory().cache_bytes_live;
        assert_eq!(reserved, blocks(source) + blocks(20) + blocks(40) - block.bytes, "{name}: live");
        let mut state = model.start_from(looked_at()).unwrap();
        feed(&mut state);
        assert_eq!(model.open_bytes(), blocks(source) + blocks(20), "{name}: a state and its source");
        let mut fork = state.fork();
        drop(state);
        feed(&mut fork);
        assert_eq!(model.open_bytes(), blocks(source) + blocks(40), "{name}: a fork of it");
        drop(fork);
        assert_eq!(model.open_bytes(), 0, "{name}: all came back");
        if source > 0 {
            let memory = model.encode(&[&ids], &cancel).unwrap();
            assert_eq!(model.open_bytes(), blocks(source), "{name}: a source that a caller keeps");
            let mut over = model.start_reserved(Source::Encoded(Arc::clone(&memory[0]))).unwrap();
            feed(&mut over);
            assert_eq!(model.open_bytes(), blocks(source), "{name}: a request over it");
            drop(memory);
            assert_eq!(model.open_bytes(), blocks(source), "{name}: the request still looks at it");
        }
        assert_eq!(model.open_bytes(), 0, "{name}: nothing is open");
        if source == 0 {
            let mut plain = model.start(None).unwrap();
            feed(&mut plain);
            assert_eq!(model.open_bytes(), 0, "{name}: `start` is for requests");
        }
    }
}

#[test]
fn limits_are_those_asked_for() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/random-plain");
    let load = |cache_bytes, max_rows| {
        let options = LoadOptions { num_threads: Some(1), cache_bytes, max_rows, ..LoadOptions::default() };
        Model::load(&folder, &options, &Cancel::never())
    };
    let limits = load(Some(12_345), Some(3)).unwrap().limits();
    assert_eq!(limits, Limits { cache_bytes: 12_345, max_rows: 3, prefix_cache_bytes: 0 }, "as given");
    assert!(load(Some(1), Some(1)).is_ok() && load(Some(i64::MAX as u64), Some(1 << 16)).is_ok(), "the ends");
    let limits = load(None, None).unwrap().limits();
    assert_eq!(limits.max_rows, 64, "rows, where nothing is asked for");
    if cfg!(target_os = "linux") {
        let left = fastdecode::headroom::available().expect("the system tells");
        // Other tests of this process and of the machine take memory and give it back meanwhile.
        assert!(limits.cache_bytes > 0 && limits.cache_bytes < left, "{} of {left}", limits.cache_bytes);
    }
    for (cache_bytes, max_rows, name) in [
        (Some(0), None, "cache_bytes"),
        (Some(1 << 63), None, "cache_bytes"),
        (None, Some(0), "max_rows"),
        (None, Some((1 << 16) + 1), "max_rows"),
    ] {
        let error = load(cache_bytes, max_rows).unwrap_err();
        let Error::Option { option, got, .. } = error else { panic!("{error:?}") };
        let given = cache_bytes.or(max_rows.map(|n| n as u64)).map(|n| n.to_string());
        assert_eq!((&*option, Some(got)), (name, given), "what was asked for");
    }
}

#[test]
fn callers_share_one_set_of_activations() {
    let model = load("random-plain", 2);
    let (tokens, cancel) = ([1; 40], Cancel::never());
    let run = |model: &Model| {
        let mut sequence = model.start(None).unwrap();
        let segment = Segment { sequence: &mut sequence, input: Input::Tokens(&tokens), logits: Wanted::All };
        model.forward(&mut [segment], &mut Vec::new(), &cancel).unwrap();
    };
    run(&model);
    let one = model.memory().activation_bytes;
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| (0..20).for_each(|_| run(&model)));
        }
    });
    let after = model.memory();
    // Other tests of this process run beside this one, each with at most one set of a small model.
    assert!(after.activation_bytes <= one + (8 << 20), "{one} bytes, then {after:?}");
    assert_eq!(after.cache_bytes_live, 0, "every sequence is gone");
    let mut sequence = model.start(None).unwrap();
    let segment = Segment { sequence: &mut sequence, input: Input::Tokens(&tokens), logits: Wanted::Nothing };
    model.forward(&mut [segment], &mut Vec::new(), &cancel).unwrap();
    let block = 16 * model.info().cache_bytes_per_token;
    assert_eq!(model.memory().cache_bytes_live, 3 * block, "40 positions in blocks of 16");
    assert!(model.memory().cache_bytes_held >= 3 * block, "what is live is held");
    sequence.truncate(16);
    assert_eq!(model.memory().cache_bytes_live, block, "blocks past the length are freed");
}
