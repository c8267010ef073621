//! GPT-2's weights: tensor names as in the checkpoint, loaded once, shared and never written again.

use super::config::Config;
use crate::error::Result;
use crate::layers::attention::Heads;
use crate::layers::linear::Linear;
use crate::layers::norm::{Kind, Norm};
use crate::models::load::{Loader, Ticket};
use crate::packed::{Orientation, Packed, Storage};

/// All weights.
#[derive(Debug)]
pub struct Weights {
    /// Token embedding, `V × D`.
    pub wte: Packed,
    /// Position embedding, `n_positions × D` row-major.
    pub wpe: Vec<f32>,
    /// Blocks, `h.0` first.
    pub h: Vec<Block>,
    /// Last norm.
    pub ln_f: Norm,
    /// The head, `V × D`; shares `wte` where tied.
    pub lm_head: Linear,
}

/// Weights of one block.
#[derive(Debug)]
pub struct Block {
    /// Norm before attention.
    pub ln_1: Norm,
    /// Queries, keys and values side by side, `D -> 3 D`.
    pub c_attn: Linear,
    /// Sizes of the heads.
    pub heads: Heads,
    /// Attention's output, `D -> D`.
    pub attn_c_proj: Linear,
    /// Norm before the feed-forward layer.
    pub ln_2: Norm,
    /// `D -> n_inner`.
    pub c_fc: Linear,
    /// `n_inner -> D`.
    pub mlp_c_proj: Linear,
}

/// A linear layer that is planned: its matrix comes with the packing.
type Planned = (Ticket, Vec<f32>);

/// A block that is planned.
struct Draft {
    ln_1: Norm,
    c_attn: Planned,
    attn_c_proj: Planned,
    ln_2: Norm,
    c_fc: Planned,
    mlp_c_proj: Planned,
}

/// A Conv1D layer: weights `[inputs, outputs]`, and a bias.
fn conv(l: &mut Loader<'_>, name: &str, inputs: usize, outputs: usize) -> Result<Planned> {
    let weight = l.matrix(&format!("{name}.weight"), outputs, inputs, Orientation::InOut)?;
    Ok((weight, l.values(&format!("{name}.bias"), &[outputs])?))
}

fn norm(l: &mut Loader<'_>, name: &str, c: &Config) -> Result<Norm> {
    Ok(Norm {
        kind: Kind::Layer,
        weight: l.values(&format!("{name}.weight"), &[c.n_embd])?,
        bias: l.values(&format!("{name}.bias"), &[c.n_embd])?,
        eps: c.layer_norm_epsilon,
    })
}

impl Weights {
    /// Loads every tensor; `loader` then knows which ones nothing asked for. Returns the bytes of the matrices, too.
    ///
    /// # Errors
    /// As for [`Loader`]: tensors missing, of another shape or type, files cut short, memory refused.
    pub fn load(loader: &mut Loader<'_>, c: &Config) -> Result<(Self, usize)> {
        let d = c.n_embd;
        let wte = loader.matrix("wte.weight", c.vocab_size, d, Orientation::OutIn)?;
        let wpe = loader.values("wpe.weight", &[c.n_positions, d])?;
        let mut drafts = Vec::new();
        for i in 0..c.n_layer {
            let h = format!("h.{i}");
            drafts.push(Draft {
                ln_1: norm(loader, &format!("{h}.ln_1"), c)?,
                c_attn: conv(loader, &format!("{h}.attn.c_attn"), d, 3 * d)?,
                attn_c_proj: conv(loader, &format!("{h}.attn.c_proj"), d, d)?,
                ln_2: norm(loader, &format!("{h}.ln_2"), c)?,
                c_fc: conv(loader, &format!("{h}.mlp.c_fc"), d, c.n_inner)?,
                mlp_c_proj: conv(loader, &format!("{h}.mlp.c_proj"), c.n_inner, d)?,
            });
        }
        let ln_f = norm(loader, "ln_f", c)?;
        // A head in the file is kept where it differs from the embedding, tied in the config or not (transformers 5.23).
        let shape = [c.vocab_size, d];
        let own = loader.has("lm_head.weight") && !loader.same("wte.weight", "lm_head.weight", &shape)?;
        let shared = c.tie_word_embeddings || loader.has("lm_head.weight");
        let head = if own || !shared {
            Some(loader.matrix("lm_head.weight", c.vocab_size, d, Orientation::OutIn)?)
        } else {
            None
        };
        // Constants that old checkpoints saved with each block: the causal mask and its fill value.
        loader.ignore(|name| {
            name.starts_with("h.") && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"))
        });
        let packing = loader.finish()?;
        let linear = |(ticket, bias): Planned| Linear::new(packing.get(ticket), bias);
        let block = |(i, b): (usize, Draft)| Block {
            ln_1: b.ln_1,
            c_attn: linear(b.c_attn),
            heads: Heads { heads: c.n_head, head_dim: c.head_dim(), scale: c.scale(i) },
            attn_c_proj: linear(b.attn_c_proj),
            ln_2: b.ln_2,
            c_fc: linear(b.c_fc),
            mlp_c_proj: linear(b.mlp_c_proj),
        };
        let weights = Self {
            wte: packing.get(wte),
            wpe,
            h: drafts.into_iter().enumerate().map(block).collect(),
            ln_f,
            lm_head: Linear::new(packing.get(head.unwrap_or(wte)), Vec::new()),
        };
        Ok((weights, packing.bytes))
    }

    /// Every matrix that a step multiplies with.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let blocks = self.h.iter().flat_map(|b| [&b.c_attn, &b.attn_c_proj, &b.c_fc, &b.mlp_c_proj]);
        blocks.chain([&self.lm_head])
    }

    /// Storage of every matrix.
    pub fn storages(&self) -> impl Iterator<Item = Storage> {
        self.linears().map(|l| l.weight().storage()).chain([self.wte.storage()])
    }
}
