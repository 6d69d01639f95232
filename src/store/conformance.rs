//! The conformance suite of [`Store`], which every implementation runs, and its exercise data.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod backfill;
pub(crate) mod priority;
mod references;

use std::sync::Arc;

use barid_core::bulletin::Priority;
use barid_core::feed::tree::{self, HashReader, MemoryTree, NodeId};
use barid_core::ids::{Digest, FeedId, Hash, Undisclosed};
use barid_core::proto;
use bytes::Bytes;
use prost::Message as _;
use sha2::Digest as _;
use uuid::Uuid;

use super::memory::MemoryStore;
use super::{
    Append, Backfill, Commit, CommitError, Committed, Content, Cosigned, CrlRecord, CursorRecord, CustodyRecord, Entry,
    ForkRecord, HeldBack, NewEntry, ReferenceKind, RosterRecord, Store, Subscription, SubscriptionRecord,
};

const ALL: usize = usize::MAX;

/// Runs the suite. `open(n)` returns store number n: empty at first; for a durable implementation,
/// the same store again after it was dropped.
pub(crate) fn run(open: &mut dyn FnMut(u32) -> Box<dyn Store>, durable: bool) {
    empty_store_returns_nothing(&*open(0));
    stale_or_invalid_commits_are_rejected(&*open(1));
    duplicate_id_resolves_to_lowest_entry(&*open(2));
    notes_are_found_by_size_and_index(&*open(3));
    references::references_to_a_bulletin_are_found(&*open(5));
    backfill::backfill_is_applied_once(&*open(6));
    backfill::late_custody_notes_are_listed_separately(&*open(7));
    backfill::undisclosed_ranges_are_paged(&*open(8));
    priority::priority_entry_is_stored_once(open, 9, durable);
    priority::out_of_order_entries_are_bounded(&*open(10));
    priority::out_of_order_custody_notes_leave_a_range_uncovered(&*open(11));
    priority::out_of_order_entry_is_displaced_only_by_explicit_commit(open, 12, durable);
    let (mut store, model) = (open(4), MemoryStore::new());
    let mut random = Random(1);
    for round in 0..40 {
        let commit = random.commit(&model);
        let seq = model.seq();
        let committed = store.commit(commit.clone(), seq).unwrap();
        let expected = model.commit(commit, seq).unwrap();
        assert_eq!(
            (committed.seq, committed.first_offset, committed.end_offset),
            (expected.seq, expected.first_offset, expected.end_offset)
        );
        if round % 8 == 7 {
            assert_same(&*store, &model, &mut random);
        }
        if durable && round % 10 == 9 {
            drop(store);
            store = open(4);
            assert_same(&*store, &model, &mut random);
        }
    }
    store.apply_index();
    assert_eq!(store.index_lag(), 0);
    assert_same(&*store, &model, &mut random);
}

fn empty_store_returns_nothing(store: &dyn Store) {
    let feed = feed("ma", 1);
    assert_eq!((store.seq(), store.end_offset()), (0, 1));
    assert!(store.feeds().is_empty() && store.feed(&feed).is_none());
    assert!(store.entries(&feed, 0, 10, 10).unwrap().is_empty());
    assert!(store.entries_from(0, 10, 10).unwrap().is_empty());
    assert_eq!(store.history(u64::MAX, 10, 10, &|_| true).unwrap().1, None);
    assert_eq!(store.find(&feed.member, Uuid::from_u128(1)).unwrap(), None);
    assert!(store.tree_hashes(&feed, &[NodeId::leaf(0)]).is_err());
    assert!(store.rosters().unwrap().is_empty() && store.crls().unwrap().is_empty());
    assert_eq!(store.subscription("focal-point/exercise/all"), None);
    assert!(store.link(0).unwrap().is_none() && store.link(1).unwrap().is_none());
    store.apply_index();
}

