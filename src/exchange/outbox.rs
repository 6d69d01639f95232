//! What a link still has to send: answers and control frames in order, progress by feed, and the feeds that the peer follows.
//!
//! In scope: the state shared by a link's reader and writer. Out of scope: entries; they are read from the store when their turn comes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use barid_core::limits::BATCH_BYTES_MAX;
use barid_core::names::FeedId;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::fills::FillRequest;
use super::pace::Pace;
use super::provider::Provider;
use super::{IN_FLIGHT_BYTES_MAX, OUTBOX_BYTES_MAX, OUTBOX_MAX};

/// Shared by the two tasks of a link.
#[derive(Default)]
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
    wake: Notify,
    followed: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    control: VecDeque<Frame>,
    control_bytes: usize,
    stored: BTreeMap<FeedId, u64>,
    providers: BTreeMap<FeedId, Provider>,
    /// What the peer asked for of earlier entries; the newest request of each feed.
    fills: BTreeMap<FeedId, FillRequest>,
    filled_last: bool,
    served_last: Option<FeedId>,
    /// Feeds that the peer was asked for or follows, or did: as many as the roster has.
    named: BTreeSet<FeedId>,
    overflown: bool,
    closed: bool,
    heads_changed: bool,
    pace: Pace,
}

/// What to send next.
pub(crate) enum Next {
    /// This frame.
    Frame(Frame),
    /// A batch of this feed, if there is anything; the provider as it stands.
    Batch(FeedId, Provider),
    /// The answer to a request for earlier entries.
    Fill(FeedId, FillRequest),
    /// Nothing is waiting.
    Nothing,
    /// Nothing is left, and nothing will come.
    Closed,
}

