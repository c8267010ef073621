//! Given tokens are scored: how probable each is behind those before it, for any number of items, all tokens of an item in one reading.
//!
//! What items begin with in common is read once ([`tree`](super::tree)), and forked for those that go on. Runs of tokens are
//! read side by side, as the limits of the model allow; those behind a run that has been read go before others, so that what is kept
//! for them soon goes. Bits do not depend on any of it. A caller computes its own items, in steps that take turns with those of the
//! schedule, and both count what the other has reserved.

use std::sync::Arc;

use super::budget::{Account, Charge, Needs, source_bytes};
use super::lead::Engine;
use super::prompts::Start;
use super::schedule::CHUNK;
use super::tree::{Item, Node, tree};
use crate::error::{Error, Result};
use crate::models::{Asked, Decoder, Input, Scored, Segment, Sequence, Wanted};
use crate::team::Cancel;

/// What is to be scored.
#[derive(Debug)]
pub struct Scoring<S> {
    /// Where sequences start; each item names one.
    pub starts: Vec<Start<S>>,
    /// The items.
    pub items: Vec<Item>,
}

/// What was reserved for a run of tokens, or for a source, and for what it stands on.
#[derive(Debug)]
struct Reserved {
    _charge: Charge,
    below: Option<Arc<Self>>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // One after the other: a tree may be as deep as a context is long.
        let mut next = self.below.take();
        while let Some(mut reserved) = next.and_then(Arc::into_inner) {
            next = reserved.below.take();
        }
    }
}

/// A sequence that others are forked from, until so many have been.
#[derive(Debug)]
struct Kept<S> {
    sequence: S,
    reserved: Option<Arc<Reserved>>,
    left: usize,
}

impl<S: Sequence> Kept<S> {
    /// A sequence of one of those who wait for it; the last one gets the kept one itself.
    fn give(kept: &mut Option<Self>) -> Option<(S, Option<Arc<Reserved>>)> {
        let last = kept.as_ref()?.left <= 1;
        if last {
            return kept.take().map(|kept| (kept.sequence, kept.reserved));
        }
        let kept = kept.as_mut()?;
        kept.left -= 1;
        Some((kept.sequence.fork(), kept.reserved.clone()))
    }
}

/// A run of tokens that is being read.
#[derive(Debug)]
struct Reading<S> {
    node: usize,
    start: usize,
    sequence: S,
    reserved: Arc<Reserved>,
    /// The position that is read next.
    at: usize,
}

/// A scoring under way.
struct Run<'a, M: Decoder>
where
    M::Sequence: 'static,
{
    engine: &'a Engine<M>,
    account: Account,
    scoring: Scoring<M::Sequence>,
    nodes: Vec<Node>,
    /// Nodes that may be read, the next one last.
    ready: Vec<usize>,
    reading: Vec<Reading<M::Sequence>>,
    /// Sequences that have been read, by node, and those that starts begin with.
    kept: Vec<Option<Kept<M::Sequence>>>,
    started: Vec<Option<Kept<M::Sequence>>>,
    /// Nodes that begin at a start and are not begun.
    waiting: Vec<usize>,
    results: Vec<Vec<Scored>>,
}

impl<M: Decoder> Engine<M>
where
    M::Sequence: 'static,
{
    /// Scores items; gives for each what was asked, in the order of its targets, without those that are none.
    ///
    /// # Errors
    /// `Option` for ids past the vocabulary, a source that cannot be used, and an item that does not fit into `cache_bytes`;
    /// `ContextLength`; `Cancelled`, `OutOfMemory`, `Panicked`.
    pub fn score(&self, mut scoring: Scoring<M::Sequence>, cancel: &Cancel<'_>) -> Result<Vec<Vec<Scored>>> {
        for item in &mut scoring.items {
            // Nothing is asked behind the last tokens: they are not read.
            while item.targets.pop_if(|target| target.is_none()).is_some() {
                item.ids.pop();
            }
        }
        check(&**self.model(), &scoring)?;
        let mut run = Run::new(self, scoring);
        while !run.is_done() {
            // A step may be over before its hook is ever asked.
            if cancel.ask() {
                return Err(Error::Cancelled);
            }
            run.admit()?;
            run.read_sources(cancel)?;
            run.step(cancel)?;
        }
        let Run { results, scoring, .. } = run;
        let asked = |(scored, item): (Vec<Scored>, &Item)| {
            std::iter::zip(scored, &item.targets)
                .filter_map(|(scored, target)| target.map(|_| scored))
                .collect()
        };
        Ok(std::iter::zip(results, &scoring.items).map(asked).collect())
    }
}