fn stale_or_invalid_commits_are_rejected(store: &dyn Store) {
    let feed = feed("ma", 1);
    let started = store.commit(one(append(&feed, 0, vec![])), 0).unwrap();
    assert_eq!((started.seq, started.first_offset, started.end_offset), (1, 1, 1));
    assert_eq!(store.feed(&feed).unwrap().compact_range.size(), 0);
    let first = one(append(&feed, 0, vec![disclosed(&feed, 1), withheld(2)]));
    assert!(matches!(store.commit(first.clone(), 0), Err(CommitError::Fenced { expected: 0, found: 1 })));
    store.commit(first.clone(), 1).unwrap();
    assert!(
        matches!(store.commit(first.clone(), 2), Err(CommitError::Invalid(_))),
        "does not start at the feed's size"
    );
    let ahead = one(append(&feed, 3, vec![withheld(3)]));
    assert!(matches!(store.commit(ahead, 2), Err(CommitError::Invalid(_))));
    let mut twice = one(append(&feed, 2, vec![]));
    twice.appends.push(append(&feed, 2, vec![]));
    assert!(matches!(store.commit(twice, 2), Err(CommitError::Invalid(_))));
    let mut behind = one(append(&feed, 2, vec![withheld(4)]));
    behind.appends[0].checkpoint_size = 2;
    assert!(matches!(store.commit(behind, 2), Err(CommitError::Invalid(_))));
    assert_eq!((store.seq(), store.feed(&feed).unwrap().compact_range.size(), store.end_offset()), (2, 2, 2));
    assert_eq!(store.feed(&feed).unwrap().disclosed, 1);
}

fn duplicate_id_resolves_to_lowest_entry(store: &dyn Store) {
    let (old, new) = (feed("ma", 1), feed("ma", 2));
    store.commit(one(append(&new, 0, vec![disclosed(&new, 5), disclosed(&new, 5)])), 0).unwrap();
    let id = id(5);
    let found = store.find(&new.member, id).unwrap().unwrap();
    assert_eq!((found.feed.epoch, found.index, found.offset), (2, 0, 1));
    store.apply_index();
    store.commit(one(append(&old, 0, vec![withheld(1), disclosed(&old, 5)])), 1).unwrap();
    for _ in 0..2 {
        let found = store.find(&new.member, id).unwrap().unwrap();
        assert_eq!((found.feed.epoch, found.index, found.offset), (1, 1, 3));
        store.apply_index();
    }
    assert_eq!(store.find(&feed("tn", 1).member, id).unwrap(), None);
    // An entry whose header names another member is not found by its id.
    store.commit(one(append(&feed("tn", 1), 0, vec![disclosed(&old, 6)])), 2).unwrap();
    assert_eq!(store.find(&feed("tn", 1).member, self::id(6)).unwrap(), None);
    assert_eq!(store.find(&old.member, self::id(6)).unwrap(), None);
}

fn notes_are_found_by_size_and_index(store: &dyn Store) {
    let feed = feed("ma", 1);
    store.commit(one(append(&feed, 0, (0..20).map(|n| disclosed(&feed, n + 1)).collect())), 0).unwrap();
    let cosigned = [("tn", 5), ("ly", 20), ("tn", 12), ("tn", 20), ("tn", 12)];
    let custody = [("tn", 0..10, Some(3..5)), ("tn", 0..20, None), ("ly", 4..20, Some(5..6))];
    let commit = Commit {
        cosigned: cosigned.iter().zip(1..).map(|((by, size), n)| cosign(&feed, by, *size, n)).collect(),
        custody: custody
            .iter()
            .zip(1..)
            .map(|((by, range, not_held), n)| custody_of(&feed, by, range.clone(), not_held.clone(), n))
            .collect(),
        ..Commit::default()
    };
    store.commit(commit, 1).unwrap();
    for _ in 0..2 {
        let times = |notes: Vec<Cosigned>| notes.iter().map(|note| note.time).collect::<Vec<_>>();
        assert_eq!(times(store.cosigned_newest(&feed).unwrap()), [2, 4]);
        assert_eq!(times(store.cosigned_covering(&feed, 4).unwrap()), [2, 1]);
        assert_eq!(times(store.cosigned_covering(&feed, 5).unwrap()), [2, 3]);
        assert_eq!(times(store.cosigned_covering(&feed, 20).unwrap()), [0; 0]);
        let times = |notes: Vec<CustodyRecord>| notes.iter().map(|note| note.time).collect::<Vec<_>>();
        assert_eq!(times(store.custody_covering(&feed, 2).unwrap()), [1]);
        assert_eq!(times(store.custody_covering(&feed, 4).unwrap()), [3, 2]);
        assert_eq!(times(store.custody_covering(&feed, 5).unwrap()), [1]);
        assert_eq!(times(store.custody_covering(&feed, 19).unwrap()), [3, 2]);
        // The `ly` note does not begin where the feed does.
        assert_eq!(times(store.custody_newest(&feed).unwrap()), [2]);
        store.apply_index();
    }
}

