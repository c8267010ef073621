//! The schedule among threads: who leads, who waits, what ends a wait or a step, and what a forked child goes on with.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

use fastdecode::Error;
use fastdecode::engine::{Engine, Generation};

use crate::fake::{Begins, FakeModel};
use crate::schedule::{
    Rows, advanced, alone, begin, engine, fake, greedy, limits, live, prompts, rest, sampled, steps, taken,
    within_minutes,
};

/// The other side of a model whose steps wait until they are let go. Without it they run.
struct Gate {
    /// The threads whose steps have begun.
    begun: Receiver<ThreadId>,
    go: Sender<()>,
}

impl Gate {
    fn new() -> (Begins, Self) {
        let ((begins, begun), (go, going)) = (channel(), channel());
        let going = Mutex::new(going);
        let wait = move |cancel: &fastdecode::models::Cancel<'_>| {
            let _ = begins.send(std::thread::current().id());
            let going: std::sync::MutexGuard<'_, Receiver<()>> = going.lock().expect("not poisoned");
            loop {
                match going.recv_timeout(Duration::from_millis(1)) {
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                    Err(RecvTimeoutError::Timeout) if cancel.ask() => return Err(Error::Cancelled),
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
        };
        (Begins(Some(Box::new(wait))), Self { begun, go })
    }

    /// Waits for a step to begin; the thread that leads it.
    fn leader(&self) -> ThreadId {
        self.begun.recv().expect("the model lives")
    }

    fn let_go(&self) {
        self.go.send(()).expect("the model lives");
    }
}

fn gated(max_rows: usize) -> (Arc<Engine<FakeModel>>, Gate) {
    let (begins, gate) = Gate::new();
    (engine(FakeModel { begins, limits: limits(max_rows, usize::MAX), ..fake() }), gate)
}

/// A hook that tells when it is asked, which it is where its caller waits, and never ends anything.
fn telling() -> (impl Fn() -> bool + Sync, Receiver<()>) {
    let (tell, told) = channel();
    let hook = move || {
        let _ = tell.send(());
        false
    };
    (hook, told)
}

#[test]
fn who_waits_leads_one_step_and_then_who_has_waited_longest() {
    within_minutes(|| {
        let (engine, gate) = gated(64);
        let mut calls = [3, 4, 5].map(|length| begin(&engine, &prompts(&[length]), greedy(5)));
        let [one, two, three] = &mut calls;
        let (hook_of_two, two_waits) = telling();
        // The third one stays in its hook until it is let go: who comes out of a hook between two steps may lead at once.
        let ((tell, three_waits), (release, released)) = (channel(), channel::<()>());
        let released = Mutex::new(released);
        let hook_of_three = move || {
            let _ = tell.send(());
            let _ = released.lock().expect("not poisoned").recv();
            false
        };
        std::thread::scope(|scope| {
            let first = scope.spawn(|| advanced(one));
            assert_eq!(gate.leader(), first.thread().id());
            let advance = |call: &mut Generation<FakeModel>, hook: &(dyn Fn() -> bool + Sync)| {
                call.advance(Some(hook)).expect("sound").expect("it is not done").len()
            };
            let second = scope.spawn(move || advance(two, &hook_of_two));
            two_waits.recv().expect("the second one waits");
            let third = scope.spawn(move || advance(three, &hook_of_three));
            three_waits.recv().expect("the third one waits, too");
            // Who asks its hook now and then does not lose its place.
            while two_waits.try_recv().is_ok() {}
            (0..2).for_each(|_| two_waits.recv().expect("the second one still waits"));
            gate.let_go();
            assert_eq!(first.join().expect("no panic"), 1, "it returns with its own token");
            assert_eq!(gate.leader(), second.thread().id(), "and the one that has waited longest leads");
            drop(release);
            gate.let_go();
            assert_eq!((second.join().expect("no panic"), third.join().expect("no panic")), (1, 1));
        });
        assert_eq!(steps(&engine).len(), 2, "nobody waits any more");
        assert_eq!(taken(&mut calls[0]), 1, "the second step was for all");
    });
}

#[test]
fn who_waits_gets_the_tokens_of_a_step_that_another_one_leads() {
    within_minutes(|| {
        let (engine, gate) = gated(64);
        let (mut one, mut two) =
            (begin(&engine, &prompts(&[3]), greedy(5)), begin(&engine, &prompts(&[4]), greedy(5)));
        assert_eq!(taken(&mut two), 0);
        let (hook, waits) = telling();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| advanced(&mut one));
            gate.leader();
            let second =
                scope.spawn(|| two.advance(Some(&hook)).expect("sound").expect("it is not done").len());
            // Somebody who looks after several calls waits for the end of the step, whatever it brings.
            let (hook, looks_on) = telling();
            let engine = &engine;
            let onlooker = scope.spawn(move || engine.step(Some(&hook)).is_ok());
            waits.recv().expect("the second one waits");
            looks_on.recv().expect("the third one waits");
            gate.let_go();
            assert_eq!((first.join().expect("no panic"), second.join().expect("no panic")), (1, 1));
            assert!(onlooker.join().expect("no panic"));
        });
        assert_eq!(steps(&engine).len(), 1);
    });
}

