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
use crate::telemetry;
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
    events: BTreeMap<(&'static str, String), u64>,
    roster_version: u64,
    budgets: Vec<Usage>,
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
        let (gate, in_doubt) = match &*committer.gate().borrow() {
            Gate::Stopped(_) => ("stopped", 0),
            Gate::InDoubt(_) => ("in-doubt", 1),
            Gate::Open | Gate::Starting if full => ("disk-full", 0),
            Gate::Starting => ("starting", 0),
            Gate::Open => ("open", 0),
        };
        let now = UnixTime::now();
        let count = |alarms: usize| u64::try_from(alarms).unwrap_or(u64::MAX);
        let stopped = exchange.peers().stopped_feeds().len();
        let others = exchange.peers().alarms().len().saturating_sub(stopped);
        Figures {
            now: now.as_secs(),
            feeds: feeds.collect(),
            commits: store.seq(),
            arrivals: store.end_arrival().saturating_sub(1),
            waiting: count(committer.waiting()),
            syncs: store.sync_times(),
            disk: store.disk_bytes(),
            mended_bits: store.mended_bits(),
            reserve_bytes: self.node.config.text.reserve_mib << 20,
            view_lag: store.view_lag(),
            peers: exchange.peers().snapshot().into_iter().map(|(member, peer)| (member.to_string(), peer)).collect(),
            gate,
            alarms: vec![
                ("another-history", count(self.node.settled_alarms().len())),
                ("clock", count(self.node.clock_alarms().len())),
                ("damage", u64::from(store.damage().is_some())),
                ("disk-full", u64::from(full)),
                ("equivocation", count(stopped)),
                ("in-doubt", in_doubt),
                ("other", count(others)),
                ("validity", count(self.node.validity_alarms(now).len())),
            ],
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
