//! Where work is handed in, and who does it: the committer's thread, or now and then whoever brings the work.
//!
//! In scope: that one at a time holds the writer, and which thread. Out of scope: what is done (`writer`), and in which order (`queue`).
//!
//! A hand-over to another thread and back costs a lone bulletin two wake-ups, together as long as half a sync. So work that comes alone is
//! committed where it comes, on a thread of the network. Whatever comes in company, is long, or meets a disk or a thread that had much to do is
//! left to the committer's thread (`docs/adr/inline-commits.md`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

use super::queue::{Closed, Queue, Wakeup};
use super::writer::{CommitOutcome, Writer, WriterStep};
use super::{DISK_SPACE_CHECK_INTERVAL, Work};

/// Work is committed where it comes only while that takes no longer: a thread of the network has other things to do.
const INLINE_COMMIT_MAX: Duration = Duration::from_millis(2);
/// Entries of work that is committed where it comes, at most.
const INLINE_ENTRIES_MAX: usize = 4;
/// Bytes of it.
const INLINE_BYTES_MAX: usize = 64 << 10;
/// Pieces of work in such a commit that waited for company, of as many bytes: more are left to the committer's thread.
const INLINE_RECORDS_MAX: usize = 16;

/// The writer and what waits for it.
struct CommitScheduler {
    queue: Queue,
    /// Gone once it has ended.
    writer: Mutex<Option<Writer>>,
    /// What may be expected of the next commit.
    latency: Mutex<CommitLatency>,
}

/// How long commits take: one that took long is remembered the longer, the longer it took.
struct CommitLatency {
    estimate: Duration,
    /// The newest commit of entries was of many: more of them will be coming.
    last_was_large: bool,
    /// When an urgent entry came last by a link: who reads it off the link would bring the next one only after its commit.
    priority: Option<Instant>,
}

impl CommitLatency {
    /// Nothing is known of the disk yet.
    const UNKNOWN: Self = Self { estimate: Duration::MAX, last_was_large: false, priority: None };

    fn is_fast(&self) -> bool {
        !self.last_was_large && self.estimate <= INLINE_COMMIT_MAX
    }

    /// Whether a piece of work that comes now comes alone, as far as is known of those before it.
    fn is_isolated(&mut self, work: &Work, now: Instant) -> bool {
        !matches!(work, Work::Priority(..))
            || self.priority.replace(now).is_none_or(|last| now.saturating_duration_since(last) > INLINE_COMMIT_MAX)
    }

    /// The store has taken this time.
    fn record(&mut self, time: Duration, outcome: CommitOutcome) {
        match outcome {
            CommitOutcome::Nothing => {}
            // How long a sync takes it does not say.
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

/// The side that hands work in. Once the last one is dropped, the committer's thread ends.
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

/// Starts the committer's thread.
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
    /// Hands work in, for the committer's thread.
    pub(super) fn send(&self, work: Work) -> Result<(), Closed> {
        self.0.queue.push(work)
    }

    /// Hands work in, and commits it before it returns if nothing else is to be done.
    pub(super) async fn send_or_commit_inline(&self, work: Work) -> Result<(), Closed> {
        if !self.0.may_commit_inline(&work) {
            return self.send(work);
        }
        if let Some(work) = self.0.queue.push_if_idle(work)? {
            return self.send(work);
        }
        // Whatever happens, somebody does it.
        let _wake_on_drop = WakeOnDrop(&self.0.queue);
        let submitted_at = Instant::now();
        // Others that are about to hand work in do so first: then it does not come alone, and their commits are one. On a thread that has much to
        // do that takes long, and counts as if the disk did.
        tokio::task::yield_now().await;
        if self.0.queue.holds_single(is_small, INLINE_RECORDS_MAX, INLINE_BYTES_MAX)
            && let Some(writer) = self.0.writer.try_lock()
            && let Some(stop) = (WriterGuard { scheduler: &self.0, writer }).step(submitted_at)
        {
            // The end is for the committer's thread.
            self.0.queue.requeue(Work::Stop(stop));
        }
        Ok(())
    }
}

fn is_small(work: &Work) -> bool {
    let (entries, bytes) = work.size();
    entries <= INLINE_ENTRIES_MAX && bytes <= INLINE_BYTES_MAX
}

/// Has the committer's thread look for what is left to do.
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
            // The one thread of another runtime drives everything.
            && Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread)
    }

    /// Commits what comes, until told to stop or nobody is left. Looks now and then whether there is room on the disk.
    fn serve(self: Arc<Self>) {
        let mut next_space_check = Instant::now() + DISK_SPACE_CHECK_INTERVAL;
        let mut stop = None;
        while stop.is_none() {
            let waited = self.queue.wait(next_space_check);
            let mut guard = WriterGuard { scheduler: &self, writer: self.writer.lock() };
            let Some(writer) = guard.writer.as_mut() else { return };
            next_space_check = writer.check_disk_space_if_due() + DISK_SPACE_CHECK_INTERVAL;
            match waited {
                Wakeup::Ready => stop = guard.step(Instant::now()),
                Wakeup::Timeout => {}
                Wakeup::Closed => break,
            }
        }
        // Whoever waits for the end may end the process: the store is let go of before.
        let writer = self.writer.lock().take();
        drop(writer);
        self.queue.close();
        drop(self);
        if let Some(reply) = stop {
            let _ = reply.send(());
        }
    }
}

