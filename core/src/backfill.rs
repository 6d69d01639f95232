//! What to ask a peer for, of entries whose content is missing here, and when again.
//!
//! In scope: which entries held as digests are worth asking one peer for ([`BackfillState`], one for each peer and feed). Pure: time, pauses and what
//! is held come in. Out of scope: asking, and taking what comes ([`crate::follow::verify_backfills`]).
//!
//! A round goes over a feed once, from its beginning. The first round with a peer under a roster asks for everything that is held as a digest;
//! so what was withheld wrongly is found, and who joined later gets its history. After that only what came without content from a relay
//! is asked for, as it comes; what a peer did not give is asked for again after a pause that grows, and not at all once the feed's
//! owner has been asked. The owner alone is asked once for everything that it did not serve itself: a relay may have withheld it wrongly.

use std::ops::Range;

use crate::ids::{FeedId, Undisclosed};

/// Ranges held as digests, ascending, with the reason.
pub type NotHeld = Vec<(Range<u64>, Undisclosed)>;

/// What was asked of one peer of one feed.
#[derive(Clone, Debug, Default)]
pub struct BackfillState {
    /// The newest roster of this round.
    roster: u64,
    /// Between these everything is asked for, whatever the reason.
    full_from: u64,
    full_to: u64,
    /// Next index to look at.
    cursor: u64,
    /// Entries asked for and got in this round.
    requested_entries: u64,
    received_entries: u64,
    attempt: u32,
    retry_at_ms: Option<u64>,
    /// The first entry that was left out because its owner had been asked.
    skipped_from: Option<u64>,
    /// The peer served content from here on that was not taken, and whether this round has gone over it again since.
    dropped_from: Option<u64>,
    rescanning: bool,
}

/// What to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackfillRanges {
    /// Ascending, not empty.
    pub ranges: Vec<Range<u64>>,
    /// Everything before this index has been looked at here.
    pub end: u64,
}

/// Where a feed stands here.
#[derive(Clone, Copy, Debug)]
pub struct BackfillContext {
    /// Entries held, in full or as digests.
    pub size: u64,
    /// Version of the newest roster.
    pub roster: u64,
    /// Up to where the feed's owner was asked under this roster: what it did not give is not ours. 0 for an epoch that is over: its owner may have
    /// lost what it said there.
    pub settled: u64,
    /// Whether the peer is the feed's owner.
    pub owner: bool,
    /// Whether the feed is this member's own: nobody may keep it from us.
    pub own: bool,
    /// Whether every topic is wanted: then what once was not is missing like anything else.
    pub all_topics: bool,
}

/// Whether content that came as a digest for this reason may be had of others, or later: the sender did not hold it, or gave a reason of a later
/// version, which is none to be content with. Of our `own` feed nobody may withhold anything.
#[must_use]
pub fn is_missing(reason: Undisclosed, own: bool) -> bool {
    match reason {
        Undisclosed::NotHeld | Undisclosed::Unknown => true,
        Undisclosed::Withheld | Undisclosed::Unfollowed => own,
        Undisclosed::TooLarge | Undisclosed::NotUnderstood | Undisclosed::Purged | Undisclosed::Excluded => false,
    }
}

/// Puts feeds, ascending by `feed_of`, in the order in which a peer is asked about them: first those after the one that it was asked about
/// `last`. So none waits behind others of which there is always something to ask again.
pub fn rotate_feeds<T>(feeds: &mut [T], feed_of: impl Fn(&T) -> &FeedId, last: Option<&FeedId>) {
    if let Some(last) = last {
        let after = feeds.partition_point(|feed| feed_of(feed) <= last);
        feeds.rotate_left(after);
    }
}

impl BackfillState {
    /// What to ask for next; `None`: nothing, until [`Self::retry_at_ms`] or until something changes. `not_held` gives what is held as digests
    /// from an index on, some of it at least; `pause_ms` how long to wait after so many attempts in vain.
    ///
    /// # Errors
    /// What `not_held` says.
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

    /// The peer has looked at everything before `scanned_to` of what it was `requested` for, and gave `received_entries` entries that were lacking.
    pub fn on_response(&mut self, requested: &BackfillRanges, scanned_to: u64, received_entries: u64) {
        let last = requested.ranges.last().map_or(0, |range| range.end);
        let left =
            requested.ranges.iter().map(|range| range.end.saturating_sub(range.start.max(scanned_to))).sum::<u64>();
        let all = requested.ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        // One that looked at nothing is not asked for the same again.
        let unscanned = if left == all { 0 } else { left };
        self.requested_entries += all - unscanned;
        self.received_entries += received_entries;
        self.cursor = if scanned_to >= last || left == all { requested.end } else { scanned_to };
    }

    /// The peer did not answer, or not rightly: the rest of the round is put off.
    pub fn back_off(&mut self, now_ms: u64, pause_ms: impl FnOnce(u32) -> u64) {
        self.retry_at_ms = Some(now_ms.saturating_add(pause_ms(self.attempt)));
        self.attempt = self.attempt.saturating_add(1);
    }

    /// What was put off is asked for at once: what stood in the way here is gone.
    pub fn retry_now(&mut self) {
        if self.retry_at_ms.is_some() {
            (self.retry_at_ms, self.attempt) = (Some(0), 0);
        }
    }

    /// A batch of the peer's has become durable, which told of the entries from `first` on up to `end`, and of no others: it has just said what
    /// it has of these. `missing` of them it did not hold itself, and may hold later.
    pub fn on_batch(&mut self, first: u64, end: u64, missing: u64) {
        if self.cursor >= first && self.cursor < end {
            self.cursor = end;
            self.requested_entries += missing;
        }
        if self.full_from >= first {
            self.full_from = self.full_from.max(end);
        }
    }

    /// Of what the peer served from `first` on, content was not taken for want of room here: it has not been asked for that yet.
    pub fn dropped_from(&mut self, first: u64) {
        self.dropped_from = Some(self.dropped_from.map_or(first, |before| before.min(first)));
        self.rescanning = false;
    }

    /// When to look again, if something was put off.
    #[must_use]
    pub fn retry_at_ms(&self) -> Option<u64> {
        self.retry_at_ms
    }

    /// Up to where the peer has given what it would, once everything before `size` has been looked at in this round.
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

    /// The first ranges from the cursor on that are worth asking for.
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
                    // Nobody has it any more; or it is not ours, and was sent to us all the same.
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

        /// Asks, and is given nothing.
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
    fn owner_is_asked_once_for_entries_withheld_by_a_relay() {
        let mut case = Case::new(&[Undisclosed::Withheld]);
        assert_eq!(case.request(true), [0], "the first round");
        assert!(case.request(true).is_empty());
        case.now_ms = 5_000;
        assert!(case.request(true).is_empty(), "the owner withheld it");
        // The owner is away, and a relay says that the next one is not for us; then the owner itself says so of a third.
        case.push(Undisclosed::Withheld);
        assert_eq!(case.request(true), [1]);
        case.push(Undisclosed::Withheld);
        case.requested.on_batch(2, 3, 0);
        case.now_ms = 20_000;
        assert!(case.request(true).is_empty());
    }

    #[test]
    fn relay_is_asked_again_only_for_entries_it_did_not_hold() {
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
    fn peer_without_content_is_asked_again_after_a_pause() {
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
        // Two batches become durable together: each tells of its own entries only.
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
