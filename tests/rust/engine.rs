//! The loop over a fake model: chunks, forks, seeds, endings, errors.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fastdecode::Error;
use fastdecode::engine::{
    CHUNK, EarlyStopping, Engine, FinishReason, Generation, Limit, Options, Prompts, Seed, Start,
};
use fastdecode::models::{Cancel, Decoder, Input, Segment, Sequence, Wanted};
use proptest::prelude::*;

use crate::allocation::allocations;
use crate::fake::{FakeModel, FakeSequence};

/// Ids and finish reason of every row.
type Rows = Vec<(Vec<u32>, Option<FinishReason>)>;

fn begin(
    model: &Arc<FakeModel>,
    prompts: Prompts<FakeSequence>,
    options: Options,
) -> Result<Generation<FakeModel>, Error> {
    Generation::new(&Arc::new(Engine::new(Arc::clone(model))), prompts, options)
}

fn run(model: &Arc<FakeModel>, prompts: &[Vec<u32>], options: Options) -> Result<Rows, Error> {
    let mut generation = begin(model, Prompts::of(prompts), options)?;
    let mut rows = vec![(Vec::new(), None); generation.row_count()];
    while let Some(events) = generation.advance(None)? {
        for event in events {
            assert!(rows[event.row].1.is_none(), "row {} goes on after its end", event.row);
            rows[event.row].0.push(event.token_id);
            rows[event.row].1 = event.finish_reason;
        }
    }
    Ok(rows)
}

fn sampling(limit: usize, seed: Seed) -> Options {
    Options { limit: Limit::NewTokens(limit), do_sample: true, seed, ..Options::default() }
}

#[test]
fn long_prompts_go_in_chunks_and_give_the_same_ids() {
    let model = Arc::new(FakeModel::new(50, 4.0));
    let lengths = [1, CHUNK - 1, 2, CHUNK, 2 * CHUNK + 1, 3];
    let prompts: Vec<Vec<u32>> =
        lengths.iter().map(|&n| (0..n as u32).map(|i| i * 7 % 50).collect()).collect();
    let options = Options { limit: Limit::NewTokens(6), ..Options::default() };
    let together = run(&model, &prompts, options.clone()).expect("a sound request");
    let fed = std::mem::take(&mut *model.fed.lock().expect("not poisoned"));
    let total: usize = lengths.iter().sum();
    // Rows whose prompts are in decode beside the chunks of the others.
    assert!(fed.iter().all(|&rows| rows <= CHUNK + lengths.len()), "{fed:?}");
    assert!(fed[..total / CHUNK].iter().all(|&rows| rows >= CHUNK), "{fed:?}");
    assert_eq!(fed.iter().sum::<usize>(), total + 5 * lengths.len());
    for (prompt, row) in prompts.iter().zip(&together) {
        let alone = run(&model, std::slice::from_ref(prompt), options.clone()).expect("a sound request");
        assert_eq!(alone[0], *row);
    }
    assert_eq!(model.live.load(Ordering::Relaxed), 0);
}

#[test]
fn sources_are_read_in_steps_of_their_own() {
    let model = Arc::new(FakeModel::new(50, 4.0));
    // The third source is larger than a chunk and goes alone.
    let sources = [300, 200, 2 * CHUNK, 500, 1, 11];
    let lengths = [1, 4, 2, 20, 600, 3];
    let prompt = |place: usize| -> Vec<u32> { (0..lengths[place]).map(|i| (i * 3 + 1) % 50).collect() };
    let mut prompts = Prompts::new();
    for (place, &rows) in sources.iter().enumerate() {
        let source = (0..rows as u32).map(|i| (i + place as u32) % 50).collect();
        prompts.push(&prompt(place), Start::Source(source));
    }
    let options = Options { limit: Limit::NewTokens(2), ..Options::default() };
    let mut generation = begin(&model, prompts, options.clone()).expect("sound");
    let mut rows = vec![Vec::new(); sources.len()];
    while let Some(events) = generation.advance(None).expect("sound") {
        for event in events {
            rows[event.row].push(event.token_id);
        }
    }
    let encoded = std::mem::take(&mut *model.encoded.lock().expect("not poisoned"));
    assert_eq!(encoded, [500, 2 * CHUNK, 512]);
    let fed = std::mem::take(&mut *model.fed.lock().expect("not poisoned"));
    assert_eq!(fed.iter().sum::<usize>(), lengths.iter().sum::<u32>() as usize + lengths.len());
    for (place, row) in rows.iter().enumerate() {
        let alone = run(&model, &[prompt(place)], options.clone()).expect("sound");
        assert_eq!(alone[0].0, *row, "a source changes nothing about the ids");
    }
    drop(generation);
    assert_eq!(model.live.load(Ordering::Relaxed), 0);
}

