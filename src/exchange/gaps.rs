//! What was asked of whom: entries held as digests whose content another member may have.
//!
//! In scope: the table of what each peer was asked for under which roster. Out of scope: what is worth asking for and when again
//! (`core::gaps`), asking, and taking what comes (`fills`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use barid_core::gaps::{Asked, Found, Stand, take_turns};
use barid_core::limits::FILL_RANGES_MAX;
use barid_core::names::{FeedId, Member};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{FILL_BACKOFF, backoff};
use crate::store::{ReadError, Store};

/// How often it is looked again whether content may be asked for that could not be taken.
const BARRED_LOOK_MS: u64 = 10_000;

/// What was asked, of every peer that was linked since the node started: as many as the roster has feeds and members.
pub(crate) struct Gaps {
    began: Instant,
    asked: Mutex<BTreeMap<(Member, FeedId), Asked>>,
    /// Up to where the owner of a feed was asked under a roster: what it did not give is not ours.
    settled: Mutex<BTreeMap<FeedId, Settled>>,
    /// What peers are not asked about for now: there is no room for it.
    barred: Mutex<BTreeSet<(Member, FeedId)>>,
    /// The feed that each peer was asked about last.
    last: Mutex<BTreeMap<Member, FeedId>>,
}

#[derive(Clone, Copy, Default)]
struct Settled {
    roster: u64,
    through: u64,
}

/// What to ask one peer for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) feed: FeedId,
    pub(crate) found: Found,
}

/// Who asks whom, and what may come of it.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) me: &'a Member,
    pub(crate) peer: &'a Member,
    /// Version of the newest roster.
    pub(crate) roster: u64,
    /// Whether every topic is wanted.
    pub(crate) everything: bool,
    /// Whether content of a member's feeds could be taken from the peer now.
    pub(crate) may_ask: &'a dyn Fn(&Member) -> bool,
}

/// The next step with one peer.
#[derive(Debug)]
pub(crate) enum Step {
    /// Ask for this.
    Ask(Request),
    /// Nothing, until then or until something changes.
    Wait(Option<Instant>),
}

impl Default for Gaps {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            asked: Mutex::default(),
            settled: Mutex::default(),
            barred: Mutex::default(),
            last: Mutex::default(),
        }
    }
}

impl Gaps {
    /// What is asked for next. Blocks.
    pub(crate) fn next(&self, store: &dyn Store, asker: &Asker<'_>, now: Instant) -> Result<Step, ReadError> {
        let Asker { me, peer, roster, everything, may_ask } = *asker;
        let mut due: Option<u64> = None;
        let now_ms = self.ms(now);
        let mut feeds = store.feeds();
        feeds.sort_unstable_by(|one, other| one.feed.cmp(&other.feed));
        take_turns(&mut feeds, |state| &state.feed, self.last.lock().get(peer));
        let mut epochs: BTreeMap<Member, u32> = BTreeMap::new();
        for state in feeds.iter().filter(|state| state.frontier.size() > 0) {
            let newest = epochs.entry(state.feed.member.clone()).or_default();
            *newest = state.feed.epoch.max(*newest);
        }
        // Also our own: what peers gave back of it may have been a digest to them.
        for state in feeds {
            let (feed, size) = (state.feed, state.frontier.size());
            let key = (peer.clone(), feed.clone());
            if !may_ask(&feed.member) {
                self.barred.lock().insert(key);
                due = due.into_iter().chain([now_ms.saturating_add(BARRED_LOOK_MS)]).min();
                continue;
            }
            let mut asked = self.asked.lock().get(&key).cloned().unwrap_or_default();
            if self.barred.lock().remove(&key) {
                asked.retry_now();
            }
            let settled = self.settled.lock().get(&feed).copied().filter(|settled| settled.roster == roster);
            let owner = feed.member == *peer;
            let over = epochs.get(&feed.member).is_some_and(|newest| *newest > feed.epoch);
            let settled = settled.filter(|_| !over).map_or(0, |settled| settled.through);
            let not_held = |from| store.not_held_from(&feed, from, FILL_RANGES_MAX);
            let stand = Stand { size, roster, settled, owner, own: feed.member == *me, everything };
            let found = asked.next(stand, now_ms, not_held, pause_ms)?;
            if found.is_none()
                && owner
                && let Some(through) = asked.settled(size)
            {
                self.settled.lock().insert(feed.clone(), Settled { roster, through });
            }
            due = due.into_iter().chain(asked.retry_at_ms()).min();
            self.asked.lock().insert(key, asked);
            if let Some(found) = found {
                self.last.lock().insert(peer.clone(), feed.clone());
                return Ok(Step::Ask(Request { feed, found }));
            }
        }
        Ok(Step::Wait(due.map(|ms| self.began + Duration::from_millis(ms))))
    }

    /// `peer` has looked at everything before `through`, and gave `got` entries that were lacking.
    pub(crate) fn answered(&self, peer: &Member, request: &Request, through: u64, got: u64) {
        self.with(peer, &request.feed, |asked| asked.answered(&request.found, through, got));
    }

    /// `peer` did not answer, or not rightly: the rest of the round is put off.
    pub(crate) fn refused(&self, peer: &Member, feed: &FeedId, now: Instant) {
        let now_ms = self.ms(now);
        self.with(peer, feed, |asked| asked.put_off(now_ms, pause_ms));
    }

