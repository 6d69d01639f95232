//! What waits for the committer, in two lanes: what is urgent goes first.
//!
//! In scope: the order in which work is handed out, and when there is something to do. Out of scope: how much may wait (the permits of
//! [`super::Committer`]), who does it (`desk`), and what goes into one commit (`run`).
//!
//! Where both lanes have work they take turns, commit by commit: what is urgent waits for at most one commit, and so does what is not. In the
//! ordinary lane what this member publishes and what comes of others take turns in the same way, so that a peer's flood is one commit ahead of
//! a publisher at most; what is small goes along with the other. What
//! is only kept, such as answers, waits for company before that, for [`COMPANY_WAIT`] at most.

use std::collections::VecDeque;
use std::time::Instant;

use barid_core::bulletin::{Urgent, urgent};
use barid_core::follow::VerifiedContent;
use parking_lot::{Condvar, Mutex};

use super::{COMPANY_WAIT, Work};

/// Envelope bytes of a piece of work that goes along in a commit which began with the other sort: it takes no longer by it.
const ALONG_BYTES_MAX: usize = 64 << 10;

/// One of the two lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// What is urgent.
    Express,
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
    patient: usize,
    /// Since when they wait.
    patient_since: Option<Instant>,
    /// When the writer has something to say of its own.
    owed: Option<Instant>,
    /// Until when the committer's thread sleeps, if it does.
    asleep: Option<Instant>,
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
        let ends = self.others.front().is_some_and(|work| matches!(work, Work::Stop(_)));
        self.began_own = !self.own.is_empty() && (ends || !self.began_own || self.others.is_empty());
        if self.began_own { self.own.pop_front() } else { self.others.pop_front() }
    }

    /// More of what the commit began with, and then what is small of the rest.
    fn more(&mut self) -> Option<Work> {
        let (same, rest) =
            if self.began_own { (&mut self.own, &mut self.others) } else { (&mut self.others, &mut self.own) };
        let ends = |queue: &VecDeque<Work>| queue.front().is_some_and(|work| matches!(work, Work::Stop(_)));
        if !ends(same) && !same.is_empty() {
            return same.pop_front();
        }
        let small = rest.front().is_some_and(|work| work.size().1 <= ALONG_BYTES_MAX);
        if small && !ends(rest) {
            return rest.pop_front();
        }
        // The end comes when nothing else is left.
        (self.own.is_empty() && ends(&self.others)).then(|| self.others.pop_front()).flatten()
    }
}

/// How urgent a piece of work is; `None`: it waits in the ordinary lane.
pub(super) fn urgency(work: &Work) -> Option<Urgent> {
    match work {
        Work::Express(express, ..) => match &express.entry.content {
            VerifiedContent::Disclosed { header: Some(header), .. } => Some(urgent(header).unwrap_or(Urgent::Other)),
            _ => Some(Urgent::Other),
        },
        Work::Publish(group, ..) => group.iter().filter_map(|bulletin| urgent(&bulletin.proto_header)).min(),
        Work::Append(..) | Work::Fill(..) | Work::Keep(..) | Work::Stop(_) => None,
    }
}

/// What the committer's thread has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// A commit.
    Turn,
    /// The time that it named has come.
    Time,
    /// Nobody is left to hand anything in.
    Closed,
}

/// The committer has ended.
#[derive(Debug)]
pub(super) struct Closed;

