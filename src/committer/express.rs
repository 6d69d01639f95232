//! Urgent entries of other members' feeds, ahead of their feeds' order.
//!
//! In scope: taking one in, with its custody note, and two entries at one place. Out of scope: verifying (`core`), going first (`queue`).

use std::collections::HashMap;
use std::sync::Arc;

use barid_core::bulletin::{Urgent, ValidBulletin, urgent};
use barid_core::feed::bridge::bridged_inclusion;
use barid_core::feed::checkpoint::Checkpoint;
use barid_core::feed::note::Note;
use barid_core::feed::tree::{Frontier, HashReader, NodeId, leaf_hash, node_hash};
use barid_core::follow::{Decided, ForkClaims, ProvenEntry, VerifiedBatch, VerifiedContent, VerifiedExpress};
use barid_core::limits::EXPRESS_ENTRIES_MAX;
use barid_core::names::{Digest, FeedId, Hash};
use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use super::run::{Group, Release, Writer, unreadable};
use super::spoken::custody_of;
use super::{CommitFailure, Committer, EXPRESS_QUEUE_MAX, Permit, Work, is_behind, later, owns};
use crate::store::{Append, Content, Express, FeedTree, NewEntry, ReadError, Store};

/// What came of an urgent entry.
#[derive(Clone, Debug)]
pub enum Expressed {
    /// It is held, ahead of the order; our custody note for the feed's owner, unless the clock is behind.
    Held {
        /// The note.
        custody: Option<Bytes>,
    },
    /// It was held before, ahead of the order.
    Again,
    /// The feed has reached its index.
    Behind,
    /// As much as may be is held ahead of the order: it waits for its turn.
    Full,
}

impl Committer {
    /// Takes in an urgent entry of a peer's feed ahead of the feed's order. Waits for room.
    ///
    /// # Errors
    /// See [`CommitFailure`].
    pub async fn express(
        &self,
        express: VerifiedExpress,
    ) -> Result<oneshot::Receiver<Result<Expressed, CommitFailure>>, CommitFailure> {
        let permit = Arc::clone(&self.shared.express).acquire_owned().await.map_err(|_| self.stopped())?;
        let (reply, answer) = oneshot::channel();
        self.work.send(Work::Express(Box::new(express), reply, permit)).map_err(|_| self.stopped())?;
        Ok(answer)
    }

    /// Where a group finds its places.
    pub(super) fn places(&self, group: &[ValidBulletin]) -> &Arc<Semaphore> {
        // A group that is too long for the places of what is urgent waits like the others; it is committed first all the same.
        let fits = group.len() <= EXPRESS_QUEUE_MAX;
        let is_urgent = fits && group.iter().any(|bulletin| urgent(&bulletin.proto_header).is_some());
        if is_urgent { &self.shared.express } else { &self.shared.queue }
    }
}

/// Entries of one feed that are held ahead of its order and are not Actual: there is always room for what is.
const OTHERS_MAX: usize = EXPRESS_ENTRIES_MAX / 2;

impl Writer {
    pub(super) fn take_express(
        &self,
        group: &mut Group,
        express: VerifiedExpress,
        reply: oneshot::Sender<Result<Expressed, CommitFailure>>,
        permit: Permit,
    ) {
        let result = self.express(group, express);
        group.releases.push(Release::Express { reply, result, _permit: permit });
    }

    fn express(&self, group: &mut Group, express: VerifiedExpress) -> Result<Expressed, CommitFailure> {
        let VerifiedExpress { feed, index, entry, urgent: how, checkpoint, proof, .. } = express;
        let size = group.edges.get(&feed).or_else(|| self.edges.get(&feed)).map_or(0, Frontier::size);
        // Its own feed a node takes from others in order only.
        if index < size || owns(&self.shared.feed.member, &feed) {
            return Ok(Expressed::Behind);
        }
        let VerifiedContent::Disclosed { envelope, header } = entry.content else { return Ok(Expressed::Full) };
        let taken = |held: &&Express| held.feed == feed && held.index == index;
        let store = &self.shared.store;
        let held = store.ahead(&feed, index..index.saturating_add(1)).first().map(|(_, digest)| *digest);
        if let Some(held) = held.or_else(|| group.commit.express.iter().find(taken).map(|held| held.entry.digest)) {
            if held == entry.digest {
                return Ok(Expressed::Again);
            }
            let shown = ProvenEntry { digest: entry.digest, checkpoint, proof };
            return Err(CommitFailure::AnotherEntry { index, shown: Some(Box::new(shown)) });
        }
        let count = store.ahead(&feed, 0..u64::MAX).len()
            + group.commit.express.iter().filter(|held| held.feed == feed).count();
        let room = if how == Some(Urgent::Actual) { EXPRESS_ENTRIES_MAX } else { OTHERS_MAX };
        if count >= room {
            return Ok(Expressed::Full);
        }
        let (seconds, _) = self.shared.now();
        let time = later(seconds, group.last_time);
        let mut custody = None;
        if !is_behind(time, seconds) {
            let me = &self.shared.feed.member;
            let tree = &checkpoint.checkpoint;
            let records = custody_of(tree, me, index..index + 1, &[], time, &self.keys);
            if !records.is_empty() {
                group.last_time = time;
            }
            custody = records.first().map(|record| record.note.clone());
            group.commit.custody.extend(records);
        }
        group.bytes += envelope.len();
        group.entries += 1;
        group.commit.express.push(Express {
            feed,
            index,
            entry: NewEntry { digest: entry.digest, content: Content::Disclosed { envelope, header } },
            proof,
            checkpoint_size: checkpoint.checkpoint.size,
            checkpoint: checkpoint.note,
        });
        Ok(Expressed::Held { custody })
    }

