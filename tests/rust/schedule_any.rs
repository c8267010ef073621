//! Any calls in any order on one engine with any limits: every row is what it is alone on a model without limits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use fastdecode::Error;
use fastdecode::engine::{
    AHEAD, Canceller, EarlyStopping, Engine, Event, FinishReason, Generation, Limit, Options, Prefix,
    Prompts, Seed, Start,
};
use fastdecode::models::{Cancel, Decoder, Input, Limits, Segment, Wanted};

use crate::fake::{Beginning, Begins, FakeModel};
use crate::schedule::{MARK, Rows, engine, fake, limits, live, steps, within_minutes};

/// Numbers that are the same in every run of the test.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % bound as u64) as usize
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    /// Whether one case in so many has come.
    fn one_in(&mut self, cases: usize) -> bool {
        self.below(cases) == 0
    }
}

/// Where a prompt begins.
#[derive(Debug, Clone)]
enum Begin {
    Empty,
    Source(Vec<u32>),
    /// At a sequence that holds so many of its ids.
    Cached(usize),
}

/// A call that may be made on any engine.
#[derive(Debug, Clone)]
struct Plan {
    prompts: Vec<(Vec<u32>, Begin)>,
    /// What the prompts stand behind, as far as they go along with it.
    behind: Option<Vec<u32>>,
    options: Options,
}

impl Plan {
    fn any(dice: &mut Dice, may_be_cached: bool, is_greedy: bool) -> Self {
        let method = if is_greedy && !dice.one_in(8) { 0 } else { dice.below(5) };
        let num_beams = if method >= 3 { 2 + dice.below(3) } else { 1 };
        let do_sample = matches!(method, 1 | 2 | 4);
        let most = dice.of(&[3, 3, 3, 8]);
        let count = 1 + dice.below(most);
        let num_return_sequences = match method {
            0 => 1,
            1 | 2 => 1 + dice.below(4),
            _ => 1 + dice.below(num_beams),
        };
        let seed = dice.below(1000) as u64;
        let is_plain = method == 0 && !dice.one_in(3);
        let mut options = Options {
            limit: Limit::NewTokens(1 + dice.below(20)),
            min_new_tokens: dice.below(4),
            eos_token_ids: (0..dice.below(3)).map(|_| dice.below(30) as u32).collect(),
            stop_token_ids: (0..dice.below(2)).map(|_| dice.below(30) as u32).collect(),
            do_sample,
            temperature: dice.of(&[1.0, 0.7, 1.5]),
            top_k: dice.of(&[None, Some(5), Some(50)]),
            top_p: dice.of(&[1.0, 0.8]),
            repetition_penalty: dice.of(&[1.0, 1.3]),
            encoder_repetition_penalty: dice.of(&[1.0, 1.0, 1.5]),
            no_repeat_ngram_size: dice.of(&[0, 2]),
            num_return_sequences,
            num_beams,
            length_penalty: dice.of(&[1.0, 0.5]),
            early_stopping: dice.of(&[EarlyStopping::Heuristic, EarlyStopping::Full, EarlyStopping::Never]),
            logprobs: None,
            seed: match dice.below(3) {
                0 => Seed::PerPrompt((0..count as u64).map(|place| seed + place * place).collect()),
                _ => Seed::One(seed),
            },
            watched: dice.one_in(8),
            ..Options::default()
        };
        if is_plain {
            // What the model may choose itself.
            let Options { limit, eos_token_ids, stop_token_ids, .. } = options;
            options = Options { limit, eos_token_ids, stop_token_ids, ..Options::default() };
        }
        let mut source = Vec::new();
        let has_sources = dice.one_in(3);
        // Beginnings that prompts of all calls share.
        let stems =
            [40, 100, 33].map(|length| (0..length).map(|i| (i * i % 30) as u32).collect::<Vec<u32>>());
        let behind = (may_be_cached && dice.one_in(3)).then(|| dice.of(&stems));
        let prompts = (0..count).map(|_| {
            let length = if dice.one_in(12) { 100 + dice.below(700) } else { 1 + dice.below(20) };
            let mut ids: Vec<u32> = (1..length).map(|_| dice.below(30) as u32).chain([MARK]).collect();
            if dice.one_in(2) {
                let stem = dice.of(&stems);
                let shared = dice.below(stem.len());
                ids.splice(..0, stem[..shared].iter().copied());
            }
            let length = ids.len();
            let begin = if has_sources {
                if source.is_empty() || !dice.one_in(3) {
                    let length = if dice.one_in(8) { 300 + dice.below(500) } else { 1 + dice.below(30) };
                    source = (0..length).map(|_| dice.below(30) as u32).collect();
                }
                Begin::Source(source.clone())
            } else if may_be_cached && length > 1 && dice.one_in(4) {
                Begin::Cached(1 + dice.below(length - 1))
            } else {
                Begin::Empty
            };
            (ids, begin)
        });
        Self { prompts: prompts.collect(), behind, options }
    }