/// Asserts that two stores return the same answers.
pub(crate) fn assert_same(store: &dyn Store, model: &dyn Store, random: &mut Random) {
    assert_eq!((store.seq(), store.end_offset()), (model.seq(), model.end_offset()));
    let states = |store: &dyn Store| format!("{:?}", store.feeds());
    assert_eq!(states(store), states(model));
    for state in model.feeds() {
        let (feed, size) = (&state.feed, state.compact_range.size());
        assert_eq!(store.feed(feed).unwrap().compact_range.root(), state.compact_range.root());
        assert_entries(&read_feed(store, feed, 0), &read_feed(model, feed, 0));
        for _ in 0..8 {
            let (from, max, bytes) =
                (random.below(size + 2), random.below(40) as usize + 1, random.below(20_000) as usize);
            let (found, expected) =
                (store.entries(feed, from, max, bytes).unwrap(), model.entries(feed, from, max, bytes).unwrap());
            assert!(
                found.len() <= expected.len() && found.is_empty() == expected.is_empty(),
                "{} {}",
                found.len(),
                expected.len()
            );
            assert_entries(&found, &expected[..found.len()]);
            let index = random.below(size + 1);
            assert_eq!(store.cosigned_covering(feed, index).unwrap(), model.cosigned_covering(feed, index).unwrap());
            assert_eq!(store.custody_covering(feed, index).unwrap(), model.custody_covering(feed, index).unwrap());
        }
        let out_of_order = model.out_of_order(feed, 0..u64::MAX);
        assert_eq!(store.out_of_order(feed, 0..u64::MAX), out_of_order);
        for (index, _) in out_of_order {
            let debug_text = |store: &dyn Store| format!("{:?}", store.priority_entry(feed, index).unwrap());
            assert_eq!(debug_text(store), debug_text(model));
        }
        for from in [0, random.below(size + 9)] {
            let max = 1 + random.below(60) as usize;
            for kind in [Priority::Actual, Priority::Other] {
                assert_eq!(
                    store.priority_indexes(feed, kind, from, max).unwrap(),
                    model.priority_indexes(feed, kind, from, max).unwrap()
                );
            }
        }
        assert_eq!(store.undisclosed_ranges(feed, ALL).unwrap(), model.undisclosed_ranges(feed, ALL).unwrap());
        assert_eq!(store.undisclosed_ranges(feed, 2).unwrap(), model.undisclosed_ranges(feed, 2).unwrap());
        for _ in 0..4 {
            let (from, max) = (random.below(size + 1), 1 + random.below(9) as usize);
            assert_eq!(
                store.undisclosed_ranges_from(feed, from, max).unwrap(),
                model.undisclosed_ranges_from(feed, from, max).unwrap()
            );
            let mut indexes: Vec<u64> = (0..20).map(|_| random.below(size + 2)).collect();
            indexes.sort_unstable();
            assert_eq!(store.missing(feed, &indexes).unwrap(), model.missing(feed, &indexes).unwrap());
            let by = ["tn", "ly", "eg"][random.below(3) as usize].parse().unwrap();
            assert_eq!(
                store.custody_after(feed, &by, from, max).unwrap(),
                model.custody_after(feed, &by, from, max).unwrap()
            );
            let end = from + 1 + random.below(30);
            let ranges = [from..end, end + 3..end + 3 + max as u64];
            assert_eq!(
                store.custody_gain(feed, &by, &ranges, u64::MAX).unwrap(),
                model.custody_gain(feed, &by, &ranges, u64::MAX).unwrap()
            );
            let time = random.below(store.seq());
            assert_eq!(
                store.custody_late(feed, &by, time, max).unwrap(),
                model.custody_late(feed, &by, time, max).unwrap()
            );
        }
        assert_eq!(store.cosigned_newest(feed).unwrap(), model.cosigned_newest(feed).unwrap());
        assert_eq!(store.custody_newest(feed).unwrap(), model.custody_newest(feed).unwrap());
        tree_matches(store, model, feed, size, random);
        for entry in read_feed(model, feed, 0) {
            if let Content::Disclosed { header: Some(header), .. } = &entry.content {
                let id = Uuid::try_parse(&header.id).unwrap();
                assert_eq!(store.find(&feed.member, id).unwrap(), model.find(&feed.member, id).unwrap());
                assert_eq!(store.acks(&feed.member, id, ALL).unwrap(), model.acks(&feed.member, id, ALL).unwrap());
                for kind in [ReferenceKind::Supersedes, ReferenceKind::Mentions] {
                    let after = random.below(model.end_offset()) / 2;
                    for (after, max) in [(0, ALL), (after, ALL), (after, 1 + random.below(5) as usize)] {
                        let referring =
                            |store: &dyn Store| store.references_to(&feed.member, id, kind, after, max).unwrap();
                        assert_eq!(referring(store), referring(model));
                    }
                }
                let other = Uuid::from_u128(id.as_u128() ^ 1 << 100);
                let some: Vec<Uuid> = (0..9).map(|_| self::id(random.below(40) * 7 + 1)).chain([other, id]).collect();
                assert_eq!(
                    store.superseded(&feed.member, &some).unwrap(),
                    model.superseded(&feed.member, &some).unwrap()
                );
                assert_eq!(store.find(&feed.member, other).unwrap(), model.find(&feed.member, other).unwrap());
            }
        }
    }
    let mut from = 0;
    while from < model.end_offset() {
        let (found, expected) =
            (store.entries_from(from, 50, ALL).unwrap(), model.entries_from(from, 50, ALL).unwrap());
        assert!(!found.is_empty());
        assert_entries(&found, &expected[..found.len()]);
        from = found.last().unwrap().offset.unwrap() + 1;
    }
    assert_eq!(read_history(store), read_history(model));
    // The same commits have the same hashes, from the tail cache and from the disk.
    let end = model.end_offset();
    for offset in (0..40).map(|_| random.below(end + 2)).chain([1, end - 1, end]) {
        let link = store.link(offset).unwrap();
        assert_eq!(link, model.link(offset).unwrap(), "offset {offset}");
        assert_eq!(link.is_some_and(|link| link.offsets.contains(&offset)), (1..end).contains(&offset));
        let (entries, links) = store.linked_entries_from(offset, 20, ALL).unwrap();
        let held = |entry: &Entry| links.iter().filter(|link| link.offsets.contains(&entry.offset.unwrap())).count();
        assert!(entries.iter().all(|entry| held(entry) == 1), "every entry is in one of the commits");
    }
    assert_eq!(store.rosters().unwrap(), model.rosters().unwrap());
    assert_eq!(store.crls().unwrap(), model.crls().unwrap());
    assert_eq!(store.forks().unwrap(), model.forks().unwrap());
    for name in SUBSCRIPTIONS {
        assert_eq!(store.subscription(name), model.subscription(name));
    }
}

