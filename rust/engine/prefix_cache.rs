//! Prefixes that are kept from one call to the next, within bytes of their own: the least recently used goes first.
//!
//! They lie in the order of their ids, and none of them begins another one. So what has most in common with a prompt stands next
//! to the prompt's place, and is found by as many comparisons as a dictionary needs. Bytes are those of the blocks that some prefix
//! holds, each counted once; whole blocks that neighbours have in common are made to be the same.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::prefix::{Prefix, common};
use crate::models::Sequence;

/// A prefix that is kept.
#[derive(Debug)]
struct Entry<S> {
    prefix: Prefix<S>,
    /// When it was last used.
    used: u64,
}

/// See the top of the file.
#[derive(Debug)]
pub(super) struct PrefixCache<S> {
    entries: BTreeMap<Arc<[u32]>, Entry<S>>,
    /// Ids by when they were last used.
    by_use: BTreeMap<u64, Arc<[u32]>>,
    /// How many prefixes hold a block, by its number.
    blocks: HashMap<usize, usize>,
    clock: u64,
    /// How often something was added.
    additions: u64,
}

impl<S> Default for PrefixCache<S> {
    fn default() -> Self {
        let (entries, by_use, blocks) = (BTreeMap::new(), BTreeMap::new(), HashMap::new());
        Self { entries, by_use, blocks, clock: 0, additions: 0 }
    }
}

impl<S: Sequence> PrefixCache<S> {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Prefixes that are kept.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Blocks that they hold together.
    pub(super) fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// A number that grows whenever something is added.
    pub(super) fn additions(&self) -> u64 {
        self.additions
    }

    /// The prefix from which a prompt can take most, and how many of the prompt's ids those are.
    fn best(&self, prompt: &[u32]) -> Option<(&Arc<[u32]>, usize)> {
        let before = (Bound::Unbounded, Bound::Included(prompt));
        let behind = (Bound::Excluded(prompt), Bound::Unbounded);
        let neighbours = [
            self.entries.range::<[u32], _>(before).next_back(),
            self.entries.range::<[u32], _>(behind).next(),
        ];
        let found = neighbours.into_iter().flatten();
        let found = found.map(|(ids, entry)| (ids, entry.prefix.reusable(prompt)));
        found.max_by_key(|&(_, reusable)| reusable).filter(|&(_, reusable)| reusable > 0)
    }

    /// A request's sequence that holds the first ids of a prompt, where there is one that holds more than `least` of them.
    pub(super) fn begin(&mut self, prompt: &[u32], least: usize) -> Option<S> {
        let (ids, reusable) = self.best(prompt).filter(|&(_, reusable)| reusable > least)?;
        let ids = Arc::clone(ids);
        self.touch(&ids);
        let mut sequence = self.entries.get(&ids)?.prefix.begin(reusable);
        sequence.claim();
        Some(sequence)
    }

    /// Notes that a prefix is used.
    fn touch(&mut self, ids: &Arc<[u32]>) {
        if let Some(entry) = self.entries.get_mut(ids) {
            self.clock += 1;
            self.by_use.remove(&entry.used);
            entry.used = self.clock;
            self.by_use.insert(self.clock, Arc::clone(ids));
        }
    }

    /// Keeps a prefix in at most `most` blocks for all; what has to go for it is added to `gone`.
    pub(super) fn insert(
        &mut self,
        mut prefix: Prefix<S>,
        most: usize,
        positions: usize,
        gone: &mut Vec<Prefix<S>>,
    ) {
        prefix.truncate(most.saturating_mul(positions).min(prefix.ids().len()));
        let ids = Arc::clone(prefix.ids());
        if ids.is_empty() {
            gone.push(prefix);
            return;
        }
        let behind = (Bound::Included(&*ids), Bound::Unbounded);
        let next = self.entries.range::<[u32], _>(behind).next().map(|(next, _)| Arc::clone(next));
        if let Some(next) = next.as_ref().filter(|next| next.starts_with(&ids)) {
            self.touch(next);
            gone.push(prefix);
            return;
        }
        let before = (Bound::Unbounded, Bound::Excluded(&*ids));
        let last = self.entries.range::<[u32], _>(before).next_back().map(|(last, _)| Arc::clone(last));
        for neighbour in [&last, &next].into_iter().flatten() {
            if let Some(entry) = self.entries.get(neighbour) {
                let held = entry.prefix.sequence();
                prefix.sequence_mut().share(held, common(neighbour, &ids));
            }
        }
        if let Some(last) = last.filter(|last| ids.starts_with(last)) {
            gone.extend(self.remove(&last));
        }
        let mut numbers = Vec::new();
        prefix.sequence().blocks(&mut numbers);
        while self.blocks.len() + numbers.iter().filter(|number| !self.blocks.contains_key(number)).count()
            > most
        {
            let Some(oldest) = self.pop() else { break };
            gone.push(oldest);
        }
        for number in numbers {
            *self.blocks.entry(number).or_default() += 1;
        }
        self.clock += 1;
        self.additions += 1;
        self.by_use.insert(self.clock, Arc::clone(&ids));
        self.entries.insert(ids, Entry { prefix, used: self.clock });
    }

