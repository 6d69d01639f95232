//! The run: what happens, when, and on which messages the network lays its hands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use barid_core::bulletin::audience::may_read;
use barid_core::envelope;
use barid_core::follow::{Fault, FaultKind, VerifiedBatch, VerifiedContent, VerifiedEntry, verify_entries};
use barid_core::names::{Digest, FeedId, Member};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::proto::item::Item;
use bytes::Bytes;
use prost::Message;

use crate::bulletins::bulletin;
use crate::exchange::Exchange;
use crate::node::{Node, Work};
use crate::{Mutation, Outcome, Random, newer};

/// Until then everything can go wrong.
const TROUBLE: u64 = 2_000;
/// So long everything is well after it; a feed that is not whole then is wedged.
const PEACE: u64 = 800;
/// How often a node asks for what it lacks.
const TICK: u64 = 40;
/// A batch's largest number of entries, small enough that catching up takes several.
const ENTRIES_MAX: u64 = 9;

enum Event {
    Publish(usize),
    Commit(usize),
    Crash(usize),
    Restart(usize),
    Tick(usize),
    Deliver(usize),
    Roster(u64),
    Split,
    /// From, to, and an encoded frame.
    Arrive(usize, usize, Bytes),
}

/// What a subscriber remembers; it outlives its node's crashes.
#[derive(Default)]
pub(crate) struct Subscriber {
    arrivals: BTreeMap<u64, (FeedId, u64)>,
    pub(crate) entries: BTreeSet<(FeedId, u64)>,
    confirmed: u64,
}

/// A receipt as its publisher keeps it, outside of the nodes.
pub(crate) struct Receipt {
    pub(crate) node: usize,
    pub(crate) index: u64,
    pub(crate) digest: Digest,
}

pub(crate) struct World {
    random: Random,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) exchange: Exchange,
    pub(crate) nodes: Vec<Node>,
    pub(crate) subscribers: Vec<Subscriber>,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) violations: Vec<String>,
    queue: BTreeMap<(u64, u64), Event>,
    now: u64,
    queued: u64,
    /// On which side of the rift each node is.
    side: Vec<bool>,
    trace: [u8; 32],
    events: u64,
    refused: u64,
    findings: u64,
    unknown: u64,
}

impl World {
    pub(crate) fn new(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut random = Random::new(seed);
        let exchange = Exchange::new(&mut random);
        let node = |member| Node::new(exchange.feed(member), &exchange.notes[0], random.chance(25), random.chance(30));
        let nodes: Vec<Node> = exchange.members.iter().map(node).collect();
        let count = nodes.len();
        let mut world = Self {
            random,
            mutation,
            exchange,
            subscribers: (0..count).map(|_| Subscriber::default()).collect(),
            side: vec![false; count],
            nodes,
            receipts: Vec::new(),
            violations: Vec::new(),
            queue: BTreeMap::new(),
            now: 0,
            queued: 0,
            trace: [0; 32],
            events: 0,
            refused: 0,
            findings: 0,
            unknown: 0,
        };
        world.plan();
        world
    }

    fn plan(&mut self) {
        for node in 0..self.nodes.len() {
            for _ in 0..self.random.below(25) {
                let at = self.random.below(TROUBLE);
                self.at(at, Event::Publish(node));
            }
            for _ in 0..self.random.below(4) {
                let at = self.random.below(TROUBLE);
                self.at(at, Event::Crash(node));
            }
            let at = self.random.below(TICK);
            self.at(at, Event::Tick(node));
        }
        for version in 2..=self.exchange.last_version() {
            let at = TROUBLE / 4 * (version - 1) + self.random.below(TROUBLE / 5);
            self.at(at, Event::Roster(version));
        }
        for _ in 0..self.random.below(6) {
            let at = self.random.below(TROUBLE);
            self.at(at, Event::Split);
        }
    }

