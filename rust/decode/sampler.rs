//! Chooses tokens from scores: the best one, the best few, or draws as `torch.multinomial` makes them.
//!
//! `torch.multinomial(p, n)` without replacement on a CPU takes the `n` largest of `p / e`, where `e` are exponential
//! draws for every token in order (the exponential race). Logarithms are taken only for tokens that can still win.

use crate::decode::scratch::Scratch;
use crate::decode::torch_rng::TorchRng;
use crate::kernels::Scans;

/// A token (or a position among several rows of tokens) with its score.
pub type Candidate = (u32, f32);

/// The best entries of a row, best first.
pub type Best = Vec<Candidate>;

/// Why no token can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// A score is not a number.
    Nan,
    /// A score is plus infinity, so that probabilities are not defined.
    Infinite,
    /// Every token is forbidden.
    AllForbidden,
}

impl Unusable {
    /// What was found, in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nan => "a score that is not a number",
            Self::Infinite => "a score of plus infinity",
            Self::AllForbidden => "minus infinity for every token (the options forbid all of them)",
        }
    }
}

/// Scores of a run, of which one maximum is taken: few maxima are to be ranked, and few scores of the best runs to be looked at.
const RUN: usize = 64;
/// Scores of a run where as many are wanted as there are longer runs.
const SHORT_RUN: usize = 16;
/// Scores of a run that are looked at together.
const PART: usize = 16;

/// A score below the winner's by this factor, or more, cannot win by rounding: f32 division and the rounding of the
/// exponential err by less than 2^-22 each.
const ROUNDING: f64 = 1.0 - 1e-6;

/// The largest score; minus infinity for none. A NaN anywhere is an error.
///
/// # Errors
/// `Unusable::Nan`.
pub fn maximum(scans: &Scans, scores: &[f32]) -> Result<f32, Unusable> {
    let maximum = scans.maximum(scores);
    if maximum.is_nan() { Err(Unusable::Nan) } else { Ok(maximum) }
}

/// The token with the largest score, the lowest id where several are equal; id 0 where all are forbidden, as
/// `torch.argmax` has it.
///
/// # Errors
/// `Unusable::Nan`.
pub fn greedy(scans: &Scans, scores: &[f32]) -> Result<u32, Unusable> {
    let best = maximum(scans, scores)?;
    Ok(scans.position(scores, best).unwrap_or(0) as u32)
}

/// Leaves the `count` largest scores with their ids in `scratch.best`, best first; of equal ones the lower id comes first.
pub fn largest(scores: &[f32], count: usize, scratch: &mut Scratch) {
    let Scratch { scans, maxima, best, .. } = scratch;
    best.clear();
    let count = count.min(scores.len());
    if count == 0 {
        return;
    }
    let runs = Runs::new(scans, scores, count, maxima);
    let bar = runs.bar(maxima);
    let mut equal = 0;
    runs.reaching(scores, maxima, bar, |id, score| {
        // Of those that equal the bar, the first are enough: it lets through at least `count`.
        if score > bar || equal < count {
            equal += usize::from(score == bar);
            best.push((id, score));
        }
    });
    if best.len() > count {
        best.select_nth_unstable_by(count - 1, better_first);
        best.truncate(count);
    }
    best.sort_unstable_by(better_first);
}

/// Runs of scores with the largest score of each, by which the few largest of all are found in one pass: as many runs as scores
/// are wanted have a maximum that reaches the bar, so the scores that do are at least as many.
pub(super) struct Runs {
    run: usize,
    scores: usize,
    /// Which maximum, from the largest one on, is the bar; 0 where there are not enough runs.
    rank: usize,
    nan: bool,
}

impl Runs {
    /// Runs of `scores` of which `count` are wanted; leaves the maximum of each in `maxima`.
    pub(super) fn new(scans: &Scans, scores: &[f32], count: usize, maxima: &mut Vec<f32>) -> Self {
        let run = if count <= scores.len() / RUN { RUN } else { SHORT_RUN };
        // What stands there is written over.
        maxima.resize(scores.len().div_ceil(run), 0.0);
        let nan = scans.maxima(scores, run, maxima);
        Self { run, scores: scores.len(), rank: if count <= maxima.len() { count } else { 0 }, nan }
    }

    /// Whether a score is not a number.
    pub(super) fn has_nan(&self) -> bool {
        self.nan
    }

    /// A score that at least as many reach as are wanted, or minus infinity.
    pub(super) fn bar(&self, maxima: &mut Vec<f32>) -> f32 {
        let Some(place) = self.rank.checked_sub(1) else { return f32::NEG_INFINITY };
        // The maxima are needed in their order once more, so a copy behind them is what is ranked.
        let runs = self.scores.div_ceil(self.run);
        maxima.extend_from_within(..runs);
        let (_, &mut bar, _) = maxima[runs..].select_nth_unstable_by(place, |a, b| b.total_cmp(a));
        maxima.truncate(runs);
        bar
    }

