//! Tests the structure of the source: layers, what `core` must not do, the size of files, and the
//! vocabulary of `CONTRIBUTING.md`.
//!
//! In scope: what the text of the source files shows. Paths from `crate::` and `super::` count as
//! imports, in all code but tests. Out of scope: crates; `core` is a crate of its own, so the
//! compiler keeps it from importing the node.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers of one folder. A module imports from lower layers only.
struct Layers {
    folder: &'static str,
    /// Path of the folder's modules in code.
    path: &'static str,
    /// Whether modules of one layer may import each other.
    siblings: bool,
    /// Modules, lowest layer first. A new module of the folder needs a place here.
    modules: &'static [&'static [&'static str]],
}

/// In `src`: `core` below `store` below `committer` below `exchange` and `api`; `app` above them;
/// `cli` on top.
const LAYERS: &[Layers] = &[
    Layers {
        folder: "src",
        path: "crate::",
        siblings: false,
        modules: &[
            &["budgets", "error_chain", "clock", "random"],
            &["low_priority", "codec", "files", "rpc", "telemetry"],
            &["access", "roster_store", "store", "transport"],
            &["calls", "config"],
            &["committer", "pki"],
            &["exchange", "api"],
            &["app"],
            &["cli"],
        ],
    },
    Layers {
        folder: "core/src",
        path: "crate::",
        siblings: true,
        modules: &[
            &["limits", "ranges"],
            &["bulletin", "certificate", "envelope", "feed", "follow", "ids", "json", "proto", "roster"],
            &["backfill", "evidence", "priority", "quota", "serve", "upstream"],
        ],
    },
    Layers {
        folder: "core/src/bulletin",
        path: "crate::bulletin::",
        siblings: true,
        modules: &[
            &["countries", "text", "times"],
            &["field", "rules"],
            &["geo", "topic", "vocabulary"],
            &["body", "header", "kinds", "priority"],
            &["audience", "prepare", "state"],
        ],
    },
    Layers {
        folder: "core/src/feed",
        path: "crate::feed::",
        siblings: true,
        modules: &[
            &["key", "tree"],
            &["note", "partial_proofs", "text", "timestamped"],
            &["checkpoint"],
            &["cosignature", "custody", "tlog_proof"],
        ],
    },
    Layers {
        folder: "src/store/log",
        path: "crate::store::log::",
        siblings: true,
        modules: &[&["bit_flip", "record"], &["segment", "tail_hint"], &["scan"], &["repair"]],
    },
    Layers {
        folder: "src/store/index_db",
        path: "crate::store::index_db::",
        siblings: true,
        modules: &[&["acks", "backfills", "columns", "ids", "priorities", "references"], &["apply", "query"]],
    },
    Layers {
        folder: "src/committer",
        path: "crate::committer::",
        siblings: true,
        modules: &[
            &["bulletins", "completions", "high_water_mark", "metrics", "queue"],
            &["attestations", "disk_space", "epoch", "replicated_appends", "writer"],
            &["priority", "scheduler", "work"],
        ],
    },
    Layers {
        folder: "src/exchange",
        path: "crate::exchange::",
        siblings: true,
        modules: &[
            &["cancellation", "congestion_window", "findings", "frame_budget", "stopped_feeds", "tree_heads"],
            &["announcements", "backfill_schedule", "custody", "equivocation", "feed_receiver", "feed_sender"],
            &["roster_sync", "self_recovery", "upstream"],
            &["backfill", "link", "note_verifier", "priority", "receiver", "relayed_custody", "send_queue", "sender"],
            &["conversation", "dial", "fetch", "peers", "service"],
        ],
    },
    Layers {
        folder: "src/api",
        path: "crate::api::",
        siblings: true,
        modules: &[
            &["cursor", "methods"],
            &["audit", "caller", "errors", "stored_wait"],
            &["bulletin_state", "filter", "rate_limit", "receipts", "subscriptions", "visibility"],
            &["health", "history", "operator", "publish", "reflection", "subscribe"],
            &["focal_point"],
        ],
    },
    Layers {
        folder: "src/transport",
        path: "crate::transport::",
        siblings: true,
        modules: &[
            &["handshakes", "limits", "peeked_stream", "rejection"],
            &["compression", "meter", "trust"],
            &["credentials", "revocation", "verify"],
            &["connections", "dial", "listener"],
        ],
    },
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

/// Words that no identifier contains: the vocabulary has a term of the field for each.
const REJECTED: &str = "
    told tell tells say says said word words speak speaks spoken heed refuse refused refuses refusal
    keep keeps kept drain drained answer answers answered debt debts owe owes owed doubt mark marks
    mended mend wound arrival arrivals edge edges frontier express urgent fill fills filled gap gaps
    asked stand stands standing ways follower followers outlet provider outbox pace paced hidden
    shown view views figures due over desk company heard hear";

/// Terms that contain such a word, in lower case with underscores, each with its reason.
const TERMS: &[(&str, &str)] = &[
    ("high_water_mark", "the vocabulary's own: epoch, size and root beside the keys"),
    ("byte_order_mark", "U+FEFF at the beginning of a text"),
    ("keep_alive", "of HTTP/2 and TCP, in the names of hyper and tonic too"),
    ("connection_refused", "of std::io::ErrorKind"),
    ("over_budget", "more than a budget allows"),
    ("over_quota", "more than a share of the disk allows"),
    ("over_share", "the same, as operator.proto names it"),
];

/// Whole identifiers that may contain such a word: name, beginning of the file's path, reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("CryptoProvider", "", "rustls"),
    ("builder_with_provider", "", "rustls"),
    ("default_provider", "", "rustls"),
    ("provider", "", "a CryptoProvider of rustls"),
    ("mark_changed", "", "tokio::sync::watch"),
    ("mark_unchanged", "", "tokio::sync::watch"),
    ("drain", "", "Vec::drain"),
    ("fill", "", "slice::fill and getrandom::fill"),
    ("filled", "src/transport/", "tokio::io::ReadBuf"),
    ("hidden", "src/exchange/mod.rs", "#[doc(hidden)]"),
    ("Refused", "core/src/bulletin/vocabulary.rs", "an outcome of an acknowledgement on the wire"),
    ("Gap", "", "the fault `gap` on the wire; in a chain of rosters, a missing version"),
    ("RosterGap", "", "the same in evidence"),
    ("distinguishing_marks", "", "a field of person notices, in the terms of the police"),
    ("keep", "src/cli/demo/", "the option --keep"),
    ("keep_local_fork", "", "the option --keep-local-fork"),
];

/// One file without comments and test code. Removed text is replaced by blank lines, so that line
/// numbers stay.
struct Source {
    path: PathBuf,
    text: String,
}

impl Layers {
    fn layer(&self, module: &str) -> Option<usize> {
        self.modules.iter().position(|layer| layer.contains(&module))
    }

