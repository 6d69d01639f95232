//! What to ask a peer for, of entries whose content is missing here, and when again.
//!
//! In scope: which entries held as digests are worth asking one peer for ([`Asked`], one for each peer and feed). Pure: time, pauses and what
//! is held come in. Out of scope: asking, and taking what comes ([`crate::follow::verify_fills`]).
//!
//! A round goes over a feed once, from its beginning. The first round with a peer under a roster asks for everything that is held as a digest;
//! so what was withheld wrongly is found, and who joined later gets its history. After that only what came without content from a relay
//! is asked for, as it comes; what a peer did not give is asked for again after a pause that grows, and not at all once the feed's
//! owner has been asked.

use std::ops::Range;

use crate::names::Undisclosed;

/// Ranges held as digests, ascending, with the reason.
pub type NotHeld = Vec<(Range<u64>, Undisclosed)>;

/// What was asked of one peer of one feed.
#[derive(Clone, Debug, Default)]
pub struct Asked {
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
    retry_at_ms: Option<u64>,
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
    /// Up to where the feed's owner was asked under this roster: what it did not give is not ours. 0 if the peer is the owner.
    pub settled: u64,
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
        match self.retry_at_ms {
            Some(at) if now_ms < at => return Ok(None),
            Some(_) => (self.cursor, self.retry_at_ms) = (0, None),
            None => {}
        }
        let found = self.find(stand.settled, not_held)?;
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

    /// The peer served the feed up to `end` itself, from `first` on: it has just said what it has of these.
    pub fn served(&mut self, first: u64, end: u64) {
        if self.cursor >= first {
            self.cursor = self.cursor.max(end);
        }
    }

    /// When to look again, if something was put off.
    #[must_use]
    pub fn retry_at_ms(&self) -> Option<u64> {
        self.retry_at_ms
    }

    /// Whether everything before `size` has been looked at in this round.
    #[must_use]
    pub fn has_looked_to(&self, size: u64) -> bool {
        self.cursor >= size
    }

    fn end_round(&mut self, size: u64, now_ms: u64, pause_ms: impl FnOnce(u32) -> u64) {
        if self.got > 0 {
            self.attempt = 0;
        }
        if self.wanted > self.got {
            self.put_off(now_ms, pause_ms);
        }
        (self.cursor, self.full_to, self.wanted, self.got) = (size, 0, 0, 0);
    }

    /// The first ranges from the cursor on that are worth asking for.
    fn find<E>(
        &self,
        settled: u64,
        mut not_held: impl FnMut(u64) -> Result<NotHeld, E>,
    ) -> Result<Option<Found>, E> {
        let mut next = self.cursor;
        loop {
            let held = not_held(next)?;
            let Some((last, _)) = held.last() else { return Ok(None) };
            let end = last.end;
            let wanted = |(range, reason): (Range<u64>, Undisclosed)| {
                let range = range.start.max(next)..range.end;
                match reason {
                    Undisclosed::NotHeld if range.start < self.full_to => Some(range),
                    Undisclosed::NotHeld => Some(range.start.max(settled)..range.end),
                    Undisclosed::Withheld
                    | Undisclosed::Unfollowed
                    | Undisclosed::TooLarge
                    | Undisclosed::NotUnderstood
                    | Undisclosed::Unknown => Some(range.start..range.end.min(self.full_to)),
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
