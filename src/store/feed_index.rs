//! The in-memory index of the disk store: feeds, newest notes and newest commits.
//!
//! In scope: how a commit changes it, and what the applier must write for that commit. Out of
//! scope: durability.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use barid_core::bulletin::Priority;
use barid_core::ids::{Digest, FeedId, Hash, Member};
use barid_core::limits::NOT_HELD_RANGES_MAX;
use bytes::Bytes;
use uuid::Uuid;

use super::index_db::references::Referrer;
use super::keys::{BackfillRef, FeedNumber, FeedRow, NoteRef};
use super::log::Position;
use super::priority::{self, OutOfOrder};
use super::recent_ids::{EntryRef, RecentIds};
use super::references::Role;
use super::subscriptions::Subscriptions;
use super::tail_cache::TailCache;
use super::tree_cache::{Tile, TileId, TiledTree};
use super::validate::{self, CustodyOrder, UndisclosedRun};
use super::{Committed, Content, Cosigned, CustodyRecord, FeedState, ReferenceKind, Subscription};

/// The state that reads need without the index database.
pub(super) struct State {
    pub(super) seq: u64,
    pub(super) end_offset: u64,
    pub(super) feeds: Vec<FeedIndex>,
    pub(super) numbers: BTreeMap<FeedId, FeedNumber>,
    pub(super) tail_cache: TailCache,
    pub(super) ids: RecentIds,
    pub(super) subscriptions: Subscriptions,
    pub(super) rosters: BTreeMap<u64, NoteRef>,
    pub(super) crls: BTreeMap<String, NoteRef>,
    pub(super) forks: BTreeMap<String, NoteRef>,
    /// Notes not yet applied to the index database, with the number of their commit.
    pub(super) pending_cosigned: VecDeque<(u64, FeedNumber, Cosigned)>,
    pub(super) pending_custody: VecDeque<(u64, FeedNumber, CustodyRecord, CustodyOrder)>,
    /// References not yet applied, with the number of their commit.
    pub(super) pending_references: VecDeque<(u64, Referred, Referrer)>,
    /// For each member an upper bound of the ids that its own Updates and Cancels refer to. No
    /// look-up is needed for ids above it.
    pub(super) superseded: BTreeMap<Member, Uuid>,
    /// Places of backfilled and out-of-order content not yet applied to the index database, with
    /// the number of the commit.
    pub(super) pending_backfills: HashMap<(FeedNumber, u64), (u64, BackfillRef)>,
    /// Urgent entries not yet applied; the kind is in `FeedIndex::urgent`.
    pending_priorities: VecDeque<(u64, FeedNumber, u64)>,
}

/// An entry that is held ahead of its feed's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfOrderEntry {
    pub(super) digest: Digest,
    pub(super) at: BackfillRef,
    /// Time of its commit in unix ms.
    pub(super) since_ms: u64,
}

/// A bulletin that an entry refers to, and how.
pub(super) type Referred = (Member, Uuid, Role);

/// One feed.
pub(super) struct FeedIndex {
    pub(super) feed: FeedId,
    pub(super) tiled_tree: TiledTree,
    pub(super) disclosed: u64,
    pub(super) checkpoint: Bytes,
    pub(super) checkpoint_size: u64,
    pub(super) consistency_proof: Vec<Hash>,
    pub(super) checkpoint_at: Option<NoteRef>,
    /// The newest runs held as digests only, at most [`NOT_HELD_RANGES_MAX`].
    pub(super) runs: VecDeque<UndisclosedRun>,
    /// Whether the index database may have older runs.
    pub(super) older_runs: bool,
    /// Whether any entry was backfilled or came ahead of the order.
    pub(super) backfilled: bool,
    /// Entries held out of order, by index.
    pub(super) out_of_order: BTreeMap<u64, OutOfOrderEntry>,
    /// Urgent entries not yet applied to the index database, by index.
    pub(super) priorities: BTreeMap<u64, Priority>,
    /// The note of the largest size of each cosigner.
    pub(super) cosigned: BTreeMap<Member, Cosigned>,
    /// The custody note of each holder that ends last among those that join the earlier ones.
    pub(super) custody: BTreeMap<Member, CustodyRecord>,
    /// All members that have given a custody note.
    pub(super) holders: BTreeSet<Member>,
}

