//! A program on a GPU: its steps, as kernels one by one, or as graphs that were recorded once.
//!
//! A step that gives every sequence one row, all of them wanted, is recorded for so many rows and keys, and repeated from then on: what
//! changes from step to step lies in the tables. Other steps are launched kernel by kernel. Either way the host waits once, at the end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::driver::{Graph, Memory, Pinned};
use super::gpu::{Gpu, MOST_HEAD};
use super::launch::Launcher;
use super::places::{Activations, CHUNK, Places, Size};
use super::tables::{Counts, Room};
use super::weights::{Ready, Uploader};
use crate::error::{Error, Result};
use crate::execute::{Backend, Inputs, Plan, Remote, Results, side_by_side};
use crate::kernels::BLOCK;
use crate::kv::Shape;
use crate::layers::Rows;
use crate::layers::embedding::Input;
use crate::program::{Cache, Op, Program, Weights, Which};
use crate::team::Cancel;

/// Rows of a step that is recorded, at most.
const MOST_RECORDED: usize = 64;
/// Graphs that are kept.
const MOST_GRAPHS: usize = 64;
/// Steps of a plain argmax for which there is room, or a multiple of them.
const STEPS: usize = 8;
/// Bytes of embeddings that are brought to the host at a time, unless a row has more.
const BROUGHT: usize = 8 << 20;
/// Rows of one sequence up to which each attends by itself.
const ROWS_ALONE: usize = 4;

/// A model's programs on a GPU: one for each forward, over the same weights.
///
/// # Errors
/// `OutOfMemory`, `Cancelled`, `Option` for a program that the kernels have no room for, and those of the device.
pub fn forwards(
    gpu: &Arc<Gpu>,
    programs: &[(&Program, Shape)],
    memory: Shape,
    weights: &Weights,
    cancel: &Cancel<'_>,
) -> Result<Vec<Forward>> {
    let mut uploader = Uploader::new(gpu, weights, cancel)?;
    let ready: Vec<_> =
        programs.iter().map(|(program, _)| uploader.program(program)).collect::<Result<_>>()?;
    let held = Arc::new(uploader.finish());
    let forward = |((_, own), ready): (&(&Program, Shape), Vec<Ready>)| Forward {
        gpu: Arc::clone(gpu),
        ready,
        own: *own,
        memory,
        work: Mutex::default(),
        bytes: AtomicUsize::new(0),
        _held: Arc::clone(&held),
    };
    Ok(std::iter::zip(programs, ready).map(forward).collect())
}

/// One program on a GPU.
#[derive(Debug)]
pub struct Forward {
    ready: Vec<Ready>,
    own: Shape,
    memory: Shape,
    work: Mutex<Work>,
    /// Bytes of the GPU's memory that steps have taken.
    bytes: AtomicUsize,
    /// Where the weights are.
    _held: Arc<Vec<Memory>>,
    /// Dropped last: graphs are of its kernels.
    gpu: Arc<Gpu>,
}

/// What steps work with; one step at a time.
#[derive(Debug, Default)]
struct Work {
    activations: Activations,
    /// What the GPU is sent, and what it leaves, page-locked.
    tables: Option<Pinned>,
    left: Option<Pinned>,
    /// Recorded steps; none where the GPU had no room for the record.
    graphs: HashMap<Key, Option<Graph>>,
}

/// What a graph was recorded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    size: Size,
    chooses: bool,
}

/// A step before it is launched.
struct Step<'a, 'i> {
    program: &'a Program,
    plan: &'a Plan,
    inputs: Inputs<'i>,
    size: Size,
    /// Whether a graph is recorded of it, or repeated.
    recorded: bool,
    tiled: bool,
}

/// A step whose tables are on their way, and where its rows are.
struct Placed {
    places: Places,
    tickets: u64,
    counts: Counts,
}

/// Chunks of so many keys.
fn chunks(keys: usize) -> usize {
    keys.div_ceil(CHUNK).max(1)
}

