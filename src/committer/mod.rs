//! The one writer: group commit, sign, make durable, release.
//!
//! In scope: deciding what goes into one commit, signing the feed's checkpoint, cosignatures and
//! custody notes for it, and releasing answers only after the store has made it durable. Out of
//! scope: validating bulletins (core), verifying peers (core), and where bytes lie (the store). One
//! writer does all of it, on its own thread or where lone work comes; everyone else holds a
//! [`Committer`] handle.

mod attestations;
mod bulletins;
mod completions;
mod disk_space;
mod epoch;
mod high_water_mark;
mod metrics;
mod priority;
mod queue;
mod replicated_appends;
mod scheduler;
#[cfg(test)]
mod testing;
mod work;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use barid_core::bulletin::ValidBulletin;
use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint};
use barid_core::feed::cosignature::heartbeat_line;
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::note::SigningKey;
use barid_core::follow::{ProvenEntry, VerifiedBatch};
use barid_core::ids::{FeedId, Member, Undisclosed};
use barid_core::proto;
use barid_core::quota::{Shares, Tier};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast, oneshot, watch};

use crate::clock;
use crate::store::{CommitError, Committed, CustodyRecord, ReadError, Store};

pub use attestations::Attestations;
pub use bulletins::{feed_closed_bulletin, feed_forked_bulletin};
pub use epoch::{
    NextEpoch, OpenEpochError, OpenedEpoch, key_path, needs_recovery, open_epoch, read_high_water_epoch,
    read_high_water_size,
};
pub use high_water_mark::{HighWaterMark, HighWaterMarkError};
pub use priority::PriorityOutcome;
pub use work::{Appended, BackfillWork, Backfilled, PublishOutcome, PublishedGroup, Records};
pub(crate) use work::{Permit, Work};

/// Entries of this member, and answers, that may wait for the committer; beyond it publishers are
/// told to come back.
pub const QUEUE_MAX: usize = 8_192;
/// Entries of links that may wait beside those: what peers bring takes no place of what is
/// published here.
pub const LINKS_QUEUE_MAX: usize = QUEUE_MAX;
/// Urgent entries with status Actual that may wait beside them: they find room when the others do
/// not.
pub const PRIORITY_QUEUE_MAX: usize = 1_024;
/// Urgent entries of any other status, beside both: exercises take no place of what is Actual.
pub const PRIORITY_OTHERS_QUEUE_MAX: usize = PRIORITY_QUEUE_MAX / 2;
/// How long a record that would hold only answers waits for company, and how long answers may be
/// owed.
pub const RECORDS_LINGER: Duration = Duration::from_millis(3);
/// How often it is looked whether there is room on the disk.
pub const DISK_SPACE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of answers, rosters and lists gathered for one commit: with the digests and ids of its
/// entries they stay below [`barid_core::limits::RECORD_HEAD_BYTES_MAX`].
pub const RECORDS_BYTES_MAX: usize = 8 << 20;

/// What the committer signs with. What becomes true by a commit is signed by the writer alone.
pub struct Keys {
    /// Keys of the feed's epoch: Ed25519 and, if the roster lists one, ML-DSA-44.
    pub feed: Vec<SigningKey>,
    /// Key of `<member>.<exchange>/mirror`.
    pub mirror: SigningKey,
    /// Key of `<member>.<exchange>/custody`.
    pub custody: SigningKey,
}

/// How a committer starts.
pub struct Options {
    /// The node's own feed and epoch.
    pub feed: FeedId,
    /// Signing keys.
    pub keys: Keys,
    /// File of the mark, outside the data folder.
    pub high_water_mark: PathBuf,
    /// This is declared to be the first start ever of this member's feed.
    pub bootstrap: bool,
    /// How long to wait alone for a peer's heads before publishing.
    pub peer_wait: Duration,
    /// Share of the room on the disk that the content of one other member may take in a day, in
    /// percent.
    pub share_percent: u8,
}

