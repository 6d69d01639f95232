//! What to ask a peer for, of entries whose content is missing here, and when again.
//!
//! In scope: which entries held as digests are worth asking one peer for ([`Asked`], one for each peer and feed). Pure: time, pauses and what
//! is held come in. Out of scope: asking, and taking what comes ([`crate::follow::verify_fills`]).
//!
//! A round goes over a feed once, from its beginning. The first round with a peer under a roster asks for everything that is held as a digest;
//! so what was withheld wrongly is found, and who joined later gets its history. After that only what came without content from a relay
//! is asked for, as it comes; what a peer did not give is asked for again after a pause that grows, and not at all once the feed's
//! owner has been asked. The owner alone is asked once for everything that it did not serve itself: a relay may have withheld it wrongly.

use std::ops::Range;

use crate::names::{FeedId, Undisclosed};

/// Ranges held as digests, ascending, with the reason.
pub type NotHeld = Vec<(Range<u64>, Undisclosed)>;

/// What was asked of one peer of one feed.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The newest roster of this round.
    roster: u64,
    /// Between these everything is asked for, whatever the reason.
    full_from: u64,
    full_to: u64,
    /// Next index to look at.
    cursor: u64,
    /// Entries asked for and got in this round.
    wanted: u64,
    got: u64,
    attempt: u32,
    retry_at_ms: Option<u64>,
    /// The first entry that was left out because its owner had been asked.
    left_out: Option<u64>,
    /// The peer served content from here on that was not taken, and whether this round has gone over it again since.
    not_taken: Option<u64>,
    goes_again: bool,
}

/// What to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Ascending, not empty.
    pub ranges: Vec<Range<u64>>,
    /// Everything before this index has been looked at here.
    pub end: u64,
}

/// Where a feed stands here.
#[derive(Clone, Copy, Debug)]
pub struct Stand {
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
    pub everything: bool,
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
pub fn take_turns<T>(feeds: &mut [T], feed_of: impl Fn(&T) -> &FeedId, last: Option<&FeedId>) {
    if let Some(last) = last {
        let after = feeds.partition_point(|feed| feed_of(feed) <= last);
        feeds.rotate_left(after);
    }
}

impl Asked {
    /// What to ask for next; `None`: nothing, until [`Self::retry_at_ms`] or until something changes. `not_held` gives what is held as digests
    /// from an index on, some of it at least; `pause_ms` how long to wait after so many attempts in vain.
    ///
    /// # Errors
    /// What `not_held` says.
    pub fn next<E>(
        &mut self,
        stand: Stand,
        now_ms: u64,
        not_held: impl FnMut(u64) -> Result<NotHeld, E>,
        pause_ms: impl FnOnce(u32) -> u64,
    ) -> Result<Option<Found>, E> {
        if self.roster != stand.roster {
            *self = Self { roster: stand.roster, full_to: stand.size, ..Self::default() };
        }
        if stand.owner {
            self.full_to = stand.size;
        }
        match self.retry_at_ms {
            Some(at) if now_ms < at => return Ok(None),
            Some(_) => (self.cursor, self.retry_at_ms, self.goes_again) = (0, None, true),
            None => {}
        }
        let settled = if stand.owner { 0 } else { stand.settled };
        if let Some(index) = self.left_out.take_if(|index| settled <= *index) {
            self.cursor = self.cursor.min(index);
        }
        let found = self.find(settled, stand, not_held)?;
        if found.is_none() {
            self.end_round(stand.size, now_ms, pause_ms);
        }
        Ok(found)
    }

    /// The peer has looked at everything before `through` of what it was `asked` for, and gave `got` entries that were lacking.
    pub fn answered(&mut self, asked: &Found, through: u64, got: u64) {
        let last = asked.ranges.last().map_or(0, |range| range.end);
        let left = asked.ranges.iter().map(|range| range.end.saturating_sub(range.start.max(through))).sum::<u64>();
        let all = asked.ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        // One that looked at nothing is not asked for the same again.
        let looked = if left == all { 0 } else { left };
        self.wanted += all - looked;
        self.got += got;
        self.cursor = if through >= last || left == all { asked.end } else { through };
    }

