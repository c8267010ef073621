//! Scores of given tokens, with a fake model: each is that of its row, whatever is shared; what items share is read once; limits hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use fastdecode::Error;
use fastdecode::engine::{Engine, Item, Scoring, Start};
use fastdecode::models::{Cancel, Decoder, Input, Limits, Scored, Segment, Wanted};

use crate::fake::{Begins, FakeModel};

const VOCAB: usize = 50;

/// An item that asks for every token behind the first `before` ones.
fn item(ids: &[u32], before: usize) -> Item {
    let targets = ids[before..].iter().map(|&id| Some(id)).collect();
    Item { ids: ids[..ids.len() - 1].to_vec(), targets, length: ids.len(), start: 0 }
}

fn tokens(seed: u32, count: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % VOCAB as u32
    })
    .take(count)
    .collect()
}

/// Prompts of a few shots and a question, four answers each.
fn questions(shots: usize, count: u32) -> Vec<Item> {
    let shots = tokens(1, shots);
    let prompts = (0..count).map(|question| [shots.clone(), tokens(100 + question, 20)].concat());
    prompts
        .flat_map(|prompt| {
            let before = prompt.len();
            (0..4).map(move |answer| item(&[prompt.clone(), tokens(7 * answer, 2)].concat(), before))
        })
        .collect()
}

fn score(model: FakeModel, items: Vec<Item>) -> (Arc<FakeModel>, Vec<Vec<Scored>>) {
    let model = Arc::new(model);
    let engine = Engine::new(Arc::clone(&model));
    let found = engine.score(Scoring { starts: vec![Start::Empty], items }, &Cancel::never()).unwrap();
    assert_eq!(model.held.load(Ordering::SeqCst), 0, "nothing is left in the cache");
    (model, found)
}

/// What one forward over the item's tokens alone gives.
fn alone(item: &Item) -> Vec<Scored> {
    let model = FakeModel::new(VOCAB, 4.0);
    let mut sequence = model.start(None).unwrap();
    let mut logits = Vec::new();
    let input = Input::Tokens(&item.ids);
    let segment = Segment { sequence: &mut sequence, input, logits: Wanted::All };
    model.forward(&mut [segment], &mut logits, &Cancel::never()).unwrap();
    let rows: Vec<_> = logits.chunks(VOCAB).collect();
    std::iter::zip(&rows[item.ids.len() - item.targets.len()..], &item.targets)
        .filter_map(|(row, target)| {
            let target = (*target)? as usize;
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|&x| (f64::from(x) - f64::from(largest)).exp()).sum();
            let logprob = f64::from(row[target]) - f64::from(largest) - sum.ln();
            Some(Scored { logprob, is_best: row.iter().position(|&x| x == largest) == Some(target) })
        })
        .collect()
}

fn assert_as_alone(items: &[Item], found: &[Vec<Scored>]) {
    assert_eq!(items.len(), found.len());
    for (item, found) in std::iter::zip(items, found) {
        let alone = alone(item);
        assert_eq!(alone.len(), found.len());
        for (a, b) in std::iter::zip(alone, found) {
            assert!((a.logprob - b.logprob).abs() < 1e-12 && a.is_best == b.is_best, "{a:?}, {b:?}");
        }
    }
}

#[test]
fn what_items_begin_with_is_read_once() {
    let items = questions(1000, 5);
    let (model, found) = score(FakeModel::new(VOCAB, 4.0), items.clone());
    assert_as_alone(&items, &found);
    let read: usize = model.fed.lock().unwrap().iter().sum();
    // Shots once, five questions once, the first of two tokens of twenty answers.
    assert_eq!(read, 1000 + 5 * 20 + 20);
}

#[test]
fn targets_that_do_not_count_are_not_read() {
    let mut items = vec![item(&tokens(1, 40), 1), item(&tokens(2, 10), 3), item(&tokens(3, 10), 3)];
    items[0].targets[5..].fill(None);
    items[1].targets.fill(None);
    items[2].targets[2] = None;
    let (model, found) = score(FakeModel::new(VOCAB, 4.0), items.clone());
    assert_as_alone(&items, &found);
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [5, 0, 6]);
    assert_eq!(model.fed.lock().unwrap().iter().sum::<usize>(), 5 + 9);
}

#[test]
fn limits_change_nothing_but_the_steps() {
    let items = questions(90, 12);
    for (max_rows, blocks) in [(1, 1000), (3, 1000), (64, 1), (64, 12), (64, 1000)] {
        let held = Arc::new(AtomicUsize::new(0));
        let mut model = FakeModel::new(VOCAB, 4.0);
        // An item alone has eight blocks.
        model.limits = Limits { cache_bytes: (8 + blocks) * 1024, max_rows, ..model.limits };
        let (most, of) = (Arc::clone(&held), Arc::clone(&model.held));
        model.begins = Begins(Some(Box::new(move |_| {
            most.fetch_max(of.load(Ordering::SeqCst), Ordering::SeqCst);
            Ok(())
        })));
        let (model, found) = score(model, items.clone());
        assert_as_alone(&items, &found);
        let fed = model.fed.lock().unwrap();
        assert!(fed.iter().all(|&rows| rows <= 512), "a step reads a chunk at most");
        if blocks == 1000 {
            assert_eq!(fed.iter().sum::<usize>(), 90 + 12 * 20 + 12 * 4);
        }
        if max_rows == 1 {
            assert_eq!(fed.len(), 1 + 12 + 48, "one run of tokens in a step");
        }
    }
}

