//! Schedules commits. Work runs on the committer thread; a single small item may be committed
//! inline by its caller, on a network thread.
//!
//! Passing a lone bulletin to another thread and back costs two wake-ups, together about half as
//! long as a sync. So lone work is committed inline. Work is left to the committer thread if more
//! work is queued, if it is large, or if the disk or the network thread was slow
//! (`docs/adr/inline-commits.md`).
//!
//! In scope: exclusive access to the writer, and on which thread. Out of scope: what is committed
//! (`writer`), and in which order (`queue`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

use super::queue::{Closed, Queue, Wakeup};
use super::writer::{CommitOutcome, Writer, WriterStep};
use super::{DISK_SPACE_CHECK_INTERVAL, Work};

/// Slowest expected commit that is made inline: a network thread has other work to do.
const INLINE_COMMIT_MAX: Duration = Duration::from_millis(2);
/// Most entries of a work item that is committed inline.
const INLINE_ENTRIES_MAX: usize = 4;
/// Most envelope bytes of it, and most bytes of the records in the same commit.
const INLINE_BYTES_MAX: usize = 64 << 10;
/// Most lingering records in an inline commit. More are left to the committer thread.
const INLINE_RECORDS_MAX: usize = 16;

/// The writer and its queue.
struct CommitScheduler {
    queue: Queue,
    /// `None` once the committer has stopped.
    writer: Mutex<Option<Writer>>,
    /// Estimate for the next commit.
    latency: Mutex<CommitLatency>,
}

/// Decaying estimate of commit latency: the maximum of the last commit and 7/8 of the previous
/// estimate.
struct CommitLatency {
    estimate: Duration,
    /// The newest commit of entries was large: more entries are likely to follow.
    last_was_large: bool,
    /// When an urgent entry last came from a link. If the link's reader committed it inline, it
    /// would read the next one only after the commit.
    priority: Option<Instant>,
}

impl CommitLatency {
    /// No commit has been measured yet.
    const UNKNOWN: Self = Self { estimate: Duration::MAX, last_was_large: false, priority: None };

    fn is_fast(&self) -> bool {
        !self.last_was_large && self.estimate <= INLINE_COMMIT_MAX
    }

    /// Whether work that arrives now is isolated, judged by the work before it.
    fn is_isolated(&mut self, work: &Work, now: Instant) -> bool {
        !matches!(work, Work::Priority(..))
            || self.priority.replace(now).is_none_or(|last| now.saturating_duration_since(last) > INLINE_COMMIT_MAX)
    }

    /// Records the time that a commit took in the store.
    fn record(&mut self, time: Duration, outcome: CommitOutcome) {
        match outcome {
            CommitOutcome::Nothing => {}
            // A failure does not show how long a sync takes: it may only raise the estimate.
            CommitOutcome::Failed => self.estimate = self.estimate.max(time),
            CommitOutcome::Durable(entries) => {
                if entries > 0 {
                    self.last_was_large = entries > INLINE_ENTRIES_MAX;
                }
                self.estimate = match self.estimate {
                    Duration::MAX => time,
                    estimate => time.max(estimate - estimate / 8),
                };
            }
        }
    }
}

/// The sending side of the queue. When the last one is dropped, the committer thread ends.
pub(crate) struct WorkSender(Arc<CommitScheduler>);

impl Clone for WorkSender {
    fn clone(&self) -> Self {
        self.0.queue.add_sender();
        Self(Arc::clone(&self.0))
    }
}

impl Drop for WorkSender {
    fn drop(&mut self) {
        self.0.queue.remove_sender();
    }
}

/// Starts the committer thread.
pub(super) fn start(writer: Writer) -> std::io::Result<WorkSender> {
    let queue = Queue::new(writer.deadline());
    let scheduler = Arc::new(CommitScheduler {
        queue,
        writer: Mutex::new(Some(writer)),
        latency: Mutex::new(CommitLatency::UNKNOWN),
    });
    let thread = Arc::clone(&scheduler);
    std::thread::Builder::new().name("committer".into()).spawn(move || thread.serve())?;
    Ok(WorkSender(scheduler))
}

impl WorkSender {
    /// Queues work for the committer thread.
    pub(super) fn send(&self, work: Work) -> Result<(), Closed> {
        self.0.queue.push(work)
    }

