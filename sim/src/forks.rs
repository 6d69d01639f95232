//! Forks: made by forking members, found by comparing checkpoints.
//!
//! In scope: tree heads, comparing them with the copy held, the consistency requests and responses
//! that a proof needs, stopping the feed.

use std::collections::BTreeSet;

use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint};
use barid_core::feed::note::Note;
use barid_core::feed::tree::{consistency_proof, root_at};
use barid_core::follow::Equivocation;
use barid_core::ids::{FeedId, Hash};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use bytes::Bytes;

use crate::Mutation;
use crate::exchange::feed_key;
use crate::live::PublishState;
use crate::node::{Log, Work};
use crate::world::{Event, World};

/// How long a checkpoint may be larger than the copy held before the peer is asked how the two
/// relate.
const SETTLES_IN: u64 = 100;

enum Compared {
    Same,
    Larger,
    /// Of another tree; with the evidence, if the copy can prove it.
    Other(Option<Box<Equivocation>>),
}

impl World {
    /// A member begins to serve a second tree to some of its peers, or changes which peers get it.
    pub(crate) fn fork(&mut self, node: usize) {
        self.count("fork made");
        let to: BTreeSet<usize> = (0..self.nodes.len()).filter(|_| self.random.chance(50)).collect();
        let here = &mut self.nodes[node];
        let begun = here.other.take().map(|(log, _)| log);
        let log = begun.unwrap_or_else(|| here.disk.logs.get(&here.feed).cloned().unwrap_or_default());
        here.other = Some((log, to));
    }

    /// Sends a peer the tree heads that have changed since the last ones.
    pub(crate) fn announce_heads(&mut self, node: usize, peer: usize) {
        // Frames get lost here.
        if self.trouble() && self.random.chance(10) {
            let live = &mut self.nodes[node].live;
            live.announced.retain(|(to, _), _| *to != peer);
            live.announced_roster.remove(&peer);
        }
        let here = &self.nodes[node];
        let mut heads = Vec::new();
        let mut announced = Vec::new();
        for (feed, log) in here.disk.logs.keys().filter_map(|feed| Some((feed, here.log_for(feed, peer)?))) {
            let (size, held) = (log.checkpoint_size, log.tree.size());
            let key = (peer, feed.clone());
            if log.checkpoint.is_empty() || here.live.announced.get(&key) == Some(&(size, held)) {
                continue;
            }
            announced.push((key, (size, held)));
            let held = (held < size).then_some(held);
            heads.push(proto::TreeHead { checkpoint: log.checkpoint.clone(), held, ..proto::TreeHead::default() });
        }
        let version = here.disk.chain.newest().version();
        let first = here.live.announced_roster.get(&peer) != Some(&version);
        if heads.is_empty() && !first {
            return;
        }
        let live = &mut self.nodes[node].live;
        live.announced.extend(announced);
        live.announced_roster.insert(peer, version);
        let heads = proto::TreeHeads { heads, roster_version: version, ..proto::TreeHeads::default() };
        self.send(node, peer, Frame::TreeHeads(heads));
    }

    pub(crate) fn heads(&mut self, from: usize, to: usize, heads: &proto::TreeHeads) {
        for head in &heads.heads {
            let Some(signed) = self.verified(to, &head.checkpoint) else {
                if self.has(Mutation::RememberAnything) {
                    self.remember(from, to, head);
                }
                continue;
            };
            let (feed, size) = (signed.checkpoint.feed.clone(), signed.checkpoint.size);
            let held = head.held.map_or(size, |held| held.min(size));
            let own = feed.member == self.nodes[to].me;
            let compared = self.compare(to, &signed);
            if own {
                self.record_advertised(from, to, &feed, held);
                let diverged = feed.epoch >= self.nodes[to].feed.epoch && !matches!(compared, Compared::Same);
                if diverged && self.nodes[to].live.publish_state != PublishState::NeedsRecovery {
                    self.enter_recovery(to, "needs recovery: a peer holds more");
                }
            }
            match compared {
                Compared::Other(Some(evidence)) => {
                    self.count("fork detected by comparison");
                    self.forked(to, &evidence);
                    continue;
                }
                Compared::Other(None) => continue,
                Compared::Larger if !own => {
                    let now = self.now;
                    let ahead = &mut self.nodes[to].live.ahead;
                    let entry = ahead.entry((feed.clone(), from)).or_insert_with(|| (signed.clone(), now));
                    entry.0 = signed;
                }
                Compared::Same | Compared::Larger => {}
            }
            self.record_advertised(from, to, &feed, held);
        }
        let live = &mut self.nodes[to].live;
        let version = heads.roster_version.min(self.exchange.last_version());
        if live.peer_rosters.insert(from, version) != Some(version) {
            // With its earlier roster the peer may not have known a feed's key.
            live.announced.retain(|(peer, _), _| *peer != from);
        }
        live.heads_of.insert(from);
        if live.publish_state == PublishState::Starting {
            live.publish_state = PublishState::Open;
        }
        let after = self.nodes[to].disk.chain.newest().version();
        if heads.roster_version > after && !self.has(Mutation::NoRosters) {
            self.send(to, from, Frame::RosterRequest(proto::RosterRequest { after }));
        }
    }

