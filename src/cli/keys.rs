//! `barid keys`: creates a signing key of a member or a governor. Its main use is the key of a
//! later epoch, made in advance and stored offline.
//!
//! In scope: creating the key, and its lines for the roster. Out of scope: using it (`node`,
//! `recover`, `roster sign`). The command needs no node and no network: run it on the machine where
//! the key stays.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use barid_core::feed::note::{Algorithm, SigningKey};
use barid_core::ids::{ExchangeName, FeedId, Member};
use barid_core::roster::{Role, Roster, RosterChain};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Context, Exit, Failure, localize};

/// Owner and role of the key, and where to write it.
#[derive(Debug, Args)]
pub(super) struct KeysArgs {
    /// File to write, readable only by you; an existing file is never overwritten.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What the key signs: the member's feed, cosignatures of others' feeds, custody notes, or
    /// rosters.
    #[arg(long, value_name = "ROLE", value_enum, default_value_t = Signs::Feed)]
    role: Signs,
    /// Member that owns the key [default: the profile's].
    #[arg(long, value_name = "MEMBER")]
    member: Option<Member>,
    /// Newest roster note; it lists the epochs that have keys [default: the profile's].
    #[arg(long, value_name = "ROSTER")]
    roster: Option<PathBuf>,
    /// Name of the exchange, instead of a roster: for a member that no roster lists yet.
    #[arg(long, value_name = "NAME", conflicts_with = "roster")]
    exchange: Option<ExchangeName>,
    /// Epoch of the key [default: the first for which the roster lists none].
    #[arg(long, value_name = "EPOCH", value_parser = clap::value_parser!(u32).range(1..))]
    epoch: Option<u32>,
    /// Make an ML-DSA-44 key, for an epoch that has one beside its Ed25519 key.
    #[arg(long)]
    post_quantum: bool,
}

/// What a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Signs {
    Feed,
    Mirror,
    Custody,
    Governor,
}

pub(super) fn run(context: &Context, args: &KeysArgs) -> Result<Exit, Failure> {
    let made = Made::of(context, args)?;
    write_key(&args.file, &made.key)?;
    let file = args.file.display().to_string();
    if context.output.is_json() {
        let object = json!({"file": file, "role": made.role(), "epoch": made.epoch, "key": made.public()});
        context.output.json(&object)?;
    } else {
        let messages = &context.messages;
        let id = match made.signs {
            Signs::Feed if made.needed_now => "keys-made-feed",
            Signs::Feed | Signs::Governor => "keys-made",
            Signs::Mirror | Signs::Custody => "keys-made-online",
        };
        let (name, next) =
            (made.key.name(), if made.signs == Signs::Governor { "keys-next-governor" } else { "keys-next" });
        let lines = [localize!(messages, id, path = &file, feed = name), messages.text(next), String::new()];
        context.output.lines(lines)?;
        made.roster_lines().iter().try_for_each(|line| context.output.verbatim(line))?;
    }
    Ok(Exit::Ok)
}

/// A new key, and its entry in the roster.
struct Made {
    signs: Signs,
    epoch: Option<u32>,
    /// Whether its epoch is in force: the node needs the key to sign.
    needed_now: bool,
    key: SigningKey,
}

impl Made {
    fn of(context: &Context, args: &KeysArgs) -> Result<Self, Failure> {
        let signs = args.role;
        if signs != Signs::Feed && (args.epoch.is_some() || args.post_quantum) {
            return Err(Failure::usage("keys-feed-only"));
        }
        let profile = context.profile_if_any()?;
        let member = args.member.clone().or_else(|| profile.as_ref().map(|profile| profile.member.clone()));
        let member = member.ok_or_else(|| Failure::usage("keys-whose"))?;
        let (exchange, listed, in_force) = match &args.exchange {
            Some(exchange) => (exchange.clone(), 0, 1),
            None => {
                let path = args.roster.clone().or_else(|| profile.as_ref()?.roster.clone());
                let path = path.ok_or_else(|| Failure::usage("no-roster-file"))?;
                let roster = roster(&path)?;
                let Some(entry) = roster.member(&member) else {
                    return Err(Failure::usage("keys-not-listed").with("member", &member).path(&path));
                };
                let epoch = |role: Role| if let Role::Feed(epoch) = role { Some(epoch) } else { None };
                let last = entry.keys.iter().filter_map(|key| epoch(key.role)).max().unwrap_or(0);
                let closed = entry.closed_feeds.iter().map(|closed| closed.epoch).max().unwrap_or(0);
                (roster.exchange().clone(), last, closed.saturating_add(1))
            }
        };
        let epoch = args.epoch.unwrap_or_else(|| listed.saturating_add(u32::from(!args.post_quantum)).max(1));
        let (name, algorithm) = match signs {
            Signs::Feed if args.post_quantum => {
                (FeedId::new(member, exchange, epoch).to_string(), Algorithm::CosignatureMlDsa44)
            }
            Signs::Feed => (FeedId::new(member, exchange, epoch).to_string(), Algorithm::Ed25519),
            Signs::Mirror => (format!("{member}.{exchange}/mirror"), Algorithm::CosignatureEd25519),
            Signs::Custody => (format!("{member}.{exchange}/custody"), Algorithm::Ed25519),
            Signs::Governor => (format!("{exchange}/governor/{member}"), Algorithm::Ed25519),
        };
        let needed_now = epoch <= in_force;
        Ok(Self { signs, epoch: (signs == Signs::Feed).then_some(epoch), needed_now, key: make(&name, algorithm)? })
    }

