//! Scans of scores and words of the random stream: every table against the naive way, to the bit.

use std::sync::LazyLock;

use fastdecode::kernels::{BLOCK_WORDS, Kernels, Scans, WindowSums, window_offset};
use proptest::prelude::*;

use crate::tables::tables;

/// Lengths around those of vectors and runs, and odd ones.
const LENGTHS: [usize; 14] = [0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 129, 1000];

/// Every table's scans with its name; found out once, not for every case.
fn scans() -> impl Iterator<Item = (&'static str, &'static Scans)> {
    static TABLES: LazyLock<Vec<Kernels>> = LazyLock::new(tables);
    TABLES.iter().map(|table| (table.name, table.scans()))
}

fn scores() -> impl Strategy<Value = Vec<f32>> {
    let score = prop_oneof![
        8 => -10.0_f32..10.0,
        4 => (-4_i32..4).prop_map(|x| x as f32),
        1 => Just(f32::NEG_INFINITY),
        1 => Just(f32::INFINITY),
        1 => Just(-0.0),
    ];
    prop::sample::select(LENGTHS.to_vec()).prop_flat_map(move |n| prop::collection::vec(score.clone(), n))
}

fn naive_maximum(scores: &[f32]) -> f32 {
    scores.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_largest_and_where_it_stands(scores in scores(), run in prop::sample::select(vec![1, 5, 16, 64])) {
        for (name, scans) in scans() {
            let maximum = scans.maximum(&scores);
            prop_assert_eq!(maximum, naive_maximum(&scores), "{}", name);
            for wanted in [maximum, 1.0, 99.0] {
                let naive = scores.iter().position(|&score| score == wanted);
                prop_assert_eq!(scans.position(&scores, wanted), naive, "{}", name);
            }
            let mut maxima = vec![9.0; scores.len().div_ceil(run)];
            prop_assert!(!scans.maxima(&scores, run, &mut maxima), "{}", name);
            let naive: Vec<f32> = scores.chunks(run).map(naive_maximum).collect();
            prop_assert_eq!(maxima, naive, "{}", name);
        }
    }

    #[test]
    fn a_nan_is_seen_wherever_it_stands(scores in scores(), place in 0.0_f64..1.0, sign in any::<bool>()) {
        prop_assume!(!scores.is_empty());
        let mut scores = scores;
        let place = (place * scores.len() as f64) as usize;
        scores[place] = if sign { f32::NAN } else { -f32::NAN };
        for (name, scans) in scans() {
            prop_assert!(scans.maximum(&scores).is_nan(), "{}", name);
            let mut maxima = vec![9.0; scores.len().div_ceil(16)];
            prop_assert!(scans.maxima(&scores, 16, &mut maxima), "{}", name);
            let others: Vec<f32> = scores.iter().map(|s| if s.is_nan() { f32::NEG_INFINITY } else { *s }).collect();
            let naive: Vec<f32> = others.chunks(16).map(naive_maximum).collect();
            prop_assert_eq!(maxima, naive, "{}", name);
        }
    }

    #[test]
    fn values_change_as_one_by_one(values in scores(), divisor in 0.1_f32..4.0, second in -4.0_f32..4.0) {
        for (name, scans) in scans() {
            let mut divided = values.clone();
            scans.divide(&mut divided, divisor);
            let naive = values.iter().map(|v| (v / divisor).to_bits());
            prop_assert!(divided.iter().map(|v| v.to_bits()).eq(naive), "{}", name);
            let mut less = values.clone();
            scans.subtract(&mut less, divisor, second);
            let naive = values.iter().map(|v| (v - divisor - second).to_bits());
            prop_assert!(less.iter().map(|v| v.to_bits()).eq(naive), "{}", name);
        }
    }

    #[test]
    fn words_are_those_of_the_paper(seed in any::<u32>(), times in 0_u64..4) {
        let mut state = [0_u32; BLOCK_WORDS];
        for (i, word) in state.iter_mut().enumerate() {
            *word = (i as u32 ^ seed).wrapping_mul(0x9e37_79b1).rotate_left(seed % 31) ^ seed;
        }
        let mut naive = state.to_vec();
        for k in 0..times as usize * BLOCK_WORDS {
            let y = (naive[k] & 0x8000_0000) | (naive[k + 1] & 0x7fff_ffff);
            let twisted = (y >> 1) ^ if y & 1 == 1 { 0x9908_b0df } else { 0 };
            naive.push(naive[k + 397] ^ twisted);
        }
        for (name, scans) in scans() {
            let mut words = state;
            scans.twist(&mut words, times);
            prop_assert_eq!(&words[..], &naive[times as usize * BLOCK_WORDS..], "{}", name);
        }
    }

    #[test]
    fn windows_add_up_bit_by_bit(seed in any::<u32>(), patterns in prop::collection::vec((0_usize..208, 1_usize..8), 0..40)) {
        let mut sums: WindowSums = [[0; 2 * BLOCK_WORDS]; 4];
        for (i, word) in sums[0][..BLOCK_WORDS].iter_mut().enumerate() {
            *word = (i as u32 ^ seed).wrapping_mul(0x85eb_ca6b) ^ seed.rotate_left(i as u32);
        }
        let offsets: Vec<u16> =
            patterns.iter().map(|&(place, pattern)| window_offset(3 * place, pattern) as u16).collect();
        for (name, scans) in scans() {
            scans.follow(&mut sums);
            let mut block: [u32; BLOCK_WORDS] = std::array::from_fn(|i| i as u32);
            let mut naive = block;
            for &(place, pattern) in &patterns {
                for k in (0..3).filter(|k| pattern >> k & 1 == 1) {
                    naive.iter_mut().zip(&sums[0][3 * place + k..]).for_each(|(sum, word)| *sum ^= word);
                }
            }
            scans.add_windows(&sums, &offsets, &mut block);
            prop_assert_eq!(&block[..], &naive[..], "{}", name);
        }
    }
}

#[test]
fn sums_take_every_value_and_are_the_same_on_every_table() {
    for count in LENGTHS {
        let values: Vec<f32> = (0..count).map(|i| -(i as f32) / 16.0 - (i * i % 7) as f32 / 3.0).collect();
        let exact: f64 = values.iter().map(|&v| (f64::from(v) - 2.0).exp()).sum();
        let mut first = None;
        for (name, scans) in scans() {
            let of_exponentials = scans.sum_of_exponentials(&values, 2.0);
            assert!((of_exponentials - exact).abs() <= 1e-6 * exact, "{name}, {count} values");
            let in_double = scans.sum_in_double(&values, 2.0);
            assert!((in_double - exact).abs() <= 1e-13 * exact, "{name}, {count} values");
            let mut powers = values.clone();
            scans.exponentiate(&mut powers, 2.0);
            let sum = scans.sum(&powers);
            assert!((sum - exact).abs() <= 1e-6 * exact, "{name}, {count} values");
            let bits: Vec<u32> = powers.iter().map(|power| power.to_bits()).collect();
            let got = (of_exponentials.to_bits(), in_double.to_bits(), sum.to_bits(), bits);
            assert_eq!(&got, first.get_or_insert_with(|| got.clone()), "{name}, {count} values");
        }
    }
}

#[test]
#[should_panic(expected = "windows lie within the sums")]
fn a_window_past_the_end_is_refused() {
    let sums: WindowSums = [[0; 2 * BLOCK_WORDS]; 4];
    let offset = (7 * BLOCK_WORDS + 1) as u16;
    scans().for_each(|(_, scans)| scans.add_windows(&sums, &[offset], &mut [0; BLOCK_WORDS]));
}
