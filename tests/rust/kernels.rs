//! Law 1: every table of kernels gives what the naive reference gives, for odd shapes, in every format; and the law beneath
//! batch-invariance: a row's bits do not depend on the rows beside it, on the blocks, or on the tile.

use fastdecode::arena::Arena;
use fastdecode::kernels::{
    Activation, BFLOAT16, Element, EpilogueArgs, FLOAT16, FLOAT32, Family, Format, Kernels, LINE, Matmul,
    Norm, Orientation, Pack, Prefetch, Tuning, WIDTH, WeightType,
};
use fastdecode::layers::stride;
use fastdecode::packed::{Packed, packed_bytes};
use proptest::prelude::*;

use super::tables::tables;

/// The mean that transformers gives `laplace`.
#[allow(clippy::approx_constant, reason = "transformers' own digits")]
const LAPLACE_MEAN: f64 = 0.707107;

/// A reproducible value in -1..1 that bf16 and f16 hold exactly.
pub(crate) fn value(i: usize) -> f32 {
    let x = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (x % 255) as f32 / 128.0 - 1.0
}

/// As [`value`], times a power of two from 1 to 2^-6: sums of a few products no longer fit f32, so that their order shows.
pub(crate) fn spread(i: usize) -> f32 {
    let shift = ((i as u64).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 40) % 7;
    value(i) / (1_u32 << shift) as f32
}

/// A table whose multiply-adds round once; all of these give the same bits.
pub(crate) fn fuses(table: &Kernels) -> bool {
    table.name != "portable"
}

fn packed(of: &'static dyn WeightType, outputs: usize, inputs: usize) -> Packed {
    let arena = Arena::new(packed_bytes(of, outputs, inputs).unwrap() + LINE, "a test").unwrap();
    let m = Packed::new(&arena, 0, of, outputs, inputs);
    let data: Vec<u8> = (0..outputs * inputs).flat_map(|i| spread(i).to_le_bytes()).collect();
    for first in (0..outputs).step_by(WIDTH) {
        let rows = (outputs - first).min(WIDTH);
        let bytes = &data[first * inputs * 4..(first + rows) * inputs * 4];
        // SAFETY: one thread.
        assert!(unsafe { m.write(Orientation::OutIn, first, Element::F32, bytes) }, "values fit");
    }
    m
}

/// Rows of activations, padded as the layers pad them.
fn rows(m: usize, k: usize, seed: usize) -> Vec<f32> {
    let mut a = vec![0.0; m * stride(k)];
    for r in 0..m {
        for c in 0..k {
            a[r * stride(k) + c] = spread(seed + r * 1009 + c * 31);
        }
    }
    a
}

/// The product of every row, `m × padded outputs`: of packed rows some tiles, and then the others.
fn multiply(k: &Kernels, format: Format, w: &Packed, a: &[f32], m: usize, tuning: Tuning) -> Vec<f32> {
    let n = w.panels() * WIDTH;
    let mut c = vec![f32::NAN; m * n];
    let mut scratch = vec![f32::NAN; tuning.scratch()];
    let (form, stride) = (k.form(format, m, 0), stride(w.inputs()));
    let mut packed = vec![f32::NAN; m * form.words(w.inputs())];
    if form.tiles > 0 {
        let (tiles, out) = (0..form.tiles, packed.as_mut_ptr());
        let job = Pack { a: a.as_ptr(), a_stride: stride, m, k: w.inputs(), form, tiles, out };
        // SAFETY: the vectors have the sizes that the job states.
        unsafe { k.pack(&job) };
    }
    let job = Matmul {
        a: if form.tiles > 0 { packed.as_ptr() } else { a.as_ptr() },
        a_stride: stride,
        m,
        tile: 0,
        tiles: form.tiles,
        k: w.inputs(),
        group: 0,
        w: w.panel(0),
        panels: w.panels(),
        c: c.as_mut_ptr(),
        c_stride: n,
        epilogue: EpilogueArgs::NONE,
        scratch: scratch.as_mut_ptr(),
        tuning,
        finish: k.finish(),
    };
    let cut = if form.tiles < m { form.tiles / 2 } else { 0 };
    for tiles in [cut..form.tiles, 0..cut].into_iter().take(1 + usize::from(cut > 0)) {
        let job = Matmul { tile: tiles.start, tiles: tiles.len(), ..job };
        // SAFETY: the vectors have the sizes that the job states.
        unsafe { k.matmul(format, &job) };
        if tiles.start > 0 {
            let before = form.of_tiles(m, 0..tiles.start).end * n;
            assert!(c[..before].iter().all(|v| v.is_nan()), "other tiles' rows are not touched");
        }
    }
    c
}

