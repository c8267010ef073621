//! GPT-2 (Radford et al. 2019): token and position embeddings, blocks of attention and feed-forward with norms before them, a head.
//!
//! Fields and their defaults are those of transformers (5.24, `models/gpt2/configuration_gpt2.py`). Letters: `M` rows of the
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

/// Sizes and switches of a GPT-2 model.
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
    /// Width of the feed-forward layer; 4 D where the file has none.
    pub n_inner: usize,
    /// Activation of the feed-forward layer.
    pub activation_function: Activation,
    /// Added to the variance in a layer norm.
    pub layer_norm_epsilon: f32,
    /// Whether scores are divided by the square root of the head's width.
    pub scale_attn_weights: bool,
    /// Whether scores of block `i` are divided by `i + 1`.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the head shares the token embedding.
    pub tie_word_embeddings: bool,
}

impl Config {
    /// Names that the file may use instead of GPT-2's own.
    pub const ALIASES: [(&'static str, &'static str); 4] = [
        ("hidden_size", "n_embd"),
        ("max_position_embeddings", "n_positions"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
    ];

    /// Reads the fields, with transformers' defaults.
    ///
    /// # Errors
    /// [`Error::Config`] for a value out of range, an activation with parameters or unknown, a width that the heads do not
    /// divide, or cross-attention.
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
        let name = file.str_or("activation_function", "gelu_new")?.to_owned();
        let activation_function = Activation::from_name(&name)
            .ok_or_else(|| file.invalid("activation_function", format!("one of {}", Activation::names())))?;
        if file.bool_or("add_cross_attention", false)? {
            return Err(file.invalid("add_cross_attention", "false: a decoder without an encoder"));
        }
        let layer_norm_epsilon = file.f32_or("layer_norm_epsilon", 1e-5)?;
        if layer_norm_epsilon < 0.0 {
            return Err(file.invalid("layer_norm_epsilon", "a number of at least 0"));
        }
        Ok(Self {
            vocab_size: file.usize_or("vocab_size", 50257)?,
            n_positions: file.usize_or("n_positions", 1024)?,
            n_embd,
            n_layer: file.usize_or("n_layer", 12)?,
            n_head,
            n_inner: file.usize_opt("n_inner")?.unwrap_or(4 * n_embd),
            activation_function,
            layer_norm_epsilon,
            scale_attn_weights: file.bool_or("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: file.bool_or("scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: file.bool_or("tie_word_embeddings", true)?,
        })
    }

    /// Heads of block `layer`, and what their scores are multiplied by.
    fn heads(&self, layer: usize) -> Heads {
        let (head_dim, mut scale) = (self.n_embd / self.n_head, 1.0);
        if self.scale_attn_weights {
            scale /= (head_dim as f32).sqrt();
        }
        if self.scale_attn_by_inverse_layer_idx {
            scale /= (layer + 1) as f32;
        }
        Heads::alike(self.n_head, head_dim, scale)
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
    let tables = causal::tables(weights, "wte.weight", c.tie_word_embeddings, [c.vocab_size, d], None)?;
    let wpe = weights.values("wpe.weight", &[c.n_positions, d])?;
    let mut b = Builder::new(weights);

    let mut x = b.embed("x", tables.embedding, d, Some(wpe))?; // (M, D)
    for i in 0..c.n_layer {
        b.enter(format!("h.{i}"));
        let qkv = b.project(x, layer_norm("ln_1", eps), conv1d("attn.c_attn", 3 * d))?; // (M, 3 D)
        let attended = b.attend(qkv.thirds(), Cache::Own(i), c.heads(i), Mask::CAUSAL)?; // (M, D)
        let y = b.add(x, attended, conv1d("attn.c_proj", d))?; // (M, D)
        let widened = conv1d("mlp.c_fc", c.n_inner).then(c.activation_function);
        let inner = b.project(y, layer_norm("ln_2", eps), widened)?; // (M, n_inner)
        x = b.add(y, inner, conv1d("mlp.c_proj", d))?; // (M, D)
    }
    b.enter("");
    b.head("lm_head", x, layer_norm("ln_f", eps), tables.head)?; // (W, V)

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
