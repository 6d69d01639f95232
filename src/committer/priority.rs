//! Commits urgent entries of other members' feeds before the entries that precede them in their
//! feeds.
//!
//! In scope: committing such an entry with its custody note, and detecting that two entries were
//! signed for one index. Out of scope: verifying (`core`), and the order of commits (`queue`).

use std::sync::Arc;

use barid_core::bulletin::{Priority, ValidBulletin, header_priority};
use barid_core::feed::checkpoint::Checkpoint;
use barid_core::feed::note::Note;
use barid_core::feed::tree::CompactRange;
use barid_core::follow::{
    EquivocationClaims, ProvenEntry, ResolvedForks, VerifiedBatch, VerifiedContent, VerifiedPriority,
};
use barid_core::ids::{Digest, FeedId};
use barid_core::priority::{Admission, PriorityLimits, admit, proven_by_batch};
use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use super::attestations::custody_of;
use super::completions::Completion;
use super::writer::{CommitBatch, Writer, unreadable};
use super::{CommitFailure, Committer, Permit, QueueSlots, Work, is_behind, later, owns};
use crate::store::{Content, FeedTree, NewEntry, PriorityEntry, ReadError};

/// Result of appending a priority entry.
#[derive(Clone, Debug)]
pub enum PriorityOutcome {
    /// It is held, ahead of the order.
    Held {
        /// This node's custody note for the feed's owner; `None` while the clock is behind.
        custody: Option<Bytes>,
    },
    /// It was already held, ahead of the order.
    Duplicate,
    /// The feed has reached its index.
    Stale,
    /// The limit of entries held ahead of the order is reached: the entry comes in its feed's
    /// order.
    Full,
}

impl Committer {
    /// Commits an urgent entry of a peer's feed ahead of the feed's order. Waits for a slot in the
    /// queue.
    ///
    /// # Errors
    /// See [`CommitFailure`].
    pub async fn append_priority(
        &self,
        priority: VerifiedPriority,
    ) -> Result<oneshot::Receiver<Result<PriorityOutcome, CommitFailure>>, CommitFailure> {
        let slots = if priority.class == Some(Priority::Actual) { &self.shared.priority } else { &self.shared.others };
        let permit = Arc::clone(&slots.free).acquire_owned().await.map_err(|_| self.stopped())?;
        let (reply, response) = oneshot::channel();
        self.work
            .send_or_commit_inline(Work::Priority(Box::new(priority), reply, permit))
            .await
            .map_err(|_| self.stopped())?;
        Ok(response)
    }

    /// Returns the queue slots for a group.
    pub(super) fn slots(&self, group: &[ValidBulletin]) -> &Arc<Semaphore> {
        let priorities = group.iter().filter_map(|bulletin| header_priority(&bulletin.proto_header));
        let slots: &QueueSlots = match priorities.min() {
            Some(Priority::Actual) => &self.shared.priority,
            Some(Priority::Other) => &self.shared.others,
            None => &self.shared.queue,
        };
        // A group longer than the priority slots takes ordinary slots; it is still committed first.
        if group.len() <= slots.count { &slots.free } else { &self.shared.queue.free }
    }
}

impl Writer {
    pub(super) fn add_priority(
        &self,
        commit_batch: &mut CommitBatch,
        priority: VerifiedPriority,
        reply: oneshot::Sender<Result<PriorityOutcome, CommitFailure>>,
        permit: Permit,
    ) {
        let result = self.admit_priority(commit_batch, priority);
        commit_batch.completions.push(Completion::Priority { reply, result, _permit: permit });
    }

    fn admit_priority(
        &self,
        commit_batch: &mut CommitBatch,
        priority: VerifiedPriority,
    ) -> Result<PriorityOutcome, CommitFailure> {
        let (feed, index) = (&priority.feed, priority.index);
        let size = commit_batch
            .compact_ranges
            .get(feed)
            .or_else(|| self.compact_ranges.get(feed))
            .map_or(0, CompactRange::size);
        // A node accepts entries of its own feed from others in order only.
        if owns(&self.shared.feed.member, feed) {
            return Ok(PriorityOutcome::Stale);
        }
        let store = &self.shared.store;
        let pending = || commit_batch.commit.priority.iter().filter(|held| held.feed == *feed);
        let held = store.out_of_order(feed, index..index.saturating_add(1)).first().map(|(_, digest)| *digest);
        let held = held.or_else(|| pending().find(|held| held.index == index).map(|held| held.entry.digest));
        let count = priority.class.map_or(0, |how| self.count_ahead(commit_batch, feed, how));
        let admission = admit(&priority, size, held, count, &PriorityLimits::NODE);
        let fits = admission != Admission::Accept || {
            let bytes = priority.envelope().map_or(0, Bytes::len);
            self.shared.admits_content(&feed.member, &priority.feed_sender, bytes, priority.class)
        };
        if !fits {
            return Ok(PriorityOutcome::Full);
        }
        let VerifiedPriority { feed, index, entry, checkpoint, proof, .. } = priority;
        let (envelope, header) = match (admission, entry.content) {
            (Admission::Accept, VerifiedContent::Disclosed { envelope, header }) => (envelope, header),
            (Admission::Stale, _) => return Ok(PriorityOutcome::Stale),
            (Admission::Duplicate, _) => return Ok(PriorityOutcome::Duplicate),
            (Admission::Conflict, _) => {
                let proven = ProvenEntry { digest: entry.digest, checkpoint, proof };
                return Err(CommitFailure::EntryConflict { index, proven: Some(Box::new(proven)) });
            }
            (Admission::Accept | Admission::Full, _) => return Ok(PriorityOutcome::Full),
        };
        let (seconds, _) = self.shared.now();
        let time = later(seconds, commit_batch.last_time);
        let mut custody = None;
        if !is_behind(time, seconds) {
            let me = &self.shared.feed.member;
            let tree = &checkpoint.checkpoint;
            let records = custody_of(tree, me, index..index + 1, &[], time, &self.keys);
            if !records.is_empty() {
                commit_batch.last_time = time;
            }
            custody = records.first().map(|record| record.note.clone());
            commit_batch.commit.custody.extend(records);
        }
        commit_batch.bytes += envelope.len();
        commit_batch.entries += 1;
        commit_batch.commit.priority.push(PriorityEntry {
            feed,
            index,
            entry: NewEntry { digest: entry.digest, content: Content::Disclosed { envelope, header } },
            proof,
            checkpoint_size: checkpoint.checkpoint.size,
            checkpoint: checkpoint.note,
        });
        Ok(PriorityOutcome::Held { custody })
    }