    fn may_import(&self, own: usize, other: usize) -> bool {
        other < own || self.siblings && other == own
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Adds the files below a folder that have this extension.
fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() && !path.ends_with("target") {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|ending| ending == extension) {
            found.push(path);
        }
    }
}

/// Returns every file under `folder` that does not only contain test code.
fn sources(folder: &Path) -> Vec<Source> {
    let mut paths = Vec::new();
    files(folder, "rs", &mut paths);
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

/// Returns the modules right below `path` that a file names, each with its line. `depth` is the
/// number of modules between `path` and the file's items.
fn named(text: &str, path: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let from_file = "super::".repeat(depth);
    for start in [path, from_file.as_str()] {
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
    let name = |text: &str| text.chars().take_while(|c| is_identifier_part(*c)).collect::<String>();
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let (mut depth, mut heads, mut fresh) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && is_identifier_part(c) => {
                heads.push(name(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    heads
}

fn is_identifier_part(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns the identifiers of Rust or Protocol Buffers code, each with the byte offset where it
/// begins. Comments, strings, characters and lifetimes are skipped.
fn identifiers(text: &str) -> Vec<(usize, &str)> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        at += match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment_len(rest),
            '"' => string_len(rest),
            '\'' => character_or_lifetime_len(rest),
            _ if is_identifier_part(c) => {
                let len = rest.find(|c| !is_identifier_part(c)).unwrap_or(rest.len());
                let (name, after) = rest.split_at(len);
                match raw_string_len(after).filter(|_| ["r", "br", "cr"].contains(&name)) {
                    Some(raw_len) => len + raw_len,
                    None if c.is_ascii_digit() => len,
                    None => {
                        found.push((at, name));
                        len
                    }
                }
            }
            _ => c.len_utf8(),
        };
    }
    found
}

/// Comments of this form nest.
fn block_comment_len(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while let Some(c) = rest[at..].chars().next() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                break;
            }
        } else {
            at += c.len_utf8();
        }
    }
    at
}

fn string_len(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// `rest` begins after the `r` of a raw string, if it is one.
fn raw_string_len(rest: &str) -> Option<usize> {
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    let content = rest[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(hashes + 1 + content.find(&end)? + end.len())
}

fn character_or_lifetime_len(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((at, escaped))) => {
            let from = at + escaped.len_utf8();
            rest[from..].find('\'').map_or(rest.len(), |end| from + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1 + rest[1..].find(|c| !is_identifier_part(c)).unwrap_or(rest.len() - 1),
    }
}

/// Splits an identifier into words of lower case: `HTTPServer_2` gives http, server and 2.
fn split(identifier: &str) -> Vec<String> {
    let chars: Vec<char> = identifier.chars().collect();
    let mut parts = vec![String::new()];
    for (at, c) in chars.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| chars[before]);
        let after = chars.get(at + 1);
        let begins_part = before.is_some_and(|before| {
            before.is_ascii_digit() != c.is_ascii_digit()
                || c.is_uppercase() && (before.is_lowercase() || after.is_some_and(|after| after.is_lowercase()))
        });
        if *c == '_' || begins_part {
            parts.push(String::new());
        }
        if *c != '_' {
            parts.last_mut().unwrap().extend(c.to_lowercase());
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Returns the rejected words of an identifier outside terms, and its terms.
fn rejected_parts(identifier: &str, rejected: &BTreeSet<&str>) -> (Vec<String>, Vec<&'static str>) {
    let mut joined = format!("_{}_", split(identifier).join("_"));
    let mut terms = Vec::new();
    for (term, _) in TERMS {
        let delimited = format!("_{term}_");
        if joined.contains(&delimited) {
            joined = joined.replace(&delimited, "_");
            terms.push(*term);
        }
    }
    (joined.split('_').filter(|part| rejected.contains(part)).map(str::to_owned).collect(), terms)
}

#[test]
fn modules_import_lower_layers_only() {
    let (mut wrong, mut imports) = (Vec::new(), 0);
    for layers in LAYERS {
        let (name, folder) = (layers.folder, root().join(layers.folder));
        // Of all modules in the tables only this one has no file: it is generated.
        let mut seen = BTreeSet::from(["rpc".to_owned()]);
        for Source { path, text } in &sources(&folder) {
            let below = path.strip_prefix(&folder).unwrap();
            let parts: Vec<&str> = below.iter().map(|part| part.to_str().unwrap()).collect();
            let module = parts[0].trim_end_matches(".rs");
            if ["lib", "main", "mod"].contains(&module) {
                continue;
            }
            let Some(own) = layers.layer(module) else {
                wrong.push(format!("{name}: give `{module}` a layer in tests/architecture.rs"));
                continue;
            };
            seen.insert(module.to_owned());
            let depth = parts.len() - usize::from(parts.ends_with(&["mod.rs"]));
            for (line, named) in named(text, layers.path, depth) {
                let Some(other) = layers.layer(&named).filter(|_| named != module) else { continue };
                imports += 1;
                if !layers.may_import(own, other) {
                    wrong.push(format!("{name}/{}:{line}: `{module}` must not use `{named}`", below.display()));
                }
            }
        }
        let gone = layers.modules.iter().copied().flatten().filter(|module| !seen.contains(**module));
        wrong.extend(gone.map(|module| format!("{name}: `{module}` is no module any more")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(imports > 500, "only {imports} imports were found: the test checks nothing");
}

/// At 450 lines of code a file should be split; this is the hard limit. Comments are not counted.
#[test]
fn files_stay_below_lines_max() {
    const LINES_MAX: usize = 540;
    for folder in ["src", "core/src", "sim/src"] {
        for Source { path, text } in sources(&root().join(folder)) {
            let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
            let lines = text.lines().filter(is_code).count();
            assert!(lines <= LINES_MAX, "{} has {lines} lines of code before its tests", path.display());
        }
    }
}

#[test]
fn core_is_pure() {
    let core = root().join("core");
    let sources = sources(&core.join("src"));
    assert!(sources.len() > 40, "only {} files were found", sources.len());
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
fn only_the_index_database_uses_sled() {
    let users = sources(&root().join("src")).into_iter().filter(|source| source.text.contains("sled::"));
    let users: Vec<PathBuf> = users.map(|source| source.path).collect();
    assert!(!users.is_empty(), "the test checks nothing");
    let index_db = root().join("src/store/index_db");
    assert!(users.iter().all(|path| path.starts_with(&index_db)), "{users:?}");
}

#[test]
fn identifiers_use_the_vocabulary() {
    let mut paths = vec![root().join("build.rs")];
    let folders = [("core", "rs"), ("src", "rs"), ("sim", "rs"), ("tests", "rs"), ("fuzz", "rs"), ("proto", "proto")];
    for (folder, extension) in folders {
        files(&root().join(folder), extension, &mut paths);
    }
    let rejected: BTreeSet<&str> = REJECTED.split_whitespace().collect();
    let (mut wrong, mut used, mut count) = (Vec::new(), BTreeSet::new(), 0);
    for path in paths {
        let file = path.strip_prefix(root()).unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for (at, identifier) in identifiers(&text) {
            count += 1;
            let (parts, terms) = rejected_parts(identifier, &rejected);
            used.extend(terms);
            if parts.is_empty() {
                continue;
            }
            match EXCEPTIONS.iter().find(|(name, start, _)| *name == identifier && file.starts_with(start)) {
                Some((name, ..)) => _ = used.insert(*name),
                None => {
                    let line = text[..at].matches('\n').count() + 1;
                    wrong.push(format!("{file}:{line}: `{identifier}`: another word for {}", parts.join(", ")));
                }
            }
        }
    }
    let exceptions = || TERMS.iter().map(|(term, _)| *term).chain(EXCEPTIONS.iter().map(|(name, ..)| *name));
    println!("{count} identifiers, {} exceptions", exceptions().count());
    assert!(wrong.is_empty(), "see the vocabulary in CONTRIBUTING.md\n{}", wrong.join("\n"));
    let unused: Vec<&str> = exceptions().filter(|name| !used.contains(name)).collect();
    assert!(unused.is_empty(), "exceptions without use: {unused:?}");
    assert!(count > 100_000, "only {count} identifiers were found: the test checks nothing");
}

#[test]
fn architecture_checks_detect_violations() {
    let text = "use crate::{app, store::{Store, keys}};\n// crate::cli\n    crate::exchange::go();\n\
                use super::super::api;\npub(in crate::store) fn f() {}\n#[cfg(test)]\nmod tests {\n    \
                use crate::cli;\n}\nuse crate::pki;\n#[cfg(test)]\npub(crate) mod more_tests;\n";
    let (code_only, modules) = without_tests(text);
    assert_eq!(modules, ["more_tests"]);
    let expected = [(1, "app"), (1, "store"), (3, "exchange"), (5, "store"), (10, "pki"), (4, "api")];
    let found = named(&code_only, "crate::", 2);
    assert_eq!(found.iter().map(|(line, name)| (*line, name.as_str())).collect::<Vec<_>>(), expected);
}

#[test]
fn vocabulary_check_reads_code_only() {
    let text = r###"
        fn a<'word>(b: &'word str) { /* told /* said */ heard */ } // view
        let c = ["say \" word", 'x', '"', '\'', '\u{1b}', r"gap\", br##"edge "# edge"##, b"due", 1_over];
        let r#type = HTTPServer::keep_alive2(over_quotas);"###;
    let found: Vec<&str> = identifiers(text).into_iter().map(|(_, name)| name).collect();
    let expected =
        ["fn", "a", "b", "str", "let", "c", "b", "let", "r", "type", "HTTPServer", "keep_alive2", "over_quotas"];
    assert_eq!(found, expected);
    assert_eq!(split("HTTPServer_toldUsAll2"), ["http", "server", "told", "us", "all", "2"]);
    let rejected = BTreeSet::from(["keep", "over"]);
    assert_eq!(rejected_parts("KeepAliveWait", &rejected), (vec![], vec!["keep_alive"]));
    assert_eq!(rejected_parts("over_quotas", &rejected), (vec!["over".to_owned()], vec![]));
}
