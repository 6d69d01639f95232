//! What waits for the committer, in two lanes: what is urgent goes first.
//!
//! In scope: the order in which work is handed out, and when there is something to do. Out of
//! scope: how much may wait (the permits of [`super::Committer`]), who does it (`scheduler`), and
//! what goes into one commit (`writer`).
//!
//! Where both lanes have work they take turns, commit by commit: what is urgent waits for at most
//! one commit, and so does what is not. In the ordinary lane what this member publishes and what
//! comes of others take turns in the same way, so that a peer's flood is one commit ahead of a
//! publisher at most; what is small goes along with the other. What is only kept, such as answers,
//! waits for company before that, for [`RECORDS_LINGER`] at most.

use std::collections::VecDeque;
use std::time::Instant;

use barid_core::bulletin::{Priority, urgent};
use barid_core::follow::VerifiedContent;
use parking_lot::{Condvar, Mutex};

use super::{RECORDS_LINGER, Work};

/// Envelope bytes of a piece of work that goes along in a commit which began with the other sort:
/// it takes no longer by it.
const JOINING_BYTES_MAX: usize = 64 << 10;

/// One of the two lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// What is urgent.
    Priority,
    /// Everything else.
    Ordinary,
}

/// What waits.
pub(super) struct Queue {
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    /// Status Actual.
    actual: VecDeque<Work>,
    /// Exercises, tests: urgent, and never before what is Actual.
    other: VecDeque<Work>,
    ordinary: Ordinary,
    /// The lane of the newest commit.
    last: Lane,
    /// How many of the ordinary lane wait for company.
    lingering: usize,
    /// Since when they wait.
    lingering_since: Option<Instant>,
    /// When the writer has something to say of its own.
    writer_deadline: Option<Instant>,
    /// Until when the committer's thread sleeps, if it does.
    sleeping_until: Option<Instant>,
    senders: usize,
    closed: bool,
}

/// What is not urgent.
#[derive(Default)]
struct Ordinary {
    /// What this member publishes.
    own: VecDeque<Work>,
    /// All else.
    others: VecDeque<Work>,
    /// Whether the commit in the making, or the newest, began with what this member publishes.
    began_own: bool,
}

impl Ordinary {
    fn len(&self) -> usize {
        self.own.len() + self.others.len()
    }

    fn iter(&self) -> impl Iterator<Item = &Work> {
        self.own.iter().chain(&self.others)
    }

    fn of(&mut self, work: &Work) -> &mut VecDeque<Work> {
        if matches!(work, Work::Publish(..)) { &mut self.own } else { &mut self.others }
    }

    /// The first of a commit: in turn, and the end last.
    fn first(&mut self) -> Option<Work> {
        let is_stop = self.others.front().is_some_and(|work| matches!(work, Work::Stop(_)));
        self.began_own = !self.own.is_empty() && (is_stop || !self.began_own || self.others.is_empty());
        if self.began_own { self.own.pop_front() } else { self.others.pop_front() }
    }

    /// More of what the commit began with, and then what is small of the rest.
    fn more(&mut self) -> Option<Work> {
        let (same, rest) =
            if self.began_own { (&mut self.own, &mut self.others) } else { (&mut self.others, &mut self.own) };
        let is_stop = |queue: &VecDeque<Work>| queue.front().is_some_and(|work| matches!(work, Work::Stop(_)));
        if !is_stop(same) && !same.is_empty() {
            return same.pop_front();
        }
        let small = rest.front().is_some_and(|work| work.size().1 <= JOINING_BYTES_MAX);
        if small && !is_stop(rest) {
            return rest.pop_front();
        }
        // The end comes when nothing else is left.
        (self.own.is_empty() && is_stop(&self.others)).then(|| self.others.pop_front()).flatten()
    }
}

/// How urgent a piece of work is; `None`: it waits in the ordinary lane.
pub(super) fn priority_of(work: &Work) -> Option<Priority> {
    match work {
        Work::Priority(priority, ..) => match &priority.entry.content {
            VerifiedContent::Disclosed { header: Some(header), .. } => Some(urgent(header).unwrap_or(Priority::Other)),
            _ => Some(Priority::Other),
        },
        Work::Publish(group, ..) => group.iter().filter_map(|bulletin| urgent(&bulletin.proto_header)).min(),
        Work::Append(..) | Work::Backfill(..) | Work::Records(..) | Work::Stop(_) => None,
    }
}

/// What the committer's thread has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wakeup {
    /// A commit.
    Ready,
    /// The time that it named has come.
    Timeout,
    /// Nobody is left to hand anything in.
    Closed,
}

/// The committer has ended.
#[derive(Debug)]
pub(super) struct Closed;

