//! Products of eight-bit weights: equal to an integer reference to the bit, on every table and for every number of rows.

use fastdecode::arena::Arena;
use fastdecode::kernels::{
    Element, EpilogueArgs, Family, INT8, Kernels, LINE, Matmul, Orientation, Pack, WIDTH, WeightType,
    row_room,
};
use fastdecode::layers::stride;
use fastdecode::packed::{Packed, packed_bytes};
use proptest::prelude::*;

use super::kernels::fuses;
use super::tables::tables;

/// A reproducible value in -1..1.
pub(crate) fn value(i: usize) -> f32 {
    let x = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    x as f32 / 8_388_608.0 - 1.0
}

/// Weights of `outputs × inputs`: rows of very different size, one of them all zeros.
pub(crate) fn weights(outputs: usize, inputs: usize) -> Vec<Vec<f32>> {
    let size = |o: usize| if o % 7 == 3 { 0.0 } else { (o % 5) as f32 * 3.0 + 0.01 };
    (0..outputs).map(|o| (0..inputs).map(|i| size(o) * value(o * 1013 + i)).collect()).collect()
}

/// A scale for each row of weights, and its integers.
pub(crate) fn quantized(weights: &[Vec<f32>]) -> (Vec<f32>, Vec<Vec<i32>>) {
    let scale = |row: &Vec<f32>| row.iter().fold(0.0_f32, |most, w| most.max(w.abs())) / 127.0;
    let scales: Vec<f32> = weights.iter().map(scale).collect();
    let integers = weights.iter().zip(&scales).map(|(row, scale)| {
        row.iter().map(|w| if *scale == 0.0 { 0 } else { (w / scale).round_ties_even() as i32 }).collect()
    });
    let integers = integers.collect();
    (scales, integers)
}

pub(crate) fn packed(of: &'static dyn WeightType, orientation: Orientation, weights: &[Vec<f32>]) -> Packed {
    let (outputs, inputs) = (weights.len(), weights[0].len());
    let arena = Arena::new(packed_bytes(of, outputs, inputs).unwrap() + LINE, "a test").unwrap();
    let m = Packed::new(&arena, 0, of, outputs, inputs);
    let at = |r: usize, c: usize| match orientation {
        Orientation::OutIn => weights[r][c],
        Orientation::InOut => weights[c][r],
    };
    let (rows, columns) = match orientation {
        Orientation::OutIn => (outputs, inputs),
        Orientation::InOut => (inputs, outputs),
    };
    let step = if orientation == Orientation::OutIn { WIDTH } else { rows };
    for first in (0..rows).step_by(step) {
        let some = first..(first + step).min(rows);
        let bytes: Vec<u8> =
            some.flat_map(|r| (0..columns).flat_map(move |c| at(r, c).to_le_bytes())).collect();
        // SAFETY: one thread.
        assert!(unsafe { m.write(orientation, first, Element::F32, &bytes) }, "values fit");
    }
    m
}

/// Scale, zero point and integers of a row of activations, as the rule says.
pub(crate) fn activations(row: &[f32]) -> (f32, i32, Vec<i32>) {
    let least = row.iter().fold(0.0_f32, |least, x| least.min(*x));
    let most = row.iter().fold(0.0_f32, |most, x| most.max(*x));
    let scale = (most / 255.0 - least / 255.0).max(f32::MIN_POSITIVE);
    let zero = (-least / scale).round_ties_even().clamp(0.0, 255.0) as i32;
    let integer = |x: &f32| ((x / scale).round_ties_even() as i32 + zero).clamp(0, 255);
    (scale, zero, row.iter().map(integer).collect())
}

/// Rows of activations as the layers pad them.
pub(crate) fn rows(m: usize, k: usize) -> Vec<f32> {
    let mut a = vec![0.0; m * stride(k)];
    for r in 0..m {
        // Rows on either side of zero, around it, and all zeros.
        let (size, shift) = [(3.0, 0.0), (0.5, 1.0), (40.0, -50.0), (0.0, 0.0)][r % 4];
        for c in 0..k {
            a[r * stride(k) + c] = size * value(r * 997 + c * 31 + 5) + shift;
        }
    }
    a
}

