//! Law 1 for the cache and attention: every table puts the same bytes into a block and attends as the naive reference does, and a
//! row's bits do not depend on the rows beside it.

use fastdecode::kernels::{
    self, AppendKv, Attention, BLOCK, Bias, CHUNK, CacheProducts, Kernels, Visible, WIDTH,
};
use fastdecode::kv::{Pool, Sequence, Shape};
use proptest::prelude::*;

use super::kernels::{fuses, spread, value};
use super::tables::tables;

/// Puts `keys` tokens of one head into their blocks, in runs that end with a block.
fn put(
    table: &Kernels,
    shape: &Shape,
    blocks: &[*const u8],
    (layer, head): (usize, usize),
    key: &[f32],
    value: &[f32],
    keys: usize,
) {
    let d = shape.head_dim;
    for t in (0..keys).step_by(BLOCK) {
        let block = blocks[t / BLOCK].cast_mut();
        // SAFETY: reserved, one thread.
        unsafe {
            let job = AppendKv {
                key: key[t * d..].as_ptr(),
                key_stride: d,
                value: value[t * d..].as_ptr(),
                value_stride: d,
                rows: BLOCK.min(keys - t),
                d,
                token: 0,
                keys: block.add(shape.keys(layer, head)),
                values: block.add(shape.values(layer, head)),
            };
            table.put(shape.bf16, &job);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn attention_equals_the_reference_and_rows_stand_alone(
        d in prop_oneof![Just(1usize), Just(5), Just(16), Just(17), Just(64)],
        before in prop_oneof![Just(0usize), 1usize..40, Just(CHUNK - 1), Just(CHUNK + 44)],
        new in prop_oneof![0usize..14, Just(33), Just(CHUNK + 14)],
        products in prop_oneof![Just(CacheProducts::F32), Just(CacheProducts::Bf16), Just(CacheProducts::Bf16Dot)],
        biased: bool,
        // Distance past which the bias is the same.
        settled in prop_oneof![Just(3isize), Just(40), Just(700)],
        causal: bool,
        // Query heads that share the keys, only one with a bias, and with few rows, since the reference is slow; and how many keys a row sees at most.
        group in prop_oneof![Just(1usize), Just(2), Just(3), Just(7), Just(8)],
        window in prop_oneof![Just(usize::MAX), Just(1), Just(3), Just(16), Just(CHUNK), Just(CHUNK + 1)],
    ) {
        let group = if biased || new > 14 { 1 } else { group };
        let bf16 = products != CacheProducts::F32;
        // Weights of a bf16 cache are rounded to eight bits each, those of a small sum all to the same side at worst.
        let close = if bf16 { 4e-3 } else { 2e-5 };
        let shape = Shape { layers: 2, heads: 2, head_dim: d, bf16 };
        let (layer, head) = (1, 1);
        let keys = before + new;
        let mut s = Sequence::new(&Pool::new(shape));
        s.reserve(keys).unwrap();
        let mut blocks = Vec::new();
        s.pointers(&mut blocks);
        // Numbers of more digits than bf16 has; what the reference computes with is rounded where a bf16 cache rounds.
        let row = |seed: usize, t: usize| -> Vec<f32> {
            (0..d).map(|i| value(seed + t * 131 + i) * 1.013).collect()
        };
        let held = |seed: usize, t: usize| -> Vec<f64> {
            let round = |x: f32| if bf16 { half::bf16::from_f32(x).to_f32() } else { x };
            row(seed, t).into_iter().map(|x| f64::from(round(x))).collect()
        };
        let all = |seed: usize| -> Vec<f32> { (0..keys).flat_map(|t| row(seed, t)).collect() };
        put(&tables()[0], &shape, &blocks, (layer, head), &all(1), &all(2), keys);
        let q: Vec<f32> = (0..new * group).flat_map(|i| row(3, i)).collect();
        // Several distances share a bucket, and buckets come in no order.
        let buckets: Vec<u32> = (0..=2 * settled).map(|i| (i.unsigned_abs() * 7 % 11) as u32).collect();
        let values: Vec<f32> = (0..11).map(value).collect();
        let bias = |distance: isize| {
            values[buckets[(distance.clamp(-settled, settled) + settled).unsigned_abs()] as usize]
        };
        let scale = 0.7;
        let mut bits: Option<Vec<u32>> = None;
        for table in tables() {
            let run = |first: usize, n: usize| {
                let mut out = vec![f32::NAN; n * group * d];
                let mut scratch = vec![f32::NAN; kernels::attention_scratch(d)];
                let job = Attention {
                    q: q[first * group * d..].as_ptr(),
                    q_stride: d,
                    rows: n * group,
                    group,
                    d,
                    blocks: &blocks,
                    keys: shape.keys(layer, head),
                    values: shape.values(layer, head),
                    visible: if causal { Visible::Causal { first: before + first, window } } else { Visible::All { keys } },
                    scale,
                    bias: biased.then(|| Bias { values: &values, buckets: &buckets, first: before + first }),
                    out: out.as_mut_ptr(),
                    out_stride: group * d,
                    round: false,
                    next: (&blocks, shape.keys(layer, head)),
                    scratch: scratch.as_mut_ptr(),
                };
                // SAFETY: the vectors have the sizes that the job states.
                unsafe { table.attention(products, &job) };
                out
            };
            let all = run(0, new);
            if fuses(&table) {
                let now: Vec<u32> = all.iter().map(|v| v.to_bits()).collect();
                prop_assert_eq!(bits.get_or_insert_with(|| now.clone()), &now, "tables agree");
            }
            for i in 0..new * group {
                let p = before + i / group;
                let seen = if causal { (p + 1).saturating_sub(window)..p + 1 } else { 0..keys };
                let scores: Vec<f64> = seen.clone().map(|t| {
                    let dot: f64 = held(3, i).iter().zip(held(1, t)).map(|(a, b)| a * b).sum();
                    dot * scale as f64 + if biased { f64::from(bias(t.cast_signed() - p.cast_signed())) } else { 0.0 }
                }).collect();
                let max = scores.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                for c in 0..d {
                    let want: f64 = scores.iter().zip(seen.clone())
                        .map(|(s, t)| (s - max).exp() / total * held(2, t)[c]).sum();
                    let got = f64::from(all[i * d + c]);
                    prop_assert!((got - want).abs() < close, "{}: row {i} column {c}: {got} for {want}", table.name);
                }
                if i % group > 0 {
                    continue;
                }
                let alone = run(i / group, 1);
                prop_assert!(alone.iter().zip(&all[i / group * group * d..]).all(|(x, y)| x.to_bits() == y.to_bits()),
                    "{}: row {i} depends on its company", table.name);
            }
        }
    }
}

/// Every table puts keys and values where every other one does, however many come at a time, and rounds them alike.
#[test]
fn every_table_puts_the_same_bytes_into_a_block() {
    for (d, bf16) in [1, 4, 5, 16, 17, 64, 130].into_iter().flat_map(|d| [(d, false), (d, true)]) {
        let floats = |seed: usize| -> Vec<f32> { (0..BLOCK * d).map(|i| spread(seed + i) * 1.01).collect() };
        let (key, value) = (floats(3), floats(4));
        let (key_bytes, value_bytes) = (kernels::key_bytes(bf16, d), kernels::value_bytes(bf16, d));
        let element = |bytes: &[u8], i: usize| {
            if bf16 {
                half::bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32()
            } else {
                f32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap())
            }
        };
        let (width, step) = (d.next_multiple_of(WIDTH), if bf16 { 2 } else { 1 });
        for (table, runs) in tables()
            .into_iter()
            .flat_map(|t| [vec![16], vec![1; 16], vec![3, 0, 4, 1, 8], vec![2, 7]].map(|runs| (t, runs)))
        {
            let (mut keys, mut values) = (vec![0_u8; key_bytes], vec![0_u8; value_bytes]);
            let mut token = 0;
            for &rows in &runs {
                let job = AppendKv {
                    key: key[token * d..].as_ptr(),
                    key_stride: d,
                    value: value[token * d..].as_ptr(),
                    value_stride: d,
                    rows,
                    d,
                    token,
                    keys: keys.as_mut_ptr(),
                    values: values.as_mut_ptr(),
                };
                // SAFETY: the vectors hold a block and its rows.
                unsafe { table.put(bf16, &job) };
                token += rows;
            }
            let round = |x: f32| if bf16 { half::bf16::from_f32(x).to_f32() } else { x };
            for (t, x) in (0..BLOCK).flat_map(|t| (0..width).map(move |x| (t, x))) {
                let here = t < token && x < d;
                let want = |floats: &[f32]| if here { round(floats[t * d + x]) } else { 0.0 };
                let name = (table.name, d, bf16, &runs, t, x);
                if x < d.next_multiple_of(step) {
                    let at = (x / step * BLOCK + t) * step + x % step;
                    assert_eq!(element(&keys, at), want(&key), "key {name:?}");
                }
                let at = (t / step * width + x) * step + t % step;
                assert_eq!(element(&values, at), want(&value), "value {name:?}");
            }
        }
    }
}
