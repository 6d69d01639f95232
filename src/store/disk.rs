//! The store on disk: the commit log, which is authoritative, and the index database, which answers
//! queries.
//!
//! In scope: opening, committing and reading, from memory if possible, otherwise from the log
//! through the index database. Out of scope: the internals of the log (`log`), the index database
//! (`index_db`) and the in-memory index (`feed_index`).

pub use super::disk_options::DiskOptions;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use arc_swap::ArcSwap;
use barid_core::bulletin::Priority;
use barid_core::feed::tree::NodeId;
use barid_core::ids::{Digest, FeedId, Hash, Member, Undisclosed};
use barid_core::limits::{NOT_HELD_RANGES_MAX, RECORD_HEAD_BYTES_MAX};
use barid_core::quota::Tier;
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use super::applier::{self, ApplyQueue, EnqueueError, StoreShared};
use super::disk_options::reserve_for;
use super::keys::{FeedNumber, NoteRef};
use super::load::{self, dangling};
use super::log::{self, AppendError, Log, LogReader, Tail, TailHint, TailHintFile};
use super::open::{Replay, cache_full_tiles, lock, make_folder, open_index_db};
use super::priority::OutOfOrder as _;
use super::rebuild::RebuildSource;
use super::recent_ids::Known;
use super::tail_cache::EntryPage;
use super::validate::UndisclosedRun;
use super::{
    Acks, Capacity, ChainLink, Columns, Commit, CommitError, Committed, Content, Cosigned, CrlRecord, CustodyRecord,
    DiskBytes, Entry, FeedState, ForkRecord, FsyncHistogram, Location, OpenError, PriorityEntry, ReadError,
    ReferenceKind, RosterRecord, Store, StoreId, Subscription, priority, repair, validate,
};

/// The [`Store`] of a node.
pub struct DiskStore {
    /// `None` only while it is dropped.
    shared: Option<Arc<StoreShared>>,
    pub(super) log: Arc<LogReader>,
    writer: Mutex<LogWriter>,
    applier: Option<thread::JoinHandle<()>>,
    reserve_bytes: u64,
    me: Member,
    /// Locked as long as the store is open.
    _lock: File,
}

struct LogWriter {
    log: Log,
    stopped: Option<String>,
    /// The tier that the last check found capacity for.
    tier: Tier,
}

impl LogWriter {
    /// Checks the free space, and creates a segment if one was missing.
    fn check_capacity(&mut self, reserve_bytes: u64) -> io::Result<Capacity> {
        let free_bytes = self.log.available_bytes()?;
        let mut tier = Tier::at(free_bytes, reserve_bytes, self.tier);
        // A tier has no capacity if the next segment does not fit beside what the tier leaves free.
        while let Err(error) = self.log.check_capacity(tier.leaves_free(reserve_bytes)) {
            match error {
                AppendError::Full { .. } if tier > Tier::Notes => tier = tier.below(),
                AppendError::Full { .. } => break,
                AppendError::Failed(error) => return Err(error),
            }
        }
        self.tier = tier;
        Ok(Capacity { tier, free_bytes, reserve_bytes })
    }
}

impl DiskStore {
    /// Opens the store in `dir`, or creates one. `log/` is authoritative; `db/` is rebuilt from it
    /// if it is missing or damaged.
    ///
    /// # Errors
    /// See [`OpenError`]. A torn tail of the log is cut. Single flipped bits are corrected if a
    /// SHA-256 proves their value. Any other damage is reported, and nothing is changed.
    pub fn open(dir: &Path, options: &DiskOptions) -> Result<Self, OpenError> {
        let (store, corrected) = repair::open(dir, options, || Self::open_as_it_is(dir, options))?;
        store.log.count_corrected(corrected);
        Ok(store)
    }

