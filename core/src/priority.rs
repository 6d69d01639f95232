//! The express lane: what of a feed overtakes its order, and how much of it.
//!
//! In scope: which urgent entries a peer is sent ahead of the order, and in which turn ([`PriorityInFlight`], [`would_wait`]); whether one that came is
//! held ([`admit`]); what a batch shows where an entry is held ([`first_conflict`], [`proven_by_batch`]). Out of scope: verifying one
//! ([`crate::follow::verify_priority`]), who may read it ([`crate::serve::may_send_priority`]), the store, and the wire.

use std::collections::BTreeMap;

use crate::bulletin::Priority;
use crate::feed::partial_proofs::partial_inclusion_proof;
use crate::feed::tree::{HashReader, NodeId, leaf_hash, node_hash};
use crate::follow::{ProvenEntry, VerifiedBatch, VerifiedPriority};
use crate::ids::{Digest, FeedId, Hash};
use crate::limits::{PRIORITY_BYTES_MAX, PRIORITY_ENTRIES_MAX, PRIORITY_OTHERS_BYTES_MAX, PRIORITY_OTHERS_MAX};
use crate::proto;

/// Entries that the next batch of a feed may be behind for it to be as fast as the express lane.
const BACKLOG_ENTRIES_MAX: u64 = 16;

/// Before an entry that overtakes there is at least one that is less urgent for so many that are as urgent.
const AS_URGENT_MAX: u64 = 8;

/// How much may be ahead of the order. What is Actual and what is not have a room each: neither takes the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PriorityLimits {
    /// For what is Actual.
    pub actual: ClassLimits,
    /// For any other status.
    pub others: ClassLimits,
}

/// How much of one sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassLimits {
    /// Entries of one feed.
    pub entries_max: usize,
    /// Envelope bytes on their way to one peer, of all feeds.
    pub bytes_max: usize,
}

impl PriorityLimits {
    /// What a node has.
    pub const NODE: Self = Self {
        actual: ClassLimits { entries_max: PRIORITY_ENTRIES_MAX, bytes_max: PRIORITY_BYTES_MAX },
        others: ClassLimits { entries_max: PRIORITY_OTHERS_MAX, bytes_max: PRIORITY_OTHERS_BYTES_MAX },
    };

    /// Whether one more has room beside `count` entries of a feed that are urgent in the same way.
    #[must_use]
    pub fn has(&self, urgent: Priority, count: usize) -> bool {
        count < self.of(urgent).entries_max
    }

    /// For what is urgent in this way.
    #[must_use]
    pub fn of(&self, urgent: Priority) -> ClassLimits {
        match urgent {
            Priority::Actual => self.actual,
            Priority::Other => self.others,
        }
    }
}

// Sending.

/// Whether entries of a feed up to `size` would wait for a backlog where `cursor` comes next and the line takes a batch (`has_room`) or not.
#[must_use]
pub fn would_wait(size: u64, cursor: u64, has_room: bool) -> bool {
    size.saturating_sub(cursor) > BACKLOG_ENTRIES_MAX || size > cursor && !has_room
}

/// How a feed is on its way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Entries that are held here in order: what is held ahead of it goes on as it came.
    pub size: u64,
    /// Entries that the peer has.
    pub stored: u64,
    /// Index of the next entry that is sent in order.
    pub cursor: u64,
}

impl Progress {
    /// Whether an entry with so many at least as urgent before it overtakes enough for it to come sooner than in order.
    fn is_worth(&self, index: u64, as_urgent: usize) -> bool {
        let as_urgent = as_urgent as u64;
        index >= self.size || (index - self.stored).saturating_sub(as_urgent).saturating_mul(AS_URGENT_MAX) > as_urgent
    }

    /// Whether the first urgent entries of one sort that the peer lacks follow each other so closely that those right behind them come no
    /// later in order.
    #[must_use]
    pub fn is_dense(&self, first: &[u64]) -> bool {
        first.last().is_some_and(|last| !self.is_worth(*last, first.len() - 1))
    }

