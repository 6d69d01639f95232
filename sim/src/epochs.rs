//! A member's own feeds: needs recovery, fetching them from peers, opening the next epoch, and
//! announcing closed ones.
//!
//! In scope: a node's rules (docs/protocol.md §4) and the actions of its operators. Out of scope:
//! the bulletin that closes an epoch (core).

use std::sync::Arc;

use barid_core::bulletin::header::BulletinId;
use barid_core::bulletin::kinds::feed_closed;
use barid_core::bulletin::{DraftDefaults, prepare};
use barid_core::feed::checkpoint::Checkpoint;
use barid_core::feed::tree::root_at;
use barid_core::ids::FeedId;

use crate::Mutation;
use crate::bulletins::Bulletin;
use crate::exchange::{GROUPS, feed_key};
use crate::live::{Fetch, PublishState};
use crate::model::Facts;
use crate::node::{Committed, HighWaterMark, Work};
use crate::world::{Event, World};

/// How long a peer may deliver nothing of an own feed before another one is tried.
const FETCH_TIMEOUT: u64 = 300;
/// How long a peer is not asked again after its batch was rejected.
const PUT_OFF: u64 = 100;
/// How often operators check whether everything is here, and after how many checks they continue
/// without some members.
const RECOVER_EVERY: u64 = 50;
const RECOVER_TRIES: u32 = 12;

impl World {
    /// Starts publishing: compares the high-water mark with the store.
    pub(crate) fn open_feed(&mut self, node: usize) {
        if self.has(Mutation::ContinueAfterRestore) {
            let here = &mut self.nodes[node];
            let feed = here.feed.clone();
            let log = here.disk.logs.entry(feed.clone()).or_default();
            log.sign(&feed, &feed_key(&feed));
            let high_water_mark = HighWaterMark { epoch: feed.epoch, size: log.tree.size(), root: log.tree.root() };
            here.high_water_mark = Some(high_water_mark);
            return;
        }
        let here = &self.nodes[node];
        let log = here.disk.logs.get(&here.feed);
        let needs_recovery = match (log, here.high_water_mark) {
            (_, None) => Some("needs recovery: high-water mark missing"),
            _ if here.needs_recovery == Some(here.feed.epoch) => Some("needs recovery: recorded before a restart"),
            (_, Some(high_water_mark)) if high_water_mark.epoch != here.feed.epoch => {
                Some("needs recovery: high-water mark of another epoch")
            }
            (None, Some(_)) => Some("needs recovery: store empty"),
            (Some(log), Some(high_water_mark)) if high_water_mark.size > log.tree.size() => {
                Some("needs recovery: high-water mark ahead of the store")
            }
            (Some(log), Some(high_water_mark)) => {
                let other = root_at(&log.tree, high_water_mark.size) != Ok(high_water_mark.root);
                other.then_some("needs recovery: high-water mark of another tree")
            }
        };
        match needs_recovery {
            Some(needs_recovery) => self.enter_recovery(node, needs_recovery),
            None => {
                // Power may have failed between a record and its high-water mark, and peers receive
                // the record from now on.
                let tree = log.map(|log| (log.tree.size(), log.tree.root()));
                let epoch = here.feed.epoch;
                if !self.has(Mutation::StaleHighWaterMark) {
                    self.nodes[node].high_water_mark = tree.map(|(size, root)| HighWaterMark { epoch, size, root });
                }
            }
        }
    }

    pub(crate) fn enter_recovery(&mut self, node: usize, why: &'static str) {
        // A forking member continues with both trees.
        if self.has(Mutation::ContinueAfterRestore) || self.exchange.natures[node].forks {
            return;
        }
        self.count(why);
        self.note("needs-recovery", node, why.as_bytes());
        if self.model.restores[node] == 0 && self.exchange.natures[node].is_honest() {
            self.violated(node, format!("{why}, though its store was never restored"));
        }
        let here = &mut self.nodes[node];
        here.live.publish_state = PublishState::NeedsRecovery;
        here.needs_recovery = Some(here.feed.epoch);
        let at = self.now + 50 + self.random.below(400);
        self.at(at, Event::Recover(node, 0));
    }

