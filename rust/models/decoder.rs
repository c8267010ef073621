//! What every model offers the engine: sequences that fork, and one ragged forward.
//!
//! A step is a list of segments. Prefill is many tokens of one sequence, decode one token of each sequence, a
//! verification a few tokens of one, and continuous batching is all of these in one call; nothing is padded.

use crate::error::{Error, Result};
use crate::execute::score_row;
use crate::kernels::Kernels;
use crate::team::Cancel;

use super::profile::Choosing;
pub use crate::execute::{Asked, Scored};
pub use crate::layers::embedding::Input;

/// Rows of a segment whose logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// No logits (a chunk of prefill that is not the last).
    Nothing,
    /// Logits after the last token.
    Last,
    /// Logits after each of so many last tokens.
    Latest(usize),
    /// Logits after every token.
    All,
}

impl Wanted {
    /// How many of `rows` rows, from the last one back.
    pub fn count(self, rows: usize) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Last => rows.min(1),
            Self::Latest(count) => rows.min(count),
            Self::All => rows,
        }
    }
}

/// New tokens of one sequence in a step.
#[derive(Debug)]
pub struct Segment<'a, S> {
    /// Sequence that the tokens are appended to.
    pub sequence: &'a mut S,
    /// What is appended; at least one row.
    pub input: Input<'a>,
    /// Which rows' logits the step returns.
    pub logits: Wanted,
}

/// A row for which [`Decoder::argmax`] chooses tokens.
#[derive(Debug)]
pub struct Argmax<'a, S> {
    /// Sequence that the tokens are appended to.
    pub sequence: &'a mut S,
    /// What is appended first.
    pub token: u32,
}

/// What stands where [`Decoder::argmax`] has chosen nothing: no vocabulary has this id.
pub const NO_TOKEN: u32 = u32::MAX;

/// A block of the cache. Sequences take whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheBlock {
    /// Positions that it holds.
    pub positions: usize,
    /// Its size.
    pub bytes: usize,
}

/// What the requests of a model may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the cache that running requests may reserve; `usize::MAX` for no limit.
    pub cache_bytes: usize,
    /// Sequences that decode side by side in one step.
    pub max_rows: usize,
    /// Bytes of the cache, among `cache_bytes`, in which prefixes are kept from one request to the next.
    pub prefix_cache_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { cache_bytes: usize::MAX, max_rows: 64, prefix_cache_bytes: 0 }
    }
}

/// A run of cached positions; dropping it frees its blocks.
pub trait Sequence: std::fmt::Debug + Sized + Send + Sync {
    /// Number of cached positions.
    fn len(&self) -> usize;
    /// Whether nothing is cached yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Rows of other work that the sequence's first forward does before its own (an encoder's source).
    fn pending(&self) -> usize {
        0
    }
    /// Ids that the encoder reads, or has read, for it; none without an encoder.
    fn source(&self) -> &[u32] {
        &[]
    }
    /// The sequence will have so many positions at least when what is to be appended next is in it, however many steps that takes.
    /// Where positions count otherwise in long sequences, they do from the first step on.
    fn expect(&mut self, _len: usize) {}
    /// How many of its first positions a sequence that will have `len` of them can begin with.
    fn reusable(&self, _len: usize) -> usize {
        self.len()
    }
    /// From now on a request answers for the blocks that the sequence takes.
    fn claim(&mut self) {}
    /// From now on no request answers for the sequence, its blocks included; for how many of its `first` blocks one did.
    fn release(&mut self, _first: usize) -> usize {
        0
    }
    /// Adds a number for every block to `out`; forks have the numbers of those that they share in common.
    fn blocks(&self, _out: &mut Vec<usize>) {}
    /// Shares whole blocks with another sequence whose first `positions` positions hold the same, where they do to the bit.
    fn share(&mut self, _other: &Self, _positions: usize) {}
    /// A second sequence with the same contents; full blocks are shared, the last partial one is copied when written.
    fn fork(&self) -> Self;
    /// Forgets all but the first `len` positions; `len <= self.len()`.
    fn truncate(&mut self, len: usize);
}

/// How long a sequence may become.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContextLength {
    /// Most positions that a sequence may have, or `None` without a limit.
    pub limit: Option<usize>,
    /// Positions at which a call ends that asks for no length (`max_position_embeddings`); `None` where the config names none.
    pub usual: Option<usize>,
    /// Why there is a limit, and what to do.
    pub reason: &'static str,
}

impl ContextLength {
    /// That of a model whose positions are a table of so many rows.
    pub fn learned(positions: usize) -> Self {
        let reason =
            "the model has learned no more of them, so shorten the prompt or ask for fewer new tokens";
        Self { limit: Some(positions), usual: Some(positions), reason }
    }

    /// What holds for a call that asks for no length.
    #[must_use]
    pub fn of_no_length(self) -> Self {
        match self.usual {
            Some(usual) if self.limit.is_none_or(|limit| usual < limit) => {
                let reason = "a call without a length ends at max_position_embeddings, so give max_new_tokens= to go past that";
                Self { limit: self.usual, reason, ..self }
            }
            _ => self,
        }
    }

    /// Checks that a sequence may have so many positions.
    ///
    /// # Errors
    /// `ContextLength`.
    pub fn check(self, requested: usize) -> Result<()> {
        match self.limit {
            Some(limit) if requested > limit => {
                Err(Error::ContextLength { limit, requested, reason: self.reason })
            }
            _ => Ok(()),
        }
    }
}

