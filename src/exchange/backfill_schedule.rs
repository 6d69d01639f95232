//! The schedule of backfill requests: which entries held as digests to request from which peer.
//!
//! In scope: the table of what each peer was asked for under which roster. Out of scope: which
//! entries are worth requesting and when again (`core::backfill`), sending requests and handling
//! responses (`backfill`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use barid_core::backfill::{BackfillContext, BackfillRanges, BackfillState, rotate_feeds};
use barid_core::ids::{FeedId, Member};
use barid_core::limits::BACKFILL_RANGES_MAX;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{BACKFILL_BACKOFF, backoff};
use crate::store::{ReadError, Store};

/// How often to check again whether suspended content may be requested.
const SUSPENDED_CHECK_MS: u64 = 10_000;

/// State of the requests to every peer that was linked since the node started: at most as many as
/// the roster has feeds times members.
pub(crate) struct BackfillSchedule {
    began: Instant,
    progress: Mutex<BTreeMap<(Member, FeedId), BackfillState>>,
    /// How far the owner of a feed was asked under a roster. Content before it that the owner did
    /// not serve is not for this member.
    settled: Mutex<BTreeMap<FeedId, OwnerProgress>>,
    /// Peer and feed pairs that are not requested for now, because their content could not be
    /// committed.
    suspended: Mutex<BTreeSet<(Member, FeedId)>>,
    /// The feed last requested from each peer.
    last: Mutex<BTreeMap<Member, FeedId>>,
}

#[derive(Clone, Copy, Default)]
struct OwnerProgress {
    roster: u64,
    scanned_to: u64,
}

/// A request to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) feed: FeedId,
    pub(crate) found: BackfillRanges,
}

/// The two members, and the conditions of a request.
#[derive(Clone, Copy)]
pub(crate) struct PeerContext<'a> {
    pub(crate) me: &'a Member,
    pub(crate) peer: &'a Member,
    /// Version of the newest roster.
    pub(crate) roster: u64,
    /// Whether every topic is followed.
    pub(crate) all_topics: bool,
    /// Whether content of a member's feeds could be committed now, if this peer serves it.
    pub(crate) may_request: &'a dyn Fn(&Member) -> bool,
}

/// The next step with one peer.
#[derive(Debug)]
pub(crate) enum Step {
    /// Send this request.
    Request(Request),
    /// Send nothing until this time, or until something changes.
    Wait(Option<Instant>),
}

impl Default for BackfillSchedule {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            progress: Mutex::default(),
            settled: Mutex::default(),
            suspended: Mutex::default(),
            last: Mutex::default(),
        }
    }
}

impl BackfillSchedule {
    /// Returns the next step. Blocks.
    pub(crate) fn next(&self, store: &dyn Store, context: &PeerContext<'_>, now: Instant) -> Result<Step, ReadError> {
        let PeerContext { me, peer, roster, all_topics, may_request } = *context;
        let mut retry_at: Option<u64> = None;
        let now_ms = self.ms(now);
        let mut feeds = store.feeds();
        feeds.sort_unstable_by(|one, other| one.feed.cmp(&other.feed));
        rotate_feeds(&mut feeds, |state| &state.feed, self.last.lock().get(peer));
        let mut epochs: BTreeMap<Member, u32> = BTreeMap::new();
        for state in feeds.iter().filter(|state| state.compact_range.size() > 0) {
            let newest = epochs.entry(state.feed.member.clone()).or_default();
            *newest = state.feed.epoch.max(*newest);
        }
        // Our own feeds too: a peer that returned an entry may itself have held it as a digest.
        for state in feeds {
            let (feed, size) = (state.feed, state.compact_range.size());
            let key = (peer.clone(), feed.clone());
            if !may_request(&feed.member) {
                self.suspended.lock().insert(key);
                retry_at = retry_at.into_iter().chain([now_ms.saturating_add(SUSPENDED_CHECK_MS)]).min();
                continue;
            }
            let mut progress = self.progress.lock().get(&key).cloned().unwrap_or_default();
            if self.suspended.lock().remove(&key) {
                progress.retry_now();
            }
            let settled = self.settled.lock().get(&feed).copied().filter(|settled| settled.roster == roster);
            let owner = feed.member == *peer;
            let superseded = epochs.get(&feed.member).is_some_and(|newest| *newest > feed.epoch);
            let settled = settled.filter(|_| !superseded).map_or(0, |settled| settled.scanned_to);
            let not_held = |from| store.undisclosed_ranges_from(&feed, from, BACKFILL_RANGES_MAX);
            let context = BackfillContext { size, roster, settled, owner, own: feed.member == *me, all_topics };
            let found = progress.next(context, now_ms, not_held, pause_ms)?;
            if found.is_none()
                && owner
                && let Some(scanned_to) = progress.settled(size)
            {
                self.settled.lock().insert(feed.clone(), OwnerProgress { roster, scanned_to });
            }
            retry_at = retry_at.into_iter().chain(progress.retry_at_ms()).min();
            self.progress.lock().insert(key, progress);
            if let Some(found) = found {
                self.last.lock().insert(peer.clone(), feed.clone());
                return Ok(Step::Request(Request { feed, found }));
            }
        }
        Ok(Step::Wait(retry_at.map(|ms| self.began + Duration::from_millis(ms))))
    }

