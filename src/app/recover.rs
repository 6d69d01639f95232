//! Recovery: from a feed in doubt into its next epoch.
//!
//! In scope: linking to the peers until all that they hold of this member's feeds is here, then opening the next epoch. The node itself
//! must be stopped: its store is locked meanwhile, and the new key never leaves the machine. Out of scope: the order of writes
//! (`committer::epoch`), words for people (`cli`).

use std::collections::BTreeSet;
use std::time::Duration;

use barid_core::feed::note::SigningKey;
use barid_core::names::{FeedId, Member};
use barid_core::roster::{ClosedFeed, Roster};
use tokio::time::Instant;

use super::{AppError, Inside, Purpose, check_user, in_force, mark_path, serve};
use crate::committer::{NextEpoch, OpenEpochError, OpenedEpoch, StartError, is_in_doubt, open_epoch};
use crate::config::NodeConfig;
use crate::store::Store;

/// How often it is looked at how far it has come.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How to recover.
pub struct RecoverOptions {
    /// All keys of the next epoch's feed.
    pub next_keys: Vec<SigningKey>,
    /// Members that cannot be reached, and are not waited for.
    pub without: BTreeSet<Member>,
    /// How long nothing may change before it is given up.
    pub patience: Duration,
    /// Where two histories of the feed are signed: the one held here is to be closed.
    pub this_history: bool,
}

/// How far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The feed in doubt.
    pub feed: FeedId,
    /// Entries of it that are here.
    pub held: u64,
    /// Every other member.
    pub peers: Vec<PeerProgress>,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// Who.
    pub member: Member,
    /// Whether a link is open.
    pub linked: bool,
    /// Entries of the feed in doubt that it has shown; `None` until it has shown its heads.
    pub shown: Option<u64>,
    /// Whether everything that it has shown is here.
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

