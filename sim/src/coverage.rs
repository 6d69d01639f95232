//! Counts how often each fault, state and branch of interest was reached.

use std::collections::BTreeMap;
use std::fmt;

/// What the few hundred seeds of `cargo test` must reach, each at least once.
pub const MUST_BE_REACHED: &[&str] = &[
    "ack lost, delivered again",
    "audience: later joiner given history",
    "batch rejected: bad-bounds",
    "batch rejected: bad-proof",
    "batch rejected: bad-root",
    "batch rejected: bad-signature",
    "batch rejected: gap",
    "batch rejected: malformed",
    "clock set back",
    "clock too far behind to cosign",
    "commit failed, and was durable",
    "commit failed, and was not",
    "commit rejected: disk full",
    "commit stale",
    "consistency asked",
    "consistency proved a fork",
    "cosigned",
    "crash",
    "crash after commit, before the mark",
    "crash after commit, before the release",
    "crash while an epoch was opened",
    "delivered",
    "needs recovery: the mark is ahead",
    "needs recovery: the mark is missing",
    "needs recovery: the store is empty",
    "entry found: excluded",
    "entry found: misdirected",
    "entry found: newer-roster",
    "entry found: not-understood",
    "entry found: undecodable-header",
    "entry found: wrongly-withheld",
    "epoch opened",
    "epoch opened without everybody",
    "end of an epoch named again",
    "exchange of 20 members or more",
    "priority after its feed",
    "priority before its roster",
    "priority held",
    "priority held before",
    "priority in time",
    "priority in time, before the backlog",
    "priority not kept",
    "priority outlived its feed",
    "priority passed over",
    "priority reached by its feed",
    "priority rejected",
    "priority rejected: disk full",
    "priority sent",
    "priority sent by a relay",
    "priority without room",
    "filled",
    "filled by another member than the owner",
    "backfill rejected",
    "flood: entry",
    "flood: to a share's edge",
    "flood: to a tier's edge",
    "fork known by comparison",
    "fork made",
    "frame damaged",
    "frame lost",
    "frame overtaken",
    "frame repeated",
    "frame unknown",
    "frame unreadable",
    "garbage sent",
    "link down",
    "link one way only",
    "member admitted",
    "member expelled",
    "own feed taken back",
    "owner behind a relay",
    "pair severed for good",
    "partition",
    "published",
    "queue full",
    "relay left for another",
    "relayed",
    "restored from a backup",
    "retry found the first receipt",
    "room: content left out, little is free",
    "room: content left out, the owner's share",
    "room: content left out, the relay's share",
    "room: content taken of a relay",
    "room: content that came later, beyond a share",
    "room: own entry rejected",
    "room: own urgent entry in the reserve",
    "room: urgent content left out",
    "roster adopted from a peer",
    "roster rejected",
    "started alone",
    "store lost",
    "topics widened",
    "torn tail",
    "two entries shown by a batch",
    "two entries shown by priority",
    "window full",
];

/// Counters by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    pub(crate) fn add(&mut self, what: &'static str, times: u64) {
        *self.0.entry(what).or_default() += times;
    }

    /// Adds the counters of other runs.
    pub fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, times)| self.add(what, *times));
    }

    /// Returns one counter.
    #[must_use]
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// Returns the names in [`MUST_BE_REACHED`] that were not reached.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        MUST_BE_REACHED.iter().copied().filter(|what| self.of(what) == 0).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.keys().map(|what| what.len()).max().unwrap_or(0);
        for (what, times) in &self.0 {
            writeln!(f, "{what:width$}  {times:>12}")?;
        }
        Ok(())
    }
}
