//! Commits: the record, the high-water mark, the receipts, in this order; and the disk and power
//! failures between them.

use barid_core::feed::cosignature::{cosign, verify_cosigned};
use barid_core::feed::note::Note;
use barid_core::ids::{Digest, FeedId};
use barid_core::priority::Admission;
use barid_core::proto;
use barid_core::proto::frame::Frame;

use crate::Mutation;
use crate::exchange::{feed_key, mirror_key};
use crate::model::{Place, Receipt};
use crate::node::{Committed, Content, Disk, HighWaterMark, Work};
use crate::plan::DiskFault;
use crate::world::{Event, World};

/// How far a clock may be behind the last cosignature before its node stops cosigning, in seconds.
const CLOCK_BEHIND_MAX: u64 = 300;
/// How long a node is down after a disk or power failure.
const DOWN: u64 = 60;

impl World {
    pub(crate) fn commit(&mut self, node: usize) {
        self.check_bounds(node);
        let work = std::mem::take(&mut self.nodes[node].live.waiting);
        let work = self.with_room(node, work);
        if work.is_empty() {
            return;
        }
        match self.disk_faults[node].pop_front() {
            Some(DiskFault::Full) => self.reject_commit(node, work),
            Some(DiskFault::NotDurable) => {
                self.count("commit failed, and was not");
                if self.has(Mutation::ReleaseFailedCommit) {
                    let before = self.nodes[node].disk.clone();
                    let done = self.apply(node, work);
                    self.release_all(node, &done);
                    self.nodes[node].disk = before;
                }
                self.crash(node, DOWN);
            }
            Some(DiskFault::Torn) => {
                self.count("torn tail");
                if self.has(Mutation::BelieveTornTail) {
                    let before = self.nodes[node].disk.by_offset.len();
                    let done = self.apply(node, work);
                    self.observe(node, &done);
                    tear(&mut self.nodes[node].disk, before);
                }
                self.crash(node, DOWN);
            }
            Some(fault) => {
                let done = self.apply(node, work);
                self.observe(node, &done);
                match fault {
                    DiskFault::Durable => self.count("commit failed, and was durable"),
                    DiskFault::BeforeHighWaterMark => self.count("crash after commit, before the high-water mark"),
                    _ => {
                        self.count("crash after commit, before the receipt");
                        self.write_high_water_mark(node, &done);
                    }
                }
                self.crash(node, DOWN);
            }
            None => {
                let done = self.apply(node, work);
                self.observe(node, &done);
                self.write_high_water_mark(node, &done);
                self.committed(node, done);
            }
        }
    }

    fn apply(&mut self, node: usize, work: Vec<Work>) -> Committed {
        let key = feed_key(&self.nodes[node].feed);
        self.nodes[node].apply(work, &key, self.mutation)
    }

    /// Records in the model what became durable.
    pub(crate) fn observe(&mut self, node: usize, done: &Committed) {
        self.note("commit", node, &(done.arrived.len() as u64).to_be_bytes());
        let own = self.nodes[node].feed.clone();
        let grown = done.followed.iter().map(|followed| &followed.feed).chain(done.signed.then_some(&own));
        for feed in grown {
            let size = self.nodes[node].size(feed);
            self.model.grew(node, feed, size);
        }
        for place in &done.arrived {
            if let Some(fault) = self.model.arrived(node, place.clone()) {
                self.violated(node, fault);
            }
        }
        let held = done.priority_applied.iter().filter(|(.., admission)| *admission == Admission::Accept);
        for (place, digest, _) in held {
            self.model.priority_applied(node, place.clone(), *digest);
        }
        for fault in &done.faults {
            self.violated(node, fault);
        }
        done.reached.iter().for_each(|what| self.count(what));
        self.check_room(node);
        self.model.seen[node].forks.extend(self.nodes[node].disk.forks.keys().cloned());
    }

    fn write_high_water_mark(&mut self, node: usize, done: &Committed) {
        if done.signed {
            let here = &mut self.nodes[node];
            let tree = here.disk.logs.get(&here.feed).map(|log| (log.tree.size(), log.tree.root()));
            here.high_water_mark = tree.map(|(size, root)| HighWaterMark { epoch: here.feed.epoch, size, root });
        }
    }

    /// The disk is full: the work is rejected, and the node continues.
    fn reject_commit(&mut self, node: usize, work: Vec<Work>) {
        self.count("commit rejected: disk full");
        work.into_iter().for_each(|work| self.reject_work(node, work));
    }

    pub(crate) fn reject_work(&mut self, node: usize, work: Work) {
        match work {
            Work::Batch(batch, ..) => self.restart_following(node, &batch.feed, 30),
            Work::Backfill(_, peer, number) => self.put_off(node, peer, number),
            Work::Fork(feed, _) => drop(self.nodes[node].live.stopped.remove(&feed)),
            // It arrives in order later.
            Work::PriorityEntry(priority) => {
                self.count("priority rejected: disk full");
                self.nodes[node].live.quota.left_out.insert((priority.feed, priority.index));
            }
            Work::Publish(..) | Work::Name(..) | Work::Roster(_) | Work::Acknowledge(_) => {}
        }
    }

    fn release_all(&mut self, node: usize, done: &Committed) {
        for (id, place, again) in &done.released {
            if *again {
                self.count("retry found the first receipt");
            }
            let entry = self.nodes[node].disk.logs.get(&place.0).and_then(|log| log.entry(place.1));
            let Some(digest) = entry.map(|entry| entry.digest) else { continue };
            self.note("release", node, &digest.0);
            if !self.has(Mutation::ReleaseBeforeCommit) {
                self.release(node, *id, place.clone(), digest);
            }
        }
    }

