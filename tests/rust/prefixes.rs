//! Prefixes: what a handle, a reader and the cache of a model keep of calls, and that nobody pays for it but with idle memory.

use std::slice::from_ref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fastdecode::Error;
use fastdecode::engine::{AHEAD, Engine, Event, Generation, Options, Prefix, Prompts};
use fastdecode::models::{Cancel, Decoder, Input, Limits, Segment, Wanted};

use crate::fake::{FakeModel, FakeSequence};
use crate::schedule::{MARK, Rows, alone, begin, engine, fake, greedy, limits, live, rest, sampled, taken};

const BLOCK: usize = 1024;

/// An engine that keeps prefixes in so many blocks, of so many for all.
fn keeping(kept: usize, blocks: usize) -> Arc<Engine<FakeModel>> {
    choosing(0, kept, blocks)
}

/// The same over a model that chooses some tokens at once.
fn choosing(at_once: usize, kept: usize, blocks: usize) -> Arc<Engine<FakeModel>> {
    let limits = Limits { prefix_cache_bytes: kept * BLOCK, ..limits(64, blocks.saturating_mul(BLOCK)) };
    engine(FakeModel { limits, at_once, pool: Some(Arc::default()), ..fake() })
}

fn blocks(engine: &Engine<FakeModel>) -> usize {
    engine.model().pool.as_ref().expect("its blocks are counted").live.load(Ordering::SeqCst)
}

/// Positions that were computed since the last question.
fn fed(engine: &Engine<FakeModel>) -> usize {
    std::mem::take(&mut *engine.model().fed.lock().expect("not poisoned")).iter().sum()
}

/// A prompt of `shared` ids that all of the same letter begin with, and some of its own.
fn text(letter: u32, shared: usize, number: u32, own: usize) -> Vec<u32> {
    let shared = (0..shared as u32).map(|i| (letter + i * i) % 30);
    shared.chain((1..own as u32).map(|i| (number * 11 + i) % 30)).chain([MARK]).collect()
}

/// Ids that are read once.
fn read(engine: &Engine<FakeModel>, ids: &[u32]) -> Arc<Prefix<FakeSequence>> {
    let mut sequence = engine.model().start(None).expect("it has no source");
    let segment = Segment { sequence: &mut sequence, input: Input::Tokens(ids), logits: Wanted::Nothing };
    engine.model().forward(&mut [segment], &mut Vec::new(), &Cancel::never()).expect("sound");
    fed(engine);
    Arc::new(Prefix::new(ids, sequence))
}

fn behind(
    engine: &Arc<Engine<FakeModel>>,
    prefix: &Arc<Prefix<FakeSequence>>,
    prompts: &[Vec<u32>],
    options: Options,
) -> Generation<FakeModel> {
    let mut all = Prompts::behind(Some(Arc::clone(prefix)));
    prompts.iter().for_each(|ids| all.push(ids, fastdecode::engine::Start::Empty));
    Generation::new(engine, all, options).expect("a sound request")
}

/// A call's rows, and how much of its prompt each of them reused.
fn told(call: &mut Generation<FakeModel>) -> (Rows, Vec<usize>) {
    let (mut rows, mut cached) = (Rows::of(call), vec![usize::MAX; call.row_count()]);
    while let Some(events) = call.advance(None).expect("sound") {
        let events: Vec<Event> = events.to_vec();
        for event in &events {
            if let Some(tokens) = event.cached_tokens {
                assert_eq!(cached[event.row], usize::MAX, "it is told once");
                cached[event.row] = tokens;
            }
        }
        rows.add(&events);
    }
    (rows, cached)
}

