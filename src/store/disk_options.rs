//! Options of a store on disk.
//!
//! In scope: the options, and the free space that a commit must leave. Out of scope: the tiers of
//! the reserve (`core::quota`).

use barid_core::bulletin::Priority;
use barid_core::ids::{ExchangeName, Member};
use barid_core::quota::Tier;

use super::log::LogOptions;
use super::{Commit, Content, NewEntry, priority};

/// The owner of a store, and its use of disk and memory.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// The node's member.
    pub member: Member,
    /// Its exchange.
    pub exchange: ExchangeName,
    /// The reserve: free bytes for own entries and notes, which may use a part of it. Content of
    /// other members is committed only while twice as much is free (`core::quota`).
    pub reserve_bytes: u64,
    /// Bytes of newest commits cached in memory, in addition to those not yet applied to the index
    /// database.
    pub tail_cache_bytes: usize,
    /// Bytes of log that the index database may lag behind before commits wait for it.
    pub index_lag_bytes_max: u64,
    /// Cache size of the index database, in bytes.
    pub index_cache_bytes: u64,
    /// Largest segment of the log, in bytes.
    pub segment_bytes_max: u64,
}

impl DiskOptions {
    /// Returns the default options.
    #[must_use]
    pub fn new(member: Member, exchange: ExchangeName) -> Self {
        Self {
            member,
            exchange,
            reserve_bytes: 512 << 20,
            tail_cache_bytes: 32 << 20,
            index_lag_bytes_max: 16 << 20,
            index_cache_bytes: 32 << 20,
            segment_bytes_max: 64 << 20,
        }
    }

    pub(super) fn log(&self) -> LogOptions {
        LogOptions {
            member: self.member.clone(),
            exchange: self.exchange.clone(),
            segment_bytes_max: self.segment_bytes_max,
            reserve_bytes: self.reserve_bytes,
        }
    }
}

/// Returns the bytes that a commit must leave free (`core::quota`). Content of other members decides
/// first, then their digests. Among own entries, one urgent Actual entry is enough for the priority
/// tier.
pub(super) fn reserve_for(commit: &Commit, me: &Member, reserve_bytes: u64) -> u64 {
    let appends = || commit.appends.iter().map(|append| (&append.feed.member, &append.entries));
    let content = |entries: &[NewEntry]| entries.iter().any(|entry| matches!(entry.content, Content::Disclosed { .. }));
    let backfilled = commit.backfills.iter().map(|backfill| &backfill.feed.member);
    let out_of_order = commit.priority.iter().map(|priority| &priority.feed.member);
    let is_actual_priority = |entry: &NewEntry| match &entry.content {
        Content::Disclosed { header, .. } => priority::of_header(header.as_deref()) == Some(Priority::Actual),
        Content::Undisclosed(_) => false,
    };
    let tier = if appends().any(|(owner, entries)| owner != me && content(entries))
        || backfilled.chain(out_of_order).any(|owner| owner != me)
    {
        Tier::All
    } else if appends().any(|(owner, entries)| owner != me && !entries.is_empty()) {
        Tier::Digests
    } else if appends().any(|(_, entries)| entries.iter().any(is_actual_priority)) {
        Tier::Priority
    } else if !commit.appends.is_empty() || !commit.backfills.is_empty() {
        Tier::Own
    } else {
        Tier::Notes
    };
    tier.leaves_free(reserve_bytes)
}
