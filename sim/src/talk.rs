//! What nodes say to each other about feeds: whom they follow where, what they show, what they take, and what they ask for later.
//!
//! In scope: core's decisions, and the defects that are put in on purpose. Out of scope: the network and the clock (`world`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use barid_core::bulletin::TopicFilter;
use barid_core::bulletin::audience::may_read;
use barid_core::envelope;
use barid_core::follow::{
    Fault, FaultKind, VerifiedBatch, VerifiedContent, VerifiedEntry, VerifiedFill, VerifiedFills, What, verify_entries,
    verify_fills,
};
use barid_core::names::{Digest, FeedId, Member, Undisclosed};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::proto::item::Item;
use barid_core::relay::RELAY_GRACE_MS;
use bytes::Bytes;
use prost::Message;

use crate::node::{Asked, Follower, Work};
use crate::world::{Event, World};
use crate::{Mutation, newer};

/// Milliseconds of the relays' clock in one unit of time.
const UNIT_MS: u64 = 100;
/// A batch's largest number of entries, small enough that catching up takes several.
const ENTRIES_MAX: u64 = 9;
/// Ranges in one request for what is missing, and entries in one answer: few, so that there are several.
const FILLS_MAX: usize = 6;

impl World {
    /// Where a node follows a feed: at its owner, or where it is to be had while that one is away.
    fn provider(&mut self, node: usize, feed: &FeedId) -> Option<usize> {
        let owner = self.exchange.members.iter().position(|member| *member == feed.member)?;
        let Some(away) = self.nodes[node].away.get(&owner).copied() else {
            self.nodes[node].relays.remove(feed);
            return Some(owner);
        };
        if (self.now - away) * UNIT_MS < RELAY_GRACE_MS || self.mutation == Some(Mutation::NoRelay) {
            return None;
        }
        let linked = (0..self.nodes.len()).filter(|peer| *peer != owner && *peer != node && self.linked(node, *peer));
        let here = &self.nodes[node];
        let shown = |peer: usize| {
            let size = here.heads.get(&(peer, feed.clone())).copied().unwrap_or(0);
            (self.exchange.members[peer].clone(), size)
        };
        let shown: Vec<(Member, u64)> =
            linked.filter(|peer| here.knows(&self.exchange.members[*peer])).map(shown).collect();
        let (held, now_ms) = (here.size(feed), self.now * UNIT_MS);
        let at = self.nodes[node].relays.entry(feed.clone()).or_default().choose(held, &shown, now_ms)?;
        self.exchange.members.iter().position(|member| member == at)
    }

    pub(crate) fn ask(&mut self, node: usize, feed: &FeedId) {
        let Some(provider) = self.provider(node, feed) else { return };
        let from = self.nodes[node].follow_from(feed, &self.exchange.members[provider]);
        let topics = self.nodes[node].topics.iter().map(|filter| filter.as_str().to_owned()).collect();
        let follow = proto::Follow { feed: feed.to_string(), from, topics, ..Default::default() };
        self.send(node, provider, Frame::Follow(follow));
    }

    /// Asks a peer for content that is missing here, on from what it was asked for before.
    pub(crate) fn ask_for_missing(&mut self, node: usize, peer: usize) {
        if self.mutation == Some(Mutation::NoFills) {
            return;
        }
        let here = &self.nodes[node];
        let feeds: Vec<FeedId> = here.logs.keys().filter(|feed| **feed != here.feed).cloned().collect();
        for feed in feeds {
            let key = (peer, feed.clone());
            let here = &mut self.nodes[node];
            let from = here.asked.get(&key).map_or(0, |asked| asked.next);
            let ranges = here.gaps(&feed, from, FILLS_MAX);
            here.asked.insert(key, Asked { ranges: ranges.clone(), next: 0 });
            if ranges.is_empty() {
                continue;
            }
            let range = |range: &Range<u64>| proto::IndexRange { start: range.start, end: range.end };
            let follow = proto::Follow {
                feed: feed.to_string(),
                from: here.size(&feed),
                topics: here.topics.iter().map(|filter| filter.as_str().to_owned()).collect(),
                ranges: ranges.iter().map(range).collect(),
            };
            self.send(node, peer, Frame::Follow(follow));
        }
    }

