//! Schedules backfill requests: decides which missing content to request from a peer, and when.
//!
//! In scope: which entries held as digests are worth requesting from one peer ([`BackfillState`],
//! one per peer and feed). Pure: time, delays and the ranges held are arguments. Out of scope:
//! sending requests, and verifying responses ([`crate::follow::verify_backfills`]).
//!
//! A round scans a feed once, from its beginning. The first round with a peer under a roster
//! requests every entry held as a digest. It finds wrongly withheld content, and gives a new member
//! the history. Later rounds request only entries that a relay delivered without content, as they
//! arrive. What a peer did not provide is requested again after a growing delay, and not at all
//! once the feed's owner has been asked. Only the owner is asked, once, for every entry that it did
//! not serve itself, because a relay may have withheld it wrongly.

use std::ops::Range;

use crate::ids::{FeedId, Undisclosed};

/// Ranges of entries held as digests, ascending, each with the reason.
pub type NotHeld = Vec<(Range<u64>, Undisclosed)>;

/// Progress of backfill from one peer for one feed.
#[derive(Clone, Debug, Default)]
pub struct BackfillState {
    /// Roster version under which this round runs.
    roster: u64,
    /// In this range every entry held as a digest is requested, for whatever reason it is missing.
    full_from: u64,
    full_to: u64,
    /// Next index to scan.
    cursor: u64,
    /// Entries requested and received in this round.
    requested_entries: u64,
    received_entries: u64,
    attempt: u32,
    retry_at_ms: Option<u64>,
    /// First entry skipped because the owner had already been asked for it.
    skipped_from: Option<u64>,
    /// First index from which content served by the peer was dropped for lack of space, and whether
    /// the current round has started over since then.
    dropped_from: Option<u64>,
    rescanning: bool,
}

/// The next request to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackfillRanges {
    /// Ascending and not empty.
    pub ranges: Vec<Range<u64>>,
    /// Every entry before this index has been scanned locally.
    pub end: u64,
}

/// Local state of the feed that is backfilled.
#[derive(Clone, Copy, Debug)]
pub struct BackfillContext {
    /// Entries held, in full or as digests.
    pub size: u64,
    /// Version of the newest roster.
    pub roster: u64,
    /// The feed's owner has been asked under this roster for every entry before this index; what it
    /// did not provide is not for this member. 0 for a closed epoch: its owner may have lost what
    /// it stated about those entries.
    pub settled: u64,
    /// Whether the peer is the feed's owner.
    pub owner: bool,
    /// Whether the feed is this member's own: no peer may withhold its entries from this member.
    pub own: bool,
    /// Whether this member follows every topic. Entries that were not followed earlier then count
    /// as missing.
    pub all_topics: bool,
}

/// Returns whether content with this reason may be available from another peer, or later.
///
/// True if the sender did not hold it, or gave a reason that a later protocol version defines and
/// this one cannot judge. Of this member's `own` feed, withheld and unfollowed entries count as
/// missing too.
#[must_use]
pub fn is_missing(reason: Undisclosed, own: bool) -> bool {
    match reason {
        Undisclosed::NotHeld | Undisclosed::Unknown => true,
        Undisclosed::Withheld | Undisclosed::Unfollowed => own,
        Undisclosed::TooLarge | Undisclosed::NotUnderstood | Undisclosed::Purged | Undisclosed::Excluded => false,
    }
}

/// Rotates feeds, ascending by `feed_of`, so that the feed after `last` comes first. `last` is the
/// feed most recently requested from the peer. The rotation prevents feeds that always have
/// something to retry from starving the others.
pub fn rotate_feeds<T>(feeds: &mut [T], feed_of: impl Fn(&T) -> &FeedId, last: Option<&FeedId>) {
    if let Some(last) = last {
        let after = feeds.partition_point(|feed| feed_of(feed) <= last);
        feeds.rotate_left(after);
    }
}

