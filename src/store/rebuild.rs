//! A new view from the log, while the node goes on.
//!
//! In scope: waiting for room on the disk before the view is written, and replacing a view that could not be written or read: a full
//! disk, an I/O error, damaged files. Nothing true is in the view alone. Out of scope: what happens when a store is opened (`open`).
//!
//! Meanwhile what is in memory is still answered, the rest says that it is behind ([`ReadError::Behind`]); commits go on until as much
//! waits for the view as may.
//!
//! [`ReadError::Behind`]: super::ReadError::Behind

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::OpenError;
use super::applier::Shared;
use super::disk::DiskOptions;
use super::log::{self, LogOptions, available_bytes};
use super::open::Replay;
use super::state::State;
use super::view::View;

/// How often it is looked whether there is room again.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Shortest and longest pause before a rebuild that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Part of the reserve that is left free of the view, at most [`FREE_BYTES_MAX`]: sled cannot go on after a write that found no space.
const FREE_PART: u64 = 4;
/// See [`FREE_PART`]. Far more than the largest batch takes.
const FREE_BYTES_MAX: u64 = 32 << 20;

/// The log, and where the view is.
pub(super) struct Source {
    dir: PathBuf,
    log_dir: PathBuf,
    log: LogOptions,
    cache_bytes: u64,
    free_bytes: u64,
}

impl Source {
    pub(super) fn new(dir: &Path, options: &DiskOptions) -> Self {
        Self {
            dir: dir.to_path_buf(),
            log_dir: dir.join("log"),
            log: options.log(),
            cache_bytes: options.view_cache_bytes,
            free_bytes: (options.reserve_bytes / FREE_PART).min(FREE_BYTES_MAX),
        }
    }

    /// Why the view cannot be written now. What cannot be asked is told by writing.
    fn full(&self) -> Option<String> {
        let free = available_bytes(&self.log_dir).ok().filter(|free| *free < self.free_bytes)?;
        Some(format!("free space of {free} bytes is below the {} bytes that the view leaves", self.free_bytes))
    }

    /// A view of everything up to commit `seq`, which is durable.
    fn build(&self, seq: u64) -> Result<View, OpenError> {
        let view = View::instead(&self.dir, self.cache_bytes).map_err(OpenError::View)?;
        let mut replay = Replay::new(view, State::new(0));
        let mut done = seq == 0;
        let read = log::read(&self.log_dir, &self.log, &mut |position, record, body| {
            if !done {
                replay.take(position, &record, &body)?;
                done = record.seq >= seq;
            }
            // Beyond it the log is being written: it is not looked at.
            if done { Err(OpenError::Locked(String::new())) } else { Ok(()) }
        });
        match read {
            Err(error) if !done => return Err(error),
            Ok(newest) if newest < seq => {
                return Err(OpenError::Damaged(format!("commit {seq} was confirmed, the log ends at {newest}")));
            }
            Ok(_) | Err(_) => {}
        }
        replay.finish().map(|(view, ..)| view)
    }
}

/// Waits until the view may be written; false if the store is closed first.
pub(super) fn wait_for_disk(shared: &Shared) -> bool {
    let mut paused = false;
    while let Some(why) = shared.source.full() {
        if !paused {
            tracing::warn!(why, "the view waits for room");
        }
        paused = true;
        shared.queue.pause(Some(why));
        if shared.queue.stopped_within(LOOK_EVERY) {
            return false;
        }
    }
    if paused {
        shared.queue.pause(None);
    }
    true
}

/// Replaces the view by one of everything up to commit `seq`, trying again for as long as the log is whole; false if the store is closed
/// first.
///
/// # Errors
/// If the log is not what was written.
pub(super) fn until_done(shared: &Shared, seq: u64) -> Result<bool, OpenError> {
    let mut pause = RETRY.0;
    while wait_for_disk(shared) {
        // sled tells of some damage by a panic.
        let built = catch_unwind(AssertUnwindSafe(|| shared.source.build(seq)));
        let panicked = |_| Err(OpenError::View(std::io::Error::other("sled ended in a panic")));
        match built.unwrap_or_else(panicked) {
            Ok(view) => {
                tracing::warn!(seq, "the view has been rebuilt from the log");
                shared.view.store(std::sync::Arc::new(view));
                shared.queue.pause(None);
                return Ok(true);
            }
            Err(error @ (OpenError::Io(_) | OpenError::View(_))) => {
                let error = crate::causes::in_one_line(&error);
                tracing::error!(error, "the view cannot be rebuilt yet");
                shared.queue.pause(Some(error));
                if shared.queue.stopped_within(pause) {
                    return Ok(false);
                }
                pause = (pause * 2).min(RETRY.1);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}