impl Queue {
    /// An empty one, into which one sender hands work; `writer_deadline`: as
    /// [`Self::set_writer_deadline`].
    pub(super) fn new(writer_deadline: Option<Instant>) -> Self {
        let inner = Inner {
            actual: VecDeque::new(),
            other: VecDeque::new(),
            ordinary: Ordinary::default(),
            last: Lane::Ordinary,
            lingering: 0,
            lingering_since: None,
            writer_deadline,
            sleeping_until: None,
            senders: 1,
            closed: false,
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Hands work in; the committer's thread is woken when there is something to do.
    pub(super) fn push(&self, work: Work) -> Result<(), Closed> {
        let mut inner = self.inner.lock();
        inner.push(work)?;
        let should_wake = inner.should_wake();
        drop(inner);
        if should_wake {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// As [`Self::push`], if nothing else is to be done: whoever calls sees to it that it is done
    /// ([`Self::wake`] at the least). Else the work is given back.
    pub(super) fn push_if_idle(&self, work: Work) -> Result<Option<Work>, Closed> {
        let mut inner = self.inner.lock();
        if inner.waiting() > inner.lingering {
            return Ok(Some(work));
        }
        inner.push(work)?;
        Ok(None)
    }

    /// Whether one piece of work waits, which is `small`, and what waits for company with it: so
    /// many pieces and bytes of that at most.
    pub(super) fn holds_single(&self, small: impl Fn(&Work) -> bool, lingering_max: usize, bytes_max: usize) -> bool {
        let inner = self.inner.lock();
        if inner.lingering > lingering_max || inner.waiting() != inner.lingering + 1 {
            return false;
        }
        let mut bytes = 0;
        let mut all = inner.actual.iter().chain(&inner.other).chain(inner.ordinary.iter());
        all.all(|work| match work {
            Work::Records(records, ..) => {
                bytes += records.bytes();
                bytes <= bytes_max
            }
            work => small(work),
        })
    }

    /// The committer's thread looks again what is to be done, unless there is nothing.
    pub(super) fn wake(&self) {
        let inner = self.inner.lock();
        let should_wake = inner.should_wake();
        drop(inner);
        if should_wake {
            self.changed.notify_one();
        }
    }

    /// One more hands work in.
    pub(super) fn add_sender(&self) {
        self.inner.lock().senders += 1;
    }

    /// One fewer does.
    pub(super) fn remove_sender(&self) {
        let mut inner = self.inner.lock();
        inner.senders -= 1;
        let last = inner.senders == 0;
        drop(inner);
        if last {
            self.changed.notify_one();
        }
    }

    /// Nothing is handed out any more: whoever waits for an answer is told.
    pub(super) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        // Their answers are dropped with them.
        let left =
            (std::mem::take(&mut inner.actual), std::mem::take(&mut inner.other), std::mem::take(&mut inner.ordinary));
        drop(inner);
        drop(left);
        self.changed.notify_one();
    }

    /// Waits until there is something to do, until `time` at most.
    pub(super) fn wait(&self, time: Instant) -> Wakeup {
        let mut inner = self.inner.lock();
        loop {
            if inner.closed || inner.senders == 0 && inner.waiting() == 0 {
                return Wakeup::Closed;
            }
            let now = Instant::now();
            let deadline = inner.deadline(now);
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Wakeup::Ready;
            }
            if time <= now {
                return Wakeup::Timeout;
            }
            let until = deadline.map_or(time, |deadline| deadline.min(time));
            inner.sleeping_until = Some(until);
            self.changed.wait_until(&mut inner, until);
            inner.sleeping_until = None;
        }
    }

    /// The first work of a commit at this time, if any waits.
    pub(super) fn first(&self, now: Instant) -> Option<Work> {
        let mut inner = self.inner.lock();
        let long_enough = inner.linger_deadline().is_some_and(|deadline| deadline <= now);
        let ordinary = inner.last == Lane::Priority && (inner.ordinary.len() > inner.lingering || long_enough);
        let lanes = if ordinary { [Lane::Ordinary, Lane::Priority] } else { [Lane::Priority, Lane::Ordinary] };
        let work = lanes.into_iter().find_map(|lane| inner.pop(lane, true))?;
        inner.last = if priority_of(&work).is_some() { Lane::Priority } else { Lane::Ordinary };
        Some(work)
    }

    /// More work of the lane that [`Self::first`] chose, if any is there.
    pub(super) fn more(&self) -> Option<Work> {
        let mut inner = self.inner.lock();
        let last = inner.last;
        inner.pop(last, false)
    }

    /// Gives back what did not fit: it comes next in its lane. After the end whoever waits for it
    /// is told.
    pub(super) fn requeue(&self, work: Work) {
        let mut inner = self.inner.lock();
        if inner.closed {
            drop(inner);
            return drop(work);
        }
        inner.count(&work);
        inner.lane_of(&work).push_front(work);
    }

    /// When the writer wants to commit something of its own next.
    pub(super) fn set_writer_deadline(&self, deadline: Option<Instant>) {
        self.inner.lock().writer_deadline = deadline;
    }
}

impl Inner {
    fn push(&mut self, work: Work) -> Result<(), Closed> {
        if self.closed {
            return Err(Closed);
        }
        self.count(&work);
        self.lane_of(&work).push_back(work);
        Ok(())
    }

    fn waiting(&self) -> usize {
        self.actual.len() + self.other.len() + self.ordinary.len()
    }

    /// When there is something to do; `None`: there is nothing.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.waiting() > self.lingering || self.senders == 0 && self.waiting() > 0 {
            return Some(now);
        }
        [self.linger_deadline(), self.writer_deadline].into_iter().flatten().min()
    }