/// Why a feed was not recovered. Nothing is in less doubt than before; what was fetched is kept.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The node could not be opened.
    #[error(transparent)]
    App(#[from] AppError),
    /// The next epoch could not be opened.
    #[error(transparent)]
    Open(#[from] OpenEpochError),
    /// Some peers were not reached, or did not give what they showed.
    #[error("not everything that others hold could be fetched")]
    Incomplete(Progress),
    /// Who is not waited for is nobody.
    #[error("{0} is no member of the exchange")]
    NoMember(Member),
    /// Members hold another history of the feed than this node: which of them is to be closed is not for a program to say.
    #[error("two histories of {feed} are signed: {evidence}")]
    TwoHistories {
        /// Which feed.
        feed: FeedId,
        /// What proves it, and who showed it.
        evidence: String,
    },
    /// It was told to stop.
    #[error("it was stopped before the epoch was opened")]
    Stopped,
}

/// Fetches what peers hold and opens the next epoch. `told` hears every change.
///
/// # Errors
/// See [`RecoverError`].
pub async fn recover(
    config: &NodeConfig,
    options: RecoverOptions,
    mut told: impl FnMut(&Progress) + Send,
    stop: impl Future<Output = ()> + Send,
) -> Result<OpenedEpoch, RecoverError> {
    check_user(config)?;
    let old = in_force(config)?.feed;
    let RecoverOptions { next_keys, without, patience, this_history } = options;
    let during = {
        let old = old.clone();
        async move |inside: Inside| {
            // A wrong key is told before anything is waited for.
            NextEpoch::of(next_keys.clone(), &old, inside.rosters.load().newest())?;
            if let Some(nobody) = without.iter().find(|member| inside.rosters.load().newest().member(member).is_none())
            {
                return Err(RecoverError::NoMember(nobody.clone()));
            }
            let fetching = fetch(&inside, &old, &without, patience, &mut told);
            tokio::select! {
                fetched = fetching => fetched?,
                () = stop => return Err(RecoverError::Stopped),
            }
            // A newer roster may have come with the links.
            let roster = inside.rosters.load().newest_shared();
            let decided = this_history || is_settled(inside.committer.store().as_ref(), &roster, &old);
            if let Some(evidence) = inside.exchange.stopped_feeds().all().remove(&old).filter(|_| !decided) {
                return Err(RecoverError::TwoHistories { feed: old, evidence });
            }
            let next = NextEpoch::of(next_keys, &old, &roster)?;
            Ok((roster, next))
        }
    };
    let (fetched, store, _) = serve(config, Purpose::Recover, during).await?;
    let mark = mark_path(config);
    let (roster, next) = match fetched {
        // Nothing that was reached puts it in doubt.
        Err(RecoverError::Incomplete(_) | RecoverError::Stopped | RecoverError::Open(_))
            if !is_in_doubt(&mark, old.epoch).map_err(StartError::from).map_err(AppError::from)? =>
        {
            return Err(OpenEpochError::NoDoubt(old).into());
        }
        fetched => fetched?,
    };
    let opened = tokio::task::spawn_blocking(move || open_epoch(&store, &roster, &old, &next, &mark)).await;
    Ok(opened.map_err(|_| AppError::Transport("opening the epoch ended in a panic".into()))??)
}

/// Whether the history that is held is the one with which the roster ends the feed: then nobody is asked which of two is right.
fn is_settled(store: &dyn Store, roster: &Roster, feed: &FeedId) -> bool {
    let (Some(member), Some(state)) = (roster.member(&feed.member), store.feed(feed)) else { return false };
    let held = |closed: &ClosedFeed| closed.size == state.frontier.size() && closed.root == state.frontier.root();
    member.closed_feeds.iter().any(|closed| closed.epoch == feed.epoch && held(closed))
}

async fn fetch(
    inside: &Inside,
    old: &FeedId,
    without: &BTreeSet<Member>,
    patience: Duration,
    told: &mut (impl FnMut(&Progress) + Send),
) -> Result<(), RecoverError> {
    let mut last: Option<Progress> = None;
    let mut changed_at = Instant::now();
    let mut tick = tokio::time::interval(LOOK_EVERY);
    loop {
        tick.tick().await;
        let now = progress(inside, old, without);
        if last.as_ref() != Some(&now) {
            told(&now);
            // Why a peer is not reached is no step ahead.
            let ahead = |now: &Progress, last: &Progress| {
                let known = |progress: &Progress| -> Vec<_> {
                    progress.peers.iter().map(|peer| (peer.shown, peer.complete)).collect()
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
        if changed_at.elapsed() >= patience {
            return Err(RecoverError::Incomplete(now));
        }
        last = Some(now);
    }
}

fn progress(inside: &Inside, old: &FeedId, without: &BTreeSet<Member>) -> Progress {
    let (roster, store) = (inside.rosters.load().newest_shared(), inside.committer.store());
    let held = |feed: &FeedId| store.feed(feed).map_or(0, |state| state.frontier.size());
    let (links, shown) = (inside.exchange.peers().snapshot(), inside.exchange.own_shown());
    // Of two histories only one can be here; the governors settle which.
    let forked = inside.exchange.stopped_feeds().all();
    let peers = roster.entries().map(|entry| &entry.code).filter(|code| **code != old.member).map(|member| {
        let (link, shown) = (links.get(member), shown.get(member).filter(|shown| shown.heads));
        let here = |(feed, size): (&FeedId, &u64)| held(feed) >= *size || forked.contains_key(feed);
        PeerProgress {
            member: member.clone(),
            linked: link.is_some_and(|link| link.linked),
            shown: shown.map(|shown| shown.sizes.get(old).copied().unwrap_or(0)),
            complete: shown.is_some_and(|shown| shown.sizes.iter().all(here)),
            needed: !without.contains(member),
            last_error: link.map(|link| link.last_error.clone()).unwrap_or_default(),
        }
    });
    Progress { feed: old.clone(), held: held(old), peers: peers.collect() }
}
