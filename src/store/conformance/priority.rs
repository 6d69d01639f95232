//! Tests of priority entries, and of custody notes for them.

use barid_core::bulletin::Priority;
use barid_core::ids::{Digest, FeedId, Hash, Undisclosed};
use barid_core::limits::PRIORITY_EXPIRES_MS;

use super::{ALL, append, custody_of, disclosed, feed, id, one, prioritized, withheld};
use crate::store::{
    Backfill, Commit, CommitError, Content, CustodyRecord, NewEntry, OUT_OF_ORDER_MAX, PriorityEntry, Store,
};

/// Returns urgent entry number `index + 1` at `index`, ahead of the order.
pub(crate) fn priority(feed: &FeedId, index: u64) -> PriorityEntry {
    PriorityEntry {
        feed: feed.clone(),
        index,
        entry: prioritized(feed, index + 1, "Actual"),
        proof: vec![Hash([5; 32]); 3],
        checkpoint: format!("{feed}\n{}\nexercise\n", index + 7).into(),
        checkpoint_size: index + 7,
    }
}

fn priority_commit(priority: Vec<PriorityEntry>) -> Commit {
    Commit { priority, ..Commit::default() }
}

pub(super) fn priority_entry_is_stored_once(open: &mut dyn FnMut(u32) -> Box<dyn Store>, number: u32, durable: bool) {
    let feed = feed("ma", 1);
    let mut store = open(number);
    // Before anything else of the feed is held.
    let first = store.commit(priority_commit(vec![priority(&feed, 5), priority(&feed, 700)]), 0).unwrap();
    assert_eq!((first.first_offset, first.end_offset), (1, 3));
    assert!(store.feed(&feed).is_none() && store.entries(&feed, 0, 10, ALL).unwrap().is_empty());
    let reopen = |store: &mut Box<dyn Store>, open: &mut dyn FnMut(u32) -> Box<dyn Store>| {
        if durable {
            *store = Box::new(crate::store::memory::MemoryStore::new());
            *store = open(number);
        } else {
            store.apply_index();
        }
    };
    for _ in 0..3 {
        for (offset, index) in [(1, 5), (2, 700)] {
            let location = store.find(&feed.member, id(index + 1)).unwrap().unwrap();
            assert_eq!((location.index, location.offset), (index, offset));
            let entry = store.entries_from(offset, 1, ALL).unwrap().remove(0);
            assert_eq!(
                (entry.index, entry.digest, entry.offset),
                (index, priority(&feed, index).entry.digest, Some(offset))
            );
            assert!(matches!(entry.content, Content::Disclosed { header: Some(_), .. }));
            let held = store.priority_entry(&feed, index).unwrap().unwrap();
            assert_eq!((held.proof, held.checkpoint_size), (vec![Hash([5; 32]); 3], index + 7));
        }
        assert_eq!(
            store.out_of_order(&feed, 0..u64::MAX).iter().map(|(index, _)| *index).collect::<Vec<_>>(),
            [5, 700]
        );
        assert_eq!(store.out_of_order(&feed, 6..700), []);
        assert_eq!(store.priority_indexes(&feed, Priority::Actual, 0, 9).unwrap(), [5, 700]);
        assert_eq!(store.priority_indexes(&feed, Priority::Actual, 6, 9).unwrap(), [700]);
        assert_eq!(store.priority_indexes(&feed, Priority::Actual, 0, 1).unwrap(), [5]);
        assert_eq!(store.priority_indexes(&feed, Priority::Other, 0, 9).unwrap(), [0_u64; 0]);
        assert_eq!(store.history(u64::MAX, 9, 9, &|_| true).unwrap().0.len(), 2);
        assert!(store.priority_entry(&feed, 6).unwrap().is_none());
        reopen(&mut store, open);
    }
    assert!(matches!(store.commit(priority_commit(vec![priority(&feed, 5)]), 1), Err(CommitError::Invalid(_))), "once");
    let twice = priority_commit(vec![priority(&feed, 9), priority(&feed, 9)]);
    assert!(matches!(store.commit(twice, 1), Err(CommitError::Invalid(_))), "once");
    let unproven = PriorityEntry { checkpoint_size: 9, ..priority(&feed, 9) };
    assert!(matches!(store.commit(priority_commit(vec![unproven]), 1), Err(CommitError::Invalid(_))));
    let empty = PriorityEntry { entry: withheld(9), ..priority(&feed, 9) };
    assert!(matches!(store.commit(priority_commit(vec![empty]), 1), Err(CommitError::Invalid(_))));

    // The feed reaches it: an append with another digest is rejected.
    let entries = |at_five: NewEntry| -> Vec<NewEntry> {
        let rest = [at_five, withheld(6), prioritized(&feed, 8, "Exercise")];
        (0..5).map(|n| disclosed(&feed, n + 1)).chain(rest).collect()
    };
    let other = one(append(&feed, 0, entries(disclosed(&feed, 6))));
    assert!(matches!(store.commit(other, 1), Err(CommitError::Invalid(_))), "a fork");
    assert!(store.feed(&feed).is_none());
    let mut commit = one(append(&feed, 0, entries(prioritized(&feed, 6, "Actual"))));
    commit.priority = vec![priority(&feed, 8)];
    let early = Commit { priority: vec![priority(&feed, 7)], ..commit.clone() };
    assert!(matches!(store.commit(early, 1), Err(CommitError::Invalid(_))), "the append of the same commit has it");
    let committed = store.commit(commit, 1).unwrap();
    assert_eq!((committed.first_offset, committed.end_offset), (3, 10), "no second offset");
    // Of another one, only the digest comes in order.
    let reached = NewEntry { content: Content::Undisclosed(Undisclosed::Withheld), ..priority(&feed, 8).entry };
    store.commit(one(append(&feed, 8, vec![reached])), 2).unwrap();
    for _ in 0..3 {
        let held = store.entries(&feed, 0, 10, ALL).unwrap();
        let offsets: Vec<_> = held.iter().map(|entry| entry.offset).collect();
        assert_eq!(
            offsets,
            [Some(3), Some(4), Some(5), Some(6), Some(7), Some(1), None, Some(8), Some(9)],
            "each once"
        );
        for index in [5, 8] {
            assert!(
                matches!(&held[index].content, Content::Disclosed { header: Some(header), .. } if header.id == id(index as u64 + 1).to_string())
            );
        }
        let state = store.feed(&feed).unwrap();
        assert_eq!((state.compact_range.size(), state.disclosed), (9, 8));
        assert_eq!(store.undisclosed_ranges(&feed, ALL).unwrap(), [(6..7, Undisclosed::Withheld)]);
        assert_eq!(store.missing(&feed, &[5, 6, 8]).unwrap().iter().filter(|lack| lack.is_some()).count(), 1);
        assert_eq!(store.out_of_order(&feed, 0..u64::MAX).iter().map(|(index, _)| *index).collect::<Vec<_>>(), [700]);
        assert!(store.priority_entry(&feed, 5).unwrap().is_some(), "its own proof stays");
        assert_eq!(store.priority_indexes(&feed, Priority::Actual, 0, 9).unwrap(), [5, 8, 700]);
        assert_eq!(
            store.priority_indexes(&feed, Priority::Actual, 0, 2).unwrap(),
            [5, 8],
            "an exercise between them does not count"
        );
        assert_eq!(store.priority_indexes(&feed, Priority::Other, 0, 9).unwrap(), [7]);
        let found: Vec<u64> = (1..10).map(|offset| store.entries_from(offset, 1, ALL).unwrap()[0].index).collect();
        assert_eq!(found, [5, 700, 0, 1, 2, 3, 4, 7, 8]);
        reopen(&mut store, open);
    }
    assert!(
        matches!(store.commit(priority_commit(vec![priority(&feed, 5)]), 3), Err(CommitError::Invalid(_))),
        "it is behind"
    );
    let backfill = Backfill { feed: feed.clone(), entries: vec![(8, prioritized(&feed, 9, "Actual"))] };
    let backfill = Commit { backfills: vec![backfill], ..Commit::default() };
    assert!(matches!(store.commit(backfill, 3), Err(CommitError::Invalid(_))), "it is held in full");
}