const FORMATS: [(Format, &dyn WeightType); 4] =
    [(Format::F32, FLOAT32), (Format::Bf16, BFLOAT16), (Format::F16, FLOAT16), (Format::Bf16Dot, BFLOAT16)];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn products_equal_the_reference_and_rows_stand_alone(
        m in prop_oneof![1usize..20, Just(25), Just(60)],
        n in prop_oneof![1usize..70, Just(33), Just(160)],
        k in prop_oneof![1usize..70, Just(255), Just(513), Just(1030)],
        which in 0usize..4,
        block in prop_oneof![Just(64usize), Just(256), Just(768)],
        panels in prop_oneof![Just(2usize), Just(4)],
        one in prop_oneof![Just(0usize), Just(512), Just(8192)],
        more in prop_oneof![Just(0usize), Just(8192)],
        from in 2usize..4,
        short in prop_oneof![Just(16usize), Just(48)],
        widen in any::<bool>(),
    ) {
        let (format, storage) = FORMATS[which];
        let w = packed(storage, n, k);
        let a = rows(m, k, 17);
        let mut bits: Option<Vec<u32>> = None;
        for table in tables() {
            let prefetch = Prefetch { one, rows: from, more };
            let tuning = Tuning { panels, prefetch, widened_prefetch: prefetch, block_k: block, widened: if widen { block } else { 0 }, block_m: 24, short_blocks: short, group_rows: 16 };
            let c = multiply(&table, format, &w, &a, m, tuning);
            let stride_c = w.panels() * WIDTH;
            for r in 0..m {
                for o in 0..n {
                    let terms = (0..k).map(|i| f64::from(a[r * stride(k) + i]) * f64::from(spread(o * k + i)));
                    let (want, sizes) = terms.fold((0.0, 0.0), |(sum, sizes), x| (sum + x, sizes + x.abs()));
                    let got = f64::from(c[r * stride_c + o]);
                    // Half a unit in the last place for each rounding of a product and of a sum, of what there is to sum.
                    let bound = (2 * k) as f64 * f64::from(f32::EPSILON) / 2.0 * sizes;
                    prop_assert!((got - want).abs() <= bound.min(1e-6 * (k as f64) + 1e-6),
                        "{} {format:?} {m}x{n}x{k} row {r} output {o}: {got} for {want}", table.name);
                }
                for o in n..stride_c {
                    prop_assert_eq!(c[r * stride_c + o], 0.0, "padding is zero");
                }
            }
            if fuses(&table) {
                let now: Vec<u32> = c.iter().map(|v| v.to_bits()).collect();
                prop_assert_eq!(bits.get_or_insert_with(|| now.clone()), &now, "tables agree");
            }
            // Each row alone, under other sizes of blocks.
            let other = Family::Unknown.tuning();
            for r in 0..m {
                let row = &a[r * stride(k)..(r + 1) * stride(k)];
                let alone = multiply(&table, format, &w, row, 1, other);
                let beside = &c[r * stride_c..(r + 1) * stride_c];
                prop_assert!(alone.iter().zip(beside).all(|(x, y)| x.to_bits() == y.to_bits()),
                    "{} {format:?} {m}x{n}x{k}: row {r} depends on its company", table.name);
            }
        }
    }

    #[test]
    fn norms_equal_the_reference(n in prop_oneof![0usize..70, Just(768), Just(769)], shift in -3.0f32..3.0) {
        let x: Vec<f32> = (0..n).map(|i| value(i * 7) + shift).collect();
        let weight: Vec<f32> = (0..n).map(|i| value(i + 5)).collect();
        let bias: Vec<f32> = (0..n).map(|i| value(i + 9)).collect();
        let eps = 1e-5;
        let mut bits: Option<Vec<u32>> = None;
        for table in tables() {
            for rms in [false, true] {
                let mut out = vec![f32::NAN; n.next_multiple_of(WIDTH)];
                let bias_at = if rms { std::ptr::null() } else { bias.as_ptr() };
                let job = Norm { x: x.as_ptr(), out: out.as_mut_ptr(), n, weight: weight.as_ptr(), bias: bias_at, eps, round: false };
                // SAFETY: the vectors have the sizes that the job states.
                unsafe { if rms { table.rms_norm(&job) } else { table.layer_norm(&job) } };
                let mean = if rms { 0.0 } else { x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64 };
                let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
                for i in 0..n {
                    let scaled = (f64::from(x[i]) - mean) / (variance + f64::from(eps)).sqrt() * f64::from(weight[i]);
                    let want = scaled + if rms { 0.0 } else { f64::from(bias[i]) };
                    prop_assert!((f64::from(out[i]) - want).abs() < 2e-4 * want.abs().max(1.0), "{} {i}", table.name);
                }
                prop_assert!(out[n..].iter().all(|v| *v == 0.0), "padding is zero");
                if rms {
                    continue;
                }
                // Without a product to fuse in the mean, the sums of the tables with an FMA are the same bits.
                if fuses(&table) {
                    let now: Vec<u32> = out.iter().map(|v| v.to_bits()).collect();
                    prop_assert_eq!(bits.get_or_insert_with(|| now.clone()), &now, "tables agree");
                }
            }
        }
    }
}

