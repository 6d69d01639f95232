//! This member's own feeds as its peers hold them: closed epochs, and the one in force while it
//! needs recovery.
//!
//! In scope: the sizes that each peer has announced, and at which peer each feed is followed: one
//! at a time, so that a slow line carries it once. Out of scope: following (`receiver`), and
//! recovery itself (`committer::epoch`, `app::recover`). Sizes that a peer announced remain known
//! after its link ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use barid_core::ids::{FeedId, Member};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{ExchangeState, FOLLOW_BACKOFF, backoff};
use crate::committer::PublishState;

/// How long a peer may deliver nothing before another peer that has more is followed: a slow line
/// and one batch.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Own epochs that one peer may announce: more than a roster has keys for.
const EPOCHS_MAX: usize = 1_024;

/// What peers hold of our own feeds.
pub(crate) struct SelfRecovery {
    table: Mutex<RecoveryState>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct RecoveryState {
    replicas: BTreeMap<Member, PeerReplicas>,
    /// The link over which each feed is followed.
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

/// Identifies a link within this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkId(u64);

/// What one peer holds of our own feeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnFeedReplicas {
    /// Whether it has sent its tree heads since this node started.
    pub heads_received: bool,
    /// Number of entries that it has announced to hold, by epoch; absent: none.
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
    /// Returns a receiver that changes when there may be something to follow.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Records that `peer` has announced, with a verified checkpoint, to hold `size` entries of our
    /// `feed`.
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

    /// Records that `peer` has sent all of its tree heads.
    pub(crate) fn heads_received(&self, peer: &Member) {
        let first =
            !std::mem::replace(&mut self.table.lock().replicas.entry(peer.clone()).or_default().heads_received, true);
        if first {
            self.notify();
        }
    }

    /// Returns what each peer has announced.
    pub(crate) fn replicas(&self) -> BTreeMap<Member, OwnFeedReplicas> {
        let table = self.table.lock();
        let copy = |replicas: &PeerReplicas| OwnFeedReplicas {
            heads_received: replicas.heads_received,
            sizes: replicas.sizes.clone(),
        };
        table.replicas.iter().map(|(peer, replicas)| (peer.clone(), copy(replicas))).collect()
    }

    /// Records that a link has ended: others may follow its feeds instead.
    pub(crate) fn link_ended(&self, link: LinkId) {
        self.table.lock().upstream.retain(|_, upstream| upstream.link != link);
        self.notify();
    }

    /// Records that entries of `feed` from `peer` were rejected: other peers are tried first.
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
    /// Whether `feed` is one of our own that this node does not append to itself.
    pub(crate) fn follows_own(&self, feed: &FeedId) -> bool {
        feed.member == self.me
            && (feed != self.own_feed()
                || matches!(*self.options.committer.publish_state().borrow(), PublishState::NeedsRecovery(_)))
    }

    /// Returns our own feeds to follow at `peer` over `link`, and when to check again if one was
    /// postponed.
    pub(crate) fn own_feeds_to_follow(&self, peer: &Member, link: LinkId) -> (BTreeSet<FeedId>, Option<Instant>) {
        let (roster, now) = (self.options.rosters.load().newest_shared(), Instant::now());
        let closed_feeds = roster.member(&self.me).map(|entry| entry.closed_feeds.clone()).unwrap_or_default();
        let mut table = self.self_recovery.table.lock();
        let RecoveryState { replicas, upstream, backoffs } = &mut *table;
        let (mut feeds, mut check_at) = (BTreeSet::new(), None::<Instant>);
        for (feed, size) in replicas.get(peer).iter().flat_map(|replicas| &replicas.sizes) {
            let held = self.store().feed(feed).map_or(0, |state| state.compact_range.size());
            // The size of a closed feed in the roster is final.
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
                // A peer that has no more, or delivers nothing, is replaced.
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
