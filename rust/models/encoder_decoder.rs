//! What every model with an encoder does around its programs: sources of any lengths are read side by side, without padding,
//! and what was made of them serves sequences, forks and beams, or is handed out as hidden states.

use std::ops::Range;
use std::sync::Arc;

use super::options::option;
use super::sequence::{DecoderSequence, EncoderOutput, PendingSource, Source};
use crate::error::{Error, Result};
use crate::execute::{Buffers, Executor, Inputs, Results, Trace};
use crate::kernels::BLOCK;
use crate::kv::{Account, Pool, Sequence};
use crate::layers::Rows;
use crate::layers::embedding::Input;
use crate::team::Cancel;

/// How the hidden states of a source are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// All of them.
    Nothing,
    /// Their mean over all tokens, summed in double precision.
    Mean,
}

/// An encoder with the memory of its caches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Encoder<'a> {
    /// The program and what it runs on.
    pub(super) executor: Executor<'a>,
    /// Blocks of one layer's keys and values of a source, which are written over layer by layer.
    pub(super) own: &'a Arc<Pool>,
    /// Blocks of what is kept for the decoder, where there is one.
    pub(super) kept: Option<&'a Arc<Pool>>,
}

impl Encoder<'_> {
    /// Bytes that a token of a source takes while it is encoded: activations, keys and values.
    pub(super) fn token_bytes(self) -> usize {
        let kept = self.kept.map_or(0, |pool| pool.shape().block_bytes());
        self.executor.program.row_bytes() + (self.own.shape().block_bytes() + kept) / BLOCK
    }

    /// Encodes sources in one step; results are the same bits as alone. Every source has at least one id, all below the
    /// vocabulary size. Hidden states are kept where `with_hidden` says so. Blocks are taken on the account beside the ids.
    ///
    /// # Errors
    /// `OutOfMemory`, `Cancelled`, `Panicked`; `Option` where there is no decoder to keep anything for.
    pub(super) fn encode(
        self,
        sources: &[(&[u32], Account)],
        with_hidden: bool,
        cancel: &Cancel<'_>,
        trace: Option<&Trace>,
    ) -> Result<Vec<Arc<EncoderOutput>>> {
        let pool = self.kept.ok_or_else(no_decoder)?;
        let mut kept: Vec<_> = sources.iter().map(|&(_, account)| Sequence::on(pool, account)).collect();
        let pooling = with_hidden.then_some(Pooling::Nothing);
        let hidden = self.run(sources, &mut kept, pooling, cancel, trace)?;
        let mut hidden = hidden.into_iter();
        let output = |(&(ids, _), mut keys_values): (&(&[u32], Account), Sequence)| {
            keys_values.advance(ids.len());
            Arc::new(EncoderOutput { source_ids: ids.to_vec(), hidden: hidden.next(), keys_values })
        };
        Ok(std::iter::zip(sources, kept).map(output).collect())
    }

    /// Hidden states of sources, read in one step, as [`Encoder::encode`] does.
    ///
    /// # Errors
    /// As for [`Encoder::encode`]; `Option` where there is a decoder, for which everything would be kept.
    pub(super) fn hidden_states(
        self,
        sources: &[&[u32]],
        pooling: Pooling,
        cancel: &Cancel<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        if self.kept.is_some() {
            return Err(option("model", "an encoder alone", "one with a decoder"));
        }
        let sources: Vec<_> = sources.iter().map(|&ids| (ids, Account::Open)).collect();
        self.run(&sources, &mut [], Some(pooling), cancel, None)
    }

    /// Runs the program over sources and puts what it keeps of each into `kept`, where it keeps anything; returns the hidden
    /// states of each where `pooling` asks for them. What else a source takes is free again afterwards.
    fn run(
        self,
        sources: &[(&[u32], Account)],
        kept: &mut [Sequence],
        pooling: Option<Pooling>,
        cancel: &Cancel<'_>,
        trace: Option<&Trace>,
    ) -> Result<Vec<Vec<f32>>> {
        let mut turn = self.executor.turn(cancel)?;
        let mut buffers = Buffers::take();
        let (mut own, mut kept) = (Vec::with_capacity(sources.len()), kept.iter_mut());
        for &(ids, account) in sources {
            let mut source = Sequence::on(self.own, account);
            source.reserve(ids.len())?;
            buffers.plan.add(ids.len(), 0, 0, |blocks| source.pointers(blocks));
            own.push(source);
            if let Some(memory) = kept.next() {
                memory.reserve(ids.len())?;
                buffers.plan.look_at(ids.len(), |blocks| memory.pointers(blocks));
            }
        }
        let of = |i: usize| Input::Tokens(sources[i].0);
        let inputs = Inputs { of: &of, cancel, trace };
        let rows = self.executor.run(&mut turn, &mut buffers, inputs, Results::Nothing)?;
        let (Some(rows), Some(pooling)) = (rows, pooling) else { return Ok(Vec::new()) };
        let mut first = 0;
        let hidden = sources.iter().map(|(ids, _)| {
            first += ids.len();
            let of_source = first - ids.len()..first;
            match pooling {
                Pooling::Nothing => copied(rows, of_source),
                Pooling::Mean => mean(rows, of_source),
            }
        });
        hidden.collect()
    }

    /// Encodes the sources that sequences still wait for, each once for all that share it, on the account of the first
    /// of them.
    ///
    /// # Errors
    /// As for [`Encoder::encode`].
    pub(super) fn encode_pending(
        self,
        sequences: &mut [&mut DecoderSequence],
        cancel: &Cancel<'_>,
    ) -> Result<()> {
        let mut pending: Vec<(Arc<PendingSource>, Account)> = Vec::new();
        for sequence in sequences.iter() {
            if let Source::Pending(source) = &sequence.source
                && source.output.get().is_none()
                && !pending.iter().any(|(other, _)| Arc::ptr_eq(other, source))
            {
                pending.push((Arc::clone(source), sequence.cache.account()));
            }
        }
        if !pending.is_empty() {
            let sources: Vec<_> = pending.iter().map(|(source, account)| (&*source.ids, *account)).collect();
            for ((source, _), output) in std::iter::zip(&pending, self.encode(&sources, false, cancel, None)?)
            {
                // Where another caller was faster, its outcome is the same and stays.
                let _ = source.output.set(output);
            }
        }
        for sequence in sequences {
            let Source::Pending(source) = &sequence.source else { continue };
            if let Some(output) = source.output.get() {
                sequence.source = Source::Encoded(Arc::clone(output));
            }
        }
        Ok(())
    }
}