impl<'a, 'i> Step<'a, 'i> {
    /// A step that leaves `side_by_side` rows of logits at once, and chooses tokens for `steps` steps if that is not 0.
    fn new(
        gpu: &Gpu,
        program: &'a Program,
        plan: &'a Plan,
        inputs: Inputs<'i>,
        (vocab, side_by_side, steps): (usize, usize, usize),
    ) -> Self {
        let most = |cache, of: fn(&crate::layers::attention::Span) -> usize| {
            plan.looks(cache, Which::All).0.iter().map(of).max().unwrap_or(0)
        };
        let keys = [Cache::Own(0), Cache::Memory(0)].map(|cache| most(cache, |span| span.keys));
        let mut room = Room { steps, ..Room::of(plan) };
        let given = (0..plan.spans().len()).any(|i| matches!((inputs.of)(i), Input::Embeddings(_)));
        let decodes = most(Cache::Own(0), |span| span.rows) == 1 && room.rows == room.wanted && !given;
        let recorded = gpu.graphs && decodes && side_by_side >= room.wanted && room.rows <= MOST_RECORDED;
        let tiled = most(Cache::Own(0), |span| span.rows) > ROWS_ALONE;
        let mut chunks = match tiled {
            true => [1; 2],
            false => [chunks(keys[0] + steps.saturating_sub(1)), chunks(keys[1])],
        };
        let mut side_by_side = side_by_side;
        if recorded {
            // Few sizes, each of which serves many steps.
            let rows = if room.rows <= 8 { room.rows } else { room.rows.next_power_of_two() };
            chunks = chunks.map(usize::next_power_of_two);
            let of_row = CHUNK / BLOCK;
            let memory_blocks = if keys[1] > 0 { rows * chunks[1] * of_row } else { 0 };
            let steps = steps.next_multiple_of(STEPS);
            room = Room { rows, wanted: rows, own_blocks: rows * chunks[0] * of_row, memory_blocks, steps };
            side_by_side = rows;
        }
        let size = Size { room, side_by_side, vocab, chunks, given };
        Self { program, plan, inputs, size, recorded, tiled }
    }
}

impl Forward {
    /// Outputs of the head, or 0 without one.
    fn vocab(&self, program: &Program) -> usize {
        let head = program.phases().iter().rposition(|phase| matches!(phase.op, Op::Head { .. }));
        match head.map(|place| self.ready[place]) {
            Some(Ready::Linear { matrix, .. }) => matrix.outputs,
            _ => 0,
        }
    }

    fn launcher<'l>(&'l self, step: &Step<'_, '_>, placed: &'l Placed) -> Launcher<'l> {
        let Size { room, chunks, given, .. } = step.size;
        Launcher {
            gpu: &self.gpu,
            places: &placed.places,
            tickets: placed.tickets,
            rows: room.rows,
            wanted: room.wanted,
            counts: placed.counts,
            chunks,
            tiled: step.tiled,
            given,
            own: &self.own,
            memory: &self.memory,
        }
    }

    /// Every phase but the head; the head too, for all wanted rows, where `with_head` says so.
    fn launch(&self, step: &Step<'_, '_>, launcher: &Launcher<'_>, with_head: bool) -> Result<()> {
        for (phase, ready) in std::iter::zip(step.program.phases(), &self.ready) {
            if !launcher.takes(phase) {
                continue;
            }
            if !matches!(phase.op, Op::Head { .. }) {
                launcher.phase(phase, ready)?;
            } else if with_head {
                launcher.head(phase, ready, 0, launcher.wanted)?;
            }
        }
        Ok(())
    }

