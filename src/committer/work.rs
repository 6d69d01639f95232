//! Work items of the committer and their results.
//!
//! In scope: the types. Out of scope: the order of work (`queue`), and committing it (`writer`).

use std::ops::Range;

use barid_core::bulletin::ValidBulletin;
use barid_core::feed::checkpoint::SignedCheckpoint;
use barid_core::follow::{VerifiedBackfills, VerifiedBatch, VerifiedPriority};
use barid_core::ids::Undisclosed;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::CommitFailure;
use super::priority::PriorityOutcome;
use crate::store::{
    Cosigned, CrlRecord, CursorRecord, CustodyRecord, ForkRecord, Location, RosterRecord, SubscriptionRecord,
};

/// Result for one bulletin.
#[derive(Clone, Debug)]
pub enum PublishOutcome {
    /// Appended by this commit.
    New {
        /// Its entry index.
        index: u64,
        /// Its offset at this node.
        offset: u64,
    },
    /// Its id was used by an earlier commit.
    Duplicate(Location),
    /// Its id was used by another bulletin of the same group or commit.
    DuplicateInCommit,
}

/// Result of publishing a group, which is durable.
#[derive(Clone, Debug)]
pub struct PublishedGroup {
    /// One for each bulletin, in order.
    pub outcomes: Vec<PublishOutcome>,
    /// Checkpoint that includes them all.
    pub checkpoint: SignedCheckpoint,
}

/// Result of appending a batch of a peer's feed.
#[derive(Clone, Copy, Debug)]
pub struct Appended {
    /// Entries held now.
    pub size: u64,
    /// Entries whose content was received but not stored: there is no space for it, or its owner or
    /// its sender is over its share.
    pub reduced: u64,
}

/// Result of a backfill.
#[derive(Clone, Debug)]
pub struct Backfilled {
    /// Entries that are now held in full and were not before.
    pub entries: u64,
    /// This node's custody notes for the feed's owner.
    pub custody: Vec<Bytes>,
}

/// Verified content for entries of which only digests are held, and the ranges of digests that it
/// fills.
#[derive(Clone, Debug)]
pub struct BackfillWork {
    /// Verified content.
    pub backfills: VerifiedBackfills,
    /// Ranges held as digests before the backfill; complete at least between its first and its last
    /// entry.
    pub not_held: Vec<(Range<u64>, Undisclosed)>,
}

/// Notes and other records to persist.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// Verified cosigned notes.
    pub cosigned: Vec<Cosigned>,
    /// Verified custody notes.
    pub custody: Vec<CustodyRecord>,
    /// Progress of named subscriptions.
    pub cursors: Vec<CursorRecord>,
    /// Names of subscriptions that are created, created anew or removed. Callers must serialise
    /// changes of one name.
    pub subscriptions: Vec<SubscriptionRecord>,
    /// Verified rosters.
    pub rosters: Vec<RosterRecord>,
    /// Verified revocation lists, DER.
    pub crls: Vec<CrlRecord>,
    /// Forked feeds with their evidence, and operators' decisions about them.
    pub forks: Vec<ForkRecord>,
}

impl Records {
    /// Bytes of the records, without framing.
    pub(super) fn bytes(&self) -> usize {
        self.cosigned.iter().map(|cosigned| cosigned.note.len()).sum::<usize>()
            + self.custody.iter().map(|custody| custody.note.len()).sum::<usize>()
            + self.rosters.iter().map(|roster| roster.note.len()).sum::<usize>()
            + self.crls.iter().map(|crl| crl.der.len()).sum::<usize>()
            + self.forks.iter().map(|fork| fork.evidence.len()).sum::<usize>()
            + self.cursors.iter().map(|cursor| cursor.subscription.len()).sum::<usize>()
            + self
                .subscriptions
                .iter()
                .filter_map(|name| name.state.as_ref()?.filter.as_ref())
                .map(Bytes::len)
                .sum::<usize>()
    }
}

pub(crate) enum Work {
    Publish(Vec<ValidBulletin>, oneshot::Sender<Result<PublishedGroup, CommitFailure>>, Permit),
    Append(Box<VerifiedBatch>, oneshot::Sender<Result<Appended, CommitFailure>>, Permit),
    Priority(Box<VerifiedPriority>, oneshot::Sender<Result<PriorityOutcome, CommitFailure>>, Permit),
    Backfill(Box<BackfillWork>, oneshot::Sender<Result<Backfilled, CommitFailure>>, Permit),
    Records(Records, oneshot::Sender<Result<(), CommitFailure>>, Permit),
    Stop(oneshot::Sender<()>),
}

impl Work {
    /// Returns the number of entries, and the bytes of their envelopes.
    pub(super) fn size(&self) -> (usize, usize) {
        match self {
            Self::Publish(group, ..) => (group.len(), group.iter().map(|bulletin| bulletin.envelope.len()).sum()),
            Self::Append(batch, ..) => (batch.entries.len(), batch.envelope_bytes()),
            Self::Backfill(backfill_work, ..) => {
                (backfill_work.backfills.entries.len(), backfill_work.backfills.envelope_bytes())
            }
            Self::Priority(priority, ..) => (1, priority.envelope().map_or(0, Bytes::len)),
            Self::Records(..) | Self::Stop(_) => (0, 0),
        }
    }
}

pub(crate) type Permit = tokio::sync::OwnedSemaphorePermit;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_and_cursors_count_toward_records_bytes_max() {
        let fork = ForkRecord {
            feed: "ma.rabat.example/feed/1".parse().expect("a feed"),
            evidence: Bytes::from(vec![0; 1_000]),
            resumed: false,
        };
        let cursor = CursorRecord { subscription: "s".repeat(100), offset: 1, held: None, epoch: 1 };
        let records = Records { forks: vec![fork; 3], cursors: vec![cursor; 2], ..Records::default() };
        assert_eq!(records.bytes(), 3_200);
    }
}
