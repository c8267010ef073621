//! Linear layers over the team: a row's bits do not depend on the rows beside it, on the number of members or of their groups,
//! or on which layer its input was made for.

use fastdecode::arena::Arena;
use fastdecode::kernels::{
    Activation, BFLOAT16, Element, FLOAT16, FLOAT32, Family, INT4, INT8, LINE, Orientation, WIDTH, WeightType,
};
use fastdecode::layers::linear::{Epilogue, Linear};
use fastdecode::layers::{self, Buffer, Context, Runtime};
use fastdecode::packed::{Packed, packed_bytes};
use fastdecode::team::{self, Cancel};

use super::tables::tables;

const INPUTS: usize = 197;
/// Eleven panels: the last one has no partner.
const OUTPUTS: usize = 170;

/// A value in -1..1 that bf16 and f16 hold exactly.
fn value(i: usize) -> f32 {
    let x = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (x % 255) as f32 / 128.0 - 1.0
}

fn layer(of: &'static dyn WeightType, seed: usize, outputs: usize) -> Linear {
    let arena = Arena::new(packed_bytes(of, outputs, INPUTS).unwrap() + LINE, "a test").unwrap();
    let m = Packed::new(&arena, 0, of, outputs, INPUTS);
    for first in (0..outputs).step_by(WIDTH) {
        let rows = (outputs - first).min(WIDTH);
        let panel: Vec<u8> =
            (0..rows * INPUTS).flat_map(|i| value(seed + first * INPUTS + i).to_le_bytes()).collect();
        // SAFETY: one thread.
        assert!(unsafe { m.write(Orientation::OutIn, first, Element::F32, &panel) }, "values fit");
    }
    Linear::new(m, (0..outputs).map(value).collect())
}

/// Bits of what each layer makes of rows `first..first + m`, one input serving all layers that take it.
fn products(layers: &[Linear], runtime: &Runtime, first: usize, m: usize) -> Vec<Vec<Vec<u32>>> {
    let (mut x, mut members, mut packed) = (Buffer::default(), Buffer::default(), Buffer::default());
    let mut residual = Buffer::default();
    let (x, residual) = (x.rows(m, INPUTS).unwrap(), residual.rows(m, OUTPUTS).unwrap());
    for (rows, seed) in [(x, 7 * INPUTS), (residual, 5 * OUTPUTS)] {
        for r in 0..m {
            // SAFETY: one thread.
            let row = unsafe { rows.row_mut(r) };
            row.iter_mut().enumerate().for_each(|(c, v)| *v = value(seed * (first + r) + c));
        }
    }
    let then = Epilogue { activation: Activation::GeluNew, residual: Some(residual), round_output: false };
    let members = members.rows(runtime.threads, layers::scratch(runtime, INPUTS, None)).unwrap();
    let packed_rows = packed.rows(1, layers::packed_rows(m, INPUTS)).unwrap();
    let mut outs: Vec<Buffer> = layers.iter().map(|_| Buffer::default()).collect();
    let outs: Vec<_> = outs.iter_mut().map(|out| out.rows(m, OUTPUTS).unwrap()).collect();
    team::run(runtime.threads, &Cancel::never(), |member| {
        let ctx = Context { member, runtime, scratch: members.at(member.index(), 0), packed_rows };
        let mut input = layers[0].prepare(&ctx, x)?;
        for (layer, out) in layers.iter().zip(&outs) {
            input = layer.prepare_again(&ctx, input)?;
            layer.forward(&ctx, input, *out, then);
        }
        member.barrier()
    })
    .unwrap();
    // SAFETY: the region is over.
    let bits = |out: &layers::Rows<'_>, r| unsafe { out.row(r) }.iter().map(|v| v.to_bits()).collect();
    outs.iter().map(|out| (0..m).map(|r| bits(out, r)).collect()).collect()
}