/// The order that the dot has on paper: per pair of inputs the odd product, then the even one, each rounded once.
#[test]
fn the_bf16_dot_adds_the_odd_product_first() {
    let (m, n, k) = (13, 33, 90);
    let (w, a) = (packed(BFLOAT16, n, k), rows(m, k, 5));
    let sum = |r: usize, o: usize, odd_first: usize| {
        (0..k).fold(0.0_f32, |sum, i| {
            let i = i ^ odd_first;
            a[r * stride(k) + i].mul_add(spread(o * k + i), sum)
        })
    };
    let outputs: Vec<(usize, usize)> = (0..m).flat_map(|r| (0..n).map(move |o| (r, o))).collect();
    assert!(outputs.iter().any(|&(r, o)| sum(r, o, 0) != sum(r, o, 1)), "the order shows in these values");
    for table in tables().into_iter().filter(fuses) {
        let c = multiply(&table, Format::Bf16Dot, &w, &a, m, Family::Unknown.tuning());
        for &(r, o) in &outputs {
            let (got, want) = (c[r * w.panels() * WIDTH + o], sum(r, o, 1));
            assert_eq!(got.to_bits(), want.to_bits(), "{} row {r} output {o}: {got} for {want}", table.name);
        }
    }
}

#[test]
fn every_activation_equals_its_formula() {
    let erf = |x: f64| {
        if x.abs() > 5.0 {
            return x.signum(); // 1 - erf(5) is 1.5e-12.
        }
        // Series of Abramowitz and Stegun 7.1.5, enough terms for |x| < 5.
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let gelu = |x: f64| 0.5 * x * (1.0 + erf(x / 2f64.sqrt()));
    let softplus = |x: f64| x.exp().ln_1p();
    let truth = |a: Activation, x: f64| match a {
        Activation::Linear => x,
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0).powi(2),
        Activation::Relu6 => x.clamp(0.0, 6.0),
        Activation::LeakyRelu => {
            if x < 0.0 {
                0.01 * x
            } else {
                x
            }
        }
        Activation::Gelu => gelu(x),
        Activation::Gelu10 => gelu(x).clamp(-10.0, 10.0),
        Activation::GeluNew => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Silu => x * sigmoid(x),
        Activation::Mish => x * softplus(x).tanh(),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => sigmoid(x),
        Activation::HardSwish => x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
        Activation::Laplace => 0.5 * (1.0 + erf((x - LAPLACE_MEAN) / (0.282095 * 2f64.sqrt()))),
        Activation::SqrtSoftplus => softplus(x).sqrt(),
    };
    let xs: Vec<f32> = (0..1600).map(|i| (i as f32 - 800.0) / 400.0).collect();
    for name in Activation::names().split(", ") {
        let activation = Activation::from_name(name).expect("a listed name");
        let mut bits: Option<Vec<u32>> = None;
        for table in tables() {
            let mut c = xs.clone();
            let e = EpilogueArgs { activation, ..EpilogueArgs::NONE };
            // SAFETY: one row of whole panels.
            unsafe { (table.finish())(c.as_mut_ptr(), c.len(), 1, c.len(), &e) };
            if fuses(&table) {
                let now: Vec<u32> = c.iter().map(|v| v.to_bits()).collect();
                assert_eq!(bits.get_or_insert_with(|| now.clone()), &now, "{name}: tables agree");
            }
            for (x, y) in xs.iter().zip(&c) {
                let want = truth(activation, f64::from(*x));
                assert!(
                    (f64::from(*y) - want).abs() < 1e-6,
                    "{name} on {}: {y} for {want} at {x}",
                    table.name
                );
            }
        }
    }
    assert!(Activation::from_name("prelu").is_none(), "an activation with parameters is not pointwise");
}

