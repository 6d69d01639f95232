//! The priority lane: which entries of a feed are sent ahead of its order, and how many.
//!
//! In scope: which urgent entries are sent to a peer ahead of the order, and in which sequence
//! ([`PriorityInFlight`], [`would_wait`]); whether a received entry is held ([`admit`]); how a
//! batch relates to the entries held ([`first_conflict`], [`proven_by_batch`]). Out of scope:
//! verifying an entry ([`crate::follow::verify_priority`]), who may read it
//! ([`crate::serve::may_send_priority`]), the store, and the wire.

use std::collections::BTreeMap;

use crate::bulletin::Priority;
use crate::feed::partial_proofs::partial_inclusion_proof;
use crate::feed::tree::{HashReader, NodeId, leaf_hash, node_hash};
use crate::follow::{ProvenEntry, VerifiedBatch, VerifiedPriority};
use crate::ids::{Digest, FeedId, Hash};
use crate::limits::{PRIORITY_BYTES_MAX, PRIORITY_ENTRIES_MAX, PRIORITY_OTHERS_BYTES_MAX, PRIORITY_OTHERS_MAX};
use crate::proto;

/// Backlog of a feed, in entries, up to which its next batch is as fast as the priority lane.
const BACKLOG_ENTRIES_MAX: u64 = 16;

/// An entry is sent ahead only if more than one less urgent entry precedes it per this many
/// preceding entries of at least its urgency.
const PRIORITY_PER_ORDINARY_MAX: u64 = 8;

/// Limits on entries ahead of the order. Actual and other entries have separate limits; neither
/// class uses the other's capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PriorityLimits {
    /// For entries with status Actual.
    pub actual: ClassLimits,
    /// For entries of any other status.
    pub others: ClassLimits,
}

/// Limits of one priority class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassLimits {
    /// Entries of one feed.
    pub entries_max: usize,
    /// Envelope bytes in flight to one peer, of all feeds.
    pub bytes_max: usize,
}

impl PriorityLimits {
    /// The limits of a node.
    pub const NODE: Self = Self {
        actual: ClassLimits { entries_max: PRIORITY_ENTRIES_MAX, bytes_max: PRIORITY_BYTES_MAX },
        others: ClassLimits { entries_max: PRIORITY_OTHERS_MAX, bytes_max: PRIORITY_OTHERS_BYTES_MAX },
    };

    /// Returns whether one more entry is allowed beside `count` entries of a feed in the same
    /// class.
    #[must_use]
    pub fn has(&self, class: Priority, count: usize) -> bool {
        count < self.of(class).entries_max
    }

    /// Returns the limits of a class.
    #[must_use]
    pub fn of(&self, class: Priority) -> ClassLimits {
        match class {
            Priority::Actual => self.actual,
            Priority::Other => self.others,
        }
    }
}

// Sending.

/// Returns whether the entries of a feed up to `size` would wait behind a backlog. `cursor` is the
/// index of the next entry to send, and `has_room` is whether the link accepts a batch now.
#[must_use]
pub fn would_wait(size: u64, cursor: u64, has_room: bool) -> bool {
    size.saturating_sub(cursor) > BACKLOG_ENTRIES_MAX || size > cursor && !has_room
}

/// Progress of sending a feed to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Entries held here in order. An entry held ahead of the order is forwarded as it was
    /// received.
    pub size: u64,
    /// Entries that the peer has stored.
    pub stored: u64,
    /// Index of the next entry that is sent in order.
    pub cursor: u64,
}

impl Progress {
    /// Returns whether an entry arrives sooner ahead of the order than in it. `preceding` is the
    /// number of preceding entries of at least its urgency.
    fn is_worth(&self, index: u64, preceding: usize) -> bool {
        let preceding = preceding as u64;
        index >= self.size
            || (index - self.stored).saturating_sub(preceding).saturating_mul(PRIORITY_PER_ORDINARY_MAX) > preceding
    }