    /// Queues work, and commits it before returning if no other work is due.
    pub(super) async fn send_or_commit_inline(&self, work: Work) -> Result<(), Closed> {
        if !self.0.may_commit_inline(&work) {
            return self.send(work);
        }
        if let Some(work) = self.0.queue.push_if_idle(work)? {
            return self.send(work);
        }
        // If this future is dropped, the committer thread does the work.
        let _wake_on_drop = WakeOnDrop(&self.0.queue);
        let submitted_at = Instant::now();
        // Let other tasks that are about to queue work do so first: then the work is not isolated,
        // and one commit serves all. On a busy thread this takes long, which counts as commit
        // latency.
        tokio::task::yield_now().await;
        if self.0.queue.holds_single(is_small, INLINE_RECORDS_MAX, INLINE_BYTES_MAX)
            && let Some(writer) = self.0.writer.try_lock()
            && let Some(stop) = (WriterGuard { scheduler: &self.0, writer }).step(submitted_at)
        {
            // Only the committer thread stops.
            self.0.queue.requeue(Work::Stop(stop));
        }
        Ok(())
    }
}

fn is_small(work: &Work) -> bool {
    let (entries, bytes) = work.size();
    entries <= INLINE_ENTRIES_MAX && bytes <= INLINE_BYTES_MAX
}

/// Wakes the committer thread on drop.
struct WakeOnDrop<'a>(&'a Queue);

impl Drop for WakeOnDrop<'_> {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl CommitScheduler {
    fn may_commit_inline(&self, work: &Work) -> bool {
        let mut latency = self.latency.lock();
        latency.is_isolated(work, Instant::now())
            && is_small(work)
            && latency.is_fast()
            && !self.writer.is_locked()
            // On a current-thread runtime a blocking commit would stop all tasks.
            && Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread)
    }

    /// Commits work until a stop, or until no sender is left. Checks the disk space at its
    /// interval.
    fn serve(self: Arc<Self>) {
        let mut next_space_check = Instant::now() + DISK_SPACE_CHECK_INTERVAL;
        let mut stop = None;
        while stop.is_none() {
            let waited = self.queue.wait(next_space_check);
            let mut guard = WriterGuard { scheduler: &self, writer: self.writer.lock() };
            let Some(writer) = guard.writer.as_mut() else { return };
            next_space_check = writer.check_disk_space_at_interval() + DISK_SPACE_CHECK_INTERVAL;
            match waited {
                Wakeup::Ready => stop = guard.step(Instant::now()),
                Wakeup::Timeout => {}
                Wakeup::Closed => break,
            }
        }
        // The caller of `stop` may end the process: close the store before the reply.
        let writer = self.writer.lock().take();
        drop(writer);
        self.queue.close();
        drop(self);
        if let Some(reply) = stop {
            let _ = reply.send(());
        }
    }
}

/// Exclusive access to the writer. After a panic it is unknown how far a commit came, so the writer
/// is dropped.
struct WriterGuard<'a> {
    scheduler: &'a CommitScheduler,
    writer: MutexGuard<'a, Option<Writer>>,
}

impl WriterGuard<'_> {
    /// Makes one commit of the waiting work, and records its latency since `began`. Returns the
    /// reply channel of a stop, if that came next.
    fn step(mut self, began: Instant) -> Option<oneshot::Sender<()>> {
        let WriterStep { outcome, stop } = self.writer.as_mut()?.step(&self.scheduler.queue);
        self.scheduler.latency.lock().record(began.elapsed(), outcome);
        stop
    }
}

