//! The one thread that writes the view, behind the commits and in their order.
//!
//! In scope: when commits are taken in, how far the view may lag, and waiting for it. Out of scope: what is written (`view::apply`).
//!
//! Commits wait a little for company, because a key costs sled far more than an entry in a block; until then they are read from
//! memory. When too much waits, the committer waits.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use barid_core::limits::COMMIT_ENTRIES_MAX;
use parking_lot::{Condvar, Mutex, RwLock};

use super::ReadError;
use super::keys::FeedNumber;
use super::log::{EndFile, Noted};
use super::rebuild::{self, Source};
use super::state::{Pending, State};
use super::tree_cache::TileCache;
use super::view::{self, View};

/// How long a commit waits for company before the view takes it in.
const LINGER: Duration = Duration::from_millis(50);
/// Entries that are taken in at once as soon as they are there.
const BATCH_ENTRIES: usize = 2 * COMMIT_ENTRIES_MAX;
/// Bytes of log after which sled's buffers are handed to the kernel: about what is replayed after the process was killed.
const FLUSH_BYTES: u64 = 32 << 20;
/// How often an idle applier looks whether readers have found the view wrong.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the committer, the applier and readers share.
pub(super) struct Shared {
    /// Locked before `tiles`; never while `queue` is locked.
    pub(super) state: RwLock<State>,
    pub(super) tiles: Mutex<TileCache<FeedNumber>>,
    /// Replaced when it is rebuilt.
    pub(super) view: ArcSwap<View>,
    pub(super) queue: Queue,
    /// What it is rebuilt from.
    pub(super) source: Source,
    /// Where it is noted how far the log has come.
    pub(super) end: EndFile,
}

impl Shared {
    pub(super) fn view(&self) -> arc_swap::Guard<Arc<View>> {
        self.view.load()
    }
}

/// Commits that the view has not taken in.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    work: Condvar,
    done: Condvar,
    lag_bytes_max: u64,
}

#[derive(Default)]
struct Waiting {
    commits: VecDeque<Pending>,
    entries: usize,
    /// Bytes in the log, of those that are being taken in too.
    bytes: u64,
    applied_seq: u64,
    drain_to: u64,
    stop: bool,
    /// Why nothing is taken in for now.
    paused: Option<String>,
    failed: Option<String>,
}

/// Why no further commit can be added.
pub(super) enum NoRoom {
    /// Not now.
    Paused(String),
    /// Never again.
    Failed(String),
}

impl Queue {
    /// Empty, the view being at commit `applied_seq`.
    pub(super) fn new(applied_seq: u64, lag_bytes_max: u64) -> Self {
        let waiting = Waiting { applied_seq, ..Waiting::default() };
        Self { waiting: Mutex::new(waiting), work: Condvar::new(), done: Condvar::new(), lag_bytes_max }
    }

    /// Waits until the view is close enough for a further commit.
    pub(super) fn wait_for_room(&self) -> Result<(), NoRoom> {
        let mut waiting = self.waiting.lock();
        self.done.wait_while(&mut waiting, |waiting| {
            waiting.failed.is_none() && waiting.paused.is_none() && waiting.bytes > self.lag_bytes_max
        });
        match (&waiting.failed, &waiting.paused) {
            (Some(why), _) => Err(NoRoom::Failed(why.clone())),
            (None, Some(why)) if waiting.bytes > self.lag_bytes_max => Err(NoRoom::Paused(why.clone())),
            (None, _) => Ok(()),
        }
    }

    /// Why nothing more can be added for now.
    pub(super) fn paused(&self) -> Option<String> {
        let waiting = self.waiting.lock();
        waiting.paused.clone().filter(|_| waiting.bytes > self.lag_bytes_max)
    }

    /// Takes nothing in for now, or goes on.
    pub(super) fn pause(&self, why: Option<String>) {
        self.waiting.lock().paused = why;
        self.done.notify_all();
    }

    /// Waits so long; true as soon as the applier is to end.
    pub(super) fn stopped_within(&self, time: Duration) -> bool {
        let mut waiting = self.waiting.lock();
        let until = Instant::now() + time;
        while !waiting.stop && !self.work.wait_until(&mut waiting, until).timed_out() {}
        waiting.stop
    }

    /// Adds a commit.
    pub(super) fn push(&self, pending: Pending) {
        let mut waiting = self.waiting.lock();
        let begins = waiting.commits.is_empty();
        waiting.entries += entries(&pending);
        waiting.bytes += pending.len;
        waiting.commits.push_back(pending);
        if begins || waiting.is_due() {
            self.work.notify_one();
        }
    }

    /// Number of the newest commit that the view has taken in.
    pub(super) fn applied_seq(&self) -> u64 {
        self.waiting.lock().applied_seq
    }

    /// Waits until the view has taken in commit `seq`; fails if it does not come to it soon.
    pub(super) fn drain(&self, seq: u64) -> Result<(), ReadError> {
        let mut waiting = self.waiting.lock();
        waiting.drain_to = waiting.drain_to.max(seq);
        self.work.notify_one();
        self.done.wait_while(&mut waiting, |waiting| {
            waiting.failed.is_none() && waiting.paused.is_none() && waiting.applied_seq < seq
        });
        let why = waiting.failed.as_ref().or(waiting.paused.as_ref());
        why.filter(|_| waiting.applied_seq < seq).map_or(Ok(()), |why| Err(ReadError::Behind(why.clone())))
    }

