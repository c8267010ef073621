//! The words of the 32-bit Mersenne Twister (MT19937; Matsumoto and Nishimura 1998, doi:10.1145/272991.272995): its recurrence, and
//! sums over GF(2) of windows of words, with which one jumps far ahead.

use super::lanes::{Lanes, WIDTH};

/// Words of the generator's state, a block.
pub const BLOCK_WORDS: usize = 624;
/// Distance of the second word that enters the recurrence.
const MIDDLE: usize = 397;
/// Twist matrix, last row.
pub const TWIST_MATRIX: u32 = 0x9908_b0df;
/// Windows that one offset may stand for: those at three neighbouring places, each taken or not.
pub const WINDOW_BITS: usize = 3;

/// Two blocks of words, and sums of each word with its followers.
///
/// A sum of windows at places `i`, `i + 1` and `i + 2` is one window of one of these rows. The first row holds the words themselves, the others the
/// sums that the patterns 3, 5 and 7 take (bit `k` of a pattern stands for the word `k` places behind); even patterns are odd ones further on.
pub type WindowSums = [[u32; 2 * BLOCK_WORDS]; 4];

/// Where in [`WindowSums`], taken as one row, the window begins that sums those at `place + k` for all set bits `k` of `pattern`.
pub const fn window_offset(place: usize, pattern: usize) -> usize {
    let shift = pattern.trailing_zeros() as usize;
    (pattern >> shift) / 2 * 2 * BLOCK_WORDS + place + shift
}

/// Computes the next block in place, `times` times.
///
/// Word i needs words i, i + 1 and i + 397 (mod 624), so that sixteen neighbouring ones depend on nothing among themselves.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn twist<L: Lanes>(words: &mut [u32; BLOCK_WORDS], times: u64) {
    /// First word whose middle word lies in the new block, 227 places in front of it.
    const TURN: usize = BLOCK_WORDS - MIDDLE;
    /// The vector in which that word lies.
    const MIXED: usize = TURN / WIDTH * WIDTH;
    const LAST: usize = BLOCK_WORDS - WIDTH;
    const { assert!(BLOCK_WORDS.is_multiple_of(WIDTH), "a block is a whole number of vectors") };
    let p = words.as_mut_ptr().cast::<f32>();
    for _ in 0..times {
        // SAFETY: vectors begin at `LAST` at most, those of followers one word earlier, those of middle words at `MIDDLE + MIXED -
        // WIDTH` or at `LAST - TURN` at most; all of them end within the block. Any 32 bits are a float, which is only moved and
        // combined by bits. The rest is the caller's contract.
        unsafe {
            let step = |at: usize, following: L::F, middle: L::F| {
                L::store(p.add(at), L::twist(L::load(p.add(at)), following, middle));
            };
            for at in (0..MIXED).step_by(WIDTH) {
                step(at, L::load(p.add(at + 1)), L::load(p.add(at + MIDDLE)));
            }
            // The end of the old block, then the beginning of the new one.
            let mut middle = [0.0; WIDTH];
            for (lane, word) in middle.iter_mut().enumerate() {
                *word = p.add((MIXED + lane + MIDDLE) % BLOCK_WORDS).read();
            }
            step(MIXED, L::load(p.add(MIXED + 1)), L::from_array(middle));
            for at in (MIXED + WIDTH..LAST).step_by(WIDTH) {
                step(at, L::load(p.add(at + 1)), L::load(p.add(at - TURN)));
            }
            // The last word is followed by the first of the new block.
            let mut following = [0.0; WIDTH];
            for (lane, word) in following.iter_mut().enumerate() {
                *word = p.add((LAST + lane + 1) % BLOCK_WORDS).read();
            }
            step(LAST, L::from_array(following), L::load(p.add(LAST - TURN)));
        }
    }
}

/// The twisted combination of two neighbouring words: the highest bit of the first one and the others of the second one, times the
/// matrix.
#[inline(always)]
pub(super) fn mix(word: u32, following: u32) -> u32 {
    let y = (word & 0x8000_0000) | (following & 0x7fff_ffff);
    (y >> 1) ^ ((y & 1).wrapping_neg() & TWIST_MATRIX)
}

/// Fills the second block and the sums from the words of the first block.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn follow<L: Lanes>(sums: &mut WindowSums) {
    let [words, three, five, seven] = sums;
    let (first, second) = words.split_at_mut(BLOCK_WORDS);
    second.copy_from_slice(first);
    if let Some(block) = second.first_chunk_mut() {
        // SAFETY: the caller's contract.
        unsafe { twist::<L>(block, 1) };
    }
    // The last two sums lack followers, and no window reaches them.
    for i in 0..2 * BLOCK_WORDS - 2 {
        three[i] = words[i] ^ words[i + 1];
        five[i] = words[i] ^ words[i + 2];
        seven[i] = three[i] ^ words[i + 2];
    }
}

/// Adds to `block` the windows of a block's length that begin at `offsets`.
///
/// # Safety
/// As for [`Lanes`]. `PARTS` divides the vectors of a block, and what is added up in registers is `PARTS` vectors.
#[inline(always)]
pub(super) unsafe fn add_windows<L: Lanes, const PARTS: usize>(
    sums: &WindowSums,
    offsets: &[u16],
    block: &mut [u32; BLOCK_WORDS],
) {
    const { assert!(BLOCK_WORDS.is_multiple_of(PARTS * WIDTH), "a block is a whole number of parts") };
    let words = sums.as_flattened();
    let last = offsets.iter().copied().max().map_or(0, usize::from);
    assert!(last + BLOCK_WORDS <= words.len(), "windows lie within the sums");
    for column in (0..BLOCK_WORDS).step_by(PARTS * WIDTH) {
        // SAFETY: `column + PARTS * WIDTH <= BLOCK_WORDS`, windows were held against the end above, and any 32 bits are a float,
        // which is only moved and combined by bits; the rest is the caller's contract.
        unsafe {
            let to = block.as_mut_ptr().add(column).cast::<f32>();
            let from = words.as_ptr().add(column).cast::<f32>();
            let mut parts = [L::splat(0.0); PARTS];
            for (i, part) in parts.iter_mut().enumerate() {
                *part = L::load(to.add(i * WIDTH));
            }
            for &offset in offsets {
                let window = from.add(usize::from(offset));
                for (i, part) in parts.iter_mut().enumerate() {
                    *part = L::xor(*part, L::load(window.add(i * WIDTH)));
                }
            }
            for (i, &part) in parts.iter().enumerate() {
                L::store(to.add(i * WIDTH), part);
            }
        }
    }
}