    /// Within a link a peer never announces less than before: a smaller size was overtaken.
    fn record_advertised(&mut self, from: usize, to: usize, feed: &FeedId, held: u64) {
        let advertised = self.nodes[to].live.advertised.entry((feed.clone(), from)).or_default();
        *advertised = held.max(*advertised);
    }

    /// Stores an unsigned claim (a defect).
    fn remember(&mut self, from: usize, to: usize, head: &proto::TreeHead) {
        let feed = std::str::from_utf8(&head.checkpoint).ok().and_then(|text| text.lines().next()?.parse().ok());
        if let Some(feed) = feed {
            self.nodes[to].live.advertised.insert((feed, from), head.held.unwrap_or(0));
        }
    }

    /// Verifies a checkpoint by the keys of the node's roster. They are the same in every roster
    /// that lists them.
    fn verified(&mut self, node: usize, note: &Bytes) -> Option<SignedCheckpoint> {
        let text = std::str::from_utf8(note).ok()?;
        let feed: FeedId = text.lines().next()?.parse().ok()?;
        let keys = self.nodes[node].disk.chain.newest().feed_keys(&feed);
        if keys.is_empty() {
            return None;
        }
        let verify = || SignedCheckpoint::verify(note, &keys).ok();
        self.verified.entry(note.clone()).or_insert_with(verify).clone()
    }

    fn compare(&self, node: usize, signed: &SignedCheckpoint) -> Compared {
        let Checkpoint { feed, size, root } = &signed.checkpoint;
        let Some(log) = self.nodes[node].disk.logs.get(feed) else {
            return if *size == 0 { Compared::Same } else { Compared::Larger };
        };
        if log.tree.size() < *size {
            return Compared::Larger;
        }
        match root_at(&log.tree, *size) {
            Ok(ours) if ours != *root && !self.has(Mutation::IgnoreForks) => {
                let evidence = self.signed_newest(node, feed).and_then(|larger| {
                    let proof = consistency_proof(&log.tree, *size, larger.checkpoint.size).ok()?;
                    Equivocation::between(signed, &larger)
                        .or_else(|| Equivocation::by_proof(signed, &larger, &ours, &proof))
                });
                Compared::Other(evidence.map(Box::new))
            }
            _ => Compared::Same,
        }
    }

    /// Returns the signed checkpoint of a complete copy.
    fn signed_newest(&self, node: usize, feed: &FeedId) -> Option<SignedCheckpoint> {
        let here = &self.nodes[node];
        let log = here.disk.logs.get(feed).filter(|log| log.checkpoint_size == log.tree.size())?;
        SignedCheckpoint::verify(&log.checkpoint, &here.disk.chain.newest().feed_keys(feed)).ok()
    }

    /// Compares checkpoints again that were larger than the copy. If they still are, their peers
    /// are asked.
    pub(crate) fn compare_again(&mut self, node: usize) {
        let now = self.now;
        let expired = |(key, (_, since)): (&(FeedId, usize), &(SignedCheckpoint, u64))| {
            (now - since > SETTLES_IN).then(|| key.clone())
        };
        let expired: Vec<(FeedId, usize)> = self.nodes[node].live.ahead.iter().filter_map(expired).collect();
        for key in expired {
            let Some((signed, _)) = self.nodes[node].live.ahead.remove(&key) else { continue };
            match self.compare(node, &signed) {
                Compared::Larger => {
                    let (feed, peer) = key;
                    self.request_consistency(node, peer, &feed);
                    // Until the entries arrive, or the peer announces something else.
                    self.nodes[node].live.ahead.insert((feed, peer), (signed, now));
                }
                Compared::Other(Some(evidence)) => {
                    self.count("fork detected by comparison");
                    self.forked(node, &evidence);
                }
                Compared::Same | Compared::Other(None) => {}
            }
        }
    }

