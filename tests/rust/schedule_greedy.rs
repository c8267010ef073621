//! Steps in which the model chooses some tokens at once: what comes of them is what single steps give, in the same order.

use std::slice::from_ref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastdecode::Error;
use fastdecode::engine::{
    AHEAD, Canceller, Engine, Event, FinishReason, Generation, Limit, Options, Prompts, Start,
};
use fastdecode::models::Limits;

use crate::allocation::allocations;
use crate::fake::{Begins, FakeModel, Step};
use crate::schedule::{
    MARK, Rows, advanced, alone, begin, engine, fake, greedy, limits, live, prompt, prompts, rest, sampled,
    steps, taken,
};

/// A model that chooses so many tokens at once.
fn choosing(at_once: usize) -> FakeModel {
    FakeModel { at_once, pool: Some(Arc::default()), ..fake() }
}

/// How often the model has chosen since the last question.
fn asked(engine: &Engine<FakeModel>) -> usize {
    engine.model().asked.swap(0, Ordering::SeqCst)
}

/// All events of a call, and its error, if there is one.
fn events(call: &mut Generation<FakeModel>) -> (Vec<Event>, Option<String>) {
    let mut all = Vec::new();
    loop {
        match call.advance(None) {
            Ok(Some(events)) => all.extend_from_slice(events),
            Ok(None) => return (all, None),
            Err(error) => return (all, Some(error.to_string())),
        }
    }
}

/// What a call with a model for itself has given, and what it leaves: prefixes, sequences, blocks, and the ids that its reader kept.
type Left = ((Vec<Event>, Option<String>), (usize, usize), usize, usize, Option<Vec<u32>>);

fn run(model: FakeModel, prompts: Prompts<crate::fake::FakeSequence>, options: Options) -> (Left, usize) {
    let engine = engine(model);
    let mut call = Generation::new(&engine, prompts, options).expect("a sound request");
    let events = events(&mut call);
    let kept = call.kept(None).expect("nobody interrupts").map(|kept| kept.ids().to_vec());
    drop(call);
    let pool = engine.model().pool.as_ref().expect("its blocks are counted");
    let left = (events, engine.prefixes_kept(), live(&engine), pool.live.load(Ordering::SeqCst), kept);
    engine.give_up();
    assert_eq!(
        (live(&engine), pool.live.load(Ordering::SeqCst), pool.open.load(Ordering::SeqCst)),
        (0, 0, 0)
    );
    (left, asked(&engine))
}

#[test]
fn events_and_what_is_left_are_those_of_single_steps() {
    let keeps = Limits { prefix_cache_bytes: 100 * 1024, ..limits(64, 1000 * 1024) };
    let cases = [
        (vec![3], greedy(20)),
        (vec![3], Options { keep: true, ..greedy(30) }),
        (vec![30], Options { keep: true, eos_token_ids: vec![1, 7, 12], ..greedy(200) }),
        (vec![3, 40, 5, 17], greedy(50)),
        (
            vec![3, 40, 5, 17, 90, 2],
            Options { eos_token_ids: vec![3, 30], stop_token_ids: vec![8], ..greedy(70) },
        ),
        (vec![9; 10], Options { limit: Limit::Length(33), eos_token_ids: vec![38], ..greedy(1) }),
    ];
    let mut ended_within = 0;
    for (lengths, options) in cases {
        for source in [0, 20] {
            for at_once in 1..=AHEAD + 1 {
                let model = |at_once| FakeModel { limits: keeps, ..choosing(at_once) };
                let all = || {
                    let mut all = Prompts::new();
                    for ids in prompts(&lengths) {
                        let start = if source > 0 { Start::Source(vec![7; source]) } else { Start::Empty };
                        all.push(&ids, start);
                    }
                    all
                };
                let (single, never) = run(model(0), all(), options.clone());
                let (several, asked) = run(model(at_once), all(), options.clone());
                assert_eq!(several, single, "{at_once} at once: {options:?}");
                assert!(never == 0 && asked > 0, "{asked} steps of {at_once}: {options:?}");
                let ends = single.0.0.iter().filter(|event| event.finish_reason == Some(FinishReason::Eos));
                ended_within += usize::from(at_once > 1) * ends.count();
            }
        }
    }
    assert!(ended_within > 50, "{ended_within} rows ended by an id");
}

