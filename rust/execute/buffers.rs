//! Memory of a step: one buffer that a program's rows and the members' working memory are laid out in, reused by later steps.
//!
//! Buffers belong to the team's turn: a step takes a set when its turn has come, so that callers who wait hold none. Sets of any
//! model serve every model. What is kept between steps is bounded.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::plan::Plan;
use crate::error::Result;
use crate::forks::PerProcess;
use crate::kernels::WIDTH;
use crate::layers::norm::PRIVATE_ROWS;
use crate::layers::rows::floats;
use crate::layers::{self, Buffer, Rows, Runtime, stride};
use crate::program::{Operand, Program, Which};

/// Bytes of activations that are kept after a step, over all sets.
const KEEP_BYTES: usize = 64 << 20;

/// Sets that wait for a step. A forked child begins with none: one of its parent's threads may hold the lock at the fork.
static SPARE: PerProcess<Mutex<Vec<Buffers>>> = PerProcess::new();
/// Bytes of all sets, those in use included.
static BYTES: AtomicUsize = AtomicUsize::new(0);

fn spare() -> MutexGuard<'static, Vec<Buffers>> {
    SPARE.get(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of activation buffers that this process holds, in use or kept.
pub fn activation_bytes() -> usize {
    BYTES.load(Ordering::Relaxed)
}

/// What a step works with; given back by dropping.
#[derive(Debug, Default)]
pub struct Buffers {
    /// The rows of the step.
    pub plan: Plan,
    /// Where results of phases are.
    pub(super) activations: Activations,
    pub(super) barriers: usize,
    /// When phases ended, where somebody wants to know.
    pub(super) laps: Vec<AtomicU64>,
}

impl Buffers {
    /// A set that waits, or a new one, with an empty plan. Take it when the team's turn has come.
    pub fn take() -> Taken {
        let mut buffers = spare().pop().unwrap_or_default();
        buffers.plan.clear();
        Taken(Some(buffers))
    }

    /// Barriers of the last step.
    pub fn barriers(&self) -> usize {
        self.barriers
    }
}

/// A set of buffers on loan.
#[derive(Debug)]
pub struct Taken(Option<Buffers>);

impl std::ops::Deref for Taken {
    type Target = Buffers;

    fn deref(&self) -> &Buffers {
        self.0.as_ref().expect("a set until it is dropped")
    }
}

impl std::ops::DerefMut for Taken {
    fn deref_mut(&mut self) -> &mut Buffers {
        self.0.as_mut().expect("a set until it is dropped")
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Some(mut buffers) = self.0.take() else { return };
        let mut spare = spare();
        let kept: usize = spare.iter().map(|set| set.activations.memory.bytes()).sum();
        if kept + buffers.activations.memory.bytes() > KEEP_BYTES {
            buffers.activations.give_back();
        }
        spare.push(buffers);
    }
}

/// The memory of a step, and what lies where in it.
#[derive(Debug, Default)]
pub(super) struct Activations {
    memory: Buffer,
    layout: Layout,
}

/// Sizes of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) rows: usize,
    pub(super) wanted: usize,
    pub(super) vocab: usize,
    /// Rows whose logits are there at once.
    pub(super) side_by_side: usize,
    pub(super) traced: bool,
}

/// Places in the memory, in floats from its start.
#[derive(Debug, Default)]
struct Layout {
    buffers: Vec<usize>,
    normed: usize,
    packed: usize,
    members: usize,
    logits: usize,
    unfused: usize,
}