    /// Runs something with the memory of steps. Where it fails, the GPU is waited for, and begins anew.
    fn with_work<T>(&self, cancel: &Cancel<'_>, run: impl FnOnce(&mut Work) -> Result<T>) -> Result<T> {
        // A hook may begin a step of its own, so that it is asked before anything is held.
        if cancel.ask() {
            return Err(Error::Cancelled);
        }
        // In a forked child a lock may be held for ever, so the device is asked before.
        drop(self.gpu.device.enter()?);
        // Whoever began first comes first. A hook that is asked meanwhile may begin a step, which does not stand in line.
        let _place = self.gpu.queue.take(cancel)?;
        // From here on the device is this thread's.
        let _here = self.gpu.device.enter()?;
        let _turn = self.gpu.turn();
        let mut unfinished =
            Unfinished { gpu: &self.gpu, work: self.work.lock().unwrap_or_else(PoisonError::into_inner) };
        let outcome = run(&mut unfinished.work);
        self.bytes.store(unfinished.work.activations.bytes(), Ordering::Relaxed);
        if outcome.is_ok() {
            unfinished.work.activations.is_spoilt = false;
        }
        outcome
    }
}

/// A step's memory. Where a step ends otherwise than well, in an error or a panic, the GPU is waited for before anybody uses the memory again.
struct Unfinished<'a> {
    gpu: &'a Gpu,
    work: MutexGuard<'a, Work>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.work.activations.is_spoilt {
            let _ = self.gpu.stream.synchronize();
        }
    }
}

/// Page-locked memory of at least so many bytes.
fn pinned<'p>(gpu: &Gpu, memory: &'p mut Option<Pinned>, bytes: usize) -> Result<&'p mut Pinned> {
    if memory.as_ref().is_none_or(|memory| memory.len() < bytes) {
        *memory = None;
        *memory = Some(gpu.device.pinned(bytes.next_power_of_two())?);
    }
    memory.as_mut().ok_or_else(|| Error::OutOfMemory { what: "page-locked memory".to_owned(), bytes })
}

impl Work {
    /// Finds places for a step and sends its tables.
    fn place(&mut self, forward: &Forward, step: &Step<'_, '_>) -> Result<Placed> {
        let gpu = &forward.gpu;
        let placed = self.activations.place(gpu, step.program, &step.size);
        if std::mem::take(&mut self.activations.moved) {
            self.graphs.clear();
        }
        let (places, tickets) = placed?;
        let (sent, room) = (places.tables.sent, step.size.room);
        let given = |i: usize| match (step.inputs.of)(i) {
            Input::Embeddings(values) => Some(values),
            Input::Tokens(_) => None,
        };
        let spans = step.plan.spans();
        let of_given = (0..spans.len()).filter_map(given).map(size_of_val).sum::<usize>();
        let tables = pinned(gpu, &mut self.tables, sent + of_given)?;
        // SAFETY: the memory has room for these, and the GPU has read what was there before: every step waits for it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(tables.as_mut_ptr(), sent + of_given) };
        let mut counts = places.tables.write(&mut bytes[..sent], room, step.plan, &step.inputs);
        // SAFETY: both runs are there until the stream has been waited for.
        unsafe { gpu.stream.to_device(places.tables_at, tables.as_ptr(), sent)? };
        let mut from = sent;
        for (i, span) in spans.iter().enumerate() {
            let Some(values) = given(i) else { continue };
            let (len, row) = (size_of_val(values), size_of_val(values) / span.rows);
            // SAFETY: the memory has room for the embeddings of all spans behind the tables, and so has the GPU's for their rows.
            unsafe {
                let room = tables.as_mut_ptr().add(from);
                std::ptr::copy_nonoverlapping(values.as_ptr().cast(), room, len);
                gpu.stream.to_device(places.given + (span.row * row) as u64, room, len)?;
            }
            from += len;
        }
        if step.recorded {
            let memory = if counts.looks[2] > 0 { room.rows } else { 0 };
            counts.looks = [room.rows, room.rows, memory, memory];
        }
        Ok(Placed { places, tickets, counts })
    }

