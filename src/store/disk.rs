//! The store on disk: the commit log, which is true, and the view, which is asked.
//!
//! In scope: opening, committing and reading, from memory where it can be and else through the view from the log. Out of scope: how
//! the log (`log`), the view (`view`) and memory (`state`) do their parts.

pub use super::disk_options::DiskOptions;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use arc_swap::ArcSwap;
use barid_core::bulletin::Urgent;
use barid_core::feed::tree::NodeId;
use barid_core::limits::{NOT_HELD_RANGES_MAX, RECORD_HEAD_BYTES_MAX};
use barid_core::names::{Digest, FeedId, Hash, Member, Undisclosed};
use barid_core::quota::Tier;
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use super::admit::Run;
use super::applier::{self, NoRoom, Queue, Shared};
use super::disk_options::reserve_for;
use super::express::Ahead as _;
use super::keys::{FeedNumber, NoteRef};
use super::load::{self, dangling};
use super::log::{self, AppendError, EndFile, Log, LogReader, Noted, Tail};
use super::open::{Replay, fill_tiles, lock, make_folder, open_view};
use super::rebuild::Source;
use super::recent_ids::Known;
use super::window::Bounded;
use super::{
    Answers, ChainLink, Columns, Commit, CommitError, Committed, Content, Cosigned, CrlRecord, CustodyRecord,
    DiskBytes, Entry, Express, FeedState, ForkRecord, Location, OpenError, ReadError, Refers, Room, RosterRecord,
    Store, StoreId, Subscription, SyncTimes, admit, express, repair,
};

/// The [`Store`] of a node.
pub struct DiskStore {
    /// `None` only while it is dropped.
    shared: Option<Arc<Shared>>,
    pub(super) log: Arc<LogReader>,
    writer: Mutex<Writer>,
    applier: Option<thread::JoinHandle<()>>,
    reserve_bytes: u64,
    me: Member,
    /// Held locked as long as the store is open.
    _lock: File,
}

struct Writer {
    log: Log,
    stopped: Option<String>,
    /// What the last look found that there is room for.
    tier: Tier,
}

impl Writer {
    /// Looks how much room there is, and makes a segment if one was lacking.
    fn look(&mut self, reserve_bytes: u64) -> io::Result<Room> {
        let free_bytes = self.log.available_bytes()?;
        let mut tier = Tier::at(free_bytes, reserve_bytes, self.tier);
        // Where the next segment does not fit beside what a tier leaves free, there is no room for that tier.
        while let Err(error) = self.log.room(tier.leaves_free(reserve_bytes)) {
            match error {
                AppendError::Full { .. } if tier > Tier::Notes => tier = tier.below(),
                AppendError::Full { .. } => break,
                AppendError::Failed(error) => return Err(error),
            }
        }
        self.tier = tier;
        Ok(Room { tier, free_bytes, reserve_bytes })
    }
}

impl DiskStore {
    /// Opens the store in `dir`, or begins one: `log/` is true, `db/` is rebuilt from it when it is missing or in doubt.
    ///
    /// # Errors
    /// See [`OpenError`]. A torn tail of the log is cut; single bits that flipped are put right where a SHA-256 proves what they were; any
    /// other damage is named, and nothing is changed.
    pub fn open(dir: &Path, options: &DiskOptions) -> Result<Self, OpenError> {
        let (store, mended) = repair::open(dir, options, || Self::open_as_it_is(dir, options))?;
        store.log.count_mended(mended);
        Ok(store)
    }

