//! What this node says of other members' feeds: cosignatures and custody notes, made behind the commits that they speak of.
//!
//! In scope: which feeds an answer is owed for, when it is made, and what it says. Out of scope: what is committed (`run`, `received`), and
//! carrying answers to peers (`exchange`).
//!
//! An answer costs two signatures, and its owner three verifications. So it does not hold up what it speaks of: entries become durable and are
//! released first, and the answer goes into a later record, with whatever is committed next or after [`COMPANY_WAIT`], once for all that has
//! come meanwhile. Where entries keep coming, answers are [`ANSWERS_APART`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint};
use barid_core::feed::cosignature::cosign;
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::note::Note;
use barid_core::feed::tree::{Frontier, root_at};
use barid_core::names::{FeedId, Hash, Member, Undisclosed};
use bytes::Bytes;

use super::release::Release;
use super::run::{Group, Writer};
use super::{COMPANY_WAIT, Custodies, Gate, Keys, checkpoint_of, is_behind, later};
use crate::store::{Cosigned, CustodyRecord, FeedState, FeedTree};

/// Time from an answer to the next one, so that a feed in full flow is not answered entry by entry. What comes alone does not wait for it.
const ANSWERS_APART: Duration = Duration::from_millis(10);

/// Pause after a commit of answers was refused, as on a full disk.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// What this node has said of a feed, durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The feed.
    pub feed: FeedId,
    /// Our cosigned note, if the feed had reached a checkpoint.
    pub cosigned: Option<Bytes>,
    /// Our custody notes for the feed's owner.
    pub custody: Vec<Bytes>,
}

/// By feed, the checkpoint to cosign, which the feed has reached; `None` if only its custody is spoken of.
type Owed = BTreeMap<FeedId, Option<SignedCheckpoint>>;

/// The newest batch of a feed speaks for those before it.
fn owe(owed: &mut Owed, feed: FeedId, checkpoint: Option<SignedCheckpoint>) {
    let before = owed.entry(feed).or_default();
    *before = checkpoint.or(before.take());
}

/// How far this node has cosigned a feed: it says nothing of less of it, and nothing of another history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    size: u64,
    /// The root that it cosigned there; `None`: that of the copy held here.
    root: Option<Hash>,
}

impl Word {
    pub(super) fn of(cosigned: &Cosigned) -> Self {
        let said = Note::parse(&cosigned.note).ok().and_then(|note| Checkpoint::parse_text(&note.text).ok());
        Self { size: cosigned.size, root: said.map(|said| said.root) }
    }
}

/// Whether something may be said of a copy.
enum Permitted {
    Yes,
    /// Once what is being committed can be read.
    Later,
    /// Not of this copy: it is shorter than what was cosigned, or another history.
    No,
}

/// Feeds that answers are owed for.
#[derive(Default)]
pub(super) struct Debts {
    feeds: Owed,
    /// When the oldest is due.
    due: Option<Instant>,
    /// When this node last spoke.
    spoken: Option<Instant>,
}

impl Debts {
    /// Owed from now on, if it was not before.
    pub(super) fn add(&mut self, feed: FeedId, checkpoint: Option<SignedCheckpoint>, now: Instant) {
        let apart = self.spoken.map_or(now, |spoken| spoken + ANSWERS_APART);
        self.due.get_or_insert(apart.max(now + COMPANY_WAIT));
        owe(&mut self.feeds, feed, checkpoint);
    }

    fn extend(&mut self, others: Self, now: Instant) {
        for (feed, checkpoint) in others.feeds {
            self.add(feed, checkpoint, now);
        }
    }

    /// The commit was refused: it is tried again later.
    pub(super) fn postpone(&mut self) {
        self.due = self.due.map(|_| Instant::now() + REFUSED_PAUSE);
    }

