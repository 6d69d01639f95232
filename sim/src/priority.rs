//! The priority lane: urgent entries that overtake their feed.
//!
//! In scope: sending and receiving them, two entries at one index, and that urgent entries arrive
//! in time (the model's own rule). Out of scope: which ones are sent and held (core), and matching
//! them when the feed reaches them (`node`).

use barid_core::bulletin::{Priority, header_priority};
use barid_core::feed::checkpoint::SignedCheckpoint;
use barid_core::feed::partial_proofs::partial_inclusion_proof;
use barid_core::follow::{EntryEquivocation, FaultKind, ProvenEntry, verify_priority};
use barid_core::ids::FeedId;
use barid_core::priority::{ClassLimits, PriorityInFlight, PriorityLimits, Progress, would_wait};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::serve::{may_send_priority, priority};
use bytes::Bytes;
use prost::Message;

use crate::live::PRIORITY_QUEUE_MAX;
use crate::node::{Content, Entry, Log, Work};
use crate::plan::TROUBLE;
use crate::world::{Event, World};
use crate::{Mutation, defects};

/// Limits of entries held ahead of the order: small, so that they are reached in some runs.
pub(crate) const ROOM: PriorityLimits = PriorityLimits {
    actual: ClassLimits { entries_max: 16, bytes_max: 1 << 20 },
    others: ClassLimits { entries_max: 8, bytes_max: 1 << 20 },
};
const ANY: ClassLimits = ClassLimits { entries_max: usize::MAX, bytes_max: usize::MAX };
/// No limits.
pub(crate) const ROOM_FOR_ALL: PriorityLimits = PriorityLimits { actual: ANY, others: ANY };
/// Frames between two scans.
const FRAMES_MAX: usize = 4;
/// Urgent entries of a feed that are scanned.
const LOOKED_AT_MAX: usize = 4 * ROOM.actual.entries_max;
/// Until this time frames sent during the trouble may be in flight, and delay others.
const SETTLED: u64 = TROUBLE + 30;
/// Within this time an urgent entry that a linked peer holds must arrive: one transmission and one
/// commit, whatever else is sent.
const LATENCY_MAX: u64 = 16;

/// An urgent entry that must have reached a follower at its deadline, unless something has changed
/// since.
pub(crate) struct DeliveryDeadline {
    feed: FeedId,
    index: u64,
    server: usize,
    receiver: usize,
    /// The starts of both nodes.
    starts: (u64, u64),
    /// The follower's request for the feed.
    request: u64,
}

// Sending.

impl World {
    fn room(&self) -> PriorityLimits {
        if self.has(Mutation::UnboundedPriority) { ROOM_FOR_ALL } else { ROOM }
    }

    /// Sends a peer the urgent entries that would otherwise wait.
    pub(crate) fn send_priority(&mut self, node: usize, peer: usize) {
        let nature = self.nodes[node].nature.clone();
        if nature.withholds || self.has(Mutation::NoPriority) {
            return;
        }
        loop {
            // A forking member may send one tree in order and the other one ahead of it.
            let crossed = nature.forks && self.random.chance(60);
            let open = nature.leaky || self.has(Mutation::SkipAudience) || self.has(Mutation::PriorityToAnyone);
            let frames = self.next_priority(node, peer, crossed, open);
            if frames.is_empty() {
                return;
            }
            for mut priority in frames {
                self.note("priority", node, &priority.encode_to_vec());
                self.count(if priority.feed == self.nodes[node].feed.to_string() {
                    "priority sent"
                } else {
                    "priority sent by a relay"
                });
                if !nature.leaky {
                    let reader = self.exchange.members[peer].clone();
                    self.check_disclosed(node, &reader, std::slice::from_ref(&priority.envelope));
                }
                if nature.garbage && self.random.chance(40) {
                    self.corrupt_priority(&mut priority);
                }
                self.send(node, peer, Frame::PriorityEntry(priority));
            }
        }
    }

