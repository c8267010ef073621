//! The schedule where memory is scarce: what is reserved, who leaves a step where memory is refused, and who comes back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fastdecode::Error;
use fastdecode::engine::{AHEAD, Engine, Generation, Options, Prompts, Start};

use crate::fake::{FakeModel, Step};
use crate::schedule::{
    Rows, advanced, alone, begin, engine, fake, greedy, limits, live, prompt, prompts, rest, sampled, steps,
    taken,
};

fn refusing(memory: usize) -> Arc<Engine<FakeModel>> {
    engine(FakeModel { memory: Some(memory), ..fake() })
}

fn most_decodes(engine: &Engine<FakeModel>) -> Option<usize> {
    steps(engine).iter().map(|step| step.decodes).max()
}

#[test]
fn where_memory_is_refused_the_youngest_leave_and_come_back_as_they_were() {
    // Rows of 39 positions in the end; each call alone has room.
    let three = Options { num_return_sequences: 3, ..sampled(30, 5) };
    let beams = Options { num_beams: 3, ..greedy(30) };
    let cases = [greedy(30), three, sampled(30, 6), beams];
    for memory in [40 + 3 * 40, 40 + 3 * 40 + 20] {
        let engine = refusing(memory);
        let mut calls = cases.each_ref().map(|options| begin(&engine, &prompts(&[10]), options.clone()));
        calls.iter_mut().for_each(|call| assert_eq!(taken(call), 0));
        let mut rows = calls.each_ref().map(Rows::of);
        for _ in 0..30 {
            assert_eq!(advanced(&mut calls[0]), 1, "the oldest one never waits");
            for (call, rows) in calls.iter_mut().zip(&mut rows).skip(1) {
                rows.add(call.take().expect("sound").unwrap_or_default());
            }
        }
        assert!(engine.model().held.load(Ordering::SeqCst) <= memory);
        for ((call, mut rows), options) in calls.iter_mut().zip(rows).zip(&cases).skip(1) {
            rows.read_all(call).expect("sound");
            assert_eq!(rows, alone(&prompts(&[10]), options.clone()), "{options:?}");
        }
        let fed: usize = engine.model().fed.lock().expect("not poisoned").iter().sum();
        let once = 4 * 10 + (1 + 3 + 1 + 3) * 29;
        assert!(fed > once, "{fed} tokens: nothing was read again");
        assert_eq!(live(&engine), 0);
    }
}

#[test]
fn a_lone_call_that_memory_is_refused_is_told_so_and_no_other_one() {
    for big_is_older in [false, true] {
        let engine = refusing(60);
        let mut big = begin(&engine, &prompts(&[100]), greedy(5));
        let mut small = begin(&engine, &prompts(&[10]), greedy(30));
        if big_is_older {
            assert_eq!((taken(&mut big), taken(&mut small)), (0, 0));
        } else {
            assert_eq!((taken(&mut small), taken(&mut big)), (0, 0));
        }
        assert_eq!(rest(&mut small), alone(&prompts(&[10]), greedy(30)));
        let mut error = None;
        while error.is_none() {
            error = big.advance(None).map(|events| assert!(events.is_some_and(<[_]>::is_empty))).err();
        }
        assert!(matches!(error, Some(Error::OutOfMemory { .. })), "{error:?}");
        assert!(big.advance(None).expect("it is over").is_none());
        assert_eq!(live(&engine), 0);
    }
}

#[test]
fn caches_of_readers_who_are_behind_go_before_a_call_is_refused() {
    let engine = refusing(50);
    let mut away = begin(&engine, &prompts(&[10]), sampled(30, 3));
    let mut rows = Rows::of(&away);
    rows.add(away.advance(None).expect("sound").expect("it is not done"));
    let mut here = begin(&engine, &prompts(&[20]), greedy(25));
    assert_eq!(rest(&mut here), alone(&prompts(&[20]), greedy(25)), "44 positions, beside 17 that are kept");
    assert_eq!(most_decodes(&engine), Some(2));
    rows.add(away.take().expect("sound").expect("it is not done"));
    assert_eq!(rows.0[0].0.len(), 1 + AHEAD, "what was chosen stays");
    rows.read_all(&mut away).expect("sound");
    assert_eq!(rows, alone(&prompts(&[10]), sampled(30, 3)));
}

