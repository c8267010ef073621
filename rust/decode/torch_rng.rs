//! torch's CPU random stream: the 32-bit Mersenne Twister and the exponential draws of `torch.multinomial`.
//!
//! The generator is MT19937 (Matsumoto and Nishimura 1998, doi:10.1145/272991.272995), seeded as `torch.manual_seed`
//! does it: only the low 32 bits of a seed count. One exponential takes two words of the stream, whether it is looked
//! at or not, so that a caller may leave out what cannot matter (`skip_exponentials`) and stay in step with torch.
//! Nothing here knows what the draws are for.

use crate::decode::jump::Jump;
use crate::kernels::{BLOCK_WORDS, Kernels, Scans, WindowSums};

/// Words that one exponential takes from the stream.
pub(super) const WORDS_PER_EXPONENTIAL: u64 = 2;
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
    state: [u32; BLOCK_WORDS],
    /// Next word of `state` to hand out; `BLOCK_WORDS` when the block is used up.
    next: usize,
    /// Words that were skipped and not yet stepped over.
    skipped: u64,
    /// Words that the stream had given when it began the block; wraps around below 0 before the first block.
    begun: u128,
    scans: &'static Scans,
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
        Self::with_scans(Kernels::chosen_scans(), seed)
    }

    /// As [`TorchRng::from_seed`], with the kernels of a table; which one it is changes no number.
    pub fn with_scans(scans: &'static Scans, seed: u64) -> Self {
        let mut state = [0_u32; BLOCK_WORDS];
        state[0] = (seed & 0xffff_ffff) as u32;
        for i in 1..BLOCK_WORDS {
            let previous = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(i as u32);
        }
        let begun = 0_u128.wrapping_sub(BLOCK_WORDS as u128);
        Self { state, next: BLOCK_WORDS, skipped: 0, begun, scans }
    }

    /// Steps over `count` exponentials. Costs nothing until the next draw, and then only the recurrence.
    pub fn skip_exponentials(&mut self, count: u64) {
        self.skipped = self.skipped.saturating_add(WORDS_PER_EXPONENTIAL.saturating_mul(count));
    }

    /// Words that were taken from the stream, or skipped, since it was seeded.
    pub(super) fn position(&self) -> u128 {
        self.begun.wrapping_add(self.next as u128 + u128::from(self.skipped))
    }

    /// Steps over the exponentials of `jump`, however many they are, in the time of some hundred thousand of them.
    ///
    /// The state that is wanted is a sum over GF(2) of the windows of 624 words that begin at the next 19937 words. All bits of
    /// such a window are right, also those of its first word that do not enter the recurrence: every word that is handed out was
    /// itself made by the recurrence, and obeys it.
    pub fn jump(&mut self, jump: &Jump) {
        let mut sums: WindowSums = [[0; 2 * BLOCK_WORDS]; 4];
        let mut following = self.state;
        self.scans.twist(&mut following, 1);
        let left = BLOCK_WORDS - self.next;
        sums[0][..left].copy_from_slice(&self.state[self.next..]);
        sums[0][left..BLOCK_WORDS].copy_from_slice(&following[..self.next]);
        self.state = [0; BLOCK_WORDS];
        for offsets in jump.offsets() {
            self.scans.follow(&mut sums);
            self.scans.add_windows(&sums, offsets, &mut self.state);
            sums[0].copy_within(BLOCK_WORDS.., 0);
        }
        self.begun = self.begun.wrapping_add(self.next as u128).wrapping_add(jump.words());
        self.next = 0;
    }

    /// The next number of the stream (two words of the generator, high word first).
    pub fn uniform(&mut self) -> Uniform {
        self.catch_up();
        let high = u64::from(self.word());
        let low = u64::from(self.word());
        let bits = (high << 32 | low) & ((1 << UNIFORM_BITS) - 1);
        Uniform(bits as f64 * (1.0 / (1_u64 << UNIFORM_BITS) as f64))
    }

    /// Moves over the skipped words, so that copies of the generator need not each do it.
    pub(super) fn catch_up(&mut self) {
        if self.skipped > 0 {
            let next = self.next as u64 + self.skipped;
            // A block that is used up to its end stays until a word is wanted.
            self.twist((next - 1) / BLOCK_WORDS as u64);
            self.next = ((next - 1) % BLOCK_WORDS as u64 + 1) as usize;
            self.skipped = 0;
        }
    }

    /// Goes on to the beginning of a later block.
    fn twist(&mut self, blocks: u64) {
        self.scans.twist(&mut self.state, blocks);
        self.begun = self.begun.wrapping_add(u128::from(blocks) * BLOCK_WORDS as u128);
        self.next = 0;
    }

    /// One tempered word.
    fn word(&mut self) -> u32 {
        if self.next == BLOCK_WORDS {
            self.twist(1);
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }
}