    fn open_as_it_is(dir: &Path, options: &DiskOptions) -> Result<Self, OpenError> {
        make_folder(dir)?;
        let lock = lock(dir)?;
        let (log_dir, log_options) = (dir.join("log"), options.log());
        let reader = Arc::new(LogReader::open(&log_dir, &log_options)?);
        let (index_db, state, resume) = open_index_db(dir, &log_dir, options, &reader)?;
        let mut replay = Replay::new(index_db, state);
        let log = Log::open(&log_dir, log_options, &reader, resume.as_ref(), &mut |position, record, body| {
            replay.apply(position, &record, &body)
        })?;
        let (index_db, state, tiles) = replay.finish()?;
        let queue = ApplyQueue::new(state.seq, options.index_lag_bytes_max);
        let shared = Arc::new(StoreShared {
            state: RwLock::new(state),
            tiles: Mutex::new(tiles),
            index_db: ArcSwap::from_pointee(index_db),
            queue,
            rebuild_source: RebuildSource::new(dir, options),
            tail_hint: TailHintFile::open(&log_dir, reader.salt()),
        });
        if log.tail().seq > 0 {
            shared.tail_hint.write(&TailHint { seq: log.tail().seq, hash: log.tail().hash });
        }
        let applier = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("store-index".into()).spawn(move || {
                crate::low_priority::lower_priority();
                applier::run(&shared);
            })?
        };
        Ok(Self {
            shared: Some(shared),
            log: reader,
            writer: Mutex::new(LogWriter { log, stopped: None, tier: Tier::All }),
            applier: Some(applier),
            reserve_bytes: options.reserve_bytes,
            me: options.member.clone(),
            _lock: lock,
        })
    }

    /// Returns whether `dir` contains a store: a commit log was begun there.
    #[must_use]
    pub fn is_initialized(dir: &Path) -> bool {
        log::is_initialized(&dir.join("log"))
    }

    /// Verifies the whole log in `dir`: every checksum and every link of the chain. Changes
    /// nothing. Returns the number of the newest commit. No process may commit to it meanwhile:
    /// half a record would look like damage.
    ///
    /// # Errors
    /// [`OpenError::Damaged`] names the first damage.
    pub fn verify(dir: &Path, options: &DiskOptions) -> Result<u64, OpenError> {
        log::verify(&dir.join("log"), &options.log())
    }

    pub(super) fn shared(&self) -> &StoreShared {
        self.shared.as_ref().expect("present until the store is dropped")
    }

    pub(super) fn number(&self, feed: &FeedId) -> Option<FeedNumber> {
        self.shared().state.read().numbers.get(feed).copied()
    }
}

fn range_of((start, end, reason): &UndisclosedRun) -> (Range<u64>, Undisclosed) {
    (*start..*end, *reason)
}

#[cfg(test)]
impl DiskStore {
    /// Makes the next sync fail.
    pub(crate) fn fail_next_sync(&self) {
        self.writer.lock().log.fail_next_sync = true;
    }

    /// Marks the index database as damaged.
    pub(crate) fn fail_index_db(&self) {
        self.shared().index_db().set_damaged();
    }

    /// Returns whether it is still damaged, that is, not yet replaced.
    pub(crate) fn index_db_has_failed(&self) -> bool {
        self.shared().index_db().is_damaged()
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        shared.queue.stop();
        if let Some(applier) = self.applier.take() {
            _ = applier.join();
        }
        if shared.queue.has_failed() {
            return;
        }
        if let Some(shared) = Arc::into_inner(shared)
            && let Some(index_db) = Arc::into_inner(shared.index_db.into_inner())
            && let Err(error) = index_db.close()
        {
            tracing::warn!(%error, "the index database could not be closed; it may be rebuilt at the next start");
        }
    }
}

impl Store for DiskStore {
    fn seq(&self) -> u64 {
        self.shared().state.read().seq
    }