    /// Follows this member's own feeds at peers, where the node does not append to them itself.
    pub(crate) fn fetch_own(&mut self, node: usize) {
        for epoch in 1..=self.exchange.epochs[node] {
            let feed = self.exchange.feed(node, epoch);
            let (now, here) = (self.now, &mut self.nodes[node]);
            let follows = feed != here.feed || here.live.publish_state == PublishState::NeedsRecovery;
            if !follows || here.live.stopped.contains(&feed) {
                here.live.following.remove(&feed);
                continue;
            }
            let held = here.disk.size(&feed);
            let live = &mut here.live;
            let more = |peer: &usize| live.advertised.get(&(feed.clone(), *peer)).is_some_and(|size| *size > held);
            let peers: Vec<usize> = live.linked.iter().copied().filter(more).collect();
            let fetch = live.fetching.entry(feed.clone()).or_insert_with(Fetch::default);
            let ready = |peer: &&usize| fetch.put_off.get(*peer).is_none_or(|until| *until <= now);
            let stays = fetch.at.filter(|at| peers.contains(at) && now - fetch.since <= FETCH_TIMEOUT);
            let next = stays.or_else(|| {
                let others = peers.iter().filter(ready).filter(|peer| Some(**peer) != fetch.at);
                others.min_by_key(|peer| (**peer + usize::try_from(now).unwrap_or(0)) % 7).copied()
            });
            let Some(next) = next.or_else(|| peers.iter().copied().find(|peer| ready(&peer))) else { continue };
            if fetch.at != Some(next) || !live.following.contains_key(&feed) {
                (fetch.at, fetch.since) = (Some(next), now);
                self.begin(node, &feed, next);
            }
        }
    }

    pub(crate) fn put_off_fetch(&mut self, node: usize, feed: &FeedId, peer: usize) {
        let until = self.now + PUT_OFF;
        if let Some(fetch) = self.nodes[node].live.fetching.get_mut(feed) {
            fetch.at = None;
            fetch.put_off.insert(peer, until);
        }
    }

    /// Operators recover a feed: once everything that peers announced is here, or without members
    /// that do not respond.
    pub(crate) fn recover(&mut self, node: usize, tries: u32) {
        let here = &self.nodes[node];
        if here.up && here.live.publish_state != PublishState::NeedsRecovery
            || here.needs_recovery != Some(here.feed.epoch)
        {
            return;
        }
        if !here.up || !here.is_member() {
            return self.at(self.now + RECOVER_EVERY, Event::Recover(node, tries));
        }
        let others = (0..self.nodes.len()).filter(|peer| *peer != node && here.knows(&self.exchange.members[*peer]));
        let here_too = |((feed, by), size): (&(FeedId, usize), &u64), peer: usize| {
            *by != peer || feed.member != here.me || here.disk.size(feed) >= *size
        };
        let incomplete = others.filter(|peer| {
            let linked = here.live.linked.contains(peer) && here.live.heads_of.contains(peer);
            !linked || !here.live.advertised.iter().all(|advertised| here_too(advertised, *peer))
        });
        if incomplete.count() > 0 {
            if tries < RECOVER_TRIES {
                return self.at(self.now + RECOVER_EVERY, Event::Recover(node, tries + 1));
            }
            self.count("epoch opened without all peers");
        }
        self.open_epoch(node);
    }