impl Outbox {
    /// Sends `frame` before any further entries.
    pub(crate) fn push(&self, frame: Frame) {
        let mut inner = self.inner.lock();
        let bytes = frame.encoded_len();
        if let Frame::Follow(follow) = &frame
            && let Ok(feed) = follow.feed.parse()
        {
            inner.named.insert(feed);
        }
        if inner.control.len() >= OUTBOX_MAX || inner.control_bytes + bytes > OUTBOX_BYTES_MAX {
            inner.overflown = true;
        } else if !inner.closed {
            inner.control_bytes += bytes;
            inner.control.push_back(frame);
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// Tells the peer what was refused, and why.
    pub(crate) fn fault(&self, feed: String, reason: &str, detail: String) {
        self.push(Frame::Fault(proto::Fault { feed, reason: reason.into(), detail }));
    }

    /// Tells the peer how much of `feed` is durable here; only the newest size counts.
    pub(crate) fn stored(&self, feed: FeedId, size: u64) {
        self.inner.lock().stored.insert(feed, size);
        self.wake.notify_one();
    }

    /// There may be other heads to tell, for a reason that lies with the peer.
    pub(crate) fn heads_changed(&self) {
        self.inner.lock().heads_changed = true;
        self.wake.notify_one();
    }

    /// Whether there may be other heads to tell since this was asked last.
    pub(crate) fn take_heads_changed(&self) -> bool {
        std::mem::take(&mut self.inner.lock().heads_changed)
    }

    /// Whether the peer let so much pile up that the link must end.
    pub(crate) fn overflown(&self) -> bool {
        self.inner.lock().overflown
    }

    /// What waits is still sent, then the writer ends.
    pub(crate) fn close(&self) {
        self.inner.lock().closed = true;
        self.wake.notify_one();
    }

    /// The peer follows a feed, from anew if it did before. False if it follows too many.
    pub(crate) fn follow(&self, feed: FeedId, provider: Provider) -> bool {
        let mut inner = self.inner.lock();
        if inner.providers.len() >= super::FOLLOWS_MAX && !inner.providers.contains_key(&feed) {
            return false;
        }
        inner.named.insert(feed.clone());
        inner.providers.insert(feed, provider);
        drop(inner);
        self.wake.notify_one();
        self.followed.send_modify(|count| *count += 1);
        true
    }

    /// The peer asks for earlier entries of a feed, instead of what it asked for before. False if it asks in too many feeds.
    pub(crate) fn fill(&self, feed: FeedId, request: FillRequest) -> bool {
        let mut inner = self.inner.lock();
        if inner.fills.len() >= super::FOLLOWS_MAX && !inner.fills.contains_key(&feed) {
            return false;
        }
        inner.named.insert(feed.clone());
        inner.fills.insert(feed, request);
        drop(inner);
        self.wake.notify_one();
        true
    }

    /// The peer takes nothing more of a feed until it asks again.
    pub(crate) fn unfollow(&self, feed: &FeedId) {
        self.inner.lock().providers.remove(feed);
    }

    /// Whether the peer was asked for this feed over this link, or asked for it: of others it has nothing to refuse.
    pub(crate) fn has_named(&self, feed: &FeedId) -> bool {
        self.inner.lock().named.contains(feed)
    }

    /// The peer holds `feed` up to `size`.
    pub(crate) fn acknowledged(&self, feed: &FeedId, size: u64) {
        let mut inner = self.inner.lock();
        let in_flight_bytes = inner.in_flight_bytes();
        if let Some((bytes, sent_at)) = inner.providers.get_mut(feed).and_then(|provider| provider.acknowledged(size)) {
            inner.pace.acknowledged(bytes, in_flight_bytes, sent_at.elapsed(), IN_FLIGHT_BYTES_MAX);
        }
        drop(inner);
        self.wake.notify_one();
        self.followed.send_modify(|count| *count += 1);
    }

    /// What is urgent of these feeds, as they stood, is on its way.
    pub(crate) fn looked_at(&self, providers: &[(FeedId, Provider)]) {
        let mut inner = self.inner.lock();
        for (feed, looked) in providers {
            if let Some(provider) = inner.providers.get_mut(feed).filter(|provider| provider.same(looked)) {
                provider.looked();
            }
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// Changes with what the peer follows, and how far it holds it.
    pub(crate) fn followed(&self) -> watch::Receiver<u64> {
        self.followed.subscribe()
    }

    /// The feeds that the peer follows, as they stand.
    pub(crate) fn providers(&self) -> Vec<(FeedId, Provider)> {
        let inner = self.inner.lock();
        inner.providers.iter().map(|(feed, provider)| (feed.clone(), provider.clone())).collect()
    }

    /// A batch made by `provider` was handed to the transport: it ends before `end` and has so many bytes. Without effect if the
    /// peer has asked anew meanwhile.
    pub(crate) fn sent(&self, feed: &FeedId, provider: &Provider, end: u64, bytes: usize) {
        if let Some(current) = self.inner.lock().providers.get_mut(feed)
            && current.same(provider)
        {
            current.sent(end, bytes, Instant::now());
        }
    }

    /// What to send next: control first, then progress, then each followed feed that has room in turn, with answers about earlier entries
    /// between them. `tried` are the feeds that
    /// had nothing new since the last commit.
    pub(crate) fn next(&self, tried: &BTreeMap<FeedId, u64>) -> Next {
        let mut inner = self.inner.lock();
        if let Some(frame) = inner.control.pop_front() {
            inner.control_bytes = inner.control_bytes.saturating_sub(frame.encoded_len());
            return Next::Frame(frame);
        }
        if let Some((feed, size)) = inner.stored.pop_first() {
            return Next::Frame(Frame::Stored(proto::Stored { feed: feed.to_string(), size }));
        }
        if inner.closed {
            return Next::Closed;
        }
        // Old entries and new ones take turns.
        if !inner.filled_last
            && let Some((feed, request)) = inner.fills.pop_first()
        {
            inner.filled_last = true;
            return Next::Fill(feed, request);
        }
        inner.filled_last = false;
        let after = inner.served_last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let room = inner.pace.has_room(inner.in_flight_bytes());
        let ready = |(feed, provider): &(&FeedId, &Provider)| {
            room && provider.was_looked_at() && provider.has_room() && tried.get(*feed) != Some(&provider.cursor())
        };
        let later = inner.providers.range::<FeedId, _>((after, Bound::Unbounded));
        let Some((feed, provider)) = later.chain(inner.providers.iter()).find(ready) else {
            return inner.fills.pop_first().map_or(Next::Nothing, |(feed, request)| Next::Fill(feed, request));
        };
        let (feed, provider) = (feed.clone(), provider.in_batches_of(inner.pace.batch_bytes(BATCH_BYTES_MAX)));
        inner.served_last = Some(feed.clone());
        Next::Batch(feed, provider)
    }

    /// Returns when something may have become ready.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}

impl Inner {
    /// Bytes of batches on their way, of all feeds.
    fn in_flight_bytes(&self) -> usize {
        self.providers.values().map(Provider::in_flight_bytes).sum()
    }
}
