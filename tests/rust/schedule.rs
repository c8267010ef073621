//! The schedule of many calls over a fake model: which rows take part in which step, and what a step's failure means to whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use fastdecode::Error;
use fastdecode::engine::{
    AHEAD, CHUNK, Engine, Event, FinishReason, Generation, Limit, Options, Prompts, Seed, Start,
};
use fastdecode::models::Limits;

use crate::fake::{Begins, FakeModel, FakeSequence, Step};

/// The id that ends every prompt, and that no row chooses.
pub(crate) const MARK: u32 = 39;

/// A model that notes its steps.
pub(crate) fn fake() -> FakeModel {
    FakeModel { mark: Some(MARK), ..FakeModel::new(40, 4.0) }
}

pub(crate) fn engine(model: FakeModel) -> Arc<Engine<FakeModel>> {
    Arc::new(Engine::new(Arc::new(model)))
}

pub(crate) fn limits(max_rows: usize, cache_bytes: usize) -> Limits {
    Limits { cache_bytes, max_rows, ..Limits::default() }
}

/// A prompt of so many ids; others for another number.
pub(crate) fn prompt(number: u32, length: usize) -> Vec<u32> {
    (1..length as u32).map(|i| (number * 7 + i * 5 + number * i) % 30).chain([MARK]).collect()
}

pub(crate) fn prompts(lengths: &[usize]) -> Vec<Vec<u32>> {
    lengths.iter().enumerate().map(|(number, &length)| prompt(number as u32, length)).collect()
}

pub(crate) fn greedy(new_tokens: usize) -> Options {
    Options { limit: Limit::NewTokens(new_tokens), ..Options::default() }
}

pub(crate) fn sampled(new_tokens: usize, seed: u64) -> Options {
    Options { do_sample: true, seed: Seed::One(seed), ..greedy(new_tokens) }
}

pub(crate) fn begin(
    engine: &Arc<Engine<FakeModel>>,
    prompts: &[Vec<u32>],
    options: Options,
) -> Generation<FakeModel> {
    Generation::new(engine, Prompts::of(prompts), options).expect("a sound request")
}

/// What the rows of a call have become.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rows(pub(crate) Vec<(Vec<u32>, Option<FinishReason>, Option<f32>)>);

impl Rows {
    pub(crate) fn of(generation: &Generation<FakeModel>) -> Self {
        Self(vec![(Vec::new(), None, None); generation.row_count()])
    }

    pub(crate) fn add(&mut self, events: &[Event]) {
        for event in events {
            let row = &mut self.0[event.row];
            assert!(row.1.is_none(), "row {} goes on after its end", event.row);
            row.0.push(event.token_id);
            (row.1, row.2) = (event.finish_reason, event.score);
        }
    }

    /// Reads a call to its end.
    pub(crate) fn read_all(&mut self, generation: &mut Generation<FakeModel>) -> Result<(), Error> {
        for _ in 0..100_000 {
            match generation.advance(None)? {
                Some(events) => self.add(events),
                None => return Ok(()),
            }
        }
        panic!("it never ends: {self:?}");
    }
}

/// Reads a call to its end from where it is.
pub(crate) fn rest(generation: &mut Generation<FakeModel>) -> Rows {
    let mut rows = Rows::of(generation);
    rows.read_all(generation).expect("a sound request");
    rows
}

/// What comes of a call that has a model without limits for itself.
pub(crate) fn alone(prompts: &[Vec<u32>], options: Options) -> Rows {
    let model = FakeModel { limits: limits(usize::MAX, usize::MAX), ..fake() };
    rest(&mut begin(&engine(model), prompts, options))
}

/// The steps since the last question.
pub(crate) fn steps(engine: &Engine<FakeModel>) -> Vec<Step> {
    std::mem::take(&mut *engine.model().steps.lock().expect("not poisoned"))
}

pub(crate) fn live(engine: &Engine<FakeModel>) -> usize {
    engine.model().live.load(Ordering::SeqCst)
}

/// Tokens that a call has given out and that were not taken.
pub(crate) fn taken(generation: &mut Generation<FakeModel>) -> usize {
    generation.take().expect("a sound request").map_or(0, <[_]>::len)
}

pub(crate) fn advanced(generation: &mut Generation<FakeModel>) -> usize {
    generation.advance(None).expect("a sound request").expect("it is not done").len()
}

