//! Phi 1, 1.5 and 2 (Gunasekar et al. 2023): attention and feed-forward layer side by side behind one norm, rotary positions in a
//! part of every head, biases everywhere.
//!
//! Fields and their defaults are those of transformers (5.24, `models/phi/configuration_phi.py`). Letters: `M` rows of the step,
//! `D` width, `V` vocabulary.

use super::causal;
use super::options::Part;
use super::registry::{Network, Recorded};
use super::rope::{self, Rope};
use crate::checkpoint::config::ConfigFile;
use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::layers::heads::Heads;
use crate::program::{Builder, Cache, Mask, Recorder, Turned, dense, layer_norm};

/// Sizes and switches of a Phi model.
#[derive(Debug, Clone)]
pub struct Config {
    /// Token ids, `V`.
    pub vocab_size: usize,
    /// Width of the model, `D`.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads, and what their scores are multiplied by.
    pub heads: Heads,
    /// Activation of the feed-forward layer.
    pub hidden_act: Activation,
    /// Added to the variance in a layer norm.
    pub layer_norm_eps: f32,
    /// Whether the head shares the token embedding.
    pub tie_word_embeddings: bool,
    /// Whether every query and key is normalized.
    pub qk_layernorm: bool,
    rope: Rope,
}

impl Config {
    /// Reads the fields, with transformers' defaults.
    ///
    /// # Errors
    /// `Config` for a value out of range, an activation that is unknown or has parameters, heads that do not fit each other, or
    /// rotary positions that are not supported.
    pub fn read(file: &ConfigFile) -> Result<Self> {
        let hidden_size = file.usize_or("hidden_size", 2048)?;
        let count = file.usize_or("num_attention_heads", 32)?;
        let kv_heads = file.usize_opt("num_key_value_heads")?.unwrap_or(count);
        if !count.is_multiple_of(kv_heads) {
            return Err(Error::Config {
                file: file.label().to_owned(),
                field: "num_key_value_heads".to_owned(),
                expected: format!("a divisor of num_attention_heads, {count}"),
                got: kv_heads.to_string(),
            });
        }
        let head_dim = file.usize_or("head_dim", hidden_size / count)?;
        let qk_layernorm = file.bool_or("qk_layernorm", false)?;
        if qk_layernorm && head_dim != hidden_size / count {
            let expected =
                format!("{}, hidden_size / num_attention_heads, with qk_layernorm", hidden_size / count);
            return Err(file.invalid("head_dim", expected));
        }
        let heads = Heads { heads: count, kv_heads, head_dim, scale: (head_dim as f64).powf(-0.5) as f32 };
        let hidden_act = Activation::from_name(file.str_or("hidden_act", "gelu_new")?)
            .ok_or_else(|| file.invalid("hidden_act", format!("one of {}", Activation::names())))?;
        let layer_norm_eps = file.f32_or("layer_norm_eps", 1e-5)?;
        if layer_norm_eps < 0.0 {
            return Err(file.invalid("layer_norm_eps", "a number of at least 0"));
        }
        let positions = file.usize_or("max_position_embeddings", 2048)?;
        let num_hidden_layers = file.usize_or("num_hidden_layers", 24)?;
        causal::full_attention(file, num_hidden_layers)?;
        Ok(Self {
            vocab_size: file.usize_or("vocab_size", 51200)?,
            hidden_size,
            intermediate_size: file.usize_or("intermediate_size", 8192)?,
            num_hidden_layers,
            heads,
            hidden_act,
            layer_norm_eps,
            tie_word_embeddings: file.bool_or("tie_word_embeddings", false)?,
            qk_layernorm,
            rope: rope::read(file, rope::Defaults { head_dim, positions, partial: Some(0.5) })?,
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
    let (d, eps, heads) = (c.hidden_size, c.layer_norm_eps, c.heads);
    let widths = [heads.heads, heads.kv_heads].map(|count| count * heads.head_dim);
    let tied = c.tie_word_embeddings;
    let tables =
        causal::tables(weights, "embed_tokens.weight", tied, [c.vocab_size, d], Some("lm_head.bias"))?;
    let mut b = Builder::new(weights);

    let [mut x, angles] = b.embed_turned("embed_tokens", tables.embedding, d, c.rope.rotary.clone())?; // (M, D)
    for i in 0..c.num_hidden_layers {
        b.enter(format!("layers.{i}"));
        let biased = |name: &str, width| dense(name, width).biased(true);
        let [q, k, v, inner] = b.project_each(
            x,
            layer_norm("input_layernorm", eps),
            [
                biased("self_attn.q_proj", widths[0]),
                biased("self_attn.k_proj", widths[1]),
                biased("self_attn.v_proj", widths[1]),
                biased("mlp.fc1", c.intermediate_size).then(c.hidden_act),
            ],
        )?;
        let mut turned = Turned::from(heads).by(angles);
        if c.qk_layernorm {
            let [queries, keys] = ["self_attn.q_layernorm", "self_attn.k_layernorm"];
            turned = turned.normed(layer_norm(queries, eps), layer_norm(keys, eps));
        }
        let attended = b.attend([q, k, v].map(Into::into), Cache::Own(i), turned, Mask::CAUSAL)?; // (M, heads)
        let y = b.add(x, attended, biased("self_attn.dense", d))?; // (M, D)
        x = b.add(y, inner, biased("mlp.fc2", d))?; // (M, D)
    }
    b.enter("");
    b.head("lm_head", x, layer_norm("final_layernorm", eps), tables.head)?; // (W, V)

    let decoder = b.finish()?;
    weights.ignore(|name| name.ends_with("rotary_emb.inv_freq"));
    Ok(Recorded { network: Network::Decoder(decoder), context: c.rope.context(), rope: Some(c.rope) })
}
