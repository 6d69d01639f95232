//! Recovery: moves a feed that needs recovery to its next epoch.
//!
//! It links to the peers until everything they hold of this member's feeds is here, then opens the
//! next epoch. The node itself must be stopped: the store is locked meanwhile, and the new key
//! never leaves the machine.
//!
//! In scope: fetching, and when to open the epoch. Out of scope: the order of writes
//! (`committer::epoch`), and texts for people (`cli`).

use std::collections::BTreeSet;
use std::time::Duration;

use barid_core::feed::note::SigningKey;
use barid_core::ids::{FeedId, Member};
use barid_core::roster::{ClosedFeed, Roster};
use tokio::time::Instant;

use super::{AppError, OpenNode, Purpose, check_user, high_water_mark_path, serve, with_current_epoch};
use crate::committer::{NextEpoch, OpenEpochError, OpenedEpoch, StartError, needs_recovery, open_epoch};
use crate::config::NodeConfig;
use crate::store::Store;

/// Time between two checks of the progress.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Options of a recovery.
pub struct RecoverOptions {
    /// All keys of the next epoch's feed.
    pub next_keys: Vec<SigningKey>,
    /// Members that are unreachable and are not waited for.
    pub skip_members: BTreeSet<Member>,
    /// Time without progress after which recovery fails.
    pub idle_timeout: Duration,
    /// If the feed is forked, close the fork that is held here.
    pub keep_local_fork: bool,
}

/// Progress of a recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The feed that needs recovery.
    pub feed: FeedId,
    /// Entries of it held here.
    pub held: u64,
    /// Every other member.
    pub peers: Vec<PeerProgress>,
}

/// Progress of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// Its member code.
    pub member: Member,
    /// Whether a link is open.
    pub linked: bool,
    /// Entries of the feed that the peer has announced; `None` until it has sent its tree heads.
    pub announced: Option<u64>,
    /// Whether everything it has announced is here.
    pub complete: bool,
    /// Whether it is waited for.
    pub needed: bool,
    /// Why the last attempt to reach it failed.
    pub last_error: String,
}

impl Progress {
    fn complete(&self) -> bool {
        self.peers.iter().all(|peer| peer.complete || !peer.needed)
    }
}