    fn next_priority(&mut self, node: usize, peer: usize, crossed: bool, open: bool) -> Vec<proto::PriorityEntry> {
        let room = self.room();
        let mut unmatched =
            self.nodes[node].live.unmatched.remove(&peer).unwrap_or_else(|| PriorityInFlight::new(room));
        let here = &self.nodes[node];
        let serving =
            || here.live.serving.iter().filter(|((to, _), _)| *to == peer).map(|((_, feed), serving)| (feed, serving));
        serving().for_each(|(feed, serving)| unmatched.reached(feed, serving.stored));
        let log = |feed: &FeedId| here.priority_log_for(feed, peer, crossed);
        let waits = serving().any(|(feed, serving)| {
            let size = log(feed).map_or(0, |log| log.tree.size());
            would_wait(size, serving.next, serving.has_room()) || here.disk.ahead_of(feed).next().is_some()
        });
        let mut frames = Vec::new();
        if waits {
            let found = serving().map(|(feed, serving)| {
                let rest = log(feed).into_iter().flat_map(|log| (0_u64..).zip(&log.entries));
                let rest = rest.skip(usize::try_from(serving.stored).unwrap_or(usize::MAX));
                let ahead = here.disk.ahead_of(feed).map(|(index, ahead)| (index, &ahead.entry));
                let ahead = ahead.filter(|(index, _)| *index >= serving.stored);
                let candidates = rest.chain(ahead).filter_map(|(index, entry)| Some((index, entry_priority(entry)?)));
                (feed, serving, candidates.collect::<Vec<_>>())
            });
            let found = found.flat_map(|(feed, serving, candidates)| {
                let of = |how| {
                    let of_class = candidates.iter().filter(move |(_, class)| *class == how).map(|(index, _)| *index);
                    of_class.take(LOOKED_AT_MAX).collect::<Vec<_>>()
                };
                let size = log(feed).map_or(0, |log| log.tree.size());
                let progress = Progress { size, stored: serving.stored, cursor: serving.next };
                let sorts = progress.overtaking(&of(Priority::Actual), &of(Priority::Other));
                sorts.map(|(how, indices)| (feed, how, indices))
            });
            let (reader, chain) = (&self.exchange.members[peer], &here.disk.chain);
            let offered = |feed: &FeedId, entry: &Entry| {
                let Content::Disclosed { envelope, header: Some(header) } = &entry.content else { return None };
                let (_, serving) = serving().find(|(followed, _)| *followed == feed)?;
                (open || may_send_priority(header, reader, &serving.filters, chain)).then(|| envelope.clone())
            };
            let made = |feed: &FeedId, index: u64| {
                if let Some(ahead) = here.disk.ahead_of(feed).find(|(at, _)| *at == index).map(|(_, ahead)| ahead) {
                    let envelope = offered(feed, &ahead.entry)?;
                    return Some(priority(feed, index, envelope, &ahead.proof, ahead.checkpoint.note.clone()));
                }
                let log = log(feed)?;
                let envelope = offered(feed, log.entry(index)?)?;
                Some(priority(feed, index, envelope, &proof_in(log, index)?, log.checkpoint.clone()))
            };
            frames = unmatched.next(found, FRAMES_MAX, made);
        }
        self.nodes[node].live.unmatched.insert(peer, unmatched);
        frames
    }

    // Receiving.

