//! A tensor as adapters leave it: the stored values and what is added to them, computed for the part that is read.
//!
//! The arithmetic is that of peft's merge in float32: each product of two thin matrices is summed over its rank, multiplied by its
//! scale and added to the values, one adapter after the other. Only the thin matrices are in memory, and the part at hand.

use std::sync::Arc;

use half::{bf16, f16};

use super::source::{Computed, Source};
use super::{Dtype, TensorInfo};
use crate::error::{Error, Result};

/// A tensor where it lies.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) info: TensorInfo,
    pub(super) source: Arc<Source>,
}

impl Stored {
    /// Values in row-major order from the one at `first` on, as f32.
    ///
    /// # Errors
    /// `Checkpoint` where they lie outside of the tensor, are no weights, or a finite f64 is too large; `Io`.
    pub(super) fn read(&self, first: usize, out: &mut [f32]) -> Result<()> {
        let info = &self.info;
        let width = info.dtype.bits() / 8;
        let outside =
            || info.malformed("a read inside of the tensor", format!("one from element {first} on"));
        let end = first.checked_add(out.len()).filter(|&end| end <= info.elements()).ok_or_else(outside)?;
        let mut bytes = allocate::<u8>(&info.name, (end - first) * width)?;
        self.source.read_at(info.offset + (first * width) as u64, &mut bytes, Some(&info.name))?;
        let parts = std::iter::zip(out, bytes.chunks_exact(width));
        match info.dtype {
            Dtype::F32 => parts.for_each(|(out, b)| *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Dtype::F16 => parts.for_each(|(out, b)| *out = f16::from_le_bytes([b[0], b[1]]).to_f32()),
            Dtype::BF16 => parts.for_each(|(out, b)| *out = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            Dtype::F64 => {
                for (out, b) in parts {
                    let x = f64::from_le_bytes(b.try_into().unwrap_or_default());
                    *out = x as f32;
                    if x.is_finite() && out.is_infinite() {
                        return Err(
                            info.malformed("values that float32 can hold", "a finite value past its largest")
                        );
                    }
                }
            }
            other => return Err(info.malformed("F64, F32, F16 or BF16", other.name())),
        }
        Ok(())
    }

    /// All values, as f32.
    pub(super) fn values(&self) -> Result<Vec<f32>> {
        let mut values = allocate::<f32>(&self.info.name, self.info.elements())?;
        self.read(0, &mut values)?;
        Ok(values)
    }

    /// Whether another tensor of the same shape holds the same values.
    pub(super) fn same(&self, other: &Self) -> Result<bool> {
        const PART: usize = 1 << 18;
        let elements = self.info.elements();
        for first in (0..elements).step_by(PART) {
            let n = PART.min(elements - first);
            let (mut a, mut b) = (vec![0.0; n], vec![0.0; n]);
            self.read(first, &mut a)?;
            other.read(first, &mut b)?;
            if a != b {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Something that is done to the values of a tensor. Lists are row-major and shared by whoever reads.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// `left × right`, of the tensor's rows and columns over `rank`, is multiplied by `scale` and added.
    Product { left: Arc<[f32]>, right: Arc<[f32]>, rank: usize, scale: f32 },
    /// As many values as the tensor has are multiplied by `scale` and added.
    Sum { values: Arc<[f32]>, scale: f32 },
    /// Rows are replaced: pairs of a row of the tensor and a row of `values`, the tensor's rows ascending and each once.
    Rows { rows: Arc<[(usize, usize)]>, values: Arc<[f32]> },
}

/// Values of a tensor of f32 that lies nowhere.
pub(super) struct Merged {
    pub(super) stored: Stored,
    /// Values of a row.
    pub(super) columns: usize,
    pub(super) changes: Vec<Change>,
}

impl Merged {
    /// Applies one change to the values from the one at `first` on.
    fn apply(&self, change: &Change, first: usize, values: &mut [f32]) {
        match change {
            Change::Sum { values: more, scale } => {
                for (x, more) in std::iter::zip(values, &more[first..]) {
                    *x += more * scale;
                }
            }
            Change::Product { left, right, rank, scale } => {
                let mut sums = vec![0.0f32; self.columns.min(values.len())];
                for (row, from, part) in self.rows(first, values) {
                    let sums = &mut sums[..part.len()];
                    sums.fill(0.0);
                    for (k, &l) in left[row * rank..][..*rank].iter().enumerate() {
                        let right = &right[k * self.columns + from..][..part.len()];
                        std::iter::zip(&mut *sums, right).for_each(|(sum, r)| *sum += l * r);
                    }
                    std::iter::zip(part, sums).for_each(|(x, sum)| *x += *sum * scale);
                }
            }
            Change::Rows { rows, values: new } => {
                for (row, from, part) in self.rows(first, values) {
                    if let Ok(at) = rows.binary_search_by_key(&row, |pair| pair.0) {
                        let start = rows[at].1 * self.columns + from;
                        part.copy_from_slice(&new[start..][..part.len()]);
                    }
                }
            }
        }
    }

    /// The rows that values from the one at `first` on are parts of: row, first column, the part.
    fn rows<'v>(
        &self,
        first: usize,
        values: &'v mut [f32],
    ) -> impl Iterator<Item = (usize, usize, &'v mut [f32])> {
        let (columns, mut at, mut rest) = (self.columns, first, values);
        std::iter::from_fn(move || {
            let (row, from) = (at / columns, at % columns);
            let n = (columns - from).min(rest.len());
            let (part, others) = std::mem::take(&mut rest).split_at_mut(n);
            rest = others;
            at += n;
            (n > 0).then_some((row, from, part))
        })
    }
}

impl Computed for Merged {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        const WIDTH: usize = size_of::<f32>();
        let info = &self.stored.info;
        let outside = || info.malformed("whole values of f32", format!("a read from byte {offset} on"));
        let start = usize::try_from(offset).map_err(|_| outside())?;
        if !start.is_multiple_of(WIDTH) || !buf.len().is_multiple_of(WIDTH) {
            return Err(outside());
        }
        let first = start / WIDTH;
        let mut values = allocate::<f32>(&info.name, buf.len() / WIDTH)?;
        self.stored.read(first, &mut values)?;
        for change in &self.changes {
            self.apply(change, first, &mut values);
        }
        for (out, x) in std::iter::zip(buf.chunks_exact_mut(WIDTH), values) {
            out.copy_from_slice(&x.to_le_bytes());
        }
        Ok(())
    }
}

/// `n` zeroes for a tensor, or an error where the system has no memory for them.
pub(super) fn allocate<T: Default + Clone>(name: &str, n: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    let bytes = n.saturating_mul(size_of::<T>());
    let refused = |_| Error::OutOfMemory { what: name.to_owned(), bytes };
    values.try_reserve_exact(n).map_err(refused)?;
    values.resize(n, T::default());
    Ok(values)
}
