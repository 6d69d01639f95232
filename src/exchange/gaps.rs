//! What was asked of whom: entries held as digests whose content another member may have.
//!
//! In scope: which ranges to ask a peer for next, and when again. Out of scope: asking, and taking what comes (`fills`).
//!
//! A round goes over a feed once, from its beginning. The first round with a peer under a roster asks for everything that is held as a digest;
//! so what was withheld wrongly is found, and who joined later gets its history. After that only what came without content from a relay
//! is asked for, as it comes; what a peer did not give is asked for again after a pause that grows, and not at all once the feed's
//! owner has been asked.

use std::collections::BTreeMap;
use std::ops::Range;

use barid_core::limits::FILL_RANGES_MAX;
use barid_core::names::{FeedId, Member, Undisclosed};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{FILL_BACKOFF, backoff};
use crate::store::{ReadError, Store};

/// What was asked, of every peer that was linked since the node started: as many as the roster has feeds and members.
#[derive(Default)]
pub(crate) struct Gaps {
    asked: Mutex<BTreeMap<(Member, FeedId), Asked>>,
    /// Up to where the owner of a feed was asked under a roster: what it did not give is not ours.
    settled: Mutex<BTreeMap<FeedId, Settled>>,
}

#[derive(Clone, Copy, Default)]
struct Settled {
    roster: u64,
    through: u64,
}

/// One peer and one feed.
#[derive(Clone, Debug, Default)]
struct Asked {
    /// The newest roster of this round.
    roster: u64,
    /// Before this index everything is asked for, whatever the reason.
    full_to: u64,
    /// Next index to look at.
    cursor: u64,
    /// Entries asked for and got in this round.
    wanted: u64,
    got: u64,
    attempt: u32,
    retry_at: Option<Instant>,
}

/// What to ask one peer for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) feed: FeedId,
    pub(crate) ranges: Vec<Range<u64>>,
    /// Everything before this index has been looked at here.
    pub(crate) end: u64,
}

/// Ranges to ask for, and up to where they were looked for.
type Found = (Vec<Range<u64>>, u64);

/// The next step with one peer.
#[derive(Debug)]
pub(crate) enum Step {
    /// Ask for this.
    Ask(Request),
    /// Nothing, until then or until something changes.
    Wait(Option<Instant>),
}

impl Gaps {
    /// What to ask `peer` for next. Blocks.
    pub(crate) fn next(&self, store: &dyn Store, peer: &Member, roster: u64, now: Instant) -> Result<Step, ReadError> {
        let mut due: Option<Instant> = None;
        // Also our own: what peers gave back of it may have been a digest to them.
        for state in store.feeds() {
            let (feed, size) = (state.feed, state.frontier.size());
            let key = (peer.clone(), feed.clone());
            let mut asked = self.asked.lock().get(&key).cloned().unwrap_or_default();
            let settled = self.settled.lock().get(&feed).copied().filter(|settled| settled.roster == roster);
            let owner = feed.member == *peer;
            let settled = if owner { 0 } else { settled.map_or(0, |settled| settled.through) };
            let found = asked.next(size, roster, now, |from, full_to| find(store, &feed, from, full_to, settled))?;
            if found.is_none() && owner && asked.cursor >= size {
                self.settled.lock().insert(feed.clone(), Settled { roster, through: size });
            }
            due = due.into_iter().chain(asked.retry_at).min();
            self.asked.lock().insert(key, asked);
            if let Some((ranges, end)) = found {
                return Ok(Step::Ask(Request { feed, ranges, end }));
            }
        }
        Ok(Step::Wait(due))
    }

    /// `peer` has looked at everything before `through`, and gave `got` entries that were lacking.
    pub(crate) fn answered(&self, peer: &Member, request: &Request, through: u64, got: u64) {
        let mut asked = self.asked.lock();
        let asked = asked.entry((peer.clone(), request.feed.clone())).or_default();
        let last = request.ranges.last().map_or(0, |range| range.end);
        let left = request.ranges.iter().map(|range| range.end.saturating_sub(range.start.max(through))).sum::<u64>();
        let all = request.ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        // One that looked at nothing is not asked for the same again.
        let looked = if left == all { 0 } else { left };
        asked.wanted += all - looked;
        asked.got += got;
        asked.cursor = if through >= last || left == all { request.end } else { through };
    }

