//! Tests of backfilled content, and of custody notes for it.

use barid_core::ids::Undisclosed;

use super::{ALL, append, assert_entries, custody_of, disclosed, feed, id, one, read_feed, withheld};
use crate::store::memory::MemoryStore;
use crate::store::{Backfill, Commit, CommitError, Content, CustodyRecord, NewEntry, Store};

pub(super) fn backfill_is_applied_once(store: &dyn Store) {
    let feed = feed("ma", 1);
    let later = |number| NewEntry { content: Content::Undisclosed(Undisclosed::NotHeld), ..disclosed(&feed, number) };
    let entries = vec![disclosed(&feed, 1), later(2), later(3), withheld(9), later(4)];
    store.commit(one(append(&feed, 0, entries)), 0).unwrap();
    let backfill = |indexes: &[(u64, u64)]| Commit {
        backfills: vec![Backfill {
            feed: feed.clone(),
            entries: indexes.iter().map(|(index, number)| (*index, disclosed(&feed, *number))).collect(),
        }],
        ..Commit::default()
    };
    for wrong in [
        backfill(&[(0, 1)]),
        backfill(&[(1, 3)]),
        backfill(&[(3, 3)]),
        backfill(&[(2, 3), (1, 2)]),
        backfill(&[(5, 5)]),
        backfill(&[]),
    ] {
        assert!(matches!(store.commit(wrong, 1), Err(CommitError::Invalid(_))));
    }
    let mut backfilled = backfill(&[(1, 2), (4, 4)]);
    // The same commit also appends to the feed.
    backfilled.appends = vec![append(&feed, 5, vec![later(6), disclosed(&feed, 5)])];
    let committed = store.commit(backfilled, 1).unwrap();
    assert_eq!((committed.first_offset, committed.end_offset), (2, 5));
    assert!(matches!(store.commit(backfill(&[(1, 2)]), 2), Err(CommitError::Invalid(_))), "once");
    let not_held = [(2..3, Undisclosed::NotHeld), (3..4, Undisclosed::Withheld), (5..6, Undisclosed::NotHeld)];
    for _ in 0..2 {
        let held = store.entries(&feed, 0, 10, ALL).unwrap();
        assert_eq!(
            held.iter().map(|entry| entry.offset).collect::<Vec<_>>(),
            [Some(1), Some(3), None, None, Some(4), None, Some(2)]
        );
        assert_entries(&held[1..2], &store.entries_from(3, 1, ALL).unwrap());
        assert_eq!(
            store.entries_from(1, 10, ALL).unwrap().iter().map(|entry| entry.index).collect::<Vec<_>>(),
            [0, 6, 1, 4]
        );
        let location = store.find(&feed.member, id(4)).unwrap().unwrap();
        assert_eq!((location.index, location.offset), (4, 4));
        assert_eq!(store.feed(&feed).unwrap().disclosed, 4);
        assert_eq!(store.undisclosed_ranges(&feed, ALL).unwrap(), not_held);
        assert_eq!(store.undisclosed_ranges_from(&feed, 3, 1).unwrap(), not_held[1..2]);
        let missing = store.missing(&feed, &[0, 1, 2, 3, 7]).unwrap();
        assert_eq!(
            missing.iter().map(|lack| lack.map(|(_, why)| why)).collect::<Vec<_>>(),
            [None, None, Some(Undisclosed::NotHeld), Some(Undisclosed::Withheld), None]
        );
        assert_eq!(missing[2].unwrap().0, disclosed(&feed, 3).digest);
        let (history, _) = store.history(u64::MAX, 10, 10, &|_| true).unwrap();
        assert_eq!(history.iter().map(|entry| entry.index).collect::<Vec<_>>(), [4, 1, 6, 0]);
        store.apply_index();
    }
    store.commit(backfill(&[(2, 3)]), 2).unwrap();
    store.apply_index();
    assert!(matches!(store.commit(backfill(&[(2, 3)]), 3), Err(CommitError::Invalid(_))), "once");
    // A large backfilled entry does not push out the entries before it.
    assert_eq!(store.entries(&feed, 1, 10, 1).unwrap().len(), 1);
}

/// There are more ranges than one page holds, and they are shortened from either end.
pub(super) fn undisclosed_ranges_are_paged(store: &dyn Store) {
    let (feed, model) = (feed("ma", 1), MemoryStore::new());
    let later = |index| match disclosed(&feed, index) {
        entry if index % 2 == 0 => entry,
        entry => NewEntry { content: Content::Undisclosed(Undisclosed::NotHeld), ..entry },
    };
    let both = |commit: Commit| {
        store.commit(commit.clone(), store.seq()).unwrap();
        model.commit(commit, model.seq()).unwrap();
        for from in [0, 1, 500, 1_001, 2_500, 2_999] {
            assert_eq!(
                store.undisclosed_ranges_from(&feed, from, 40).unwrap(),
                model.undisclosed_ranges_from(&feed, from, 40).unwrap()
            );
        }
        for max in [1, 200, ALL] {
            assert_eq!(store.undisclosed_ranges(&feed, max).unwrap(), model.undisclosed_ranges(&feed, max).unwrap());
        }
    };
    for first in [0, 1_000, 2_000] {
        both(one(append(&feed, first, (first..first + 1_000).map(later).collect())));
    }
    for part in [2_500..3_000, 2_000..2_500, 0..400, 900..1_900, 400..900] {
        let entries = part.filter(|index| index % 2 == 1).map(|index| (index, disclosed(&feed, index))).collect();
        both(Commit { backfills: vec![Backfill { feed: feed.clone(), entries }], ..Commit::default() });
    }
    both(one(append(&feed, 3_000, (3_000..3_020).map(later).collect())));
    let all = read_feed(store, &feed, 0);
    assert_entries(&all, &read_feed(&model, &feed, 0));
    assert_eq!(all.iter().filter(|entry| entry.offset.is_none()).count(), 60);
}

pub(super) fn late_custody_notes_are_listed_separately(store: &dyn Store) {
    let feed = feed("ma", 1);
    store.commit(one(append(&feed, 0, (0..20).map(|n| disclosed(&feed, n + 1)).collect())), 0).unwrap();
    let custody = [("tn", 0..10), ("tn", 2..4), ("ly", 0..3), ("tn", 10..20), ("tn", 10..20), ("tn", 6..9)];
    for (n, (by, range)) in (1..).zip(custody) {
        let commit = Commit { custody: vec![custody_of(&feed, by, range, None, n)], ..Commit::default() };
        store.commit(commit, n).unwrap();
    }
    let tn = "tn".parse().unwrap();
    for _ in 0..2 {
        let times = |notes: Vec<CustodyRecord>| notes.iter().map(|note| note.time).collect::<Vec<_>>();
        assert_eq!(times(store.custody_newest(&feed).unwrap()), [3, 5]);
        assert_eq!(times(store.custody_after(&feed, &tn, 0, 9).unwrap()), [2, 6, 1, 4, 5]);
        assert_eq!(times(store.custody_after(&feed, &tn, 9, 2).unwrap()), [1, 4]);
        assert_eq!(times(store.custody_late(&feed, &tn, 0, 9).unwrap()), [6, 5, 2]);
        assert_eq!(times(store.custody_late(&feed, &tn, 5, 9).unwrap()), [6, 5]);
        assert_eq!(times(store.custody_late(&feed, &tn, 0, 1).unwrap()), [6]);
        store.apply_index();
    }
}
