//! Creates the cosignatures and custody notes that this node sends to other members.
//!
//! An attestation costs two signatures here and three verifications at the owner. So it never
//! delays the entries it covers: the entries become durable and their callers get the reply first.
//! The attestation goes into a later record, with the next commit or after [`RECORDS_LINGER`], and
//! covers all entries received until then. While a feed keeps growing, its attestations are
//! [`ATTESTATION_INTERVAL`] apart.
//!
//! In scope: for which feeds an attestation is pending, when it is signed, and what it contains.
//! Out of scope: what is committed (`writer`, `replicated_appends`), and sending attestations to
//! peers (`exchange`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint};
use barid_core::feed::cosignature::cosign;
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::note::Note;
use barid_core::feed::tree::{CompactRange, root_at};
use barid_core::ids::{FeedId, Hash, Member, Undisclosed};
use bytes::Bytes;

use super::completions::Completion;
use super::writer::{CommitBatch, Writer};
use super::{Custodies, Keys, PublishState, RECORDS_LINGER, checkpoint_of, is_behind, later};
use crate::store::{Cosigned, CustodyRecord, FeedState, FeedTree};

/// Least time between two attestations, so that a busy feed is not attested entry by entry. A lone
/// batch does not wait for it.
const ATTESTATION_INTERVAL: Duration = Duration::from_millis(10);

/// Pause after a commit of attestations failed, for example on a full disk.
const FAILED_COMMIT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Durable attestations of this node for one feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestations {
    /// The feed.
    pub feed: FeedId,
    /// This node's cosigned note, if the feed had reached a checkpoint.
    pub cosigned: Option<Bytes>,
    /// This node's custody notes for the feed's owner.
    pub custody: Vec<Bytes>,
}

/// By feed, the checkpoint to cosign, which the feed has reached; `None` if only custody is
/// attested.
type PendingCheckpoints = BTreeMap<FeedId, Option<SignedCheckpoint>>;

/// Merges a newer batch: its checkpoint covers the batches before it.
fn merge_pending(pending: &mut PendingCheckpoints, feed: FeedId, checkpoint: Option<SignedCheckpoint>) {
    let before = pending.entry(feed).or_default();
    *before = checkpoint.or(before.take());
}

/// How far this node has cosigned a feed. It attests neither a shorter tree nor another fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LastCosigned {
    size: u64,
    /// The cosigned root; `None` if it is the root of the copy held here.
    root: Option<Hash>,
}

impl LastCosigned {
    pub(super) fn of(cosigned: &Cosigned) -> Self {
        let checkpoint = Note::parse(&cosigned.note).ok().and_then(|note| Checkpoint::parse_text(&note.text).ok());
        Self { size: cosigned.size, root: checkpoint.map(|checkpoint| checkpoint.root) }
    }
}

/// Whether a copy of a feed may be attested.
enum MayAttest {
    Yes,
    /// Once the entries of the current commit can be read.
    Later,
    /// Not this copy: it is shorter than the cosigned tree, or on another fork.
    No,
}

/// Feeds with a pending attestation.
#[derive(Default)]
pub(super) struct PendingAttestations {
    feeds: PendingCheckpoints,
    /// When the oldest must be signed.
    deadline: Option<Instant>,
    /// When this node last attested.
    attested: Option<Instant>,
}

impl PendingAttestations {
    /// Marks the feed as pending, if it was not before.
    pub(super) fn add(&mut self, feed: FeedId, checkpoint: Option<SignedCheckpoint>, now: Instant) {
        let not_before = self.attested.map_or(now, |attested| attested + ATTESTATION_INTERVAL);
        self.deadline.get_or_insert(not_before.max(now + RECORDS_LINGER));
        merge_pending(&mut self.feeds, feed, checkpoint);
    }

    fn extend(&mut self, others: Self, now: Instant) {
        for (feed, checkpoint) in others.feeds {
            self.add(feed, checkpoint, now);
        }
    }

    /// Tries again later, after a failed commit.
    pub(super) fn postpone(&mut self) {
        self.deadline = self.deadline.map(|_| Instant::now() + FAILED_COMMIT_RETRY_DELAY);
    }

    /// Adds a feed as it was when the store was opened: the node may have stopped before it had
    /// attested all entries.
    pub(super) fn add_missing_since(&mut self, state: &FeedState, cosigned_size: u64, attested_size: u64) {
        let size = state.compact_range.size();
        if state.checkpoint_size != size || (cosigned_size >= size && attested_size >= size) {
            return;
        }
        self.add(
            state.feed.clone(),
            SignedCheckpoint::from_trusted_store(state.checkpoint.clone()).ok(),
            Instant::now(),
        );
    }

