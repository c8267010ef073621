//! What a phase is to whoever reads a profile: the kind of its work, and its place in the model, the same in all layers.

use super::{Op, Operand, Phase, Program};

/// Kind of a phase's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Embeddings of tokens and positions.
    Embedding,
    /// Products that make what attention reads, or read what it made.
    AttentionProduct,
    /// Every other product but the head.
    FeedForward,
    /// Attention itself, with its new keys and values.
    Attention,
    /// Keys and values of a source, put where a decoder finds them.
    Keep,
    /// A norm that is a phase of its own.
    Norm,
    /// Logits.
    Head,
}

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::AttentionProduct => "attention product",
            Self::FeedForward => "feed-forward",
            Self::Attention => "attention",
            Self::Keep => "keep",
            Self::Norm => "norm",
            Self::Head => "head",
        }
    }
}

impl Program {
    /// Kind and place of every phase. A place is the name of the module with its numbers left out (`h.*.mlp.c_fc`), or what the names
    /// of several have in common, and the rest of each.
    pub fn kinds(&self) -> Vec<(Kind, String)> {
        let of = |(at, phase): (usize, &Phase<Operand>)| match &phase.op {
            Op::Linear { x, products, .. } => {
                let serves = self.was_attended(at, x.buffer)
                    || products.iter().any(|product| self.will_be_attended(at, product.out.buffer));
                let kind = if serves { Kind::AttentionProduct } else { Kind::FeedForward };
                let names: Vec<&str> = products.iter().map(|product| product.name.as_str()).collect();
                (kind, place(&names))
            }
            Op::Embed { .. } => (Kind::Embedding, place(&[&phase.name])),
            Op::Attend { .. } => (Kind::Attention, place(&[&phase.name])),
            Op::Keep { .. } => (Kind::Keep, place(&[&phase.name])),
            Op::Norm { .. } => (Kind::Norm, place(&[&phase.name])),
            Op::Head { .. } => (Kind::Head, place(&[&phase.name])),
        };
        self.phases.iter().enumerate().map(of).collect()
    }

    /// Whether what phase `at` reads in a buffer is the result of attention.
    fn was_attended(&self, at: usize, buffer: usize) -> bool {
        let mut buffer = buffer;
        for phase in self.phases[..at].iter().rev() {
            // Wanted rows were copied out of the buffer that holds all rows.
            if let Op::Attend { gather, .. } = &phase.op
                && let Some((from, _)) = gather.iter().find(|(_, to)| to.buffer == buffer)
            {
                buffer = from.buffer;
            }
            if phase.op.writes().iter().any(|written| written.buffer == buffer) {
                return matches!(phase.op, Op::Attend { .. });
            }
        }
        false
    }

    /// Whether attention reads what phase `at` writes into a buffer, or it is kept for attention.
    fn will_be_attended(&self, at: usize, buffer: usize) -> bool {
        for phase in &self.phases[at + 1..] {
            let attends = matches!(phase.op, Op::Attend { .. } | Op::Keep { .. });
            if attends && phase.op.reads().iter().any(|read| read.buffer == buffer) {
                return true;
            }
            if phase.op.writes().iter().any(|written| written.buffer == buffer) {
                return false;
            }
        }
        false
    }
}

/// Where modules of these names are, in any layer.
fn place(names: &[&str]) -> String {
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts = |name: &&str| -> Vec<String> {
        name.split('.').map(|part| if is_number(&part) { "*" } else { part }.to_owned()).collect()
    };
    let all: Vec<Vec<String>> = names.iter().map(parts).collect();
    let [first, others @ ..] = all.as_slice() else { return String::new() };
    if others.is_empty() {
        return first.join(".");
    }
    // The last part of a name is always its own.
    let most = all.iter().map(|name| name.len() - 1).min().unwrap_or(0);
    let common = (0..most).take_while(|&i| others.iter().all(|name| name[i] == first[i])).count();
    let own: Vec<String> = all.iter().map(|name| name[common..].join(".")).collect();
    let mut place = first[..common].join(".");
    if common > 0 {
        place.push('.');
    }
    format!("{place}{{{}}}", own.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_name_without_numbers() {
        for (names, expected) in [
            (&["h.11.mlp.c_fc"][..], "h.*.mlp.c_fc"),
            (&["lm_head"], "lm_head"),
            (&["a.0.q", "a.0.k"], "a.*.{q, k}"),
            (&["l.3.self_attn.q_proj", "l.3.mlp.fc1"], "l.*.{self_attn.q_proj, mlp.fc1}"),
            (&["q", "k"], "{q, k}"),
            (&["x2.norm1"], "x2.norm1"),
            (&["a.k", "a.k"], "a.{k, k}"),
            (&[], ""),
        ] {
            assert_eq!(place(names), expected, "{names:?}");
        }
    }
}
