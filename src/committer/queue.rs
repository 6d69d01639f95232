//! What waits for the committer, in two lanes: what is urgent goes first.
//!
//! In scope: the order in which work is handed out. Out of scope: how much may wait (the permits of [`super::Committer`]), and what goes
//! into one commit (`run`).
//!
//! Where both lanes have work they take turns, commit by commit: what is urgent waits for at most one commit, and so does what is not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use barid_core::bulletin::{Urgent, urgent};
use barid_core::follow::VerifiedContent;
use parking_lot::{Condvar, Mutex};

use super::Work;

/// One of the two lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// What is urgent.
    Express,
    /// Everything else.
    Ordinary,
}

/// The side that hands work in. Once the last one is dropped, the other side is told.
pub(crate) struct Sender(Arc<Lanes>);

/// The committer's side.
pub(super) struct Receiver {
    lanes: Arc<Lanes>,
    last: Lane,
}

struct Lanes {
    inner: Mutex<Inner>,
    work: Condvar,
}

#[derive(Default)]
struct Inner {
    /// Status Actual.
    actual: VecDeque<Work>,
    /// Exercises, tests: urgent, and never before what is Actual.
    other: VecDeque<Work>,
    ordinary: VecDeque<Work>,
    senders: usize,
    closed: bool,
}

/// Both sides of a new queue.
pub(super) fn queue() -> (Sender, Receiver) {
    let lanes = Arc::new(Lanes { inner: Mutex::new(Inner { senders: 1, ..Inner::default() }), work: Condvar::new() });
    (Sender(Arc::clone(&lanes)), Receiver { lanes, last: Lane::Ordinary })
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

/// What the committer has to do.
pub(super) enum Received {
    /// This, and what fits beside it.
    Work(Box<Work>),
    /// The time has come.
    Due,
    /// Nobody is left to hand anything in.
    Closed,
}

/// The committer has ended.
pub(super) struct Closed;

impl Sender {
    /// Hands work in.
    pub(super) fn send(&self, work: Work) -> Result<(), Closed> {
        let mut inner = self.0.inner.lock();
        if inner.closed {
            return Err(Closed);
        }
        inner.lane_of(&work).push_back(work);
        drop(inner);
        self.0.work.notify_one();
        Ok(())
    }
}

impl Clone for Sender {
    fn clone(&self) -> Self {
        self.0.inner.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.inner.lock().senders -= 1;
        self.0.work.notify_one();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut inner = self.lanes.inner.lock();
        inner.closed = true;
        // Their answers are dropped with them: whoever waits is told.
        let left =
            (std::mem::take(&mut inner.actual), std::mem::take(&mut inner.other), std::mem::take(&mut inner.ordinary));
        drop(inner);
        drop(left);
    }
}

impl Receiver {
    /// Waits for the first work of a commit, until then at most.
    pub(super) fn recv(&mut self, until: Option<Instant>) -> Received {
        let mut inner = self.lanes.inner.lock();
        loop {
            let first = match self.last {
                Lane::Express => Lane::Ordinary,
                Lane::Ordinary => Lane::Express,
            };
            if let Some(work) = inner.pop(first).or_else(|| inner.pop(self.last)) {
                self.last = if urgency(&work).is_some() { Lane::Express } else { Lane::Ordinary };
                return Received::Work(Box::new(work));
            }
            if inner.senders == 0 {
                return Received::Closed;
            }
            match until {
                None => self.lanes.work.wait(&mut inner),
                Some(until) if self.lanes.work.wait_until(&mut inner, until).timed_out() => return Received::Due,
                Some(_) => {}
            }
        }
    }

    /// More work of the lane that [`Self::recv`] chose, if any is there.
    pub(super) fn more(&mut self) -> Option<Work> {
        let last = self.last;
        self.lanes.inner.lock().pop(last)
    }

    /// As [`Self::more`], of either lane, waiting for it so long at most.
    pub(super) fn company(&mut self, wait: Duration) -> Option<Work> {
        let due = Instant::now() + wait;
        let mut inner = self.lanes.inner.lock();
        loop {
            if let Some(work) = inner.pop(Lane::Express) {
                self.last = Lane::Express;
                return Some(work);
            }
            if let Some(work) = inner.pop(Lane::Ordinary) {
                return Some(work);
            }
            if inner.senders == 0 || self.lanes.work.wait_until(&mut inner, due).timed_out() {
                return None;
            }
        }
    }

    /// Gives back what did not fit: it comes next in its lane.
    pub(super) fn give_back(&mut self, work: Work) {
        self.lanes.inner.lock().lane_of(&work).push_front(work);
    }
}

impl Inner {
    fn lane_of(&mut self, work: &Work) -> &mut VecDeque<Work> {
        match urgency(work) {
            Some(Urgent::Actual) => &mut self.actual,
            Some(Urgent::Other) => &mut self.other,
            None => &mut self.ordinary,
        }
    }

    fn pop(&mut self, lane: Lane) -> Option<Work> {
        match lane {
            Lane::Express => self.actual.pop_front().or_else(|| self.other.pop_front()),
            Lane::Ordinary => self.ordinary.pop_front(),
        }
    }
}
