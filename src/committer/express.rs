//! Urgent entries of other members' feeds, ahead of their feeds' order.
//!
//! In scope: taking one in, with its custody note, and two entries at one place. Out of scope: verifying (`core`), going first (`queue`).

use std::collections::HashMap;
use std::sync::Arc;

use barid_core::bulletin::{Urgent, ValidBulletin, urgent};
use barid_core::feed::bridge::bridged_inclusion;
use barid_core::feed::tree::{Frontier, HashReader, NodeId, leaf_hash, node_hash};
use barid_core::follow::{ProvenEntry, VerifiedBatch, VerifiedContent, VerifiedExpress};
use barid_core::limits::{EXPRESS_ENTRIES_MAX, EXPRESS_OTHERS_MAX};
use barid_core::names::{Digest, FeedId, Hash};
use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use super::run::{Group, Release, Writer};
use super::spoken::custody_of;
use super::{CommitFailure, Committer, Permit, Places, Work, is_behind, later, owns};
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
        let places = if express.urgent == Some(Urgent::Actual) { &self.shared.express } else { &self.shared.others };
        let permit = Arc::clone(&places.free).acquire_owned().await.map_err(|_| self.stopped())?;
        let (reply, answer) = oneshot::channel();
        self.work.send(Work::Express(Box::new(express), reply, permit)).map_err(|_| self.stopped())?;
        Ok(answer)
    }

    /// Where a group finds its places.
    pub(super) fn places(&self, group: &[ValidBulletin]) -> &Arc<Semaphore> {
        let places: &Places = match group.iter().filter_map(|bulletin| urgent(&bulletin.proto_header)).min() {
            Some(Urgent::Actual) => &self.shared.express,
            Some(Urgent::Other) => &self.shared.others,
            None => &self.shared.queue,
        };
        // A group that is too long for the places of what is urgent waits like the others; it is committed first all the same.
        if group.len() <= places.count { &places.free } else { &self.shared.queue.free }
    }
}

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
        if !self.has_room_ahead(group, &feed, how.unwrap_or(Urgent::Other)) {
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

    /// Whether one more of this sort may be held ahead of a feed's order: what is Actual finds the same room however many others are held.
    fn has_room_ahead(&self, group: &Group, feed: &FeedId, how: Urgent) -> bool {
        let room = if how == Urgent::Actual { EXPRESS_ENTRIES_MAX } else { EXPRESS_OTHERS_MAX };
        let of_this_sort = |held: &&Express| match &held.entry.content {
            Content::Disclosed { header: Some(header), .. } => urgent(header).unwrap_or(Urgent::Other) == how,
            _ => how == Urgent::Other,
        };
        let pending = group.commit.express.iter().filter(|held| held.feed == *feed).filter(of_this_sort).count();
        let ahead = self.shared.store.ahead(feed, 0..u64::MAX);
        let Some((first, _)) = ahead.first().filter(|_| ahead.len() + pending >= room) else { return pending < room };
        // Few of them are Actual, or few are not.
        match self.shared.store.urgent(feed, how, *first, room) {
            Ok(held) => held.len() + pending < room,
            Err(error) => {
                tracing::error!(%feed, %error, "what is held ahead of a feed's order cannot be counted: an urgent entry waits");
                false
            }
        }
    }

    /// Refuses a batch that has another entry than is held ahead of the order.
    pub(super) fn check_ahead(&self, group: &Group, batch: &VerifiedBatch) -> Result<(), CommitFailure> {
        let end = batch.first.saturating_add(batch.entries.len() as u64);
        let ahead = self.shared.store.ahead(&batch.feed, batch.first..end);
        let digest = |index: u64| Some(batch.entries.get(usize::try_from(index - batch.first).ok()?)?.digest);
        let Some((index, _)) = ahead.into_iter().find(|(index, held)| digest(*index) != Some(*held)) else {
            return Ok(());
        };
        let pending = group.commit.appends.iter().find(|append| append.feed == batch.feed);
        let tree = Grown::new(self.shared.store.as_ref(), pending, batch);
        let shown = || {
            let size = batch.checkpoint.checkpoint.size;
            let proof = bridged_inclusion(&tree, index, end, size, &batch.consistency_proof).ok().flatten()?;
            Some(Box::new(ProvenEntry { digest: digest(index)?, checkpoint: batch.checkpoint.clone(), proof }))
        };
        Err(CommitFailure::AnotherEntry { index, shown: shown() })
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
