//! The real forward over the golden models: a steady step allocates nothing, and waiting callers hold no activations.

use std::path::Path;

use fastdecode::models::{Cancel, Decoder, Input, LoadOptions, Model, Segment, Sequence, Source, Wanted};

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
fn callers_share_one_set_of_activations() {
    let model = load("random-plain", 2);
    let (tokens, cancel) = ([1; 40], Cancel::never());
    let run = |model: &Model| {
        let mut sequence = model.start();
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
    let mut sequence = model.start();
    let segment = Segment { sequence: &mut sequence, input: Input::Tokens(&tokens), logits: Wanted::Nothing };
    model.forward(&mut [segment], &mut Vec::new(), &cancel).unwrap();
    let block = 16 * model.info().cache_bytes_per_token;
    assert_eq!(model.memory().cache_bytes_live, 3 * block, "40 positions in blocks of 16");
    assert!(model.memory().cache_bytes_held >= 3 * block, "what is live is held");
    sequence.truncate(16);
    assert_eq!(model.memory().cache_bytes_live, block, "blocks past the length are freed");
}