    pub(crate) fn followed(&mut self, from: usize, to: usize, follow: &proto::Follow) {
        let Ok(feed) = follow.feed.parse::<FeedId>() else { return };
        let filters: Vec<TopicFilter> = follow.topics.iter().filter_map(|topic| topic.parse().ok()).collect();
        if !follow.ranges.is_empty() {
            let reader = self.exchange.members[from].clone();
            let mut fills = self.nodes[to].fills(&feed, &follow.ranges, &reader, &filters, FILLS_MAX);
            if self.mutation == Some(Mutation::HandToAnyone) {
                fills = self.nodes[to].anything(&feed, &follow.ranges);
            }
            let shown = fills.items.iter().map(|fill| &fill.envelope).collect::<Vec<_>>();
            if !self.nodes[to].leaky {
                self.check_shown(to, &reader, &shown);
            }
            if !fills.items.is_empty() || self.random.chance(50) {
                self.send(to, from, Frame::Fills(fills));
            }
            return;
        }
        if follow.from <= self.nodes[to].size(&feed) {
            self.nodes[to].followers.insert((from, feed.clone()), Follower { next: follow.from, filters });
            for _ in 0..3 {
                self.send_batch(to, from, &feed);
            }
        }
    }

    pub(crate) fn fills(&mut self, from: usize, to: usize, message: &proto::Fills) {
        let Ok(feed) = message.feed.parse::<FeedId>() else { return };
        let (provider, node) = (&self.exchange.members[from], &mut self.nodes[to]);
        let Some(asked) = node.asked.get_mut(&(from, feed.clone())) else { return };
        asked.next = asked.ranges.last().map_or(0, |last| last.end.min(message.through));
        let asked = asked.ranges.clone();
        let lacking = node.lacking(&feed, message);
        let verified = verify_fills(&feed, provider, message, &asked, &lacking, &node.chain, &node.me);
        let verified = match verified {
            Err(_) if self.mutation == Some(Mutation::FillAnything) => Ok(unverified_fills(&feed, message, &lacking)),
            verified => verified,
        };
        match verified {
            Ok(mut fills) => {
                if self.mutation == Some(Mutation::HandToAnyone) {
                    fills = unverified_fills(&feed, message, &lacking);
                }
                self.findings += fills.findings.len() as u64;
                for finding in fills.findings.iter().filter(|finding| finding.what == What::WronglyWithheld) {
                    self.blamed.push((to, feed.clone(), finding.index));
                }
                if !fills.entries.is_empty() {
                    self.filled += fills.entries.len() as u64;
                    self.nodes[to].waiting.push(Work::Fill(Box::new(fills)));
                    self.soon(8, Event::Commit(to));
                }
            }
            Err(fault) => {
                self.refused += 1;
                self.note("refused", to, fault.kind.word().as_bytes());
            }
        }
    }

    pub(crate) fn send_batch(&mut self, node: usize, peer: usize, feed: &FeedId) {
        let reader = self.exchange.members[peer].clone();
        if !self.nodes[node].knows(&reader) {
            return;
        }
        let open = self.nodes[node].leaky || self.mutation == Some(Mutation::SkipAudience);
        let entries_max = 1 + self.random.index(usize::try_from(ENTRIES_MAX).unwrap_or(1));
        let Some(message) = self.nodes[node].batch(peer, feed, &reader, entries_max, open) else { return };
        self.note("batch", node, &message.encode_to_vec());
        if !open {
            let envelopes = message.items.iter().filter_map(|item| match &item.item {
                Some(Item::Envelope(envelope)) => Some(envelope),
                _ => None,
            });
            self.check_shown(node, &reader, &envelopes.collect::<Vec<_>>());
        }
        let message = if self.mutation == Some(Mutation::BlameOthers) { blaming(message) } else { message };
        let message = if self.nodes[node].newer { newer::entries(message) } else { message };
        self.send(node, peer, Frame::Entries(message));
    }

    /// An honest node shows nobody more than the header's roster and the newest that it holds allow.
    fn check_shown(&mut self, node: usize, reader: &Member, envelopes: &[&Bytes]) {
        let newest = self.nodes[node].chain.newest().version();
        for envelope in envelopes {
            let admitted = envelope::header_of(envelope).is_ok_and(|header| {
                let by =
                    |version| self.exchange.chain.at(version).is_some_and(|roster| may_read(&header, reader, roster));
                by(header.roster_version) && by(newest)
            });
            if !admitted {
                self.violations.push(format!("{}: {reader} was shown what it may not read", self.nodes[node].me));
            }
        }
    }

