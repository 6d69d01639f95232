//! `barid roster`: shows, verifies and signs rosters, without a node or a network.
//!
//! In scope: reading files and printing the results. Out of scope: validity of a roster and its
//! signatures (`core::roster`); adopting a roster, which nodes do from each other.

mod show;
mod sign;
#[cfg(test)]
mod tests;
mod verify;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use barid_core::feed::note::VerifierKey;
use barid_core::limits::ROSTER_BYTES_MAX;
use barid_core::roster::{Draft, RosterError, Signer};
use clap::{Args, Subcommand};
use owo_colors::Style;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::failure::Field;
use super::{Context, Exit, Failure};

/// Arguments of `barid roster`.
#[derive(Debug, Args)]
pub(super) struct RosterArgs {
    #[command(subcommand)]
    command: RosterCommand,
}

/// Subcommands of `barid roster`.
#[derive(Debug, Subcommand)]
enum RosterCommand {
    /// Show members, keys and signers, without verifying the roster.
    Show(show::ShowArgs),
    /// Check whether a roster follows from the one you trust.
    Verify(verify::VerifyArgs),
    /// Sign a draft as one of the governors.
    Sign(sign::SignArgs),
}

pub(super) fn run(context: &Context, args: &RosterArgs) -> Result<Exit, Failure> {
    match &args.command {
        RosterCommand::Show(args) => show::run(context, args),
        RosterCommand::Verify(args) => verify::run(context, args),
        RosterCommand::Sign(args) => sign::run(context, args),
    }
}

/// Reads a file that may contain a roster: at most one byte more than a roster can have, so that a
/// larger file is recognised.
fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(ROSTER_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|error| Failure::usage("file-unreadable").path(path).because(&error))?;
    Ok(bytes)
}

/// Reads a signed roster, or a draft without signatures.
fn read(path: &Path) -> Result<Draft, Failure> {
    Draft::read(&read_file(path)?).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &RosterError) -> Failure {
    let failure = Failure::usage("roster-unreadable").path(path).because(error);
    match error {
        RosterError::Field { field, found, expected } => {
            failure.fields(vec![Field::new(field, format!("`{found}` is not {expected}"))])
        }
        RosterError::Twice { field, other, what } => {
            failure.fields(vec![Field::new(field, format!("the same {what} is in {other}"))])
        }
        RosterError::Note(_) | RosterError::Toml(_) => failure,
    }
}

/// Returns the roster's path in the profile, if there is a profile and it names one.
fn of_profile(context: &Context) -> Result<Option<PathBuf>, Failure> {
    Ok(context.profile_if_any()?.and_then(|profile| profile.roster))
}

/// Returns `2026-11-23T20:05:11Z`, or an empty text if the time is out of range.
fn rfc3339(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

fn key_json(key: &VerifierKey) -> Value {
    json!({
        "name": key.name(),
        "id": hex::encode(key.id()),
        "fingerprint": key.fingerprint().to_string(),
        "signatureType": key.algorithm().number(),
    })
}

fn signer_json(signer: &Signer) -> Value {
    json!({
        "name": signer.name,
        "id": hex::encode(signer.id),
        "valid": signer.valid,
        "governor": signer.own,
        "governorBefore": signer.before,
    })
}

/// Returns one line a signature, with its validity and the signer's role.
fn signer_lines(context: &Context, signers: &[Signer]) -> Vec<String> {
    let (messages, output) = (&context.messages, &context.output);
    let line = |signer: &Signer| {
        let (symbol, style, text_id) = match (signer.valid, signer.own, signer.before) {
            (Some(true), true, true) => ("✓", Style::new().green(), "signer-both"),
            (Some(true), true, false) => ("✓", Style::new().green(), "signer-own"),
            (Some(true), false, _) => ("✓", Style::new().green(), "signer-before"),
            (Some(false), ..) => ("✗", Style::new().red(), "signer-wrong"),
            (None, ..) => ("?", Style::new().yellow(), "signer-unknown"),
        };
        let key = messages.value(&format!("{}+{}", signer.name, hex::encode(signer.id)));
        format!("  {} {key} – {}", output.paint(symbol, style), messages.text(text_id))
    };
    signers.iter().map(line).collect()
}
