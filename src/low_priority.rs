//! Work that may take its time: on threads that give way to those which commit, answer and carry what is urgent.
//!
//! In scope: a small pool for verifying and reading long batches of peers, another for readers that look at much, and the
//! niceness of their threads and of others like them. Out of scope:
//! anything that somebody waits for; that runs where it is, or on the runtime's own blocking threads.

use std::num::NonZero;
use std::sync::OnceLock;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinError;

/// Niceness of such threads (setpriority(2)): a third of the processor's time of one that has none, where there is not enough for both.
const NICENESS: i32 = 5;

/// The calling thread, and those that it starts, give way to others from now on. Where the system does not let it, nothing changes.
pub fn lower_priority() {
    let _ = rustix::process::nice(NICENESS);
}

/// Threads of one purpose, as many as the machine has processors.
struct Pool(OnceLock<Option<Runtime>>);

impl Pool {
    const fn new() -> Self {
        Self(OnceLock::new())
    }

    async fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Result<R, JoinError> {
        let pool = self.0.get_or_init(|| {
            let threads = available_parallelism().map_or(1, NonZero::get);
            Builder::new_current_thread()
                .thread_name("background")
                .max_blocking_threads(threads)
                .on_thread_start(lower_priority)
                .build()
                .inspect_err(
                    |error| tracing::warn!(%error, "there are no threads that give way: the runtime's are used"),
                )
                .ok()
        });
        match pool {
            Some(pool) => pool.spawn_blocking(work).await,
            None => tokio::task::spawn_blocking(work).await,
        }
    }
}

/// Runs `work` for a reader that looks at much, apart from what peers wait for.
///
/// # Errors
/// The work ended in a panic.
pub async fn run_scan<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> Result<R, JoinError> {
    static POOL: Pool = Pool::new();
    POOL.run(work).await
}

/// Runs `work` on a thread that gives way, no more at a time than the machine has processors.
///
/// # Errors
/// The work ended in a panic.
pub async fn run<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> Result<R, JoinError> {
    static POOL: Pool = Pool::new();
    POOL.run(work).await
}
