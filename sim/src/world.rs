//! The run: events and their order.
//!
//! In scope: the clock, the event queue, starts and crashes of nodes, publishers, subscribers. Out
//! of scope: what nodes send each other (`replication`, `backfill`, `forks`), the network
//! (`network`), commits (`commits`).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use barid_core::bulletin::Priority;
use barid_core::envelope;
use barid_core::feed::checkpoint::SignedCheckpoint;
use bytes::Bytes;

use crate::bulletins::{Wanted, bulletin};
use crate::coverage::Coverage;
use crate::exchange::{Exchange, feed_key};
use crate::floods::{Flooded, ROOM_IS_MADE};
use crate::live::{Live, PublishState};
use crate::model::Model;
use crate::node::{Disk, HighWaterMark, Node, Work};
use crate::plan::{DiskFault, Plan, Planned, TROUBLE};
use crate::priority::{DeliveryDeadline, ROOM, entry_priority};
use crate::random::Random;
use crate::{Mutation, check};

/// Shortest and longest time without faults before the run is checked; within it the checks are
/// repeated until they hold.
const PEACE_MIN: u64 = 500;
const PEACE_MAX: u64 = 6_000;
const LOOK_EVERY: u64 = 200;
/// How often a node checks its links.
pub(crate) const TICK: u64 = 40;
/// Milliseconds in one unit of time.
pub(crate) const UNIT_MS: u64 = 100;
/// How long a node waits for a peer's tree heads before it publishes.
const LONE_START: u64 = 100;
/// How often a publisher retries.
const TRIES_MAX: u32 = 400;
/// Unix seconds at which a run begins.
const BEGINS: i64 = 1_700_000_000;

pub(crate) enum Event {
    Planned(usize),
    /// A publisher's first attempt or retry.
    Try(u64),
    Commit(usize),
    Restart(usize),
    Tick(usize),
    Deliver(usize),
    /// A node has been without peers for long since this start.
    LoneStart(usize, u64),
    /// An operator runs recovery; the number of the attempt.
    Recover(usize, u32),
    Heal,
    MakeRoom,
    Look,
    DeliveryDeadline(DeliveryDeadline),
    /// From, to, the starts of both, and an encoded frame.
    Arrive(usize, usize, (u64, u64), Bytes),
}

/// A publisher that has no receipt yet.
pub(crate) struct Publisher {
    pub(crate) node: usize,
    tries: u32,
}

pub(crate) struct World {
    seed: u64,
    pub(crate) random: Random,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) exchange: Exchange,
    pub(crate) plan: Plan,
    pub(crate) nodes: Vec<Node>,
    pub(crate) model: Model,
    pub(crate) coverage: Coverage,
    pub(crate) violations: Vec<String>,
    queue: BTreeMap<(u64, u64), Event>,
    pub(crate) now: u64,
    queued: u64,
    /// The partition's seed and end.
    pub(crate) split: (u64, u64),
    /// One-way cuts, with their end: from, to.
    pub(crate) cut: BTreeMap<(usize, usize), u64>,
    /// Pairs that never reach each other, the lower one first.
    pub(crate) severed: BTreeSet<(usize, usize)>,
    /// Latest arrival in each direction; a frame that arrives earlier has overtaken another one.
    pub(crate) sent: HashMap<(usize, usize), u64>,
    pub(crate) publishers: BTreeMap<u64, Publisher>,
    /// Entries of floods, by id.
    pub(crate) flooded: BTreeMap<u64, Flooded>,
    pub(crate) disk_faults: Vec<VecDeque<DiskFault>>,
    /// Frames that a member may replay.
    pub(crate) overheard: VecDeque<Bytes>,
    /// Verified checkpoints, shared by all nodes: an epoch's keys never change.
    pub(crate) verified: HashMap<Bytes, Option<SignedCheckpoint>>,
    pub(crate) trace: [u8; 32],
    /// The event log as text, if requested.
    pub(crate) event_log: Option<Vec<String>>,
    pub(crate) events: u64,
    ended: bool,
}

