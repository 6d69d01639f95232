//! The store in memory, for the simulator and for tests. Everything is in maps; nothing is
//! persisted.
//!
//! In scope: the operations of [`Store`], with the same results as the disk store. Out of scope:
//! bounds on memory.

mod parts;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use barid_core::bulletin::Priority;
use barid_core::feed::tree::NodeId;
use barid_core::ids::{Digest, FeedId, Hash, Member, Undisclosed};
use barid_core::limits::NOT_HELD_RANGES_MAX;
use barid_core::proto;
use barid_core::ranges::RangeSet;
use bytes::Bytes;
use parking_lot::Mutex;
use uuid::Uuid;

use self::parts::{References, first_page};
use super::chain::Chain;
use super::priority::{self, OutOfOrder};
use super::subscriptions::Subscriptions;
use super::tree_cache::{Tile, TileId, TiledTree};
use super::validate::{self, CustodyOrder, UndisclosedRun};
use super::{
    Acks, Capacity, ChainLink, Columns, Commit, CommitError, Committed, Content, Cosigned, CrlRecord, CustodyRecord,
    DiskBytes, Entry, FeedState, ForkRecord, FsyncHistogram, Location, NewEntry, PriorityEntry, ReadError,
    ReferenceKind, RosterRecord, Store, StoreId, Subscription,
};

/// A [`Store`] in memory.
pub struct MemoryStore {
    id: StoreId,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    seq: u64,
    feeds: BTreeMap<FeedId, Feed>,
    by_offset: Vec<(FeedId, u64)>,
    ids: HashMap<(Member, Uuid), Location>,
    references: References,
    chain: Chain,
    subscriptions: Subscriptions,
    rosters: BTreeMap<u64, Bytes>,
    crls: BTreeMap<String, Bytes>,
    forks: BTreeMap<String, ForkRecord>,
    capacity: Option<Capacity>,
}

#[derive(Default)]
struct Feed {
    tiled_tree: TiledTree,
    tiles: HashMap<TileId, Tile>,
    entries: Vec<Entry>,
    disclosed: u64,
    checkpoint: Bytes,
    checkpoint_size: u64,
    consistency_proof: Vec<Hash>,
    runs: Vec<UndisclosedRun>,
    /// Entries received ahead of the order, with their offsets, and whether the feed has reached
    /// their index.
    priority: BTreeMap<u64, (PriorityEntry, u64, bool)>,
    /// Time of the commit of each.
    priority_since: BTreeMap<u64, u64>,
    priorities: BTreeMap<u64, Priority>,
    cosigned: Vec<Cosigned>,
    custody: Vec<(CustodyRecord, CustodyOrder)>,
    /// The end of each holder's custody notes that join each other.
    custody_ends: BTreeMap<Member, u64>,
}

impl MemoryStore {
    /// Creates an empty store.
    #[must_use]
    pub fn new() -> Self {
        let mut salt = [0; 16];
        // Without randomness, two stores in one process may share an identity; nothing else depends
        // on it.
        _ = getrandom::fill(&mut salt);
        Self { id: StoreId::of_salt(&salt), inner: Mutex::default() }
    }