/// Whether the node may publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishState {
    /// No peer has shown its heads yet, and `peer_wait` has not passed.
    Starting,
    /// It may.
    Open,
    /// The feed must not be continued: why.
    NeedsRecovery(String),
    /// The store has failed: why.
    Stopped(String),
}

/// Why something was not committed. Nothing of it is visible.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitFailure {
    /// The feed must not be continued.
    #[error("this node does not publish: {0}; run `barid recover`")]
    NeedsRecovery(String),
    /// The queue is full.
    #[error("too much is waiting to be committed")]
    Overloaded,
    /// There is no room on the disk: why. There will be; what was refused may come again then.
    #[error("{0}")]
    DiskFull(String),
    /// Content of a member that has brought its share of the room on the disk. It may come again
    /// later.
    #[error("its member has brought its share of the room on the disk")]
    OverShare,
    /// The store has failed; the node must be restarted.
    #[error("the store has stopped: {0}")]
    Stopped(String),
    /// The clock is behind what this node has signed: what has to be spoken of with a time waits.
    #[error("the clock of this node is behind its last cosignature")]
    ClockBehind,
    /// A batch does not continue the feed as held: another link was faster.
    #[error("the feed stands at {held}, the batch begins at {first}")]
    Stale {
        /// Held.
        held: u64,
        /// Offered.
        first: u64,
    },
    /// Its feed's owner has signed another entry for a place, which is held.
    #[error("another entry is held at index {index}")]
    EntryConflict {
        /// The place.
        index: u64,
        /// What was offered there, with what proves it, unless it cannot be proven now.
        proven: Option<Box<ProvenEntry>>,
    },
}

/// Handle of the committer. Cheap to clone.
#[derive(Clone)]
pub struct Committer {
    shared: Arc<CommitterShared>,
    work: scheduler::WorkSender,
}

/// Places in the queue for one sort of work.
struct QueueSlots {
    free: Arc<Semaphore>,
    count: usize,
}

impl QueueSlots {
    fn new(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), count }
    }

    fn in_use(&self) -> usize {
        self.count.saturating_sub(self.free.available_permits())
    }
}

pub(crate) struct CommitterShared {
    store: Arc<dyn Store>,
    feed: FeedId,
    high_water_mark: PathBuf,
    seq: watch::Sender<u64>,
    /// One past the newest offset: told before `seq`.
    end_offset: watch::Sender<u64>,
    publish_state: watch::Sender<PublishState>,
    /// Why no own entries are taken for want of room.
    disk_full: watch::Sender<Option<String>>,
    tier: watch::Sender<Tier>,
    /// What members have brought, and may bring.
    shares: Mutex<Shares>,
    custody: broadcast::Sender<Arc<Vec<CustodyRecord>>>,
    attestations: broadcast::Sender<Arc<Attestations>>,
    queue: QueueSlots,
    links: QueueSlots,
    priority: QueueSlots,
    others: QueueSlots,
    heartbeat_key: SigningKey,
    custody_key: SigningKey,
    /// Unix seconds of what this node signed last as a witness.
    last_time: AtomicU64,
    /// How far a test has set the clock, in seconds.
    #[cfg(test)]
    clock_offset_seconds: std::sync::atomic::AtomicI64,
    newest: Mutex<Option<SignedCheckpoint>>,
    /// Feeds of which another history is held than this node has cosigned.
    cosignature_conflicts: Mutex<BTreeSet<FeedId>>,
    /// Envelope bytes of each feed that were committed since the start.
    bytes: Mutex<BTreeMap<FeedId, u64>>,
}