fn tree_matches(store: &dyn Store, model: &dyn Store, feed: &FeedId, size: u64, random: &mut Random) {
    struct Reader<'a>(&'a dyn Store, &'a FeedId);
    impl HashReader for Reader<'_> {
        type Error = super::ReadError;
        fn hashes(&self, nodes: &[NodeId]) -> Result<Vec<Hash>, Self::Error> {
            self.0.tree_hashes(self.1, nodes)
        }
    }
    let mut oracle = MemoryTree::new();
    read_feed(model, feed, 0).iter().for_each(|entry| oracle.append(&entry.digest));
    assert_eq!(oracle.root(), store.feed(feed).unwrap().compact_range.root());
    for _ in 0..8u8 {
        let new = random.below(size) + 1;
        let index = random.below(new);
        if size == 0 {
            break;
        }
        let proof = tree::inclusion_proof(&Reader(store, feed), index, new).unwrap();
        assert_eq!(proof, tree::inclusion_proof(&oracle, index, new).unwrap());
        let old = random.below(new) + 1;
        let proof = tree::consistency_proof(&Reader(store, feed), old, new).unwrap();
        assert_eq!(proof, tree::consistency_proof(&oracle, old, new).unwrap());
    }
    assert!(store.tree_hashes(feed, &[NodeId::leaf(size)]).is_err());
}

