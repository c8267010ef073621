//! The threads: one persistent team per process that enters a region once per step and meets at barriers.
//!
//! A step holds the team, never a whole generation. A region of so many members wakes and awaits their threads alone; those that
//! a wider region started sleep on. A forked child finds the team of another process and starts its own; the parent's is left
//! behind. This room knows cgroup quotas and affinity, and no models.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::error::Result;
use crate::forks::PerProcess;

pub use cancel::Cancel;
pub use cores::default_threads;
use meeting::{Meeting, Work};
pub use meeting::{Member, Stop};
pub use pieces::{Pieces, share};
use queue::Held;
pub use queue::{Queue, here};
use waiting::Waiting;

mod cancel;
mod cores;
mod meeting;
mod pieces;
mod queue;
mod waiting;

/// More members than this are never started.
const MAX_THREADS: usize = 256;

/// What the workers of a region are told; it lies on the caller's stack while the region runs.
struct Call<'a> {
    work: &'a Work<'a>,
    count: usize,
    cancel: &'a Cancel<'a>,
}

/// Where a worker waits for its next region. A line of its own, since a waiting worker looks at it all the time.
#[derive(Default)]
#[repr(align(64))]
struct Desk {
    /// The call that the worker is to enter; null while there is none.
    call: AtomicPtr<Call<'static>>,
    waiting: Waiting,
    /// How often the worker stopped waiting.
    #[cfg(test)]
    woken: AtomicUsize,
}

/// State of one process's team.
struct Team {
    /// For the step that uses the team.
    queue: Queue,
    /// Workers started (the caller is member 0 and no worker); changed by whoever has the turn.
    workers: AtomicUsize,
    /// By member; the caller's is not used.
    desks: Vec<Desk>,
    /// Workers that have not left the running region.
    inside: AtomicUsize,
    meeting: Meeting,
    done: Waiting,
}