/// Why a committer did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store could not be read.
    #[error("the store cannot be read")]
    Read(#[from] ReadError),
    /// The first checkpoint could not be committed.
    #[error("the feed's first checkpoint cannot be committed")]
    Commit(#[from] CommitError),
    /// The mark could not be read or written.
    #[error(transparent)]
    HighWaterMark(#[from] HighWaterMarkError),
    /// The feed's keys cannot sign for it.
    #[error("the feed's keys do not fit: {0}")]
    Keys(String),
    /// The thread could not be started.
    #[error("the committer's thread cannot be started")]
    Thread(#[source] std::io::Error),
}

impl Committer {
    /// Opens the feed (or begins it, on a first start) and starts the committer's thread.
    ///
    /// # Errors
    /// See [`StartError`]. A feed in doubt is not an error: the gate says so.
    pub fn start(store: Arc<dyn Store>, options: Options) -> Result<Self, StartError> {
        let shared = Arc::new(CommitterShared {
            feed: options.feed.clone(),
            high_water_mark: options.high_water_mark.clone(),
            seq: watch::Sender::new(store.seq()),
            end_offset: watch::Sender::new(store.end_offset()),
            publish_state: watch::Sender::new(PublishState::Starting),
            disk_full: watch::Sender::new(None),
            tier: watch::Sender::new(Tier::All),
            shares: Mutex::new(Shares::new(options.share_percent)),
            custody: broadcast::Sender::new(1_024),
            attestations: broadcast::Sender::new(1_024),
            queue: QueueSlots::new(QUEUE_MAX),
            links: QueueSlots::new(LINKS_QUEUE_MAX),
            priority: QueueSlots::new(PRIORITY_QUEUE_MAX),
            others: QueueSlots::new(PRIORITY_OTHERS_QUEUE_MAX),
            heartbeat_key: options.keys.mirror.clone(),
            custody_key: options.keys.custody.clone(),
            last_time: AtomicU64::new(0),
            #[cfg(test)]
            clock_offset_seconds: std::sync::atomic::AtomicI64::new(0),
            newest: Mutex::new(None),
            cosignature_conflicts: Mutex::default(),
            bytes: Mutex::default(),
            store,
        });
        let peer_wait = options.peer_wait;
        let writer = writer::Writer::open(Arc::clone(&shared), options)?;
        shared.seq.send_replace(shared.store.seq());
        let committer = Self { shared, work: scheduler::start(writer).map_err(StartError::Thread)? };
        if tokio::runtime::Handle::try_current().is_ok() {
            let waiting = committer.clone();
            tokio::spawn(async move {
                tokio::time::sleep(peer_wait).await;
                waiting.peer_heads_received();
            });
        }
        Ok(committer)
    }

    /// The store it writes to.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// The node's own feed.
    #[must_use]
    pub fn feed(&self) -> &FeedId {
        &self.shared.feed
    }

    /// One past the newest offset: the wake-up of those to whom bulletins are delivered. They are
    /// woken before whoever else reads, and not for commits in which nothing arrived.
    #[must_use]
    pub fn watch_end_offset(&self) -> watch::Receiver<u64> {
        self.shared.end_offset.subscribe()
    }

    /// Number of the newest commit: the wake-up of every other reader.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.seq.subscribe()
    }

    /// Whether the node may publish.
    #[must_use]
    pub fn publish_state(&self) -> watch::Receiver<PublishState> {
        self.shared.publish_state.subscribe()
    }

    /// Custody notes for this member's feeds, of every epoch, as they become durable.
    #[must_use]
    pub fn custody_notes(&self) -> broadcast::Receiver<Arc<Vec<CustodyRecord>>> {
        self.shared.custody.subscribe()
    }

    /// What this node says of other members' feeds, as it becomes durable: shortly after the
    /// entries that it speaks of.
    #[must_use]
    pub fn attestations(&self) -> broadcast::Receiver<Arc<Attestations>> {
        self.shared.attestations.subscribe()
    }

    /// A peer has shown its heads and nothing of ours is in doubt: publishing may begin.
    pub fn peer_heads_received(&self) {
        self.shared.publish_state.send_if_modified(|publish_state| {
            let starting = *publish_state == PublishState::Starting;
            if starting {
                *publish_state = PublishState::Open;
            }
            starting
        });
    }

    /// A peer has shown a valid checkpoint of our own feed that we do not hold: the feed must not
    /// be continued. False if that was known. Blocks for one small file, so that a restart does not
    /// forget it.
    pub fn require_recovery(&self, reason: String) -> bool {
        let recorded_reason = reason.clone();
        let changed = self.shared.publish_state.send_if_modified(|publish_state| {
            let change = matches!(publish_state, PublishState::Starting | PublishState::Open);
            if change {
                tracing::error!(reason, "feed needs recovery: publishing stops");
                *publish_state = PublishState::NeedsRecovery(reason);
            }
            change
        });
        if changed
            && let Err(error) = high_water_mark::write_needs_recovery(
                &self.shared.high_water_mark,
                self.shared.feed.epoch,
                &recorded_reason,
            )
        {
            tracing::error!(%error, "the need for recovery is known only until this node restarts");
        }
        changed
    }

    /// Publishes a group of bulletins of this member; answers when they are durable. At most
    /// [`barid_core::limits::COMMIT_ENTRIES_MAX`] bulletins.
    ///
    /// # Errors
    /// See [`CommitFailure`]; nothing of the group was published then.
    pub async fn publish(&self, group: Vec<ValidBulletin>) -> Result<PublishedGroup, CommitFailure> {
        let permit = Arc::clone(self.slots(&group)).try_acquire_many_owned(permits_of(group.len()));
        self.submit(group, permit.map_err(|_| CommitFailure::Overloaded)?).await?.await.map_err(|_| self.stopped())?
    }

    /// As [`Self::publish`], but returns at once; groups are committed in the order of these calls,
    /// those with an urgent bulletin before those without.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn try_submit_publish(
        &self,
        group: Vec<ValidBulletin>,
    ) -> Result<oneshot::Receiver<Result<PublishedGroup, CommitFailure>>, CommitFailure> {
        let permit = Arc::clone(self.slots(&group)).try_acquire_many_owned(permits_of(group.len()));
        let (reply, response) = oneshot::channel();
        let permit = permit.map_err(|_| CommitFailure::Overloaded)?;
        self.work.send(Work::Publish(group, reply, permit)).map_err(|_| self.stopped())?;
        Ok(response)
    }

    /// As [`Self::try_submit_publish`], but waits for room in the queue, and where nothing else is
    /// to be done until it is durable: for callers that can make others wait in turn. Waiters are
    /// served in the order in which they came; dropping the future gives up the place, or the
    /// answer.
    ///
    /// # Errors
    /// As [`Self::publish`], but never [`CommitFailure::Overloaded`] for want of room.
    pub async fn submit_publish(
        &self,
        group: Vec<ValidBulletin>,
    ) -> Result<oneshot::Receiver<Result<PublishedGroup, CommitFailure>>, CommitFailure> {
        let slots = Arc::clone(self.slots(&group));
        let permit = slots.acquire_many_owned(permits_of(group.len())).await.map_err(|_| self.stopped())?;
        self.submit(group, permit).await
    }

    async fn submit(
        &self,
        group: Vec<ValidBulletin>,
        permit: Permit,
    ) -> Result<oneshot::Receiver<Result<PublishedGroup, CommitFailure>>, CommitFailure> {
        let (reply, response) = oneshot::channel();
        self.work.send_or_commit_inline(Work::Publish(group, reply, permit)).await.map_err(|_| self.stopped())?;
        Ok(response)
    }

    /// Appends a verified batch of a peer's feed; what this node says of it comes later
    /// ([`Self::attestations`]). Waits for room.
    ///
    /// # Errors
    /// See [`CommitFailure`].
    pub async fn append(&self, batch: VerifiedBatch) -> Result<Appended, CommitFailure> {
        self.submit_append(batch).await?.await.map_err(|_| self.stopped())?
    }

    /// As [`Self::append`], but returns when the batch is queued, or durable where nothing else was
    /// to be done: batches are committed in the order of these calls.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub async fn submit_append(
        &self,
        batch: VerifiedBatch,
    ) -> Result<oneshot::Receiver<Result<Appended, CommitFailure>>, CommitFailure> {
        let permit = self.permits(&self.shared.links, permits_of(batch.entries.len())).await?;
        let (reply, response) = oneshot::channel();
        self.work
            .send_or_commit_inline(Work::Append(Box::new(batch), reply, permit))
            .await
            .map_err(|_| self.stopped())?;
        Ok(response)
    }

    /// Fills entries of a peer's feed that are held as digests, each once: what another call filled
    /// first is passed over. Waits for room.
    ///
    /// # Errors
    /// See [`CommitFailure`].
    pub async fn backfill(&self, backfill_work: BackfillWork) -> Result<Backfilled, CommitFailure> {
        let count = u32::try_from(backfill_work.backfill.entries.len().max(1)).unwrap_or(u32::MAX);
        let permit = self.permits(&self.shared.links, count).await?;
        let (reply, response) = oneshot::channel();
        self.work.send(Work::Backfill(Box::new(backfill_work), reply, permit)).map_err(|_| self.stopped())?;
        response.await.map_err(|_| self.stopped())?
    }

    /// Keeps answers and other facts; may wait a few milliseconds for company.
    ///
    /// # Errors
    /// See [`CommitFailure`].
    pub async fn persist(&self, records: Records) -> Result<(), CommitFailure> {
        let permit = self.permits(&self.shared.queue, 1).await?;
        let (reply, response) = oneshot::channel();
        self.work.send(Work::Records(records, reply, permit)).map_err(|_| self.stopped())?;
        response.await.map_err(|_| self.stopped())?
    }

    /// The newest checkpoint of the node's own feed that is durable.
    #[must_use]
    pub fn newest_checkpoint(&self) -> Option<SignedCheckpoint> {
        self.shared.newest.lock().clone()
    }

    /// A heartbeat: the node's own cosignature on its newest checkpoint, as a bare signature line.
    ///
    /// None while the clock is behind: its time would be wrong.
    #[must_use]
    pub fn heartbeat(&self, now_unix_seconds: u64) -> Option<proto::Cosigned> {
        if is_behind(self.shared.last_time(), now_unix_seconds) {
            return None;
        }
        let newest = self.newest_checkpoint()?;
        let line = heartbeat_line(&newest.checkpoint, &self.shared.heartbeat_key, now_unix_seconds);
        Some(proto::Cosigned {
            note: line.ok()?,
            heartbeat_feed: newest.checkpoint.feed.to_string(),
            heartbeat_size: newest.checkpoint.size,
        })
    }

    /// Custody notes that say again, of these ranges alone, what this node holds of another
    /// member's feed in full and has become durable: for the owner, by another way than that of
    /// [`Self::attestations`]. At most so many as there are ranges; `None` while the clock is
    /// behind.
    #[must_use]
    pub fn reissue_custody(&self, feed: &FeedId, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
        let (seconds, _) = self.shared.now();
        let time = later(seconds, self.shared.last_time());
        let tree = checkpoint_of(feed, &self.shared.store.feed(feed)?.compact_range);
        let note = |range: &Range<u64>| {
            CustodyNote::new(&tree, time, range.clone(), []).and_then(|note| note.sign(&self.shared.custody_key)).ok()
        };
        (!is_behind(time, seconds)).then(|| ranges.iter().filter_map(note).collect())
    }

    /// The time of what this node signed last as a witness, in unix seconds, while its clock is so
    /// far behind that nothing more is signed; `None` while the clock is right.
    #[must_use]
    pub fn clock_behind(&self) -> Option<u64> {
        Some(self.shared.last_time()).filter(|last| is_behind(*last, self.shared.now().0))
    }

    /// Commits what is waiting, then ends the thread, which holds the store no more.
    pub async fn stop(&self) {
        let (reply, response) = oneshot::channel();
        if self.work.send(Work::Stop(reply)).is_ok() {
            let _ = response.await;
        }
    }

    async fn permits(&self, slots: &QueueSlots, count: u32) -> Result<Permit, CommitFailure> {
        Arc::clone(&slots.free).acquire_many_owned(count).await.map_err(|_| self.stopped())
    }

    fn stopped(&self) -> CommitFailure {
        match &*self.shared.publish_state.borrow() {
            PublishState::Stopped(reason) => CommitFailure::Stopped(reason.clone()),
            _ => CommitFailure::Stopped("shutting down".into()),
        }
    }
}