#[test]
fn a_row_is_the_same_in_any_company() {
    // Neighbours in type, so that inputs are made again where products are formed differently.
    let delicate = INT8.delicate(Element::F32).unwrap();
    let types = [FLOAT32, BFLOAT16, FLOAT16, INT8, INT4[0], FLOAT32, BFLOAT16, INT4[1], delicate, INT8];
    let layers: Vec<Linear> = types.iter().enumerate().map(|(i, s)| layer(*s, 1000 * i, OUTPUTS)).collect();
    for table in tables() {
        // Short blocks for all of the rows, or long ones for more than sixteen.
        for (dot, short_blocks) in [(false, 192), (true, 192), (false, 16), (true, 16)] {
            let runtime = |threads| {
                let mut runtime = Runtime::with(table, Family::Unknown, threads, dot);
                runtime.dot &= table.has_bf16_dot;
                // Small groups, so that forty rows and more are several.
                runtime.tuning.group_rows = 1;
                runtime.tuning.short_blocks = short_blocks;
                runtime
            };
            let alone: Vec<_> = (0..70).map(|r| products(&layers, &runtime(1), r, 1)).collect();
            let rows = [(0, 2), (1, 3), (4, 2), (5, 2), (6, 3), (7, 1), (13, 2), (16, 3), (17, 2), (40, 3)];
            let groups = [(40, 2), (33, 2), (70, 4), (70, 6), (49, 3), (50, 7)];
            for (m, threads) in rows.into_iter().chain(groups) {
                let together = products(&layers, &runtime(threads), 0, m);
                for (l, rows) in together.iter().enumerate() {
                    for (r, row) in rows.iter().enumerate() {
                        assert!(
                            *row == alone[r][l][0],
                            "{} layer {l} row {r} of {m}, {threads} members",
                            table.name
                        );
                    }
                }
            }
        }
    }
}

/// Rows of a gated product: what the gate's and the other layer's product are alone, and what they give together, piece by piece.
fn gated(layers: &[Linear; 2], runtime: &Runtime, m: usize) -> [Vec<Vec<f32>>; 3] {
    let outputs = layers[0].weight().outputs();
    let (mut x, mut members, mut packed) = (Buffer::default(), Buffer::default(), Buffer::default());
    let x = x.rows(m, INPUTS).unwrap();
    for r in 0..m {
        // SAFETY: one thread.
        let row = unsafe { x.row_mut(r) };
        row.iter_mut().enumerate().for_each(|(c, v)| *v = value(7 * INPUTS * r + c));
    }
    let members = members.rows(runtime.threads, layers::scratch(runtime, INPUTS, None)).unwrap();
    let packed_rows = packed.rows(1, layers::packed_rows(m, INPUTS)).unwrap();
    let gate_then = Epilogue { activation: Activation::GeluNew, ..Epilogue::NOTHING };
    let mut outs: [Buffer; 4] = Default::default();
    let outs = outs.each_mut().map(|out| out.rows(m, outputs).unwrap());
    let [gate, up, both, other] = outs;
    team::run(runtime.threads, &Cancel::never(), |member| {
        let ctx = Context { member, runtime, scratch: members.at(member.index(), 0), packed_rows };
        let input = layers[0].prepare(&ctx, x)?;
        layers[0].forward(&ctx, input, gate, gate_then);
        layers[1].forward(&ctx, input, up, Epilogue::NOTHING);
        for piece in layers[0].pieces(&ctx, input) {
            layers[0].product(&ctx, &piece, input, both, gate_then);
            layers[1].product(&ctx, &piece, input, other, Epilogue::NOTHING);
            both.multiply(&ctx, other, &piece);
        }
        member.barrier()
    })
    .unwrap();
    // SAFETY: the region is over.
    [gate, up, both].map(|rows| (0..m).map(|r| unsafe { rows.row(r) }.to_vec()).collect())
}

#[test]
fn a_gated_product_is_that_of_its_halves() {
    for outputs in [1, 15, 16, 17, 33, OUTPUTS] {
        let layers = [layer(FLOAT32, 0, outputs), layer(FLOAT32, 1000, outputs)];
        for (table, round) in tables().into_iter().flat_map(|table| [(table, false), (table, true)]) {
            for (m, threads) in [(0, 2), (1, 1), (1, 3), (5, 2), (17, 3), (40, 4)] {
                let mut runtime = Runtime::with(table, Family::Unknown, threads, round);
                runtime.dot = false;
                runtime.tuning.group_rows = 1;
                let [gate, up, both] = gated(&layers, &runtime, m);
                assert_eq!(both.len(), m, "a row out for a row in");
                for (r, row) in both.iter().enumerate() {
                    for (c, got) in row.iter().enumerate() {
                        let product = gate[r][c] * up[r][c];
                        let want = if round { half::bf16::from_f32(product).to_f32() } else { product };
                        let name = table.name;
                        assert_eq!(got.to_bits(), want.to_bits(), "{name} {round} {m}x{outputs}: {r}, {c}");
                    }
                }
            }
        }
    }
}