    /// The peer did not answer, or not rightly: the rest of the round is put off.
    pub fn put_off(&mut self, now_ms: u64, pause_ms: impl FnOnce(u32) -> u64) {
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
    /// it has of these. `lacked` of them it did not hold itself, and may hold later.
    pub fn served(&mut self, first: u64, end: u64, lacked: u64) {
        if self.cursor >= first && self.cursor < end {
            self.cursor = end;
            self.wanted += lacked;
        }
        if self.full_from >= first {
            self.full_from = self.full_from.max(end);
        }
    }

    /// Of what the peer served from `first` on, content was not taken for want of room here: it has not been asked for that yet.
    pub fn not_taken(&mut self, first: u64) {
        self.not_taken = Some(self.not_taken.map_or(first, |before| before.min(first)));
        self.goes_again = false;
    }

    /// When to look again, if something was put off.
    #[must_use]
    pub fn retry_at_ms(&self) -> Option<u64> {
        self.retry_at_ms
    }

    /// Up to where the peer has given what it would, once everything before `size` has been looked at in this round.
    #[must_use]
    pub fn settled(&self, size: u64) -> Option<u64> {
        (self.cursor >= size).then(|| self.not_taken.map_or(size, |first| first.min(size)))
    }

    fn end_round(&mut self, size: u64, now_ms: u64, pause_ms: impl FnOnce(u32) -> u64) {
        if self.got > 0 {
            self.attempt = 0;
        }
        if std::mem::take(&mut self.goes_again) {
            self.not_taken = None;
        }
        if self.wanted > self.got {
            self.put_off(now_ms, pause_ms);
        }
        (self.cursor, self.wanted, self.got) = (size, 0, 0);
        self.full_from = self.full_to;
    }

    /// The first ranges from the cursor on that are worth asking for.
    fn find<E>(
        &mut self,
        settled: u64,
        stand: Stand,
        mut not_held: impl FnMut(u64) -> Result<NotHeld, E>,
    ) -> Result<Option<Found>, E> {
        let mut next = self.cursor;
        loop {
            let held = not_held(next)?;
            let Some((last, _)) = held.last() else { return Ok(None) };
            let end = last.end;
            let full = self.full_from..self.full_to;
            let left_out = &mut self.left_out;
            let wanted = |(range, reason): (Range<u64>, Undisclosed)| {
                let range = range.start.max(next)..range.end;
                let unfollowed = stand.everything && reason == Undisclosed::Unfollowed;
                match reason {
                    _ if is_missing(reason, stand.own) || unfollowed => {
                        if full.contains(&range.start) {
                            return Some(range);
                        }
                        if range.start < settled {
                            left_out.get_or_insert(range.start);
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
            let ranges: Vec<Range<u64>> = held.into_iter().filter_map(wanted).collect();
            if !ranges.is_empty() {
                return Ok(Some(Found { ranges, end }));
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
        asked: Asked,
        size: u64,
        own: bool,
        now_ms: u64,
    }

    impl Case {
        fn new(reasons: &[Undisclosed]) -> Self {
            let mut case = Self { held: Vec::new(), asked: Asked::default(), size: 0, own: false, now_ms: 0 };
            reasons.iter().for_each(|reason| case.comes(*reason));
            case
        }

        fn comes(&mut self, reason: Undisclosed) {
            self.held.push((self.size..self.size + 1, reason));
            self.size += 1;
        }

        /// Asks, and is given nothing.
        fn asks(&mut self, owner: bool) -> Vec<u64> {
            self.asks_when(0, owner)
        }

        fn asks_when(&mut self, settled: u64, owner: bool) -> Vec<u64> {
            let stand = Stand { size: self.size, roster: 1, settled, owner, own: self.own, everything: true };
            let after = |from: u64| {
                Ok::<NotHeld, Infallible>(self.held.iter().filter(|(range, _)| range.start >= from).cloned().collect())
            };
            let Ok(found) = self.asked.next(stand, self.now_ms, after, |_| 5_000);
            let Some(found) = found else { return Vec::new() };
            self.asked.answered(&found, found.end, 0);
            found.ranges.into_iter().flatten().collect()
        }
    }

    #[test]
    fn the_owner_is_asked_once_for_what_a_relay_withheld() {
        let mut case = Case::new(&[Undisclosed::Withheld]);
        assert_eq!(case.asks(true), [0], "the first round");
        assert!(case.asks(true).is_empty());
        case.now_ms = 5_000;
        assert!(case.asks(true).is_empty(), "it did not give it: it is not ours");
        // The owner is away, and a relay says that the next one is not for us; then the owner itself says so of a third.
        case.comes(Undisclosed::Withheld);
        assert_eq!(case.asks(true), [1]);
        case.comes(Undisclosed::Withheld);
        case.asked.served(2, 3, 0);
        case.now_ms = 20_000;
        assert!(case.asks(true).is_empty());
    }

    #[test]
    fn a_relay_is_asked_again_for_what_it_lacked_only() {
        let mut case = Case::new(&[
            Undisclosed::Withheld,
            Undisclosed::NotHeld,
            Undisclosed::Unknown,
            Undisclosed::Purged,
            Undisclosed::Unfollowed,
        ]);
        assert_eq!(case.asks(false), [0, 1, 2, 4]);
        assert!(case.asks(false).is_empty());
        case.now_ms = 5_000;
        case.comes(Undisclosed::Withheld);
        let again = "also what is missing for a reason of a later version, or was not wanted when it came";
        assert_eq!(case.asks(false), [1, 2, 4], "{again}");
    }

    #[test]
    fn who_serves_without_content_is_asked_when_it_may_have_it() {
        let mut case = Case::new(&[Undisclosed::NotHeld]);
        assert_eq!(case.asks(false), [0]);
        assert!(case.asks(false).is_empty());
        case.now_ms = 5_000;
        assert_eq!(case.asks(false), [0]);
        assert!(case.asks(false).is_empty());
        let mut case = Case::new(&[]);
        assert!(case.asks(false).is_empty());
        case.comes(Undisclosed::NotHeld);
        case.asked.served(0, 1, 1);
        assert!(case.asks(false).is_empty(), "it has just said that it does not hold it");
        case.now_ms = 5_000;
        assert_eq!(case.asks(false), [0]);
    }

    #[test]
    fn what_an_owner_lost_is_asked_of_it_again_though_its_batches_came_at_once() {
        let mut case = Case::new(&[]);
        assert!(case.asks(true).is_empty());
        case.comes(Undisclosed::Excluded);
        case.comes(Undisclosed::NotHeld);
        // Two batches become durable together: each tells of its own entries only.
        case.asked.served(0, 1, 0);
        case.asked.served(1, 2, 1);
        assert!(case.asks(true).is_empty(), "it has just said that it does not hold it");
        case.now_ms = 5_000;
        assert_eq!(case.asks(true), [1]);
    }

    #[test]
    fn an_owner_has_not_been_asked_for_content_that_was_not_taken_of_it() {
        let mut case = Case::new(&[Undisclosed::Withheld]);
        assert_eq!(case.asks(true), [0]);
        case.now_ms = 5_000;
        assert!(case.asks(true).is_empty());
        assert_eq!(case.asked.settled(1), Some(1));
        case.comes(Undisclosed::NotHeld);
        case.asked.served(1, 2, 1);
        case.asked.not_taken(1);
        assert!(case.asks(true).is_empty(), "not at once");
        assert_eq!(case.asked.settled(2), Some(1), "others may be asked for it while the owner is away");
        case.now_ms = 10_000;
        assert_eq!(case.asks(true), [1]);
        assert!(case.asks(true).is_empty());
        assert_eq!(case.asked.settled(2), Some(2), "now it has been");
    }

    #[test]
    fn what_is_ours_is_asked_of_all_whatever_one_says_of_it() {
        let mut case = Case::new(&[]);
        assert!(case.asks(false).is_empty());
        case.own = true;
        case.comes(Undisclosed::Withheld);
        assert_eq!(case.asks(false), [0]);
        assert!(case.asks(false).is_empty());
        case.now_ms = 5_000;
        assert_eq!(case.asks(false), [0], "again");
        assert!(is_missing(Undisclosed::Withheld, true) && !is_missing(Undisclosed::Withheld, false));
    }

    #[test]
    fn what_the_owner_did_not_give_is_asked_for_once_its_epoch_is_over() {
        let mut case = Case::new(&[]);
        assert!(case.asks(false).is_empty());
        case.comes(Undisclosed::NotHeld);
        assert!(case.asks_when(1, false).is_empty(), "it is not ours");
        assert!(case.asks_when(1, false).is_empty());
        assert_eq!(case.asks_when(0, false), [0], "the owner may have lost it");
    }
}
