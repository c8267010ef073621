//! The prompts of a call, as they wait: four bytes an id and eight a prompt, whatever their number.
//!
//! A call may have a hundred thousand prompts of which a few dozen run. So prompts lie one behind the other in one list of numbers,
//! are read from front to back, and become sequences only when their turn has come. A source that several neighbouring prompts
//! share is stored once.

use std::ops::Range;

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
    /// Where the last source of ids is.
    last: Range<usize>,
    count: usize,
}

impl<S> Default for Prompts<S> {
    fn default() -> Self {
        Self { numbers: Vec::new(), given: Vec::new(), last: 0..0, count: 0 }
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