/// After an operator's decision about two entries at one index, the feed has the one that comes in
/// order, and the other one stays under its offset.
pub(super) fn out_of_order_entry_is_displaced_only_by_explicit_commit(
    open: &mut dyn FnMut(u32) -> Box<dyn Store>,
    number: u32,
    durable: bool,
) {
    let feed = feed("ma", 1);
    let mut store = open(number);
    store.commit(priority_commit(vec![priority(&feed, 1), priority(&feed, 2), priority(&feed, 3)]), 0).unwrap();
    let reopen = |store: &mut Box<dyn Store>, open: &mut dyn FnMut(u32) -> Box<dyn Store>| {
        if durable {
            *store = Box::new(crate::store::memory::MemoryStore::new());
            *store = open(number);
        } else {
            store.apply_index();
        }
    };
    let original_digests: Vec<Digest> = (1..4).map(|index| priority(&feed, index).entry.digest).collect();
    // Another entry in full, the same entry, and a digest only.
    let entries = vec![
        disclosed(&feed, 1),
        disclosed(&feed, 77),
        NewEntry { content: Content::Undisclosed(Undisclosed::Withheld), ..priority(&feed, 2).entry },
        NewEntry { content: Content::Undisclosed(Undisclosed::NotHeld), ..disclosed(&feed, 78) },
    ];
    let appended = one(append(&feed, 0, entries.clone()));
    let displacing = |indexes: &[u64]| Commit {
        displaced: indexes.iter().map(|index| (feed.clone(), *index)).collect(),
        ..appended.clone()
    };
    for wrong in [&[][..], &[1], &[1, 2, 3], &[1, 3, 9], &[1, 3, 3]] {
        assert!(matches!(store.commit(displacing(wrong), 1), Err(CommitError::Invalid(_))), "{wrong:?}");
    }
    let committed = store.commit(displacing(&[1, 3]), 1).unwrap();
    assert_eq!((committed.first_offset, committed.end_offset), (4, 6));
    for round in 0..4 {
        let held = store.entries(&feed, 0, 10, ALL).unwrap();
        let digests: Vec<Digest> = held.iter().map(|entry| entry.digest).collect();
        assert_eq!(digests, entries.iter().map(|entry| entry.digest).collect::<Vec<_>>());
        let backfilled = if round < 2 { None } else { Some(6) };
        let offsets: Vec<_> = held.iter().map(|entry| entry.offset).collect();
        assert_eq!(offsets, [Some(4), Some(5), Some(2), backfilled]);
        assert!(store.out_of_order(&feed, 0..u64::MAX).is_empty());
        let state = store.feed(&feed).unwrap();
        assert_eq!((state.compact_range.size(), state.disclosed), (4, 3 + u64::from(round >= 2)));
        let missing: Vec<_> = store.missing(&feed, &[0, 1, 2, 3]).unwrap().iter().map(Option::is_some).collect();
        assert_eq!(missing, [false, false, false, round < 2]);
        for (offset, (index, digest)) in (1..).zip((1..4).zip(&original_digests)) {
            let entry = store.entries_from(offset, 1, ALL).unwrap().remove(0);
            assert_eq!((entry.index, entry.digest, entry.offset), (index, *digest, Some(offset)), "what it was");
            assert!(matches!(entry.content, Content::Disclosed { header: Some(_), .. }));
            assert_eq!(store.find(&feed.member, id(index + 1)).unwrap().unwrap().offset, offset);
        }
        reopen(&mut store, open);
        if round == 1 {
            // The content of the feed's entry there is backfilled later.
            let backfill = Backfill { feed: feed.clone(), entries: vec![(3, disclosed(&feed, 78))] };
            store.commit(Commit { backfills: vec![backfill], ..Commit::default() }, 2).unwrap();
        }
    }
}

