//! Serves feeds to peers: batches, with a bounded number in flight.

use std::collections::VecDeque;

use barid_core::bulletin::TopicFilter;
use barid_core::envelope;
use barid_core::ids::{FeedId, Member};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::proto::item::Item;
use barid_core::serve;
use bytes::Bytes;
use prost::Message;

use crate::live::Serving;
use crate::node::{Content, Entry};
use crate::world::World;
use crate::{Mutation, defects, future_version};

/// Maximum entries of a batch, small enough that a catch-up takes several.
const ENTRIES_MAX: u64 = 9;

impl World {
    pub(crate) fn followed(&mut self, from: usize, to: usize, follow: &proto::Follow) {
        let Ok(feed) = follow.feed.parse::<FeedId>() else { return };
        if self.nodes[to].disk.chain.newest().feed_keys(&feed).is_empty() {
            return;
        }
        let filters: Vec<TopicFilter> = follow.topics.iter().filter_map(|topic| topic.parse().ok()).collect();
        if self.nodes[to].nature.mute {
            return;
        }
        if !follow.ranges.is_empty() {
            return self.receive_backfill_request(from, to, &feed, &follow.ranges, &filters);
        }
        let serving = Serving { next: follow.from, filters, stored: follow.from, in_flight: VecDeque::new() };
        let live = &mut self.nodes[to].live;
        live.serving.insert((from, feed.clone()), serving);
        // The peer may have dropped entries of the previous request.
        live.unmatched.entry(from).and_modify(|unmatched| unmatched.retain(|other| *other != feed));
        // Urgent entries go before the first batch.
        self.send_priority(to, from);
        self.send_batches(to, from, &feed);
        // The window may be full of other entries.
        self.send_priority(to, from);
        self.expect_priority_deliveries(to, from, &feed, follow.from);
    }

    pub(crate) fn peer_stored(&mut self, from: usize, to: usize, stored: &proto::ReplicationProgress) {
        let Ok(feed) = stored.feed.parse::<FeedId>() else { return };
        let Some(serving) = self.nodes[to].live.serving.get_mut(&(from, feed.clone())) else { return };
        // Not beyond what was sent, whatever size the peer claims.
        serving.stored = serving.stored.max(stored.size.min(serving.next));
        while serving.in_flight.front().is_some_and(|end| *end <= stored.size) {
            serving.in_flight.pop_front();
        }
        self.send_batches(to, from, &feed);
        self.send_priority(to, from);
    }

    /// A feed has grown: sends the new entries to its followers. A node has two tasks for this, and
    /// either may be first.
    pub(crate) fn announce(&mut self, node: usize, feed: &FeedId, since: u64) {
        for peer in self.receivers_of(node, feed) {
            if self.random.chance(50) {
                self.send_priority(node, peer);
            }
            self.send_batches(node, peer, feed);
            // The window may be full of entries that are not urgent.
            self.send_priority(node, peer);
            self.expect_priority_deliveries(node, peer, feed, since);
        }
    }

    fn send_batches(&mut self, node: usize, peer: usize, feed: &FeedId) {
        loop {
            let Some(serving) = self.nodes[node].live.serving.get(&(peer, feed.clone())) else { return };
            if !serving.has_room() && !self.has(Mutation::UnboundedInFlight) {
                self.count("window full");
                return;
            }
            if !self.send_batch(node, peer, feed) {
                return;
            }
        }
    }

    fn send_batch(&mut self, node: usize, peer: usize, feed: &FeedId) -> bool {
        let reader = self.exchange.members[peer].clone();
        let entries_max = 1 + self.random.below(ENTRIES_MAX);
        let open = self.nodes[node].nature.leaky || self.has(Mutation::SkipAudience);
        let Some((message, end)) = self.batch(node, peer, feed, entries_max, open) else { return false };
        self.note("batch", node, &message.encode_to_vec());
        if let Some(serving) = self.nodes[node].live.serving.get_mut(&(peer, feed.clone())) {
            serving.next = end;
            serving.in_flight.push_back(end);
        }
        if !open {
            let envelopes = message.items.iter().filter_map(|item| match &item.item {
                Some(Item::Envelope(envelope)) => Some(envelope.clone()),
                _ => None,
            });
            self.check_disclosed(node, &reader, &envelopes.collect::<Vec<_>>());
        }
        let nature = self.nodes[node].nature.clone();
        let mut message = if self.has(Mutation::BlameOthers) { defects::blaming(message) } else { message };
        if nature.withholds {
            message = defects::withholding(message);
        }
        if nature.garbage && self.random.chance(40) {
            message = self.corrupted(message);
        }
        let message = if nature.newer { future_version::entries(message) } else { message };
        self.send(node, peer, Frame::Entries(message));
        true
    }

