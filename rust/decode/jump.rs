//! Jumps ahead in torch's random stream: the polynomial over GF(2) by which a distance is one sum of windows.
//!
//! The recurrence of the Mersenne Twister is linear over GF(2), so that its words at a distance of `n` are those sums of the next
//! 19937 words that `x^n` modulo its characteristic polynomial names (Haramoto, Matsumoto, Nishimura, Panneton and L'Ecuyer 2008,
//! doi:10.1287/ijoc.1070.0251). The characteristic polynomial is that of Matsumoto and Nishimura 1998, section 3.2.

use crate::decode::torch_rng::WORDS_PER_EXPONENTIAL;
use crate::kernels::{BLOCK_WORDS, TWIST_MATRIX, WINDOW_BITS, window_offset};

/// Degree of the characteristic polynomial: the bits that enter the recurrence.
const DEGREE: usize = 19_937;
/// Bits of a word of a polynomial.
const BITS: usize = u64::BITS as usize;
/// Words of a polynomial below the characteristic one.
const WORDS: usize = DEGREE.div_ceil(BITS);

/// A polynomial over GF(2), lowest coefficients first.
type Polynomial = [u64; WORDS];

/// A step ahead of so many exponentials, at which [`crate::decode::torch_rng::TorchRng::jump`] looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jump {
    words: u128,
    /// Where windows begin, block after block.
    offsets: Vec<u16>,
    /// Where in `offsets` every block ends.
    ends: Vec<usize>,
}

impl Jump {
    /// A step over so many exponentials. Takes about a millisecond or two.
    pub fn by(exponentials: u128) -> Self {
        let words = exponentials.wrapping_mul(u128::from(WORDS_PER_EXPONENTIAL));
        let polynomial = power_of_x(words, &lower_terms());
        let mut offsets = Vec::with_capacity(DEGREE / WINDOW_BITS);
        let mut ends = Vec::with_capacity(DEGREE / BLOCK_WORDS + 1);
        for first in (0..DEGREE).step_by(BLOCK_WORDS) {
            for place in (0..BLOCK_WORDS).step_by(WINDOW_BITS) {
                let bit = |k| coefficient(&polynomial, first + place + k) << k;
                let pattern = (0..WINDOW_BITS).map(bit).sum();
                if pattern != 0 {
                    offsets.push(window_offset(place, pattern) as u16);
                }
            }
            ends.push(offsets.len());
        }
        Self { words, offsets, ends }
    }

    /// Words of the stream that are stepped over.
    pub(super) fn words(&self) -> u128 {
        self.words
    }

    /// For every block of the next words, where in its sums the windows begin that are to be added.
    pub(super) fn offsets(&self) -> impl Iterator<Item = &[u16]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(&start, &end)| &self.offsets[start..end])
    }
}

/// A coefficient, 0 or 1; 0 past the end.
fn coefficient(polynomial: &Polynomial, power: usize) -> usize {
    polynomial.get(power / BITS).map_or(0, |word| (word >> (power % BITS)) as usize & 1)
}

/// Powers of the characteristic polynomial's terms below the highest one, of which there are 134.
///
/// With `w = 32` bits, `r = 31`, `n = 624`, `m = 397` and the matrix' bits `a_i` it is
/// `(t^n + t^m)(t^(n-1) + t^(m-1))^r + sum over i < r of a_i (t^n + t^m)(t^(n-1) + t^(m-1))^(r-1-i) + a_r`.
fn lower_terms() -> Vec<usize> {
    /// `n - m`.
    const APART: usize = 227;
    let mut polynomial = [0_u64; WORDS + 1];
    let mut add = |power: usize| polynomial[power / BITS] ^= 1 << (power % BITS);
    // (t^n + t^m)(t^(n-1) + t^(m-1))^k = t^(397 + 396 k) (t^227 + 1)^(k+1), and a binomial coefficient is odd where the bits of
    // the lower number are among those of the upper one.
    let mut add_product = |k: usize| {
        (0..=k + 1).filter(|j| j & !(k + 1) == 0).for_each(|j| add(397 + 396 * k + APART * j));
    };
    add_product(31);
    (0..31).filter(|i| TWIST_MATRIX >> i & 1 == 1).for_each(|i| add_product(30 - i));
    if TWIST_MATRIX >> 31 == 1 {
        add(0);
    }
    (0..DEGREE).filter(|power| polynomial[power / BITS] >> (power % BITS) & 1 == 1).collect()
}