    /// What is owed for a feed as it was when the store was opened: the node may have stopped before it had spoken of all.
    pub(super) fn owe_since(&mut self, state: &FeedState, cosigned_size: u64, spoken_size: u64) {
        let size = state.frontier.size();
        if state.checkpoint_size != size || (cosigned_size >= size && spoken_size >= size) {
            return;
        }
        self.add(state.feed.clone(), SignedCheckpoint::kept(state.checkpoint.clone()).ok(), Instant::now());
    }

    /// When to speak; `None`: there is nothing to say, or it must not be said now.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl Writer {
    /// Whether what is owed goes into this commit.
    fn speaks_in(&self, group: &Group) -> bool {
        let due = |debts: &Debts| debts.due.is_some_and(|due| due <= Instant::now());
        let owed = self.debts.due.is_some() || group.debts.due.is_some();
        // With what others have said, as company; not with what was refused.
        let company =
            group.entries == 0 && group.releases.iter().any(|release| matches!(release, Release::Keep { .. }));
        owed && (group.speak_now || company || due(&self.debts))
    }

    /// Takes up, of what is kept, our own words: others had kept them while a store was lost.
    pub(super) fn remember(&self, group: &mut Group, kept: &[Cosigned]) {
        for cosigned in kept.iter().filter(|cosigned| cosigned.cosigner == self.shared.feed.member) {
            group.last_time = later(cosigned.time, group.last_time);
            let word = group.words.get(&cosigned.feed).or_else(|| self.words.get(&cosigned.feed));
            if word.is_none_or(|word| word.size < cosigned.size) {
                group.words.insert(cosigned.feed.clone(), Word::of(cosigned));
            }
        }
    }

    /// Whether a copy that `edge` ends continues what this node has cosigned: a store that was lost took the memory of it along, and peers have
    /// given it back.
    fn permitted(&self, group: &Group, feed: &FeedId, edge: &Frontier) -> Permitted {
        let Some(word) = group.words.get(feed).or_else(|| self.words.get(feed)) else { return Permitted::Yes };
        let Some(said) = word.root else { return Permitted::Yes };
        let held = self.edges.get(feed).map_or(0, Frontier::size);
        let root = match word.size {
            size if size > edge.size() => return Permitted::No,
            size if size == edge.size() => Ok(edge.root()),
            size if size > held => return Permitted::Later,
            size => root_at(&FeedTree { store: self.shared.store.as_ref(), feed }, size),
        };
        match root {
            Ok(root) if root == said => Permitted::Yes,
            Ok(_) => {
                if self.shared.contradicting.lock().insert(feed.clone()) {
                    tracing::error!(%feed, size = word.size, "this node has cosigned another history: it says nothing of this one");
                }
                Permitted::No
            }
            Err(_) => Permitted::Later,
        }
    }

    /// Puts answers into the commit: all that is owed from before and from this group, or `None`. Nothing is said while the clock is behind, nor in
    /// doubt: a store that may have forgotten entries may have forgotten what it said of others'.
    pub(super) fn speak(&self, group: &mut Group) -> Option<Vec<Answers>> {
        if !self.speaks_in(group) {
            return None;
        }
        let (seconds, _) = self.shared.now();
        let time = later(seconds, group.last_time);
        if is_behind(time, seconds) || matches!(*self.shared.gate.borrow(), Gate::InDoubt(_)) {
            return Some(Vec::new());
        }
        let me = &self.shared.feed.member;
        let mut owed = self.debts.feeds.clone();
        group.debts.feeds.clone().into_iter().for_each(|(feed, checkpoint)| owe(&mut owed, feed, checkpoint));
        let mut spoken = Vec::with_capacity(owed.len());
        for (feed, checkpoint) in owed {
            let Some(edge) = group.edges.get(&feed).or_else(|| self.edges.get(&feed)) else { continue };
            match self.permitted(group, &feed, edge) {
                Permitted::Yes => {}
                Permitted::Later => {
                    group.speak_again = true;
                    continue;
                }
                Permitted::No => continue,
            }
            let progress = progress_of(&mut group.custodies, &self.custodies, &feed);
            let tree = checkpoint_of(&feed, edge);
            let custody = custody_of(&tree, me, progress.size..tree.size, &progress.not_held, time, &self.keys);
            progress.size = tree.size;
            progress.not_held.clear();
            // The key's name and kind were checked on start.
            let cosigned = checkpoint.and_then(|checkpoint| {
                let (size, note) = (checkpoint.checkpoint.size, cosign(&checkpoint, &self.keys.mirror, time).ok()?);
                Some(Cosigned { feed: feed.clone(), cosigner: me.clone(), size, time, note })
            });
            spoken.push(Answers {
                feed,
                cosigned: cosigned.as_ref().map(|cosigned| cosigned.note.clone()),
                custody: custody.iter().map(|record| record.note.clone()).collect(),
            });
            if let Some(cosigned) = &cosigned {
                group.words.insert(cosigned.feed.clone(), Word { size: cosigned.size, root: None });
            }
            group.commit.cosigned.extend(cosigned);
            group.commit.custody.extend(custody);
            group.last_time = time;
        }
        Some(spoken)
    }

