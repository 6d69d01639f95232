//! Tests that the operator's guide lists every audit record that the node makes.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Returns the string literals right after `before`, in a text without white space.
fn literals_after<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.strip_prefix('"')?.split('"').next())
}

fn read_sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("papers.rs") {
            found.push(fs::read_to_string(path).unwrap().split_whitespace().collect());
        }
    }
}

#[test]
fn alarms_are_initialized_and_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = fs::read_to_string(root.join("docs/operator.md")).unwrap();
    let (_, rows) = guide.split_once("\n| `alarm` |").unwrap();
    let rows = rows.split("\n\n").next().unwrap().lines().map(|row| row.trim_start_matches("| |"));
    let reasons = rows.flat_map(|row| row.split('|').next().unwrap().split('`').skip(1).step_by(2));
    let explained: BTreeSet<&str> = reasons.collect();
    assert_eq!(explained, BTreeSet::from(crate::telemetry::alarms::REASONS));
    let made: BTreeSet<&str> =
        crate::telemetry::alarms::examples().iter().map(crate::telemetry::alarms::Alarm::reason).collect();
    assert_eq!(made, explained);
}

#[test]
fn audit_events_are_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = fs::read_to_string(root.join("docs/operator.md")).unwrap();
    let (mut all, mut transport) = (Vec::new(), Vec::new());
    read_sources(&root.join("src"), &mut all);
    read_sources(&root.join("src/transport"), &mut transport);
    let mut events = BTreeSet::from(["alarm", "alarm-cleared", "log-lines-dropped"]);
    for source in &all {
        events.extend(literals_after(source, "AuditEvent{event:"));
        events.extend(literals_after(source, "AuditEvent{event,reason:"));
    }
    for before in ["Rejection::new(", "refuse("] {
        events.extend(transport.iter().flat_map(|source| literals_after(source, before)));
    }
    assert!(events.len() > 25, "only {events:?}: the test checks nothing");
    let missing: Vec<&&str> = events.iter().filter(|event| !guide.contains(&format!("`{event}`"))).collect();
    assert!(missing.is_empty(), "docs/operator.md lacks {missing:?}");
}