/// Positions of a start's source.
fn source_length<S: Sequence>(start: &Start<S>) -> usize {
    match start {
        Start::Empty | Start::Sequence(_) => 0,
        Start::Source(ids) => ids.len(),
    }
}

/// Positions that a start has read.
fn held<S: Sequence>(start: &Start<S>) -> usize {
    match start {
        Start::Empty | Start::Source(_) => 0,
        Start::Sequence(sequence) => sequence.len(),
    }
}

/// Checks every item before anything is computed.
fn check<M: Decoder>(model: &M, scoring: &Scoring<M::Sequence>) -> Result<()> {
    let (vocab, block, budget) = (model.vocab_size(), model.cache_block(), model.limits().cache_bytes);
    for (place, item) in scoring.items.iter().enumerate() {
        let refused = |expected: String, got: String| {
            Err(Error::Option { option: format!("item {place}"), expected, got })
        };
        let Some(start) = scoring.starts.get(item.start) else {
            return refused(format!("one of {} starts", scoring.starts.len()), item.start.to_string());
        };
        if item.targets.len() > item.ids.len() || (item.ids.len() <= held(start) && !item.targets.is_empty())
        {
            let got = format!("{} tokens and {} targets", item.ids.len(), item.targets.len());
            return refused("a token to read for each target".to_owned(), got);
        }
        if let Some(id) =
            item.ids.iter().chain(item.targets.iter().flatten()).find(|&&id| id as usize >= vocab)
        {
            return refused(format!("token ids below {vocab}"), id.to_string());
        }
        model.context_length().check(item.length.max(item.ids.len()))?;
        let source = source_bytes(block, source_length(start));
        let left = budget.saturating_sub(source);
        if source_bytes(block, item.ids.len() - held(start).min(item.ids.len())) > left {
            let most = left / block.bytes * block.positions;
            let expected = format!("at most {most} tokens (all that fits into cache_bytes={budget})");
            return refused(expected, item.ids.len().to_string());
        }
    }
    Ok(())
}

