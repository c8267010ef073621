//! A number for what a load holds, in which two loads of one checkpoint agree when they hold the same.
//!
//! It is no guard against anybody who looks for two contents of one number; a load looks at each of its values for it.

/// 2^64 over the golden ratio, which is odd: a product with it carries every bit to higher ones, and can be taken back.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// What has been added so far.
#[derive(Debug)]
pub(super) struct Digest(u64);

impl Digest {
    /// Of nothing.
    pub(super) fn new() -> Self {
        Self(FACTOR)
    }

    /// Adds a number. No two numbers lead to the same from here, since each step can be taken back.
    pub(super) fn number(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(FACTOR);
        self.0 = mixed ^ (mixed >> 32);
    }

    /// Adds values, by their bits and how many they are.
    pub(super) fn values(&mut self, values: &[f32]) {
        self.number(values.len() as u64);
        for pair in values.chunks(2) {
            let high = pair.get(1).map_or(0, |value| u64::from(value.to_bits()) << 32);
            self.number(high | u64::from(pair[0].to_bits()));
        }
    }

    /// Adds a text, which ends where it ends.
    pub(super) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        text.bytes().for_each(|byte| self.number(u64::from(byte)));
    }

    /// The number.
    pub(super) fn get(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn of(add: impl Fn(&mut Digest)) -> u64 {
        let mut digest = Digest::new();
        add(&mut digest);
        digest.get()
    }

    #[test]
    fn each_bit_and_each_place_counts() {
        let values: Vec<f32> = (0u8..101).map(|n| f32::from(n) / 7.0).collect();
        let mut seen = HashSet::from([of(|d| d.values(&values))]);
        assert!(!seen.insert(of(|d| d.values(&values))), "the same is the same");
        for place in 0..values.len() {
            for bit in 0..32 {
                let mut other = values.clone();
                other[place] = f32::from_bits(other[place].to_bits() ^ (1 << bit));
                assert!(seen.insert(of(|d| d.values(&other))), "bit {bit} of {place}");
            }
        }
        for n in 0..values.len() {
            assert!(seen.insert(of(|d| d.values(&values[..n]))), "{n} of them");
        }
        assert!(seen.insert(of(|d| [&values[..50], &values[50..]].iter().for_each(|part| d.values(part)))));
    }

    #[test]
    fn texts_end_where_they_end() {
        let of_texts = |texts: &[&str]| of(|d| texts.iter().for_each(|text| d.text(text)));
        let seen: HashSet<u64> =
            [&["ab", "c"][..], &["a", "bc"], &["abc"], &["abc", ""], &["", "abc"], &[]].map(of_texts).into();
        assert_eq!(seen.len(), 6);
    }
}
