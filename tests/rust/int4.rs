//! Products that are summed by groups of inputs, int4 and int8 with activations in groups: equal to an integer reference to the bit, on
//! every table and for every number of rows.

use fastdecode::kernels::{Element, Family, INT4, INT8, Orientation, PAIR, WIDTH};
use fastdecode::layers::stride;
use fastdecode::packed::Packed;
use half::bf16;
use proptest::prelude::*;

use super::int8::{activations, multiply, packed, quantized, rows, value, weights};
use super::kernels::fuses;
use super::tables::tables;

/// Scale, zero point and integers of a group.
type Group = (f32, i32, Vec<i32>);

/// A lane of line `line` of an output's panel.
fn lane(w: &Packed, output: usize, line: usize) -> [u8; 4] {
    let at = w.panel(output / WIDTH).wrapping_add(line * PAIR + output % WIDTH * 4);
    // SAFETY: the callers ask for lines of the matrix.
    unsafe { at.cast::<[u8; 4]>().read() }
}

/// The groups of an output of an int4 matrix, read as the layout says.
fn groups(w: &Packed, output: usize, size: usize) -> Vec<Group> {
    let lines = 1 + size / 8;
    let group = |g: usize| {
        let [z0, z1, s0, s1] = lane(w, output, g * lines);
        let scale = f32::from_bits(u32::from_le_bytes([0, 0, s0, s1]));
        let integers = (0..size).map(|k| {
            let byte = lane(w, output, g * lines + 1 + k / 8)[k % 4];
            i32::from(if k % 8 < 4 { byte & 15 } else { byte >> 4 })
        });
        (scale, i32::from(u16::from_le_bytes([z0, z1])), integers.collect())
    };
    (0..w.inputs().div_ceil(size)).map(group).collect()
}

/// Scale and integers of activations around zero.
fn signed(x: &[f32]) -> (f32, Vec<i32>) {
    let most = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let scale = (most / 127.0).max(f32::MIN_POSITIVE);
    (scale, x.iter().map(|x| (x / scale).round_ties_even().clamp(-127.0, 127.0) as i32).collect())
}

/// `a * b + c` as the table rounds it.
fn fma(fuses: bool, a: f32, b: f32, c: f32) -> f32 {
    if fuses { a.mul_add(b, c) } else { a * b + c }
}

/// A product of a row with an output of an int4 matrix.
fn four_bits(row: &[f32], groups: &[Group], size: usize, fuses: bool) -> f32 {
    let parts = row.chunks(size).zip(groups);
    parts.fold(0.0, |sum, (x, (scale, zero, integers))| {
        let (by, q) = signed(x);
        let exact: i32 = q.iter().zip(integers).map(|(q, v)| q * (v - zero)).sum();
        fma(fuses, exact as f32, scale * by, sum)
    })
}

/// A product of a row with an output of an int8 matrix whose activations are in groups.
fn eight_bits(row: &[f32], weights: &[i32], fuses: bool) -> f32 {
    let parts = row.chunks(64).zip(weights.chunks(64));
    parts.fold(0.0, |sum, (x, weights)| {
        let (by, zero, q) = activations(x);
        let exact: i32 = q.iter().zip(weights).map(|(q, v)| (q - zero) * v).sum();
        fma(fuses, exact as f32, by, sum)
    })
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
        of in 0usize..4,
    ) {
        let (weights, a) = (weights(n, k), rows(m, k));
        let mut bias: Vec<f32> = if has_bias { (0..n).map(value).collect() } else { Vec::new() };
        if has_bias {
            bias.resize(n.next_multiple_of(WIDTH), 0.0);
        }
        let of = INT4.get(of).copied().unwrap_or_else(|| INT8.delicate(Element::F32).unwrap());
        let (scales, integers) = quantized(&weights);
        for orientation in [Orientation::OutIn, Orientation::InOut] {
            let w = packed(of, orientation, &weights);
            let by_group: Vec<_> = if of.name() == "int4" {
                (0..n).map(|o| groups(&w, o, of.group())).collect()
            } else {
                Vec::new()
            };
            for table in tables() {
                let got = multiply(&table, &w, &a, m, family, &bias);
                for r in 0..m {
                    let row = &a[r * stride(k)..][..k];
                    for o in 0..n {
                        let (fuses, bias) = (fuses(&table), if has_bias { bias[o] } else { 0.0 });
                        let want = if of.name() == "int4" {
                            let sum = four_bits(row, &by_group[o], of.group(), fuses);
                            if has_bias { sum + bias } else { sum }
                        } else {
                            fma(fuses, eight_bits(row, &integers[o], fuses), scales[o], bias)
                        };
                        let found = got[r * w.panels() * WIDTH + o];
                        prop_assert!(
                            found.to_bits() == want.to_bits(),
                            "{} {of:?} {m}x{k}x{n} {orientation:?} row {r} output {o}: {found} for {want}",
                            table.name
                        );
                    }
                }
            }
        }
    }
}