    fn begin(&self, engine: &Arc<Engine<FakeModel>>) -> Result<Generation<FakeModel>, Error> {
        let read = |ids: &[u32]| {
            let mut sequence = engine.model().start(None)?;
            let segment =
                Segment { sequence: &mut sequence, input: Input::Tokens(ids), logits: Wanted::Nothing };
            engine.model().forward(&mut [segment], &mut Vec::new(), &Cancel::never())?;
            Ok(sequence)
        };
        let prefix =
            self.behind.as_ref().map(|ids| Ok(Arc::new(Prefix::new(ids, read(ids)?)))).transpose()?;
        let mut all = Prompts::behind(prefix);
        for (ids, begin) in &self.prompts {
            let start = match begin {
                Begin::Empty => Start::Empty,
                Begin::Source(source) => Start::Source(source.clone()),
                &Begin::Cached(count) => Start::Sequence(read(&ids[..count])?),
            };
            all.push(ids, start);
        }
        Generation::new(engine, all, self.options.clone())
    }

    /// What comes of it on a model that it has for itself.
    fn alone(&self) -> Rows {
        let engine = engine(FakeModel { limits: limits(usize::MAX, usize::MAX), ..fake() });
        let mut generation = self.begin(&engine).expect("a sound request");
        let mut rows = Rows::of(&generation);
        rows.read_all(&mut generation).expect("a sound request");
        rows
    }

    /// Positions that it holds at most, all of its rows together.
    fn positions(&self) -> usize {
        let Options { limit: Limit::NewTokens(new), num_beams, num_return_sequences, .. } = self.options
        else {
            panic!("a plan has a count of new tokens");
        };
        let rows = if num_beams > 1 { num_beams } else { num_return_sequences };
        self.prompts.iter().map(|(ids, _)| ids.len() + rows * (ids.len() + new)).sum()
    }
}

/// A call on its way, held against what it is alone.
struct Reader {
    plan: Plan,
    expected: Rows,
    generation: Option<Generation<FakeModel>>,
    rows: Rows,
    finished: Vec<bool>,
    /// Whether memory may be refused to it alone.
    may_be_refused: bool,
    /// Whether somebody else may cancel it.
    may_be_cancelled: bool,
}

impl Reader {
    /// None where an empty cache could not hold it.
    fn new(plan: &Plan, engine: &Arc<Engine<FakeModel>>) -> Option<Self> {
        let generation = match plan.begin(engine) {
            Ok(generation) => generation,
            Err(Error::Option { .. }) => return None,
            Err(error) => panic!("{error}"),
        };
        let rows = Rows::of(&generation);
        Some(Self {
            expected: plan.alone(),
            plan: plan.clone(),
            finished: vec![false; rows.0.len()],
            rows,
            generation: Some(generation),
            may_be_refused: engine.model().memory.is_some_and(|memory| plan.positions() > memory),
            may_be_cancelled: false,
        })
    }

    fn is_over(&self) -> bool {
        self.generation.is_none()
    }

