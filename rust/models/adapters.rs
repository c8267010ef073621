//! What adapters have to know of each architecture: how the matrices of its modules lie, and which tensors are one.

use std::path::Path;

use super::options::Part;
use super::{PREFIX, registry};
use crate::checkpoint::config::ConfigFile;
use crate::checkpoint::{Adapter, Checkpoint, Layout, ModuleKind};
use crate::error::Result;

/// A checkpoint with adapters applied one after the other; the config learns of a vocabulary that they have changed.
///
/// # Errors
/// As for [`Checkpoint::adapted`], and `Config`.
pub(super) fn adapted(
    model_type: &str,
    config: &mut ConfigFile,
    checkpoint: Checkpoint,
    adapters: &[Adapter],
) -> Result<Checkpoint> {
    if adapters.is_empty() {
        return Ok(checkpoint);
    }
    let (checkpoint, rows) = checkpoint.adapted(&layout(model_type, config)?, adapters)?;
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
    let layout = layout(architecture.name, &config)?;
    let checkpoint = Checkpoint::open(folder)?;
    let tied = layout.vocabulary.iter().copied().filter(|_| layout.tied);
    let mut names: Vec<&str> = checkpoint.names().map(|name| layout.own(name)).chain(tied).collect();
    names.sort_unstable();
    names.dedup();
    let module = |name: &str| {
        let module = name.strip_suffix(".weight")?;
        (layout.kind)(module)?;
        let inside = architecture.name == "gpt2" && module != HEAD;
        Some(if inside { format!("{PREFIX}{module}") } else { module.to_owned() })
    };
    Ok(names.into_iter().filter_map(module).collect())
}

/// Module of the head, in every architecture.
const HEAD: &str = "lm_head";

/// What is known of an architecture.
fn layout(model_type: &str, config: &ConfigFile) -> Result<Layout<'static>> {
    Ok(if model_type == "gpt2" {
        let tied = config.bool_or("tie_word_embeddings", true)?;
        Layout { prefix: PREFIX, vocabulary: &["wte.weight", "lm_head.weight"], tied, kind: of_gpt2 }
    } else {
        let vocabulary = &[
            "shared.weight",
            "encoder.embed_tokens.weight",
            "decoder.embed_tokens.weight",
            "lm_head.weight",
        ];
        Layout { prefix: PREFIX, vocabulary, tied: true, kind: of_t5 }
    })
}

fn of_gpt2(module: &str) -> Option<ModuleKind> {
    match module.rsplit('.').next()? {
        "c_attn" | "c_proj" | "c_fc" => Some(ModuleKind::Conv1d),
        "wte" | "wpe" => Some(ModuleKind::Embedding),
        HEAD => Some(ModuleKind::Linear),
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
