//! A feed that is followed over a link: where it stands here, and whether its next batch is taken.
//!
//! In scope: the states between asking, running and pausing. Pure: time comes in. Out of scope: verifying (`core::follow`).

use std::time::Duration;

use barid_core::follow::FollowState;
use tokio::time::Instant;

use super::{FOLLOW_BACKOFF, IN_FLIGHT_BATCHES_MAX, backoff};

/// Batches of an earlier request that may still come: what was on its way, and as much again for what our last answers allowed.
const STALE_BATCHES_MAX: usize = 2 * IN_FLIGHT_BATCHES_MAX;

/// One followed feed.
pub(crate) struct FeedReceiver {
    /// Where the feed stands after everything that was verified, durable or not yet.
    pub(crate) state: FollowState,
    phase: Phase,
    failures: u32,
    /// Counts requests, so that what an earlier one left behind is known as such.
    pub(crate) request: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Asked for; so many batches of an earlier request may still be on their way.
    Requested { stale_batches: usize },
    /// Entries come in.
    Running,
    /// Refused, or nobody could take it: asked for again then.
    Paused(Instant),
    /// Not followed over this link any more; what is still on its way is passed over.
    Closed,
}

impl FeedReceiver {
    pub(crate) fn requested(state: FollowState) -> Self {
        Self { state, phase: Phase::Requested { stale_batches: 0 }, failures: 0, request: 0 }
    }

    /// Asked for again, from `state` on.
    pub(crate) fn restart(&mut self, state: FollowState) {
        self.state = state;
        self.phase = Phase::Requested { stale_batches: STALE_BATCHES_MAX };
        self.request += 1;
    }

    /// Whether a batch that begins at `first` is to be looked at. What a refused request left on its way is passed over; anything
    /// else that begins elsewhere is not, and will be a gap.
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

    /// A batch became durable: the peer can be trusted with the next at once.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Something was refused: asks again after a pause that grows.
    pub(crate) fn pause(&mut self, now: Instant) -> Duration {
        let pause = backoff(FOLLOW_BACKOFF, self.failures);
        self.failures = self.failures.saturating_add(1);
        self.pause_for(now, pause);
        pause
    }

    /// Asks again after `pause`; nobody is at fault.
    pub(crate) fn pause_for(&mut self, now: Instant, pause: Duration) {
        self.phase = Phase::Paused(now + pause);
        self.request += 1;
    }

    /// It is followed elsewhere now.
    pub(crate) fn close(&mut self) {
        self.phase = Phase::Closed;
        self.request += 1;
    }

    /// Whether it is followed elsewhere.
    pub(crate) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// When to ask again, if it is paused.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        if let Phase::Paused(until) = self.phase { Some(until) } else { None }
    }
}
