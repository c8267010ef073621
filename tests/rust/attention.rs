//! Attention over the team: a row's bits do not depend on the sequences beside it, on the number of members or of their groups,
//! or on how many rows of its sequence come at once.

use fastdecode::kernels::{Family, Kernels};
use fastdecode::kv::{Pool, Sequence, Shape};
use fastdecode::layers::attention::{Attention, AttentionMask, Batch, Keys, KeysValues, Span};
use fastdecode::layers::heads::{Heads, Preparation};
use fastdecode::layers::norm::{Norm, NormKind};
use fastdecode::layers::rotary::Rotary;
use fastdecode::layers::{self, Buffer, Context, Runtime};
use fastdecode::team::{self, Cancel};

use super::tables::tables;

const HEADS: Heads = Heads::alike(3, 5, 0.7);

/// One way to attend.
#[derive(Debug, Clone)]
struct Look {
    heads: Heads,
    causal: bool,
    window: Option<usize>,
    /// Whether queries and keys are normalized and turned.
    prepared: bool,
}

impl Look {
    const CAUSAL: Self = Self { heads: HEADS, causal: true, window: None, prepared: false };

    /// Every kind of look that a model may take.
    fn every() -> Vec<Self> {
        let grouped = Heads { heads: 6, kv_heads: 2, head_dim: 6, scale: 0.7 };
        let one_key = Heads { heads: 7, kv_heads: 1, head_dim: 4, scale: 0.7 };
        vec![
            Self::CAUSAL,
            Self { causal: false, ..Self::CAUSAL },
            Self { heads: grouped, window: Some(19), prepared: true, ..Self::CAUSAL },
            Self { heads: one_key, window: Some(1), ..Self::CAUSAL },
            Self { heads: Heads { head_dim: 6, ..HEADS }, prepared: true, ..Self::CAUSAL },
        ]
    }

    /// Widths of queries and of keys.
    fn widths(&self) -> [usize; 2] {
        [self.heads.heads, self.heads.kv_heads].map(|count| count * self.heads.head_dim)
    }

    fn shape(&self, bf16: bool) -> Shape {
        Shape { layers: 2, heads: self.heads.kv_heads, head_dim: self.heads.head_dim, bf16 }
    }
}

/// Column `c` of row `position` of sequence `s`: queries, keys and values side by side.
fn value(s: usize, position: usize, c: usize) -> f32 {
    let i = (s * 10_000 + position) * 211 + c;
    let x = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (x % 4093) as f32 / 2048.0 - 1.0
}

/// Bits of what every row attends to, sequence by sequence, when sequence `s` has `rows[s]` rows after those in its cache.
fn attend(
    runtime: &Runtime,
    pool: &std::sync::Arc<Pool>,
    sequences: &mut [(usize, Sequence)],
    rows: &[usize],
    look: &Look,
) -> Vec<Vec<u32>> {
    let (outcome, bits) = attend_unless(&Cancel::never(), runtime, pool, sequences, rows, look);
    outcome.unwrap();
    bits
}

/// As [`attend`], with a cancel flag; what the region came to, and the bits that it left in the outputs, which were zeros.
fn attend_unless(
    cancel: &Cancel<'_>,
    runtime: &Runtime,
    pool: &std::sync::Arc<Pool>,
    sequences: &mut [(usize, Sequence)],
    rows: &[usize],
    look: &Look,
) -> (fastdecode::Result<()>, Vec<Vec<u32>>) {
    let m = rows.iter().sum();
    let [width, key_width] = look.widths();
    let (mut batch, mut qkv, mut out, mut members, mut angles) =
        (Batch::default(), Buffer::default(), Buffer::default(), Buffer::default(), Buffer::default());
    let (qkv, out) = (qkv.rows(m, width + 2 * key_width).unwrap(), out.rows(m, width).unwrap());
    let members = members.rows(runtime.threads, layers::scratch(runtime, width, Some(look.heads))).unwrap();
    let rotary = Rotary { inverse: vec![1.0, 0.01], beyond: None, factor: 1.0 };
    let angles = angles.rows(m, rotary.width()).unwrap();
    let d = look.heads.head_dim;
    let norm = |first: usize| Norm {
        kind: NormKind::Rms,
        weight: (0..d).map(|c| 1.0 + value(0, first, c) / 4.0).collect(),
        bias: Vec::new(),
        eps: 1e-6,
    };
    let norms = [norm(1), norm(2)];
    let preparation = if look.prepared {
        Preparation { norms: Some(norms.each_ref()), angles: Some(angles) }
    } else {
        Preparation::default()
    };
    let mut row = 0;
    for ((s, sequence), &rows) in sequences.iter_mut().zip(rows) {
        let position = sequence.len();
        sequence.reserve(rows).unwrap();
        let (keys, block) = (position + rows, batch.blocks.len());
        batch.spans.push(Span { row, out: row, rows, position, keys, block, is_long: false });
        sequence.pointers(&mut batch.blocks);
        for r in 0..rows {
            // SAFETY: one thread.
            let to = unsafe { qkv.row_mut(row + r) };
            to.iter_mut().enumerate().for_each(|(c, v)| *v = value(*s, position + r, c));
            // SAFETY: one thread.
            rotary.angles(position + r, false, unsafe { angles.row_mut(row + r) });
        }
        row += rows;
    }
    let outcome = team::run(runtime.threads, cancel, |member| {
        let scratch = members.at(member.index(), 0);
        // No product, no packed rows.
        let ctx = Context { member, runtime, scratch, packed_rows: out.first(0) };
        let keys = Keys { shape: pool.shape(), layer: 1, batch: &batch, wanted: None };
        let new = KeysValues { keys: (qkv, width), values: (qkv, width + key_width) };
        // The last phase of the region: no barrier tells the members that the step was cancelled.
        let mask = AttentionMask { causal: look.causal, window: look.window, bias: None };
        let attention = Attention { heads: look.heads, preparation, mask };
        attention.append_and_attend(&ctx, keys, new, (qkv, 0), out)
    });
    for ((_, sequence), &rows) in sequences.iter_mut().zip(rows) {
        sequence.advance(rows);
    }
    // SAFETY: the region is over.
    (outcome, (0..m).map(|r| unsafe { out.row(r) }.iter().map(|v| v.to_bits()).collect()).collect())
}

