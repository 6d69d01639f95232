//! Where work is handed in, and who does it: the committer's thread, or now and then whoever brings the work.
//!
//! In scope: that one at a time holds the writer, and which thread. Out of scope: what is done (`run`), and in which order (`queue`).
//!
//! A hand-over to another thread and back costs a lone bulletin two wake-ups, together as long as half a sync. So work that comes alone is
//! committed where it comes, on a thread of the network. Whatever comes in company, is long, or meets a disk or a thread that had much to do is
//! left to the committer's thread (`docs/adr/commits-where-they-come.md`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

use super::queue::{Closed, Queue, Waited};
use super::run::{Outcome, Turn, Writer};
use super::{ROOM_CHECK_EVERY, Work};

/// Work is committed where it comes only while that takes no longer: a thread of the network has other things to do.
const QUICK: Duration = Duration::from_millis(2);
/// Entries of work that is committed where it comes, at most.
const SHORT_ENTRIES_MAX: usize = 4;
/// Bytes of it.
const SHORT_BYTES_MAX: usize = 64 << 10;
/// Pieces of work in such a commit that waited for company, of as many bytes: more are left to the committer's thread.
const COMPANY_MAX: usize = 16;

/// The writer and what waits for it.
struct Desk {
    queue: Queue,
    /// Gone once it has ended.
    writer: Mutex<Option<Writer>>,
    /// What may be expected of the next commit.
    pace: Mutex<Pace>,
}

/// How long commits take: one that took long is remembered the longer, the longer it took.
struct Pace {
    expected: Duration,
    /// The newest commit of entries was of many: more of them will be coming.
    crowded: bool,
    /// When an urgent entry came last by a link: who reads it off the link would bring the next one only after its commit.
    express: Option<Instant>,
}

impl Pace {
    /// Nothing is known of the disk yet.
    const UNKNOWN: Self = Self { expected: Duration::MAX, crowded: false, express: None };

    fn is_quick(&self) -> bool {
        !self.crowded && self.expected <= QUICK
    }

    /// Whether a piece of work that comes now comes alone, as far as is known of those before it.
    fn is_lone(&mut self, work: &Work, now: Instant) -> bool {
        !matches!(work, Work::Express(..))
            || self.express.replace(now).is_none_or(|last| now.saturating_duration_since(last) > QUICK)
    }

    /// The store has taken this time.
    fn took(&mut self, time: Duration, outcome: Outcome) {
        match outcome {
            Outcome::Nothing => {}
            // How long a sync takes it does not say.
            Outcome::Failed => self.expected = self.expected.max(time),
            Outcome::Durable(entries) => {
                if entries > 0 {
                    self.crowded = entries > SHORT_ENTRIES_MAX;
                }
                self.expected = match self.expected {
                    Duration::MAX => time,
                    expected => time.max(expected - expected / 8),
                };
            }
        }
    }
}

/// The side that hands work in. Once the last one is dropped, the committer's thread ends.
pub(crate) struct Sender(Arc<Desk>);

impl Clone for Sender {
    fn clone(&self) -> Self {
        self.0.queue.join();
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.queue.leave();
    }
}

/// Starts the committer's thread.
pub(super) fn start(writer: Writer) -> std::io::Result<Sender> {
    let queue = Queue::new(writer.due());
    let desk = Arc::new(Desk { queue, writer: Mutex::new(Some(writer)), pace: Mutex::new(Pace::UNKNOWN) });
    let thread = Arc::clone(&desk);
    std::thread::Builder::new().name("committer".into()).spawn(move || thread.serve())?;
    Ok(Sender(desk))
}

impl Sender {
    /// Hands work in, for the committer's thread.
    pub(super) fn send(&self, work: Work) -> Result<(), Closed> {
        self.0.queue.push(work)
    }

