//! The pool under what its callers may do in any order: memory follows what is handed out.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};

use super::*;
use crate::arena::{HUGE, page};

/// A pool whose blocks take 2 KB for every `heads` and two dimensions of a head.
fn pool(heads: usize, head_dim: usize, reserve: usize) -> Arc<Pool> {
    Pool::with_reserve(Shape { layers: 1, heads, head_dim, bf16: false }, reserve, None)
}

/// Bytes of the pool's slabs that are in memory as the system says, and the number of slabs.
#[cfg(target_os = "linux")]
fn resident(pool: &Pool) -> (usize, usize) {
    let slabs = pool.lock();
    let mappings: Vec<(*mut u8, usize)> = slabs.slabs.iter().flatten().map(Slab::extent).collect();
    let bytes = mappings.iter().map(|&(at, len)| {
        let mut pages = vec![0u8; len / page()];
        // SAFETY: the mapping is alive while the pool is locked, and there is a byte for each of its pages.
        let outcome = unsafe { libc::mincore(at.cast(), len, pages.as_mut_ptr()) };
        assert_eq!(outcome, 0, "the pages are mapped");
        pages.iter().filter(|page| **page & 1 == 1).count() * page()
    });
    (bytes.sum(), mappings.len())
}

#[cfg(not(target_os = "linux"))]
fn resident(pool: &Pool) -> (usize, usize) {
    (0, pool.lock().slabs.iter().flatten().count())
}

/// What must hold at any time: the sums are those of the slabs, and memory follows what is handed out.
fn check(pool: &Pool, live: usize) {
    let (resident, slabs) = resident(pool);
    let (held, sizes) = (pool.held_bytes(), pool.sizes.unwrap());
    assert_eq!(pool.live_bytes(), live * pool.shape.block_bytes(), "blocks handed out");
    assert_eq!(pool.open_bytes(), pool.live_bytes(), "all of them on nobody's account");
    assert!(resident <= held, "{resident} bytes are resident where the pool says {held}");
    let counts = pool.lock().counts;
    let mut sum = Counts::default();
    for slab in pool.lock().slabs.iter().flatten() {
        slab.check();
        sum.replace(Counts::default(), slab.counts);
    }
    assert_eq!(counts, sum, "sums over the slabs");
    if cfg!(target_os = "linux") {
        // A slab that was just begun is counted by huge pages.
        let idle = pool.reserve.max(sizes.chunk.next_multiple_of(HUGE) + HUGE);
        assert!(counts.idle <= idle, "{} idle bytes", counts.idle);
        // A chunk stays for one block of it, and a slab's last chunk fills up its huge page.
        let tail = sizes.slab().unwrap() - sizes.chunks * sizes.chunk;
        let used = live * sizes.chunk + live.min(slabs) * tail;
        assert!(held <= used + idle, "{held} bytes are held for {live} blocks");
    }
}

#[test]
fn memory_comes_back_whatever_stays_alive() {
    // As four layers of 128 dimensions: 64 KB.
    let pool = pool(4, 128, RESERVE);
    assert_eq!(pool.shape().block_bytes(), 64 << 10, "bytes of a block");
    let sequence = || (0..13).map(|_| pool.block(Account::Open).unwrap()).collect::<Vec<_>>();
    let mut kept = Vec::new();
    for round in 0..4 {
        let mut all: Vec<_> = (0..300).map(|_| sequence()).collect();
        let mut number = 0;
        all.retain(|_| {
            number += 1;
            (number + round) % 37 == 0
        });
        kept.extend(all);
        let (live, held) = (pool.live_bytes(), pool.held_bytes());
        assert_eq!(live, (kept.len() * 13) << 16, "what is kept is live");
        assert!(held <= live + RESERVE, "{held} bytes are held for {live} after round {round}");
        check(&pool, kept.len() * 13);
    }
    drop(kept);
    assert_eq!(pool.live_bytes(), 0, "nothing is live");
    assert!(pool.held_bytes() <= RESERVE, "{} bytes are held for nothing", pool.held_bytes());
    check(&pool, 0);
    assert!(resident(&pool).1 <= RESERVE / (8 << 20), "free slabs go back with their addresses");
}

#[test]
fn blocks_are_handed_out_from_the_fullest_slab_lowest_first() {
    let pool = pool(4, 128, RESERVE);
    let mut blocks: Vec<_> = (0..3 * 128).map(|_| pool.block(Account::Open).unwrap()).collect();
    let place = |block: &Block| block.place;
    assert_eq!(place(&blocks[0]), (0, 0), "the first");
    assert_eq!(place(&blocks[383]), (2, 127), "the last of three slabs");
    // Of the second slab two are free, of the first one three.
    for i in [130, 131, 1, 2, 3] {
        blocks[i] = Arc::clone(&blocks[0]);
    }
    let again: Vec<_> = (0..5).map(|_| pool.block(Account::Open).unwrap()).collect();
    let places: Vec<_> = again.iter().map(|block| place(block)).collect();
    assert_eq!(places, [(1, 2), (1, 3), (0, 1), (0, 2), (0, 3)]);
}

