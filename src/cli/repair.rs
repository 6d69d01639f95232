//! `barid repair`: finds and repairs damage in a stopped node's store.
//!
//! In scope: arguments and text. Out of scope: the repair itself (`app`).

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{Context, Exit, Failure, localize};
use crate::app::{self, AppError, RepairOutcome};
use crate::config::NodeConfig;
use crate::store::repair::{Damage, DamageKind};
use crate::telemetry;

/// Number of damages that are listed one by one; of more only the number is shown.
const LISTED_MAX: usize = 1_000;

/// The node.
#[derive(Debug, Args)]
pub(super) struct RepairArgs {
    /// Configuration of the node, which must be stopped.
    #[arg(long, value_name = "FILE", default_value = "node.toml", env = "BARID_CONFIG", hide_env = true)]
    config: PathBuf,
    /// Only check: change nothing, and request nothing from other members.
    #[arg(long)]
    check: bool,
}

pub(super) fn run(context: &Context, args: &RepairArgs) -> Result<Exit, Failure> {
    let config = NodeConfig::load(&args.config).map_err(|error| Failure::usage("repair").because(&error))?;
    telemetry::init("error", config.text.log_json);
    let runtime = tokio::runtime::Runtime::new().map_err(|error| Failure::new("internal").because(&error))?;
    let repaired = runtime.block_on(app::repair(&config, args.check)).map_err(|error| match error {
        AppError::OtherUser { .. } => Failure::new("other-user").because(&error),
        _ => Failure::new("repair").because(&error),
    })?;
    if context.output.is_json() {
        context.output.json(&object(&repaired))?;
    } else {
        context.output.lines(lines(context, &repaired))?;
    }
    if repaired.is_intact() {
        return Ok(Exit::Ok);
    }
    let unrepaired = repaired.damage.iter().filter(|damage| !damage.repaired);
    let only_unreached = !args.check
        && repaired.missing == 0
        && !repaired.unreached.is_empty()
        && unrepaired.clone().all(|damage| matches!(damage.kind, DamageKind::Envelope { .. }));
    let members: Vec<&str> = repaired.unreached.keys().map(barid_core::ids::Member::as_str).collect();
    let only_more = repaired.more && unrepaired.clone().next().is_none();
    // Damage that no further run can repair.
    let is_lost =
        repaired.missing > 0 || unrepaired.clone().any(|damage| matches!(damage.kind, DamageKind::Unrecoverable(_)));
    Err(if args.check && is_lost {
        Failure::new("repair-lost")
    } else if args.check || only_more {
        Failure::new("repair-needed")
    } else if only_unreached {
        Failure::new("repair-unreached").exit(Exit::NotReached).with("members", &members.join(","))
    } else {
        Failure::new("repair-left")
    })
}

fn object(repaired: &RepairOutcome) -> Value {
    let one = |damage: &Damage| {
        let mut object = json!({
            "file": damage.file.display().to_string(),
            "byte": damage.bytes.start,
            "length": damage.bytes.end - damage.bytes.start,
            "repaired": damage.repaired,
        });
        match &damage.kind {
            DamageKind::BitFlip => object["what"] = "bit".into(),
            DamageKind::Envelope { feed, index, digest } => {
                object["what"] = "envelope".into();
                object["feed"] = feed.to_string().into();
                object["index"] = (*index).into();
                object["digest"] = digest.to_string().into();
            }
            DamageKind::Unrecoverable(reason) => {
                object["what"] = "lost".into();
                object["reason"] = reason.clone().into();
            }
        }
        object
    };
    let unreached: serde_json::Map<String, Value> =
        repaired.unreached.iter().map(|(member, error)| (member.to_string(), error.clone().into())).collect();
    json!({
        "whole": repaired.is_intact(),
        "newestCommit": repaired.newest_commit,
        "missing": repaired.missing,
        "more": repaired.more,
        "damage": repaired.damage.iter().map(one).collect::<Vec<_>>(),
        "unreached": unreached,
    })
}

fn lines(context: &Context, repaired: &RepairOutcome) -> Vec<String> {
    let messages = &context.messages;
    let mut lines = Vec::new();
    for damage in repaired.damage.iter().take(LISTED_MAX) {
        let state = messages.text(if damage.repaired { "repair-done" } else { "repair-not-done" });
        let (file, byte) = (damage.file.display().to_string(), damage.bytes.start);
        lines.push(match &damage.kind {
            DamageKind::BitFlip => localize!(messages, "repair-bit", file = &file, nByte = byte, state = &state),
            DamageKind::Envelope { feed, index, .. } => {
                let entry = format!("{feed} {index}");
                localize!(messages, "repair-envelope", file = &file, nByte = byte, entry = &entry, state = &state)
            }
            DamageKind::Unrecoverable(reason) => {
                localize!(messages, "repair-lost", file = &file, nByte = byte, reason = reason, state = &state)
            }
        });
    }
    let more = repaired.damage.len().saturating_sub(LISTED_MAX);
    if more > 0 {
        lines.push(localize!(messages, "repair-more", nPlaces = more));
    }
    if repaired.missing > 0 {
        lines.push(localize!(messages, "repair-missing", nEntries = repaired.missing));
    }
    for (member, error) in &repaired.unreached {
        lines.push(localize!(messages, "repair-unreached", member = member.as_str(), reason = error));
    }
    if repaired.is_intact() {
        lines.push(localize!(messages, "repair-whole", nCommits = repaired.newest_commit));
    }
    lines
}