impl Drop for WriterGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(writer) = self.writer.take() {
                writer.set_stopped("a commit panicked");
            }
            self.scheduler.queue.close();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use barid_core::feed::tree::CompactRange;
    use tokio::task::JoinSet;

    use super::{CommitLatency, CommitOutcome, INLINE_COMMIT_MAX};
    use crate::committer::testing::{batch, of, priority, start};
    use crate::committer::{CommitFailure, PublishState, Records, Work};
    use crate::store::Store;
    use crate::store::memory::MemoryStore;

    #[test]
    fn commit_latency_decays_slowly_after_a_slow_commit() {
        let mut latency = CommitLatency::UNKNOWN;
        assert!(!latency.is_fast());
        let small = Duration::from_micros(300);
        latency.record(Duration::ZERO, CommitOutcome::Failed);
        latency.record(Duration::ZERO, CommitOutcome::Nothing);
        assert!(!latency.is_fast(), "only synced commits are measured");
        latency.record(small, CommitOutcome::Durable(1));
        assert!(latency.is_fast());
        latency.record(small, CommitOutcome::Durable(100));
        latency.record(small, CommitOutcome::Durable(0));
        assert!(!latency.is_fast(), "load is high, whatever empty commits are between");
        latency.record(Duration::from_millis(500), CommitOutcome::Failed);
        let commits_until_fast = (0..1_000).find(|_| {
            latency.record(small, CommitOutcome::Durable(1));
            latency.is_fast()
        });
        assert!((20..100).contains(&commits_until_fast.unwrap()), "{commits_until_fast:?}");
    }

    #[test]
    fn priority_entries_in_quick_succession_are_not_isolated() {
        let (mut latency, now) = (CommitLatency::UNKNOWN, Instant::now());
        let permit = || Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        let prioritized = Work::Priority(Box::new(priority()), tokio::sync::oneshot::channel().0, permit());
        let other = Work::Records(Records::default(), tokio::sync::oneshot::channel().0, permit());
        assert!(latency.is_isolated(&prioritized, now));
        assert!(!latency.is_isolated(&prioritized, now + INLINE_COMMIT_MAX));
        assert!(!latency.is_isolated(&prioritized, now + 2 * INLINE_COMMIT_MAX), "the third is not isolated either");
        assert!(latency.is_isolated(&other, now + 2 * INLINE_COMMIT_MAX));
        assert!(latency.is_isolated(&prioritized, now + 4 * INLINE_COMMIT_MAX));
    }

    fn size(store: &Arc<dyn Store>) -> u64 {
        store.feed(&of("tn")).map_or(0, |state| state.compact_range.size())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn isolated_batch_is_committed_inline_before_append_returns() {
        let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let committer = start(&store, folder.path());
        let (mut compact_range, mut inline) = (CompactRange::new(), 0);
        for _ in 0..200 {
            let next = batch(&compact_range, 1);
            compact_range = next.compact_range.clone();
            let mut response = committer.submit_append(next).await.unwrap();
            inline +=
                usize::from(response.try_recv().is_ok_and(|appended| appended.unwrap().size == compact_range.size()));
            // Wait for the commit on either thread, so that no other work is due.
            while size(&store) < compact_range.size() {
                tokio::task::yield_now().await;
            }
        }
        assert!(inline > 0, "every commit was made by the committer thread");
        committer.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cancelled_append_is_still_committed() {
        let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let committer = start(&store, folder.path());
        let all = async {
            let mut compact_range = CompactRange::new();
            for _ in 0..200 {
                let next = batch(&compact_range, 1);
                compact_range = next.compact_range.clone();
                let mut submitting = Box::pin(committer.submit_append(next));
                let _ = futures::poll!(&mut submitting);
                drop(submitting);
                committer.watch().wait_for(|_| size(&store) == compact_range.size()).await.unwrap();
            }
        };
        // If the committer thread found each only at its check of the disk space, all would take
        // 200 s.
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("the committer thread is not woken");
        committer.stop().await;
    }

    #[cfg(debug_assertions)]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn panic_stops_commits_and_fails_waiting_callers() {
        for before in [0, 100] {
            let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
            let committer = start(&store, folder.path());
            let mut compact_range = CompactRange::new();
            // The committer thread commits the first one; some of the others are committed inline.
            for _ in 0..before {
                let next = batch(&compact_range, 1);
                compact_range = next.compact_range.clone();
                committer.append(next).await.unwrap();
            }
            // A time that overflows: an artificial defect.
            committer.set_clock(i64::MAX);
            let (one, next) = (committer.clone(), batch(&compact_range, 1));
            let outcome = tokio::spawn(async move { one.append(next).await }).await;
            assert!(!matches!(outcome, Ok(Ok(_))), "{outcome:?}");
            let failure = committer.append(batch(&compact_range, 1)).await.unwrap_err();
            assert!(failure.to_string().contains("panic"), "{failure}");
            assert_eq!(size(&store), compact_range.size());
            committer.stop().await;
            assert!(
                matches!(&*committer.publish_state().borrow(), PublishState::Stopped(why) if why.contains("panic"))
            );
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn concurrent_appends_all_complete_when_committer_stops() {
        let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let committer = start(&store, folder.path());
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let committer = committer.clone();
            tasks.spawn(async move {
                let mut sizes = Vec::new();
                // All tasks try to continue the feed from its current size: one wins each time.
                loop {
                    let compact_range =
                        committer.store().feed(&of("tn")).map(|state| state.compact_range).unwrap_or_default();
                    match committer.append(batch(&compact_range, 1)).await {
                        Ok(appended) => sizes.push(appended.size),
                        Err(CommitFailure::Stale { .. }) => {}
                        Err(CommitFailure::Stopped(_)) => return sizes,
                        Err(other) => panic!("{other}"),
                    }
                    if committer.persist(Records::default()).await.is_err() {
                        return sizes;
                    }
                }
            });
        }
        committer.watch().wait_for(|_| size(&store) >= 500).await.unwrap();
        committer.stop().await;
        let mut sizes = tasks.join_all().await.concat();
        sizes.sort_unstable();
        assert_eq!(sizes, (1..=size(&store)).collect::<Vec<_>>(), "each entry has one reply");
        drop(committer);
        assert_eq!(Arc::strong_count(&store), 1, "the store is released");
    }
}
