//! The fields of a T5, mT5 or UMT5 config.json (transformers 5.23, `models/{t5,mt5,umt5}/configuration_*.py`).

use crate::checkpoint::config::ConfigFile;
use crate::error::Result;
use crate::kernels::Activation;
use crate::layers::relative_bias::Buckets;

/// Largest `relative_attention_max_distance`: every distance up to it is looked up once; the models on the hub have 128.
const LARGEST_DISTANCE: usize = 1 << 16;

/// Members of the family that compute the same with other defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    T5,
    Mt5,
    Umt5,
}

/// Sizes and switches of a T5 model.
#[derive(Debug, Clone)]
pub struct Config {
    /// Token ids, `V`.
    pub vocab_size: usize,
    /// Width of the model, `D`.
    pub d_model: usize,
    /// Width of a head.
    pub d_kv: usize,
    /// Width of the feed-forward layer.
    pub d_ff: usize,
    /// Blocks of the encoder.
    pub num_layers: usize,
    /// Blocks of the decoder; as many as the encoder's where the file has none.
    pub num_decoder_layers: usize,
    /// Attention heads of a block.
    pub num_heads: usize,
    /// Buckets of the relative position bias.
    pub relative_attention_num_buckets: usize,
    /// Distance from which all share a bucket.
    pub relative_attention_max_distance: usize,
    /// Whether every block has a bias of its own (UMT5), instead of the first one's.
    pub bias_in_every_layer: bool,
    /// Added to the mean square in a norm.
    pub layer_norm_epsilon: f32,
    /// Activation of the feed-forward layer.
    pub dense_act_fn: Activation,
    /// Whether the activation gates a second product.
    pub is_gated_act: bool,
    /// Whether the decoder's output is multiplied by `d_model^-0.5`.
    pub scale_decoder_outputs: bool,
}

impl Config {
    /// Names that the file may use instead of T5's own.
    pub const ALIASES: [(&'static str, &'static str); 4] = [
        ("hidden_size", "d_model"),
        ("num_attention_heads", "num_heads"),
        ("num_hidden_layers", "num_layers"),
        ("head_dim", "d_kv"),
    ];

    /// Reads the fields, with the defaults that transformers has for this `model_type`.
    ///
    /// # Errors
    /// `Config` for a value out of range, an activation that is unknown or has parameters, or buckets for which
    /// transformers' formula has no value.
    pub fn read(model_type: &str, file: &mut ConfigFile) -> Result<Self> {
        file.apply_aliases(&Self::ALIASES);
        let member = match model_type {
            "mt5" => Member::Mt5,
            "umt5" => Member::Umt5,
            _ => Member::T5,
        };
        let old = member == Member::T5;
        let (layers, heads, d_ff) = if old { (6, 8, 2048) } else { (8, 6, 1024) };
        let num_layers = file.usize_or("num_layers", layers)?;
        let (dense_act_fn, is_gated_act) = activation(file, if old { "relu" } else { "gated-gelu" })?;
        let layer_norm_epsilon = file.f32_or("layer_norm_epsilon", 1e-6)?;
        if layer_norm_epsilon < 0.0 {
            return Err(file.invalid("layer_norm_epsilon", "a number of at least 0"));
        }
        let config = Self {
            vocab_size: file.usize_or("vocab_size", if old { 32128 } else { 250_112 })?,
            d_model: file.usize_or("d_model", 512)?,
            d_kv: file.usize_or("d_kv", 64)?,
            d_ff: file.usize_or("d_ff", d_ff)?,
            num_layers,
            num_decoder_layers: file.usize_opt("num_decoder_layers")?.unwrap_or(num_layers),
            num_heads: file.usize_or("num_heads", heads)?,
            relative_attention_num_buckets: file.usize_or("relative_attention_num_buckets", 32)?,
            relative_attention_max_distance: file.usize_or("relative_attention_max_distance", 128)?,
            bias_in_every_layer: member == Member::Umt5,
            layer_norm_epsilon,
            dense_act_fn,
            is_gated_act,
            scale_decoder_outputs: scaled(member, file)?,
        };
        config.check_buckets(file)?;
        Ok(config)
    }

    /// Width of all heads side by side; need not be `d_model`.
    pub fn inner_dim(&self) -> usize {
        self.num_heads * self.d_kv
    }

    /// Buckets of the encoder's or the decoder's bias.
    pub fn buckets(&self, bidirectional: bool) -> Buckets {
        Buckets {
            count: self.relative_attention_num_buckets,
            max_distance: self.relative_attention_max_distance,
            bidirectional,
        }
    }

    fn check_buckets(&self, file: &ConfigFile) -> Result<()> {
        if self.relative_attention_num_buckets < 4 {
            let expected =
                "at least 4 (with fewer, an encoder's direction has no bucket of a single distance)";
            return Err(file.invalid("relative_attention_num_buckets", expected));
        }
        let field = "relative_attention_max_distance";
        if self.relative_attention_max_distance > LARGEST_DISTANCE {
            return Err(file.invalid(field, format!("at most {LARGEST_DISTANCE}")));
        }
        if !self.buckets(false).are_sound() || !self.buckets(true).are_sound() {
            let exact = self.relative_attention_num_buckets / 2;
            let expected = format!("more than {exact}, half of relative_attention_num_buckets");
            return Err(file.invalid(field, expected));
        }
        Ok(())
    }
}

/// The activation and whether it is gated: `feed_forward_proj`, over which `dense_act_fn` and `is_gated_act` win.
fn activation(file: &ConfigFile, default: &str) -> Result<(Activation, bool)> {
    let projection = file.str_or("feed_forward_proj", default)?;
    let parts: Vec<&str> = projection.split('-').collect();
    let (first, last) = (parts[0], parts[parts.len() - 1]);
    if parts.len() > 2 || (parts.len() == 2 && first != "gated") {
        return Err(file.invalid("feed_forward_proj", "an activation's name, or one after \"gated-\""));
    }
    let named = if projection == "gated-gelu" { "gelu_new" } else { last };
    let (field, name) = match file.value("dense_act_fn") {
        None => ("feed_forward_proj", named),
        Some(_) => ("dense_act_fn", file.str_or("dense_act_fn", named)?),
    };
    let gated = match file.value("is_gated_act") {
        None => first == "gated",
        Some(_) => file.bool_opt("is_gated_act")?.unwrap_or(false),
    };
    let activation = Activation::from_name(name)
        .ok_or_else(|| file.invalid(field, format!("one of {}", Activation::names())))?;
    Ok((activation, gated))
}

/// Whether the decoder's output is scaled. In T5 `scale_decoder_outputs` says so, else `tie_word_embeddings` unless it is
/// false (T5 1.1 is saved like this); the weights are tied all the same. mT5 never scales, and UMT5 always does.
fn scaled(member: Member, file: &ConfigFile) -> Result<bool> {
    match member {
        Member::Mt5 => Ok(false),
        Member::Umt5 => Ok(true),
        Member::T5 if file.value("scale_decoder_outputs").is_some() => {
            Ok(file.bool_opt("scale_decoder_outputs")?.unwrap_or(false))
        }
        Member::T5 => Ok(file.bool_opt("tie_word_embeddings")?.unwrap_or(true)),
    }
}
