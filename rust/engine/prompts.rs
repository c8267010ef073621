//! The prompts of a call, as they wait: four bytes an id and eight a prompt, whatever their number.
//!
//! A call may have a hundred thousand prompts of which a few dozen run. So prompts lie one behind the other in one list of numbers,
//! are read from front to back, and become sequences only when their turn has come. A source that several neighbouring prompts
//! share is stored once.

use std::ops::Range;
use std::sync::Arc;

use super::prefix::Prefix;
use crate::error::{Error, Result};
use crate::models::Sequence;

/// What stands where a prompt says what its source is: none, that of the prompt before, one of the given sequences; numbers from
/// `IDS` on say how many ids follow.
const NONE: u32 = 0;
const AS_BEFORE: u32 = 1;
const GIVEN: u32 = 2;
const IDS: u32 = 3;

/// Where a prompt's sequence starts.
#[derive(Debug, Clone)]
pub enum Start<S> {
    /// At nothing.
    Empty,
    /// Over a source that is still to be read by the encoder.
    Source(Vec<u32>),
    /// At a copy of this sequence: over a source that has been read, or behind the first tokens of the prompt.
    Sequence(S),
}

/// Where the source of a prompt is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SourceOf {
    /// Nowhere.
    Nothing,
    /// These ids of the list.
    Ids(Range<usize>),
    /// Behind the given sequence of this number.
    Given(usize),
}

/// A prompt of the list.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Its number.
    pub(super) place: usize,
    /// Its ids, as a part of the list.
    pub(super) ids: Range<usize>,
    pub(super) source: SourceOf,
}

/// Prompts in the order of the call.
#[derive(Debug)]
pub struct Prompts<S> {
    numbers: Vec<u32>,
    given: Vec<S>,
    /// What those that have no source begin behind, as far as they go along with it.
    prefix: Option<Arc<Prefix<S>>>,
    /// Where the last source of ids is.
    last: Range<usize>,
    count: usize,
}

impl<S> Default for Prompts<S> {
    fn default() -> Self {
        Self { numbers: Vec::new(), given: Vec::new(), prefix: None, last: 0..0, count: 0 }
    }
}

impl<S: Sequence> Prompts<S> {
    /// No prompts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prompts without a source.
    pub fn of(prompts: &[Vec<u32>]) -> Self {
        let mut all = Self::new();
        prompts.iter().for_each(|ids| all.push(ids, Start::Empty));
        all
    }

    /// No prompts; those that come begin behind a prefix, as far as they go along with it.
    pub fn behind(prefix: Option<Arc<Prefix<S>>>) -> Self {
        Self { prefix, ..Self::default() }
    }

    /// How many of a prompt's first ids the prefix spares.
    pub(super) fn spared(&self, entry: &Entry) -> usize {
        match (&self.prefix, &entry.source) {
            (Some(prefix), SourceOf::Nothing) => prefix.reusable(self.ids(&entry.ids)),
            _ => 0,
        }
    }