    fn role(&self) -> &'static str {
        match self.signs {
            Signs::Feed => "feed",
            Signs::Mirror => "mirror",
            Signs::Custody => "custody",
            Signs::Governor => "governor",
        }
    }

    fn public(&self) -> String {
        self.key.verifier().to_string()
    }

    fn roster_lines(&self) -> Vec<String> {
        let public = self.public();
        if self.signs == Signs::Governor {
            return vec![format!("\"{public}\",")];
        }
        let mut lines = vec!["[[members.keys]]".to_owned(), format!("role = \"{}\"", self.role())];
        lines.extend(self.epoch.map(|epoch| format!("epoch = {epoch}")));
        lines.push(format!("key = \"{public}\""));
        lines
    }
}

fn roster(path: &Path) -> Result<Roster, Failure> {
    let note = std::fs::read(path).map_err(|error| Failure::usage("file-unreadable").path(path).because(&error))?;
    let chain = RosterChain::start(&note);
    let chain = chain.map_err(|error| Failure::usage("roster-unusable").path(path).because(&error))?;
    Ok(chain.newest().clone())
}

fn make(name: &str, algorithm: Algorithm) -> Result<SigningKey, Failure> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| Failure::new("internal").cause(error.to_string()))?;
    SigningKey::from_seed(name, algorithm, seed).map_err(|error| Failure::new("internal").because(&error))
}

fn write_key(path: &Path, key: &SigningKey) -> Result<(), Failure> {
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
    use crate::cli::{Lang, Messages, Output};

    #[test]
    fn key_file_is_owner_only_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("feed-3.key");
        let key = make("ma.rabat.example/feed/3", Algorithm::Ed25519).unwrap();
        write_key(&path, &key).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(SigningKey::from_text(text.trim_end()).unwrap().verifier(), key.verifier());
        assert_eq!(write_key(&path, &key).unwrap_err().exit_code(), Exit::Usage);
    }

    #[test]
    fn keys_can_be_generated_for_unlisted_member() {
        let context = Context::new(Messages::new(Lang::En), Output::plain(), None);
        let of = |args: &[&str]| {
            let args = ["barid", "keys", "x.key"].iter().chain(args);
            let cli = <Alone as clap::Parser>::try_parse_from(args.skip(1)).unwrap();
            Made::of(&context, &cli.keys)
        };
        let named = ["--member", "dz", "--exchange", "rabat.example"];
        let made = |more: &[&str]| of(&[&named, more].concat()).unwrap();
        let of_first_epoch = made(&[]);
        assert_eq!((of_first_epoch.key.name(), of_first_epoch.epoch), ("dz.rabat.example/feed/1", Some(1)));
        assert!(of_first_epoch.needed_now && !made(&["--epoch", "2"]).needed_now);
        assert_eq!(made(&["--epoch", "2", "--post-quantum"]).key.algorithm(), Algorithm::CosignatureMlDsa44);
        let mirror = made(&["--role", "mirror"]);
        assert_eq!(
            (mirror.key.name(), mirror.key.algorithm()),
            ("dz.rabat.example/mirror", Algorithm::CosignatureEd25519)
        );
        assert!(
            mirror.roster_lines()[2].starts_with("key = \"dz.rabat.example/mirror+"),
            "{:?}",
            mirror.roster_lines()
        );
        assert_eq!(made(&["--role", "custody"]).key.name(), "dz.rabat.example/custody");
        assert_eq!(made(&["--role", "governor"]).key.name(), "rabat.example/governor/dz");
        let rejected = of(&["--role", "mirror", "--epoch", "2", "--member", "dz", "--exchange", "rabat.example"]);
        assert_eq!(rejected.err().unwrap().id(), "keys-feed-only");
        assert_eq!(of(&["--exchange", "rabat.example"]).err().unwrap().id(), "keys-whose");
    }

    /// Parses the arguments of this command alone.
    #[derive(clap::Parser)]
    struct Alone {
        #[command(flatten)]
        keys: KeysArgs,
    }
}