    /// The urgent entries, as indices ascending from `stored` on, that are worth sending ahead of the order: those that are Actual, and the others.
    /// Where nearly all is urgent nothing overtakes: it would come twice, and no sooner.
    #[must_use]
    pub fn overtaking(&self, actual: &[u64], others: &[u64]) -> [(Priority, Vec<u64>); 2] {
        let of = |indices: &[u64], as_urgent: &dyn Fn(usize, u64) -> usize| {
            let out_of_order = indices.iter().copied().enumerate().filter(|(_, index)| *index >= self.cursor);
            out_of_order
                .filter(|(place, index)| self.is_worth(*index, as_urgent(*place, *index)))
                .map(|(_, index)| index)
                .collect()
        };
        let beside_actual = |place: usize, index: u64| place + actual.partition_point(|actual| *actual < index);
        [(Priority::Actual, of(actual, &|place, _| place)), (Priority::Other, of(others, &beside_actual))]
    }
}

/// What was sent to one peer ahead of the order and has not been reached by it.
#[derive(Clone, Debug)]
pub struct PriorityInFlight {
    limits: PriorityLimits,
    /// By feed and index: how urgent, and the bytes; `None` for what is not for this peer.
    feeds: BTreeMap<FeedId, BTreeMap<u64, Option<(Priority, usize)>>>,
}

impl PriorityInFlight {
    /// Nothing was sent.
    #[must_use]
    pub fn new(limits: PriorityLimits) -> Self {
        Self { limits, feeds: BTreeMap::new() }
    }

    /// The order has come to `stored` at the peer.
    pub fn reached(&mut self, feed: &FeedId, stored: u64) {
        let Some(sent) = self.feeds.get_mut(feed) else { return };
        *sent = sent.split_off(&stored);
    }

    /// The peer follows these feeds, and no others.
    pub fn retain(&mut self, follows: impl Fn(&FeedId) -> bool) {
        self.feeds.retain(|feed, _| follows(feed));
    }

    /// Whether an entry was sent, or is not for this peer.
    #[must_use]
    pub fn has(&self, feed: &FeedId, index: u64) -> bool {
        self.feeds.get(feed).is_some_and(|sent| sent.contains_key(&index))
    }

    /// The next frames, at most `frames_max`, of what `urgent` has of each feed and sort by ascending index: what is Actual first, then by feed in
    /// turn. `frame` makes one; `None` if the entry is not for this peer.
    pub fn next<'a>(
        &mut self,
        urgent: impl IntoIterator<Item = (&'a FeedId, Priority, Vec<u64>)>,
        frames_max: usize,
        mut frame: impl FnMut(&'a FeedId, u64) -> Option<proto::PriorityEntry>,
    ) -> Vec<proto::PriorityEntry> {
        let mut planned = Vec::new();
        for (feed, urgent, indices) in urgent {
            let unsent = indices.into_iter().filter(|index| !self.has(feed, *index));
            // Only the next frames are made of these.
            planned.extend(unsent.take(2 * frames_max).enumerate().map(|(turn, index)| ((urgent, turn), feed, index)));
        }
        planned.sort_by_key(|(turn, ..)| *turn);
        let mut frames = Vec::new();
        for ((urgent, _), feed, index) in planned {
            if frames.len() >= frames_max {
                break;
            }
            if !self.has_room(feed, urgent) {
                continue;
            }
            // Not looked at again where it is not for the peer: a later roster lets it come in order.
            let encoded = frame(feed, index);
            self.sent(feed, index, encoded.as_ref().map(|encoded| (urgent, encoded.envelope.len())));
            frames.extend(encoded);
        }
        frames
    }

    fn bytes(&self, class: Priority) -> usize {
        let sent = self.feeds.values().flat_map(BTreeMap::values).flatten();
        sent.filter(|(urgent, _)| *urgent == class).map(|(_, bytes)| bytes).sum()
    }

    /// Whether one more of this sort may be sent.
    #[must_use]
    pub fn has_room(&self, feed: &FeedId, class: Priority) -> bool {
        let sent = self.feeds.get(feed).into_iter().flat_map(BTreeMap::values).flatten();
        let count = sent.filter(|(urgent, _)| *urgent == class).count();
        self.limits.has(class, count) && self.bytes(class) < self.limits.of(class).bytes_max
    }

    fn sent(&mut self, feed: &FeedId, index: u64, what: Option<(Priority, usize)>) {
        self.feeds.entry(feed.clone()).or_default().insert(index, what);
    }
}

// Receiving.

/// What becomes of an entry that came ahead of the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is held ahead of the order.
    Accept,
    /// It is held so already.
    Duplicate,
    /// Another entry is held so at its index.
    Conflict,
    /// The feed has reached its index.
    Stale,
    /// As much as may be is held ahead of the order: it waits for its turn. Or it holds nothing.
    Full,
}