#[test]
fn what_is_behind_a_prefix_alone_is_computed() {
    for at_once in [0, 5] {
        let engine = choosing(at_once, 0, usize::MAX >> 20);
        let ids: Vec<u32> = text(0, 100, 0, 0)[..100].to_vec();
        let prefix = read(&engine, &ids);
        assert_eq!(blocks(&engine), 7);
        // Beside the prefix's ids: one that ends within it, is it, goes on from it, parts from it, has nothing in common with it.
        let prompts =
            [ids[..50].to_vec(), ids.clone(), text(0, 100, 1, 30), text(0, 70, 2, 30), text(1, 20, 3, 10)];
        let spared = [49, 99, 100, 70, 0];
        for options in [greedy(9), sampled(9, 3), Options { num_beams: 3, ..greedy(9) }] {
            for (prompt, spared) in prompts.iter().zip(spared) {
                fed(&engine);
                let (rows, cached) = told(&mut behind(&engine, &prefix, from_ref(prompt), options.clone()));
                assert_eq!(rows, alone(from_ref(prompt), options.clone()));
                assert_eq!(cached, [spared]);
                let rows = if options.num_beams > 1 { 3 } else { 1 };
                assert_eq!(fed(&engine), prompt.len() - spared + rows * 8, "{spared} of {}", prompt.len());
            }
        }
        let options = Options { num_return_sequences: 3, ..sampled(9, 4) };
        let (rows, cached) = told(&mut behind(&engine, &prefix, &prompts, options.clone()));
        assert_eq!(rows, alone(&prompts, options));
        assert_eq!(cached, spared.map(|spared| [spared; 3]).concat());
        assert_eq!((blocks(&engine), live(&engine)), (7, 1), "the prefix alone is left");
        drop(prefix);
        assert_eq!((blocks(&engine), live(&engine)), (0, 0));
    }
}

#[test]
fn a_prefix_lives_as_long_as_a_call_that_began_behind_it() {
    let engine = keeping(0, 100);
    let ids = text(0, 64, 0, 1);
    let prefix = read(&engine, &ids[..64]);
    let mut call = behind(&engine, &prefix, from_ref(&ids), greedy(20));
    drop(prefix);
    assert_eq!(rest(&mut call), alone(&[ids], greedy(20)));
    drop(call);
    assert_eq!(live(&engine), 0);
}

#[test]
fn what_a_prefix_holds_is_reserved_by_no_call() {
    for at_once in [0, 5] {
        // Ten blocks for all: the prefix has six of them, and each of four calls needs one beside it.
        let engine = choosing(at_once, 0, 10);
        let prefix = read(&engine, &text(0, 96, 0, 0)[..96]);
        let prompts: Vec<Vec<u32>> = (0..4).map(|number| text(0, 96, number, 5)).collect();
        let mut call = behind(&engine, &prefix, &prompts, greedy(11));
        assert_eq!(rest(&mut call), alone(&prompts, greedy(11)));
        let most = engine.model().steps.lock().expect("not poisoned").iter().map(|step| step.decodes).max();
        assert_eq!(most, Some(4), "side by side");
    }
}

#[test]
fn a_call_that_leaves_for_want_of_memory_comes_back_behind_its_prefix() {
    let engine = engine(FakeModel { memory: Some(380), pool: Some(Arc::default()), ..fake() });
    let prefix = read(&engine, &text(0, 100, 0, 0)[..100]);
    let prompts: Vec<Vec<u32>> = (0..2).map(|number| text(0, 100, number, 10)).collect();
    // 100 positions of the prefix, and twice what a row comes to.
    let mut calls = prompts
        .iter()
        .map(|prompt| behind(&engine, &prefix, from_ref(prompt), greedy(60)))
        .collect::<Vec<_>>();
    let mut rows: Vec<Rows> = calls.iter().map(Rows::of).collect();
    assert_eq!(taken(&mut calls[1]), 0);
    let [first, second] = &mut calls[..] else { panic!("two calls") };
    rows[0].read_all(first).expect("sound");
    rows[1].read_all(second).expect("sound");
    for (rows, prompt) in rows.iter().zip(&prompts) {
        assert_eq!(rows, &alone(from_ref(prompt), greedy(60)));
    }
    let fed = fed(&engine);
    assert!(fed > 2 * (10 + 59), "{fed} tokens: nobody left");
    assert!(fed < 2 * (10 + 59) + 100, "{fed} tokens: the prefix was read again");
}