    /// Records a response: `peer` has scanned everything before `scanned_to`, and served `received`
    /// missing entries.
    pub(crate) fn on_response(&self, peer: &Member, request: &Request, scanned_to: u64, received: u64) {
        self.update(peer, &request.feed, |progress| progress.on_response(&request.found, scanned_to, received));
    }

    /// Records that `peer` did not respond, or not correctly: the rest of the round is postponed.
    pub(crate) fn failed(&self, peer: &Member, feed: &FeedId, now: Instant) {
        let now_ms = self.ms(now);
        self.update(peer, feed, |progress| progress.back_off(now_ms, pause_ms));
    }

    /// Records that a batch of `peer` with the entries from `first` to `end` became durable; the
    /// peer did not hold `missing` of them.
    pub(crate) fn on_batch(&self, peer: &Member, feed: &FeedId, first: u64, end: u64, missing: u64) {
        self.update(peer, feed, |progress| progress.on_batch(first, end, missing));
    }

    /// Records that content of a batch of `peer` from `first` on was dropped for lack of space.
    pub(crate) fn dropped_from(&self, peer: &Member, feed: &FeedId, first: u64) {
        self.update(peer, feed, |progress| progress.dropped_from(first));
    }

    /// Returns how far the owner of a feed was asked under this roster.
    pub(crate) fn owner_scanned_to(&self, feed: &FeedId, roster: u64) -> u64 {
        self.settled.lock().get(feed).filter(|settled| settled.roster == roster).map_or(0, |settled| settled.scanned_to)
    }

    fn update(&self, peer: &Member, feed: &FeedId, change: impl FnOnce(&mut BackfillState)) {
        change(self.progress.lock().entry((peer.clone(), feed.clone())).or_default());
    }

