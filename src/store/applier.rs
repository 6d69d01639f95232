//! Applies commits to the index database, in their order, on one thread.
//!
//! In scope: when commits are applied, how far the index database may lag, and waiting for it. Out
//! of scope: which keys are written (`index_db::apply`).
//!
//! Commits wait briefly to be batched, because a key costs sled far more than an entry in a block.
//! Until they are applied they are read from memory. When too many bytes wait, the committer waits.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use barid_core::limits::COMMIT_ENTRIES_MAX;
use parking_lot::{Condvar, Mutex, RwLock};

use super::ReadError;
use super::feed_index::{PendingCommit, State};
use super::index_db::{self, IndexDb};
use super::keys::FeedNumber;
use super::log::{TailHint, TailHintFile};
use super::rebuild::{self, RebuildSource};
use super::tree_cache::TileCache;

/// How long a commit waits to be batched with others before it is applied.
const LINGER: Duration = Duration::from_millis(50);
/// A batch with this many entries is applied at once.
const BATCH_ENTRIES: usize = 2 * COMMIT_ENTRIES_MAX;
/// Bytes of log after which sled's buffers are flushed to the kernel: about what is replayed after
/// the process was killed.
const FLUSH_BYTES: u64 = 32 << 20;
/// How often an idle applier checks whether readers have marked the index database as damaged.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// State shared by the committer, the applier and readers.
pub(super) struct StoreShared {
    /// Lock order: before `tiles`; never while `queue` is locked.
    pub(super) state: RwLock<State>,
    pub(super) tiles: Mutex<TileCache<FeedNumber>>,
    /// Replaced when it is rebuilt.
    pub(super) index_db: ArcSwap<IndexDb>,
    pub(super) queue: ApplyQueue,
    /// The log to rebuild it from.
    pub(super) rebuild_source: RebuildSource,
    /// Records the newest confirmed commit.
    pub(super) tail_hint: TailHintFile,
}

impl StoreShared {
    pub(super) fn index_db(&self) -> arc_swap::Guard<Arc<IndexDb>> {
        self.index_db.load()
    }
}

/// Commits not yet applied to the index database.
pub(super) struct ApplyQueue {
    backlog: Mutex<Backlog>,
    work: Condvar,
    done: Condvar,
    index_lag_bytes_max: u64,
}

#[derive(Default)]
struct Backlog {
    commits: VecDeque<PendingCommit>,
    entries: usize,
    /// Their bytes in the log, including those being applied.
    bytes: u64,
    applied_seq: u64,
    wait_seq: u64,
    stop: bool,
    /// Why nothing is applied for now.
    paused: Option<String>,
    failed: Option<String>,
}

/// Why a commit cannot be queued.
pub(super) enum EnqueueError {
    /// Temporary; a later attempt may succeed.
    Paused(String),
    /// Permanent; the store must be opened again.
    Failed(String),
}

impl ApplyQueue {
    /// Creates an empty queue; the index database is at commit `applied_seq`.
    pub(super) fn new(applied_seq: u64, index_lag_bytes_max: u64) -> Self {
        let backlog = Backlog { applied_seq, ..Backlog::default() };
        Self { backlog: Mutex::new(backlog), work: Condvar::new(), done: Condvar::new(), index_lag_bytes_max }
    }

    /// Waits until the lag of the index database allows another commit.
    pub(super) fn wait_for_capacity(&self) -> Result<(), EnqueueError> {
        let mut backlog = self.backlog.lock();
        self.done.wait_while(&mut backlog, |backlog| {
            backlog.failed.is_none() && backlog.paused.is_none() && backlog.bytes > self.index_lag_bytes_max
        });
        match (&backlog.failed, &backlog.paused) {
            (Some(why), _) => Err(EnqueueError::Failed(why.clone())),
            (None, Some(why)) if backlog.bytes > self.index_lag_bytes_max => Err(EnqueueError::Paused(why.clone())),
            (None, _) => Ok(()),
        }
    }

    /// Returns why no commit can be queued for now.
    pub(super) fn paused(&self) -> Option<String> {
        let backlog = self.backlog.lock();
        backlog.paused.clone().filter(|_| backlog.bytes > self.index_lag_bytes_max)
    }

    /// Pauses applying for this reason, or resumes it with `None`.
    pub(super) fn pause(&self, why: Option<String>) {
        self.backlog.lock().paused = why;
        self.done.notify_all();
    }

    /// Waits for `time` or until the applier is stopped; returns whether it is stopped.
    pub(super) fn stopped_within(&self, time: Duration) -> bool {
        let mut backlog = self.backlog.lock();
        let until = Instant::now() + time;
        while !backlog.stop && !self.work.wait_until(&mut backlog, until).timed_out() {}
        backlog.stop
    }

    /// Queues a commit.
    pub(super) fn push(&self, pending: PendingCommit) {
        let mut backlog = self.backlog.lock();
        let was_empty = backlog.commits.is_empty();
        backlog.entries += entries(&pending);
        backlog.bytes += pending.len;
        backlog.commits.push_back(pending);
        if was_empty || backlog.is_ready() {
            self.work.notify_one();
        }
    }

    /// Returns the number of the newest commit applied to the index database.
    pub(super) fn applied_seq(&self) -> u64 {
        self.backlog.lock().applied_seq
    }

