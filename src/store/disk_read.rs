//! Reads of the store on disk: entries, including backfilled and out-of-order ones, custody notes
//! and subtree hashes.
//!
//! In scope: reading them at the places that the index database gives, or memory for what is not
//! yet applied. Out of scope: the [`Store`](super::Store) trait (`disk`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use barid_core::bulletin::Priority;
use barid_core::feed::tree::NodeId;
use barid_core::ids::{Digest, FeedId, Hash, Member, Undisclosed};
use barid_core::limits::CUSTODY_RANGES_MAX;
use barid_core::ranges::RangeSet;

use super::disk::DiskStore;
use super::index_db::backfills;
use super::keys::{BackfillRef, EntryRun, FeedNumber, NoteRef};
use super::load::{self, dangling};
use super::log::{Position, Record, RecordEntries, Slot};
use super::tail_cache::EntryPage;
use super::tree_cache::TileId;
use super::validate::CustodyOrder;
use super::{
    ChainLink, Columns, Commit, Content, CustodyRecord, DamagedEntry, Entry, NewEntry, PriorityEntry, ReadError, Store,
    validate,
};
use crate::telemetry::alarms::Alarm;

/// Ranges examined to count what a custody note adds: those of the longest note, and as many gaps.
/// Entries beyond are not counted.
const CUSTODY_GAIN_STEPS_MAX: usize = 4 * CUSTODY_RANGES_MAX;

/// Entries with their slots in a record.
type SlotEntries = Vec<(u64, NewEntry)>;

impl DiskStore {
    /// Returns where the content of these ascending entries is if it was backfilled or came ahead
    /// of the order.
    fn backfills_of(&self, number: FeedNumber, indexes: &[u64]) -> Result<Vec<Option<BackfillRef>>, ReadError> {
        let pending: Vec<Option<BackfillRef>> = {
            let state = self.shared().state.read();
            if state.feed_index(number).is_none_or(|feed_index| !feed_index.backfilled) {
                return Ok(vec![None; indexes.len()]);
            }
            let find = |index: &u64| state.pending_backfills.get(&(number, *index)).map(|(_, at)| *at);
            indexes.iter().map(find).collect()
        };
        let mut bucket: Option<(u64, BTreeMap<u64, BackfillRef>)> = None;
        let find = |(index, pending): (&u64, Option<BackfillRef>)| {
            let wanted = backfills::bucket_of(*index);
            let held = match &mut bucket {
                Some((held, backfills)) if *held == wanted => backfills,
                other => &mut other.insert((wanted, self.shared().index_db().backfilled(number, wanted)?)).1,
            };
            Ok(pending.or_else(|| held.get(index).copied()))
        };
        indexes.iter().zip(pending).map(find).collect()
    }