/// A commit not yet applied to the index database, and everything needed to apply it.
pub(super) struct PendingCommit {
    pub(super) committed: Arc<Committed>,
    pub(super) position: Position,
    /// Its bytes in the log.
    pub(super) len: u64,
    /// Feed numbers of the appends, the cosigned notes and the custody notes.
    pub(super) append_feeds: Vec<FeedNumber>,
    pub(super) cosigned_feeds: Vec<FeedNumber>,
    pub(super) custody_feeds: Vec<(FeedNumber, CustodyOrder)>,
    pub(super) backfill_feeds: Vec<FeedNumber>,
    pub(super) priority_feeds: Vec<FeedNumber>,
    /// Entries held out of order that an append has reached or displaced.
    pub(super) matched: Vec<(FeedNumber, u64)>,
    /// Urgent entries of this commit.
    pub(super) priorities: Vec<(FeedNumber, u64, Priority)>,
    /// New rows of all feeds that it changes.
    pub(super) rows: Vec<(FeedNumber, FeedRow)>,
    pub(super) runs: Vec<(FeedNumber, UndisclosedRun)>,
    pub(super) tiles: Vec<(FeedNumber, TileId, Arc<Tile>)>,
    pub(super) references: Vec<(Referred, Referrer)>,
    /// New states of the subscriptions that it changes; `None`: removed.
    pub(super) subscriptions: Vec<(String, Option<Subscription>)>,
    pub(super) since: Instant,
}

impl PendingCommit {
    /// Returns the feeds whose entries are in this commit.
    pub(super) fn feeds_of_entries(&self) -> impl Iterator<Item = FeedNumber> {
        self.append_feeds.iter().chain(&self.backfill_feeds).chain(&self.priority_feeds).copied()
    }
}

impl OutOfOrder for State {
    fn digest(&self, feed: &FeedId, index: u64) -> Option<Digest> {
        Some(self.feed_index_of(feed)?.1.out_of_order.get(&index)?.digest)
    }

    fn unexpired(&self, feed: &FeedId, now_ms: u64) -> Vec<u64> {
        let Some((_, feed_index)) = self.feed_index_of(feed) else { return Vec::new() };
        let placed = feed_index.out_of_order.iter().filter(|(_, held)| priority::is_unexpired(held.since_ms, now_ms));
        placed.map(|(index, _)| *index).collect()
    }

    fn first_in(&self, feed: &FeedId, range: Range<u64>) -> Option<u64> {
        if range.is_empty() {
            return None;
        }
        self.feed_index_of(feed)?.1.out_of_order.range(range).next().map(|(index, _)| *index)
    }
}

impl FeedIndex {
    pub(super) fn new(feed: FeedId) -> Self {
        Self {
            feed,
            tiled_tree: TiledTree::default(),
            disclosed: 0,
            checkpoint: Bytes::new(),
            checkpoint_size: 0,
            consistency_proof: Vec::new(),
            checkpoint_at: None,
            runs: VecDeque::new(),
            older_runs: false,
            backfilled: false,
            out_of_order: BTreeMap::new(),
            priorities: BTreeMap::new(),
            cosigned: BTreeMap::new(),
            custody: BTreeMap::new(),
            holders: BTreeSet::new(),
        }
    }

    /// Returns the state for callers; `None` before the first append, for example if only
    /// attestations about the feed are held.
    pub(super) fn state(&self) -> Option<FeedState> {
        self.checkpoint_at.map(|_| FeedState {
            feed: self.feed.clone(),
            compact_range: self.tiled_tree.compact_range().clone(),
            checkpoint: self.checkpoint.clone(),
            checkpoint_size: self.checkpoint_size,
            consistency_proof: self.consistency_proof.clone(),
            disclosed: self.disclosed,
        })
    }

    /// Removes entry `index`, which is now held in full, from the runs held as digests only.
    fn shorten_run(&mut self, index: u64) {
        let Some(place) = self.runs.partition_point(|(start, ..)| *start <= index).checked_sub(1) else { return };
        let Some(run) = self.runs.get(place).copied().filter(|(_, end, _)| index < *end) else { return };
        self.runs.remove(place);
        for (left, at) in validate::split_run(run, index).zip(place..) {
            self.runs.insert(at, left);
        }
        self.trim_runs();
    }

    fn trim_runs(&mut self) {
        while self.runs.len() > NOT_HELD_RANGES_MAX {
            self.runs.pop_front();
            self.older_runs = true;
        }
    }

