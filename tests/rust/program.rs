//! Forwards as data: what a record may hold, what is derived from it, and that a step does what the program says.

use std::sync::Arc;

use fastdecode::Error;
use fastdecode::checkpoint::{Checkpoint, Dtype, MemoryTensor};
use fastdecode::execute::{Buffers, Executor, Inputs, Results};
use fastdecode::kernels::Activation;
use fastdecode::kv::{Pool, Sequence, Shape};
use fastdecode::layers::Runtime;
use fastdecode::layers::embedding::Input;
use fastdecode::layers::heads::Heads;
use fastdecode::load::{Loader, Rounding};
use fastdecode::program::{
    Builder, Cache, Mask, Named, Program, Recorder, Value, Weights, Work, conv1d, dense, layer_norm, rms_norm,
};
use fastdecode::team::{self, Cancel};

const VOCAB: usize = 37;
/// Not whole panels, so that padding counts.
const D: usize = 30;
const HEADS: Heads = Heads::alike(3, 10, 0.3);

/// A value in -0.5..0.5.
fn value(i: usize) -> f32 {
    let x = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (x % 1021) as f32 / 1021.0 - 0.5
}

/// Tensors of these names and shapes.
fn checkpoint(tensors: &[(&str, Vec<usize>)]) -> Checkpoint {
    let tensor = |(seed, (name, shape)): (usize, &(&str, Vec<usize>))| {
        let count: usize = shape.iter().product();
        let bytes: Vec<u8> = (0..count).flat_map(|i| value(seed * 7919 + i).to_le_bytes()).collect();
        MemoryTensor {
            name: (*name).to_owned(),
            dtype: Dtype::F32,
            shape: shape.clone(),
            bytes: Arc::new(bytes),
        }
    };
    Checkpoint::from_memory(tensors.iter().enumerate().map(tensor).collect()).unwrap()
}

/// The tensors of a model of two blocks, and of what its mistaken variants name.
fn tensors() -> Checkpoint {
    let mut all = vec![("wte.weight", vec![VOCAB, D]), ("ln.weight", vec![D]), ("ln.bias", vec![D])];
    let linear = |name: &'static str, inputs: usize, outputs: usize| (name, vec![inputs, outputs]);
    for (weight, bias, inputs, outputs) in [
        ("a.qkv.weight", "a.qkv.bias", D, 3 * D),
        ("a.o.weight", "a.o.bias", D, D),
        ("m.up.weight", "m.up.bias", D, 2 * D),
        ("m.down.weight", "m.down.bias", 2 * D, D),
        ("m.odd.weight", "m.odd.bias", D, D + 1),
    ] {
        all.push(linear(weight, inputs, outputs));
        all.push((bias, vec![outputs]));
    }
    all.extend([
        ("g.gate.weight", vec![2 * D, D]),
        ("g.up.weight", vec![2 * D, D]),
        ("g.o.weight", vec![D, 2 * D]),
    ]);
    all.push(("g.narrow.weight", vec![D, D]));
    checkpoint(&all)
}

