//! What choosing a token needs of a table: scans of scores and the words of the random stream. Safe functions over slices.

pub use super::twister::{BLOCK_WORDS, TWIST_MATRIX, WINDOW_BITS, WindowSums, window_offset};

/// The scans of one table. Handed out only where the CPU has its instructions; every table gives the same bits.
#[derive(Debug)]
pub struct Scans {
    pub(super) maximum: unsafe fn(&[f32]) -> f32,
    pub(super) maxima: unsafe fn(&[f32], usize, &mut [f32]) -> bool,
    pub(super) position: unsafe fn(&[f32], f32) -> usize,
    pub(super) exponentiate: unsafe fn(&mut [f32], f32),
    pub(super) sum_of_exponentials: unsafe fn(&[f32], f32) -> f64,
    pub(super) sum_in_double: unsafe fn(&[f32], f32) -> f64,
    pub(super) sum: unsafe fn(&[f32]) -> f64,
    pub(super) divide: unsafe fn(&mut [f32], f32),
    pub(super) subtract: unsafe fn(&mut [f32], f32, f32),
    pub(super) twist: unsafe fn(&mut [u32; BLOCK_WORDS], u64),
    pub(super) follow: unsafe fn(&mut WindowSums),
    pub(super) add_windows: unsafe fn(&WindowSums, &[u16], &mut [u32; BLOCK_WORDS]),
}

impl Scans {
    /// The largest score, minus infinity for none; NaN where one is.
    pub fn maximum(&self, scores: &[f32]) -> f32 {
        // SAFETY: the table is only handed out where its features are.
        unsafe { (self.maximum)(scores) }
    }

    /// Leaves the largest score of every `run` scores in turn in `maxima`, those that are NaN left out; gives whether one was.
    ///
    /// # Panics
    /// When there is not one place for each run.
    pub fn maxima(&self, scores: &[f32], run: usize, maxima: &mut [f32]) -> bool {
        assert_eq!(maxima.len(), scores.len().div_ceil(run), "a maximum for each run");
        // SAFETY: the table is only handed out where its features are.
        unsafe { (self.maxima)(scores, run, maxima) }
    }

    /// Where a score is first found.
    pub fn position(&self, scores: &[f32], score: f32) -> Option<usize> {
        // SAFETY: the table is only handed out where its features are.
        let at = unsafe { (self.position)(scores, score) };
        (at < scores.len()).then_some(at)
    }

    /// Replaces every value by `e^(value - maximum)`, right to two units in the last place, where none exceeds `maximum`.
    pub fn exponentiate(&self, values: &mut [f32], maximum: f32) {
        // SAFETY: the table is only handed out where its features are.
        unsafe { (self.exponentiate)(values, maximum) }
    }

    /// The sum of `e^(value - maximum)`, where none exceeds `maximum`.
    pub fn sum_of_exponentials(&self, values: &[f32], maximum: f32) -> f64 {
        // SAFETY: the table is only handed out where its features are.
        unsafe { (self.sum_of_exponentials)(values, maximum) }
    }

    /// As [`Scans::sum_of_exponentials`], where each of them is right to double precision.
    pub fn sum_in_double(&self, values: &[f32], maximum: f32) -> f64 {
        // SAFETY: the table is only handed out where its features are.
        unsafe { (self.sum_in_double)(values, maximum) }
    }

    /// The sum of the values.
    pub fn sum(&self, values: &[f32]) -> f64 {
        // SAFETY: the table is only handed out where its features are.
        unsafe { (self.sum)(values) }
    }

    /// Divides every value.
    pub fn divide(&self, values: &mut [f32], divisor: f32) {
        // SAFETY: the table is only handed out where its features are.
        unsafe { (self.divide)(values, divisor) }
    }

    /// Subtracts two numbers from every value, one after the other.
    pub fn subtract(&self, values: &mut [f32], first: f32, second: f32) {
        // SAFETY: the table is only handed out where its features are.
        unsafe { (self.subtract)(values, first, second) }
    }

    /// The block of the Mersenne Twister that follows `times` blocks later.
    pub fn twist(&self, words: &mut [u32; BLOCK_WORDS], times: u64) {
        // SAFETY: the table is only handed out where its features are.
        unsafe { (self.twist)(words, times) }
    }

    /// Fills the second block of words and the sums from the first block.
    pub fn follow(&self, sums: &mut WindowSums) {
        // SAFETY: the table is only handed out where its features are.
        unsafe { (self.follow)(sums) }
    }

    /// Adds to `block`, over GF(2), the windows of a block's length that begin at `offsets` (see [`window_offset`]).
    ///
    /// # Panics
    /// When a window reaches past the sums.
    pub fn add_windows(&self, sums: &WindowSums, offsets: &[u16], block: &mut [u32; BLOCK_WORDS]) {
        // SAFETY: the table is only handed out where its features are; the windows are held against the end there.
        unsafe { (self.add_windows)(sums, offsets, block) }
    }
}
