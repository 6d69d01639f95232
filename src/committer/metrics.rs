//! Metrics of the committer.

use std::collections::{BTreeMap, BTreeSet};

use barid_core::ids::FeedId;
use tokio::sync::watch;

use super::{Committer, CommitterShared};
use crate::store::{Committed, Content};

impl Committer {
    /// Watches why no entries, own or replicated, are accepted for lack of disk space. `None` while
    /// there is space.
    #[must_use]
    pub fn disk_full(&self) -> watch::Receiver<Option<String>> {
        self.shared.disk_full.subscribe()
    }

    /// Returns the feeds whose local copy conflicts with a cosignature this node made before it
    /// lost its store. It does not attest these copies.
    #[must_use]
    pub fn cosignature_conflicts(&self) -> BTreeSet<FeedId> {
        self.shared.cosignature_conflicts.lock().clone()
    }

    /// Returns the envelope bytes of each feed committed since the start.
    #[must_use]
    pub fn committed_bytes(&self) -> BTreeMap<FeedId, u64> {
        self.shared.bytes.lock().clone()
    }

    /// Returns the number of queue slots in use: entries and records that wait to be committed.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.queue.in_use()
            + self.shared.links.in_use()
            + self.shared.priority.in_use()
            + self.shared.others.in_use()
    }
}

impl CommitterShared {
    /// Counts what was committed for [`Committer::committed_bytes`].
    pub(super) fn count_bytes(&self, committed: &Committed) {
        let len = |content: &Content| match content {
            Content::Disclosed { envelope, .. } => envelope.len() as u64,
            Content::Undisclosed(_) => 0,
        };
        let appended = committed.commit.appends.iter();
        let appended =
            appended.map(|append| (&append.feed, append.entries.iter().map(|entry| len(&entry.content)).sum::<u64>()));
        let backfilled = committed.commit.backfills.iter();
        let backfilled = backfilled.map(|backfill| {
            (&backfill.feed, backfill.entries.iter().map(|(_, entry)| len(&entry.content)).sum::<u64>())
        });
        let priority = committed.commit.priority.iter().map(|priority| (&priority.feed, len(&priority.entry.content)));
        let mut bytes = self.bytes.lock();
        for (feed, more) in appended.chain(backfilled).chain(priority) {
            // Clone the name only the first time.
            match bytes.get_mut(feed) {
                Some(held) => *held += more,
                None => _ = bytes.insert(feed.clone(), more),
            }
        }
    }
}