#[test]
fn no_more_is_reserved_than_fits() {
    // Items that share nothing, of four blocks each, of which three fit.
    let items: Vec<_> = (0..20).map(|seed| item(&tokens(seed, 65), 1)).collect();
    let mut model = FakeModel::new(VOCAB, 4.0);
    model.limits = Limits { cache_bytes: 13 * 1024, max_rows: 64, ..model.limits };
    let (model, found) = score(model, items.clone());
    assert_as_alone(&items, &found);
    assert_eq!(*model.fed.lock().unwrap(), [[64 * 3; 6].as_slice(), &[64 * 2]].concat());
}

#[test]
fn sources_are_read_once_for_all_that_share_them() {
    let model = Arc::new(FakeModel::new(VOCAB, 4.0));
    let engine = Engine::new(Arc::clone(&model));
    let starts = (0..4).map(|seed| Start::Source(tokens(seed, 200))).collect();
    let items: Vec<_> =
        (0..40).map(|seed| Item { start: seed as usize % 4, ..item(&tokens(seed, 9), 1) }).collect();
    let found = engine.score(Scoring { starts, items: items.clone() }, &Cancel::never()).unwrap();
    assert_as_alone(&items, &found);
    let encoded = model.encoded.lock().unwrap();
    assert_eq!(encoded.iter().sum::<usize>(), 800);
    assert!(encoded.iter().all(|&rows| rows <= 512), "{encoded:?}");
}

#[test]
fn a_start_may_hold_the_first_tokens() {
    let model = Arc::new(FakeModel::new(VOCAB, 4.0));
    let engine = Engine::new(Arc::clone(&model));
    let shots = tokens(1, 30);
    let mut sequence = model.start(None).unwrap();
    let segment = Segment { sequence: &mut sequence, input: Input::Tokens(&shots), logits: Wanted::Nothing };
    model.forward(&mut [segment], &mut Vec::new(), &Cancel::never()).unwrap();
    model.fed.lock().unwrap().clear();
    let items = questions(30, 3);
    let scoring = Scoring { starts: vec![Start::Sequence(sequence)], items: items.clone() };
    assert_as_alone(&items, &engine.score(scoring, &Cancel::never()).unwrap());
    assert_eq!(model.fed.lock().unwrap().iter().sum::<usize>(), 3 * 20 + 12);
    assert_eq!(model.held.load(Ordering::SeqCst), 0);
}

#[test]
fn a_cancelled_or_refused_scoring_leaves_nothing() {
    for refused in [false, true] {
        let mut model = FakeModel::new(VOCAB, 4.0);
        if refused {
            model.memory = Some(300);
        }
        let (steps, stop) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&stop);
        model.begins = Begins(Some(Box::new(move |_| {
            if steps.fetch_add(1, Ordering::SeqCst) == 2 {
                flag.store(true, Ordering::SeqCst);
            }
            Ok(())
        })));
        let model = Arc::new(model);
        let engine = Engine::new(Arc::clone(&model));
        let scoring = Scoring { starts: vec![Start::Empty], items: questions(200, 300) };
        let outcome = engine.score(scoring, &Cancel::new(&stop));
        match outcome {
            Err(Error::OutOfMemory { .. }) => assert!(refused),
            Err(Error::Cancelled) => assert!(!refused),
            other => panic!("{other:?}"),
        }
        assert_eq!((model.held.load(Ordering::SeqCst), model.live.load(Ordering::SeqCst)), (0, 0));
    }
}

#[test]
fn what_cannot_be_scored_is_refused_before_anything_is_read() {
    let bad = |change: fn(&mut Item)| {
        let mut items = vec![item(&tokens(1, 20), 5), item(&tokens(2, 20), 5)];
        change(&mut items[1]);
        let mut model = FakeModel::new(VOCAB, 4.0);
        model.context_limit = Some(40);
        model.limits = Limits { cache_bytes: 2 * 1024, ..Limits::default() };
        let model = Arc::new(model);
        let engine = Engine::new(Arc::clone(&model));
        let outcome = engine.score(Scoring { starts: vec![Start::Empty], items }, &Cancel::never());
        assert!(model.fed.lock().unwrap().is_empty());
        outcome.unwrap_err().to_string()
    };
    assert!(bad(|item| item.ids[3] = 50).contains("item 1: expected token ids below 50, got 50"));
    assert!(bad(|item| item.targets[3] = Some(99)).contains("token ids below 50, got 99"));
    assert!(bad(|item| item.ids.truncate(3)).contains("a token to read for each target"));
    assert!(bad(|item| item.start = 1).contains("one of 1 starts"));
    assert!(bad(|item| item.length = 41).contains("at most 40 positions"));
    assert!(bad(|item| item.ids.splice(0..0, tokens(3, 15)).for_each(drop)).contains("at most 32 tokens"));
}