/// The squared error of 16 steps over the whole range of some values and zero, and such a step.
fn whole_range(values: &[f32]) -> (f64, f64) {
    let ends = values.iter().fold((0.0_f32, 0.0_f32), |(least, most), &w| (least.min(w), most.max(w)));
    // Values that are all zero have no range.
    let step = (f64::from(ends.1 - ends.0) / 15.0).max(f64::from(f32::MIN_POSITIVE));
    let scale = f64::from(bf16::from_f64(step));
    let zero = (-f64::from(ends.0) / step).round_ties_even();
    let error = |&w: &f32| {
        let v = (f64::from(w) / scale + zero).round_ties_even().clamp(0.0, 15.0);
        scale * (v - zero) - f64::from(w)
    };
    (values.iter().map(|w| error(w).powi(2)).sum(), step)
}

#[test]
fn gathered_rows_are_near_the_weights() {
    for (outputs, inputs) in [(1, 1), (17, 7), (40, 66), (33, 300)] {
        let (weights, mut better, mut groups) = (weights(outputs, inputs), 0, 0);
        for of in INT4 {
            for orientation in [Orientation::OutIn, Orientation::InOut] {
                let m = packed(of, orientation, &weights);
                for (o, row) in weights.iter().enumerate() {
                    let mut got = vec![f32::NAN; inputs];
                    m.gather(o, &mut got);
                    for (values, found) in row.chunks(of.group()).zip(got.chunks(of.group())) {
                        let squares = values.iter().zip(found).map(|(w, x)| f64::from(w - x).powi(2));
                        let (found, (whole, step)) = (squares.sum::<f64>(), whole_range(values));
                        // The search begins with the whole range, in which a value is half a step from a multiple, and at the
                        // ends what the scale lost by its rounding to bf16, 15 times.
                        let most = values.len() as f64 * (step * (0.5 + 15.0 / 512.0)).powi(2);
                        assert!(whole <= most, "{of:?} {outputs}x{inputs} row {o}: {whole} of {most}");
                        assert!(
                            found <= whole * 1.0001,
                            "{of:?} {outputs}x{inputs} row {o}: {found} of {whole}"
                        );
                        better += usize::from(found < whole * 0.999);
                        groups += 1;
                    }
                }
            }
        }
        assert!(
            inputs < 7 || 2 * better > groups,
            "{outputs}x{inputs}: {better} of {groups} are better than the whole range"
        );
        let of = INT8.delicate(Element::F32).unwrap();
        let (scales, integers) = quantized(&weights);
        let m = packed(of, Orientation::InOut, &weights);
        for (o, integers) in integers.iter().enumerate() {
            let mut got = vec![f32::NAN; inputs];
            m.gather(o, &mut got);
            assert_eq!(got, integers.iter().map(|&v| scales[o] * v as f32).collect::<Vec<_>>(), "row {o}");
        }
    }
}

#[test]
fn a_row_that_is_not_finite_gives_nan_and_no_other_row_does() {
    let (k, n) = (200, 33);
    let types = INT4.into_iter().chain(INT8.delicate(Element::F32));
    for of in types {
        let w = packed(of, Orientation::OutIn, &weights(n, k));
        for (table, m) in tables().into_iter().flat_map(|table| [1, 5, 20].map(|m| (table, m))) {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut a = rows(m, k);
                a[m / 2 * stride(k) + 3] = bad;
                let got = multiply(&table, &w, &a, m, Family::Unknown, &[]);
                for r in 0..m {
                    let row = &got[r * w.panels() * WIDTH..][..n];
                    let all = row.iter().all(|x| x.is_nan() == (r == m / 2));
                    assert!(all, "{} {of:?} {bad} in row {} of {m}: row {r}", table.name, m / 2);
                }
            }
        }
    }
}