impl BackfillState {
    /// Returns the next request, or `None` if there is nothing to request until
    /// [`Self::retry_at_ms`] or until the context changes.
    ///
    /// `not_held` returns ranges held as digests from an index on (at least the first of them).
    /// `pause_ms` returns the delay after the given number of failed attempts.
    ///
    /// # Errors
    /// Any error of `not_held`.
    pub fn next<E>(
        &mut self,
        context: BackfillContext,
        now_ms: u64,
        not_held: impl FnMut(u64) -> Result<NotHeld, E>,
        pause_ms: impl FnOnce(u32) -> u64,
    ) -> Result<Option<BackfillRanges>, E> {
        if self.roster != context.roster {
            *self = Self { roster: context.roster, full_to: context.size, ..Self::default() };
        }
        if context.owner {
            self.full_to = context.size;
        }
        match self.retry_at_ms {
            Some(at) if now_ms < at => return Ok(None),
            Some(_) => (self.cursor, self.retry_at_ms, self.rescanning) = (0, None, true),
            None => {}
        }
        let settled = if context.owner { 0 } else { context.settled };
        if let Some(index) = self.skipped_from.take_if(|index| settled <= *index) {
            self.cursor = self.cursor.min(index);
        }
        let ranges_found = self.find(settled, context, not_held)?;
        if ranges_found.is_none() {
            self.end_round(context.size, now_ms, pause_ms);
        }
        Ok(ranges_found)
    }

    /// Records a response: the peer has scanned everything before `scanned_to` of the `requested`
    /// ranges and provided `received_entries` missing entries.
    pub fn on_response(&mut self, requested: &BackfillRanges, scanned_to: u64, received_entries: u64) {
        let last = requested.ranges.last().map_or(0, |range| range.end);
        let left =
            requested.ranges.iter().map(|range| range.end.saturating_sub(range.start.max(scanned_to))).sum::<u64>();
        let all = requested.ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        // A peer that scanned nothing is not asked for the same ranges again in this round.
        let unscanned = if left == all { 0 } else { left };
        self.requested_entries += all - unscanned;
        self.received_entries += received_entries;
        self.cursor = if scanned_to >= last || left == all { requested.end } else { scanned_to };
    }

    /// Postpones the rest of the round after a missing or invalid response.
    pub fn back_off(&mut self, now_ms: u64, pause_ms: impl FnOnce(u32) -> u64) {
        self.retry_at_ms = Some(now_ms.saturating_add(pause_ms(self.attempt)));
        self.attempt = self.attempt.saturating_add(1);
    }

    /// Makes a postponed round due at once, because the local obstacle is gone.
    pub fn retry_now(&mut self) {
        if self.retry_at_ms.is_some() {
            (self.retry_at_ms, self.attempt) = (Some(0), 0);
        }
    }

    /// Records a batch of the peer that has become durable and covers exactly the entries in
    /// `first..end`. The batch already shows what the peer provides of them, so they need no
    /// request in this round. `missing` of them the peer did not hold and may hold later.
    pub fn on_batch(&mut self, first: u64, end: u64, missing: u64) {
        if self.cursor >= first && self.cursor < end {
            self.cursor = end;
            self.requested_entries += missing;
        }
        if self.full_from >= first {
            self.full_from = self.full_from.max(end);
        }
    }

    /// Records that content served by the peer from `first` on was dropped for lack of space here,
    /// so it must be requested again.
    pub fn dropped_from(&mut self, first: u64) {
        self.dropped_from = Some(self.dropped_from.map_or(first, |before| before.min(first)));
        self.rescanning = false;
    }

    /// Returns when to scan again, if a round was postponed.
    #[must_use]
    pub fn retry_at_ms(&self) -> Option<u64> {
        self.retry_at_ms
    }

    /// Returns up to which index the peer has provided everything it is willing to provide; `None`
    /// until this round has scanned everything before `size`.
    #[must_use]
    pub fn settled(&self, size: u64) -> Option<u64> {
        (self.cursor >= size).then(|| self.dropped_from.map_or(size, |first| first.min(size)))
    }