#[test]
fn blocks_are_zeroed_and_refusals_are_errors() {
    let pool = pool(1, 3, RESERVE);
    let bytes = pool.shape().block_bytes();
    for _ in 0..3 {
        let blocks: Vec<_> = (0..5).map(|_| pool.block(Account::Open).unwrap()).collect();
        for block in &blocks {
            // SAFETY: the block is ours.
            unsafe {
                assert!((0..bytes).all(|i| *block.at().add(i) == 0), "zeroed");
                block.at().write_bytes(0xff, bytes);
            }
        }
    }
    let huge = Pool::new(Shape { layers: 1 << 20, heads: 1 << 10, head_dim: 1 << 10, bf16: false });
    assert!(matches!(huge.block(Account::Open), Err(Error::OutOfMemory { .. })), "2^47 bytes");
    assert!(matches!(pool.probe(1 << 50), Err(Error::OutOfMemory { .. })), "2^50 blocks");
    let counted = (huge.live_bytes(), huge.open_bytes(), huge.held_bytes());
    assert_eq!(counted, (0, 0, 0), "nothing came of it");
}

#[test]
fn no_block_is_lost_by_contention() {
    let pool = pool(1, 3, 1 << 20);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..300 {
                    drop((0..round % 17).map(|_| pool.block(Account::Open).unwrap()).collect::<Vec<_>>());
                }
            });
        }
    });
    assert_eq!(pool.live_bytes(), 0, "all came back");
    check(&pool, 0);
}

#[cfg(unix)]
#[test]
fn a_child_forked_under_the_lock_goes_on_to_work() {
    let pool = pool(4, 128, RESERVE);
    let bytes = pool.shape().block_bytes();
    let old = pool.block(Account::Open).unwrap();
    // SAFETY: the block is ours.
    unsafe { old.at().write_bytes(5, bytes) };
    let (locked, is_locked) = std::sync::mpsc::channel();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let other = Arc::clone(&pool);
    let holder = std::thread::spawn(move || {
        let guard = other.lock();
        locked.send(()).unwrap();
        // Until the child is gone.
        _ = is_done.recv();
        drop(guard);
    });
    is_locked.recv().unwrap();
    // SAFETY: the child allocates, which the C library allows after a fork, and leaves at once.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "the system forks");
    if child == 0 {
        // SAFETY: a child that waits for the lock is ended by the system; the block is its own copy.
        let same = unsafe {
            libc::alarm(30);
            (0..bytes).all(|i| *old.at().add(i) == 5)
        };
        drop(old);
        let fresh: Option<Vec<_>> = (0..40).map(|_| pool.block(Account::Open).ok()).collect();
        let counted = (pool.live_bytes(), pool.open_bytes()) == (40 * bytes, 40 * bytes);
        drop(fresh);
        let gone = (pool.live_bytes(), pool.open_bytes()) == (0, 0);
        let whole = same && counted && gone && pool.held_bytes() <= SLAB;
        drop(pool);
        // SAFETY: ends this process without running anything else.
        unsafe { libc::_exit(if whole { 7 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child, "the child was waited for");
    drop(done);
    holder.join().unwrap();
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "the child's status: {status}");
    let counted = (pool.live_bytes(), pool.open_bytes());
    assert_eq!(counted, (bytes, bytes), "the parent's block is still the parent's");
}

/// A slab.
const SLAB: usize = 8 << 20;

/// A step in the life of a pool.
#[derive(Debug, Clone)]
enum Act {
    Take(usize),
    /// Lets go of every so manyth, from the given one on.
    Drop(usize, usize),
    /// Shares every so manyth once more, or lets go of the share.
    Share(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => (1usize..120).prop_map(Act::Take),
        3 => (1usize..9, any::<usize>()).prop_map(|(every, first)| Act::Drop(every, first % every)),
        1 => (1usize..9).prop_map(Act::Share),
        1 => Just(Act::Drop(1, 0)),
    ];
    vec(act, 1..14)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    #[test]
    fn blocks_do_not_overlap_and_keep_their_contents(
        (heads, head_dim, acts) in (1usize..5, proptest::sample::select(vec![1usize, 3, 16, 37, 128, 600]), acts())
    ) {
        let pool = pool(heads, head_dim, 3 << 20);
        let bytes = pool.shape().block_bytes();
        let mut live: BTreeMap<usize, Vec<Arc<Block>>> = BTreeMap::new();
        let mut serial = 0usize;
        let marks = |block: &Block| {
            let mut at: Vec<usize> = (0..bytes).step_by(page()).collect();
            at.push(bytes - size_of::<usize>());
            at.into_iter().map(|i| block.at().wrapping_add(i).cast::<usize>()).collect::<Vec<_>>()
        };
        for act in acts {
            match act {
                Act::Take(n) => for _ in 0..n {
                    let block = pool.block(Account::Open).unwrap();
                    for mark in marks(&block) {
                        // SAFETY: inside the block.
                        unsafe {
                            assert_eq!(mark.read(), 0, "zeroed");
                            mark.write(serial);
                        }
                    }
                    live.insert(serial, vec![block]);
                    serial += 1;
                },
                Act::Drop(every, first) => {
                    let mut number = first;
                    live.retain(|_, shares| {
                        number += 1;
                        if number % every == 0 {
                            shares.pop();
                        }
                        !shares.is_empty()
                    });
                }
                Act::Share(every) => for shares in live.values_mut().step_by(every) {
                    shares.push(Arc::clone(&shares[0]));
                },
            }
            check(&pool, live.len());
            let mut places: Vec<usize> = live.values().map(|shares| shares[0].at().addr()).collect();
            places.sort_unstable();
            assert!(places.windows(2).all(|pair| pair[0] + bytes <= pair[1]), "blocks overlap");
            assert!(places.iter().all(|at| at.is_multiple_of(64)), "aligned to a line");
            for (serial, shares) in &live {
                for mark in marks(&shares[0]) {
                    // SAFETY: inside the block.
                    assert_eq!(unsafe { mark.read() }, *serial, "contents survive");
                }
            }
        }
    }
}
