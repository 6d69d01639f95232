//! Implements the operator API: status, alarms, reload.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arc_swap::ArcSwap;
use barid_core::ids::{FeedId, Member, Undisclosed};
use barid_core::proto;
use barid_core::quota::OverQuota;
use bytes::Bytes;
use futures::future::BoxFuture;
use rustls::pki_types::UnixTime;

use super::crls::Crls;
use crate::access::Access;
use crate::api;
use crate::committer::{Committer, PublishState};
use crate::config::NodeConfig;
use crate::exchange::{Exchange, PeerStatus};
use crate::roster_store::RosterStore;
use crate::store::Store;
use crate::telemetry::alarms::{ActiveAlarm, Alarm};
use crate::transport::Credentials;

/// Most ranges not held that a status lists for each peer.
const NOT_HELD_LISTED_MAX: usize = 1_000;

/// The parts of the node that operators see and control.
pub(super) struct Node {
    pub(super) committer: Committer,
    pub(super) config: NodeConfig,
    pub(super) exchange: Exchange,
    pub(super) store: Arc<dyn Store>,
    pub(super) access: Arc<ArcSwap<Access>>,
    pub(super) credentials: Credentials,
    pub(super) crls: Crls,
    pub(super) rosters: RosterStore,
    pub(super) trust_domain: String,
    pub(super) grace_seconds: i64,
    pub(super) reloading: tokio::sync::Mutex<()>,
    /// Why the last reload changed nothing, if it failed.
    pub(super) reload_error: parking_lot::Mutex<Option<String>>,
}

/// Members' use of the disk, by the committer.
struct DiskShares {
    used: BTreeMap<Member, u64>,
    over_share: BTreeMap<Member, OverQuota>,
}

impl Node {
    /// Updates the alarms whose causes are polled.
    pub(super) fn update_alarms(&self) {
        let mut watched = self.expiry_alarms(UnixTime::now());
        watched.extend(self.clock_alarms());
        watched.extend(self.fork_conflict_alarms());
        watched.extend(self.store.damage());
        watched.extend(super::disk::alarms(&self.committer, self.store.as_ref()));
        watched.extend(self.reload_alarm());
        if let PublishState::NeedsRecovery(why) = &*self.committer.publish_state().borrow() {
            watched.push(Alarm::NeedsRecovery { why: why.clone() });
        }
        self.exchange.alarms().sync_watched(watched);
    }

    fn peer(&self, member: &Member, peer: &PeerStatus, shares: &DiskShares) -> proto::PeerStatus {
        let feed = peer.feed.as_ref();
        let state = feed.and_then(|feed| self.store.feed(feed));
        let ranges =
            feed.and_then(|feed| self.store.undisclosed_ranges(feed, NOT_HELD_LISTED_MAX).ok()).unwrap_or_default();
        let ranges = with_owner_withheld(ranges, feed.map_or(0, |feed| self.exchange.owner_scanned_to(feed)));
        let held = state.as_ref().map_or(0, |state| state.compact_range.size());
        let lag_entries = peer.known_size.saturating_sub(held);
        let now = u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0);
        let since = if peer.behind_since_unix_ms == 0 { now } else { peer.behind_since_unix_ms / 1_000 };
        proto::PeerStatus {
            member: member.to_string(),
            linked: peer.linked,
            since: at(peer.since_unix_ms / 1_000),
            last_error: peer.last_error.clone(),
            feed: state.map(|state| proto::FeedStatus {
                feed: state.feed.to_string(),
                size: held,
                root: Bytes::copy_from_slice(&state.compact_range.root().0),
                disclosed: state.disclosed,
            }),
            lag_entries,
            lag_seconds: if lag_entries == 0 { 0 } else { now.saturating_sub(since) },
            undisclosed_ranges: ranges
                .into_iter()
                .map(|(range, reason)| proto::UndisclosedRange {
                    range: Some(proto::IndexRange { start: range.start, end: range.end }),
                    reason: reason.as_str().into(),
                })
                .collect(),
            cosigned_size: peer.cosigned_size,
            last_cosignature: at(peer.cosigned_time),
            last_heartbeat: at(peer.heartbeat_time),
            custody_size: peer.custody_size,
            share_used_percent: u32::try_from(shares.used.get(member).copied().unwrap_or(0) / 10).unwrap_or(u32::MAX),
            over_share: shares.over_share.contains_key(member),
        }
    }
}

/// Reclassifies ranges that a relay did not hold. If the feed's owner, who was asked about
/// everything before `owner_scanned_to`, did not send them either, they are withheld from this
/// member.
fn with_owner_withheld(
    ranges: Vec<(Range<u64>, Undisclosed)>,
    owner_scanned_to: u64,
) -> Vec<(Range<u64>, Undisclosed)> {
    let parts = ranges.into_iter().flat_map(|(range, reason)| {
        let split =
            if reason == Undisclosed::NotHeld { owner_scanned_to.clamp(range.start, range.end) } else { range.start };
        [(range.start..split, Undisclosed::Withheld), (split..range.end, reason)]
    });
    parts.filter(|(range, _)| !range.is_empty()).collect()
}

/// Returns a timestamp; `None` for 0.
fn at(unix_seconds: u64) -> Option<prost_types::Timestamp> {
    let seconds = i64::try_from(unix_seconds).ok().filter(|seconds| *seconds > 0)?;
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

impl api::NodeControl for Node {
    fn peers(&self) -> Vec<proto::PeerStatus> {
        let shares = DiskShares { used: self.committer.share_used(), over_share: self.committer.over_share() };
        let peers = self.exchange.peers().snapshot();
        peers.iter().map(|(member, peer)| self.peer(member, peer, &shares)).collect()
    }

    fn resume_feed<'a>(&'a self, feed: &'a FeedId) -> BoxFuture<'a, Result<bool, String>> {
        Box::pin(self.exchange.resume_feed(feed))
    }

    fn alarms(&self) -> Vec<ActiveAlarm> {
        self.update_alarms();
        self.exchange.alarms().snapshot()
    }

    fn reload<'a>(&'a self, caller: &'a str) -> BoxFuture<'a, Result<Vec<String>, String>> {
        Box::pin(self.reload_for(caller))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_the_owner_did_not_give_are_withheld() {
        let (held, withheld) = (Undisclosed::NotHeld, Undisclosed::Withheld);
        let ranges = || vec![(0..3, held), (3..5, Undisclosed::Unfollowed), (7..12, held)];
        assert_eq!(with_owner_withheld(ranges(), 0), ranges());
        let resolved = with_owner_withheld(ranges(), 9);
        assert_eq!(resolved, [(0..3, withheld), (3..5, Undisclosed::Unfollowed), (7..9, withheld), (9..12, held)]);
        assert_eq!(with_owner_withheld(ranges(), 99).last(), Some(&(7..12, withheld)));
    }
}