    /// Hands work in, and commits it before it returns if nothing else is to be done.
    pub(super) async fn send_or_commit(&self, work: Work) -> Result<(), Closed> {
        if !self.0.may_commit_here(&work) {
            return self.send(work);
        }
        if let Some(work) = self.0.queue.push_alone(work)? {
            return self.send(work);
        }
        // Whatever happens, somebody does it.
        let _otherwise = Wake(&self.0.queue);
        let handed_in = Instant::now();
        // Others that are about to hand work in do so first: then it does not come alone, and their commits are one. On a thread that has much to
        // do that takes long, and counts as if the disk did.
        tokio::task::yield_now().await;
        if self.0.queue.holds_one(is_short, COMPANY_MAX, SHORT_BYTES_MAX)
            && let Some(writer) = self.0.writer.try_lock()
            && let Some(stop) = (Turning { desk: &self.0, writer }).turn(handed_in)
        {
            // The end is for the committer's thread.
            self.0.queue.give_back(Work::Stop(stop));
        }
        Ok(())
    }
}

fn is_short(work: &Work) -> bool {
    let (entries, bytes) = work.size();
    entries <= SHORT_ENTRIES_MAX && bytes <= SHORT_BYTES_MAX
}

/// Has the committer's thread look for what is left to do.
struct Wake<'a>(&'a Queue);

