//! Which exponentials of one seed's stream serve which rows, when the rows of a request are drawn for in groups, apart.
//!
//! torch draws for a whole batch at once: row `i` of `rows` draws its `t`-th token (`t` from 0) from exponential
//! `(t * rows + i) * width` of the stream on. Who draws for some of the rows alone passes over what belongs to the others.

use std::sync::Arc;

use crate::decode::jump::Jump;
use crate::decode::torch_rng::{TorchRng, WORDS_PER_EXPONENTIAL};

// Measured on an AMD EPYC with AVX-512 (Zen 4), by `benches/choose.rs`: a skipped word takes 0.08 to 0.1 ns (with AVX2 0.1, without
// vectors 0.48), a jump 117 microseconds (118, 186), a jump's polynomial 1.1 to 1.9 ms.

/// Words of the stream that are skipped in the time of a jump.
const WORDS_PER_JUMP: u128 = 1_250_000;
/// Words that are skipped in the time that a jump's polynomial takes.
const WORDS_PER_POLYNOMIAL: u128 = 15_000_000;

/// The stream of one seed, from which groups of rows are made.
#[derive(Debug, Clone)]
pub struct Draws {
    seed: u64,
    width: u64,
    rows: u64,
    /// Where the last group began.
    stream: TorchRng,
    /// From one token to the next, where that may be worth a jump.
    jump: Option<Arc<Jump>>,
}

/// Neighbouring rows that draw together, one token after the other.
#[derive(Debug, Clone)]
pub struct Group {
    stream: TorchRng,
    /// Words of the stream that one row takes, and all rows.
    row_words: u128,
    token_words: u128,
    first: u64,
    /// Words before the first row's present token.
    start: u128,
    /// The stream at `start`, and the jump from there to the next token.
    ahead: Option<(TorchRng, Arc<Jump>)>,
}

impl Draws {
    /// The stream of `seed` for `rows` rows, each of which takes `width` exponentials for a token.
    pub fn new(seed: u64, width: u64, rows: u64) -> Self {
        Self { seed, width, rows, stream: TorchRng::from_seed(seed), jump: None }
    }

    /// The generator of neighbouring rows that begin with `first`, standing before their `t`-th token.
    ///
    /// Costs little where `t` is 0 and `first` does not decrease from call to call; anything else is right, too.
    pub fn group(&mut self, first: u64, t: u64) -> Group {
        let row_words = u128::from(WORDS_PER_EXPONENTIAL) * u128::from(self.width);
        let token_words = row_words.saturating_mul(u128::from(self.rows));
        let place = u128::from(t).saturating_mul(u128::from(self.rows)) + u128::from(first);
        let start = place.saturating_mul(row_words);
        if start < self.stream.position() {
            self.stream = TorchRng::from_seed(self.seed);
        }
        go_to(&mut self.stream, start);
        if self.jump.is_none() && token_words > WORDS_PER_JUMP {
            self.jump = Some(Arc::new(Jump::by(token_words / u128::from(WORDS_PER_EXPONENTIAL))));
        }
        let stream = self.stream.clone();
        let ahead = self.jump.as_ref().map(|jump| (stream.clone(), Arc::clone(jump)));
        Group { stream, row_words, token_words, first, start, ahead }
    }
}

impl Group {
    /// The stream where `row` begins to draw its present token. Rows come in ascending order within a token, some may be left out;
    /// each takes at most its own exponentials.
    pub fn stream(&mut self, row: u64) -> &mut TorchRng {
        debug_assert!(row >= self.first, "row {row} of a group that begins with {}", self.first);
        let place = u128::from(row.saturating_sub(self.first));
        let target = self.start.saturating_add(place.saturating_mul(self.row_words));
        debug_assert!(target >= self.stream.position(), "row {row} out of order");
        skip_to(&mut self.stream, target);
        &mut self.stream
    }

    /// All rows of the group go on to the next token: by skipping, or by jumping where that is less work.
    pub fn next_token(&mut self) {
        self.start = self.start.saturating_add(self.token_words);
        let distance = self.start.saturating_sub(self.stream.position());
        match &mut self.ahead {
            Some((ahead, jump)) if distance > WORDS_PER_JUMP => {
                ahead.jump(jump);
                self.stream.clone_from(ahead);
            }
            Some((ahead, _)) => {
                skip_to(&mut self.stream, self.start);
                self.stream.catch_up();
                ahead.clone_from(&self.stream);
            }
            None => skip_to(&mut self.stream, self.start),
        }
    }
}

/// Skips to a later place; one that lies behind is left alone.
fn skip_to(stream: &mut TorchRng, target: u128) {
    let words = target.saturating_sub(stream.position());
    let exponentials = words / u128::from(WORDS_PER_EXPONENTIAL);
    stream.skip_exponentials(u64::try_from(exponentials).unwrap_or(u64::MAX));
}

/// Goes to a later place, by a jump of its own where it lies very far ahead.
fn go_to(stream: &mut TorchRng, target: u128) {
    let words = target.saturating_sub(stream.position());
    if words > WORDS_PER_POLYNOMIAL + WORDS_PER_JUMP {
        stream.jump(&Jump::by(words / u128::from(WORDS_PER_EXPONENTIAL)));
    } else {
        skip_to(stream, target);
    }
    stream.catch_up();
}
