//! The queue of a link: replies and control frames in order, progress by feed, and the feeds that
//! the peer follows.
//!
//! In scope: the state shared by a link's receiver and sender, and the order of sending. Out of
//! scope: entries, which are read from the store when they are sent (`feed_sender`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use barid_core::ids::FeedId;
use barid_core::limits::BATCH_BYTES_MAX;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::backfill::BackfillRequest;
use super::congestion_window::CongestionWindow;
use super::feed_sender::FeedSender;
use super::{IN_FLIGHT_BYTES_MAX, SEND_QUEUE_BYTES_MAX, SEND_QUEUE_FRAMES_MAX};

/// State shared by the two tasks of a link.
#[derive(Default)]
pub(crate) struct SendQueue {
    inner: Mutex<QueueState>,
    notify: Notify,
    followed: watch::Sender<u64>,
}

#[derive(Default)]
struct QueueState {
    control: VecDeque<Frame>,
    control_bytes: usize,
    stored: BTreeMap<FeedId, u64>,
    feed_senders: BTreeMap<FeedId, FeedSender>,
    /// Backfill requests of the peer; the newest one of each feed.
    backfills: BTreeMap<FeedId, BackfillRequest>,
    backfilled_last: bool,
    last_served: Option<FeedId>,
    /// Feeds that either side has requested over this link: at most as many as the roster has.
    link_feeds: BTreeSet<FeedId>,
    overflowed: bool,
    closed: bool,
    heads_changed: bool,
    congestion_window: CongestionWindow,
}

/// What to send next.
pub(crate) enum Next {
    /// This frame.
    Frame(Frame),
    /// A batch of this feed, if it has anything to send; with a snapshot of its feed sender.
    Batch(FeedId, FeedSender),
    /// The response to a backfill request.
    Backfill(FeedId, BackfillRequest),
    /// Nothing is waiting.
    Idle,
    /// The queue is closed and empty.
    Closed,
}

impl SendQueue {
    /// Queues `frame`, ahead of any further entries.
    pub(crate) fn push(&self, frame: Frame) {
        let mut inner = self.inner.lock();
        let bytes = frame.encoded_len();
        if let Frame::Follow(follow) = &frame
            && let Ok(feed) = follow.feed.parse()
        {
            inner.link_feeds.insert(feed);
        }
        if inner.control.len() >= SEND_QUEUE_FRAMES_MAX || inner.control_bytes + bytes > SEND_QUEUE_BYTES_MAX {
            inner.overflowed = true;
        } else if !inner.closed {
            inner.control_bytes += bytes;
            inner.control.push_back(frame);
        }
        drop(inner);
        self.notify.notify_one();
    }

    /// Queues a fault with its reason.
    pub(crate) fn fault(&self, feed: String, reason: &str, detail: String) {
        self.push(Frame::Fault(proto::Fault { feed, reason: reason.into(), detail }));
    }

    /// Queues the number of entries of `feed` that are durable here. Only the newest size is sent.
    pub(crate) fn stored(&self, feed: FeedId, size: u64) {
        self.inner.lock().stored.insert(feed, size);
        self.notify.notify_one();
    }

    /// Notes that the peer's state has changed, so that tree heads may have to be sent.
    pub(crate) fn heads_changed(&self) {
        self.inner.lock().heads_changed = true;
        self.notify.notify_one();
    }

    /// Returns and clears the flag of [`Self::heads_changed`].
    pub(crate) fn take_heads_changed(&self) -> bool {
        std::mem::take(&mut self.inner.lock().heads_changed)
    }

    /// Whether the peer has let the queue overflow, so that the link must end.
    pub(crate) fn overflowed(&self) -> bool {
        self.inner.lock().overflowed
    }

    /// Closes the queue. Waiting frames are still sent, then the sender ends.
    pub(crate) fn close(&self) {
        self.inner.lock().closed = true;
        self.notify.notify_one();
    }

    /// Starts serving a feed to the peer; a new request replaces the earlier one. Returns false if
    /// the peer follows too many feeds.
    pub(crate) fn follow(&self, feed: FeedId, feed_sender: FeedSender) -> bool {
        let mut inner = self.inner.lock();
        if inner.feed_senders.len() >= super::FOLLOWS_MAX && !inner.feed_senders.contains_key(&feed) {
            return false;
        }
        inner.link_feeds.insert(feed.clone());
        inner.feed_senders.insert(feed, feed_sender);
        drop(inner);
        self.notify.notify_one();
        self.followed.send_modify(|count| *count += 1);
        true
    }

    /// Queues a backfill request of the peer, in place of its earlier one for this feed. Returns
    /// false if there are requests for too many feeds.
    pub(crate) fn backfill(&self, feed: FeedId, request: BackfillRequest) -> bool {
        let mut inner = self.inner.lock();
        if inner.backfills.len() >= super::FOLLOWS_MAX && !inner.backfills.contains_key(&feed) {
            return false;
        }
        inner.link_feeds.insert(feed.clone());
        inner.backfills.insert(feed, request);
        drop(inner);
        self.notify.notify_one();
        true
    }

