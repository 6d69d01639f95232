//! Time limits of whole commands: connecting, handshake and all responses together.
//!
//! In scope: `--timeout` and the failure at its end. Out of scope: `publish`, which retries within
//! its time limit, and `watch`, which has a limit only until the node answers. Both use the same
//! failure.

use std::time::Duration;

use clap::Args;

use super::{Exit, Failure};

/// Default time limit, in seconds, of a command that does not wait at the node: several round trips
/// on a satellite link, and a slow disk.
pub(super) const SECONDS: u64 = 30;

/// Time limit of a command.
#[derive(Clone, Debug, Args)]
pub(super) struct TimeoutArgs {
    /// Seconds for the whole command, connecting included.
    #[arg(long, global = true, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
}

impl TimeoutArgs {
    /// Returns the value of `--timeout`, if given.
    pub(super) fn chosen(&self) -> Option<u64> {
        self.timeout
    }

    /// Returns the time limit in seconds, or the default.
    pub(super) fn seconds(&self) -> u64 {
        self.timeout.unwrap_or(SECONDS)
    }

    /// Returns the time limit as a duration.
    pub(super) fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds())
    }
}

/// Runs `work`; returns the timeout failure if it takes longer than `seconds`.
pub(super) async fn within<T>(seconds: u64, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(Duration::from_secs(seconds), work).await.unwrap_or_else(|_| Err(timed_out(seconds)))
}

/// Returns the timeout failure.
pub(super) fn timed_out(seconds: u64) -> Failure {
    Failure::new("timeout").with("seconds", &seconds).exit(Exit::NotReached)
}
