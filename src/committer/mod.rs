//! Commits entries and records in groups: signs, persists, then replies. One writer makes every
//! commit (`scheduler`); all other code holds a [`Committer`] handle.
//!
//! In scope: what goes into a commit, its signatures, and replies once it is durable. Out of scope:
//! validating and verifying (`barid_core`), and the layout on disk (`store`).

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

/// Most waiting entries of this member, and records. Beyond it publishing fails as `Overloaded`.
pub const QUEUE_MAX: usize = 8_192;
/// Most waiting entries of links: separate, so that peers take no places of local publishers.
pub const LINKS_QUEUE_MAX: usize = QUEUE_MAX;
/// Most waiting urgent entries with status Actual: separate, so that full queues do not stop them.
pub const PRIORITY_QUEUE_MAX: usize = 1_024;
/// Most waiting urgent entries of other status: exercises take no places of Actual entries.
pub const PRIORITY_OTHERS_QUEUE_MAX: usize = PRIORITY_QUEUE_MAX / 2;
/// How long a commit of records alone waits for other work, and an attestation for any commit.
pub const RECORDS_LINGER: Duration = Duration::from_millis(3);
/// Time between two checks of the free disk space.
pub const DISK_SPACE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Most bytes of records in one commit. With the digests and ids of its entries they stay below
/// [`barid_core::limits::RECORD_HEAD_BYTES_MAX`].
pub const RECORDS_BYTES_MAX: usize = 8 << 20;

/// Signing keys of the committer. Only its writer uses them: checkpoints are signed with the commit
/// that holds them, cosignatures and custody notes after the entries they cover are durable.
pub struct Keys {
    /// Keys of the feed's epoch: Ed25519 and, if the roster lists one, ML-DSA-44.
    pub feed: Vec<SigningKey>,
    /// Key of `<member>.<exchange>/mirror`.
    pub mirror: SigningKey,
    /// Key of `<member>.<exchange>/custody`.
    pub custody: SigningKey,
}

/// Options to start a committer with.
pub struct Options {
    /// The node's own feed and epoch.
    pub feed: FeedId,
    /// Signing keys.
    pub keys: Keys,
    /// Path of the high-water mark, outside the data folder.
    pub high_water_mark: PathBuf,
    /// The operator declares that this member's feed has never been started before.
    pub bootstrap: bool,
    /// How long to wait for a peer's tree heads before publishing without them.
    pub peer_wait: Duration,
    /// Percentage of the free disk space that another member's content may take in a day.
    pub share_percent: u8,
}

/// Whether the node may publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishState {
    /// No peer has sent its tree heads yet, and `peer_wait` has not passed.
    Starting,
    /// The node may publish.
    Open,
    /// The feed must not be continued. Holds the reason.
    NeedsRecovery(String),
    /// The store has failed. Holds the reason.
    Stopped(String),
}

/// Why work was not committed. Nothing of it is visible.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitFailure {
    /// The feed must not be continued.
    #[error("this node does not publish: {0}; run `barid recover`")]
    NeedsRecovery(String),
    /// The node is starting: no peer has sent its tree heads yet. The work may be retried later.
    #[error("this node is starting and does not publish yet")]
    Starting,
    /// The queue is full.
    #[error("the commit queue is full, or the index database is behind")]
    Overloaded,
    /// There is no room on the disk, for this reason. The work may be retried later.
    #[error("{0}")]
    DiskFull(String),
    /// Content of a member that has used its share of the disk space. It may be retried later.
    #[error("its member has used its share of the disk space")]
    OverShare,
    /// The store has failed; the node must be restarted.
    #[error("the store has stopped: {0}")]
    Stopped(String),
    /// The clock is behind the last signature: nothing with a time is signed.
    #[error("the clock of this node is behind its last cosignature")]
    ClockBehind,
    /// The batch does not continue the feed as held: a batch from another link was committed first.
    #[error("the feed has {held} entries, the batch begins at {first}")]
    Stale {
        /// Entries held.
        held: u64,
        /// Index of the first entry of the batch.
        first: u64,
    },
    /// The feed's owner has signed an entry for this index that differs from the one held.
    #[error("a different entry is held at index {index}")]
    EntryConflict {
        /// The entry index.
        index: u64,
        /// The entry received for it, with its proof; `None` if it cannot be proven now.
        proven: Option<Box<ProvenEntry>>,
    },
}

/// Handle of the committer. Cheap to clone.
#[derive(Clone)]
pub struct Committer {
    shared: Arc<CommitterShared>,
    work: scheduler::WorkSender,
}