#[test]
fn a_cancelled_call_returns_at_once_and_its_cache_is_free_when_the_step_ends() {
    within_minutes(|| {
        let (engine, gate) = gated(64);
        let mut one = begin(&engine, &prompts(&[3]), greedy(5));
        let mut two = begin(&engine, &prompts(&[4]), greedy(5));
        let mut three = begin(&engine, &prompts(&[5]), greedy(5));
        assert_eq!((taken(&mut two), taken(&mut three)), (0, 0));
        let canceller = two.canceller();
        let ((tell, told), (hook, waits)) = (channel(), telling());
        std::thread::scope(|scope| {
            let first = scope.spawn(|| advanced(&mut one));
            gate.leader();
            let second = scope.spawn(move || {
                tell.send(()).expect("the test waits");
                let waited = matches!(two.advance(None), Err(Error::Cancelled));
                waited && matches!(two.advance(None), Err(Error::Cancelled)) && two.take().is_err()
            });
            told.recv().expect("the second one is about to wait");
            let third = scope.spawn(|| three.advance(Some(&hook)).expect("sound").map_or(0, <[_]>::len));
            // The third one's hook is asked when it has waited for a while; the second one, which has none, has done so for longer.
            waits.recv().expect("the third one waits");
            assert_eq!(live(&engine), 3);
            canceller.cancel();
            assert!(second.join().expect("no panic"), "in the middle of the step");
            assert_eq!(live(&engine), 3, "which has its cache");
            gate.let_go();
            assert_eq!((first.join().expect("no panic"), third.join().expect("no panic")), (1, 1));
        });
        assert_eq!(live(&engine), 2);
        drop(gate);
        assert_eq!(rest(&mut one).0[0].0, alone(&prompts(&[3]), greedy(5)).0[0].0[1..]);
    });
}

#[test]
fn a_step_is_abandoned_where_all_of_its_calls_are_cancelled_or_dropped() {
    within_minutes(|| {
        let (engine, gate) = gated(64);
        let mut one = begin(&engine, &prompts(&[3]), greedy(5));
        let two = &mut Some(begin(&engine, &prompts(&[4]), greedy(5)));
        assert_eq!(two.as_mut().map(taken), Some(0));
        let canceller = one.canceller();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| matches!(one.advance(None), Err(Error::Cancelled)));
            gate.leader();
            canceller.cancel();
            assert_eq!(live(&engine), 2, "the step goes on for the other call");
            drop(two.take());
            assert!(first.join().expect("no panic"), "nobody has let it go");
        });
        assert!(steps(&engine).is_empty() && live(&engine) == 0);
        drop(gate);
        let mut fresh = begin(&engine, &prompts(&[5]), greedy(5));
        assert_eq!(rest(&mut fresh), alone(&prompts(&[5]), greedy(5)));
    });
}

#[test]
fn a_hook_of_the_leader_abandons_the_step_and_everybody_repeats_it() {
    within_minutes(|| {
        let (engine, gate) = gated(64);
        let mut one = begin(&engine, &prompts(&[3]), greedy(9));
        let mut two = begin(&engine, &prompts(&[4, 5]), sampled(9, 3));
        let mut rows = Rows::of(&two);
        for tokens in 0..4 {
            (0..tokens).for_each(|_| gate.let_go());
            for _ in 0..tokens {
                assert_eq!(advanced(&mut one), 1);
            }
            rows.add(two.take().expect("sound").expect("it is not done"));
            assert!(matches!(one.advance(Some(&|| true)), Err(Error::Cancelled)));
            assert_eq!(taken(&mut two), 0, "nothing came of it");
        }
        assert_eq!(steps(&engine).len(), 1 + 2 + 3);
        drop(gate);
        assert_eq!(rest(&mut one).0[0].0, alone(&prompts(&[3]), greedy(9)).0[0].0[6..]);
        rows.read_all(&mut two).expect("sound");
        assert_eq!(rows, alone(&prompts(&[4, 5]), sampled(9, 3)));
    });
}

