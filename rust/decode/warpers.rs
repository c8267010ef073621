//! Warpers: what only sampling does to scores, from temperature to min_p, down to the candidates of a draw.
//!
//! Order and arithmetic are those of transformers 5.23: scores and probabilities are f32, options are rounded to f32
//! where they meet them, the cumulative sum of top_p runs in f64 with every prefix rounded to f32. A dropped token is one
//! whose score transformers sets to minus infinity; only the kept ones are carried along.

use crate::decode::sampler::{Best, Candidate, Unusable, better_first, nth_largest, softmax};

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

/// The warpers of a request, in order, with the scratch they need.
#[derive(Debug, Default)]
pub struct Warpers {
    list: Vec<Warper>,
    min_tokens_to_keep: usize,
    probabilities: Vec<f32>,
    buffer: Best,
    ranked: Vec<Ranked>,
    masses: Vec<f64>,
}

/// A candidate near the cut of top_p.
#[derive(Debug, Clone, Copy)]
struct Ranked {
    candidate: Candidate,
    probability: f32,
}

impl Warpers {
    /// Applies `list` in order; every restriction leaves at least `min_tokens_to_keep` tokens (1; the number of ending
    /// ids and one more for beams).
    pub fn new(list: Vec<Warper>, min_tokens_to_keep: usize) -> Self {
        Self { list, min_tokens_to_keep, ..Self::default() }
    }

    /// Leaves the tokens that may be drawn in `candidates`, in rising order of id. `scores` (`V` values) may be changed.
    ///
    /// # Errors
    /// `Unusable` where no probabilities exist.
    pub fn apply(&mut self, scores: &mut [f32], candidates: &mut Vec<Candidate>) -> Result<(), Unusable> {
        let mut done = 0;
        if let Some(&Warper::Temperature(temperature)) = self.list.first() {
            scores.iter_mut().for_each(|score| *score /= temperature as f32);
            done += 1;
        }
        candidates.clear();
        let mut bar = f32::NEG_INFINITY;
        if let Some(&Warper::TopK(k)) = self.list.get(done) {
            bar = nth_largest(scores, k.max(self.min_tokens_to_keep), &mut self.buffer);
            done += 1;
        }
        let mut nan = false;
        for (id, &score) in scores.iter().enumerate() {
            nan |= score.is_nan();
            if score >= bar && score > f32::NEG_INFINITY {
                candidates.push((id as u32, score));
            }
        }
        if nan {
            return Err(Unusable::Nan);
        }
        for place in done..self.list.len() {
            match self.list[place] {
                Warper::Temperature(temperature) => {
                    candidates.iter_mut().for_each(|(_, score)| *score /= temperature as f32);
                }
                Warper::TopK(k) => self.top_k(k, candidates),
                Warper::TopP(p) => self.top_p(p, candidates)?,
                Warper::MinP(p) => self.min_p(p, candidates)?,
            }
        }
        Ok(())
    }

    fn top_k(&mut self, k: usize, candidates: &mut Vec<Candidate>) {
        let k = k.max(self.min_tokens_to_keep);
        if k < candidates.len() {
            self.buffer.clone_from(candidates);
            let (_, &mut (_, bar), _) = self.buffer.select_nth_unstable_by(k - 1, better_first);
            candidates.retain(|&(_, score)| score >= bar);
        }
    }

    /// The cut is found without sorting all: probabilities fall into buckets by their leading bits, of which only the one
    /// that holds the cut is sorted.
    fn top_p(&mut self, p: f64, candidates: &mut Vec<Candidate>) -> Result<(), Unusable> {
        softmax(candidates, &mut self.probabilities)?;
        let threshold = (1.0 - p) as f32;
        self.masses.clear();
        self.masses.resize(bucket(1.0) + 1, 0.0);
        for &probability in &self.probabilities {
            self.masses[bucket(probability)] += f64::from(probability);
        }
        let mut below = 0.0_f64;
        let mut cut = 0;
        while cut < self.masses.len() && (below + self.masses[cut]) as f32 <= threshold {
            below += self.masses[cut];
            cut += 1;
        }
        let mut dropped = 0;
        self.ranked.clear();
        for (&candidate, &probability) in candidates.iter().zip(&self.probabilities) {
            dropped += usize::from(bucket(probability) < cut);
            if bucket(probability) == cut {
                self.ranked.push(Ranked { candidate, probability });
            }
        }
        self.ranked.sort_unstable_by(|a, b| worse_first(&a.candidate, &b.candidate));
        let mut worst_kept = None;
        for item in &self.ranked {
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
            self.buffer.clone_from(candidates);
            worst_kept = Some(*self.buffer.select_nth_unstable_by(dropped, worse_first).1);
        }
        if let Some(worst_kept) = worst_kept {
            candidates.retain(|candidate| worse_first(candidate, &worst_kept).is_ge());
        }
        Ok(())
    }

    fn min_p(&mut self, p: f64, candidates: &mut Vec<Candidate>) -> Result<(), Unusable> {
        softmax(candidates, &mut self.probabilities)?;
        let best = self.probabilities.iter().copied().fold(0.0, f32::max);
        let bar = p as f32 * best;
        self.buffer.clear();
        if self.min_tokens_to_keep > 1 && candidates.len() > self.min_tokens_to_keep {
            self.buffer.clone_from(candidates);
            self.buffer.select_nth_unstable_by(self.min_tokens_to_keep - 1, better_first);
        }
        let keep = self.buffer.get(self.min_tokens_to_keep.wrapping_sub(1)).copied();
        let mut place = 0;
        let probabilities = &self.probabilities;
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