/// Slots in the queue for one class of work.
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
    /// One past the newest offset. Updated before `seq`.
    end_offset: watch::Sender<u64>,
    publish_state: watch::Sender<PublishState>,
    /// Why own entries are not accepted for lack of disk space.
    disk_full: watch::Sender<Option<String>>,
    tier: watch::Sender<Tier>,
    /// Content that each member has sent, against its share.
    shares: Mutex<Shares>,
    custody: broadcast::Sender<Arc<Vec<CustodyRecord>>>,
    attestations: broadcast::Sender<Arc<Attestations>>,
    queue: QueueSlots,
    links: QueueSlots,
    priority: QueueSlots,
    others: QueueSlots,
    heartbeat_key: SigningKey,
    custody_key: SigningKey,
    /// Unix seconds of the newest cosignature or custody note of this node.
    last_time: AtomicU64,
    /// Offset of the clock set by a test, in seconds.
    #[cfg(test)]
    clock_offset_seconds: std::sync::atomic::AtomicI64,
    newest: Mutex<Option<SignedCheckpoint>>,
    /// Feeds whose local copy conflicts with an earlier cosignature of this node.
    cosignature_conflicts: Mutex<BTreeSet<FeedId>>,
    /// Envelope bytes of each feed committed since the start.
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
    /// The high-water mark could not be read or written.
    #[error(transparent)]
    HighWaterMark(#[from] HighWaterMarkError),
    /// The feed's keys cannot sign for the feed.
    #[error("the feed's keys cannot sign for the feed: {0}")]
    Keys(String),
    /// The thread could not be started.
    #[error("the committer thread cannot be started")]
    Thread(#[source] std::io::Error),
}

impl Committer {
    /// Opens the feed, or creates it on a declared first start, and starts the committer thread.
    ///
    /// # Errors
    /// See [`StartError`]. A feed that needs recovery is no error; see [`Self::publish_state`].
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

    /// Returns the store that the committer writes to.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// Returns the node's own feed.
    #[must_use]
    pub fn feed(&self) -> &FeedId {
        &self.shared.feed
    }

    /// Watches one past the newest offset. Updated first, and only by commits with new offsets.
    #[must_use]
    pub fn watch_end_offset(&self) -> watch::Receiver<u64> {
        self.shared.end_offset.subscribe()
    }

    /// Watches the number of the newest commit. It wakes all other readers.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.seq.subscribe()
    }

    /// Watches whether the node may publish.
    #[must_use]
    pub fn publish_state(&self) -> watch::Receiver<PublishState> {
        self.shared.publish_state.subscribe()
    }

    /// Subscribes to custody notes for this member's feeds, of every epoch, as they become durable.
    #[must_use]
    pub fn custody_notes(&self) -> broadcast::Receiver<Arc<Vec<CustodyRecord>>> {
        self.shared.custody.subscribe()
    }

    /// Subscribes to attestations of other members' feeds, shortly after their entries are durable.
    #[must_use]
    pub fn attestations(&self) -> broadcast::Receiver<Arc<Attestations>> {
        self.shared.attestations.subscribe()
    }

    /// Allows publishing: a peer has sent its tree heads, and the feed needs no recovery.
    pub fn peer_heads_received(&self) {
        self.shared.publish_state.send_if_modified(|publish_state| {
            let starting = *publish_state == PublishState::Starting;
            if starting {
                *publish_state = PublishState::Open;
            }
            starting
        });
    }

    /// Stops publishing: a peer holds a checkpoint of the own feed that this node does not. False
    /// if it had stopped already. Blocks to write a small file, so that a restart keeps the state.
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
            tracing::error!(%error, "the need for recovery is not persisted: it is lost when this node restarts");
        }
        changed
    }

    /// Publishes a group of at most [`barid_core::limits::COMMIT_ENTRIES_MAX`] bulletins of this
    /// member, and returns when they are durable.
    ///
    /// # Errors
    /// See [`CommitFailure`]; nothing of the group was published then.
    pub async fn publish(&self, group: Vec<ValidBulletin>) -> Result<PublishedGroup, CommitFailure> {
        let permit = Arc::clone(self.slots(&group)).try_acquire_many_owned(permits_of(group.len()));
        self.submit(group, permit.map_err(|_| CommitFailure::Overloaded)?).await?.await.map_err(|_| self.stopped())?
    }

    /// As [`Self::publish`], but returns when queued, or durable if inline; waits for a slot in the
    /// queue, in the order of the calls. Groups are committed in order, urgent ones first. For
    /// callers that can apply back-pressure. Dropping the future gives up the slot or the reply.
    ///
    /// # Errors
    /// As [`Self::publish`], but never [`CommitFailure::Overloaded`] for a full queue.
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

    /// Appends a verified batch of a peer's feed; [`Self::attestations`] follow. Waits for a slot.
    ///
    /// # Errors
    /// See [`CommitFailure`].
    pub async fn append(&self, batch: VerifiedBatch) -> Result<Appended, CommitFailure> {
        self.submit_append(batch).await?.await.map_err(|_| self.stopped())?
    }

    /// As [`Self::append`], but returns when queued, or durable if inline. Calls keep their order.
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

    /// Adds content to entries of a peer's feed held as digests, unless another call has done so.
    ///
    /// # Errors
    /// See [`CommitFailure`].
    pub async fn backfill(&self, backfill_work: BackfillWork) -> Result<Backfilled, CommitFailure> {
        let count = u32::try_from(backfill_work.backfills.entries.len().max(1)).unwrap_or(u32::MAX);
        let permit = self.permits(&self.shared.links, count).await?;
        let (reply, response) = oneshot::channel();
        self.work.send(Work::Backfill(Box::new(backfill_work), reply, permit)).map_err(|_| self.stopped())?;
        response.await.map_err(|_| self.stopped())?
    }

    /// Persists records. May wait for [`RECORDS_LINGER`] for other work to join the commit.
    ///
    /// # Errors
    /// See [`CommitFailure`].
    pub async fn persist(&self, records: Records) -> Result<(), CommitFailure> {
        let permit = self.permits(&self.shared.queue, 1).await?;
        let (reply, response) = oneshot::channel();
        self.work.send(Work::Records(records, reply, permit)).map_err(|_| self.stopped())?;
        response.await.map_err(|_| self.stopped())?
    }

    /// Returns the newest durable checkpoint of the node's own feed.
    #[must_use]
    pub fn newest_checkpoint(&self) -> Option<SignedCheckpoint> {
        self.shared.newest.lock().clone()
    }

    /// Returns this node's cosignature on its newest checkpoint as a signature line. `None` while
    /// the clock is behind: its time would be wrong.
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

    /// Signs custody notes again for ranges held in full and durable, to reach the feed's owner by
    /// another path than [`Self::attestations`]. `None` while the clock is behind.
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

    /// Returns the time last signed, in unix seconds, while the clock is too far behind it to sign
    /// more.
    #[must_use]
    pub fn clock_behind(&self) -> Option<u64> {
        Some(self.shared.last_time()).filter(|last| is_behind(*last, self.shared.now().0))
    }

    /// Commits the waiting work, then ends the committer thread, which releases the store.
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

