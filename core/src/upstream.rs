//! Selects a relay for a feed while its owner is unreachable.
//!
//! In scope: choosing one of the linked peers, and changing the choice. Pure: the sizes reported by
//! peers and the time are arguments. Out of scope: when an owner counts as unreachable, and
//! following itself.
//!
//! The choice is the peer with the largest feed; among several, the one with the lowest code. It
//! does not change while the peer delivers entries. A reported size may be false, so only delivered
//! entries keep a peer selected. A peer that delivered nothing is tried again after all others have
//! had their turn. Once a peer has delivered entries, an unproven peer with a false size costs
//! [`RELAY_UNPROVEN_MS`] once, and nothing after that.

use std::collections::BTreeMap;

use crate::ids::Member;

/// How long the owner's link may be down before a relay is selected. A link that breaks and comes
/// back costs relays nothing.
pub const RELAY_GRACE_MS: u64 = 5_000;
/// How long a relay that reports more entries may deliver nothing before another peer that is ahead
/// gets its turn: enough for a batch on a slow link.
pub const RELAY_IDLE_TIMEOUT_MS: u64 = 30_000;
/// The same for a relay that does not report more entries. Tree heads of other peers arrive up to a
/// second later than its entries.
pub const RELAY_CAUGHT_UP_TIMEOUT_MS: u64 = 3_000;

/// The same for a relay that has never delivered anything, while a peer that has delivered is
/// ahead.
pub const RELAY_UNPROVEN_MS: u64 = 5_000;
/// Largest number of failed turns that is counted.
const FAILED_MAX: u32 = 16;

/// The current relay of one feed, and the experience with its peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamSelector {
    at: Option<Member>,
    held: u64,
    since_ms: u64,
    /// Peers tried since the last entry arrived.
    tried: Vec<Member>,
    /// For each peer that had a turn: how many times in a row it reported more entries and
    /// delivered none. 0 means that its last turn delivered entries.
    failures: BTreeMap<Member, u32>,
}

impl UpstreamSelector {
    /// Returns the current relay, if there is one.
    #[must_use]
    pub fn at(&self) -> Option<&Member> {
        self.at.as_ref()
    }

    /// Updates the choice. `held` is the number of entries held here; `peer_sizes` are the sizes
    /// reported by the linked peers other than the owner; `now_ms` is of a monotonic clock.
    pub fn choose(&mut self, held: u64, peer_sizes: &[(Member, u64)], now_ms: u64) -> Option<&Member> {
        if held != self.held {
            (self.held, self.since_ms) = (held, now_ms);
            self.tried.clear();
            self.failures.extend(self.at.clone().map(|at| (at, 0)));
        }
        // Peers that have delivered come first, then unknown peers, then peers that failed.
        let failure_rank =
            |peer: &Member| self.failures.get(peer).map_or(1, |failed| if *failed == 0 { 0 } else { failed + 1 });
        let current = self.at.as_ref().and_then(|at| peer_sizes.iter().find(|(peer, _)| peer == at));
        let ahead = peer_sizes.iter().filter(|(peer, size)| *size > held && current.is_none_or(|(at, _)| at != peer));
        let candidate = ahead.min_by(|(a, a_size), (b, b_size)| {
            let tried = self.tried.contains(a).cmp(&self.tried.contains(b));
            let failed = failure_rank(a).max(1).cmp(&failure_rank(b).max(1));
            tried.then(failed).then_with(|| b_size.cmp(a_size)).then_with(|| a.cmp(b))
        });
        let switches = current.is_none_or(|(at, size)| {
            let better = candidate.is_some_and(|(peer, _)| failure_rank(peer) == 0);
            let idle_timeout = match failure_rank(at) {
                _ if *size <= held => RELAY_CAUGHT_UP_TIMEOUT_MS,
                1 if better => RELAY_UNPROVEN_MS,
                2.. if better => 0,
                _ => RELAY_IDLE_TIMEOUT_MS,
            };
            candidate.is_some() && now_ms.saturating_sub(self.since_ms) >= idle_timeout
        });
        if switches {
            self.tried.retain(|tried| peer_sizes.iter().any(|(peer, _)| peer == tried));
            if candidate.is_some_and(|(peer, _)| self.tried.contains(peer)) {
                self.tried.clear();
            }
            self.tried.extend(current.map(|(peer, _)| peer.clone()));
            if let Some((peer, _)) = current.filter(|(_, size)| *size > held) {
                let failed = self.failures.entry(peer.clone()).or_default();
                *failed = (*failed + 1).min(FAILED_MAX);
            }
            self.at = candidate.map(|(peer, _)| peer.clone());
            self.since_ms = now_ms;
        }
        self.at.as_ref()
    }
}

/// Decides whether a feed must be followed at a relay although its owner is linked.
///
/// A member that lost its store cannot serve what it had published, and it may have no link to the
/// members that hold it. So if the owner reports no more entries than are held here, and another
/// peer does, for longer than a catch-up takes, that peer becomes a relay as if the owner were
/// unreachable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerLag {
    since_ms: Option<u64>,
}

impl OwnerLag {
    /// Updates the state, and returns whether a relay is needed. `owner` is the size that the owner
    /// reports, if it is linked and has had time to report; `others` is the largest size that
    /// another linked peer reports.
    pub fn update(&mut self, held: u64, owner: Option<u64>, others: u64, now_ms: u64) -> bool {
        let behind = others > held && owner.is_some_and(|size| size <= held);
        let since_ms = self.since_ms.filter(|_| behind).or_else(|| behind.then_some(now_ms));
        self.since_ms = since_ms;
        since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= RELAY_GRACE_MS)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn member(code: &str) -> Member {
        code.parse().unwrap()
    }