    /// Makes the next batch of a feed for a peer. Returns it, and one past its last entry.
    fn batch(
        &self,
        node: usize,
        peer: usize,
        feed: &FeedId,
        entries_max: u64,
        open: bool,
    ) -> Option<(proto::Entries, u64)> {
        let here = &self.nodes[node];
        let reader = &self.exchange.members[peer];
        let serving = here.live.serving.get(&(peer, feed.clone()))?;
        let log = here.log_for(feed, peer)?;
        let rest = log.entries.get(usize::try_from(serving.next).ok()?..)?;
        let bytes = |entry: &Entry| match &entry.content {
            Content::Disclosed { envelope, .. } => envelope.len(),
            Content::Undisclosed(_) => 0,
        };
        let len = serve::batch_len(rest.iter().map(bytes)).min(usize::try_from(entries_max).unwrap_or(1));
        let held = &rest[..len];
        if held.is_empty() {
            return None;
        }
        let end = serving.next + held.len() as u64;
        let items = if open {
            held.iter().map(defects::everything).collect()
        } else if self.has(Mutation::DiscloseByNewestRoster) {
            defects::by_newest(held, reader, &here.disk.chain)
        } else {
            let held = held.iter().map(|entry| (entry.digest, entry.held()));
            serve::items(held, reader, &serving.filters, &here.disk.chain)
        };
        let head = serve::Head {
            size: log.tree.size(),
            checkpoint_size: log.checkpoint_size,
            consistency_proof: &log.consistency_proof,
        };
        let proof = serve::plan_batch(&head, end, &log.tree).ok()??;
        Some((serve::message(feed, serving.next, items, log.checkpoint.clone(), &proof), end))
    }

    /// Checks that an honest node discloses no more than both the header's roster and its own
    /// newest one allow.
    pub(crate) fn check_disclosed(&mut self, node: usize, reader: &Member, envelopes: &[Bytes]) {
        let newest = self.nodes[node].disk.chain.newest().version();
        let Some(reader) = self.exchange.position(reader) else { return };
        for envelope in envelopes {
            let facts = self.model.facts.get(&envelope::digest(envelope));
            let by = |version: u64| {
                facts.is_some_and(|facts| self.exchange.at(version).is_some_and(|at| facts.admit(reader, at)))
            };
            if !(by(newest) && facts.is_some_and(|facts| by(facts.version))) {
                let reader = self.exchange.members[reader].clone();
                self.violated(node, format!("{reader} was sent an entry that it may not read"));
            }
        }
    }
}

/// Describes a frame for the event log.
pub(crate) fn describe(frame: &Frame) -> String {
    match frame {
        Frame::Follow(follow) if follow.ranges.is_empty() => format!("follow {} from {}", follow.feed, follow.from),
        Frame::Follow(follow) => format!("backfill request {} {:?}", follow.feed, follow.ranges),
        Frame::Entries(entries) => format!("{} from {}: {} items", entries.feed, entries.first, entries.items.len()),
        Frame::PriorityEntry(priority) => format!("priority {} {}", priority.feed, priority.index),
        Frame::ReplicationProgress(stored) => format!("stored {} {}", stored.feed, stored.size),
        Frame::BackfillResponse(backfills) => {
            format!("{}: {} backfills up to {}", backfills.feed, backfills.items.len(), backfills.scanned_to)
        }
        Frame::TreeHeads(heads) => {
            let line = |head: &proto::TreeHead| {
                let text = String::from_utf8_lossy(&head.checkpoint).lines().take(2).collect::<Vec<_>>().join(" ");
                head.held.map_or(text.clone(), |held| format!("{text} of which {held}"))
            };
            let heads: Vec<String> = heads.heads.iter().map(line).collect();
            format!("heads {}", heads.join(", "))
        }
        Frame::RosterRequest(request) => format!("roster request after {}", request.after),
        Frame::Rosters(rosters) => format!("{} rosters", rosters.notes.len()),
        Frame::ConsistencyRequest(request) => format!("consistency request {} at {}", request.feed, request.size),
        Frame::Consistency(response) => format!("consistency {} at {}", response.feed, response.size),
        _ => "something else".to_owned(),
    }
}
