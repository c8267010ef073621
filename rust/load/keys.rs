//! Which key of a choice by part each matrix gets, and that no key is there for nothing.

use super::rounding::{DEFAULT, Role};
use super::shares::shortened;
use crate::error::{Error, Result};

/// Stands for any characters of a name.
const ANY: char = '*';
/// What may follow a name.
const WEIGHT: &str = ".weight";

/// What keys may call a matrix.
#[derive(Debug)]
pub(super) struct Called<'n> {
    /// What it is in its model, which may have a key.
    pub role: Role,
    /// Its name in the model.
    pub name: &'n str,
    /// A name of its own, where other matrices have `name`, too.
    pub alias: Option<&'n str>,
    /// What may precede its names; nothing where it lies outside of what that precedes.
    pub prefix: &'static str,
}

/// How closely a key says which matrix it means; the closest is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// A pattern with so many characters beside `*`: without what may precede and follow every name, and with it.
    Pattern(usize, usize),
    /// The key of its role.
    Role,
    /// Its name.
    Name,
    /// The name that it alone has.
    Alias,
}

impl Called<'_> {
    fn fit(&self, key: &str) -> Option<Fit> {
        let any = |name: &str, fits: &dyn Fn(&str) -> bool| {
            let whole = ["", self.prefix].map(|prefix| format!("{prefix}{name}"));
            whole.iter().any(|name| fits(name) || fits(&format!("{name}{WEIGHT}")))
        };
        let names = || [Some(self.name), self.alias].into_iter().flatten();
        if self.alias.is_some_and(|name| any(name, &|name| name == key)) {
            Some(Fit::Alias)
        } else if any(self.name, &|name| name == key) {
            Some(Fit::Name)
        } else if self.role.key() == Some(key) {
            Some(Fit::Role)
        } else if names().any(|name| any(name, &|name| matches(key, name))) {
            let count = |text: &str| text.chars().filter(|c| *c != ANY).count();
            // What it spells of the prefix or of the suffix does not count, be it a part of these.
            let fits = |prefix: &[&str], suffix: &[&str]| {
                let mut ends =
                    prefix.iter().flat_map(|before| suffix.iter().map(move |behind| (before, behind)));
                ends.any(|(before, behind)| {
                    names().any(|name| matches(key, &format!("{before}{name}{behind}")))
                })
            };
            let of_prefix = if fits(&[""], &["", WEIGHT]) { 0 } else { self.prefix.len() };
            let of_suffix = if fits(&["", self.prefix], &[""]) { 0 } else { WEIGHT.len() };
            Some(Fit::Pattern(count(key).saturating_sub(of_prefix + of_suffix), count(key)))
        } else {
            None
        }
    }
}

/// The keys of a choice by part, and what became of them.
#[derive(Debug)]
pub(super) struct Keys {
    /// In the order in which they were given.
    keys: Vec<Key>,
    /// Keys of roles that there are.
    roles: Vec<&'static str>,
    /// Names of all matrices, without the number of their layer.
    names: Vec<String>,
}

#[derive(Debug)]
struct Key {
    text: String,
    /// Whether a matrix gets it.
    is_used: bool,
    /// Keys that take what it fits.
    before: Vec<usize>,
}