#[test]
fn calls_begin_behind_what_others_have_left() {
    for at_once in [0, 5] {
        let engine = choosing(at_once, 100, 1000);
        let first = text(0, 100, 0, 20);
        let (rows, cached) = told(&mut begin(&engine, from_ref(&first), greedy(30)));
        assert_eq!((cached, fed(&engine)), (vec![0], 120 + 29));
        // The whole of it, and what it has generated; then one that parts from it.
        let next = [&first[..], &rows.0[0].0, &[1, MARK]].concat();
        let (rows, cached) = told(&mut begin(&engine, from_ref(&next), greedy(5)));
        assert_eq!((cached, fed(&engine)), (vec![149], next.len() - 149 + 4));
        assert_eq!(rows, alone(&[next], greedy(5)));
        let other = text(0, 100, 1, 20);
        let (rows, cached) = told(&mut begin(&engine, from_ref(&other), greedy(5)));
        assert_eq!((cached, fed(&engine)), (vec![100], 20 + 4));
        assert_eq!(rows, alone(&[other], greedy(5)));
        // The second holds the first: one of them is there, and the third, which shares six blocks.
        assert_eq!(engine.prefixes_kept(), (2, (10 + 2) * BLOCK));
        assert_eq!(blocks(&engine), 12);
        assert!(engine.give_up() && !engine.give_up());
        assert_eq!((live(&engine), blocks(&engine)), (0, 0));
    }
}

#[test]
fn prompts_are_there_for_others_as_soon_as_they_are_read() {
    let engine = keeping(200, 1000);
    let mut long = begin(&engine, &[text(0, 100, 0, 20)], greedy(50));
    assert_eq!(long.advance(None).expect("sound").map(<[_]>::len), Some(1));
    fed(&engine);
    let prompt = text(0, 100, 1, 20);
    let (rows, cached) = told(&mut begin(&engine, from_ref(&prompt), greedy(2)));
    assert_eq!((rows, cached), (alone(&[prompt], greedy(2)), vec![100]));
    // Prompts of one list, too: those that do not fit into the first chunk of reading go on behind the others.
    let prompts: Vec<Vec<u32>> = (0..20).map(|number| text(5, 300, number, 20)).collect();
    fed(&engine);
    drop(long);
    let (rows, cached) = told(&mut begin(&engine, &prompts, greedy(2)));
    assert_eq!(rows, alone(&prompts, greedy(2)));
    assert_eq!(cached.iter().filter(|&&tokens| tokens == 300).count(), 19, "{cached:?}");
    let fed = fed(&engine);
    assert!(fed <= 2 * 512 + 20 * 20 + 20, "{fed} tokens");
}

#[test]
fn what_calls_leave_never_takes_more_than_its_bytes() {
    for at_once in [0, 5] {
        let engine = choosing(at_once, 12, 1000);
        for number in 0..60 {
            let prompt =
                text(number % 7, 20 + (number as usize * 13) % 90, number, 10 + number as usize % 20);
            let options = if number % 3 == 0 {
                Options { num_return_sequences: 3, ..sampled(12, 1) }
            } else {
                greedy(12)
            };
            let expected = alone(from_ref(&prompt), options.clone());
            let mut call = begin(&engine, &[prompt], options);
            let mut rows = Rows::of(&call);
            while let Some(events) = call.advance(None).expect("sound") {
                let events = events.to_vec();
                rows.add(&events);
                let (entries, bytes) = engine.prefixes_kept();
                assert!(bytes <= 12 * BLOCK && entries <= 12, "{entries} prefixes of {bytes} bytes");
            }
            assert_eq!(rows, expected);
            assert_eq!(blocks(&engine) * BLOCK, engine.prefixes_kept().1, "what is kept is all that is left");
        }
        // One that is longer than all that may be kept is kept as far as it fits.
        let long = text(3, 400, 0, 10);
        rest(&mut begin(&engine, from_ref(&long), greedy(2)));
        assert_eq!(engine.prefixes_kept(), (1, 12 * BLOCK));
        let (_, cached) = told(&mut begin(&engine, &[long], greedy(2)));
        assert_eq!(cached, [12 * 16]);
    }
}

#[test]
fn the_least_recently_used_goes_first() {
    let engine = keeping(12, 1000);
    let prompts: Vec<Vec<u32>> = (0..3).map(|letter| text(letter * 3 + 1, 60, 0, 4)).collect();
    for prompt in &prompts {
        rest(&mut begin(&engine, from_ref(prompt), greedy(1)));
    }
    assert_eq!(engine.prefixes_kept(), (3, 12 * BLOCK));
    assert_eq!(told(&mut begin(&engine, &prompts[..1], greedy(1))).1, [63], "the first one is used again");
    rest(&mut begin(&engine, &[text(20, 60, 0, 4)], greedy(1)));
    for (prompt, spared) in prompts.iter().zip([63, 0, 63]) {
        let at_most = told(&mut begin(&engine, &[prompt[..63].to_vec()], greedy(1))).1[0];
        assert!((spared == 0) == (at_most < 16), "{at_most} tokens, {spared}");
        if spared == 0 {
            break;
        }
    }
}