impl World {
    /// Creates the run of a seed, without the planned events at the indexes `without`.
    pub(crate) fn new(seed: u64, mutation: Option<Mutation>, without: &BTreeSet<usize>) -> Self {
        let exchange = Exchange::new(&mut Random::new(seed, 1));
        let plan = Plan::new(seed, &exchange);
        let count = exchange.members.len();
        let first = exchange
            .chain
            .at(1)
            .map(|_| barid_core::roster::RosterChain::start(&exchange.notes[0]).expect("the first roster makes sense"));
        let first = first.expect("there is a first roster");
        let node = |index| Node::new(exchange.feed(index, 1), &first, exchange.natures[index].clone());
        let nodes: Vec<Node> = (0..count).map(node).collect();
        let mut world = Self {
            seed,
            random: Random::new(seed, 3),
            mutation,
            nodes,
            model: Model::new(count),
            coverage: Coverage::default(),
            violations: Vec::new(),
            queue: BTreeMap::new(),
            now: 0,
            queued: 0,
            split: (0, 0),
            cut: BTreeMap::new(),
            severed: BTreeSet::new(),
            sent: HashMap::new(),
            publishers: BTreeMap::new(),
            flooded: BTreeMap::new(),
            disk_faults: vec![VecDeque::new(); count],
            overheard: VecDeque::new(),
            verified: HashMap::new(),
            trace: [0; 32],
            event_log: None,
            events: 0,
            ended: false,
            exchange,
            plan,
        };
        if count >= 20 {
            world.count("exchange of 20 members or more");
        }
        world.sever();
        for place in (0..world.plan.events.len()).filter(|place| !without.contains(place)) {
            world.at(world.plan.events[place].0, Event::Planned(place));
        }
        for node in 0..count {
            if world.plan.narrow.contains(&node) {
                world.nodes[node].topics = vec!["customs.>".parse().expect("a filter")];
            }
            world.nodes[node].bound = world.plan.bounds.get(&node).copied();
            let at = world.random.below(TICK);
            world.at(at, Event::Tick(node));
            world.begin_feed(node);
            world.start(node);
        }
        world.at(TROUBLE, Event::Heal);
        if !world.plan.bounds.is_empty() {
            world.at(ROOM_IS_MADE, Event::MakeRoom);
        }
        world
    }

