//! Warpers: what only sampling does to scores, from temperature to min_p, down to the candidates of a draw.
//!
//! Order and arithmetic are those of transformers 5.24: scores and probabilities are f32, options are rounded to f32
//! where they meet them, the cumulative sum of top_p runs in f64 with every prefix rounded to f32. A dropped token is one
//! whose score transformers sets to minus infinity; only the kept ones are carried along.

use crate::decode::sampler::{Candidate, Runs, Unusable, better_first, maximum, softmax};
use crate::decode::scratch::Scratch;

/// One restriction of the candidates, or a change of their scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warper {
    /// Divides all scores.
    Temperature(f64),
    /// Keeps the k largest and all that equal the last of them (Fan et al. 2018, arXiv:1805.04833).
    TopK(usize),
    /// Keeps the most probable tokens whose sum reaches p (Holtzman et al. 2019, arXiv:1904.09751).
    TopP(f64),
    /// Keeps tokens at least p times as probable as the best one (Nguyen et al. 2024, arXiv:2407.01082).
    MinP(f64),
}

/// The warpers of a request, in order.
#[derive(Debug, Default)]
pub struct Warpers {
    list: Vec<Warper>,
    min_tokens_to_keep: usize,
}

/// A candidate near the cut of top_p.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ranked {
    candidate: Candidate,
    probability: f32,
}

impl Warpers {
    /// Applies `list` in order; every restriction leaves at least `min_tokens_to_keep` tokens (1; the number of ending
    /// ids and one more for beams).
    pub fn new(list: Vec<Warper>, min_tokens_to_keep: usize) -> Self {
        Self { list, min_tokens_to_keep }
    }

    /// Leaves the tokens that may be drawn in `scratch.candidates`, in rising order of id. `scores` (`V` values) may be changed.
    ///
    /// # Errors
    /// `Unusable` where no probabilities exist.
    pub fn apply(&self, scores: &mut [f32], scratch: &mut Scratch) -> Result<(), Unusable> {
        let mut rest = self.list.as_slice();
        match *rest {
            [Warper::Temperature(temperature), Warper::TopK(k), ..] => {
                if !self.collect_largest(scores, k, temperature as f32, scratch)? {
                    scratch.scans.divide(scores, temperature as f32);
                    rest = &rest[1..];
                    self.collect_largest(scores, k, 1.0, scratch)?;
                }
            }
            [Warper::TopK(k), ..] => {
                self.collect_largest(scores, k, 1.0, scratch)?;
            }
            _ => {
                if let [Warper::Temperature(temperature), others @ ..] = rest {
                    scratch.scans.divide(scores, *temperature as f32);
                    rest = others;
                }
                maximum(scratch.scans, scores)?;
                let all = scores.iter().enumerate().filter(|&(_, &score)| score > f32::NEG_INFINITY);
                scratch.candidates.clear();
                scratch.candidates.extend(all.map(|(id, &score)| (id as u32, score)));
            }
        }
        for (place, warper) in rest.iter().enumerate() {
            match *warper {
                Warper::Temperature(temperature) => {
                    let candidates = &mut scratch.candidates;
                    candidates.iter_mut().for_each(|(_, score)| *score /= temperature as f32);
                    if place == 0 {
                        candidates.retain(|&(_, score)| score > f32::NEG_INFINITY);
                    }
                }
                Warper::TopK(k) => self.top_k(k, scratch),
                Warper::TopP(p) => self.top_p(p, scratch)?,
                Warper::MinP(p) => self.min_p(p, scratch)?,
            }
        }
        Ok(())
    }

    /// Collects, in one pass, what may be among the `k` largest after a division by `divisor` (and some more), so that only those
    /// need be divided; gives false, and collects nothing, where rounding could make more scores equal than it collects.
    fn collect_largest(
        &self,
        scores: &[f32],
        k: usize,
        divisor: f32,
        scratch: &mut Scratch,
    ) -> Result<bool, Unusable> {
        /// By this part of itself a score must lie below another to stay below it: a quotient that is a normal number is
        /// rounded by at most 2^-24 of itself.
        const CLEARLY: f32 = 1.0 / 1_048_576.0;
        let Scratch { scans, candidates, maxima, .. } = scratch;
        let runs = Runs::new(scans, scores, k.max(self.min_tokens_to_keep), maxima);
        if runs.has_nan() {
            return Err(Unusable::Nan);
        }
        let mut bar = runs.bar(maxima);
        if divisor != 1.0 && bar > f32::NEG_INFINITY {
            if !(bar.is_normal() && (bar / divisor).is_normal()) {
                return Ok(false);
            }
            bar -= bar.abs() * CLEARLY;
        }
        candidates.clear();
        runs.reaching(scores, maxima, bar, |id, score| {
            if score > f32::NEG_INFINITY {
                candidates.push((id, score));
            }
        });
        Ok(true)
    }