    pub(crate) fn request_consistency(&mut self, node: usize, peer: usize, feed: &FeedId) {
        if let Some(ours) = self.signed_newest(node, feed).filter(|ours| ours.checkpoint.size > 0) {
            self.count("consistency requested");
            let request = proto::ConsistencyRequest { feed: feed.to_string(), size: ours.checkpoint.size };
            self.send(node, peer, Frame::ConsistencyRequest(request));
        }
    }

    pub(crate) fn receive_consistency_request(&mut self, from: usize, to: usize, request: &proto::ConsistencyRequest) {
        let Ok(feed) = request.feed.parse::<FeedId>() else { return };
        let Some(log) = self.nodes[to].log_for(&feed, from) else { return };
        if let Some(response) = consistency_of(log, request) {
            self.send(to, from, Frame::Consistency(response));
        }
    }

    pub(crate) fn receive_consistency(&mut self, to: usize, advertised: &proto::Consistency) {
        let Ok(feed) = advertised.feed.parse::<FeedId>() else { return };
        let hash = |bytes: &Bytes| <[u8; 32]>::try_from(bytes.as_ref()).map(Hash).ok();
        let proof: Option<Vec<Hash>> = advertised.consistency_proof.iter().map(hash).collect();
        let (Some(theirs), Some(ours)) = (self.verified(to, &advertised.checkpoint), self.signed_newest(to, &feed))
        else {
            return;
        };
        let (Some(proof), Some(root)) = (proof, hash(&advertised.root)) else { return };
        if ours.checkpoint.size != advertised.size || self.has(Mutation::IgnoreForks) {
            return;
        }
        let evidence =
            Equivocation::between(&ours, &theirs).or_else(|| Equivocation::by_proof(&ours, &theirs, &root, &proof));
        if let Some(evidence) = evidence {
            self.count("consistency proved a fork");
            self.forked(to, &evidence);
        }
    }

    /// Stops a feed whose equivocation is proven, and persists the evidence.
    pub(crate) fn forked(&mut self, node: usize, evidence: &Equivocation) {
        if self.has(Mutation::IgnoreForks) {
            return;
        }
        self.stop_feed(node, evidence.feed(), Bytes::from(evidence.format()));
    }

    /// Stops following a forked feed.
    pub(crate) fn stop_feed(&mut self, node: usize, feed: &FeedId, evidence: Bytes) {
        let live = &mut self.nodes[node].live;
        live.following.remove(feed);
        live.ahead.retain(|(of, _), _| of != feed);
        if live.stopped.insert(feed.clone()) {
            self.note("fork", node, &evidence);
            self.nodes[node].live.waiting.push(Work::Fork(feed.clone(), evidence));
            self.soon(4, Event::Commit(node));
        }
    }

    /// Makes a checkpoint of another member's feed with the wrong key.
    pub(crate) fn forged(&self, node: usize, feed: &FeedId, size: u64) -> Bytes {
        let text = Checkpoint { feed: feed.clone(), size, root: Hash([7; 32]) }.text();
        let note = Note::sign(&text, &feed_key(&self.nodes[node].feed));
        note.map(|note| note.to_bytes().into()).unwrap_or_default()
    }
}

fn consistency_of(log: &Log, request: &proto::ConsistencyRequest) -> Option<proto::Consistency> {
    let held = log.tree.size();
    if request.size == 0 || request.size > held || log.checkpoint_size != held {
        return None;
    }
    let (root, proof) =
        (root_at(&log.tree, request.size).ok()?, consistency_proof(&log.tree, request.size, held).ok()?);
    Some(proto::Consistency {
        feed: request.feed.clone(),
        size: request.size,
        root: Bytes::copy_from_slice(&root.0),
        checkpoint: log.checkpoint.clone(),
        consistency_proof: proof.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect(),
    })
}