    /// `peer` did not answer, or not rightly: the rest of the round is put off.
    pub(crate) fn refused(&self, peer: &Member, feed: &FeedId, now: Instant) {
        let mut asked = self.asked.lock();
        asked.entry((peer.clone(), feed.clone())).or_default().put_off(now);
    }

    /// `peer` served a feed up to `end` itself, from `first` on: it has just said what it has of these.
    pub(crate) fn served(&self, peer: &Member, feed: &FeedId, first: u64, end: u64) {
        let mut asked = self.asked.lock();
        let asked = asked.entry((peer.clone(), feed.clone())).or_default();
        if asked.cursor >= first {
            asked.cursor = asked.cursor.max(end);
        }
    }
}

impl Asked {
    /// The next ranges of the round, from `find` which gets where to begin and up to where everything is wanted. `None`: the round is over,
    /// or put off.
    fn next(
        &mut self,
        size: u64,
        roster: u64,
        now: Instant,
        find: impl Fn(u64, u64) -> Result<Option<Found>, ReadError>,
    ) -> Result<Option<Found>, ReadError> {
        if self.roster != roster {
            *self = Self { roster, full_to: size, ..Self::default() };
        }
        match self.retry_at {
            Some(at) if now < at => return Ok(None),
            Some(_) => (self.cursor, self.retry_at) = (0, None),
            None => {}
        }
        let found = find(self.cursor, self.full_to)?;
        if found.is_none() {
            self.end_round(size, now);
        }
        Ok(found)
    }

    fn end_round(&mut self, size: u64, now: Instant) {
        if self.got > 0 {
            self.attempt = 0;
        }
        if self.wanted > self.got {
            self.put_off(now);
        }
        (self.cursor, self.full_to, self.wanted, self.got) = (size, 0, 0, 0);
    }

    fn put_off(&mut self, now: Instant) {
        self.retry_at = Some(now + backoff(FILL_BACKOFF, self.attempt));
        self.attempt = self.attempt.saturating_add(1);
    }
}