    /// Tells the applier to take in what waits and to end.
    pub(super) fn stop(&self) {
        self.waiting.lock().stop = true;
        self.work.notify_one();
    }

    /// Whether the view has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.waiting.lock().failed.is_some()
    }

    /// Waits for commits that are due, for a while; none: the end.
    fn take(&self) -> Option<Vec<Pending>> {
        let mut waiting = self.waiting.lock();
        loop {
            match waiting.commits.front() {
                None if waiting.stop => return None,
                None => {
                    if self.work.wait_for(&mut waiting, LOOK_EVERY).timed_out() {
                        return Some(Vec::new());
                    }
                }
                Some(oldest) => {
                    let due = oldest.since + LINGER;
                    if waiting.is_due() || self.work.wait_until(&mut waiting, due).timed_out() {
                        break;
                    }
                }
            }
        }
        let mut taken = Vec::new();
        let mut count = 0;
        while count < BATCH_ENTRIES
            && let Some(pending) = waiting.commits.pop_front()
        {
            // A commit without entries has its keys too.
            count += entries(&pending);
            taken.push(pending);
        }
        waiting.entries = waiting.entries.saturating_sub(count);
        Some(taken)
    }

    fn applied(&self, seq: u64, bytes: u64) {
        let mut waiting = self.waiting.lock();
        waiting.applied_seq = seq;
        waiting.bytes -= bytes.min(waiting.bytes);
        self.done.notify_all();
    }

    fn fail(&self, error: &dyn std::fmt::Display) {
        let mut waiting = self.waiting.lock();
        waiting.failed = Some(error.to_string());
        waiting.commits.clear();
        self.done.notify_all();
    }
}

impl Waiting {
    fn is_due(&self) -> bool {
        self.stop || self.entries >= BATCH_ENTRIES || self.drain_to > self.applied_seq
    }
}

/// What a commit counts for: at least one.
fn entries(pending: &Pending) -> usize {
    let commit = &pending.committed.commit;
    let appended = commit.appends.iter().map(|append| append.entries.len());
    let filled = commit.fills.iter().map(|fill| fill.entries.len()).sum::<usize>() + commit.express.len();
    (appended.sum::<usize>() + filled).max(1)
}

/// Runs until the store is closed, or the log turns out to be damaged.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut unflushed = 0;
    while let Some(batch) = shared.queue.take() {
        if !batch.is_empty() && !rebuild::wait_for_disk(shared) {
            // What is not taken in is replayed at the next start.
            return;
        }
        let bytes = batch.iter().map(|pending| pending.len).sum::<u64>();
        let seq = batch.last().map_or_else(|| shared.queue.applied_seq(), |last| last.committed.seq);
        unflushed += bytes;
        if let Err(error) = take_in(shared, &batch, &mut unflushed) {
            shared.view().doubt();
            tracing::error!(%error, "the view cannot be used: it is rebuilt from the log");
            match rebuild::until_done(shared, seq) {
                Ok(true) => settle(&mut shared.state.write(), &mut shared.tiles.lock(), &batch),
                Ok(false) => return,
                Err(error) => {
                    tracing::error!(%error, "the view cannot be rebuilt: nothing more is committed");
                    shared.queue.fail(&error);
                    return;
                }
            }
        }
        if let Some(last) = batch.last() {
            shared.end.note(&Noted { seq, hash: last.committed.hash });
            shared.queue.applied(seq, bytes);
        }
    }
}

fn take_in(shared: &Shared, batch: &[Pending], unflushed: &mut u64) -> Result<(), ReadError> {
    let view = shared.view();
    if view.is_doubted() {
        return Err(ReadError::Behind("it could not be read".into()));
    }
    // sled tells of some damage by a panic; those who wait for this thread must hear of it.
    let applied = catch_unwind(AssertUnwindSafe(|| {
        view::apply(&view, batch)?;
        if *unflushed > FLUSH_BYTES {
            *unflushed = 0;
            view.flush()?;
        }
        Ok(())
    }));
    applied.unwrap_or_else(|_| Err(ReadError::Behind("sled found its files damaged".into())))?;
    settle(&mut shared.state.write(), &mut shared.tiles.lock(), batch);
    Ok(())
}

/// Lets memory go of what the view has now.
pub(super) fn settle(state: &mut State, tiles: &mut TileCache<FeedNumber>, batch: &[Pending]) {
    let Some(last) = batch.last() else { return };
    let mut feeds: Vec<FeedNumber> = batch.iter().flat_map(Pending::feeds_of_entries).collect();
    feeds.sort_unstable();
    feeds.dedup();
    state.applied(last.committed.seq, last.committed.end_arrival, &feeds);
    for (feed, id, _) in batch.iter().flat_map(|pending| &pending.tiles) {
        tiles.applied(*feed, *id);
    }
}