impl Queue {
    /// An empty one, into which one sender hands work; `owed`: as [`Self::owe`].
    pub(super) fn new(owed: Option<Instant>) -> Self {
        let inner = Inner {
            actual: VecDeque::new(),
            other: VecDeque::new(),
            ordinary: Ordinary::default(),
            last: Lane::Ordinary,
            patient: 0,
            patient_since: None,
            owed,
            asleep: None,
            senders: 1,
            closed: false,
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Hands work in; the committer's thread is woken when there is something to do.
    pub(super) fn push(&self, work: Work) -> Result<(), Closed> {
        let mut inner = self.inner.lock();
        inner.push(work)?;
        let wakes = inner.wakes();
        drop(inner);
        if wakes {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// As [`Self::push`], if nothing else is to be done: whoever calls sees to it that it is done ([`Self::wake`] at the least). Else the work
    /// is given back.
    pub(super) fn push_alone(&self, work: Work) -> Result<Option<Work>, Closed> {
        let mut inner = self.inner.lock();
        if inner.waiting() > inner.patient {
            return Ok(Some(work));
        }
        inner.push(work)?;
        Ok(None)
    }

    /// Whether one piece of work waits, which is `short`, and what waits for company with it: so many pieces and bytes of that at most.
    pub(super) fn holds_one(&self, short: impl Fn(&Work) -> bool, company_max: usize, bytes_max: usize) -> bool {
        let inner = self.inner.lock();
        if inner.patient > company_max || inner.waiting() != inner.patient + 1 {
            return false;
        }
        let mut bytes = 0;
        let mut all = inner.actual.iter().chain(&inner.other).chain(inner.ordinary.iter());
        all.all(|work| match work {
            Work::Keep(kept, ..) => {
                bytes += kept.bytes();
                bytes <= bytes_max
            }
            work => short(work),
        })
    }

    /// The committer's thread looks again what is to be done, unless there is nothing.
    pub(super) fn wake(&self) {
        let inner = self.inner.lock();
        let wakes = inner.wakes();
        drop(inner);
        if wakes {
            self.changed.notify_one();
        }
    }

    /// One more hands work in.
    pub(super) fn join(&self) {
        self.inner.lock().senders += 1;
    }

    /// One fewer does.
    pub(super) fn leave(&self) {
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
    pub(super) fn wait(&self, time: Instant) -> Waited {
        let mut inner = self.inner.lock();
        loop {
            if inner.closed || inner.senders == 0 && inner.waiting() == 0 {
                return Waited::Closed;
            }
            let now = Instant::now();
            let due = inner.due(now);
            if due.is_some_and(|due| due <= now) {
                return Waited::Turn;
            }
            if time <= now {
                return Waited::Time;
            }
            let until = due.map_or(time, |due| due.min(time));
            inner.asleep = Some(until);
            self.changed.wait_until(&mut inner, until);
            inner.asleep = None;
        }
    }

    /// The first work of a commit at this time, if any waits.
    pub(super) fn first(&self, now: Instant) -> Option<Work> {
        let mut inner = self.inner.lock();
        let long_enough = inner.company_due().is_some_and(|due| due <= now);
        let ordinary = inner.last == Lane::Express && (inner.ordinary.len() > inner.patient || long_enough);
        let lanes = if ordinary { [Lane::Ordinary, Lane::Express] } else { [Lane::Express, Lane::Ordinary] };
        let work = lanes.into_iter().find_map(|lane| inner.pop(lane, true))?;
        inner.last = if urgency(&work).is_some() { Lane::Express } else { Lane::Ordinary };
        Some(work)
    }

    /// More work of the lane that [`Self::first`] chose, if any is there.
    pub(super) fn more(&self) -> Option<Work> {
        let mut inner = self.inner.lock();
        let last = inner.last;
        inner.pop(last, false)
    }

    /// Gives back what did not fit: it comes next in its lane. After the end whoever waits for it is told.
    pub(super) fn give_back(&self, work: Work) {
        let mut inner = self.inner.lock();
        if inner.closed {
            drop(inner);
            return drop(work);
        }
        inner.count(&work);
        inner.lane_of(&work).push_front(work);
    }

    /// When the writer wants to commit something of its own next.
    pub(super) fn owe(&self, due: Option<Instant>) {
        self.inner.lock().owed = due;
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
    fn due(&self, now: Instant) -> Option<Instant> {
        if self.waiting() > self.patient || self.senders == 0 && self.waiting() > 0 {
            return Some(now);
        }
        [self.company_due(), self.owed].into_iter().flatten().min()
    }

    /// When what waits for company has waited long enough.
    fn company_due(&self) -> Option<Instant> {
        self.patient_since.map(|since| since + COMPANY_WAIT)
    }

    /// Whether the committer's thread sleeps past what is to be done.
    fn wakes(&self) -> bool {
        self.closed || self.asleep.zip(self.due(Instant::now())).is_some_and(|(until, due)| due < until)
    }

    fn count(&mut self, work: &Work) {
        if is_patient(work) {
            self.patient += 1;
            self.patient_since.get_or_insert_with(Instant::now);
        }
    }

    fn lane_of(&mut self, work: &Work) -> &mut VecDeque<Work> {
        match urgency(work) {
            Some(Urgent::Actual) => &mut self.actual,
            Some(Urgent::Other) => &mut self.other,
            None => self.ordinary.of(work),
        }
    }

    fn pop(&mut self, lane: Lane, first: bool) -> Option<Work> {
        let work = match lane {
            Lane::Express => self.actual.pop_front().or_else(|| self.other.pop_front()),
            Lane::Ordinary if first => self.ordinary.first(),
            Lane::Ordinary => self.ordinary.more(),
        }?;
        if is_patient(&work) {
            self.patient -= 1;
            self.patient_since = self.patient_since.filter(|_| self.patient > 0);
        }
        Some(work)
    }
}

/// Whether it waits for company.
fn is_patient(work: &Work) -> bool {
    matches!(work, Work::Keep(..))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use tokio::sync::{Semaphore, oneshot};

    use super::*;
    use crate::committer::Kept;
    use crate::committer::testing::{batch, express};

    fn kept() -> Work {
        let permit = std::sync::Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Work::Keep(Kept::default(), oneshot::channel().0, permit)
    }

    fn appended() -> Work {
        let permit = std::sync::Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Work::Append(Box::new(batch(&Default::default(), 1)), oneshot::channel().0, permit)
    }

    fn urgent() -> Work {
        let permit = std::sync::Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Work::Express(Box::new(express()), oneshot::channel().0, permit)
    }

    fn taken(queue: &Queue, now: Instant) -> Vec<&'static str> {
        let mut next = queue.first(now);
        let mut taken = Vec::new();
        while let Some(work) = next {
            taken.push(match work {
                Work::Keep(..) => "kept",
                Work::Append(..) => "appended",
                Work::Express(..) => "urgent",
                _ => "other",
            });
            next = queue.more();
        }
        taken
    }

    #[test]
    fn what_is_kept_waits_for_company_and_comes_with_it_in_order() {
        let queue = Queue::new(None);
        let now = Instant::now();
        assert_eq!(queue.wait(now), Waited::Time);
        queue.push(kept()).unwrap();
        assert!(queue.inner.lock().due(now).is_some_and(|due| due > now), "it has not waited yet");
        assert_eq!(queue.wait(now + Duration::from_secs(600)), Waited::Turn, "it does not wait for ever");
        queue.push(appended()).unwrap();
        assert_eq!(queue.wait(Instant::now() + COMPANY_WAIT), Waited::Turn);
        queue.push(kept()).unwrap();
        assert_eq!(taken(&queue, now), ["kept", "appended", "kept"]);
        assert_eq!(queue.wait(now), Waited::Time);
    }

    #[test]
    fn the_lanes_take_turns_and_what_waits_for_company_takes_none() {
        let (queue, now) = (Queue::new(None), Instant::now());
        for work in [appended(), urgent(), appended()] {
            queue.push(work).unwrap();
        }
        assert_eq!(taken(&queue, now), ["urgent"]);
        queue.push(urgent()).unwrap();
        assert_eq!(taken(&queue, now), ["appended", "appended"]);
        assert_eq!(taken(&queue, now), ["urgent"]);
        queue.push(kept()).unwrap();
        queue.push(urgent()).unwrap();
        assert_eq!(taken(&queue, now), ["urgent"], "though its lane was the last one");
        queue.push(urgent()).unwrap();
        let later = Instant::now() + COMPANY_WAIT;
        assert_eq!(taken(&queue, later), ["kept"], "it does not wait until nothing is urgent any more");
        assert_eq!(taken(&queue, later), ["urgent"]);
        // What did not fit comes first.
        queue.push(appended()).unwrap();
        queue.give_back(kept());
        assert_eq!(taken(&queue, now), ["kept", "appended"]);
    }

    fn of_bytes(own: bool, bytes: usize) -> Work {
        let permit = std::sync::Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let envelope = bytes::Bytes::from(vec![0; bytes]);
        if own {
            let mut draft = barid_core::bulletin::kinds::find("situation-report").unwrap().sample().unwrap();
            let header = draft.header.as_mut().unwrap();
            (header.urgency, header.severity) = ("Expected".into(), "Minor".into());
            let fill = barid_core::bulletin::Fill {
                member: "ma".parse().unwrap(),
                issuer: "desk".into(),
                id: barid_core::bulletin::BulletinId::new(1_764_000_000_000, &[7; 10]),
                sent_at_unix_ms: 1_764_000_000_000,
                roster_version: 1,
            };
            let mut bulletin = barid_core::bulletin::prepare(&draft, &fill, [7; 16]).unwrap();
            bulletin.envelope = envelope;
            return Work::Publish(vec![bulletin], oneshot::channel().0, permit);
        }
        let mut batch = batch(&Default::default(), 1);
        batch.entries[0].content = VerifiedContent::Disclosed { envelope, header: None };
        Work::Append(Box::new(batch), oneshot::channel().0, permit)
    }

    #[test]
    fn a_flood_of_others_is_one_commit_ahead_of_who_publishes() {
        let (queue, now) = (Queue::new(None), Instant::now());
        for _ in 0..16 {
            queue.push(of_bytes(false, 1 << 20)).unwrap();
        }
        // One is being committed.
        let flood = queue.first(now).unwrap();
        assert!(matches!(flood, Work::Append(..)));
        queue.push(of_bytes(true, 100)).unwrap();
        queue.push(of_bytes(true, 100)).unwrap();
        assert_eq!(taken(&queue, now), ["other", "other"], "and nothing large with them");
        queue.push(of_bytes(true, 100)).unwrap();
        queue.push(of_bytes(true, 100)).unwrap();
        let flood = queue.first(now).unwrap();
        assert!(matches!(flood, Work::Append(..)), "nor do publishers keep others waiting");
    }

    #[test]
    fn what_is_small_goes_along_and_the_end_comes_last() {
        let (queue, now) = (Queue::new(None), Instant::now());
        queue.push(of_bytes(false, 100)).unwrap();
        queue.push(of_bytes(true, 1 << 20)).unwrap();
        queue.push(of_bytes(false, 100)).unwrap();
        queue.push(Work::Stop(oneshot::channel().0)).unwrap();
        queue.push(of_bytes(true, 100)).unwrap();
        assert_eq!(taken(&queue, now), ["other", "other", "appended", "appended", "other"]);
        assert!(queue.first(now).is_none());
    }

    #[test]
    fn only_what_comes_alone_is_done_by_whom_it_came_with() {
        let queue = Queue::new(None);
        queue.push(kept()).unwrap();
        let short = |work: &Work| work.size().0 == 1;
        assert!(!queue.holds_one(short, 1, 0), "there is nothing to do");
        assert!(queue.push_alone(appended()).unwrap().is_none());
        assert!(queue.holds_one(short, 1, 0) && !queue.holds_one(short, 0, 0) && !queue.holds_one(|_| false, 1, 0));
        assert!(queue.push_alone(appended()).unwrap().is_some(), "there is something to do already");
        queue.push(urgent()).unwrap();
        assert!(!queue.holds_one(short, 1, 0));
    }

    #[test]
    fn what_the_writer_owes_is_in_time_and_nobody_left_is_the_end() {
        let queue = Queue::new(None);
        let now = Instant::now();
        queue.owe(Some(now));
        assert_eq!(queue.wait(now + Duration::from_secs(600)), Waited::Turn);
        queue.owe(None);
        assert_eq!(queue.wait(now), Waited::Time);
        queue.push(kept()).unwrap();
        queue.leave();
        assert_eq!(queue.wait(now + Duration::from_secs(600)), Waited::Turn, "what was handed in is done");
        assert_eq!(taken(&queue, now), ["kept"]);
        assert_eq!(queue.wait(now + Duration::from_secs(600)), Waited::Closed);
        queue.close();
        assert!(queue.push(kept()).is_err());
        let (end, mut ended) = oneshot::channel();
        queue.give_back(Work::Stop(end));
        assert!(
            ended.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed),
            "who waits is told"
        );
    }
}