/// The first ranges from `from` on that are worth asking for, and up to where they were looked for.
fn find(store: &dyn Store, feed: &FeedId, from: u64, full_to: u64, settled: u64) -> Result<Option<Found>, ReadError> {
    let mut next = from;
    loop {
        let held = store.not_held_from(feed, next, FILL_RANGES_MAX)?;
        let Some((last, _)) = held.last() else { return Ok(None) };
        let end = last.end;
        let wanted = |(range, reason): (Range<u64>, Undisclosed)| {
            let range = range.start.max(next)..range.end;
            match reason {
                Undisclosed::NotHeld if range.start < full_to => Some(range),
                Undisclosed::NotHeld => Some(range.start.max(settled)..range.end),
                Undisclosed::Withheld
                | Undisclosed::Unfollowed
                | Undisclosed::TooLarge
                | Undisclosed::NotUnderstood
                | Undisclosed::Unknown => Some(range.start..range.end.min(full_to)),
                // Nobody has it any more; or it is not ours, and was sent to us all the same.
                Undisclosed::Purged | Undisclosed::Excluded => None,
            }
            .filter(|range| !range.is_empty())
        };
        let ranges: Vec<Range<u64>> = held.into_iter().filter_map(wanted).collect();
        if !ranges.is_empty() {
            return Ok(Some((ranges, end)));
        }
        next = end;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;
    use crate::store::conformance::{append, disclosed, feed, one, withheld};
    use crate::store::memory::MemoryStore;
    use crate::store::{Content, NewEntry};

    fn one_range(range: Range<u64>) -> Vec<Range<u64>> {
        std::iter::once(range).collect()
    }

    struct Case {
        store: MemoryStore,
        feed: FeedId,
        gaps: Gaps,
        now: Instant,
    }

    impl Case {
        /// Of ma's feed: one entry in full, one withheld, one not held, one purged.
        fn new() -> Self {
            let case =
                Self { store: MemoryStore::new(), feed: feed("ma", 1), gaps: Gaps::default(), now: Instant::now() };
            case.append(
                [None, Some(Undisclosed::Withheld), Some(Undisclosed::NotHeld), Some(Undisclosed::Purged)].into(),
            );
            case
        }

        fn append(&self, entries: Vec<Option<Undisclosed>>) {
            let first = self.store.feed(&self.feed).map_or(0, |state| state.frontier.size());
            let entry = |reason: Option<Undisclosed>| match reason {
                Some(reason) => NewEntry { content: Content::Undisclosed(reason), ..withheld(1) },
                None => disclosed(&self.feed, first + 1),
            };
            let entries = entries.into_iter().map(entry).collect();
            self.store.commit(one(append(&self.feed, first, entries)), self.store.seq()).unwrap();
        }

        fn next(&self, peer: &str, roster: u64) -> Result<Request, Option<Instant>> {
            match self.gaps.next(&self.store, &peer.parse().unwrap(), roster, self.now).unwrap() {
                Step::Ask(request) => Ok(request),
                Step::Wait(due) => Err(due),
            }
        }

        /// Asks, and is given nothing.
        fn asks_in_vain(&self, peer: &str, roster: u64) -> Vec<Range<u64>> {
            let request = self.next(peer, roster).unwrap();
            self.gaps.answered(&peer.parse().unwrap(), &request, request.end, 0);
            request.ranges
        }
    }

    #[tokio::test]
    async fn the_first_round_asks_for_everything_and_then_only_for_what_relays_lacked() {
        let mut case = Case::new();
        assert_eq!(case.asks_in_vain("ly", 1), [1..2, 2..3]);
        let due = case.next("ly", 1).unwrap_err().expect("again later");
        case.append(vec![Some(Undisclosed::NotHeld), Some(Undisclosed::Withheld)]);
        assert_eq!(
            case.next("ly", 1).unwrap_err(),
            Some(due),
            "a peer that gave nothing is not asked for each new entry"
        );
        case.now = due;
        assert_eq!(case.asks_in_vain("ly", 1), [2..3, 4..5], "what was withheld is not asked for again");
        let later = case.next("ly", 1).unwrap_err().expect("again later");
        assert!(later > due);
        // A newer roster may admit us.
        assert_eq!(case.asks_in_vain("ly", 2), [1..2, 2..3, 4..5, 5..6]);
    }

    #[tokio::test]
    async fn what_the_owner_did_not_give_nobody_is_asked_for() {
        let mut case = Case::new();
        assert_eq!(case.asks_in_vain("ma", 1), [1..2, 2..3]);
        assert!(case.next("ma", 1).is_err());
        assert_eq!(case.asks_in_vain("ly", 1), [1..2, 2..3], "once, to find what was withheld wrongly");
        case.now = case.next("ly", 1).unwrap_err().unwrap();
        assert_eq!(case.next("ly", 1), Err(None));
        case.append(vec![Some(Undisclosed::NotHeld)]);
        assert_eq!(case.asks_in_vain("ly", 1), one_range(4..5));
    }

    #[tokio::test]
    async fn half_an_answer_is_asked_on_from_there_and_none_ends_the_round() {
        let case = Case::new();
        case.append(vec![Some(Undisclosed::NotHeld); 600]);
        let ma = "ma".parse().unwrap();
        let first = case.next("ma", 1).unwrap();
        assert_eq!((first.ranges.as_slice(), first.end), (&[1..2, 2..3, 4..604][..], 604));
        case.gaps.answered(&ma, &first, 300, 298);
        let second = case.next("ma", 1).unwrap();
        assert_eq!(second.ranges, one_range(300..604));
        case.gaps.answered(&ma, &second, 0, 0);
        assert!(case.next("ma", 1).is_err(), "one that does not look is not asked for ever");
        case.gaps.refused(&ma, &case.feed, case.now);
        assert!(case.next("ma", 1).unwrap_err().unwrap() > case.now + Duration::from_secs(1));
    }

    #[tokio::test]
    async fn who_serves_a_feed_is_not_asked_for_what_it_has_just_shown() {
        let case = Case::new();
        assert!(!case.asks_in_vain("ly", 1).is_empty());
        let ly = "ly".parse().unwrap();
        let tn = "ne".parse().unwrap();
        assert!(case.next("ly", 1).is_err());
        case.gaps.served(&tn, &case.feed, 0, 4);
        assert_eq!(case.next("ne", 1).unwrap().ranges, [1..2, 2..3], "a new peer is asked once");
        case.append(vec![Some(Undisclosed::NotHeld)]);
        case.gaps.served(&ly, &case.feed, 4, 5);
        assert!(case.next("ly", 1).is_err());
    }
}