    fn top_k(&self, k: usize, scratch: &mut Scratch) {
        let Scratch { candidates, buffer, .. } = scratch;
        let k = k.max(self.min_tokens_to_keep);
        if k < candidates.len() {
            buffer.clone_from(candidates);
            let (_, &mut (_, bar), _) = buffer.select_nth_unstable_by(k - 1, better_first);
            candidates.retain(|&(_, score)| score >= bar);
        }
    }

    /// The cut is found without sorting all: probabilities fall into buckets by their leading bits, of which only the one
    /// that holds the cut is sorted.
    fn top_p(&self, p: f64, scratch: &mut Scratch) -> Result<(), Unusable> {
        let Scratch { scans, candidates, probabilities, buffer, ranked, masses, .. } = scratch;
        softmax(scans, candidates, probabilities)?;
        let threshold = (1.0 - p) as f32;
        masses.clear();
        masses.resize(bucket(1.0) + 1, 0.0);
        for &probability in &*probabilities {
            masses[bucket(probability)] += f64::from(probability);
        }
        let mut below = 0.0_f64;
        let mut cut = 0;
        while cut < masses.len() && (below + masses[cut]) as f32 <= threshold {
            below += masses[cut];
            cut += 1;
        }
        let mut dropped = 0;
        ranked.clear();
        for (&candidate, &probability) in candidates.iter().zip(&*probabilities) {
            dropped += usize::from(bucket(probability) < cut);
            if bucket(probability) == cut {
                ranked.push(Ranked { candidate, probability });
            }
        }
        ranked.sort_unstable_by(|a, b| worse_first(&a.candidate, &b.candidate));
        let mut worst_kept = None;
        for item in &*ranked {
            below += f64::from(item.probability);
            if below as f32 > threshold {
                worst_kept = Some(item.candidate);
                break;
            }
            dropped += 1;
        }
        let most = candidates.len().saturating_sub(self.min_tokens_to_keep);
        if dropped > most || (worst_kept.is_none() && dropped > 0) {
            // Too many, or the cut lies exactly between two buckets: whoever has this rank is the first to stay.
            dropped = dropped.min(most);
            buffer.clone_from(candidates);
            worst_kept = Some(*buffer.select_nth_unstable_by(dropped, worse_first).1);
        }
        if let Some(worst_kept) = worst_kept {
            candidates.retain(|candidate| worse_first(candidate, &worst_kept).is_ge());
        }
        Ok(())
    }

    fn min_p(&self, p: f64, scratch: &mut Scratch) -> Result<(), Unusable> {
        let Scratch { scans, candidates, probabilities, buffer, .. } = scratch;
        softmax(scans, candidates, probabilities)?;
        let best = probabilities.iter().copied().fold(0.0, f32::max);
        let bar = p as f32 * best;
        buffer.clear();
        if self.min_tokens_to_keep > 1 && candidates.len() > self.min_tokens_to_keep {
            buffer.clone_from(candidates);
            buffer.select_nth_unstable_by(self.min_tokens_to_keep - 1, better_first);
        }
        let keep = buffer.get(self.min_tokens_to_keep.wrapping_sub(1)).copied();
        let mut place = 0;
        let everything = candidates.len() <= self.min_tokens_to_keep;
        candidates.retain(|candidate| {
            let probability = probabilities[place];
            place += 1;
            everything
                || probability >= bar
                || keep.is_some_and(|last| better_first(candidate, &last).is_le())
        });
        Ok(())
    }
}

/// Rising score; of equal scores the lower id first, as a stable ascending sort has it.
fn worse_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    a.1.total_cmp(&b.1).then(a.0.cmp(&b.0))
}

/// Exponent and leading three bits of a probability.
fn bucket(probability: f32) -> usize {
    (probability.to_bits() >> 20) as usize
}
