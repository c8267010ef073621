//! Greedy, sampled and beam ids against transformers, for a model whose logits both sides compute exactly
//! (`tests/golden/decode.json`, made by `tools/make_decode_golden.py`).

use std::sync::Arc;

use fastdecode::engine::{EarlyStopping, Engine, FinishReason, Generation, Limit, Options, Prompts, Seed};
use serde_json::{Map, Value};

use crate::fake::FakeModel;
use crate::golden;

/// Scores below this belong to rows that fill up.
const NONE: f64 = -1e8;

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn rows(value: &Value) -> Vec<Vec<u32>> {
    value.as_array().expect("a list of lists").iter().map(ids).collect()
}

/// The options of a case; every name must be known.
fn options(given: &Map<String, Value>, seed: u64) -> Options {
    let mut options = Options { top_k: None, seed: Seed::One(seed), ..Options::default() };
    for (name, value) in given {
        let count = || value.as_u64().expect("a count") as usize;
        let number = || value.as_f64().expect("a number");
        match name.as_str() {
            "max_new_tokens" => options.limit = Limit::NewTokens(count()),
            "max_length" => options.limit = Limit::Length(count()),
            "min_new_tokens" => options.min_new_tokens = count(),
            "min_length" => options.min_length = count(),
            "eos_token_id" => options.eos_token_ids = ids(value),
            "repetition_penalty" => options.repetition_penalty = number(),
            "encoder_repetition_penalty" => options.encoder_repetition_penalty = number(),
            "no_repeat_ngram_size" => options.no_repeat_ngram_size = count(),
            "encoder_no_repeat_ngram_size" => options.encoder_no_repeat_ngram_size = count(),
            "do_sample" => options.do_sample = value == true,
            "temperature" => options.temperature = number(),
            "top_k" => options.top_k = Some(count()),
            "top_p" => options.top_p = number(),
            "min_p" => options.min_p = Some(number()),
            "num_beams" => options.num_beams = count(),
            "length_penalty" => options.length_penalty = number(),
            "early_stopping" => {
                options.early_stopping = match value {
                    Value::Bool(false) => EarlyStopping::Heuristic,
                    Value::Bool(true) => EarlyStopping::Full,
                    _ => EarlyStopping::Never,
                }
            }
            "num_return_sequences" => options.num_return_sequences = count(),
            other => panic!("the golden file has an option that the test does not know: {other}"),
        }
    }
    // An explicit 0 wins as well; telling it from an absent one is the caller's part.
    if given.contains_key("min_new_tokens") {
        options.min_length = 0;
    }
    options
}

/// Replays the cases that `wanted` picks and returns how many there were.
fn replay(wanted: impl Fn(&Map<String, Value>) -> bool) -> usize {
    let golden = golden("decode.json");
    let mut count = 0;
    for (place, case) in golden["cases"].as_array().expect("a list of cases").iter().enumerate() {
        let given = case["options"].as_object().expect("options");
        if !wanted(given) {
            continue;
        }
        count += 1;
        let spread = case["spread"].as_f64().expect("a number") as f32;
        let model = Arc::new(FakeModel::new(case["vocab_size"].as_u64().expect("a count") as usize, spread));
        let mut options = options(given, case["seed"].as_u64().expect("a seed"));
        let eos_count = options.eos_token_ids.len();
        // Half of the ids come in as stop ids, which must not change what is generated.
        options.stop_token_ids = options.eos_token_ids.split_off(eos_count.div_ceil(2));
        let (eos, stop) = (options.eos_token_ids.clone(), options.stop_token_ids.clone());
        let prompts = Prompts::of(&rows(&case["prompts"]));
        let engine = Arc::new(Engine::new(model));
        let mut generation = Generation::new(&engine, prompts, options).expect("a sound request");
        let mut got = vec![Vec::new(); generation.row_count()];
        let (mut reasons, mut scores) = (vec![None; got.len()], vec![None; got.len()]);
        while let Some(events) =
            generation.advance(None).unwrap_or_else(|error| panic!("case {place}: {error}: {case}"))
        {
            for event in events {
                got[event.row].push(event.token_id);
                reasons[event.row] = event.finish_reason;
                scores[event.row] = event.score;
            }
        }
        let mut expected = rows(&case["ids"]);
        for (row, score) in case.get("scores").and_then(Value::as_array).into_iter().flatten().enumerate() {
            let score = score.as_f64().unwrap_or(f64::NEG_INFINITY);
            let got_score = f64::from(scores[row].expect("a row of beams has a score"));
            if score > NONE {
                let tolerance = 1e-5 * score.abs().max(1.0);
                assert!(
                    (got_score - score).abs() < tolerance,
                    "case {place}: {got_score} != {score}: {case}"
                );
            } else {
                // Too few tokens were allowed: the order of what fills up is left open by torch.
                assert!(got_score < NONE, "case {place}: {got_score} != {score}: {case}");
                expected[row].clone_from(&got[row]);
            }
        }
        assert_eq!(got, expected, "case {place}: {case}");
        for (row, reason) in got.iter().zip(reasons) {
            let last = row.last().expect("a row has a token");
            let expected = match (eos.contains(last), stop.contains(last)) {
                (true, _) => FinishReason::Eos,
                (_, true) => FinishReason::Stop,
                _ => FinishReason::Length,
            };
            assert_eq!(reason, Some(expected), "case {place}: {case}");
        }
    }
    count
}

fn is_beam(options: &Map<String, Value>) -> bool {
    options.contains_key("num_beams")
}

fn is_sample(options: &Map<String, Value>) -> bool {
    options.contains_key("do_sample")
}

#[test]
fn greedy_ids_are_those_of_transformers() {
    assert_eq!(replay(|options| !is_beam(options) && !is_sample(options)), 150);
}

#[test]
fn sampled_ids_are_those_of_transformers() {
    assert_eq!(replay(|options| !is_beam(options) && is_sample(options)), 250);
}

#[test]
fn beams_and_their_scores_are_those_of_transformers() {
    assert_eq!(replay(is_beam), 400);
}