    /// Waits until commit `seq` is applied. Returns an error if applying is paused or has failed.
    pub(super) fn wait_applied(&self, seq: u64) -> Result<(), ReadError> {
        let mut backlog = self.backlog.lock();
        backlog.wait_seq = backlog.wait_seq.max(seq);
        self.work.notify_one();
        self.done.wait_while(&mut backlog, |backlog| {
            backlog.failed.is_none() && backlog.paused.is_none() && backlog.applied_seq < seq
        });
        let why = backlog.failed.as_ref().or(backlog.paused.as_ref());
        why.filter(|_| backlog.applied_seq < seq).map_or(Ok(()), |why| Err(ReadError::Behind(why.clone())))
    }

    /// Makes the applier apply the queued commits and end.
    pub(super) fn stop(&self) {
        self.backlog.lock().stop = true;
        self.work.notify_one();
    }

    /// Returns whether the index database has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.backlog.lock().failed.is_some()
    }

    /// Waits for a batch that is ready. Returns an empty batch after [`POLL_INTERVAL`] without
    /// commits, and `None` when the queue is stopped and empty.
    fn next_batch(&self) -> Option<Vec<PendingCommit>> {
        let mut backlog = self.backlog.lock();
        loop {
            match backlog.commits.front() {
                None if backlog.stop => return None,
                None => {
                    if self.work.wait_for(&mut backlog, POLL_INTERVAL).timed_out() {
                        return Some(Vec::new());
                    }
                }
                Some(oldest) => {
                    let deadline = oldest.since + LINGER;
                    if backlog.is_ready() || self.work.wait_until(&mut backlog, deadline).timed_out() {
                        break;
                    }
                }
            }
        }
        let mut batch = Vec::new();
        let mut count = 0;
        while count < BATCH_ENTRIES
            && let Some(pending) = backlog.commits.pop_front()
        {
            // A commit without entries writes keys too, so it counts.
            count += entries(&pending);
            batch.push(pending);
        }
        backlog.entries = backlog.entries.saturating_sub(count);
        Some(batch)
    }

    fn applied(&self, seq: u64, bytes: u64) {
        let mut backlog = self.backlog.lock();
        backlog.applied_seq = seq;
        backlog.bytes -= bytes.min(backlog.bytes);
        self.done.notify_all();
    }

    fn fail(&self, error: &dyn std::fmt::Display) {
        let mut backlog = self.backlog.lock();
        backlog.failed = Some(error.to_string());
        backlog.commits.clear();
        self.done.notify_all();
    }
}

impl Backlog {
    fn is_ready(&self) -> bool {
        self.stop || self.entries >= BATCH_ENTRIES || self.wait_seq > self.applied_seq
    }
}

/// Returns the weight of a commit in a batch: its entries, and at least one.
fn entries(pending: &PendingCommit) -> usize {
    let commit = &pending.committed.commit;
    let appended = commit.appends.iter().map(|append| append.entries.len());
    let backfilled =
        commit.backfills.iter().map(|backfill| backfill.entries.len()).sum::<usize>() + commit.priority.len();
    (appended.sum::<usize>() + backfilled).max(1)
}

/// Runs until the store is closed or the log turns out to be damaged.
pub(super) fn run(shared: &Arc<StoreShared>) {
    let mut unflushed = 0;
    while let Some(batch) = shared.queue.next_batch() {
        if !batch.is_empty() && !rebuild::wait_for_disk(shared) {
            // Commits that are not applied are replayed at the next start.
            return;
        }
        let bytes = batch.iter().map(|pending| pending.len).sum::<u64>();
        let seq = batch.last().map_or_else(|| shared.queue.applied_seq(), |last| last.committed.seq);
        unflushed += bytes;
        if let Err(error) = apply_batch(shared, &batch, &mut unflushed) {
            shared.index_db().set_damaged();
            tracing::error!(%error, "the index database cannot be used: it is rebuilt from the log");
            match rebuild::until_done(shared, seq) {
                Ok(true) => release_applied(&mut shared.state.write(), &mut shared.tiles.lock(), &batch),
                Ok(false) => return,
                Err(error) => {
                    tracing::error!(%error, "the index database cannot be rebuilt: commits stop");
                    shared.queue.fail(&error);
                    return;
                }
            }
        }
        if let Some(last) = batch.last() {
            shared.tail_hint.write(&TailHint { seq, hash: last.committed.hash });
            shared.queue.applied(seq, bytes);
        }
    }
}

fn apply_batch(shared: &StoreShared, batch: &[PendingCommit], unflushed: &mut u64) -> Result<(), ReadError> {
    let index_db = shared.index_db();
    if index_db.is_damaged() {
        return Err(ReadError::Behind("the index database could not be read".into()));
    }
    // sled reports some damage by a panic; callers that wait for this thread must get an error.
    let applied = catch_unwind(AssertUnwindSafe(|| {
        index_db::apply(&index_db, batch)?;
        if *unflushed > FLUSH_BYTES {
            *unflushed = 0;
            index_db.flush()?;
        }
        Ok(())
    }));
    applied.unwrap_or_else(|_| Err(ReadError::Behind("sled found its files damaged".into())))?;
    release_applied(&mut shared.state.write(), &mut shared.tiles.lock(), batch);
    Ok(())
}

/// Releases the memory of commits that are now in the index database.
pub(super) fn release_applied(state: &mut State, tiles: &mut TileCache<FeedNumber>, batch: &[PendingCommit]) {
    let Some(last) = batch.last() else { return };
    let mut feeds: Vec<FeedNumber> = batch.iter().flat_map(PendingCommit::feeds_of_entries).collect();
    feeds.sort_unstable();
    feeds.dedup();
    state.applied(last.committed.seq, last.committed.end_offset, &feeds);
    for (feed, id, _) in batch.iter().flat_map(|pending| &pending.tiles) {
        tiles.applied(*feed, *id);
    }
}