    pub(crate) fn priority(&mut self, from: usize, to: usize, message: &proto::PriorityEntry) {
        let Ok(feed) = message.feed.parse::<FeedId>() else { return };
        let here = &self.nodes[to];
        let following = here.live.following.get(&feed).filter(|following| following.at == from);
        // Own entries are accepted only in order.
        let Some(following) = following.filter(|_| feed.member != here.me && !here.live.stopped.contains(&feed)) else {
            return self.count("priority ignored");
        };
        if here.live.queued_priority() >= PRIORITY_QUEUE_MAX {
            self.count("priority waits for the committer");
            let frame = proto::Frame { frame: Some(Frame::PriorityEntry(message.clone())) };
            return self.at(self.now + 1, Event::Arrive(from, to, self.starts(from, to), frame.encode_to_vec().into()));
        }
        let (newest, feed_sender) = (following.state.newest.as_ref(), &self.exchange.members[from]);
        let mut verified = verify_priority(&feed, feed_sender, message, newest, &here.disk.chain, &here.me);
        if self.has(Mutation::UnprovenPriority)
            || self.has(Mutation::SkipAudience)
            || self.has(Mutation::AcceptAnyPriority)
        {
            let proven = verified.is_ok();
            if proven != self.has(Mutation::UnprovenPriority) {
                verified = defects::unverified_priority(&feed, message, newest).map_or(verified, Ok);
            }
        }
        let verified = match verified {
            Ok(verified) => verified,
            Err(fault) => {
                self.count(match &fault.kind {
                    FaultKind::Equivocation(_) => "priority rejected: equivocation",
                    _ => "priority rejected",
                });
                return self.reject(from, to, &feed, &fault);
            }
        };
        self.count_findings(to, &feed, &verified.findings);
        if verified.envelope().is_none() {
            return self.count("priority without content, dropped");
        }
        if verified.entry.pending_roster.is_some() {
            self.count("priority before its roster");
        }
        self.nodes[to].live.waiting.push(Work::PriorityEntry(Box::new(verified)));
        self.soon(8, Event::Commit(to));
    }

    /// Forwards an entry that became durable ahead of the order to the peers that wait for it.
    pub(crate) fn priority_applied(&mut self, node: usize, feed: &FeedId, index: u64) {
        self.count("priority stored ahead of its feed");
        for peer in self.receivers_of(node, feed) {
            self.send_priority(node, peer);
            self.expect_delivery(node, peer, feed, index);
        }
    }

    pub(crate) fn receivers_of(&self, node: usize, feed: &FeedId) -> Vec<usize> {
        let serving = self.nodes[node].live.serving.keys().filter(|(_, served)| served == feed);
        serving.map(|(peer, _)| *peer).collect()
    }

    /// Handles another entry than the one held at an index: stops the feed if that can be proven.
    pub(crate) fn entry_conflict(&mut self, node: usize, feed: &FeedId, index: u64, offered: Option<ProvenEntry>) {
        let evidence =
            offered.and_then(|offered| EntryEquivocation::at(index, self.proven(node, feed, index)?, offered));
        match evidence {
            Some(evidence) => self.stop_feed(node, feed, Bytes::from(evidence.format())),
            None => self.count("conflicting entry, not proven"),
        }
    }

    fn proven(&self, node: usize, feed: &FeedId, index: u64) -> Option<ProvenEntry> {
        let here = &self.nodes[node];
        if let Some((_, held)) = here.disk.ahead_of(feed).find(|(at, _)| *at == index) {
            let (digest, checkpoint) = (held.entry.digest, held.checkpoint.clone());
            return Some(ProvenEntry { digest, checkpoint, proof: held.proof.clone() });
        }
        let log = here.disk.logs.get(feed)?;
        let checkpoint = SignedCheckpoint::verify(&log.checkpoint, &here.disk.chain.newest().feed_keys(feed)).ok()?;
        Some(ProvenEntry { digest: log.entry(index)?.digest, checkpoint, proof: proof_in(log, index)? })
    }

    // Deadlines.

    /// Expects that all urgent entries of a feed reach a peer that requests it before the backlog
    /// does.
    pub(crate) fn expect_priority_deliveries(&mut self, node: usize, peer: usize, feed: &FeedId, from: u64) {
        let log = self.nodes[node].disk.logs.get(feed).map_or(0, |log| log.tree.size());
        let ahead: Vec<u64> = self.nodes[node].disk.ahead_of(feed).map(|(index, _)| index).collect();
        for index in (from..log).chain(ahead) {
            self.expect_delivery(node, peer, feed, index);
        }
    }

