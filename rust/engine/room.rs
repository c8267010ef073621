//! How the calls and the cache of prefixes share memory: what calls leave is kept while nobody needs the room, and given up before
//! anybody waits for it.

use super::call::{Call, Demand};
use super::prefix::Prefix;
use super::schedule::{Slot, State};
use crate::models::{Decoder, Sequence};

impl<S: Sequence> Slot<S> {
    /// Takes what a call leaves, a copy for its reader aside, where that one wants it.
    pub(super) fn collect(&mut self, call: &mut Call<S>) -> Vec<Prefix<S>> {
        let kept = std::mem::take(&mut call.given.kept);
        if call.request.options.keep
            && let Some(last) = kept.last()
        {
            self.kept = Some(last.fork());
        }
        kept
    }
}

impl<S: Sequence> State<S> {
    /// Bytes of the cache that are in use or promised: what is reserved, and what nobody has.
    fn promised<M: Decoder<Sequence = S>>(&self, model: &M) -> usize {
        model.open_bytes().saturating_add(self.reserved())
    }

    /// Lets go of prefixes, the least recently used first, until `more` bytes fit beside what is in use, or none is left.
    pub(super) fn make_room<M: Decoder<Sequence = S>>(&mut self, model: &M, more: usize) {
        let most = model.limits().cache_bytes;
        while !self.prefixes.is_empty() && self.promised(model).saturating_add(more) > most {
            drop(self.prefixes.pop());
        }
    }

    /// Lets go of all prefixes; whether there were any.
    pub(super) fn give_up(&mut self) -> bool {
        let before = self.gone.len();
        self.gone.extend(std::iter::from_fn(|| self.prefixes.pop()));
        self.gone.len() > before
    }

    /// Keeps what a call leaves, where the model has room for that.
    pub(super) fn store<M: Decoder<Sequence = S>>(&mut self, model: &M, kept: Vec<Prefix<S>>) {
        if kept.is_empty() {
            return;
        }
        let (block, limits) = (model.cache_block(), model.limits());
        for prefix in kept {
            self.prefixes.insert(
                prefix,
                limits.prefix_cache_bytes / block.bytes,
                block.positions,
                &mut self.gone,
            );
        }
        self.make_room(model, 0);
    }

    /// Makes room for what the call at `place` demands, so that `reserved_then` bytes are reserved by those that take part: what its
    /// prompt begins with, where somebody has left that, and the bytes that are still to be reserved. None where it has to wait.
    pub(super) fn find_room<M: Decoder<Sequence = S>>(
        &mut self,
        model: &M,
        place: usize,
        demand: Demand,
        reserved_then: usize,
        is_alone: bool,
    ) -> Option<(Option<S>, usize)> {
        let most = model.limits().cache_bytes;
        let bytes_then = || model.open_bytes().saturating_add(reserved_then);
        if self.prefixes.is_empty() {
            return (is_alone || bytes_then() <= most).then_some((None, demand.bytes));
        }
        let block = model.cache_block();
        let kept = self.prefixes.block_count().saturating_mul(block.bytes);
        if !is_alone && bytes_then().saturating_sub(kept) > most {
            return None;
        }
        let (mut found, mut spared) = (None, 0);
        if demand.is_prompt
            && let Some(call) = &mut self.slots[place].call
            && let Some((ids, least)) = call.next_prompt()
        {
            found = self.prefixes.begin(ids, least);
            let blocks = |positions: usize| positions / block.positions;
            let more = found.as_ref().map_or(0, |found| blocks(found.len()) - blocks(least));
            spared = more.saturating_mul(block.bytes).min(demand.bytes);
        }
        self.make_room(model, demand.bytes - spared);
        let fits = bytes_then().saturating_sub(spared) <= most;
        (is_alone || fits).then_some((found, demand.bytes - spared))
    }
}