fn read_feed(store: &dyn Store, feed: &FeedId, mut from: u64) -> Vec<Entry> {
    let mut all = Vec::new();
    loop {
        let entries = store.entries(feed, from, 300, 100_000).unwrap();
        if entries.is_empty() {
            return all;
        }
        from += entries.len() as u64;
        all.extend(entries);
    }
}

fn read_history(store: &dyn Store) -> Vec<Option<u64>> {
    let (mut before, mut all) = (u64::MAX, Vec::new());
    loop {
        let (entries, next) = store.history(before, 7, 100, &|columns| columns.topic == "customs.seizures").unwrap();
        all.extend(entries.iter().map(|entry| entry.offset));
        match next {
            Some(next) => before = next,
            None => return all,
        }
    }
}

fn assert_entries(found: &[Entry], expected: &[Entry]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(
            (&found.feed, found.index, found.digest, found.offset),
            (&expected.feed, expected.index, expected.digest, expected.offset)
        );
        match (&found.content, &expected.content) {
            (Content::Undisclosed(found), Content::Undisclosed(expected)) => assert_eq!(found, expected),
            (
                Content::Disclosed { envelope: found, header: found_header },
                Content::Disclosed { envelope: expected, header: expected_header },
            ) => assert_eq!((found, found_header), (expected, expected_header)),
            _ => panic!("{} {}: content differs", expected.feed, expected.index),
        }
    }
}

const SUBSCRIPTIONS: [&str; 2] = ["focal-point/exercise/all", "focal-point/exercise/customs"];

/// Returns a commit of one append.
pub(crate) fn one(append: Append) -> Commit {
    Commit { appends: vec![append], ..Commit::default() }
}

/// Returns a feed of the exercise.
pub(crate) fn feed(member: &str, epoch: u32) -> FeedId {
    FeedId::new(member.parse().unwrap(), "exercise.example".parse().unwrap(), epoch)
}

fn id(number: u64) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 | u128::from(number) << 90 | u128::from(number))
}

/// Returns a disclosed entry whose header names the feed's member; the number determines its id.
pub(crate) fn disclosed(feed: &FeedId, number: u64) -> NewEntry {
    let header = proto::Header {
        format: 1,
        kind: "seizure-report".into(),
        id: id(number).to_string(),
        member: feed.member.to_string(),
        topic: if number.is_multiple_of(3) { "customs.seizures" } else { "security.documents" }.into(),
        status: "Exercise".into(),
        ..proto::Header::default()
    };
    let envelope = proto::Envelope {
        header: header.encode_to_vec().into(),
        payload: vec![number as u8; number as usize % 700].into(),
        ..proto::Envelope::default()
    };
    entry(envelope.encode_to_vec().into(), Some(header))
}

/// Returns a disclosed entry with this id.
pub(crate) fn with_id(feed: &FeedId, id: Uuid) -> NewEntry {
    let header =
        proto::Header { format: 1, id: id.to_string(), member: feed.member.to_string(), ..proto::Header::default() };
    let envelope = proto::Envelope { header: header.encode_to_vec().into(), ..proto::Envelope::default() };
    entry(envelope.encode_to_vec().into(), Some(header))
}

/// Returns an urgent entry of this status.
pub(crate) fn prioritized(feed: &FeedId, number: u64, status: &str) -> NewEntry {
    let header = proto::Header {
        format: 1,
        id: id(number).to_string(),
        member: feed.member.to_string(),
        topic: "security.threats".into(),
        status: status.into(),
        urgency: "Immediate".into(),
        ..proto::Header::default()
    };
    let envelope = proto::Envelope { header: header.encode_to_vec().into(), ..proto::Envelope::default() };
    entry(envelope.encode_to_vec().into(), Some(header))
}

/// Returns a disclosed entry that refers to others, by member and number.
pub(crate) fn referring(feed: &FeedId, number: u64, msg_type: &str, of: &[(&str, u64)]) -> NewEntry {
    referring_by(feed, number, (msg_type, ""), of)
}