    fn commit(&self, mut commit: Commit, expected_seq: u64) -> Result<Arc<Committed>, CommitError> {
        let mut writer = self.writer.lock();
        if let Some(reason) = &writer.stopped {
            return Err(CommitError::Stopped(reason.clone()));
        }
        let tail = writer.log.tail();
        if tail.seq != expected_seq {
            return Err(CommitError::Fenced { expected: expected_seq, found: tail.seq });
        }
        let shared = self.shared();
        {
            let state = shared.state.read();
            let size_of = |feed: &FeedId| {
                state.feed_index_of(feed).map(|(_, feed_index)| feed_index.tiled_tree.compact_range().size())
            };
            validate::check(&commit, size_of).map_err(CommitError::Invalid)?;
            priority::check(&commit, size_of, &*state).map_err(CommitError::Invalid)?;
            priority::match_appends(&mut commit, &*state).map_err(CommitError::Invalid)?;
        }
        for backfill in &commit.backfills {
            let indexes: Vec<u64> = backfill.entries.iter().map(|(index, _)| *index).collect();
            let missing = self.missing(&backfill.feed, &indexes).map_err(|error| match error {
                ReadError::Behind(reason) => CommitError::IndexBehind(reason),
                error => CommitError::Invalid(error.to_string()),
            })?;
            validate::check_backfill(backfill, &missing).map_err(CommitError::Invalid)?;
        }
        match shared.queue.wait_for_capacity() {
            Ok(()) => {}
            Err(EnqueueError::Paused(reason)) => return Err(CommitError::IndexBehind(reason)),
            Err(EnqueueError::Failed(reason)) => {
                writer.stopped = Some(reason.clone());
                return Err(CommitError::Stopped(reason));
            }
        }
        let seq = tail.seq + 1;
        let head = log::record::encode_head(&commit, seq, &tail.hash, tail.end_offset);
        if head.len() > RECORD_HEAD_BYTES_MAX {
            return Err(CommitError::Invalid(format!("the notes and ids take {} bytes", head.len())));
        }
        let backfilled = commit.backfills.iter().flat_map(|backfill| &backfill.entries).map(|(_, entry)| entry);
        let backfilled = backfilled.chain(commit.priority.iter().map(|priority| &priority.entry));
        let entries = commit.appends.iter().flat_map(|append| &append.entries).chain(backfilled);
        let bodies: Vec<&[u8]> = entries
            .filter_map(|entry| match &entry.content {
                Content::Disclosed { envelope, .. } => Some(envelope.as_ref()),
                Content::Undisclosed(_) => None,
            })
            .collect();
        let hash = log::record::head_hash(&head);
        let next = Tail { seq, hash, end_offset: tail.end_offset + bodies.len() as u64 };
        let reserve_bytes = reserve_for(&commit, &self.me, self.reserve_bytes);
        let (position, len) = match writer.log.append(&head, &bodies, next, reserve_bytes) {
            Ok(appended) => appended,
            Err(AppendError::Full { available_bytes }) => {
                return Err(CommitError::DiskFull { available_bytes, reserve_bytes });
            }
            Err(AppendError::Failed(error)) => {
                writer.stopped = Some(error.to_string());
                return Err(CommitError::Io(error));
            }
        };
        let committed =
            Arc::new(Committed { seq, hash, first_offset: tail.end_offset, end_offset: next.end_offset, commit });
        let pending = {
            let mut state = shared.state.write();
            let pending = state.apply_commit(&committed, position, len);
            cache_full_tiles(&mut shared.tiles.lock(), &pending);
            pending
        };
        shared.queue.push(pending);
        Ok(committed)
    }

    fn check_capacity(&self) -> Result<Capacity, CommitError> {
        let mut writer = self.writer.lock();
        if let Some(reason) = &writer.stopped {
            return Err(CommitError::Stopped(reason.clone()));
        }
        let found = writer.check_capacity(self.reserve_bytes);
        found.inspect_err(|error| writer.stopped = Some(error.to_string())).map_err(CommitError::Io).and_then(
            |capacity| {
                self.shared().queue.paused().map_or(Ok(capacity), |reason| Err(CommitError::IndexBehind(reason)))
            },
        )
    }

    fn feeds(&self) -> Vec<FeedState> {
        let state = self.shared().state.read();
        state.numbers.values().filter_map(|number| state.feed_index(*number)?.state()).collect()
    }

