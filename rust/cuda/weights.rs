//! A model's weights in a GPU's memory, and what each phase of a program needs of them.

use std::collections::HashMap;

use super::args::{MOST_RESULTS, NormArgs};
use super::driver::{Memory, Pinned};
use super::gpu::{Gpu, MOST_HEAD};
use crate::error::{Error, Result};
use crate::kernels::lanes::round_bf16;
use crate::layers::linear::Linear;
use crate::layers::norm::Norm;
use crate::packed::Packed;
use crate::program::{Op, Operand, Phase, Program, Weights};
use crate::team::Cancel;

/// Bytes of weights that are made ready in the host's memory at a time, unless a row has more.
const STAGED: usize = 8 << 20;

/// A matrix on the GPU: rows of inputs, padded with zeros to whole sixteen bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix {
    pub(super) at: u64,
    /// Values from one row to the next.
    pub(super) stride: usize,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

/// The weights of a phase; what has no weights has none.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ready {
    Embed { table: Matrix, learned: u64, inverse: u64, inverse_long: u64, factor: f32, pairs: usize },
    Linear { matrix: Matrix, bias: u64, norm: NormArgs },
    Attend { norms: [NormArgs; 2], bias: u64, buckets: u64, reach: usize, count: usize },
    Keep,
    Norm(NormArgs),
}

/// Puts weights into the GPU's memory, each once.
pub(super) struct Uploader<'a> {
    gpu: &'a Gpu,
    weights: &'a Weights,
    cancel: &'a Cancel<'a>,
    staging: Pinned,
    memory: Vec<Memory>,
    matrices: HashMap<Vec<*const u8>, Matrix>,
}

impl<'a> Uploader<'a> {
    pub(super) fn new(gpu: &'a Gpu, weights: &'a Weights, cancel: &'a Cancel<'a>) -> Result<Self> {
        let (memory, matrices, staging) = (Vec::new(), HashMap::new(), gpu.device.pinned(STAGED)?);
        Ok(Self { gpu, weights, cancel, staging, memory, matrices })
    }

    /// The weights of every phase of a program.
    ///
    /// # Errors
    /// `OutOfMemory`, `Cancelled`, `Option` for a program that the kernels have no room for, and those of the device.
    pub(super) fn program(&mut self, program: &Program) -> Result<Vec<Ready>> {
        program.phases().iter().map(|phase| self.phase(phase)).collect()
    }

    /// The memory that holds them.
    pub(super) fn finish(self) -> Vec<Memory> {
        self.memory
    }

    fn phase(&mut self, phase: &Phase<Operand>) -> Result<Ready> {
        let w = self.weights;
        Ok(match &phase.op {
            Op::Embed { table, positions, angles, .. } => {
                let table = self.matrix(&[w.table(*table)], false)?;
                let learned = positions.map_or(Ok(0), |slot| self.values(w.values(slot)))?;
                let (mut inverse, mut inverse_long, mut factor, mut pairs) = (0, 0, 1.0, 0);
                if let Some((slot, _)) = angles {
                    let rotary = w.rotary(*slot);
                    (factor, pairs) = (rotary.factor, rotary.inverse.len());
                    inverse = self.values(&rotary.inverse)?;
                    let beyond = rotary.beyond.as_ref();
                    inverse_long = beyond.map_or(Ok(0), |beyond| self.values(&beyond.inverse))?;
                }
                Ready::Embed { table, learned, inverse, inverse_long, factor, pairs }
            }
            Op::Linear { norm, products, gated, .. } => {
                if products.len() > MOST_RESULTS {
                    return Err(no_room(&phase.name, &format!("{} products", products.len())));
                }
                let linears: Vec<&Linear> = products.iter().map(|product| w.linear(product.linear)).collect();
                let matrices: Vec<&Packed> = linears.iter().map(|linear| linear.weight()).collect();
                let matrix = self.matrix(&matrices, *gated)?;
                let bias = self.bias(&linears, *gated)?;
                Ready::Linear { matrix, bias, norm: self.norm(norm.as_ref().map(|(_, slot)| w.norm(*slot)))? }
            }
            Op::Attend { heads, norms, mask, .. } => {
                if heads.head_dim > MOST_HEAD {
                    return Err(no_room(&phase.name, &format!("heads of {} values", heads.head_dim)));
                }
                let norms = match norms {
                    Some([queries, keys]) => {
                        [self.norm(Some(w.norm(queries.1)))?, self.norm(Some(w.norm(keys.1)))?]
                    }
                    None => [NormArgs::default(); 2],
                };
                let (mut bias, mut buckets, mut reach, mut count) = (0, 0, 0, 0);
                if let Some(slot) = mask.bias {
                    let relative = w.bias(slot);
                    let of_heads: Vec<f32> =
                        (0..heads.heads).flat_map(|head| relative.of(head, 0).values).copied().collect();
                    let by_distance = relative.of(0, 0).buckets;
                    (reach, count) = (by_distance.len() / 2, of_heads.len() / heads.heads.max(1));
                    bias = self.values(&of_heads)?;
                    buckets = self.words(by_distance)?;
                }
                Ready::Attend { norms, bias, buckets, reach, count }
            }
            Op::Keep { .. } => Ready::Keep,
            Op::Norm { norm, .. } => Ready::Norm(self.norm(Some(w.norm(*norm)))?),
            Op::Head { norm, linear, .. } => {
                let head = w.linear(*linear);
                let matrix = self.matrix(&[head.weight()], false)?;
                let bias = self.bias(&[head], false)?;
                Ready::Linear { matrix, bias, norm: self.norm(norm.as_ref().map(|(_, slot)| w.norm(*slot)))? }
            }
        })
    }