#[test]
fn what_calls_leave_is_given_up_before_anybody_waits() {
    for at_once in [0, 5] {
        let engine = choosing(at_once, 20, 20);
        for letter in 0..4 {
            rest(&mut begin(&engine, &[text(letter, 70, 0, 10)], greedy(2)));
        }
        assert!(engine.prefixes_kept().1 >= 16 * BLOCK);
        // Two calls of nine blocks each.
        let prompts: Vec<Vec<u32>> = (0..2).map(|number| text(20 + number * 3, 60, number, 60)).collect();
        let mut calls: Vec<_> =
            prompts.iter().map(|prompt| begin(&engine, from_ref(prompt), greedy(24))).collect();
        assert_eq!(taken(&mut calls[1]), 0);
        engine.model().steps.lock().expect("not poisoned").clear();
        for (call, prompt) in calls.iter_mut().zip(&prompts) {
            assert_eq!(rest(call), alone(from_ref(prompt), greedy(24)));
        }
        let steps = engine.model().steps.lock().expect("not poisoned").clone();
        assert_eq!(steps[0].prompts, 2, "both begin at once");
        assert!(steps.iter().filter(|step| step.decodes == 2).count() >= AHEAD - 1, "{steps:?}");
    }
}

#[test]
fn what_calls_leave_is_given_up_before_memory_is_refused_to_anybody() {
    let limits = Limits { prefix_cache_bytes: 1000 * BLOCK, ..limits(64, usize::MAX) };
    let model = FakeModel { limits, memory: Some(600), pool: Some(Arc::default()), ..fake() };
    let engine = engine(model);
    for letter in 0..3 {
        rest(&mut begin(&engine, &[text(letter, 100, 0, 10)], greedy(2)));
    }
    assert!(engine.prefixes_kept().0 >= 3);
    fed(&engine);
    let prompts = [text(20, 200, 0, 10), text(23, 200, 0, 10)];
    let mut calls: Vec<_> =
        prompts.iter().map(|prompt| begin(&engine, from_ref(prompt), greedy(10))).collect();
    assert_eq!(taken(&mut calls[1]), 0);
    for (call, prompt) in calls.iter_mut().zip(&prompts) {
        assert_eq!(rest(call), alone(from_ref(prompt), greedy(10)));
    }
    let fed = fed(&engine);
    assert_eq!(fed, 2 * (210 + 9), "nobody had to read again");
}

#[test]
fn rows_that_share_a_prompt_do_not_pay_twice_for_it() {
    // Ten blocks of the prompt for all and one for each of four rows; the cache may keep all of them.
    let several = Options { num_return_sequences: 4, ..sampled(16, 1) };
    let prompt = text(0, 150, 0, 10);
    for kept in [0, 14] {
        let engine = keeping(kept, 14);
        let mut call = begin(&engine, from_ref(&prompt), several.clone());
        assert_eq!(rest(&mut call), alone(from_ref(&prompt), several.clone()));
        let steps = engine.model().steps.lock().expect("not poisoned").clone();
        assert_eq!(steps.iter().map(|step| step.decodes).max(), Some(4), "{kept} blocks are kept");
        assert_eq!(steps.len(), 16, "nobody waits");
        assert!(blocks(&engine) <= 14);
    }
}

#[test]
fn everything_together_stays_within_the_cache() {
    for at_once in [0, 5] {
        let engine = choosing(at_once, 30, 40);
        let mut calls: Vec<(Generation<FakeModel>, Rows, Rows)> = Vec::new();
        for number in 0..80u32 {
            let options = match number % 4 {
                0 => Options { num_return_sequences: 3, ..sampled(10 + number as usize % 30, 5) },
                1 => Options { num_beams: 2, ..greedy(8) },
                _ => greedy(5 + number as usize % 40),
            };
            let prompt = text(number % 5, (number as usize * 37) % 130, number, 1 + number as usize % 50);
            let call = begin(&engine, from_ref(&prompt), options.clone());
            calls.push((call, Rows(Vec::new()), alone(&[prompt], options)));
            let place = calls.len() - 1;
            calls[place].1 = Rows::of(&calls[place].0);
            for _ in 0..if number == 79 { 3000 } else { 8 } {
                engine.step(None).expect("nobody interrupts");
                assert!(blocks(&engine) <= 40, "{} blocks", blocks(&engine));
                assert!(engine.prefixes_kept().1 <= 30 * BLOCK);
                calls.retain_mut(|(call, rows, expected)| match call.take().expect("sound") {
                    Some(events) => {
                        rows.add(events);
                        true
                    }
                    None => {
                        assert_eq!(rows, expected);
                        false
                    }
                });
            }
        }
        assert!(calls.is_empty());
        assert!(fed(&engine) > 0 && engine.give_up());
        assert_eq!((live(&engine), blocks(&engine)), (0, 0));
    }
}