    /// Refuses a batch that has another entry than is held ahead of the order, unless an operator has decided about both; says where it does
    /// have another one.
    pub(super) fn check_ahead(&self, group: &Group, batch: &VerifiedBatch) -> Result<Vec<u64>, CommitFailure> {
        let end = batch.first.saturating_add(batch.entries.len() as u64);
        let ahead = self.shared.store.ahead(&batch.feed, batch.first..end);
        let digest = |index: u64| Some(batch.entries.get(usize::try_from(index - batch.first).ok()?)?.digest);
        let others: Vec<(u64, Digest)> =
            ahead.into_iter().filter(|(index, held)| digest(*index) != Some(*held)).collect();
        if others.is_empty() {
            return Ok(Vec::new());
        }
        let decided = self.decided(&batch.feed).map_err(|error| unreadable(&error))?;
        let newest = &batch.checkpoint.checkpoint;
        let settled = |(index, held): &(u64, Digest)| {
            let comes = decided.knows_tree(newest.size, &newest.root)
                || digest(*index).is_some_and(|digest| decided.knows_entry(*index, &digest));
            comes && (decided.knows_entry(*index, held) || self.is_of_decided_tree(&decided, &batch.feed, *index))
        };
        let Some((index, _)) = others.iter().find(|other| !settled(other)) else {
            return Ok(others.into_iter().map(|(index, _)| index).collect());
        };
        let index = *index;
        let pending = group.commit.appends.iter().find(|append| append.feed == batch.feed);
        let tree = Grown::new(self.shared.store.as_ref(), pending, batch);
        let shown = || {
            let proof = bridged_inclusion(&tree, index, end, newest.size, &batch.consistency_proof).ok().flatten()?;
            Some(Box::new(ProvenEntry { digest: digest(index)?, checkpoint: batch.checkpoint.clone(), proof }))
        };
        Err(CommitFailure::AnotherEntry { index, shown: shown() })
    }

    /// What was known of a feed when an operator decided about it. Asked only where two entries meet.
    fn decided(&self, feed: &FeedId) -> Result<Decided, ReadError> {
        let mut decided = Decided::default();
        let forks = self.shared.store.forks()?.into_iter().filter(|fork| fork.resumed && fork.feed == *feed);
        // Each was verified when it was kept.
        forks.filter_map(|fork| ForkClaims::read(&fork.evidence).ok()).for_each(|shown| decided.learn(&shown));
        Ok(decided)
    }

    /// Whether what is held ahead of the order at `index` was proven by a tree that an operator has decided about.
    fn is_of_decided_tree(&self, decided: &Decided, feed: &FeedId, index: u64) -> bool {
        let held = self.shared.store.express(feed, index).ok().flatten();
        let tree = held.and_then(|held| Checkpoint::parse_text(&Note::parse(&held.checkpoint).ok()?.text).ok());
        tree.is_some_and(|tree| decided.knows_tree(tree.size, &tree.root))
    }
}

/// The tree held, with what a commit in the making and a batch append to it.
struct Grown<'a> {
    store: FeedTree<'a>,
    size: u64,
    appended: HashMap<u64, Digest>,
}

impl<'a> Grown<'a> {
    fn new(store: &'a dyn Store, pending: Option<&Append>, batch: &'a VerifiedBatch) -> Self {
        let size = pending.map_or(batch.first, |append| append.first);
        let pending = pending.into_iter().flat_map(|append| (append.first..).zip(&append.entries));
        let mut appended: HashMap<u64, Digest> = pending.map(|(index, entry)| (index, entry.digest)).collect();
        appended.extend((batch.first..).zip(&batch.entries).map(|(index, entry)| (index, entry.digest)));
        Self { store: FeedTree { store, feed: &batch.feed }, size, appended }
    }

    fn hash(&self, node: NodeId) -> Result<Hash, ReadError> {
        if node.leaves().end <= self.size {
            return self.store.hashes(&[node])?.first().copied().ok_or_else(|| ReadError::Missing("a subtree".into()));
        }
        let Some(level) = node.level.checked_sub(1) else {
            let digest = self.appended.get(&node.index).ok_or_else(|| ReadError::Missing("an entry".into()))?;
            return Ok(leaf_hash(digest));
        };
        let child = |index| self.hash(NodeId { level, index });
        Ok(node_hash(&child(node.index * 2)?, &child(node.index * 2 + 1)?))
    }
}

impl HashReader for Grown<'_> {
    type Error = ReadError;

    fn hashes(&self, nodes: &[NodeId]) -> Result<Vec<Hash>, ReadError> {
        nodes.iter().map(|node| self.hash(*node)).collect()
    }
}