    fn open_as_it_is(dir: &Path, options: &DiskOptions) -> Result<Self, OpenError> {
        make_folder(dir)?;
        let lock = lock(dir)?;
        let (log_dir, log_options) = (dir.join("log"), options.log());
        let reader = Arc::new(LogReader::open(&log_dir, &log_options)?);
        let (view, state, resume) = open_view(dir, &log_dir, options, &reader)?;
        let mut replay = Replay::new(view, state);
        let log = Log::open(&log_dir, log_options, &reader, resume.as_ref(), &mut |position, record, body| {
            replay.take(position, &record, &body)
        })?;
        let (view, state, tiles) = replay.finish()?;
        let queue = Queue::new(state.seq, options.lag_bytes_max);
        let shared = Arc::new(Shared {
            state: RwLock::new(state),
            tiles: Mutex::new(tiles),
            view: ArcSwap::from_pointee(view),
            queue,
            source: Source::new(dir, options),
            end: EndFile::open(&log_dir, reader.salt()),
        });
        if log.tail().seq > 0 {
            shared.end.note(&Noted { seq: log.tail().seq, hash: log.tail().hash });
        }
        let applier = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("store-view".into()).spawn(move || {
                crate::background::give_way();
                applier::run(&shared);
            })?
        };
        Ok(Self {
            shared: Some(shared),
            log: reader,
            writer: Mutex::new(Writer { log, stopped: None, tier: Tier::All }),
            applier: Some(applier),
            reserve_bytes: options.reserve_bytes,
            me: options.member.clone(),
            _lock: lock,
        })
    }

    /// Whether there is a store in `dir`: something was committed.
    #[must_use]
    pub fn is_begun(dir: &Path) -> bool {
        log::is_begun(&dir.join("log"))
    }

    /// Reads the whole log in `dir`, every checksum and every link of the chain; changes nothing. Returns the number of the newest
    /// commit. No process may be committing to it meanwhile: half a record would look like damage.
    ///
    /// # Errors
    /// [`OpenError::Damaged`] names the first thing that is not as it was written.
    pub fn verify(dir: &Path, options: &DiskOptions) -> Result<u64, OpenError> {
        log::verify(&dir.join("log"), &options.log())
    }

    pub(super) fn shared(&self) -> &Shared {
        self.shared.as_ref().expect("there until the store is dropped")
    }

    pub(super) fn number(&self, feed: &FeedId) -> Option<FeedNumber> {
        self.shared().state.read().numbers.get(feed).copied()
    }
}

fn range_of((start, end, reason): &Run) -> (Range<u64>, Undisclosed) {
    (*start..*end, *reason)
}

#[cfg(test)]
impl DiskStore {
    /// Makes the next sync fail.
    pub(crate) fn fail_next_sync(&self) {
        self.writer.lock().log.fail_next_sync = true;
    }

    /// The view turns out to be unusable.
    pub(crate) fn fail_view(&self) {
        self.shared().view().doubt();
    }

    /// Whether it has not been replaced since.
    pub(crate) fn view_is_failed(&self) -> bool {
        self.shared().view().is_doubted()
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
            && let Some(view) = Arc::into_inner(shared.view.into_inner())
            && let Err(error) = view.close()
        {
            tracing::warn!(%error, "the view could not be closed; it may be rebuilt at the next start");
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
            let size_of = |feed: &FeedId| state.book_of(feed).map(|(_, book)| book.edge.frontier().size());
            admit::check(&commit, size_of).map_err(CommitError::Invalid)?;
            express::check(&commit, size_of, &*state).map_err(CommitError::Invalid)?;
            express::match_appends(&mut commit, &*state).map_err(CommitError::Invalid)?;
        }
        for fill in &commit.fills {
            let indexes: Vec<u64> = fill.entries.iter().map(|(index, _)| *index).collect();
            let lacking = self.lacks(&fill.feed, &indexes).map_err(|error| match error {
                ReadError::Behind(reason) => CommitError::ViewBehind(reason),
                error => CommitError::Invalid(error.to_string()),
            })?;
            admit::check_fill(fill, &lacking).map_err(CommitError::Invalid)?;
        }
        match shared.queue.wait_for_room() {
            Ok(()) => {}
            Err(NoRoom::Paused(reason)) => return Err(CommitError::ViewBehind(reason)),
            Err(NoRoom::Failed(reason)) => {
                writer.stopped = Some(reason.clone());
                return Err(CommitError::Stopped(reason));
            }
        }
        let seq = tail.seq + 1;
        let head = log::record::encode_head(&commit, seq, &tail.hash, tail.end_arrival);
        if head.len() > RECORD_HEAD_BYTES_MAX {
            return Err(CommitError::Invalid(format!("the notes and ids take {} bytes", head.len())));
        }
        let filled = commit.fills.iter().flat_map(|fill| &fill.entries).map(|(_, entry)| entry);
        let filled = filled.chain(commit.express.iter().map(|express| &express.entry));
        let entries = commit.appends.iter().flat_map(|append| &append.entries).chain(filled);
        let bodies: Vec<&[u8]> = entries
            .filter_map(|entry| match &entry.content {
                Content::Disclosed { envelope, .. } => Some(envelope.as_ref()),
                Content::Undisclosed(_) => None,
            })
            .collect();
        let hash = log::record::head_hash(&head);
        let next = Tail { seq, hash, end_arrival: tail.end_arrival + bodies.len() as u64 };
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
            Arc::new(Committed { seq, hash, first_arrival: tail.end_arrival, end_arrival: next.end_arrival, commit });
        let pending = {
            let mut state = shared.state.write();
            let pending = state.take_in(&committed, position, len);
            fill_tiles(&mut shared.tiles.lock(), &pending);
            pending
        };
        shared.queue.push(pending);
        Ok(committed)
    }

