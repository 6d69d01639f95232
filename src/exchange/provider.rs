//! A feed that a peer follows: a cursor over the store, and what is on its way to the peer.
//!
//! In scope: making the next batch, bounding what is unacknowledged. Out of scope: who may read what (`core::provide`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use barid_core::bulletin::TopicFilter;
use barid_core::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX};
use barid_core::names::{FeedId, Member};
use barid_core::proto;
use barid_core::provide::{self, Head, Held};
use barid_core::roster::RosterChain;

use super::{IN_FLIGHT_BATCHES_MAX, IN_FLIGHT_BYTES_MAX};
use crate::store::{Content, Entry, FeedTree, ReadError, Store};

/// Distinguishes one request for a feed from the next.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// One followed feed. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Provider {
    request: u64,
    cursor: u64,
    stored: u64,
    filters: Arc<[TopicFilter]>,
    in_flight: VecDeque<(u64, usize)>,
    in_flight_bytes: usize,
}

/// The next entries of a feed for one peer.
pub(crate) struct Batch {
    pub(crate) entries: proto::Entries,
    /// One past the last entry.
    pub(crate) end: u64,
    /// About what it weighs on the line.
    pub(crate) bytes: usize,
}

impl Provider {
    pub(crate) fn new(from: u64, filters: Vec<TopicFilter>) -> Self {
        Self {
            request: REQUESTS.fetch_add(1, Ordering::Relaxed),
            cursor: from,
            stored: from,
            filters: filters.into(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
        }
    }

    /// Next index to send.
    pub(crate) fn cursor(&self) -> u64 {
        self.cursor
    }

    /// How much the peer holds of it.
    pub(crate) fn stored(&self) -> u64 {
        self.stored
    }

    /// The topics that the peer wants; empty: all.
    pub(crate) fn filters(&self) -> &[TopicFilter] {
        &self.filters
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        self.request == other.request
    }

    pub(crate) fn has_room(&self) -> bool {
        self.in_flight.len() < IN_FLIGHT_BATCHES_MAX && self.in_flight_bytes < IN_FLIGHT_BYTES_MAX
    }

    pub(crate) fn sent(&mut self, end: u64, bytes: usize) {
        self.cursor = end;
        self.in_flight.push_back((end, bytes));
        self.in_flight_bytes += bytes;
    }

    pub(crate) fn acknowledged(&mut self, size: u64) {
        // Not beyond what was sent, whatever the peer says.
        self.stored = self.stored.max(size.min(self.cursor));
        while let Some((end, bytes)) = self.in_flight.front()
            && *end <= size
        {
            self.in_flight_bytes -= bytes;
            self.in_flight.pop_front();
        }
    }

    /// Whether the batch that comes next is short enough to be made at once, without a thread of its own.
    pub(crate) fn is_live(&self, store: &dyn Store, feed: &FeedId) -> bool {
        const LIVE_ENTRIES_MAX: u64 = 64;
        store.feed(feed).is_none_or(|state| state.frontier.size().saturating_sub(self.cursor) <= LIVE_ENTRIES_MAX)
    }

    /// What comes next for `reader`; `None` if nothing does, or if what is held cannot be proven yet. Blocks.
    pub(crate) fn batch(
        &self,
        store: &dyn Store,
        feed: &FeedId,
        reader: &Member,
        rosters: &RosterChain,
    ) -> Result<Option<Batch>, ReadError> {
        let Some(state) = store.feed(feed) else { return Ok(None) };
        let size = state.frontier.size();
        if self.cursor >= size {
            return Ok(None);
        }
        let mut held = store.entries(feed, self.cursor, BATCH_ENTRIES_MAX, BATCH_BYTES_MAX)?;
        held.truncate(usize::try_from(size - self.cursor).unwrap_or(usize::MAX));
        if held.is_empty() {
            return Ok(None);
        }
        let end = self.cursor + held.len() as u64;
        let head = Head { size, checkpoint_size: state.checkpoint_size, consistency_proof: &state.consistency_proof };
        let Some(proof) = provide::plan_batch(&head, end, &FeedTree { store, feed })? else { return Ok(None) };
        let items = items(&held, reader, &self.filters, rosters);
        let entries = provide::message(feed, self.cursor, items, state.checkpoint, &proof);
        let bytes = prost::Message::encoded_len(&entries);
        Ok(Some(Batch { entries, end, bytes }))
    }
}

/// What `reader` is shown of these entries.
fn items(entries: &[Entry], reader: &Member, filters: &[TopicFilter], rosters: &RosterChain) -> Vec<proto::Item> {
    let held = entries.iter().map(|entry| {
        let held = match &entry.content {
            Content::Disclosed { envelope, header } => Held::Disclosed { envelope, header: header.as_deref() },
            Content::Undisclosed(reason) => Held::Undisclosed(*reason),
        };
        (entry.digest, held)
    });
    provide::items(held, reader, filters, rosters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_its_way_is_bounded_until_it_is_stored() {
        let mut provider = Provider::new(0, Vec::new());
        for n in 1..=IN_FLIGHT_BATCHES_MAX as u64 {
            assert!(provider.has_room());
            provider.sent(n * 10, 1_000);
        }
        assert!(!provider.has_room());
        provider.acknowledged(9);
        assert!(!provider.has_room(), "half a batch frees nothing");
        provider.acknowledged(20);
        assert!(provider.has_room());
        assert_eq!((provider.in_flight.len(), provider.in_flight_bytes), (IN_FLIGHT_BATCHES_MAX - 2, 6_000));
        provider.acknowledged(u64::MAX);
        provider.sent(100, IN_FLIGHT_BYTES_MAX);
        assert!(!provider.has_room());
    }
}
