//! A feed that a peer follows: a cursor over the store, and the batches in flight to the peer.
//!
//! In scope: making the next batch, bounding what is unacknowledged. Out of scope: who may read
//! what (`core::serve`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use barid_core::bulletin::TopicFilter;
use barid_core::ids::{FeedId, Member, Undisclosed};
use barid_core::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX};
use barid_core::proto;
use barid_core::roster::RosterChain;
use barid_core::serve::{self, Head, Held};
use tokio::time::Instant;

use super::{IN_FLIGHT_BATCHES_MAX, IN_FLIGHT_BYTES_MAX};
use crate::store::{Content, DamagedEntry, Entry, FeedTree, ReadError, Store};

/// Distinguishes one request for a feed from the next.
static NEXT_REQUEST: AtomicU64 = AtomicU64::new(0);

/// One followed feed. Cheap to clone.
#[derive(Clone)]
pub(crate) struct FeedSender {
    request: u64,
    cursor: u64,
    stored: u64,
    filters: Arc<[TopicFilter]>,
    in_flight: VecDeque<(u64, usize, Instant)>,
    in_flight_bytes: usize,
    /// Maximum envelope bytes of the next batch.
    batch_bytes: usize,
    /// Whether urgent entries have been sent since the feed was requested. They go before its first
    /// batch.
    scanned: bool,
}

/// The next entries of a feed for one peer.
pub(crate) struct Batch {
    pub(crate) entries: proto::Entries,
    /// One past the last entry.
    pub(crate) end: u64,
    /// Encoded size of the message.
    pub(crate) bytes: usize,
}