/// Runs `work` on `threads` members at once, the caller being the first, and returns when all have left.
///
/// Fewer members take part where the system refuses a thread; the results of a step do not depend on their number.
///
/// # Errors
/// `Cancelled` when `cancel` was set at a barrier, a member saw it between barriers, or the caller while it waited for its turn; `Panicked` when a member panicked.
pub fn run(
    threads: usize,
    cancel: &Cancel<'_>,
    work: impl Fn(&Member<'_>) -> Result<(), Stop> + Sync,
) -> Result<()> {
    turn(threads, cancel)?.run(cancel, work)
}

/// The caller's turn to run regions of up to so many members; others wait until it is dropped.
pub struct Turn {
    threads: usize,
    /// The team; nothing where the caller is alone.
    team: Option<(&'static Team, Held<'static>)>,
}

/// Waits for the caller's turn: first come, first served. A region of one member needs no team, and waits for nobody. Neither does
/// a thread that has a turn or waits for one, whose hook begins another step: that step's regions have one member.
///
/// # Errors
/// `Cancelled` when `cancel` was set while the caller waited.
pub fn turn(threads: usize, cancel: &Cancel<'_>) -> Result<Turn> {
    if threads > 1 { CURRENT.get(Team::new).turn(threads, cancel) } else { Ok(Turn { threads, team: None }) }
}

impl Turn {
    /// As [`run`], in this turn.
    ///
    /// # Errors
    /// As for [`run`].
    pub fn run(
        &mut self,
        cancel: &Cancel<'_>,
        work: impl Fn(&Member<'_>) -> Result<(), Stop> + Sync,
    ) -> Result<()> {
        match &mut self.team {
            None => {
                let meeting = Meeting::of(1);
                Member::new(0, 1, &meeting, cancel).enter(&work);
                meeting.outcome()
            }
            Some((team, _)) => team.run(self.threads, cancel, &work),
        }
    }
}

/// The team of this process. It is never dropped, since its threads do not end.
static CURRENT: PerProcess<Team> = PerProcess::new();

impl Team {
    /// A team without workers.
    fn new() -> Self {
        Self {
            queue: Queue::default(),
            workers: AtomicUsize::new(0),
            desks: (0..MAX_THREADS).map(|_| Desk::default()).collect(),
            inside: AtomicUsize::new(0),
            meeting: Meeting::of(MAX_THREADS),
            done: Waiting::default(),
        }
    }

    fn turn(&'static self, threads: usize, cancel: &Cancel<'_>) -> Result<Turn> {
        let held = self.queue.take(cancel)?;
        Ok(Turn { threads: threads.min(MAX_THREADS), team: held.map(|held| (self, held)) })
    }

    /// For whoever has the turn.
    fn run(&'static self, threads: usize, cancel: &Cancel<'_>, work: &Work<'_>) -> Result<()> {
        let mut workers = self.workers.load(Ordering::Relaxed);
        while workers + 1 < threads && self.spawn(workers + 1) {
            workers += 1;
        }
        self.workers.store(workers, Ordering::Relaxed);
        let count = threads.min(workers + 1);
        self.meeting.reset(count);
        self.inside.store(count - 1, Ordering::SeqCst);
        let call = Call { work, count, cancel };
        // The workers forget the lifetime; they are out of the region before this function returns.
        let told = (&raw const call).cast::<Call<'static>>().cast_mut();
        let desks = &self.desks[1..count];
        // Those that are awake begin before the first one is woken, which takes a system call.
        desks.iter().for_each(|desk| desk.call.store(told, Ordering::SeqCst));
        desks.iter().for_each(|desk| desk.waiting.wake());
        let first = Member::new(0, count, &self.meeting, cancel);
        first.enter(work);
        let empty = || self.inside.load(Ordering::SeqCst) == 0;
        first.wait(&self.done, empty);
        // Whatever happened above: nobody leaves before the workers have.
        self.done.until(empty);
        self.meeting.outcome()
    }

    /// Starts the worker that is member `index`; false where the system refuses.
    fn spawn(&'static self, index: usize) -> bool {
        let desk = &self.desks[index];
        let body = move || loop {
            desk.waiting.until(|| !desk.call.load(Ordering::SeqCst).is_null());
            #[cfg(test)]
            desk.woken.fetch_add(1, Ordering::SeqCst);
            let told = desk.call.swap(null_mut(), Ordering::SeqCst);
            // SAFETY: the pointer is not null, and its call stays where it is until this worker has left the region.
            let call = unsafe { &*told };
            Member::new(index, call.count, &self.meeting, call.cancel).enter(call.work);
            if self.inside.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.done.wake();
            }
        };
        std::thread::Builder::new().name(format!("fastdecode-{index}")).spawn(body).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use super::pieces::LOOPS;
    use super::waiting::lock;
    use super::*;
    use crate::error::Error;

    #[test]
    fn members_meet_and_share_all_pieces() {
        let off = Cancel::never();
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
        let off = Cancel::never();
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
        let off = Cancel::never();
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
        let off = Cancel::never();
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
        let result = run(2, &Cancel::new(&cancel), |m| {
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
        let off = Cancel::never();
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

    #[test]
    fn two_loops_of_steps_alternate() {
        let (off, team): (_, &'static Team) = (Cancel::never(), Box::leak(Box::new(Team::new())));
        let (steps, ended) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        std::thread::scope(|s| {
            for number in 0..2 {
                let (off, steps, ended) = (&off, &steps, &ended);
                s.spawn(move || {
                    for _ in 0..100 {
                        let mut turn = team.turn(2, off).unwrap();
                        turn.run(off, |m| {
                            // A step that lasts until the other loop waits for its next one.
                            while team.queue.waiting() == 0 && !ended.load(Ordering::SeqCst) {
                                std::thread::yield_now();
                            }
                            m.barrier()
                        })
                        .unwrap();
                        lock(steps).push(number);
                    }
                    ended.store(true, Ordering::SeqCst);
                });
            }
        });
        let steps = steps.into_inner().unwrap();
        let repeated = steps.windows(2).position(|pair| pair[0] == pair[1]).unwrap_or(steps.len());
        assert!(repeated >= 198, "a loop goes twice after {repeated} steps");
    }

    #[test]
    fn the_hook_of_a_step_is_asked_by_its_first_member_wherever_it_is() {
        for threads in [1, 3] {
            for place in 0..4 {
                let here = std::thread::current().id();
                let hook = || {
                    assert_eq!(std::thread::current().id(), here, "asked by the thread that began the step");
                    true
                };
                let cancel = Cancel::never().asking(&hook);
                let result = run(threads, &cancel, |m| {
                    let first = m.index() == 0;
                    match place {
                        0 => loop {
                            m.barrier()?;
                        },
                        1 => while !m.cancelled() {},
                        2 => while m.pieces(1 << 20, 1).next().is_some() {},
                        // The first member waits for the others, at a barrier or at the region's end.
                        _ if !first || m.count() == 1 => while !m.cancelled() {},
                        _ => {}
                    }
                    if place == 3 { Ok(()) } else { m.barrier() }
                });
                assert!(matches!(result, Err(Error::Cancelled)), "{threads} members, {place}: {result:?}");
            }
            let first_waits = run(threads, &Cancel::never().asking(&|| true), |m| {
                while (m.index() > 0 || m.count() == 1) && !m.cancelled() {}
                m.barrier()
            });
            assert!(matches!(first_waits, Err(Error::Cancelled)), "{threads} members: {first_waits:?}");
        }
    }

    #[test]
    fn a_hook_that_panics_or_computes_leaves_the_team_usable() {
        for threads in [1, 3] {
            let fails = || panic!("told to fail");
            let cancel = Cancel::never().asking(&fails);
            let result = run(threads, &cancel, |m| {
                while (m.index() > 0 || m.count() == 1) && !m.cancelled() {}
                Ok(())
            });
            assert!(matches!(result, Err(Error::Panicked { .. })), "{threads} members: {result:?}");
            let members = AtomicUsize::new(0);
            let computes = || {
                run(threads, &Cancel::never(), |m| {
                    members.fetch_add(m.count(), Ordering::SeqCst);
                    m.barrier()
                })
                .unwrap();
                true
            };
            let cancel = Cancel::never().asking(&computes);
            let result = run(threads, &cancel, |m| {
                loop {
                    m.barrier()?;
                }
            });
            assert!(matches!(result, Err(Error::Cancelled)), "{threads} members: {result:?}");
            assert_eq!(members.into_inner(), 1, "the step within is its thread's alone");
        }
    }

    #[test]
    fn a_narrow_region_lets_the_workers_of_a_wide_one_sleep() {
        let (off, team): (_, &'static Team) = (Cancel::never(), Box::leak(Box::new(Team::new())));
        let woken = |index: usize| team.desks[index].woken.load(Ordering::SeqCst);
        let meet = |threads| {
            let count = AtomicUsize::new(0);
            team.turn(threads, &off)
                .unwrap()
                .run(&off, |m: &Member<'_>| {
                    count.store(m.count(), Ordering::Relaxed);
                    m.barrier()
                })
                .unwrap();
            assert_eq!(count.into_inner(), threads, "the system starts a few threads");
        };
        meet(6);
        (0..50).for_each(|_| meet(2));
        (0..3).for_each(|_| meet(3));
        let counts: Vec<usize> = (1..6).map(woken).collect();
        assert_eq!(counts, [54, 4, 1, 1, 1], "regions entered by each worker");
    }

    #[test]
    fn a_cancelled_loop_ends_without_a_barrier() {
        for threads in [1, 3] {
            let (cancel, after) = (AtomicBool::new(false), AtomicUsize::new(0));
            let result = run(threads, &Cancel::new(&cancel), |m| {
                assert!(!m.cancelled() || m.index() > 0, "nobody cancelled yet");
                if m.index() == 0 {
                    for piece in m.pieces(1 << 20, 1) {
                        after.fetch_add(usize::from(cancel.load(Ordering::Relaxed)), Ordering::Relaxed);
                        cancel.store(!piece.is_empty(), Ordering::Relaxed);
                    }
                }
                // Everyone goes on when the flag is set; no loop gives out a piece then.
                while !m.cancelled() {
                    std::thread::yield_now();
                }
                for _ in 0..1000 {
                    let given = m.pieces(1 << 20, 1).chain(m.fixed(1 << 20)).count();
                    after.fetch_add(given, Ordering::Relaxed);
                }
                Ok(())
            });
            assert!(matches!(result, Err(Error::Cancelled)), "{threads} members: {result:?}");
            assert_eq!(after.into_inner(), 0, "pieces after the flag was set, {threads} members");
            run(threads, &Cancel::never(), |m| m.barrier()).unwrap();
        }
    }

    #[test]
    fn who_leaves_a_loop_early_takes_all_out_at_the_next_barrier() {
        for round in 0..200 {
            let (cancel, stopped, passed) =
                (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
            let result = run(4, &Cancel::new(&cancel), |m| {
                m.barrier()?;
                passed.fetch_add(1, Ordering::SeqCst);
                if m.index() == round % m.count() {
                    cancel.store(true, Ordering::Relaxed);
                    assert!(m.cancelled(), "the flag is seen");
                    // Even if someone took the flag back, the loop was left.
                    cancel.store(false, Ordering::Relaxed);
                }
                let last = m.barrier();
                stopped.fetch_add(usize::from(last == Err(Stop)), Ordering::SeqCst);
                last
            });
            assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
            assert_eq!(
                stopped.into_inner(),
                passed.into_inner(),
                "all that passed the first one stop at the second"
            );
        }
    }

    #[test]
    fn a_loop_ends_when_another_member_panics() {
        let result = run(3, &Cancel::never(), |m| {
            assert!(m.index() + 1 != m.count(), "told to fail");
            while !m.cancelled() {
                std::thread::yield_now();
            }
            Ok(())
        });
        assert!(matches!(result, Err(Error::Panicked { .. })), "{result:?}");
    }
}