    /// Does what `record` says of a recorded step, `times` times.
    fn repeat(
        &mut self,
        forward: &Forward,
        step: &Step<'_, '_>,
        chooses: bool,
        times: usize,
        record: impl Fn() -> Result<()>,
    ) -> Result<()> {
        if !step.recorded {
            return (0..times).try_for_each(|_| record());
        }
        let (key, stream) = (Key { size: step.size, chooses }, &forward.gpu.stream);
        if !self.graphs.contains_key(&key) {
            if self.graphs.len() >= MOST_GRAPHS {
                self.graphs.clear();
            }
            match stream.capture(&record) {
                Ok(graph) => _ = self.graphs.insert(key, Some(graph)),
                Err(Error::OutOfMemory { .. }) => self.without_room(key),
                Err(error) => return Err(error),
            }
        }
        for _ in 0..times {
            if let Some(graph) = &self.graphs[&key] {
                // SAFETY: what the graph reads and writes are places of this size, which have not moved since it was recorded.
                match unsafe { stream.launch_graph(graph) } {
                    Err(Error::OutOfMemory { .. }) => self.without_room(key),
                    launched => {
                        launched?;
                        continue;
                    }
                }
            }
            record()?;
        }
        Ok(())
    }

    /// Graphs take memory of the GPU. Where one has no room, others give theirs up, and the step is launched kernel by kernel from now on:
    /// so it may have what it needs itself.
    fn without_room(&mut self, key: Key) {
        self.graphs.clear();
        self.graphs.insert(key, None);
    }

    /// Brings what lies at `from` to the host, and waits for it.
    fn bring(&mut self, gpu: &Gpu, from: u64, bytes: usize) -> Result<&[u8]> {
        let left = pinned(gpu, &mut self.left, bytes)?;
        // SAFETY: both runs are there until the stream has been waited for.
        unsafe { gpu.stream.to_host(left.as_mut_ptr(), from, bytes)? };
        gpu.stream.synchronize()?;
        // SAFETY: the GPU has written these bytes, and nobody changes them before the next step.
        Ok(unsafe { std::slice::from_raw_parts(left.as_ptr(), bytes) })
    }

    /// Brings values.
    fn values(&mut self, gpu: &Gpu, from: u64, count: usize) -> Result<&[f32]> {
        let bytes = self.bring(gpu, from, count * size_of::<f32>())?;
        // SAFETY: page-locked memory begins at a page, and every pattern of bits is a value.
        Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), count) })
    }

    fn last_rows(&mut self, gpu: &Gpu, from: u64, rows: Rows<'_>) -> Result<()> {
        let stride = super::places::stride(rows.width());
        let values = self.values(gpu, from, rows.rows() * stride)?;
        for r in 0..rows.rows() {
            // SAFETY: the rows are the step's own, which nobody else touches while it runs.
            unsafe { rows.row_mut(r) }.copy_from_slice(&values[r * stride..][..rows.width()]);
        }
        Ok(())
    }
}

impl Backend for Forward {
    fn embed(&self, program: &Program, ids: &[u32], rows: &mut [f32]) -> Result<()> {
        let place = program.phases().iter().position(|phase| matches!(phase.op, Op::Embed { .. }));
        let Some(Ready::Embed { table, .. }) = place.map(|place| self.ready[place]) else { return Ok(()) };
        let gpu = &*self.gpu;
        let _here = gpu.device.enter()?;
        let _turn = gpu.turn();
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = if gpu.bf16 { 2 } else { 4 };
        let row_bytes = table.inputs * bytes;
        let at_once = (BROUGHT / row_bytes).max(1);
        for (ids, rows) in std::iter::zip(ids.chunks(at_once), rows.chunks_mut(at_once * table.inputs)) {
            let left = pinned(gpu, &mut work.left, ids.len() * row_bytes)?;
            let asked = ids.iter().enumerate().try_for_each(|(row, &id)| {
                let from = table.at + (id as usize * table.stride * bytes) as u64;
                // SAFETY: both runs are there until the stream has been waited for.
                unsafe { gpu.stream.to_host(left.as_mut_ptr().add(row * row_bytes), from, row_bytes) }
            });
            // Also where a copy was refused: others may be on their way.
            gpu.stream.synchronize().and(asked)?;
            // SAFETY: the GPU has written these bytes, and nobody changes them meanwhile.
            let brought = unsafe { std::slice::from_raw_parts(left.as_ptr(), ids.len() * row_bytes) };
            for (value, bits) in std::iter::zip(rows, brought.chunks_exact(bytes)) {
                // A bfloat16 is the upper half of a float.
                let mut whole = [0; 4];
                whole[4 - bytes..].copy_from_slice(bits);
                *value = f32::from_le_bytes(whole);
            }
        }
        Ok(())
    }