#[test]
fn rows_that_draw_from_one_stream_wait_for_each_other_to_be_read_again() {
    let engine = refusing(3000);
    let lengths = [5, 400, 4];
    let mut away = begin(&engine, &prompts(&lengths), sampled(30, 3));
    let mut rows = Rows::of(&away);
    rows.add(away.advance(None).expect("sound").expect("it is not done"));
    assert!(rows.0.iter().all(|row| row.0.len() == 1), "they begin together");
    // Its reader falls behind, and its cache makes way.
    rest(&mut begin(&engine, &prompts(&[6]), greedy(20)));
    rest(&mut begin(&engine, &prompts(&[2700]), greedy(2)));
    assert_eq!(engine.model().held.load(Ordering::SeqCst), 0);
    // It is read again in several steps, since it has half of each, and the first row is in before the second one.
    let mut beside = begin(&engine, &prompts(&[2000]), greedy(2));
    assert_eq!(taken(&mut beside), 0);
    rows.read_all(&mut away).expect("sound");
    assert_eq!(rows, alone(&prompts(&lengths), sampled(30, 3)));
}

#[test]
fn who_left_a_step_comes_back_for_a_row_that_ended_in_it() {
    let engine = refusing(57);
    let mut short = begin(&engine, &prompts(&[10]), greedy(5));
    let mut long = begin(&engine, &prompts(&[11]), greedy(60));
    assert_eq!(taken(&mut long), 0);
    for _ in 0..4 {
        assert_eq!((advanced(&mut short), taken(&mut long)), (1, 1));
    }
    let mut late = begin(&engine, &prompts(&[30]), greedy(10));
    assert_eq!(taken(&mut late), 0);
    // 13 + 14 positions are held, and 2 + 30 are to come: the late one leaves the step, in which the short one ends.
    assert_eq!(advanced(&mut long), 1);
    assert_eq!((taken(&mut short), taken(&mut late)), (1, 0));
    assert_eq!(advanced(&mut long), 1);
    assert_eq!(taken(&mut late), 1, "there was room for it");
    assert_eq!(rest(&mut late).0[0].0, alone(&prompts(&[30]), greedy(10)).0[0].0[1..]);
}

#[test]
fn what_an_empty_cache_could_not_hold_is_refused_before_any_work() {
    // Eight blocks of 16 positions.
    let engine = engine(FakeModel { limits: limits(64, 8 * 1024), ..fake() });
    let over = |source: usize, lengths: &[usize], options: Options| {
        let mut all = Prompts::new();
        for (number, &length) in lengths.iter().enumerate() {
            let start = if source > 0 { Start::Source(vec![1; source]) } else { Start::Empty };
            all.push(&prompt(number as u32, length), start);
        }
        Generation::new(&engine, all, options)
    };
    let beams = |num_beams, new_tokens| Options { num_beams, ..greedy(new_tokens) };
    for (name, source, lengths, options) in [
        ("max_new_tokens", 0, vec![10], greedy(119)),
        ("max_new_tokens", 0, vec![3, 10], greedy(usize::MAX)),
        ("max_new_tokens", 100, vec![3], greedy(14)),
        ("prompt 1", 0, vec![3, 128], greedy(2)),
        ("num_beams", 0, vec![10], beams(4, 30)),
        ("source", 129, vec![3], greedy(1)),
    ] {
        match over(source, &lengths, options) {
            Err(Error::Option { option, expected, .. }) => {
                assert!(option == name && expected.contains("cache_bytes=8192"), "{option}: {expected}");
            }
            other => panic!("{name}: {:?}", other.map(|_| "accepted")),
        }
    }
    for (source, lengths, options) in
        [(0, vec![10; 9], greedy(118)), (100, vec![3; 3], greedy(13)), (0, vec![10; 3], beams(2, 54))]
    {
        let mut call = over(source, &lengths, options).expect("it fits");
        assert_eq!(rest(&mut call).0.len(), lengths.len());
    }
    assert_eq!(live(&engine), 0);
}