/// Runs a test that might hang: it fails after two minutes.
pub(crate) fn within_minutes(test: impl FnOnce() + Send + 'static) {
    let (done, waits) = mpsc::channel();
    let runs = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match waits.recv_timeout(Duration::from_secs(120)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {
            if let Err(panic) = runs.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[test]
fn where_nobody_waits_nothing_is_computed() {
    let engine = engine(fake());
    let mut one = begin(&engine, &prompts(&[3]), greedy(5));
    let mut other = begin(&engine, &prompts(&[4]), greedy(5));
    assert_eq!((taken(&mut one), taken(&mut other), taken(&mut one)), (0, 0, 0));
    assert!(steps(&engine).is_empty() && live(&engine) == 0, "both have joined");
    assert_eq!(advanced(&mut one), 1);
    assert_eq!(steps(&engine), [Step { decodes: 0, prompts: 2, reads: 7 }], "one step for both");
    assert_eq!((taken(&mut other), taken(&mut other)), (1, 0));
    assert_eq!(advanced(&mut other), 1);
    assert_eq!(steps(&engine), [Step { decodes: 2, prompts: 0, reads: 0 }]);
}

#[test]
fn calls_join_and_leave_at_any_step() {
    let engine = engine(fake());
    let mut first = begin(&engine, &prompts(&[3, 5]), greedy(12));
    let mut rows = Rows::of(&first);
    let mut others = Vec::new();
    for step in 0..11 {
        rows.add(first.advance(None).expect("sound").expect("it is not done"));
        assert_eq!(rows.0.iter().map(|row| row.0.len()).sum::<usize>(), 2 * (step + 1), "a token a step");
        let mut other = begin(&engine, &prompts(&[2 + step]), greedy(3));
        assert_eq!(taken(&mut other), 0);
        others.push((2 + step, other));
    }
    rows.read_all(&mut first).expect("sound");
    assert_eq!(rows, alone(&prompts(&[3, 5]), greedy(12)));
    for (length, mut other) in others {
        assert_eq!(rest(&mut other), alone(&prompts(&[length]), greedy(3)));
    }
    let noted = steps(&engine);
    assert_eq!(noted.iter().map(|step| step.decodes).max(), Some(4), "those that have begun, side by side");
    assert_eq!(live(&engine), 0);
}

#[test]
fn a_row_decodes_when_its_own_prompt_is_in_and_waits_for_one_chunk_at_most() {
    let engine = engine(fake());
    let lengths = [3, 2 * CHUNK, 4];
    let mut call = begin(&engine, &prompts(&lengths), greedy(20));
    let mut other = begin(&engine, &prompts(&[3 * CHUNK]), greedy(20));
    let (mut rows, mut others) = (Rows::of(&call), Rows::of(&other));
    let mut firsts = Vec::new();
    assert_eq!(taken(&mut other), 0);
    for _ in 0..12 {
        rows.add(call.advance(None).expect("sound").expect("it is not done"));
        others.add(other.take().expect("sound").expect("it is not done"));
        firsts.push(rows.0.iter().chain(&others.0).filter(|row| !row.0.is_empty()).count());
    }
    assert_eq!(rows.0[0].0.len(), 12, "the first row has a token in every step");
    // Two calls share every chunk while both read: the first one has read its 1031 tokens after the fifth, the other one needs one more.
    assert_eq!(firsts, [1, 1, 1, 1, 3, 4, 4, 4, 4, 4, 4, 4]);
    assert!(steps(&engine).iter().all(|step| step.reads <= CHUNK));
    rows.read_all(&mut call).expect("sound");
    others.read_all(&mut other).expect("sound");
    assert_eq!(
        (rows, others),
        (alone(&prompts(&lengths), greedy(20)), alone(&prompts(&[3 * CHUNK]), greedy(20)))
    );
}

#[test]
fn a_row_runs_eight_tokens_ahead_of_its_reader_at_most_and_keeps_its_cache() {
    let engine = engine(fake());
    let (mut here, mut away) =
        (begin(&engine, &prompts(&[3]), greedy(40)), begin(&engine, &prompts(&[4, 5]), greedy(40)));
    assert_eq!(taken(&mut away), 0);
    let mut rows = Rows::of(&away);
    for round in 0..2 {
        for _ in 0..12 {
            assert_eq!(advanced(&mut here), 1);
        }
        let decodes: Vec<usize> = steps(&engine).iter().map(|step| step.decodes).collect();
        let together = if round == 0 { 1..AHEAD } else { 0..AHEAD };
        assert!(decodes[together].iter().all(|&rows| rows == 3), "{decodes:?}");
        assert!(decodes[AHEAD..].iter().all(|&rows| rows == 1), "{decodes:?}");
        assert_eq!(live(&engine), 3, "the cache of all rows");
        rows.add(away.take().expect("sound").expect("it is not done"));
        assert!(rows.0.iter().all(|row| row.0.len() == AHEAD * (round + 1)));
    }
    rows.read_all(&mut away).expect("sound");
    assert_eq!(rows, alone(&prompts(&[4, 5]), greedy(40)));
}

#[test]
fn tokens_behind_a_finish_are_dropped_and_the_cache_is_free() {
    let engine = engine(fake());
    let (mut here, mut away) =
        (begin(&engine, &prompts(&[3]), greedy(40)), begin(&engine, &prompts(&[4, 5]), greedy(20)));
    let mut rows = Rows::of(&away);
    rows.add(away.advance(None).expect("sound").expect("it is not done"));
    for _ in 0..5 {
        assert_eq!(advanced(&mut here), 1);
    }
    assert_eq!(live(&engine), 3);
    away.finish(1).expect("there is one");
    assert_eq!(live(&engine), 2, "at once");
    rows.read_all(&mut away).expect("sound");
    let all = alone(&prompts(&[4, 5]), greedy(20));
    assert_eq!(rows.0[0], all.0[0]);
    assert_eq!(rows.0[1].0, all.0[1].0[..1], "what the row was ahead is dropped");
    // All rows, the last of them while it is ahead.
    let mut last = begin(&engine, &prompts(&[6]), greedy(20));
    assert_eq!(advanced(&mut last), 1);
    assert!(taken(&mut here) > 0 && advanced(&mut here) == 1);
    last.finish(0).expect("there is one");
    assert!(last.take().expect("sound").is_none(), "it is over");
}

#[test]
fn rows_of_readers_that_are_behind_count_for_nothing() {
    // By the number of rows, and by the budget: four blocks are a row of either call.
    for bounds in [limits(2, usize::MAX), limits(64, 9 * 1024)] {
        let engine = engine(FakeModel { limits: bounds, ..fake() });
        let mut away = begin(&engine, &prompts(&[10, 11]), greedy(50));
        let mut rows = Rows::of(&away);
        rows.add(away.advance(None).expect("sound").expect("it is not done"));
        let mut here = begin(&engine, &prompts(&[12]), greedy(50));
        let mut come = Rows::of(&here);
        for _ in 0..=AHEAD {
            come.add(here.advance(None).expect("sound").expect("it is not done"));
        }
        assert_eq!(come.0[0].0.len(), 1, "admitted when the other one's rows have stopped: {bounds:?}");
        assert_eq!(live(&engine), 3, "which keep their caches");
        assert!(steps(&engine).iter().all(|step| step.decodes <= 2), "{bounds:?}");
        // Three rows run from now on, and two of them in a step where that is the limit.
        while rows.0.iter().any(|row| row.1.is_none()) {
            rows.add(away.advance(None).expect("sound").expect("it is not done"));
            come.add(here.take().expect("sound").unwrap_or_default());
        }
        let most = steps(&engine).iter().map(|step| step.decodes).max();
        assert_eq!(most, Some(if bounds.max_rows == 2 { 2 } else { 3 }));
        come.read_all(&mut here).expect("sound");
        assert_eq!(
            (rows, come),
            (alone(&prompts(&[10, 11]), greedy(50)), alone(&prompts(&[12]), greedy(50)))
        );
    }
}

#[test]
fn a_search_wider_than_the_limit_runs_alone_and_is_not_put_off_for_ever() {
    let engine = engine(FakeModel { limits: limits(2, usize::MAX), ..fake() });
    let beams = Options { num_beams: 4, ..greedy(10) };
    let mut list = begin(&engine, &prompts(&[3; 40]), greedy(4));
    let mut search = begin(&engine, &prompts(&[5]), beams.clone());
    let mut rows = Rows::of(&list);
    rows.add(list.advance(None).expect("sound").expect("it is not done"));
    assert_eq!(taken(&mut search), 0);
    let mut found = Rows::of(&search);
    while found.0[0].1.is_none() {
        rows.add(list.advance(None).expect("sound").expect("the search comes before the list's end"));
        found.add(search.take().expect("sound").unwrap_or_default());
    }
    let ended = rows.0.iter().filter(|row| row.1.is_some()).count();
    assert!(ended <= 4, "{ended} rows ended before the search");
    assert!(steps(&engine).iter().all(|step| step.decodes <= 2 || step.decodes == 4));
    rows.read_all(&mut list).expect("sound");
    assert_eq!((rows, found), (alone(&prompts(&[3; 40]), greedy(4)), alone(&prompts(&[5]), beams)));
}

#[test]
fn a_single_prompt_is_not_behind_a_list() {
    let engine = engine(FakeModel { limits: limits(2, usize::MAX), ..fake() });
    let mut list = begin(&engine, &prompts(&[3; 10]), greedy(3));
    let mut rows = Rows::of(&list);
    rows.add(list.advance(None).expect("sound").expect("it is not done"));
    let mut single = begin(&engine, &prompts(&[4]), greedy(3));
    assert_eq!(taken(&mut single), 0);
    for _ in 0..3 {
        rows.add(list.advance(None).expect("sound").expect("it is not done"));
    }
    assert_eq!(taken(&mut single), 1, "admitted when the first two rows have ended");
    let begun = rows.0.iter().filter(|row| !row.0.is_empty()).count();
    assert_eq!(begun, 3, "and one of the list beside it");
    rows.read_all(&mut list).expect("sound");
    assert_eq!(rows, alone(&prompts(&[3; 10]), greedy(3)));
}

/// A call of prompts over sources.
fn over_sources(
    engine: &Arc<Engine<FakeModel>>,
    sources: &[(u32, usize)],
    options: Options,
) -> Generation<FakeModel> {
    let mut all = Prompts::<FakeSequence>::new();
    for &(id, length) in sources {
        all.push(&prompt(id, 3), Start::Source(vec![id; length]));
    }
    Generation::new(engine, all, options).expect("a sound request")
}

#[test]
fn the_end_of_a_prompt_is_known_in_any_order() {
    let all = prompts(&[5, 1, 9]);
    let options = Options { num_return_sequences: 2, ..sampled(2, 1) };
    let mut generation = begin(&engine(fake()), &all, options);
    for row in [0, 1, 4, 5, 2, 3, 0, 5] {
        let ids = &all[row / 2];
        for most in [0, 1, 3, 100] {
            assert_eq!(generation.prompt_end(row, most), &ids[ids.len().saturating_sub(most)..]);
        }
        assert_eq!(generation.prompt_tokens(row), ids.len());
    }
    assert!(generation.prompt_end(6, 3).is_empty(), "no such row");
    assert_eq!(generation.prompt_tokens(6), 0);

    let mut generation = over_sources(&engine(fake()), &[(7, 4), (8, 2)], greedy(2));
    assert_eq!(generation.prompt_end(1, 9), prompt(8, 3));
    assert_eq!(generation.prompt_tokens(0), 3 + 4, "and those of its source");
}

#[test]
fn sources_and_tokens_alternate_and_a_large_source_goes_alone() {
    let engine = engine(fake());
    let mut tokens = begin(&engine, &prompts(&[3]), greedy(60));
    assert_eq!(advanced(&mut tokens), 1);
    let mut one = over_sources(&engine, &[(1, 400), (2, 3 * CHUNK), (3, 100), (4, 100)], greedy(2));
    let mut other = over_sources(&engine, &[(5, 100), (6, 5), (6, 5), (6, 5)], greedy(2));
    assert_eq!(taken(&mut one) + taken(&mut other), 0);
    let mut came = Vec::new();
    for _ in 0..12 {
        came.push(advanced(&mut tokens));
    }
    assert!(came.windows(2).all(|two| two.iter().sum::<usize>() > 0), "{came:?}");
    let encoded = std::mem::take(&mut *engine.model().encoded.lock().expect("not poisoned"));
    assert_eq!(came.iter().filter(|&&count| count == 0).count(), encoded.len(), "{came:?}");
    // In turn from each call, as many as fit; what three prompts share is read once.
    assert_eq!(encoded, [400 + 100 + 5, 3 * CHUNK, 100 + 100]);
    assert_eq!((rest(&mut one).0.len(), rest(&mut other).0.len()), (4, 4));
}

#[test]
fn a_row_that_can_choose_nothing_ends_its_call_alone() {
    let engine = engine(fake());
    let every: Vec<u32> = (0..=MARK).collect();
    let bad = Options { no_repeat_ngram_size: 1, ..sampled(5, 0) };
    let mut good = begin(&engine, &prompts(&[3, 4]), greedy(9));
    let mut bad = begin(&engine, &[prompt(1, 2), every], bad);
    assert_eq!(taken(&mut bad), 0);
    let rows = rest(&mut good);
    assert_eq!(rows, alone(&prompts(&[3, 4]), greedy(9)));
    let error = bad.advance(None).expect_err("every id is taken");
    assert!(matches!(error, Error::Scores { row: 1, .. }), "{error}");
    assert!(bad.advance(None).expect("it is over").is_none());
    assert_eq!(live(&engine), 0);
}

/// Panics in the step of this number, counted from 1.
fn panics_in(step: usize) -> Begins {
    let begun = AtomicUsize::new(0);
    Begins(Some(Box::new(move |_| {
        assert!(begun.fetch_add(1, Ordering::SeqCst) + 1 != step, "a step that was told to fail");
        Ok(())
    })))
}

#[test]
fn a_panic_ends_the_calls_of_its_step_and_no_other() {
    let engine = engine(FakeModel { begins: panics_in(12), ..fake() });
    let mut away = begin(&engine, &prompts(&[5]), greedy(30));
    let mut calls = [begin(&engine, &prompts(&[3]), greedy(30)), begin(&engine, &prompts(&[4]), greedy(30))];
    assert_eq!((taken(&mut away), taken(&mut calls[1])), (0, 0));
    for _ in 0..11 {
        assert_eq!((advanced(&mut calls[0]), taken(&mut calls[1])), (1, 1));
    }
    for call in &mut calls {
        let error = call.advance(None).expect_err("the twelfth step");
        assert!(matches!(&error, Error::Panicked { message } if message.contains("told to fail")), "{error}");
        assert!(call.advance(None).expect("it is over").is_none());
    }
    assert_eq!(rest(&mut away), alone(&prompts(&[5]), greedy(30)), "it was not in that step");
    let mut fresh = begin(&engine, &prompts(&[6]), greedy(30));
    assert_eq!(rest(&mut fresh), alone(&prompts(&[6]), greedy(30)), "the model is as good as before");
    assert_eq!(live(&engine), 0);
}

#[test]
fn a_panic_in_a_choice_is_a_panic_of_the_step() {
    // With many scores the choice is made by three threads.
    for (vocab_size, threads) in [(40, 1), (40_000, 3)] {
        let engine = engine(FakeModel { vocab_size, threads, ..fake() });
        let beams = Options { num_beams: 2, ..greedy(6) };
        let run = || begin(&engine, &prompts(&[3, 4, 5, 6]), beams.clone());
        let whole = rest(&mut run());
        let mut other = begin(&engine, &prompts(&[3]), greedy(6));
        let mut search = run();
        assert_eq!(taken(&mut other), 0);
        assert_eq!(advanced(&mut search), 0);
        engine.model().fork_fails.store(true, Ordering::SeqCst);
        let mut error = None;
        while error.is_none() {
            error = search.advance(None).err();
        }
        for error in [
            error.expect("told to fail"),
            loop {
                match other.advance(None) {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("it was in that step"),
                    Err(error) => break error,
                }
            },
        ] {
            assert!(matches!(&error, Error::Panicked { .. }), "{error}");
        }
        assert_eq!(live(&engine), 0);
        assert_eq!(rest(&mut run()), whole, "the model is as good as before");
    }
}

#[test]
fn choices_over_threads_are_those_of_one() {
    let everything = |options: Options| Options { num_return_sequences: 3, top_p: 0.9, ..options };
    let cases = [
        greedy(6),
        everything(sampled(6, 3)),
        Options { seed: Seed::PerPrompt(vec![5, 6, 7, 8, 9]), ..everything(sampled(6, 3)) },
        everything(Options { num_beams: 3, ..sampled(6, 4) }),
    ];
    let run = |threads, max_rows| {
        let engine =
            engine(FakeModel { vocab_size: 40_000, threads, limits: limits(max_rows, usize::MAX), ..fake() });
        let calls = cases.iter().map(|options| begin(&engine, &prompts(&[3, 4, 5, 6, 7]), options.clone()));
        let mut calls: Vec<_> = calls.collect();
        calls.iter_mut().for_each(|call| assert_eq!(taken(call), 0));
        calls.iter_mut().map(rest).collect::<Vec<_>>()
    };
    let one = run(1, 64);
    assert_eq!(run(3, 64), one);
    assert_eq!(run(3, 4), one);
}