    /// Lets go of the prefix that was not used for longest.
    pub(super) fn pop(&mut self) -> Option<Prefix<S>> {
        let ids = self.by_use.first_key_value().map(|(_, ids)| Arc::clone(ids))?;
        self.remove(&ids)
    }

    fn remove(&mut self, ids: &Arc<[u32]>) -> Option<Prefix<S>> {
        let Entry { prefix, used } = self.entries.remove(ids)?;
        self.by_use.remove(&used);
        let mut numbers = Vec::new();
        prefix.sequence().blocks(&mut numbers);
        for number in numbers {
            if let Some(holders) = self.blocks.get_mut(&number) {
                *holders -= 1;
                if *holders == 0 {
                    self.blocks.remove(&number);
                }
            }
        }
        Some(prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A sequence that is nothing but its ids; blocks of four have the numbers that their contents have, or their own.
    #[derive(Debug, Clone)]
    struct Held {
        ids: Vec<u32>,
        numbers: Vec<usize>,
        /// Positions of the longest sequence that can begin with it.
        longest: usize,
    }

    const POSITIONS: usize = 4;

    impl Sequence for Held {
        fn len(&self) -> usize {
            self.ids.len()
        }

        fn reusable(&self, len: usize) -> usize {
            if len > self.longest { 0 } else { self.ids.len() }
        }

        fn blocks(&self, out: &mut Vec<usize>) {
            out.extend(&self.numbers);
        }

        fn share(&mut self, other: &Self, positions: usize) {
            assert_eq!(self.ids[..positions], other.ids[..positions]);
            let whole = positions / POSITIONS;
            self.numbers[..whole].copy_from_slice(&other.numbers[..whole]);
        }

        fn fork(&self) -> Self {
            self.clone()
        }

        fn truncate(&mut self, len: usize) {
            self.ids.truncate(len);
            self.numbers.truncate(len.div_ceil(POSITIONS));
        }
    }

    fn held(ids: &[u32], next: &mut usize, longest: usize) -> Prefix<Held> {
        let blocks = ids.len().div_ceil(POSITIONS);
        *next += blocks;
        Prefix::new(ids, Held { ids: ids.to_vec(), numbers: (*next - blocks..*next).collect(), longest })
    }

    proptest! {
        #[test]
        fn what_is_kept_is_found_and_never_more_than_its_bytes(
            all in vec((vec(0..3u32, 0..14), prop::bool::weighted(0.7), prop::bool::weighted(0.1)), 1..40),
            most in 1..12usize,
        ) {
            let (mut cache, mut next, mut gone) = (PrefixCache::default(), 0, Vec::new());
            for (ids, adds, short) in all {
                if adds {
                    let (before, additions) = (cache.len(), cache.additions());
                    let prefix = held(&ids, &mut next, if short { 5 } else { usize::MAX });
                    cache.insert(prefix, most, POSITIONS, &mut gone);
                    prop_assert!(cache.len() <= before + 1 && cache.additions() <= additions + 1);
                    let fits = &ids[..ids.len().min(most * POSITIONS)];
                    prop_assert!(cache.entries.keys().any(|kept| kept.starts_with(fits)) || fits.is_empty());
                } else {
                    let reusable = |prefix: &Prefix<Held>| prefix.reusable(&ids);
                    let any_short = cache.entries.values().any(|entry| entry.prefix.sequence().longest == 5);
                    let longest = cache.entries.values().map(|entry| reusable(&entry.prefix)).max().unwrap_or(0);
                    let found = cache.begin(&ids, 0).map_or(0, |found| found.len());
                    prop_assert!(found == longest || any_short && found < longest, "{found} of {longest}");
                    prop_assert!(cache.begin(&ids, longest).is_none());
                }
                prop_assert!(cache.block_count() <= most);
                let mut numbers: Vec<usize> =
                    cache.entries.values().flat_map(|entry| entry.prefix.sequence().numbers.clone()).collect();
                numbers.sort_unstable();
                numbers.dedup();
                prop_assert_eq!(numbers.len(), cache.block_count(), "each block is counted once");
                prop_assert_eq!(cache.by_use.len(), cache.len());
                let keys: Vec<_> = cache.entries.keys().collect();
                for pair in keys.windows(2) {
                    prop_assert!(!pair[1].starts_with(pair[0]), "{:?} begins {:?}", pair[0], pair[1]);
                    let whole = common(pair[0], pair[1]) / POSITIONS;
                    let numbers = |ids: &Arc<[u32]>| cache.entries[ids].prefix.sequence().numbers.clone();
                    prop_assert_eq!(&numbers(pair[0])[..whole], &numbers(pair[1])[..whole], "what is common is shared");
                }
            }
            while cache.pop().is_some() {}
            prop_assert!(cache.is_empty() && cache.block_count() == 0 && cache.by_use.is_empty());
        }
    }
}