fn with_recorder<T>(work: impl FnOnce(&mut Recorder<'_>) -> T) -> (T, Weights) {
    let (checkpoint, cancel, rounding) = (tensors(), Cancel::never(), Rounding::default());
    let mut recorder = Recorder::new(Loader::new(&checkpoint, "", &rounding, 1, &cancel));
    let result = work(&mut recorder);
    (result, recorder.finish().unwrap().0)
}

/// Embeddings, of which a block is made.
fn begin(b: &mut Builder<'_, '_>) -> Value {
    let wte = b.weights().table(Named::of("wte.weight"), VOCAB, D).unwrap();
    b.embed("x", wte, D, None).unwrap()
}

fn end(b: &mut Builder<'_, '_>, x: Value) -> Result<(), Error> {
    let head = b.weights().head("wte.weight", [VOCAB, D], None)?;
    b.head("head", x, layer_norm("ln", 1e-5), head)
}

/// A block that attends, with a feed-forward layer that is gated or not.
fn block(b: &mut Builder<'_, '_>, x: Value, layer: usize, gated: bool) -> Value {
    let qkv = b.project(x, layer_norm("ln", 1e-5), conv1d("a.qkv", 3 * D)).unwrap();
    let attended = b.attend(qkv.thirds(), Cache::Own(layer), HEADS, Mask::CAUSAL).unwrap();
    let y = b.add(x, attended, conv1d("a.o", D)).unwrap();
    if gated {
        let gate = dense("g.gate", 2 * D).then(Activation::Silu);
        let inner = b.gated(y, rms_norm("ln", 1e-5), gate, dense("g.up", 2 * D)).unwrap();
        b.add(y, inner, dense("g.o", D)).unwrap()
    } else {
        let widened = conv1d("m.up", 2 * D).then(Activation::GeluNew);
        let inner = b.project(y, layer_norm("ln", 1e-5), widened).unwrap();
        b.add(y, inner, conv1d("m.down", D)).unwrap()
    }
}

fn model() -> (Program, Weights) {
    with_recorder(|recorder| {
        let mut b = Builder::new(recorder);
        let x = begin(&mut b);
        let x = block(&mut b, x, 0, false);
        let x = block(&mut b, x, 1, true);
        end(&mut b, x).unwrap();
        b.finish().unwrap()
    })
}

fn shape(program: &Program) -> Shape {
    Shape { layers: program.layers(), heads: HEADS.heads, head_dim: HEADS.head_dim, bf16: false }
}

/// Runs one step of several sequences, each with its tokens and the number of wanted rows; gives the logits, and the barriers.
fn step(
    (program, weights): (&Program, &Weights),
    threads: usize,
    sequences: &mut [Sequence],
    parts: &[(&[u32], usize)],
) -> (Vec<f32>, usize) {
    let runtime = Runtime::new(threads, false).unwrap();
    let shape = shape(program);
    let executor = Executor {
        program,
        weights,
        runtime: &runtime,
        own: &shape,
        memory: &shape,
        profile: None,
        backend: None,
    };
    let mut turn = team::turn(threads, &Cancel::never()).unwrap();
    let mut buffers = Buffers::take();
    let mut wanted = 0;
    for (sequence, (ids, some)) in sequences.iter_mut().zip(parts) {
        sequence.reserve(ids.len()).unwrap();
        buffers.plan.add(ids.len(), sequence.len(), *some, |blocks| sequence.pointers(blocks));
        wanted += some;
    }
    let mut logits = vec![0.0; wanted * VOCAB];
    let (of, cancel) = (|i: usize| Input::Tokens(parts[i].0), Cancel::never());
    let inputs = Inputs { of: &of, cancel: &cancel, trace: None };
    executor.run(&mut turn, &mut buffers, inputs, Results::Logits(&mut logits)).unwrap();
    for (sequence, (ids, _)) in sequences.iter_mut().zip(parts) {
        sequence.advance(ids.len());
    }
    (logits, buffers.barriers())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_step_meets_at_as_many_barriers_as_the_program_says() {
    let (program, weights) = model();
    let pool = Pool::new(shape(&program));
    for threads in [1, 2, 3] {
        for rows in [1, 2, 8, 9, 16, 17, 24, 25, 60] {
            let ids: Vec<u32> = (0..rows).map(|i| (i * 5 % VOCAB) as u32).collect();
            for wanted in [0, 1, rows] {
                let mut sequences = [Sequence::new(&pool)];
                let (_, got) = step((&program, &weights), threads, &mut sequences, &[(&ids, wanted)]);
                let work = Work { position: 0, rows, wanted, source: 0 };
                assert_eq!(got, program.barriers(work, threads), "{threads} threads, {work:?}");
            }
        }
    }
}

#[test]
fn wanted_rows_are_the_same_bits_whatever_else_is_wanted() {
    let (program, weights) = model();
    let pool = Pool::new(shape(&program));
    let ids =
        |seed: usize, n: usize| -> Vec<u32> { (0..n).map(|i| ((i + seed) * 11 % VOCAB) as u32).collect() };
    let (first, second, third) = (ids(1, 40), ids(2, 7), ids(3, 19));
    let all = |tokens: &[u32]| {
        step((&program, &weights), 1, &mut [Sequence::new(&pool)], &[(tokens, tokens.len())]).0
    };
    let alone = [all(&first), all(&second), all(&third)];
    let tail = |which: usize, n: usize| bits(&alone[which][alone[which].len() - n * VOCAB..]);
    for threads in [1, 2, 3] {
        for wanted in [[0, 0, 0], [1, 0, 1], [0, 7, 0], [3, 7, 1], [40, 7, 0], [1, 1, 1], [40, 7, 19]] {
            let mut sequences = [0; 3].map(|_| Sequence::new(&pool));
            let parts = [(&first[..], wanted[0]), (&second[..], wanted[1]), (&third[..], wanted[2])];
            let (logits, _) = step((&program, &weights), threads, &mut sequences, &parts);
            let want: Vec<u32> = (0..3).flat_map(|which| tail(which, wanted[which])).collect();
            assert_eq!(bits(&logits), want, "{threads} threads, wanted {wanted:?}");
            // What nobody wanted is in the cache all the same: the next step sees it.
            let next: Vec<Vec<u32>> =
                [&first, &second, &third].map(|t| [t.as_slice(), &[5]].concat()).to_vec();
            let (after, _) =
                step((&program, &weights), threads, &mut sequences, &[(&[5], 1), (&[5], 1), (&[5], 1)]);
            let want: Vec<u32> = next.iter().flat_map(|t| bits(&all(t)[t.len() * VOCAB - VOCAB..])).collect();
            assert_eq!(bits(&after), want, "{threads} threads, after {wanted:?}");
        }
    }
}

#[test]
fn operations_and_bytes_are_those_of_the_formulas() {
    let (program, weights) = model();
    let (d, v) = (D as f64, VOCAB as f64);
    let runtime = Runtime::new(1, false).unwrap();
    let flops = |position, rows, wanted| {
        let found = program.flops(&weights, &runtime, Work { position, rows, wanted, source: 0 });
        assert_eq!(found.all(), found.f32, "weights of floats");
        found.all() as f64
    };
    let block = |rows: f64, inner: f64| 2.0 * rows * (4.0 * d * d + inner);
    // One token at position 9 sees ten keys, in each of two products and of two blocks.
    let token = block(1.0, 4.0 * d * d) + block(1.0, 6.0 * d * d) + 2.0 * 4.0 * d * 10.0 + 2.0 * d * v;
    assert_eq!(flops(9, 1, 1), token);
    // A prompt of 10 has 55 pairs of a row and a key; of the last block's work only its keys, values and queries stay for
    // rows that nobody wants.
    let all = block(10.0, 4.0 * d * d) + block(10.0, 6.0 * d * d) + 2.0 * 4.0 * d * 55.0 + 20.0 * d * v;
    assert_eq!(flops(0, 10, 10), all);
    let last = 2.0 * 10.0 * 3.0 * d * d + 2.0 * (d * d + 6.0 * d * d) + 4.0 * d * 10.0 + 2.0 * d * v;
    assert_eq!(flops(0, 10, 1), block(10.0, 4.0 * d * d) + 4.0 * d * 55.0 + last);
    assert_eq!(flops(0, 10, 0), block(10.0, 4.0 * d * d) + 4.0 * d * 55.0 + 2.0 * 10.0 * 3.0 * d * d);
    let panels = |outputs: usize| outputs.div_ceil(16) * 64;
    let matrices = panels(3 * D) * D * 2 + panels(D) * (2 * D + 2 * D + 2 * D) + panels(2 * D) * 3 * D;
    assert_eq!(program.matrix_bytes(&weights), matrices + panels(VOCAB) * D);
}

#[test]
fn attention_reads_what_any_of_its_rows_sees() {
    for window in [None, Some(1), Some(4), Some(100)] {
        let (program, _) = with_recorder(|recorder| {
            let mut b = Builder::new(recorder);
            let x = begin(&mut b);
            let qkv = b.project(x, layer_norm("ln", 1e-5), conv1d("a.qkv", 3 * D)).unwrap();
            let mask = Mask { window, ..Mask::CAUSAL };
            let attended = b.attend(qkv.thirds(), Cache::Own(0), HEADS, mask).unwrap();
            let x = b.add(x, attended, conv1d("a.o", D)).unwrap();
            end(&mut b, x).unwrap();
            b.finish().unwrap()
        });
        for (position, rows, wanted) in [(0, 1, 1), (9, 1, 1), (0, 10, 10), (7, 5, 2), (7, 5, 0), (3, 2, 2)] {
            let sees = |row: usize| (row + 1 - window.unwrap_or(usize::MAX).min(row + 1))..row + 1;
            let rows_seen = position + rows - wanted..position + rows;
            let seen =
                (0..position + rows).filter(|key| rows_seen.clone().any(|row| sees(row).contains(key)));
            let work = Work { position, rows, wanted, source: 0 };
            let read: usize = program.phases().iter().map(|phase| phase.positions_read(work)).sum();
            assert_eq!(read, seen.count(), "a window of {window:?}, {work:?}");
        }
    }
}

#[test]
fn a_mistake_in_a_record_is_an_error() {
    type Mistake = fn(&mut Builder<'_, '_>, Value) -> Result<(), Error>;
    let mistakes: [(&str, Mistake); 8] = [
        ("a residual of 31 values", |b, x| b.add(x, x, conv1d("m.odd", D + 1)).map(drop)),
        ("gates of 60 values", |b, x| {
            b.gated(x, None, dense("g.gate", 2 * D), dense("g.narrow", D)).map(drop)
        }),
        ("3 heads of 10 values", |b, x| {
            let qkv = b.project(x, None, conv1d("m.up", 2 * D))?;
            b.attend(qkv.thirds(), Cache::Own(0), HEADS, Mask::CAUSAL).map(drop)
        }),
        ("3 heads of 10 values", |b, x| {
            let wide = Heads::alike(3, 10, 1.0);
            let outside = x.columns(10..10 + D);
            b.attend([outside; 3], Cache::Own(0), wide, Mask::CAUSAL).map(drop)
        }),
        ("layer 0 of the cache", |b, x| {
            let x = block(b, x, 1, false);
            end(b, x)
        }),
        ("layer 1 of the cache", |b, x| {
            let x = block(b, x, 0, false);
            let x = block(b, x, 0, false);
            end(b, x)
        }),
        ("layer 0 of the cache", |b, x| b.keep([x, x], 1, HEADS)),
        ("values of its own program", |b, x| {
            // From a program with more phases than this one has.
            let (strange, _) = with_recorder(|recorder| {
                let mut other = Builder::new(recorder);
                let y = begin(&mut other);
                block(&mut other, y, 0, false)
            });
            b.add(x, strange, conv1d("a.o", D)).map(drop)
        }),
    ];
    for (expected, mistake) in mistakes {
        let (result, _) = with_recorder(|recorder| {
            let mut b = Builder::new(recorder);
            let x = begin(&mut b);
            mistake(&mut b, x)?;
            b.finish().map(drop)
        });
        match result {
            Err(Error::Program { expected: found, .. }) => assert!(found.contains(expected), "{found}"),
            other => panic!("expected an error about {expected}, got {other:?}"),
        }
    }
}
