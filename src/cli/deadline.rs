//! Deadlines of whole commands: connecting, the handshake and every answer together.
//!
//! In scope: `--timeout`, and what is said when its time is over. Out of scope: `publish`, which tries again within its time, and
//! `watch`, of which only the connecting is bounded; they use the same words.

use std::time::Duration;

use clap::Args;

use super::{Exit, Failure};

/// Seconds for a command that needs no waiting at the node, if nobody says otherwise: several round trips on a satellite link and a slow
/// disk.
pub(super) const SECONDS: u64 = 30;

/// How long a command may take.
#[derive(Clone, Debug, Args)]
pub(super) struct TimeoutArgs {
    /// Longest for the whole command, connecting included.
    #[arg(long, global = true, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
}

impl TimeoutArgs {
    /// What was chosen.
    pub(super) fn chosen(&self) -> Option<u64> {
        self.timeout
    }

    /// What was chosen, or the usual time.
    pub(super) fn seconds(&self) -> u64 {
        self.timeout.unwrap_or(SECONDS)
    }

    /// As a duration.
    pub(super) fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds())
    }
}

/// `work`, or the failure that says that its time is over.
pub(super) async fn within<T>(seconds: u64, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(Duration::from_secs(seconds), work).await.unwrap_or_else(|_| Err(over(seconds)))
}

/// That the time is over.
pub(super) fn over(seconds: u64) -> Failure {
    Failure::new("timeout").with("seconds", &seconds).exit(Exit::NotReached)
}