#[test]
fn tokens_are_chosen_at_once_as_far_as_all_rows_have_room() {
    let engine = engine(choosing(6));
    let mut call = begin(&engine, &prompts(&[3, 5]), greedy(16));
    let came: Vec<usize> =
        std::iter::from_fn(|| call.advance(None).expect("sound").map(<[_]>::len)).collect();
    assert_eq!(came, [2, 12, 12, 6], "the prompt's step has the first token, and three are left in the end");
    assert_eq!(asked(&engine), 3);
    // A row that has less to come holds the others back, and is not read past its length.
    let context_limit = Some(4 + 9 - 1);
    let engine = crate::schedule::engine(FakeModel { context_limit, ..choosing(8) });
    let (mut short, mut long) =
        (begin(&engine, &prompts(&[4]), greedy(4)), begin(&engine, &prompts(&[4]), greedy(9)));
    assert_eq!((taken(&mut short), advanced(&mut long), taken(&mut short)), (0, 1, 1));
    assert_eq!((advanced(&mut long), taken(&mut short)), (3, 3));
    assert_eq!(advanced(&mut long), 5);
    assert!(short.advance(None).expect("sound").is_none() && long.advance(None).expect("sound").is_none());
    assert_eq!(asked(&engine), 2);
}

#[test]
fn where_anything_looks_at_logits_or_text_every_step_is_an_ordinary_one() {
    let beams = Options { num_beams: 2, ..greedy(20) };
    let looks_on = [
        sampled(20, 3),
        beams.clone(),
        Options { logprobs: Some(0), ..greedy(20) },
        Options { repetition_penalty: 1.3, ..greedy(20) },
        Options { encoder_repetition_penalty: 1.3, ..greedy(20) },
        Options { no_repeat_ngram_size: 2, ..greedy(20) },
        Options { encoder_no_repeat_ngram_size: 2, ..greedy(20) },
        Options { min_new_tokens: 3, eos_token_ids: vec![5], ..greedy(20) },
        Options { min_length: 9, eos_token_ids: vec![5], ..greedy(20) },
        Options { watched: true, ..greedy(20) },
    ];
    for options in looks_on {
        let engine = engine(choosing(8));
        // It stays so for a call beside it, while both run.
        let mut beside = begin(&engine, &prompts(&[4]), greedy(40));
        let mut call = begin(&engine, &prompts(&[3]), options.clone());
        let (mut rows, mut others) = (Rows::of(&call), Rows::of(&beside));
        assert_eq!(taken(&mut beside), 0);
        while let Some(events) = call.advance(None).expect("sound") {
            rows.add(events);
            others.add(beside.take().expect("sound").unwrap_or_default());
        }
        assert_eq!(asked(&engine), 0, "{options:?}");
        others.read_all(&mut beside).expect("sound");
        assert!(asked(&engine) > 0, "alone it is faster");
        assert_eq!((rows, others), (alone(&prompts(&[3]), options), alone(&prompts(&[4]), greedy(40))));
    }
}

#[test]
fn a_prompt_is_read_in_the_step_after_it_has_come() {
    let engine = engine(choosing(8));
    let mut long = begin(&engine, &prompts(&[3]), greedy(100));
    assert_eq!((advanced(&mut long), advanced(&mut long)), (1, 8));
    let mut other = begin(&engine, &prompts(&[1500]), greedy(10));
    assert_eq!((taken(&mut other), steps(&engine).len()), (0, 9));
    for _ in 0..3 {
        assert_eq!(advanced(&mut long), 1, "one token beside each part of it");
    }
    assert_eq!((taken(&mut other), asked(&engine)), (1, 1));
    assert_eq!((advanced(&mut long), taken(&mut other)), (8, 8));
    assert_eq!(rest(&mut other).0[0].0, alone(&prompts(&[1500]), greedy(10)).0[0].0[9..]);
}