impl FeedSender {
    pub(crate) fn new(from: u64, filters: Vec<TopicFilter>) -> Self {
        Self {
            request: NEXT_REQUEST.fetch_add(1, Ordering::Relaxed),
            cursor: from,
            stored: from,
            filters: filters.into(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            batch_bytes: BATCH_BYTES_MAX,
            scanned: false,
        }
    }

    /// Next index to send.
    pub(crate) fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Number of entries that the peer holds.
    pub(crate) fn stored(&self) -> u64 {
        self.stored
    }

    /// Topics that the peer follows; empty: all.
    pub(crate) fn filters(&self) -> &[TopicFilter] {
        &self.filters
    }

    pub(crate) fn same_request(&self, other: &Self) -> bool {
        self.request == other.request
    }

    pub(crate) fn has_room(&self) -> bool {
        self.in_flight.len() < IN_FLIGHT_BATCHES_MAX && self.in_flight_bytes < IN_FLIGHT_BYTES_MAX
    }

    /// Bytes in flight.
    pub(crate) fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// Returns a copy with at most this many envelope bytes in the next batch.
    pub(crate) fn with_batch_bytes(&self, batch_bytes: usize) -> Self {
        Self { batch_bytes, ..self.clone() }
    }

    /// Records that the entries that were urgent at the request have been sent.
    pub(crate) fn scanned(&mut self) {
        self.scanned = true;
    }

    /// Whether batches may be sent.
    pub(crate) fn is_scanned(&self) -> bool {
        self.scanned
    }

    pub(crate) fn sent(&mut self, end: u64, bytes: usize, now: Instant) {
        self.cursor = end;
        self.in_flight.push_back((end, bytes, now));
        self.in_flight_bytes += bytes;
    }

    /// Records the peer's progress. Returns the bytes of the batches that became durable by it, and
    /// when the last of them was sent.
    pub(crate) fn acknowledged(&mut self, size: u64) -> Option<(usize, Instant)> {
        // Not beyond what was sent, whatever size the peer claims.
        self.stored = self.stored.max(size.min(self.cursor));
        let (mut done, mut last) = (0, None);
        while let Some((_, bytes, at)) = self.in_flight.pop_front_if(|(end, ..)| *end <= size) {
            self.in_flight_bytes -= bytes;
            done += bytes;
            last = Some(at);
        }
        last.map(|at| (done, at))
    }

    /// Whether the next batch is short enough to be made inline, without a blocking thread.
    pub(crate) fn is_live(&self, store: &dyn Store, feed: &FeedId) -> bool {
        const LIVE_ENTRIES_MAX: u64 = 64;
        store.feed(feed).is_none_or(|state| state.compact_range.size().saturating_sub(self.cursor) <= LIVE_ENTRIES_MAX)
    }

    /// Makes the next batch for `recipient`; `None` if there is none, or if the entries held cannot
    /// be proven yet. Blocks.
    pub(crate) fn batch(
        &self,
        store: &dyn Store,
        feed: &FeedId,
        recipient: &Member,
        rosters: &RosterChain,
    ) -> Result<Option<Batch>, ReadError> {
        let Some(state) = store.feed(feed) else { return Ok(None) };
        let size = state.compact_range.size();
        if self.cursor >= size {
            return Ok(None);
        }
        let mut held = match store.entries(feed, self.cursor, BATCH_ENTRIES_MAX, self.batch_bytes) {
            Err(ReadError::DamagedEntry(damaged)) => vec![without_content(*damaged)?],
            read => read?,
        };
        held.truncate(usize::try_from(size - self.cursor).unwrap_or(usize::MAX));
        if held.is_empty() {
            return Ok(None);
        }
        let end = self.cursor + held.len() as u64;
        let head = Head { size, checkpoint_size: state.checkpoint_size, consistency_proof: &state.consistency_proof };
        let Some(proof) = serve::plan_batch(&head, end, &FeedTree { store, feed })? else { return Ok(None) };
        let items = items(&held, recipient, &self.filters, rosters);
        let entries = serve::message(feed, self.cursor, items, state.checkpoint, &proof);
        let bytes = prost::Message::encoded_len(&entries);
        Ok(Some(Batch { entries, end, bytes }))
    }
}

/// Returns a damaged entry as a digest without content, so that it does not block the entries after
/// it. The peer requests its content later.
fn without_content(damaged: DamagedEntry) -> Result<Entry, ReadError> {
    let Some((feed, index, digest)) = damaged.entry else { return Err(ReadError::DamagedEntry(Box::new(damaged))) };
    Ok(Entry { feed, index, digest, content: Content::Undisclosed(Undisclosed::NotHeld), offset: None })
}

/// Returns these entries as `recipient` may receive them.
fn items(entries: &[Entry], recipient: &Member, filters: &[TopicFilter], rosters: &RosterChain) -> Vec<proto::Item> {
    let held = entries.iter().map(|entry| {
        let held = match &entry.content {
            Content::Disclosed { envelope, header } => Held::Disclosed { envelope, header: header.as_deref() },
            Content::Undisclosed(reason) => Held::Undisclosed(*reason),
        };
        (entry.digest, held)
    });
    serve::items(held, recipient, filters, rosters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_flight_batches_are_bounded_until_acknowledged() {
        let mut feed_sender = FeedSender::new(0, Vec::new());
        for n in 1..=IN_FLIGHT_BATCHES_MAX as u64 {
            assert!(feed_sender.has_room());
            feed_sender.sent(n * 10, 1_000, Instant::now());
        }
        assert!(!feed_sender.has_room());
        feed_sender.acknowledged(9);
        assert!(!feed_sender.has_room(), "a partly stored batch stays in flight");
        feed_sender.acknowledged(20);
        assert!(feed_sender.has_room());
        assert_eq!((feed_sender.in_flight.len(), feed_sender.in_flight_bytes), (IN_FLIGHT_BATCHES_MAX - 2, 6_000));
        feed_sender.acknowledged(u64::MAX);
        feed_sender.sent(100, IN_FLIGHT_BYTES_MAX, Instant::now());
        assert!(!feed_sender.has_room());
    }
}