    pub(crate) fn run(&mut self) {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > TROUBLE + PEACE {
                break;
            }
            self.now = at;
            self.events += 1;
            self.happen(event);
        }
    }

    pub(crate) fn outcome(self) -> Outcome {
        Outcome {
            trace: self.trace,
            events: self.events,
            released: self.receipts.len(),
            delivered: self.subscribers.iter().map(|subscriber| subscriber.entries.len()).sum(),
            refused: self.refused,
            findings: self.findings,
            unknown: self.unknown,
            violations: self.violations,
        }
    }

    fn trouble(&self) -> bool {
        self.now < TROUBLE
    }

    fn at(&mut self, at: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((at, self.queued), event);
    }

    fn soon(&mut self, within: u64, event: Event) {
        let at = self.now + 1 + self.random.below(within);
        self.at(at, event);
    }

    fn note(&mut self, what: &str, who: usize, bytes: &[u8]) {
        let head = format!("{} {what} {who} ", self.now);
        self.trace = envelope::digest(&[&self.trace[..], head.as_bytes(), bytes].concat()).0;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Publish(node) => self.publish(node),
            Event::Commit(node) if self.nodes[node].up => self.commit(node),
            Event::Crash(node) if self.nodes[node].up => {
                self.note("crash", node, &[]);
                self.nodes[node].crash(self.mutation);
                self.soon(200, Event::Restart(node));
            }
            Event::Restart(node) => {
                self.note("restart", node, &[]);
                self.nodes[node].up = true;
            }
            Event::Tick(node) => {
                self.at(self.now + TICK, Event::Tick(node));
                if self.nodes[node].up {
                    self.tick(node);
                }
            }
            Event::Deliver(node) if self.nodes[node].up => self.deliver(node),
            Event::Roster(version) => self.roster(version),
            Event::Split => {
                for node in 0..self.side.len() {
                    self.side[node] = self.random.chance(40);
                }
                self.note("split", 0, &[]);
            }
            Event::Arrive(from, to, frame) if self.nodes[to].up => self.arrive(from, to, frame),
            Event::Commit(_) | Event::Crash(_) | Event::Deliver(_) | Event::Arrive(..) => {}
        }
    }

    fn publish(&mut self, node: usize) {
        if !self.nodes[node].up || !self.nodes[node].is_member() {
            return;
        }
        let version = self.nodes[node].chain.newest().version();
        let (envelope, header) =
            bulletin(&mut self.random, &self.exchange.members[node], &self.exchange.members, version);
        let envelope = if self.nodes[node].newer { newer::envelope(&envelope) } else { envelope };
        self.note("publish", node, &envelope);
        if self.mutation == Some(Mutation::ReleaseBeforeCommit) {
            let publishing = |work: &&Work| matches!(work, Work::Publish(..));
            let ahead = self.nodes[node].waiting.iter().filter(publishing).count() as u64;
            let index = self.nodes[node].size(&self.nodes[node].feed) + ahead;
            self.receipts.push(Receipt { node, index, digest: envelope::digest(&envelope) });
        }
        self.nodes[node].waiting.push(Work::Publish(envelope, header.map(Arc::new)));
        self.soon(6, Event::Commit(node));
    }

    fn commit(&mut self, node: usize) {
        let done = self.nodes[node].commit();
        self.violations.extend(done.faults);
        let feed = self.nodes[node].feed.clone();
        for index in done.released {
            let log = &self.nodes[node].logs[&feed];
            let digest = log.entries[usize::try_from(index).unwrap_or_default()].digest;
            self.note("release", node, &digest.0);
            if self.mutation != Some(Mutation::ReleaseBeforeCommit) {
                self.receipts.push(Receipt { node, index, digest });
            }
        }
        if let Some(arrival) = done.acknowledged {
            self.subscribers[node].confirmed = arrival;
        }
        // What is new goes to who is up to date at once; who followed asks for the next.
        let peers: Vec<usize> = self.nodes[node].followers.keys().copied().collect();
        for peer in peers {
            self.send_batch(node, peer);
        }
        for feed in done.followed {
            let root = self.nodes[node].logs[&feed].tree.root();
            self.note("followed", node, &root.0);
            self.ask(node, &feed);
        }
        self.soon(10, Event::Deliver(node));
    }

    fn tick(&mut self, node: usize) {
        if self.nodes[node].is_member() {
            for peer in 0..self.nodes.len() {
                if peer != node && self.nodes[node].knows(&self.exchange.members[peer]) {
                    self.ask(node, &self.exchange.feed(&self.exchange.members[peer]));
                    let version = self.nodes[node].chain.newest().version();
                    self.send(node, peer, Frame::Heads(proto::Heads { roster_version: version, ..Default::default() }));
                    if self.nodes[node].newer && self.random.chance(20) {
                        self.carry(node, peer, newer::unknown_frame(), false);
                    }
                }
            }
        }
        self.soon(10, Event::Deliver(node));
    }

    fn ask(&mut self, node: usize, feed: &FeedId) {
        let Some(owner) = self.exchange.members.iter().position(|member| *member == feed.member) else { return };
        let from = self.nodes[node].follow_from(feed);
        let follow = proto::Follow { feed: feed.to_string(), from, ..Default::default() };
        self.send(node, owner, Frame::Follow(follow));
    }

    fn deliver(&mut self, node: usize) {
        while let Some((arrival, feed, index)) = self.nodes[node].next_delivery() {
            self.note("deliver", node, format!("{arrival} {feed} {index}").as_bytes());
            let subscriber = &mut self.subscribers[node];
            let place = (feed, index);
            let twice = match subscriber.arrivals.get(&arrival) {
                // Given again because the answer was lost: known by its arrival.
                Some(same) => *same != place || arrival <= subscriber.confirmed,
                None => !subscriber.entries.insert(place.clone()) || arrival <= subscriber.confirmed,
            };
            if twice {
                let who = &self.exchange.members[node];
                self.violations.push(format!("{who}: {} {} delivered twice, as {arrival}", place.0, place.1));
            }
            subscriber.arrivals.insert(arrival, place);
            if self.random.chance(60) {
                self.nodes[node].waiting.push(Work::Acknowledge(arrival));
                self.soon(20, Event::Commit(node));
            }
            // A subscriber may stop in the middle.
            if self.trouble() && self.random.chance(10) {
                return;
            }
        }
    }

    /// The governors issue a version: to one that stays a member, and to who joins by it.
    fn roster(&mut self, version: u64) {
        let chain = &self.exchange.chain;
        let listed = |node: &usize, version| {
            chain.at(version).is_some_and(|roster| roster.member(&self.exchange.members[*node]).is_some())
        };
        let all = 0..self.nodes.len();
        let staying: Vec<usize> =
            all.clone().filter(|node| listed(node, version) && listed(node, version - 1)).collect();
        let joining: Vec<usize> = all.filter(|node| listed(node, version) && !listed(node, version - 1)).collect();
        let first = *self.random.pick(&staying);
        for node in joining.into_iter().chain([first]) {
            // An operator brings it in, with what came before, whether the node runs or not.
            for note in self.exchange.notes.iter().take(usize::try_from(version).unwrap_or_default()) {
                let _ = self.nodes[node].chain.extend(note);
            }
            self.note("roster", node, &version.to_be_bytes());
        }
    }

    fn send(&mut self, from: usize, to: usize, frame: Frame) {
        let damageable = matches!(frame, Frame::Entries(_));
        let bytes = Bytes::from(proto::Frame { frame: Some(frame) }.encode_to_vec());
        let bytes = if self.nodes[from].newer { newer::frame(&bytes) } else { bytes };
        self.carry(from, to, bytes, damageable);
    }

    fn carry(&mut self, from: usize, to: usize, mut bytes: Bytes, damageable: bool) {
        if self.trouble() {
            if self.side[from] != self.side[to] || self.random.chance(8) {
                return;
            }
            if self.random.chance(5) {
                self.soon(120, Event::Arrive(from, to, bytes.clone()));
            }
        }
        if damageable && self.trouble() && self.random.chance(6) {
            let mut damaged = bytes.to_vec();
            let at = self.random.index(damaged.len());
            damaged[at] ^= 1 << self.random.below(8);
            bytes = damaged.into();
        }
        self.soon(if self.trouble() { 30 } else { 5 }, Event::Arrive(from, to, bytes));
    }

    fn arrive(&mut self, from: usize, to: usize, bytes: Bytes) {
        let peer = &self.exchange.members[from];
        // Who is not a member by the newest roster held is not spoken with, except about newer rosters by who holds them.
        if !self.nodes[to].knows(peer) || !self.nodes[to].is_member() {
            return;
        }
        // What cannot be read ends a link, and the next one begins with the next tick.
        let Ok(proto::Frame { frame }) = proto::Frame::decode(bytes) else { return };
        match frame {
            Some(Frame::Follow(proto::Follow { from: next, .. })) => {
                let size = self.nodes[to].size(&self.nodes[to].feed);
                if next <= size {
                    self.nodes[to].followers.insert(from, next);
                    for _ in 0..3 {
                        self.send_batch(to, from);
                    }
                }
            }
            Some(Frame::Entries(entries)) => self.entries(from, to, &entries),
            Some(Frame::Heads(heads)) => {
                let after = self.nodes[to].chain.newest().version();
                if heads.roster_version > after {
                    self.send(to, from, Frame::RosterRequest(proto::RosterRequest { after }));
                }
            }
            Some(Frame::RosterRequest(request)) => {
                let notes = self.nodes[to].chain.notes().filter(|(version, _)| *version > request.after);
                let notes = notes.map(|(_, note)| note.clone()).collect();
                self.send(to, from, Frame::Rosters(proto::Rosters { notes }));
            }
            Some(Frame::Rosters(rosters)) => {
                self.nodes[to].waiting.extend(rosters.notes.into_iter().map(Work::Roster));
                self.soon(6, Event::Commit(to));
            }
            Some(_) => {}
            // What a newer version says beyond what is known here.
            None => self.unknown += 1,
        }
    }

    fn send_batch(&mut self, node: usize, peer: usize) {
        let reader = self.exchange.members[peer].clone();
        if !self.nodes[node].knows(&reader) {
            return;
        }
        let open = self.nodes[node].leaky || self.mutation == Some(Mutation::SkipAudience);
        let entries_max = 1 + self.random.index(usize::try_from(ENTRIES_MAX).unwrap_or(1));
        let Some(message) = self.nodes[node].batch(peer, &reader, entries_max, open) else { return };
        self.note("batch", node, &message.encode_to_vec());
        if !open {
            self.check_shown(node, &reader, &message);
        }
        let message = if self.nodes[node].newer { newer::entries(message) } else { message };
        self.send(node, peer, Frame::Entries(message));
    }

    /// An honest node shows nobody more than the header's roster and the newest that it holds allow.
    fn check_shown(&mut self, node: usize, reader: &Member, message: &proto::Entries) {
        let newest = self.nodes[node].chain.newest().version();
        for item in &message.items {
            let Some(Item::Envelope(envelope)) = &item.item else { continue };
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

    fn entries(&mut self, from: usize, to: usize, message: &proto::Entries) {
        let feed = self.exchange.feed(&self.exchange.members[from]);
        let node = &mut self.nodes[to];
        let (chain, me) = (node.chain.clone(), node.me.clone());
        let state = node.following(&feed);
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
