//! The key-value cache: sequences made of blocks of sixteen tokens that forks share. Four verbs: append, fork, truncate, and
//! free by dropping.
//!
//! A block holds sixteen tokens of every layer and head, keys and values as the kernels lay them. Blocks are zeroed when handed
//! out, and what lies past a sequence's length is zero again before the sequence grows, so that masked lanes add exact zeros. A
//! shared last block is copied when it is written.

use std::sync::Arc;

use crate::error::Result;
use crate::kernels::{self, BLOCK};

use block::Block;
pub use pool::Pool;
pub use remote::{Held, Remote};

mod block;
mod pool;
mod remote;
mod slab;

/// Sizes of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Key-value heads of a layer.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether elements are bf16 instead of f32.
    pub bf16: bool,
}

impl Shape {
    fn head_bytes(&self) -> usize {
        let (bf16, d) = (self.bf16, self.head_dim);
        kernels::key_bytes(bf16, d) + kernels::value_bytes(bf16, d)
    }

    /// Bytes of a block: sixteen tokens of every layer and head.
    pub fn block_bytes(&self) -> usize {
        self.layers * self.heads * self.head_bytes()
    }

    /// Bytes from a block's start to the keys of a head.
    pub fn keys(&self, layer: usize, head: usize) -> usize {
        (layer * self.heads + head) * self.head_bytes()
    }

    /// Bytes from a block's start to the values of a head.
    pub fn values(&self, layer: usize, head: usize) -> usize {
        self.keys(layer, head) + kernels::key_bytes(self.bf16, self.head_dim)
    }
}

/// On whose account a sequence takes its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// Nobody's: no request answers for them, and the pool counts them.
    Open,
    /// That of a request, which has reserved all that its sequences may come to hold.
    Reserved,
}

/// A run of cached positions.
#[derive(Debug)]
pub struct Sequence {
    pool: Arc<Pool>,
    account: Account,
    blocks: Vec<Arc<Block>>,
    len: usize,
    /// Whether the last block may hold something past the length, because a fork shared it when the sequence was cut.
    stale: bool,
}

impl Sequence {
    /// An empty sequence that no request answers for.
    pub fn new(pool: &Arc<Pool>) -> Self {
        Self::on(pool, Account::Open)
    }

    /// An empty sequence whose blocks a request has reserved.
    pub fn reserved(pool: &Arc<Pool>) -> Self {
        Self::on(pool, Account::Reserved)
    }

    /// An empty sequence that takes its blocks on `account`.
    pub fn on(pool: &Arc<Pool>, account: Account) -> Self {
        Self { pool: Arc::clone(pool), account, blocks: Vec::new(), len: 0, stale: false }
    }

    /// On whose account it takes blocks.
    pub fn account(&self) -> Account {
        self.account
    }

    /// Cached positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether its blocks come from this pool.
    pub fn is_of(&self, pool: &Arc<Pool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A second sequence with the same contents on the same account, sharing every block.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { pool: Arc::clone(&self.pool), blocks: self.blocks.clone(), ..*self }
    }

    /// From now on a request answers for the blocks that the sequence takes.
    pub fn claim(&mut self) {
        self.account = Account::Reserved;
    }

    /// From now on no request answers for the sequence, its blocks included; for how many of its `first` blocks one did.
    pub fn release(&mut self, first: usize) -> usize {
        self.account = Account::Open;
        let released = self.blocks.iter().enumerate().filter(|(_, block)| block.open());
        released.filter(|&(place, _)| place < first).count()
    }

    /// Adds a number for every block to `out`; forks have the numbers of those that they share in common.
    pub fn blocks(&self, out: &mut Vec<usize>) {
        out.extend(self.blocks.iter().map(|block| Arc::as_ptr(block).addr()));
    }