#[test]
fn a_reader_keeps_what_its_row_has_in_the_cache() {
    for (cached, at_once) in [(0, 0), (100, 0), (0, 5), (100, 5)] {
        let engine = choosing(at_once, cached, 1000);
        let prompt = text(0, 50, 0, 10);
        let keep = |new| Options { keep: true, ..greedy(new) };
        // At its end.
        let mut call = begin(&engine, from_ref(&prompt), keep(20));
        let rows = rest(&mut call);
        let kept = Arc::new(call.kept(None).expect("nobody interrupts").expect("it was read"));
        let whole = [&prompt[..], &rows.0[0].0].concat();
        assert_eq!(kept.ids()[..], whole[..79], "all but the last, which was not fed back");
        assert!(call.kept(None).expect("sound").is_none() && call.advance(None).expect("sound").is_none());
        drop(call);
        let next = [&whole[..], &[3, MARK]].concat();
        let (rows, spared) = told(&mut behind(&engine, &kept, from_ref(&next), greedy(4)));
        assert_eq!((rows, spared), (alone(&[next], greedy(4)), vec![79]));
        // In the middle, in the middle of its prompt, by a stop string, and before it was ever asked for tokens.
        let mut call = begin(&engine, from_ref(&prompt), keep(20));
        for _ in 0..5 {
            call.advance(None).expect("sound");
        }
        let kept = call.kept(None).expect("sound").expect("it was read");
        assert!((64..80).contains(&kept.ids().len()), "{}", kept.ids().len());
        assert_eq!(kept.ids()[..], whole[..kept.ids().len()]);
        assert!(call.advance(None).expect("it is over").is_none());
        let long = text(20, 1500, 0, 10);
        let mut call = begin(&engine, from_ref(&long), keep(20));
        call.advance(None).expect("sound");
        let kept = call.kept(None).expect("sound").expect("a part was read");
        assert_eq!((kept.ids()[..].to_vec(), kept.ids().len()), (long[..512].to_vec(), 512));
        let mut call = begin(&engine, from_ref(&prompt), keep(20));
        while call.advance(None).expect("sound").is_some_and(<[_]>::is_empty) {}
        call.finish(0).expect("there is such a row");
        while call.advance(None).expect("sound").is_some() {}
        assert!(call.kept(None).expect("sound").expect("it was read").ids().len() >= 60);
        let mut call = begin(&engine, from_ref(&prompt), keep(20));
        assert!(call.kept(None).expect("sound").is_none());
        // Nobody who has not asked for it, and not of several rows.
        let mut call = begin(&engine, from_ref(&prompt), greedy(5));
        rest(&mut call);
        assert!(call.kept(None).expect("sound").is_none());
        for options in [Options { num_beams: 2, ..keep(5) }, keep(5)] {
            let two = vec![prompt.clone(); if options.num_beams > 1 { 1 } else { 2 }];
            let refused = Generation::new(&engine, Prompts::of(&two), options);
            assert!(matches!(refused, Err(Error::Option { option, .. }) if option == "keep"));
        }
        drop((call, kept));
        engine.give_up();
    }
}

#[test]
fn a_dropped_call_leaves_nothing_that_its_reader_wanted() {
    let engine = keeping(0, 1000);
    let mut call = begin(&engine, &[text(0, 50, 0, 10)], Options { keep: true, ..greedy(3) });
    rest(&mut call);
    assert!(live(&engine) > 0, "it waits for its reader");
    drop(call);
    assert_eq!((live(&engine), blocks(&engine)), (0, 0));
}
