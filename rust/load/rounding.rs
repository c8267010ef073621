//! How weights are to be stored: the type of every matrix, by what it is in its model and by the key that it gets.

use crate::kernels::{Element, WeightType};

/// The key of what no other key names, and of every tensor that is not a matrix.
pub const DEFAULT: &str = "default";
/// The key of the head, which is its name, too.
pub const HEAD: &str = "lm_head";
/// The key of all token embeddings.
const EMBEDDING: &str = "embedding";

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
/// A matrix that no key fits gets the default, which is what a type makes of a whole model: embeddings and head, and matrices that it
/// would serve badly, may get another type from it. A key is taken at its word, save that a type may have another layout of the same
/// name.
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

    /// How a matrix of this role is stored that gets this one of the keys, and whose elements are `from` in the file.
    pub(super) fn of(&self, key: Option<usize>, role: Role, from: Element) -> Stored {
        let Stored::As(to) = key.map_or(self.default, |key| self.parts[key].1) else { return Stored::Auto };
        let other = match role {
            Role::Embedding | Role::Head if key.is_none() => to.vocabulary(),
            Role::Delicate => to.delicate(from).filter(|other| key.is_none() || other.name() == to.name()),
            _ => None,
        };
        Stored::As(other.unwrap_or(to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{BFLOAT16, FLOAT16, INT4, INT8};

    fn name(rule: &Rounding, key: Option<usize>, role: Role) -> (&'static str, usize) {
        match rule.of(key, role, Element::F32) {
            Stored::Auto => ("auto", 0),
            Stored::As(to) => (to.name(), to.group()),
        }
    }

    fn rule(default: Stored, parts: &[(&str, &'static dyn WeightType)]) -> Rounding {
        Rounding::new(default, parts.iter().map(|&(key, to)| (key.to_owned(), Stored::As(to))).collect())
    }

    #[test]
    fn a_default_spares_what_a_key_does_not() {
        assert_eq!(name(&Rounding::default(), None, Role::Head).0, "auto");
        assert_eq!(name(&rule(Stored::As(BFLOAT16), &[]), None, Role::Plain).0, "bfloat16");
        let int4 = rule(Stored::As(INT4[0]), &[("lm_head", INT4[1])]);
        assert_eq!(name(&int4, None, Role::Head).0, "int8");
        assert_eq!(name(&int4, None, Role::Embedding).0, "int8");
        assert_eq!(name(&int4, Some(0), Role::Head), ("int4", 32));
        let half = rule(Stored::As(FLOAT16), &[("*wo", FLOAT16), ("h.*", INT8)]);
        assert_eq!(name(&half, None, Role::Delicate).0, "float32");
        assert_eq!(name(&half, Some(0), Role::Delicate).0, "float16");
        // Eight bits by groups are eight bits.
        assert_eq!(name(&half, Some(1), Role::Delicate), ("int8", 64));
    }
}