/// Places in the queue that so many entries take.
fn permits_of(entries: usize) -> u32 {
    u32::try_from(entries.max(1)).unwrap_or(u32::MAX)
}

/// How far the clock may be behind the last cosignature (DESIGN §9): as far as a publisher's may be
/// ahead.
const CLOCK_BEHIND_SECONDS_MAX: u64 = barid_core::limits::CLOCK_AHEAD_SECONDS_MAX.unsigned_abs();

fn is_behind(last: u64, now: u64) -> bool {
    last > now.saturating_add(CLOCK_BEHIND_SECONDS_MAX)
}

impl CommitterShared {
    fn last_time(&self) -> u64 {
        self.last_time.load(Ordering::Relaxed)
    }

    /// Unix time in seconds and in ms.
    pub(crate) fn now(&self) -> (u64, u64) {
        #[cfg(not(test))]
        return now();
        #[cfg(test)]
        {
            let set = self.clock_offset_seconds.load(Ordering::Relaxed);
            let (seconds, ms) = now();
            (seconds.saturating_add_signed(set), ms.saturating_add_signed(set * 1_000))
        }
    }
}

#[cfg(test)]
impl Committer {
    /// Sets the clock of this committer, in seconds from the right one.
    pub(crate) fn set_clock(&self, seconds: i64) {
        self.shared.clock_offset_seconds.store(seconds, Ordering::Relaxed);
    }

