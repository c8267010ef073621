//! The choice of tokens at the end of a step: for all rows of all calls, over the threads where there are many.
//!
//! Rows that draw from one stream one behind the other are one piece of work; every other row is a piece of its own.

use std::sync::{Mutex, PoisonError};

use super::beams::Search;
use super::request::Request;
use super::rows::Row;
use crate::decode::Scratch;
use crate::decode::draws::Group;
use crate::error::Result;
use crate::models::Sequence;
use crate::team::{self, Cancel};

/// Rows that draw from one generator, at most. More of them in one group are less work for fewer threads.
pub(super) const GROUP_ROWS: usize = 16;
/// Scores from which on a step's choices are worth waking the threads: some twenty microseconds of work.
const MANY_SCORES: usize = 1 << 17;

/// Where a row's random numbers come from.
#[derive(Debug, Default)]
pub(super) enum Drawing {
    /// Nowhere, or its group is not made yet.
    #[default]
    None,
    /// It is the first of its group.
    Leads(Box<Group>),
    /// From the group of the row before it.
    Follows,
}

impl Drawing {
    /// Hands the group of a row that ends to the next row, if that is of the same group.
    pub(super) fn inherit(&mut self, from: &mut Option<Box<Group>>) {
        if let (Self::Follows, Some(group)) = (&*self, from.take()) {
            *self = Self::Leads(group);
        }
    }

    /// Its group, if it leads one.
    pub(super) fn take(&mut self) -> Option<Box<Group>> {
        match std::mem::take(self) {
            Self::Leads(group) => Some(group),
            other => {
                *self = other;
                None
            }
        }
    }
}

/// Whose token is to be chosen.
pub(super) enum Chooser<'a, S> {
    Row(&'a mut Row<S>),
    Search(&'a mut Search<S>),
}

impl<S> Chooser<'_, S> {
    /// Whether it draws behind the one before it.
    fn follows(&self) -> bool {
        let drawing = match self {
            Self::Row(row) => &row.drawing,
            Self::Search(search) => &search.drawing,
        };
        matches!(drawing, Drawing::Follows)
    }

    fn drawing(&mut self) -> &mut Drawing {
        match self {
            Self::Row(row) => &mut row.drawing,
            Self::Search(search) => &mut search.drawing,
        }
    }
}

/// Raw logits: a row of them, or a row for each beam.
pub(super) enum Scores<'a> {
    /// A part of the step's.
    Step(&'a mut [f32]),
    /// Those of a prompt, which were kept until its row could begin.
    Own(Vec<f32>),
}

impl Scores<'_> {
    /// Those that were kept, if any.
    pub(super) fn own(kept: &mut Vec<f32>) -> Option<Self> {
        (!kept.is_empty()).then(|| Self::Own(std::mem::take(kept)))
    }

    fn all(&mut self) -> &mut [f32] {
        match self {
            Self::Step(scores) => scores,
            Self::Own(scores) => scores,
        }
    }
}

/// One choice.
pub(super) struct Choice<'a, S> {
    pub(super) chooser: Chooser<'a, S>,
    pub(super) scores: Scores<'a>,
    pub(super) request: &'a Request<S>,
    /// Ids of the prompt.
    pub(super) prompt: &'a [u32],
    /// Which of the rows that share a stream it is.
    pub(super) drawer: u64,
}

impl<S: Sequence> Choice<'_, S> {
    fn make(&mut self, group: Option<&mut Group>, scratch: &mut Scratch) {
        let Self { chooser, scores, request, prompt, drawer } = self;
        let stream = group.map(|group| group.stream(*drawer));
        match chooser {
            Chooser::Row(row) => row.choose(request, prompt, scores.all(), stream, scratch),
            Chooser::Search(search) => search.choose(request, prompt, scores.all(), stream, scratch),
        }
    }
}

/// Choices that are made one behind the other.
pub(super) type Unit<'a, 'b, S> = Mutex<&'b mut [Choice<'a, S>]>;

/// Makes the choices of a unit.
fn make<S: Sequence>(choices: &mut [Choice<'_, S>], scratch: &mut Scratch) {
    let mut group = choices.first_mut().and_then(|first| first.chooser.drawing().take());
    for choice in &mut *choices {
        choice.make(group.as_deref_mut(), scratch);
    }
    if let (Some(mut group), Some(first)) = (group, choices.first_mut()) {
        group.next_token();
        *first.chooser.drawing() = Drawing::Leads(group);
    }
}

/// Makes all choices of a step.
///
/// # Errors
/// `Panicked`.
pub(super) fn make_all<'a, 'b, S: Sequence>(
    threads: usize,
    choices: &'b mut [Choice<'a, S>],
    units: &mut Vec<Unit<'a, 'b, S>>,
    scratches: &mut Vec<Mutex<Scratch>>,
) -> Result<()> {
    let scores: usize = choices.iter_mut().map(|choice| choice.scores.all().len()).sum();
    scratches.resize_with(threads.max(1), Mutex::default);
    let mut rest = choices;
    while !rest.is_empty() {
        let followers = rest[1..].iter().take_while(|next| next.chooser.follows()).count();
        let (unit, others) = rest.split_at_mut(1 + followers);
        units.push(Mutex::new(unit));
        rest = others;
    }
    if threads == 1 || units.len() == 1 || scores < MANY_SCORES {
        let scratch = scratches[0].get_mut().unwrap_or_else(PoisonError::into_inner);
        units
            .iter_mut()
            .for_each(|unit| make(unit.get_mut().unwrap_or_else(PoisonError::into_inner), scratch));
        return Ok(());
    }
    let (units, scratches) = (&*units, &*scratches);
    team::run(threads, &Cancel::never(), |member| {
        // Nobody else asks for this member's scratch, or for a piece that it was given.
        let mut scratch = scratches[member.index()].lock().unwrap_or_else(PoisonError::into_inner);
        for unit in member.pieces(units.len(), 1).flatten() {
            make(&mut units[unit].lock().unwrap_or_else(PoisonError::into_inner), &mut scratch);
        }
        Ok(())
    })
}
