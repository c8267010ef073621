//! Exponentials of whole rows of scores, and their sums, in loops that the compiler turns into vector code.
//!
//! The results differ from exact ones by at most two units in the last place. They do not depend on the CPU: plain
//! multiplications and additions in one order.

/// Sums run in this many lanes.
const LANES: usize = 8;

/// Below this the exponential would not be a normal number, and counts as zero.
const SMALLEST: f32 = -87.3;

/// `e^x` for `x <= 0`: `x = n ln 2 + r`, then a polynomial in `r`, then `2^n` through the exponent's bits. The polynomial
/// and the two parts of ln 2 are those of Cephes' expf (Moshier, netlib.org/cephes).
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding it rounds to a whole number, which then stands in the lowest bits.
    const ROUNDER: f32 = 12_582_912.0;
    let bounded = if x > SMALLEST { x } else { SMALLEST };
    let shifted = bounded * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = bounded - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4_f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
        p = p * r + coefficient;
    }
    let power = p * r * r + r + 1.0;
    let scaled = f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x > SMALLEST { scaled } else { 0.0 }
}

/// Replaces every value by `e^(value - maximum)`, where none exceeds `maximum`.
pub(super) fn exponentiate(values: &mut [f32], maximum: f32) {
    values.iter_mut().for_each(|value| *value = exp(*value - maximum));
}

/// The sum of `e^(value - maximum)`, where none exceeds `maximum`.
pub(super) fn sum_of_exponentials(values: &[f32], maximum: f32) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        // A plain loop: what `map` makes of an array is called lane by lane.
        let mut powers = [0.0_f32; LANES];
        for (power, &value) in powers.iter_mut().zip(chunk) {
            *power = exp(value - maximum);
        }
        for (lane, power) in lanes.iter_mut().zip(powers) {
            *lane += f64::from(power);
        }
    }
    let rest: f64 = rest.iter().map(|&value| f64::from(exp(value - maximum))).sum();
    lanes.iter().sum::<f64>() + rest
}

/// The sum of the values.
pub(super) fn sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&value| f64::from(value)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_right_to_two_units() {
        let mut worst = 0.0_f64;
        for step in 0..2_000_000 {
            let x = -(step as f32) * (88.0 / 2_000_000.0);
            let exact = f64::from(x).exp();
            let got = exp(x);
            if x > SMALLEST {
                let unit = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
                worst = worst.max((f64::from(got) - exact).abs() / unit);
            } else {
                assert_eq!(got, 0.0, "{x}");
            }
        }
        assert!(worst <= 2.0, "{worst}");
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(f32::MIN)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn sums_take_every_value() {
        for count in [0, 1, 7, 8, 9, 100] {
            let values: Vec<f32> = (0..count).map(|i| -(i as f32) / 16.0).collect();
            let exact: f64 = values.iter().map(|&v| f64::from(v - 2.0).exp()).sum();
            assert!((sum_of_exponentials(&values, 2.0) - exact).abs() <= 1e-6 * exact);
            let mut powers = values.clone();
            exponentiate(&mut powers, 2.0);
            assert!((sum(&powers) - exact).abs() <= 1e-6 * exact);
        }
    }
}
