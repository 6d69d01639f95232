//! Raises alarms while a held copy is on another fork than the one the governors have settled, or
//! than this node has cosigned.

use barid_core::ids::{FeedId, Member};
use barid_core::roster::ClosedFeed;

use super::Node;
use crate::store::Store;
use crate::telemetry::alarms::Alarm;

impl Node {
    /// Returns the feeds whose copy conflicts with the closed feed of the newest roster, or with
    /// this node's own cosignature.
    pub(super) fn fork_conflict_alarms(&self) -> Vec<Alarm> {
        let roster = self.rosters.load().newest_shared();
        let closed = roster.entries().flat_map(|member| {
            let code = &member.code;
            member.closed_feeds.iter().map(move |closed| (code, closed))
        });
        let rejected = rejected(self.store.as_ref(), closed);
        let rejected = rejected.into_iter().map(|feed| Alarm::RosterForkConflict { feed });
        rejected
            .chain(self.committer.cosignature_conflicts().into_iter().map(|feed| Alarm::CosignatureConflict { feed }))
            .collect()
    }
}

/// Returns the feeds whose copy is longer than the closed feed, or has another tree. A shorter copy
/// passes: the rest may still come.
fn rejected<'a>(store: &dyn Store, closed: impl Iterator<Item = (&'a Member, &'a ClosedFeed)>) -> Vec<FeedId> {
    let feeds = store.feeds();
    let differs = closed.filter_map(|(member, closed)| {
        let state = feeds.iter().find(|state| state.feed.member == *member && state.feed.epoch == closed.epoch)?;
        let held = state.compact_range.size();
        (held > closed.size || held == closed.size && state.compact_range.root() != closed.root)
            .then(|| state.feed.clone())
    });
    differs.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use barid_core::feed::tree::CompactRange;
    use barid_core::ids::{Digest, Hash, Undisclosed};
    use bytes::Bytes;

    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::{Append, Commit, Content, NewEntry};

    #[test]
    fn replica_unlike_the_closed_feed_is_an_alarm() {
        let (store, feed) = (MemoryStore::new(), "tn.rabat.example/feed/1".parse::<FeedId>().unwrap());
        let digests: Vec<Digest> = (0..5).map(|n| Digest([n; 32])).collect();
        let mut closed_tree = CompactRange::new();
        digests.iter().take(4).for_each(|digest| closed_tree.append(digest));
        let entries = digests
            .iter()
            .map(|digest| NewEntry { digest: *digest, content: Content::Undisclosed(Undisclosed::Withheld) });
        let append = Append {
            feed: feed.clone(),
            first: 0,
            entries: entries.collect(),
            checkpoint: Bytes::from_static(b"not looked at"),
            checkpoint_size: 5,
            consistency_proof: Vec::new(),
        };
        store.commit(Commit { appends: vec![append], ..Commit::default() }, 0).unwrap();
        let whole = store.feed(&feed).unwrap().compact_range.root();
        let found = |epoch, size, root| {
            let closed = ClosedFeed { epoch, size, root };
            rejected(&store, std::iter::once((&feed.member, &closed)))
        };
        assert!(found(1, 5, whole).is_empty(), "it is the closed tree");
        assert!(found(1, 6, whole).is_empty(), "the remaining entries may be backfilled");
        assert!(found(2, 1, whole).is_empty(), "nothing is held of the next epoch");
        assert_eq!(found(1, 5, Hash([1; 32])), std::slice::from_ref(&feed));
        assert_eq!(found(1, 4, closed_tree.root()), std::slice::from_ref(&feed), "one entry more than the closed tree");
    }
}
