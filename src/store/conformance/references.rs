//! From a bulletin to what refers to it.

use barid_core::names::FeedId;

use super::{ALL, append, disclosed, feed, id, one, referring, referring_by, withheld};
use crate::store::{NewEntry, Refers, Store};

pub(super) fn what_refers_to_a_bulletin_is_found(store: &dyn Store) {
    let (ma, tn) = (feed("ma", 1), feed("tn", 1));
    let first = vec![
        disclosed(&ma, 1),
        referring(&ma, 2, "Update", &[("ma", 1)]),
        referring(&ma, 3, "Cancel", &[("ma", 1), ("ma", 2), ("ma", 1)]),
        referring(&ma, 4, "Alert", &[("ma", 1), ("tn", 1)]),
    ];
    store.commit(one(append(&ma, 0, first)), 0).unwrap();
    store.drain_view();
    let answers = vec![
        referring(&tn, 1, "Ack", &[("ma", 1)]),
        // Nobody else updates or cancels, and nobody speaks for another.
        referring(&tn, 2, "Cancel", &[("ma", 1)]),
        referring(&ma, 3, "Update", &[("ma", 1)]),
        referring(&tn, 4, "Update", &[("nobody!", 1)]),
        answering(&tn, 5, "desk", &[("ma", 1)]),
        answering(&tn, 6, "other-desk", &[("ma", 1)]),
        answering(&tn, 7, "desk", &[("ma", 1)]),
        answering(&tn, 8, "desk", &[("ma", 1), ("ma", 2)]),
    ];
    store.commit(one(append(&tn, 0, answers)), 1).unwrap();
    store.commit(one(append(&ma, 4, vec![withheld(9), referring(&ma, 5, "Update", &[("ma", 1)])])), 2).unwrap();
    let found = |to: u64, how, after, max| {
        let found = store.referring(&ma.member, id(to), how, after, max).unwrap();
        found.iter().map(|at| (at.feed.member.to_string(), at.index, at.arrival)).collect::<Vec<_>>()
    };
    let ma_at = |index, arrival| ("ma".to_owned(), index, arrival);
    let answers = |to: u64, persons_max| {
        let answers = store.answers(&ma.member, id(to), persons_max).unwrap();
        assert!(answers.whole);
        let persons = answers.persons.iter().map(|person| (person.first.index, person.newest.index));
        (persons.collect::<Vec<_>>(), answers.count)
    };
    for _ in 0..2 {
        assert_eq!(found(1, Refers::Succeeds, 0, ALL), [ma_at(1, 2), ma_at(2, 3), ma_at(5, 13)]);
        assert_eq!(found(1, Refers::Succeeds, 2, ALL), [ma_at(2, 3), ma_at(5, 13)]);
        assert_eq!(found(1, Refers::Succeeds, 0, 2), [ma_at(1, 2), ma_at(2, 3)]);
        assert_eq!(found(1, Refers::Succeeds, 13, ALL), []);
        assert_eq!(found(2, Refers::Succeeds, 0, ALL), [ma_at(2, 3)]);
        let asked = [5, 1, 3, 2, 1, 900].map(id);
        assert_eq!(store.succeeded(&ma.member, &asked).unwrap(), [false, true, false, true, true, false]);
        assert_eq!(store.succeeded(&tn.member, &asked).unwrap(), [false; 6]);
        assert_eq!(store.succeeded(&ma.member, &[]).unwrap(), [false; 0]);
        assert_eq!(answers(1, ALL), (vec![(0, 0), (4, 7), (5, 5)], 5), "by person, the first and the newest");
        assert_eq!((answers(1, 2).0.len(), answers(1, 2).1), (2, 5), "those left out are counted");
        assert_eq!(answers(2, ALL), (vec![(7, 7)], 1));
        assert_eq!(answers(3, ALL), (vec![], 0));
        assert_eq!(found(1, Refers::Mentions, 0, ALL), [ma_at(3, 4), ("tn".to_owned(), 1, 6)]);
        assert_eq!(found(3, Refers::Succeeds, 0, ALL), []);
        store.drain_view();
    }
}

/// One person's answer.
fn answering(feed: &FeedId, number: u64, issuer: &str, of: &[(&str, u64)]) -> NewEntry {
    referring_by(feed, number, ("Ack", issuer), of)
}