/// A model that turns appended tokens into logits.
///
/// Batch-invariance is the law: a row's logits are the same bits alone, in any batch, in a prefill of any split and for
/// any number of threads.
pub trait Decoder: Send + Sync {
    /// The model's kind of sequence.
    type Sequence: Sequence;
    /// Size of the vocabulary, `V`.
    fn vocab_size(&self) -> usize;
    /// How long a sequence may become.
    fn context_length(&self) -> ContextLength;
    /// Positions of the longest sequence in which positions count as in short ones, where they count otherwise in long ones.
    fn border(&self) -> Option<usize> {
        None
    }
    /// A block of the cache.
    fn cache_block(&self) -> CacheBlock;
    /// Bytes of the cache that nobody has reserved and that are in use now: by states that are advanced by hand, and by encoded
    /// sources that callers keep.
    fn open_bytes(&self) -> usize {
        0
    }
    /// What requests may use.
    fn limits(&self) -> Limits;
    /// Threads that a step computes with; choosing tokens may use as many.
    fn threads(&self) -> usize {
        1
    }
    /// To be held while tokens are chosen from logits; nothing where nobody wants to know how long that takes.
    fn choosing(&self) -> Option<Choosing<'_>> {
        None
    }
    /// An empty sequence of a request, which reserves what it may come to hold, over a source in a model with an encoder.
    ///
    /// # Errors
    /// `Option` for a source that cannot be used, or where there is none and must be one.
    fn start(&self, source: Option<&[u32]>) -> Result<Self::Sequence>;
    /// Reads the sources that these sequences wait for, side by side; each is as if it were alone, to the bit.
    ///
    /// # Errors
    /// As for [`Decoder::forward`]; no source is read then.
    fn encode(&self, sequences: &mut [&mut Self::Sequence], cancel: &Cancel<'_>) -> Result<()>;
    /// Appends every segment to its sequence and leaves the wanted logits in `logits`: one row of `V` per wanted token,
    /// in the order of the segments. On an error every sequence is as it was before.
    ///
    /// # Errors
    /// `Cancelled` when `cancel` was set, `OutOfMemory`, `Panicked`, `ContextLength`, `Option` for an id past `V`.
    fn forward(
        &self,
        batch: &mut [Segment<'_, Self::Sequence>],
        logits: &mut Vec<f32>,
        cancel: &Cancel<'_>,
    ) -> Result<()>;
    /// Tokens that [`Decoder::argmax`] is best asked for at once, at most; 0 where the model does not do that at all.
    fn argmax_steps(&self) -> usize {
        0
    }
    /// Appends every row's token to its sequence, chooses the first of the largest logits after it, appends that, and so on for
    /// `steps` steps. Leaves the chosen ids in `ids`, step by step: `ids[step * rows.len() + row]`. The sequences then hold the rows'
    /// tokens and all chosen ones but the last, as after so many calls of [`Decoder::forward`]. From the step on in which a row's
    /// logits hold a NaN, or nothing above minus infinity, its ids are [`NO_TOKEN`], and what its sequence holds from there on
    /// means nothing. Whoever asks sees to it that no sequence crosses the model's [`Decoder::border`] meanwhile.
    ///
    /// `None` where the model cannot do that with these rows, or at all; nothing has changed then. On an error every sequence is as
    /// it was before.
    ///
    /// # Errors
    /// As for [`Decoder::forward`].
    fn argmax(
        &self,
        _rows: &mut [Argmax<'_, Self::Sequence>],
        _steps: usize,
        _ids: &mut Vec<u32>,
        _cancel: &Cancel<'_>,
    ) -> Result<Option<()>> {
        Ok(None)
    }
    /// Appends as [`Decoder::forward`] does, and leaves in `scored`, instead of logits, what the wanted rows say of the tokens that are
    /// asked for, in the order of `asked`, which is that of its rows. A model need not hold all logits at once for it.
    ///
    /// # Errors
    /// As for [`Decoder::forward`]; `Option` for a token past `V`, or a row that is not wanted.
    fn score(
        &self,
        batch: &mut [Segment<'_, Self::Sequence>],
        asked: &[Asked],
        scored: &mut Vec<Scored>,
        cancel: &Cancel<'_>,
    ) -> Result<()> {
        let (mut logits, vocab) = (Vec::new(), self.vocab_size());
        self.forward(batch, &mut logits, cancel)?;
        check_asked(asked, logits.len() / vocab, vocab)?;
        scored.clear();
        scored.resize(asked.len(), Scored::default());
        for (row, logits) in logits.chunks(vocab).enumerate() {
            let first = asked.partition_point(|asked| asked.row < row);
            let end = asked.partition_point(|asked| asked.row <= row);
            score_row(Kernels::chosen_scans(), logits, &asked[first..end], &mut scored[first..end]);
        }
        Ok(())
    }
}

/// Checks that what is asked for are tokens of a vocabulary at wanted rows, in the order of these.
///
/// # Errors
/// `Option` where it is not.
pub(super) fn check_asked(asked: &[Asked], wanted: usize, vocab: usize) -> Result<()> {
    let refused = |expected: String, got: usize| {
        Err(Error::Option { option: "target".to_owned(), expected, got: got.to_string() })
    };
    if let Some(asked) = asked.iter().find(|asked| asked.token as usize >= vocab) {
        return refused(format!("less than the vocabulary size {vocab}"), asked.token as usize);
    }
    let rising = asked.is_sorted_by_key(|asked| asked.row);
    match asked.iter().map(|asked| asked.row).max() {
        Some(row) if row >= wanted || !rising => {
            refused(format!("rows in rising order, each below {wanted}"), row)
        }
        _ => Ok(()),
    }
}