    /// Stops serving a feed until the peer requests it again.
    pub(crate) fn unfollow(&self, feed: &FeedId) {
        self.inner.lock().feed_senders.remove(feed);
    }

    /// Whether either side has requested this feed over this link. A fault about another feed is
    /// malformed.
    pub(crate) fn is_of_link(&self, feed: &FeedId) -> bool {
        self.inner.lock().link_feeds.contains(feed)
    }

    /// Records that the peer holds `feed` up to `size`.
    pub(crate) fn acknowledged(&self, feed: &FeedId, size: u64) {
        let mut inner = self.inner.lock();
        let in_flight_bytes = inner.in_flight_bytes();
        if let Some((bytes, sent_at)) =
            inner.feed_senders.get_mut(feed).and_then(|feed_sender| feed_sender.acknowledged(size))
        {
            inner.congestion_window.acknowledged(bytes, in_flight_bytes, sent_at.elapsed(), IN_FLIGHT_BYTES_MAX);
        }
        drop(inner);
        self.notify.notify_one();
        self.followed.send_modify(|count| *count += 1);
    }

    /// Records that the urgent entries of these feeds have been sent, as of these snapshots.
    pub(crate) fn set_scanned(&self, feed_senders: &[(FeedId, FeedSender)]) {
        let mut inner = self.inner.lock();
        for (feed, scanned) in feed_senders {
            if let Some(feed_sender) =
                inner.feed_senders.get_mut(feed).filter(|feed_sender| feed_sender.same_request(scanned))
            {
                feed_sender.scanned();
            }
        }
        drop(inner);
        self.notify.notify_one();
    }

    /// Returns a receiver that changes when the feeds that the peer follows, or their progress,
    /// change.
    pub(crate) fn followed(&self) -> watch::Receiver<u64> {
        self.followed.subscribe()
    }

    /// Returns snapshots of the feeds that the peer follows.
    pub(crate) fn feed_senders(&self) -> Vec<(FeedId, FeedSender)> {
        let inner = self.inner.lock();
        inner.feed_senders.iter().map(|(feed, feed_sender)| (feed.clone(), feed_sender.clone())).collect()
    }

    /// Records that a batch made by `feed_sender` was handed to the transport; it ends before `end`
    /// and has this many bytes. No effect if the peer has requested the feed anew since.
    pub(crate) fn sent(&self, feed: &FeedId, feed_sender: &FeedSender, end: u64, bytes: usize) {
        if let Some(current) = self.inner.lock().feed_senders.get_mut(feed)
            && current.same_request(feed_sender)
        {
            current.sent(end, bytes, Instant::now());
        }
    }

    /// Returns what to send next: control frames, then progress, then a batch of the next followed
    /// feed that has room, alternating with backfill responses. `caught_up` holds the feeds that
    /// have had nothing new since the last commit.
    pub(crate) fn next(&self, caught_up: &BTreeMap<FeedId, u64>) -> Next {
        let mut inner = self.inner.lock();
        if let Some(frame) = inner.control.pop_front() {
            inner.control_bytes = inner.control_bytes.saturating_sub(frame.encoded_len());
            return Next::Frame(frame);
        }
        if let Some((feed, size)) = inner.stored.pop_first() {
            return Next::Frame(Frame::ReplicationProgress(proto::ReplicationProgress {
                feed: feed.to_string(),
                size,
            }));
        }
        if inner.closed {
            return Next::Closed;
        }
        // Old entries and new ones alternate.
        if !inner.backfilled_last
            && let Some((feed, request)) = inner.backfills.pop_first()
        {
            inner.backfilled_last = true;
            return Next::Backfill(feed, request);
        }
        inner.backfilled_last = false;
        let after = inner.last_served.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let window_open = inner.congestion_window.has_room(inner.in_flight_bytes());
        let ready = |(feed, feed_sender): &(&FeedId, &FeedSender)| {
            window_open
                && feed_sender.is_scanned()
                && feed_sender.has_room()
                && caught_up.get(*feed) != Some(&feed_sender.cursor())
        };
        let later = inner.feed_senders.range::<FeedId, _>((after, Bound::Unbounded));
        let Some((feed, feed_sender)) = later.chain(inner.feed_senders.iter()).find(ready) else {
            return inner.backfills.pop_first().map_or(Next::Idle, |(feed, request)| Next::Backfill(feed, request));
        };
        let (feed, feed_sender) =
            (feed.clone(), feed_sender.with_batch_bytes(inner.congestion_window.batch_bytes(BATCH_BYTES_MAX)));
        inner.last_served = Some(feed.clone());
        Next::Batch(feed, feed_sender)
    }

    /// Waits until something may have become ready.
    pub(crate) async fn notified(&self) {
        self.notify.notified().await;
    }
}

impl QueueState {
    /// Bytes of all batches in flight.
    fn in_flight_bytes(&self) -> usize {
        self.feed_senders.values().map(FeedSender::in_flight_bytes).sum()
    }
}
