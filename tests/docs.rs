//! Tests that the operator's guide lists every alarm and every audit event of the node.
//!
//! In scope: the tables of `docs/operator.md`. Out of scope: examples of formats
//! (`core/tests/formats`), and that every alarm has one of the reasons (`src/telemetry/alarms.rs`).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use barid::telemetry::alarms::REASONS;

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
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operator.md")).unwrap()
}

#[test]
fn alarms_are_documented() {
    let guide = operator_guide();
    let (_, rows) = guide.split_once("\n| `alarm` |").unwrap();
    let rows = rows.split("\n\n").next().unwrap().lines().map(|row| row.trim_start_matches("| |"));
    let documented = rows.flat_map(|row| row.split('|').next().unwrap().split('`').skip(1).step_by(2));
    assert_eq!(documented.collect::<BTreeSet<&str>>(), BTreeSet::from(REASONS));
}

#[test]
fn audit_events_are_documented() {
    let source_root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let guide = operator_guide();
    let (mut all, mut transport) = (Vec::new(), Vec::new());
    read_sources(&source_root, &mut all);
    read_sources(&source_root.join("transport"), &mut transport);
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
