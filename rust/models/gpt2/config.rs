//! The fields of a GPT-2 config.json (transformers 5.23, `models/gpt2/configuration_gpt2.py`).

use crate::checkpoint::config::ConfigFile;
use crate::error::{Error, Result};
use crate::kernels::Activation;

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

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// What scores of block `layer` are multiplied by.
    pub fn scale(&self, layer: usize) -> f32 {
        let mut scale = 1.0;
        if self.scale_attn_weights {
            scale /= (self.head_dim() as f32).sqrt();
        }
        if self.scale_attn_by_inverse_layer_idx {
            scale /= (layer + 1) as f32;
        }
        scale
    }
}