    /// Returns whether the `first` urgent entries of one class that the peer lacks are so dense
    /// that the next ones would arrive no later in order.
    #[must_use]
    pub fn is_dense(&self, first: &[u64]) -> bool {
        first.last().is_some_and(|last| !self.is_worth(*last, first.len() - 1))
    }

    /// Returns the urgent entries that are worth sending ahead of the order, first Actual ones,
    /// then the others. The arguments are indices, ascending from `stored` on. If nearly all
    /// entries are urgent, none is sent ahead: it would be sent twice and arrive no sooner.
    #[must_use]
    pub fn overtaking(&self, actual: &[u64], others: &[u64]) -> [(Priority, Vec<u64>); 2] {
        let of = |indices: &[u64], preceding: &dyn Fn(usize, u64) -> usize| {
            let out_of_order = indices.iter().copied().enumerate().filter(|(_, index)| *index >= self.cursor);
            out_of_order
                .filter(|(place, index)| self.is_worth(*index, preceding(*place, *index)))
                .map(|(_, index)| index)
                .collect()
        };
        let beside_actual = |place: usize, index: u64| place + actual.partition_point(|actual| *actual < index);
        [(Priority::Actual, of(actual, &|place, _| place)), (Priority::Other, of(others, &beside_actual))]
    }
}

/// Entries sent to one peer ahead of the order that the order has not reached.
#[derive(Clone, Debug)]
pub struct PriorityInFlight {
    limits: PriorityLimits,
    /// By feed and index: priority class and bytes; `None` for an entry that is not for this peer.
    feeds: BTreeMap<FeedId, BTreeMap<u64, Option<(Priority, usize)>>>,
}

impl PriorityInFlight {
    /// Creates an empty state.
    #[must_use]
    pub fn new(limits: PriorityLimits) -> Self {
        Self { limits, feeds: BTreeMap::new() }
    }

    /// Records that the peer has stored the feed up to `stored`.
    pub fn reached(&mut self, feed: &FeedId, stored: u64) {
        let Some(sent) = self.feeds.get_mut(feed) else { return };
        *sent = sent.split_off(&stored);
    }

    /// Retains only the feeds that the peer follows.
    pub fn retain(&mut self, follows: impl Fn(&FeedId) -> bool) {
        self.feeds.retain(|feed, _| follows(feed));
    }

    /// Returns whether an entry was sent, or is not for this peer.
    #[must_use]
    pub fn has(&self, feed: &FeedId, index: u64) -> bool {
        self.feeds.get(feed).is_some_and(|sent| sent.contains_key(&index))
    }

    /// Returns the next frames, at most `frames_max`. `candidates` holds the indices of each feed and
    /// class, ascending. Actual entries go first, then feeds take turns. `frame` creates a frame,
    /// or returns `None` if the entry is not for this peer.
    pub fn next<'a>(
        &mut self,
        candidates: impl IntoIterator<Item = (&'a FeedId, Priority, Vec<u64>)>,
        frames_max: usize,
        mut frame: impl FnMut(&'a FeedId, u64) -> Option<proto::PriorityEntry>,
    ) -> Vec<proto::PriorityEntry> {
        let mut planned = Vec::new();
        for (feed, class, indices) in candidates {
            let unsent = indices.into_iter().filter(|index| !self.has(feed, *index));
            // Bounds the work. Twice `frames_max`, because some entries are not for this peer.
            planned.extend(unsent.take(2 * frames_max).enumerate().map(|(turn, index)| ((class, turn), feed, index)));
        }
        planned.sort_by_key(|(turn, ..)| *turn);
        let mut frames = Vec::new();
        for ((class, _), feed, index) in planned {
            if frames.len() >= frames_max {
                break;
            }
            if !self.has_room(feed, class) {
                continue;
            }
            // An entry that is not for the peer is not considered again; if a later roster admits
            // the peer, it arrives in order.
            let encoded = frame(feed, index);
            self.sent(feed, index, encoded.as_ref().map(|encoded| (class, encoded.envelope.len())));
            frames.extend(encoded);
        }
        frames
    }

    fn bytes(&self, class: Priority) -> usize {
        let sent = self.feeds.values().flat_map(BTreeMap::values).flatten();
        sent.filter(|(sent_class, _)| *sent_class == class).map(|(_, bytes)| bytes).sum()
    }

    /// Returns whether one more entry of this class may be sent.
    #[must_use]
    pub fn has_room(&self, feed: &FeedId, class: Priority) -> bool {
        let sent = self.feeds.get(feed).into_iter().flat_map(BTreeMap::values).flatten();
        let count = sent.filter(|(sent_class, _)| *sent_class == class).count();
        self.limits.has(class, count) && self.bytes(class) < self.limits.of(class).bytes_max
    }

    fn sent(&mut self, feed: &FeedId, index: u64, what: Option<(Priority, usize)>) {
        self.feeds.entry(feed.clone()).or_default().insert(index, what);
    }
}

// Receiving.

/// Decision about an entry received ahead of the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is held ahead of the order.
    Accept,
    /// The same entry is already held ahead of the order.
    Duplicate,
    /// Another entry is held ahead of the order at its index.
    Conflict,
    /// The feed has already reached its index.
    Stale,
    /// The limit on entries ahead of the order is reached, or the entry has no content to hold. It
    /// waits for its feed to reach it.
    Full,
}

