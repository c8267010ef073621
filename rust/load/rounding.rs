//! How weights are to be stored: the type of every matrix, by what it is in its model and by its name.

use crate::kernels::{Element, WeightType};

/// The key of what no other key names, and of every tensor that is not a matrix.
pub const DEFAULT: &str = "default";
/// The key of the head, which is its name, too.
pub const HEAD: &str = "lm_head";
/// The key of all token embeddings.
const EMBEDDING: &str = "embedding";
/// Stands for any characters of a name.
const ANY: char = '*';

/// How one weight is to be stored.
#[derive(Debug, Clone, Copy, Default)]
pub enum Stored {
    /// Every value exactly, as narrowly as it can be.
    #[default]
    Auto,
    /// Rounded to this type.
    As(&'static dyn WeightType),
}

/// What a matrix is in its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Token embeddings.
    Embedding,
    /// The matrix of the head, which may be read from the tensor of the embeddings.
    Head,
    /// A matrix that some types would serve badly, see [`WeightType::delicate`].
    Delicate,
    /// Any other.
    Plain,
}

impl Role {
    /// The key that names matrices of this role.
    pub fn key(self) -> Option<&'static str> {
        match self {
            Self::Embedding => Some(EMBEDDING),
            Self::Head => Some(HEAD),
            Self::Delicate | Self::Plain => None,
        }
    }
}

/// How a checkpoint's weights are to be stored: a default, and parts with a type of their own.
///
/// Of the keys that fit a matrix its very name wins, then patterns in their order, then the key of its role, then the default. The
/// default is what a type makes of a whole model: embeddings and head, and matrices that it would serve badly, may get another type
/// from it. A key is taken at its word, save that a type may have another layout of the same name.
#[derive(Debug, Clone, Default)]
pub struct Rounding {
    default: Stored,
    parts: Vec<(String, Stored)>,
}

impl Rounding {
    /// A default, and types by key.
    pub fn new(default: Stored, parts: Vec<(String, Stored)>) -> Self {
        Self { default, parts }
    }

    /// The elements that tensors beside the matrices are rounded to.
    pub(super) fn element(&self) -> Option<Element> {
        match self.default {
            Stored::As(to) => to.element(),
            Stored::Auto => None,
        }
    }

    /// The keys of the parts, in order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(key, _)| key.as_str())
    }

    /// How a matrix of this role and these names is stored whose elements are `from` in the file.
    pub(super) fn of(&self, role: Role, names: &[String], from: Element) -> Stored {
        let first = |fits: &dyn Fn(&str) -> bool| self.parts.iter().find(|(key, _)| fits(key.as_str()));
        let key = first(&|key| names.iter().any(|name| name == key))
            .or_else(|| first(&|key| names.iter().any(|name| matches(key, name))))
            .or_else(|| first(&|key| role.key() == Some(key)));
        let Stored::As(to) = key.map_or(self.default, |(_, stored)| *stored) else { return Stored::Auto };
        let other = match role {
            Role::Embedding | Role::Head if key.is_none() => to.vocabulary(),
            Role::Delicate => to.delicate(from).filter(|other| key.is_none() || other.name() == to.name()),
            _ => None,
        };
        Stored::As(other.unwrap_or(to))
    }
}

/// Whether a key fits a matrix of this role and these names.
pub(super) fn fits(key: &str, role: Role, names: &[String]) -> bool {
    role.key() == Some(key) || names.iter().any(|name| matches(key, name))
}

/// Whether a name is what a pattern says, in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split(ANY);
    let Some(mut rest) = pieces.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut pieces = pieces.peekable();
    if pieces.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        // The first place that a piece fits leaves most to the others.
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    false
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
    use crate::kernels::{BFLOAT16, FLOAT16, FLOAT32, INT4, INT8};

    fn name(rule: &Rounding, role: Role, name: &str) -> (&'static str, usize) {
        match rule.of(role, &[name.to_owned()], Element::F32) {
            Stored::Auto => ("auto", 0),
            Stored::As(to) => (to.name(), to.group()),
        }
    }

    fn rule(default: Stored, parts: &[(&str, &'static dyn WeightType)]) -> Rounding {
        Rounding::new(default, parts.iter().map(|&(key, to)| (key.to_owned(), Stored::As(to))).collect())
    }

    #[test]
    fn a_pattern_fits_what_it_says() {
        for (pattern, fitting, others) in [
            ("*", ["", "h.0"].as_slice(), [].as_slice()),
            ("a.b", &["a.b"], &["a.bc", "xa.b", "a_b", ""]),
            ("h.*.c", &["h.0.c", "h..c", "h.1.x.c"], &["h.c", "h.0.cc", "xh.0.c"]),
            ("*.c_*", &["h.0.c_fc", "x.c_"], &["c_fc", "h.0.d"]),
            ("ab*ba", &["abba", "abxba"], &["aba", "ab"]),
            ("*aa*aa", &["aaaa", "xaaaaa"], &["aaa"]),
            ("a**b", &["ab", "axb"], &["a", "b"]),
        ] {
            assert!(fitting.iter().all(|name| matches(pattern, name)), "{pattern}");
            assert!(!others.iter().any(|name| matches(pattern, name)), "{pattern}");
        }
    }

    #[test]
    fn the_more_specific_key_wins() {
        let rule = rule(
            Stored::As(BFLOAT16),
            &[("lm_head", INT8), ("h.*", FLOAT16), ("h.1.*", INT8), ("h.1.x", FLOAT32), ("embedding", INT8)],
        );
        assert_eq!(name(&rule, Role::Plain, "h.0.x").0, "float16");
        assert_eq!(name(&rule, Role::Plain, "h.1.y").0, "float16", "the first pattern");
        assert_eq!(name(&rule, Role::Plain, "h.1.x").0, "float32", "the very name");
        assert_eq!(name(&rule, Role::Plain, "other").0, "bfloat16");
        assert_eq!(name(&rule, Role::Embedding, "wte").0, "int8");
        assert_eq!(name(&rule, Role::Embedding, "h.9").0, "float16", "a pattern before a role");
        assert_eq!(name(&rule, Role::Head, "lm_head").0, "int8");
        assert_eq!(name(&Rounding::default(), Role::Head, "lm_head").0, "auto");
    }

    #[test]
    fn a_default_spares_what_a_key_does_not() {
        let int4 = rule(Stored::As(INT4[0]), &[]);
        assert_eq!(name(&int4, Role::Head, "lm_head").0, "int8");
        assert_eq!(name(&int4, Role::Embedding, "wte").0, "int8");
        let asked = rule(Stored::As(INT4[0]), &[("lm_head", INT4[1])]);
        assert_eq!(name(&asked, Role::Head, "lm_head"), ("int4", 32));
        assert_eq!(name(&asked, Role::Embedding, "wte").0, "int8");
        let half = rule(Stored::As(FLOAT16), &[]);
        assert_eq!(name(&half, Role::Delicate, "wo").0, "float32");
        assert_eq!(name(&rule(Stored::Auto, &[("*wo", FLOAT16)]), Role::Delicate, "wo").0, "float16");
        // Eight bits by groups are eight bits.
        assert_eq!(name(&rule(Stored::Auto, &[("*wo", INT8)]), Role::Delicate, "wo"), ("int8", 64));
    }

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
