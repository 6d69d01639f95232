//! Decides which custody notes on this node's feeds are persisted: those that add to what is known
//! about their holder.
//!
//! In scope: what a verified note adds, found with bounded work, and the byte budget that its
//! holder has in the log of this node. Out of scope: verifying notes (`note_verifier`), the cost of
//! work (`frame_budget`), and when a bulletin counts as stored (`api`).
//!
//! A note adds something if it continues the notes in order, if it states that entries are held in
//! full that no earlier note states, or if its time is earlier than that of the known note on its
//! newest entry held in full. The earliest note is the proof of when its holder had an entry. A
//! holder can therefore persist a bounded number of notes for each entry of the feed, and few for
//! their times alone.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use barid_core::ids::{FeedId, Member};
use barid_core::limits::BATCH_ENTRIES_MAX;
use barid_core::ranges::RangeSet;
use tokio::time::Instant;

use super::frame_budget::owner;
use crate::budgets::RateLimiter;
use crate::budgets::table::{CUSTODY_BYTES, EARLIER_CUSTODY};
use crate::store::{CustodyRecord, ReadError, Store};

/// Free bytes of a note that adds anything: enough for a note on a single entry.
const FREE_BYTES: u64 = 1 << 10;
/// Free bytes for each entry that it adds: twice the longest line about one entry that is held as a
/// digest.
const FREE_BYTES_PER_ENTRY: u64 = 128;
/// Added entries are counted up to this number.
const GAIN_MAX: u64 = 8 * BATCH_ENTRIES_MAX as u64;

/// The budgets of holders.
#[derive(Default)]
pub(crate) struct CustodyBudgets {
    bytes: RateLimiter,
    earlier: RateLimiter,
}

/// The decision about a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Persist it.
    Persist,
    /// It adds nothing.
    Redundant,
    /// It adds something, but its holder has exceeded its byte budget.
    OverBudget,
}

/// Notes that were accepted and are not committed yet, by feed and holder.
#[derive(Default)]
pub(crate) struct Accepted {
    notes: RefCell<BTreeMap<(FeedId, Member), HolderProgress>>,
}

struct HolderProgress {
    /// Where the notes in order end.
    end: u64,
    held: RangeSet,
    /// The earliest time of the notes that are not committed yet.
    time: u64,
}

impl Accepted {
    /// Decides about a verified note. Blocks for a bounded number of look-ups.
    pub(crate) fn evaluate(
        &self,
        store: &dyn Store,
        budgets: &CustodyBudgets,
        note: &CustodyRecord,
    ) -> Result<Verdict, ReadError> {
        let mut notes = self.notes.borrow_mut();
        let key = (note.feed.clone(), note.holder.clone());
        if !notes.contains_key(&key) {
            let newest = store.custody_newest(&note.feed)?.into_iter().find(|held| held.holder == note.holder);
            let end = newest.map_or(0, |held| held.range.end);
            notes.insert(key.clone(), HolderProgress { end, held: RangeSet::default(), time: u64::MAX });
        }
        let Some(progress) = notes.get_mut(&key) else { return Ok(Verdict::Redundant) };
        let advanced = if note.range.start <= progress.end { note.range.end.saturating_sub(progress.end) } else { 0 };
        let new: Vec<Range<u64>> = note.held().flat_map(|range| progress.held.missing(range)).collect();
        let gain = store.custody_gain(&note.feed, &note.holder, &new, GAIN_MAX)?;
        let bytes = note.note.len() as u64;
        let charged = match advanced.max(gain) {
            0 if !is_earlier(store, budgets, note, progress.time)? => return Ok(Verdict::Redundant),
            0 => bytes,
            added => bytes.saturating_sub(added.saturating_mul(FREE_BYTES_PER_ENTRY).saturating_add(FREE_BYTES)),
        };
        let charged = budgets.bytes.take(&owner(&note.holder), CUSTODY_BYTES.rate, charged as f64, Instant::now());
        if charged.is_err() {
            return Ok(Verdict::OverBudget);
        }
        progress.end += advanced;
        new.into_iter().for_each(|range| progress.held.insert(range));
        progress.time = progress.time.min(note.time);
        Ok(Verdict::Persist)
    }
}

