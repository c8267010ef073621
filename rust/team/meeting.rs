//! Where the members of a region meet: the barrier, what ends a region early, and a member's view of both.
//!
//! A region ends early when its step is cancelled or a member panicked. The last member to arrive at a barrier decides for all of
//! them whether the step goes on. Between barriers a member may look by itself ([`Member::cancelled`]) and leave its loop. The first
//! member, whose thread began the step, asks the step's hook wherever it looks and for as long as it waits.

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::cancel::{Cancel, PAUSE};
use super::pieces::{Claims, Pieces, VICTIMS, share};
use super::waiting::{Waiting, lock};
use crate::error::{Error, Result};

/// Why a member leaves a region early; the step's result says more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop;

/// What a region runs on every member.
pub(super) type Work<'a> = dyn Fn(&Member<'_>) -> Result<(), Stop> + Sync + 'a;

/// What ends the running region early. A line of its own, since members look at it all the time and it hardly ever changes.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Ends {
    /// Decided at a barrier: every member that was there sees the same.
    cancelled: AtomicBool,
    /// A member panicked; whoever waits at a barrier is released.
    panicked: AtomicBool,
    /// A member saw the cancel flag between barriers and may have left a loop undone.
    left: AtomicBool,
}

/// How a member looks between barriers whether the region is to end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch<'a> {
    cancel: &'a Cancel<'a>,
    ends: &'a Ends,
    /// Whether this member's thread began the step.
    first: bool,
}

impl Watch<'_> {
    /// Whether what is left of a loop may be left undone. The price is a load or two of lines that do not change, and for the first
    /// member what [`Cancel::ask`] costs.
    ///
    /// All members still leave the region at the same barrier. Whoever is told so here notes it in `left` before it arrives at its
    /// next barrier. The last to arrive there has read every other arrival, so it sees the note (it would see the cancel flag as
    /// well, which stays set for the rest of a step), and decides for all. No earlier barrier changes its outcome: members that are
    /// still on their way out of it read `cancelled`, which is written only before a barrier opens. Where no barrier follows, the
    /// note makes the region's result an error.
    pub(super) fn is_over(&self) -> bool {
        if self.look() {
            self.ends.left.store(true, Ordering::Relaxed);
            return true;
        }
        // The region's result is an error then, whatever is done or not.
        self.ends.panicked.load(Ordering::Relaxed)
    }

    /// Whether the step was cancelled, as far as this member knows.
    fn look(&self) -> bool {
        if self.first { self.cancel.ask() } else { self.cancel.is_set() }
    }

    /// Waits until `ready` holds. The first member asks meanwhile, so that the step can be cancelled while only others work: they
    /// see the flag, and the wait is over when they have come.
    pub(super) fn wait(&self, waiting: &Waiting, ready: impl Fn() -> bool) {
        let ask = || _ = self.cancel.ask();
        let asks = self.first && self.cancel.has_hook();
        waiting.until_or(ready, asks.then_some((PAUSE, &ask)));
    }
}

/// The barrier and the flags of the running region.
#[derive(Default)]
pub(super) struct Meeting {
    arrived: AtomicUsize,
    phase: AtomicUsize,
    /// Every member's claims in this phase and in the next one, by the phase's last bit; none for one member.
    claims: Vec<[Claims; 2]>,
    ends: Ends,
    message: Mutex<Option<String>>,
    waiting: Waiting,
}

impl Meeting {
    /// A meeting of at most so many members.
    pub(super) fn of(members: usize) -> Self {
        let claims = if members > 1 { members } else { 0 };
        Self { claims: (0..claims).map(|_| Default::default()).collect(), ..Self::default() }
    }

    pub(super) fn reset(&self, members: usize) {
        self.arrived.store(0, Ordering::SeqCst);
        self.claims[..members].iter().flatten().for_each(Claims::reset);
        for end in [&self.ends.cancelled, &self.ends.panicked, &self.ends.left] {
            end.store(false, Ordering::SeqCst);
        }
        *lock(&self.message) = None;
    }

    /// Notes a panic and releases whoever waits at a barrier.
    fn panicked(&self, payload: &(dyn Any + Send)) {
        let text = payload
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        lock(&self.message).get_or_insert(text);
        self.ends.panicked.store(true, Ordering::SeqCst);
        self.waiting.wake();
    }

    /// What the region came to.
    pub(super) fn outcome(&self) -> Result<()> {
        if self.ends.panicked.load(Ordering::SeqCst) {
            let message = lock(&self.message).take().unwrap_or_default();
            return Err(Error::Panicked { message });
        }
        let ends = [&self.ends.cancelled, &self.ends.left];
        if ends.iter().any(|end| end.load(Ordering::SeqCst)) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// One thread's place in a region.
pub struct Member<'a> {
    index: usize,
    count: usize,
    meeting: &'a Meeting,
    watch: Watch<'a>,
    /// Loops over claimed pieces since the last barrier.
    loops: Cell<usize>,
    /// Barriers so far.
    barriers: Cell<usize>,
}

impl<'a> Member<'a> {
    pub(super) fn new(index: usize, count: usize, meeting: &'a Meeting, cancel: &'a Cancel<'a>) -> Self {
        let watch = Watch { cancel, ends: &meeting.ends, first: index == 0 };
        Self { index, count, meeting, watch, loops: Cell::new(0), barriers: Cell::new(0) }
    }

