//! Profiles over the golden models: what phases cost adds up to what the program says, and counting changes no bit.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use fastdecode::Error;
use fastdecode::models::{
    Cancel, Count, Decoder, Input, Kind, Line, LoadOptions, Model, Segment, Source, Steps, Wanted,
};

/// Golden models, with the lengths of their sources.
const MODELS: [(&str, usize); 4] =
    [("random-plain", 0), ("random-odd", 0), ("seq2seq-gated", 40), ("seq2seq-umt5", 21)];

fn load(name: &str, threads: usize) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let options = LoadOptions { num_threads: Some(threads), ..LoadOptions::default() };
    Model::load(&folder, &options, &Cancel::never()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn source(length: usize) -> Source {
    let ids: Vec<u32> = (0..length).map(|t| (t % 7) as u32).collect();
    if length > 0 { Source::pending(ids) } else { Source::None }
}

/// Bits of a prompt's logits, and of three steps behind it.
fn run(model: &Model, length: usize) -> Vec<u32> {
    let (mut sequence, mut bits) = (model.start_from(source(length)).unwrap(), Vec::new());
    for ids in [&[1, 2, 3, 4, 0, 1, 2][..], &[3], &[1], &[4]] {
        let mut logits = Vec::new();
        let segment = Segment { sequence: &mut sequence, input: Input::Tokens(ids), logits: Wanted::Last };
        model.forward(&mut [segment], &mut logits, &Cancel::never()).unwrap();
        bits.extend(logits.iter().map(|x| x.to_bits()));
    }
    bits
}

fn counts(model: &Model) -> Vec<(Line, Count)> {
    model.profile().lines().cloned().zip(model.profile().counts().lines).collect()
}

fn sum(counts: &[(Line, Count)], steps: Steps) -> Count {
    let mut sum = Count::default();
    counts.iter().filter(|(line, _)| line.steps == steps).for_each(|(_, count)| sum.add(*count));
    sum
}

#[test]
fn phases_add_up_to_their_program_and_change_no_bit() {
    for (name, length) in MODELS {
        for threads in [1, 3] {
            let model = load(name, threads);
            let without = run(&model, length);
            assert_eq!(counts(&model).iter().map(|(_, count)| count.calls).sum::<u64>(), 0, "{name}: off");
            model.profile().begin();
            assert_eq!(run(&model, length), without, "{name}, {threads} threads: the same bits");
            let found = counts(&model);
            model.profile().end();
            assert_eq!(run(&model, length), without, "{name}: off again");
            assert_eq!(counts(&model), found, "{name}: nothing more is counted");
            let rest = |steps| {
                let of = |(line, _): &&(Line, Count)| line.steps == steps && line.kind.is_none();
                found.iter().find(of).map_or(Count::default(), |(_, count)| *count)
            };
            let (prompt, decode) = (rest(Steps::Prompt), rest(Steps::Decode));
            assert_eq!((prompt.calls, prompt.rows, decode.calls, decode.rows), (1, 7, 3, 3), "{name}");
            let source = sum(&found, Steps::Source).flops;
            if length > 0 {
                assert_eq!(rest(Steps::Source).rows, length as u64, "{name}: tokens of the source");
                assert_eq!(source, model.flops(length, 0), "{name}: its operations");
            } else {
                assert_eq!(sum(&found, Steps::Prompt).flops, model.flops(7, 1), "{name}: a prompt's");
            }
            let of_matrices = |(line, _): &&(Line, Count)| {
                line.steps == Steps::Decode && line.kind != Some(Kind::Attention)
            };
            let bytes: u64 = found.iter().filter(of_matrices).map(|(_, count)| count.bytes).sum();
            assert_eq!(bytes, 3 * model.info().step_weight_bytes as u64, "{name}: each matrix once per step");
            let attention = |(line, _): &&(Line, Count)| {
                line.steps == Steps::Decode && line.kind == Some(Kind::Attention)
            };
            // Steps behind 7, 8 and 9 positions see one more each, and the whole source.
            let positions = 8 + 9 + 10 + 3 * length;
            let bytes: u64 = found.iter().filter(attention).map(|(_, count)| count.bytes).sum();
            let expected = positions * model.info().cache_bytes_per_token;
            assert_eq!(bytes, expected as u64, "{name}: keys and values");
            assert!(found.iter().all(|(_, count)| (count.calls > 0) == (count.nanos > 0)), "{name}: time");
        }
    }
}

#[test]
fn a_step_that_is_cancelled_counts_as_far_as_it_came() {
    let (model, flag) = (load("random-plain", 1), AtomicBool::new(true));
    model.profile().begin();
    let mut sequence = model.start(None).unwrap();
    let segment = Segment { sequence: &mut sequence, input: Input::Tokens(&[1; 40]), logits: Wanted::Last };
    let outcome = model.forward(&mut [segment], &mut Vec::new(), &Cancel::new(&flag));
    assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    for (line, count) in counts(&model) {
        let began = line.kind.is_none() && line.steps == Steps::Prompt;
        assert_eq!(count.calls, u64::from(began), "it ends at its first barrier: {line:?}");
        assert_eq!(count.nanos > 0, began, "its time is the rest's: {line:?}");
    }
}

#[test]
fn calls_of_many_threads_are_all_counted() {
    for threads in [1, 2] {
        let (busy, other) = (load("random-plain", threads), load("random-plain", threads));
        [&busy, &other].iter().for_each(|model| model.profile().begin());
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| (0..5).for_each(|_| drop(run(&busy, 0))));
            }
            scope.spawn(|| drop(run(&other, 0)));
        });
        for (model, runs) in [(&busy, 30), (&other, 1)] {
            for (line, count) in counts(model) {
                let steps = if line.steps == Steps::Decode { 3 } else { 1 };
                if matches!(line.kind, None | Some(Kind::Head | Kind::Embedding)) {
                    assert_eq!(count.calls, runs * steps, "{threads} threads, {line:?}");
                }
            }
        }
    }
}
