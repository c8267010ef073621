//! Llama (Touvron et al. 2023) and those that compute like it: Qwen 2 and 3, Mistral. Rotary positions, groups of query heads that
//! share keys, norms by root mean square before every sublayer, gated feed-forward layers.
//!
//! Fields and their defaults are those of transformers (5.24, `models/{llama,qwen2,qwen3,mistral}/configuration_*.py`). Letters:
//! `M` rows of the step, `D` width, `V` vocabulary.

use super::causal;
use super::options::Part;
use super::registry::{Network, Recorded};
use super::rope::{self, Rope};
use crate::checkpoint::config::ConfigFile;
use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::layers::heads::Heads;
use crate::program::{Builder, Cache, Mask, Recorder, Turned, dense, rms_norm};

/// Models that compute the same with other defaults and switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kin {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl Kin {
    fn of(model_type: &str) -> Self {
        match model_type {
            "mistral" => Self::Mistral,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            _ => Self::Llama,
        }
    }
}

/// Sizes and switches of a model of this kind.
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
    /// Activation of the gate.
    pub hidden_act: Activation,
    /// Added to the mean square in a norm.
    pub rms_norm_eps: f32,
    /// Whether the head shares the token embedding.
    pub tie_word_embeddings: bool,
    /// Whether the products of queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the product behind attention has one.
    pub o_bias: bool,
    /// Whether those of the feed-forward layer have.
    pub mlp_bias: bool,
    /// Whether every query and key is normalized.
    pub qk_norm: bool,
    /// Keys that a row sees at most, by block.
    pub windows: Windows,
    rope: Rope,
}

impl Config {
    /// Reads the fields, with the defaults that transformers has for this `model_type`.
    ///
    /// # Errors
    /// `Config` for a value out of range, an activation that is unknown or has parameters, heads that do not fit each other, or
    /// rotary positions that are not supported.
    pub fn read(model_type: &str, file: &ConfigFile) -> Result<Self> {
        let kin = Kin::of(model_type);
        let (inner, vocab, positions) = match kin {
            Kin::Llama => (11008, 32000, 2048),
            Kin::Mistral => (14336, 32000, 131_072),
            Kin::Qwen2 | Kin::Qwen3 => (22016, 151_936, 32768),
        };
        let hidden_size = file.usize_or("hidden_size", 4096)?;
        let num_hidden_layers = file.usize_or("num_hidden_layers", 32)?;
        let heads = heads(kin, file, hidden_size)?;
        let name = file.str_or("hidden_act", "silu")?;
        let hidden_act = Activation::from_name(name)
            .ok_or_else(|| file.invalid("hidden_act", format!("one of {}", Activation::names())))?;
        let rms_norm_eps = file.f32_or("rms_norm_eps", 1e-6)?;
        if rms_norm_eps < 0.0 {
            return Err(file.invalid("rms_norm_eps", "a number of at least 0"));
        }
        let positions = file.usize_or("max_position_embeddings", positions)?;
        let attention_bias = match kin {
            Kin::Llama | Kin::Qwen3 => file.bool_or("attention_bias", false)?,
            Kin::Mistral | Kin::Qwen2 => false,
        };
        Ok(Self {
            vocab_size: file.usize_or("vocab_size", vocab)?,
            hidden_size,
            intermediate_size: file.usize_or("intermediate_size", inner)?,
            num_hidden_layers,
            heads,
            hidden_act,
            rms_norm_eps,
            tie_word_embeddings: file.bool_or("tie_word_embeddings", false)?,
            qkv_bias: attention_bias || kin == Kin::Qwen2,
            o_bias: attention_bias,
            mlp_bias: kin == Kin::Llama && file.bool_or("mlp_bias", false)?,
            qk_norm: kin == Kin::Qwen3,
            windows: Windows::read(kin, file, num_hidden_layers)?,
            rope: rope::read(file, rope::Defaults { head_dim: heads.head_dim, positions, partial: None })?,
        })
    }
}

/// The heads of a config.
fn heads(kin: Kin, file: &ConfigFile, hidden_size: usize) -> Result<Heads> {
    let heads = file.usize_or("num_attention_heads", 32)?;
    let kv_heads = match (kin, file.has("num_key_value_heads")) {
        (Kin::Llama, false) => heads,
        (Kin::Mistral, false) => 8,
        (_, false) => 32,
        // transformers refuses the null that the other classes take for all heads.
        (Kin::Mistral, true) => file.usize("num_key_value_heads")?,
        (_, true) => file.usize_opt("num_key_value_heads")?.unwrap_or(heads),
    };
    if !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of num_attention_heads, {heads}");
        return Err(not_dividing(file, "num_key_value_heads", expected, kv_heads));
    }
    let head_dim = match (kin, file.has("head_dim")) {
        (Kin::Qwen3, false) => 128,
        (Kin::Llama | Kin::Mistral, _) => file.usize_opt("head_dim")?.unwrap_or(hidden_size / heads),
        (_, false) => hidden_size / heads,
        (_, true) => file.usize("head_dim")?,
    };
    if kin == Kin::Llama && !hidden_size.is_multiple_of(heads) {
        let expected = format!("a divisor of hidden_size, {hidden_size}");
        return Err(not_dividing(file, "num_attention_heads", expected, heads));
    }
    Ok(Heads { heads, kv_heads, head_dim, scale: (head_dim as f64).powf(-0.5) as f32 })
}

fn not_dividing(file: &ConfigFile, field: &str, expected: String, got: usize) -> Error {
    Error::Config { file: file.label().to_owned(), field: field.to_owned(), expected, got: got.to_string() }
}

