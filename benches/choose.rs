//! What choosing a token costs beside a step: one row of GPT-2's vocabulary, greedily and drawn, and the ways ahead in the stream.
//!
//! `cargo bench --bench choose -- drawn` runs some. `FASTDECODE_ISA` chooses the table; one thread. Every choice begins with a copy of
//! the row, whose cost stands apart.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastdecode::decode::Scratch;
use fastdecode::decode::draws::Draws;
use fastdecode::decode::jump::Jump;
use fastdecode::decode::logprobs::token_logprobs;
use fastdecode::decode::sampler::{draw, greedy};
use fastdecode::decode::torch_rng::TorchRng;
use fastdecode::decode::warpers::{Warper, Warpers};

/// Ids of GPT-2's vocabulary.
const V: usize = 50_257;

/// Scores that lie about as those of GPT-2 do: sums of six uniform numbers.
fn logits() -> Vec<f32> {
    let uniform = |seed: u32| {
        let mut x = seed.wrapping_mul(0x9e37_79b1);
        x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
        x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
        ((x ^ (x >> 16)) >> 8) as f32 / 16_777_216.0 - 0.5
    };
    let score = |id: u32| 4.0 * (0..6).map(|term| uniform(6 * id + term)).sum::<f32>() - 30.0;
    (0..V as u32).map(score).collect()
}

fn choose(c: &mut Criterion) {
    let raw = logits();
    let mut scores = raw.clone();
    let mut scratch = Scratch::default();
    let mut group = c.benchmark_group("row");
    group.bench_function("copy", |b| {
        b.iter(|| {
            scores.copy_from_slice(black_box(&raw));
            black_box(&mut scores);
        });
    });
    group.bench_function("greedy", |b| {
        b.iter(|| {
            scores.copy_from_slice(black_box(&raw));
            greedy(scratch.scans, &scores)
        });
    });
    group.bench_function("logprobs", |b| b.iter(|| token_logprobs(black_box(&raw), 5, 5, &mut scratch)));
    for (name, list) in [
        ("drawn", vec![Warper::Temperature(0.8), Warper::TopK(50), Warper::TopP(0.9)]),
        ("drawn of all", vec![]),
    ] {
        let warpers = Warpers::new(list, 1);
        let mut rng = TorchRng::from_seed(3);
        group.bench_function(name, |b| {
            b.iter(|| {
                scores.copy_from_slice(black_box(&raw));
                warpers.apply(&mut scores, &mut scratch).expect("finite scores");
                let Scratch { scans, candidates, probabilities, .. } = &mut scratch;
                draw(scans, &mut rng, candidates, V, probabilities).expect("finite scores")
            });
        });
    }
    let warpers = Warpers::new(vec![Warper::Temperature(0.8), Warper::TopK(50), Warper::TopP(0.9)], 1);
    group.bench_function("warped", |b| {
        b.iter(|| {
            scores.copy_from_slice(black_box(&raw));
            warpers.apply(&mut scores, &mut scratch).expect("finite scores");
        });
    });
    group.finish();
}

fn stream(c: &mut Criterion) {
    let mut rng = TorchRng::from_seed(3);
    let mut group = c.benchmark_group("stream");
    group.throughput(Throughput::Elements(2 * V as u64)).bench_function("skip a row's words", |b| {
        b.iter(|| {
            rng.skip_exponentials(V as u64 - 1);
            rng.uniform()
        });
    });
    group.finish();
    let mut group = c.benchmark_group("jump");
    for rows in [2, 64, 4096] {
        let jump = Jump::by(rows * V as u128);
        group.bench_function(format!("{rows} rows"), |b| b.iter(|| rng.jump(black_box(&jump))));
        group.bench_function(format!("polynomial of {rows} rows"), |b| {
            b.iter(|| Jump::by(black_box(rows * V as u128)));
        });
    }
    group.finish();
    let mut group = c.benchmark_group("group");
    for (first, count) in [(0, 64), (32, 32), (63, 1)] {
        let mut rows = Draws::new(3, V as u64, 64).group(first, 0);
        group.bench_function(format!("a token of {count} of 64 rows"), |b| {
            b.iter(|| {
                for row in first..first + count {
                    black_box(rows.stream(row).uniform());
                }
                rows.next_token();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, choose, stream);
criterion_main!(benches);
