//! What must hold once everything has healed. The truth is known here: all rosters, every node's insides.

use barid_core::bulletin::audience::may_read;
use barid_core::envelope::digest;
use barid_core::feed::tree::root_at;
use barid_core::names::Member;
use barid_core::proto;

use crate::exchange::Exchange;
use crate::node::{Content, Entry, Node};
use crate::world::World;

pub(crate) fn check(world: &mut World) {
    let mut broken = Vec::new();
    released_is_held(world, &mut broken);
    rosters_are_everywhere(world, &mut broken);
    feeds_are_equal(world, &mut broken);
    bytes_are_those_that_were_signed(world, &mut broken);
    everybody_has_what_it_may_read(world, &mut broken);
    nobody_has_more(world, &mut broken);
    nobody_is_blamed(world, &mut broken);
    world.violations.append(&mut broken);
}

fn current(world: &World) -> Vec<usize> {
    let newest = world.exchange.chain.newest();
    (0..world.nodes.len()).filter(|node| newest.member(&world.exchange.members[*node]).is_some()).collect()
}

fn released_is_held(world: &World, broken: &mut Vec<String>) {
    for receipt in &world.receipts {
        let node = &world.nodes[receipt.node];
        let held = usize::try_from(receipt.index).ok().and_then(|index| node.logs[&node.feed].entries.get(index));
        if held.is_none_or(|held| held.digest != receipt.digest) {
            broken.push(format!("{}: what was released as {} is missing", node.me, receipt.index));
        }
    }
}

fn rosters_are_everywhere(world: &World, broken: &mut Vec<String>) {
    for node in current(world) {
        let (held, newest) = (world.nodes[node].chain.newest().version(), world.exchange.last_version());
        if held != newest {
            broken.push(format!("{}: holds roster {held} of {newest}", world.nodes[node].me));
        }
    }
}

/// A member's copy of a member's feed is whole; any other copy is a beginning of it.
fn feeds_are_equal(world: &World, broken: &mut Vec<String>) {
    let current = current(world);
    for (owner, node) in world.nodes.iter().enumerate() {
        let own = &node.logs[&node.feed].tree;
        for (reader, copy) in world.nodes.iter().enumerate() {
            let whole = current.contains(&owner) && current.contains(&reader);
            let size = copy.size(&node.feed);
            if whole && size != own.size() {
                broken.push(format!("{}: {} is wedged at {size} of {}", copy.me, node.feed, own.size()));
            }
            let root = copy.logs.get(&node.feed).map(|log| log.tree.root());
            if size > own.size() || root.is_some_and(|root| root_at(own, size) != Ok(root)) {
                broken.push(format!("{}: {} has another root at {size}", copy.me, node.feed));
            }
        }
    }
}

/// What is held in full is the digest's content to the last byte, also where this version does not know all of it.
fn bytes_are_those_that_were_signed(world: &World, broken: &mut Vec<String>) {
    for node in &world.nodes {
        for (feed, log) in &node.logs {
            for (entry, index) in log.entries.iter().zip(0_u64..) {
                if let Content::Disclosed { envelope, .. } = &entry.content
                    && digest(envelope) != entry.digest
                {
                    broken.push(format!("{}: {feed} {index} has other bytes than were signed", node.me));
                }
            }
        }
    }
}

/// Who is in the audience by every roster from the header's on, whenever an entry may have been sent, and can reach somebody who is too and has
/// it, has it and was given it.
fn everybody_has_what_it_may_read(world: &World, broken: &mut Vec<String>) {
    let current = current(world);
    for &owner in &current {
        let feed = &world.nodes[owner].feed;
        for (entry, index) in world.nodes[owner].logs[feed].entries.iter().zip(0_u64..) {
            let Some(header) = readable(entry, &feed.member) else { continue };
            for reader in holders(world, &current, owner, header) {
                let me = &world.nodes[reader].me;
                let copy =
                    world.nodes[reader].logs.get(feed).and_then(|log| log.entries.get(usize::try_from(index).ok()?));
                let held = copy.is_some_and(|copy| matches!(copy.content, Content::Disclosed { .. }));
                let given = world.subscribers[reader].entries.contains(&(feed.clone(), index));
                if !(held && given) {
                    let word = if held { "not delivered" } else { "not held" };
                    broken.push(format!("{me}: {feed} {index} is {word}, though it may read it"));
                }
            }
        }
    }
}

