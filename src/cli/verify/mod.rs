//! `barid verify`: verifies an evidence file without a node, a network or a clock.
//!
//! In scope: reading the file and the trusted roster; the verdict as an exit code, as text for a
//! court and as JSON. Out of scope: the verification itself (`core::evidence`).

mod equivocation;
mod faults;
mod report;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use barid_core::bulletin::times::Time;
use barid_core::evidence::{EvidenceParts, Outcome, Report, Verdict, verify};
use barid_core::follow::{ENTRY_EQUIVOCATION_HEADING, EQUIVOCATION_HEADING};
use barid_core::ids::Member;
use barid_core::json::{Note, UNREPRESENTABLE};
use barid_core::limits::{EVIDENCE_BYTES_MAX, ROSTER_BYTES_MAX};
use barid_core::proto;
use barid_core::roster::{Roster, RosterChain};
use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};

use super::message::note;
use super::profile::Directory;
use super::render::{Reading, Render};
use super::{Context, Exit, Failure};

/// The file, and the trusted roster.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Evidence file; `-` reads standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Roster note that you trust; nothing else is trusted [default: the profile's].
    #[arg(long, value_name = "ROSTER")]
    roster: Option<PathBuf>,
}

/// A verified file.
struct Judged {
    /// Path of the trusted roster, as given.
    path: String,
    trusted: Roster,
    verdict: Verdict,
    /// The bulletin as a node would deliver it; empty if the file is not valid evidence.
    delivery: proto::Delivery,
}

/// Verifies the file and shows the verdict.
pub(super) fn run(context: &Context, args: &VerifyArgs) -> Result<Exit, Failure> {
    let path = match &args.roster {
        Some(path) => path.clone(),
        None => {
            let profile = context.profile_if_any()?;
            profile.and_then(|profile| profile.roster).ok_or_else(|| Failure::usage("no-roster"))?
        }
    };
    let trusted = trusted(&path)?;
    let file = read(&args.file, EVIDENCE_BYTES_MAX)?;
    if file.starts_with(EQUIVOCATION_HEADING.as_bytes()) {
        return equivocation::verify_checkpoints(context, &file, &trusted);
    }
    if file.starts_with(ENTRY_EQUIVOCATION_HEADING.as_bytes()) {
        return equivocation::verify_entries(context, &file, &trusted);
    }
    let verdict = verify(&file, &trusted);
    let delivery = verdict.report.as_ref().map(|report| delivery(&file, report)).unwrap_or_default();
    let judged = Judged { path: path.display().to_string(), trusted, verdict, delivery };
    if context.output.is_json() {
        context.output.json(&judged.json())?;
    } else {
        let own = judged.verdict.report.as_ref().map_or_else(unknown_member, |report| report.member.clone());
        let render = Render::new(context, Directory::with_roster(own, judged.trusted.clone()));
        context.output.lines(report::lines(context, &render, &judged))?;
    }
    Ok(match judged.verdict.outcome {
        Outcome::Witnessed => Exit::Ok,
        Outcome::SignedOnly => Exit::SignedOnly,
        Outcome::Disputed(_) => Exit::Disputed,
        Outcome::Undecided(_) => Exit::Undecided,
        Outcome::Invalid(_) => Exit::Invalid,
    })
}

/// Reads the trusted roster. Its governors' signatures are verified too, to detect a damaged copy.
fn trusted(path: &Path) -> Result<Roster, Failure> {
    let note = read(path, ROSTER_BYTES_MAX)?;
    let chain = RosterChain::start(&note);
    let chain = chain.map_err(|error| Failure::usage("roster-unusable").path(path).because(&error))?;
    Ok(chain.newest().clone())
}

/// Reads at most one byte more than the limit, so that the verifier rejects a larger file.
fn read(path: &Path, bytes_max: usize) -> Result<Vec<u8>, Failure> {
    let unreadable = |error: std::io::Error| Failure::usage("file-unreadable").path(path).because(&error);
    let reader: Box<dyn Read> = if path.as_os_str() == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::fs::File::open(path).map_err(unreadable)?)
    };
    let mut bytes = Vec::new();
    reader.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// Returns the bulletin of a file with a report.
fn delivery(file: &[u8], report: &Report) -> proto::Delivery {
    let envelope = EvidenceParts::read(file).map(|parts| parts.envelope).unwrap_or_default();
    proto::Delivery {
        feed: report.feed.to_string(),
        index: report.index,
        digest: Bytes::copy_from_slice(&report.digest.0),
        envelope,
        ..Default::default()
    }
}

/// Placeholder if no member is known.
fn unknown_member() -> Member {
    Member::from_str("x-unknown").expect("a member code")
}

impl Judged {
    /// Returns one object. Its terms and reasons are in English in every language.
    fn json(&self) -> Value {
        let outcome = &self.verdict.outcome;
        let mut object = json!({
            "result": outcome.as_str(),
            "exit": self.verdict.exit_code(),
            "trusted": {"roster": self.path, "version": self.trusted.version()},
        });
        let Some(fields) = object.as_object_mut() else { return object };
        if let Outcome::Invalid(error) | Outcome::Undecided(error) = outcome {
            fields.insert("reason".to_owned(), faults::in_english(error).into());
        }
        if let Outcome::Disputed(reasons) = outcome {
            let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
            fields.insert("disputes".to_owned(), reasons.into());
        }
        let Some(report) = &self.verdict.report else { return object };
        // A key can sign any number of seconds. A time outside the years 1 to 9999 is left out and
        // named in `notes`.
        let mut notes = Vec::new();
        let mut at = |time: u64, field: String| {
            let at = report::timestamp(time);
            let text = Time::from_proto(&at).map(|time| time.to_string());
            if text.is_none() {
                notes.push(note(&Note { note: UNREPRESENTABLE, field, raw: format!("{time} s") }));
            }
            text
        };
        let mut cosigners = Vec::new();
        for (n, one) in report.cosigners.iter().enumerate() {
            let reason = one.uncounted.map(|reason| reason.to_string());
            let counted = reason.is_none();
            cosigners.push(json!({
                "member": one.member.as_str(),
                "at": at(one.time, format!("cosigners[{n}].at")),
                "counted": counted,
                "uncounted": reason,
            }));
        }
        let mut custody = Vec::new();
        for (n, one) in report.custody.iter().enumerate() {
            let at = at(one.time, format!("custody[{n}].at"));
            custody.push(json!({"member": one.member.as_str(), "at": at, "keyValid": one.valid}));
        }
        let report_fields = json!({
            "member": report.member.as_str(),
            "id": report.id.to_string(),
            "issuer": report.issuer,
            "kind": report.kind,
            "topic": report.topic,
            "status": report.status,
            "sentAt": report.sent_at.map(|at| at.to_string()),
            "feed": report.feed.to_string(),
            "index": report.index,
            "digest": hex::encode(report.digest.0),
            "sizes": report.sizes,
            "cosigners": cosigners,
            "counted": report.counted,
            "quorum": report.quorum,
            "custody": custody,
            "rosterVersion": report.roster_version,
            "rostersTied": report.rosters_tied,
        });
        if let Value::Object(report_fields) = report_fields {
            fields.extend(report_fields);
        }
        if let Value::Object(mut reading) = Reading::new(&self.delivery).json() {
            if let Some(Value::Array(more)) = reading.remove("notes") {
                notes.extend(more);
            }
            fields.extend(["header", "body"].into_iter().filter_map(|part| reading.remove_entry(part)));
        }
        if !notes.is_empty() {
            fields.insert("notes".to_owned(), notes.into());
        }
        object
    }
}