    pub(crate) fn entries(&mut self, from: usize, to: usize, message: &proto::Entries) {
        let Ok(feed) = message.feed.parse::<FeedId>() else { return };
        let (node, provider) = (&mut self.nodes[to], &self.exchange.members[from]);
        let (chain, me) = (node.chain.clone(), node.me.clone());
        // What comes of a feed that is followed elsewhere by now is passed over.
        let Some(state) = node.following(&feed, provider) else { return };
        self.relayed += u64::from(*provider != feed.member);
        let verified = match verify_entries(state, message, &chain, &me) {
            Err(fault) if self.mutation == Some(Mutation::AcceptAnyRoot) => unverified(state, message, fault),
            verified => verified,
        };
        match verified {
            Ok(batch) if self.mutation == Some(Mutation::StopAtFindings) && !batch.findings.is_empty() => {
                self.refused += 1;
            }
            Ok(mut batch) => {
                if self.mutation == Some(Mutation::SkipAudience) {
                    keep_everything(&mut batch, message);
                }
                self.findings += batch.findings.len() as u64;
                state.advance(&batch);
                self.nodes[to].waiting.push(Work::Batch(Box::new(batch)));
                self.soon(8, Event::Commit(to));
            }
            Err(fault) => {
                self.refused += u64::from(fault.kind != FaultKind::Gap);
                self.note("refused", to, fault.kind.word().as_bytes());
                if let FaultKind::Equivocation(_) = fault.kind {
                    self.violations.push(format!("{me}: {feed} was taken for two histories"));
                }
            }
        }
    }
}

/// A batch that says of what is not held that it is withheld.
fn blaming(mut message: proto::Entries) -> proto::Entries {
    for item in &mut message.items {
        if let Some(Item::Digests(run)) = &mut item.item {
            run.reason = Undisclosed::Withheld.word().to_owned();
        }
    }
    message
}

/// What would be kept of content that comes later if nobody looked at it.
fn unverified_fills(
    feed: &FeedId,
    message: &proto::Fills,
    lacking: &BTreeMap<u64, (Digest, Undisclosed)>,
) -> VerifiedFills {
    let entry = |fill: &proto::Fill| {
        let (digest, _) = lacking.get(&fill.index)?;
        let header = envelope::header_of(&fill.envelope).ok().map(Arc::new);
        let (index, envelope) = (fill.index, fill.envelope.clone());
        Some(VerifiedFill { index, digest: *digest, envelope, header, held_back: None })
    };
    VerifiedFills {
        feed: feed.clone(),
        entries: message.items.iter().filter_map(entry).collect(),
        findings: Vec::new(),
    }
}

/// What a follower would take if it did not look at the log.
fn unverified(
    state: &barid_core::follow::FollowState,
    message: &proto::Entries,
    fault: Fault,
) -> Result<VerifiedBatch, Fault> {
    let wrong = matches!(fault.kind, FaultKind::BadRoot | FaultKind::BadProof);
    let Some(checkpoint) = state.newest.clone().filter(|_| wrong) else { return Err(fault) };
    let mut frontier = state.frontier.clone();
    let mut entries = Vec::new();
    for item in &message.items {
        let Some(Item::Envelope(envelope)) = &item.item else { continue };
        let digest = envelope::digest(envelope);
        frontier.append(&digest);
        let content = VerifiedContent::Disclosed { envelope: envelope.clone(), header: None };
        entries.push(VerifiedEntry { digest, content, held_back: None });
    }
    let (feed, first) = (state.feed.clone(), state.frontier.size());
    Ok(VerifiedBatch {
        feed,
        first,
        entries,
        frontier,
        checkpoint,
        consistency_proof: Vec::new(),
        findings: Vec::new(),
    })
}

/// What a follower would keep if it did not ask for the audience.
fn keep_everything(batch: &mut VerifiedBatch, message: &proto::Entries) {
    let envelopes = message.items.iter().filter_map(|item| match &item.item {
        Some(Item::Envelope(envelope)) => Some((envelope::digest(envelope), envelope)),
        _ => None,
    });
    let envelopes: BTreeMap<Digest, &Bytes> = envelopes.collect();
    for entry in &mut batch.entries {
        if let Some(&envelope) = envelopes.get(&entry.digest) {
            let header = envelope::header_of(envelope).ok().map(Arc::new);
            entry.content = VerifiedContent::Disclosed { envelope: envelope.clone(), header };
        }
    }
}
