//! The network: which frames pass between which members, and what happens to them in transit.
//!
//! In scope: loss, delay, repetition, reordering and damage; partitions, links cut in one
//! direction, pairs that never reach each other. Real links are ordered and lose nothing until they
//! break; these are worse on purpose.

use std::collections::BTreeSet;

use barid_core::proto;
use barid_core::proto::frame::Frame;
use bytes::Bytes;
use prost::Message;

use crate::future_version;
use crate::random::Random;
use crate::world::{Event, World};

/// Newest frames that are remembered for replays.
const OVERHEARD_MAX: usize = 32;

impl World {
    /// Separates pairs of members for good. The honest members of the newest roster stay connected
    /// in a line. Later joiners are at its end: a node does not talk to a member that it does not
    /// know, so no roster would pass through a joiner.
    pub(crate) fn sever(&mut self) {
        let count = self.nodes.len();
        let percent = if count > 12 { 100 - 400 / count as u64 } else { *self.random.pick(&[0, 0, 40, 100]) };
        let last = self.exchange.last_version();
        // The version since which each has been a member without a break.
        let since =
            |node: usize| (1..=last).rev().find(|version| !self.exchange.is_listed(node, *version)).unwrap_or(0);
        let mut line: Vec<usize> = (0..count)
            .filter(|node| self.exchange.is_listed(*node, last) && self.exchange.natures[*node].is_honest())
            .collect();
        line.sort_by_key(|node| since(*node));
        let pairs = line.windows(2).map(|pair| (pair[0].min(pair[1]), pair[0].max(pair[1])));
        let remaining: BTreeSet<(usize, usize)> = pairs.collect();
        for low in 0..count {
            for high in low + 1..count {
                if !remaining.contains(&(low, high)) && self.random.chance(percent) {
                    self.severed.insert((low, high));
                    self.count("pair severed permanently");
                }
            }
        }
    }

    pub(crate) fn is_severed(&self, a: usize, b: usize) -> bool {
        self.severed.contains(&(a.min(b), a.max(b)))
    }

    /// Whether a frame from `from` reaches `to`.
    fn passes(&self, from: usize, to: usize) -> bool {
        let (halves, until) = self.split;
        let half = |node: usize| Random::new(halves, node as u64).chance(40);
        let apart = self.now < until && half(from) != half(to);
        let cut = self.cut.get(&(from, to)).is_some_and(|until| self.now < *until);
        !(apart || cut || self.is_severed(from, to))
    }

    /// The starts of both processes; a link does not outlive either.
    pub(crate) fn starts(&self, from: usize, to: usize) -> (u64, u64) {
        (self.nodes[from].start, self.nodes[to].start)
    }

    /// Whether a link is possible: both directions pass, and both nodes know each other.
    pub(crate) fn can_link(&self, a: usize, b: usize) -> bool {
        let (one, other) = (&self.nodes[a], &self.nodes[b]);
        one.up && other.up && one.knows(&other.me) && other.knows(&one.me) && self.passes(a, b) && self.passes(b, a)
    }

    pub(crate) fn send(&mut self, from: usize, to: usize, frame: Frame) {
        let damageable = matches!(frame, Frame::Entries(_) | Frame::PriorityEntry(_) | Frame::BackfillResponse(_));
        let bytes = Bytes::from(proto::Frame { frame: Some(frame) }.encode_to_vec());
        let bytes = if self.nodes[from].nature.newer { future_version::frame(&bytes) } else { bytes };
        self.carry(from, to, bytes, damageable);
    }

    pub(crate) fn carry(&mut self, from: usize, to: usize, mut bytes: Bytes, damageable: bool) {
        if !self.passes(from, to) {
            return;
        }
        let starts = self.starts(from, to);
        if self.trouble() {
            if self.random.chance(6) {
                self.count("frame lost");
                return;
            }
            if self.random.chance(4) {
                self.count("frame repeated");
                self.soon(120, Event::Arrive(from, to, starts, bytes.clone()));
            }
            if self.random.chance(2) {
                self.overheard.push_back(bytes.clone());
                if self.overheard.len() > OVERHEARD_MAX {
                    self.overheard.pop_front();
                }
            }
        }
        if damageable && self.trouble() && self.random.chance(5) {
            self.count("frame damaged");
            let mut damaged = bytes.to_vec();
            let at = self.random.index(damaged.len());
            damaged[at] ^= 1 << self.random.below(8);
            bytes = damaged.into();
        }
        let at = self.now + 1 + self.random.below(if self.trouble() { 20 } else { 4 });
        let well = !self.trouble();
        let newest = self.sent.entry((from, to)).or_default();
        // After the trouble links are ordered, as real ones are.
        let at = if well { at.max(*newest) } else { at };
        let overtaken = at < *newest;
        *newest = at.max(*newest);
        if overtaken {
            self.count("frame overtaken");
        }
        self.at(at, Event::Arrive(from, to, starts, bytes));
    }
}
