//! What drawing tokens costs in a step of the engine, over taking the best ones: everything but the forward.
//!
//! `cargo bench --bench draws` prints nanoseconds for 1, 8 and 64 rows; `benches/draws.py` holds them against steps of GPT-2.
//! The model only hands out prepared rows of scores, of GPT-2's vocabulary and distributed about as its own. They are written by the
//! threads of the team, each its part of the vocabulary, as a head's are, so that caches and threads are in the state in which a
//! forward leaves them. What it takes is not counted. A run is 200 steps, greedy and drawn runs take turns, and medians over the
//! runs are printed. The number of threads is the first number of the command line, or 2.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use fastdecode::Result;
use fastdecode::engine::{Engine, Generation, Limit, Options, Prompts, Seed};
use fastdecode::models::{CacheBlock, Cancel, ContextLength, Decoder, Limits, Segment, Sequence};
use fastdecode::team;

/// Ids of GPT-2's vocabulary.
const V: usize = 50_257;
/// Prepared rows of scores.
const ROWS: usize = 256;
const STEPS: usize = 200;
const RUNS: usize = 9;

/// A sequence without contents.
#[derive(Debug)]
struct Counted {
    len: usize,
}

impl Sequence for Counted {
    fn len(&self) -> usize {
        self.len
    }

    fn fork(&self) -> Self {
        Self { len: self.len }
    }

    fn truncate(&mut self, len: usize) {
        self.len = len;
    }
}

/// See the head of the file.
#[derive(Debug)]
struct Prepared {
    rows: Vec<f32>,
    threads: usize,
    /// Rows handed out, and nanoseconds that this took.
    given: AtomicU64,
    nanoseconds: AtomicU64,
}

/// Where a thread writes its part of the scores.
struct Target(*mut f32);

// SAFETY: every member of a team writes places of its own.
unsafe impl Sync for Target {}

/// Scores that lie about as those of GPT-2 do: sums of six uniform numbers.
fn scores() -> Vec<f32> {
    let mut state = 0x9e37_79b9_u32;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    (0..ROWS * V).map(|_| 4.0 * (0..6).map(|_| uniform()).sum::<f32>() - 30.0).collect()
}

impl Decoder for Prepared {
    type Sequence = Counted;

    fn vocab_size(&self) -> usize {
        V
    }

    fn context_length(&self) -> ContextLength {
        ContextLength::default()
    }

    fn cache_block(&self) -> CacheBlock {
        CacheBlock { positions: 16, bytes: 1024 }
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn start(&self, _: Option<&[u32]>) -> Result<Counted> {
        Ok(Counted { len: 0 })
    }

    fn encode(&self, _: &mut [&mut Counted], _: &Cancel<'_>) -> Result<()> {
        Ok(())
    }

    fn forward(
        &self,
        batch: &mut [Segment<'_, Counted>],
        logits: &mut Vec<f32>,
        cancel: &Cancel<'_>,
    ) -> Result<()> {
        let begin = Instant::now();
        let mut wanted = 0;
        for segment in batch {
            segment.sequence.len += segment.input.rows(1);
            wanted += segment.logits.count(segment.input.rows(1));
        }
        logits.resize(wanted * V, 0.0);
        let first = self.given.fetch_add(wanted as u64, Ordering::Relaxed) as usize;
        let (target, threads) = (Target(logits.as_mut_ptr()), self.threads);
        let target = &target;
        team::run(threads, cancel, |member| {
            let part = member.index() * V / threads..(member.index() + 1) * V / threads;
            for row in 0..wanted {
                // Neighbours in the order of rows are no neighbours in memory.
                let prepared = &self.rows[(first + row) * 37 % ROWS * V..][..V][part.clone()];
                // SAFETY: `part` of this row lies within the `wanted` rows, and no other member writes it.
                let out =
                    unsafe { std::slice::from_raw_parts_mut(target.0.add(row * V + part.start), part.len()) };
                out.copy_from_slice(prepared);
            }
            Ok(())
        })?;
        self.nanoseconds.fetch_add(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Nanoseconds of a step without its forward, the mean of a run.
fn run(engine: &Arc<Engine<Prepared>>, rows: usize, options: &Options) -> Result<f64> {
    let prompts: Vec<Vec<u32>> = (0..rows as u32).map(|row| vec![row]).collect();
    let mut generation = Generation::new(engine, Prompts::of(&prompts), options.clone())?;
    // Prompts, first tokens and the memory of the steps.
    for _ in 0..3 {
        generation.advance(None)?;
    }
    let model = engine.model();
    let before = model.nanoseconds.load(Ordering::Relaxed);
    let begin = Instant::now();
    for _ in 0..STEPS {
        let events = generation.advance(None)?.map_or(0, <[_]>::len);
        assert_eq!(events, rows, "a token of every row");
    }
    let all = begin.elapsed().as_nanos() as u64;
    Ok((all - (model.nanoseconds.load(Ordering::Relaxed) - before)) as f64 / STEPS as f64)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn main() -> Result<()> {
    let threads = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(2);
    let model =
        Prepared { rows: scores(), threads, given: AtomicU64::new(0), nanoseconds: AtomicU64::new(0) };
    let engine = Arc::new(Engine::new(Arc::new(model)));
    let greedy = Options { limit: Limit::NewTokens(STEPS + 8), ..Options::default() };
    let drawn = Options {
        do_sample: true,
        temperature: 0.8,
        top_k: Some(50),
        top_p: 0.9,
        seed: Seed::One(3),
        ..greedy.clone()
    };
    let mut out = std::io::stdout();
    for rows in [1, 8, 64] {
        let (mut of_greedy, mut of_drawn) = (Vec::new(), Vec::new());
        run(&engine, rows, &drawn)?;
        for _ in 0..RUNS {
            of_greedy.push(run(&engine, rows, &greedy)?);
            of_drawn.push(run(&engine, rows, &drawn)?);
        }
        let (of_greedy, of_drawn) = (median(of_greedy), median(of_drawn));
        // A bench that cannot print is of no use.
        let _ = writeln!(
            out,
            "rows {rows}, threads {threads}: greedy {of_greedy:.0} ns, drawn {of_drawn:.0} ns, more {:.0} ns a step",
            of_drawn - of_greedy
        );
    }
    Ok(())
}
