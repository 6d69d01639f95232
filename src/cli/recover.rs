//! `barid recover`: recovers a feed that needs recovery into its next epoch, on the stopped node's
//! own machine.
//!
//! In scope: arguments, showing progress, and the next steps. Out of scope: the recovery itself
//! (`app`). The next epoch's key is read from a file and is written only to the node's folder of
//! keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use barid_core::feed::checkpoint::Checkpoint;
use barid_core::feed::note::SigningKey;
use barid_core::ids::Member;
use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::{Context, Exit, Failure, localize};
use crate::app::{self, AppError, PeerProgress, Progress, RecoverError, RecoverOptions};
use crate::committer::{OpenEpochError, OpenedEpoch};
use crate::config::NodeConfig;
use crate::files::{self, Guard};
use crate::telemetry;

/// Interval at which the number of entries is shown while it grows.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The node, and its next key.
#[derive(Debug, Args)]
pub(super) struct RecoverArgs {
    /// Configuration of the node, which must be stopped.
    #[arg(long, value_name = "FILE", default_value = "node.toml", env = "BARID_CONFIG", hide_env = true)]
    config: PathBuf,
    /// Private key of the next epoch's feed, as the roster lists it; repeated if the roster lists
    /// two for the epoch.
    #[arg(long, value_name = "FILE", required = true)]
    next_key: Vec<PathBuf>,
    /// Members that cannot be reached now and are not waited for; what they send later is accepted
    /// then.
    #[arg(long, value_name = "MEMBERS", value_delimiter = ',')]
    skip_members: Vec<Member>,
    /// Seconds without any progress until it gives up; it then changes nothing.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    idle_timeout: u32,
    /// If the feed has forked: close the epoch with the fork that is stored here.
    #[arg(long)]
    keep_local_fork: bool,
}

pub(super) fn run(context: &Context, args: &RecoverArgs) -> Result<Exit, Failure> {
    let config = NodeConfig::load(&args.config).map_err(|error| Failure::usage("recover").because(&error))?;
    let next_keys = args.next_key.iter().map(|path| signing_key(path)).collect::<Result<_, _>>()?;
    telemetry::init("error", config.text.log_json);
    let options = RecoverOptions {
        next_keys,
        skip_members: args.skip_members.iter().cloned().collect(),
        idle_timeout: Duration::from_secs(args.idle_timeout.into()),
        keep_local_fork: args.keep_local_fork,
    };
    let runtime = tokio::runtime::Runtime::new().map_err(|error| Failure::new("internal").because(&error))?;
    let stop = {
        let _inside = runtime.enter();
        let signals = |kind| signal(kind).map_err(|error| Failure::new("internal").because(&error));
        let (mut interrupted, mut terminated) = (signals(SignalKind::interrupt())?, signals(SignalKind::terminate())?);
        async move {
            tokio::select! {
                _ = interrupted.recv() => {}
                _ = terminated.recv() => {}
            }
        }
    };
    let mut reporter = ProgressReporter { context, reported: BTreeMap::new(), held: None };
    let opened = runtime.block_on(app::recover(&config, options, |progress| reporter.report(progress), stop));
    let opened = opened.map_err(|error| failure(&error))?;
    if context.output.is_json() {
        context.output.json(&json!({"closed": tree(&opened.closed), "opened": tree(&opened.opened)}))?;
    } else {
        context.output.lines(next_steps(context, &opened))?;
    }
    Ok(Exit::Ok)
}

fn signing_key(path: &Path) -> Result<SigningKey, Failure> {
    let text = files::read_text(path, Guard::Secret)
        .map_err(|error| Failure::usage("file-unreadable").path(path).because(&error))?;
    SigningKey::from_text(text.trim_end()).map_err(|error| Failure::usage("key-unusable").path(path).because(&error))
}

fn failure(error: &RecoverError) -> Failure {
    match error {
        RecoverError::Incomplete(progress) => {
            let missing: Vec<&str> = progress
                .peers
                .iter()
                .filter(|peer| peer.needed && !peer.complete)
                .map(|peer| peer.member.as_str())
                .collect();
            Failure::new("recover-incomplete").exit(Exit::NotReached).with("members", &missing.join(","))
        }
        RecoverError::Open(OpenEpochError::RecoveryNotNeeded(feed)) => {
            Failure::new("recover-not-needed").with("feed", &feed.to_string())
        }
        RecoverError::UnresolvedFork { feed, evidence } => {
            Failure::new("recover-fork").with("feed", &feed.to_string()).cause(evidence.clone())
        }
        RecoverError::UnknownMember(member) => Failure::usage("recover-no-member").with("member", member.as_str()),
        RecoverError::App(AppError::OtherUser { .. }) => Failure::new("other-user").because(error),
        RecoverError::App(_) | RecoverError::Open(_) | RecoverError::Stopped => Failure::new("recover").because(error),
    }
}

fn tree(tree: &Checkpoint) -> Value {
    json!({"feed": tree.feed.to_string(), "size": tree.size, "root": tree.root.to_string()})
}

fn next_steps(context: &Context, opened: &OpenedEpoch) -> Vec<String> {
    let messages = &context.messages;
    let OpenedEpoch { closed, opened } = opened;
    vec![
        localize!(messages, "recover-done", feed = &opened.feed.to_string()),
        localize!(
            messages,
            "recover-closed",
            feed = &closed.feed.to_string(),
            nEntries = closed.size,
            root = &closed.root.to_string()
        ),
        messages.text("recover-next"),
    ]
}

/// Shows changes of the progress.
struct ProgressReporter<'a> {
    context: &'a Context,
    reported: BTreeMap<Member, PeerProgress>,
    held: Option<(u64, Instant)>,
}

impl ProgressReporter<'_> {
    fn report(&mut self, progress: &Progress) {
        let (messages, output) = (&self.context.messages, &self.context.output);
        if output.is_json() {
            let peer = |peer: &PeerProgress| {
                json!({
                    "member": peer.member.as_str(), "linked": peer.linked, "announced": peer.announced,
                    "complete": peer.complete, "needed": peer.needed, "error": peer.last_error,
                })
            };
            let peers: Vec<Value> = progress.peers.iter().map(peer).collect();
            // A closed output does not stop the recovery.
            let _ = output.json(&json!({"feed": progress.feed.to_string(), "held": progress.held, "peers": peers}));
            return;
        }
        let mut lines = Vec::new();
        let all_here = progress.peers.iter().all(|peer| peer.complete || !peer.needed);
        if self.held.is_none_or(|(held, at)| held != progress.held && (all_here || at.elapsed() >= REPORT_INTERVAL)) {
            self.held = Some((progress.held, Instant::now()));
            let feed = progress.feed.to_string();
            lines.push(localize!(messages, "feed-size", feed = &feed, nEntries = progress.held));
        }
        for peer in &progress.peers {
            let announced = PeerProgress { last_error: String::new(), ..peer.clone() };
            if self.reported.insert(peer.member.clone(), announced.clone()) == Some(announced) {
                continue;
            }
            let member = peer.member.as_str();
            lines.push(match (peer.announced, peer.complete) {
                (Some(size), true) => localize!(messages, "recover-peer-complete", member = member, nEntries = size),
                (Some(size), false) => localize!(messages, "recover-peer-fetching", member = member, nEntries = size),
                (None, _) if peer.linked => localize!(messages, "recover-peer-linked", member = member),
                (None, _) if !peer.needed => localize!(messages, "recover-peer-skipped", member = member),
                (None, _) => localize!(messages, "recover-peer-waiting", member = member),
            });
        }
        let _ = output.lines(lines);
    }
}
