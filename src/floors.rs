//! Tests the layers of the architecture: `core` below `store` below `committer` below `exchange`
//! and `api`; `app` above them; `cli` on top. A module imports from lower layers only; modules of
//! one layer do not import each other.
//!
//! In scope: paths from `crate::` and `super::` in all code but tests, and what `core` must not
//! name. Out of scope: crates; `core` is a crate of its own, so the compiler keeps it from
//! importing the node.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the node, lowest layer first. A new top-level module needs a place here.
const LAYERS: [&[&str]; 9] = [
    &["budgets", "error_chain", "clock", "random"],
    &["low_priority", "codec", "files", "rpc", "telemetry"],
    &["access", "roster_store", "store", "transport"],
    &["calls", "config"],
    &["committer", "pki"],
    &["exchange", "api"],
    &["app"],
    &["bench"],
    &["cli"],
];

/// What `core` must not name: time, randomness and all I/O come as arguments.
const NOT_IN_CORE: [&str; 11] = [
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "ToSocketAddrs",
    "std::env",
    "std::process",
    "std::thread",
    "std::time::SystemTime",
    "std::time::Instant",
    "SystemTime::now",
    "Instant::now",
];

/// What `core` must not depend on, by the beginning of the crate's name.
const NOT_UNDER_CORE: [&str; 12] = [
    "tokio",
    "tonic",
    "sled",
    "rustls",
    "hyper",
    "futures",
    "async",
    "rand",
    "getrandom",
    "chrono",
    "tracing",
    "tempfile",
];

/// One file without comments and test code. Removed text is replaced by blank lines, so that line
/// numbers stay.
struct Source {
    path: PathBuf,
    text: String,
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// Returns every file under `root` that does not only contain test code.
fn sources(root: &Path) -> Vec<Source> {
    let mut paths = Vec::new();
    rust_files(root, &mut paths);
    let mut tests = BTreeSet::new();
    let mut sources = Vec::new();
    for path in paths {
        let folder = match path.file_name().unwrap().to_str().unwrap() {
            "mod.rs" | "lib.rs" | "main.rs" => path.parent().unwrap().to_owned(),
            _ => path.with_extension(""),
        };
        let (text, modules) = without_tests(&fs::read_to_string(&path).unwrap());
        for module in modules {
            tests.insert(folder.join(format!("{module}.rs")));
            tests.insert(folder.join(module));
        }
        sources.push(Source { path, text });
    }
    sources.retain(|source| !source.path.ancestors().any(|path| tests.contains(path)));
    sources
}

/// Blanks comments and items under `#[cfg(test)]`. Also returns the test modules that are files of
/// their own. The code is formatted by rustfmt: a block ends at the first closing brace with the
/// indentation of its first line.
fn without_tests(text: &str) -> (String, Vec<String>) {
    let (mut code_only, mut modules) = (String::new(), Vec::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let code = line.split("//").next().unwrap_or_default();
        if line.trim() != "#[cfg(test)]" {
            code_only.push_str(code);
            code_only.push('\n');
            continue;
        }
        code_only.push('\n');
        let indentation = line.len() - line.trim_start().len();
        for line in lines.by_ref() {
            code_only.push('\n');
            let item = line.trim();
            let ends_block = line.len() - line.trim_start().len() == indentation && item.starts_with('}');
            if let Some(module) = item.strip_suffix(';').and_then(|item| item.rsplit_once("mod ")) {
                if line.len() - line.trim_start().len() == indentation {
                    modules.push(module.1.to_owned());
                    break;
                }
            } else if ends_block || (item.ends_with([';', ',']) && line.len() - item.len() == indentation) {
                break;
            }
        }
    }
    (code_only, modules)
}

/// Returns the top-level modules that a file names, each with its line. `depth` is the number of
/// modules above its items.
fn named(text: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let to_root = "super::".repeat(depth);
    for start in ["crate::", to_root.as_str()] {
        if start.is_empty() {
            continue;
        }
        for (at, _) in text.match_indices(start) {
            let before = text[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$' || c == ':') {
                continue;
            }
            let line = text[..at].matches('\n').count() + 1;
            found.extend(heads(&text[at + start.len()..]).into_iter().map(|head| (line, head)));
        }
    }
    found
}

/// Returns the first names of a path or a group of paths: `a::b` gives a; `{a, b::{c, d}}` gives a
/// and b.
fn heads(rest: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let (mut depth, mut heads, mut fresh) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && (c.is_alphanumeric() || c == '_') => {
                heads.push(name(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    heads
}

#[test]
fn modules_import_lower_layers_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut imports = 0;
    for Source { path, text } in sources(&root) {
        let below = path.strip_prefix(&root).unwrap();
        let parts: Vec<&str> = below.iter().map(|part| part.to_str().unwrap()).collect();
        let module = parts[0].trim_end_matches(".rs");
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let Some(own) = layer(module) else {
            wrong.push(format!("src/{}: give `{module}` a floor in src/floors.rs", below.display()));
            continue;
        };
        let depth = parts.len() - usize::from(parts.ends_with(&["mod.rs"]));
        for (line, named) in named(&text, depth) {
            match layer(&named) {
                Some(other) if named != module => {
                    imports += 1;
                    if other >= own {
                        wrong.push(format!("src/{}:{line}: `{module}` must not use `{named}`", below.display()));
                    }
                }
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(imports > 50, "only {imports} imports were found: the test checks nothing");
}

/// At 500 lines a file should be split; this is the hard limit.
#[test]
fn files_stay_below_lines_max() {
    const LINES_MAX: usize = 600;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["src", "core/src", "sim/src"] {
        for Source { path, text } in sources(&root.join(folder)) {
            let lines = text.trim_end().lines().count();
            assert!(lines <= LINES_MAX, "{} has {lines} lines before its tests", path.display());
        }
    }
}

#[test]
fn core_is_pure() {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("core");
    let sources = sources(&core.join("src"));
    assert!(sources.len() > 40, "only {} files were seen", sources.len());
    for Source { path, text } in sources {
        for (line, number) in text.lines().zip(1..) {
            let found = NOT_IN_CORE.iter().find(|name| line.contains(**name));
            assert!(found.is_none(), "{}:{number}: core must not use {}", path.display(), found.unwrap());
        }
    }
    let manifest: toml::Table = toml::from_str(&fs::read_to_string(core.join("Cargo.toml")).unwrap()).unwrap();
    for name in manifest["dependencies"].as_table().unwrap().keys() {
        assert!(!NOT_UNDER_CORE.iter().any(|not| name.starts_with(not)), "core must not depend on {name}");
    }
}

#[test]
fn architecture_checks_detect_violations() {
    let text = "use crate::{app, store::{Store, keys}};\n// crate::cli\n    crate::exchange::go();\nuse super::super::api;\n\
                pub(in crate::store) fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::cli;\n}\nuse crate::pki;\n\
                #[cfg(test)]\npub(crate) mod more_tests;\n";
    let (code_only, modules) = without_tests(text);
    assert_eq!(modules, ["more_tests"]);
    let expected = [(1, "app"), (1, "store"), (3, "exchange"), (5, "store"), (10, "pki"), (4, "api")];
    let found = named(&code_only, 2);
    assert_eq!(found.iter().map(|(line, name)| (*line, name.as_str())).collect::<Vec<_>>(), expected);
}