impl<'a, M: Decoder> Run<'a, M>
where
    M::Sequence: 'static,
{
    fn new(engine: &'a Engine<M>, scoring: Scoring<M::Sequence>) -> Self {
        let border = engine.model().border().unwrap_or(usize::MAX);
        let nodes = tree(&scoring.items, |start| held(&scoring.starts[start]), |item| item.length > border);
        let mut waiting = vec![0; scoring.starts.len()];
        let ready: Vec<usize> = (0..nodes.len()).rev().filter(|&node| nodes[node].parent.is_none()).collect();
        for &node in &ready {
            waiting[scoring.items[nodes[node].item].start] += 1;
        }
        let results = scoring.items.iter().map(|item| vec![Scored::default(); item.targets.len()]).collect();
        Self {
            engine,
            account: engine.apart().0,
            kept: nodes.iter().map(|_| None).collect(),
            started: waiting.iter().map(|_| None).collect(),
            reading: Vec::new(),
            scoring,
            nodes,
            ready,
            waiting,
            results,
        }
    }

    fn is_done(&self) -> bool {
        self.ready.is_empty() && self.reading.is_empty()
    }

    fn start_of(&self, node: usize) -> usize {
        self.scoring.items[self.nodes[node].item].start
    }

    /// Begins runs of tokens while a step has room and they fit beside what is reserved; one that would be alone always begins.
    fn admit(&mut self) -> Result<()> {
        let model = &**self.engine.model();
        let (limits, block) = (model.limits(), model.cache_block());
        let mut rows: usize = self.reading.iter().map(|r| self.nodes[r.node].tokens.end - r.at).sum();
        while rows < CHUNK
            && self.reading.len() < limits.max_rows
            && let Some(&node) = self.ready.last()
        {
            let (start, tokens) = (self.start_of(node), self.nodes[node].tokens.clone());
            let own = Needs::of(block, tokens.start, tokens.len(), 1).each;
            let begins = self.nodes[node].parent.is_none() && self.started[start].is_none();
            let source =
                if begins { source_bytes(block, source_length(&self.scoring.starts[start])) } else { 0 };
            // Prefixes that nobody uses make room first.
            self.engine.make_room(own + source);
            let (_, reserved) = self.engine.apart();
            let all = reserved.saturating_add(model.open_bytes()).saturating_add(own + source);
            if all > limits.cache_bytes && !self.reading.is_empty() {
                return Ok(());
            }
            if begins {
                self.begin(start, source)?;
            }
            let from = match self.nodes[node].parent {
                Some(parent) => &mut self.kept[parent],
                None => &mut self.started[start],
            };
            let Some((mut sequence, below)) = Kept::give(from) else {
                let message = "a run of tokens whose beginning is gone".to_owned();
                return Err(Error::Panicked { message });
            };
            self.ready.pop();
            sequence.expect(self.scoring.items[self.nodes[node].item].length);
            let reserved = Arc::new(Reserved { _charge: self.account.charge(own), below });
            rows += tokens.len();
            self.reading.push(Reading { node, start, sequence, reserved, at: tokens.start });
        }
        Ok(())
    }

    /// Makes the sequence that runs of a start begin with.
    fn begin(&mut self, start: usize, source: usize) -> Result<()> {
        let model = &**self.engine.model();
        let sequence = match &self.scoring.starts[start] {
            Start::Empty => model.start(None)?,
            Start::Source(ids) => model.start(Some(ids))?,
            Start::Sequence(sequence) => sequence.fork(),
        };
        let reserved =
            (source > 0).then(|| Arc::new(Reserved { _charge: self.account.charge(source), below: None }));
        self.started[start] = Some(Kept { sequence, reserved, left: self.waiting[start] });
        Ok(())
    }

    /// Reads the sources that sequences wait for, a chunk of them at a time.
    fn read_sources(&mut self, cancel: &Cancel<'_>) -> Result<()> {
        let model = &**self.engine.model();
        loop {
            let (mut starts, mut rows) = (Vec::new(), 0);
            let mut sequences = Vec::new();
            for reading in self.reading.iter_mut().filter(|reading| reading.sequence.pending() > 0) {
                if starts.last() != Some(&reading.start) {
                    rows += reading.sequence.pending();
                    if rows > CHUNK && !starts.is_empty() {
                        break;
                    }
                    starts.push(reading.start);
                }
                sequences.push(&mut reading.sequence);
            }
            if sequences.is_empty() {
                return Ok(());
            }
            model.encode(&mut sequences, cancel)?;
        }
    }

    /// Reads a chunk of tokens, and notes what was asked behind them.
    fn step(&mut self, cancel: &Cancel<'_>) -> Result<()> {
        let (mut room, mut wanted) = (CHUNK, 0);
        let (mut batch, mut asked, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for reading in &mut self.reading {
            let Node { item, tokens, questions, .. } = &self.nodes[reading.node];
            let from = reading.at;
            let to = tokens.end.min(from + room);
            if from == to {
                break;
            }
            room -= to - from;
            reading.at = to;
            let first = questions.partition_point(|question| question.position < from);
            let end = questions.partition_point(|question| question.position < to);
            let of_rows = questions[first..end].first().map_or(to, |question| question.position);
            for question in &questions[first..end] {
                asked.push(Asked { row: wanted + question.position - of_rows, token: question.token });
                places.push((question.item, question.place));
            }
            wanted += to - of_rows;
            let logits = if of_rows == to { Wanted::Nothing } else { Wanted::Latest(to - of_rows) };
            let input = Input::Tokens(&self.scoring.items[*item].ids[from..to]);
            batch.push(Segment { sequence: &mut reading.sequence, input, logits });
        }
        let mut scored = Vec::new();
        self.engine.model().score(&mut batch, &asked, &mut scored, cancel)?;
        for ((item, place), scored) in std::iter::zip(places, scored) {
            self.results[item][place] = scored;
        }
        let mut over = Vec::new();
        let nodes = &self.nodes;
        over.extend(self.reading.extract_if(.., |reading| reading.at == nodes[reading.node].tokens.end));
        for Reading { node, sequence, reserved, .. } in over.into_iter().rev() {
            let children = &self.nodes[node].children;
            if !children.is_empty() {
                self.kept[node] = Some(Kept { sequence, reserved: Some(reserved), left: children.len() });
                self.ready.extend(children.iter().rev());
            }
        }
        Ok(())
    }
}