/// Decides about an entry of a feed of which `size` are held in order, and ahead of it `count` that are urgent in the same way, and the digest
/// `held_digest` at its index.
#[must_use]
pub fn admit(
    priority: &VerifiedPriority,
    size: u64,
    held_digest: Option<Digest>,
    count: usize,
    limits: &PriorityLimits,
) -> Admission {
    if priority.index < size {
        return Admission::Stale;
    }
    if priority.envelope().is_none() {
        return Admission::Full;
    }
    match (held_digest, priority.urgent) {
        (Some(held_digest), _) if held_digest == priority.entry.digest => Admission::Duplicate,
        (Some(_), _) => Admission::Conflict,
        (None, Some(urgent)) if limits.has(urgent, count) => Admission::Accept,
        (None, _) => Admission::Full,
    }
}

/// The first index at which a batch has another entry than is held `out_of_order` of the order.
#[must_use]
pub fn first_conflict(batch: &VerifiedBatch, out_of_order: impl IntoIterator<Item = (u64, Digest)>) -> Option<u64> {
    out_of_order
        .into_iter()
        .find(|(index, held_digest)| digest_in(batch, *index) != Some(*held_digest))
        .map(|(index, _)| index)
}

/// The entry that a batch has at `index`, as its checkpoint proves it. `tree` is what is held of the feed, up to `size`; `pending` are the
/// entries from there to the batch's first. `None` if `tree` cannot be read, or the batch has no such entry.
#[must_use]
pub fn proven_by_batch<R: HashReader>(
    batch: &VerifiedBatch,
    index: u64,
    tree: &R,
    size: u64,
    pending: &[Digest],
) -> Option<ProvenEntry> {
    let digest = digest_in(batch, index)?;
    let appended = pending.iter().copied().chain(batch.entries.iter().map(|entry| entry.digest));
    let appended_tree = AppendedTree { tree, size, appended: appended.collect() };
    let (end, checkpoint) = (batch.compact_range.size(), &batch.checkpoint);
    let proof =
        partial_inclusion_proof(&appended_tree, index, end, checkpoint.checkpoint.size, &batch.consistency_proof);
    Some(ProvenEntry { digest, checkpoint: checkpoint.clone(), proof: proof.ok()?? })
}

fn digest_in(batch: &VerifiedBatch, index: u64) -> Option<Digest> {
    let place = usize::try_from(index.checked_sub(batch.first)?).ok()?;
    batch.entries.get(place).map(|entry| entry.digest)
}

/// The tree held, with what is appended to it.
struct AppendedTree<'a, R> {
    tree: &'a R,
    size: u64,
    appended: Vec<Digest>,
}

/// A subtree cannot be read.
struct UnreadableNode;

impl<R: HashReader> AppendedTree<'_, R> {
    fn hash(&self, node: NodeId) -> Result<Hash, UnreadableNode> {
        if node.leaves().end <= self.size {
            return self.tree.hashes(&[node]).ok().and_then(|hashes| hashes.first().copied()).ok_or(UnreadableNode);
        }
        let Some(level) = node.level.checked_sub(1) else {
            let place = node.index.checked_sub(self.size).and_then(|place| usize::try_from(place).ok());
            return place.and_then(|place| self.appended.get(place)).map(leaf_hash).ok_or(UnreadableNode);
        };
        let child = |index| self.hash(NodeId { level, index });
        Ok(node_hash(&child(node.index * 2)?, &child(node.index * 2 + 1)?))
    }
}

