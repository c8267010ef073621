//! Where the time of a program's steps went, phase by phase, with what the program says of operations and bytes.
//!
//! The member that comes last to a phase's barrier reads the clock there: the time of a phase lasts until its slowest member has come,
//! however long the others take to notice. Phases that are at the same place in different layers are counted as one. Nothing is
//! read or counted unless somebody asks for it, and what is counted changes nothing that is computed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Executor, Plan};
use crate::forks::PerProcess;
use crate::kernels::BLOCK;
use crate::kv::Shape;
use crate::layers::attention::Span;
use crate::program::{Cache, Flops, Kind, Op, Operand, Phase, Program, Work};

/// Kind of a step, by what bounds its speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    /// An encoder reads sources.
    Source,
    /// A decoder reads one row of every sequence.
    Decode,
    /// A decoder reads more rows of at least one sequence.
    Prompt,
}

impl Steps {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Decode => "decode",
            Self::Prompt => "prompt",
        }
    }
}

/// Phases that are counted as one; or, without a kind, the rest of such steps: memory is laid out, and members begin and end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The steps that have them.
    pub steps: Steps,
    /// What they do.
    pub kind: Option<Kind>,
    /// Where they are in the model.
    pub place: String,
}

/// What was counted of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Phases; of the rest, steps.
    pub calls: u64,
    /// Rows that they computed; of the rest, rows of the steps.
    pub rows: u64,
    /// Nanoseconds.
    pub nanos: u64,
    /// Bytes of their matrices, each once per step, and of the keys and values that rows attended to, each once per phase and
    /// sequence, or once for neighbours over one source.
    pub bytes: u64,
    /// Operations of products and attention.
    pub flops: Flops,
}

impl Count {
    /// Adds another one.
    pub fn add(&mut self, more: Self) {
        self.calls += more.calls;
        self.rows += more.rows;
        self.nanos += more.nanos;
        self.bytes += more.bytes;
        self.flops = self.flops + more.flops;
    }
}

/// What was counted of the steps of a program. Steps that end at the same time wait for each other, so that none is lost.
#[derive(Debug)]
pub struct Profile {
    kinds: &'static [Steps],
    lines: Vec<Line>,
    /// The line of every phase, among those of one kind of steps.
    line_of: Vec<usize>,
    /// Counts of all lines. A forked child begins with none: one of its parent's threads may hold the lock at the fork.
    counts: PerProcess<Mutex<Vec<Count>>>,
}

impl Profile {
    /// One of a program that nobody has run yet.
    pub fn new(program: &Program) -> Self {
        let kinds: &[Steps] =
            if program.head().is_some() { &[Steps::Prompt, Steps::Decode] } else { &[Steps::Source] };
        let mut places: Vec<(Kind, String)> = Vec::new();
        let mut line_of = Vec::with_capacity(program.phases().len());
        for found in program.kinds() {
            let line = places.iter().position(|place| *place == found);
            line_of.push(line.unwrap_or(places.len()));
            if line.is_none() {
                places.push(found);
            }
        }
        let of = |&steps: &Steps| {
            let line =
                move |(kind, place): &(Kind, String)| Line { steps, kind: Some(*kind), place: place.clone() };
            let rest = Line { steps, kind: None, place: String::new() };
            places.iter().map(line).chain([rest]).collect::<Vec<_>>()
        };
        Self { kinds, lines: kinds.iter().flat_map(of).collect(), line_of, counts: PerProcess::new() }
    }

    /// Its lines, in the order of the phases, kind by kind of the steps.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// What was counted in this process of every line, of whole steps.
    pub fn counts(&self) -> Vec<Count> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Count>> {
        let made = self.counts.get(|| Mutex::new(vec![Count::default(); self.lines.len()]));
        made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a step that has just ended, or what was done of it.
    pub(super) fn count(&self, executor: Executor<'_>, plan: &Plan, clock: &Clock<'_>) {
        let whole = clock.nanos();
        let (rows, wanted) = (plan.rows(), plan.wanted());
        let steps = if self.kinds.len() == 1 || rows > plan.spans().len() { 0 } else { 1 };
        let lines = self.lines.len() / self.kinds.len();
        let mut counts = self.lock();
        let counts = &mut counts[steps * lines..][..lines];
        let (mut last, mut spent) = (clock.lap(0), 0);
        for (place, phase) in executor.program.phases().iter().enumerate() {
            // Of a step that was ended early, later phases did not end; others had no rows.
            let end = clock.lap(place + 1);
            if end == 0 {
                continue;
            }
            let (nanos, all) = (end.saturating_sub(last), Work { position: 0, rows, wanted, source: 0 });
            let (bytes, flops) = cost(executor, phase, plan, all);
            let rows = all.rows_of(phase.rows) as u64;
            counts[self.line_of[place]].add(Count { calls: 1, rows, nanos, bytes, flops });
            (last, spent) = (end, spent + nanos);
        }
        let nanos = whole.saturating_sub(spent);
        counts[lines - 1].add(Count { calls: 1, rows: rows as u64, nanos, ..Count::default() });
    }
}

/// Bytes that a phase of a step reads, and its operations.
fn cost(executor: Executor<'_>, phase: &Phase<Operand>, plan: &Plan, all: Work) -> (u64, Flops) {
    let Executor { weights, runtime, .. } = executor;
    let Op::Attend { cache, .. } = phase.op else {
        return (phase.matrix_bytes(weights) as u64, phase.flops(weights, runtime, all));
    };
    let shape = if matches!(cache, Cache::Memory(_)) { executor.memory } else { executor.own };
    let (batch, wanted) = plan.looked_at(cache, phase.rows);
    let of = |span: &Span| {
        let Span { position, rows, keys, .. } = *span;
        let work = Work { position, rows, wanted: rows, source: keys };
        (phase.positions_read(work) * position_bytes(shape), phase.flops(weights, runtime, work))
    };
    let spans = wanted.unwrap_or(&batch.spans).iter().map(of);
    spans.fold((0, Flops::default()), |(bytes, flops), (b, f)| (bytes + b as u64, flops + f))
}

/// Bytes of a position's keys and values in one layer.
fn position_bytes(shape: &Shape) -> usize {
    shape.block_bytes() / (shape.layers * BLOCK)
}

/// When the phases of a step end, in nanoseconds from when it began; noted by whoever comes last to a phase's end.
#[derive(Debug)]
pub(super) struct Clock<'a> {
    began: Instant,
    /// When the first member began, and when each phase ended; 0 for what has not happened.
    laps: &'a [AtomicU64],
}

impl<'a> Clock<'a> {
    /// A step of so many phases begins.
    pub(super) fn start(laps: &'a mut Vec<AtomicU64>, phases: usize) -> Self {
        laps.clear();
        laps.resize_with(phases + 1, AtomicU64::default);
        Self { began: Instant::now(), laps }
    }

    fn nanos(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    /// The first member begins.
    pub(super) fn enter(&self) {
        self.laps[0].store(self.nanos(), Ordering::Relaxed);
    }

    /// This phase has ended.
    pub(super) fn note(&self, phase: usize) {
        self.laps[phase + 1].store(self.nanos(), Ordering::Relaxed);
    }

    fn lap(&self, place: usize) -> u64 {
        self.laps[place].load(Ordering::Relaxed)
    }
}