impl Keys {
    /// Keys that no matrix was held against.
    pub(super) fn new<'k>(keys: impl Iterator<Item = &'k str>) -> Self {
        let new = |text: &str| Key { text: text.to_owned(), is_used: false, before: Vec::new() };
        Self { keys: keys.map(new).collect(), roles: vec![DEFAULT], names: Vec::new() }
    }

    /// Which key a matrix gets: the one that fits it most closely, of equals the first; none where no key fits.
    pub(super) fn choose(&mut self, called: &Called<'_>) -> Option<usize> {
        self.roles.extend(called.role.key().filter(|role| !self.roles.contains(role)));
        let name = shortened(called.name);
        if !self.names.contains(&name) {
            self.names.push(name);
        }
        let fitting: Vec<(usize, Fit)> =
            self.keys.iter().enumerate().filter_map(|(i, key)| Some((i, called.fit(&key.text)?))).collect();
        // Of equals `max_by_key` gives the last one.
        let &(chosen, _) = fitting.iter().rev().max_by_key(|(_, fit)| fit)?;
        for (i, _) in fitting {
            let key = &mut self.keys[i];
            key.is_used |= i == chosen;
            if i != chosen && !key.before.contains(&chosen) {
                key.before.push(chosen);
            }
        }
        Some(chosen)
    }

    /// Sees to it that every key is one that a matrix gets.
    ///
    /// # Errors
    /// `Option` for the first that is not.
    pub(super) fn check(&self) -> Result<()> {
        let Some(key) = self.keys.iter().find(|key| !key.is_used) else { return Ok(()) };
        let quoted = |text: &str| format!("\"{text}\"");
        let expected = if key.before.is_empty() {
            let roles: Vec<_> = self.roles.iter().map(|role| quoted(role)).collect();
            let names: Vec<_> =
                self.names.iter().map(String::as_str).filter(|name| !self.roles.contains(name)).collect();
            let (roles, names) = (roles.join(", "), names.join(", "));
            format!("parts of this model: {roles}, or a matrix, with * for any characters: {names}")
        } else {
            let before: Vec<_> = key.before.iter().map(|&i| quoted(&self.keys[i].text)).collect();
            let before = before.join(", ");
            format!("each key to be the closest to some matrix (those that this one fits get {before})")
        };
        Err(Error::Option { option: "dtype".to_owned(), expected, got: quoted(&key.text) })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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

    /// The keys that matrices get, by role and name, in a model whose names `model.` may precede.
    fn chosen(keys: &[&str], matrices: &[(Role, &str)]) -> (Vec<Option<usize>>, Result<()>) {
        let mut found = Keys::new(keys.iter().copied());
        let mut choose = |&(role, name): &(Role, &str)| {
            let prefix = if role == Role::Head { "" } else { "model." };
            found.choose(&Called { role, name, alias: None, prefix })
        };
        let chosen = matrices.iter().map(&mut choose).collect();
        (chosen, found.check())
    }

    #[test]
    fn the_closest_key_wins_wherever_it_stands() {
        let matrices = [
            (Role::Embedding, "wte"),
            (Role::Plain, "h.0.mlp.c"),
            (Role::Plain, "h.1.mlp.c"),
            (Role::Plain, "h.1.attn.q"),
            (Role::Delicate, "other"),
            (Role::Head, "lm_head"),
        ];
        let keys = ["*", "lm_head", "h.*", "embedding", "model.h.*.mlp.*", "h.1.mlp.c.weight"];
        let wanted = ["embedding", "model.h.*.mlp.*", "h.1.mlp.c.weight", "h.*", "*", "lm_head"];
        for turn in 0..keys.len() {
            let mut keys = keys;
            keys.rotate_left(turn);
            let (found, checked) = chosen(&keys, &matrices);
            assert_eq!(found.iter().map(|key| keys[key.unwrap()]).collect::<Vec<_>>(), wanted);
            checked.unwrap();
        }
        // A pattern with what precedes a whole model's names does not reach what lies outside of it.
        let (found, checked) = chosen(&["*", "model.*"], &matrices);
        assert_eq!(found, [Some(1), Some(1), Some(1), Some(1), Some(1), Some(0)]);
        checked.unwrap();
    }

    #[test]
    fn a_name_of_its_own_is_closer_than_one_that_is_shared() {
        for keys in [["shared", "encoder"], ["encoder", "shared"]] {
            let mut found = Keys::new(keys.into_iter());
            for (alias, wanted) in [("encoder", "encoder"), ("decoder", "shared")] {
                let called = Called { role: Role::Embedding, name: "shared", alias: Some(alias), prefix: "" };
                assert_eq!(keys[found.choose(&called).unwrap()], wanted);
            }
            found.check().unwrap();
        }
    }

    #[test]
    fn a_key_that_no_matrix_gets_is_an_error() {
        let matrices = [
            (Role::Embedding, "wte"),
            (Role::Plain, "h.0.a"),
            (Role::Plain, "h.0.b"),
            (Role::Head, "lm_head"),
        ];
        for (keys, got, why) in [
            (["h.*", "h.*.a", "h.*.b"].as_slice(), "h.*", "fits get \"h.*.a\", \"h.*.b\""),
            (&["*", "embedding", "h.*", "lm_head"], "*", "fits get \"embedding\", \"h.*\", \"lm_head\""),
            (&["wte", "embedding"], "embedding", "fits get \"wte\""),
            (&["h.0.a", "model.h.0.a.weight"], "model.h.0.a.weight", "fits get \"h.0.a\""),
            (
                &["model.lm_head"],
                "model.lm_head",
                "parts of this model: \"default\", \"embedding\", \"lm_head\", or",
            ),
            (&["lm_head", "x"], "x", "characters: wte, h.*.a, h.*.b"),
        ] {
            let message = chosen(keys, &matrices).1.unwrap_err().to_string();
            assert!(message.contains(&format!("got \"{got}\"")) && message.contains(why), "{message}");
        }
    }
}