    fn end_round(&mut self, size: u64, now_ms: u64, pause_ms: impl FnOnce(u32) -> u64) {
        if self.received_entries > 0 {
            self.attempt = 0;
        }
        if std::mem::take(&mut self.rescanning) {
            self.dropped_from = None;
        }
        if self.requested_entries > self.received_entries {
            self.back_off(now_ms, pause_ms);
        }
        (self.cursor, self.requested_entries, self.received_entries) = (size, 0, 0);
        self.full_from = self.full_to;
    }

    /// Returns the first ranges from the cursor on that are worth requesting.
    fn find<E>(
        &mut self,
        settled: u64,
        context: BackfillContext,
        mut not_held: impl FnMut(u64) -> Result<NotHeld, E>,
    ) -> Result<Option<BackfillRanges>, E> {
        let mut next = self.cursor;
        loop {
            let held = not_held(next)?;
            let Some((last, _)) = held.last() else { return Ok(None) };
            let end = last.end;
            let full = self.full_from..self.full_to;
            let skipped_from = &mut self.skipped_from;
            let requested_entries = |(range, reason): (Range<u64>, Undisclosed)| {
                let range = range.start.max(next)..range.end;
                let unfollowed = context.all_topics && reason == Undisclosed::Unfollowed;
                match reason {
                    _ if is_missing(reason, context.own) || unfollowed => {
                        if full.contains(&range.start) {
                            return Some(range);
                        }
                        if range.start < settled {
                            skipped_from.get_or_insert(range.start);
                        }
                        Some(range.start.max(settled)..range.end)
                    }
                    Undisclosed::NotHeld
                    | Undisclosed::Unknown
                    | Undisclosed::Withheld
                    | Undisclosed::Unfollowed
                    | Undisclosed::TooLarge
                    | Undisclosed::NotUnderstood => Some(range.start.max(full.start)..range.end.min(full.end)),
                    // Purged: nobody holds it any more. Excluded: it is not for this member,
                    // although the peer sent it.
                    Undisclosed::Purged | Undisclosed::Excluded => None,
                }
                .filter(|range| !range.is_empty())
            };
            let ranges: Vec<Range<u64>> = held.into_iter().filter_map(requested_entries).collect();
            if !ranges.is_empty() {
                return Ok(Some(BackfillRanges { ranges, end }));
            }
            next = end;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::convert::Infallible;

    use super::*;

    struct Case {
        held: NotHeld,
        requested: BackfillState,
        size: u64,
        own: bool,
        now_ms: u64,
    }

    impl Case {
        fn new(reasons: &[Undisclosed]) -> Self {
            let mut case =
                Self { held: Vec::new(), requested: BackfillState::default(), size: 0, own: false, now_ms: 0 };
            reasons.iter().for_each(|reason| case.push(*reason));
            case
        }

        fn push(&mut self, reason: Undisclosed) {
            self.held.push((self.size..self.size + 1, reason));
            self.size += 1;
        }

        /// Sends the next request, if any, and responds to it with no content.
        fn request(&mut self, owner: bool) -> Vec<u64> {
            self.request_when(0, owner)
        }

        fn request_when(&mut self, settled: u64, owner: bool) -> Vec<u64> {
            let context =
                BackfillContext { size: self.size, roster: 1, settled, owner, own: self.own, all_topics: true };
            let after = |from: u64| {
                Ok::<NotHeld, Infallible>(self.held.iter().filter(|(range, _)| range.start >= from).cloned().collect())
            };
            let Ok(ranges_found) = self.requested.next(context, self.now_ms, after, |_| 5_000);
            let Some(ranges_found) = ranges_found else { return Vec::new() };
            self.requested.on_response(&ranges_found, ranges_found.end, 0);
            ranges_found.ranges.into_iter().flatten().collect()
        }
    }

    #[test]
    fn owner_gets_one_request_for_entries_withheld_by_a_relay() {
        let mut case = Case::new(&[Undisclosed::Withheld]);
        assert_eq!(case.request(true), [0], "the first round");
        assert!(case.request(true).is_empty());
        case.now_ms = 5_000;
        assert!(case.request(true).is_empty(), "the owner withheld it");
        // The owner is unreachable and a relay withholds entry 1; then the owner itself withholds
        // entry 2.
        case.push(Undisclosed::Withheld);
        assert_eq!(case.request(true), [1]);
        case.push(Undisclosed::Withheld);
        case.requested.on_batch(2, 3, 0);
        case.now_ms = 20_000;
        assert!(case.request(true).is_empty());
    }

    #[test]
    fn relay_gets_another_request_only_for_entries_it_did_not_hold() {
        let mut case = Case::new(&[
            Undisclosed::Withheld,
            Undisclosed::NotHeld,
            Undisclosed::Unknown,
            Undisclosed::Purged,
            Undisclosed::Unfollowed,
        ]);
        assert_eq!(case.request(false), [0, 1, 2, 4]);
        assert!(case.request(false).is_empty());
        case.now_ms = 5_000;
        case.push(Undisclosed::Withheld);
        let again = "also entries whose reason is of a later version, and entries not followed on receipt";
        assert_eq!(case.request(false), [1, 2, 4], "{again}");
    }

    #[test]
    fn peer_without_content_gets_another_request_after_a_pause() {
        let mut case = Case::new(&[Undisclosed::NotHeld]);
        assert_eq!(case.request(false), [0]);
        assert!(case.request(false).is_empty());
        case.now_ms = 5_000;
        assert_eq!(case.request(false), [0]);
        assert!(case.request(false).is_empty());
        let mut case = Case::new(&[]);
        assert!(case.request(false).is_empty());
        case.push(Undisclosed::NotHeld);
        case.requested.on_batch(0, 1, 1);
        assert!(case.request(false).is_empty(), "its batch has just marked the entry as not held");
        case.now_ms = 5_000;
        assert_eq!(case.request(false), [0]);
    }

    #[test]
    fn entries_lost_by_the_owner_are_requested_again_after_joint_batches() {
        let mut case = Case::new(&[]);
        assert!(case.request(true).is_empty());
        case.push(Undisclosed::Excluded);
        case.push(Undisclosed::NotHeld);
        // Two batches become durable together; each covers its own entries only.
        case.requested.on_batch(0, 1, 0);
        case.requested.on_batch(1, 2, 1);
        assert!(case.request(true).is_empty(), "its batch has just marked the entry as not held");
        case.now_ms = 5_000;
        assert_eq!(case.request(true), [1]);
    }

    #[test]
    fn content_dropped_for_want_of_space_is_requested_from_the_owner_again() {
        let mut case = Case::new(&[Undisclosed::Withheld]);
        assert_eq!(case.request(true), [0]);
        case.now_ms = 5_000;
        assert!(case.request(true).is_empty());
        assert_eq!(case.requested.settled(1), Some(1));
        case.push(Undisclosed::NotHeld);
        case.requested.on_batch(1, 2, 1);
        case.requested.dropped_from(1);
        assert!(case.request(true).is_empty(), "not immediately");
        assert_eq!(case.requested.settled(2), Some(1), "other peers may be asked while the owner is unreachable");
        case.now_ms = 10_000;
        assert_eq!(case.request(true), [1]);
        assert!(case.request(true).is_empty());
        assert_eq!(case.requested.settled(2), Some(2), "requested again by now");
    }

    #[test]
    fn own_entries_are_requested_from_every_peer() {
        let mut case = Case::new(&[]);
        assert!(case.request(false).is_empty());
        case.own = true;
        case.push(Undisclosed::Withheld);
        assert_eq!(case.request(false), [0]);
        assert!(case.request(false).is_empty());
        case.now_ms = 5_000;
        assert_eq!(case.request(false), [0], "again");
        assert!(is_missing(Undisclosed::Withheld, true) && !is_missing(Undisclosed::Withheld, false));
    }

    #[test]
    fn entries_withheld_by_the_owner_are_requested_after_its_epoch_closed() {
        let mut case = Case::new(&[]);
        assert!(case.request(false).is_empty());
        case.push(Undisclosed::NotHeld);
        assert!(case.request_when(1, false).is_empty(), "not for this member");
        assert!(case.request_when(1, false).is_empty());
        assert_eq!(case.request_when(0, false), [0], "the owner may have lost it");
    }
}