pub(super) fn out_of_order_entries_are_bounded(store: &dyn Store) {
    let feed = feed("ma", 1);
    let many =
        |from: u64, count: u64| priority_commit((from..from + count).map(|index| priority(&feed, index)).collect());
    store.commit(many(10, 1_000), 0).unwrap();
    store.commit(many(1_010, OUT_OF_ORDER_MAX as u64 - 1_001), 1).unwrap();
    assert!(matches!(store.commit(many(5_000, 2), 2), Err(CommitError::Invalid(_))));
    store.commit(many(5_000, 1), 2).unwrap();
    assert!(matches!(store.commit(many(6_000, 1), 3), Err(CommitError::Invalid(_))));
    store.commit(one(append(&feed, 0, (0..11).map(|n| prioritized(&feed, n + 1, "Actual")).collect())), 3).unwrap();
    store.commit(many(6_000, 1), 4).unwrap();
    assert_eq!(store.priority_indexes(&feed, Priority::Actual, 0, ALL).unwrap().len(), OUT_OF_ORDER_MAX + 11);
    // Slots expire: a feed that does not reach its entries within a day may have others sent ahead
    // again.
    let late = |from: u64, time_unix_ms| Commit { time_unix_ms, ..many(from, 1) };
    assert!(matches!(store.commit(late(7_000, PRIORITY_EXPIRES_MS - 1), 5), Err(CommitError::Invalid(_))));
    store.commit(late(7_000, PRIORITY_EXPIRES_MS), 5).unwrap();
    for _ in 0..2 {
        assert_eq!(store.out_of_order_unexpired(&feed, PRIORITY_EXPIRES_MS), [7_000]);
        assert_eq!(store.out_of_order_unexpired(&feed, 2 * PRIORITY_EXPIRES_MS), [0; 0]);
        assert_eq!(store.out_of_order(&feed, 0..u64::MAX).len(), OUT_OF_ORDER_MAX + 1, "they stay held");
        store.apply_index();
    }
}

