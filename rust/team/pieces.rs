//! How the members of a team divide a loop: everyone's share from its front, then what is left of others' from their backs.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::meeting::Watch;

/// Loops over claimed pieces between two barriers; later ones fall back to shares.
pub(super) const LOOPS: usize = 8;
/// Members from whose shares another one takes pieces, at most: each look is a line of some other core.
pub(super) const VICTIMS: usize = 4;

/// How much of a member's shares is claimed, for each loop of a phase: from the front by itself (low half), from the back by
/// others (high half). A line of its own: the member is mostly alone with it.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Claims([AtomicU64; LOOPS]);

impl Claims {
    /// Nothing is claimed.
    pub(super) fn reset(&self) {
        self.0.iter().for_each(|c| c.store(0, Ordering::Relaxed));
    }
}

/// Pieces of a loop's range, for one member: of its own share from the front, then of others' from the back; or its share as
/// a whole.
#[derive(Debug)]
pub struct Pieces<'a> {
    /// Every member's claims, the phase's bank and the loop's number; none for the share as a whole.
    claims: Option<(&'a [[Claims; 2]], usize, usize)>,
    whole: Range<usize>,
    n: usize,
    least: usize,
    index: usize,
    /// How many members' shares have no piece left for this one: first its own, then those of the members after it.
    through: usize,
    /// Pieces end when the region does.
    watch: Watch<'a>,
}

/// The run of `0..n` that is the share of `index`, one of `count` that follow each other.
pub fn share(n: usize, index: usize, count: usize) -> Range<usize> {
    n * index / count..n * (index + 1) / count
}

impl<'a> Pieces<'a> {
    /// The share of member `index` of `count`, as a whole.
    pub(super) fn whole(n: usize, index: usize, count: usize, watch: Watch<'a>) -> Self {
        Self { claims: None, whole: share(n, index, count), n, least: 1, index, through: 0, watch }
    }

    /// Pieces of at least `least` of loop `number` of a phase, claimed in its `bank` of every member's claims; the share as a
    /// whole where there are no such claims.
    pub(super) fn claimed(self, claims: &'a [[Claims; 2]], bank: usize, number: usize, least: usize) -> Self {
        let claims = (claims.len() > 1 && number < LOOPS && self.n <= u32::MAX as usize)
            .then_some((claims, bank, number));
        Self { claims, least, ..self }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        if self.watch.is_over() {
            return None;
        }
        let Some((claims, bank, number)) = self.claims else {
            let whole = std::mem::take(&mut self.whole);
            return (!whole.is_empty()).then_some(whole);
        };
        let count = claims.len();
        while self.through < count.min(1 + VICTIMS) {
            let owner = (self.index + self.through) % count;
            let share = share(self.n, owner, count);
            // Half of what is left: few claims, and a short wait at the end.
            let piece = |claimed: u64| {
                let (front, back) = (claimed as u32 as usize, (claimed >> 32) as usize);
                let (start, end) = (share.start + front, share.end - back);
                let size = ((end - start) / 2).max(1).next_multiple_of(self.least).min(end - start);
                if self.through == 0 { start..start + size } else { end - size..end }
            };
            let unit = if self.through == 0 { 1 } else { 1 << 32 };
            let claim = |claimed: u64| {
                let size = piece(claimed).len() as u64;
                (size > 0).then_some(claimed + size * unit)
            };
            if let Ok(claimed) =
                claims[owner][bank].0[number].fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim)
            {
                return Some(piece(claimed));
            }
            self.through += 1;
        }
        None
    }
}
