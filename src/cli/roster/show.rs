//! `barid roster show`: shows all content of a roster, for comparison with what the members agreed.

use std::path::PathBuf;

use barid_core::roster::{Draft, MemberEntry, MemberKey, MemberKind, Role, Roster};
use clap::Args;
use owo_colors::Style;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{key_json, of_profile, read, rfc3339, signer_json, signer_lines};
use crate::cli::messages::clean;
use crate::cli::table::{Cell, Table};
use crate::cli::{Context, Exit, Failure, localize, times};
use crate::clock;

/// The roster.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Roster, signed or a draft [default: the profile's].
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(super) fn run(context: &Context, args: &ShowArgs) -> Result<Exit, Failure> {
    let path = match &args.file {
        Some(path) => path.clone(),
        None => of_profile(context)?.ok_or_else(|| Failure::usage("no-roster-file"))?,
    };
    let draft = read(&path)?;
    if context.output.is_json() {
        context.output.json(&object(&draft))?;
    } else {
        context.output.lines(lines(context, &draft))?;
    }
    Ok(Exit::Ok)
}

fn object(draft: &Draft) -> Value {
    let roster = draft.roster();
    let signers: Vec<Value> = draft.signers(None).iter().map(signer_json).collect();
    json!({
        "exchange": roster.exchange().as_str(),
        "version": roster.version(),
        "textHash": roster.text_hash().to_string(),
        "previous": roster.previous().map(|hash| hash.to_string()),
        "issued": rfc3339(roster.issued()),
        "reviewBy": rfc3339(roster.review_by()),
        "quorum": roster.quorum(),
        "threshold": roster.threshold(),
        "governors": roster.governors().iter().map(key_json).collect::<Vec<_>>(),
        "workingGroups": roster.working_groups(),
        "members": roster.entries().map(member_object).collect::<Vec<_>>(),
        "signatures": signers,
    })
}

fn member_object(entry: &MemberEntry) -> Value {
    let key = |key: &MemberKey| {
        let mut object = json!({"role": key.role.as_str()});
        if let Role::Feed(epoch) = key.role {
            object["epoch"] = epoch.into();
        }
        if let (Value::Object(all), Value::Object(of_key)) = (&mut object, key_json(&key.key)) {
            all.extend(of_key);
        }
        object["fromVersion"] = key.from_version.into();
        object["retired"] = key.retired.map(rfc3339).into();
        object["compromised"] = key.compromised.into();
        object["countsUntil"] = key.until.map(rfc3339).into();
        object
    };
    let closed = entry.closed_feeds.iter();
    let closed = closed.map(|feed| json!({"epoch": feed.epoch, "size": feed.size, "root": feed.root.to_string()}));
    let authorities = entry.ca_certificates.iter().map(|pem| json!({"sha256": certificate(pem)}));
    let ceilings = entry.ceilings.iter().map(|(group, tlp)| (group.clone(), Value::from(tlp.as_str())));
    json!({
        "code": entry.code.as_str(),
        "kind": entry.kind.as_str(),
        "names": {"ar": entry.names.ar, "fr": entry.names.fr, "en": entry.names.en},
        "endpoints": entry.endpoints,
        "trustDomain": entry.trust_domain,
        "authorities": authorities.collect::<Vec<_>>(),
        "workingGroups": entry.working_groups,
        "ceilings": ceilings.collect::<serde_json::Map<_, _>>(),
        "keys": entry.keys.iter().map(key).collect::<Vec<_>>(),
        "closedFeeds": closed.collect::<Vec<_>>(),
    })
}

/// Returns the SHA-256 of a certificate in hex, as other tools show it; `None` if it cannot be
/// parsed.
fn certificate(pem: &str) -> Option<String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    Some(hex::encode(Sha256::digest(&der)))
}

fn lines(context: &Context, draft: &Draft) -> Vec<String> {
    let (messages, output) = (&context.messages, &context.output);
    let roster = draft.roster();
    let number = |n: usize| messages.isolate(&n.to_string());
    let day = |seconds| messages.value(&written(seconds));
    let heading = |id: &str| output.paint(&messages.text(id), Style::new().bold());
    let exchange = roster.exchange().as_str();
    let title = localize!(messages, "roster-heading", exchange = exchange, nVersion = roster.version());
    let mut lines = vec![output.paint(&title, Style::new().bold())];
    let groups: Vec<&str> = roster.working_groups().iter().map(String::as_str).collect();
    let previous = roster.previous().map(|hash| hash.to_string()).unwrap_or_default();
    let pair = |id: &str, value: String| (messages.text(id), value);
    lines.extend(output.block(&[
        pair("label-issued", day(roster.issued())),
        pair("label-review-by", day(roster.review_by())),
        pair("label-text-hash", messages.value(&roster.text_hash().to_string())),
        pair("label-previous", messages.value(&previous)),
        pair("label-quorum", number(roster.quorum())),
        pair("label-working-groups", messages.value(&groups.join(", "))),
    ]));
    if u64::try_from(roster.review_by()).unwrap_or(0) < clock::unix_seconds() {
        lines.push(output.paint(&messages.text("roster-overdue"), Style::new().yellow()));
    }
    lines.push(String::new());
    let (threshold, governors) = (roster.threshold(), roster.governors().len());
    lines.push(localize!(messages, "roster-governors", nThreshold = threshold, nGovernors = governors));
    lines.extend(governors_table(context, roster));
    lines.push(String::new());
    let signers = draft.signers(None);
    lines.push(heading(if signers.is_empty() { "roster-unsigned" } else { "roster-signatures" }));
    lines.extend(signer_lines(context, &signers));
    lines.push(String::new());
    lines.extend(members_table(context, roster));
    lines.push(String::new());
    lines.extend(keys_table(context, roster));
    lines.push(String::new());
    lines.push(messages.text("roster-show-next"));
    lines
}