fn referring_by(feed: &FeedId, number: u64, (msg_type, issuer): (&str, &str), of: &[(&str, u64)]) -> NewEntry {
    let reference = |(member, number): &(&str, u64)| proto::Reference {
        member: (*member).into(),
        id: id(*number).to_string(),
        digest: Bytes::from_static(&[1; 32]),
    };
    let header = proto::Header {
        format: 1,
        id: id(number).to_string(),
        member: feed.member.to_string(),
        msg_type: msg_type.into(),
        issuer: issuer.into(),
        references: of.iter().map(reference).collect(),
        ..proto::Header::default()
    };
    let envelope = proto::Envelope { header: header.encode_to_vec().into(), ..proto::Envelope::default() };
    entry(envelope.encode_to_vec().into(), Some(header))
}

fn entry(envelope: Bytes, header: Option<proto::Header>) -> NewEntry {
    let digest = Digest(sha2::Sha256::digest(&envelope).into());
    NewEntry { digest, content: Content::Disclosed { envelope, header: header.map(Arc::new) } }
}

pub(crate) fn withheld(number: u8) -> NewEntry {
    NewEntry { digest: Digest([number; 32]), content: Content::Undisclosed(Undisclosed::Withheld) }
}

/// Returns an append of entries from `first` on, with a checkpoint of exactly that size.
pub(crate) fn append(feed: &FeedId, first: u64, entries: Vec<NewEntry>) -> Append {
    let size = first + entries.len() as u64;
    Append {
        feed: feed.clone(),
        first,
        entries,
        checkpoint: format!("{feed}\n{size}\nexercise\n").into(),
        checkpoint_size: size,
        consistency_proof: Vec::new(),
    }
}

pub(crate) fn cosign(feed: &FeedId, by: &str, size: u64, time: u64) -> Cosigned {
    Cosigned {
        feed: feed.clone(),
        cosigner: by.parse().unwrap(),
        size,
        time,
        note: format!("{by} {size} {time}").into(),
    }
}

pub(crate) fn custody_of(
    feed: &FeedId,
    by: &str,
    range: std::ops::Range<u64>,
    not_held: Option<std::ops::Range<u64>>,
    time: u64,
) -> CustodyRecord {
    let note = format!("{by} {range:?} {time}").into();
    CustodyRecord {
        feed: feed.clone(),
        holder: by.parse().unwrap(),
        range,
        not_held: not_held.into_iter().collect(),
        time,
        note,
    }
}