#[test]
fn the_epilogue_adds_bias_before_and_residual_after_the_activation() {
    for table in tables() {
        let (bias, residual) = (vec![-3.0; WIDTH], vec![10.0; 2 * WIDTH]);
        let mut c = vec![2.0; 2 * WIDTH];
        let e = EpilogueArgs {
            bias: bias.as_ptr(),
            activation: Activation::Relu,
            residual: residual.as_ptr(),
            residual_stride: WIDTH,
            round: false,
            ..EpilogueArgs::NONE
        };
        // SAFETY: two rows of one panel.
        unsafe { (table.finish())(c.as_mut_ptr(), WIDTH, 2, WIDTH, &e) };
        assert_eq!(c, vec![10.0; 2 * WIDTH], "{}: relu(2 - 3) + 10", table.name);
    }
}

/// Values at which rounding to bf16 is easily got wrong: ties, carries into the exponent, the largest, the smallest, NaNs whose
/// payload lies in the dropped half.
const HARD_TO_ROUND: [u32; WIDTH] = [
    0x3f80_8000,
    0x3f81_8000,
    0x3f80_8001,
    0x3f80_7fff,
    0x3fff_ffff,
    0x7f7f_ffff,
    0xff7f_8000,
    0x7f80_0000,
    0xff80_0000,
    0x7f80_0001,
    0xffff_ffff,
    0x0000_8001,
    0x8000_7fff,
    0x0080_0000,
    0x8000_0000,
    0x0000_0000,
];

#[test]
fn every_table_rounds_to_bf16_as_half_does() {
    let want = HARD_TO_ROUND.map(|bits| half::bf16::from_f32(f32::from_bits(bits)));
    for table in tables() {
        let mut c = HARD_TO_ROUND.map(f32::from_bits);
        let e = EpilogueArgs { round: true, ..EpilogueArgs::NONE };
        // SAFETY: one row of one panel.
        unsafe { (table.finish())(c.as_mut_ptr(), WIDTH, 1, WIDTH, &e) };
        assert_eq!(c.map(f32::to_bits), want.map(|x| x.to_f32().to_bits()), "{}", table.name);
    }
}

