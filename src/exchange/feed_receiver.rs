//! The state of a feed that is followed over a link.
//!
//! In scope: the phases between requesting, running and pausing, and whether a batch is accepted.
//! Pure: time is an argument. Out of scope: verifying batches (`core::follow`).

use std::time::Duration;

use barid_core::follow::FollowState;
use tokio::time::Instant;

use super::{FOLLOW_BACKOFF, IN_FLIGHT_BATCHES_MAX, backoff};

/// Batches of an earlier request that may still arrive: those in flight, and as many again that our
/// last acknowledgements allowed.
const STALE_BATCHES_MAX: usize = 2 * IN_FLIGHT_BATCHES_MAX;

/// One followed feed.
pub(crate) struct FeedReceiver {
    /// State of the feed after everything verified so far, durable or not.
    pub(crate) state: FollowState,
    phase: Phase,
    failures: u32,
    /// Number of the request; results of earlier requests are recognised by it.
    pub(crate) request: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Requested; this many batches of an earlier request may still be in flight.
    Requested { stale_batches: usize },
    /// Entries are arriving.
    Running,
    /// Rejected, or not committed: requested again at this time.
    Paused(Instant),
    /// No longer followed over this link; batches still in flight are dropped.
    Closed,
}

impl FeedReceiver {
    pub(crate) fn requested(state: FollowState) -> Self {
        Self { state, phase: Phase::Requested { stale_batches: 0 }, failures: 0, request: 0 }
    }

    /// Records a new request, from `state` on.
    pub(crate) fn restart(&mut self, state: FollowState) {
        self.state = state;
        self.phase = Phase::Requested { stale_batches: STALE_BATCHES_MAX };
        self.request += 1;
    }

    /// Whether a batch that begins at `first` is to be verified. Batches left in flight by a
    /// rejected request are dropped. Any other batch with a wrong start is accepted here and fails
    /// verification as a gap.
    pub(crate) fn accepts(&mut self, first: u64) -> bool {
        match &mut self.phase {
            Phase::Running => true,
            Phase::Paused(_) | Phase::Closed => false,
            Phase::Requested { stale_batches } if *stale_batches > 0 && first != self.state.compact_range.size() => {
                *stale_batches -= 1;
                false
            }
            Phase::Requested { .. } => {
                self.phase = Phase::Running;
                true
            }
        }
    }

    /// Records that a batch became durable, which resets the backoff.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Pauses after a rejection; the delay grows with each one. Returns the delay.
    pub(crate) fn pause(&mut self, now: Instant) -> Duration {
        let pause = backoff(FOLLOW_BACKOFF, self.failures);
        self.failures = self.failures.saturating_add(1);
        self.pause_for(now, pause);
        pause
    }

    /// Pauses for `pause` without counting a failure.
    pub(crate) fn pause_for(&mut self, now: Instant, pause: Duration) {
        self.phase = Phase::Paused(now + pause);
        self.request += 1;
    }

    /// Records that the feed is now followed elsewhere.
    pub(crate) fn close(&mut self) {
        self.phase = Phase::Closed;
        self.request += 1;
    }

    /// Whether the feed is followed elsewhere.
    pub(crate) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// When to request it again, if it is paused.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        if let Phase::Paused(until) = self.phase { Some(until) } else { None }
    }
}