/// Exercise data from a seed: splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Returns a number below `bound`; 0 if that is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }

    fn entry(&mut self, feed: &FeedId, number: u64) -> NewEntry {
        match self.below(12) {
            0 => withheld(number as u8),
            1 => {
                NewEntry { digest: Digest([number as u8; 32]), content: Content::Undisclosed(Undisclosed::Unfollowed) }
            }
            // The content of some is backfilled later.
            6..8 => NewEntry { content: Content::Undisclosed(Undisclosed::NotHeld), ..disclosed(feed, number * 7 + 1) },
            2 => entry(vec![0xff; 20].into(), None),
            // Some ids occur twice.
            3 => disclosed(feed, self.below(number + 1)),
            8 => prioritized(feed, number * 7 + 1, "Exercise"),
            4 | 5 => {
                // Often the same few bulletins, so that blocks of several batches refer to the same
                // one.
                let mut of = || (["ma", "tn"][self.below(2) as usize], self.below(4) * 7 + 1);
                let of = [of(), of()];
                referring(feed, number * 7 + 1, ["Update", "Cancel", "Ack", "Alert"][self.below(4) as usize], &of)
            }
            _ => disclosed(feed, number * 7 + 1),
        }
    }

    /// Returns content of some entries held as digests.
    fn backfill(&mut self, store: &dyn Store, feed: &FeedId) -> Option<Backfill> {
        let mut entries = Vec::new();
        for (range, reason) in store.undisclosed_ranges_from(feed, self.below(200), 30).unwrap() {
            for index in range.filter(|_| reason == Undisclosed::NotHeld) {
                if self.below(2) == 0 {
                    entries.push((index, disclosed(feed, index * 7 + 1)));
                }
            }
        }
        (!entries.is_empty()).then(|| Backfill { feed: feed.clone(), entries })
    }

    /// Returns a random commit that is valid on top of `store`.
    pub(crate) fn commit(&mut self, store: &dyn Store) -> Commit {
        let mut commit = Commit { time_unix_ms: 1_700_000_000_000 + store.seq(), ..Commit::default() };
        let feeds = [feed("ma", 1), feed("ma", 2), feed("tn", 1), feed("x-au", 1)];
        for feed in &feeds {
            if self.below(3) == 0 {
                continue;
            }
            let first = store.feed(feed).map_or(0, |state| state.compact_range.size());
            let count = if self.below(4) == 0 { self.below(250) } else { self.below(4) };
            let out_of_order = store.out_of_order(feed, first..first + count);
            let displaced = &mut commit.displaced;
            let entry = |number| match out_of_order.iter().find(|(index, _)| *index == number) {
                Some((_, held)) if self.below(3) == 0 => {
                    let other = self.entry(feed, number);
                    displaced.extend((other.digest != *held).then(|| (feed.clone(), number)));
                    other
                }
                Some(_) => prioritized(feed, number + 1, "Actual"),
                None => self.entry(feed, number),
            };
            let entries = (first..first + count).map(entry).collect();
            let mut append = append(feed, first, entries);
            if self.below(4) == 0 {
                append.checkpoint_size += 5;
                append.consistency_proof = vec![Hash([3; 32]); 2];
            }
            commit.appends.push(append);
        }
        for feed in &feeds {
            if self.below(2) == 0 {
                commit.backfills.extend(self.backfill(store, feed));
            }
        }
        for feed in &feeds {
            let appended = commit.appends.iter().find(|append| append.feed == *feed);
            let held = store.feed(feed).map_or(0, |state| state.compact_range.size());
            let size = appended.map_or(held, |append| append.first + append.entries.len() as u64);
            let index = size + self.below(60);
            if self.below(2) == 0 && store.out_of_order(feed, index..index + 1).is_empty() {
                commit.priority.push(priority::priority(feed, index));
            }
        }
        for (place, feed) in feeds.iter().enumerate() {
            let size = store.feed(feed).map_or(0, |state| state.compact_range.size());
            let by = ["tn", "ly", "eg"][self.below(3) as usize];
            if size > 0 && self.below(2) == 0 {
                let time = store.seq() + place as u64;
                commit.cosigned.push(cosign(feed, by, self.below(size) + 1, time));
                let start = self.below(size);
                let not_held = (self.below(2) == 0).then(|| start..start + self.below(size - start));
                commit.custody.push(custody_of(feed, by, start..start + self.below(size - start) + 1, not_held, time));
            }
        }
        if self.below(3) == 0 {
            let subscription = SUBSCRIPTIONS[self.below(2) as usize].to_string();
            let held = (self.below(2) == 0).then_some(HeldBack { from: 1, roster_version: 3 });
            let offset = store.end_offset();
            // Records of earlier versions have no epoch.
            let epoch = u32::try_from(self.below(2)).unwrap();
            commit.cursors.push(CursorRecord { subscription, offset, held, epoch });
        }
        if self.below(6) == 0 {
            let subscription = SUBSCRIPTIONS[self.below(2) as usize].to_string();
            let state = (self.below(3) > 0).then(|| Subscription {
                offset: self.below(store.end_offset()),
                held: None,
                filter: (self.below(2) == 0).then(|| store.seq().to_string().into()),
                created_unix_ms: store.seq(),
                used_unix_ms: 0,
                epoch: 1,
            });
            commit.subscriptions.push(SubscriptionRecord { subscription, state });
            commit.time_unix_ms = store.seq();
        }
        if self.below(6) == 0 {
            commit
                .rosters
                .push(RosterRecord { version: store.seq() + 1, note: format!("roster {}", store.seq()).into() });
            commit.forks.push(ForkRecord {
                feed: feed("tn", 1 + u32::try_from(self.below(2)).unwrap()),
                evidence: format!("evidence {}", self.below(3)).into(),
                resumed: self.below(2) == 0,
            });
            commit.crls.push(CrlRecord {
                authority: format!("{}.example", self.below(2)),
                der: store.seq().to_string().into(),
            });
        }
        commit
    }
}

/// Commits `count` commits of one entry each to feed ma/1.
pub(crate) fn commit_entries(store: &dyn Store, count: u64) -> Vec<Arc<Committed>> {
    let feed = feed("ma", 1);
    let next = |_| {
        let first = store.feed(&feed).map_or(0, |state| state.compact_range.size());
        store.commit(one(append(&feed, first, vec![disclosed(&feed, first + 1)])), store.seq()).unwrap()
    };
    (0..count).map(next).collect()
}
