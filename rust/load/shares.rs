//! What each type takes of a model's matrices.

use super::Planned;

/// What a type takes of a model's matrices, those that differ only by their layer together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Name of the matrices, with `*` for the layer.
    pub name: String,
    /// Name of the type.
    pub dtype: &'static str,
    /// Inputs of a group, where the type's products are summed by groups; 0 where they are not.
    pub group: usize,
    /// How many matrices there are.
    pub matrices: usize,
    /// Bytes that they take; none for a matrix that is another one's.
    pub bytes: usize,
    /// Name of the matrix that this one is, where it takes nothing by itself.
    pub shared_with: Option<String>,
}

/// What each type takes of the planned matrices, for each of which there is the first one that is the same, and the bytes that it
/// takes by itself.
pub(super) fn shares(planned: &[Planned<'_>], firsts: &[usize], sizes: &[usize]) -> Vec<Share> {
    let mut shares: Vec<Share> = Vec::new();
    for (i, p) in planned.iter().enumerate() {
        let first = &planned[firsts[i]].name;
        if firsts[i] != i && *first == p.name {
            continue; // Embeddings of encoder and decoder that are one table.
        }
        let (name, dtype, group) = (shortened(&p.name), p.to.name(), p.to.group());
        let shared_with = (firsts[i] != i).then(|| first.clone());
        let known = shares.iter_mut().find(|share| {
            (&share.name, share.dtype, share.group, &share.shared_with) == (&name, dtype, group, &shared_with)
        });
        match known {
            Some(share) => {
                share.matrices += 1;
                share.bytes += sizes[i];
            }
            None => shares.push(Share { name, dtype, group, matrices: 1, bytes: sizes[i], shared_with }),
        }
    }
    shares
}

/// A matrix's name with the number of its layer as `*`.
pub(super) fn shortened(name: &str) -> String {
    let is_number = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let mut words: Vec<&str> = name.split('.').collect();
    if let Some(layer) = words.iter_mut().find(|word| is_number(word)) {
        *layer = "*";
    }
    words.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_the_number_of_their_layer() {
        assert_eq!(shortened("h.11.attn.c_attn"), "h.*.attn.c_attn");
        assert_eq!(
            shortened("encoder.block.3.layer.0.SelfAttention.q"),
            "encoder.block.*.layer.0.SelfAttention.q"
        );
        assert_eq!(shortened("lm_head"), "lm_head");
    }
}