    /// The model's rule: an urgent entry that a node holds, and that a peer requested and may read,
    /// arrives soon. It applies after the trouble, and while no more entries are urgent than fit
    /// ahead of the order.
    pub(crate) fn expect_delivery(&mut self, server: usize, receiver: usize, feed: &FeedId, index: u64) {
        let (here, there) = (&self.nodes[server], &self.nodes[receiver]);
        let honest = |node: usize| self.exchange.natures[node].is_honest();
        let Some(owner) = self.exchange.position(&feed.member) else { return };
        let Some(following) = there.live.following.get(feed) else { return };
        let requested = following.at == server && following.paused_until.is_none();
        let well = self.now >= SETTLED && there.up && [server, receiver, owner].into_iter().all(honest);
        let has_priority =
            |entry: &Entry| self.model.facts.get(&entry.digest).is_some_and(|facts| facts.priority.is_some());
        let facts = here.disk.entry(feed, index).filter(|entry| entry.is_disclosed());
        let facts = facts.filter(|entry| has_priority(entry)).and_then(|entry| self.model.facts.get(&entry.digest));
        let wanted = facts.is_some_and(|facts| {
            facts.named == owner
                && (there.topics.is_empty() || facts.group == 0)
                && facts.always_admit(receiver, &self.exchange)
                && facts.version <= here.disk.chain.newest().version()
        });
        if !(requested && well && wanted) || receiver == owner || index < there.size(feed) {
            return;
        }
        let log = here.disk.logs.get(feed);
        let rest = log.into_iter().flat_map(|log| &log.entries).skip(usize::try_from(there.size(feed)).unwrap_or(0));
        let ahead = here.disk.ahead_of(feed).count() + there.disk.ahead_of(feed).count();
        if rest.filter(|entry| has_priority(entry)).count() + ahead > ROOM.others.entries_max {
            return;
        }
        // Where nearly everything before it is urgent too, it arrives in order.
        let between = usize::try_from(index.saturating_sub(there.size(feed))).unwrap_or(0);
        let before = log.into_iter().flat_map(|log| &log.entries).skip(usize::try_from(there.size(feed)).unwrap_or(0));
        let preceding = before.take(between).filter(|entry| has_priority(entry)).count();
        if between - preceding < preceding {
            return;
        }
        let (starts, request) = ((here.start, there.start), following.request);
        let deadline = DeliveryDeadline { feed: feed.clone(), index, server, receiver, starts, request };
        self.at(self.now + LATENCY_MAX, Event::DeliveryDeadline(deadline));
    }

    pub(crate) fn check_deadline(&mut self, deadline: &DeliveryDeadline) {
        let (here, there) = (&self.nodes[deadline.server], &self.nodes[deadline.receiver]);
        let following = there.live.following.get(&deadline.feed);
        let same =
            following.is_some_and(|following| following.at == deadline.server && following.request == deadline.request);
        // Their link may have been severed since.
        let apart = self.is_severed(deadline.server, deadline.receiver);
        if !same || (here.start, there.start) != deadline.starts || !here.up || apart {
            return;
        }
        if there.disk.entry(&deadline.feed, deadline.index).is_some_and(Entry::is_disclosed) {
            let overtook = deadline.index >= there.size(&deadline.feed);
            self.count(if overtook { "priority in time, before the backlog" } else { "priority in time" });
        } else if there.live.quota.left_out.contains(&(deadline.feed.clone(), deadline.index)) {
            self.count("disk space: urgent content dropped");
        } else {
            let (feed, index) = (&deadline.feed, deadline.index);
            self.violated(deadline.receiver, format!("the urgent entry {feed} {index} waits behind a backlog"));
        }
    }
}

/// Returns the priority of an entry whose content is held.
pub(crate) fn entry_priority(entry: &Entry) -> Option<Priority> {
    match &entry.content {
        Content::Disclosed { header: Some(header), .. } => header_priority(header),
        _ => None,
    }
}

/// Returns the inclusion proof from an entry to the checkpoint of a copy.
fn proof_in(log: &Log, index: u64) -> Option<Vec<barid_core::ids::Hash>> {
    let proof = partial_inclusion_proof(&log.tree, index, log.tree.size(), log.checkpoint_size, &log.consistency_proof);
    proof.ok().flatten()
}
