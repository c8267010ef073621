//! GPT-1 (Radford et al. 2018): as GPT-2, with the norms behind the residuals and none at the end.
//!
//! Fields and their defaults are those of transformers (5.24, `models/openai/configuration_openai.py`). Letters: `M` rows of the
//! step, `D` width, `V` vocabulary.

use super::causal;
use super::decoder::ContextLength;
use super::options::Part;
use super::registry::{Network, Recorded};
use crate::checkpoint::config::ConfigFile;
use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::layers::heads::Heads;
use crate::program::{Builder, Cache, Mask, Recorder, conv1d, layer_norm};

/// Sizes and switches of a GPT-1 model.
#[derive(Debug, Clone)]
pub struct Config {
    /// Token ids, `V`.
    pub vocab_size: usize,
    /// Largest number of positions of a sequence.
    pub n_positions: usize,
    /// Width of the model, `D`.
    pub n_embd: usize,
    /// Blocks.
    pub n_layer: usize,
    /// Attention heads of a block.
    pub n_head: usize,
    /// Activation of the feed-forward layer.
    pub afn: Activation,
    /// Added to the variance in a layer norm.
    pub layer_norm_epsilon: f32,
    /// Whether the head shares the token embedding.
    pub tie_word_embeddings: bool,
}

impl Config {
    /// Names that the file may use instead of GPT-1's own.
    pub const ALIASES: [(&'static str, &'static str); 4] = [
        ("hidden_size", "n_embd"),
        ("max_position_embeddings", "n_positions"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
    ];

    /// Reads the fields, with transformers' defaults.
    ///
    /// # Errors
    /// `Config` for a value out of range, an activation that GPT-1 does not have, or a width that the heads do not divide.
    pub fn read(file: &mut ConfigFile) -> Result<Self> {
        file.apply_aliases(&Self::ALIASES);
        let n_embd = file.usize_or("n_embd", 768)?;
        let n_head = file.usize_or("n_head", 12)?;
        if !n_embd.is_multiple_of(n_head) {
            return Err(Error::Config {
                file: file.label().to_owned(),
                field: "n_head".to_owned(),
                expected: format!("a divisor of n_embd, {n_embd}"),
                got: n_head.to_string(),
            });
        }
        // The names are those of the original code, whose gelu is the approximation by tanh.
        let afn = match file.str_or("afn", "gelu")? {
            "gelu" => "gelu_new",
            other @ ("relu" | "silu" | "swish") => other,
            _ => "",
        };
        let afn = Activation::from_name(afn)
            .ok_or_else(|| file.invalid("afn", "\"gelu\", \"relu\", \"silu\" or \"swish\""))?;
        let layer_norm_epsilon = file.f32_or("layer_norm_epsilon", 1e-5)?;
        if layer_norm_epsilon < 0.0 {
            return Err(file.invalid("layer_norm_epsilon", "a number of at least 0"));
        }
        Ok(Self {
            vocab_size: file.usize_or("vocab_size", 40478)?,
            n_positions: file.usize_or("n_positions", 512)?,
            n_embd,
            n_layer: file.usize_or("n_layer", 12)?,
            n_head,
            afn,
            layer_norm_epsilon,
            tie_word_embeddings: file.bool_or("tie_word_embeddings", true)?,
        })
    }
}

/// The model of a folder.
///
/// # Errors
/// Those of its config and of its tensors.
pub(super) fn record(
    _: &str,
    _: Part,
    file: &mut ConfigFile,
    weights: &mut Recorder<'_>,
) -> Result<Recorded> {
    let c = Config::read(file)?;
    let (d, eps) = (c.n_embd, c.layer_norm_epsilon);
    let head_dim = d / c.n_head;
    let heads = Heads::alike(c.n_head, head_dim, 1.0 / (head_dim as f32).sqrt());
    let tied = c.tie_word_embeddings;
    let tables = causal::tables(weights, "tokens_embed.weight", tied, [c.vocab_size, d], None)?;
    let positions = weights.values("positions_embed.weight", &[c.n_positions, d])?;
    let mut b = Builder::new(weights);

    let mut x = b.embed("x", tables.embedding, d, Some(positions))?; // (M, D)
    for i in 0..c.n_layer {
        b.enter(format!("h.{i}"));
        let qkv = b.project(x, None, conv1d("attn.c_attn", 3 * d))?; // (M, 3 D)
        let attended = b.attend(qkv.thirds(), Cache::Own(i), heads, Mask::CAUSAL)?; // (M, D)
        let y = b.add(x, attended, conv1d("attn.c_proj", d))?; // (M, D)
        let y = b.norm(y, layer_norm("ln_1", eps))?; // (M, D)
        let inner = b.project(y, None, conv1d("mlp.c_fc", 4 * d).then(c.afn))?; // (M, 4 D)
        let z = b.add(y, inner, conv1d("mlp.c_proj", d))?; // (M, D)
        x = b.norm(z, layer_norm("ln_2", eps))?; // (M, D)
    }
    b.enter("");
    b.head("lm_head", x, None, tables.head)?; // (W, V)

    let decoder = b.finish()?;
    // Constants that old checkpoints saved with each block: the causal mask and its fill value.
    weights.ignore(|name| {
        name.starts_with("h.") && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"))
    });
    Ok(Recorded {
        network: Network::Decoder(decoder),
        context: ContextLength::learned(c.n_positions),
        rope: None,
    })
}