    /// When what waits for company has waited long enough.
    fn linger_deadline(&self) -> Option<Instant> {
        self.lingering_since.map(|since| since + RECORDS_LINGER)
    }

    /// Whether the committer's thread sleeps past what is to be done.
    fn should_wake(&self) -> bool {
        self.closed
            || self.sleeping_until.zip(self.deadline(Instant::now())).is_some_and(|(until, deadline)| deadline < until)
    }

    fn count(&mut self, work: &Work) {
        if lingers(work) {
            self.lingering += 1;
            self.lingering_since.get_or_insert_with(Instant::now);
        }
    }

    fn lane_of(&mut self, work: &Work) -> &mut VecDeque<Work> {
        match priority_of(work) {
            Some(Priority::Actual) => &mut self.actual,
            Some(Priority::Other) => &mut self.other,
            None => self.ordinary.of(work),
        }
    }

    fn pop(&mut self, lane: Lane, first: bool) -> Option<Work> {
        let work = match lane {
            Lane::Priority => self.actual.pop_front().or_else(|| self.other.pop_front()),
            Lane::Ordinary if first => self.ordinary.first(),
            Lane::Ordinary => self.ordinary.more(),
        }?;
        if lingers(&work) {
            self.lingering -= 1;
            self.lingering_since = self.lingering_since.filter(|_| self.lingering > 0);
        }
        Some(work)
    }
}

