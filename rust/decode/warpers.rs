//! Warpers: what only sampling does to scores, from temperature to min_p, down to the candidates of a draw.
//!
//! Order and arithmetic are those of transformers 5.23: scores and probabilities are f32, options are rounded to f32
//! where they meet them, the cumulative sum of top_p runs in f64 with every prefix rounded to f32. A dropped token is one
//! whose score transformers sets to minus infinity; only the kept ones are carried along.

use crate::decode::sampler::{Best, Candidate, Unusable, better_first, nth_largest, softmax};

/// Ranges shorter than this are sorted whole when top_p looks for its cut.
const SHORT: usize = 64;

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
}

/// A candidate on its way through top_p.
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

    fn top_p(&mut self, p: f64, candidates: &mut Vec<Candidate>) -> Result<(), Unusable> {
        softmax(candidates, &mut self.probabilities)?;
        let threshold = (1.0 - p) as f32;
        self.ranked.clear();
        self.ranked.extend(
            candidates
                .iter()
                .zip(&self.probabilities)
                .map(|(&candidate, &probability)| Ranked { candidate, probability }),
        );
        let dropped = lower_mass(&mut self.ranked, threshold)
            .min(candidates.len().saturating_sub(self.min_tokens_to_keep));
        if dropped > 0 {
            let (_, worst_kept, _) = self.ranked.select_nth_unstable_by(dropped, worse_first);
            let worst_kept = worst_kept.candidate;
            candidates.retain(|candidate| better_last(candidate, &worst_kept).is_ge());
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
fn better_last(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    a.1.total_cmp(&b.1).then(a.0.cmp(&b.0))
}

fn worse_first(a: &Ranked, b: &Ranked) -> std::cmp::Ordering {
    better_last(&a.candidate, &b.candidate)
}

/// How many items, from the worst on, have a cumulative probability of at most `threshold`.
///
/// Prefix sums never fall, so the cut is found by halving: half of a range is moved to the front by a selection and its
/// mass is added up, until the range is short enough to be sorted.
fn lower_mass(items: &mut [Ranked], threshold: f32) -> usize {
    let (mut from, mut to) = (0, items.len());
    let mut below = 0.0_f64;
    while to - from > SHORT {
        let middle = usize::midpoint(from, to);
        items[from..to].select_nth_unstable_by(middle - from, worse_first);
        let mass: f64 = items[from..middle].iter().map(|item| f64::from(item.probability)).sum();
        if (below + mass) as f32 <= threshold {
            below += mass;
            from = middle;
        } else {
            to = middle;
        }
    }
    items[from..to].sort_unstable_by(worse_first);
    for item in &items[from..to] {
        below += f64::from(item.probability);
        if below as f32 > threshold {
            break;
        }
        from += 1;
    }
    from
}