/// A product of two floats has one rounding, so that every table gives the same bits: no unit in the last place is allowed.
#[test]
fn every_table_multiplies_a_gate_as_the_reference_does() {
    let hard = |i: usize| f32::from_bits(HARD_TO_ROUND[i % WIDTH]);
    // Ordinary values, and products at which rounding, overflow and what lies below the smallest normal number show.
    let pairs = |i: usize| match i % 3 {
        0 => (spread(i) * 1.37, spread(7 * i + 1) * 0.73),
        1 => (hard(i / 3), 1.0),
        _ => (hard(i / 3), hard(i / 48)),
    };
    for (table, round) in tables().into_iter().flat_map(|table| [(table, false), (table, true)]) {
        for n in [0, WIDTH, 2 * WIDTH, 3 * WIDTH, 17 * WIDTH, 48 * WIDTH] {
            // What lies behind the floats is another member's.
            let (mut gate, up): (Vec<f32>, Vec<f32>) = (0..n + WIDTH).map(pairs).unzip();
            let (gate_before, up_before) = (gate.clone(), up.clone());
            // SAFETY: both vectors hold more than `n` floats.
            unsafe { table.multiply(gate.as_mut_ptr(), up.as_ptr(), n, round) };
            for (i, (got, (g, u))) in gate.iter().zip(gate_before.iter().zip(&up_before)).enumerate() {
                let product = if round { half::bf16::from_f32(g * u).to_f32() } else { g * u };
                let want = if i < n { product } else { *g };
                let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
                assert!(same, "{} round {round}, {n} floats: {got} for {g} * {u} at {i}", table.name);
            }
            let untouched = up.iter().zip(&up_before).all(|(now, before)| now.to_bits() == before.to_bits());
            assert!(untouched, "{}: the other half is only read", table.name);
        }
    }
}

#[test]
fn every_table_packs_rows_as_pairs_of_bf16() {
    for table in tables() {
        for (m, k) in [(1, 1), (2, 31), (5, 33), (12, 128), (13, 300), (29, 257)] {
            let mut a = rows(m, k, 3);
            for (x, bits) in a.iter_mut().zip(HARD_TO_ROUND) {
                *x = f32::from_bits(bits);
            }
            let form = table.form(Format::Bf16Dot, m, 0);
            let words = form.words(k);
            let mut out = vec![f32::NAN; m * words];
            let (tiles, to) = (0..form.tiles, out.as_mut_ptr());
            let job = Pack { a: a.as_ptr(), a_stride: stride(k), m, k, form, tiles, out: to };
            // SAFETY: the vectors have the sizes that the job states.
            unsafe { table.pack(&job) };
            let mut first = 0;
            for t in 0..form.tiles {
                let height = m / form.tiles + usize::from(t < m % form.tiles);
                for (w, i) in (0..words).flat_map(|w| (0..height).map(move |i| (w, i))) {
                    let at = |j: usize| {
                        let x = if j < k { a[(first + i) * stride(k) + j] } else { 0.0 };
                        u32::from(half::bf16::from_f32(x).to_bits())
                    };
                    let got = out[first * words + w * height + i].to_bits();
                    assert_eq!(
                        got,
                        at(2 * w) | (at(2 * w + 1) << 16),
                        "{} {m}x{k}: row {i} word {w}",
                        table.name
                    );
                }
                first += height;
            }
        }
    }
}

#[test]
fn an_absent_table_is_an_error() {
    assert!(matches!(Kernels::named("avx9"), Err(fastdecode::Error::Isa { .. })), "no such table");
    assert!(Kernels::named("portable").is_ok(), "portable runs everywhere");
}
