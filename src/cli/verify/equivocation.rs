//! Verifies files that prove an equivocation.

use barid_core::follow::{EntryEquivocation, Equivocation, EquivocationError};
use barid_core::roster::Roster;
use serde_json::json;

use crate::cli::{Context, Exit, Failure, localize, proof_errors};

/// Verifies two checkpoints of one feed with the trusted roster.
pub(super) fn verify_checkpoints(context: &Context, file: &[u8], trusted: &Roster) -> Result<Exit, Failure> {
    let (messages, output) = (&context.messages, &context.output);
    let found = match Equivocation::verify(file, trusted) {
        Ok(found) => found,
        Err(error) => return invalid(context, &error),
    };
    let feed = found.feed().to_string();
    let (smaller, larger) = (&found.smaller.checkpoint, &found.larger.checkpoint);
    if output.is_json() {
        output.json(&json!({
            "result": "equivocation", "exit": Exit::Equivocation as u8, "feed": feed, "size": smaller.size,
            "roots": [smaller.root.to_string(), found.other_root.to_string()], "largerSize": larger.size,
            "trusted": {"version": trusted.version()},
        }))?;
    } else {
        output.lines([
            localize!(messages, "verify-equivocation", feed = &feed, nEntries = smaller.size),
            messages.value(&smaller.root.to_string()),
            messages.value(&found.other_root.to_string()),
            messages.text("verify-equivocation-meaning"),
        ])?;
    }
    Ok(Exit::Equivocation)
}

/// Verifies two entries at the same index of one feed with the trusted roster.
pub(super) fn verify_entries(context: &Context, file: &[u8], trusted: &Roster) -> Result<Exit, Failure> {
    let (messages, output) = (&context.messages, &context.output);
    let found = match EntryEquivocation::verify(file, trusted) {
        Ok(found) => found,
        Err(error) => return invalid(context, &error),
    };
    let feed = found.feed().to_string();
    let digests = [&found.one, &found.other].map(|entry| entry.digest.to_string());
    if output.is_json() {
        output.json(&json!({
            "result": "equivocation", "exit": Exit::Equivocation as u8, "feed": feed, "index": found.index,
            "digests": digests, "trusted": {"version": trusted.version()},
        }))?;
    } else {
        let [one, other] = &digests;
        output.lines([
            localize!(messages, "verify-entry-equivocation", feed = &feed, nIndex = found.index),
            messages.value(one),
            messages.value(other),
            messages.text("verify-equivocation-meaning"),
        ])?;
    }
    Ok(Exit::Equivocation)
}

fn invalid(context: &Context, error: &EquivocationError) -> Result<Exit, Failure> {
    let (messages, output) = (&context.messages, &context.output);
    if output.is_json() {
        output.json(&json!({"result": "invalid", "exit": Exit::Invalid as u8, "reason": error.to_string()}))?;
    } else {
        let reason = proof_errors::equivocation(messages, error).map(|reason| messages.isolate(&reason));
        let reason = reason.unwrap_or_else(|| messages.value(&error.to_string()));
        output.lines([messages.text("verify-invalid"), reason])?;
    }
    Ok(Exit::Invalid)
}