impl Drop for Wake<'_> {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl Desk {
    fn may_commit_here(&self, work: &Work) -> bool {
        let mut pace = self.pace.lock();
        pace.is_lone(work, Instant::now())
            && is_short(work)
            && pace.is_quick()
            && !self.writer.is_locked()
            // The one thread of another runtime drives everything.
            && Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread)
    }

    /// Commits what comes, until told to stop or nobody is left. Looks now and then whether there is room on the disk.
    fn serve(self: Arc<Self>) {
        let mut look = Instant::now() + ROOM_CHECK_EVERY;
        let mut stop = None;
        while stop.is_none() {
            let waited = self.queue.wait(look);
            let mut turning = Turning { desk: &self, writer: self.writer.lock() };
            let Some(writer) = turning.writer.as_mut() else { return };
            look = writer.look_for_room_in_time() + ROOM_CHECK_EVERY;
            match waited {
                Waited::Turn => stop = turning.turn(Instant::now()),
                Waited::Time => {}
                Waited::Closed => break,
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
struct Turning<'a> {
    desk: &'a Desk,
    writer: MutexGuard<'a, Option<Writer>>,
}

impl Turning<'_> {
    /// One commit of what waits, since `began`; who waits for the end, if that was next.
    fn turn(mut self, began: Instant) -> Option<oneshot::Sender<()>> {
        let Turn { outcome, stop } = self.writer.as_mut()?.turn(&self.desk.queue);
        self.desk.pace.lock().took(began.elapsed(), outcome);
        stop
    }
}

impl Drop for Turning<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(writer) = self.writer.take() {
                writer.has_failed("a commit ended in a panic");
            }
            self.desk.queue.close();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use barid_core::feed::tree::Frontier;
    use tokio::task::JoinSet;

    use super::{Outcome, Pace, QUICK};
    use crate::committer::testing::{batch, express, of, start};
    use crate::committer::{CommitFailure, Gate, Kept, Work};
    use crate::store::Store;
    use crate::store::memory::MemoryStore;

    #[test]
    fn one_slow_commit_is_remembered_until_many_were_quick() {
        let mut pace = Pace::UNKNOWN;
        assert!(!pace.is_quick());
        let short = Duration::from_micros(300);
        pace.took(Duration::ZERO, Outcome::Failed);
        pace.took(Duration::ZERO, Outcome::Nothing);
        assert!(!pace.is_quick(), "what was not synced says nothing of the disk");
        pace.took(short, Outcome::Durable(1));
        assert!(pace.is_quick());
        pace.took(short, Outcome::Durable(100));
        pace.took(short, Outcome::Durable(0));
        assert!(!pace.is_quick(), "many come, whatever is said between");
        pace.took(Duration::from_millis(500), Outcome::Failed);
        let until_quick = (0..1_000).find(|_| {
            pace.took(short, Outcome::Durable(1));
            pace.is_quick()
        });
        assert!((20..100).contains(&until_quick.unwrap()), "{until_quick:?}");
    }

    #[test]
    fn urgent_entries_close_upon_each_other_do_not_come_alone() {
        let (mut pace, now) = (Pace::UNKNOWN, Instant::now());
        let permit = || Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        let urgent = Work::Express(Box::new(express()), tokio::sync::oneshot::channel().0, permit());
        let other = Work::Keep(Kept::default(), tokio::sync::oneshot::channel().0, permit());
        assert!(pace.is_lone(&urgent, now));
        assert!(!pace.is_lone(&urgent, now + QUICK));
        assert!(!pace.is_lone(&urgent, now + 2 * QUICK), "nor does the third");
        assert!(pace.is_lone(&other, now + 2 * QUICK));
        assert!(pace.is_lone(&urgent, now + 4 * QUICK));
    }

    fn size(store: &Arc<dyn Store>) -> u64 {
        store.feed(&of("tn")).map_or(0, |state| state.frontier.size())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_comes_alone_is_committed_before_it_is_answered_for() {
        let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let committer = start(&store, folder.path());
        let (mut edge, mut here) = (Frontier::new(), 0);
        for _ in 0..200 {
            let next = batch(&edge, 1);
            edge = next.frontier.clone();
            let mut answer = committer.appending(next).await.unwrap();
            here += usize::from(answer.try_recv().is_ok_and(|appended| appended.unwrap().size == edge.size()));
            // Whoever committed it: nothing else is to be done then.
            while size(&store) < edge.size() {
                tokio::task::yield_now().await;
            }
        }
        assert!(here > 0, "all were left to the committer's thread");
        committer.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_given_up_while_it_is_handed_in_is_done_all_the_same() {
        let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let committer = start(&store, folder.path());
        let all = async {
            let mut edge = Frontier::new();
            for _ in 0..200 {
                let next = batch(&edge, 1);
                edge = next.frontier.clone();
                let mut handing_in = Box::pin(committer.appending(next));
                let _ = futures::poll!(&mut handing_in);
                drop(handing_in);
                committer.watch().wait_for(|_| size(&store) == edge.size()).await.unwrap();
            }
        };
        // If the committer's thread came upon each only when it looks for room, all would take 200 s.
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("nobody is told to do it");
        committer.stop().await;
    }

    #[cfg(debug_assertions)]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn after_a_panic_nothing_is_committed_and_whoever_waits_is_told() {
        for before in [0, 100] {
            let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
            let committer = start(&store, folder.path());
            let mut edge = Frontier::new();
            // The first is committed by the committer's thread; of many, some are where they come.
            for _ in 0..before {
                let next = batch(&edge, 1);
                edge = next.frontier.clone();
                committer.append(next).await.unwrap();
            }
            // A time that overflows: the defect that this test makes up.
            committer.set_clock(i64::MAX);
            let (one, next) = (committer.clone(), batch(&edge, 1));
            let told = tokio::spawn(async move { one.append(next).await }).await;
            assert!(!matches!(told, Ok(Ok(_))), "{told:?}");
            let failure = committer.append(batch(&edge, 1)).await.unwrap_err();
            assert!(failure.to_string().contains("panic"), "{failure}");
            assert_eq!(size(&store), edge.size());
            committer.stop().await;
            assert!(matches!(&*committer.gate().borrow(), Gate::Stopped(why) if why.contains("panic")));
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn all_that_many_hand_in_is_answered_also_when_it_ends() {
        let (store, folder): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let committer = start(&store, folder.path());
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let committer = committer.clone();
            tasks.spawn(async move {
                let mut sizes = Vec::new();
                // Everyone tries to continue the feed from where it is: one wins each time.
                loop {
                    let edge = committer.store().feed(&of("tn")).map(|state| state.frontier).unwrap_or_default();
                    match committer.append(batch(&edge, 1)).await {
                        Ok(appended) => sizes.push(appended.size),
                        Err(CommitFailure::Stale { .. }) => {}
                        Err(CommitFailure::Stopped(_)) => return sizes,
                        Err(other) => panic!("{other}"),
                    }
                    if committer.keep(Kept::default()).await.is_err() {
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