    /// A sequence for a prompt behind the first ids that the prefix spares; none where it spares none.
    pub(super) fn begin(&self, entry: &Entry) -> Option<S> {
        let spared = self.spared(entry);
        let prefix = self.prefix.as_ref().filter(|_| spared > 0)?;
        let mut sequence = prefix.begin(spared);
        sequence.claim();
        Some(sequence)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a prompt.
    pub fn push(&mut self, ids: &[u32], start: Start<S>) {
        match start {
            Start::Empty => self.numbers.push(NONE),
            Start::Source(source) if !source.is_empty() && self.numbers[self.last.clone()] == source => {
                self.numbers.push(AS_BEFORE);
            }
            Start::Source(source) => {
                self.numbers.push(IDS + source.len() as u32);
                let begin = self.numbers.len();
                self.numbers.extend_from_slice(&source);
                self.last = begin..self.numbers.len();
            }
            Start::Sequence(sequence) => {
                self.numbers.push(GIVEN);
                self.given.push(sequence);
            }
        }
        self.numbers.push(ids.len() as u32);
        self.numbers.extend_from_slice(ids);
        self.count += 1;
    }

    /// Ids of a part of the list.
    pub(super) fn ids(&self, part: &Range<usize>) -> &[u32] {
        &self.numbers[part.clone()]
    }

    /// The given sequence of this number.
    pub(super) fn given(&self, number: usize) -> &S {
        &self.given[number]
    }

    /// Tokens of a source.
    pub(super) fn source_length(&self, source: &SourceOf) -> usize {
        match source {
            SourceOf::Nothing => 0,
            SourceOf::Ids(ids) => ids.len(),
            SourceOf::Given(number) => self.given[*number].source().len(),
        }
    }

    /// Checks what a prompt's ids must be.
    ///
    /// # Errors
    /// `Option` for an id that the model does not have, and where a sequence leaves nothing to feed.
    pub(super) fn check(&self, entry: &Entry, vocab_size: usize) -> Result<()> {
        let option = |expected: String, got: String| {
            Err(Error::Option { option: format!("prompt {}", entry.place), expected, got })
        };
        let ids = self.ids(&entry.ids);
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return option(format!("token ids below {vocab_size}"), id.to_string());
        }
        let cached = match entry.source {
            SourceOf::Given(number) => self.given[number].len(),
            SourceOf::Nothing | SourceOf::Ids(_) => 0,
        };
        if ids.len() <= cached {
            let expected = match cached {
                0 => "at least one token".to_owned(),
                cached => format!("more than the {cached} tokens that its sequence holds"),
            };
            return option(expected, ids.len().to_string());
        }
        Ok(())
    }
}

/// A place between two prompts of a list.
#[derive(Debug, Clone, Default)]
pub(super) struct Cursor {
    at: usize,
    place: usize,
    given: usize,
    last: Range<usize>,
}

