//! `barid keys`: the key of an epoch to come, made in advance and kept offline.
//!
//! In scope: making it, and the lines for the roster. Out of scope: using it (`recover`). It needs no node and no network: run it where
//! the key is to stay.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use barid_core::feed::note::{Algorithm, SigningKey};
use barid_core::names::{FeedId, Member};
use barid_core::roster::{Role, Roster, RosterChain};
use clap::Args;
use serde_json::json;

use super::{Context, Exit, Failure, say};

/// Whose key, and where to.
#[derive(Debug, Args)]
pub(super) struct KeysArgs {
    /// File to write, readable by you alone; never over another.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Member whose feed it will sign [default: the profile's].
    #[arg(long, value_name = "MEMBER")]
    member: Option<Member>,
    /// Newest roster note: it says which epochs have keys [default: the profile's].
    #[arg(long, value_name = "ROSTER")]
    roster: Option<PathBuf>,
    /// Epoch of the key [default: the first for which the roster lists none].
    #[arg(long, value_name = "EPOCH", value_parser = clap::value_parser!(u32).range(1..))]
    epoch: Option<u32>,
    /// Make an ML-DSA-44 key, for an epoch that has one beside its Ed25519 key.
    #[arg(long)]
    post_quantum: bool,
}

pub(super) fn run(context: &Context, args: &KeysArgs) -> Result<Exit, Failure> {
    let profile = context.profile_if_any()?;
    let path = args.roster.clone().or_else(|| profile.as_ref()?.roster.clone());
    let path = path.ok_or_else(|| Failure::usage("no-roster-file"))?;
    let roster = roster(&path)?;
    let member = args.member.clone().or_else(|| profile.map(|profile| profile.member));
    let member = member.ok_or_else(|| Failure::usage("no-profile"))?;
    let Some(entry) = roster.member(&member) else {
        return Err(Failure::usage("keys-not-listed").with("member", &member).path(&path));
    };
    let listed = |role: Role| if let Role::Feed(epoch) = role { Some(epoch) } else { None };
    let last = entry.keys.iter().filter_map(|key| listed(key.role)).max().unwrap_or(0);
    let epoch = args.epoch.unwrap_or_else(|| last.saturating_add(u32::from(!args.post_quantum)).max(1));
    let feed = FeedId::new(member, roster.exchange().clone(), epoch);
    let key = make(&feed, args.post_quantum)?;
    keep(&args.file, &key)?;
    let public = key.verifier().to_string();
    if context.output.is_json() {
        let file = args.file.display().to_string();
        context.output.json(&json!({"file": file, "role": "feed", "epoch": epoch, "key": public}))?;
    } else {
        let (messages, file) = (&context.messages, args.file.display().to_string());
        context.output.lines([
            say!(messages, "keys-made", path = &file, feed = &feed.to_string()),
            messages.text("keys-next"),
            String::new(),
            "[[members.keys]]".to_owned(),
            "role = \"feed\"".to_owned(),
            format!("epoch = {epoch}"),
            format!("key = \"{public}\""),
        ])?;
    }
    Ok(Exit::Ok)
}

fn roster(path: &Path) -> Result<Roster, Failure> {
    let note = std::fs::read(path).map_err(|error| Failure::usage("file-unreadable").path(path).because(&error))?;
    let chain = RosterChain::start(&note);
    let chain = chain.map_err(|error| Failure::usage("roster-unusable").path(path).because(&error))?;
    Ok(chain.newest().clone())
}

fn make(feed: &FeedId, post_quantum: bool) -> Result<SigningKey, Failure> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| Failure::new("internal").cause(error.to_string()))?;
    let algorithm = if post_quantum { Algorithm::CosignatureMlDsa44 } else { Algorithm::Ed25519 };
    SigningKey::from_seed(&feed.to_string(), algorithm, seed).map_err(|error| Failure::new("internal").because(&error))
}

fn keep(path: &Path, key: &SigningKey) -> Result<(), Failure> {
    let unwritable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::usage("keys-exist").path(path),
        _ => Failure::new("file-unwritable").path(path).because(&error),
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(unwritable)?;
    file.write_all(key.to_text().as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .map_err(unwritable)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_for_its_owner_alone_and_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("feed-3.key");
        let feed: FeedId = "ma.rabat.example/feed/3".parse().unwrap();
        let key = make(&feed, false).unwrap();
        keep(&path, &key).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(SigningKey::from_text(text.trim_end()).unwrap().verifier(), key.verifier());
        assert_eq!(keep(&path, &key).unwrap_err().exit_code(), Exit::Usage);
        assert_eq!(make(&feed, true).unwrap().algorithm(), Algorithm::CosignatureMlDsa44);
    }
}
