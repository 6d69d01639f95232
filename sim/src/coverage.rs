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
    "consistency requested",
    "consistency proved a fork",
    "cosigned",
    "crash",
    "crash after commit, before the high-water mark",
    "crash after commit, before the receipt",
    "crash while opening an epoch",
    "delivered",
    "needs recovery: high-water mark ahead of the store",
    "needs recovery: high-water mark missing",
    "needs recovery: store empty",
    "entry found: excluded",
    "entry found: misdirected",
    "entry found: newer-roster",
    "entry found: not-understood",
    "entry found: undecodable-header",
    "entry found: wrongly-withheld",
    "epoch opened",
    "epoch opened without all peers",
    "end of an epoch announced again",
    "exchange of 20 members or more",
    "priority stale",
    "priority before its roster",
    "priority stored ahead of its feed",
    "priority duplicate",
    "priority in time",
    "priority in time, before the backlog",
    "priority without content, dropped",
    "priority outlived its feed",
    "priority ignored",
    "priority reached by its feed",
    "priority rejected",
    "priority rejected: disk full",
    "priority sent",
    "priority sent by a relay",
    "priority rejected: no capacity",
    "backfilled",
    "backfilled by a member other than the owner",
    "backfill rejected",
    "flood: entry",
    "flood: up to a share's limit",
    "flood: up to a tier's limit",
    "fork detected by comparison",
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
    "own feed fetched from a peer",
    "owner behind a relay",
    "pair severed permanently",
    "partition",
    "published",
    "queue full",
    "relay replaced by another",
    "relayed",
    "restored from a backup",
    "retry found the first receipt",
    "disk space: content dropped, low tier",
    "disk space: content dropped, the owner's share",
    "disk space: content dropped, the relay's share",
    "disk space: content accepted from a relay",
    "disk space: backfill over a share",
    "disk space: own entry rejected",
    "disk space: own urgent entry in the reserve",
    "disk space: urgent content dropped",
    "roster adopted from a peer",
    "roster rejected",
    "started alone",
    "store lost",
    "topics widened",
    "torn tail",
    "conflicting entry in a batch",
    "conflicting priority entry",
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