#[test]
fn a_list_of_seeds_is_a_list_of_single_runs() {
    let model = Arc::new(FakeModel::new(300, 2.0));
    let prompts = vec![vec![1], vec![2, 3, 4], vec![5, 6]];
    let base =
        Options { num_return_sequences: 3, eos_token_ids: vec![7, 8, 9, 10, 11], ..Options::default() };
    let with = |seed| Options { top_k: None, ..Options { seed, ..base.clone() } };
    let with = |seed| Options { do_sample: true, limit: Limit::NewTokens(40), ..with(seed) };
    let together = run(&model, &prompts, with(Seed::PerPrompt(vec![4, 5, 6]))).expect("a sound request");
    for (place, prompt) in prompts.iter().enumerate() {
        let alone =
            run(&model, std::slice::from_ref(prompt), with(Seed::One(4 + place as u64))).expect("sound");
        assert_eq!(alone, together[3 * place..3 * place + 3]);
    }
}

#[test]
fn a_row_that_is_finished_early_frees_its_cache_and_leaves_the_others_alone() {
    let model = Arc::new(FakeModel::new(300, 2.0));
    let prompts = Prompts::of(&[vec![1], vec![2], vec![3]]);
    let options = sampling(20, Seed::One(11));
    let whole = run(&model, &[vec![1], vec![2], vec![3]], options.clone()).expect("a sound request");
    let mut generation = begin(&model, prompts, options).expect("a sound request");
    let mut rows = vec![Vec::new(); 3];
    while let Some(events) = generation.advance(None).expect("a sound request") {
        for event in events {
            rows[event.row].push(event.token_id);
        }
        if rows[1].len() == 4 {
            generation.finish(1).expect("row 1 exists");
            assert_eq!(model.live.load(Ordering::Relaxed), if rows[0].len() < 20 { 2 } else { 0 });
        }
    }
    assert_eq!((&rows[0], &rows[2]), (&whole[0].0, &whole[2].0));
    assert_eq!(rows[1], whole[1].0[..4]);
    let error = generation.finish(3).expect_err("there is no row 3");
    assert!(matches!(error, Error::Option { .. }), "{error}");
}

#[test]
fn lengths_are_counted_and_checked_before_any_work() {
    let model = Arc::new(FakeModel { context_limit: Some(10), ..FakeModel::new(50, 4.0) });
    let ids = |limit| {
        run(&model, &[vec![1, 2, 3, 4]], Options { limit, ..Options::default() }).map(|rows| rows[0].0.len())
    };
    assert_eq!(ids(Limit::NewTokens(6)).expect("it fits"), 6);
    assert_eq!(ids(Limit::Length(10)).expect("it fits"), 6);
    assert_eq!(ids(Limit::UpToNewTokens(256)).expect("it is cut"), 6);
    assert_eq!(ids(Limit::NewTokens(7)).expect("the last token needs no position"), 7);
    for (limit, positions) in [(Limit::NewTokens(8), 12), (Limit::Length(11), 11)] {
        let error = ids(limit).expect_err("too many");
        assert!(
            matches!(error, Error::ContextLength { limit: 10, requested, .. } if requested == positions),
            "{error}"
        );
    }
    let error = ids(Limit::Length(4)).expect_err("no room");
    assert!(matches!(&error, Error::Option { option, .. } if option == "max_length"), "{error}");
    let error = ids(Limit::NewTokens(0)).expect_err("nothing asked for");
    assert!(matches!(&error, Error::Option { option, .. } if option == "max_new_tokens"), "{error}");
    let full = run(&model, &[vec![1; 10]], Options::default()).expect_err("the prompt fills the context");
    assert!(matches!(full, Error::ContextLength { limit: 10, requested: 11, .. }), "{full}");
    assert!(run(&model, &[], Options::default()).expect("nothing to do").is_empty());
}

