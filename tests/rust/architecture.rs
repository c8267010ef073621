//! The map in ARCHITECTURE.md, enforced: which room may import which, and what only one place may touch.
//!
//! It reads the sources as text. It knows the table of rooms and nothing of what the rooms do.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms from the ground up; a room may import those named beside it, and itself.
const ROOMS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("kernels", &["error"]),
    ("team", &["error"]),
    ("arena", &["error"]),
    ("headroom", &["error"]),
    ("limits", &["error", "arena", "kernels", "team"]),
    ("packed", &["error", "arena", "kernels"]),
    ("kv", &["error", "arena", "kernels"]),
    ("layers", &["error", "arena", "kernels", "team", "packed", "kv"]),
    ("checkpoint", &["error", "kernels", "team", "packed"]),
    ("models", &["error", "arena", "headroom", "kernels", "team", "packed", "kv", "layers", "checkpoint"]),
    ("decode", &["error", "models"]),
    ("engine", &["error", "headroom", "models", "decode"]),
    ("python", &["error", "kernels", "team", "limits", "packed", "checkpoint", "models", "decode", "engine"]),
];

/// Words of Rust sources that only the named rooms may hold, with the reason.
const ONLY_IN: &[(&str, &[&str], &str)] = &[
    ("pyo3", &["lib", "python"], "the engine does not know Python"),
    (
        "std::thread",
        &["team", "python"],
        "only the team computes in threads, and only the seam waits for one",
    ),
    ("std::arch", &["kernels"], "intrinsics live in the kernels"),
    ("serde_json", &["checkpoint"], "JSON is read where the files are read"),
];

/// Files under rust/models/ that serve every model; the others are models.
const SHARED_BY_MODELS: &[&str] = &["mod", "load", "memory", "step"];

/// Python modules that alone may import a package (`_core` is the native module).
const PYTHON_ONLY_IN: &[(&str, &[&str])] = &[
    ("tokenizers", &["tokenizer.py", "tokenizer_files.py"]),
    ("huggingface_hub", &["hub.py"]),
    ("_core", &["__init__.py", "bench.py", "decoding.py", "memory.py", "model.py", "seq2seq.py", "state.py"]),
    ("torch", &[]),
    ("transformers", &[]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with the extension, sorted.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("cannot list {}: {e}", folder.display())) {
        let path = entry.expect("a readable folder entry").path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
}

/// The source without line comments and without its inline tests, which may import what they like.
fn code(source: &str) -> String {
    let end = source.find("#[cfg(test)]\nmod ").unwrap_or(source.len());
    let lines = source[..end].lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The room of a file under rust/: its first folder, or its own name.
fn room(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("rust")).expect("a path under rust/");
    let first = inside.components().next().expect("a file name").as_os_str();
    Path::new(first).file_stem().expect("a file name").to_string_lossy().into_owned()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `word` stands in `code` on its own.
fn mentions(code: &str, word: &str) -> bool {
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(is_word) && !code[at + word.len()..].starts_with(is_word))
}

/// First names after `crate::` (and after `super::` where that is the crate), groups in braces opened.
fn imported(code: &str, super_is_crate: bool) -> Vec<String> {
    let mut names = Vec::new();
    for prefix in ["crate::", "super::"] {
        if prefix == "super::" && !super_is_crate {
            continue;
        }
        for (at, _) in code.match_indices(prefix) {
            if code[..at].ends_with(|c| is_word(c) || c == '$' || c == ':') {
                continue;
            }
            let rest = &code[at + prefix.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                names.extend(group_members(group));
            } else {
                names.push(rest.chars().take_while(|c| is_word(*c)).collect());
            }
        }
    }
    names
}

/// First name of each member of `{a::x, b::{y, z}}`, given the text after the opening brace.
fn group_members(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut names) = (1, 0, Vec::new());
    for (at, c) in group.char_indices() {
        let ends = depth == 1 && matches!(c, ',' | '}');
        if ends {
            let name: String = group[start..at].trim().chars().take_while(|c| is_word(*c)).collect();
            names.extend((!name.is_empty()).then_some(name));
            start = at + 1;
        }
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// Panics with every complaint at once.
fn report(complaints: &str) {
    assert!(complaints.is_empty(), "ARCHITECTURE.md is broken:\n{complaints}");
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    let mut complaints = String::new();
    for path in files(&root().join("rust"), "rs") {
        let (own, code) = (room(&path), code(&text(&path)));
        if own == "lib" {
            continue;
        }
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == own) else {
            let _ = writeln!(complaints, "  {}: no room {own} in the table", path.display());
            continue;
        };
        let super_is_crate = path.parent() == Some(&root().join("rust"))
            || (path.ends_with("mod.rs")
                && path.parent().and_then(Path::parent) == Some(&root().join("rust")));
        for name in imported(&code, super_is_crate) {
            let target = if matches!(name.as_str(), "Error" | "Result") { "error".to_owned() } else { name };
            let is_room = ROOMS.iter().any(|(name, _)| *name == target);
            if is_room && target != own && !allowed.contains(&target.as_str()) {
                let _ = writeln!(complaints, "  {}: {own} may not import {target}", path.display());
            }
        }
    }
    report(&complaints);
}

#[test]
fn models_do_not_import_each_other() {
    let mut complaints = String::new();
    let models: Vec<String> = files(&root().join("rust/models"), "rs")
        .iter()
        .map(|p| second_name(p))
        .filter(|n| !SHARED_BY_MODELS.contains(&n.as_str()))
        .collect();
    for path in files(&root().join("rust/models"), "rs") {
        let (own, code) = (second_name(&path), code(&text(&path)));
        for other in models.iter().filter(|other| **other != own && own != "mod") {
            if code.contains(&format!("models::{other}")) || code.contains(&format!("super::{other}::")) {
                let _ = writeln!(complaints, "  {}: imports the model {other}", path.display());
            }
        }
    }
    report(&complaints);
}

/// The model a file under rust/models/ belongs to: its folder there, or its own name.
fn second_name(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("rust/models")).expect("a path under rust/models/");
    let first = inside.components().next().expect("a file name").as_os_str();
    Path::new(first).file_stem().expect("a file name").to_string_lossy().into_owned()
}