#[test]
fn readers_who_are_behind_are_given_no_more_than_in_single_steps() {
    for at_once in [3, 5, AHEAD, 30] {
        let engine = engine(choosing(at_once));
        let mut away = begin(&engine, &prompts(&[4, 5]), greedy(40));
        let mut rows = Rows::of(&away);
        rows.add(away.advance(None).expect("sound").expect("it is not done"));
        for round in 1..4 {
            let mut here = begin(&engine, &prompts(&[3]), greedy(60));
            assert_eq!(rest(&mut here), alone(&prompts(&[3]), greedy(60)));
            rows.add(away.take().expect("sound").expect("it is not done"));
            assert!(rows.0.iter().all(|row| row.0.len() == 1 + AHEAD * round), "{at_once} at once: {rows:?}");
        }
        rows.read_all(&mut away).expect("sound");
        assert_eq!(rows, alone(&prompts(&[4, 5]), greedy(40)));
        assert!(asked(&engine) > 0);
    }
}

#[test]
fn a_row_without_a_best_token_ends_as_in_single_steps() {
    let (mut ended, mut went_on) = (0, 0);
    for strange in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
        for every in [5, 20, 60] {
            for number in 0..20 {
                let all: Vec<Vec<u32>> =
                    (0..3).map(|row| prompt(number * 3 + row, 4 + row as usize)).collect();
                let model = |at_once| FakeModel { strange: Some((every, strange)), ..choosing(at_once) };
                let (single, _) = run(model(0), Prompts::of(&all), greedy(30));
                for at_once in [1, 4, AHEAD] {
                    let (several, _) = run(model(at_once), Prompts::of(&all), greedy(30));
                    // NaN is not equal to itself, but no event has one.
                    assert_eq!(several, single, "{strange} of {every}, {at_once} at once");
                }
                let error = &single.0.1;
                assert_eq!(error.is_some(), strange.is_nan() && error.is_some(), "{error:?}");
                ended += usize::from(error.is_some());
                went_on += usize::from(error.is_none());
            }
        }
    }
    assert!(ended > 20 && went_on > 100, "{ended} calls ended, {went_on} went on");
    // A call beside it has no part in that.
    let engine = engine(FakeModel { strange: Some((20, f32::NAN)), ..choosing(8) });
    let mut ends = 0;
    for number in 0..20 {
        let [mut one, mut other] =
            [0, 1].map(|call| begin(&engine, &[prompt(number * 2 + call, 5)], greedy(12)));
        assert_eq!(taken(&mut one), 0);
        let both = [events(&mut other), events(&mut one)];
        for (call, got) in [1, 0].into_iter().zip(both) {
            let model = FakeModel { strange: Some((20, f32::NAN)), ..choosing(0) };
            let (single, _) = run(model, Prompts::of(&[prompt(number * 2 + call, 5)]), greedy(12));
            ends += usize::from(got.1.is_some());
            assert_eq!(got, single.0);
        }
    }
    assert!((5..35).contains(&ends), "{ends} of 40");
}