    /// Sets the capacity that the store reports.
    pub fn set_capacity(&self, capacity: Capacity) {
        self.inner.lock().capacity = Some(capacity);
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Feed {
    fn state(&self, feed: &FeedId) -> FeedState {
        FeedState {
            feed: feed.clone(),
            compact_range: self.tiled_tree.compact_range().clone(),
            checkpoint: self.checkpoint.clone(),
            checkpoint_size: self.checkpoint_size,
            consistency_proof: self.consistency_proof.clone(),
            disclosed: self.disclosed,
        }
    }
}

impl Inner {
    fn missing(&self, feed: &FeedId, indexes: &[u64]) -> Vec<Option<(Digest, Undisclosed)>> {
        let entries = self.feeds.get(feed).map_or(&[][..], |feed| &feed.entries);
        let lack = |index: &u64| match entries.get(usize::try_from(*index).ok()?)? {
            Entry { digest, content: Content::Undisclosed(reason), .. } => Some((*digest, *reason)),
            _ => None,
        };
        indexes.iter().map(lack).collect()
    }

    fn apply(&mut self, commit: &Commit) {
        let mut ids = Vec::new();
        for append in &commit.appends {
            let feed = self.feeds.entry(append.feed.clone()).or_default();
            for (index, entry) in (append.first..).zip(&append.entries) {
                feed.tiled_tree.append(&entry.digest, |id, tile| _ = feed.tiles.insert(id, tile));
                let mut offset = None;
                if commit.displaced.iter().any(|(of, at)| *of == append.feed && *at == index)
                    && let Some((.., reached)) = feed.priority.get_mut(&index)
                {
                    *reached = true;
                }
                match &entry.content {
                    Content::Disclosed { header, .. } => {
                        self.by_offset.push((append.feed.clone(), index));
                        let number = self.by_offset.len() as u64;
                        offset = Some(number);
                        feed.disclosed += 1;
                        if let Some(id) = validate::id_of(&append.feed, header.as_deref()) {
                            ids.push((id, Location { feed: append.feed.clone(), index, offset: number }));
                        }
                        let at = Location { feed: append.feed.clone(), index, offset: number };
                        self.references.add(&at, header.as_deref());
                        feed.priorities.extend(priority::of_header(header.as_deref()).map(|class| (index, class)));
                    }
                    Content::Undisclosed(_) if feed.priority.get(&index).is_some_and(|(.., reached)| !reached) => {
                        let held = feed.priority.get_mut(&index).expect("it was found");
                        held.2 = true;
                        feed.disclosed += 1;
                        let (content, offset) = (held.0.entry.content.clone(), Some(held.1));
                        let (feed_id, digest) = (append.feed.clone(), entry.digest);
                        feed.entries.push(Entry { feed: feed_id, index, digest, content, offset });
                        continue;
                    }
                    Content::Undisclosed(reason) => validate::extend_runs(&mut feed.runs, index, *reason),
                }
                feed.entries.push(Entry {
                    feed: append.feed.clone(),
                    index,
                    digest: entry.digest,
                    content: entry.content.clone(),
                    offset,
                });
            }
            feed.checkpoint = append.checkpoint.clone();
            feed.checkpoint_size = append.checkpoint_size;
            feed.consistency_proof = append.consistency_proof.clone();
        }
        for (id, location) in ids {
            self.place(id, location);
        }
        for backfill in &commit.backfills {
            for (index, entry) in &backfill.entries {
                self.backfill(&backfill.feed, *index, entry);
            }
        }
        for priority in &commit.priority {
            self.priority(priority, commit.time_unix_ms);
        }
        for cosigned in &commit.cosigned {
            self.feeds.entry(cosigned.feed.clone()).or_default().cosigned.push(cosigned.clone());
        }
        for custody in &commit.custody {
            let feed = self.feeds.entry(custody.feed.clone()).or_default();
            let ends = feed.custody_ends.get(&custody.holder).copied();
            let order = validate::custody_order(ends, &custody.range);
            if order.newest {
                feed.custody_ends.insert(custody.holder.clone(), custody.range.end);
            }
            feed.custody.push((custody.clone(), order));
        }
        self.subscriptions.apply(commit);
        self.rosters.extend(commit.rosters.iter().map(|roster| (roster.version, roster.note.clone())));
        self.forks.extend(commit.forks.iter().map(|fork| (fork.key(), fork.clone())));
        self.crls.extend(commit.crls.iter().map(|crl| (crl.authority.clone(), crl.der.clone())));
    }

    fn backfill(&mut self, feed: &FeedId, index: u64, backfilled: &NewEntry) {
        self.by_offset.push((feed.clone(), index));
        let offset = self.by_offset.len() as u64;
        let held = self.feeds.entry(feed.clone()).or_default();
        let Some(entry) = usize::try_from(index).ok().and_then(|place| held.entries.get_mut(place)) else { return };
        entry.content = backfilled.content.clone();
        entry.offset = Some(offset);
        held.disclosed += 1;
        if let Some(place) = held.runs.iter().position(|(start, end, _)| (*start..*end).contains(&index)) {
            let run = held.runs[place];
            held.runs.splice(place..=place, validate::split_run(run, index));
        }
        let Content::Disclosed { header, .. } = &backfilled.content else { return };
        held.priorities.extend(priority::of_header(header.as_deref()).map(|class| (index, class)));
        self.refer(feed, index, offset, header.as_deref());
    }

    fn priority(&mut self, priority: &PriorityEntry, time_unix_ms: u64) {
        let (feed, index) = (&priority.feed, priority.index);
        self.by_offset.push((feed.clone(), index));
        let offset = self.by_offset.len() as u64;
        let held = self.feeds.entry(feed.clone()).or_default();
        held.priority.insert(index, (priority.clone(), offset, false));
        held.priority_since.insert(index, time_unix_ms);
        let Content::Disclosed { header, .. } = &priority.entry.content else { return };
        held.priorities.extend(priority::of_header(header.as_deref()).map(|class| (index, class)));
        self.refer(feed, index, offset, header.as_deref());
    }

    fn refer(&mut self, feed: &FeedId, index: u64, offset: u64, header: Option<&proto::Header>) {
        let at = Location { feed: feed.clone(), index, offset };
        self.references.add(&at, header);
        if let Some(id) = validate::id_of(feed, header) {
            self.place(id, at);
        }
    }

    /// Of several entries with the same id, the lowest is the bulletin.
    fn place(&mut self, id: Uuid, new: Location) {
        let held = self.ids.entry((new.feed.member.clone(), id)).or_insert_with(|| new.clone());
        if (new.feed.epoch, new.index) < (held.feed.epoch, held.index) {
            *held = new;
        }
    }

    fn entry_at(&self, offset: u64) -> Option<Entry> {
        let place = usize::try_from(offset.checked_sub(1)?).ok()?;
        let (feed, index) = self.by_offset.get(place)?;
        let held = self.feeds.get(feed)?;
        // Also an entry that its feed has reached, or that was displaced.
        if let Some((priority, at, _)) = held.priority.get(index)
            && *at == offset
        {
            let NewEntry { digest, content } = priority.entry.clone();
            return Some(Entry { feed: feed.clone(), index: *index, digest, content, offset: Some(offset) });
        }
        held.entries.get(usize::try_from(*index).ok()?).cloned()
    }
}

impl OutOfOrder for Inner {
    fn digest(&self, feed: &FeedId, index: u64) -> Option<Digest> {
        let (priority, _, reached) = self.feeds.get(feed)?.priority.get(&index)?;
        (!reached).then_some(priority.entry.digest)
    }

    fn unexpired(&self, feed: &FeedId, now_ms: u64) -> Vec<u64> {
        let Some(feed) = self.feeds.get(feed) else { return Vec::new() };
        let held = feed.priority.iter().filter(|(_, (.., reached))| !reached).map(|(index, _)| *index);
        let since = |index: &u64| feed.priority_since.get(index).copied().unwrap_or(0);
        held.filter(|index| priority::is_unexpired(since(index), now_ms)).collect()
    }

    fn first_in(&self, feed: &FeedId, range: Range<u64>) -> Option<u64> {
        let held = self.feeds.get(feed).filter(|_| !range.is_empty())?;
        held.priority.range(range).find(|(_, (.., reached))| !reached).map(|(index, _)| *index)
    }
}

impl Store for MemoryStore {
    fn seq(&self) -> u64 {
        self.inner.lock().seq
    }

    fn commit(&self, mut commit: Commit, expected_seq: u64) -> Result<Arc<Committed>, CommitError> {
        let mut inner = self.inner.lock();
        if inner.seq != expected_seq {
            return Err(CommitError::Fenced { expected: expected_seq, found: inner.seq });
        }
        let size_of = |feed: &FeedId| inner.feeds.get(feed).map(|feed| feed.entries.len() as u64);
        validate::check(&commit, size_of).map_err(CommitError::Invalid)?;
        priority::check(&commit, size_of, &*inner).map_err(CommitError::Invalid)?;
        priority::match_appends(&mut commit, &*inner).map_err(CommitError::Invalid)?;
        for backfill in &commit.backfills {
            let indexes: Vec<u64> = backfill.entries.iter().map(|(index, _)| *index).collect();
            validate::check_backfill(backfill, &inner.missing(&backfill.feed, &indexes))
                .map_err(CommitError::Invalid)?;
        }
        inner.seq += 1;
        let first_offset = inner.by_offset.len() as u64 + 1;
        inner.apply(&commit);
        let (seq, end_offset) = (inner.seq, inner.by_offset.len() as u64 + 1);
        let hash = inner.chain.add(&commit, seq, first_offset..end_offset);
        Ok(Arc::new(Committed { seq: inner.seq, hash, first_offset, end_offset, commit }))
    }

    fn feeds(&self) -> Vec<FeedState> {
        let inner = self.inner.lock();
        inner.feeds.iter().filter(|(_, feed)| !feed.checkpoint.is_empty()).map(|(id, feed)| feed.state(id)).collect()
    }

    fn feed(&self, feed: &FeedId) -> Option<FeedState> {
        let inner = self.inner.lock();
        inner.feeds.get(feed).filter(|held| !held.checkpoint.is_empty()).map(|held| held.state(feed))
    }

    fn entries(&self, feed: &FeedId, from: u64, entries_max: usize, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        let inner = self.inner.lock();
        let entries = inner.feeds.get(feed).map_or(&[][..], |feed| &feed.entries);
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(entries.len());
        Ok(first_page(entries[from..].iter().cloned(), entries_max, bytes_max))
    }

    fn end_offset(&self) -> u64 {
        self.inner.lock().by_offset.len() as u64 + 1
    }

    fn id(&self) -> StoreId {
        self.id
    }

    fn link(&self, offset: u64) -> Result<Option<ChainLink>, ReadError> {
        Ok(self.inner.lock().chain.link(offset).cloned())
    }

    fn linked_entries_from(
        &self,
        from: u64,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Entry>, Vec<ChainLink>), ReadError> {
        let inner = self.inner.lock();
        let entries = first_page((from.max(1)..).map_while(|offset| inner.entry_at(offset)), entries_max, bytes_max);
        let links = inner.chain.links_of(&entries);
        Ok((entries, links))
    }

    fn history(
        &self,
        before: u64,
        entries_max: usize,
        scan_max: u64,
        wanted: &dyn Fn(&Columns) -> bool,
    ) -> Result<(Vec<Entry>, Option<u64>), ReadError> {
        let inner = self.inner.lock();
        let mut next = before.clamp(1, inner.by_offset.len() as u64 + 1);
        let stop = next.saturating_sub(scan_max).max(1);
        let mut found = Vec::new();
        while next > stop && found.len() < entries_max {
            next -= 1;
            if let Some(entry) = inner.entry_at(next)
                && let Content::Disclosed { header, .. } = &entry.content
                && wanted(&validate::columns_of(header.as_deref()))
            {
                found.push(entry);
            }
        }
        Ok((found, (next > 1).then_some(next)))
    }

    fn find(&self, member: &Member, id: Uuid) -> Result<Option<Location>, ReadError> {
        Ok(self.inner.lock().ids.get(&(member.clone(), id)).cloned())
    }

    fn references_to(
        &self,
        member: &Member,
        id: Uuid,
        kind: ReferenceKind,
        after: u64,
        max: usize,
    ) -> Result<Vec<Location>, ReadError> {
        let inner = self.inner.lock();
        let all = inner.references.others.get(&(member.clone(), id, kind)).map_or(&[][..], Vec::as_slice);
        let start = all.partition_point(|at| at.offset <= after);
        Ok(all[start..].iter().take(max).cloned().collect())
    }

    fn superseded(&self, member: &Member, ids: &[Uuid]) -> Result<Vec<bool>, ReadError> {
        let inner = self.inner.lock();
        let others = &inner.references.others;
        Ok(ids.iter().map(|id| others.contains_key(&(member.clone(), *id, ReferenceKind::Supersedes))).collect())
    }

    fn acks(&self, member: &Member, id: Uuid, issuers_max: usize) -> Result<Acks, ReadError> {
        let inner = self.inner.lock();
        let acks = inner.references.acks.get(&(member.clone(), id)).into_iter().flatten();
        Ok(Acks::of(acks.map(|(by, ack)| (by.clone(), *ack)), issuers_max, true))
    }

    fn tree_hashes(&self, feed: &FeedId, nodes: &[NodeId]) -> Result<Vec<Hash>, ReadError> {
        let inner = self.inner.lock();
        let held = inner.feeds.get(feed).ok_or_else(|| ReadError::Missing(feed.to_string()))?;
        let find = |node: &NodeId| {
            let (id, row, place) = TileId::of(*node);
            held.tiled_tree.get(*node).or_else(|| held.tiles.get(&id)?.get(row, place))
        };
        let missing =
            |node: &NodeId| ReadError::Missing(format!("{feed}: subtree {} of level {}", node.index, node.level));
        nodes.iter().map(|node| find(node).ok_or_else(|| missing(node))).collect()
    }

    fn missing(&self, feed: &FeedId, indexes: &[u64]) -> Result<Vec<Option<(Digest, Undisclosed)>>, ReadError> {
        Ok(self.inner.lock().missing(feed, indexes))
    }

    fn out_of_order(&self, feed: &FeedId, range: Range<u64>) -> Vec<(u64, Digest)> {
        let inner = self.inner.lock();
        let Some(held) = inner.feeds.get(feed).filter(|_| !range.is_empty()) else { return Vec::new() };
        let out_of_order = held.priority.range(range).filter(|(_, (.., reached))| !reached);
        out_of_order.map(|(index, (priority, ..))| (*index, priority.entry.digest)).collect()
    }

    fn out_of_order_unexpired(&self, feed: &FeedId, now_ms: u64) -> Vec<u64> {
        self.inner.lock().unexpired(feed, now_ms)
    }

    fn priority_entry(&self, feed: &FeedId, index: u64) -> Result<Option<PriorityEntry>, ReadError> {
        let inner = self.inner.lock();
        Ok(inner.feeds.get(feed).and_then(|feed| feed.priority.get(&index)).map(|(priority, ..)| priority.clone()))
    }

    fn priority_indexes(&self, feed: &FeedId, kind: Priority, from: u64, max: usize) -> Result<Vec<u64>, ReadError> {
        let inner = self.inner.lock();
        let Some(held) = inner.feeds.get(feed) else { return Ok(Vec::new()) };
        let of_kind = held.priorities.range(from..).filter(|(_, held)| **held == kind);
        Ok(of_kind.map(|(index, _)| *index).take(max).collect())
    }

    fn undisclosed_ranges_from(
        &self,
        feed: &FeedId,
        from: u64,
        max: usize,
    ) -> Result<Vec<(Range<u64>, Undisclosed)>, ReadError> {
        let inner = self.inner.lock();
        let runs = inner.feeds.get(feed).map_or(&[][..], |feed| &feed.runs);
        let runs = runs.iter().filter(|(_, end, _)| *end > from).take(max);
        Ok(runs.map(|(start, end, reason)| (*start..*end, *reason)).collect())
    }

    fn undisclosed_ranges(&self, feed: &FeedId, max: usize) -> Result<Vec<(Range<u64>, Undisclosed)>, ReadError> {
        let inner = self.inner.lock();
        let runs = inner.feeds.get(feed).map_or(&[][..], |feed| &feed.runs);
        let skipped = runs.len().saturating_sub(max.min(NOT_HELD_RANGES_MAX));
        Ok(runs[skipped..].iter().map(|(start, end, reason)| (*start..*end, *reason)).collect())
    }

    fn cosigned_newest(&self, feed: &FeedId) -> Result<Vec<Cosigned>, ReadError> {
        let inner = self.inner.lock();
        let mut newest = BTreeMap::<&Member, &Cosigned>::new();
        for cosigned in inner.feeds.get(feed).map_or(&[][..], |feed| &feed.cosigned) {
            let held = newest.entry(&cosigned.cosigner).or_insert(cosigned);
            if cosigned.size > held.size {
                *held = cosigned;
            }
        }
        Ok(newest.into_values().cloned().collect())
    }

    fn cosigned_covering(&self, feed: &FeedId, index: u64) -> Result<Vec<Cosigned>, ReadError> {
        let inner = self.inner.lock();
        let mut least = BTreeMap::<&Member, &Cosigned>::new();
        let cosigned = inner.feeds.get(feed).map_or(&[][..], |feed| &feed.cosigned);
        for cosigned in cosigned.iter().filter(|cosigned| cosigned.size > index) {
            let held = least.entry(&cosigned.cosigner).or_insert(cosigned);
            if cosigned.size < held.size {
                *held = cosigned;
            }
        }
        Ok(least.into_values().cloned().collect())
    }

    fn custody_covering(&self, feed: &FeedId, index: u64) -> Result<Vec<CustodyRecord>, ReadError> {
        let inner = self.inner.lock();
        let mut first = BTreeMap::<&Member, &CustodyRecord>::new();
        for (custody, _) in inner.feeds.get(feed).map_or(&[][..], |feed| &feed.custody) {
            if custody.holds(index) {
                first.entry(&custody.holder).or_insert(custody);
            }
        }
        Ok(first.into_values().cloned().collect())
    }

    fn custody_newest(&self, feed: &FeedId) -> Result<Vec<CustodyRecord>, ReadError> {
        let inner = self.inner.lock();
        let mut newest = BTreeMap::<&Member, &CustodyRecord>::new();
        for (custody, order) in inner.feeds.get(feed).map_or(&[][..], |feed| &feed.custody) {
            if order.newest {
                newest.insert(&custody.holder, custody);
            }
        }
        Ok(newest.into_values().cloned().collect())
    }

    fn custody_after(
        &self,
        feed: &FeedId,
        holder: &Member,
        index: u64,
        max: usize,
    ) -> Result<Vec<CustodyRecord>, ReadError> {
        let inner = self.inner.lock();
        let notes = inner.feeds.get(feed).map_or(&[][..], |feed| &feed.custody).iter().map(|(note, _)| note);
        let mut notes: Vec<_> =
            notes.filter(|note| note.holder == *holder && note.range.end > index).cloned().collect();
        notes.sort_by_key(|note| note.range.end);
        notes.truncate(max);
        Ok(notes)
    }

    fn custody_late(
        &self,
        feed: &FeedId,
        holder: &Member,
        from_time: u64,
        max: usize,
    ) -> Result<Vec<CustodyRecord>, ReadError> {
        let inner = self.inner.lock();
        let notes = inner.feeds.get(feed).map_or(&[][..], |feed| &feed.custody).iter();
        let notes = notes.filter(|(note, order)| order.late && note.holder == *holder && note.time >= from_time);
        let mut notes: Vec<_> = notes.map(|(note, _)| note.clone()).collect();
        notes.reverse();
        notes.sort_by_key(|note| std::cmp::Reverse(note.time));
        notes.truncate(max);
        Ok(notes)
    }

    fn custody_gain(&self, feed: &FeedId, holder: &Member, ranges: &[Range<u64>], max: u64) -> Result<u64, ReadError> {
        let inner = self.inner.lock();
        let mut held = RangeSet::default();
        for (note, _) in inner.feeds.get(feed).map_or(&[][..], |feed| &feed.custody) {
            if note.holder == *holder {
                note.held().for_each(|range| held.insert(range));
            }
        }
        let missing = ranges.iter().flat_map(|range| held.missing(range.clone()));
        Ok(missing.map(|range| range.end - range.start).sum::<u64>().min(max))
    }

    fn rosters(&self) -> Result<Vec<RosterRecord>, ReadError> {
        let inner = self.inner.lock();
        Ok(inner.rosters.iter().map(|(version, note)| RosterRecord { version: *version, note: note.clone() }).collect())
    }

    fn crls(&self) -> Result<Vec<CrlRecord>, ReadError> {
        let inner = self.inner.lock();
        Ok(inner
            .crls
            .iter()
            .map(|(authority, der)| CrlRecord { authority: authority.clone(), der: der.clone() })
            .collect())
    }

    fn forks(&self) -> Result<Vec<ForkRecord>, ReadError> {
        Ok(self.inner.lock().forks.values().cloned().collect())
    }

    fn subscription(&self, name: &str) -> Option<Subscription> {
        self.inner.lock().subscriptions.get(name).cloned()
    }

    fn subscriptions(&self, after: &str, max: usize) -> Vec<(String, Subscription)> {
        self.inner.lock().subscriptions.after(after, max)
    }

    fn check_capacity(&self) -> Result<Capacity, CommitError> {
        Ok(self.inner.lock().capacity.unwrap_or(Capacity::UNBOUNDED))
    }

    fn index_lag(&self) -> u64 {
        0
    }

    fn fsync_histogram(&self) -> FsyncHistogram {
        FsyncHistogram::default()
    }

    fn disk_bytes(&self) -> DiskBytes {
        DiskBytes::default()
    }

    fn apply_index(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    #[test]
    fn memory_store_passes_conformance() {
        conformance::run(&mut |_| Box::new(MemoryStore::new()), false);
    }
}