#[test]
fn some_things_live_in_one_room_only() {
    let mut complaints = String::new();
    for path in files(&root().join("rust"), "rs") {
        let (own, code) = (room(&path), code(&text(&path)));
        for (word, rooms, reason) in ONLY_IN {
            if mentions(&code, word) && !rooms.contains(&own.as_str()) {
                let _ = writeln!(complaints, "  {}: {word} is not for {own}: {reason}", path.display());
            }
        }
    }
    report(&complaints);
}

#[test]
fn every_source_file_opens_with_what_it_owns() {
    let mut complaints = String::new();
    for folder in ["rust", "tests/rust"] {
        for path in files(&root().join(folder), "rs") {
            if !text(&path).starts_with("//! ") {
                let _ = writeln!(complaints, "  {}: does not open with a //! line", path.display());
            }
        }
    }
    for folder in ["python", "tests/python", "benches", "tools"] {
        for path in files(&root().join(folder), "py") {
            if !text(&path).trim_start_matches("#!/usr/bin/env python3\n").starts_with("\"\"\"") {
                let _ = writeln!(complaints, "  {}: does not open with a docstring", path.display());
            }
        }
    }
    report(&complaints);
}

#[test]
fn python_packages_have_one_importer() {
    let mut complaints = String::new();
    for path in files(&root().join("python/fastdecode"), "py") {
        let name = path.file_name().expect("a file name").to_string_lossy().into_owned();
        for line in text(&path).lines().map(str::trim) {
            let Some(module) = line.strip_prefix("import ").or_else(|| line.strip_prefix("from ")) else {
                continue;
            };
            for (package, importers) in PYTHON_ONLY_IN {
                let ours = *package == "_core" && mentions(module, "_core");
                let theirs = module.split([' ', '.', ',']).next() == Some(package);
                if (ours || theirs) && !importers.contains(&name.as_str()) {
                    let _ = writeln!(complaints, "  {}: may not import {package}", path.display());
                }
            }
        }
    }
    report(&complaints);
}

#[test]
fn the_checks_see_what_they_look_for() {
    assert_eq!(
        imported("use crate::{a::x, b::{y, z}, c};\nlet q = crate::d::e();", false),
        ["a", "b", "c", "d"]
    );
    assert_eq!(imported("use super::kernels::Kernels;", true), ["kernels"]);
    assert_eq!(imported("use super::kernels::Kernels; $crate::x", false), Vec::<String>::new());
    assert_eq!(code("use crate::a; // crate::b\n"), "use crate::a; ");
    assert!(mentions("use std::thread;", "std::thread"), "a whole word is found");
    assert!(!mentions("use pyo3x;", "pyo3"), "a part of a word is not");
}