#[test]
fn a_call_without_a_length_ends_at_the_usual_one_and_others_go_past_it() {
    for (context_limit, most) in [(None, 10), (Some(20), 10), (Some(8), 8)] {
        let model = Arc::new(FakeModel { context_limit, usual_length: Some(10), ..FakeModel::new(50, 4.0) });
        let ids = |prompt: usize, limit| {
            run(&model, &[vec![1; prompt]], Options { limit, ..Options::default() })
                .map(|rows| rows[0].0.len())
        };
        assert_eq!(ids(4, Limit::Default(256)).expect("it is cut"), most - 4);
        assert_eq!(ids(4, Limit::Default(3)).expect("it fits"), 3);
        let error = ids(most, Limit::Default(256)).expect_err("no room");
        assert!(
            matches!(error, Error::ContextLength { limit, requested, .. } if limit == most && requested == most + 1),
            "{error}"
        );
        if most == 10 {
            assert_eq!(ids(4, Limit::NewTokens(9)).expect("it is asked for"), 9);
            assert_eq!(ids(12, Limit::UpToNewTokens(3)).expect("it is asked for"), 3);
            assert_eq!(ids(12, Limit::Length(14)).expect("it is asked for"), 2);
            assert!(error.to_string().contains("give max_new_tokens= to go past that"), "{error}");
        }
    }
}

#[test]
fn a_cancelled_call_is_over_and_one_that_is_interrupted_goes_on() {
    let model = Arc::new(FakeModel::new(50, 4.0));
    let options = Options { limit: Limit::NewTokens(3), ..Options::default() };
    let mut generation = begin(&model, Prompts::of(&[vec![1; 600]]), options).expect("a sound request");
    assert!(generation.advance(None).expect("the first chunk").is_some_and(<[_]>::is_empty));
    let canceller = generation.canceller();
    canceller.cancel();
    assert_eq!(model.live.load(Ordering::Relaxed), 0, "what it held is free");
    for _ in 0..2 {
        assert!(matches!(generation.advance(None), Err(Error::Cancelled)));
    }
}

/// Requests of every method, with the ids 0 to `vocab_size` as eos, now and then.
fn options() -> impl Strategy<Value = Options> {
    let lengths = (1_usize..12, 0_usize..6, prop::collection::vec(0_u32..30, 0..4));
    let method = (any::<bool>(), 1_usize..4, 1_usize..4, prop_oneof![Just(1.0), Just(1.4)], 0_usize..3);
    let draw = (0.3_f64..3.0, prop_oneof![Just(None), (1_usize..40).prop_map(Some)], 0.1_f64..=1.0);
    (lengths, method, draw, any::<u64>()).prop_map(
        |(
            (new_tokens, min_new_tokens, eos_token_ids),
            (do_sample, beams, rows, penalty, ngram),
            draw,
            seed,
        )| {
            Options {
                limit: Limit::NewTokens(new_tokens),
                min_new_tokens,
                eos_token_ids,
                do_sample,
                num_beams: beams,
                num_return_sequences: if beams > 1 {
                    rows.min(beams)
                } else if do_sample {
                    rows
                } else {
                    1
                },
                repetition_penalty: penalty,
                no_repeat_ngram_size: ngram,
                temperature: draw.0,
                top_k: draw.1,
                top_p: draw.2,
                early_stopping: [EarlyStopping::Heuristic, EarlyStopping::Full, EarlyStopping::Never]
                    [beams % 3],
                seed: Seed::One(seed),
                ..Options::default()
            }
        },
    )
}