    #[test]
    fn furthest_relay_stays_selected_while_it_delivers() {
        let (ly, ne, tn) = (member("ly"), member("ne"), member("tn"));
        let peer_sizes =
            |sizes: [u64; 3]| -> Vec<(Member, u64)> { [&ly, &ne, &tn].into_iter().cloned().zip(sizes).collect() };
        let mut relay = UpstreamSelector::default();
        assert_eq!(relay.choose(5, &peer_sizes([5, 3, 0]), 0), None, "no relay is ahead");
        assert_eq!(relay.choose(5, &peer_sizes([9, 10, 10]), 1_000), Some(&ne), "of two equal relays the lower code");
        assert_eq!(relay.choose(6, &peer_sizes([9, 10, 99]), 2_000), Some(&ne), "it remains selected");
        assert_eq!(
            relay.choose(6, &peer_sizes([9, 10, 99]), 2_000 + RELAY_IDLE_TIMEOUT_MS),
            Some(&tn),
            "it delivered nothing"
        );
        assert_eq!(relay.choose(99, &peer_sizes([9, 100, 99]), 40_000), Some(&tn));
        assert_eq!(
            relay.choose(99, &peer_sizes([9, 100, 99]), 40_000 + RELAY_CAUGHT_UP_TIMEOUT_MS),
            Some(&ne),
            "it fell behind"
        );
        assert_eq!(
            relay.choose(99, &peer_sizes([9, 100, 99])[..1], 50_000),
            None,
            "it is gone and no other relay is ahead"
        );
        assert_eq!(relay.choose(99, &peer_sizes([9, 100, 99]), 60_000), Some(&ne));
        assert_eq!(
            relay.choose(100, &peer_sizes([100, 100, 100]), 99_000),
            Some(&ne),
            "all are equal: it remains selected"
        );
    }

    #[test]
    fn owner_behind_its_replicas_is_bypassed_after_the_grace_period() {
        let mut behind = OwnerLag::default();
        assert!(!behind.update(3, Some(3), 5, 1_000));
        assert!(!behind.update(4, Some(4), 5, 2_000), "the grace period runs");
        assert!(behind.update(4, Some(4), 5, 1_000 + RELAY_GRACE_MS));
        assert!(behind.update(4, Some(2), 5, 9_000), "it lags even more");
        assert!(!behind.update(5, Some(2), 5, 9_000), "nothing is missing");
        assert!(!behind.update(5, Some(5), 6, 9_000), "the grace period starts again");
        assert!(!behind.update(5, Some(6), 6, 99_000), "the owner has caught up");
        assert!(!behind.update(5, None, 6, 99_000), "an owner without a known size is not bypassed");
    }

    #[test]
    fn false_size_delays_catch_up_once_only() {
        let (dishonest, honest) = (member("dz"), member("ly"));
        let mut relay = UpstreamSelector::default();
        let (mut held, mut waited, mut now_ms) = (0, Vec::new(), 0);
        for entry in 1..=20_u64 {
            // One entry per minute, delivered only by the honest peer.
            let peer_sizes = [(dishonest.clone(), 1_000_000), (honest.clone(), entry)];
            let since = now_ms;
            while held < entry {
                if relay.choose(held, &peer_sizes, now_ms) == Some(&honest) {
                    held = entry;
                }
                now_ms += 500;
            }
            waited.push(now_ms - since);
            let until = since + 60_000;
            while now_ms < until {
                relay.choose(held, &peer_sizes, now_ms);
                now_ms += 500;
            }
        }
        assert!(waited[0] <= RELAY_IDLE_TIMEOUT_MS + 1_000, "neither relay has a record yet: {waited:?}");
        assert!(waited[1..].iter().all(|waited| *waited <= RELAY_UNPROVEN_MS + 500), "{waited:?}");
        assert!(waited[3..].iter().all(|waited| *waited <= 500), "{waited:?}");
    }

    #[test]
    fn relays_that_deliver_nothing_are_rotated_through_all() {
        let peer_sizes: Vec<(Member, u64)> = ["ly", "ne", "tn", "td"].map(|code| (member(code), 9)).into();
        let mut relay = UpstreamSelector::default();
        let mut turns = Vec::new();
        for turn in 0..6 {
            turns.extend(relay.choose(0, &peer_sizes, turn * RELAY_IDLE_TIMEOUT_MS).map(Member::to_string));
        }
        assert_eq!(turns, ["ly", "ne", "td", "tn", "ly", "ne"]);
    }

    #[test]
    fn relay_that_delivers_nothing_is_retried_only_without_alternative() {
        let (ly, tn) = (member("ly"), member("tn"));
        let peer_sizes = [(ly.clone(), 9), (tn.clone(), 9)];
        let mut relay = UpstreamSelector::default();
        assert_eq!(relay.choose(0, &peer_sizes, 0), Some(&ly));
        assert_eq!(relay.choose(0, &peer_sizes, RELAY_IDLE_TIMEOUT_MS), Some(&tn));
        assert_eq!(relay.choose(0, &peer_sizes, 2 * RELAY_IDLE_TIMEOUT_MS), Some(&ly));
        assert_eq!(relay.choose(0, &peer_sizes[..1], 9 * RELAY_IDLE_TIMEOUT_MS), Some(&ly));
    }
}
