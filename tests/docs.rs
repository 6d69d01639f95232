//! Tests that the documents match the source: paths, links, reasons of alarms, audit events and
//! settings that they name.
//!
//! In scope: `ARCHITECTURE.md`, `docs/operator.md`, `docs/tutorial.md`. Out of scope: examples of
//! formats (`core/tests/formats`), outputs of commands and metrics (`tests/black_box`), and that
//! every alarm has one of the reasons and a runbook (`src/telemetry/alarms.rs`).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use barid::telemetry::alarms::REASONS;

/// The pages whose links are checked.
const PAGES: [&str; 3] = ["ARCHITECTURE.md", "docs/operator.md", "docs/tutorial.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Returns the string literals right after `before`, in a text without white space.
fn literals_after<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.strip_prefix('"')?.split('"').next())
}

/// Adds every source file of a folder, without its white space.
fn read_sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(fs::read_to_string(path).unwrap().split_whitespace().collect());
        }
    }
}

fn operator_guide() -> String {
    read("docs/operator.md")
}

/// Returns the parts of a text in backticks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Returns the first cell of each row of a table that begins with code.
fn first_cells(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1))
}

/// Returns the anchor of a heading.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let letters = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    letters.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn paths_in_architecture_exist() {
    let text = read("ARCHITECTURE.md");
    let is_path_char = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
    let is_path = |span: &&str| {
        span.chars().all(is_path_char) && (span.contains('/') || span.ends_with(".md") || span.ends_with(".yml"))
    };
    let paths: BTreeSet<&str> = code_spans(&text).filter(is_path).collect();
    assert!(paths.len() > 80, "only {} paths were found: the test checks nothing", paths.len());
    let missing: Vec<&&str> = paths.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names {missing:?}");
}

#[test]
fn every_module_is_in_the_picture_of_the_layers() {
    let picture = read("docs/images/layers.svg");
    let mut modules = BTreeSet::from(["rpc".to_owned(), "core".to_owned(), "sim".to_owned()]);
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() || path.extension().is_some_and(|ending| ending == "rs") {
            modules.insert(path.file_stem().unwrap().to_str().unwrap().to_owned());
        }
    }
    for name in ["lib", "main"] {
        modules.remove(name);
    }
    let missing: Vec<&String> = modules.iter().filter(|name| !picture.contains(&format!(">{name}</text>"))).collect();
    assert!(missing.is_empty(), "docs/images/layers.svg lacks {missing:?}");
}

#[test]
fn links_lead_somewhere() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for page in PAGES {
        let text = read(page);
        let folder = root().join(page).parent().unwrap().to_owned();
        for target in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { root().join(page) } else { folder.join(path) };
            let has_anchor = |text: String| text.lines().any(|line| line.starts_with('#') && anchor(line) == fragment);
            count += 1;
            if !path.exists() || !fragment.is_empty() && !fs::read_to_string(&path).is_ok_and(has_anchor) {
                wrong.push(format!("{page}: {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 50, "only {count} links were found: the test checks nothing");
}

#[test]
fn alarms_are_documented() {
    let guide = operator_guide();
    let (_, rows) = guide.split_once("\n| `alarm` |").unwrap();
    let rows = rows.split("\n\n").next().unwrap().lines().map(|row| row.trim_start_matches("| |"));
    let documented = rows.flat_map(|row| code_spans(row.split('|').next().unwrap()));
    assert_eq!(documented.collect::<BTreeSet<&str>>(), BTreeSet::from(REASONS));
}

#[test]
fn audit_events_are_documented() {
    let guide = operator_guide();
    let (mut all, mut transport) = (Vec::new(), Vec::new());
    read_sources(&root().join("src"), &mut all);
    read_sources(&root().join("src/transport"), &mut transport);
    let mut events = BTreeSet::from(["alarm", "alarm-cleared", "log-lines-dropped"]);
    for source in &all {
        events.extend(literals_after(source, "AuditEvent{event:"));
        events.extend(literals_after(source, "AuditEvent{event,reason:"));
    }
    for before in ["Rejection::new(", "reject("] {
        events.extend(transport.iter().flat_map(|source| literals_after(source, before)));
    }
    assert!(events.len() > 35, "only {events:?}: the test checks nothing");
    let missing: Vec<&&str> = events.iter().filter(|event| !guide.contains(&format!("`{event}`"))).collect();
    assert!(missing.is_empty(), "docs/operator.md lacks {missing:?}");
}

/// Every guarantee in the README names the test that holds it.
#[test]
fn tests_named_in_readme_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let mut stories = Vec::new();
    read_sources(&root.join("tests/black_box"), &mut stories);
    let is_name = |text: &&str| {
        text.matches('_').count() >= 3 && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let named: Vec<&str> = readme.split('`').skip(1).step_by(2).filter(is_name).collect();
    assert!(named.len() > 10, "only {named:?}: the test checks nothing");
    for name in named {
        assert!(stories.iter().any(|story| story.contains(&format!("fn{name}("))), "README.md names {name}");
    }
}

#[test]
fn every_key_of_the_configuration_is_documented() {
    let example: toml::Table = toml::from_str(&read("src/node.example.toml")).unwrap();
    let mut keys: BTreeSet<String> = example.keys().cloned().collect();
    let metrics = example["metrics"].as_table().unwrap();
    keys.extend(metrics.keys().map(|key| format!("metrics.{key}")));
    let guide = operator_guide();
    let (_, section) = guide.split_once("\n### Configuration\n").unwrap();
    let section = section.split("\n### ").next().unwrap();
    let documented: BTreeSet<String> = first_cells(section).flat_map(code_spans).map(str::to_owned).collect();
    assert_eq!(documented, keys);
}

#[test]
fn anchors_are_made_of_headings() {
    assert_eq!(anchor("### The stored fork is not the governors'"), "the-stored-fork-is-not-the-governors");
}
