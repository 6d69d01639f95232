//! Queues work for the committer in two lanes, priority and ordinary.
//!
//! If both lanes have work, they alternate commit by commit: each waits for at most one commit of
//! the other. Within the ordinary lane this member's publications and replicated work alternate in
//! the same way, so that a flood from a peer delays a publisher by at most one commit. Small work
//! of the other class joins a commit. Records, such as received notes, first linger for at most
//! [`RECORDS_LINGER`], so that other work can join their commit.
//!
//! In scope: the order of work, and when there is work to do. Out of scope: how much may wait (the
//! permits of [`super::Committer`]), which thread does it (`scheduler`), and what goes into one
//! commit (`writer`).

use std::collections::VecDeque;
use std::time::Instant;

use barid_core::bulletin::{Priority, header_priority};
use barid_core::follow::VerifiedContent;
use parking_lot::{Condvar, Mutex};

use super::{RECORDS_LINGER, Work};

/// Most envelope bytes of a work item that joins a commit begun by the other class. Up to this size
/// the commit takes no longer.
const JOINING_BYTES_MAX: usize = 64 << 10;

/// One of the two lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// Urgent work.
    Priority,
    /// All other work.
    Ordinary,
}

/// The work that waits.
pub(super) struct Queue {
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    /// Urgent, with status Actual.
    actual: VecDeque<Work>,
    /// Urgent, with another status (exercises, tests). Always after `actual`.
    other: VecDeque<Work>,
    ordinary: Ordinary,
    /// The lane of the newest commit.
    last: Lane,
    /// How many records linger in the ordinary lane.
    lingering: usize,
    /// Since when they linger.
    lingering_since: Option<Instant>,
    /// When the writer has attestations of its own to commit.
    writer_deadline: Option<Instant>,
    /// Until when the committer thread sleeps, if it does.
    sleeping_until: Option<Instant>,
    senders: usize,
    closed: bool,
}

/// Work that is not urgent.
#[derive(Default)]
struct Ordinary {
    /// This member's publications.
    own: VecDeque<Work>,
    /// All other work.
    others: VecDeque<Work>,
    /// Whether the current commit, or the newest, began with `own`.
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

    /// Returns the first work of a commit: the two classes alternate, and a stop comes last.
    fn first(&mut self) -> Option<Work> {
        let is_stop = self.others.front().is_some_and(|work| matches!(work, Work::Stop(_)));
        self.began_own = !self.own.is_empty() && (is_stop || !self.began_own || self.others.is_empty());
        if self.began_own { self.own.pop_front() } else { self.others.pop_front() }
    }

    /// Returns more work of the class that the commit began with, then small work of the other.
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
        // A stop comes when nothing else is left.
        (self.own.is_empty() && is_stop(&self.others)).then(|| self.others.pop_front()).flatten()
    }
}

/// Returns the priority of a work item; `None` for the ordinary lane.
pub(super) fn priority_of(work: &Work) -> Option<Priority> {
    match work {
        Work::Priority(priority, ..) => match &priority.entry.content {
            VerifiedContent::Disclosed { header: Some(header), .. } => {
                Some(header_priority(header).unwrap_or(Priority::Other))
            }
            _ => Some(Priority::Other),
        },
        Work::Publish(group, ..) => group.iter().filter_map(|bulletin| header_priority(&bulletin.proto_header)).min(),
        Work::Append(..) | Work::Backfill(..) | Work::Records(..) | Work::Stop(_) => None,
    }
}

/// Why the committer thread wakes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wakeup {
    /// There is work to commit.
    Ready,
    /// The given time has come.
    Timeout,
    /// No sender is left, or the queue was closed.
    Closed,
}

/// The committer has stopped.
#[derive(Debug)]
pub(super) struct Closed;

impl Queue {
    /// Returns an empty queue with one sender. See [`Self::set_writer_deadline`] for
    /// `writer_deadline`.
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

    /// Queues work, and wakes the committer thread if it is due.
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

