//! The run: what happens, when, and on which messages the network lays its hands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use barid_core::envelope;
use barid_core::feed::checkpoint::Checkpoint;
use barid_core::feed::note::Note;
use barid_core::names::{Digest, FeedId};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use bytes::Bytes;
use prost::Message;

use crate::bulletins::bulletin;
use crate::exchange::Exchange;
use crate::node::{Node, Work};
use crate::{Mutation, Outcome, Random, newer};

/// Until then everything can go wrong.
const TROUBLE: u64 = 2_000;
/// So long everything is well after it; a feed that is not whole then is wedged.
const PEACE: u64 = 1_600;
/// How often a node asks for what it lacks.
const TICK: u64 = 40;

pub(crate) enum Event {
    Publish(usize),
    Commit(usize),
    Crash(usize),
    Restart(usize),
    Tick(usize),
    Deliver(usize),
    Roster(u64),
    Split,
    /// From one to another nothing passes, for so long.
    Cut(usize, usize, u64),
    Mend(usize, usize),
    /// A node follows every topic from now on.
    Widen(usize),
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
    pub(crate) random: Random,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) exchange: Exchange,
    pub(crate) nodes: Vec<Node>,
    pub(crate) subscribers: Vec<Subscriber>,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) violations: Vec<String>,
    /// Who took what for wrongly withheld.
    pub(crate) blamed: Vec<(usize, FeedId, u64)>,
    pub(crate) queue: BTreeMap<(u64, u64), Event>,
    pub(crate) now: u64,
    pub(crate) queued: u64,
    /// On which side of the rift each node is.
    pub(crate) side: Vec<bool>,
    /// Ways that are cut for a time: from, to.
    pub(crate) cut: BTreeMap<(usize, usize), u32>,
    /// Pairs that never reach each other: the lower one first.
    pub(crate) severed: BTreeSet<(usize, usize)>,
    pub(crate) trace: [u8; 32],
    pub(crate) events: u64,
    pub(crate) refused: u64,
    pub(crate) findings: u64,
    pub(crate) unknown: u64,
    pub(crate) relayed: u64,
    pub(crate) filled: u64,
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
            cut: BTreeMap::new(),
            severed: BTreeSet::new(),
            nodes,
            receipts: Vec::new(),
            violations: Vec::new(),
            blamed: Vec::new(),
            queue: BTreeMap::new(),
            now: 0,
            queued: 0,
            trace: [0; 32],
            events: 0,
            refused: 0,
            findings: 0,
            unknown: 0,
            relayed: 0,
            filled: 0,
        };
        world.sever();
        world.plan();
        world
    }

    /// Takes pairs of members apart for good; those of the newest roster stay in one line. Who joins later stands at its end: nobody
    /// speaks with a member that it does not know, and so hears of no roster through it.
    fn sever(&mut self) {
        let percent = *self.random.pick(&[0, 0, 40, 100]);
        let (first, newest) = (self.exchange.chain.at(1), self.exchange.chain.newest());
        let member = |node: &usize| &self.exchange.members[*node];
        let mut listed: Vec<usize> =
            (0..self.nodes.len()).filter(|node| newest.member(member(node)).is_some()).collect();
        listed.sort_by_key(|node| first.is_none_or(|first| first.member(member(node)).is_none()));
        let pairs = listed.windows(2).map(|pair| (pair[0].min(pair[1]), pair[0].max(pair[1])));
        let kept: BTreeSet<(usize, usize)> = pairs.collect();
        listed.sort_unstable();
        for (place, low) in listed.iter().enumerate() {
            for high in &listed[place + 1..] {
                if !kept.contains(&(*low, *high)) && self.random.chance(percent) {
                    self.severed.insert((*low, *high));
                }
            }
        }
    }

    pub(crate) fn is_severed(&self, a: usize, b: usize) -> bool {
        self.severed.contains(&(a.min(b), a.max(b)))
    }

    /// Whether something that `from` says reaches `to`.
    fn passes(&self, from: usize, to: usize) -> bool {
        let apart = self.trouble() && (self.side[from] != self.side[to] || self.cut.contains_key(&(from, to)));
        !apart && !self.is_severed(from, to)
    }

    /// A link needs both ways.
    pub(crate) fn linked(&self, a: usize, b: usize) -> bool {
        self.nodes[a].up && self.nodes[b].up && self.passes(a, b) && self.passes(b, a)
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
            if self.random.chance(20) {
                self.nodes[node].topics = vec!["customs.>".parse().expect("a filter")];
                if self.random.chance(60) {
                    let at = self.random.below(TROUBLE);
                    self.at(at, Event::Widen(node));
                }
            }
            let at = self.random.below(TICK);
            self.at(at, Event::Tick(node));
        }
        for _ in 0..self.random.below(8) {
            let (from, to) = (self.random.index(self.nodes.len()), self.random.index(self.nodes.len()));
            let (at, long) = (self.random.below(TROUBLE), 50 + self.random.below(900));
            self.at(at, Event::Cut(from, to, long));
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
            relayed: self.relayed,
            filled: self.filled,
            violations: self.violations,
        }
    }

    pub(crate) fn trouble(&self) -> bool {
        self.now < TROUBLE
    }

    fn at(&mut self, at: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((at, self.queued), event);
    }

    pub(crate) fn soon(&mut self, within: u64, event: Event) {
        let at = self.now + 1 + self.random.below(within);
        self.at(at, event);
    }

    pub(crate) fn note(&mut self, what: &str, who: usize, bytes: &[u8]) {
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
            Event::Cut(from, to, long) => {
                *self.cut.entry((from, to)).or_default() += 1;
                self.at(self.now + long, Event::Mend(from, to));
            }
            Event::Mend(from, to) => {
                let left = self.cut.get(&(from, to)).map_or(0, |count| count - 1);
                if left == 0 {
                    self.cut.remove(&(from, to))
                } else {
                    self.cut.insert((from, to), left)
                };
            }
            Event::Widen(node) => {
                // Its settings are read when it starts.
                self.nodes[node].topics.clear();
                self.nodes[node].crash(self.mutation);
                self.nodes[node].up = true;
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
        let arrivals = self.nodes[node].arrivals.len();
        let done = self.nodes[node].commit(self.mutation);
        let fresh = self.nodes[node].arrivals.len() - arrivals;
        self.note("arrived", node, &fresh.to_be_bytes());
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
        let followed: Vec<(usize, FeedId)> = self.nodes[node].followers.keys().cloned().collect();
        for (peer, feed) in followed {
            self.send_batch(node, peer, &feed);
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
                if peer == node || !self.nodes[node].knows(&self.exchange.members[peer]) {
                    continue;
                }
                if self.linked(node, peer) {
                    self.nodes[node].away.remove(&peer);
                } else {
                    self.nodes[node].away.entry(peer).or_insert(self.now);
                    self.nodes[node].heads.retain(|(shown_by, _), _| *shown_by != peer);
                }
                self.ask(node, &self.exchange.feed(&self.exchange.members[peer]));
                let heads = self.nodes[node].logs.values().filter(|log| !log.checkpoint.is_empty()).map(|log| {
                    let held = (log.tree.size() < log.checkpoint_size).then_some(log.tree.size());
                    proto::Head { checkpoint: log.checkpoint.clone(), held, ..proto::Head::default() }
                });
                let version = self.nodes[node].chain.newest().version();
                let heads = proto::Heads { heads: heads.collect(), roster_version: version, ..Default::default() };
                self.send(node, peer, Frame::Heads(heads));
                self.ask_for_missing(node, peer);
                if self.nodes[node].newer && self.random.chance(20) {
                    self.carry(node, peer, newer::unknown_frame(), false);
                }
            }
        }
        self.soon(10, Event::Deliver(node));
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

    pub(crate) fn send(&mut self, from: usize, to: usize, frame: Frame) {
        let damageable = matches!(frame, Frame::Entries(_) | Frame::Fills(_));
        let bytes = Bytes::from(proto::Frame { frame: Some(frame) }.encode_to_vec());
        let bytes = if self.nodes[from].newer { newer::frame(&bytes) } else { bytes };
        self.carry(from, to, bytes, damageable);
    }

    pub(crate) fn carry(&mut self, from: usize, to: usize, mut bytes: Bytes, damageable: bool) {
        if !self.passes(from, to) {
            return;
        }
        if self.trouble() {
            if self.random.chance(8) {
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
            Some(Frame::Follow(follow)) => self.followed(from, to, &follow),
            Some(Frame::Fills(fills)) => self.fills(from, to, &fills),
            Some(Frame::Entries(entries)) => self.entries(from, to, &entries),
            Some(Frame::Heads(heads)) => {
                for head in &heads.heads {
                    let Ok(note) = Note::parse(&head.checkpoint) else { continue };
                    let Ok(Checkpoint { feed, size, .. }) = Checkpoint::parse_text(&note.text) else { continue };
                    self.nodes[to].heads.insert((from, feed), head.held.unwrap_or(size));
                }
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
}
