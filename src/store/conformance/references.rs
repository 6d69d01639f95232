//! Tests of references from a bulletin to the entries that refer to it.

use barid_core::ids::FeedId;

use super::{ALL, append, disclosed, feed, id, one, referring, referring_by, withheld};
use crate::store::{NewEntry, ReferenceKind, Store};

pub(super) fn references_to_a_bulletin_are_found(store: &dyn Store) {
    let (ma, tn) = (feed("ma", 1), feed("tn", 1));
    let first = vec![
        disclosed(&ma, 1),
        referring(&ma, 2, "Update", &[("ma", 1)]),
        referring(&ma, 3, "Cancel", &[("ma", 1), ("ma", 2), ("ma", 1)]),
        referring(&ma, 4, "Alert", &[("ma", 1), ("tn", 1)]),
    ];
    store.commit(one(append(&ma, 0, first)), 0).unwrap();
    store.apply_index();
    let acks = vec![
        referring(&tn, 1, "Ack", &[("ma", 1)]),
        // Only the publisher can update or cancel, and only in its own name.
        referring(&tn, 2, "Cancel", &[("ma", 1)]),
        referring(&ma, 3, "Update", &[("ma", 1)]),
        referring(&tn, 4, "Update", &[("nobody!", 1)]),
        ack_by(&tn, 5, "desk", &[("ma", 1)]),
        ack_by(&tn, 6, "other-desk", &[("ma", 1)]),
        ack_by(&tn, 7, "desk", &[("ma", 1)]),
        ack_by(&tn, 8, "desk", &[("ma", 1), ("ma", 2)]),
    ];
    store.commit(one(append(&tn, 0, acks)), 1).unwrap();
    store.commit(one(append(&ma, 4, vec![withheld(9), referring(&ma, 5, "Update", &[("ma", 1)])])), 2).unwrap();
    let found = |to: u64, kind, after, max| {
        let found = store.references_to(&ma.member, id(to), kind, after, max).unwrap();
        found.iter().map(|at| (at.feed.member.to_string(), at.index, at.offset)).collect::<Vec<_>>()
    };
    let ma_at = |index, offset| ("ma".to_owned(), index, offset);
    let acks = |to: u64, issuers_max| {
        let acks = store.acks(&ma.member, id(to), issuers_max).unwrap();
        assert!(acks.whole);
        let issuers = acks.issuers.iter().map(|issuer| (issuer.first.index, issuer.newest.index));
        (issuers.collect::<Vec<_>>(), acks.count)
    };
    for _ in 0..2 {
        assert_eq!(found(1, ReferenceKind::Supersedes, 0, ALL), [ma_at(1, 2), ma_at(2, 3), ma_at(5, 13)]);
        assert_eq!(found(1, ReferenceKind::Supersedes, 2, ALL), [ma_at(2, 3), ma_at(5, 13)]);
        assert_eq!(found(1, ReferenceKind::Supersedes, 0, 2), [ma_at(1, 2), ma_at(2, 3)]);
        assert_eq!(found(1, ReferenceKind::Supersedes, 13, ALL), []);
        assert_eq!(found(2, ReferenceKind::Supersedes, 0, ALL), [ma_at(2, 3)]);
        let ids = [5, 1, 3, 2, 1, 900].map(id);
        assert_eq!(store.superseded(&ma.member, &ids).unwrap(), [false, true, false, true, true, false]);
        assert_eq!(store.superseded(&tn.member, &ids).unwrap(), [false; 6]);
        assert_eq!(store.superseded(&ma.member, &[]).unwrap(), [false; 0]);
        assert_eq!(acks(1, ALL), (vec![(0, 0), (4, 7), (5, 5)], 5), "by person, the first and the newest");
        assert_eq!((acks(1, 2).0.len(), acks(1, 2).1), (2, 5), "those left out are counted");
        assert_eq!(acks(2, ALL), (vec![(7, 7)], 1));
        assert_eq!(acks(3, ALL), (vec![], 0));
        assert_eq!(found(1, ReferenceKind::Mentions, 0, ALL), [ma_at(3, 4), ("tn".to_owned(), 1, 6)]);
        assert_eq!(found(3, ReferenceKind::Supersedes, 0, ALL), []);
        store.apply_index();
    }
}

/// Returns an Ack by this issuer.
fn ack_by(feed: &FeedId, number: u64, issuer: &str, of: &[(&str, u64)]) -> NewEntry {
    referring_by(feed, number, ("Ack", issuer), of)
}