/// Who has the writer in hand. After a panic nobody knows how far a commit came: the writer is gone with it.
struct WriterGuard<'a> {
    scheduler: &'a CommitScheduler,
    writer: MutexGuard<'a, Option<Writer>>,
}

impl WriterGuard<'_> {
    /// One commit of what waits, since `began`; who waits for the end, if that was next.
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
                writer.set_stopped("a commit ended in a panic");
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
        assert!(!latency.is_fast(), "what was not synced says nothing of the disk");
        latency.record(small, CommitOutcome::Durable(1));
        assert!(latency.is_fast());
        latency.record(small, CommitOutcome::Durable(100));
        latency.record(small, CommitOutcome::Durable(0));
        assert!(!latency.is_fast(), "many come, whatever is said between");
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
        let urgent = Work::Priority(Box::new(priority()), tokio::sync::oneshot::channel().0, permit());
        let other = Work::Records(Records::default(), tokio::sync::oneshot::channel().0, permit());
        assert!(latency.is_isolated(&urgent, now));
        assert!(!latency.is_isolated(&urgent, now + INLINE_COMMIT_MAX));
        assert!(!latency.is_isolated(&urgent, now + 2 * INLINE_COMMIT_MAX), "nor does the third");
        assert!(latency.is_isolated(&other, now + 2 * INLINE_COMMIT_MAX));
        assert!(latency.is_isolated(&urgent, now + 4 * INLINE_COMMIT_MAX));
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
            // Whoever committed it: nothing else is to be done then.
            while size(&store) < compact_range.size() {
                tokio::task::yield_now().await;
            }
        }
        assert!(inline > 0, "all were left to the committer's thread");
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
        // If the committer's thread came upon each only when it looks for room, all would take 200 s.
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("nobody is told to do it");
        committer.stop().await;
    }

    #[cfg(debug_assertions)]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn panic_stops_commits_and_fails_waiting_callers() {
        for before in [0, 100] {
            let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
            let committer = start(&store, folder.path());
            let mut compact_range = CompactRange::new();
            // The first is committed by the committer's thread; of many, some are where they come.
            for _ in 0..before {
                let next = batch(&compact_range, 1);
                compact_range = next.compact_range.clone();
                committer.append(next).await.unwrap();
            }
            // A time that overflows: the defect that this test makes up.
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
                // Everyone tries to continue the feed from where it is: one wins each time.
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
        assert_eq!(sizes, (1..=size(&store)).collect::<Vec<_>>(), "each entry was answered for once");
        drop(committer);
        assert_eq!(Arc::strong_count(&store), 1, "the store is let go of");
    }
}