    fn norm(&mut self, norm: Option<&Norm>) -> Result<NormArgs> {
        let Some(norm) = norm else { return Ok(NormArgs::default()) };
        let (weight, bias) = (self.values(&norm.weight)?, self.values(&norm.bias)?);
        Ok(NormArgs { weight, bias, eps: norm.eps, kind: NormArgs::kind(norm.kind) })
    }

    /// The biases of products side by side, or 0 where none has one.
    fn bias(&mut self, linears: &[&Linear], gated: bool) -> Result<u64> {
        if linears.iter().all(|linear| linear.bias().is_empty()) {
            return Ok(0);
        }
        let of = |linear: &Linear, output: usize| linear.bias().get(output).copied().unwrap_or(0.0);
        let all: Vec<f32> = places(linears.iter().map(|linear| linear.weight().outputs()), gated)
            .map(|(which, output)| of(linears[which], output))
            .collect();
        self.values(&all)
    }

    /// Some matrices of one width as one: one below the other, or a row of each in turn.
    fn matrix(&mut self, parts: &[&Packed], in_turn: bool) -> Result<Matrix> {
        let key: Vec<*const u8> = parts.iter().map(|part| part.panel(0)).collect();
        if let Some(known) = self.matrices.get(&key) {
            return Ok(*known);
        }
        let inputs = parts[0].inputs();
        let bytes = if self.gpu.bf16 { 2 } else { 4 };
        let stride = inputs.next_multiple_of(16 / bytes);
        let outputs: usize = parts.iter().map(|part| part.outputs()).sum();
        let memory = self.gpu.device.alloc(outputs * stride * bytes, "weights")?;
        let (at, row_bytes) = (memory.at(), stride * bytes);
        self.memory.push(memory);
        if row_bytes > self.staging.len() {
            self.staging = self.gpu.device.pinned(row_bytes)?;
        }
        let mut values = vec![0.0_f32; inputs];
        let (mut sent, mut filled) = (0, 0);
        for (which, output) in places(parts.iter().map(|part| part.outputs()), in_turn) {
            parts[which].gather(output, &mut values);
            // SAFETY: the staging memory has room for a row more, and the GPU has read what was there before.
            let row =
                unsafe { std::slice::from_raw_parts_mut(self.staging.as_mut_ptr().add(filled), row_bytes) };
            let (values_room, padding) = row.split_at_mut(inputs * bytes);
            padding.fill(0);
            for (room, &value) in std::iter::zip(values_room.chunks_exact_mut(bytes), &values) {
                match bytes {
                    2 => room.copy_from_slice(&round_bf16(value).to_ne_bytes()),
                    _ => room.copy_from_slice(&value.to_ne_bytes()),
                }
            }
            filled += row_bytes;
            if filled + row_bytes > self.staging.len() {
                self.send(at + sent as u64, filled)?;
                (sent, filled) = (sent + filled, 0);
            }
        }
        self.send(at + sent as u64, filled)?;
        let matrix = Matrix { at, stride, outputs, inputs };
        self.matrices.insert(key, matrix);
        Ok(matrix)
    }

    /// Sends what was made ready, and waits until it has gone.
    fn send(&self, to: u64, bytes: usize) -> Result<()> {
        if self.cancel.ask() {
            return Err(Error::Cancelled);
        }
        let stream = &self.gpu.stream;
        // SAFETY: both runs are there until the stream has been waited for.
        unsafe { stream.to_device(to, self.staging.as_ptr(), bytes)? };
        stream.synchronize()
    }

    /// Values on the GPU, in memory of whole sixteen bytes; 0 where there are none.
    fn values(&mut self, values: &[f32]) -> Result<u64> {
        let words: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
        self.words(&words)
    }

    fn words(&mut self, words: &[u32]) -> Result<u64> {
        if words.is_empty() {
            return Ok(0);
        }
        let memory = self.gpu.device.alloc(size_of_val(words).next_multiple_of(16), "weights")?;
        let (at, mut sent) = (memory.at(), 0);
        self.memory.push(memory);
        for some in words.chunks(self.staging.len() / 4) {
            // SAFETY: the staging memory has room for these, and the GPU has read what was there before.
            unsafe {
                let bytes = self.staging.as_mut_ptr();
                std::ptr::copy_nonoverlapping(some.as_ptr().cast(), bytes, size_of_val(some));
            }
            self.send(at + sent, size_of_val(some))?;
            sent += size_of_val(some) as u64;
        }
        Ok(at)
    }
}

/// Which output of which part comes where: part by part, or one of each in turn.
fn places(outputs: impl Iterator<Item = usize>, in_turn: bool) -> impl Iterator<Item = (usize, usize)> {
    let sizes: Vec<usize> = outputs.collect();
    let (parts, all) = (sizes.len(), sizes.iter().sum());
    (0..all).map(move |place| {
        if in_turn {
            return (place % parts, place / parts);
        }
        let (mut which, mut output) = (0, place);
        while output >= sizes[which] {
            output -= sizes[which];
            which += 1;
        }
        (which, output)
    })
}

/// The error of a program with something that no kernel is made for.
fn no_room(phase: &str, got: &str) -> Error {
    Error::Option {
        option: "device".to_owned(),
        expected: format!(
            "\"cpu\" for this model: on a GPU {phase} may have {MOST_RESULTS} products and heads of {MOST_HEAD} values"
        ),
        got: got.to_owned(),
    }
}