/// `x^power` modulo the characteristic polynomial, by squaring.
fn power_of_x(power: u128, lower_terms: &[usize]) -> Polynomial {
    let mut polynomial = [0; WORDS];
    polynomial[0] = 1;
    for bit in (0..u128::BITS - power.leading_zeros()).rev() {
        polynomial = square(&polynomial, lower_terms);
        if power >> bit & 1 == 1 {
            multiply_by_x(&mut polynomial, lower_terms);
        }
    }
    polynomial
}

/// The square: over GF(2) every coefficient moves to twice its power.
fn square(polynomial: &Polynomial, lower_terms: &[usize]) -> Polynomial {
    let mut product = [0_u64; 2 * WORDS];
    for (word, pair) in polynomial.iter().zip(product.as_chunks_mut::<2>().0) {
        *pair = [spread(*word as u32), spread((word >> 32) as u32)];
    }
    reduce(&mut product, lower_terms)
}

/// Puts a zero between neighbouring bits.
fn spread(half: u32) -> u64 {
    let mut bits = u64::from(half);
    bits = (bits | bits << 16) & 0x0000_ffff_0000_ffff;
    bits = (bits | bits << 8) & 0x00ff_00ff_00ff_00ff;
    bits = (bits | bits << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    bits = (bits | bits << 2) & 0x3333_3333_3333_3333;
    (bits | bits << 1) & 0x5555_5555_5555_5555
}

/// The remainder, a word of coefficients at a time from the highest one on: each stands for the lower terms of the characteristic
/// polynomial, which all lie more than a word below the highest, so that a word does not come back.
fn reduce(product: &mut [u64; 2 * WORDS], lower_terms: &[usize]) -> Polynomial {
    const EDGE: usize = DEGREE / BITS;
    for place in (EDGE..2 * WORDS).rev() {
        // Of the word at the edge, the coefficients below the degree stay.
        let kept = if place == EDGE { (1 << (DEGREE % BITS)) - 1 } else { 0 };
        let word = product[place] & !kept;
        product[place] &= kept;
        // The word's lowest coefficient stands for x^(64 place), which is x^(64 place - degree) times the lower terms; at the
        // edge this is below zero, where `word` has no bits.
        let (word, base) =
            if place == EDGE { (word >> (DEGREE % BITS), 0) } else { (word, place * BITS - DEGREE) };
        for term in lower_terms {
            let (at, shift) = ((base + term) / BITS, (base + term) % BITS);
            product[at] ^= word << shift;
            if shift > 0 {
                product[at + 1] ^= word >> (BITS - shift);
            }
        }
    }
    let (remainder, _) = product.split_at(WORDS);
    let mut polynomial = [0; WORDS];
    polynomial.copy_from_slice(remainder);
    polynomial
}

/// Multiplies by `x`.
fn multiply_by_x(polynomial: &mut Polynomial, lower_terms: &[usize]) {
    let mut carry = 0;
    for word in polynomial.iter_mut() {
        (*word, carry) = (*word << 1 | carry, *word >> (BITS - 1));
    }
    let highest = 1 << (DEGREE % BITS);
    if polynomial[WORDS - 1] & highest != 0 {
        polynomial[WORDS - 1] ^= highest;
        lower_terms.iter().for_each(|term| polynomial[term / BITS] ^= 1 << (term % BITS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_characteristic_polynomial_is_sparse() {
        let terms = lower_terms();
        assert_eq!(terms.len() + 1, 135, "terms, as the paper counts them");
        assert!(terms[133] < DEGREE - BITS, "the second highest power lies far below");
        assert_eq!(terms[0], 0, "it has no factor x");
    }

    #[test]
    fn the_generators_period_is_that_of_x() {
        // x^(2^19937) = x: the period divides 2^19937 - 1, which is prime.
        let terms = lower_terms();
        let mut polynomial = power_of_x(1, &terms);
        let x = polynomial;
        for _ in 0..DEGREE {
            polynomial = square(&polynomial, &terms);
        }
        assert_eq!(polynomial, x);
    }
}