    pub(crate) fn run(&mut self) {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            self.events += 1;
            self.happen(event);
            if self.ended {
                return;
            }
        }
    }

    pub(crate) fn trouble(&self) -> bool {
        self.now < TROUBLE
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now * UNIT_MS
    }

    /// Unix seconds by a node's clock.
    pub(crate) fn clock(&self, node: usize) -> u64 {
        let passed = i64::try_from(self.now_ms() / 1_000).unwrap_or_default();
        u64::try_from(BEGINS + passed + self.nodes[node].clock).unwrap_or_default()
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        self.coverage.add(what, 1);
    }

    pub(crate) fn violated(&mut self, node: usize, what: impl std::fmt::Display) {
        let text = format!("at {}: {}: {what}", self.now, self.exchange.members[node]);
        if self.violations.len() < 20 {
            self.violations.push(text);
        }
    }

    pub(crate) fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
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
        self.log_event(|| format!("{who} {what}"));
    }

    /// Adds a line to the event log.
    pub(crate) fn log_event(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(event_log) = &mut self.event_log {
            event_log.push(format!("{now}: {}", line()));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Planned(place) => {
                let (_, planned) = self.plan.events[place];
                self.planned(planned);
            }
            Event::Try(id) => self.try_to_publish(id),
            Event::Commit(node) if self.nodes[node].up => self.commit(node),
            Event::Restart(node) if !self.nodes[node].up => self.start(node),
            Event::Tick(node) => {
                self.at(self.now + TICK, Event::Tick(node));
                if self.nodes[node].up {
                    self.look_for_room(node);
                    self.tick(node);
                    self.check_bounds(node);
                    self.deliver(node);
                }
            }
            Event::Deliver(node) if self.nodes[node].up => self.deliver(node),
            Event::LoneStart(node, start) => {
                let here = &mut self.nodes[node];
                if here.up && here.start == start && here.live.publish_state == PublishState::Starting {
                    here.live.publish_state = PublishState::Open;
                    self.count("started alone");
                }
            }
            Event::Recover(node, tries) => self.recover(node, tries),
            Event::Heal => self.heal(),
            Event::MakeRoom => self.make_room(),
            Event::Look => self.look(),
            Event::DeliveryDeadline(deadline) => self.check_deadline(&deadline),
            Event::Arrive(from, to, starts, frame) if self.nodes[to].up && self.starts(from, to) == starts => {
                self.receive(from, to, frame);
            }
            Event::Commit(_) | Event::Restart(_) | Event::Deliver(_) | Event::Arrive(..) => {}
        }
    }

    fn planned(&mut self, planned: Planned) {
        match planned {
            Planned::Publish { node, id } => self.publish(node, id),
            Planned::Burst { node, first_id, count } => {
                (first_id..first_id + count).for_each(|id| self.publish(node, id));
            }
            Planned::Crash { node, long } => {
                if self.nodes[node].up {
                    self.count("crash");
                    self.crash(node, long);
                }
            }
            Planned::Disk { node, fault } => self.disk_faults[node].push_back(fault),
            Planned::Backup { node } => {
                self.nodes[node].backup = Some(self.nodes[node].disk.clone());
                self.model.backed_up(node);
            }
            Planned::Restore { node, from_backup, high_water_mark_lost, long } => {
                self.restore(node, from_backup, high_water_mark_lost, long);
            }
            Planned::Split { halves, long } => {
                self.count("partition");
                self.split = (halves, self.now + long);
            }
            Planned::Cut { from, to, long } => {
                self.count("link one way only");
                self.cut.insert((from, to), self.now + long);
            }
            Planned::Roster { version } => self.roster(version),
            Planned::Widen { node } => {
                // Settings are read when a node starts.
                self.count("topics widened");
                self.nodes[node].topics.clear();
                if self.nodes[node].up {
                    self.crash(node, 1);
                }
            }
            Planned::Clock { node, seconds } => {
                if seconds < self.nodes[node].clock {
                    self.count("clock set back");
                }
                self.nodes[node].clock = seconds;
            }
            Planned::Fork { node } => self.fork(node),
            Planned::Garbage { node } => self.garbage(node),
            Planned::Flood { node, first_id, count, how, alert } => self.flood(node, (first_id, count), how, alert),
            Planned::Sever => self.sever(),
        }
    }

    /// The first start of a node: the feed signs size 0.
    fn begin_feed(&mut self, node: usize) {
        let here = &mut self.nodes[node];
        let feed = here.feed.clone();
        let log = here.disk.logs.entry(feed.clone()).or_default();
        log.sign(&feed, &feed_key(&feed));
        here.high_water_mark = Some(HighWaterMark { epoch: feed.epoch, size: 0, root: log.tree.root() });
    }

    fn start(&mut self, node: usize) {
        self.note("start", node, &[]);
        let here = &mut self.nodes[node];
        here.up = true;
        here.start += 1;
        here.live = Live { read_to: here.disk.cursor, ..Live::default() };
        here.live.stopped = here.disk.forks.keys().cloned().collect();
        let start = here.start;
        // No peer has a link to this process yet.
        for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
            self.nodes[peer].live.linked.remove(&node);
            self.forget_link(peer, node);
        }
        self.look_for_room(node);
        self.open_feed(node);
        self.at(self.now + LONE_START, Event::LoneStart(node, start));
    }

    pub(crate) fn crash(&mut self, node: usize, long: u64) {
        self.note("crash", node, &[]);
        let mutation = self.mutation;
        let here = &mut self.nodes[node];
        here.up = false;
        here.live = Live::default();
        match mutation {
            Some(Mutation::ForgetCursor) => here.disk.cursor = 0,
            Some(Mutation::ForgetIds) => here.disk.ids.clear(),
            Some(Mutation::ForgetForks) => here.disk.forks.clear(),
            Some(Mutation::RenumberOffsets) => here.disk.by_offset.sort(),
            Some(Mutation::ForgetPriority) => here.disk.ahead.clear(),
            Some(Mutation::LoseTail) => self.lose_tail(node),
            _ => {}
        }
        self.at(self.now + long, Event::Restart(node));
    }

    /// Removes the last entry of one feed of another member.
    fn lose_tail(&mut self, node: usize) {
        let here = &mut self.nodes[node];
        let other = here.disk.logs.iter_mut().find(|(feed, log)| feed.member != here.me && log.tree.size() > 1);
        if let Some((feed, log)) = other {
            let entries = std::mem::take(&mut log.entries);
            let left = entries.len() - 1;
            log.tree = barid_core::feed::tree::MemoryTree::new();
            entries.into_iter().take(left).for_each(|entry| _ = log.append(entry));
            let place = (feed.clone(), left as u64);
            here.disk.by_offset.retain(|entry| *entry != place);
        }
    }

    fn restore(&mut self, node: usize, from_backup: bool, high_water_mark_lost: bool, long: u64) {
        let from_backup = from_backup && self.nodes[node].backup.is_some();
        self.count(if from_backup { "restored from a backup" } else { "store lost" });
        if self.nodes[node].up {
            self.crash(node, long);
        }
        let here = &mut self.nodes[node];
        let backup = here.backup.clone().filter(|_| from_backup);
        let fresh = || {
            // The roster in the node's configuration.
            let first = &self.exchange.notes[0];
            Disk::new(barid_core::roster::RosterChain::start(first).expect("the first roster makes sense"))
        };
        here.disk = backup.unwrap_or_else(fresh);
        if high_water_mark_lost {
            here.high_water_mark = None;
        }
        let cursor = here.disk.cursor;
        self.model.restored(node, from_backup, cursor);
    }

    pub(crate) fn publish(&mut self, node: usize, id: u64) {
        self.publishers.insert(id, Publisher { node, tries: 0 });
        self.try_to_publish(id);
    }

    /// The random numbers from which a bulletin's content is made.
    pub(crate) fn content_of(&self, id: u64) -> Random {
        Random::new(self.seed, 1_000 + id)
    }

    /// Attempts to publish. The publisher retries with the same id until it has a receipt.
    fn try_to_publish(&mut self, id: u64) {
        let Some(publisher) = self.publishers.get_mut(&id) else { return };
        publisher.tries += 1;
        let (node, tries) = (publisher.node, publisher.tries);
        let here = &self.nodes[node];
        if tries > TRIES_MAX || here.up && !here.is_member() {
            self.publishers.remove(&id);
            return;
        }
        self.soon(60, Event::Try(id));
        let here = &self.nodes[node];
        if !here.up || here.live.publish_state != PublishState::Open {
            return;
        }
        if !here.live.has_room() && !self.has(Mutation::UnboundedQueue) {
            self.count("queue full");
            return;
        }
        let version = here.disk.chain.newest().version();
        let (mut content, salt) = (self.content_of(id), self.random.bytes());
        let flooded = self.flooded.get(&id);
        let alert = flooded.map_or_else(|| self.plan.alerts.contains(&id), |flooded| flooded.alert);
        let wanted = Wanted { id, alert, flood: flooded.map(|flooded| flooded.padding) };
        let bulletin = bulletin(&mut content, &self.exchange, node, version, wanted, salt);
        let digest = envelope::digest(&bulletin.envelope);
        self.note("publish", node, &digest.0);
        let header = envelope::header_of(&bulletin.envelope).ok().map(std::sync::Arc::new);
        if self.nodes[node].nature.forks {
            let lie = crate::node::lie(&bulletin.envelope);
            self.model.published(envelope::digest(&lie), lie, bulletin.facts.clone());
        }
        if header.is_none() {
            // It has no id, so a retry could not be recognised.
            self.publishers.remove(&id);
        }
        self.model.published(digest, bulletin.envelope.clone(), bulletin.facts);
        if self.has(Mutation::ReleaseBeforeCommit) {
            let feed = self.nodes[node].feed.clone();
            let index = self.nodes[node].size(&feed);
            self.release(node, id, (feed, index), digest);
        }
        self.nodes[node].live.waiting.push(Work::Publish(bulletin.envelope, header, id));
        self.soon(6, Event::Commit(node));
    }

    fn deliver(&mut self, node: usize) {
        while let Some((offset, feed, index)) = self.nodes[node].next_delivery() {
            self.note("deliver", node, format!("{offset} {feed} {index}").as_bytes());
            let offset = if self.has(Mutation::DeliverTwice) && offset % 7 == 0 { offset + 1_000 } else { offset };
            match self.model.delivered(node, offset, &(feed, index)) {
                Ok(true) => self.count("ack lost, delivered again"),
                Ok(false) => self.count("delivered"),
                Err(fault) => self.violated(node, fault),
            }
            if self.random.chance(60) && self.nodes[node].live.has_room() {
                self.nodes[node].live.waiting.push(Work::Acknowledge(offset));
                self.soon(20, Event::Commit(node));
            }
            // A subscriber may stop at any entry.
            if self.trouble() && self.random.chance(10) {
                return;
            }
        }
        if self.has(Mutation::DeliverTwice) && self.random.chance(5) {
            self.nodes[node].live.read_to = self.nodes[node].live.read_to.saturating_sub(1);
        }
    }

    /// The governors issue a version: one remaining member and all joining members receive it.
    fn roster(&mut self, version: u64) {
        let listed = |node: usize, version| self.exchange.is_listed(node, version);
        let all = 0..self.nodes.len();
        let first = *self.random.pick(&[0, 1]);
        let joining: Vec<usize> =
            all.clone().filter(|node| listed(*node, version) && !listed(*node, version - 1)).collect();
        let leaving = all.filter(|node| !listed(*node, version) && listed(*node, version - 1)).count();
        self.coverage.add("member admitted", joining.len() as u64);
        self.coverage.add("member expelled", leaving as u64);
        for node in joining.into_iter().chain([first]) {
            // An operator installs it with all earlier versions, whether the node runs or not.
            for note in self.exchange.notes.iter().take(usize::try_from(version).unwrap_or_default()) {
                let _ = self.nodes[node].disk.chain.extend(note);
            }
            self.note("roster", node, &version.to_be_bytes());
        }
    }

    /// Ends all faults.
    fn heal(&mut self) {
        self.split.1 = 0;
        self.cut.clear();
        self.disk_faults.iter_mut().for_each(VecDeque::clear);
        for node in &mut self.nodes {
            node.clock = 0;
            node.live.announced.clear();
            node.live.announced_roster.clear();
            node.live.unmatched.clear();
        }
        // Rosters that operators installed may have been on a disk that was lost since.
        for node in 0..self.nodes.len() {
            let joined = self.exchange.is_listed(node, self.exchange.last_version());
            let lost = self.model.restores[node] > 0;
            if joined && (lost || !self.nodes[node].is_member()) || node == 0 {
                for note in &self.exchange.notes {
                    let _ = self.nodes[node].disk.chain.extend(note);
                }
            }
        }
        self.at(self.now + PEACE_MIN, Event::Look);
    }

    /// Checks the invariants, or waits a little longer.
    fn look(&mut self) {
        let broken = check::check(self);
        let late = self.now >= TROUBLE + PEACE_MAX;
        if broken.is_empty() || late || !self.violations.is_empty() {
            self.violations.extend(broken.into_iter().take(20));
            self.ended = true;
            self.coverage.add("units of peace needed", self.now - TROUBLE);
        } else {
            self.at(self.now + LOOK_EVERY, Event::Look);
        }
    }

    pub(crate) fn check_bounds(&mut self, node: usize) {
        let feeds = self.exchange.epochs.iter().map(|epochs| *epochs as usize).sum();
        if let Some(what) = self.nodes[node].live.overfull(self.nodes.len(), feeds) {
            self.violated(node, what);
        }
        let ahead = &self.nodes[node].disk.ahead;
        let count = |feed, how| {
            let ahead = self.nodes[node].disk.ahead_of(feed);
            ahead.filter(|(_, ahead)| entry_priority(&ahead.entry).unwrap_or(Priority::Other) == how).count()
        };
        let exceeded = ahead.keys().find(|(feed, _)| {
            [Priority::Actual, Priority::Other].into_iter().any(|how| count(feed, how) > ROOM.of(how).entries_max)
        });
        if let Some((feed, _)) = exceeded.cloned() {
            self.violated(node, format!("too many priority entries of {feed}"));
        }
    }
}