    /// Scores that reach `bar`, with their ids, in rising order of id.
    pub(super) fn reaching(&self, scores: &[f32], maxima: &[f32], bar: f32, mut then: impl FnMut(u32, f32)) {
        for (run, _) in maxima.iter().enumerate().filter(|&(_, &maximum)| maximum >= bar) {
            let first = run * self.run;
            let scores = &scores[first..(first + self.run).min(self.scores)];
            for (part, scores) in scores.chunks(PART).enumerate() {
                // Most parts have none; without a branch for each score that is soon known.
                if scores.iter().fold(false, |reached, &score| reached | (score >= bar)) {
                    for (place, &score) in scores.iter().enumerate().filter(|&(_, &score)| score >= bar) {
                        then((first + part * PART + place) as u32, score);
                    }
                }
            }
        }
    }
}

/// Orders by falling score, then by rising id.
pub fn better_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Turns candidates' scores into probabilities, as a softmax over them alone (all others count as forbidden).
///
/// # Errors
/// `Unusable` where there are none: no candidate above minus infinity, plus infinity, NaN.
pub fn softmax(
    scans: &Scans,
    candidates: &[Candidate],
    probabilities: &mut Vec<f32>,
) -> Result<(), Unusable> {
    let mut best = f32::NEG_INFINITY;
    for &(_, score) in candidates {
        if score.is_nan() {
            return Err(Unusable::Nan);
        }
        best = if score > best { score } else { best };
    }
    if best == f32::NEG_INFINITY {
        return Err(Unusable::AllForbidden);
    }
    if best == f32::INFINITY {
        return Err(Unusable::Infinite);
    }
    probabilities.clear();
    probabilities.extend(candidates.iter().map(|&(_, score)| score));
    scans.exponentiate(probabilities, best);
    let sum = scans.sum(probabilities) as f32;
    scans.divide(probabilities, sum);
    Ok(())
}

/// Draws one candidate with its probability; gives its place in the list.
///
/// `candidates` come in rising order of id, ids lie below `width`, and `width` exponentials are taken from the stream.
///
/// # Errors
/// As [`softmax`]; the stream then has not moved.
pub fn draw(
    scans: &Scans,
    rng: &mut TorchRng,
    candidates: &[Candidate],
    width: usize,
    probabilities: &mut Vec<f32>,
) -> Result<usize, Unusable> {
    softmax(scans, candidates, probabilities)?;
    let mut race = Race::new(rng, width);
    let (mut winner, mut winning) = (0, f32::NEG_INFINITY);
    for (place, (&(id, _), &probability)) in candidates.iter().zip(probabilities.iter()).enumerate() {
        if let Some(ratio) = race.run(id, probability, winning)
            && ratio > winning
        {
            (winner, winning) = (place, ratio);
        }
    }
    race.finish();
    Ok(winner)
}

/// Draws `count` different candidates, in the order in which they are drawn; leaves their places in `places`.
///
/// As [`draw`]. Where fewer than `count` candidates have a probability above zero, the others follow in the order of
/// the list (torch leaves that order open); there may be fewer than `count` in all.
///
/// # Errors
/// As [`softmax`]; the stream then has not moved.
pub fn draw_many(
    scans: &Scans,
    rng: &mut TorchRng,
    candidates: &[Candidate],
    width: usize,
    count: usize,
    probabilities: &mut Vec<f32>,
    places: &mut Best,
) -> Result<(), Unusable> {
    softmax(scans, candidates, probabilities)?;
    let mut race = Race::new(rng, width);
    places.clear();
    let mut bar = f32::NEG_INFINITY;
    for (place, (&(id, _), &probability)) in candidates.iter().zip(probabilities.iter()).enumerate() {
        let Some(ratio) = race.run(id, probability, bar) else { continue };
        if places.len() < count || ratio > bar {
            // `places` stays sorted; an equal ratio goes behind the earlier one.
            let at = places.partition_point(|&(_, other)| other >= ratio);
            places.insert(at, (place as u32, ratio));
            places.truncate(count);
            if places.len() == count {
                bar = places[count - 1].1;
            }
        }
    }
    race.finish();
    Ok(())
}

/// One exponential race over `width` tokens.
struct Race<'a> {
    rng: &'a mut TorchRng,
    /// First token whose exponential has not been taken.
    next: u32,
    width: u32,
}

impl<'a> Race<'a> {
    fn new(rng: &'a mut TorchRng, width: usize) -> Self {
        Self { rng, next: 0, width: width as u32 }
    }

    /// The token's `p / e`, or `None` where it cannot exceed `bar`.
    fn run(&mut self, id: u32, probability: f32, bar: f32) -> Option<f32> {
        self.rng.skip_exponentials(u64::from(id - self.next));
        self.next = id + 1;
        let uniform = self.rng.uniform();
        // e >= u, so p / e <= p / u.
        if f64::from(probability) < f64::from(bar) * uniform.value() * ROUNDING {
            return None;
        }
        Some(probability / uniform.exponential())
    }

    /// Takes what is left of the row from the stream.
    fn finish(self) {
        self.rng.skip_exponentials(u64::from(self.width - self.next));
    }
}
