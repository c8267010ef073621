//! The loop over a fake model: chunks, forks, seeds, endings, errors.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fastdecode::Error;
use fastdecode::engine::{FinishReason, Generation, Limit, Options, PREFILL_CHUNK, Prompt, Seed};

use crate::fake::FakeModel;

/// Ids and finish reason of every row.
type Rows = Vec<(Vec<u32>, Option<FinishReason>)>;

fn run(model: &Arc<FakeModel>, prompts: &[Vec<u32>], options: Options) -> Result<Rows, Error> {
    let prompts = prompts.iter().map(|ids| Prompt::tokens(ids.clone())).collect();
    let mut generation = Generation::new(Arc::clone(model), prompts, options)?;
    let mut rows = vec![(Vec::new(), None); generation.row_count()];
    while let Some(events) = generation.advance()? {
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
    let lengths = [1, PREFILL_CHUNK - 1, 2, PREFILL_CHUNK, 2 * PREFILL_CHUNK + 1, 3];
    let prompts: Vec<Vec<u32>> =
        lengths.iter().map(|&n| (0..n as u32).map(|i| i * 7 % 50).collect()).collect();
    let options = Options { limit: Limit::NewTokens(6), ..Options::default() };
    let together = run(&model, &prompts, options.clone()).expect("a sound request");
    let fed = std::mem::take(&mut *model.fed.lock().expect("not poisoned"));
    let total: usize = lengths.iter().sum();
    let chunks = total.div_ceil(PREFILL_CHUNK);
    assert!(fed[..chunks - 1].iter().all(|&rows| rows == PREFILL_CHUNK), "{fed:?}");
    assert_eq!(fed.iter().sum::<usize>(), total + 5 * lengths.len());
    for (prompt, row) in prompts.iter().zip(&together) {
        let alone = run(&model, std::slice::from_ref(prompt), options.clone()).expect("a sound request");
        assert_eq!(alone[0], *row);
    }
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
    let prompts = || vec![Prompt::tokens(vec![1]), Prompt::tokens(vec![2]), Prompt::tokens(vec![3])];
    let options = sampling(20, Seed::One(11));
    let whole = run(&model, &[vec![1], vec![2], vec![3]], options.clone()).expect("a sound request");
    let mut generation = Generation::new(Arc::clone(&model), prompts(), options).expect("a sound request");
    let mut rows = vec![Vec::new(); 3];
    while let Some(events) = generation.advance().expect("a sound request") {
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
    for limit in [Limit::NewTokens(7), Limit::Length(11)] {
        let error = ids(limit).expect_err("one too many");
        assert!(matches!(error, Error::ContextLength { limit: 10, requested: 11 }), "{error}");
    }
    let error = ids(Limit::Length(4)).expect_err("no room");
    assert!(matches!(&error, Error::Option { option, .. } if option == "max_length"), "{error}");
    let error = ids(Limit::NewTokens(0)).expect_err("nothing asked for");
    assert!(matches!(&error, Error::Option { option, .. } if option == "max_new_tokens"), "{error}");
    let full = run(&model, &[vec![1; 10]], Options::default()).expect_err("the prompt fills the context");
    assert!(matches!(full, Error::ContextLength { limit: 10, requested: 11 }), "{full}");
    assert!(run(&model, &[], Options::default()).expect("nothing to do").is_empty());
}

#[test]
fn a_cancelled_request_stops_and_can_go_on() {
    let model = Arc::new(FakeModel::new(50, 4.0));
    let options = Options { limit: Limit::NewTokens(3), ..Options::default() };
    let mut generation = Generation::new(Arc::clone(&model), vec![Prompt::tokens(vec![1; 600])], options)
        .expect("a sound request");
    let cancel = generation.cancel_handle();
    assert!(generation.advance().expect("the first chunk").is_some_and(<[_]>::is_empty));
    cancel.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        assert!(matches!(generation.advance(), Err(Error::Cancelled)));
    }
    cancel.store(false, Ordering::Relaxed);
    let mut count = 0;
    while let Some(events) = generation.advance().expect("it goes on") {
        count += events.len();
    }
    assert_eq!(count, 3);
    drop(generation);
    assert_eq!(model.live.load(Ordering::Relaxed), 0);
}