impl<R: HashReader> HashReader for AppendedTree<'_, R> {
    type Error = UnreadableNode;

    fn hashes(&self, nodes: &[NodeId]) -> Result<Vec<Hash>, UnreadableNode> {
        nodes.iter().map(|node| self.hash(*node)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn in_flight_priority_entries_are_bounded_per_class() {
        let feed: FeedId = "ma.rabat.example/feed/1".parse().unwrap();
        let other: FeedId = "tn.rabat.example/feed/1".parse().unwrap();
        let mut in_flight = PriorityInFlight::new(PriorityLimits::NODE);
        for index in 5_000..5_000 + PRIORITY_OTHERS_MAX as u64 {
            assert!(in_flight.has_room(&feed, Priority::Other));
            in_flight.sent(&feed, index, Some((Priority::Other, 10)));
        }
        assert!(!in_flight.has_room(&feed, Priority::Other) && in_flight.has_room(&other, Priority::Other));
        in_flight.sent(&other, 3, Some((Priority::Other, PRIORITY_BYTES_MAX)));
        assert!(!in_flight.has_room(&other, Priority::Other), "nor more bytes of exercises");
        for index in 0..PRIORITY_ENTRIES_MAX as u64 {
            assert!(in_flight.has_room(&feed, Priority::Actual), "exercises do not use this limit");
            in_flight.sent(&feed, index, Some((Priority::Actual, 10)));
        }
        assert!(!in_flight.has_room(&feed, Priority::Actual) && in_flight.has_room(&other, Priority::Actual));
        in_flight.reached(&feed, 1);
        assert!(in_flight.has_room(&feed, Priority::Actual) && !in_flight.has(&feed, 0) && in_flight.has(&feed, 1));
        assert_eq!(in_flight.bytes(Priority::Actual), (PRIORITY_ENTRIES_MAX - 1) * 10);
        in_flight.sent(&feed, 0, None);
        assert!(in_flight.has_room(&feed, Priority::Actual), "entries not for the peer use no room");
        in_flight.sent(&other, 7, Some((Priority::Actual, PRIORITY_BYTES_MAX)));
        assert!(!in_flight.has_room(&feed, Priority::Actual), "a large entry uses the limit of all feeds");
        in_flight.reached(&other, 8);
        assert!(in_flight.has_room(&feed, Priority::Actual));
    }

    #[test]
    fn priority_entries_overtake_less_urgent_ones_only() {
        let progress = Progress { size: 200, stored: 100, cursor: 110 };
        let all = |range: std::ops::Range<u64>| range.collect::<Vec<u64>>();
        let none = [(Priority::Actual, Vec::new()), (Priority::Other, Vec::new())];
        assert_eq!(progress.overtaking(&all(100..200), &[]), none, "a feed with only urgent entries is sent in order");
        // One in ten is less urgent.
        let nearly: Vec<u64> = (100..200).filter(|index| index % 10 != 0).collect();
        let [(_, actual), _] = progress.overtaking(&nearly, &[]);
        assert!(actual.first() == Some(&111) && actual.last() == Some(&171), "{actual:?}");
        // Every other one; what is on its way is not sent again.
        let (even, odd): (Vec<u64>, Vec<u64>) = (100..200).partition(|index| index % 2 == 0);
        assert_eq!(progress.overtaking(&even, &[])[0].1, (110..200).step_by(2).collect::<Vec<_>>());
        // Exercises do not overtake what is Actual; what is Actual overtakes them.
        let [(_, actual), (_, others)] = progress.overtaking(&even, &odd);
        assert!(actual.len() == 45 && others.is_empty());
        // A lone one.
        assert_eq!(progress.overtaking(&[], &[110])[1].1, [110]);
        let reached = Progress { stored: 110, ..progress };
        assert_eq!(reached.overtaking(&[110], &[]), none, "it is next in order");
        let behind = Progress { size: 110, ..reached };
        assert_eq!(behind.overtaking(&[110, 111], &[])[0].1, [110, 111], "this peer cannot send it in order");
        assert!(progress.is_dense(&all(100..164)) && !progress.is_dense(&all(110..164)));
        assert!(!progress.is_dense(&even) && !progress.is_dense(&[]));
    }

    #[test]
    fn actual_entries_go_first_and_feeds_round_robin() {
        let feeds: [FeedId; 2] =
            ["ma.rabat.example/feed/1".parse().unwrap(), "tn.rabat.example/feed/1".parse().unwrap()];
        let urgent = || {
            [
                (&feeds[0], Priority::Actual, vec![4, 6]),
                (&feeds[0], Priority::Other, vec![3]),
                (&feeds[1], Priority::Actual, vec![9]),
                (&feeds[1], Priority::Other, vec![0]),
            ]
        };
        let encoded = |feed: &FeedId, index: u64| {
            let envelope = bytes::Bytes::from_static(b"x");
            (index != 6).then(|| proto::PriorityEntry { feed: feed.to_string(), index, envelope, ..Default::default() })
        };
        let mut in_flight = PriorityInFlight::new(PriorityLimits::NODE);
        let mut next = |frames_max| {
            let frames = in_flight.next(urgent(), frames_max, encoded);
            frames.iter().map(|frame| frame.index).collect::<Vec<_>>()
        };
        assert_eq!(next(2), [4, 9], "6 is not for this peer");
        assert_eq!(next(8), [3, 0]);
        assert_eq!(next(8), Vec::<u64>::new());
    }
}