    /// As [`Self::push`], if no other work is due. The caller must then see that it is done, at
    /// least by [`Self::wake`]. Otherwise returns the work.
    pub(super) fn push_if_idle(&self, work: Work) -> Result<Option<Work>, Closed> {
        let mut inner = self.inner.lock();
        if inner.waiting() > inner.lingering {
            return Ok(Some(work));
        }
        inner.push(work)?;
        Ok(None)
    }

    /// Whether exactly one work item waits besides lingering records, and it is `small`. The
    /// records may be at most `lingering_max` items of `bytes_max` bytes together.
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

    /// Wakes the committer thread if work is due.
    pub(super) fn wake(&self) {
        let inner = self.inner.lock();
        let should_wake = inner.should_wake();
        drop(inner);
        if should_wake {
            self.changed.notify_one();
        }
    }

    /// Counts one more sender.
    pub(super) fn add_sender(&self) {
        self.inner.lock().senders += 1;
    }

    /// Counts one sender less.
    pub(super) fn remove_sender(&self) {
        let mut inner = self.inner.lock();
        inner.senders -= 1;
        let last = inner.senders == 0;
        drop(inner);
        if last {
            self.changed.notify_one();
        }
    }

    /// Closes the queue. Waiting callers get an error.
    pub(super) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        // Dropping the work drops the callers' reply channels.
        let left =
            (std::mem::take(&mut inner.actual), std::mem::take(&mut inner.other), std::mem::take(&mut inner.ordinary));
        drop(inner);
        drop(left);
        self.changed.notify_one();
    }

    /// Waits until work is due, until `time` at most.
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

    /// Returns the first work of a commit at this time, if any waits.
    pub(super) fn first(&self, now: Instant) -> Option<Work> {
        let mut inner = self.inner.lock();
        let long_enough = inner.linger_deadline().is_some_and(|deadline| deadline <= now);
        let ordinary = inner.last == Lane::Priority && (inner.ordinary.len() > inner.lingering || long_enough);
        let lanes = if ordinary { [Lane::Ordinary, Lane::Priority] } else { [Lane::Priority, Lane::Ordinary] };
        let work = lanes.into_iter().find_map(|lane| inner.pop(lane, true))?;
        inner.last = if priority_of(&work).is_some() { Lane::Priority } else { Lane::Ordinary };
        Some(work)
    }

    /// Returns more work of the lane that [`Self::first`] chose, if any.
    pub(super) fn more(&self) -> Option<Work> {
        let mut inner = self.inner.lock();
        let last = inner.last;
        inner.pop(last, false)
    }

    /// Puts back work that did not fit, at the head of its lane. If the queue is closed, its caller
    /// gets an error.
    pub(super) fn requeue(&self, work: Work) {
        let mut inner = self.inner.lock();
        if inner.closed {
            drop(inner);
            return drop(work);
        }
        inner.count(&work);
        inner.lane_of(&work).push_front(work);
    }

    /// Sets when the writer wants to commit something of its own.
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

    /// Returns when work is due; `None` if there is none.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.waiting() > self.lingering || self.senders == 0 && self.waiting() > 0 {
            return Some(now);
        }
        [self.linger_deadline(), self.writer_deadline].into_iter().flatten().min()
    }

    /// Returns when lingering records are due.
    fn linger_deadline(&self) -> Option<Instant> {
        self.lingering_since.map(|since| since + RECORDS_LINGER)
    }

    /// Whether the committer thread sleeps past the time when work is due.
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