    fn feed(&self, feed: &FeedId) -> Option<FeedState> {
        self.shared().state.read().feed_index_of(feed)?.1.state()
    }

    fn entries(&self, feed: &FeedId, from: u64, entries_max: usize, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        let number = {
            let state = self.shared().state.read();
            let Some((number, feed_index)) = state.feed_index_of(feed) else { return Ok(Vec::new()) };
            if from >= feed_index.tiled_tree.compact_range().size() {
                return Ok(Vec::new());
            }
            if let Some(entries) = state.tail_cache.entries(number, from, entries_max, bytes_max) {
                drop(state);
                return self.with_backfills(number, entries, bytes_max);
            }
            number
        };
        let mut page = EntryPage::new(entries_max, bytes_max);
        let mut next = from;
        while let Some(entry_run) = self.shared().index_db().position(number, next)?
            && self.read_indexes(feed, &entry_run, next, &mut page)?
        {
            next = entry_run.first + u64::from(entry_run.count);
        }
        if page.entries.is_empty() {
            return Err(ReadError::Damaged(format!("the index database lacks {feed} {from}")));
        }
        self.with_backfills(number, page.entries, bytes_max)
    }

    fn end_offset(&self) -> u64 {
        self.shared().state.read().end_offset
    }

    fn id(&self) -> StoreId {
        StoreId::of_salt(&self.log.salt())
    }

    fn link(&self, offset: u64) -> Result<Option<ChainLink>, ReadError> {
        self.read_link(offset)
    }

    fn linked_entries_from(
        &self,
        from: u64,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Entry>, Vec<ChainLink>), ReadError> {
        let from = from.max(1);
        {
            let state = self.shared().state.read();
            if from >= state.end_offset {
                return Ok((Vec::new(), Vec::new()));
            }
            if let Some(page) = state.tail_cache.entries_from(from, entries_max, bytes_max) {
                return Ok(page);
            }
        }
        let mut page = EntryPage::new(entries_max, bytes_max);
        let mut next = from;
        while let Some(entry_run) = self.shared().index_db().at_offset(next)?
            && self.read_entries_from(&entry_run, next, &mut page)?
        {
            next = entry_run.first + u64::from(entry_run.count);
        }
        if page.entries.is_empty() {
            return Err(ReadError::Damaged(format!("the index database lacks offset {from}")));
        }
        Ok((page.entries, page.links))
    }

    fn history(
        &self,
        before: u64,
        entries_max: usize,
        scan_max: u64,
        wanted: &dyn Fn(&Columns) -> bool,
    ) -> Result<(Vec<Entry>, Option<u64>), ReadError> {
        self.read_history(before, entries_max, scan_max, wanted)
    }

    fn find(&self, member: &Member, id: Uuid) -> Result<Option<Location>, ReadError> {
        let known = self.shared().state.read().ids.find(member, id);
        let place = match known {
            Known::Exactly(place) => place,
            Known::AtMost(place) => place.into_iter().chain(self.shared().index_db().find(member, id)?).min(),
        };
        let Some(place) = place else { return Ok(None) };
        let state = self.shared().state.read();
        let feed_index = state.feed_index(place.feed).ok_or_else(|| dangling("feed"))?;
        Ok(Some(Location { feed: feed_index.feed.clone(), index: place.index, offset: place.offset }))
    }

    fn references_to(
        &self,
        member: &Member,
        id: Uuid,
        kind: ReferenceKind,
        after: u64,
        max: usize,
    ) -> Result<Vec<Location>, ReadError> {
        self.read_references_to(member, id, kind, after, max)
    }

    fn superseded(&self, member: &Member, ids: &[Uuid]) -> Result<Vec<bool>, ReadError> {
        self.read_superseded(member, ids)
    }

    fn acks(&self, member: &Member, id: Uuid, issuers_max: usize) -> Result<Acks, ReadError> {
        self.read_acks(member, id, issuers_max)
    }

