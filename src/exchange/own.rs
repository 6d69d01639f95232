//! This member's own feeds as its peers hold them: epochs that are over, and the one in force while it is in doubt.
//!
//! In scope: what each peer shows of them, and at which peer each is followed: one at a time, so that a thin line carries it once. Out of
//! scope: following (`reader`), and what follows from it (`committer`, recovery). What a peer once showed stays known when its link ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use barid_core::names::{FeedId, Member};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{FOLLOW_BACKOFF, Shared, backoff};
use crate::committer::Gate;

/// How long a peer may bring nothing before another one that has more gets its turn: a slow line and a batch.
const PATIENCE: Duration = Duration::from_secs(30);

/// Epochs of our own that one peer may show: more than a roster has keys for.
const SHOWN_MAX: usize = 1_024;

/// What is known of our own feeds elsewhere.
pub(crate) struct Own {
    table: Mutex<Table>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Table {
    shown: BTreeMap<Member, Shown>,
    /// At which link each feed is followed.
    serving: BTreeMap<FeedId, Serving>,
    put_off: BTreeMap<(FeedId, Member), (Instant, u32)>,
}

struct Serving {
    link: LinkNumber,
    peer: Member,
    held: u64,
    since: Instant,
}

#[derive(Default)]
struct Shown {
    sizes: BTreeMap<FeedId, u64>,
    heads: bool,
}

/// Tells one link from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkNumber(u64);

/// What one peer holds of one of our feeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnShown {
    /// Whether it has shown its heads since this node started.
    pub heads: bool,
    /// Size of the newest checkpoint that it has shown, of each epoch; absent: nothing.
    pub sizes: BTreeMap<FeedId, u64>,
}

impl Default for Own {
    fn default() -> Self {
        Self { table: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl LinkNumber {
    pub(crate) fn next() -> Self {
        static LINKS: AtomicU64 = AtomicU64::new(0);
        Self(LINKS.fetch_add(1, Ordering::Relaxed))
    }
}

impl Own {
    /// Changes when there may be something to follow.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// `peer` has shown a verified checkpoint of `size` of our `feed`.
    pub(crate) fn shows(&self, peer: &Member, feed: &FeedId, size: u64) {
        let mut table = self.table.lock();
        let shown = table.shown.entry(peer.clone()).or_default();
        if shown.sizes.len() < SHOWN_MAX || shown.sizes.contains_key(feed) {
            let known = shown.sizes.entry(feed.clone()).or_default();
            *known = size.max(*known);
        }
        drop(table);
        self.bump();
    }

    /// `peer` has shown all of its heads.
    pub(crate) fn heads_shown(&self, peer: &Member) {
        let first = !std::mem::replace(&mut self.table.lock().shown.entry(peer.clone()).or_default().heads, true);
        if first {
            self.bump();
        }
    }

    /// What each peer has shown.
    pub(crate) fn shown(&self) -> BTreeMap<Member, OwnShown> {
        let table = self.table.lock();
        let copy = |shown: &Shown| OwnShown { heads: shown.heads, sizes: shown.sizes.clone() };
        table.shown.iter().map(|(peer, shown)| (peer.clone(), copy(shown))).collect()
    }

    /// A link has ended: others may take over what it followed.
    pub(crate) fn gone(&self, link: LinkNumber) {
        self.table.lock().serving.retain(|_, serving| serving.link != link);
        self.bump();
    }

    /// What `peer` sent of `feed` was refused: others get their turn.
    pub(crate) fn refused(&self, feed: &FeedId, peer: &Member) {
        let mut table = self.table.lock();
        table.serving.remove(feed);
        let (until, refusals) = table.put_off.entry((feed.clone(), peer.clone())).or_insert((Instant::now(), 0));
        *until = Instant::now() + backoff(FOLLOW_BACKOFF, *refusals);
        *refusals = refusals.saturating_add(1);
        drop(table);
        self.bump();
    }

    fn bump(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

impl Shared {
    /// Whether `feed` is an own one that this node does not continue itself.
    pub(crate) fn follows_own(&self, feed: &FeedId) -> bool {
        feed.member == self.me
            && (feed != self.own_feed() || matches!(*self.options.committer.gate().borrow(), Gate::InDoubt(_)))
    }

    /// Our own feeds to follow at `peer` over `link`, and when to look again if something was put off.
    pub(crate) fn own_at(&self, peer: &Member, link: LinkNumber) -> (BTreeSet<FeedId>, Option<Instant>) {
        let (roster, now) = (self.options.rosters.load().newest_shared(), Instant::now());
        let settled = roster.member(&self.me).map(|entry| entry.closed_feeds.clone()).unwrap_or_default();
        let mut table = self.own.table.lock();
        let Table { shown, serving, put_off } = &mut *table;
        let (mut feeds, mut again) = (BTreeSet::new(), None::<Instant>);
        for (feed, size) in shown.get(peer).iter().flat_map(|shown| &shown.sizes) {
            let held = self.store().feed(feed).map_or(0, |state| state.frontier.size());
            // What the governors have settled is all there is.
            let full = settled.iter().any(|closed| closed.epoch == feed.epoch && held >= closed.size);
            let wanted = *size > held && !full && self.follows_own(feed) && !self.stopped_feeds.contains(feed);
            if !wanted {
                continue;
            }
            if let Some((until, _)) = put_off.get(&(feed.clone(), peer.clone())).filter(|(until, _)| *until > now) {
                again = again.into_iter().chain([*until]).min();
                continue;
            }
            if let Some(other) = serving.get_mut(feed).filter(|serving| serving.link != link) {
                if other.held != held {
                    (other.held, other.since) = (held, now);
                }
                // Whoever has no more, or does not bring it, gives way.
                let has_more =
                    shown.get(&other.peer).and_then(|shown| shown.sizes.get(feed)).is_some_and(|size| *size > held);
                if has_more && now < other.since + PATIENCE {
                    again = again.into_iter().chain([other.since + PATIENCE]).min();
                    continue;
                }
            }
            let mine = Serving { link, peer: peer.clone(), held, since: now };
            match serving.get(feed) {
                Some(serving) if serving.link == link => {}
                _ => _ = serving.insert(feed.clone(), mine),
            }
            feeds.insert(feed.clone());
        }
        (feeds, again)
    }
}