impl Cursor {
    /// Number of the prompt behind it.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// The prompt behind it, stepping over that; none at the end.
    pub(super) fn next<S: Sequence>(&mut self, prompts: &Prompts<S>) -> Option<Entry> {
        let kind = *prompts.numbers.get(self.at)?;
        self.at += 1;
        let source = match kind {
            NONE => SourceOf::Nothing,
            AS_BEFORE => SourceOf::Ids(self.last.clone()),
            GIVEN => {
                self.given += 1;
                SourceOf::Given(self.given - 1)
            }
            counted => {
                self.last = self.at..self.at + (counted - IDS) as usize;
                self.at = self.last.end;
                SourceOf::Ids(self.last.clone())
            }
        };
        let begin = self.at + 1;
        self.at = begin + prompts.numbers[self.at] as usize;
        self.place += 1;
        Some(Entry { place: self.place - 1, ids: begin..self.at, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sequence that holds so many positions over a source.
    #[derive(Debug)]
    struct Held(usize, Vec<u32>);

    impl Sequence for Held {
        fn len(&self) -> usize {
            self.0
        }

        fn source(&self) -> &[u32] {
            &self.1
        }

        fn fork(&self) -> Self {
            Self(self.0, self.1.clone())
        }

        fn truncate(&mut self, len: usize) {
            self.0 = len;
        }
    }

    /// All prompts of a list, with their sources as they are found: none for a prompt without one.
    fn all(prompts: &Prompts<Held>) -> Vec<(Vec<u32>, Option<Vec<u32>>)> {
        let mut cursor = Cursor::default();
        let mut found = Vec::new();
        while let Some(entry) = cursor.next(prompts) {
            assert_eq!((entry.place, cursor.place()), (found.len(), found.len() + 1));
            let source = match &entry.source {
                SourceOf::Nothing => None,
                SourceOf::Ids(ids) => Some(prompts.ids(ids).to_vec()),
                SourceOf::Given(number) => Some(prompts.given(*number).1.clone()),
            };
            assert_eq!(prompts.source_length(&entry.source), source.as_ref().map_or(0, Vec::len));
            found.push((prompts.ids(&entry.ids).to_vec(), source));
        }
        assert!(cursor.next(prompts).is_none(), "and it stays at the end");
        assert_eq!(found.len(), prompts.len());
        found
    }

    #[test]
    fn prompts_are_read_as_they_were_written() {
        let none = Prompts::<Held>::new();
        assert!(none.is_empty() && all(&none).is_empty());
        let mut prompts = Prompts::new();
        let mut expected: Vec<(Vec<u32>, Option<Vec<u32>>)> = Vec::new();
        // Ids and sources that look like marks of the list; sources that come again at once, after others, and empty ones.
        let sources: [&[u32]; 9] = [&[0], &[0], &[1, 2], &[], &[], &[1, 2], &[3, 3, 3], &[3], &[3]];
        for (number, source) in sources.iter().enumerate() {
            let ids: Vec<u32> = (0..number as u32 % 5).collect();
            prompts.push(&ids, Start::Source(source.to_vec()));
            expected.push((ids.clone(), Some(source.to_vec())));
            if number % 3 == 1 {
                prompts.push(&ids, Start::Empty);
                expected.push((ids.clone(), None));
                prompts.push(&ids, Start::Sequence(Held(1, vec![number as u32; 4])));
                expected.push((ids, Some(vec![number as u32; 4])));
            }
        }
        assert_eq!(all(&prompts), expected);
    }

    #[test]
    fn a_source_that_neighbours_share_is_the_same_part_of_the_list() {
        let mut prompts = Prompts::<Held>::new();
        for source in [5, 5, 6, 5] {
            prompts.push(&[1], Start::Source(vec![source; 3]));
        }
        let mut cursor = Cursor::default();
        let sources: Vec<SourceOf> =
            std::iter::from_fn(|| cursor.next(&prompts)).map(|entry| entry.source).collect();
        assert_eq!(sources[0], sources[1]);
        assert!(sources[1] != sources[2] && sources[2] != sources[3] && sources[0] != sources[3]);
    }

    #[test]
    fn a_list_takes_four_bytes_an_id_and_eight_a_prompt() {
        let mut prompts = Prompts::<Held>::new();
        for number in 0..1000 {
            prompts.push(&vec![7; number % 10], Start::Empty);
        }
        assert_eq!(prompts.numbers.len(), 2 * 1000 + 4500);
        let mut shared = Prompts::<Held>::new();
        for _ in 0..1000 {
            shared.push(&[7], Start::Source(vec![8; 600]));
        }
        assert_eq!(shared.numbers.len(), 3 * 1000 + 600, "the source once");
        assert_eq!(size_of_val(&shared.numbers[0]), 4);
    }

    #[test]
    fn prompts_that_cannot_be_used_are_named() {
        let mut prompts = Prompts::new();
        prompts.push(&[3, 9], Start::Empty);
        prompts.push(&[3, 10], Start::Empty);
        prompts.push(&[], Start::Source(vec![1]));
        prompts.push(&[1, 2], Start::Sequence(Held(2, Vec::new())));
        prompts.push(&[1, 2, 3], Start::Sequence(Held(2, Vec::new())));
        let (mut cursor, mut refused) = (Cursor::default(), Vec::new());
        while let Some(entry) = cursor.next(&prompts) {
            if let Err(Error::Option { option, expected, got }) = prompts.check(&entry, 10) {
                refused.push((option, expected, got));
            }
        }
        let expected = [
            ("prompt 1", "token ids below 10", "10"),
            ("prompt 2", "at least one token", "0"),
            ("prompt 3", "more than the 2 tokens that its sequence holds", "2"),
        ];
        let expected =
            expected.map(|(option, expected, got)| (option.to_owned(), expected.to_owned(), got.to_owned()));
        assert_eq!(refused, expected);
    }
}
