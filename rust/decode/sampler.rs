//! Chooses tokens from scores: the best one, the best few, or draws as `torch.multinomial` makes them.
//!
//! `torch.multinomial(p, n)` without replacement on a CPU takes the `n` largest of `p / e`, where `e` are exponential
//! draws for every token in order (the exponential race). Logarithms are taken only for tokens that can still win.

use crate::decode::exponential::{exponentiate, sum};
use crate::decode::torch_rng::TorchRng;

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

/// Scores looked at together, for loops that the compiler can turn into vector code.
const LANES: usize = 16;

/// A score below the winner's by this factor, or more, cannot win by rounding: f32 division and the rounding of the
/// exponential err by less than 2^-22 each.
const ROUNDING: f64 = 1.0 - 1e-6;

/// The largest score; minus infinity for none. A NaN anywhere is an error.
///
/// # Errors
/// `Unusable::Nan`.
pub fn maximum(scores: &[f32]) -> Result<f32, Unusable> {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut nan = [false; LANES];
    let (chunks, rest) = scores.as_chunks::<LANES>();
    for chunk in chunks {
        for ((lane, nan), &score) in lanes.iter_mut().zip(&mut nan).zip(chunk) {
            *lane = if score > *lane { score } else { *lane };
            *nan |= score.is_nan();
        }
    }
    let mut best = f32::NEG_INFINITY;
    for &score in lanes.iter().chain(rest) {
        best = if score > best { score } else { best };
    }
    if nan.contains(&true) || rest.iter().any(|score| score.is_nan()) { Err(Unusable::Nan) } else { Ok(best) }
}

/// The token with the largest score, the lowest id where several are equal; id 0 where all are forbidden, as
/// `torch.argmax` has it.
///
/// # Errors
/// `Unusable::Nan`.
pub fn greedy(scores: &[f32]) -> Result<u32, Unusable> {
    let best = maximum(scores)?;
    Ok(position(scores, best).unwrap_or(0) as u32)
}

/// Where a score is first found: a run of scores at a time, without a branch for each.
fn position(scores: &[f32], score: f32) -> Option<usize> {
    const RUN: usize = 8 * LANES;
    let here = |run: &[f32]| run.iter().fold(false, |found, &s| found | (s == score));
    let run = scores.chunks(RUN).position(here)?;
    let first = run * RUN;
    scores[first..].iter().position(|&s| s == score).map(|i| first + i)
}

/// Leaves the `count` largest scores with their ids in `best`, best first; of equal ones the lower id comes first.
pub fn largest(scores: &[f32], count: usize, best: &mut Best) {
    select_largest(scores, count, best);
    best.sort_unstable_by(better_first);
}

/// The `count`-th largest score (the smallest of all, where there are fewer). `buffer` is scratch.
pub fn nth_largest(scores: &[f32], count: usize, buffer: &mut Best) -> f32 {
    select_largest(scores, count, buffer);
    buffer.iter().map(|&(_, score)| score).fold(f32::INFINITY, f32::min)
}

/// Orders by falling score, then by rising id.
pub fn better_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// `largest` in any order: one pass that collects what beats the worst of the best so far, cut back when it grows.
fn select_largest(scores: &[f32], count: usize, best: &mut Best) {
    best.clear();
    let count = count.min(scores.len());
    if count == 0 {
        return;
    }
    let room = 2 * count + 4 * LANES;
    best.extend(scores[..count].iter().enumerate().map(|(id, &score)| (id as u32, score)));
    let mut bar = best.iter().map(|&(_, score)| score).fold(f32::INFINITY, f32::min);
    for (chunk_index, chunk) in scores[count..].chunks(LANES).enumerate() {
        let mut hit = false;
        for &score in chunk {
            hit |= score > bar;
        }
        if !hit {
            continue;
        }
        let base = count + chunk_index * LANES;
        best.extend(
            chunk.iter().enumerate().filter(|&(_, &score)| score > bar).map(|(i, &s)| ((base + i) as u32, s)),
        );
        if best.len() + LANES > room {
            best.select_nth_unstable_by(count - 1, better_first);
            best.truncate(count);
            bar = best[count - 1].1;
        }
    }
    if best.len() > count {
        best.select_nth_unstable_by(count - 1, better_first);
        best.truncate(count);
    }
}

/// Turns candidates' scores into probabilities, as a softmax over them alone (all others count as forbidden).
///
/// # Errors
/// `Unusable` where there are none: no candidate above minus infinity, plus infinity, NaN.
pub fn softmax(candidates: &[Candidate], probabilities: &mut Vec<f32>) -> Result<(), Unusable> {
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
    exponentiate(probabilities, best);
    let sum = sum(probabilities) as f32;
    probabilities.iter_mut().for_each(|probability| *probability /= sum);
    Ok(())
}

/// Draws one candidate with its probability; gives its place in the list.
///
/// `candidates` come in rising order of id, ids lie below `width`, and `width` exponentials are taken from the stream.
///
/// # Errors
/// As [`softmax`]; the stream then has not moved.
pub fn draw(
    rng: &mut TorchRng,
    candidates: &[Candidate],
    width: usize,
    probabilities: &mut Vec<f32>,
) -> Result<usize, Unusable> {
    softmax(candidates, probabilities)?;
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
    rng: &mut TorchRng,
    candidates: &[Candidate],
    width: usize,
    count: usize,
    probabilities: &mut Vec<f32>,
    places: &mut Best,
) -> Result<(), Unusable> {
    softmax(candidates, probabilities)?;
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
