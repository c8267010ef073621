//! torch's CPU random stream: the 32-bit Mersenne Twister and the exponential draws of `torch.multinomial`.
//!
//! The generator is MT19937 (Matsumoto and Nishimura 1998, doi:10.1145/272991.272995), seeded as `torch.manual_seed`
//! does it: only the low 32 bits of a seed count. One exponential takes two words of the stream, whether it is looked
//! at or not, so that a caller may leave out what cannot matter (`skip_exponentials`) and stay in step with torch.
//! Nothing here knows what the draws are for.

/// Words of the generator's state.
const WORDS: usize = 624;
/// Distance of the second word that enters the recurrence.
const MIDDLE: usize = 397;
/// Twist matrix, last row.
const MATRIX: u32 = 0x9908_b0df;
/// Words that one exponential takes from the stream.
const WORDS_PER_EXPONENTIAL: u64 = 2;
/// Random bits of one uniform number (torch keeps as many as an f64 has).
const UNIFORM_BITS: u32 = 53;

/// torch's CPU generator.
///
/// ```
/// use fastdecode::decode::torch_rng::TorchRng;
/// // torch.manual_seed(0); torch.empty(1).exponential_()
/// let mut rng = TorchRng::from_seed(0);
/// assert_eq!(rng.uniform().exponential(), 3.508_326_3);
/// ```
#[derive(Clone)]
pub struct TorchRng {
    state: [u32; WORDS],
    /// Next word of `state` to hand out; `WORDS` when the block is used up.
    next: usize,
    /// Words that were skipped and not yet stepped over.
    skipped: u64,
}

impl std::fmt::Debug for TorchRng {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TorchRng")
            .field("next", &self.next)
            .field("skipped", &self.skipped)
            .finish_non_exhaustive()
    }
}

/// A uniform number in `[0, 1)` with 53 random bits, from which an exponential one is made when it is needed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Uniform(f64);

impl Uniform {
    /// The number itself. It bounds the exponential from below: `-ln(1 - u) >= u`.
    pub fn value(self) -> f64 {
        self.0
    }

    /// `-ln(1 - u)`, formed in f64 and rounded to f32 as torch does it.
    pub fn exponential(self) -> f32 {
        (-(-self.0).ln_1p()) as f32
    }
}

impl TorchRng {
    /// The generator after `torch.manual_seed(seed)`; torch takes the low 32 bits.
    pub fn from_seed(seed: u64) -> Self {
        let mut state = [0_u32; WORDS];
        state[0] = (seed & 0xffff_ffff) as u32;
        for i in 1..WORDS {
            let previous = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: WORDS, skipped: 0 }
    }

    /// Steps over `count` exponentials. Costs nothing until the next draw, and then only the recurrence.
    pub fn skip_exponentials(&mut self, count: u64) {
        self.skipped += WORDS_PER_EXPONENTIAL * count;
    }

    /// The next number of the stream (two words of the generator, high word first).
    pub fn uniform(&mut self) -> Uniform {
        self.catch_up();
        let high = u64::from(self.word());
        let low = u64::from(self.word());
        let bits = (high << 32 | low) & ((1 << UNIFORM_BITS) - 1);
        Uniform(bits as f64 * (1.0 / (1_u64 << UNIFORM_BITS) as f64))
    }

    /// Moves over the skipped words.
    fn catch_up(&mut self) {
        while self.skipped > 0 {
            let left = (WORDS - self.next) as u64;
            if self.skipped <= left {
                self.next += self.skipped as usize;
                self.skipped = 0;
            } else {
                self.skipped -= left;
                self.twist();
            }
        }
    }

    /// One tempered word.
    fn word(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Computes the next block of 624 words in place.
    ///
    /// Word i needs words i, i + 1 and i + 397 (mod 624), so runs of up to 227 words depend on nothing inside the run;
    /// they are written as loops over slices, which the compiler turns into vector code.
    fn twist(&mut self) {
        const RUN: usize = WORDS - MIDDLE;
        // Words 0..227 take their middle word from the old block.
        let (front, back) = self.state.split_at_mut(MIDDLE);
        twist_run(&mut front[..RUN + 1], &back[..RUN]);
        // Words 227..454 and 454..623 take it from the new one.
        twist_behind(&mut self.state, RUN, 2 * RUN);
        twist_behind(&mut self.state, 2 * RUN, WORDS - 1);
        // The last word is followed by the first of the new block.
        self.state[WORDS - 1] = mix(self.state[WORDS - 1], self.state[0]) ^ self.state[MIDDLE - 1];
        self.next = 0;
    }
}

/// The twisted combination of two neighbouring words.
#[inline(always)]
fn mix(word: u32, following: u32) -> u32 {
    let y = (word & 0x8000_0000) | (following & 0x7fff_ffff);
    (y >> 1) ^ ((y & 1).wrapping_neg() & MATRIX)
}

/// `words[i] = mix(words[i], words[i + 1]) ^ middle[i]` for all but the last of `words`.
#[inline(always)]
fn twist_run(words: &mut [u32], middle: &[u32]) {
    let count = words.len() - 1;
    assert_eq!(middle.len(), count, "one middle word per word");
    for i in 0..count {
        words[i] = mix(words[i], words[i + 1]) ^ middle[i];
    }
}

/// Words `from..to`, whose middle words lie 227 places in front of them and are already new.
#[inline(always)]
fn twist_behind(state: &mut [u32; WORDS], from: usize, to: usize) {
    let (front, back) = state.split_at_mut(from);
    let start = from - (WORDS - MIDDLE);
    twist_run(&mut back[..to - from + 1], &front[start..start + to - from]);
}