    /// Commits the first entry of the next epoch, then writes the high-water mark; until then the
    /// old epoch needs recovery.
    fn open_epoch(&mut self, node: usize) {
        let here = &self.nodes[node];
        let old = here.feed.clone();
        let begun = here.opened > old.epoch && here.disk.size(&self.exchange.feed(node, here.opened)) == 1;
        let epoch = if begun { here.opened } else { here.opened + 1 };
        let epoch = if self.has(Mutation::ReuseEpoch) { 2 } else { epoch };
        if epoch > self.exchange.epochs[node] {
            return self.count("no epoch left");
        }
        let next = self.exchange.feed(node, epoch);
        self.nodes[node].opened = epoch;
        if !begun {
            let tree = self.tree_of(node, &old);
            let Some(closing) = self.closing(node, &tree) else { return };
            let here = &mut self.nodes[node];
            here.feed = next.clone();
            let header = barid_core::envelope::header_of(&closing.envelope).expect("just made");
            let done: Committed =
                here.apply(vec![Work::Name(closing.envelope, Arc::new(header))], &feed_key(&next), self.mutation);
            self.observe(node, &done);
            self.nodes[node].feed = old;
            if self.disk_faults[node].pop_front().is_some() || self.random.chance(10) {
                self.count("crash while opening an epoch");
                return self.crash(node, 30);
            }
        }
        self.count("epoch opened");
        self.note("epoch", node, next.to_string().as_bytes());
        let here = &mut self.nodes[node];
        let root = here.disk.logs.get(&next).map(|log| log.tree.root());
        here.high_water_mark = root.map(|root| HighWaterMark { epoch, size: here.disk.size(&next), root });
        (here.feed, here.needs_recovery) = (next, None);
        self.crash(node, 1);
    }

    fn tree_of(&self, node: usize, feed: &FeedId) -> Checkpoint {
        let log = self.nodes[node].disk.logs.get(feed);
        let tree = log.map(|log| log.tree.clone()).unwrap_or_default();
        Checkpoint { feed: feed.clone(), size: tree.size(), root: tree.root() }
    }

    /// Makes the bulletin that announces the longest known tree of a closed epoch, and adds it to
    /// the model.
    fn closing(&mut self, node: usize, tree: &Checkpoint) -> Option<Bulletin> {
        let here = &self.nodes[node];
        let draft = feed_closed::draft(tree, GROUPS[0]);
        let id: BulletinId = feed_closed::id(tree);
        let version = here.disk.chain.newest().version();
        let defaults = DraftDefaults {
            member: here.me.clone(),
            issuer: "node".to_owned(),
            id,
            sent_at_unix_ms: self.clock(node) * 1_000,
            roster_version: version,
        };
        let salt = self.random.bytes();
        let bulletin = match prepare(&draft, &defaults, salt) {
            Ok(bulletin) => bulletin,
            Err(invalid) => {
                self.violated(node, format!("the end of an epoch cannot be announced: {invalid}"));
                return None;
            }
        };
        let facts =
            Facts { named: node, group: 0, label: 1, to: Vec::new(), version, priority: None, understood: true };
        self.model.published(bulletin.digest, bulletin.envelope.clone(), facts.clone());
        Some(Bulletin { envelope: bulletin.envelope, facts })
    }

    /// Announces each tree of a closed epoch that is not announced yet, once it is as long as any
    /// that peers announce.
    pub(crate) fn name_closed(&mut self, node: usize) {
        let here = &self.nodes[node];
        if here.live.publish_state != PublishState::Open || here.feed.epoch == 1 || self.has(Mutation::NameNothing) {
            return;
        }
        for epoch in 1..here.feed.epoch {
            let feed = self.exchange.feed(node, epoch);
            let tree = self.tree_of(node, &feed);
            let here = &self.nodes[node];
            let longer = here.live.advertised.iter().any(|((of, _), size)| *of == feed && *size > tree.size);
            let known = here.disk.ids.contains_key(&feed_closed::id(&tree).to_string());
            let waits = here.live.waiting.iter().any(|work| matches!(work, Work::Name(..)));
            if !here.disk.logs.contains_key(&feed) || longer || known || waits || !here.live.has_room() {
                continue;
            }
            let Some(closing) = self.closing(node, &tree) else { continue };
            self.count("end of an epoch announced again");
            let header = barid_core::envelope::header_of(&closing.envelope).expect("just made");
            self.nodes[node].live.waiting.push(Work::Name(closing.envelope, Arc::new(header)));
            self.soon(6, Event::Commit(node));
        }
    }
}
