//! What adapters have to know of each architecture: how the matrices of its modules lie, and which tensors are one.

use std::path::Path;

use super::options::Part;
use super::registry::{self, Architecture};
use crate::checkpoint::config::ConfigFile;
use crate::checkpoint::{Adapter, Checkpoint, Layout, ModuleKind};
use crate::error::Result;

/// A checkpoint with adapters applied one after the other; the config learns of a vocabulary that they have changed.
///
/// # Errors
/// As for [`Checkpoint::adapted`], and `Config`.
pub(super) fn adapted(
    architecture: Architecture,
    config: &mut ConfigFile,
    checkpoint: Checkpoint,
    adapters: &[Adapter],
) -> Result<Checkpoint> {
    if adapters.is_empty() {
        return Ok(checkpoint);
    }
    let (checkpoint, rows) = checkpoint.adapted(&layout(architecture, config)?, adapters)?;
    if let Some(rows) = rows {
        config.set_size("vocab_size", rows);
    }
    Ok(checkpoint)
}

/// Names of the modules of a folder's model that can take the matrices of an adapter, as transformers names them.
///
/// # Errors
/// Those of the config and of the files of weights.
pub fn modules(folder: &Path) -> Result<Vec<String>> {
    let config = ConfigFile::open(folder)?;
    let architecture = registry::architecture(&config, Part::Folder)?;
    let layout = layout(architecture, &config)?;
    let checkpoint = Checkpoint::open(folder)?;
    let tied = layout.vocabulary.iter().copied().filter(|_| layout.tied);
    let mut names: Vec<&str> = checkpoint.names().map(|name| layout.own(name)).chain(tied).collect();
    names.sort_unstable();
    names.dedup();
    let module = |name: &str| {
        let module = name.strip_suffix(".weight")?;
        (layout.kind)(module)?;
        let inside = !architecture.has_encoder && module != HEAD;
        Some(if inside { format!("{}{module}", architecture.prefix) } else { module.to_owned() })
    };
    Ok(names.into_iter().filter_map(module).collect())
}

/// Module of the head, in every architecture.
const HEAD: &str = "lm_head";

/// What is known of an architecture.
fn layout(architecture: Architecture, config: &ConfigFile) -> Result<Layout<'static>> {
    type Known = (&'static [&'static str], fn(&str) -> Option<ModuleKind>, bool);
    let (vocabulary, kind, tied): Known = match architecture.name {
        "gpt2" => (&["wte.weight", "lm_head.weight"], of_gpt, true),
        "openai-gpt" => (&["tokens_embed.weight", "lm_head.weight"], of_gpt, true),
        _ if architecture.has_encoder => {
            let vocabulary = &[
                "shared.weight",
                "encoder.embed_tokens.weight",
                "decoder.embed_tokens.weight",
                "lm_head.weight",
            ];
            return Ok(Layout {
                prefix: architecture.prefix,
                vocabulary,
                bias: None,
                tied: true,
                kind: of_t5,
            });
        }
        _ => (&["embed_tokens.weight", "lm_head.weight"], of_llama, false),
    };
    let tied = config.bool_or("tie_word_embeddings", tied)?;
    let bias = (architecture.name == "phi").then_some("lm_head.bias");
    Ok(Layout { prefix: architecture.prefix, vocabulary, bias, tied, kind })
}

fn of_gpt(module: &str) -> Option<ModuleKind> {
    match module.rsplit('.').next()? {
        "c_attn" | "c_proj" | "c_fc" => Some(ModuleKind::Conv1d),
        "wte" | "wpe" | "tokens_embed" | "positions_embed" => Some(ModuleKind::Embedding),
        HEAD => Some(ModuleKind::Linear),
        _ => None,
    }
}

/// Llama and its kin, and Phi.
fn of_llama(module: &str) -> Option<ModuleKind> {
    match module.rsplit('.').next()? {
        "q_proj" | "k_proj" | "v_proj" | "o_proj" | "gate_proj" | "up_proj" | "down_proj" | "dense"
        | "fc1" | "fc2" | HEAD => Some(ModuleKind::Linear),
        "embed_tokens" => Some(ModuleKind::Embedding),
        _ => None,
    }
}

fn of_t5(module: &str) -> Option<ModuleKind> {
    match module.rsplit('.').next()? {
        "q" | "k" | "v" | "o" | "wi" | "wi_0" | "wi_1" | "wo" | HEAD => Some(ModuleKind::Linear),
        "shared" | "embed_tokens" => Some(ModuleKind::Embedding),
        // Old checkpoints have one in the cross-attention, too, which no module reads.
        "relative_attention_bias" if !module.contains("EncDecAttention") => Some(ModuleKind::Embedding),
        _ => None,
    }
}