#[test]
fn rows_reserve_what_they_may_come_to_hold_and_shared_blocks_once() {
    let several = Options { num_return_sequences: 4, ..sampled(16, 1) };
    for (blocks, rows) in [(14, 4), (13, 3), (11, 1)] {
        let engine = engine(FakeModel { limits: limits(64, blocks * 1024), ..fake() });
        // Ten blocks of the prompt for all, one for each row.
        let mut call = begin(&engine, &prompts(&[160]), several.clone());
        assert_eq!(rest(&mut call), alone(&prompts(&[160]), several.clone()));
        assert_eq!(most_decodes(&engine), Some(rows), "{blocks} blocks");
        // Ten blocks of the source for all, one for each prompt.
        let mut all = Prompts::new();
        (0..4).for_each(|number| all.push(&prompt(number, 3), Start::Source(vec![1; 160])));
        let mut call = Generation::new(&engine, all, greedy(13)).expect("one of them fits");
        assert_eq!(rest(&mut call), alone(&prompts(&[3; 4]), greedy(13)));
        assert_eq!(most_decodes(&engine), Some(rows), "{blocks} blocks");
    }
}

#[test]
fn what_is_read_again_is_reserved_once() {
    let engine = engine(FakeModel { memory: Some(30), limits: limits(64, 14 * 1024), ..fake() });
    let mut all = Prompts::new();
    (0..2).for_each(|number| all.push(&prompt(number, 3), Start::Source(vec![1; 160])));
    let mut first = Generation::new(&engine, all, greedy(13)).expect("it fits");
    let mut rows = Rows::of(&first);
    while rows.0[0].0.is_empty() {
        rows.add(first.advance(None).expect("sound").expect("it is not done"));
    }
    // Its cache makes way for a call that needs all of the memory.
    let mut second = begin(&engine, &prompts(&[15]), greedy(15));
    assert_eq!(rest(&mut second), alone(&prompts(&[15]), greedy(15)));
    assert_eq!(engine.model().encoded.lock().expect("not poisoned").len(), 1);
    rows.add(first.take().expect("sound").expect("it is not done"));
    // Two blocks beside ten of the source and two of its rows.
    let mut third = begin(&engine, &prompts(&[2]), greedy(3));
    assert_eq!(taken(&mut third), 0);
    steps(&engine);
    rows.read_all(&mut first).expect("sound");
    assert_eq!(engine.model().encoded.lock().expect("not poisoned").len(), 2, "read again");
    assert_eq!(most_decodes(&engine), Some(3), "side by side");
    assert_eq!(rows, alone(&prompts(&[3; 2]), greedy(13)));
    assert_eq!(rest(&mut third), alone(&prompts(&[2]), greedy(3)));
}

#[test]
fn what_nobody_has_reserved_counts_and_never_refuses_a_row_that_runs_alone() {
    // A row takes one block, and three are left.
    for (open_bytes, rows) in [(5 * 1024, 3), (usize::MAX, 1)] {
        let engine = engine(FakeModel { open_bytes, limits: limits(64, 8 * 1024), ..fake() });
        let mut calls =
            [begin(&engine, &prompts(&[3; 5]), greedy(5)), begin(&engine, &prompts(&[4; 2]), greedy(6))];
        assert_eq!(taken(&mut calls[1]), 0);
        let results = calls.each_mut().map(rest);
        assert_eq!(results, [alone(&prompts(&[3; 5]), greedy(5)), alone(&prompts(&[4; 2]), greedy(6))]);
        let noted = steps(&engine);
        assert!(noted.iter().all(|step| step.decodes.max(step.prompts) <= rows), "{noted:?}");
        assert!(noted.contains(&Step { decodes: rows, prompts: 0, reads: 0 }));
    }
}