    fn ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Rounded to whole ms, so that a feed is not checked a moment too early.
fn pause_ms(attempt: u32) -> u64 {
    u64::try_from(backoff(BACKFILL_BACKOFF, attempt).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::ops::Range;

    use barid_core::ids::Undisclosed;

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
        backfill_schedule: BackfillSchedule,
        now: Instant,
        suspended: bool,
    }

    impl Case {
        /// ma's feed: one entry in full, one withheld, one not held, one purged.
        fn new() -> Self {
            let case = Self {
                store: MemoryStore::new(),
                feed: feed("ma", 1),
                backfill_schedule: BackfillSchedule::default(),
                now: Instant::now(),
                suspended: false,
            };
            case.append(
                [None, Some(Undisclosed::Withheld), Some(Undisclosed::NotHeld), Some(Undisclosed::Purged)].into(),
            );
            case
        }

        fn append(&self, entries: Vec<Option<Undisclosed>>) {
            let first = self.store.feed(&self.feed).map_or(0, |state| state.compact_range.size());
            let entry = |reason: Option<Undisclosed>| match reason {
                Some(reason) => NewEntry { content: Content::Undisclosed(reason), ..withheld(1) },
                None => disclosed(&self.feed, first + 1),
            };
            let entries = entries.into_iter().map(entry).collect();
            self.store.commit(one(append(&self.feed, first, entries)), self.store.seq()).unwrap();
        }

        fn next(&self, peer: &str, roster: u64) -> Result<Request, Option<Instant>> {
            let (me, peer) = ("dz".parse().unwrap(), peer.parse().unwrap());
            let may_request = |_: &Member| !self.suspended;
            let context = PeerContext { me: &me, peer: &peer, roster, all_topics: true, may_request: &may_request };
            match self.backfill_schedule.next(&self.store, &context, self.now).unwrap() {
                Step::Request(request) => Ok(request),
                Step::Wait(retry_at) => Err(retry_at),
            }
        }

        /// Sends a request, and receives no content.
        fn request_without_content(&self, peer: &str, roster: u64) -> Vec<Range<u64>> {
            let request = self.next(peer, roster).unwrap();
            self.backfill_schedule.on_response(&peer.parse().unwrap(), &request, request.found.end, 0);
            request.found.ranges
        }
    }

    #[tokio::test]
    async fn first_round_requests_everything_and_later_ones_only_what_relays_lacked() {
        let mut case = Case::new();
        assert_eq!(case.request_without_content("ly", 1), [1..2, 2..3]);
        let retry_at = case.next("ly", 1).unwrap_err().expect("again later");
        case.append(vec![Some(Undisclosed::NotHeld), Some(Undisclosed::Withheld)]);
        assert_eq!(
            case.next("ly", 1).unwrap_err(),
            Some(retry_at),
            "a peer that delivered nothing is not asked for each new entry"
        );
        case.now = retry_at;
        assert_eq!(case.request_without_content("ly", 1), [2..3, 4..5], "withheld entries are not requested again");
        let later = case.next("ly", 1).unwrap_err().expect("again later");
        assert!(later > retry_at);
        // A newer roster may admit us.
        assert_eq!(case.request_without_content("ly", 2), [1..2, 2..3, 4..5, 5..6]);
    }

    #[tokio::test]
    async fn suspended_backfill_is_requested_at_once_when_allowed() {
        let mut case = Case::new();
        case.request_without_content("ly", 1);
        let retry_at = case.next("ly", 1).unwrap_err().expect("again later");
        case.suspended = true;
        let look = case.next("ly", 1).unwrap_err().expect("it is scanned again");
        case.now = retry_at + Duration::from_secs(600);
        assert!(case.next("ly", 1).unwrap_err().unwrap() > look, "at any later time");
        // It has just been postponed for a long time.
        case.suspended = false;
        case.backfill_schedule.failed(&"ly".parse().unwrap(), &case.feed, case.now);
        assert_eq!(case.request_without_content("ly", 1), one_range(2..3));
    }

    #[tokio::test]
    async fn entries_withheld_by_owner_are_not_requested_from_relays() {
        let mut case = Case::new();
        assert_eq!(case.request_without_content("ma", 1), [1..2, 2..3]);
        assert!(case.next("ma", 1).is_err());
        assert_eq!(case.request_without_content("ly", 1), [1..2, 2..3], "once, to find entries withheld wrongly");
        case.now = case.next("ly", 1).unwrap_err().unwrap();
        assert_eq!(case.next("ly", 1), Err(None));
        case.append(vec![Some(Undisclosed::NotHeld)]);
        assert_eq!(case.request_without_content("ly", 1), one_range(4..5));
    }

    #[tokio::test]
    async fn partial_reply_is_continued_and_empty_reply_ends_the_round() {
        let case = Case::new();
        case.append(vec![Some(Undisclosed::NotHeld); 600]);
        let ma = "ma".parse().unwrap();
        let first = case.next("ma", 1).unwrap();
        assert_eq!((first.found.ranges.as_slice(), first.found.end), (&[1..2, 2..3, 4..604][..], 604));
        case.backfill_schedule.on_response(&ma, &first, 300, 298);
        let second = case.next("ma", 1).unwrap();
        assert_eq!(second.found.ranges, one_range(300..604));
        case.backfill_schedule.on_response(&ma, &second, 0, 0);
        assert!(case.next("ma", 1).is_err(), "a peer that scans nothing is not asked forever");
        case.backfill_schedule.failed(&ma, &case.feed, case.now);
        assert!(case.next("ma", 1).unwrap_err().unwrap() > case.now + Duration::from_secs(1));
    }

    #[tokio::test]
    async fn feeds_take_turns_in_backfill() {
        let mut case = Case::new();
        case.store.commit(one(append(&feed("tn", 1), 0, vec![withheld(1)])), case.store.seq()).unwrap();
        let mut requested = Vec::new();
        for _ in 0..4 {
            let request = case.next("ly", 1).unwrap();
            case.backfill_schedule.on_response(&"ly".parse().unwrap(), &request, request.found.end, 1);
            requested.push(request.feed.member.to_string());
            // As on a line so slow that everything is due again with every response.
            case.backfill_schedule.progress.lock().remove(&("ly".parse().unwrap(), request.feed));
            case.now += BACKFILL_BACKOFF.1;
        }
        assert_eq!(requested, ["ma", "tn", "ma", "tn"]);
    }

    #[tokio::test]
    async fn serving_peer_gets_no_request_for_entries_it_just_served() {
        let case = Case::new();
        assert!(!case.request_without_content("ly", 1).is_empty());
        let ly = "ly".parse().unwrap();
        let tn = "ne".parse().unwrap();
        assert!(case.next("ly", 1).is_err());
        case.backfill_schedule.on_batch(&tn, &case.feed, 0, 4, 1);
        assert_eq!(case.next("ne", 1).unwrap().found.ranges, [1..2, 2..3], "a new peer is asked once");
        case.append(vec![Some(Undisclosed::NotHeld)]);
        case.backfill_schedule.on_batch(&ly, &case.feed, 4, 5, 1);
        assert!(case.next("ly", 1).is_err());
    }
}