/// Who must have an entry in the end: the content passes only between those who may read it and want it, and can reach each other.
fn holders(world: &World, current: &[usize], owner: usize, header: &proto::Header) -> Vec<usize> {
    let versions = header.roster_version..=world.exchange.last_version();
    let entitled = |node: usize| {
        let Node { me, topics, .. } = &world.nodes[node];
        let wanted = topics.is_empty() || topics.iter().any(|filter| filter.matches_header(&header.topic));
        wanted && versions.clone().all(|version| admitted(&world.exchange, header, me, version))
    };
    let mut holders = vec![owner];
    while let Some(next) = current.iter().copied().find(|node| {
        !holders.contains(node) && entitled(*node) && holders.iter().any(|holder| !world.is_severed(*holder, *node))
    }) {
        holders.push(next);
    }
    holders
}

/// Nobody here withholds what is another's, and nobody is blamed for it: except by who is expelled by now and had not heard of it.
fn nobody_is_blamed(world: &World, broken: &mut Vec<String>) {
    for (node, feed, index) in &world.blamed {
        let entry = world.nodes[*node].logs.get(feed).and_then(|log| log.entries.get(usize::try_from(*index).ok()?));
        let Some(header) = entry.and_then(|entry| readable(entry, &feed.member)) else { continue };
        let versions = header.roster_version..=world.exchange.last_version();
        if versions.into_iter().all(|version| admitted(&world.exchange, header, &world.nodes[*node].me, version)) {
            broken.push(format!("{}: {feed} {index} was taken for wrongly withheld", world.nodes[*node].me));
        }
    }
}

fn nobody_has_more(world: &World, broken: &mut Vec<String>) {
    for (node, subscriber) in world.nodes.iter().zip(&world.subscribers) {
        for (feed, log) in node.logs.iter().filter(|(feed, _)| **feed != node.feed) {
            let leaky = world.nodes.iter().any(|node| node.leaky);
            for (entry, index) in log.entries.iter().zip(0_u64..) {
                let Content::Disclosed { header, .. } = &entry.content else { continue };
                let may = header.as_ref().is_some_and(|header| ever_admitted(&world.exchange, header, &node.me));
                let given = subscriber.entries.contains(&(feed.clone(), index));
                // What a liar sends before its roster is there cannot be judged, and is not delivered.
                if !may && (given || !(entry.held_back && leaky)) {
                    broken.push(format!("{}: {feed} {index} leaked", node.me));
                }
                if given && readable(entry, &feed.member).is_none() {
                    broken
                        .push(format!("{}: {feed} {index} was delivered, though nobody could tell for whom", node.me));
                }
            }
        }
    }
}

/// Its header, if it names the feed's owner and its audience can be told.
fn readable<'a>(entry: &'a Entry, owner: &Member) -> Option<&'a proto::Header> {
    let Content::Disclosed { header: Some(header), .. } = &entry.content else { return None };
    (header.format == 1 && header.member == owner.as_str()).then_some(header)
}

fn admitted(exchange: &Exchange, header: &proto::Header, reader: &Member, version: u64) -> bool {
    exchange.chain.at(version).is_some_and(|roster| may_read(header, reader, roster))
}

/// By the roster of its version, or, for who joined the exchange or a working group later, by a later one: then its owner handed it on.
fn ever_admitted(exchange: &Exchange, header: &proto::Header, reader: &Member) -> bool {
    (header.roster_version..=exchange.last_version()).any(|version| admitted(exchange, header, reader, version))
}
