//! Checks the invariants once everything has healed: the state of every node beside the reference
//! model.
//!
//! In scope: the comparison. Nothing here asks core about audiences or order of arrival.

use std::collections::{BTreeMap, BTreeSet};

use barid_core::bulletin::kinds::feed_closed;
use barid_core::envelope::digest;
use barid_core::feed::checkpoint::Checkpoint;
use barid_core::feed::tree::root_at;
use barid_core::follow::{EntryEquivocation, Equivocation};
use barid_core::ids::FeedId;

use crate::live::PublishState;
use crate::model::Facts;
use crate::node::{Content, Entry, Log, Node};
use crate::world::World;

pub(crate) fn check(world: &mut World) -> Vec<String> {
    let mut check = Check { current: current(world), world, broken: Vec::new(), history: 0, outlived: 0 };
    check.rosters_are_replicated();
    check.receipts_hold();
    check.durable_state_survives();
    check.feeds_are_equal();
    check.envelopes_match_signed_bytes();
    check.audience_holds_content();
    check.no_content_leaks();
    check.no_false_blame();
    check.priority_entries_match_feeds();
    check.forks_are_detected();
    check.every_publisher_has_a_receipt();
    check.recovery_is_complete();
    let Check { broken, history, outlived, .. } = check;
    world.coverage.add("audience: later joiner given history", history);
    world.coverage.add("priority outlived its feed", outlived);
    broken
}

/// Returns the honest members of the newest roster: every invariant must hold for them.
fn current(world: &World) -> Vec<usize> {
    let last = world.exchange.last_version();
    let honest = |node: &usize| world.exchange.natures[*node].is_honest();
    (0..world.nodes.len()).filter(|node| world.exchange.is_listed(*node, last)).filter(honest).collect()
}

struct Check<'a> {
    world: &'a World,
    current: Vec<usize>,
    broken: Vec<String>,
    history: u64,
    outlived: u64,
}

/// Returns all entries that a node holds, in order and ahead of it.
pub(crate) fn held(node: &Node) -> impl Iterator<Item = (&FeedId, u64, &Entry)> {
    let logs = node
        .disk
        .logs
        .iter()
        .flat_map(|(feed, log)| (0_u64..).zip(&log.entries).map(move |(index, entry)| (feed, index, entry)));
    logs.chain(node.disk.ahead.iter().map(|((feed, index), ahead)| (feed, *index, &ahead.entry)))
}

