//! Assigns feeds to links: a member's feeds are followed over its own link; those of a member that
//! cannot be reached, or that has lost entries that others hold, at a relay.
//!
//! In scope: passing the state of links to `core::upstream`. Out of scope: the choice itself
//! (`core::upstream`), following (`receiver`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use barid_core::ids::{FeedId, Member};
use barid_core::upstream::{OwnerLag, RELAY_GRACE_MS, UpstreamSelector};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::ExchangeState;

/// How often the choice is made while a member cannot be reached; tree heads arrive as often.
pub(crate) const UPSTREAM_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often to check whether a linked member announces less than others.
const LAG_CHECK_INTERVAL: Duration = Duration::from_millis(RELAY_GRACE_MS);

/// Where the feeds of members are followed that cannot serve them themselves.
pub(crate) struct Upstreams {
    began: Instant,
    table: Mutex<UpstreamTable>,
}

/// At most as many entries as the roster has feeds.
#[derive(Default)]
struct UpstreamTable {
    chosen: BTreeMap<FeedId, UpstreamSelector>,
    behind: BTreeMap<FeedId, OwnerLag>,
}

/// The feeds to follow over one link beside the peer's own.
#[derive(Default)]
pub(crate) struct UpstreamFeeds {
    pub(crate) feeds: BTreeSet<FeedId>,
    /// When to check again; `None`: when a link opens or ends.
    pub(crate) next_check: Option<Instant>,
}

impl Default for Upstreams {
    fn default() -> Self {
        Self { began: Instant::now(), table: Mutex::default() }
    }
}

#[cfg(test)]
impl Upstreams {
    /// Returns the member at which a feed is followed in place of its owner.
    pub(crate) fn at(&self, feed: &FeedId) -> Option<Member> {
        self.table.lock().chosen.get(feed).and_then(|relay| relay.at().cloned())
    }
}

impl ExchangeState {
    /// Chooses again for every feed whose owner is not linked or behind, and returns those that
    /// `peer` is to serve.
    pub(crate) fn upstream_feeds_at(&self, peer: &Member) -> UpstreamFeeds {
        let (roster, now) = (self.options.rosters.load().newest_shared(), Instant::now());
        let now_ms = u64::try_from((now - self.upstreams.began).as_millis()).unwrap_or(u64::MAX);
        let mut upstream_feeds = UpstreamFeeds::default();
        let mut table = self.upstreams.table.lock();
        let UpstreamTable { chosen, behind } = &mut *table;
        for owner in roster.entries().map(|entry| &entry.code).filter(|code| **code != self.me) {
            let unlinked = self.peers.unlinked_since(owner, self.upstreams.began);
            upstream_feeds
                .check_by(now + if unlinked.is_some() { UPSTREAM_CHECK_INTERVAL } else { LAG_CHECK_INTERVAL });
            if unlinked.is_some_and(|unlinked| now < unlinked + Duration::from_millis(RELAY_GRACE_MS)) {
                continue;
            }
            for feed in
                self.feeds_in_force(owner, &roster).into_iter().filter(|feed| !self.stopped_feeds.contains(feed))
            {
                let held = self.store().feed(&feed).map_or(0, |state| state.compact_range.size());
                let replica_sizes = self.peers.replica_sizes(&feed);
                if unlinked.is_none() {
                    let others = replica_sizes.iter().map(|(_, size)| *size).max().unwrap_or(0);
                    let owner_size = self.peers.replica_size(owner, &feed);
                    if !behind.entry(feed.clone()).or_default().update(held, owner_size, others, now_ms) {
                        chosen.remove(&feed);
                        continue;
                    }
                    upstream_feeds.check_by(now + UPSTREAM_CHECK_INTERVAL);
                }
                let relay = chosen.entry(feed.clone()).or_default();
                let before = relay.at().cloned();
                let at = relay.choose(held, &replica_sizes, now_ms);
                if at != before.as_ref() {
                    let relay = at.map(Member::as_str);
                    tracing::info!(
                        %feed,
                        relay,
                        held,
                        "the owner is unreachable or behind: the upstream of the feed has changed"
                    );
                }
                if at == Some(peer) {
                    upstream_feeds.feeds.insert(feed);
                }
            }
        }
        upstream_feeds
    }
}

impl UpstreamFeeds {
    fn check_by(&mut self, at: Instant) {
        self.next_check = self.next_check.into_iter().chain([at]).min();
    }
}
