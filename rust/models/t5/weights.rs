//! The weights of the T5 family: tensor names as in the checkpoint, loaded once, shared and never written again.

use super::config::Config;
use crate::error::Result;
use crate::layers::attention::Heads;
use crate::layers::linear::Linear;
use crate::layers::norm::{Kind, Norm};
use crate::layers::relative_bias::{Distances, RelativeBias};
use crate::models::load::{Loader, Packing, Ticket};
use crate::packed::{Orientation, Packed, Storage};

/// All weights.
#[derive(Debug)]
pub struct Weights {
    /// The encoder.
    pub encoder: Stack,
    /// The decoder; its last norm holds the scale of the outputs, too.
    pub decoder: Stack,
    /// The head, `D -> V`; shares an embedding where it equals it.
    pub lm_head: Linear,
}

/// An encoder or a decoder.
#[derive(Debug)]
pub struct Stack {
    /// Token embeddings, `V × D`.
    pub embed_tokens: Packed,
    /// Blocks, `block.0` first.
    pub block: Vec<Block>,
    /// Bias of the self-attention: one for all blocks, or one for each.
    pub relative_attention_bias: Vec<RelativeBias>,
    /// Norm after the last block.
    pub final_layer_norm: Norm,
}

impl Stack {
    /// Bias of a block's self-attention.
    pub fn bias(&self, block: usize) -> &RelativeBias {
        &self.relative_attention_bias[block.min(self.relative_attention_bias.len() - 1)]
    }
}

/// Weights of one block.
#[derive(Debug)]
pub struct Block {
    /// Attention within the stack.
    pub self_attention: Attention,
    /// Attention to the encoder, in a decoder.
    pub cross_attention: Option<Attention>,
    /// The feed-forward layer.
    pub feed_forward: FeedForward,
}

/// Attention with the norm before it; no biases, and scores are not scaled.
#[derive(Debug)]
pub struct Attention {
    /// Norm before the queries (and before keys and values, in self-attention).
    pub layer_norm: Norm,
    /// Queries, `D -> H · d_kv`.
    pub q: Linear,
    /// Keys, `D -> H · d_kv`.
    pub k: Linear,
    /// Values, `D -> H · d_kv`.
    pub v: Linear,
    /// Output, `H · d_kv -> D`.
    pub o: Linear,
    /// Sizes of the heads.
    pub heads: Heads,
}

/// The feed-forward layer with the norm before it.
#[derive(Debug)]
pub struct FeedForward {
    /// Norm before it.
    pub layer_norm: Norm,
    /// What the activation is applied to, `D -> d_ff`: `wi`, or `wi_0` where it is a gate.
    pub gate: Linear,
    /// What the gate lets through, `D -> d_ff`: `wi_1`.
    pub up: Option<Linear>,
    /// `d_ff -> D`.
    pub wo: Linear,
}

/// A stack that is planned: its matrices come with the packing.
struct StackDraft {
    blocks: Vec<BlockDraft>,
    bias: Vec<RelativeBias>,
    last: Norm,
}

struct BlockDraft {
    self_attention: AttentionDraft,
    cross_attention: Option<AttentionDraft>,
    feed_forward: FeedForwardDraft,
}

struct AttentionDraft {
    norm: Norm,
    qkvo: [Ticket; 4],
}

struct FeedForwardDraft {
    norm: Norm,
    gate: Ticket,
    up: Option<Ticket>,
    wo: Ticket,
}

fn norm(l: &mut Loader<'_>, name: &str, c: &Config) -> Result<Norm> {
    let weight = l.values(&format!("{name}.weight"), &[c.d_model])?;
    Ok(Norm { kind: Kind::Rms, weight, bias: Vec::new(), eps: c.layer_norm_epsilon })
}

impl AttentionDraft {
    /// `layer` is the sublayer's name, `kind` the module's in it.
    fn plan(l: &mut Loader<'_>, layer: &str, kind: &str, c: &Config) -> Result<Self> {
        let (d, inner) = (c.d_model, c.inner_dim());
        let mut matrix = |letter: &str, outputs, inputs| {
            l.matrix(&format!("{layer}.{kind}.{letter}.weight"), outputs, inputs, Orientation::OutIn)
        };
        let qkvo =
            [matrix("q", inner, d)?, matrix("k", inner, d)?, matrix("v", inner, d)?, matrix("o", d, inner)?];
        Ok(Self { norm: norm(l, &format!("{layer}.layer_norm"), c)?, qkvo })
    }

    fn finish(self, packing: &Packing, c: &Config) -> Attention {
        let [q, k, v, o] = self.qkvo.map(|ticket| Linear::new(packing.get(ticket), Vec::new()));
        let heads = Heads { heads: c.num_heads, head_dim: c.d_kv, scale: 1.0 };
        Attention { layer_norm: self.norm, q, k, v, o, heads }
    }
}

impl FeedForwardDraft {
    fn plan(l: &mut Loader<'_>, layer: &str, c: &Config) -> Result<Self> {
        let dense = format!("{layer}.DenseReluDense");
        let mut wi =
            |name: &str| l.matrix(&format!("{dense}.{name}.weight"), c.d_ff, c.d_model, Orientation::OutIn);
        let (gate, up) = if c.is_gated_act { (wi("wi_0")?, Some(wi("wi_1")?)) } else { (wi("wi")?, None) };
        let wo = l.matrix_past_f16(&format!("{dense}.wo.weight"), c.d_model, c.d_ff)?;
        Ok(Self { norm: norm(l, &format!("{layer}.layer_norm"), c)?, gate, up, wo })
    }