    fn tree_hashes(&self, feed: &FeedId, nodes: &[NodeId]) -> Result<Vec<Hash>, ReadError> {
        self.read_tree_hashes(feed, nodes)
    }

    fn missing(&self, feed: &FeedId, indexes: &[u64]) -> Result<Vec<Option<(Digest, Undisclosed)>>, ReadError> {
        self.read_missing(feed, indexes)
    }

    fn out_of_order(&self, feed: &FeedId, range: Range<u64>) -> Vec<(u64, Digest)> {
        let state = self.shared().state.read();
        let Some((_, feed_index)) = state.feed_index_of(feed).filter(|_| !range.is_empty()) else { return Vec::new() };
        feed_index.out_of_order.range(range).map(|(index, held)| (*index, held.digest)).collect()
    }

    fn out_of_order_unexpired(&self, feed: &FeedId, now_ms: u64) -> Vec<u64> {
        self.shared().state.read().unexpired(feed, now_ms)
    }

    fn priority_entry(&self, feed: &FeedId, index: u64) -> Result<Option<PriorityEntry>, ReadError> {
        self.read_priority_entry(feed, index)
    }

    fn priority_indexes(&self, feed: &FeedId, kind: Priority, from: u64, max: usize) -> Result<Vec<u64>, ReadError> {
        self.read_priority_indexes(feed, kind, from, max)
    }

    fn undisclosed_ranges_from(
        &self,
        feed: &FeedId,
        from: u64,
        max: usize,
    ) -> Result<Vec<(Range<u64>, Undisclosed)>, ReadError> {
        let number = {
            let state = self.shared().state.read();
            let Some((number, feed_index)) = state.feed_index_of(feed) else { return Ok(Vec::new()) };
            if !feed_index.older_runs || feed_index.runs.front().is_some_and(|(start, ..)| *start <= from) {
                let first = feed_index.runs.partition_point(|(_, end, _)| *end <= from);
                return Ok(feed_index.runs.range(first..).take(max).map(range_of).collect());
            }
            number
        };
        self.shared().queue.wait_applied(self.seq())?;
        Ok(self.shared().index_db().runs_from(number, from, max)?.iter().map(range_of).collect())
    }

    fn undisclosed_ranges(&self, feed: &FeedId, max: usize) -> Result<Vec<(Range<u64>, Undisclosed)>, ReadError> {
        let max = max.min(NOT_HELD_RANGES_MAX);
        let number = {
            let state = self.shared().state.read();
            let Some((number, feed_index)) = state.feed_index_of(feed) else { return Ok(Vec::new()) };
            if !feed_index.older_runs || feed_index.runs.len() >= max {
                return Ok(feed_index.runs.range(feed_index.runs.len().saturating_sub(max)..).map(range_of).collect());
            }
            number
        };
        self.shared().queue.wait_applied(self.seq())?;
        Ok(self.shared().index_db().runs(number, max)?.iter().map(range_of).collect())
    }

    fn cosigned_newest(&self, feed: &FeedId) -> Result<Vec<Cosigned>, ReadError> {
        let state = self.shared().state.read();
        Ok(state
            .feed_index_of(feed)
            .map(|(_, feed_index)| feed_index.cosigned.values().cloned().collect())
            .unwrap_or_default())
    }

    fn cosigned_covering(&self, feed: &FeedId, index: u64) -> Result<Vec<Cosigned>, ReadError> {
        let Some(number) = self.number(feed) else { return Ok(Vec::new()) };
        let (cosigners, pending): (Vec<Member>, Vec<Cosigned>) = {
            let state = self.shared().state.read();
            let cosigners = state
                .feed_index(number)
                .map(|feed_index| feed_index.cosigned.keys().cloned().collect())
                .unwrap_or_default();
            let pending = state.pending_cosigned.iter().filter(|(_, feed, note)| *feed == number && note.size > index);
            (cosigners, pending.map(|(.., note)| note.clone()).collect())
        };
        let mut notes = Vec::new();
        for cosigner in cosigners {
            let held = self.shared().index_db().cosigned_above(number, &cosigner, index)?;
            let held = held.map(|at| load::cosigned(&self.log, at)).transpose()?;
            let pending = pending.iter().filter(|note| note.cosigner == cosigner).cloned();
            // If a cosigner has several for one size, the first committed one counts: `min_by_key`
            // returns the first.
            notes.extend(held.into_iter().chain(pending).min_by_key(|note| note.size));
        }
        Ok(notes)
    }

