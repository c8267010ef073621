//! The threads: one persistent team per process that enters a region once per step and meets at barriers.
//!
//! A waiting member spins, then yields, then parks. A step holds the team, never a whole generation. A cancel flag is read
//! at every barrier by the last to arrive, so that all members decide alike; a member that panics releases the others.
//! A forked child finds the team of another process and starts its own; the parent's is left behind. This file knows
//! cgroup quotas and affinity, and no models.

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

use pieces::{Claims, VICTIMS};
pub use pieces::{Pieces, share};

mod pieces;

/// Pauses before a waiter yields: some ten microseconds, the length of a short phase.
const SPINS: usize = 400;
/// How long a waiter yields before it parks.
const YIELD_FOR: Duration = Duration::from_micros(200);
/// More members than this are never started.
const MAX_THREADS: usize = 256;

/// Why a member leaves a region early; the step's result says more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop;

/// A place to wait in: spin, then yield, then park.
#[derive(Debug, Default)]
struct Waiting {
    parked: AtomicUsize,
    lock: Mutex<()>,
    woken: Condvar,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiting {
    /// Returns once `ready` holds; whoever makes it hold calls [`Waiting::wake`] afterwards.
    fn until(&self, ready: impl Fn() -> bool) {
        for _ in 0..SPINS {
            if ready() {
                return;
            }
            std::hint::spin_loop();
        }
        let start = Instant::now();
        while start.elapsed() < YIELD_FOR {
            if ready() {
                return;
            }
            std::thread::yield_now();
        }
        self.parked.fetch_add(1, Ordering::SeqCst);
        let mut guard = lock(&self.lock);
        while !ready() {
            guard = self.woken.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.parked.fetch_sub(1, Ordering::SeqCst);
    }

    /// Wakes whoever is parked. The condition was made true by a sequentially consistent store before.
    fn wake(&self) {
        if self.parked.load(Ordering::SeqCst) > 0 {
            // Taking the lock orders this after a waiter's last look at its condition.
            drop(lock(&self.lock));
            self.woken.notify_all();
        }
    }
}

/// What a region runs on every member.
type Work<'a> = dyn Fn(&Member<'_>) -> Result<(), Stop> + Sync + 'a;

/// A pointer to the region's work, good while the region runs.
#[derive(Clone, Copy)]
struct Job(*const Work<'static>);

// SAFETY: the pointee is `Sync`, and is only reached while `Team::run` keeps it alive.
unsafe impl Send for Job {}

/// State of one process's team.
struct Team {
    pid: u32,
    /// Held by the step that uses the team; counts the workers started (the caller is member 0 and no worker).
    turn: Mutex<usize>,
    /// Number of regions begun; a worker enters when it changes.
    region: AtomicUsize,
    job: Mutex<Option<(Job, usize)>>,
    /// Workers that have not left the running region.
    inside: AtomicUsize,
    meeting: Meeting,
    idle: Waiting,
    done: Waiting,
}

/// The barrier and the flags of the running region.
#[derive(Default)]
struct Meeting {
    arrived: AtomicUsize,
    phase: AtomicUsize,
    /// Every member's claims in this phase and in the next one, by the phase's last bit; none for one member.
    claims: Vec<[Claims; 2]>,
    cancelled: AtomicBool,
    panicked: AtomicBool,
    message: Mutex<Option<String>>,
    waiting: Waiting,
}

impl Meeting {
    /// A meeting of at most so many members.
    fn of(members: usize) -> Self {
        let claims = if members > 1 { members } else { 0 };
        Self { claims: (0..claims).map(|_| Default::default()).collect(), ..Self::default() }
    }

    fn reset(&self, members: usize) {
        self.arrived.store(0, Ordering::SeqCst);
        self.claims[..members].iter().flatten().for_each(Claims::reset);
        self.cancelled.store(false, Ordering::SeqCst);
        self.panicked.store(false, Ordering::SeqCst);
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
        self.panicked.store(true, Ordering::SeqCst);
        self.waiting.wake();
    }

    /// What the region came to.
    fn outcome(&self) -> Result<()> {
        if self.panicked.load(Ordering::SeqCst) {
            let message = lock(&self.message).take().unwrap_or_default();
            return Err(Error::Panicked { message });
        }
        if self.cancelled.load(Ordering::SeqCst) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// One thread's place in a region.
pub struct Member<'a> {
    index: usize,
    count: usize,
    meeting: &'a Meeting,
    cancel: &'a AtomicBool,
    /// Loops over claimed pieces since the last barrier.
    loops: Cell<usize>,
}

impl<'a> Member<'a> {
    fn new(index: usize, count: usize, meeting: &'a Meeting, cancel: &'a AtomicBool) -> Self {
        Self { index, count, meeting, cancel, loops: Cell::new(0) }
    }

    /// Number of this member, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Number of members.
    pub fn count(&self) -> usize {
        self.count
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
    /// behind the next one.
    pub fn pieces(&self, n: usize, least: usize) -> Pieces<'a> {
        let number = self.loops.replace(self.loops.get() + 1);
        let phase = self.meeting.phase.load(Ordering::Relaxed);
        let claims = self.meeting.claims.get(..self.count).unwrap_or_default();
        self.fixed(n).claimed(claims, phase % 2, number, least)
    }

    /// As [`Member::pieces`], the same for the same `n` and count: this member's share in one piece.
    pub fn fixed(&self, n: usize) -> Pieces<'a> {
        Pieces::whole(n, self.index, self.count)
    }

    /// Waits until every member is here; what they wrote before is then visible to all.
    ///
    /// # Errors
    /// [`Stop`] when the step was cancelled or a member panicked; leave the region then.
    pub fn barrier(&self) -> Result<(), Stop> {
        let m = self.meeting;
        let phase = m.phase.load(Ordering::SeqCst);
        self.loops.set(0);
        // The next phase's claims, which nobody reads before all are here.
        if let Some(own) = m.claims.get(self.index) {
            own[phase.wrapping_add(1) % 2].reset();
        }
        if m.arrived.fetch_add(1, Ordering::SeqCst) + 1 == self.count {
            if self.cancel.load(Ordering::Relaxed) {
                m.cancelled.store(true, Ordering::SeqCst);
            }
            m.arrived.store(0, Ordering::SeqCst);
            m.phase.store(phase.wrapping_add(1), Ordering::SeqCst);
            m.waiting.wake();
        } else {
            m.waiting.until(|| m.phase.load(Ordering::SeqCst) != phase || m.panicked.load(Ordering::SeqCst));
        }
        if m.panicked.load(Ordering::SeqCst) || m.cancelled.load(Ordering::SeqCst) {
            Err(Stop)
        } else {
            Ok(())
        }
    }
}

/// Runs `work` on `threads` members at once, the caller being the first, and returns when all have left.
///
/// Fewer members take part where the system refuses a thread; the results of a step do not depend on their number.
///
/// # Errors
/// [`Error::Cancelled`] when `cancel` was set at a barrier, [`Error::Panicked`] when a member panicked.
pub fn run(
    threads: usize,
    cancel: &AtomicBool,
    work: impl Fn(&Member<'_>) -> Result<(), Stop> + Sync,
) -> Result<()> {
    turn(threads).run(cancel, work)
}

/// The caller's turn to run regions of up to so many members; others wait until it is dropped.
pub struct Turn {
    threads: usize,
    /// The team and the number of its workers; nothing where the caller is alone.
    team: Option<(&'static Team, MutexGuard<'static, usize>)>,
}

/// Waits for the caller's turn. A region of one member needs no team, and waits for nobody.
pub fn turn(threads: usize) -> Turn {
    let team = (threads > 1).then(|| {
        let team = Team::current();
        (team, lock(&team.turn))
    });
    Turn { threads: threads.min(MAX_THREADS), team }
}

impl Turn {
    /// As [`run`], in this turn.
    ///
    /// # Errors
    /// As for [`run`].
    pub fn run(
        &mut self,
        cancel: &AtomicBool,
        work: impl Fn(&Member<'_>) -> Result<(), Stop> + Sync,
    ) -> Result<()> {
        match &mut self.team {
            None => {
                let meeting = Meeting::of(1);
                enter(&work, &Member::new(0, 1, &meeting, cancel));
                meeting.outcome()
            }
            Some((team, workers)) => team.run(workers, self.threads, cancel, &work),
        }
    }
}

/// Runs the work and turns a panic into a note for the others.
fn enter(work: &Work<'_>, member: &Member<'_>) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| work(member))) {
        member.meeting.panicked(payload.as_ref());
    }
}

/// The team of the process that made it; a forked child sees its parent's.
static CURRENT: AtomicPtr<Team> = AtomicPtr::new(std::ptr::null_mut());

impl Team {
    /// This process's team, made at the first step.
    fn current() -> &'static Self {
        let pid = std::process::id();
        loop {
            let seen = CURRENT.load(Ordering::Acquire);
            // SAFETY: teams are leaked, so the pointer is null or good for ever.
            if let Some(team) = unsafe { seen.as_ref() }
                && team.pid == pid
            {
                return team;
            }
            // A parent's team is left as it was at the fork: its threads are not here, its locks may be held.
            let fresh = Box::into_raw(Box::new(Self {
                pid,
                turn: Mutex::new(0),
                region: AtomicUsize::new(0),
                job: Mutex::new(None),
                inside: AtomicUsize::new(0),
                meeting: Meeting::of(MAX_THREADS),
                idle: Waiting::default(),
                done: Waiting::default(),
            }));
            if CURRENT.compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
                // SAFETY: nobody else has seen the fresh team.
                drop(unsafe { Box::from_raw(fresh) });
            }
        }
    }

    fn run(
        &'static self,
        workers: &mut usize,
        threads: usize,
        cancel: &AtomicBool,
        work: &Work<'_>,
    ) -> Result<()> {
        while *workers + 1 < threads && self.spawn(*workers + 1) {
            *workers += 1;
        }
        let count = threads.min(*workers + 1);
        let shared = Shared { work, cancel };
        let call = |member: &Member<'_>| -> Result<(), Stop> {
            let member = Member::new(member.index, member.count, member.meeting, shared.cancel);
            (shared.work)(&member)
        };
        let erased: *const Work<'_> = &raw const call;
        // SAFETY: only the lifetime changes; every worker leaves the region before this function returns.
        let job = Job(unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(erased) });
        self.meeting.reset(count);
        self.inside.store(*workers, Ordering::SeqCst);
        *lock(&self.job) = Some((job, count));
        self.region.fetch_add(1, Ordering::SeqCst);
        self.idle.wake();
        enter(&call, &Member::new(0, count, &self.meeting, cancel));
        self.done.until(|| self.inside.load(Ordering::SeqCst) == 0);
        *lock(&self.job) = None;
        self.meeting.outcome()
    }

    /// Starts the worker that is member `index`; false where the system refuses.
    fn spawn(&'static self, index: usize) -> bool {
        let mut seen = self.region.load(Ordering::SeqCst);
        let body = move || loop {
            self.idle.until(|| self.region.load(Ordering::SeqCst) != seen);
            seen = self.region.load(Ordering::SeqCst);
            let job = *lock(&self.job);
            if let Some((job, count)) = job
                && index < count
            {
                // SAFETY: the caller waits in `run` until this worker has left the region.
                let work = unsafe { &*job.0 };
                let cancel = AtomicBool::new(false);
                enter(work, &Member::new(index, count, &self.meeting, &cancel));
            }
            if self.inside.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.done.wake();
            }
        };
        std::thread::Builder::new().name(format!("fastdecode-{index}")).spawn(body).is_ok()
    }
}