#[test]
fn where_there_is_no_memory_for_many_tokens_there_may_be_for_one() {
    let options = Options { eos_token_ids: (0..6).collect(), ..greedy(60) };
    let mut ended = 0;
    for number in 0..20 {
        let ids = prompt(number, 5);
        let whole = alone(from_ref(&ids), options.clone());
        let tokens = whole.0[0].0.len();
        // What single steps need, and not a position more.
        let engine = engine(FakeModel { memory: Some(5 + tokens - 1), ..choosing(8) });
        assert_eq!(rest(&mut begin(&engine, from_ref(&ids), options.clone())), whole);
        ended += usize::from(tokens % 8 != 1);
        assert_eq!(live(&engine), 0);
    }
    assert!(ended > 5, "{ended} rows ended where no step of eight ends");
    // Two calls of which one has to leave, in the middle of steps.
    let engine = engine(FakeModel { memory: Some(60), ..choosing(5) });
    let mut calls = [8, 9].map(|length| begin(&engine, &prompts(&[length]), greedy(40)));
    assert_eq!(taken(&mut calls[1]), 0);
    assert_eq!(calls.each_mut().map(rest), [8, 9].map(|length| alone(&prompts(&[length]), greedy(40))));
    assert!(asked(&engine) > 5);
}

/// Fails in the step of this number, counted from 1.
fn fails_in(step: usize, error: fn() -> Error) -> Begins {
    let begun = AtomicUsize::new(0);
    Begins(Some(Box::new(move |_| {
        if begun.fetch_add(1, Ordering::SeqCst) + 1 == step { Err(error()) } else { Ok(()) }
    })))
}

#[test]
fn a_step_that_is_abandoned_in_the_middle_is_repeated() {
    for step in 2..20 {
        let begins = fails_in(step, || Error::Cancelled);
        let engine = engine(FakeModel { begins, ..choosing(7) });
        let mut calls = [3, 4].map(|length| begin(&engine, &prompts(&[length, 6]), greedy(25)));
        assert_eq!(taken(&mut calls[0]), 0);
        assert_eq!(
            calls.each_mut().map(rest),
            [3, 4].map(|length| alone(&prompts(&[length, 6]), greedy(25)))
        );
        assert_eq!(live(&engine), 0);
    }
}