    /// Sends a publisher its receipt. The receipt may be lost; then the publisher retries.
    pub(crate) fn release(&mut self, node: usize, id: u64, place: Place, digest: Digest) {
        let restores = self.model.restores[node];
        let before = self.model.receipts.iter().rev().find(|receipt| receipt.id == id && receipt.restores == restores);
        let other = before.filter(|before| before.place != place || before.digest != digest).cloned();
        if let Some(other) = other
            && !self.has(Mutation::ReleaseBeforeCommit)
        {
            let text =
                format!("{id} has receipts for {} {} and for {} {}", other.place.0, other.place.1, place.0, place.1);
            self.violated(node, text);
        }
        self.count("published");
        self.model.receipts.push(Receipt { node, id, place, digest, restores });
        if !self.random.chance(10) {
            self.publishers.remove(&id);
        }
    }

    /// Sends receipts, progress and attestations for what became durable.
    fn committed(&mut self, node: usize, done: Committed) {
        self.release_all(node, &done);
        self.coverage.add("roster adopted from a peer", done.rosters);
        self.coverage.add("roster rejected", done.bad_rosters);
        if let Some(offset) = done.acknowledged {
            self.model.subscribers[node].confirmed = offset;
        }
        if done.signed {
            let feed = self.nodes[node].feed.clone();
            let first = done.released.iter().filter(|(_, (of, _), again)| *of == feed && !again);
            let first = first.map(|(_, (_, index), _)| *index).min();
            self.announce(node, &feed, first.unwrap_or(u64::MAX));
        }
        self.coverage.add("priority reached by its feed", done.matched);
        for ((feed, index), _, admission) in done.priority_applied {
            match admission {
                Admission::Accept => self.priority_applied(node, &feed, index),
                Admission::Duplicate => self.count("priority duplicate"),
                Admission::Conflict => self.count("priority conflicts with a stored entry"),
                Admission::Stale => self.count("priority stale"),
                Admission::Full => self.count("priority rejected: no capacity"),
            }
        }
        for ((feed, index), by_batch, offered) in done.conflicting {
            self.count(if by_batch { "conflicting entry in a batch" } else { "conflicting priority entry" });
            if by_batch {
                self.restart_following(node, &feed, 10);
            }
            self.entry_conflict(node, &feed, index, offered);
        }
        for signed in &done.complete {
            self.cosign(node, signed);
        }
        for followed in done.followed {
            self.stored(node, &followed);
            self.announce(node, &followed.feed, followed.served.start);
        }
        for (feed, _) in done.stale {
            self.count("commit stale");
            self.restart_following(node, &feed, 2);
        }
        for (feed, from, number, got) in done.backfilled {
            self.backfilled(node, &feed, from, number, got);
        }
        for (from, number) in done.over_share {
            self.count("disk space: backfill over a share");
            self.put_off(node, from, number);
        }
        if done.rosters > 0 {
            self.roster_adopted(node);
        }
        self.soon(10, Event::Deliver(node));
    }

    /// Sends a cosignature of a checkpoint that is durable here to its owner.
    pub(crate) fn cosign(&mut self, node: usize, signed: &barid_core::feed::checkpoint::SignedCheckpoint) {
        let (feed, size) = (&signed.checkpoint.feed, signed.checkpoint.size);
        // In a large exchange a part of them is enough: each costs three signatures.
        if self.nodes.len() > 8 && size % 5 != 0 {
            return;
        }
        let now = self.clock(node);
        let here = &mut self.nodes[node];
        let time = now.max(here.disk.last_time);
        let time = if self.mutation == Some(Mutation::CosignByClock) { now } else { time };
        if time > now + CLOCK_BEHIND_MAX {
            self.count("clock too far behind to cosign");
            return;
        }
        here.disk.last_time = time;
        let key = mirror_key(&here.feed);
        let Ok(note) = cosign(signed, &key, time) else {
            self.violated(node, "a verified checkpoint cannot be cosigned");
            return;
        };
        if let Some(fault) = self.model.cosigned(node, feed, size, time) {
            self.violated(node, fault);
        }
        if let Some(owner) = self.exchange.position(&feed.member) {
            self.send(node, owner, Frame::Cosigned(proto::Cosigned { note, ..proto::Cosigned::default() }));
        }
    }

    /// Verifies a received cosignature, which must be valid by the rosters held here.
    pub(crate) fn cosigned(&mut self, from: usize, to: usize, cosigned: &proto::Cosigned) {
        let Ok(note) = Note::parse(&cosigned.note) else { return };
        let here = &self.nodes[to];
        let roster = here.disk.chain.newest();
        let keys: Vec<_> = roster.mirror_keys(&self.exchange.members[from], &note.signatures);
        let feed = note.text.lines().next().and_then(|origin| origin.parse::<FeedId>().ok());
        let Some(feed) = feed.filter(|feed| feed.member == here.me) else { return };
        match verify_cosigned(&cosigned.note, &roster.feed_keys(&feed), &keys) {
            Ok(_) => self.count("cosigned"),
            Err(_) if !self.exchange.natures[from].is_honest() => {}
            Err(error) => self.violated(to, format!("a cosignature of {feed} by {from} is invalid: {error}")),
        }
    }
}

/// Cuts the record in the middle of its envelopes.
fn tear(disk: &mut Disk, offsets_before: usize) {
    for (feed, index) in disk.by_offset.split_off(offsets_before) {
        let log = disk.logs.get_mut(&feed);
        let entry = log.and_then(|log| log.entries.get_mut(usize::try_from(index).ok()?));
        if let Some(entry) = entry
            && let Content::Disclosed { envelope, .. } = &mut entry.content
        {
            envelope.truncate(envelope.len() / 2);
        }
        disk.by_offset.push((feed, index));
    }
}