    /// Shares the whole blocks of its first `positions` with another sequence of the pool that holds the same there.
    pub fn share(&mut self, other: &Self, positions: usize) {
        let whole = positions.min(self.len).min(other.len) / BLOCK;
        self.blocks[..whole].clone_from_slice(&other.blocks[..whole]);
    }

    /// Forgets all but the first `len` positions.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "a sequence of {} cannot be truncated to {len}", self.len);
        self.len = len;
        self.settle();
    }

    /// Drops blocks past the length and zeroes what lies past it in the last one, or notes that a fork shares it.
    fn settle(&mut self) {
        self.blocks.truncate(self.len.div_ceil(BLOCK));
        self.stale = false;
        if !self.len.is_multiple_of(BLOCK)
            && let Some(last) = self.blocks.last_mut()
        {
            match Arc::get_mut(last) {
                Some(block) => self.pool.clear(block, self.len % BLOCK),
                None => self.stale = true,
            }
        }
    }

    /// Gets blocks for `more` positions past the length, this sequence's alone from the first new position on.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::Error::OutOfMemory); the sequence is then as it was.
    pub fn reserve(&mut self, more: usize) -> Result<()> {
        let tail = self.len % BLOCK;
        if tail != 0
            && let Some(last) = self.blocks.last_mut()
        {
            let shared = Arc::get_mut(last).is_none();
            if shared {
                let copy = self.pool.unwritten(self.account)?;
                self.pool.copy(last, &copy)?;
                *last = copy;
            }
            if shared || self.stale {
                self.pool.clear(last, tail);
            }
        }
        self.stale = false;
        let missing = (self.len + more).div_ceil(BLOCK).saturating_sub(self.blocks.len());
        if let Err(e) = self.pool.probe(missing) {
            self.settle();
            return Err(e);
        }
        while self.blocks.len() * BLOCK < self.len + more {
            match self.pool.block(self.account) {
                Ok(block) => self.blocks.push(block),
                Err(e) => {
                    self.settle();
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Makes `more` reserved positions, now written, part of the sequence.
    pub fn advance(&mut self, more: usize) {
        self.len += more;
        debug_assert!(self.len <= self.blocks.len() * BLOCK, "positions were reserved");
    }

    /// Gives up what was reserved and not made part of the sequence.
    pub fn abandon(&mut self) {
        self.settle();
    }

    /// Appends the first byte of every block to `out`.
    pub fn pointers(&self, out: &mut Vec<*const u8>) {
        out.extend(self.blocks.iter().map(|b| b.at().cast_const()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::lanes::widen_bf16;
    use crate::kernels::{AppendKv, Kernels};

    fn shape(bf16: bool) -> Shape {
        Shape { layers: 2, heads: 3, head_dim: 5, bf16 }
    }

    /// Appends positions whose keys and values are all of one number, in runs as forwards do.
    fn append(s: &mut Sequence, numbers: &[f32]) {
        s.reserve(numbers.len()).unwrap();
        let mut blocks = Vec::new();
        s.pointers(&mut blocks);
        let (shape, mut done) = (*s.pool.shape(), 0);
        while done < numbers.len() {
            let token = (s.len() + done) % BLOCK;
            let rows = (BLOCK - token).min(numbers.len() - done);
            for (layer, head) in (0..2).flat_map(|l| (0..3).map(move |h| (l, h))) {
                let number = |x: &f32| [x + (layer * 3 + head) as f32; 5];
                let floats: Vec<f32> = numbers[done..done + rows].iter().flat_map(number).collect();
                // SAFETY: reserved, one thread.
                unsafe {
                    let block = blocks[(s.len() + done) / BLOCK].cast_mut();
                    let job = AppendKv {
                        key: floats.as_ptr(),
                        key_stride: 5,
                        value: floats.as_ptr(),
                        value_stride: 5,
                        rows,
                        d: 5,
                        token,
                        keys: block.add(shape.keys(layer, head)),
                        values: block.add(shape.values(layer, head)),
                    };
                    Kernels::chosen().unwrap().put(shape.bf16, &job);
                }
            }
            done += rows;
        }
        s.advance(numbers.len());
    }

    /// Last dimension of key and value of every position up to whole blocks, of one head.
    fn contents(s: &Sequence) -> Vec<(f32, f32)> {
        let mut blocks = Vec::new();
        s.pointers(&mut blocks);
        let shape = *s.pool.shape();
        (0..blocks.len() * BLOCK)
            .map(|i| {
                let t = i % BLOCK;
                // SAFETY: the offsets lie in the block.
                unsafe {
                    let keys = blocks[i / BLOCK].add(shape.keys(1, 2));
                    let values = blocks[i / BLOCK].add(shape.values(1, 2));
                    if shape.bf16 {
                        let (keys, values) = (keys.cast::<u16>(), values.cast::<u16>());
                        assert_eq!(*keys.add((2 * BLOCK + t) * 2 + 1), 0, "no sixth dimension");
                        let key = *keys.add((2 * BLOCK + t) * 2);
                        (widen_bf16(key), widen_bf16(*values.add((t / 2 * 16 + 4) * 2 + t % 2)))
                    } else {
                        let (keys, values) = (keys.cast::<f32>(), values.cast::<f32>());
                        (*keys.add(4 * BLOCK + t), *values.add(t * 16 + 4))
                    }
                }
            })
            .collect()
    }

    fn expect(s: &Sequence, values: &[f32]) {
        let mut want: Vec<(f32, f32)> = values.iter().map(|x| (x + 5.0, x + 5.0)).collect();
        want.resize(values.len().next_multiple_of(BLOCK), (0.0, 0.0));
        assert_eq!(contents(s), want, "contents, and zeros past the end");
        assert_eq!(s.len(), values.len(), "length");
    }

    #[test]
    fn append_fork_truncate_keep_contents_and_zeros() {
        for pool in [false, true].map(|bf16| Pool::new(shape(bf16))) {
            let all: Vec<f32> = (0..40).map(|i| i as f32).collect();
            let mut a = Sequence::new(&pool);
            append(&mut a, &all[..20]);
            let mut b = a.fork();
            append(&mut b, &[100.0, 101.0]);
            append(&mut a, &all[20..21]);
            append(&mut a, &all[21..40]);
            expect(&a, &all);
            let mut want = all[..20].to_vec();
            want.extend([100.0, 101.0]);
            expect(&b, &want);
            let mut c = a.fork();
            c.truncate(18);
            append(&mut c, &[7.0]);
            want = all[..18].to_vec();
            want.push(7.0);
            expect(&c, &want);
            expect(&a, &all);
            for left in [35, 33] {
                a.truncate(left);
                expect(&a, &all[..left]);
            }
            a.truncate(0);
            assert!(a.is_empty(), "nothing is left");
            drop((a, b, c));
            let mut d = Sequence::new(&pool);
            append(&mut d, &[1.0]);
            expect(&d, &[1.0]);
        }
    }

    #[test]
    fn what_a_fork_leaves_behind_is_cleared() {
        for pool in [false, true].map(|bf16| Pool::new(shape(bf16))) {
            let all: Vec<f32> = (1..21).map(|i| i as f32).collect();
            let mut a = Sequence::new(&pool);
            append(&mut a, &all);
            let mut b = a.fork();
            b.truncate(17);
            drop(a);
            // The block is `b`'s alone now, and held three positions more.
            append(&mut b, &[90.0]);
            let mut want = all[..17].to_vec();
            want.push(90.0);
            expect(&b, &want);
        }
    }

    #[test]
    fn blocks_count_on_the_account_that_took_them() {
        let pool = Pool::new(shape(false));
        let open = || pool.open_bytes() / pool.shape().block_bytes();
        let live = || pool.live_bytes() / pool.shape().block_bytes();
        let mut state = Sequence::new(&pool);
        append(&mut state, &[1.0; 20]);
        let mut request = Sequence::reserved(&pool);
        append(&mut request, &[1.0; 40]);
        assert_eq!((open(), live()), (2, 5), "a state's blocks are open, and a request's are not");
        let (mut again, mut beam) = (state.fork(), request.fork());
        assert_eq!((again.account(), beam.account()), (Account::Open, Account::Reserved), "of forks");
        assert_eq!((open(), live()), (2, 5), "forks share");
        append(&mut again, &[2.0]);
        append(&mut beam, &[2.0; 20]);
        assert_eq!((open(), live()), (3, 8), "each copies its last block, and the beam takes one more");
        drop(state);
        assert_eq!((open(), live()), (2, 7), "what a fork shares stays");
        again.truncate(3);
        beam.truncate(3);
        assert_eq!((open(), live()), (1, 4), "blocks past the length are freed");
        drop(again);
        assert_eq!((open(), live()), (0, 3), "nothing is open any more");
        drop((request, beam));
        assert_eq!((open(), live()), (0, 0), "nothing is live any more");
    }

    #[test]
    fn what_a_request_leaves_to_others_is_open_from_then_on() {
        let pool = Pool::new(shape(false));
        let open = || pool.open_bytes() / pool.shape().block_bytes();
        let live = || pool.live_bytes() / pool.shape().block_bytes();
        let mut row = Sequence::reserved(&pool);
        append(&mut row, &[1.0; 40]);
        let mut beside = row.fork();
        append(&mut beside, &[2.0; 10]);
        assert_eq!((open(), live()), (0, 5), "the fork has copied its last block, and has one more");
        assert_eq!(row.release(2), 2, "of two that were asked about");
        assert_eq!((open(), live(), row.account()), (3, 5, Account::Open), "and one more");
        assert_eq!((row.release(2), beside.release(9)), (0, 2), "once each");
        let mut request = row.fork();
        request.claim();
        request.truncate(33);
        append(&mut request, &[3.0; 20]);
        assert_eq!((open(), live()), (5, 7), "a copy and another one, for which the request answers");
        let mut numbers = [Vec::new(), Vec::new()];
        row.blocks(&mut numbers[0]);
        request.blocks(&mut numbers[1]);
        assert_eq!(numbers[0][..2], numbers[1][..2]);
        assert!(numbers[1][2..].iter().all(|number| !numbers[0].contains(number)));
        drop((row, beside));
        assert_eq!((open(), live()), (2, 4), "what the request shares stays open");
        drop(request);
        assert_eq!((open(), live()), (0, 0), "nothing is left");
    }

    #[test]
    fn sequences_that_hold_the_same_can_share_it_afterwards() {
        for pool in [false, true].map(|bf16| Pool::new(shape(bf16))) {
            let live = || pool.live_bytes() / pool.shape().block_bytes();
            let all: Vec<f32> = (0..40).map(|i| i as f32).collect();
            let (mut one, mut other) = (Sequence::new(&pool), Sequence::new(&pool));
            append(&mut one, &all);
            append(&mut other, &all[..37]);
            append(&mut other, &[7.0]);
            other.share(&one, 37);
            assert_eq!(live(), 4, "two whole blocks are shared, and each has a last one");
            let want = [&all[..37], &[7.0]].concat();
            expect(&other, &want);
            drop(one);
            append(&mut other, &[8.0]);
            expect(&other, &[want, vec![8.0]].concat());
        }
    }

    #[test]
    fn what_was_reserved_and_given_up_leaves_no_trace() {
        for pool in [false, true].map(|bf16| Pool::new(shape(bf16))) {
            let mut a = Sequence::new(&pool);
            append(&mut a, &[1.0, 2.0]);
            a.reserve(30).unwrap();
            a.abandon();
            expect(&a, &[1.0, 2.0]);
        }
    }
}
