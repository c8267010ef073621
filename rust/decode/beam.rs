//! Beam search as transformers 5.24 does it (`GenerationMixin._beam_search`): the bookkeeping of one prompt.
//!
//! Scores are f32 throughout, and sums and quotients are formed in the order of the original. What transformers decides
//! for a batch as a whole is decided here for each prompt; the results are the same, because a prompt that could stop
//! lets nothing new in. Nothing here knows caches; `parents` says which of them to fork.

use crate::decode::sampler::{Best, Candidate, Unusable, better_first, draw_many, largest};
use crate::decode::scratch::Scratch;
use crate::decode::stopping::Stopping;
use crate::decode::torch_rng::TorchRng;

/// What a hypothesis that does not count has added to its score.
const EXCLUDED: f32 = -1.0e9;

/// When the search for better hypotheses ends (transformers' `early_stopping`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// `False`: when the best running beam, scored at its present length, is worse than the worst finished one.
    #[default]
    Heuristic,
    /// `True`: as soon as there are `num_beams` finished ones.
    Full,
    /// `"never"`: when no running beam could become better, at the best length there is.
    Never,
}

/// What a search is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamSettings {
    /// Beams that run side by side.
    pub num_beams: usize,
    /// Exponent of the length by which sums of log-probabilities are divided.
    pub length_penalty: f64,
    /// When the search ends.
    pub early_stopping: EarlyStopping,
    /// New tokens of a hypothesis.
    pub max_new_tokens: usize,
}

impl BeamSettings {
    /// Continuations that a step looks at, so that enough stay when some of them end: `max(2, 1 + ids) * num_beams`.
    pub fn continuations(&self, ending_ids: usize, vocab_size: usize) -> usize {
        let wanted = (1 + ending_ids).max(2).saturating_mul(self.num_beams);
        wanted.min(self.num_beams.saturating_mul(vocab_size))
    }

    /// By what a sum of log-probabilities over `length` tokens is divided.
    fn penalty(&self, length: usize) -> f32 {
        (length as f64).powf(self.length_penalty) as f32
    }
}

/// A beam that may still grow.
#[derive(Debug, Clone, Default)]
struct Running {
    /// The prompt's ids and the generated ones.
    tokens: Vec<u32>,
    score: f32,
}

/// A place among the results.
#[derive(Debug, Clone)]
struct Finished {
    /// Generated ids.
    tokens: Vec<u32>,
    score: f32,
    /// Whether a hypothesis that ended is in it.
    ended: bool,
}

/// The search for one prompt.
#[derive(Debug)]
pub struct BeamSearch {
    settings: BeamSettings,
    prompt_length: usize,
    generated: usize,
    running: Vec<Running>,
    next_running: Vec<Running>,
    parents: Vec<usize>,
    finished: Vec<Finished>,
    next_finished: Vec<Finished>,
    /// Whether running beams can still improve on the finished ones; never true again once it was false.
    improvable: bool,
    done: bool,
    ranked: Best,
}

impl BeamSearch {
    /// A search from a prompt, whose ids are none where it was given as embeddings.
    pub fn new(settings: BeamSettings, prompt: &[u32]) -> Self {
        let count = settings.num_beams;
        let mut running = vec![Running { tokens: prompt.to_vec(), score: EXCLUDED }; count];
        // Only the first beam counts in the first step, or all would choose the same tokens.
        running[0].score = 0.0;
        let slot = Finished { tokens: Vec::new(), score: EXCLUDED, ended: false };
        Self {
            settings,
            prompt_length: prompt.len(),
            generated: 0,
            next_running: running.clone(),
            running,
            parents: vec![0; count],
            finished: vec![slot.clone(); count],
            next_finished: vec![slot; count],
            improvable: true,
            done: false,
            ranked: Vec::new(),
        }
    }

    /// What the search was asked for.
    pub fn settings(&self) -> &BeamSettings {
        &self.settings
    }

    /// Ids of a running beam, prompt included.
    pub fn tokens(&self, beam: usize) -> &[u32] {
        &self.running[beam].tokens
    }

    /// Sum of the log-probabilities of a running beam.
    pub fn score(&self, beam: usize) -> f32 {
        self.running[beam].score
    }

    /// Generated tokens of every running beam.
    pub fn generated(&self) -> usize {
        self.generated
    }

    /// For every running beam, the beam of the step before that it continues.
    pub fn parents(&self) -> &[usize] {
        &self.parents
    }

    /// Whether nothing can change the results any more.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The `count` best hypotheses with their scores, best first. A place that nothing finite ever reached repeats the
    /// best one; `None` where there is none at all.
    pub fn results(&self, count: usize) -> Option<impl Iterator<Item = (&[u32], f32)>> {
        let best = self.finished.first().filter(|slot| slot.ended)?;
        Some(self.finished.iter().take(count).map(move |slot| {
            let tokens = if slot.ended { &slot.tokens } else { &best.tokens };
            (tokens.as_slice(), slot.score)
        }))
    }