impl Activations {
    /// Lays a step out, and zeroes the padding that no phase writes.
    pub(super) fn lay_out(
        &mut self,
        program: &Program,
        runtime: &Runtime,
        sizes: Sizes,
    ) -> Result<Views<'_>> {
        let Sizes { rows, wanted, vocab, side_by_side, traced } = sizes;
        let of = |which: Which| if which == Which::All { rows } else { wanted };
        let (inputs, normed) = (program.most_inputs(), program.most_normed());
        let (own, packed) = (PRIVATE_ROWS * stride(normed), layers::packed_rows(rows, inputs));
        let member = own + layers::scratch(runtime, inputs, program.heads());
        let mut end = 0;
        let mut place = |floats: usize| {
            end += floats;
            end - floats
        };
        let layout = &mut self.layout;
        layout.buffers.clear();
        layout.buffers.extend(program.buffers().iter().map(|b| place(floats(of(b.rows), b.width))));
        if rows == wanted {
            for &(from, copy) in program.copies() {
                layout.buffers[copy] = layout.buffers[from];
            }
        }
        layout.normed = place(if rows > PRIVATE_ROWS { floats(rows, normed) } else { 0 });
        layout.packed = place(floats(1, packed));
        layout.members = place(floats(runtime.threads, member));
        layout.logits = place(floats(side_by_side, vocab));
        layout.unfused = place(if traced { floats(rows, program.most_outputs()) } else { 0 });
        let before = self.memory.bytes();
        let at = self.memory.reserve(end);
        BYTES.fetch_add(self.memory.bytes().wrapping_sub(before), Ordering::Relaxed);
        let views = Views { at: at?, layout, sizes, threads: runtime.threads, own, member, packed };
        for (number, b) in program.buffers().iter().enumerate() {
            if !b.width.is_multiple_of(WIDTH) {
                let rows = views.rows(Operand { buffer: number, width: b.width, rows: b.rows });
                // SAFETY: no member has begun.
                unsafe { rows.clear_padding() };
            }
        }
        Ok(views)
    }

    /// The memory as rows of one width, for what a device has computed.
    pub(super) fn plain(&mut self, rows: usize, width: usize) -> Result<Rows<'_>> {
        let before = self.memory.bytes();
        self.memory.reserve(floats(rows, width))?;
        BYTES.fetch_add(self.memory.bytes().wrapping_sub(before), Ordering::Relaxed);
        self.memory.rows(rows, width)
    }

    /// Gives the memory back to the system.
    fn give_back(&mut self) {
        BYTES.fetch_sub(self.memory.bytes(), Ordering::Relaxed);
        self.memory = Buffer::default();
    }
}

/// One step's rows in its memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Views<'a> {
    at: *mut f32,
    layout: &'a Layout,
    pub(super) sizes: Sizes,
    threads: usize,
    /// Floats of a member's own normed rows, and of all its memory.
    own: usize,
    member: usize,
    packed: usize,
}

// SAFETY: the pointer is only handed out as rows, whose accessors are unsafe; `Program` proves which phase may write which rows.
unsafe impl Send for Views<'_> {}
// SAFETY: as above.
unsafe impl Sync for Views<'_> {}

impl<'a> Views<'a> {
    /// Number of rows of this kind.
    pub(super) fn count(&self, which: Which) -> usize {
        if which == Which::All { self.sizes.rows } else { self.sizes.wanted }
    }

    fn view(&self, place: usize, rows: usize, width: usize) -> Rows<'a> {
        // SAFETY: `lay_out` made room for these rows, all of it written once; the memory is borrowed as long as the views.
        unsafe { Rows::new(self.at.wrapping_add(place), rows, width) }
    }

    /// Rows of a buffer.
    pub(super) fn rows(&self, operand: Operand) -> Rows<'a> {
        self.view(self.layout.buffers[operand.buffer], self.count(operand.rows), operand.width)
    }

    /// Room for `rows` normed rows that all members read.
    pub(super) fn normed(&self, rows: usize, width: usize) -> Rows<'a> {
        self.view(self.layout.normed, if rows > PRIVATE_ROWS { rows } else { 0 }, width)
    }

    /// Room for a few normed rows of one member.
    pub(super) fn private(&self, member: usize, width: usize) -> Rows<'a> {
        self.members().window(member, PRIVATE_ROWS, width)
    }

    /// A member's working memory for products and attention.
    pub(super) fn scratch(&self, member: usize) -> *mut f32 {
        self.members().at(member, self.own)
    }

    fn members(&self) -> Rows<'a> {
        self.view(self.layout.members, self.threads, self.member)
    }

    /// Room for packed rows, common to all members.
    pub(super) fn packed(&self) -> Rows<'a> {
        self.view(self.layout.packed, 1, self.packed)
    }

    /// Logits with padding: the wanted rows', or as many of them as there are at once.
    pub(super) fn logits(&self) -> Rows<'a> {
        self.view(self.layout.logits, self.sizes.side_by_side, self.sizes.vocab)
    }

    /// Room for a product before its activation or residual, where a trace wants it.
    pub(super) fn unfused(&self, rows: usize, width: usize) -> Rows<'a> {
        self.view(self.layout.unfused, rows, width)
    }
}