    /// A batch of `peer` has become durable, which told of the entries from `first` on up to `end`. `lacked` of these it did not hold.
    pub(crate) fn served(&self, peer: &Member, feed: &FeedId, first: u64, end: u64, lacked: u64) {
        self.with(peer, feed, |asked| asked.served(first, end, lacked));
    }

    /// Of a batch of `peer`'s from `first` on content was not taken for want of room.
    pub(crate) fn not_taken(&self, peer: &Member, feed: &FeedId, first: u64) {
        self.with(peer, feed, |asked| asked.not_taken(first));
    }

    /// Up to where the owner of a feed was asked under this roster.
    pub(crate) fn owner_asked_to(&self, feed: &FeedId, roster: u64) -> u64 {
        self.settled.lock().get(feed).filter(|settled| settled.roster == roster).map_or(0, |settled| settled.through)
    }

    fn with(&self, peer: &Member, feed: &FeedId, change: impl FnOnce(&mut Asked)) {
        change(self.asked.lock().entry((peer.clone(), feed.clone())).or_default());
    }

    fn ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Whole, so that what is due is not looked at a moment too early.
fn pause_ms(attempt: u32) -> u64 {
    u64::try_from(backoff(FILL_BACKOFF, attempt).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::ops::Range;

    use barid_core::names::Undisclosed;

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
        barred: bool,
    }

    impl Case {
        /// Of ma's feed: one entry in full, one withheld, one not held, one purged.
        fn new() -> Self {
            let case = Self {
                store: MemoryStore::new(),
                feed: feed("ma", 1),
                gaps: Gaps::default(),
                now: Instant::now(),
                barred: false,
            };
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
            let (me, peer) = ("dz".parse().unwrap(), peer.parse().unwrap());
            let may_ask = |_: &Member| !self.barred;
            let asker = Asker { me: &me, peer: &peer, roster, everything: true, may_ask: &may_ask };
            match self.gaps.next(&self.store, &asker, self.now).unwrap() {
                Step::Ask(request) => Ok(request),
                Step::Wait(due) => Err(due),
            }
        }

        /// Asks, and is given nothing.
        fn asks_in_vain(&self, peer: &str, roster: u64) -> Vec<Range<u64>> {
            let request = self.next(peer, roster).unwrap();
            self.gaps.answered(&peer.parse().unwrap(), &request, request.found.end, 0);
            request.found.ranges
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
    async fn what_could_not_be_taken_is_asked_for_at_once_when_it_can() {
        let mut case = Case::new();
        case.asks_in_vain("ly", 1);
        let due = case.next("ly", 1).unwrap_err().expect("again later");
        case.barred = true;
        let look = case.next("ly", 1).unwrap_err().expect("it is looked again");
        case.now = due + Duration::from_secs(600);
        assert!(case.next("ly", 1).unwrap_err().unwrap() > look, "however late it is");
        // It has just been put off for long.
        case.barred = false;
        case.gaps.refused(&"ly".parse().unwrap(), &case.feed, case.now);
        assert_eq!(case.asks_in_vain("ly", 1), one_range(2..3));
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
        assert_eq!((first.found.ranges.as_slice(), first.found.end), (&[1..2, 2..3, 4..604][..], 604));
        case.gaps.answered(&ma, &first, 300, 298);
        let second = case.next("ma", 1).unwrap();
        assert_eq!(second.found.ranges, one_range(300..604));
        case.gaps.answered(&ma, &second, 0, 0);
        assert!(case.next("ma", 1).is_err(), "one that does not look is not asked for ever");
        case.gaps.refused(&ma, &case.feed, case.now);
        assert!(case.next("ma", 1).unwrap_err().unwrap() > case.now + Duration::from_secs(1));
    }

    #[tokio::test]
    async fn no_feed_waits_behind_another_that_always_has_something_to_ask() {
        let mut case = Case::new();
        case.store.commit(one(append(&feed("tn", 1), 0, vec![withheld(1)])), case.store.seq()).unwrap();
        let mut asked = Vec::new();
        for _ in 0..4 {
            let request = case.next("ly", 1).unwrap();
            case.gaps.answered(&"ly".parse().unwrap(), &request, request.found.end, 1);
            asked.push(request.feed.member.to_string());
            // As on a line so long that it is all due again with every answer.
            case.gaps.asked.lock().remove(&("ly".parse().unwrap(), request.feed));
            case.now += FILL_BACKOFF.1;
        }
        assert_eq!(asked, ["ma", "tn", "ma", "tn"]);
    }

    #[tokio::test]
    async fn who_serves_a_feed_is_not_asked_for_what_it_has_just_shown() {
        let case = Case::new();
        assert!(!case.asks_in_vain("ly", 1).is_empty());
        let ly = "ly".parse().unwrap();
        let tn = "ne".parse().unwrap();
        assert!(case.next("ly", 1).is_err());
        case.gaps.served(&tn, &case.feed, 0, 4, 1);
        assert_eq!(case.next("ne", 1).unwrap().found.ranges, [1..2, 2..3], "a new peer is asked once");
        case.append(vec![Some(Undisclosed::NotHeld)]);
        case.gaps.served(&ly, &case.feed, 4, 5, 1);
        assert!(case.next("ly", 1).is_err());
    }
}