    /// Returns when to attest; `None` if nothing is pending or nothing may be signed now.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

impl Writer {
    /// Whether the pending attestations go into this commit.
    fn attests_in(&self, commit_batch: &CommitBatch) -> bool {
        let deadline = |pending_attestations: &PendingAttestations| {
            pending_attestations.deadline.is_some_and(|deadline| deadline <= Instant::now())
        };
        let pending =
            self.pending_attestations.deadline.is_some() || commit_batch.pending_attestations.deadline.is_some();
        // Join a commit of received notes; do not join one whose work was rejected.
        let with_records = commit_batch.entries == 0
            && commit_batch.completions.iter().any(|completion| matches!(completion, Completion::Records { .. }));
        pending && (commit_batch.attest_now || with_records || deadline(&self.pending_attestations))
    }

    /// Restores this node's own cosignatures from `records`: peers hold them after this node has
    /// lost its store.
    pub(super) fn restore_last_cosigned(&self, commit_batch: &mut CommitBatch, records: &[Cosigned]) {
        for cosigned in records.iter().filter(|cosigned| cosigned.cosigner == self.shared.feed.member) {
            commit_batch.last_time = later(cosigned.time, commit_batch.last_time);
            let last_cosigned =
                commit_batch.last_cosigned.get(&cosigned.feed).or_else(|| self.last_cosigned.get(&cosigned.feed));
            if last_cosigned.is_none_or(|last_cosigned| last_cosigned.size < cosigned.size) {
                commit_batch.last_cosigned.insert(cosigned.feed.clone(), LastCosigned::of(cosigned));
            }
        }
    }

    /// Whether a copy that ends with `compact_range` continues the tree this node has cosigned.
    /// After the loss of a store the cosignature comes back from peers, and the copy may be of
    /// another fork.
    fn may_attest(&self, commit_batch: &CommitBatch, feed: &FeedId, compact_range: &CompactRange) -> MayAttest {
        let Some(last_cosigned) = commit_batch.last_cosigned.get(feed).or_else(|| self.last_cosigned.get(feed)) else {
            return MayAttest::Yes;
        };
        let Some(cosigned_root) = last_cosigned.root else { return MayAttest::Yes };
        let held = self.compact_ranges.get(feed).map_or(0, CompactRange::size);
        let root = match last_cosigned.size {
            size if size > compact_range.size() => return MayAttest::No,
            size if size == compact_range.size() => Ok(compact_range.root()),
            size if size > held => return MayAttest::Later,
            size => root_at(&FeedTree { store: self.shared.store.as_ref(), feed }, size),
        };
        match root {
            Ok(root) if root == cosigned_root => MayAttest::Yes,
            Ok(_) => {
                if self.shared.cosignature_conflicts.lock().insert(feed.clone()) {
                    tracing::error!(
                        %feed,
                        size = last_cosigned.size,
                        "this node has cosigned a conflicting tree: it attests nothing of this fork"
                    );
                }
                MayAttest::No
            }
            Err(_) => MayAttest::Later,
        }
    }

    /// Adds all pending attestations, of earlier commits and of this one, to the commit. Returns
    /// `None` if they do not go into this commit. Nothing is attested while the clock is behind, or
    /// while the own feed needs recovery: a store that may have lost entries may also have lost
    /// attestations.
    pub(super) fn attest(&self, commit_batch: &mut CommitBatch) -> Option<Vec<Attestations>> {
        if !self.attests_in(commit_batch) {
            return None;
        }
        let (seconds, _) = self.shared.now();
        let time = later(seconds, commit_batch.last_time);
        if is_behind(time, seconds) || matches!(*self.shared.publish_state.borrow(), PublishState::NeedsRecovery(_)) {
            return Some(Vec::new());
        }
        let me = &self.shared.feed.member;
        let mut pending = self.pending_attestations.feeds.clone();
        commit_batch
            .pending_attestations
            .feeds
            .clone()
            .into_iter()
            .for_each(|(feed, checkpoint)| merge_pending(&mut pending, feed, checkpoint));
        let mut attested = Vec::with_capacity(pending.len());
        for (feed, checkpoint) in pending {
            let Some(compact_range) = commit_batch.compact_ranges.get(&feed).or_else(|| self.compact_ranges.get(&feed))
            else {
                continue;
            };
            match self.may_attest(commit_batch, &feed, compact_range) {
                MayAttest::Yes => {}
                MayAttest::Later => {
                    commit_batch.retry_attest = true;
                    continue;
                }
                MayAttest::No => continue,
            }
            let progress = progress_of(&mut commit_batch.custodies, &self.custodies, &feed);
            let tree = checkpoint_of(&feed, compact_range);
            let custody = custody_of(&tree, me, progress.size..tree.size, &progress.not_held, time, &self.keys);
            progress.size = tree.size;
            progress.not_held.clear();
            // The key's name and algorithm were checked on start.
            let cosigned = checkpoint.and_then(|checkpoint| {
                let (size, note) = (checkpoint.checkpoint.size, cosign(&checkpoint, &self.keys.mirror, time).ok()?);
                Some(Cosigned { feed: feed.clone(), cosigner: me.clone(), size, time, note })
            });
            attested.push(Attestations {
                feed,
                cosigned: cosigned.as_ref().map(|cosigned| cosigned.note.clone()),
                custody: custody.iter().map(|record| record.note.clone()).collect(),
            });
            if let Some(cosigned) = &cosigned {
                commit_batch
                    .last_cosigned
                    .insert(cosigned.feed.clone(), LastCosigned { size: cosigned.size, root: None });
            }
            commit_batch.commit.cosigned.extend(cosigned);
            commit_batch.commit.custody.extend(custody);
            commit_batch.last_time = time;
        }
        Some(attested)
    }