    /// Takes what there is, or waits for more.
    fn read(&mut self, waits: bool) {
        let Some(generation) = &mut self.generation else { return };
        let read = if waits { generation.advance(None) } else { generation.take() };
        let events: Vec<Event> = match read {
            Ok(Some(events)) => events.to_vec(),
            Ok(None) => {
                for (row, (got, finished)) in self.rows.0.iter().zip(&self.finished).enumerate() {
                    assert!(*finished || got.1.is_some(), "row {row} has no end: {:?}", self.plan);
                }
                self.generation = None;
                return;
            }
            Err(Error::OutOfMemory { .. }) if self.may_be_refused => {
                self.generation = None;
                return;
            }
            Err(Error::Cancelled) if self.may_be_cancelled => {
                self.generation = None;
                return;
            }
            Err(error) => panic!("{error}: {:?}", self.plan),
        };
        for (row, expected) in self.expected.0.iter().enumerate() {
            let more = events.iter().filter(|event| event.row == row).count();
            if more == 0 {
                continue;
            }
            assert!(!self.finished[row], "row {row} goes on though it was finished: {:?}", self.plan);
            assert!(more <= AHEAD || self.plan.options.num_beams > 1, "{more} tokens of row {row} at once");
            assert!(
                self.rows.0[row].0.len() + more <= expected.0.len(),
                "row {row} is too long: {:?}",
                self.plan
            );
        }
        self.rows.add(&events);
        for (got, expected) in self.rows.0.iter().zip(&self.expected.0) {
            assert_eq!(got.0, expected.0[..got.0.len()], "{:?}", self.plan);
            assert!(got.1.is_none() || got == expected, "{got:?} and {expected:?} of {:?}", self.plan);
        }
    }

    /// Does something to it, mostly reads.
    fn act(&mut self, dice: &mut Dice) {
        let Some(generation) = &mut self.generation else { return };
        match dice.below(40) {
            0..=22 => self.read(true),
            23..=34 => self.read(false),
            35..=37 if self.plan.options.num_beams == 1 => {
                let row = dice.below(self.rows.0.len());
                generation.finish(row).expect("there is such a row");
                let is_begun = !self.rows.0[row].0.is_empty() && self.rows.0[row].1.is_none();
                self.finished[row] |= is_begun;
            }
            38 => {
                generation.canceller().cancel();
                assert!(matches!(generation.advance(None), Err(Error::Cancelled)));
                self.generation = None;
            }
            39 => self.generation = None,
            _ => {}
        }
    }
}

/// A model with any limits for these plans.
fn any_model(dice: &mut Dice, plans: &[Plan]) -> FakeModel {
    let largest = plans.iter().map(Plan::positions).max().unwrap_or(0);
    let cache_bytes = if dice.one_in(2) { usize::MAX } else { 1024 * (3 + dice.below(60)) };
    let cached =
        plans.iter().flat_map(|plan| &plan.prompts).any(|(_, begin)| matches!(begin, Begin::Cached(_)))
            || plans.iter().any(|plan| plan.behind.is_some());
    let memory = (!cached && dice.one_in(2)).then(|| largest / 2 + dice.below(largest * 2));
    let open_bytes = if dice.one_in(4) { 1024 * dice.below(20) } else { 0 };
    let most = cache_bytes.min(1024 * 80);
    let prefix_cache_bytes = if dice.one_in(2) { 0 } else { dice.below(most) };
    let limits = Limits { prefix_cache_bytes, ..limits(1 + dice.below(6), cache_bytes) };
    // A step that is abandoned now and then: steps that the model makes at once begin one by one.
    let (begun, odds) = (AtomicUsize::new(0), dice.of(&[usize::MAX, 30, 100]));
    let abandons = Begins((!cached).then(|| -> Box<Beginning> {
        Box::new(move |_| match Dice(begun.fetch_add(1, Ordering::SeqCst) as u64).one_in(odds) {
            true => Err(Error::Cancelled),
            false => Ok(()),
        })
    }));
    FakeModel {
        limits,
        memory,
        open_bytes,
        at_once: dice.of(&[0, 1, 2, 3, 5, AHEAD, 20]),
        declines: dice.of(&[None, None, Some(3)]),
        border: dice.of(&[None, Some(10), Some(25)]),
        begins: abandons,
        pool: Some(Arc::default()),
        ..fake()
    }
}

/// Nothing is held once what is kept for others is given up, too; before, that is within its bounds.
fn check_end(engine: &Engine<FakeModel>, seed: u64) {
    let (entries, bytes) = engine.prefixes_kept();
    assert!(bytes <= engine.model().limits.prefix_cache_bytes, "{bytes} bytes are kept: seed {seed}");
    assert_eq!(entries > 0, engine.give_up(), "seed {seed}");
    assert_eq!((live(engine), engine.prefixes_kept()), (0, (0, 0)), "seed {seed}");
    let pool = engine.model().pool.as_ref().expect("its blocks are counted");
    assert_eq!((pool.live.load(Ordering::SeqCst), pool.open.load(Ordering::SeqCst)), (0, 0), "seed {seed}");
}

