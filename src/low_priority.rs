//! Runs background work on low-priority threads, so that it does not slow down threads that commit,
//! reply or carry urgent entries.
//!
//! In scope: a pool for verifying and reading long batches of peers, another for scans by callers,
//! and the niceness of these and similar threads. Out of scope: work that a caller waits for; it
//! runs in place, or on the runtime's own blocking threads.

use std::num::NonZero;
use std::sync::OnceLock;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinError;

/// Niceness of low-priority threads (setpriority(2)). Under contention they get a third of the
/// processor time of a thread with niceness 0.
const NICENESS: i32 = 5;

/// Lowers the priority of the calling thread, and of those it starts. Does nothing if the system
/// does not permit it.
pub fn lower_priority() {
    let _ = rustix::process::nice(NICENESS);
}

/// Threads for one purpose, as many as the machine has processors.
struct Pool(OnceLock<Option<Runtime>>);

impl Pool {
    const fn new() -> Self {
        Self(OnceLock::new())
    }

    async fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Result<R, JoinError> {
        let pool = self.0.get_or_init(|| {
            let threads = available_parallelism().map_or(1, NonZero::get);
            Builder::new_current_thread()
                .thread_name("low-priority")
                .max_blocking_threads(threads)
                .on_thread_start(lower_priority)
                .build()
                .inspect_err(
                    |error| tracing::warn!(%error, "low-priority threads cannot be started: the runtime's are used"),
                )
                .ok()
        });
        match pool {
            Some(pool) => pool.spawn_blocking(work).await,
            None => tokio::task::spawn_blocking(work).await,
        }
    }
}

/// Runs `work` that scans much for a caller, apart from what peers wait for.
///
/// # Errors
/// The work panicked.
pub async fn run_scan<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> Result<R, JoinError> {
    static POOL: Pool = Pool::new();
    POOL.run(work).await
}

/// Runs `work` on a low-priority thread, at most as many at a time as the machine has processors.
///
/// # Errors
/// The work panicked.
pub async fn run<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> Result<R, JoinError> {
    static POOL: Pool = Pool::new();
    POOL.run(work).await
}