    fn finish(self, packing: &Packing) -> FeedForward {
        let linear = |ticket| Linear::new(packing.get(ticket), Vec::new());
        FeedForward {
            layer_norm: self.norm,
            gate: linear(self.gate),
            up: self.up.map(linear),
            wo: linear(self.wo),
        }
    }
}

impl StackDraft {
    fn plan(l: &mut Loader<'_>, name: &str, c: &Config) -> Result<Self> {
        let decoder = name == "decoder";
        let layers = if decoder { c.num_decoder_layers } else { c.num_layers };
        let (mut blocks, mut bias) = (Vec::new(), Vec::new());
        let distances = Distances::new(c.buckets(!decoder));
        for i in 0..layers {
            let block = format!("{name}.block.{i}.layer");
            if i == 0 || c.bias_in_every_layer {
                let table = format!("{block}.0.SelfAttention.relative_attention_bias.weight");
                let table = l.values(&table, &[c.relative_attention_num_buckets, c.num_heads])?;
                bias.push(RelativeBias::new(&table, c.num_heads, &distances));
            }
            let self_attention = AttentionDraft::plan(l, &format!("{block}.0"), "SelfAttention", c)?;
            let cross_attention = match decoder {
                true => Some(AttentionDraft::plan(l, &format!("{block}.1"), "EncDecAttention", c)?),
                false => None,
            };
            let feed_forward =
                FeedForwardDraft::plan(l, &format!("{block}.{}", 1 + usize::from(decoder)), c)?;
            blocks.push(BlockDraft { self_attention, cross_attention, feed_forward });
        }
        let mut last = norm(l, &format!("{name}.final_layer_norm"), c)?;
        if decoder && c.scale_decoder_outputs {
            let scale = (c.d_model as f64).powf(-0.5) as f32;
            last.weight.iter_mut().for_each(|w| *w *= scale);
        }
        Ok(Self { blocks, bias, last })
    }

    fn finish(self, packing: &Packing, embedding: Ticket, c: &Config) -> Stack {
        let block = |b: BlockDraft| Block {
            self_attention: b.self_attention.finish(packing, c),
            cross_attention: b.cross_attention.map(|a| a.finish(packing, c)),
            feed_forward: b.feed_forward.finish(packing),
        };
        Stack {
            embed_tokens: packing.get(embedding),
            block: self.blocks.into_iter().map(block).collect(),
            relative_attention_bias: self.bias,
            final_layer_norm: self.last,
        }
    }
}

/// Plans the embeddings of encoder and decoder, and the head. All are tied to `shared` (transformers 5.23 does so whatever
/// the config says), but one that is in the file and differs is kept; where `shared` is missing, the first of the others
/// takes its place.
fn embeddings(l: &mut Loader<'_>, c: &Config) -> Result<[Ticket; 3]> {
    const TIED: [&str; 3] = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"];
    let source =
        TIED.into_iter().find(|name| !l.has("shared.weight") && l.has(name)).unwrap_or("shared.weight");
    let shape = [c.vocab_size, c.d_model];
    let shared = l.matrix(source, shape[0], shape[1], Orientation::OutIn)?;
    let mut tickets = [shared; 3];
    for (name, ticket) in std::iter::zip(TIED, &mut tickets) {
        if name != source && l.has(name) && !l.same(source, name, &shape)? {
            *ticket = l.matrix(name, shape[0], shape[1], Orientation::OutIn)?;
        }
    }
    Ok(tickets)
}

impl Weights {
    /// Loads every tensor; `loader` then knows which ones nothing asked for. Returns the bytes of the matrices, too.
    ///
    /// # Errors
    /// As for [`Loader`]: tensors missing, of another shape or type, files cut short, memory refused.
    pub fn load(loader: &mut Loader<'_>, c: &Config) -> Result<(Self, usize)> {
        let [encoder_tokens, decoder_tokens, head] = embeddings(loader, c)?;
        let encoder = StackDraft::plan(loader, "encoder", c)?;
        let decoder = StackDraft::plan(loader, "decoder", c)?;
        // Old checkpoints have a bias of the cross-attention that nothing reads.
        loader
            .ignore(|name| name == "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight");
        let packing = loader.finish()?;
        let weights = Self {
            encoder: encoder.finish(&packing, encoder_tokens, c),
            decoder: decoder.finish(&packing, decoder_tokens, c),
            lm_head: Linear::new(packing.get(head), Vec::new()),
        };
        Ok((weights, packing.bytes))
    }

    /// Every matrix that a step of the decoder multiplies with; keys and values of a source are not among them.
    pub fn decoder_linears(&self) -> impl Iterator<Item = &Linear> {
        self.decoder.block.iter().flat_map(|block| block.matrices(false)).chain([&self.lm_head])
    }

    /// Storage of every matrix.
    pub fn storages(&self) -> impl Iterator<Item = Storage> {
        let stacks = [&self.encoder, &self.decoder];
        let linear = stacks.into_iter().flat_map(|stack| &stack.block).flat_map(|block| block.matrices(true));
        let tokens = stacks.map(|stack| stack.embed_tokens.storage());
        linear.chain([&self.lm_head]).map(|l| l.weight().storage()).chain(tokens)
    }
}

impl Block {
    /// Every matrix, with or without those that make keys and values of a source.
    fn matrices(&self, with_source: bool) -> Vec<&Linear> {
        let (own, ff) = (&self.self_attention, &self.feed_forward);
        let mut all = vec![&own.q, &own.k, &own.v, &own.o, &ff.gate, &ff.wo];
        all.extend(&ff.up);
        if let Some(cross) = &self.cross_attention {
            all.extend([&cross.q, &cross.o]);
            if with_source {
                all.extend([&cross.k, &cross.v]);
            }
        }
        all
    }
}
