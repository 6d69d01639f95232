//! Which feeds are followed over which link: a member's own over its link, and those of members that cannot be reached, or that have lost what
//! others hold, at a relay.
//!
//! In scope: feeding `core::relay` with what links show. Out of scope: the choice itself (core), following (`reader`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use barid_core::names::{FeedId, Member};
use barid_core::relay::{Behind, RELAY_GRACE_MS, Relay};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Shared;

/// How often the choice is looked at while a member cannot be reached; heads come as often.
pub(crate) const CHOOSE_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked at whether a linked member shows less than others.
const COMPARE_EVERY: Duration = Duration::from_millis(RELAY_GRACE_MS);

/// Where the feeds of members are followed that cannot serve them.
pub(crate) struct Relays {
    began: Instant,
    table: Mutex<Table>,
}

/// As many as the roster has feeds.
#[derive(Default)]
struct Table {
    chosen: BTreeMap<FeedId, Relay>,
    behind: BTreeMap<FeedId, Behind>,
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
        Self { began: Instant::now(), table: Mutex::default() }
    }
}

impl Relays {
    /// Where a feed is followed instead of at its owner.
    pub(crate) fn at(&self, feed: &FeedId) -> Option<Member> {
        self.table.lock().chosen.get(feed).and_then(|relay| relay.at().cloned())
    }
}

impl Shared {
    /// Chooses anew for every feed whose owner is away or behind, and tells which of them `peer` is to serve.
    pub(crate) fn relayed_by(&self, peer: &Member) -> Relayed {
        let (roster, now) = (self.options.rosters.load().newest_shared(), Instant::now());
        let now_ms = u64::try_from((now - self.relays.began).as_millis()).unwrap_or(u64::MAX);
        let mut relayed = Relayed::default();
        let mut table = self.relays.table.lock();
        let Table { chosen, behind } = &mut *table;
        for owner in roster.entries().map(|entry| &entry.code).filter(|code| **code != self.me) {
            let away = self.peers.away_since(owner, self.relays.began);
            relayed.look_by(now + if away.is_some() { CHOOSE_EVERY } else { COMPARE_EVERY });
            if away.is_some_and(|away| now < away + Duration::from_millis(RELAY_GRACE_MS)) {
                continue;
            }
            for feed in self.wanted(owner, &roster).into_iter().filter(|feed| !self.stopped_feeds.contains(feed)) {
                let held = self.store().feed(&feed).map_or(0, |state| state.frontier.size());
                let shown = self.peers.shown_of(&feed);
                if away.is_none() {
                    let others = shown.iter().map(|(_, size)| *size).max().unwrap_or(0);
                    let owner_shows = self.peers.shown_by(owner, &feed);
                    if !behind.entry(feed.clone()).or_default().look(held, owner_shows, others, now_ms) {
                        chosen.remove(&feed);
                        continue;
                    }
                    relayed.look_by(now + CHOOSE_EVERY);
                }
                let relay = chosen.entry(feed.clone()).or_default();
                let before = relay.at().cloned();
                let at = relay.choose(held, &shown, now_ms);
                if at != before.as_ref() {
                    let relay = at.map(Member::as_str);
                    tracing::info!(%feed, relay, held, "its owner is away, or behind: followed elsewhere");
                }
                if at == Some(peer) {
                    relayed.feeds.insert(feed);
                }
            }
        }
        relayed
    }
}

impl Relayed {
    fn look_by(&mut self, at: Instant) {
        self.look_again = self.look_again.into_iter().chain([at]).min();
    }
}
