//! What a request starts from, and how it gets into the cache: prompts, fed in ragged chunks.

use crate::error::{Error, Result};
use crate::models::{Cancel, Decoder, Input, Segment, Sequence, Wanted};

/// Rows of one chunk of prefill, over all prompts together. A cancelled request stops after at most one chunk; 512 rows
/// are enough for matrix products to run at full speed.
pub const PREFILL_CHUNK: usize = 512;

/// What the rows of one prompt continue.
#[derive(Debug)]
pub struct Prompt<S> {
    content: Content,
    sequence: Option<S>,
    source: Option<Vec<u32>>,
}

/// Token ids, or embeddings in their place.
#[derive(Debug)]
enum Content {
    Tokens(Vec<u32>),
    Embeddings { values: Vec<f32>, rows: usize },
}

impl Content {
    fn len(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::Embeddings { rows, .. } => *rows,
        }
    }

    fn slice(&self, from: usize, to: usize) -> Input<'_> {
        match self {
            Self::Tokens(tokens) => Input::Tokens(&tokens[from..to]),
            Self::Embeddings { values, rows } => {
                let width = values.len() / rows;
                Input::Embeddings(&values[from * width..to * width])
            }
        }
    }
}

impl<S> Prompt<S> {
    /// A prompt of token ids.
    pub fn tokens(ids: Vec<u32>) -> Self {
        Self { content: Content::Tokens(ids), sequence: None, source: None }
    }

    /// A prompt of embeddings, `rows × D` row-major. It has no ids that a penalty or an n-gram rule could look at.
    pub fn embeddings(values: Vec<f32>, rows: usize) -> Self {
        Self { content: Content::Embeddings { values, rows }, sequence: None, source: None }
    }

    /// Continues in `sequence` instead of an empty one; it may already hold the first tokens of this prompt (fewer than
    /// all), or point at the output of an encoder.
    #[must_use]
    pub fn in_sequence(mut self, sequence: S) -> Self {
        self.sequence = Some(sequence);
        self
    }

    /// Ids that went into the encoder, for the options that look at them. Without, they look at the prompt.
    #[must_use]
    pub fn with_source(mut self, ids: Vec<u32>) -> Self {
        self.source = Some(ids);
        self
    }
}

/// A prompt on its way into the cache.
#[derive(Debug)]
pub(crate) struct PromptState<S> {
    content: Content,
    source: Option<Vec<u32>>,
    /// Taken when its rows are made.
    pub(crate) sequence: Option<S>,
    pub(crate) max_new_tokens: usize,
}

impl<S: Sequence> PromptState<S> {
    /// Checks a prompt against the model.
    ///
    /// # Errors
    /// `Option` for an empty prompt, an id that the model does not have, embeddings that do not divide into rows, or a
    /// sequence that leaves nothing to feed.
    pub(crate) fn new<M: Decoder<Sequence = S>>(model: &M, place: usize, prompt: Prompt<S>) -> Result<Self> {
        let option = |expected: String, got: String| Error::Option {
            option: format!("prompt {place}"),
            expected,
            got,
        };
        let vocab_size = model.vocab_size();
        match &prompt.content {
            Content::Tokens(ids) => {
                if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                    return Err(option(format!("token ids below {vocab_size}"), id.to_string()));
                }
            }
            Content::Embeddings { values, rows } => {
                if *rows == 0 || values.is_empty() || values.len() % rows != 0 {
                    return Err(option(
                        "rows of equal length".to_owned(),
                        format!("{} values in {rows} rows", values.len()),
                    ));
                }
            }
        }
        let sequence = prompt.sequence.unwrap_or_else(|| model.start());
        if prompt.content.len() <= sequence.len() {
            let expected = match sequence.len() {
                0 => "at least one token".to_owned(),
                cached => format!("more than the {cached} tokens that its sequence holds"),
            };
            return Err(option(expected, prompt.content.len().to_string()));
        }
        Ok(Self {
            content: prompt.content,
            source: prompt.source,
            sequence: Some(sequence),
            max_new_tokens: 0,
        })
    }

    /// Positions of the prompt.
    pub(crate) fn len(&self) -> usize {
        self.content.len()
    }

    /// Ids of the prompt; none for embeddings.
    pub(crate) fn ids(&self) -> &[u32] {
        match &self.content {
            Content::Tokens(tokens) => tokens,
            Content::Embeddings { .. } => &[],
        }
    }

    /// Ids that went into the encoder, or the prompt's own.
    pub(crate) fn source(&self) -> &[u32] {
        self.source.as_deref().unwrap_or_else(|| self.ids())
    }

    /// Rows that are not in the cache yet.
    fn left(&self) -> usize {
        self.len() - self.sequence.as_ref().map_or(0, Sequence::len)
    }
}

/// Feeds one chunk: up to [`PREFILL_CHUNK`] rows of the prompts from `*first` on, the rows of their sources counted.
/// Appends the last logits of every prompt that is complete now to `done`, and moves `*first` behind them.
///
/// # Errors
/// Those of [`Decoder::forward`], and `OutOfMemory`; nothing has changed then.
pub(crate) fn feed_chunk<M: Decoder>(
    model: &M,
    prompts: &mut [PromptState<M::Sequence>],
    first: &mut usize,
    logits: &mut Vec<f32>,
    done: &mut Vec<f32>,
    cancel: &Cancel<'_>,
) -> Result<()> {
    let mut batch = Vec::new();
    let (mut room, mut complete) = (PREFILL_CHUNK, 0);
    for prompt in &mut prompts[*first..] {
        if room == 0 {
            break;
        }
        let (left, len) = (prompt.left(), prompt.len());
        let Some(sequence) = prompt.sequence.as_mut() else { continue };
        // A source takes its share of the chunk, too; one that is larger than all of it goes alone.
        let pending = sequence.pending();
        if pending >= room && !batch.is_empty() {
            break;
        }
        room = room.saturating_sub(pending).max(1);
        let count = left.min(room);
        let from = len - left;
        room -= count;
        complete += usize::from(count == left);
        let wanted = if count == left { Wanted::Last } else { Wanted::Nothing };
        batch.push(Segment { sequence, input: prompt.content.slice(from, from + count), logits: wanted });
    }
    // Many prompts over a large vocabulary are much memory; better to find out before the work.
    let floats = complete * model.vocab_size();
    let refused =
        |_| Error::OutOfMemory { what: "logits of the prompts".to_owned(), bytes: floats * size_of::<f32>() };
    done.try_reserve(floats).map_err(refused)?;
    model.forward(&mut batch, logits, cancel)?;
    done.extend_from_slice(logits);
    *first += complete;
    Ok(())
}