/// Whether the note's time is earlier than that of the known note on its newest entry held in full,
/// and than `pending`, the earliest time not committed yet. False if the holder has exceeded its
/// rate of such notes.
fn is_earlier(
    store: &dyn Store,
    budgets: &CustodyBudgets,
    note: &CustodyRecord,
    pending: u64,
) -> Result<bool, ReadError> {
    let Some(newest) = note.held().last().and_then(|range| range.end.checked_sub(1)) else { return Ok(false) };
    if note.time >= pending
        || budgets.earlier.take(&owner(&note.holder), EARLIER_CUSTODY.rate, 1.0, Instant::now()).is_err()
    {
        return Ok(false);
    }
    let known = store.custody_covering(&note.feed, newest)?.into_iter().find(|held| held.holder == note.holder);
    Ok(known.is_none_or(|known| note.time < known.time))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::Commit;
    use crate::store::conformance::{append, custody_of, disclosed, feed, one};
    use crate::store::memory::MemoryStore;

    struct Case {
        store: MemoryStore,
        feed: FeedId,
        budgets: CustodyBudgets,
    }

    impl Case {
        fn new() -> Self {
            let (store, feed) = (MemoryStore::new(), feed("ma", 1));
            let entries = (0..100).map(|n| disclosed(&feed, n + 1)).collect();
            store.commit(one(append(&feed, 0, entries)), 0).unwrap();
            Self { store, feed, budgets: CustodyBudgets::default() }
        }

        fn note(&self, range: Range<u64>, not_held: Option<Range<u64>>, time: u64, bytes: usize) -> CustodyRecord {
            CustodyRecord { note: vec![b'n'; bytes].into(), ..custody_of(&self.feed, "ly", range, not_held, time) }
        }

        /// Evaluates notes as one group, and persists the accepted ones.
        fn receive(&self, notes: &[CustodyRecord]) -> Vec<Verdict> {
            let accepted = Accepted::default();
            let evaluate = |note| accepted.evaluate(&self.store, &self.budgets, note).unwrap();
            let verdicts: Vec<Verdict> = notes.iter().map(evaluate).collect();
            let persisted = notes.iter().zip(&verdicts).filter(|(_, verdict)| **verdict == Verdict::Persist);
            let custody = persisted.map(|(note, _)| note.clone()).collect();
            self.store.commit(Commit { custody, ..Commit::default() }, self.store.seq()).unwrap();
            verdicts
        }
    }

    #[test]
    fn notes_in_order_and_of_backfilled_entries_are_persisted_once() {
        use Verdict::{Persist, Redundant};
        let case = Case::new();
        let first = case.note(0..10, Some(3..5), 100, 400);
        let next = case.note(10..20, None, 101, 400);
        assert_eq!(case.receive(&[first.clone(), next.clone()]), [Persist; 2]);
        assert_eq!(case.receive(&[first, next]), [Redundant; 2], "again");
        let ahead = case.note(50..51, None, 102, 400);
        assert_eq!(
            case.receive(&[ahead.clone(), ahead.clone()]),
            [Persist, Redundant],
            "out of order, twice at the same time"
        );
        let backfilled = case.note(3..4, None, 103, 400);
        assert_eq!(case.receive(std::slice::from_ref(&backfilled)), [Persist]);
        assert_eq!(case.receive(&[backfilled, ahead]), [Redundant; 2]);
        let only_digests = case.note(20..30, Some(20..30), 104, 400);
        assert_eq!(
            case.receive(std::slice::from_ref(&only_digests)),
            [Persist],
            "it states the index up to which its holder has scanned"
        );
        assert_eq!(case.receive(&[only_digests]), [Redundant]);
        assert_eq!(case.receive(&[case.note(30..60, None, 105, 400)]), [Persist]);
    }

    #[test]
    fn notes_that_differ_in_their_time_alone_are_dropped() {
        let case = Case::new();
        assert_eq!(case.receive(&[case.note(0..50, None, 1_000_000, 400)]), [Verdict::Persist]);
        let later: Vec<_> = (1..=500).map(|n| case.note(0..50, None, 1_000_000 + n, 400)).collect();
        assert!(case.receive(&later).iter().all(|verdict| *verdict == Verdict::Redundant));
        // The earliest note is the proof of when its holder had an entry, but a series of ever
        // earlier ones is limited.
        let case = Case::new();
        case.receive(&[case.note(0..50, None, 1_000_000, 400)]);
        let earlier: Vec<_> = (1..=500).map(|n| case.note(0..50, None, 1_000_000 - n, 400)).collect();
        let persisted = case.receive(&earlier).iter().filter(|verdict| **verdict == Verdict::Persist).count();
        assert!((1..=17).contains(&persisted), "{persisted}");
    }

    #[test]
    fn long_notes_that_add_little_are_rate_limited() {
        let case = Case::new();
        let long: Vec<_> = (0..100).map(|n| case.note(n..n + 1, None, 100, 60 << 10)).collect();
        // All of them are within the burst: a feed of a hundred entries.
        assert!(case.receive(&long).iter().all(|verdict| *verdict == Verdict::Persist));
        case.budgets.bytes.spend(&owner(&"ly".parse().unwrap()), CUSTODY_BYTES.rate, 9e6, Instant::now());
        let more = case.note(0..1, None, 99, 60 << 10);
        assert_eq!(case.receive(&[more]), [Verdict::OverBudget]);
        let holder = "eg".parse().unwrap();
        let other = CustodyRecord { holder, ..case.note(0..1, None, 100, 60 << 10) };
        assert_eq!(case.receive(&[other]), [Verdict::Persist], "another member has a budget of its own");
    }
}