/// Whether the work lingers.
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

    fn prioritized() -> Work {
        let permit = std::sync::Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Work::Priority(Box::new(priority()), oneshot::channel().0, permit)
    }

    fn popped(queue: &Queue, now: Instant) -> Vec<&'static str> {
        let mut next = queue.first(now);
        let mut popped = Vec::new();
        while let Some(work) = next {
            popped.push(match work {
                Work::Records(..) => "records",
                Work::Append(..) => "appended",
                Work::Priority(..) => "priority",
                _ => "other",
            });
            next = queue.more();
        }
        popped
    }

    #[test]
    fn records_linger_and_stay_in_order() {
        let queue = Queue::new(None);
        let now = Instant::now();
        assert_eq!(queue.wait(now), Wakeup::Timeout);
        queue.push(records()).unwrap();
        assert!(queue.inner.lock().deadline(now).is_some_and(|deadline| deadline > now), "it has not waited yet");
        assert_eq!(queue.wait(now + Duration::from_secs(600)), Wakeup::Ready, "it does not wait forever");
        queue.push(appended()).unwrap();
        assert_eq!(queue.wait(Instant::now() + RECORDS_LINGER), Wakeup::Ready);
        queue.push(records()).unwrap();
        assert_eq!(popped(&queue, now), ["records", "appended", "records"]);
        assert_eq!(queue.wait(now), Wakeup::Timeout);
    }

    #[test]
    fn lanes_alternate_and_lingering_records_take_no_turn() {
        let (queue, now) = (Queue::new(None), Instant::now());
        for work in [appended(), prioritized(), appended()] {
            queue.push(work).unwrap();
        }
        assert_eq!(popped(&queue, now), ["priority"]);
        queue.push(prioritized()).unwrap();
        assert_eq!(popped(&queue, now), ["appended", "appended"]);
        assert_eq!(popped(&queue, now), ["priority"]);
        queue.push(records()).unwrap();
        queue.push(prioritized()).unwrap();
        assert_eq!(popped(&queue, now), ["priority"], "although its lane had the last turn");
        queue.push(prioritized()).unwrap();
        let later = Instant::now() + RECORDS_LINGER;
        assert_eq!(popped(&queue, later), ["records"], "it does not wait for the urgent lane to be empty");
        assert_eq!(popped(&queue, later), ["priority"]);
        // Work that was put back comes first.
        queue.push(appended()).unwrap();
        queue.requeue(records());
        assert_eq!(popped(&queue, now), ["records", "appended"]);
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
        assert_eq!(popped(&queue, now), ["other", "other"], "without large work in the same commit");
        queue.push(of_bytes(true, 100)).unwrap();
        queue.push(of_bytes(true, 100)).unwrap();
        let flood = queue.first(now).unwrap();
        assert!(matches!(flood, Work::Append(..)), "publishers do not delay replicated work either");
    }

    #[test]
    fn small_work_joins_the_commit_and_stop_comes_last() {
        let (queue, now) = (Queue::new(None), Instant::now());
        queue.push(of_bytes(false, 100)).unwrap();
        queue.push(of_bytes(true, 1 << 20)).unwrap();
        queue.push(of_bytes(false, 100)).unwrap();
        queue.push(Work::Stop(oneshot::channel().0)).unwrap();
        queue.push(of_bytes(true, 100)).unwrap();
        assert_eq!(popped(&queue, now), ["other", "other", "appended", "appended", "other"]);
        assert!(queue.first(now).is_none());
    }

    #[test]
    fn only_isolated_work_is_committed_inline() {
        let queue = Queue::new(None);
        queue.push(records()).unwrap();
        let small = |work: &Work| work.size().0 == 1;
        assert!(!queue.holds_single(small, 1, 0), "the queue holds only records");
        assert!(queue.push_if_idle(appended()).unwrap().is_none());
        assert!(
            queue.holds_single(small, 1, 0) && !queue.holds_single(small, 0, 0) && !queue.holds_single(|_| false, 1, 0)
        );
        assert!(queue.push_if_idle(appended()).unwrap().is_some(), "the queue is not idle");
        queue.push(prioritized()).unwrap();
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
        assert_eq!(queue.wait(now + Duration::from_secs(600)), Wakeup::Ready, "accepted work is still done");
        assert_eq!(popped(&queue, now), ["records"]);
        assert_eq!(queue.wait(now + Duration::from_secs(600)), Wakeup::Closed);
        queue.close();
        assert!(queue.push(records()).is_err());
        let (end, mut stopped) = oneshot::channel();
        queue.requeue(Work::Stop(end));
        assert!(
            stopped.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed),
            "the waiting caller is notified"
        );
    }
}