    /// Runs the work and turns a panic into a note for the others.
    pub(super) fn enter(&self, work: &Work<'_>) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| work(self))) {
            self.meeting.panicked(payload.as_ref());
        }
    }

    /// Waits outside of the work, as at a barrier, until `ready` holds; a panic is a note, too, and ends the wait.
    pub(super) fn wait(&self, waiting: &Waiting, ready: impl Fn() -> bool + Sync) {
        self.enter(&|member| {
            member.watch.wait(waiting, &ready);
            Ok(())
        });
    }

    /// Number of this member, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Number of members.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether the step was cancelled or a member panicked: a long loop may then be left undone, since the next barrier, or else the
    /// region's end, is an error for every member.
    pub fn cancelled(&self) -> bool {
        self.watch.is_over()
    }

    /// Barriers of the region so far.
    pub fn barriers(&self) -> usize {
        self.barriers.get()
    }

    /// Members whose shares a member's [`Member::pieces`] are taken from, at most, itself counted.
    pub fn reach(&self) -> usize {
        1 + VICTIMS
    }

    /// This member's run of `n` equal pieces: contiguous, the same for the same `n` and count.
    pub fn share(&self, n: usize) -> Range<usize> {
        share(n, self.index, self.count)
    }

    /// This member's pieces of `0..n`: its share piece by piece, one after the other in memory, and then what others have not
    /// begun of theirs, so that a member whose core is slowed down by others does less. Pieces are multiples of `least`, save the
    /// last one taken of a share. Every member must run the same loops between two barriers, and read what another wrote only
    /// behind the next one. There are no more pieces once the member is [`Member::cancelled`].
    pub fn pieces(&self, n: usize, least: usize) -> Pieces<'a> {
        let number = self.loops.replace(self.loops.get() + 1);
        let phase = self.meeting.phase.load(Ordering::Relaxed);
        let claims = self.meeting.claims.get(..self.count).unwrap_or_default();
        self.fixed(n).claimed(claims, phase % 2, number, least)
    }

    /// As [`Member::pieces`], the same for the same `n` and count: this member's share in one piece.
    pub fn fixed(&self, n: usize) -> Pieces<'a> {
        Pieces::whole(n, self.index, self.count, self.watch)
    }

    /// Waits until every member is here; what they wrote before is then visible to all.
    ///
    /// # Errors
    /// [`Stop`] when the step was cancelled or a member panicked; leave the region then.
    pub fn barrier(&self) -> Result<(), Stop> {
        self.barrier_noting(|| ())
    }

    /// As [`Member::barrier`]; the last one to arrive calls its `note` before any goes on, unless the region is to end.
    ///
    /// # Errors
    /// As for [`Member::barrier`].
    pub fn barrier_noting(&self, note: impl FnOnce()) -> Result<(), Stop> {
        let m = self.meeting;
        let phase = m.phase.load(Ordering::SeqCst);
        self.loops.set(0);
        self.barriers.set(self.barriers.get() + 1);
        // The last one to arrive sees what the first one was told before it arrived.
        self.watch.look();
        // The next phase's claims, which nobody reads before all are here.
        if let Some(own) = m.claims.get(self.index) {
            own[phase.wrapping_add(1) % 2].reset();
        }
        if m.arrived.fetch_add(1, Ordering::SeqCst) + 1 == self.count {
            if self.watch.cancel.is_set() || m.ends.left.load(Ordering::Relaxed) {
                m.ends.cancelled.store(true, Ordering::SeqCst);
            } else {
                note();
            }
            m.arrived.store(0, Ordering::SeqCst);
            m.phase.store(phase.wrapping_add(1), Ordering::SeqCst);
            m.waiting.wake();
        } else {
            self.watch.wait(&m.waiting, || {
                m.phase.load(Ordering::SeqCst) != phase || m.ends.panicked.load(Ordering::SeqCst)
            });
        }
        if m.ends.panicked.load(Ordering::SeqCst) || m.ends.cancelled.load(Ordering::SeqCst) {
            Err(Stop)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::run;
    use super::*;

    #[test]
    fn the_last_to_arrive_notes_a_barrier_before_any_goes_on() {
        for threads in [1, 2, 4] {
            let (cancel, arrived, noted) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
            let result = run(threads, &Cancel::new(&cancel), |m| {
                for round in 1..=200 {
                    arrived.fetch_add(1, Ordering::SeqCst);
                    m.barrier_noting(|| {
                        assert_eq!(arrived.load(Ordering::SeqCst), round * m.count(), "all are there");
                        noted.fetch_add(1, Ordering::SeqCst);
                    })?;
                    assert_eq!(noted.load(Ordering::SeqCst), round, "noted once, before this one went on");
                    m.barrier()?;
                }
                cancel.store(true, Ordering::SeqCst);
                m.barrier_noting(|| _ = noted.fetch_add(1, Ordering::SeqCst))
            });
            assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
            assert_eq!(noted.into_inner(), 200, "a barrier that ends the region is not noted");
        }
    }
}