#[test]
fn a_hook_ends_a_step_in_the_middle_and_its_call_may_go_on() {
    let (begun, stopped) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let noted = Arc::clone(&stopped);
    let begins = Begins(Some(Box::new(move |cancel| {
        if begun.fetch_add(1, Ordering::SeqCst) % 4 == 3 {
            // A hook is asked when some time has passed.
            std::thread::sleep(Duration::from_millis(60));
            noted.fetch_add(usize::from(cancel.ask()), Ordering::SeqCst);
        }
        Ok(())
    })));
    let engine = engine(FakeModel { begins, ..choosing(3) });
    let mut call = begin(&engine, &prompts(&[3]), greedy(12));
    let (mut rows, mut interrupted) = (Rows::of(&call), 0);
    let mut answers = [false, true, true, false, true].into_iter().cycle();
    loop {
        let stops = answers.next().expect("it has no end");
        match call.advance(Some(&|| stops)) {
            Ok(Some(events)) => rows.add(events),
            Ok(None) => break,
            Err(Error::Cancelled) => interrupted += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(interrupted > 0, "no step was stopped");
    assert_eq!((interrupted, rows), (stopped.load(Ordering::SeqCst), alone(&prompts(&[3]), greedy(12))));
}

#[test]
fn a_call_that_is_cancelled_in_the_middle_ends_and_a_call_beside_it_does_not() {
    for with_another in [false, true] {
        let cancelled: Arc<Mutex<Option<Canceller<FakeModel>>>> = Arc::default();
        let (begun, waits) = (AtomicUsize::new(0), Arc::clone(&cancelled));
        let begins = Begins(Some(Box::new(move |_| {
            // The prompts are read in the first step; the fourth is in the middle of those that follow.
            if begun.fetch_add(1, Ordering::SeqCst) + 1 == 4
                && let Some(canceller) = waits.lock().expect("not poisoned").take()
            {
                canceller.cancel();
            }
            Ok(())
        })));
        let engine = engine(FakeModel { begins, ..choosing(8) });
        let mut call = begin(&engine, &prompts(&[3, 4]), greedy(30));
        *cancelled.lock().expect("not poisoned") = Some(call.canceller());
        let mut other = begin(&engine, &prompts(&[5]), greedy(30));
        if with_another {
            assert_eq!(taken(&mut other), 0);
        }
        assert_eq!(advanced(&mut call), 2);
        assert!(matches!(call.advance(None), Err(Error::Cancelled)));
        assert_eq!(live(&engine), usize::from(with_another), "its caches are free");
        // The other one's reader has a token that it has not taken, so that there are seven at once.
        let noted = steps(&engine).len();
        assert_eq!(noted, if with_another { 1 + 7 } else { 3 }, "a step that nobody wants is stopped");
        assert_eq!(rest(&mut other), alone(&prompts(&[5]), greedy(30)));
    }
}

#[test]
fn an_error_of_the_model_ends_the_calls_of_its_step() {
    for step in 2..9 {
        let begins = fails_in(step, || Error::Panicked { message: "told to fail".to_owned() });
        let engine = engine(FakeModel { begins, ..choosing(7) });
        let mut call = begin(&engine, &prompts(&[3]), greedy(25));
        assert_eq!(advanced(&mut call), 1);
        let error = call.advance(None).expect_err("told to fail");
        assert!(matches!(error, Error::Panicked { .. }), "{error}");
        assert!(call.advance(None).expect("it is over").is_none());
        assert_eq!(live(&engine), 0);
        assert_eq!(rest(&mut begin(&engine, &prompts(&[4]), greedy(9))), alone(&prompts(&[4]), greedy(9)));
    }
}

#[test]
fn a_model_may_decline_at_any_time() {
    let engine = engine(FakeModel { declines: Some(2), ..choosing(4) });
    let mut call = begin(&engine, &prompts(&[3, 5]), greedy(17));
    let came: Vec<usize> =
        std::iter::from_fn(|| call.advance(None).expect("sound").map(<[_]>::len)).collect();
    assert_eq!(came, [2, 8, 2, 8, 2, 8, 2, 2]);
    assert_eq!(asked(&engine), 7);
}

#[test]
fn no_step_crosses_the_border_of_long_sequences_but_an_ordinary_one() {
    // The fake model holds every step against its border.
    let engine = engine(FakeModel { border: Some(20), ..choosing(8) });
    let mut call = begin(&engine, &prompts(&[7]), greedy(40));
    let came: Vec<usize> =
        std::iter::from_fn(|| call.advance(None).expect("sound").map(<[_]>::len)).collect();
    // Seven positions of the prompt, 13 more to the border, one that crosses it.
    assert_eq!(came, [1, 8, 5, 1, 8, 8, 8, 1]);
    assert_eq!(asked(&engine), 6);
    for lengths in [[19, 20], [20, 21], [21, 40]] {
        let mut call = begin(&engine, &prompts(&lengths), greedy(20));
        assert_eq!(rest(&mut call), alone(&prompts(&lengths), greedy(20)));
    }
}

#[test]
fn steps_of_some_tokens_allocate_nothing() {
    let engine = engine(FakeModel { at_once: 4, ..FakeModel::new(1000, 4.0) });
    let mut call = begin(&engine, &[vec![1, 2, 3], vec![4]], greedy(1000));
    let mut advance = |steps: usize| {
        for _ in 0..steps {
            call.advance(None).expect("a sound request").expect("it is not done");
        }
    };
    advance(40);
    assert_eq!(allocations(|| advance(40)), 0);
    assert_eq!(asked(&engine), 79);
}

#[test]
fn steps_are_counted_as_those_of_the_model() {
    let engine = engine(choosing(5));
    let mut call = begin(&engine, &[vec![1, 2, MARK]], greedy(7));
    rest(&mut call);
    let decode = Step { decodes: 1, prompts: 0, reads: 0 };
    let noted = steps(&engine);
    assert_eq!(noted[0], Step { decodes: 0, prompts: 1, reads: 3 });
    assert!(noted.len() == 7 && noted[1..].iter().all(|step| *step == decode), "{noted:?}");
}
