//! Which feeds are followed over which link: a member's own over its link, and those of members that cannot be reached at a relay.
//!
//! In scope: feeding `core::relay` with what links show. Out of scope: the choice itself (core), following (`reader`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use barid_core::names::{FeedId, Member};
use barid_core::relay::{RELAY_GRACE_MS, Relay};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Shared;

/// How often the choice is looked at while a member cannot be reached; heads come as often.
pub(crate) const CHOOSE_EVERY: Duration = Duration::from_secs(1);

/// Where the feeds of members are followed that cannot be reached.
pub(crate) struct Relays {
    began: Instant,
    chosen: Mutex<BTreeMap<FeedId, Relay>>,
}

/// What is to be followed over one link beside the peer's own feeds.
#[derive(Default)]
pub(crate) struct Relayed {
    pub(crate) feeds: BTreeSet<FeedId>,
    /// When to look again; `None`: when a link opens or ends.
    pub(crate) look_again: Option<Instant>,
}

impl Default for Relays {
    fn default() -> Self {
        Self { began: Instant::now(), chosen: Mutex::default() }
    }
}

impl Relays {
    /// Where a feed is followed instead of at its owner.
    pub(crate) fn at(&self, feed: &FeedId) -> Option<Member> {
        self.chosen.lock().get(feed).and_then(|relay| relay.at().cloned())
    }
}

impl Shared {
    /// Chooses anew for every feed whose owner is away, and tells which of them `peer` is to serve.
    pub(crate) fn relayed_by(&self, peer: &Member) -> Relayed {
        let (roster, now) = (self.options.rosters.load().newest_shared(), Instant::now());
        let mut relayed = Relayed::default();
        let mut chosen = self.relays.chosen.lock();
        for owner in roster.entries().map(|entry| &entry.code).filter(|code| **code != self.me) {
            let away = self.peers.away_since(owner, self.relays.began);
            let feeds = self.wanted(owner, &roster);
            let Some(away) = away.filter(|_| owner != peer) else {
                if away.is_none() {
                    feeds.iter().for_each(|feed| _ = chosen.remove(feed));
                }
                continue;
            };
            relayed.look_again = Some(now + CHOOSE_EVERY);
            if now < away + Duration::from_millis(RELAY_GRACE_MS) {
                continue;
            }
            let now_ms = u64::try_from((now - self.relays.began).as_millis()).unwrap_or(u64::MAX);
            for feed in feeds.into_iter().filter(|feed| !self.peers.is_stopped(feed)) {
                let held = self.store().feed(&feed).map_or(0, |state| state.frontier.size());
                let relay = chosen.entry(feed.clone()).or_default();
                let before = relay.at().cloned();
                let at = relay.choose(held, &self.peers.shown_of(&feed), now_ms);
                if at != before.as_ref() {
                    tracing::info!(%feed, relay = at.map(Member::as_str), held, "its owner is away: followed elsewhere");
                }
                if at == Some(peer) {
                    relayed.feeds.insert(feed);
                }
            }
        }
        relayed
    }
}