    fn row(&self) -> FeedRow {
        FeedRow {
            origin: self.feed.to_string(),
            size: self.tiled_tree.compact_range().size(),
            disclosed: self.disclosed,
            checkpoint: self.checkpoint_at,
        }
    }
}

/// Copies bytes, so that the message they came in is not kept in memory.
pub(super) fn detached(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

impl State {
    pub(super) fn new(tail_cache_bytes: usize) -> Self {
        Self {
            seq: 0,
            end_offset: 1,
            feeds: Vec::new(),
            numbers: BTreeMap::new(),
            tail_cache: TailCache::new(tail_cache_bytes),
            ids: RecentIds::default(),
            subscriptions: Subscriptions::default(),
            rosters: BTreeMap::new(),
            crls: BTreeMap::new(),
            forks: BTreeMap::new(),
            pending_cosigned: VecDeque::new(),
            pending_custody: VecDeque::new(),
            pending_references: VecDeque::new(),
            superseded: BTreeMap::new(),
            pending_backfills: HashMap::new(),
            pending_priorities: VecDeque::new(),
        }
    }

    pub(super) fn feed_index(&self, number: FeedNumber) -> Option<&FeedIndex> {
        self.feeds.get(number as usize)
    }

    pub(super) fn feed_index_of(&self, feed: &FeedId) -> Option<(FeedNumber, &FeedIndex)> {
        let number = *self.numbers.get(feed)?;
        Some((number, self.feed_index(number)?))
    }

    /// Returns number and index of a feed, and whether they were created.
    fn feed_index_mut(&mut self, feed: &FeedId) -> (FeedNumber, &mut FeedIndex, bool) {
        let (number, new) = match self.numbers.get(feed) {
            Some(number) => (*number, false),
            None => (u32::try_from(self.feeds.len()).unwrap_or(u32::MAX), true),
        };
        if new {
            self.numbers.insert(feed.clone(), number);
            self.feeds.push(FeedIndex::new(feed.clone()));
        }
        let feed_index = self.feeds.get_mut(number as usize).expect("each number is the place of a feed index");
        (number, feed_index, new)
    }

    /// Makes a durable commit visible.
    pub(super) fn apply_commit(&mut self, committed: &Arc<Committed>, position: Position, len: u64) -> PendingCommit {
        let commit = &committed.commit;
        let mut pending = PendingCommit {
            committed: Arc::clone(committed),
            position,
            len,
            append_feeds: Vec::with_capacity(commit.appends.len()),
            cosigned_feeds: Vec::with_capacity(commit.cosigned.len()),
            custody_feeds: Vec::with_capacity(commit.custody.len()),
            backfill_feeds: Vec::with_capacity(commit.backfills.len()),
            priority_feeds: Vec::with_capacity(commit.priority.len()),
            matched: Vec::new(),
            priorities: Vec::new(),
            rows: Vec::new(),
            runs: Vec::new(),
            tiles: Vec::new(),
            references: Vec::new(),
            subscriptions: Vec::new(),
            since: Instant::now(),
        };
        self.seq = committed.seq;
        self.end_offset = committed.end_offset;
        // Backfills before appends: an append may extend the last run, which a backfill may have
        // shortened.
        self.apply_backfills(committed, position, &mut pending);
        self.apply_appends(committed, position, &mut pending);
        self.apply_priority(committed, position, &mut pending);
        for (number, index, class) in &pending.priorities {
            if let Some(feed_index) = self.feeds.get_mut(*number as usize) {
                feed_index.priorities.insert(*index, *class);
            }
            self.pending_priorities.push_back((committed.seq, *number, *index));
        }
        pending.references.sort_by_key(|(_, at)| at.offset);
        for ((member, id, role), _) in &pending.references {
            if *role == Role::Other(ReferenceKind::Supersedes)
                && self.superseded.get(member).is_none_or(|held| held < id)
            {
                self.superseded.insert(member.clone(), *id);
            }
        }
        let references = pending.references.iter();
        self.pending_references.extend(references.map(|(referred, at)| (committed.seq, referred.clone(), *at)));
        for cosigned in &commit.cosigned {
            let (number, feed_index, new) = self.feed_index_mut(&cosigned.feed);
            let cosigned = Cosigned { note: detached(&cosigned.note), ..cosigned.clone() };
            if feed_index.cosigned.get(&cosigned.cosigner).is_none_or(|held| held.size < cosigned.size) {
                feed_index.cosigned.insert(cosigned.cosigner.clone(), cosigned.clone());
            }
            if new {
                pending.rows.push((number, feed_index.row()));
            }
            pending.cosigned_feeds.push(number);
            self.pending_cosigned.push_back((committed.seq, number, cosigned));
        }
        for custody in &commit.custody {
            let (number, feed_index, new) = self.feed_index_mut(&custody.feed);
            let custody = CustodyRecord { note: detached(&custody.note), ..custody.clone() };
            let ends = feed_index.custody.get(&custody.holder).map(|held| held.range.end);
            let order = validate::custody_order(ends, &custody.range);
            if !feed_index.holders.contains(&custody.holder) {
                feed_index.holders.insert(custody.holder.clone());
            }
            if order.newest {
                feed_index.custody.insert(custody.holder.clone(), custody.clone());
            }
            if new {
                pending.rows.push((number, feed_index.row()));
            }
            pending.custody_feeds.push((number, order));
            self.pending_custody.push_back((committed.seq, number, custody, order));
        }
        pending.subscriptions = self.subscriptions.apply(commit);
        for (roster, place) in commit.rosters.iter().zip(0..) {
            self.rosters.insert(roster.version, NoteRef { position, place });
        }
        for (crl, place) in commit.crls.iter().zip(0..) {
            self.crls.insert(crl.authority.clone(), NoteRef { position, place });
        }
        for (fork, place) in commit.forks.iter().zip(0..) {
            self.forks.insert(fork.key(), NoteRef { position, place });
        }
        self.tail_cache.push(committed, &pending.append_feeds);
        pending
    }

    fn apply_backfills(&mut self, committed: &Arc<Committed>, position: Position, pending: &mut PendingCommit) {
        let appends = committed.commit.appends.iter().flat_map(|append| &append.entries);
        let appended = appends.filter(|entry| matches!(entry.content, Content::Disclosed { .. })).count();
        let mut offset = committed.first_offset + appended as u64;
        for (backfill, place) in committed.commit.backfills.iter().zip(0..) {
            let (number, feed_index, _) = self.feed_index_mut(&backfill.feed);
            let (mut ids, mut backfilled) = (Vec::new(), Vec::with_capacity(backfill.entries.len()));
            feed_index.backfilled = true;
            for ((index, entry), slot) in backfill.entries.iter().zip(0..) {
                feed_index.shorten_run(*index);
                feed_index.disclosed += 1;
                if let Content::Disclosed { header, .. } = &entry.content {
                    if let Some(id) = validate::id_of(&backfill.feed, header.as_deref()) {
                        ids.push((id, EntryRef { epoch: backfill.feed.epoch, index: *index, feed: number, offset }));
                    }
                    for referred in validate::references(&backfill.feed, header.as_deref()) {
                        pending.references.push((referred, Referrer { offset, index: *index, feed: number }));
                    }
                    let class = priority::of_header(header.as_deref());
                    pending.priorities.extend(class.map(|class| (number, *index, class)));
                }
                let at = BackfillRef { at: NoteRef { position, place }, slot };
                backfilled.push(((number, *index), (committed.seq, at)));
                offset += 1;
            }
            pending.rows.push((number, feed_index.row()));
            self.pending_backfills.extend(backfilled);
            pending.backfill_feeds.push(number);
            self.ids.extend(&backfill.feed.member, ids.into_iter());
        }
    }

    /// Indexes priority entries. Their content is in the record after the backfills, and is found
    /// in the same way.
    fn apply_priority(&mut self, committed: &Arc<Committed>, position: Position, pending: &mut PendingCommit) {
        let offsets = committed.end_offset.saturating_sub(committed.commit.priority.len() as u64)..;
        let places = u32::try_from(committed.commit.backfills.len()).unwrap_or(u32::MAX)..;
        for ((priority, place), offset) in committed.commit.priority.iter().zip(places).zip(offsets) {
            let (number, feed_index, new) = self.feed_index_mut(&priority.feed);
            let (index, feed) = (priority.index, &priority.feed);
            let at = BackfillRef { at: NoteRef { position, place }, slot: 0 };
            feed_index.backfilled = true;
            feed_index.out_of_order.insert(
                index,
                OutOfOrderEntry { digest: priority.entry.digest, at, since_ms: committed.commit.time_unix_ms },
            );
            if new {
                pending.rows.push((number, feed_index.row()));
            }
            pending.priority_feeds.push(number);
            self.pending_backfills.insert((number, index), (committed.seq, at));
            if let Content::Disclosed { header, .. } = &priority.entry.content {
                for referred in validate::references(feed, header.as_deref()) {
                    pending.references.push((referred, Referrer { offset, index, feed: number }));
                }
                let class = priority::of_header(header.as_deref());
                pending.priorities.extend(class.map(|class| (number, index, class)));
                let id = validate::id_of(feed, header.as_deref());
                let id = id.map(|id| (id, EntryRef { epoch: feed.epoch, index, feed: number, offset }));
                self.ids.extend(&feed.member, id.into_iter());
            }
        }
    }

    fn apply_appends(&mut self, committed: &Arc<Committed>, position: Position, pending: &mut PendingCommit) {
        let mut offset = committed.first_offset;
        for (append, place) in committed.commit.appends.iter().zip(0..) {
            let (number, feed_index, _) = self.feed_index_mut(&append.feed);
            let mut ids = Vec::new();
            let mut runs = feed_index.runs.pop_back().into_iter().collect::<Vec<_>>();
            let before = runs.first().copied();
            let displaced =
                |index: u64| committed.commit.displaced.iter().any(|(feed, at)| *feed == append.feed && *at == index);
            for (index, entry) in (append.first..).zip(&append.entries) {
                feed_index
                    .tiled_tree
                    .append(&entry.digest, |id, tile| pending.tiles.push((number, id, Arc::new(tile))));
                if displaced(index) && feed_index.out_of_order.remove(&index).is_some() {
                    pending.matched.push((number, index));
                }
                match &entry.content {
                    Content::Disclosed { header, .. } => {
                        if let Some(id) = validate::id_of(&append.feed, header.as_deref()) {
                            ids.push((id, EntryRef { epoch: append.feed.epoch, index, feed: number, offset }));
                        }
                        for referred in validate::references(&append.feed, header.as_deref()) {
                            pending.references.push((referred, Referrer { offset, index, feed: number }));
                        }
                        let class = priority::of_header(header.as_deref());
                        pending.priorities.extend(class.map(|class| (number, index, class)));
                        feed_index.disclosed += 1;
                        offset += 1;
                    }
                    Content::Undisclosed(_) if feed_index.out_of_order.remove(&index).is_some() => {
                        feed_index.disclosed += 1;
                        pending.matched.push((number, index));
                    }
                    Content::Undisclosed(reason) => validate::extend_runs(&mut runs, index, *reason),
                }
            }
            pending.runs.extend(runs.iter().filter(|run| Some(**run) != before).map(|run| (number, *run)));
            feed_index.runs.extend(runs);
            feed_index.trim_runs();
            feed_index.checkpoint = detached(&append.checkpoint);
            feed_index.checkpoint_size = append.checkpoint_size;
            feed_index.consistency_proof.clone_from(&append.consistency_proof);
            feed_index.checkpoint_at = Some(NoteRef { position, place });
            pending.rows.push((number, feed_index.row()));
            pending.append_feeds.push(number);
            self.ids.extend(&append.feed.member, ids.into_iter());
        }
    }

    /// Releases state that is now in the index database: everything up to commit `seq`, and the
    /// entries of these feeds with offsets below `end_offset`.
    pub(super) fn applied(&mut self, seq: u64, end_offset: u64, feeds: &[FeedNumber]) {
        self.tail_cache.applied(seq);
        while self.pending_cosigned.pop_front_if(|(number, ..)| *number <= seq).is_some() {}
        while self.pending_custody.pop_front_if(|(number, ..)| *number <= seq).is_some() {}
        while self.pending_references.pop_front_if(|(number, ..)| *number <= seq).is_some() {}
        self.pending_backfills.retain(|_, (number, _)| *number > seq);
        while let Some((_, number, index)) = self.pending_priorities.pop_front_if(|(number, ..)| *number <= seq) {
            if let Some(feed_index) = self.feeds.get_mut(number as usize) {
                feed_index.priorities.remove(&index);
            }
        }
        for number in feeds {
            if let Some(feed_index) = self.feeds.get(*number as usize) {
                self.ids.applied(&feed_index.feed.member, end_offset);
            }
        }
    }
}