/// What a region's call borrows.
struct Shared<'a> {
    work: &'a Work<'a>,
    cancel: &'a AtomicBool,
}

/// Threads that a model takes when none are asked for: cores that the affinity mask and the cgroup quota leave to this
/// process, one per physical core.
pub fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    allowed.min(physical_cores().unwrap_or(allowed)).max(1)
}

/// Distinct physical cores in the affinity mask, where the system tells.
#[cfg(target_os = "linux")]
fn physical_cores() -> Option<usize> {
    // SAFETY: the set is plain memory that the call fills.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return None;
        }
        set
    };
    let mut cores = std::collections::BTreeSet::new();
    for cpu in 0..libc::CPU_SETSIZE.unsigned_abs() as usize {
        // SAFETY: `cpu` is below the size of the set.
        if unsafe { libc::CPU_ISSET(cpu, &set) } {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            cores.insert(std::fs::read_to_string(path).ok()?);
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// Distinct physical cores in the affinity mask, where the system tells.
#[cfg(not(target_os = "linux"))]
fn physical_cores() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::pieces::LOOPS;
    use super::*;

    #[test]
    fn members_meet_and_share_all_pieces() {
        let off = AtomicBool::new(false);
        for threads in [1, 2, 3, 7, 2] {
            for n in [0, 1, 5, 64] {
                let hits: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                let sum = AtomicUsize::new(0);
                run(threads, &off, |m| {
                    for i in m.fixed(n).flatten() {
                        hits[i].fetch_add(1, Ordering::Relaxed);
                    }
                    m.barrier()?;
                    sum.fetch_add(hits.iter().map(|h| h.load(Ordering::Relaxed)).sum(), Ordering::Relaxed);
                    m.barrier()
                })
                .unwrap();
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1), "every piece is done once");
                assert_eq!(sum.load(Ordering::Relaxed), n * threads, "all see all after the barrier");
            }
        }
    }

    #[test]
    fn claimed_pieces_cover_everything_once() {
        let off = AtomicBool::new(false);
        for (threads, n, least) in
            [(1, 7, 4), (2, 0, 4), (2, 3, 4), (3, 64, 1), (3, 1000, 4), (7, 50, 16), (2, 64, 4)]
        {
            // More loops than there are counters, over more phases than there are banks.
            let hits: Vec<Vec<AtomicUsize>> =
                (0..5 * (LOOPS + 2)).map(|_| (0..n).map(|_| AtomicUsize::new(0)).collect()).collect();
            run(threads, &off, |m| {
                for phase in hits.chunks(LOOPS + 2) {
                    for hits in phase {
                        for piece in m.pieces(n, least) {
                            piece.for_each(|i| _ = hits[i].fetch_add(1, Ordering::Relaxed));
                        }
                    }
                    m.barrier()?;
                }
                Ok(())
            })
            .unwrap();
            let once = hits.iter().flatten().all(|h| h.load(Ordering::Relaxed) == 1);
            assert!(once, "{threads} members, {n} pieces of at least {least}");
        }
    }

    #[test]
    fn what_a_late_member_has_not_begun_is_done_by_others() {
        let off = AtomicBool::new(false);
        let (done, late) = (AtomicUsize::new(0), AtomicUsize::new(0));
        run(3, &off, |m| {
            let last = m.index() + 1 == m.count();
            while last && m.count() > 1 && done.load(Ordering::Relaxed) < 90 {
                std::thread::yield_now();
            }
            for piece in m.pieces(90, 1) {
                done.fetch_add(piece.len(), Ordering::Relaxed);
                late.fetch_add(if last { piece.len() } else { 0 }, Ordering::Relaxed);
            }
            m.barrier()
        })
        .unwrap();
        assert_eq!(done.load(Ordering::Relaxed), 90);
        assert!(
            late.load(Ordering::Relaxed) == 0 || late.load(Ordering::Relaxed) == 90,
            "alone, or left nothing"
        );
    }

    #[test]
    fn a_panic_is_an_error_and_leaves_the_team_usable() {
        let off = AtomicBool::new(false);
        for threads in [1, 3] {
            let e = run(threads, &off, |m| {
                m.barrier()?;
                assert!(m.index() + 1 != m.count(), "told to fail");
                m.barrier()
            });
            match e {
                Err(Error::Panicked { message }) => assert!(message.contains("told to fail"), "{message}"),
                other => panic!("expected a panic to be reported, got {other:?}"),
            }
            run(threads, &off, |m| m.barrier()).unwrap();
        }
    }

    #[test]
    fn a_cancelled_step_stops_at_the_next_barrier() {
        let cancel = AtomicBool::new(false);
        let rounds = AtomicUsize::new(0);
        let result = run(2, &cancel, |m| {
            loop {
                m.barrier()?;
                if rounds.fetch_add(1, Ordering::Relaxed) > 10 {
                    cancel.store(true, Ordering::Relaxed);
                }
            }
        });
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        assert!(rounds.load(Ordering::Relaxed) < 20, "it stopped at once");
    }

    #[test]
    fn steps_of_two_callers_take_turns() {
        let off = AtomicBool::new(false);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..200 {
                        run(2, &off, |m| {
                            m.barrier()?;
                            m.barrier()
                        })
                        .unwrap();
                    }
                });
            }
        });
    }
}