    /// After the commit: sends the attestations to the links, and keeps the new pending ones.
    pub(super) fn finish_attesting(
        &mut self,
        added: PendingAttestations,
        attested: Option<Vec<Attestations>>,
        retry: bool,
    ) {
        self.pending_attestations.extend(added, Instant::now());
        let Some(attested) = attested else { return };
        // Feeds that could not be attested yet are retried.
        self.pending_attestations.deadline = retry.then(|| Instant::now() + ATTESTATION_INTERVAL);
        self.pending_attestations.attested = Some(Instant::now());
        for attestations in attested {
            self.pending_attestations.feeds.remove(&attestations.feed);
            // No link may be up; owners request the attestations they missed.
            let _ = self.shared.attestations.send(Arc::new(attestations));
        }
    }
}

/// Returns the custody progress of a feed, in this commit or before it.
pub(super) fn progress_of<'a>(
    custodies: &'a mut Custodies,
    before: &Custodies,
    feed: &FeedId,
) -> &'a mut super::CustodyProgress {
    custodies.entry(feed.clone()).or_insert_with(|| before.get(feed).cloned().unwrap_or_default())
}

/// Returns custody notes on `range`: several if one note cannot list all ranges that are not held,
/// none if the range is empty.
pub(super) fn custody_of(
    checkpoint: &Checkpoint,
    holder: &Member,
    mut range: Range<u64>,
    not_held: &[(Range<u64>, Undisclosed)],
    time: u64,
    keys: &Keys,
) -> Vec<CustodyRecord> {
    let mut records = Vec::new();
    while !range.is_empty() {
        let listed = not_held.partition_point(|(part, _)| part.end <= range.start);
        let note = CustodyNote::new(checkpoint, time, range.clone(), not_held[listed..].iter().cloned());
        // Cannot fail unless the code is wrong: the key's name and algorithm were checked on start
        // and the ranges ascend. Then only the note is lost.
        let Ok((note, signed)) = note.and_then(|note| note.sign(&keys.custody).map(|signed| (note, signed))) else {
            break;
        };
        range.start = note.range.end;
        records.push(CustodyRecord {
            feed: note.feed,
            holder: holder.clone(),
            range: note.range,
            not_held: note.not_held.into_iter().map(|(range, _)| range).collect(),
            time,
            note: signed,
        });
    }
    records
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use barid_core::feed::note::{Algorithm, SigningKey};
    use barid_core::feed::tree::CompactRange;
    use barid_core::follow::VerifiedBatch;

    use super::*;
    use crate::committer::Records;
    use crate::committer::testing::{batch, of, start};
    use crate::store::memory::MemoryStore;
    use crate::store::{Append, Commit, Content, NewEntry, Store};

    #[tokio::test]
    async fn one_attestation_covers_all_earlier_batches() {
        let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let committer = start(&store, folder.path());
        let mut attestations = committer.attestations();
        let first = batch(&CompactRange::new(), 2);
        let second = batch(&first.compact_range, 3);
        // Queued together, so that both are present before the first attestation is signed.
        let (one, two) =
            (committer.submit_append(first).await.unwrap(), committer.submit_append(second).await.unwrap());
        assert_eq!((one.await.unwrap().unwrap().size, two.await.unwrap().unwrap().size), (2, 5));
        committer.persist(Records::default()).await.unwrap();
        let custody = store.custody_newest(&of("tn")).unwrap();
        assert_eq!(custody.last().map(|note| note.range.end), Some(5));
        let cosigned = store.cosigned_newest(&of("tn")).unwrap();
        assert_eq!(cosigned.iter().map(|note| note.size).collect::<Vec<_>>(), [5]);
        // Sent after the commit.
        let sent = attestations.recv().await.unwrap();
        assert_eq!((&sent.feed, sent.cosigned.as_ref()), (&of("tn"), Some(&cosigned[0].note)));
        committer.stop().await;
    }

    /// A cosignature of ma on a batch, as a peer returns it.
    fn recovered_cosignature(batch: &VerifiedBatch) -> Records {
        let mirror = SigningKey::from_seed("ma.rabat.example/mirror", Algorithm::CosignatureEd25519, [8; 32]).unwrap();
        let (size, time) = (batch.compact_range.size(), 1_764_000_000);
        let note = cosign(&batch.checkpoint, &mirror, time).unwrap();
        let cosigned = Cosigned { feed: batch.feed.clone(), cosigner: "ma".parse().unwrap(), size, time, note };
        Records { cosigned: vec![cosigned], ..Records::default() }
    }

    #[tokio::test]
    async fn recovered_cosignature_prevents_attesting_another_tree() {
        let five = batch(&CompactRange::new(), 5);
        let other = |first: &VerifiedBatch| {
            // Another fork: the entries from the third on are not those of `five`.
            batch(&first.compact_range, 3)
        };
        for (continues, attested) in [(true, 5), (false, 0)] {
            let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
            let committer = start(&store, folder.path());
            committer.persist(recovered_cosignature(&five)).await.unwrap();
            let size = || {
                let cosigned = store.cosigned_newest(&of("tn")).unwrap();
                let custody = store.custody_newest(&of("tn")).unwrap().last().map_or(0, |note| note.range.end);
                (cosigned.iter().map(|note| note.size).max(), custody)
            };
            if continues {
                committer.submit_append(batch(&CompactRange::new(), 5)).await.unwrap().await.unwrap().unwrap();
            } else {
                let first = batch(&CompactRange::new(), 2);
                let second = other(&first);
                committer.submit_append(first).await.unwrap().await.unwrap().unwrap();
                committer.persist(Records::default()).await.unwrap();
                assert_eq!(size(), (Some(5), 0), "a copy shorter than the cosigned tree is not attested");
                committer.submit_append(second).await.unwrap().await.unwrap().unwrap();
            }
            committer.stop().await;
            assert_eq!(size(), (Some(5), attested), "continues: {continues}");
            assert_eq!(committer.cosignature_conflicts().contains(&of("tn")), !continues, "operators get an alarm");
            // Still true after a restart.
            start(&store, folder.path()).stop().await;
            assert_eq!(size(), (Some(5), attested), "continues: {continues}");
        }
    }

    #[tokio::test]
    async fn node_needing_recovery_does_not_attest() {
        let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let committer = start(&store, folder.path());
        assert!(committer.require_recovery("a peer holds more of its feed".into()));
        committer.submit_append(batch(&CompactRange::new(), 3)).await.unwrap().await.unwrap().unwrap();
        committer.stop().await;
        assert!(store.cosigned_newest(&of("tn")).unwrap().is_empty());
        assert!(store.custody_newest(&of("tn")).unwrap().is_empty());
    }

    #[test]
    fn stopped_committer_releases_the_store() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for _ in 0..100 {
            let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
            let committer = start(&store, folder.path());
            runtime.block_on(committer.stop());
            drop(committer);
            assert_eq!(Arc::strong_count(&store), 1, "otherwise the process may end before the store is closed");
        }
    }

    #[tokio::test]
    async fn missing_attestations_are_sent_after_restart() {
        let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let VerifiedBatch { feed, first, entries, checkpoint, .. } = batch(&CompactRange::new(), 3);
        let entries = entries
            .into_iter()
            .map(|entry| NewEntry { digest: entry.digest, content: Content::Undisclosed(Undisclosed::Withheld) })
            .collect();
        let append = Append {
            feed,
            first,
            entries,
            checkpoint: checkpoint.note,
            checkpoint_size: 3,
            consistency_proof: Vec::new(),
        };
        store.commit(Commit { appends: vec![append], ..Commit::default() }, 0).unwrap();
        let committer = start(&store, folder.path());
        // The committer attests without other work.
        let attestations = tokio::time::timeout(Duration::from_secs(60), committer.attestations().recv()).await;
        assert_eq!(attestations.unwrap().unwrap().feed, of("tn"));
        committer.stop().await;
        assert_eq!(store.cosigned_newest(&of("tn")).unwrap()[0].size, 3);
        let custody = &store.custody_newest(&of("tn")).unwrap()[0];
        assert_eq!((custody.range.clone(), custody.not_held.as_slice()), (0..3, std::slice::from_ref(&(0..3))));
        // The next start attests nothing again.
        let seq = store.seq();
        start(&store, folder.path()).stop().await;
        assert_eq!(store.seq(), seq);
    }
}
