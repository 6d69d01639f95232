//! What the committer tells of itself while it works.

use std::collections::{BTreeMap, BTreeSet};

use barid_core::ids::FeedId;
use tokio::sync::watch;

use super::{Committer, CommitterShared};
use crate::store::{Committed, Content};

impl Committer {
    /// Why no entries are taken for now, this member's or others': there is no room on the disk for
    /// them. They are as soon as there is.
    #[must_use]
    pub fn disk_full(&self) -> watch::Receiver<Option<String>> {
        self.shared.disk_full.subscribe()
    }

    /// Feeds of which another history is held than this node has cosigned before it lost its store:
    /// it says nothing of what is held.
    #[must_use]
    pub fn cosignature_conflicts(&self) -> BTreeSet<FeedId> {
        self.shared.cosignature_conflicts.lock().clone()
    }

    /// Bytes of bulletins of each feed that were committed since the start.
    #[must_use]
    pub fn committed_bytes(&self) -> BTreeMap<FeedId, u64> {
        self.shared.bytes.lock().clone()
    }

    /// Entries and answers that wait to be committed.
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
            // The name is copied only the first time.
            match bytes.get_mut(feed) {
                Some(held) => *held += more,
                None => _ = bytes.insert(feed.clone(), more),
            }
        }
    }
}