/// The error of whoever needs a decoder of an encoder alone.
pub(super) fn no_decoder() -> Error {
    option("model", "one with a decoder", "an encoder alone")
}

/// The values of some rows.
fn copied(rows: Rows<'_>, of: Range<usize>) -> Result<Vec<f32>> {
    let mut values = room(of.len() * rows.width())?;
    for row in of {
        // SAFETY: the step is over, and nobody writes any more.
        values.extend_from_slice(unsafe { rows.row(row) });
    }
    Ok(values)
}

/// The mean of some rows, of which there is at least one: each column is summed from the first row on.
fn mean(rows: Rows<'_>, of: Range<usize>) -> Result<Vec<f32>> {
    let (count, mut sums) = (of.len() as f64, room::<f64>(rows.width())?);
    sums.resize(rows.width(), 0.0);
    for row in of {
        // SAFETY: the step is over, and nobody writes any more.
        let row = unsafe { rows.row(row) };
        std::iter::zip(&mut sums, row).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let mut means = room(sums.len())?;
    means.extend(sums.iter().map(|sum| (sum / count) as f32));
    Ok(means)
}

/// An empty list with room for so many numbers.
fn room<T>(count: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|_| Error::OutOfMemory {
        what: "hidden states".to_owned(),
        bytes: count.saturating_mul(size_of::<T>()),
    })?;
    Ok(values)
}