    /// Takes one step: `continuations` are places among `num_beams × vocab_size` with the sums of log-probabilities,
    /// in the order in which they were chosen.
    pub fn advance(&mut self, continuations: &[Candidate], vocab_size: usize, stopping: &Stopping) {
        let split = |place: u32| (place as usize / vocab_size, (place as usize % vocab_size) as u32);
        let length = self.generated + 1;
        let ends = |token| stopping.check(token, length, self.settings.max_new_tokens).is_some();
        let mut all_end = true;

        // The best that do not end run on.
        self.ranked.clear();
        for (rank, &(place, score)) in continuations.iter().enumerate() {
            let ended = ends(split(place).1);
            all_end &= ended;
            self.ranked.push((rank as u32, if ended { score + EXCLUDED } else { score }));
        }
        self.ranked.sort_unstable_by(better_first);
        for (beam, (next, &(rank, score))) in self.next_running.iter_mut().zip(&self.ranked).enumerate() {
            let (parent, token) = split(continuations[rank as usize].0);
            next.tokens.clone_from(&self.running[parent].tokens);
            next.tokens.push(token);
            next.score = score;
            self.parents[beam] = parent;
        }

        // Those among the first `num_beams` that end compete with the finished ones. The slots come first in the order.
        let slots = self.finished.len();
        let closed = !self.improvable
            || (self.settings.early_stopping == EarlyStopping::Full
                && self.finished.iter().all(|slot| slot.ended));
        let penalty = self.settings.penalty(length);
        self.ranked.clear();
        self.ranked.extend(self.finished.iter().enumerate().map(|(place, slot)| (place as u32, slot.score)));
        for (rank, &(place, score)) in continuations.iter().enumerate().take(slots) {
            if !closed && ends(split(place).1) {
                self.ranked.push(((slots + rank) as u32, score / penalty));
            }
        }
        self.ranked.sort_unstable_by(better_first);
        for (next, &(place, score)) in self.next_finished.iter_mut().zip(&self.ranked) {
            let place = place as usize;
            next.score = score;
            if place < slots {
                next.tokens.clone_from(&self.finished[place].tokens);
                next.ended = self.finished[place].ended;
            } else {
                let (parent, token) = split(continuations[place - slots].0);
                next.tokens.clear();
                next.tokens.extend_from_slice(&self.running[parent].tokens[self.prompt_length..]);
                next.tokens.push(token);
                next.ended = true;
            }
        }

        std::mem::swap(&mut self.running, &mut self.next_running);
        std::mem::swap(&mut self.finished, &mut self.next_finished);
        self.generated = length;
        self.decide(all_end);
    }

    /// Whether the search goes on.
    fn decide(&mut self, all_end: bool) {
        let settings = &self.settings;
        let all_ended = self.finished.iter().all(|slot| slot.ended);
        let length = if settings.early_stopping == EarlyStopping::Never && settings.length_penalty > 0.0 {
            settings.max_new_tokens
        } else {
            self.generated
        };
        let best_possible = self.running[0].score / settings.penalty(length);
        let worst = if all_ended {
            self.finished.iter().map(|slot| slot.score).fold(f32::INFINITY, f32::min)
        } else {
            EXCLUDED
        };
        self.improvable &= best_possible > worst;
        self.done =
            !self.improvable || (all_ended && settings.early_stopping == EarlyStopping::Full) || all_end;
    }
}

/// The continuations of one prompt's beams in one step.
#[derive(Debug, Default)]
pub struct Continuations {
    /// Places among `num_beams × vocab_size` with their accumulated scores.
    list: Vec<Candidate>,
    /// Those that were drawn.
    drawn: Best,
}

impl Continuations {
    /// Starts a step.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// Adds the `count` best tokens of a beam whose sum so far is `running`. Beams come in order.
    pub fn add_best(
        &mut self,
        beam: usize,
        running: f32,
        log_probabilities: &[f32],
        count: usize,
        scratch: &mut Scratch,
    ) {
        largest(log_probabilities, count, scratch);
        let base = (beam * log_probabilities.len()) as u32;
        self.list.extend(scratch.best.iter().map(|&(id, score)| (base + id, score + running)));
    }

    /// Adds every token of a beam that may be drawn. Beams come in order.
    pub fn add_all(&mut self, beam: usize, running: f32, candidates: &[Candidate], vocab_size: usize) {
        let base = (beam * vocab_size) as u32;
        self.list.extend(candidates.iter().map(|&(id, score)| (base + id, score + running)));
    }

    /// The `count` best, best first; of equal ones the earlier beam, then the lower id, comes first.
    pub fn best(&mut self, count: usize) -> &[Candidate] {
        self.list.sort_unstable_by(better_first);
        self.list.truncate(count);
        &self.list
    }

    /// `count` different ones, drawn among `width` places by the softmax of their scores, best first; of equal ones the one that was
    /// drawn first.
    ///
    /// # Errors
    /// `Unusable` where no probabilities exist.
    pub fn drawn(
        &mut self,
        rng: &mut TorchRng,
        width: usize,
        count: usize,
        scratch: &mut Scratch,
    ) -> Result<&[Candidate], Unusable> {
        let Scratch { scans, probabilities, .. } = scratch;
        draw_many(scans, rng, &self.list, width, count, probabilities, &mut self.drawn)?;
        for drawn in &mut self.drawn {
            *drawn = self.list[drawn.0 as usize];
        }
        // Too few tokens are allowed: forbidden ones fill up, which no result will hold while there are better ones.
        let mut unused =
            (0..width as u32).filter(|place| self.list.binary_search_by_key(place, |c| c.0).is_err());
        while self.drawn.len() < count
            && let Some(place) = unused.next()
        {
            self.drawn.push((place, f32::NEG_INFINITY));
        }
        self.drawn.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal));
        Ok(&self.drawn)
    }
}
