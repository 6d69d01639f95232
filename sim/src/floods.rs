//! Members that fill the disks of others, up to a limit and beyond it.
//!
//! In scope: bursts of large and of tiny entries, and bursts that end a byte before, at, or a byte
//! beyond a member's share or a tier at some node. A flooding member follows the protocol: its
//! entries must reach every member in the end. Out of scope: what is committed of them
//! (`disk_space`).

use barid_core::quota::Tier;

use crate::bulletins::{Wanted, bulletin};
use crate::disk_space::{AHEAD_BYTES, Bound};
use crate::exchange::Exchange;
use crate::plan::{Plan, Planned, TROUBLE};
use crate::random::Random;
use crate::world::World;

/// Until this time there are floods; a little later operators add disk space.
const FLOODS_END: u64 = TROUBLE + 400;
pub(crate) const ROOM_IS_MADE: u64 = FLOODS_END + 50;
/// Approximate size of the largest entry of a flood, so that a batch fits into the log's
/// preallocation.
pub(crate) const ENTRY_BYTES_MAX: u64 = 1_200;

/// The target of one burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flood {
    Large,
    Tiny,
    /// This many bytes beyond the share at some node.
    Share(i64),
    /// This many bytes beyond the end of the highest tier at some node.
    Tier(i64),
}

/// An entry of a flood.
#[derive(Clone, Copy)]
pub(crate) struct Flooded {
    pub(crate) alert: bool,
    pub(crate) padding: usize,
}

impl Plan {
    /// In one of three small exchanges most disks are bounded, and some members flood.
    pub(crate) fn floods(&mut self, random: &mut Random, exchange: &Exchange, ids: &mut u64) {
        let count = exchange.members.len();
        if count > 8 || !random.chance(33) {
            return;
        }
        for node in 0..count {
            if random.chance(75) {
                let reserve_bytes = *random.pick(&[8 << 10, 16 << 10, 32 << 10]);
                let disk_bytes = 2 * reserve_bytes + AHEAD_BYTES + (8 << 10) + random.below(120 << 10);
                self.bounds.insert(node, Bound { disk_bytes, reserve_bytes });
            }
        }
        for _ in 0..1 + random.below(5) {
            let node = random.index(count);
            for _ in 0..3 + random.below(6) {
                let off = *random.pick(&[-1, 0, 1]);
                let how = *random.pick(&[Flood::Large, Flood::Large, Flood::Tiny, Flood::Share(off), Flood::Tier(off)]);
                let (entries, alert) = (8 + random.below(32), random.chance(30));
                let first_id = *ids + 1;
                self.at(random.below(FLOODS_END), Planned::Flood { node, first_id, count: entries, how, alert });
                *ids += entries;
            }
        }
        if random.chance(40) {
            self.at(TROUBLE / 2 + random.below(TROUBLE * 3 / 4), Planned::Sever);
        }
    }
}

impl World {
    /// Publishes a burst.
    pub(crate) fn flood(&mut self, node: usize, (first_id, count): (u64, u64), how: Flood, alert: bool) {
        let sizes = self.sizes(node, count, how);
        for (id, size) in (first_id..).zip(sizes) {
            self.count("flood: entry");
            let padding = self.padding(node, id, alert, size);
            self.flooded.insert(id, Flooded { alert, padding });
            self.publish(node, id);
        }
    }

    fn sizes(&mut self, node: usize, count: u64, how: Flood) -> Vec<u64> {
        let bytes = match how {
            Flood::Large => return (0..count).map(|_| ENTRY_BYTES_MAX).collect(),
            Flood::Tiny => return vec![0; usize::try_from(count).unwrap_or_default()],
            Flood::Share(off) => self.left_of_share(node).and_then(|bytes| bytes.checked_add_signed(off)),
            Flood::Tier(off) => self.left_of_tier(node).and_then(|bytes| bytes.checked_add_signed(off)),
        };
        let Some(bytes) = bytes.filter(|bytes| *bytes > 0) else { return vec![ENTRY_BYTES_MAX] };
        let entries = bytes.div_ceil(ENTRY_BYTES_MAX);
        if entries > count {
            return (0..count).map(|_| ENTRY_BYTES_MAX).collect();
        }
        self.count(if matches!(how, Flood::Share(_)) {
            "flood: up to a share's limit"
        } else {
            "flood: up to a tier's limit"
        });
        let (each, rest) = (bytes / entries, bytes % entries);
        (0..entries).map(|entry| each + u64::from(entry < rest)).collect()
    }

    /// Picks a running node with a bounded disk.
    fn victim(&mut self, node: usize) -> Option<usize> {
        let there = |other: &usize| *other != node && self.nodes[*other].bound.is_some() && self.nodes[*other].up;
        let victims: Vec<usize> = (0..self.nodes.len()).filter(there).collect();
        (!victims.is_empty()).then(|| *self.random.pick(&victims))
    }

    /// Returns the bytes that some node still admits from this member, over the link at which it
    /// follows it.
    fn left_of_share(&mut self, node: usize) -> Option<u64> {
        let victim = self.victim(node)?;
        let (here, there) = (&self.nodes[node], &self.nodes[victim]);
        let following = there.live.following.get(&here.feed)?;
        there.live.quota.shares.left(&here.me, &self.exchange.members[following.at], false)
    }

    /// Returns the bytes free at some node above the end of its highest tier.
    fn left_of_tier(&mut self, node: usize) -> Option<u64> {
        let victim = self.victim(node)?;
        let (bound, free) = self.nodes[victim].free()?;
        free.checked_sub(Tier::All.leaves_free(bound.reserve_bytes) + AHEAD_BYTES)
    }

    /// Returns the padding that makes an entry this large.
    fn padding(&self, node: usize, id: u64, alert: bool, size: u64) -> usize {
        let version = self.nodes[node].disk.chain.newest().version();
        let len = |padding: usize| {
            let wanted = Wanted { id, alert, flood: Some(padding) };
            bulletin(&mut self.content_of(id), &self.exchange, node, version, wanted, [0; 16]).envelope.len()
        };
        let size = usize::try_from(size).unwrap_or_default();
        let mut padding = size.saturating_sub(len(0));
        while padding > 0 && len(padding) > size {
            padding -= 1;
        }
        padding
    }
}