fn prompts() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(prop::collection::vec(0_u32..30, 1..20), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn prompts_together_give_what_they_give_alone(prompts in prompts(), options in options()) {
        let model = Arc::new(FakeModel::new(30, 4.0));
        let Seed::One(seed) = options.seed else { unreachable!("the strategy makes it") };
        let seeds = (0..prompts.len() as u64).map(|place| seed.wrapping_add(place)).collect();
        let together = run(&model, &prompts, Options { seed: Seed::PerPrompt(seeds), ..options.clone() });
        let together = together.expect("a sound request");
        for (place, prompt) in prompts.iter().enumerate() {
            let seed = Seed::One(seed.wrapping_add(place as u64));
            let alone = run(&model, std::slice::from_ref(prompt), Options { seed, ..options.clone() });
            let rows = options.num_return_sequences;
            prop_assert_eq!(&alone.expect("a sound request")[..], &together[place * rows..][..rows]);
        }
        prop_assert_eq!(model.live.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_cached_start_of_the_prompt_changes_nothing(prompts in prompts(), options in options(), cut in any::<usize>()) {
        let model = Arc::new(FakeModel::new(30, 4.0));
        let whole = run(&model, &prompts, options.clone()).expect("a sound request");
        let mut starts = Prompts::new();
        for ids in &prompts {
            let mut sequence = model.start(None).expect("the fake model");
            let count = cut % ids.len();
            if count > 0 {
                let input = Input::Tokens(&ids[..count]);
                let segment = Segment { sequence: &mut sequence, input, logits: Wanted::Nothing };
                model.forward(&mut [segment], &mut Vec::new(), &Cancel::never()).expect("the fake model");
            }
            assert_eq!(sequence.len(), count);
            starts.push(ids, Start::Sequence(sequence));
        }
        let mut generation = begin(&model, starts, options).expect("a sound request");
        let mut rows = vec![Vec::new(); whole.len()];
        while let Some(events) = generation.advance(None).expect("a sound request") {
            events.iter().for_each(|event| rows[event.row].push(event.token_id));
        }
        prop_assert_eq!(rows, whole.into_iter().map(|row| row.0).collect::<Vec<_>>());
    }
}

#[test]
fn the_steady_loop_allocates_nothing() {
    let sampled = Options {
        temperature: 0.8,
        top_k: Some(20),
        top_p: 0.9,
        min_p: Some(0.01),
        ..sampling(99, Seed::One(1))
    };
    let everything = Options {
        repetition_penalty: 1.2,
        no_repeat_ngram_size: 3,
        min_new_tokens: 80,
        eos_token_ids: vec![5],
        num_return_sequences: 2,
        ..sampled.clone()
    };
    let full = Options { top_k: None, ..sampled };
    let greedy = Options { do_sample: false, ..full.clone() };
    let beams = Options { num_beams: 4, num_return_sequences: 3, ..greedy.clone() };
    for (name, options) in [("greedy", greedy), ("full", full), ("everything", everything), ("beams", beams)]
    {
        let model = Arc::new(FakeModel::new(1000, 4.0));
        let prompts = Prompts::of(&[vec![1, 2, 3], vec![4]]);
        let forks = options.num_beams > 1;
        let mut generation = begin(&model, prompts, options).expect("a sound request");
        for _ in 0..40 {
            generation.advance(None).expect("a sound request").expect("it is not done");
        }
        let count = allocations(|| {
            for _ in 0..40 {
                generation.advance(None).expect("a sound request").expect("it is not done");
            }
        });
        if forks {
            // The fake model copies its hashes with every fork, of which a step has at most three per prompt; tokens
            // and results may still grow a few times.
            assert!(count <= 40 * 2 * 3 + 20, "{name}: {count}");
        } else {
            assert_eq!(count, 0, "{name}");
        }
    }
}

#[test]
fn logprobs_are_those_of_the_raw_scores() {
    let model = Arc::new(FakeModel::new(30, 2.0));
    let options = Options {
        logprobs: Some(30),
        repetition_penalty: 3.0,
        temperature: 0.5,
        top_k: Some(2),
        ..sampling(5, Seed::One(2))
    };
    let mut generation = begin(&model, Prompts::of(&[vec![1]]), options).expect("sound");
    let mut tokens = vec![1];
    while let Some(events) = generation.advance(None).expect("a sound request") {
        let (mut sequence, mut raw) = (model.start(None).expect("the fake model"), Vec::new());
        let segment =
            Segment { sequence: &mut sequence, input: Input::Tokens(&tokens), logits: Wanted::Last };
        model.forward(&mut [segment], &mut raw, &Cancel::never()).expect("the fake model");
        let sum: f64 = raw.iter().map(|&x| f64::from(x).exp()).sum();
        let logprobs = events[0].logprobs.as_ref().expect("asked for");
        assert_eq!(logprobs.best.len(), 30);
        for &(id, logprob) in &logprobs.best {
            assert!((f64::from(logprob) - f64::from(raw[id as usize]) + sum.ln()).abs() < 1e-5);
            assert!(id != events[0].token_id || logprob == logprobs.logprob);
        }
        tokens.push(events[0].token_id);
    }
    assert_eq!(tokens.len(), 6);
}

#[test]
fn options_that_cannot_be_used_are_named() {
    let model = Arc::new(FakeModel { context_limit: Some(64), ..FakeModel::new(30, 4.0) });
    let base = sampling(4, Seed::Entropy);
    let cases = [
        ("max_length", Options { limit: Limit::Length(0), ..base.clone() }),
        ("temperature", Options { temperature: 0.0, ..base.clone() }),
        ("temperature", Options { temperature: f64::NAN, ..base.clone() }),
        ("temperature", Options { temperature: 1e-60, ..base.clone() }),
        ("top_p", Options { top_p: 1.1, ..base.clone() }),
        ("top_p", Options { top_p: f64::NAN, ..base.clone() }),
        ("min_p", Options { min_p: Some(-0.1), ..base.clone() }),
        ("repetition_penalty", Options { repetition_penalty: 0.0, ..base.clone() }),
        ("encoder_repetition_penalty", Options { encoder_repetition_penalty: f64::INFINITY, ..base.clone() }),
        ("num_return_sequences", Options { num_return_sequences: 0, ..base.clone() }),
        (
            "num_return_sequences",
            Options { num_return_sequences: (1 << 24) + 1, do_sample: true, ..base.clone() },
        ),
        ("num_return_sequences", Options { num_return_sequences: 2, do_sample: false, ..base.clone() }),
        ("num_return_sequences", Options { num_return_sequences: 3, num_beams: 2, ..base.clone() }),
        ("num_beams", Options { num_beams: 0, ..base.clone() }),
        ("num_beams", Options { num_beams: usize::MAX, ..base.clone() }),
        ("length_penalty", Options { num_beams: 2, length_penalty: f64::NAN, ..base.clone() }),
        ("logprobs", Options { num_beams: 2, logprobs: Some(1), ..base.clone() }),
        ("seed", Options { seed: Seed::PerPrompt(vec![1, 2]), ..base.clone() }),
    ];
    for (name, options) in cases {
        match run(&model, &[vec![1]], options) {
            Err(Error::Option { option, .. }) => assert_eq!(option, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    for prompt in [vec![], vec![3, 30]] {
        match run(&model, &[vec![1], prompt], base.clone()) {
            Err(Error::Option { option, .. }) => assert_eq!(option, "prompt 1"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_model_that_gives_no_numbers_is_an_error() {
    let beams = Options { num_beams: 3, do_sample: false, ..sampling(3, Seed::One(0)) };
    for constant in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let model = Arc::new(FakeModel { constant: Some(constant), ..FakeModel::new(30, 4.0) });
        for options in [sampling(3, Seed::One(0)), beams.clone()] {
            let prompts = Prompts::of(&[vec![1], vec![2]]);
            let mut generation = begin(&model, prompts, options).expect("a sound request");
            let error = generation.advance(None).expect_err("there is nothing to choose");
            assert!(matches!(error, Error::Scores { row: 0, .. }), "{error}");
            assert!(generation.advance(None).expect("the request is over").is_none());
        }
    }
}