    fn custody_covering(&self, feed: &FeedId, index: u64) -> Result<Vec<CustodyRecord>, ReadError> {
        self.read_custody_covering(feed, index)
    }

    fn custody_newest(&self, feed: &FeedId) -> Result<Vec<CustodyRecord>, ReadError> {
        let state = self.shared().state.read();
        Ok(state
            .feed_index_of(feed)
            .map(|(_, feed_index)| feed_index.custody.values().cloned().collect())
            .unwrap_or_default())
    }

    fn custody_after(
        &self,
        feed: &FeedId,
        holder: &Member,
        index: u64,
        max: usize,
    ) -> Result<Vec<CustodyRecord>, ReadError> {
        let mut notes = self.custody_notes(
            feed,
            |note, _| note.holder == *holder && note.range.end > index,
            |number| self.shared().index_db().custody_after(number, holder, index, max),
        )?;
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
        let mut notes = self.custody_notes(
            feed,
            |note, order| order.late && note.holder == *holder && note.time >= from_time,
            |number| {
                let mut held = self.shared().index_db().custody_late(number, holder, from_time, max)?;
                held.reverse();
                Ok(held)
            },
        )?;
        notes.reverse();
        notes.sort_by_key(|note| std::cmp::Reverse(note.time));
        notes.truncate(max);
        Ok(notes)
    }

    fn custody_gain(&self, feed: &FeedId, holder: &Member, ranges: &[Range<u64>], max: u64) -> Result<u64, ReadError> {
        self.count_custody_gain(feed, holder, ranges, max)
    }

    fn rosters(&self) -> Result<Vec<RosterRecord>, ReadError> {
        let held: Vec<NoteRef> = self.shared().state.read().rosters.values().copied().collect();
        self.read_notes(held, "roster", |commit, place| commit.rosters.get(place).cloned())
    }

    fn forks(&self) -> Result<Vec<ForkRecord>, ReadError> {
        let held: Vec<NoteRef> = self.shared().state.read().forks.values().copied().collect();
        self.read_notes(held, "fork record", |commit, place| commit.forks.get(place).cloned())
    }

    fn crls(&self) -> Result<Vec<CrlRecord>, ReadError> {
        let held: Vec<NoteRef> = self.shared().state.read().crls.values().copied().collect();
        self.read_notes(held, "revocation list", |commit, place| commit.crls.get(place).cloned())
    }

    fn subscription(&self, name: &str) -> Option<Subscription> {
        self.shared().state.read().subscriptions.get(name).cloned()
    }

    fn subscriptions(&self, after: &str, max: usize) -> Vec<(String, Subscription)> {
        self.shared().state.read().subscriptions.after(after, max)
    }

    fn index_lag(&self) -> u64 {
        self.seq().saturating_sub(self.shared().queue.applied_seq())
    }

    fn fsync_histogram(&self) -> FsyncHistogram {
        self.writer.lock().log.fsync_histogram()
    }

    fn disk_bytes(&self) -> DiskBytes {
        let writer = self.writer.lock();
        DiskBytes {
            log: writer.log.written_bytes(),
            index_db: self.shared().index_db().disk_bytes(),
            free: writer.log.available_bytes().unwrap_or(0),
        }
    }

    fn apply_index(&self) {
        let _ = self.shared().queue.wait_applied(self.seq());
    }

    fn damage(&self) -> Option<crate::telemetry::alarms::Alarm> {
        self.damage_alarm()
    }

    fn corrected_bits(&self) -> u64 {
        self.log.corrected()
    }
}