/// Slots in the queue that `entries` entries take.
fn permits_of(entries: usize) -> u32 {
    u32::try_from(entries.max(1)).unwrap_or(u32::MAX)
}

/// How far the clock may be behind the last cosignature (DESIGN §9), as a publisher's may be ahead.
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
    /// Sets the clock of this committer, in seconds from the right time.
    pub(crate) fn set_clock(&self, seconds: i64) {
        self.shared.clock_offset_seconds.store(seconds, Ordering::Relaxed);
    }

    /// Takes slots in the queue, as other publishers would, until the permit is dropped.
    pub(crate) fn occupy(&self, entries: usize) -> Permit {
        Arc::clone(&self.shared.queue.free).try_acquire_many_owned(permits_of(entries)).expect("there is room")
    }

    /// Takes all slots of links.
    pub(crate) fn occupy_links(&self) -> Permit {
        Arc::clone(&self.shared.links.free).try_acquire_many_owned(permits_of(LINKS_QUEUE_MAX)).expect("they are free")
    }
}

/// Progress of this node's custody notes of one feed.
#[derive(Clone, Debug, Default)]
pub(crate) struct CustodyProgress {
    /// Entries covered by custody notes.
    pub(crate) size: u64,
    /// Ranges held as digests after `size`.
    pub(crate) not_held: Vec<(Range<u64>, Undisclosed)>,
}

pub(crate) type Custodies = BTreeMap<FeedId, CustodyProgress>;

/// Returns the time to sign: cosignatures of one node ascend (DESIGN: time = max(now, last)).
pub(crate) fn later(now: u64, last: u64) -> u64 {
    now.max(last)
}

/// Unix time in seconds and in ms.
pub(crate) fn now() -> (u64, u64) {
    let ms = clock::unix_ms();
    (ms / 1_000, ms)
}

/// Returns the checkpoint of a feed at the committed size.
pub(crate) fn checkpoint_of(feed: &FeedId, compact_range: &barid_core::feed::tree::CompactRange) -> Checkpoint {
    Checkpoint { feed: feed.clone(), size: compact_range.size(), root: compact_range.root() }
}

/// Whether `member` owns `feed`.
pub(crate) fn owns(member: &Member, feed: &FeedId) -> bool {
    feed.member == *member
}

/// Logs the numbers of a commit.
pub(crate) fn trace(committed: &Committed) {
    tracing::trace!(
        seq = committed.seq,
        appends = committed.commit.appends.len(),
        first_offset = committed.first_offset,
        "committed"
    );
}
