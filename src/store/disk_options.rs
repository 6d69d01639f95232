//! How a store on disk is opened.

use barid_core::names::{ExchangeName, Member};

use super::Commit;
use super::log::LogOptions;

/// Whose store, and how it uses the machine.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// The node's member.
    pub member: Member,
    /// Its exchange.
    pub exchange: ExchangeName,
    /// Free bytes on the disk below which nothing more is committed.
    pub reserve_bytes: u64,
    /// Bytes of newest commits kept in memory, beside those that the view has not taken in.
    pub window_bytes: usize,
    /// Bytes of log that the view may lag behind before commits wait for it.
    pub lag_bytes_max: u64,
    /// Bytes of the view kept in memory.
    pub view_cache_bytes: u64,
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
            window_bytes: 32 << 20,
            lag_bytes_max: 16 << 20,
            view_cache_bytes: 32 << 20,
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

/// Of the reserve, so much more must be free before commits begin anew, at most [`RESUMES_BYTES_MAX`]: who is at the very edge would begin
/// and end every second.
const RESUMES_PART: u64 = 8;
/// See [`RESUMES_PART`].
const RESUMES_BYTES_MAX: u64 = 64 << 20;

/// Free bytes from which on commits begin anew after there were fewer than the reserve.
pub(super) fn resumes_above(reserve_bytes: u64) -> u64 {
    reserve_bytes.saturating_add((reserve_bytes / RESUMES_PART).min(RESUMES_BYTES_MAX))
}

/// What a commit leaves free: half of the reserve is for what is said of entries that are there, such as answers, cursors, rosters,
/// revocations and proofs.
pub(super) fn reserve_for(commit: &Commit, reserve_bytes: u64) -> u64 {
    let has_entries = !commit.appends.is_empty() || !commit.fills.is_empty();
    if has_entries { reserve_bytes } else { reserve_bytes / 2 }
}