/// Whether it waits for company.
fn lingers(work: &Work) -> bool {
    matches!(work, Work::Records(..))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use tokio::sync::{Semaphore, oneshot};

    use super::*;
    use crate::committer::Records;
    use crate::committer::testing::{batch, priority};

    fn records() -> Work {
        let permit = std::sync::Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Work::Records(Records::default(), oneshot::channel().0, permit)
    }

    fn appended() -> Work {
        let permit = std::sync::Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Work::Append(Box::new(batch(&Default::default(), 1)), oneshot::channel().0, permit)
    }

    fn urgent() -> Work {
        let permit = std::sync::Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Work::Priority(Box::new(priority()), oneshot::channel().0, permit)
    }

    fn drained(queue: &Queue, now: Instant) -> Vec<&'static str> {
        let mut next = queue.first(now);
        let mut drained = Vec::new();
        while let Some(work) = next {
            drained.push(match work {
                Work::Records(..) => "records",
                Work::Append(..) => "appended",
                Work::Priority(..) => "priority",
                _ => "other",
            });
            next = queue.more();
        }
        drained
    }

    #[test]
    fn records_linger_and_stay_in_order() {
        let queue = Queue::new(None);
        let now = Instant::now();
        assert_eq!(queue.wait(now), Wakeup::Timeout);
        queue.push(records()).unwrap();
        assert!(queue.inner.lock().deadline(now).is_some_and(|deadline| deadline > now), "it has not waited yet");
        assert_eq!(queue.wait(now + Duration::from_secs(600)), Wakeup::Ready, "it does not wait for ever");
        queue.push(appended()).unwrap();
        assert_eq!(queue.wait(Instant::now() + RECORDS_LINGER), Wakeup::Ready);
        queue.push(records()).unwrap();
        assert_eq!(drained(&queue, now), ["records", "appended", "records"]);
        assert_eq!(queue.wait(now), Wakeup::Timeout);
    }

    #[test]
    fn lanes_alternate_and_lingering_records_take_no_turn() {
        let (queue, now) = (Queue::new(None), Instant::now());
        for work in [appended(), urgent(), appended()] {
            queue.push(work).unwrap();
        }
        assert_eq!(drained(&queue, now), ["priority"]);
        queue.push(urgent()).unwrap();
        assert_eq!(drained(&queue, now), ["appended", "appended"]);
        assert_eq!(drained(&queue, now), ["priority"]);
        queue.push(records()).unwrap();
        queue.push(urgent()).unwrap();
        assert_eq!(drained(&queue, now), ["priority"], "though its lane was the last one");
        queue.push(urgent()).unwrap();
        let later = Instant::now() + RECORDS_LINGER;
        assert_eq!(drained(&queue, later), ["records"], "it does not wait until nothing is urgent any more");
        assert_eq!(drained(&queue, later), ["priority"]);
        // What did not fit comes first.
        queue.push(appended()).unwrap();
        queue.requeue(records());
        assert_eq!(drained(&queue, now), ["records", "appended"]);
    }

    fn of_bytes(own: bool, bytes: usize) -> Work {
        let permit = std::sync::Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let envelope = bytes::Bytes::from(vec![0; bytes]);
        if own {
            let mut draft = barid_core::bulletin::kinds::find("situation-report").unwrap().sample().unwrap();
            let header = draft.header.as_mut().unwrap();
            (header.urgency, header.severity) = ("Expected".into(), "Minor".into());
            let defaults = barid_core::bulletin::DraftDefaults {
                member: "ma".parse().unwrap(),
                issuer: "desk".into(),
                id: barid_core::bulletin::BulletinId::new(1_764_000_000_000, &[7; 10]),
                sent_at_unix_ms: 1_764_000_000_000,
                roster_version: 1,
            };
            let mut bulletin = barid_core::bulletin::prepare(&draft, &defaults, [7; 16]).unwrap();
            bulletin.envelope = envelope;
            return Work::Publish(vec![bulletin], oneshot::channel().0, permit);
        }
        let mut batch = batch(&Default::default(), 1);
        batch.entries[0].content = VerifiedContent::Disclosed { envelope, header: None };
        Work::Append(Box::new(batch), oneshot::channel().0, permit)
    }

    #[test]
    fn replicated_flood_delays_publishers_by_one_commit() {
        let (queue, now) = (Queue::new(None), Instant::now());
        for _ in 0..16 {
            queue.push(of_bytes(false, 1 << 20)).unwrap();
        }
        // One is being committed.
        let flood = queue.first(now).unwrap();
        assert!(matches!(flood, Work::Append(..)));
        queue.push(of_bytes(true, 100)).unwrap();
        queue.push(of_bytes(true, 100)).unwrap();
        assert_eq!(drained(&queue, now), ["other", "other"], "and nothing large with them");
        queue.push(of_bytes(true, 100)).unwrap();
        queue.push(of_bytes(true, 100)).unwrap();
        let flood = queue.first(now).unwrap();
        assert!(matches!(flood, Work::Append(..)), "nor do publishers keep others waiting");
    }

    #[test]
    fn small_work_joins_the_commit_and_stop_comes_last() {
        let (queue, now) = (Queue::new(None), Instant::now());
        queue.push(of_bytes(false, 100)).unwrap();
        queue.push(of_bytes(true, 1 << 20)).unwrap();
        queue.push(of_bytes(false, 100)).unwrap();
        queue.push(Work::Stop(oneshot::channel().0)).unwrap();
        queue.push(of_bytes(true, 100)).unwrap();
        assert_eq!(drained(&queue, now), ["other", "other", "appended", "appended", "other"]);
        assert!(queue.first(now).is_none());
    }

    #[test]
    fn only_isolated_work_is_committed_inline() {
        let queue = Queue::new(None);
        queue.push(records()).unwrap();
        let small = |work: &Work| work.size().0 == 1;
        assert!(!queue.holds_single(small, 1, 0), "there is nothing to do");
        assert!(queue.push_if_idle(appended()).unwrap().is_none());
        assert!(
            queue.holds_single(small, 1, 0) && !queue.holds_single(small, 0, 0) && !queue.holds_single(|_| false, 1, 0)
        );
        assert!(queue.push_if_idle(appended()).unwrap().is_some(), "there is something to do already");
        queue.push(urgent()).unwrap();
        assert!(!queue.holds_single(small, 1, 0));
    }

    #[test]
    fn writer_deadline_wakes_the_queue_and_the_last_sender_closes_it() {
        let queue = Queue::new(None);
        let now = Instant::now();
        queue.set_writer_deadline(Some(now));
        assert_eq!(queue.wait(now + Duration::from_secs(600)), Wakeup::Ready);
        queue.set_writer_deadline(None);
        assert_eq!(queue.wait(now), Wakeup::Timeout);
        queue.push(records()).unwrap();
        queue.remove_sender();
        assert_eq!(queue.wait(now + Duration::from_secs(600)), Wakeup::Ready, "what was handed in is done");
        assert_eq!(drained(&queue, now), ["records"]);
        assert_eq!(queue.wait(now + Duration::from_secs(600)), Wakeup::Closed);
        queue.close();
        assert!(queue.push(records()).is_err());
        let (end, mut stopped) = oneshot::channel();
        queue.requeue(Work::Stop(end));
        assert!(
            stopped.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed),
            "who waits is told"
        );
    }
}