    /// After the commit: tells the links what was said, and remembers what is owed now.
    pub(super) fn said(&mut self, group: Debts, spoken: Option<Vec<Answers>>, again: bool) {
        self.debts.extend(group, Instant::now());
        let Some(spoken) = spoken else { return };
        // What could not be said is said with what comes next.
        self.debts.due = again.then(|| Instant::now() + ANSWERS_APART);
        self.debts.spoken = Some(Instant::now());
        for answers in spoken {
            self.debts.feeds.remove(&answers.feed);
            // Nobody may be linked; owners ask for what they missed.
            let _ = self.shared.said.send(Arc::new(answers));
        }
    }
}

/// What has been said of a feed, in this commit or before it.
pub(super) fn progress_of<'a>(
    group: &'a mut Custodies,
    before: &Custodies,
    feed: &FeedId,
) -> &'a mut super::CustodyProgress {
    group.entry(feed.clone()).or_insert_with(|| before.get(feed).cloned().unwrap_or_default())
}

/// Custody notes on `range`: one, or several where one cannot list all that is not held. None if the range is empty.
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
        // The key's name and kind were checked on start, the ranges ascend: a note that cannot be made is a defect that costs the note.
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
    use barid_core::feed::tree::Frontier;
    use barid_core::follow::VerifiedBatch;

    use super::*;
    use crate::committer::Kept;
    use crate::committer::testing::{batch, of, start};
    use crate::store::memory::MemoryStore;
    use crate::store::{Append, Commit, Content, NewEntry, Store};

    #[tokio::test]
    async fn one_answer_speaks_of_all_that_came_before_it() {
        let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let committer = start(&store, folder.path());
        let mut said = committer.said();
        let first = batch(&Frontier::new(), 2);
        let second = batch(&first.frontier, 3);
        // Queued together, so that both are there before the first answer is due.
        let (one, two) = (committer.appending(first).await.unwrap(), committer.appending(second).await.unwrap());
        assert_eq!((one.await.unwrap().unwrap().size, two.await.unwrap().unwrap().size), (2, 5));
        committer.keep(Kept::default()).await.unwrap();
        let custody = store.custody_newest(&of("tn")).unwrap();
        assert_eq!(custody.last().map(|note| note.range.end), Some(5));
        let cosigned = store.cosigned_newest(&of("tn")).unwrap();
        assert_eq!(cosigned.iter().map(|note| note.size).collect::<Vec<_>>(), [5]);
        // Told behind the commit.
        let told = said.recv().await.unwrap();
        assert_eq!((&told.feed, told.cosigned.as_ref()), (&of("tn"), Some(&cosigned[0].note)));
        committer.stop().await;
    }

    /// The word of ma on a batch, as a peer gives it back.
    fn given_back(batch: &VerifiedBatch) -> Kept {
        let mirror = SigningKey::from_seed("ma.rabat.example/mirror", Algorithm::CosignatureEd25519, [8; 32]).unwrap();
        let (size, time) = (batch.frontier.size(), 1_764_000_000);
        let note = cosign(&batch.checkpoint, &mirror, time).unwrap();
        let word = Cosigned { feed: batch.feed.clone(), cosigner: "ma".parse().unwrap(), size, time, note };
        Kept { cosigned: vec![word], ..Kept::default() }
    }

    #[tokio::test]
    async fn what_was_forgotten_with_a_store_is_not_contradicted_once_it_is_known_again() {
        let five = batch(&Frontier::new(), 5);
        let other = |first: &VerifiedBatch| {
            // Another history: the entries from the third on are not those of `five`.
            batch(&first.frontier, 3)
        };
        for (continues, said) in [(true, 5), (false, 0)] {
            let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
            let committer = start(&store, folder.path());
            committer.keep(given_back(&five)).await.unwrap();
            let size = || {
                let cosigned = store.cosigned_newest(&of("tn")).unwrap();
                let custody = store.custody_newest(&of("tn")).unwrap().last().map_or(0, |note| note.range.end);
                (cosigned.iter().map(|note| note.size).max(), custody)
            };
            if continues {
                committer.appending(batch(&Frontier::new(), 5)).await.unwrap().await.unwrap().unwrap();
            } else {
                let first = batch(&Frontier::new(), 2);
                let second = other(&first);
                committer.appending(first).await.unwrap().await.unwrap().unwrap();
                committer.keep(Kept::default()).await.unwrap();
                assert_eq!(size(), (Some(5), 0), "of less than it has cosigned it says nothing");
                committer.appending(second).await.unwrap().await.unwrap().unwrap();
            }
            committer.stop().await;
            assert_eq!(size(), (Some(5), said), "continues: {continues}");
            assert_eq!(committer.contradicting().contains(&of("tn")), !continues, "the operator is told");
            // Nor after a restart.
            start(&store, folder.path()).stop().await;
            assert_eq!(size(), (Some(5), said), "continues: {continues}");
        }
    }

    #[tokio::test]
    async fn a_node_in_doubt_says_nothing_of_others() {
        let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let committer = start(&store, folder.path());
        assert!(committer.doubt("a peer holds more of its feed".into()));
        committer.appending(batch(&Frontier::new(), 3)).await.unwrap().await.unwrap().unwrap();
        committer.stop().await;
        assert!(store.cosigned_newest(&of("tn")).unwrap().is_empty());
        assert!(store.custody_newest(&of("tn")).unwrap().is_empty());
    }

    #[test]
    fn what_has_stopped_holds_the_store_no_more() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for _ in 0..100 {
            let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
            let committer = start(&store, folder.path());
            runtime.block_on(committer.stop());
            drop(committer);
            assert_eq!(Arc::strong_count(&store), 1, "else the process may end before the store is closed");
        }
    }

    #[tokio::test]
    async fn what_a_node_had_not_said_when_it_was_cut_off_it_says_when_it_is_back() {
        let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let VerifiedBatch { feed, first, entries, checkpoint, .. } = batch(&Frontier::new(), 3);
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
        // Unasked: nothing else may come for long.
        let said = tokio::time::timeout(Duration::from_secs(60), committer.said().recv()).await;
        assert_eq!(said.unwrap().unwrap().feed, of("tn"));
        committer.stop().await;
        assert_eq!(store.cosigned_newest(&of("tn")).unwrap()[0].size, 3);
        let custody = &store.custody_newest(&of("tn")).unwrap()[0];
        assert_eq!((custody.range.clone(), custody.not_held.as_slice()), (0..3, std::slice::from_ref(&(0..3))));
        // And not again.
        let seq = store.seq();
        start(&store, folder.path()).stop().await;
        assert_eq!(store.seq(), seq);
    }
}