    fn room(&self) -> Result<Room, CommitError> {
        let mut writer = self.writer.lock();
        if let Some(reason) = &writer.stopped {
            return Err(CommitError::Stopped(reason.clone()));
        }
        let found = writer.look(self.reserve_bytes);
        found.inspect_err(|error| writer.stopped = Some(error.to_string())).map_err(CommitError::Io).and_then(|room| {
            self.shared().queue.paused().map_or(Ok(room), |reason| Err(CommitError::ViewBehind(reason)))
        })
    }

    fn feeds(&self) -> Vec<FeedState> {
        let state = self.shared().state.read();
        state.numbers.values().filter_map(|number| state.book(*number)?.state()).collect()
    }

    fn feed(&self, feed: &FeedId) -> Option<FeedState> {
        self.shared().state.read().book_of(feed)?.1.state()
    }

    fn entries(&self, feed: &FeedId, from: u64, entries_max: usize, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        let number = {
            let state = self.shared().state.read();
            let Some((number, book)) = state.book_of(feed) else { return Ok(Vec::new()) };
            if from >= book.edge.frontier().size() {
                return Ok(Vec::new());
            }
            if let Some(entries) = state.window.entries(number, from, entries_max, bytes_max) {
                drop(state);
                return self.with_fills(number, entries, bytes_max);
            }
            number
        };
        let mut taken = Bounded::new(entries_max, bytes_max);
        let mut next = from;
        while let Some(stretch) = self.shared().view().position(number, next)?
            && self.read_indexes(feed, &stretch, next, &mut taken)?
        {
            next = stretch.first + u64::from(stretch.count);
        }
        if taken.entries.is_empty() {
            return Err(ReadError::Damaged(format!("the view lacks {feed} {from}")));
        }
        self.with_fills(number, taken.entries, bytes_max)
    }

    fn end_arrival(&self) -> u64 {
        self.shared().state.read().end_arrival
    }

    fn id(&self) -> StoreId {
        StoreId::of_salt(&self.log.salt())
    }

    fn link(&self, offset: u64) -> Result<Option<ChainLink>, ReadError> {
        self.read_link(offset)
    }

