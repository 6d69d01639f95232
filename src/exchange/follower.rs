//! A feed that is followed over a link: where it stands here, and whether its next batch is taken.
//!
//! In scope: the states between asking, running and pausing. Pure: time comes in. Out of scope: verifying (`core::follow`).

use std::time::Duration;

use barid_core::follow::FollowState;
use tokio::time::Instant;

use super::{FOLLOW_BACKOFF, backoff};

/// One followed feed.
pub(crate) struct Follower {
    /// Where the feed stands after everything that was verified, durable or not yet.
    pub(crate) state: FollowState,
    phase: Phase,
    refusals: u32,
    /// Counts requests, so that what an earlier one left behind is known as such.
    pub(crate) request: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Asked for; what an earlier request brought may still be on its way.
    Asked,
    /// Entries come in.
    Running,
    /// Refused, or nobody could take it: asked for again then.
    Paused(Instant),
}

impl Follower {
    pub(crate) fn asked(state: FollowState) -> Self {
        Self { state, phase: Phase::Asked, refusals: 0, request: 0 }
    }

    /// Asked for again, from `state` on.
    pub(crate) fn ask_again(&mut self, state: FollowState) {
        self.state = state;
        self.phase = Phase::Asked;
        self.request += 1;
    }

    /// Whether a batch that begins at `first` is for this request. What a refused request left on its way is passed over.
    pub(crate) fn takes(&mut self, first: u64) -> bool {
        match self.phase {
            Phase::Running => true,
            Phase::Paused(_) => false,
            Phase::Asked => {
                let ours = first == self.state.frontier.size();
                if ours {
                    self.phase = Phase::Running;
                }
                ours
            }
        }
    }

    /// A batch became durable: the peer can be trusted with the next at once.
    pub(crate) fn succeeded(&mut self) {
        self.refusals = 0;
    }

    /// Something was refused: asks again after a pause that grows.
    pub(crate) fn pause(&mut self, now: Instant) -> Duration {
        let pause = backoff(FOLLOW_BACKOFF, self.refusals);
        self.refusals = self.refusals.saturating_add(1);
        self.pause_for(now, pause);
        pause
    }

    /// Asks again after `pause`; nobody is at fault.
    pub(crate) fn pause_for(&mut self, now: Instant, pause: Duration) {
        self.phase = Phase::Paused(now + pause);
        self.request += 1;
    }

    /// When to ask again, if it is paused.
    pub(crate) fn due(&self) -> Option<Instant> {
        if let Phase::Paused(until) = self.phase { Some(until) } else { None }
    }
}
