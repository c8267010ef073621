//! What the families of decoders without an encoder have in common: token embeddings and a head that may be one table.

use crate::checkpoint::config::ConfigFile;
use crate::error::Result;
use crate::layers::linear::Linear;
use crate::packed::Packed;
use crate::program::{Named, Recorder, Slot};

/// Name of the head's matrix.
const HEAD: &str = "lm_head.weight";

/// Token embeddings and the matrix of the head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables {
    pub(super) embedding: Slot<Packed>,
    pub(super) head: Slot<Linear>,
}

/// Sees to it that `layer_types`, where it is there, asks for full attention in every block, in a family that has nothing else.
///
/// # Errors
/// `Config` where it does not.
pub(super) fn full_attention(file: &ConfigFile, layers: usize) -> Result<()> {
    let Some(types) = file.strings_opt("layer_types")? else { return Ok(()) };
    if types.len() == layers && types.iter().all(|&name| name == "full_attention") {
        return Ok(());
    }
    let expected = format!("{layers} of \"full_attention\" (this architecture has no windows)");
    Err(file.invalid("layer_types", expected))
}

/// Plans embeddings and head of `vocab × width` as transformers 5.24 reads them: of tied weights a file may keep either name
/// (safetensors' `save_model` drops one), and the other then stands in for both; two that differ are kept apart, tied in the config
/// or not.
///
/// # Errors
/// `Checkpoint` where a table is missing or has another shape or type.
pub(super) fn tables(
    weights: &mut Recorder<'_>,
    embedding: &str,
    tied: bool,
    shape: [usize; 2],
    bias: Option<&str>,
) -> Result<Tables> {
    let only_head = tied && !weights.has(embedding) && weights.has(HEAD);
    let tensor = if only_head { HEAD } else { embedding };
    let named = Named { tensor, ..Named::of(embedding) };
    let table = weights.table(named, shape[0], shape[1])?;
    let head = if tied || weights.has(HEAD) { weights.own(HEAD, tensor, shape)? } else { HEAD };
    Ok(Tables { embedding: table, head: weights.head(head, shape, bias)? })
}
