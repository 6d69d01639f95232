//! Rebuilds the index database from the log while the node runs.
//!
//! In scope: waiting for disk space before the index database is written, and replacing one that
//! could not be written or read: a full disk, an I/O error, damaged files. The log contains
//! everything that is in it. Out of scope: what happens when a store is opened (`open`).
//!
//! Meanwhile reads are answered from memory if possible; other reads return [`ReadError::Behind`].
//! Commits go on until the allowed backlog is full.
//!
//! [`ReadError::Behind`]: super::ReadError::Behind

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::OpenError;
use super::applier::StoreShared;
use super::disk::DiskOptions;
use super::feed_index::State;
use super::index_db::IndexDb;
use super::log::{self, LogOptions, available_bytes};
use super::open::Replay;

/// How often the free space is checked while it is too low.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Shortest and longest pause before a failed rebuild is tried again.
const RETRY_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Divisor of the reserve: the part that the index database leaves free, at most
/// [`FREE_BYTES_MAX`]. sled cannot continue after a write that found no space.
const FREE_DIVISOR: u64 = 4;
/// See [`FREE_DIVISOR`]. Far more than the largest batch needs.
const FREE_BYTES_MAX: u64 = 32 << 20;

/// The log to rebuild from, and the place of the index database.
pub(super) struct RebuildSource {
    dir: PathBuf,
    log_dir: PathBuf,
    log: LogOptions,
    cache_bytes: u64,
    free_bytes: u64,
}

impl RebuildSource {
    pub(super) fn new(dir: &Path, options: &DiskOptions) -> Self {
        Self {
            dir: dir.to_path_buf(),
            log_dir: dir.join("log"),
            log: options.log(),
            cache_bytes: options.index_cache_bytes,
            free_bytes: (options.reserve_bytes / FREE_DIVISOR).min(FREE_BYTES_MAX),
        }
    }

    /// Returns why the index database cannot be written now. An error of the check is ignored:
    /// writing will report it.
    fn disk_full_reason(&self) -> Option<String> {
        let free = available_bytes(&self.log_dir).ok().filter(|free| *free < self.free_bytes)?;
        Some(format!(
            "free space of {free} bytes is below the {} bytes that the index database leaves free",
            self.free_bytes
        ))
    }

    /// Builds an index database of everything up to commit `seq`, which is durable.
    fn build(&self, seq: u64) -> Result<IndexDb, OpenError> {
        let index_db = IndexDb::replace(&self.dir, self.cache_bytes).map_err(OpenError::IndexDb)?;
        let mut replay = Replay::new(index_db, State::new(0));
        let mut done = seq == 0;
        let read = log::read(&self.log_dir, &self.log, &mut |position, record, body| {
            if !done {
                replay.apply(position, &record, &body)?;
                done = record.seq >= seq;
            }
            // Records beyond it are still being written and are not read.
            if done { Err(OpenError::Locked(String::new())) } else { Ok(()) }
        });
        match read {
            Err(error) if !done => return Err(error),
            Ok(newest) if newest < seq => {
                return Err(OpenError::Damaged(format!("commit {seq} was confirmed, the log ends at {newest}")));
            }
            Ok(_) | Err(_) => {}
        }
        replay.finish().map(|(index_db, ..)| index_db)
    }
}

/// Waits until the index database may be written; returns false if the store is closed first.
pub(super) fn wait_for_disk(shared: &StoreShared) -> bool {
    let mut paused = false;
    while let Some(why) = shared.rebuild_source.disk_full_reason() {
        if !paused {
            tracing::warn!(why, "the index database waits for disk space");
        }
        paused = true;
        shared.queue.pause(Some(why));
        if shared.queue.stopped_within(POLL_INTERVAL) {
            return false;
        }
    }
    if paused {
        shared.queue.pause(None);
    }
    true
}

/// Replaces the index database by one of everything up to commit `seq`, with retries as long as the
/// log is intact. Returns false if the store is closed first.
///
/// # Errors
/// If the log is damaged.
pub(super) fn until_done(shared: &StoreShared, seq: u64) -> Result<bool, OpenError> {
    let mut pause = RETRY_BACKOFF.0;
    while wait_for_disk(shared) {
        // sled reports some damage by a panic.
        let built = catch_unwind(AssertUnwindSafe(|| shared.rebuild_source.build(seq)));
        let panicked = |_| Err(OpenError::IndexDb(std::io::Error::other("sled panicked")));
        match built.unwrap_or_else(panicked) {
            Ok(index_db) => {
                tracing::warn!(seq, "the index database has been rebuilt from the log");
                shared.index_db.store(std::sync::Arc::new(index_db));
                shared.queue.pause(None);
                return Ok(true);
            }
            Err(error @ (OpenError::Io(_) | OpenError::IndexDb(_))) => {
                let error = crate::error_chain::one_line(&error);
                tracing::error!(error, "the index database cannot be rebuilt yet");
                shared.queue.pause(Some(error));
                if shared.queue.stopped_within(pause) {
                    return Ok(false);
                }
                pause = (pause * 2).min(RETRY_BACKOFF.1);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}
