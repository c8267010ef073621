//! What every model with an encoder does around its programs: sources of any lengths are read side by side, without padding,
//! and what was made of them serves sequences, forks and beams.

use std::sync::Arc;

use super::sequence::{DecoderSequence, EncoderOutput, PendingSource, Source};
use crate::error::{Error, Result};
use crate::execute::{Buffers, Executor, Inputs, Trace};
use crate::kernels::BLOCK;
use crate::kv::{Account, Pool, Sequence};
use crate::layers::Rows;
use crate::layers::embedding::Input;
use crate::team::{self, Cancel};

/// An encoder with the memory of its caches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Encoder<'a> {
    /// The program and what it runs on.
    pub(super) executor: Executor<'a>,
    /// Blocks of one layer's keys and values of a source, which are written over layer by layer.
    pub(super) own: &'a Arc<Pool>,
    /// Blocks of what is kept for the decoder.
    pub(super) kept: &'a Arc<Pool>,
}

impl Encoder<'_> {
    /// Bytes that a token of a source takes while it is encoded: activations, keys and values.
    pub(super) fn token_bytes(self) -> usize {
        let blocks = self.own.shape().block_bytes() + self.kept.shape().block_bytes();
        self.executor.program.row_bytes() + blocks / BLOCK
    }

    /// Encodes sources in one step; results are the same bits as alone. Every source has at least one id, all below the
    /// vocabulary size. Hidden states are kept where `with_hidden` says so. Blocks are taken on the account beside the ids.
    ///
    /// # Errors
    /// `OutOfMemory`, `Cancelled`, `Panicked`.
    pub(super) fn encode(
        self,
        sources: &[(&[u32], Account)],
        with_hidden: bool,
        cancel: &Cancel<'_>,
        trace: Option<&Trace>,
    ) -> Result<Vec<Arc<EncoderOutput>>> {
        let mut turn = team::turn(self.executor.runtime.threads, cancel)?;
        let mut buffers = Buffers::take();
        let mut kept = Vec::with_capacity(sources.len());
        let mut own = Vec::with_capacity(sources.len());
        for &(ids, account) in sources {
            let [mut source, mut memory] = [self.own, self.kept].map(|pool| Sequence::on(pool, account));
            source.reserve(ids.len())?;
            memory.reserve(ids.len())?;
            buffers.plan.add(ids.len(), 0, 0, |blocks| source.pointers(blocks));
            buffers.plan.look_at(ids.len(), |blocks| memory.pointers(blocks));
            own.push(source);
            kept.push(memory);
        }
        let of = |i: usize| Input::Tokens(sources[i].0);
        let inputs = Inputs { of: &of, cancel, trace };
        let hidden = self.executor.run(&mut turn, &mut buffers, inputs, &mut [])?;
        let mut row = 0;
        let outputs = std::iter::zip(sources, kept).map(|(&(ids, _), mut keys_values)| {
            let first = row;
            row += ids.len();
            let hidden = match hidden {
                Some(rows) if with_hidden => Some(copied(rows, first, ids.len())?),
                _ => None,
            };
            keys_values.advance(ids.len());
            Ok(Arc::new(EncoderOutput { source_ids: ids.to_vec(), hidden, keys_values }))
        });
        outputs.collect()
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

/// The values of some rows.
fn copied(rows: Rows<'_>, first: usize, count: usize) -> Result<Vec<f32>> {
    let floats = count * rows.width();
    let mut values = Vec::new();
    values.try_reserve_exact(floats).map_err(|_| Error::OutOfMemory {
        what: "hidden states".to_owned(),
        bytes: floats * size_of::<f32>(),
    })?;
    for row in first..first + count {
        // SAFETY: the step is over, and nobody writes any more.
        values.extend_from_slice(unsafe { rows.row(row) });
    }
    Ok(values)
}