/// No step has more rows that decode than the limit, but for a search that is wider.
fn check_steps(engine: &Engine<FakeModel>, plans: &[Plan]) {
    let most = engine.model().limits.max_rows;
    for step in steps(engine) {
        let is_search = plans.iter().any(|plan| plan.options.num_beams == step.decodes);
        assert!(step.decodes <= most || is_search, "{step:?} of {most} rows");
    }
}

#[test]
fn any_calls_in_any_order_are_what_they_are_alone() {
    within_minutes(|| {
        let (mut whole, mut refused, mut asked) = (0, 0, 0);
        for seed in 0..400 {
            let mut dice = Dice(seed);
            let (may_be_cached, is_greedy) = (dice.one_in(2), dice.one_in(2));
            let plans: Vec<Plan> =
                (0..2 + dice.below(4)).map(|_| Plan::any(&mut dice, may_be_cached, is_greedy)).collect();
            let engine = engine(any_model(&mut dice, &plans));
            let mut to_come = plans.clone();
            let mut readers: Vec<Reader> = Vec::new();
            let mut rounds = 0;
            while !to_come.is_empty() || readers.iter().any(|reader| !reader.is_over()) {
                rounds += 1;
                assert!(rounds < 20_000, "it never ends: seed {seed}");
                if readers.is_empty() || dice.one_in(10) {
                    readers.extend(to_come.pop().and_then(|plan| Reader::new(&plan, &engine)));
                    continue;
                }
                let place = dice.below(readers.len());
                if rounds > 300 {
                    readers[place].read(true);
                } else if dice.one_in(15) {
                    engine.step(None).expect("nobody interrupts");
                } else {
                    readers[place].act(&mut dice);
                }
            }
            check_steps(&engine, &plans);
            asked += engine.model().asked.load(Ordering::SeqCst);
            let rows = readers.iter().flat_map(|reader| &reader.rows.0);
            whole += rows.filter(|row| row.1.is_some_and(|reason| reason != FinishReason::Eos)).count();
            refused += usize::from(engine.model().memory.is_some());
            drop(readers);
            check_end(&engine, seed);
        }
        assert!(whole > 1000 && refused > 50, "{whole} rows, {refused} models without memory");
        assert!(asked > 500, "{asked} steps in which the model chose");
    });
}

#[test]
fn any_calls_of_four_threads_are_what_they_are_alone() {
    within_minutes(|| {
        for seed in 0..60 {
            let mut dice = Dice(1_000_000 + seed);
            let (may_be_cached, is_greedy) = (dice.one_in(2), dice.one_in(2));
            let all: Vec<Plan> = (0..12).map(|_| Plan::any(&mut dice, may_be_cached, is_greedy)).collect();
            let engine = engine(any_model(&mut dice, &all));
            let cancellers: Mutex<Vec<Canceller<FakeModel>>> = Mutex::default();
            let left = AtomicUsize::new(4);
            std::thread::scope(|scope| {
                for (number, plans) in all.chunks(3).enumerate() {
                    let (engine, cancellers, left) = (&engine, &cancellers, &left);
                    let mut dice = Dice(seed * 4 + number as u64);
                    scope.spawn(move || {
                        let mut to_come = plans.to_vec();
                        let mut readers: Vec<Reader> = Vec::new();
                        while !to_come.is_empty() || readers.iter().any(|reader| !reader.is_over()) {
                            if readers.is_empty() || dice.one_in(10) {
                                let reader = to_come.pop().and_then(|plan| Reader::new(&plan, engine));
                                readers.extend(reader.map(|mut reader| {
                                    if let Some(generation) =
                                        reader.generation.as_ref().filter(|_| dice.one_in(3))
                                    {
                                        reader.may_be_cancelled = true;
                                        cancellers.lock().expect("not poisoned").push(generation.canceller());
                                    }
                                    reader
                                }));
                                continue;
                            }
                            if dice.one_in(40)
                                && let Some(canceller) = cancellers.lock().expect("not poisoned").pop()
                            {
                                canceller.cancel();
                            }
                            let place = dice.below(readers.len());
                            readers[place].act(&mut dice);
                        }
                        left.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
            assert_eq!(left.into_inner(), 0);
            check_steps(&engine, &all);
            drop(cancellers);
            check_end(&engine, seed);
        }
    });
}
