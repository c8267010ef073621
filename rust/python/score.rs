//! Items to score, and what was found of them.

use std::collections::HashMap;
use std::sync::Arc;

use pyo3::prelude::*;

use super::interrupt::interruptible;
use super::memory::SourceArgument;
use super::prefix::Prefix;
use crate::engine::{Engine, Item, Scoring, Start};
use crate::models::{Model, Sequence};

/// An item: what is read, what is asked behind the last of it, tokens of the whole sequence, the source.
pub(super) type ItemArgument = (Vec<u32>, Vec<Option<u32>>, usize, Option<SourceArgument>);
/// What was found of an item: the log-probability of every token that was asked for, and whether all were the best.
pub(super) type Found = (Vec<f64>, bool);

/// What two items have in common that start at the same place.
#[derive(PartialEq, Eq, Hash)]
enum Place {
    Nowhere,
    /// Behind so many positions of the prefix.
    Prefix(usize),
    Ids(Vec<u32>),
    Memory(usize),
}

/// Scores items; those with one source share it, and what a prefix spares is not read again.
pub(super) fn score(
    py: Python<'_>,
    engine: &Arc<Engine<Model>>,
    items: Vec<ItemArgument>,
    prefix: Option<&Prefix>,
) -> PyResult<Vec<Found>> {
    interruptible(py, |cancel| {
        let prefix = prefix.map(|prefix| prefix.of(engine)).transpose()?;
        // Of an item, rows are wanted whose logits a prefix does not have.
        let spared = |ids: &[u32], targets: usize, length: usize| {
            let before = &ids[..ids.len().saturating_sub(targets)];
            prefix.as_ref().map_or(0, |prefix| prefix.spares(before, length))
        };
        let mut scoring = Scoring { starts: Vec::new(), items: Vec::with_capacity(items.len()) };
        let mut known: HashMap<Place, usize> = HashMap::new();
        for (ids, targets, length, source) in items {
            let place = match &source {
                None => match spared(&ids, targets.len(), length.max(ids.len())) {
                    0 => Place::Nowhere,
                    spared => Place::Prefix(spared),
                },
                Some(SourceArgument::Ids(ids)) => Place::Ids(ids.clone()),
                Some(SourceArgument::Memory(memory)) => Place::Memory(memory.as_ptr().addr()),
            };
            let next = scoring.starts.len();
            let behind = if let Place::Prefix(spared) = place { spared } else { 0 };
            let start = *known.entry(place).or_insert(next);
            if start == next {
                scoring.starts.push(match source {
                    None => match prefix.as_ref().filter(|_| behind > 0) {
                        None => Start::Empty,
                        Some(prefix) => {
                            let mut sequence = prefix.begin(behind);
                            sequence.claim();
                            Start::Sequence(sequence)
                        }
                    },
                    Some(SourceArgument::Ids(ids)) => Start::Source(ids),
                    Some(source) => Start::Sequence(engine.model().start_reserved(source.into_source())?),
                });
            }
            scoring.items.push(Item { ids, targets, length, start });
        }
        let found = engine.score(scoring, cancel)?;
        let told = |scored: Vec<_>| {
            let all_best = scored.iter().all(|scored: &crate::models::Scored| scored.is_best);
            (scored.iter().map(|scored| scored.logprob).collect(), all_best)
        };
        Ok(found.into_iter().map(told).collect())
    })
}