#[test]
fn a_hook_ends_a_wait_and_the_call_goes_on_later() {
    within_minutes(|| {
        let (engine, gate) = gated(64);
        let (mut one, mut two) =
            (begin(&engine, &prompts(&[3]), greedy(5)), begin(&engine, &prompts(&[4]), greedy(5)));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| advanced(&mut one));
            gate.leader();
            assert!(matches!(two.advance(Some(&|| true)), Err(Error::Cancelled)));
            assert!(matches!(engine.step(Some(&|| true)), Err(Error::Cancelled)));
            gate.let_go();
            assert_eq!(first.join().expect("no panic"), 1);
        });
        assert_eq!(steps(&engine).len(), 1, "it does not count as one that waits");
        drop(gate);
        assert_eq!(rest(&mut two), alone(&prompts(&[4]), greedy(5)));
    });
}

#[test]
fn a_hook_generates_in_the_middle_of_a_step_of_its_own_thread() {
    within_minutes(|| {
        // The third step asks its hook, which asks for a call of its own and another one that is not in the step.
        let (begun, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let begins = {
            let (begun, asked) = (Arc::clone(&begun), Arc::clone(&asked));
            Begins(Some(Box::new(move |cancel| {
                if begun.fetch_add(1, Ordering::SeqCst) == 2 {
                    while !asked.load(Ordering::SeqCst) {
                        assert!(!cancel.ask(), "the hook ends nothing");
                    }
                }
                Ok(())
            })))
        };
        let engine = engine(FakeModel { begins, limits: limits(3, usize::MAX), ..fake() });
        let mut outer = begin(&engine, &prompts(&[3, 6]), greedy(9));
        let beside = Mutex::new(begin(&engine, &prompts(&[4]), greedy(5)));
        let come = Mutex::new(Vec::new());
        let hook = || {
            if !asked.load(Ordering::SeqCst) {
                let mut beside = beside.lock().expect("nobody else has it");
                assert_eq!(taken(&mut beside), 0, "it joins");
                let mut inner = begin(&engine, &prompts(&[5]), greedy(6));
                come.lock().expect("nobody else has it").extend([rest(&mut inner), rest(&mut beside)]);
                asked.store(true, Ordering::SeqCst);
            }
            false
        };
        let mut rows = Rows::of(&outer);
        while let Some(events) = outer.advance(Some(&hook)).expect("sound") {
            rows.add(events);
        }
        assert_eq!(rows, alone(&prompts(&[3, 6]), greedy(9)));
        let expected = [alone(&prompts(&[5]), greedy(6)), alone(&prompts(&[4]), greedy(5))];
        assert_eq!(come.into_inner().expect("nobody else has it"), expected);
        assert_eq!(begun.load(Ordering::SeqCst), 9 + 6, "the inner calls ran side by side");
        drop(beside);
        assert_eq!(live(&engine), 0);
    });
}

/// Forks, runs `work` in the child, and gives what it returned there; 99 for a panic.
#[cfg(unix)]
fn in_a_child(work: impl FnOnce() -> u8) -> u8 {
    // SAFETY: the child has the calling thread alone. It allocates, which the C libraries of today keep usable there, takes no lock
    // that another thread may have held, and leaves without running anything else.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "the system forks");
    if child == 0 {
        // SAFETY: a child that hangs is ended by the system, and counts as failed.
        unsafe { libc::alarm(60) };
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(99);
        // SAFETY: ends this process without running anything else.
        unsafe { libc::_exit(i32::from(code)) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child, "the child was waited for");
    assert!(libc::WIFEXITED(status), "the child ended by itself: {status}");
    libc::WEXITSTATUS(status) as u8
}

/// An engine in whose steps one thread of this process stops, until it is let go.
#[cfg(unix)]
fn stops_for(thread: &'static str, max_rows: usize) -> (Arc<Engine<FakeModel>>, Gate) {
    let (Begins(wait), gate) = Gate::new();
    let (wait, parent) = (wait.expect("a gate"), std::process::id());
    let begins = move |cancel: &fastdecode::models::Cancel<'_>| {
        let stops = std::thread::current().name() == Some(thread) && std::process::id() == parent;
        if stops { wait(cancel) } else { Ok(()) }
    };
    (
        engine(FakeModel {
            begins: Begins(Some(Box::new(begins))),
            limits: limits(max_rows, usize::MAX),
            ..fake()
        }),
        gate,
    )
}

#[cfg(unix)]
#[test]
fn a_forked_child_goes_on_with_what_its_own_thread_had_open() {
    within_minutes(|| {
        use fastdecode::engine::{Options, Seed};
        let (engine, gate) = stops_for("another", 5);
        let several = |options| Options { num_return_sequences: 3, ..options };
        let cases = [
            (vec![3, 40, 5, 6], greedy(12)),
            (vec![3, 4], several(sampled(12, 1))),
            (vec![3, 4], Options { seed: Seed::PerPrompt(vec![8, 9]), ..several(sampled(12, 0)) }),
            (vec![5; 3], Options { num_beams: 4, ..several(sampled(9, 2)) }),
            (vec![5; 9], Options { eos_token_ids: (0..8).collect(), ..sampled(9, 2) }),
        ];
        for reads in [0, 1, 4, 9, 14] {
            let mut calls: Vec<_> = cases
                .iter()
                .map(|(lengths, options)| begin(&engine, &prompts(lengths), options.clone()))
                .collect();
            let mut rows: Vec<_> = calls.iter().map(Rows::of).collect();
            for _ in 0..reads {
                for (call, rows) in calls.iter_mut().zip(&mut rows) {
                    rows.add(call.advance(None).expect("sound").unwrap_or_default());
                }
            }
            let expected: Vec<_> =
                cases.iter().map(|(lengths, options)| alone(&prompts(lengths), options.clone())).collect();
            let mut others = begin(&engine, &prompts(&[7]), greedy(20));
            std::thread::scope(|scope| {
                let other = std::thread::Builder::new().name("another".to_owned());
                let other = other.spawn_scoped(scope, || advanced(&mut others)).expect("a thread");
                gate.leader();
                let code = in_a_child(|| {
                    for (place, (call, rows)) in calls.iter_mut().zip(&mut rows).enumerate() {
                        let read = rows.read_all(call);
                        if read.is_err() || *rows != expected[place] {
                            return place as u8 + 1;
                        }
                    }
                    0
                });
                assert_eq!(code, 0, "the number of the call that differs, after {reads} reads");
                gate.let_go();
                other.join().expect("no panic");
            });
            for (place, (call, rows)) in calls.iter_mut().zip(&mut rows).enumerate() {
                rows.read_all(call).expect("sound");
                assert_eq!(*rows, expected[place], "in the parent");
            }
        }
    });
}

#[cfg(unix)]
#[test]
fn a_forked_child_finishes_and_cancels_as_its_parent_does() {
    within_minutes(|| {
        let engine = engine(FakeModel { limits: limits(3, usize::MAX), ..fake() });
        let mut list = begin(&engine, &prompts(&[3, 4, 5]), greedy(9));
        let mut rows = Rows::of(&list);
        for _ in 0..4 {
            rows.add(list.advance(None).expect("sound").expect("it is not done"));
        }
        let whole = alone(&prompts(&[3, 4, 5]), greedy(9));
        let read = |list: &mut Generation<FakeModel>, rows: &mut Rows| rows.read_all(list).is_ok();
        let is_right = |rows: &Rows, finished: usize| {
            let rows = rows.0.iter().zip(&whole.0).enumerate();
            rows.clone()
                .all(|(row, (got, all))| if row == finished { got.0 == all.0[..4] } else { got == all })
        };
        // Before the call has joined there.
        let code = in_a_child(|| {
            list.finish(2).expect("there is one");
            u8::from(read(&mut list, &mut rows) && is_right(&rows, 2))
        });
        assert_eq!(code, 1, "it ends without the row");
        // When it has joined, and the row waits for two others to end: of the first prompts, and the last one.
        for finished in 0..3 {
            let code = in_a_child(|| {
                let mut other = begin(&engine, &prompts(&[6, 7]), greedy(9));
                assert_eq!(advanced(&mut other), 2);
                assert_eq!((taken(&mut list), advanced(&mut other)), (0, 2));
                list.finish(finished).expect("there is one");
                u8::from(read(&mut list, &mut rows) && is_right(&rows, finished))
            });
            assert_eq!(code, 1, "it ends without row {finished}");
        }
        let code = in_a_child(|| {
            list.canceller().cancel();
            u8::from(matches!(list.advance(None), Err(Error::Cancelled)))
        });
        assert_eq!(code, 1);
        rows.read_all(&mut list).expect("sound");
        assert_eq!(rows, whole, "in the parent");
    });
}