/// Which blocks see a window of keys alone. No list is made by a number of the config, however many blocks that asks for.
#[derive(Debug, Clone)]
pub struct Windows {
    /// Keys that a row sees at most in such a block.
    window: Option<usize>,
    slides: Slides,
}

/// Blocks with a window.
#[derive(Debug, Clone)]
enum Slides {
    /// Those from one on.
    From(usize),
    /// One by one, as a file lists them.
    Listed(Vec<bool>),
}

impl Windows {
    /// Keys that a row of a block sees at most; `None` for all before it.
    pub fn of(&self, block: usize) -> Option<usize> {
        self.window.filter(|_| match &self.slides {
            Slides::From(first) => block >= *first,
            Slides::Listed(list) => list.get(block) == Some(&true),
        })
    }

    fn read(kin: Kin, file: &ConfigFile, layers: usize) -> Result<Self> {
        let slides = match kin {
            Kin::Llama => {
                causal::full_attention(file, layers)?;
                return Ok(Self { window: None, slides: Slides::From(layers) });
            }
            Kin::Mistral if file.has("layer_types") => {
                let expected = "no such field (transformers takes a model with it for another architecture)";
                return Err(file.invalid("layer_types", expected));
            }
            Kin::Mistral => Slides::From(0),
            Kin::Qwen2 | Kin::Qwen3 => sliding(file, layers)?,
        };
        let any = match &slides {
            Slides::From(first) => *first < layers,
            Slides::Listed(list) => list.contains(&true),
        };
        let window = match file.has("sliding_window") {
            false => Some(4096),
            true if any => file.usize_opt("sliding_window")?,
            // Where no layer has a window any integer will do.
            true => file.integer_opt("sliding_window").map(|_| None)?,
        };
        Ok(Self { window, slides })
    }
}

/// Which blocks of a Qwen have a window.
fn sliding(file: &ConfigFile, layers: usize) -> Result<Slides> {
    let used = file.bool_or("use_sliding_window", false)? && !file.is_null("sliding_window");
    let first = file.count_or("max_window_layers", 28)?;
    let Some(types) = file.strings_opt("layer_types")? else {
        return Ok(Slides::From(if used { first } else { layers }));
    };
    let of = |name: &str| match name {
        "full_attention" => Some(false),
        "sliding_attention" if used => Some(true),
        _ => None,
    };
    let slides: Option<Vec<_>> = types.into_iter().map(of).collect();
    slides.filter(|all| all.len() == layers).map(Slides::Listed).ok_or_else(|| {
        let expected = match used {
            true => format!("{layers} of \"full_attention\" and \"sliding_attention\""),
            false => format!("{layers} of \"full_attention\" where use_sliding_window is not true"),
        };
        file.invalid("layer_types", expected)
    })
}

/// The model of a folder.
///
/// # Errors
/// Those of its config and of its tensors.
pub(super) fn record(
    model_type: &str,
    _: Part,
    file: &mut ConfigFile,
    weights: &mut Recorder<'_>,
) -> Result<Recorded> {
    let c = Config::read(model_type, file)?;
    let (d, eps, heads) = (c.hidden_size, c.rms_norm_eps, c.heads);
    let widths = [heads.heads, heads.kv_heads].map(|count| count * heads.head_dim);
    let tied = c.tie_word_embeddings;
    let tables = causal::tables(weights, "embed_tokens.weight", tied, [c.vocab_size, d], None)?;
    let mut b = Builder::new(weights);

    let [mut x, angles] = b.embed_turned("embed_tokens", tables.embedding, d, c.rope.rotary.clone())?; // (M, D)
    for i in 0..c.num_hidden_layers {
        b.enter(format!("layers.{i}"));
        let [q, k, v] = [("q_proj", widths[0]), ("k_proj", widths[1]), ("v_proj", widths[1])]
            .map(|(name, width)| dense(&format!("self_attn.{name}"), width).biased(c.qkv_bias));
        let qkv = b.project_each(x, rms_norm("input_layernorm", eps), [q, k, v])?;
        let mut turned = Turned::from(heads).by(angles);
        if c.qk_norm {
            turned = turned.normed(rms_norm("self_attn.q_norm", eps), rms_norm("self_attn.k_norm", eps));
        }
        let mask = Mask { window: c.windows.of(i), ..Mask::CAUSAL };
        let attended = b.attend(qkv.map(Into::into), Cache::Own(i), turned, mask)?; // (M, heads)
        let y = b.add(x, attended, dense("self_attn.o_proj", d).biased(c.o_bias))?; // (M, D)
        let gate = dense("mlp.gate_proj", c.intermediate_size).then(c.hidden_act).biased(c.mlp_bias);
        let up = dense("mlp.up_proj", c.intermediate_size).biased(c.mlp_bias);
        let inner = b.gated(y, rms_norm("post_attention_layernorm", eps), gate, up)?;
        x = b.add(y, inner, dense("mlp.down_proj", d).biased(c.mlp_bias))?; // (M, D)
    }
    b.enter("");
    b.head("lm_head", x, rms_norm("norm", eps), tables.head)?; // (W, V)

    let decoder = b.finish()?;
    // Frequencies that old checkpoints saved; they are computed from the config.
    weights.ignore(|name| name.ends_with("rotary_emb.inv_freq"));
    Ok(Recorded { network: Network::Decoder(decoder), context: c.rope.context(), rope: Some(c.rope) })
}
