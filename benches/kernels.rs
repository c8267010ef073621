//! Kernels against the machine's limits: the matrices of GPT-2's twelve layers (85 million weights) for a few rows, as bytes of
//! weights per second beside a plain read of as many bytes, and for a prompt, as operations per second beside the peak.
//!
//! `cargo bench --bench kernels -- rows` runs one group. `FASTDECODE_ISA` chooses the table, all threads take part. Absolute
//! figures say little on a shared machine; compare the lines of one run.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fastdecode::arena::Arena;
use fastdecode::kernels::{Activation, Element, Orientation, TYPES, WIDTH, WeightType};
use fastdecode::layers::linear::{Epilogue, Linear};
use fastdecode::layers::{self, Buffer, Context, Runtime, scratch};
use fastdecode::packed::{Packed, packed_bytes};
use fastdecode::team::{self, Cancel};

/// Inputs and outputs of the matrices of a block.
const SHAPES: [(usize, usize); 4] = [(768, 2304), (768, 768), (768, 3072), (3072, 768)];
/// Blocks.
const LAYERS: usize = 12;

/// The matrices in one arena, and their bytes.
fn layers(of: &'static dyn WeightType) -> (Vec<Linear>, usize) {
    let bytes = |&(k, n): &(usize, usize)| packed_bytes(of, n, k).expect("a small matrix");
    let total = LAYERS * SHAPES.iter().map(bytes).sum::<usize>();
    let arena = Arena::new(total, "weights").expect("memory for the weights");
    let mut at = 0;
    let mut layers = Vec::new();
    for &(k, n) in std::iter::repeat_n(&SHAPES, LAYERS).flatten() {
        let m = Packed::new(&arena, at, of, n, k);
        at += bytes(&(k, n));
        let panel: Vec<u8> =
            (0..WIDTH * k).flat_map(|i| ((i % 7) as f32 * 0.01 - 0.03).to_le_bytes()).collect();
        for first in (0..n).step_by(WIDTH) {
            // SAFETY: one thread.
            unsafe { m.write(Orientation::OutIn, first, Element::F32, &panel) };
        }
        layers.push(Linear::new(m, Vec::new()));
    }
    (layers, total)
}

/// All matrices once, for `rows` rows.
fn pass(runtime: &Runtime, layers: &[Linear], buffers: &mut [Buffer; 7], rows: usize) {
    let [x, qkv, attended, inner, out, memory, packed] = buffers;
    let (x, qkv) = (x.rows(rows, 768).expect("memory"), qkv.rows(rows, 2304).expect("memory"));
    let (attended, inner) =
        (attended.rows(rows, 768).expect("memory"), inner.rows(rows, 3072).expect("memory"));
    let out = out.rows(rows, 768).expect("memory");
    let memory = memory.rows(runtime.threads, scratch(runtime, 3072, None)).expect("memory");
    let packed_rows = packed.rows(1, layers::packed_rows(rows, 3072)).expect("memory");
    team::run(runtime.threads, &Cancel::never(), |member| {
        let ctx = Context { member, runtime, scratch: memory.at(member.index(), 0), packed_rows };
        for block in layers.chunks(SHAPES.len()) {
            block[0].forward(&ctx, block[0].prepare(&ctx, x)?, qkv, Epilogue::NOTHING);
            member.barrier()?;
            block[1].forward(&ctx, block[1].prepare(&ctx, x)?, attended, Epilogue::NOTHING);
            member.barrier()?;
            let then = Epilogue { activation: Activation::GeluNew, ..Epilogue::NOTHING };
            block[2].forward(&ctx, block[2].prepare(&ctx, x)?, inner, then);
            member.barrier()?;
            let then = Epilogue { residual: Some(attended), ..Epilogue::NOTHING };
            block[3].forward(&ctx, block[3].prepare(&ctx, inner)?, out, then);
            member.barrier()?;
        }
        Ok(())
    })
    .expect("a pass");
}

fn kernels(c: &mut Criterion) {
    let runtime = Runtime::new(team::default_threads(), false).expect("a table that this CPU runs");
    let probes = runtime.kernels.probes();
    let weights = (LAYERS * SHAPES.iter().map(|(k, n)| k * n).sum::<usize>()) as u64;
    for of in TYPES {
        let (layers, bytes) = layers(of);
        let mut buffers: [Buffer; 7] = Default::default();
        let mut group = c.benchmark_group(format!("rows/{}", of.name()));
        group.sample_size(20).throughput(Throughput::Bytes(bytes as u64));
        let plain = Arena::filled(bytes / 4, 1.0, "memory to read").expect("memory to read");
        for ahead in [0, 2048, 4096] {
            group.bench_function(BenchmarkId::new("read", ahead), |b| {
                b.iter(|| {
                    team::run(runtime.threads, &Cancel::never(), |member| {
                        probes.read(&plain[member.share(plain.len())], ahead);
                        Ok(())
                    })
                });
            });
        }
        for rows in [1, 2, 5, 8] {
            group.bench_function(BenchmarkId::new("product", rows), |b| {
                b.iter(|| pass(&runtime, black_box(&layers), &mut buffers, rows));
            });
        }
        group.finish();
        let mut group = c.benchmark_group(format!("prompt/{}", of.name()));
        group.sample_size(10).throughput(Throughput::Elements(2 * weights * 512));
        group.bench_function("512", |b| b.iter(|| pass(&runtime, black_box(&layers), &mut buffers, 512)));
        group.finish();
    }
    // One iteration is as many operations as the probe's rate says for a fixed time, so its rate is the peak itself.
    let peak = probes.fma_flops(0.5).peak * runtime.threads as f64;
    c.bench_function(&format!("peak of f32 in registers: {:.0} GFLOP/s", peak / 1e9), |b| {
        b.iter(|| black_box(probes.fma_flops(0.001)));
    });
}

criterion_group!(benches, kernels);
criterion_main!(benches);