    /// Takes places in the queue, as others that publish would, until the permit is dropped.
    pub(crate) fn occupy(&self, entries: usize) -> Permit {
        Arc::clone(&self.shared.queue.free).try_acquire_many_owned(permits_of(entries)).expect("there is room")
    }

    /// Takes all places of links.
    pub(crate) fn occupy_links(&self) -> Permit {
        Arc::clone(&self.shared.links.free).try_acquire_many_owned(permits_of(LINKS_QUEUE_MAX)).expect("they are free")
    }
}

/// What this node last said in custody notes of one feed.
#[derive(Clone, Debug, Default)]
pub(crate) struct CustodyProgress {
    /// Entries spoken of.
    pub(crate) size: u64,
    /// Ranges held as digests since then.
    pub(crate) not_held: Vec<(Range<u64>, Undisclosed)>,
}

pub(crate) type Custodies = BTreeMap<FeedId, CustodyProgress>;

/// Times never go back: cosignatures of one node ascend (DESIGN: time = max(now, last)).
pub(crate) fn later(now: u64, last: u64) -> u64 {
    now.max(last)
}

/// Unix time in seconds and in ms.
pub(crate) fn now() -> (u64, u64) {
    let ms = clock::unix_ms();
    (ms / 1_000, ms)
}

/// The checkpoint of a feed at the size that is committed.
pub(crate) fn checkpoint_of(feed: &FeedId, compact_range: &barid_core::feed::tree::CompactRange) -> Checkpoint {
    Checkpoint { feed: feed.clone(), size: compact_range.size(), root: compact_range.root() }
}

/// Whether `member` owns `feed`.
pub(crate) fn owns(member: &Member, feed: &FeedId) -> bool {
    feed.member == *member
}

/// Numbers of a commit, for the log.
pub(crate) fn trace(committed: &Committed) {
    tracing::trace!(
        seq = committed.seq,
        appends = committed.commit.appends.len(),
        first_offset = committed.first_offset,
        "committed"
    );
}
