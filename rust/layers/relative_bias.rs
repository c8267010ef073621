//! Relative position bias (Raffel et al. 2020): a learned addend of attention scores by head and distance.
//!
//! Distances fall into buckets, exact ones first and logarithmically wider ones after them; past the largest distance they
//! all share the last one. So a head's bias is one vector by distance, computed once, that serves sequences of any length.

use crate::error::{Error, Result};
use crate::kernels::{BLOCK, Bias};

/// How distances fall into buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buckets {
    /// Number of buckets.
    pub count: usize,
    /// Distance from which all fall into the last bucket.
    pub max_distance: usize,
    /// Whether keys after the query have buckets of their own, half of all.
    pub bidirectional: bool,
}

impl Buckets {
    /// Buckets of one direction, and how many of them hold a single distance.
    fn halves(self) -> (usize, usize) {
        let count = if self.bidirectional { self.count / 2 } else { self.count };
        (count, count / 2)
    }

    /// Whether the formula gives sensible buckets: at least one exact one, and distances beyond those.
    pub fn are_sound(self) -> bool {
        let (_, exact) = self.halves();
        exact >= 1 && self.max_distance > exact
    }

    /// Bucket of a distance, key minus query, of [sound](Self::are_sound) buckets.
    ///
    /// Single precision in the order in which transformers 5.23 computes (`T5Attention._relative_position_bucket`), since
    /// the truncation at the end shows every rounding; the logarithm is rounded once from double precision.
    pub fn bucket(self, distance: isize) -> usize {
        let (count, exact) = self.halves();
        let first = if self.bidirectional && distance > 0 { count } else { 0 };
        let n = if self.bidirectional { distance.unsigned_abs() } else { distance.min(0).unsigned_abs() };
        if n < exact {
            return first + n;
        }
        let log = f64::from(n as f32 / exact as f32).ln() as f32;
        let whole = (self.max_distance as f64 / exact as f64).ln() as f32;
        let wide = (log / whole * (count - exact) as f32) as usize;
        first + (exact + wide).min(count - 1)
    }
}

/// The bias of every head by distance.
#[derive(Debug)]
pub struct RelativeBias {
    by_distance: Vec<f32>,
    /// Values of one head.
    width: usize,
    reach: usize,
}

impl RelativeBias {
    /// Spreads a table of `count × heads` values, row-major, over distances.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system refuses.
    ///
    /// # Panics
    /// When the table has another size.
    pub fn new(table: &[f32], heads: usize, buckets: Buckets) -> Result<Self> {
        assert!(table.len() == buckets.count * heads, "a value per bucket and head");
        let reach = buckets.max_distance + BLOCK;
        let width = 2 * reach + BLOCK;
        let mut by_distance = Vec::new();
        by_distance.try_reserve_exact(heads * width).map_err(|_| Error::OutOfMemory {
            what: "relative position bias".to_owned(),
            bytes: heads * width * size_of::<f32>(),
        })?;
        for head in 0..heads {
            let value =
                |i: usize| table[buckets.bucket(i.cast_signed() - reach.cast_signed()) * heads + head];
            by_distance.extend((0..width).map(value));
        }
        Ok(Self { by_distance, width, reach })
    }

    /// The bias of a head for query rows from `position` on.
    pub fn of(&self, head: usize, position: usize) -> Bias {
        let values = &self.by_distance[head * self.width..][..self.width];
        Bias { at: values[self.reach..].as_ptr(), reach: self.reach.cast_signed(), first: position }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_the_paper() {
        let decoder = Buckets { count: 32, max_distance: 128, bidirectional: false };
        for (distance, bucket) in
            [(1, 0), (0, 0), (-1, 1), (-15, 15), (-16, 16), (-20, 17), (-127, 31), (-9999, 31)]
        {
            assert_eq!(decoder.bucket(distance), bucket, "{distance}");
        }
        let encoder = Buckets { bidirectional: true, ..decoder };
        for (distance, bucket) in [(0, 0), (-7, 7), (7, 23), (-8, 8), (-128, 15), (128, 31), (9999, 31)] {
            assert_eq!(encoder.bucket(distance), bucket, "{distance}");
        }
    }

    #[test]
    fn distances_past_the_largest_share_a_bucket() {
        for count in 4..40 {
            for max_distance in 1..200 {
                for bidirectional in [false, true] {
                    let buckets = Buckets { count, max_distance, bidirectional };
                    if !buckets.are_sound() {
                        continue;
                    }
                    let last = |sign: isize| buckets.bucket(sign * max_distance.cast_signed());
                    for n in max_distance.cast_signed()..max_distance.cast_signed() + 300 {
                        assert_eq!(
                            (buckets.bucket(-n), buckets.bucket(n)),
                            (last(-1), last(1)),
                            "{buckets:?} at {n}"
                        );
                        assert!(last(1) < count && last(-1) < count, "{buckets:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn buckets_that_divide_by_zero_are_not_sound() {
        let sound =
            |count, max_distance, bidirectional| Buckets { count, max_distance, bidirectional }.are_sound();
        assert!(!sound(3, 128, true) && sound(4, 128, true) && sound(3, 128, false) && !sound(1, 128, false));
        assert!(!sound(32, 16, false) && sound(32, 17, false) && sound(32, 9, true) && !sound(32, 8, true));
    }
}
