//! This member's own feeds as its peers hold them: epochs that are over, and the one in force while it is in doubt.
//!
//! In scope: what each peer shows of them, and at which peer each is followed: one at a time, so that a thin line carries it once. Out of
//! scope: following (`receiver`), and what follows from it (`committer`, recovery). What a peer once showed stays known when its link ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use barid_core::ids::{FeedId, Member};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{ExchangeState, FOLLOW_BACKOFF, backoff};
use crate::committer::PublishState;

/// How long a peer may bring nothing before another one that has more gets its turn: a slow line and a batch.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Epochs of our own that one peer may show: more than a roster has keys for.
const EPOCHS_MAX: usize = 1_024;

/// What is known of our own feeds elsewhere.
pub(crate) struct SelfRecovery {
    table: Mutex<RecoveryState>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct RecoveryState {
    replicas: BTreeMap<Member, PeerReplicas>,
    /// At which link each feed is followed.
    upstream: BTreeMap<FeedId, ActiveUpstream>,
    backoffs: BTreeMap<(FeedId, Member), (Instant, u32)>,
}

struct ActiveUpstream {
    link: LinkId,
    peer: Member,
    held: u64,
    since: Instant,
}

#[derive(Default)]
struct PeerReplicas {
    sizes: BTreeMap<FeedId, u64>,
    heads_received: bool,
}

/// Tells one link from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkId(u64);

/// What one peer holds of one of our feeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnFeedReplicas {
    /// Whether it has shown its heads since this node started.
    pub heads_received: bool,
    /// Size of the newest checkpoint that it has shown, of each epoch; absent: nothing.
    pub sizes: BTreeMap<FeedId, u64>,
}

impl Default for SelfRecovery {
    fn default() -> Self {
        Self { table: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl LinkId {
    pub(crate) fn next() -> Self {
        static NEXT_LINK: AtomicU64 = AtomicU64::new(0);
        Self(NEXT_LINK.fetch_add(1, Ordering::Relaxed))
    }
}

impl SelfRecovery {
    /// Changes when there may be something to follow.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// `peer` has shown a verified checkpoint of `size` of our `feed`.
    pub(crate) fn record_replica_size(&self, peer: &Member, feed: &FeedId, size: u64) {
        let mut table = self.table.lock();
        let replicas = table.replicas.entry(peer.clone()).or_default();
        if replicas.sizes.len() < EPOCHS_MAX || replicas.sizes.contains_key(feed) {
            let known = replicas.sizes.entry(feed.clone()).or_default();
            *known = size.max(*known);
        }
        drop(table);
        self.notify();
    }

    /// `peer` has shown all of its heads.
    pub(crate) fn heads_received(&self, peer: &Member) {
        let first =
            !std::mem::replace(&mut self.table.lock().replicas.entry(peer.clone()).or_default().heads_received, true);
        if first {
            self.notify();
        }
    }

    /// What each peer has shown.
    pub(crate) fn replicas(&self) -> BTreeMap<Member, OwnFeedReplicas> {
        let table = self.table.lock();
        let copy = |replicas: &PeerReplicas| OwnFeedReplicas {
            heads_received: replicas.heads_received,
            sizes: replicas.sizes.clone(),
        };
        table.replicas.iter().map(|(peer, replicas)| (peer.clone(), copy(replicas))).collect()
    }

    /// A link has ended: others may take over what it followed.
    pub(crate) fn link_ended(&self, link: LinkId) {
        self.table.lock().upstream.retain(|_, upstream| upstream.link != link);
        self.notify();
    }

    /// What `peer` sent of `feed` was refused: others get their turn.
    pub(crate) fn rejected(&self, feed: &FeedId, peer: &Member) {
        let mut table = self.table.lock();
        table.upstream.remove(feed);
        let (until, failures) = table.backoffs.entry((feed.clone(), peer.clone())).or_insert((Instant::now(), 0));
        *until = Instant::now() + backoff(FOLLOW_BACKOFF, *failures);
        *failures = failures.saturating_add(1);
        drop(table);
        self.notify();
    }

    fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

impl ExchangeState {
    /// Whether `feed` is an own one that this node does not continue itself.
    pub(crate) fn follows_own(&self, feed: &FeedId) -> bool {
        feed.member == self.me
            && (feed != self.own_feed()
                || matches!(*self.options.committer.publish_state().borrow(), PublishState::NeedsRecovery(_)))
    }

    /// Our own feeds to follow at `peer` over `link`, and when to look again if something was put off.
    pub(crate) fn own_feeds_to_follow(&self, peer: &Member, link: LinkId) -> (BTreeSet<FeedId>, Option<Instant>) {
        let (roster, now) = (self.options.rosters.load().newest_shared(), Instant::now());
        let closed_feeds = roster.member(&self.me).map(|entry| entry.closed_feeds.clone()).unwrap_or_default();
        let mut table = self.self_recovery.table.lock();
        let RecoveryState { replicas, upstream, backoffs } = &mut *table;
        let (mut feeds, mut check_at) = (BTreeSet::new(), None::<Instant>);
        for (feed, size) in replicas.get(peer).iter().flat_map(|replicas| &replicas.sizes) {
            let held = self.store().feed(feed).map_or(0, |state| state.compact_range.size());
            // What the governors have settled is all there is.
            let complete = closed_feeds.iter().any(|closed| closed.epoch == feed.epoch && held >= closed.size);
            let wanted = *size > held && !complete && self.follows_own(feed) && !self.stopped_feeds.contains(feed);
            if !wanted {
                continue;
            }
            if let Some((until, _)) = backoffs.get(&(feed.clone(), peer.clone())).filter(|(until, _)| *until > now) {
                check_at = check_at.into_iter().chain([*until]).min();
                continue;
            }
            if let Some(other) = upstream.get_mut(feed).filter(|upstream| upstream.link != link) {
                if other.held != held {
                    (other.held, other.since) = (held, now);
                }
                // Whoever has no more, or does not bring it, gives way.
                let has_more = replicas
                    .get(&other.peer)
                    .and_then(|replicas| replicas.sizes.get(feed))
                    .is_some_and(|size| *size > held);
                if has_more && now < other.since + STALL_TIMEOUT {
                    check_at = check_at.into_iter().chain([other.since + STALL_TIMEOUT]).min();
                    continue;
                }
            }
            let mine = ActiveUpstream { link, peer: peer.clone(), held, since: now };
            match upstream.get(feed) {
                Some(upstream) if upstream.link == link => {}
                _ => _ = upstream.insert(feed.clone(), mine),
            }
            feeds.insert(feed.clone());
        }
        (feeds, check_at)
    }
}
