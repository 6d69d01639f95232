//! Figures of a running node for a monitoring system, gathered when they are asked for.
//!
//! In scope: what is told (`text` names it), and the listener (`listen`). Off unless `node.toml` asks for it. Figures name members, feeds and
//! what was refused; never bulletins, people or keys.

mod listen;
mod negotiate;
mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use barid_core::names::FeedId;
use rustls::pki_types::UnixTime;

pub(super) use listen::{address, bind, serve};

use super::node::Node;
use crate::api::Pace;
use crate::budgets::{Budgets, Usage};
use crate::committer::Gate;
use crate::exchange::PeerSnapshot;
use crate::store::{DiskBytes, SyncTimes};
use crate::telemetry::alarms::ActiveAlarm;
use crate::telemetry::{self};
use crate::transport::validity;

/// Everything that is told, at one moment.
#[derive(Debug, Default)]
struct Figures {
    /// Unix seconds.
    now: u64,
    /// Entries held, entries held in full, and envelope bytes committed since the start.
    feeds: BTreeMap<FeedId, (u64, u64, u64)>,
    commits: u64,
    arrivals: u64,
    waiting: u64,
    syncs: SyncTimes,
    disk: DiskBytes,
    reserve_bytes: u64,
    /// By member, thousandths of its share of the room on the disk.
    share_used: BTreeMap<String, u64>,
    mended_bits: u64,
    view_lag: u64,
    peers: BTreeMap<String, PeerSnapshot>,
    gate: &'static str,
    /// How many of each kind.
    alarms: Vec<(&'static str, u64)>,
    /// Unix seconds of ends: what, and whose.
    ends: Vec<(&'static str, String, i64)>,
    streams: BTreeMap<&'static str, u64>,
    /// Events that were recorded or counted: what, reason.
    events: BTreeMap<(&'static str, &'static str), u64>,
    roster_version: u64,
    budgets: Vec<Usage>,
}

/// Kinds of alarms that are counted apart.
const ALARM_KINDS: [&str; 10] = [
    "another-history",
    "clock",
    "damage",
    "disk-full",
    "disk-low",
    "equivocation",
    "in-doubt",
    "member-over-share",
    "other",
    "validity",
];

/// How many alarms of each kind are active.
fn alarms_by_kind(active: &[ActiveAlarm]) -> Vec<(&'static str, u64)> {
    let mut counts = ALARM_KINDS.map(|kind| (kind, 0));
    for alarm in active {
        let reason = alarm.alarm.reason();
        let kind = if ALARM_KINDS.contains(&reason) { reason } else { "other" };
        counts.iter_mut().filter(|(counted, _)| *counted == kind).for_each(|(_, count)| *count += 1);
    }
    counts.into()
}

/// Where the figures come from. Cheap to clone.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) node: Arc<Node>,
    pub(super) pace: Arc<Pace>,
    pub(super) budgets: Budgets,
}

impl Source {
    /// The figures as text. Blocks.
    fn text(&self) -> String {
        text::write(self.gather())
    }

    fn gather(&self) -> Figures {
        let Node { committer, store, exchange, .. } = self.node.as_ref();
        let bytes = committer.committed_bytes();
        let feeds = store.feeds().into_iter().map(|state| {
            let committed = bytes.get(&state.feed).copied().unwrap_or(0);
            (state.feed, (state.frontier.size(), state.disclosed, committed))
        });
        let full = committer.disk_full().borrow().is_some();
        let gate = match &*committer.gate().borrow() {
            Gate::Stopped(_) => "stopped",
            Gate::InDoubt(_) => "in-doubt",
            Gate::Open | Gate::Starting if full => "disk-full",
            Gate::Starting => "starting",
            Gate::Open => "open",
        };
        let now = UnixTime::now();
        let count = |alarms: usize| u64::try_from(alarms).unwrap_or(u64::MAX);
        self.node.settle_alarms();
        Figures {
            now: now.as_secs(),
            feeds: feeds.collect(),
            commits: store.seq(),
            arrivals: store.end_arrival().saturating_sub(1),
            waiting: count(committer.waiting()),
            syncs: store.sync_times(),
            disk: store.disk_bytes(),
            mended_bits: store.mended_bits(),
            share_used: committer.share_used().into_iter().map(|(member, used)| (member.to_string(), used)).collect(),
            reserve_bytes: self.node.config.text.reserve_mib << 20,
            view_lag: store.view_lag(),
            peers: exchange.peers().snapshot().into_iter().map(|(member, peer)| (member.to_string(), peer)).collect(),
            gate,
            alarms: alarms_by_kind(&exchange.alarms().snapshot()),
            ends: self.ends(),
            streams: self.pace.streams_by_method(),
            events: telemetry::counted(),
            roster_version: self.node.rosters.load().newest().version(),
            budgets: self.budgets.usage(),
        }
    }

    fn ends(&self) -> Vec<(&'static str, String, i64)> {
        let (node, domain) = (&self.node, &self.node.trust_domain);
        let mut ends = Vec::new();
        if let Some(end) =
            node.credentials.certificate().and_then(|certificate| validity(&certificate)).map(|(_, end)| end)
        {
            ends.push(("node", domain.clone(), end));
        }
        // Of several the first to end.
        let authority = node.lists.trust.authorities_validity(domain).into_iter().map(|(_, end)| end).min();
        ends.extend(authority.map(|end| ("authority", domain.clone(), end)));
        let mut lists: BTreeMap<String, i64> = BTreeMap::new();
        for list in node.lists.held.held(&node.lists.trust) {
            let due = lists.entry(list.trust_domain.clone()).or_insert(list.next_update);
            *due = list.next_update.min(*due);
        }
        ends.extend(lists.into_iter().map(|(domain, due)| ("revocation-list", domain, due)));
        ends
    }
}
