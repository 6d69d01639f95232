//! How a store on disk is opened.

use barid_core::bulletin::Priority;
use barid_core::ids::{ExchangeName, Member};
use barid_core::quota::Tier;

use super::log::LogOptions;
use super::{Commit, Content, NewEntry, priority};

/// Whose store, and how it uses the machine.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// The node's member.
    pub member: Member,
    /// Its exchange.
    pub exchange: ExchangeName,
    /// Free bytes on the disk below which nothing of other members' content is committed; own entries and notes use a part of them.
    pub reserve_bytes: u64,
    /// Bytes of newest commits kept in memory, beside those that the view has not taken in.
    pub tail_cache_bytes: usize,
    /// Bytes of log that the view may lag behind before commits wait for it.
    pub index_lag_bytes_max: u64,
    /// Bytes of the view kept in memory.
    pub index_cache_bytes: u64,
    /// Largest segment of the log.
    pub segment_bytes_max: u64,
}

impl DiskOptions {
    /// The usual ones.
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

/// What a commit leaves free: by the most of its entries that may be left out (`core::quota`).
pub(super) fn reserve_for(commit: &Commit, me: &Member, reserve_bytes: u64) -> u64 {
    let appends = || commit.appends.iter().map(|append| (&append.feed.member, &append.entries));
    let content = |entries: &[NewEntry]| entries.iter().any(|entry| matches!(entry.content, Content::Disclosed { .. }));
    let backfilled = commit.backfills.iter().map(|backfill| &backfill.feed.member);
    let out_of_order = commit.priority.iter().map(|priority| &priority.feed.member);
    let is_urgent = |entry: &NewEntry| match &entry.content {
        Content::Disclosed { header, .. } => priority::urgent_of(header.as_deref()) == Some(Priority::Actual),
        Content::Undisclosed(_) => false,
    };
    let tier = if appends().any(|(owner, entries)| owner != me && content(entries))
        || backfilled.chain(out_of_order).any(|owner| owner != me)
    {
        Tier::All
    } else if appends().any(|(owner, entries)| owner != me && !entries.is_empty()) {
        Tier::Digests
    } else if appends().any(|(_, entries)| entries.iter().any(is_urgent)) {
        Tier::Priority
    } else if !commit.appends.is_empty() || !commit.backfills.is_empty() {
        Tier::Own
    } else {
        Tier::Notes
    };
    tier.leaves_free(reserve_bytes)
}