/// Why a feed was not recovered. The state of the feed has not changed; fetched entries are stored.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The node could not be opened.
    #[error(transparent)]
    App(#[from] AppError),
    /// The next epoch could not be opened.
    #[error(transparent)]
    Open(#[from] OpenEpochError),
    /// Some peers were not reached, or did not send what they announced.
    #[error("not all entries that peers hold could be fetched")]
    Incomplete(Progress),
    /// A member to skip is not in the roster.
    #[error("{0} is not a member of the exchange")]
    UnknownMember(Member),
    /// Members hold another fork of the feed than this node. An operator or the governors must
    /// decide which one is closed.
    #[error("the fork of {feed} is not resolved: {evidence}")]
    UnresolvedFork {
        /// The feed.
        feed: FeedId,
        /// The evidence, and the member that sent it.
        evidence: String,
    },
    /// Recovery was stopped by its caller.
    #[error("recovery was stopped before the epoch was opened")]
    Stopped,
}

/// Fetches what peers hold and opens the next epoch. `on_progress` is called for every change.
///
/// # Errors
/// See [`RecoverError`].
pub async fn recover(
    config: &NodeConfig,
    options: RecoverOptions,
    mut on_progress: impl FnMut(&Progress) + Send,
    stop: impl Future<Output = ()> + Send,
) -> Result<OpenedEpoch, RecoverError> {
    check_user(config)?;
    let old = with_current_epoch(config)?.feed;
    let RecoverOptions { next_keys, skip_members, idle_timeout, keep_local_fork } = options;
    let while_open = {
        let old = old.clone();
        async move |open_node: OpenNode| {
            // Reject a wrong key before any waiting.
            NextEpoch::of(next_keys.clone(), &old, open_node.rosters.load().newest())?;
            if let Some(unknown_member) =
                skip_members.iter().find(|member| open_node.rosters.load().newest().member(member).is_none())
            {
                return Err(RecoverError::UnknownMember(unknown_member.clone()));
            }
            let fetching = fetch(&open_node, &old, &skip_members, idle_timeout, &mut on_progress);
            tokio::select! {
                fetched = fetching => fetched?,
                () = stop => return Err(RecoverError::Stopped),
            }
            // A newer roster may have come over the links.
            let roster = open_node.rosters.load().newest_shared();
            let decided = keep_local_fork || matches_closed_feed(open_node.committer.store().as_ref(), &roster, &old);
            if let Some(evidence) = open_node.exchange.stopped_feeds().all().remove(&old).filter(|_| !decided) {
                return Err(RecoverError::UnresolvedFork { feed: old, evidence });
            }
            let next = NextEpoch::of(next_keys, &old, &roster)?;
            Ok((roster, next))
        }
    };
    let (fetched, store, _) = serve(config, Purpose::Recover, while_open).await?;
    let high_water_mark = high_water_mark_path(config);
    let (roster, next) = match fetched {
        // No peer that was reached has shown a need for recovery.
        Err(RecoverError::Incomplete(_) | RecoverError::Stopped | RecoverError::Open(_))
            if !needs_recovery(&high_water_mark, old.epoch).map_err(StartError::from).map_err(AppError::from)? =>
        {
            return Err(OpenEpochError::RecoveryNotNeeded(old).into());
        }
        fetched => fetched?,
    };
    let opened = tokio::task::spawn_blocking(move || open_epoch(&store, &roster, &old, &next, &high_water_mark)).await;
    Ok(opened.map_err(|_| AppError::Transport("opening the epoch panicked".into()))??)
}

/// Whether the held fork is the one with which the roster closes the feed. Then no operator's
/// decision is needed.
fn matches_closed_feed(store: &dyn Store, roster: &Roster, feed: &FeedId) -> bool {
    let (Some(member), Some(state)) = (roster.member(&feed.member), store.feed(feed)) else { return false };
    let held =
        |closed: &ClosedFeed| closed.size == state.compact_range.size() && closed.root == state.compact_range.root();
    member.closed_feeds.iter().any(|closed| closed.epoch == feed.epoch && held(closed))
}

async fn fetch(
    open_node: &OpenNode,
    old: &FeedId,
    skip_members: &BTreeSet<Member>,
    idle_timeout: Duration,
    on_progress: &mut (impl FnMut(&Progress) + Send),
) -> Result<(), RecoverError> {
    let mut last: Option<Progress> = None;
    let mut changed_at = Instant::now();
    let mut tick = tokio::time::interval(CHECK_INTERVAL);
    loop {
        tick.tick().await;
        let now = progress(open_node, old, skip_members);
        if last.as_ref() != Some(&now) {
            on_progress(&now);
            // A changed connection error is not progress.
            let ahead = |now: &Progress, last: &Progress| {
                let known = |progress: &Progress| -> Vec<_> {
                    progress.peers.iter().map(|peer| (peer.announced, peer.complete)).collect()
                };
                now.held != last.held || known(now) != known(last)
            };
            if last.as_ref().is_none_or(|last| ahead(&now, last)) {
                changed_at = Instant::now();
            }
        }
        if now.complete() {
            return Ok(());
        }
        if changed_at.elapsed() >= idle_timeout {
            return Err(RecoverError::Incomplete(now));
        }
        last = Some(now);
    }
}

fn progress(open_node: &OpenNode, old: &FeedId, skip_members: &BTreeSet<Member>) -> Progress {
    let (roster, store) = (open_node.rosters.load().newest_shared(), open_node.committer.store());
    let held = |feed: &FeedId| store.feed(feed).map_or(0, |state| state.compact_range.size());
    let (links, announced) = (open_node.exchange.peers().snapshot(), open_node.exchange.own_feed_replicas());
    // Only one of two forks can be here; the governors settle which.
    let forked = open_node.exchange.stopped_feeds().all();
    let peers = roster.entries().map(|entry| &entry.code).filter(|code| **code != old.member).map(|member| {
        let (link, announced) = (links.get(member), announced.get(member).filter(|announced| announced.heads_received));
        let here = |(feed, size): (&FeedId, &u64)| held(feed) >= *size || forked.contains_key(feed);
        PeerProgress {
            member: member.clone(),
            linked: link.is_some_and(|link| link.linked),
            announced: announced.map(|announced| announced.sizes.get(old).copied().unwrap_or(0)),
            complete: announced.is_some_and(|announced| announced.sizes.iter().all(here)),
            needed: !skip_members.contains(member),
            last_error: link.map(|link| link.last_error.clone()).unwrap_or_default(),
        }
    });
    Progress { feed: old.clone(), held: held(old), peers: peers.collect() }
}
