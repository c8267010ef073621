//! torch's random stream and its `multinomial`, against `tests/golden/torch_rng.json` (`tools/make_rng_golden.py`).

use fastdecode::decode::sampler::{Candidate, draw, draw_many};
use fastdecode::decode::torch_rng::TorchRng;
use fastdecode::kernels::Kernels;
use serde_json::Value;

use crate::golden;

fn integer(value: &Value) -> u64 {
    value.as_u64().expect("a whole number")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

/// The logits of `tools/make_rng_golden.py`.
fn candidates(salt: u32, row: usize, vocab_size: usize, spread: f32) -> Vec<Candidate> {
    (0..vocab_size)
        .map(|id| {
            let mut x = ((row * vocab_size + id) as u32).wrapping_add(salt).wrapping_mul(0x9e37_79b1);
            x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
            x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
            x ^= x >> 16;
            (id as u32, (x >> 8) as f32 * (2.0 * spread / 16_777_216.0) - spread)
        })
        .collect()
}

#[test]
fn exponentials_have_torchs_bits() {
    let golden = golden("torch_rng.json");
    for case in list(&golden["exponentials"]) {
        let seed = integer(&case["seed"]);
        let mut rng = TorchRng::from_seed(seed);
        let drawn: Vec<_> = (0..700).map(|_| u64::from(rng.uniform().exponential().to_bits())).collect();
        assert_eq!(drawn[..8], list(&case["first"]).iter().map(integer).collect::<Vec<_>>(), "seed {seed}");
        assert_eq!(drawn[696..], list(&case["last"]).iter().map(integer).collect::<Vec<_>>(), "seed {seed}");
    }
}

#[test]
fn skipping_is_drawing_and_forgetting() {
    for skipped in [0, 1, 2, 113, 311, 312, 313, 623, 624, 625, 5000] {
        for before in [0, 1, 311] {
            let (mut stepped, mut skipping) = (TorchRng::from_seed(3), TorchRng::from_seed(3));
            for _ in 0..before {
                assert_eq!(stepped.uniform(), skipping.uniform());
            }
            for _ in 0..skipped {
                stepped.uniform();
            }
            skipping.skip_exponentials(skipped);
            assert_eq!(stepped.uniform(), skipping.uniform(), "{before} drawn, {skipped} skipped");
        }
    }
}

#[test]
fn multinomial_draws_torchs_ids() {
    let golden = golden("torch_rng.json");
    for case in list(&golden["multinomial"]) {
        let (vocab_size, rows) = (integer(&case["vocab_size"]) as usize, integer(&case["rows"]) as usize);
        let (spread, count) = (integer(&case["spread"]) as f32, integer(&case["count"]) as usize);
        let mut rng = TorchRng::from_seed(integer(&case["seed"]));
        let scans = Kernels::chosen_scans();
        let (mut probabilities, mut places) = (Vec::new(), Vec::new());
        for (call, expected) in list(&case["ids"]).iter().enumerate() {
            for (row, expected) in list(expected).iter().enumerate().take(rows) {
                let candidates = candidates(1000 * call as u32, row, vocab_size, spread);
                let expected: Vec<_> = list(expected).iter().map(integer).collect();
                let mut copy = rng.clone();
                draw_many(scans, &mut copy, &candidates, vocab_size, count, &mut probabilities, &mut places)
                    .expect("finite logits");
                let many: Vec<_> = places.iter().map(|&(place, _)| u64::from(place)).collect();
                assert_eq!(many, expected, "{case}, call {call}, row {row}");
                let one = draw(scans, &mut rng, &candidates, vocab_size, &mut probabilities)
                    .expect("finite logits");
                assert_eq!(one as u64, expected[0], "{case}, call {call}, row {row}");
            }
        }
    }
}
