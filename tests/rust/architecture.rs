//! The map in ARCHITECTURE.md, enforced: which room may import which, and what only some places may touch.
//!
//! The rules are read from the tables of the document, so that it cannot differ from what holds: a room, or a change of what it
//! may import, is one line there. The sources are read as text, and nothing is known here of what the rooms do.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with the extension, sorted; without the tests of a module, which may import what they like.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("cannot list {}: {e}", folder.display())) {
        let path = entry.expect("a readable folder entry").path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) && !path.ends_with("tests.rs") {
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

/// Rows of the table of a document in Markdown whose first column is called `head`, as texts of their cells.
///
/// # Panics
/// When there is no such table, or it has no rows.
fn table(document: &str, head: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut lines = document.lines().skip_while(|line| !line.starts_with('|') || cells(line)[0] != head);
    assert!(lines.next().is_some(), "a table whose first column is \"{head}\"");
    let rows: Vec<Vec<String>> = lines.skip(1).take_while(|line| line.starts_with('|')).map(cells).collect();
    assert!(!rows.is_empty(), "rows in the table of every {head}");
    rows
}

/// What stands in backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Names separated by commas, none in an empty cell.
fn names(cell: &str) -> Vec<&str> {
    cell.split(',').map(str::trim).filter(|name| !name.is_empty()).collect()
}

fn architecture() -> String {
    text(&root().join("ARCHITECTURE.md"))
}

/// A row of the table of rooms.
struct Room {
    name: String,
    /// Its files or folders.
    places: Vec<PathBuf>,
    allowed: Vec<String>,
}

/// The rooms of a document, from the ground up.
fn rooms(document: &str) -> Vec<Room> {
    let room = |row: &Vec<String>| {
        let places: Vec<PathBuf> = quoted(&row[0]).into_iter().map(|place| root().join(place)).collect();
        let name = places[0].file_stem().expect("the name of a room").to_string_lossy().into_owned();
        let allowed = names(row.last().expect("a last column")).into_iter().map(str::to_owned).collect();
        Room { name, places, allowed }
    };
    table(document, "room").iter().map(room).collect()
}

/// Panics with every complaint at once.
fn report(complaints: &str) {
    assert!(complaints.is_empty(), "ARCHITECTURE.md is broken:\n{complaints}");
}

/// What is wrong with the rooms: `sources` are the files under rust/ with their texts.
fn room_complaints(rooms: &[Room], sources: &[(PathBuf, String)]) -> String {
    let (mut complaints, mut used) = (String::new(), BTreeSet::new());
    for (path, source) in sources {
        let (own, code) = (room(path), code(source));
        if own == "lib" {
            continue;
        }
        let Some(here) = rooms.iter().find(|room| room.name == own) else {
            let _ = writeln!(complaints, "  {}: no room {own} in the table", path.display());
            continue;
        };
        let super_is_crate = path.parent() == Some(&root().join("rust"))
            || (path.ends_with("mod.rs")
                && path.parent().and_then(Path::parent) == Some(&root().join("rust")));
        for name in imported(&code, super_is_crate) {
            let target = if matches!(name.as_str(), "Error" | "Result") { "error".to_owned() } else { name };
            if target == own || !rooms.iter().any(|room| room.name == target) {
                continue;
            }
            if !here.allowed.contains(&target) {
                let _ = writeln!(complaints, "  {}: {own} may not import {target}", path.display());
            }
            used.insert((own.clone(), target));
        }
    }
    for (at, here) in rooms.iter().enumerate() {
        let name = &here.name;
        for place in
            here.places.iter().filter(|place| !sources.iter().any(|(path, _)| path.starts_with(place)))
        {
            let _ = writeln!(complaints, "  the table's {name} has no source in {}", place.display());
        }
        for target in &here.allowed {
            if !rooms[..at].iter().any(|room| room.name == *target) {
                let _ = writeln!(
                    complaints,
                    "  the table lets {name} import {target}, which is no room above it"
                );
            } else if !used.contains(&(name.clone(), target.clone())) {
                let _ = writeln!(complaints, "  the table lets {name} import {target}, which it never does");
            }
        }
    }
    complaints
}

#[test]
fn rooms_import_what_the_table_allows_and_nothing_else() {
    let sources: Vec<(PathBuf, String)> =
        files(&root().join("rust"), "rs").into_iter().map(|path| (path.clone(), text(&path))).collect();
    report(&room_complaints(&rooms(&architecture()), &sources));
}

#[test]
fn the_crate_lists_its_rooms_in_the_order_of_the_table() {
    let source = text(&root().join("rust/lib.rs"));
    let listed: Vec<&str> = source
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    let rooms: Vec<String> = rooms(&architecture()).into_iter().map(|room| room.name).collect();
    assert_eq!(listed, rooms, "modules of rust/lib.rs, and rooms of the table in ARCHITECTURE.md");
}

#[test]
fn what_is_wrong_with_rooms_is_seen() {
    let document = "
| room | owns | may import |
|---|---|---|
| `rust/low.rs` | what is | |
| `rust/mid.rs`, `rust/mid/` | more | low |
| `rust/high/` | all | low, mid |

| other | table |
";
    let sources = |changed: &[(&str, &str)]| -> Vec<(PathBuf, String)> {
        let usual = [
            ("rust/low.rs", "use std::fs;"),
            ("rust/mid.rs", "use crate::low;"),
            ("rust/mid/part.rs", ""),
            ("rust/high/mod.rs", "use crate::{low::x, mid};"),
        ];
        let kept = usual.iter().filter(|(path, _)| !changed.iter().any(|(other, _)| other == path));
        let all = kept.chain(changed).filter(|(_, source)| *source != "gone");
        all.map(|(path, source)| (root().join(path), (*source).to_owned())).collect()
    };
    let complaints = |document: &str, changed: &[(&str, &str)]| {
        room_complaints(&rooms(document), &sources(changed)).replace(&root().display().to_string(), "")
    };
    assert_eq!(complaints(document, &[]), "");
    for (changed, complaint) in [
        (("rust/mid/part.rs", "use crate::high;"), "  /rust/mid/part.rs: mid may not import high\n"),
        (("rust/new.rs", ""), "  /rust/new.rs: no room new in the table\n"),
        (("rust/high/mod.rs", "use crate::low;"), "  the table lets high import mid, which it never does\n"),
        (("rust/mid/part.rs", "gone"), "  the table's mid has no source in /rust/mid/\n"),
    ] {
        assert_eq!(complaints(document, &[changed]), complaint);
    }
    let upward = document.replace("| more | low |", "| more | low, high |");
    let complaint = "  the table lets mid import high, which is no room above it\n";
    assert_eq!(complaints(&upward, &[("rust/mid.rs", "use crate::{high, low};")]), complaint);
}

/// What is wrong with a file of a part that may import `allowed`, and of its own room nothing but itself.
fn part_complaints(part: &Path, allowed: &[&str], path: &Path, source: &str) -> String {
    let (mut complaints, code) = (String::new(), code(source));
    for name in imported(&code, false) {
        let target = if matches!(name.as_str(), "Error" | "Result") { "error" } else { &*name };
        if !allowed.contains(&target) {
            let _ = writeln!(complaints, "  {}: may not import {name}", path.display());
        }
    }
    let leaves =
        if path.parent() == Some(part) && path.ends_with("mod.rs") { "super::" } else { "super::super::" };
    if code.contains(leaves) {
        let _ = writeln!(complaints, "  {}: may not look outside with {leaves}", path.display());
    }
    complaints
}

#[test]
fn parts_of_rooms_import_less_than_their_room() {
    let mut complaints = String::new();
    for row in table(&architecture(), "part of a room") {
        let part = root().join(quoted(&row[0])[0]);
        for path in files(&part, "rs") {
            complaints += &part_complaints(&part, &names(&row[1]), &path, &text(&path));
        }
    }
    report(&complaints);
    let part = Path::new("/rust/a/b");
    let found = |file: &str, source| part_complaints(part, &["error", "forks"], &part.join(file), source);
    assert_eq!(found("x.rs", "use crate::{Error, forks};\nuse super::y;"), "");
    assert_eq!(found("x.rs", "use crate::a::c;"), "  /rust/a/b/x.rs: may not import a\n");
    for (file, source) in [("x.rs", "use super::super::c;"), ("mod.rs", "use super::c;")] {
        assert!(found(file, source).contains("may not look outside"), "{file}: {source}");
    }
}

#[test]
fn models_do_not_import_each_other() {
    let mut complaints = String::new();
    let registry = code(&text(&root().join("rust/models/registry.rs")));
    // Words before `::record` in the registry's list.
    let before = registry.match_indices("::record").map(|(at, _)| &registry[..at]);
    let models: BTreeSet<&str> =
        before.map(|text| text.rsplit(|c| !is_word(c)).next().unwrap_or_default()).collect();
    assert!(models.len() >= 2, "the registry names the files of its architectures: {models:?}");
    for path in files(&root().join("rust/models"), "rs") {
        let (own, code) = (second_name(&path), code(&text(&path)));
        for other in models.iter().filter(|other| **other != own && !["mod", "registry"].contains(&&*own)) {
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

/// Rows of a table of what only some places may touch: the word, the places and the reason.
fn only_in(head: &str) -> Vec<(String, Vec<String>, String)> {
    let row = |row: &Vec<String>| {
        let places = quoted(&row[1]).into_iter().map(str::to_owned).collect();
        (quoted(&row[0])[0].to_owned(), places, row[2].clone())
    };
    table(&architecture(), head).iter().map(row).collect()
}

#[test]
fn some_things_live_in_some_places_only() {
    let mut complaints = String::new();
    for (word, places, reason) in only_in("in Rust") {
        let mut used = BTreeSet::new();
        for path in files(&root().join("rust"), "rs") {
            if mentions(&code(&text(&path)), &word) {
                let place = places.iter().find(|place| path.starts_with(root().join(place)));
                if place.is_none() {
                    let _ = writeln!(complaints, "  {}: {word} is not for it: {reason}", path.display());
                }
                used.extend(place);
            }
        }
        for place in places.iter().filter(|place| !used.contains(place)) {
            let _ = writeln!(complaints, "  the table lets {place} use {word}, which it never does");
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

/// Whether a Python source imports a package; `_core` is one of ours.
fn imports(source: &str, package: &str) -> bool {
    source.lines().map(str::trim).any(|line| {
        let module = line.strip_prefix("import ").or_else(|| line.strip_prefix("from "));
        module.is_some_and(|module| {
            if package == "_core" {
                mentions(module, "_core")
            } else {
                module.split([' ', '.', ',']).next() == Some(package)
            }
        })
    })
}

#[test]
fn python_packages_are_imported_where_the_table_says() {
    let (mut complaints, folder) = (String::new(), root().join("python/fastdecode"));
    for (package, places, reason) in only_in("in Python") {
        let importers: Vec<String> = files(&folder, "py")
            .into_iter()
            .filter(|path| imports(&text(path), &package))
            .map(|path| path.strip_prefix(&folder).expect("a path of the package").display().to_string())
            .collect();
        for path in importers.iter().filter(|path| !places.contains(path)) {
            let _ = writeln!(complaints, "  {path}: may not import {package}: {reason}");
        }
        for place in places.iter().filter(|place| !importers.contains(place)) {
            let _ = writeln!(complaints, "  the table lets {place} import {package}, which it never does");
        }
    }
    report(&complaints);
}

#[test]
fn every_python_module_has_its_row() {
    let folder = root().join("python/fastdecode");
    let modules: BTreeSet<String> = files(&folder, "py")
        .iter()
        .map(|path| path.strip_prefix(&folder).expect("a path of the package").display().to_string())
        .collect();
    let document = architecture();
    let rows = table(&document, "Python module");
    let (folders, listed): (BTreeSet<&str>, BTreeSet<&str>) =
        rows.iter().flat_map(|row| quoted(&row[0])).partition(|place| place.ends_with('/'));
    let alone: BTreeSet<&str> = modules
        .iter()
        .map(String::as_str)
        .filter(|path| !folders.iter().any(|f| path.starts_with(f)))
        .collect();
    assert_eq!(alone, listed, "modules of the package, and those of the table in ARCHITECTURE.md");
    for place in folders {
        assert!(folder.join(place).is_dir(), "{place} of the table in ARCHITECTURE.md is a folder");
    }
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
    assert!(imports("    from . import _core\n", "_core"), "an import of our own");
    assert!(imports("import torch.nn, os", "torch"), "a part of a package");
    assert!(!imports("from torchvision import x\n# import torch", "torch"), "another package");
}