/// Returns `2026-11-23 20:05:11 UTC`.
fn written(seconds: i64) -> String {
    times::seconds(Some(&prost_types::Timestamp { seconds, nanos: 0 }))
}

fn table(context: &Context, headings: &[&str]) -> Table {
    Table::new(headings.iter().map(|id| context.messages.text(id)))
}

fn governors_table(context: &Context, roster: &Roster) -> Vec<String> {
    let messages = &context.messages;
    let mut table = table(context, &["column-governor", "column-key-id", "column-fingerprint"]);
    for key in roster.governors() {
        let cells = [key.name().to_owned(), hex::encode(key.id()), key.fingerprint().to_string()];
        table.row(cells.map(|text| Cell::from(messages.value(&text))));
    }
    table.lines(&context.output)
}

fn members_table(context: &Context, roster: &Roster) -> Vec<String> {
    let messages = &context.messages;
    let mut table = table(context, &["column-peer", "column-kind", "column-endpoints", "column-groups"]);
    for entry in roster.entries() {
        let full: Vec<String> = entry.working_groups.iter().cloned().collect();
        let granted: Vec<String> =
            entry.ceilings.iter().map(|(group, tlp)| format!("{group} {}", tlp.as_str())).collect();
        let groups = if entry.kind == MemberKind::Full { full } else { granted };
        let endpoints = match entry.endpoints.as_slice() {
            [] => messages.text("endpoint-none"),
            endpoints => messages.value(&endpoints.join(", ")),
        };
        table.row([
            Cell::from(messages.isolate(&name(context, entry))),
            Cell::from(messages.term("member-kind", entry.kind.as_str())),
            Cell::from(endpoints),
            Cell::from(messages.value(&groups.join(", "))),
        ]);
    }
    table.lines(&context.output)
}

/// Returns `ne (Niger)`, clean.
fn name(context: &Context, entry: &MemberEntry) -> String {
    let names = &entry.names;
    clean(&format!("{} ({})", entry.code, context.messages.pick(&names.ar, &names.fr, &names.en)))
}

fn keys_table(context: &Context, roster: &Roster) -> Vec<String> {
    let messages = &context.messages;
    let headings = ["column-peer", "column-key-role", "column-key-id", "column-key-state", "column-fingerprint"];
    let mut table = table(context, &headings);
    for entry in roster.entries() {
        let code = || Cell::from(messages.value(entry.code.as_str()));
        for pem in &entry.ca_certificates {
            let (state, fingerprint) = match certificate(pem) {
                Some(fingerprint) => (String::new(), messages.value(&fingerprint)),
                None => (messages.text("key-state-unreadable"), String::new()),
            };
            let role = messages.term("key-role", "authority");
            table.row([code(), Cell::from(role), Cell::from(""), Cell::from(state), Cell::from(fingerprint)]);
        }
        for key in &entry.keys {
            let role = messages.term("key-role", key.role.as_str());
            let role = match key.role {
                Role::Feed(epoch) => format!("{role} {}", messages.isolate(&epoch.to_string())),
                _ => role,
            };
            table.row([
                code(),
                Cell::from(role),
                Cell::from(messages.value(&hex::encode(key.key.id()))),
                state(context, roster, entry, key),
                Cell::from(messages.value(&key.key.fingerprint().to_string())),
            ]);
        }
    }
    table.lines(&context.output)
}

fn state(context: &Context, roster: &Roster, entry: &MemberEntry, key: &MemberKey) -> Cell {
    let messages = &context.messages;
    let closed = entry.closed_feeds.iter().find(|closed| key.role == Role::Feed(closed.epoch));
    match (key.until, closed) {
        (Some(until), _) => {
            let id = if key.compromised { "key-state-compromised" } else { "key-state-retired" };
            let label = messages.text(id);
            let style = if key.compromised { Style::new().red() } else { Style::new().dimmed() };
            Cell::styled(format!("{label} {}", messages.value(&written(until))), style)
        }
        (None, Some(closed)) => Cell::from(localize!(messages, "key-state-closed", nSize = closed.size)),
        (None, None) if key.from_version > roster.version() => {
            Cell::from(localize!(messages, "key-state-later", nVersion = key.from_version))
        }
        (None, None) => Cell::styled(messages.text("key-state-in-force"), Style::new().green()),
    }
}
