//! Metrics of a running node for a monitoring system, gathered for each request. Off unless
//! `node.toml` enables them.
//!
//! In scope: gathering them, their names (`text`), and the listener (`listen`). Metrics name
//! members, feeds and reasons of rejections; never bulletins, people or keys.

mod listen;
mod negotiate;
mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use barid_core::ids::FeedId;
use rustls::pki_types::UnixTime;

pub(super) use listen::{address, bind, serve};

use super::node::Node;
use crate::api::CallLimiter;
use crate::budgets::{Budgets, Usage};
use crate::committer::PublishState;
use crate::exchange::PeerStatus;
use crate::store::{DiskBytes, FsyncHistogram};
use crate::telemetry::alarms::ActiveAlarm;
use crate::telemetry::{self};
use crate::transport::validity;

/// All values at one moment.
#[derive(Debug, Default)]
struct MetricsSnapshot {
    /// Unix seconds.
    now: u64,
    /// Entries held, entries held in full, and envelope bytes committed since the start.
    feeds: BTreeMap<FeedId, (u64, u64, u64)>,
    commits: u64,
    stored_bulletins: u64,
    waiting: u64,
    syncs: FsyncHistogram,
    disk: DiskBytes,
    min_free_bytes: u64,
    /// By member, thousandths of its share of the disk.
    share_used: BTreeMap<String, u64>,
    corrected_bits: u64,
    index_lag: u64,
    peers: BTreeMap<String, PeerStatus>,
    publish_state: &'static str,
    /// Number of each kind.
    alarms: Vec<(&'static str, u64)>,
    /// Kind, name, and expiry in Unix seconds.
    expiries: Vec<(&'static str, String, i64)>,
    streams: BTreeMap<&'static str, u64>,
    /// Audit events, single or counted, by event and reason.
    events: BTreeMap<(&'static str, &'static str), u64>,
    roster_version: u64,
    budgets: Vec<Usage>,
}

/// Kinds of alarms with a series of their own.
const ALARM_KINDS: [&str; 10] = [
    "fork-conflict",
    "clock",
    "damage",
    "disk-full",
    "disk-low",
    "equivocation",
    "needs-recovery",
    "member-over-share",
    "other",
    "validity",
];

/// Counts the active alarms of each kind.
fn alarms_by_kind(active: &[ActiveAlarm]) -> Vec<(&'static str, u64)> {
    let mut counts = ALARM_KINDS.map(|kind| (kind, 0));
    for alarm in active {
        let reason = alarm.alarm.reason();
        let kind = if ALARM_KINDS.contains(&reason) { reason } else { "other" };
        counts.iter_mut().filter(|(name, _)| *name == kind).for_each(|(_, count)| *count += 1);
    }
    counts.into()
}

/// Source of the metrics. Cheap to clone.
#[derive(Clone)]
pub(super) struct MetricsSource {
    pub(super) node: Arc<Node>,
    pub(super) call_limiter: Arc<CallLimiter>,
    pub(super) budgets: Budgets,
}

impl MetricsSource {
    /// Returns the metrics as text. Blocks.
    fn text(&self) -> String {
        text::write(self.gather())
    }

    fn gather(&self) -> MetricsSnapshot {
        let Node { committer, store, exchange, .. } = self.node.as_ref();
        let bytes = committer.committed_bytes();
        let feeds = store.feeds().into_iter().map(|state| {
            let committed = bytes.get(&state.feed).copied().unwrap_or(0);
            (state.feed, (state.compact_range.size(), state.disclosed, committed))
        });
        let full = committer.disk_full().borrow().is_some();
        let publish_state = match &*committer.publish_state().borrow() {
            PublishState::Stopped(_) => "stopped",
            PublishState::NeedsRecovery(_) => "needs-recovery",
            PublishState::Open | PublishState::Starting if full => "disk-full",
            PublishState::Starting => "starting",
            PublishState::Open => "open",
        };
        let now = UnixTime::now();
        let count = |alarms: usize| u64::try_from(alarms).unwrap_or(u64::MAX);
        self.node.update_alarms();
        MetricsSnapshot {
            now: now.as_secs(),
            feeds: feeds.collect(),
            commits: store.seq(),
            stored_bulletins: store.end_offset().saturating_sub(1),
            waiting: count(committer.waiting()),
            syncs: store.fsync_histogram(),
            disk: store.disk_bytes(),
            corrected_bits: store.corrected_bits(),
            share_used: committer.share_used().into_iter().map(|(member, used)| (member.to_string(), used)).collect(),
            min_free_bytes: self.node.config.text.min_free_disk_mib << 20,
            index_lag: store.index_lag(),
            peers: exchange.peers().snapshot().into_iter().map(|(member, peer)| (member.to_string(), peer)).collect(),
            publish_state,
            alarms: alarms_by_kind(&exchange.alarms().snapshot()),
            expiries: self.expiries(),
            streams: self.call_limiter.streams_by_method(),
            events: telemetry::event_counts(),
            roster_version: self.node.rosters.load().newest().version(),
            budgets: self.budgets.usage(),
        }
    }

    fn expiries(&self) -> Vec<(&'static str, String, i64)> {
        let (node, domain) = (&self.node, &self.node.trust_domain);
        let mut expiries = Vec::new();
        if let Some(end) =
            node.credentials.certificate().and_then(|certificate| validity(&certificate)).map(|(_, end)| end)
        {
            expiries.push(("node", domain.clone(), end));
        }
        // Of several the first to expire.
        let authority = node.crls.trust.authorities_validity(domain).into_iter().map(|(_, end)| end).min();
        expiries.extend(authority.map(|end| ("authority", domain.clone(), end)));
        let mut crls: BTreeMap<String, i64> = BTreeMap::new();
        for list in node.crls.held.held(&node.crls.trust) {
            let next_update = crls.entry(list.trust_domain.clone()).or_insert(list.next_update);
            *next_update = list.next_update.min(*next_update);
        }
        expiries.extend(crls.into_iter().map(|(domain, next_update)| ("crl", domain, next_update)));
        expiries
    }
}