#[test]
fn a_row_is_the_same_in_any_company() {
    for (table, bf16) in tables().into_iter().flat_map(|table| [(table, false), (table, true)]) {
        let runtime = |threads, group_rows| {
            let mut runtime = Runtime::with(table, Family::Unknown, threads, bf16);
            runtime.tuning.group_rows = group_rows;
            runtime
        };
        for look in Look::every() {
            let pool = Pool::new(look.shape(bf16));
            let fresh = |sequences: std::ops::Range<usize>| -> Vec<(usize, Sequence)> {
                sequences.map(|s| (s, Sequence::new(&pool))).collect()
            };
            // One sequence in one step, several with borders of groups inside and between them, and steps that begin inside a block.
            for steps in [
                vec![vec![1]],
                vec![vec![300]],
                vec![vec![7, 90, 1, 33, 61, 16]],
                vec![vec![37, 5, 70], vec![90, 40, 3], vec![1, 1, 1]],
                vec![vec![1; 40], vec![2; 40]],
            ] {
                let count = steps[0].len();
                let one = runtime(1, 1);
                // Every sequence by itself.
                let alone: Vec<Vec<Vec<Vec<u32>>>> = (0..count)
                    .map(|s| {
                        let mut own = fresh(s..s + 1);
                        steps.iter().map(|rows| attend(&one, &pool, &mut own, &rows[s..=s], &look)).collect()
                    })
                    .collect();
                for (threads, group_rows) in [(1, 1), (2, 1), (2, 1000), (3, 1), (4, 40), (6, 50), (7, 1)] {
                    let runtime = runtime(threads, group_rows);
                    let mut all = fresh(0..count);
                    for (i, rows) in steps.iter().enumerate() {
                        let together = attend(&runtime, &pool, &mut all, rows, &look);
                        let want: Vec<&Vec<u32>> = alone.iter().flat_map(|steps| &steps[i]).collect();
                        assert!(
                            together.iter().eq(want),
                            "{} bf16 {bf16} {look:?} {rows:?}, {threads} members, groups of {group_rows}",
                            table.name
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn rows_of_a_sequence_may_come_in_any_steps() {
    for (table, bf16) in tables().into_iter().flat_map(|table| [(table, false), (table, true)]) {
        for look in Look::every().into_iter().filter(|look| look.causal) {
            let pool = Pool::new(look.shape(bf16));
            let run = |threads, steps: &[usize]| -> Vec<Vec<u32>> {
                let mut runtime = Runtime::with(table, Family::Unknown, threads, bf16);
                runtime.tuning.group_rows = 1;
                let mut own = [(0, Sequence::new(&pool))];
                steps.iter().flat_map(|rows| attend(&runtime, &pool, &mut own, &[*rows], &look)).collect()
            };
            let whole = run(1, &[280]);
            for steps in [vec![1; 280], vec![17, 100, 1, 1, 161], vec![255, 25], vec![256, 24]] {
                for threads in [1, 3] {
                    let same = run(threads, &steps) == whole;
                    assert!(same, "{} bf16 {bf16} {look:?} {steps:?} {threads}", table.name);
                }
            }
        }
    }
}

#[test]
fn a_cancelled_step_computes_no_task() {
    let table = Kernels::chosen().unwrap();
    let shape = Look::CAUSAL.shape(false);
    for threads in [1, 3] {
        // Rows that one task each puts and attends to, and rows whose keys are appended in a phase of their own.
        for rows in [&[1, 1][..], &[200]] {
            let runtime = Runtime::with(table, Family::Unknown, threads, false);
            let (pool, cancel) = (Pool::new(shape), Cancel::never());
            cancel.set();
            let mut own: Vec<_> = (0..rows.len()).map(|s| (s, Sequence::new(&pool))).collect();
            let (outcome, bits) = attend_unless(&cancel, &runtime, &pool, &mut own, rows, &Look::CAUSAL);
            assert!(matches!(outcome, Err(fastdecode::Error::Cancelled)), "{threads} {rows:?}: {outcome:?}");
            assert!(bits.iter().flatten().all(|bit| *bit == 0), "{threads} {rows:?}: an output was written");
            let mut blocks = Vec::new();
            own.iter().for_each(|(_, sequence)| sequence.pointers(&mut blocks));
            let bytes = shape.block_bytes();
            // SAFETY: blocks of the pool, zeroed when they were reserved, and nobody writes them now.
            let mut all = blocks.iter().flat_map(|at| unsafe { std::slice::from_raw_parts(*at, bytes) });
            assert!(all.all(|byte| *byte == 0), "{threads} {rows:?}: a key was appended");
        }
    }
}