/// The product of every row, `m × padded outputs`.
pub(crate) fn multiply(
    kernels: &Kernels,
    w: &Packed,
    a: &[f32],
    m: usize,
    family: Family,
    bias: &[f32],
) -> Vec<f32> {
    let (n, k, tuning) = (w.panels() * WIDTH, w.inputs(), family.tuning());
    let (format, group) = (w.format(false), w.weight_type().group());
    let mut c = vec![f32::NAN; m * n];
    let mut scratch = vec![f32::NAN; tuning.scratch()];
    let form = kernels.form(format, m, group);
    assert!(form.words(k) <= row_room(k), "room for a row");
    let mut packed = vec![f32::NAN; m * form.words(k)];
    let (tiles, out, a_stride) = (0..form.tiles, packed.as_mut_ptr(), stride(k));
    let job = Matmul {
        a: packed.as_ptr(),
        a_stride,
        m,
        tile: 0,
        tiles: form.tiles,
        k,
        group,
        w: w.panel(0),
        panels: w.panels(),
        c: c.as_mut_ptr(),
        c_stride: n,
        epilogue: EpilogueArgs {
            bias: if bias.is_empty() { std::ptr::null() } else { bias.as_ptr() },
            ..EpilogueArgs::NONE
        },
        scratch: scratch.as_mut_ptr(),
        tuning,
        finish: kernels.finish(),
    };
    // Rows that were packed for several tiles are multiplied in two goes.
    let cut = if form.tiles < m { form.tiles / 2 } else { 0 };
    // SAFETY: the vectors have the sizes that the jobs state.
    unsafe {
        kernels.pack(&Pack { a: a.as_ptr(), a_stride, m, k, form, tiles, out });
        for tiles in [cut..form.tiles, 0..cut].into_iter().take(1 + usize::from(cut > 0)) {
            kernels.matmul(format, &Matmul { tile: tiles.start, tiles: tiles.len(), ..job });
        }
    }
    c
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn products_are_those_of_the_integers(
        m in prop_oneof![1usize..20, Just(25), Just(60)],
        n in prop_oneof![1usize..70, Just(160)],
        k in prop_oneof![1usize..70, Just(255), Just(513), Just(1030)],
        family in prop_oneof![Just(Family::Zen), Just(Family::Zen4), Just(Family::Xeon)],
        has_bias in any::<bool>(),
    ) {
        let weights = weights(n, k);
        let (scales, integers) = quantized(&weights);
        let a = rows(m, k);
        let mut bias: Vec<f32> = if has_bias { (0..n).map(value).collect() } else { Vec::new() };
        if has_bias {
            bias.resize(n.next_multiple_of(WIDTH), 0.0);
        }
        for orientation in [Orientation::OutIn, Orientation::InOut] {
            let w = packed(INT8, orientation, &weights);
            for table in tables() {
                let got = multiply(&table, &w, &a, m, family, &bias);
                for r in 0..m {
                    let (scale, zero, q) = activations(&a[r * stride(k)..][..k]);
                    for o in 0..n {
                        let sum: i32 = std::iter::zip(&q, &integers[o]).map(|(q, v)| q * v).sum();
                        let weights: i32 = integers[o].iter().sum();
                        let (exact, by) = ((sum - zero * weights) as f32, scale * scales[o]);
                        let bias = if has_bias { bias[o] } else { 0.0 };
                        let want = if fuses(&table) { exact.mul_add(by, bias) } else { exact * by + bias };
                        let found = got[r * w.panels() * WIDTH + o];
                        prop_assert!(
                            found.to_bits() == want.to_bits(),
                            "{} {m}x{k}x{n} {orientation:?} row {r} output {o}: {found} for {want}",
                            table.name
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_that_is_not_finite_gives_nan_and_no_other_row_does() {
    let (k, n) = (70, 33);
    let w = packed(INT8, Orientation::OutIn, &weights(n, k));
    for table in tables() {
        for m in [1, 5, 20] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut a = rows(m, k);
                a[m / 2 * stride(k) + 3] = bad;
                let got = multiply(&table, &w, &a, m, Family::Unknown, &[]);
                for r in 0..m {
                    let row = &got[r * w.panels() * WIDTH..][..n];
                    let all = row.iter().all(|x| x.is_nan() == (r == m / 2));
                    assert!(all, "{} {bad} in row {} of {m}: row {r}", table.name, m / 2);
                }
            }
        }
    }
}

#[test]
fn gathered_rows_are_the_integers_times_their_scales() {
    for (outputs, inputs) in [(1, 1), (17, 7), (40, 66)] {
        let weights = weights(outputs, inputs);
        let (scales, integers) = quantized(&weights);
        for orientation in [Orientation::OutIn, Orientation::InOut] {
            let m = packed(INT8, orientation, &weights);
            for o in 0..outputs {
                let mut got = vec![f32::NAN; inputs];
                m.gather(o, &mut got);
                let want: Vec<f32> = integers[o].iter().map(|&v| scales[o] * v as f32).collect();
                assert_eq!(got, want, "{orientation:?} {outputs}x{inputs} row {o}");
            }
        }
    }
}