    fn linked_arrivals(
        &self,
        from: u64,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Entry>, Vec<ChainLink>), ReadError> {
        let from = from.max(1);
        {
            let state = self.shared().state.read();
            if from >= state.end_arrival {
                return Ok((Vec::new(), Vec::new()));
            }
            if let Some(taken) = state.window.arrivals(from, entries_max, bytes_max) {
                return Ok(taken);
            }
        }
        let mut taken = Bounded::new(entries_max, bytes_max);
        let mut next = from;
        while let Some(stretch) = self.shared().view().arrival(next)?
            && self.read_arrivals(&stretch, next, &mut taken)?
        {
            next = stretch.first + u64::from(stretch.count);
        }
        if taken.entries.is_empty() {
            return Err(ReadError::Damaged(format!("the view lacks arrival {from}")));
        }
        Ok((taken.entries, taken.links))
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
            Known::AtMost(place) => place.into_iter().chain(self.shared().view().find(member, id)?).min(),
        };
        let Some(place) = place else { return Ok(None) };
        let state = self.shared().state.read();
        let book = state.book(place.feed).ok_or_else(|| dangling("feed"))?;
        Ok(Some(Location { feed: book.feed.clone(), index: place.index, arrival: place.arrival }))
    }

    fn referring(
        &self,
        member: &Member,
        id: Uuid,
        how: Refers,
        after: u64,
        max: usize,
    ) -> Result<Vec<Location>, ReadError> {
        self.read_referring(member, id, how, after, max)
    }

    fn succeeded(&self, member: &Member, ids: &[Uuid]) -> Result<Vec<bool>, ReadError> {
        self.read_succeeded(member, ids)
    }

    fn answers(&self, member: &Member, id: Uuid, persons_max: usize) -> Result<Answers, ReadError> {
        self.read_answers(member, id, persons_max)
    }

    fn tree_hashes(&self, feed: &FeedId, nodes: &[NodeId]) -> Result<Vec<Hash>, ReadError> {
        self.read_tree_hashes(feed, nodes)
    }

    fn lacks(&self, feed: &FeedId, indexes: &[u64]) -> Result<Vec<Option<(Digest, Undisclosed)>>, ReadError> {
        self.lacking(feed, indexes)
    }

    fn ahead(&self, feed: &FeedId, range: Range<u64>) -> Vec<(u64, Digest)> {
        let state = self.shared().state.read();
        let Some((_, book)) = state.book_of(feed).filter(|_| !range.is_empty()) else { return Vec::new() };
        book.ahead.range(range).map(|(index, held)| (*index, held.digest)).collect()
    }

    fn ahead_places(&self, feed: &FeedId, now_ms: u64) -> Vec<u64> {
        self.shared().state.read().places(feed, now_ms)
    }

    fn express(&self, feed: &FeedId, index: u64) -> Result<Option<Express>, ReadError> {
        self.read_express(feed, index)
    }

    fn urgent(&self, feed: &FeedId, how: Urgent, from: u64, max: usize) -> Result<Vec<u64>, ReadError> {
        self.read_urgent(feed, how, from, max)
    }

    fn not_held_from(&self, feed: &FeedId, from: u64, max: usize) -> Result<Vec<(Range<u64>, Undisclosed)>, ReadError> {
        let number = {
            let state = self.shared().state.read();
            let Some((number, book)) = state.book_of(feed) else { return Ok(Vec::new()) };
            if !book.older_runs || book.runs.front().is_some_and(|(start, ..)| *start <= from) {
                let first = book.runs.partition_point(|(_, end, _)| *end <= from);
                return Ok(book.runs.range(first..).take(max).map(range_of).collect());
            }
            number
        };
        self.shared().queue.drain(self.seq())?;
        Ok(self.shared().view().runs_from(number, from, max)?.iter().map(range_of).collect())
    }

    fn not_held(&self, feed: &FeedId, max: usize) -> Result<Vec<(Range<u64>, Undisclosed)>, ReadError> {
        let max = max.min(NOT_HELD_RANGES_MAX);
        let number = {
            let state = self.shared().state.read();
            let Some((number, book)) = state.book_of(feed) else { return Ok(Vec::new()) };
            if !book.older_runs || book.runs.len() >= max {
                return Ok(book.runs.range(book.runs.len().saturating_sub(max)..).map(range_of).collect());
            }
            number
        };
        self.shared().queue.drain(self.seq())?;
        Ok(self.shared().view().runs(number, max)?.iter().map(range_of).collect())
    }

    fn cosigned_newest(&self, feed: &FeedId) -> Result<Vec<Cosigned>, ReadError> {
        let state = self.shared().state.read();
        Ok(state.book_of(feed).map(|(_, book)| book.cosigned.values().cloned().collect()).unwrap_or_default())
    }

    fn cosigned_covering(&self, feed: &FeedId, index: u64) -> Result<Vec<Cosigned>, ReadError> {
        let Some(number) = self.number(feed) else { return Ok(Vec::new()) };
        let (cosigners, pending): (Vec<Member>, Vec<Cosigned>) = {
            let state = self.shared().state.read();
            let cosigners = state.book(number).map(|book| book.cosigned.keys().cloned().collect()).unwrap_or_default();
            let pending = state.pending_cosigned.iter().filter(|(_, feed, note)| *feed == number && note.size > index);
            (cosigners, pending.map(|(.., note)| note.clone()).collect())
        };
        let mut notes = Vec::new();
        for cosigner in cosigners {
            let held = self.shared().view().cosigned_above(number, &cosigner, index)?;
            let held = held.map(|at| load::cosigned(&self.log, at)).transpose()?;
            let pending = pending.iter().filter(|note| note.cosigner == cosigner).cloned();
            // Of several for one size the first that was committed: `min_by_key` keeps the first.
            notes.extend(held.into_iter().chain(pending).min_by_key(|note| note.size));
        }
        Ok(notes)
    }

    fn custody_covering(&self, feed: &FeedId, index: u64) -> Result<Vec<CustodyRecord>, ReadError> {
        self.read_custody_covering(feed, index)
    }

    fn custody_newest(&self, feed: &FeedId) -> Result<Vec<CustodyRecord>, ReadError> {
        let state = self.shared().state.read();
        Ok(state.book_of(feed).map(|(_, book)| book.custody.values().cloned().collect()).unwrap_or_default())
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
            |number| self.shared().view().custody_after(number, holder, index, max),
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
            |note, standing| standing.late && note.holder == *holder && note.time >= from_time,
            |number| {
                let mut held = self.shared().view().custody_late(number, holder, from_time, max)?;
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
        self.noted(held, "roster", |commit, place| commit.rosters.get(place).cloned())
    }

    fn forks(&self) -> Result<Vec<ForkRecord>, ReadError> {
        let held: Vec<NoteRef> = self.shared().state.read().forks.values().copied().collect();
        self.noted(held, "record of two histories", |commit, place| commit.forks.get(place).cloned())
    }

    fn crls(&self) -> Result<Vec<CrlRecord>, ReadError> {
        let held: Vec<NoteRef> = self.shared().state.read().crls.values().copied().collect();
        self.noted(held, "revocation list", |commit, place| commit.crls.get(place).cloned())
    }

    fn subscription(&self, name: &str) -> Option<Subscription> {
        self.shared().state.read().subscriptions.get(name).cloned()
    }

    fn subscriptions(&self, after: &str, max: usize) -> Vec<(String, Subscription)> {
        self.shared().state.read().subscriptions.after(after, max)
    }

    fn view_lag(&self) -> u64 {
        self.seq().saturating_sub(self.shared().queue.applied_seq())
    }

    fn sync_times(&self) -> SyncTimes {
        self.writer.lock().log.sync_times()
    }

    fn disk_bytes(&self) -> DiskBytes {
        let writer = self.writer.lock();
        DiskBytes {
            log: writer.log.written_bytes(),
            view: self.shared().view().disk_bytes(),
            free: writer.log.available_bytes().unwrap_or(0),
        }
    }

    fn drain_view(&self) {
        let _ = self.shared().queue.drain(self.seq());
    }

    fn damage(&self) -> Option<crate::telemetry::alarms::Alarm> {
        self.damage_met()
    }

    fn mended_bits(&self) -> u64 {
        self.log.mended()
    }
}