    fn activation_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn run(&self, step: Remote<'_, '_>) -> Result<()> {
        let Remote { program, plan, inputs, mut results, last, scans } = step;
        let (gpu, vocab, wanted) = (&*self.gpu, self.vocab(program), plan.wanted());
        let at_once = match results {
            Results::Nothing => 0,
            Results::Logits(_) | Results::Scores(..) => side_by_side(wanted, vocab),
        };
        let step = Step::new(gpu, program, plan, inputs, (vocab, at_once, 0));
        self.with_work(inputs.cancel, |work| {
            let placed = work.place(self, &step)?;
            let launcher = self.launcher(&step, &placed);
            work.repeat(self, &step, false, 1, || self.launch(&step, &launcher, step.recorded))?;
            if let (Some(rows), Some(result)) = (last, program.result()) {
                work.last_rows(gpu, placed.places.of(result), rows)?;
            }
            if at_once == 0 {
                return gpu.stream.synchronize();
            }
            let head = std::iter::zip(program.phases(), &self.ready).next_back();
            for first in (0..wanted).step_by(at_once) {
                let rows = (wanted - first).min(at_once);
                if let Some((phase, ready)) = head.filter(|_| !step.recorded) {
                    if inputs.cancel.is_set() {
                        return Err(Error::Cancelled);
                    }
                    launcher.head(phase, ready, first, rows)?;
                }
                let values = work.values(gpu, placed.places.logits, rows * vocab)?;
                match &mut results {
                    Results::Nothing => {}
                    Results::Logits(logits) => {
                        logits[first * vocab..][..values.len()].copy_from_slice(values);
                    }
                    Results::Scores(asked, scored) => {
                        Remote::score(scans, asked, scored, first, values, vocab);
                    }
                }
            }
            Ok(())
        })
    }

    fn argmax(
        &self,
        program: &Program,
        plan: &Plan,
        inputs: Inputs<'_>,
        steps: usize,
        ids: &mut [u32],
    ) -> Result<()> {
        let (gpu, vocab, rows) = (&*self.gpu, self.vocab(program), plan.rows());
        let step = Step::new(gpu, program, plan, inputs, (vocab, rows, steps));
        self.with_work(inputs.cancel, |work| {
            let placed = work.place(self, &step)?;
            let launcher = self.launcher(&step, &placed);
            work.repeat(self, &step, true, steps, || {
                self.launch(&step, &launcher, true)?;
                launcher.choose(vocab)
            })?;
            let (places, stride) = (&placed.places, step.size.room.rows);
            let bytes = work.bring(gpu, places.table(places.tables.chosen), steps * stride * 4)?;
            for (place, id) in ids.iter_mut().enumerate() {
                let at = (place / rows * stride + place % rows) * 4;
                *id = bytes[at..at + 4].try_into().map_or(u32::MAX, u32::from_ne_bytes);
            }
            Ok(())
        })
    }
}

const _: () = assert!(MOST_HEAD.is_multiple_of(32), "a warp's lanes share a head");