/// Decides about a received priority entry. Of its feed, `size` entries are held in order and
/// `count` entries of the same class ahead of the order; `held_digest` is the digest held ahead of
/// the order at its index.
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
    match (held_digest, priority.class) {
        (Some(held_digest), _) if held_digest == priority.entry.digest => Admission::Duplicate,
        (Some(_), _) => Admission::Conflict,
        (None, Some(class)) if limits.has(class, count) => Admission::Accept,
        (None, _) => Admission::Full,
    }
}

/// Returns the first index at which a batch has another entry than the one held ahead of the order.
/// `out_of_order` lists the entries held.
#[must_use]
pub fn first_conflict(batch: &VerifiedBatch, out_of_order: impl IntoIterator<Item = (u64, Digest)>) -> Option<u64> {
    out_of_order
        .into_iter()
        .find(|(index, held_digest)| digest_in(batch, *index) != Some(*held_digest))
        .map(|(index, _)| index)
}

/// Returns the entry of a batch at `index`, with its proof to the batch's checkpoint. `tree` is the
/// tree held of the feed, up to `size`; `pending` are the entries between it and the batch. `None`
/// if `tree` cannot be read, or the batch has no such entry.
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

/// The tree held, with further entries appended.
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
    fn priority_entries_overtake_ordinary_ones_only() {
        let progress = Progress { size: 200, stored: 100, cursor: 110 };
        let all = |range: std::ops::Range<u64>| range.collect::<Vec<u64>>();
        let none = [(Priority::Actual, Vec::new()), (Priority::Other, Vec::new())];
        assert_eq!(progress.overtaking(&all(100..200), &[]), none, "a feed with only urgent entries is sent in order");
        // One in ten is less urgent.
        let nearly: Vec<u64> = (100..200).filter(|index| index % 10 != 0).collect();
        let [(_, actual), _] = progress.overtaking(&nearly, &[]);
        assert!(actual.first() == Some(&111) && actual.last() == Some(&171), "{actual:?}");
        // Every second one is urgent; entries already in flight are not sent again.
        let (even, odd): (Vec<u64>, Vec<u64>) = (100..200).partition(|index| index % 2 == 0);
        assert_eq!(progress.overtaking(&even, &[])[0].1, (110..200).step_by(2).collect::<Vec<_>>());
        // Exercises do not overtake Actual entries, but Actual entries overtake exercises.
        let [(_, actual), (_, others)] = progress.overtaking(&even, &odd);
        assert!(actual.len() == 45 && others.is_empty());
        // A single urgent entry.
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
        let candidates = || {
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
            let frames = in_flight.next(candidates(), frames_max, encoded);
            frames.iter().map(|frame| frame.index).collect::<Vec<_>>()
        };
        assert_eq!(next(2), [4, 9], "6 is not for this peer");
        assert_eq!(next(8), [3, 0]);
        assert_eq!(next(8), Vec::<u64>::new());
    }
}
