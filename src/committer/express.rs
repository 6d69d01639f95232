//! Urgent entries of other members' feeds, ahead of their feeds' order.
//!
//! In scope: taking one in, with its custody note, and two entries at one place. Out of scope: verifying (`core`), going first (`queue`).

use std::sync::Arc;

use barid_core::bulletin::{Urgent, ValidBulletin, urgent};
use barid_core::express::{Admission, Room, admit, proven_by_batch};
use barid_core::feed::checkpoint::Checkpoint;
use barid_core::feed::note::Note;
use barid_core::feed::tree::Frontier;
use barid_core::follow::{Decided, ForkClaims, ProvenEntry, VerifiedBatch, VerifiedContent, VerifiedExpress};
use barid_core::names::{Digest, FeedId};
use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use super::release::Release;
use super::run::{Group, Writer, unreadable};
use super::spoken::custody_of;
use super::{CommitFailure, Committer, Permit, Places, Work, is_behind, later, owns};
use crate::store::{Content, Express, FeedTree, NewEntry, ReadError};

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
        self.work.send_or_commit(Work::Express(Box::new(express), reply, permit)).await.map_err(|_| self.stopped())?;
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
        let (feed, index) = (&express.feed, express.index);
        let size = group.edges.get(feed).or_else(|| self.edges.get(feed)).map_or(0, Frontier::size);
        // Its own feed a node takes from others in order only.
        if owns(&self.shared.feed.member, feed) {
            return Ok(Expressed::Behind);
        }
        let store = &self.shared.store;
        let pending = || group.commit.express.iter().filter(|held| held.feed == *feed);
        let held = store.ahead(feed, index..index.saturating_add(1)).first().map(|(_, digest)| *digest);
        let held = held.or_else(|| pending().find(|held| held.index == index).map(|held| held.entry.digest));
        let count = express.urgent.map_or(0, |how| self.count_ahead(group, feed, how));
        let admission = admit(&express, size, held, count, &Room::NODE);
        let fits = admission != Admission::Hold || {
            let bytes = express.envelope().map_or(0, Bytes::len);
            self.shared.takes_content(&feed.member, &express.provider, bytes, express.urgent)
        };
        if !fits {
            return Ok(Expressed::Full);
        }
        let VerifiedExpress { feed, index, entry, checkpoint, proof, .. } = express;
        let (envelope, header) = match (admission, entry.content) {
            (Admission::Hold, VerifiedContent::Disclosed { envelope, header }) => (envelope, header),
            (Admission::Behind, _) => return Ok(Expressed::Behind),
            (Admission::Again, _) => return Ok(Expressed::Again),
            (Admission::Another, _) => {
                let shown = ProvenEntry { digest: entry.digest, checkpoint, proof };
                return Err(CommitFailure::AnotherEntry { index, shown: Some(Box::new(shown)) });
            }
            (Admission::Hold | Admission::Full, _) => return Ok(Expressed::Full),
        };
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

    /// How many of this sort are held ahead of a feed's order, or no fewer: more than there is room for only if they are.
    fn count_ahead(&self, group: &Group, feed: &FeedId, how: Urgent) -> usize {
        let of_this_sort = |held: &&Express| match &held.entry.content {
            Content::Disclosed { header: Some(header), .. } => urgent(header).unwrap_or(Urgent::Other) == how,
            _ => how == Urgent::Other,
        };
        let pending = group.commit.express.iter().filter(|held| held.feed == *feed).filter(of_this_sort).count();
        let store = &self.shared.store;
        let places = store.ahead_places(feed, self.shared.now().1);
        let Some(first) = places.first().filter(|_| !Room::NODE.has(how, places.len() + pending)) else {
            return places.len() + pending;
        };
        // Few of them may be Actual, or few may not be. Beside them there are those that take no place any more.
        match store.urgent(feed, how, *first, store.ahead(feed, *first..u64::MAX).len()) {
            Ok(held) => held.iter().filter(|index| places.binary_search(index).is_ok()).count() + pending,
            Err(error) => {
                tracing::error!(%feed, %error, "what is held ahead of a feed's order cannot be counted: an urgent entry waits");
                usize::MAX
            }
        }
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
        let size = pending.map_or(batch.first, |append| append.first);
        let pending: Vec<Digest> =
            pending.into_iter().flat_map(|append| &append.entries).map(|entry| entry.digest).collect();
        let tree = FeedTree { store: self.shared.store.as_ref(), feed: &batch.feed };
        let shown = proven_by_batch(batch, index, &tree, size, &pending).map(Box::new);
        Err(CommitFailure::AnotherEntry { index, shown })
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
