//! T5 (Raffel et al. 2020) and its relatives T5 1.1, Flan-T5, mT5 and UMT5: an encoder, and a decoder that looks at what it made.
//! Norms by root mean square before every sublayer, no biases, positions as an addend of the scores by distance.
//!
//! Fields and their defaults are those of transformers (5.24, `models/{t5,mt5,umt5}/configuration_*.py`). Letters: `M` rows of
//! the step, `D` width, `I` heads side by side, `F` width of the feed-forward layer, `V` vocabulary.

use super::decoder::ContextLength;
use super::options::Part;
use super::registry::{Network, Recorded};
use crate::checkpoint::config::ConfigFile;
use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::layers::heads::Heads;
use crate::layers::relative_bias::{Buckets, Distances, RelativeBias};
use crate::packed::Packed;
use crate::program::{Builder, Cache, Mask, Named, Program, Recorder, Slot, Value, dense, rms_norm};

/// Largest `relative_attention_max_distance`: every distance up to it is looked up once; the models on the hub have 128.
const LARGEST_DISTANCE: usize = 1 << 16;

/// Models of the family that compute the same with other defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relative {
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
        let relative = match model_type {
            "mt5" => Relative::Mt5,
            "umt5" => Relative::Umt5,
            _ => Relative::T5,
        };
        let old = relative == Relative::T5;
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
            bias_in_every_layer: relative == Relative::Umt5,
            layer_norm_epsilon,
            dense_act_fn,
            is_gated_act,
            scale_decoder_outputs: scaled(relative, file)?,
        };
        config.check_buckets(file)?;
        Ok(config)
    }

    /// Heads of every block; scores are not scaled. Side by side they need not be as wide as the model.
    fn heads(&self) -> Heads {
        Heads::alike(self.num_heads, self.d_kv, 1.0)
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

/// Whether the decoder's output is scaled. `scale_decoder_outputs` says so, else `tie_word_embeddings` unless it is false (T5 1.1 is
/// saved like this); the weights are tied all the same. mT5 never scales.
fn scaled(relative: Relative, file: &ConfigFile) -> Result<bool> {
    match relative {
        Relative::Mt5 => Ok(false),
        _ if file.value("scale_decoder_outputs").is_some() => {
            Ok(file.bool_opt("scale_decoder_outputs")?.unwrap_or(false))
        }
        _ => Ok(file.bool_opt("tie_word_embeddings")?.unwrap_or(true)),
    }
}

/// Whether an encoder alone is to be recorded. A folder says so by the class in its `architectures`; where it names none that
/// has a decoder, its tensors do.
fn is_alone(part: Part, file: &ConfigFile, w: &Recorder<'_>) -> bool {
    let class = file.first_of("architectures").unwrap_or_default();
    let parts = ["UMT5", "MT5", "T5"].into_iter().find_map(|family| class.strip_prefix(family));
    let whole = ["Model", "ForConditionalGeneration", "WithLMHeadModel", "ForSequenceClassification"];
    let has_decoder = parts.is_some_and(|rest| whole.contains(&rest) || rest == "ForQuestionAnswering");
    match part {
        Part::Encoder => true,
        Part::Folder if parts == Some("EncoderModel") => true,
        Part::Folder | Part::Whole => !has_decoder && !w.has_any(is_of_decoder),
    }
}

/// Whether a tensor of this name is of the decoder's blocks.
fn is_of_decoder(name: &str) -> bool {
    name.starts_with("decoder.block.")
}

/// Name of the tensor that embeddings and head are tied to.
const SHARED: &str = "shared.weight";
/// Names of the token embeddings of encoder and decoder, and of the head.
const TIED: [&str; 3] = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"];

/// The embeddings named above, and the tensor of the head. All are tied to `shared` (transformers 5.24 does so whatever the config
/// says), but one that is in the file and differs is kept; where `shared` is missing, the first of the others takes its place.
fn embeddings(c: &Config, w: &mut Recorder<'_>) -> Result<([Slot<Packed>; 2], &'static str)> {
    let source = TIED.into_iter().find(|name| !w.has(SHARED) && w.has(name)).unwrap_or(SHARED);
    let shape = [c.vocab_size, c.d_model];
    let table = |w: &mut Recorder<'_>, name: &'static str| {
        let tensor = w.own(name, source, shape)?;
        let (own, shared) = (Named::of(name), Named::of(SHARED));
        let tied = Named { alias: Some(own.name), tensor, ..shared };
        w.table(if tensor == source { tied } else { own }, shape[0], shape[1])
    };
    let [encoder, decoder, head] = TIED;
    let tables = [table(w, encoder)?, table(w, decoder)?];
    Ok((tables, w.own(head, source, shape)?))
}

/// Token embeddings of an encoder alone: its own, or else the first table in the file that they are tied to.
fn encoder_embeddings(c: &Config, w: &mut Recorder<'_>) -> Result<Slot<Packed>> {
    let [own, others @ ..] = TIED;
    let found = [own, SHARED].into_iter().chain(others).find(|name| w.has(name));
    let (own, shared) = (Named::of(own), Named::of(SHARED));
    let named = Named { alias: Some(own.name), tensor: found.unwrap_or(SHARED), ..shared };
    w.table(named, c.vocab_size, c.d_model)
}

/// Bias of a block's self-attention: its own in UMT5, that of the block before elsewhere.
fn bias(
    c: &Config,
    w: &mut Recorder<'_>,
    block: &str,
    distances: &Distances,
    before: Option<Slot<RelativeBias>>,
) -> Result<Slot<RelativeBias>> {
    match before {
        Some(shared) if !c.bias_in_every_layer => Ok(shared),
        _ => {
            let name = format!("{block}.0.SelfAttention.relative_attention_bias.weight");
            w.relative_bias(&name, c.num_heads, distances)
        }
    }
}

/// Attention of the rows to their own sequence or source.
fn self_attention(c: &Config, b: &mut Builder<'_, '_>, x: Value, cache: Cache, mask: Mask) -> Result<Value> {
    let inner = c.heads().heads * c.d_kv;
    let qkv = ["q", "k", "v"].map(|letter| dense(&format!("SelfAttention.{letter}"), inner));
    let [q, k, v] = b.project_each(x, rms_norm("layer_norm", c.layer_norm_epsilon), qkv)?; // (M, I) each
    let attended = b.attend([q.into(), k.into(), v.into()], cache, c.heads(), mask)?; // (M, I)
    b.add(x, attended, dense("SelfAttention.o", c.d_model)) // (M, D)
}

/// Attention of the rows to what was kept of their source.
fn cross_attention(c: &Config, b: &mut Builder<'_, '_>, x: Value, block: usize) -> Result<Value> {
    let inner = c.heads().heads * c.d_kv;
    let norm = rms_norm("layer_norm", c.layer_norm_epsilon);
    let q = b.project(x, norm, dense("EncDecAttention.q", inner))?; // (M, I)
    let attended = b.attend_memory(q, block, c.heads())?; // (M, I)
    b.add(x, attended, dense("EncDecAttention.o", c.d_model)) // (M, D)
}

/// The feed-forward sublayer.
fn feed_forward(c: &Config, b: &mut Builder<'_, '_>, x: Value) -> Result<Value> {
    let (norm, f) = (rms_norm("layer_norm", c.layer_norm_epsilon), c.d_ff);
    let inner = if c.is_gated_act {
        let gate = dense("DenseReluDense.wi_0", f).then(c.dense_act_fn);
        b.gated(x, norm, gate, dense("DenseReluDense.wi_1", f))? // (M, F)
    } else {
        b.project(x, norm, dense("DenseReluDense.wi", f).then(c.dense_act_fn))? // (M, F)
    };
    b.add(x, inner, dense("DenseReluDense.wo", c.d_model).delicate()) // (M, D)
}

/// The encoder; what a decoder looks at is kept for so many of its blocks.
fn encoder(c: &Config, w: &mut Recorder<'_>, tokens: Slot<Packed>, kept: usize) -> Result<Program> {
    let (distances, mut addend) = (Distances::new(c.buckets(true)), None);
    let mut b = Builder::new(w);
    let mut x = b.embed("encoder.embed_tokens", tokens, c.d_model, None)?; // (M, D)
    for i in 0..c.num_layers {
        let block = format!("encoder.block.{i}.layer");
        addend = Some(bias(c, b.weights(), &block, &distances, addend)?);
        b.enter(format!("{block}.0"));
        x = self_attention(c, &mut b, x, Cache::Source, Mask { bias: addend, ..Mask::ALL })?;
        b.enter(format!("{block}.1"));
        x = feed_forward(c, &mut b, x)?;
    }
    b.enter("");
    let hidden = b.norm(x, rms_norm("encoder.final_layer_norm", c.layer_norm_epsilon))?; // (M, D)
    for i in 0..kept {
        b.enter(format!("decoder.block.{i}.layer.1.EncDecAttention"));
        let keys_values = ["k", "v"].map(|letter| dense(letter, c.heads().heads * c.d_kv));
        let keys_values = b.project_each(hidden, None, keys_values)?; // (M, I) each
        b.keep(keys_values, i, c.heads())?;
    }
    b.finish()
}

/// The decoder.
fn decoder(c: &Config, w: &mut Recorder<'_>, tokens: Slot<Packed>, head: &str) -> Result<Program> {
    let (distances, mut addend) = (Distances::new(c.buckets(false)), None);
    let mut b = Builder::new(w);
    let mut x = b.embed("decoder.embed_tokens", tokens, c.d_model, None)?; // (M, D)
    for i in 0..c.num_decoder_layers {
        let block = format!("decoder.block.{i}.layer");
        addend = Some(bias(c, b.weights(), &block, &distances, addend)?);
        b.enter(format!("{block}.0"));
        x = self_attention(c, &mut b, x, Cache::Own(i), Mask { bias: addend, ..Mask::CAUSAL })?;
        b.enter(format!("{block}.1"));
        x = cross_attention(c, &mut b, x, i)?;
        b.enter(format!("{block}.2"));
        x = feed_forward(c, &mut b, x)?;
    }
    b.enter("");
    let scale = if c.scale_decoder_outputs { (c.d_model as f64).powf(-0.5) as f32 } else { 1.0 };
    let last = rms_norm("decoder.final_layer_norm", c.layer_norm_epsilon).scaled(scale);
    let lm_head = b.weights().head(head, [c.vocab_size, c.d_model], None)?;
    b.head("lm_head", x, last, lm_head)?; // (W, V)
    b.finish()
}

/// The model of a folder, or its encoder alone.
///
/// # Errors
/// Those of its config and of its tensors.
pub(super) fn record(
    model_type: &str,
    part: Part,
    file: &mut ConfigFile,
    w: &mut Recorder<'_>,
) -> Result<Recorded> {
    let c = Config::read(model_type, file)?;
    let network = if is_alone(part, file, w) {
        let tokens = encoder_embeddings(&c, w)?;
        let encoder = encoder(&c, w, tokens, 0)?;
        w.ignore(|name| name.starts_with("decoder.") || name == SHARED || TIED.contains(&name));
        Network::Encoder(encoder)
    } else {
        let ([encoder_tokens, decoder_tokens], head) = embeddings(&c, w)?;
        let has_decoder = w.has_any(is_of_decoder);
        let class = file.first_of("architectures").unwrap_or_default();
        let hint = |error| if has_decoder { error } else { missing_decoder(error, class) };
        let encoder = encoder(&c, w, encoder_tokens, c.num_decoder_layers).map_err(hint)?;
        let decoder = decoder(&c, w, decoder_tokens, head).map_err(hint)?;
        // Old checkpoints have a bias of the cross-attention that nothing reads.
        w.ignore(|name| name == "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight");
        Network::EncoderDecoder { encoder, decoder }
    };
    Ok(Recorded { network, context: ContextLength::default(), rope: None })
}

/// An error about a tensor of the decoder that a class of models has and the checkpoint has nothing of, with what to do.
fn missing_decoder(error: Error, class: &str) -> Error {
    match error {
        Error::Checkpoint { file, tensor: Some(tensor), expected, got } if is_of_decoder(&tensor) => {
            let expected = format!(
                "{expected}, and the other tensors of the decoder that {class} has (TextEncoder.load reads the encoder alone)"
            );
            Error::Checkpoint { file, tensor: Some(tensor), expected, got }
        }
        error => error,
    }
}
