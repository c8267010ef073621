//! Rotary positions (Su et al. 2021): halves of a head are turned against each other by angles that grow with the position.
//!
//! Every step is rounded to single precision where transformers rounds it, since a difference in the last place of a frequency is
//! a difference of whole degrees some thousand positions on.

/// Frequencies of the turning pairs, and what cosines and sines are multiplied by.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Radians per position, a value per pair.
    pub inverse: Vec<f32>,
    /// Those of sequences that are longer than a border, where there are such.
    pub beyond: Option<Beyond>,
    /// Multiplies cosines and sines (`attention_scaling` in transformers).
    pub factor: f32,
}

/// Frequencies of long sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct Beyond {
    /// Positions of the longest sequence that is not long.
    pub border: usize,
    /// Radians per position, a value per pair.
    pub inverse: Vec<f32>,
}

impl Rotary {
    /// Floats of a row of angles: a cosine per pair, then a sine per pair.
    pub fn width(&self) -> usize {
        2 * self.inverse.len()
    }

    /// Writes the cosines and sines of a position, in a sequence that is long or not.
    ///
    /// # Panics
    /// When the row has another width.
    pub fn angles(&self, position: usize, is_long: bool, row: &mut [f32]) {
        assert!(row.len() == self.width(), "a cosine and a sine per pair");
        let (cosines, sines) = row.split_at_mut(self.inverse.len());
        let long = self.beyond.as_ref().filter(|_| is_long);
        let inverse = long.map_or(&self.inverse, |beyond| &beyond.inverse);
        for ((inverse, c), s) in inverse.iter().zip(cosines).zip(sines) {
            let angle = position as f32 * inverse;
            let (sine, cosine) = sine_and_cosine(f64::from(angle));
            (*c, *s) = (cosine as f32 * self.factor, sine as f32 * self.factor);
        }
    }
}

/// Turns the first values of a head by a row of angles; those past them stay as they are.
///
/// # Panics
/// When the head is narrower than the angles.
pub fn turn(head: &mut [f32], angles: &[f32]) {
    let (cosines, sines) = angles.split_at(angles.len() / 2);
    let (first, rest) = head.split_at_mut(cosines.len());
    for (((a, b), c), s) in first.iter_mut().zip(&mut rest[..sines.len()]).zip(cosines).zip(sines) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}

/// Half a right angle's double, in a first part of 33 bits and the rest (fdlibm, `e_rem_pio2.c`): whole multiples up to 2^20 of
/// the first part are exact.
const QUARTER: [f64; 2] = [1.570_796_326_734_125_6, 6.077_100_506_506_192e-11];

/// Sine and cosine of an angle in radians, to the last places of double precision up to angles of a million. The C library's would
/// differ from machine to machine.
fn sine_and_cosine(angle: f64) -> (f64, f64) {
    let quarters = (angle * std::f64::consts::FRAC_2_PI).round();
    let x = (angle - quarters * QUARTER[0]) - quarters * QUARTER[1];
    let square = x * x;
    // Polynomials of the smallest largest error on an eighth of the circle (fdlibm, `k_sin.c` and `k_cos.c`).
    let of = |coefficients: [f64; 6]| coefficients.into_iter().rev().fold(0.0, |sum, c| sum * square + c);
    let sine = of([
        -1.666_666_666_666_663_2e-1,
        8.333_333_333_322_49e-3,
        -1.984_126_982_985_795e-4,
        2.755_731_370_707_006_8e-6,
        -2.505_076_025_340_686_3e-8,
        1.589_690_995_211_55e-10,
    ]);
    let cosine = of([
        4.166_666_666_666_66e-2,
        -1.388_888_888_887_411e-3,
        2.480_158_728_947_673e-5,
        -2.755_731_435_139_066_3e-7,
        2.087_572_321_298_175e-9,
        -1.135_964_755_778_819_5e-11,
    ]);
    let (sine, cosine) = (x + x * square * sine, 1.0 - 0.5 * square + square * square * cosine);
    match (quarters.rem_euclid(4.0)) as u8 {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sines_and_cosines_are_those_of_the_library_to_single_precision() {
        let mut angle = 0.0_f64;
        while angle < 1e6 {
            let rounded = f64::from(angle as f32);
            let (sine, cosine) = sine_and_cosine(rounded);
            let (want_sine, want_cosine) = rounded.sin_cos();
            assert!((sine - want_sine).abs() < 1e-15 && (cosine - want_cosine).abs() < 1e-15, "{rounded}");
            angle = angle * 1.000_37 + 0.003;
        }
    }

    #[test]
    fn halves_are_turned_and_the_rest_stays() {
        let rotary = Rotary { inverse: vec![1.0, 0.25], beyond: None, factor: 2.0 };
        let mut angles = [f32::NAN; 4];
        rotary.angles(3, false, &mut angles);
        let want = [3.0_f32.cos(), 0.75_f32.cos(), 3.0_f32.sin(), 0.75_f32.sin()].map(|x| 2.0 * x);
        assert!(angles.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{angles:?} for {want:?}");
        let mut head = [1.0, 2.0, 3.0, 4.0, 5.0];
        turn(&mut head, &angles);
        let want = [
            angles[0] - 3.0 * angles[2],
            2.0 * angles[1] - 4.0 * angles[3],
            3.0 * angles[0] + angles[2],
            4.0 * angles[1] + 2.0 * angles[3],
            5.0,
        ];
        assert_eq!(head, want);
    }
}
