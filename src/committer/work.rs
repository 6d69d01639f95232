//! What is handed to the committer, and what becomes of it.
//!
//! In scope: the values. Out of scope: in which order work is done (`queue`), and doing it
//! (`writer`).

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

/// What became of one bulletin.
#[derive(Clone, Debug)]
pub enum PublishOutcome {
    /// Appended by this commit.
    New {
        /// Its place.
        index: u64,
        /// Its offset at this node.
        offset: u64,
    },
    /// Its id is taken, by an earlier commit.
    Duplicate(Location),
    /// Its id is taken by another bulletin of the same group.
    DuplicateInGroup,
}

/// A group that is durable.
#[derive(Clone, Debug)]
pub struct PublishedGroup {
    /// One for each bulletin, in their order.
    pub outcomes: Vec<PublishOutcome>,
    /// Checkpoint that includes them all.
    pub checkpoint: SignedCheckpoint,
}

/// What a batch of a peer's feed became.
#[derive(Clone, Copy, Debug)]
pub struct Appended {
    /// Entries held now.
    pub size: u64,
    /// Entries whose content came and was not taken: there is no room for it, or its owner, or who
    /// sent it, is over its share.
    pub reduced: u64,
}

/// What content that came late became.
#[derive(Clone, Debug)]
pub struct Backfilled {
    /// Entries that are held in full now and were not before.
    pub entries: u64,
    /// Our custody notes for the feed's owner.
    pub custody: Vec<Bytes>,
}

/// Content for entries held as digests, and what else is held as digests about there.
#[derive(Clone, Debug)]
pub struct BackfillWork {
    /// Verified content.
    pub backfill: VerifiedBackfills,
    /// Ranges held as digests between the first and the last of its entries, before it came; at
    /// least these.
    pub not_held: Vec<(Range<u64>, Undisclosed)>,
}

/// Answers and other facts to keep.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// Verified cosigned notes.
    pub cosigned: Vec<Cosigned>,
    /// Verified custody notes.
    pub custody: Vec<CustodyRecord>,
    /// Progress of named subscriptions.
    pub cursors: Vec<CursorRecord>,
    /// Names of subscriptions that are given, given anew or removed. Whoever changes one name does
    /// so one call at a time.
    pub subscriptions: Vec<SubscriptionRecord>,
    /// Verified rosters.
    pub rosters: Vec<RosterRecord>,
    /// Verified revocation lists, DER.
    pub crls: Vec<CrlRecord>,
    /// Feeds of which two histories were seen, and decisions about them.
    pub forks: Vec<ForkRecord>,
}

impl Records {
    /// Bytes of what is kept, without what frames it.
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
    /// Entries, and bytes of their envelopes.
    pub(super) fn size(&self) -> (usize, usize) {
        match self {
            Self::Publish(group, ..) => (group.len(), group.iter().map(|bulletin| bulletin.envelope.len()).sum()),
            Self::Append(batch, ..) => (batch.entries.len(), batch.envelope_bytes()),
            Self::Backfill(backfill_work, ..) => {
                (backfill_work.backfill.entries.len(), backfill_work.backfill.envelope_bytes())
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