    /// Returns how many unexpired entries of this priority are held ahead of the feed's order, or
    /// an upper bound that is still within the limit. Returns `usize::MAX` if they cannot be
    /// counted.
    fn count_ahead(&self, commit_batch: &CommitBatch, feed: &FeedId, how: Priority) -> usize {
        let of_this_sort = |held: &&PriorityEntry| match &held.entry.content {
            Content::Disclosed { header: Some(header), .. } => {
                header_priority(header).unwrap_or(Priority::Other) == how
            }
            _ => how == Priority::Other,
        };
        let pending =
            commit_batch.commit.priority.iter().filter(|held| held.feed == *feed).filter(of_this_sort).count();
        let store = &self.shared.store;
        let unexpired = store.out_of_order_unexpired(feed, self.shared.now().1);
        let Some(first) = unexpired.first().filter(|_| !PriorityLimits::NODE.has(how, unexpired.len() + pending))
        else {
            return unexpired.len() + pending;
        };
        // Only some of them may have this priority. The index also lists expired entries, which
        // take no slot.
        match store.priority_indexes(feed, how, *first, store.out_of_order(feed, *first..u64::MAX).len()) {
            Ok(held) => held.iter().filter(|index| unexpired.binary_search(index).is_ok()).count() + pending,
            Err(error) => {
                tracing::error!(
                    %feed,
                    %error,
                    "the entries held out of order cannot be counted: an urgent entry is not accepted"
                );
                usize::MAX
            }
        }
    }

    /// Rejects a batch with another entry than the one held ahead of the order, unless an operator
    /// has resolved this fork. Returns the indexes at which they differ.
    pub(super) fn check_ahead(
        &self,
        commit_batch: &CommitBatch,
        batch: &VerifiedBatch,
    ) -> Result<Vec<u64>, CommitFailure> {
        let end = batch.first.saturating_add(batch.entries.len() as u64);
        let ahead = self.shared.store.out_of_order(&batch.feed, batch.first..end);
        let digest = |index: u64| Some(batch.entries.get(usize::try_from(index - batch.first).ok()?)?.digest);
        let others: Vec<(u64, Digest)> =
            ahead.into_iter().filter(|(index, held)| digest(*index) != Some(*held)).collect();
        if others.is_empty() {
            return Ok(Vec::new());
        }
        let decided = self.decided(&batch.feed).map_err(|error| unreadable(&error))?;
        let newest = &batch.checkpoint.checkpoint;
        let settled = |(index, held): &(u64, Digest)| {
            let comes = decided.covers_tree(newest.size, &newest.root)
                || digest(*index).is_some_and(|digest| decided.covers_entry(*index, &digest));
            comes && (decided.covers_entry(*index, held) || self.is_of_decided_tree(&decided, &batch.feed, *index))
        };
        let Some((index, _)) = others.iter().find(|other| !settled(other)) else {
            return Ok(others.into_iter().map(|(index, _)| index).collect());
        };
        let index = *index;
        let pending = commit_batch.commit.appends.iter().find(|append| append.feed == batch.feed);
        let size = pending.map_or(batch.first, |append| append.first);
        let pending: Vec<Digest> =
            pending.into_iter().flat_map(|append| &append.entries).map(|entry| entry.digest).collect();
        let tree = FeedTree { store: self.shared.store.as_ref(), feed: &batch.feed };
        let proven = proven_by_batch(batch, index, &tree, size, &pending).map(Box::new);
        Err(CommitFailure::EntryConflict { index, proven })
    }

    /// Returns what an operator has resolved about the forks of a feed. Read only when two entries
    /// conflict.
    fn decided(&self, feed: &FeedId) -> Result<ResolvedForks, ReadError> {
        let mut decided = ResolvedForks::default();
        let forks = self.shared.store.forks()?.into_iter().filter(|fork| fork.resumed && fork.feed == *feed);
        // The evidence was verified before it was stored.
        forks
            .filter_map(|fork| EquivocationClaims::read(&fork.evidence).ok())
            .for_each(|proven| decided.add_evidence(&proven));
        Ok(decided)
    }

    /// Whether the entry held ahead of the order at `index` was proven by a tree that an operator
    /// has resolved.
    fn is_of_decided_tree(&self, decided: &ResolvedForks, feed: &FeedId, index: u64) -> bool {
        let held = self.shared.store.priority_entry(feed, index).ok().flatten();
        let tree = held.and_then(|held| Checkpoint::parse_text(&Note::parse(&held.checkpoint).ok()?.text).ok());
        tree.is_some_and(|tree| decided.covers_tree(tree.size, &tree.root))
    }
}
