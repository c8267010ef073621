//! Relative position bias (Raffel et al. 2020): a learned addend of attention scores by head and distance.
//!
//! Distances fall into buckets, exact ones first and logarithmically wider ones after them; past the largest distance they
//! all share the last one. So a map from distance to bucket, made once, and a value per bucket and head serve sequences of any
//! length.

use std::sync::Arc;

use crate::kernels::Bias;

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
    /// Single precision in the order in which transformers 5.24 computes (`T5Attention._relative_position_bucket`), since
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

/// The bucket of every distance up to the largest one, either way; shared by all heads and layers of a stack.
#[derive(Debug, Clone)]
pub struct Distances {
    buckets: Buckets,
    by_distance: Arc<[u32]>,
}

impl Distances {
    /// Looks up every distance of [sound](Buckets::are_sound) buckets, at most `u32::MAX` of them.
    pub fn new(buckets: Buckets) -> Self {
        let reach = buckets.max_distance.cast_signed();
        let by_distance = (-reach..=reach).map(|distance| buckets.bucket(distance) as u32).collect();
        Self { buckets, by_distance }
    }

    /// How they fall into buckets.
    pub fn buckets(&self) -> Buckets {
        self.buckets
    }
}

/// The bias of every head by bucket, and the bucket of every distance.
#[derive(Debug)]
pub struct RelativeBias {
    /// Head by head, a value per bucket.
    values: Vec<f32>,
    distances: Distances,
}

impl RelativeBias {
    /// Takes a table of `count × heads` values, row-major.
    ///
    /// # Panics
    /// When the table has another size.
    pub fn new(table: &[f32], heads: usize, distances: &Distances) -> Self {
        let count = distances.buckets.count;
        assert!(table.len() == count * heads, "a value per bucket and head");
        let values = (0..heads).flat_map(|head| (0..count).map(move |bucket| table[bucket * heads + head]));
        Self { values: values.collect(), distances: distances.clone() }
    }

    /// The bias of a head for query rows from `position` on.
    pub fn of(&self, head: usize, position: usize) -> Bias<'_> {
        let count = self.distances.buckets.count;
        let values = &self.values[head * count..][..count];
        Bias { values, buckets: &self.distances.by_distance, first: position }
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
    fn a_head_has_the_values_of_its_buckets() {
        for bidirectional in [false, true] {
            let buckets = Buckets { count: 8, max_distance: 20, bidirectional };
            let table: Vec<f32> = (0..8 * 3).map(|i| i as f32).collect();
            let bias = RelativeBias::new(&table, 3, &Distances::new(buckets));
            for head in 0..3 {
                let Bias { values, buckets: map, first } = bias.of(head, 7);
                assert_eq!((values.len(), map.len(), first), (8, 41, 7), "sizes");
                for distance in -20..=20_isize {
                    let got = values[map[(distance + 20).unsigned_abs()] as usize];
                    assert_eq!(got, table[buckets.bucket(distance) * 3 + head], "{head} at {distance}");
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