impl Check<'_> {
    fn fails(&mut self, node: usize, what: impl std::fmt::Display) {
        self.broken.push(format!("{}: {what}", self.world.exchange.members[node]));
    }

    fn honest(&self) -> impl Iterator<Item = (usize, &Node)> {
        let world = self.world;
        world.nodes.iter().enumerate().filter(|(node, _)| world.exchange.natures[*node].is_honest())
    }

    fn facts(&self, entry: &Entry) -> Option<&Facts> {
        self.world.model.facts.get(&entry.digest)
    }

    fn rosters_are_replicated(&mut self) {
        for node in self.current.clone() {
            let held = self.world.nodes[node].disk.chain.newest().version();
            let newest = self.world.exchange.last_version();
            if held != newest {
                self.fails(node, format!("holds roster {held} of {newest}"));
            }
        }
    }

    /// A published entry with a receipt is in the feed, unless the store was lost since; then its
    /// place is empty or has the same entry.
    fn receipts_hold(&mut self) {
        let world = self.world;
        for receipt in &world.model.receipts {
            let (feed, index) = &receipt.place;
            let entry = world.nodes[receipt.node].disk.logs.get(feed).and_then(|log| log.entry(*index));
            let lost = receipt.restores != world.model.restores[receipt.node];
            if entry.is_none_or(|entry| entry.digest != receipt.digest) && !(lost && entry.is_none()) {
                self.fails(receipt.node, format!("the entry of a receipt for {feed} {index} is missing"));
            }
        }
        let mut broken = Vec::new();
        for (node, here) in self.honest().filter(|(node, _)| world.model.restores[*node] == 0) {
            let mut ids = BTreeSet::new();
            let log = &here.disk.logs[&here.feed];
            for entry in &log.entries {
                let Content::Disclosed { header: Some(header), .. } = &entry.content else { continue };
                if !ids.insert(&header.id) {
                    broken.push((node, format!("{} is twice in its feed", header.id)));
                }
            }
        }
        broken.into_iter().for_each(|(node, what)| self.fails(node, what));
    }

    /// Nothing durable is lost, and offsets are unchanged.
    fn durable_state_survives(&mut self) {
        let world = self.world;
        let mut broken = Vec::new();
        for (node, here) in self.honest() {
            let seen = &world.model.seen[node];
            for (feed, size) in &seen.sizes {
                let held = here.disk.size(feed);
                if held != *size {
                    broken.push((node, format!("{size} entries of {feed} were durable, {held} are held now")));
                }
            }
            if let Some(feed) = seen.forks.iter().find(|feed| !here.disk.forks.contains_key(*feed)) {
                broken.push((node, format!("the durable fork of {feed} is lost")));
            }
            if here.disk.by_offset != seen.by_offset {
                broken.push((node, "offsets changed".to_owned()));
            }
            let disclosed: usize = here
                .disk
                .logs
                .values()
                .map(|log| log.entries.iter().filter(|entry| entry.is_disclosed()).count())
                .sum();
            let disclosed = disclosed + here.disk.ahead.len();
            if disclosed != here.disk.by_offset.len() {
                let arrived = here.disk.by_offset.len();
                broken.push((node, format!("{disclosed} entries are held in full, {arrived} have offsets")));
            }
        }
        broken.into_iter().for_each(|(node, what)| self.fails(node, what));
    }

    /// Every honest member's feed is equal at all nodes, up to its longest copy; every other copy
    /// is a prefix of that.
    fn feeds_are_equal(&mut self) {
        let world = self.world;
        let mut longest: BTreeMap<&FeedId, &Log> = BTreeMap::new();
        for (_, here) in self.honest() {
            for (feed, log) in &here.disk.logs {
                let best = longest.entry(feed).or_insert(log);
                if log.tree.size() > best.tree.size() {
                    *best = log;
                }
            }
        }
        // Entries that only former members hold do not arrive any more.
        let mut reachable: BTreeMap<&FeedId, u64> = BTreeMap::new();
        for node in &self.current {
            for (feed, log) in &world.nodes[*node].disk.logs {
                let size = reachable.entry(feed).or_default();
                *size = log.tree.size().max(*size);
            }
        }
        let mut broken = Vec::new();
        for (feed, log) in longest {
            let Some(owner) = world.exchange.position(&feed.member) else { continue };
            if !world.exchange.natures[owner].is_honest() {
                continue;
            }
            for (node, here) in self.honest() {
                let copy = here.disk.logs.get(feed);
                let size = copy.map_or(0, |copy| copy.tree.size());
                if copy.is_some_and(|copy| root_at(&log.tree, size) != Ok(copy.tree.root())) {
                    broken.push((node, format!("the roots of {feed} at {size} differ: fork of an honest member")));
                }
                if here.disk.forks.contains_key(feed) || here.live.stopped.contains(feed) {
                    broken.push((node, format!("{feed} is stopped, though its owner is honest")));
                }
                let whole = reachable.get(feed).copied().unwrap_or(0);
                if self.current.contains(&node) && self.current.contains(&owner) && size != whole {
                    broken.push((node, format!("{feed} is stuck at {size} of {whole}")));
                }
            }
        }
        broken.into_iter().for_each(|(node, what)| self.fails(node, what));
    }

    /// Content held is equal to the published bytes, also where this version does not know all of
    /// it.
    fn envelopes_match_signed_bytes(&mut self) {
        let mut broken = Vec::new();
        for (node, here) in self.honest() {
            for (feed, index, entry) in held(here) {
                let Content::Disclosed { envelope, .. } = &entry.content else { continue };
                let published = self.world.model.envelopes.get(&entry.digest) == Some(envelope);
                if !published || digest(envelope) != entry.digest {
                    broken.push((node, format!("the bytes of {feed} {index} differ from those signed")));
                }
            }
        }
        broken.into_iter().for_each(|(node, what)| self.fails(node, what));
    }

    /// A member in the audience by every roster since, which can reach another such member that has
    /// the content, holds it and was delivered it once.
    fn audience_holds_content(&mut self) {
        let world = self.world;
        let mut broken = Vec::new();
        for &owner in &self.current {
            for epoch in 1..=world.exchange.epochs[owner] {
                let feed = world.exchange.feed(owner, epoch);
                let longest = self.current.iter().filter_map(|node| world.nodes[*node].disk.logs.get(&feed));
                let Some(longest) = longest.max_by_key(|log| log.tree.size()) else { continue };
                for (entry, index) in longest.entries.iter().zip(0_u64..) {
                    let Some(facts) = self.facts(entry).filter(|facts| facts.named == owner && facts.understood) else {
                        continue;
                    };
                    for reader in self.holders(owner, &feed, index, facts) {
                        let copy = world.nodes[reader].disk.logs.get(&feed).and_then(|log| log.entry(index));
                        let held = copy.is_some_and(Entry::is_disclosed);
                        let given = world.model.subscribers[reader].places.contains(&(feed.clone(), index));
                        if !(held && given) {
                            let state = if held { "not delivered" } else { "not held" };
                            broken.push((reader, format!("{feed} {index} is {state}, though the member may read it")));
                        }
                    }
                }
            }
        }
        broken.into_iter().for_each(|(node, what)| self.fails(node, what));
    }

    /// Returns the members that must hold an entry in the end: content passes only between members
    /// that may read it, follow its topic and can reach each other.
    fn holders(&self, owner: usize, feed: &FeedId, index: u64, facts: &Facts) -> Vec<usize> {
        let world = self.world;
        let entitled = |node: usize| {
            let filters = &world.nodes[node].topics;
            // A node follows all topics or those of the first group; of its own feed it follows
            // everything.
            let wanted = filters.is_empty() || facts.group == 0 || node == owner;
            wanted && facts.always_admit(node, &world.exchange)
        };
        let has = |node: usize| {
            let log = world.nodes[node].disk.logs.get(feed);
            log.and_then(|log| log.entry(index)).is_some_and(Entry::is_disclosed)
        };
        let never_lost = |node: usize| node == owner && world.model.restores[owner] == 0;
        // A relay's false report of withheld content is not detected by a member that the owner
        // cannot reach, or if the owner has lost the entry itself.
        let liars = world.exchange.natures.iter().any(|nature| nature.withholds || nature.garbage);
        let lost = world.model.restores[owner] > 0;
        let informed = |node: usize| node == owner || !(liars && (lost || world.is_severed(node, owner)));
        let mut holders: Vec<usize> =
            self.current.iter().copied().filter(|node| entitled(*node) && (has(*node) || never_lost(*node))).collect();
        while let Some(next) = self.current.iter().copied().find(|node| {
            !holders.contains(node)
                && entitled(*node)
                && informed(*node)
                && holders.iter().any(|holder| !world.is_severed(*holder, *node))
        }) {
            holders.push(next);
        }
        holders
    }

    fn no_content_leaks(&mut self) {
        let world = self.world;
        let (mut broken, mut history) = (Vec::new(), 0);
        let leaky = world.exchange.natures.iter().any(|nature| nature.leaky);
        for (node, here) in self.honest() {
            for (feed, index, entry) in
                held(here).filter(|(feed, _, entry)| feed.member != here.me && entry.is_disclosed())
            {
                let facts = self.facts(entry);
                let may = facts.is_some_and(|facts| facts.ever_admit(node, &world.exchange));
                let given = world.model.subscribers[node].places.contains(&(feed.clone(), index));
                // Content that arrives before its roster cannot be checked, and is not delivered.
                if !may && (given || !(entry.pending_roster && leaky)) {
                    broken.push((node, format!("{feed} {index} leaked")));
                }
                let named = facts.map(|facts| &world.exchange.members[facts.named]);
                if given && named != Some(&feed.member) {
                    broken.push((node, format!("{feed} {index} was delivered, though it names another member")));
                }
                let by_its_own =
                    |facts: &Facts| world.exchange.at(facts.version).is_some_and(|listed| facts.admit(node, listed));
                history += u64::from(may && !facts.is_some_and(by_its_own));
            }
        }
        self.history = history;
        broken.into_iter().for_each(|(node, what)| self.fails(node, what));
    }

    /// A priority entry is the entry that the feed has at its index, or equivocation is proven. It
    /// stays ahead only if the feed does not reach it: its owner has lost it, or is not an honest
    /// current member.
    fn priority_entries_match_feeds(&mut self) {
        let world = self.world;
        let (mut broken, mut outlived) = (Vec::new(), 0);
        let mut digests = BTreeMap::new();
        for (node, place, digest, restores) in &world.model.ahead {
            let (feed, index) = place;
            let Some(owner) = world.exchange.position(&feed.member) else { continue };
            let here = &world.nodes[*node];
            let honest = |node: usize| world.exchange.natures[node].is_honest();
            if !honest(*node) || *restores != world.model.restores[*node] {
                continue;
            }
            if honest(owner) && digests.insert(place, digest).is_some_and(|other| other != digest) {
                broken.push((*node, format!("{feed} {index} differs from the entry at another node")));
            }
            match here.disk.logs.get(feed).and_then(|log| log.entry(*index)) {
                Some(entry) if entry.digest == *digest || here.disk.forks.contains_key(feed) => {}
                Some(_) => broken
                    .push((*node, format!("the priority entry {feed} {index} differs from the entry of the feed"))),
                None if here.disk.ahead.get(place).is_none_or(|ahead| ahead.entry.digest != *digest) => {
                    broken.push((*node, format!("the priority entry {feed} {index} is lost")));
                }
                None => {
                    let both = [*node, owner].iter().all(|node| self.current.contains(node));
                    if both && world.model.restores[owner] == 0 {
                        broken.push((*node, format!("the feed did not reach the priority entry {feed} {index}")));
                    }
                    outlived += 1;
                }
            }
        }
        self.outlived = outlived;
        broken.into_iter().for_each(|(node, what)| self.fails(node, what));
    }

    /// No honest member withholds an entry wrongly, and none is taken to do so, unless a dishonest
    /// peer served it, or one that did not know the roster that expels it.
    fn no_false_blame(&mut self) {
        let world = self.world;
        let lies = |nature: &crate::exchange::Nature| nature.withholds || nature.garbage || nature.newer;
        if world.exchange.natures.iter().any(lies) {
            return;
        }
        for (node, (feed, index)) in &world.model.blamed {
            let entry = world.nodes[*node].disk.logs.get(feed).and_then(|log| log.entry(*index));
            if entry.and_then(|entry| self.facts(entry)).is_some_and(|facts| facts.always_admit(*node, &world.exchange))
            {
                self.fails(*node, format!("{feed} {index} was reported as wrongly withheld"));
            }
        }
    }

    /// Stored evidence proves equivocation, of a feed that was forked; and of two members with
    /// different trees that reach each other one knows it.
    fn forks_are_detected(&mut self) {
        let world = self.world;
        let newest = world.exchange.chain.newest();
        let mut broken = Vec::new();
        for (node, here) in self.honest() {
            for (feed, evidence) in &here.disk.forks {
                let trees = Equivocation::verify(evidence, newest).is_ok_and(|fork| fork.feed() == feed);
                let proves = trees || EntryEquivocation::verify(evidence, newest).is_ok_and(|fork| fork.feed() == feed);
                let nature = world.exchange.position(&feed.member).map(|owner| &world.exchange.natures[owner]);
                // Garbage may happen to be signed.
                let forks = nature.is_some_and(|nature| nature.forks || nature.garbage);
                let listed = !newest.feed_keys(feed).is_empty();
                if listed && !proves || !forks {
                    broken.push((node, format!("the stored evidence of a fork of {feed} proves nothing")));
                }
            }
        }
        let last = world.exchange.last_version();
        let forkers = (0..world.nodes.len()).filter(|node| world.nodes[*node].other.is_some());
        for owner in forkers.filter(|owner| world.exchange.is_listed(*owner, last)) {
            let feed = &world.nodes[owner].feed;
            let complete = |node: &usize| {
                let log = world.nodes[*node].disk.logs.get(feed)?;
                (log.checkpoint_size == log.tree.size()).then_some(log)
            };
            for &one in &self.current {
                for &other in self.current.iter().filter(|other| **other > one && !world.is_severed(one, **other)) {
                    let (Some(a), Some(b)) = (complete(&one), complete(&other)) else { continue };
                    let size = a.tree.size().min(b.tree.size());
                    let differ = root_at(&a.tree, size).ok() != root_at(&b.tree, size).ok();
                    // The other member may have received the tree head in the middle of a catch-up,
                    // when it could prove nothing.
                    let known = [one, other].iter().any(|node| world.nodes[*node].live.stopped.contains(feed));
                    if differ && !known {
                        broken.push((one, format!("the fork of {feed} is not detected")));
                    }
                }
            }
        }
        broken.into_iter().for_each(|(node, what)| self.fails(node, what));
    }

    fn every_publisher_has_a_receipt(&mut self) {
        let world = self.world;
        for (id, publisher) in &world.publishers {
            let node = publisher.node;
            let spent = world.nodes[node].needs_recovery.is_some();
            let has_receipt = world.model.receipts.iter().any(|receipt| receipt.id == *id);
            if self.current.contains(&node) && !spent && !has_receipt {
                self.fails(node, format!("the publisher of {id} has no receipt"));
            }
        }
    }

    /// Every feed continues, in its next epoch if necessary, which announces all of the earlier
    /// ones.
    fn recovery_is_complete(&mut self) {
        let world = self.world;
        for node in self.current.clone() {
            let here = &world.nodes[node];
            let spent = here.opened >= world.exchange.epochs[node];
            if here.live.publish_state != PublishState::Open && !spent {
                self.fails(node, format!("{} does not publish", here.feed));
            }
            for epoch in 1..here.feed.epoch {
                let feed = world.exchange.feed(node, epoch);
                let Some(log) = here.disk.logs.get(&feed).filter(|_| here.live.publish_state == PublishState::Open)
                else {
                    continue;
                };
                let tree = Checkpoint { size: log.tree.size(), root: log.tree.root(), feed };
                // A node waits for a peer that announces more and delivers nothing.
                let liars = world.nodes.iter().filter(|node| !node.nature.is_honest());
                if liars.into_iter().any(|node| node.disk.size(&tree.feed) > tree.size) {
                    continue;
                }
                if !here.disk.ids.contains_key(&feed_closed::id(&tree).to_string()) {
                    self.fails(node, format!("the end of {} at {} is not announced", tree.feed, tree.size));
                }
            }
        }
    }
}