/// A custody note for an out-of-order entry does not cover the entries before it.
pub(super) fn out_of_order_custody_notes_leave_a_range_uncovered(store: &dyn Store) {
    let feed = feed("ma", 1);
    store.commit(one(append(&feed, 0, (0..20).map(|n| disclosed(&feed, n + 1)).collect())), 0).unwrap();
    let custody = [("ly", 15..16), ("tn", 0..5), ("tn", 12..13), ("tn", 5..8), ("tn", 8..14)];
    let newest = [vec![], vec![2], vec![2], vec![4], vec![5]];
    for ((n, (by, range)), newest) in (1..).zip(custody).zip(newest) {
        let commit = Commit { custody: vec![custody_of(&feed, by, range, None, n)], ..Commit::default() };
        store.commit(commit, n).unwrap();
        for _ in 0..2 {
            let times = |notes: Vec<CustodyRecord>| notes.iter().map(|note| note.time).collect::<Vec<_>>();
            assert_eq!(times(store.custody_newest(&feed).unwrap()), newest);
            store.apply_index();
        }
    }
    let tn = "tn".parse().unwrap();
    let holders = |index| {
        let notes = store.custody_covering(&feed, index).unwrap();
        notes.iter().map(|note| (note.holder.to_string(), note.time)).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        assert_eq!(holders(12), [("tn".to_owned(), 3)], "the note that was first");
        assert_eq!(holders(15), [("ly".to_owned(), 1)]);
        assert!(holders(14).is_empty());
        assert!(store.custody_late(&feed, &tn, 0, 9).unwrap().is_empty());
        store.apply_index();
    }
}