    /// Replaces the digest of entries whose content was backfilled since. `bytes_max` is the bound
    /// with which the entries were read.
    pub(super) fn with_backfills(
        &self,
        number: FeedNumber,
        mut entries: Vec<Entry>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        let digest_only = |entry: &Entry| matches!(entry.content, Content::Undisclosed(_));
        let indexes: Vec<u64> = entries.iter().filter(|entry| digest_only(entry)).map(|entry| entry.index).collect();
        if indexes.is_empty() {
            return Ok(entries);
        }
        let backfills = self.backfills_of(number, &indexes)?;
        if backfills.iter().all(Option::is_none) {
            return Ok(entries);
        }
        let backfills: BTreeMap<u64, BackfillRef> =
            indexes.into_iter().zip(backfills).filter_map(|(index, backfill)| Some((index, backfill?))).collect();
        let mut bytes = 0_usize;
        for place in 0..entries.len() {
            let entry = &mut entries[place];
            if let Some(backfill) = backfills.get(&entry.index) {
                match self.read_backfill(entry, *backfill) {
                    Ok(Some((content, offset))) => (entry.content, entry.offset) = (content, Some(offset)),
                    Ok(None) => {}
                    // The entries before it are intact.
                    Err(ReadError::DamagedEntry(_)) if place > 0 => {
                        entries.truncate(place);
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            if let Content::Disclosed { envelope, .. } = &entry.content {
                bytes = bytes.saturating_add(envelope.len());
            }
            if place > 0 && bytes > bytes_max {
                entries.truncate(place);
                break;
            }
        }
        Ok(entries)
    }

    /// See [`super::Store::history`].
    pub(super) fn read_history(
        &self,
        before: u64,
        entries_max: usize,
        scan_max: u64,
        wanted: &dyn Fn(&Columns) -> bool,
    ) -> Result<(Vec<Entry>, Option<u64>), ReadError> {
        let mut next = before.clamp(1, self.end_offset());
        let stop = next.saturating_sub(scan_max).max(1);
        let mut found = Vec::new();
        let mut block: Option<(u64, Vec<Columns>)> = None;
        while next > stop && found.len() < entries_max {
            let offset = next - 1;
            let in_tail_cache =
                self.shared().state.read().tail_cache.first_offset().is_some_and(|first| first <= offset);
            let accepted = if in_tail_cache {
                let entries = self.entries_from(offset, 1, 0)?;
                let header = entries.first().and_then(|entry| match &entry.content {
                    Content::Disclosed { header, .. } => header.as_deref(),
                    Content::Undisclosed(_) => None,
                });
                wanted(&validate::columns_of(header))
            } else {
                if block.as_ref().is_none_or(|(first, _)| *first > offset) {
                    block = self.shared().index_db().columns(offset)?;
                }
                let place = |first: &u64| usize::try_from(offset - first).ok();
                let columns = block.as_ref().and_then(|(first, columns)| columns.get(place(first)?));
                wanted(columns.ok_or_else(|| dangling("header"))?)
            };
            if accepted {
                match self.entries_from(offset, 1, 0) {
                    Err(ReadError::DamagedEntry(_)) if !found.is_empty() => break,
                    read => found.extend(read?),
                }
            }
            next = offset;
        }
        Ok((found, (next > 1).then_some(next)))
    }

    /// Returns for each holder the first committed custody note that states that it holds an entry.
    pub(super) fn read_custody_covering(&self, feed: &FeedId, index: u64) -> Result<Vec<CustodyRecord>, ReadError> {
        let Some(number) = self.number(feed) else { return Ok(Vec::new()) };
        let (holders, pending): (Vec<Member>, Vec<CustodyRecord>) = {
            let state = self.shared().state.read();
            let holders = state
                .feed_index(number)
                .map(|feed_index| feed_index.holders.iter().cloned().collect())
                .unwrap_or_default();
            let pending =
                state.pending_custody.iter().filter(|(_, feed, note, _)| *feed == number && note.holds(index));
            (holders, pending.map(|(_, _, note, _)| note.clone()).collect())
        };
        let mut notes = Vec::new();
        for holder in holders {
            let mut first = None;
            for at in self.shared().index_db().custody_about(number, &holder, index)? {
                let note = load::custody(&self.log, at)?;
                if note.holds(index) {
                    first = Some(note);
                    break;
                }
            }
            notes.extend(first.or_else(|| pending.iter().find(|note| note.holder == holder).cloned()));
        }
        Ok(notes)
    }

    /// Returns custody notes from the index database, then those not yet applied to it, in the
    /// order of their commits.
    pub(super) fn custody_notes(
        &self,
        feed: &FeedId,
        wanted: impl Fn(&CustodyRecord, &CustodyOrder) -> bool,
        from_index_db: impl Fn(FeedNumber) -> Result<Vec<NoteRef>, ReadError>,
    ) -> Result<Vec<CustodyRecord>, ReadError> {
        let Some(number) = self.number(feed) else { return Ok(Vec::new()) };
        // Read memory before the index database: a note applied in between is found twice rather
        // than never.
        let pending: Vec<CustodyRecord> = {
            let state = self.shared().state.read();
            let pending =
                state.pending_custody.iter().filter(|(_, of, note, order)| *of == number && wanted(note, order));
            pending.map(|(_, _, note, _)| note.clone()).collect()
        };
        let held = from_index_db(number)?.into_iter().map(|at| load::custody(&self.log, at));
        let mut notes = held.collect::<Result<Vec<CustodyRecord>, ReadError>>()?;
        for note in pending {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        Ok(notes)
    }

    /// See [`super::Store::custody_gain`].
    pub(super) fn count_custody_gain(
        &self,
        feed: &FeedId,
        holder: &Member,
        ranges: &[Range<u64>],
        max: u64,
    ) -> Result<u64, ReadError> {
        let Some(number) = self.number(feed) else {
            return Ok(ranges.iter().map(|range| range.end - range.start).sum::<u64>().min(max));
        };
        let mut pending = RangeSet::default();
        // Read memory before the index database: a range applied in between counts in both, which
        // changes nothing.
        for (_, of, note, _) in &self.shared().state.read().pending_custody {
            if *of == number && note.holder == *holder {
                note.held().for_each(|range| pending.insert(range));
            }
        }
        let index_db = self.shared().index_db();
        let (mut gain, mut steps) = (0, 0);
        for range in ranges.iter().flat_map(|range| pending.missing(range.clone())) {
            let mut next = range.start;
            while next < range.end && gain < max && steps < CUSTODY_GAIN_STEPS_MAX {
                steps += 1;
                let held = index_db.held_by_before(number, holder, next, |_| false)?;
                if let Some(held) = held.filter(|held| held.contains(&next)) {
                    next = held.end;
                    continue;
                }
                let end = index_db.held_by_after(number, holder, next)?.unwrap_or(range.end).min(range.end);
                gain += end - next;
                next = end;
            }
        }
        Ok(gain.min(max))
    }

    /// Returns for each of these ascending entries its digest and why its content is not held;
    /// `None` if it is held.
    pub(super) fn read_missing(
        &self,
        feed: &FeedId,
        indexes: &[u64],
    ) -> Result<Vec<Option<(Digest, Undisclosed)>>, ReadError> {
        let Some(number) = self.number(feed) else { return Ok(vec![None; indexes.len()]) };
        let backfills = self.backfills_of(number, indexes)?;
        let mut entry_run: Option<(EntryRun, Arc<Record>)> = None;
        let mut missing = Vec::with_capacity(indexes.len());
        for (index, backfill) in indexes.iter().zip(backfills) {
            let backfilled = backfill.map(|backfill| self.digest_of_backfill(feed, backfill)).transpose()?;
            let if_undisclosed = |digest: Digest, reason| (backfilled != Some(digest)).then_some((digest, reason));
            let appended = {
                let state = self.shared().state.read();
                if state
                    .feed_index(number)
                    .is_none_or(|feed_index| *index >= feed_index.tiled_tree.compact_range().size())
                {
                    missing.push(None);
                    continue;
                }
                state.tail_cache.appended(number, *index).map(|entry| match &entry.content {
                    Content::Disclosed { .. } => None,
                    Content::Undisclosed(reason) => if_undisclosed(entry.digest, *reason),
                })
            };
            if let Some(found) = appended {
                missing.push(found);
                continue;
            }
            let has = |(entry_run, _): &(EntryRun, Arc<Record>)| {
                index.checked_sub(entry_run.first).is_some_and(|at| at < u64::from(entry_run.count))
            };
            if !entry_run.as_ref().is_some_and(has) {
                let found = self.shared().index_db().position(number, *index)?.ok_or_else(|| dangling("entry"))?;
                entry_run = Some((found, self.log.record(found.at.position)?));
            }
            let slot = entry_run.as_ref().and_then(|(entry_run, record)| {
                let append = record.appends.get(entry_run.at.place as usize)?;
                append.slots.get(usize::try_from(index.checked_sub(entry_run.first)?).ok()?)
            });
            let (_, slot) = slot.ok_or_else(|| dangling("entry"))?;
            missing.push(slot.undisclosed.and_then(|reason| if_undisclosed(slot.digest, reason)));
        }
        Ok(missing)
    }

    /// Returns the digest of a backfilled or out-of-order entry. It differs from the feed's entry
    /// if that one displaced it.
    fn digest_of_backfill(&self, feed: &FeedId, backfill: BackfillRef) -> Result<Digest, ReadError> {
        let record = self.log.record(backfill.at.position)?;
        let recorded = record.backfills.get(backfill.at.place as usize).filter(|recorded| recorded.feed == *feed);
        let slot = recorded.and_then(|recorded| recorded.slots.get(backfill.slot as usize));
        slot.map(|(_, slot)| slot.digest).ok_or_else(|| dangling("backfill"))
    }

    /// Returns an entry that was received ahead of the order.
    pub(super) fn read_priority_entry(&self, feed: &FeedId, index: u64) -> Result<Option<PriorityEntry>, ReadError> {
        let Some(number) = self.number(feed) else { return Ok(None) };
        let Some(at) = self.backfills_of(number, &[index])?.pop().flatten() else { return Ok(None) };
        let position = at.at.position;
        let record = self.log.record(position)?;
        let recorded = record.backfills.get(at.at.place as usize).filter(|recorded| recorded.feed == *feed);
        let recorded = recorded.ok_or_else(|| dangling("out-of-order entry"))?;
        let Some(priority_proof) = &recorded.priority_proof else { return Ok(None) };
        let bytes = recorded.bytes(0..1);
        let body = self.log.body(position, &record, bytes.clone())?;
        let damaged = |what: String| ReadError::Damaged(format!("commit log, {position}: {what}"));
        let read = recorded.entries(0..1, &body, bytes.start).map_err(damaged)?.into_iter().next();
        let (_, entry) = read.filter(|(held, _)| *held == index).ok_or_else(|| dangling("out-of-order entry"))?;
        Ok(Some(priority_proof.entry(feed, index, entry)))
    }

    /// Returns urgent entries from the index database and those not yet applied to it.
    pub(super) fn read_priority_indexes(
        &self,
        feed: &FeedId,
        kind: Priority,
        from: u64,
        max: usize,
    ) -> Result<Vec<u64>, ReadError> {
        let Some(number) = self.number(feed) else { return Ok(Vec::new()) };
        // Read memory before the index database: an entry applied in between is found twice rather
        // than never.
        let (mut found, changed): (BTreeSet<u64>, BTreeSet<u64>) = {
            let state = self.shared().state.read();
            let Some(feed_index) = state.feed_index(number) else { return Ok(Vec::new()) };
            let newer =
                |same: bool| feed_index.priorities.range(from..).filter(move |(_, held)| (**held == kind) == same);
            let indexes = |(index, _): (&u64, &Priority)| *index;
            (newer(true).map(indexes).take(max).collect(), newer(false).map(indexes).collect())
        };
        // The index database may still have the previous kind of a changed index.
        let held = self.shared().index_db().priority_indexes(number, kind, from, max.saturating_add(changed.len()))?;
        found.extend(held.into_iter().filter(|index| !changed.contains(index)));
        Ok(found.into_iter().take(max).collect())
    }

    /// Returns the content of an entry and its offset; `None` if that content came ahead of the
    /// order and the feed has another entry at its index.
    fn read_backfill(&self, entry: &Entry, backfill: BackfillRef) -> Result<Option<(Content, u64)>, ReadError> {
        let position = backfill.at.position;
        let record = self.log.record(position)?;
        let slot = backfill.slot as usize;
        let recorded = record.backfills.get(backfill.at.place as usize).filter(|recorded| recorded.feed == entry.feed);
        let recorded = recorded.ok_or_else(|| dangling("backfill"))?;
        let (index, held) = recorded.slots.get(slot).ok_or_else(|| dangling("backfill"))?;
        if *index != entry.index {
            return Err(dangling("backfill"));
        }
        if held.digest != entry.digest {
            return if recorded.priority_proof.is_some() { Ok(None) } else { Err(dangling("backfill")) };
        }
        let (read, damage) = self.read_whole(position, &record, recorded, slot..slot + 1)?;
        if let Some(what) = damage {
            return Err(damaged_entry(held, &entry.feed, entry.index, what));
        }
        let (_, backfilled) = read.into_iter().next().ok_or_else(|| dangling("backfill"))?;
        Ok(Some((backfilled.content, held.offset)))
    }

    /// Adds entries of one append from index `from` on; returns false when a bound is reached.
    pub(super) fn read_indexes(
        &self,
        feed: &FeedId,
        entry_run: &EntryRun,
        from: u64,
        page: &mut EntryPage,
    ) -> Result<bool, ReadError> {
        let record = self.log.record(entry_run.at.position)?;
        let append = record.appends.get(entry_run.at.place as usize).filter(|recorded| recorded.feed == *feed);
        let begins = |(first, _): &(u64, Slot)| *first == entry_run.first;
        let append = append.filter(|recorded| recorded.slots.first().is_some_and(begins));
        let append = append.ok_or_else(|| dangling("entry"))?;
        let start = usize::try_from(from - entry_run.first).map_err(|_| dangling("entry"))?;
        self.read_slots(entry_run.at.position, &record, append, start, page, false)
    }

    /// Adds disclosed entries of one record from offset `from` on; returns false at a bound or at
    /// damage.
    pub(super) fn read_entries_from(
        &self,
        entry_run: &EntryRun,
        from: u64,
        page: &mut EntryPage,
    ) -> Result<bool, ReadError> {
        let record = match self.log.record(entry_run.at.position) {
            Ok(record) => record,
            // Which entry it is is recorded only in the record, which cannot be read.
            Err(ReadError::Damaged(what)) => {
                let entry = || DamagedEntry { offset: from, entry: None, what };
                return page.end_page_with(|| ReadError::DamagedEntry(Box::new(entry())));
            }
            Err(error) => return Err(error),
        };
        if record.first_offset != entry_run.first {
            return Err(dangling("offset"));
        }
        page.add_link(record.first_offset..record.end_offset, record.hash);
        for recorded in record.appends.iter().chain(&record.backfills) {
            let earlier =
                |(_, slot): &(u64, Slot)| slot.offset < from || (slot.offset == from && slot.undisclosed.is_some());
            let start = recorded.slots.partition_point(earlier);
            if !self.read_slots(entry_run.at.position, &record, recorded, start, page, true)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the commit that holds an offset.
    pub(super) fn read_link(&self, offset: u64) -> Result<Option<ChainLink>, ReadError> {
        {
            let state = self.shared().state.read();
            if offset == 0 || offset >= state.end_offset {
                return Ok(None);
            }
            if let Some(link) = state.tail_cache.link(offset) {
                return Ok(Some(link));
            }
        }
        let entry_run = self.shared().index_db().at_offset(offset)?.ok_or_else(|| dangling("offset"))?;
        let record = self.log.record(entry_run.at.position)?;
        Ok(Some(ChainLink { offsets: record.first_offset..record.end_offset, hash: record.hash }))
    }

    /// Resolves references to notes of one sort.
    pub(super) fn read_notes<T>(
        &self,
        held: Vec<NoteRef>,
        what: &str,
        find: impl Fn(&Commit, usize) -> Option<T>,
    ) -> Result<Vec<T>, ReadError> {
        let note = |at: NoteRef| {
            let record = self.log.record(at.position)?;
            find(&record.rest, at.place as usize).ok_or_else(|| dangling(what))
        };
        held.into_iter().map(note).collect()
    }

    /// Returns the alarm about damage that was found.
    pub(super) fn damage_alarm(&self) -> Option<Alarm> {
        let log = self.log.damage().map(|why| Alarm::LogDamaged { why });
        log.or_else(|| self.shared().index_db().is_damaged().then_some(Alarm::IndexDamaged))
    }

    /// Returns hashes of complete subtrees, from memory if possible.
    pub(super) fn read_tree_hashes(&self, feed: &FeedId, nodes: &[NodeId]) -> Result<Vec<Hash>, ReadError> {
        let missing =
            |node: &NodeId| ReadError::Missing(format!("{feed}: subtree {} of level {}", node.index, node.level));
        let (number, size, near): (_, _, Vec<Option<Hash>>) = {
            let state = self.shared().state.read();
            let (number, feed_index) = state.feed_index_of(feed).ok_or_else(|| ReadError::Missing(feed.to_string()))?;
            (
                number,
                feed_index.tiled_tree.compact_range().size(),
                nodes.iter().map(|node| feed_index.tiled_tree.get(*node)).collect(),
            )
        };
        let find = |(node, near): (&NodeId, Option<Hash>)| {
            if let Some(hash) = near {
                return Ok(hash);
            }
            if node
                .index
                .checked_add(1)
                .is_none_or(|end| node.level >= 64 || u128::from(end) << node.level > u128::from(size))
            {
                return Err(missing(node));
            }
            let (id, row, place) = TileId::of(*node);
            let cached = self.shared().tiles.lock().get(number, id);
            let tile = match cached {
                Some(tile) => tile,
                None => {
                    let tile = self.shared().index_db().tile(number, id)?.ok_or_else(|| missing(node))?;
                    self.shared().tiles.lock().loaded(number, id, Arc::clone(&tile));
                    tile
                }
            };
            tile.get(row, place).ok_or_else(|| missing(node))
        };
        nodes.iter().zip(near).map(find).collect()
    }

    /// Returns the entries of these slots. Flipped bits are corrected first; other damage is an
    /// error that names it.
    fn read_body(
        &self,
        position: Position,
        record: &Record,
        recorded: &RecordEntries,
        slots: Range<usize>,
    ) -> Result<SlotEntries, ReadError> {
        let bytes = recorded.bytes(slots.clone());
        let read = || -> Result<_, ReadError> {
            let body = self.log.body(position, record, bytes.clone())?;
            Ok(recorded.entries(slots.clone(), &body, bytes.start))
        };
        let damage = match read()? {
            Ok(entries) => return Ok(entries),
            Err(damage) => damage,
        };
        if self.log.correct_bits_at(position)
            && let Ok(entries) = read()?
        {
            return Ok(entries);
        }
        Err(self.log.damaged(position, &damage))
    }

    /// As [`Self::read_body`], but returns the entries before the first damaged one, and the
    /// damage.
    fn read_whole(
        &self,
        position: Position,
        record: &Record,
        recorded: &RecordEntries,
        slots: Range<usize>,
    ) -> Result<(SlotEntries, Option<String>), ReadError> {
        match self.read_body(position, record, recorded, slots.clone()) {
            Err(ReadError::Damaged(_)) => {}
            read => return Ok((read?, None)),
        }
        let mut whole = Vec::new();
        for slot in slots {
            match self.read_body(position, record, recorded, slot..slot + 1) {
                Ok(read) => whole.extend(read),
                Err(ReadError::Damaged(what)) => return Ok((whole, Some(what))),
                Err(error) => return Err(error),
            }
        }
        Ok((whole, None))
    }

    fn read_slots(
        &self,
        position: Position,
        record: &Record,
        recorded: &RecordEntries,
        start: usize,
        page: &mut EntryPage,
        disclosed_only: bool,
    ) -> Result<bool, ReadError> {
        let slots = recorded.slots.get(start..).unwrap_or_default();
        let wanted = page.count_fitting(slots.iter().map(|(_, slot)| slot.len));
        let (entries, damage) = self.read_whole(position, record, recorded, start..start + wanted)?;
        for ((index, slot), (_, entry)) in slots.iter().zip(&entries) {
            if disclosed_only && slot.undisclosed.is_some() {
                continue;
            }
            if !page.push(&recorded.feed, *index, entry, slot.offset) {
                return Ok(false);
            }
        }
        if let (Some(what), Some((index, slot))) = (damage, slots.get(entries.len())) {
            return page.end_page_with(|| damaged_entry(slot, &recorded.feed, *index, what));
        }
        Ok(wanted == slots.len())
    }
}

fn damaged_entry(slot: &Slot, feed: &FeedId, index: u64, what: String) -> ReadError {
    let entry = Some((feed.clone(), index, slot.digest));
    ReadError::DamagedEntry(Box::new(DamagedEntry { offset: slot.offset, entry, what }))
}
