//! What the peer refuses: of a feed, which then is not sent or asked for until later; or the link.
//!
//! In scope: that it can only be of a feed of this link, and its record. Out of scope: what this side refuses.

use barid_core::proto;
use tokio::time::Instant;

use super::Reader;
use crate::exchange::fills::Answer;
use crate::exchange::link::LinkError;
use crate::telemetry::{AuditEvent, Foreign};

/// `Fault.reason` of a peer that follows the feed at another member now.
pub(super) const ELSEWHERE: &str = "elsewhere";
/// The other reasons that peers give (docs/protocol.md §11).
const FAULTS: [&str; 9] =
    ["bad-signature", "bad-proof", "bad-root", "bad-bounds", "malformed", "gap", "equivocation", "busy", "not-allowed"];

impl Reader {
    pub(super) fn fault(&mut self, fault: &proto::Fault) -> Result<(), LinkError> {
        if fault.feed.is_empty() {
            return Err(LinkError::Refused(Foreign(&fault.reason).to_string(), Foreign(&fault.detail).to_string()));
        }
        // Nothing was asked of it, and nothing sent, of any other feed: the fault is its own.
        let Some(feed) = fault.feed.parse().ok().filter(|feed| self.outbox.has_named(feed)) else {
            self.record_malformed(&fault.feed, "a fault of a feed that is none of this link's");
            return Ok(());
        };
        if fault.reason != ELSEWHERE {
            let reason = FAULTS.into_iter().find(|known| **known == fault.reason).unwrap_or("unknown");
            let event = AuditEvent { what: "fault", reason, who: &self.peer, subject: &feed, detail: &fault.detail };
            self.shared.record(&self.peer, &event);
        }
        self.outbox.unfollow(&feed);
        if fault.reason == ELSEWHERE {
            return Ok(());
        }
        if let Some(follower) = self.followers.get_mut(&feed)
            && follower.due().is_none()
            && !follower.has_left()
        {
            follower.pause(Instant::now());
        }
        let _ = self.answers.try_send(Answer::Refused(feed));
        Ok(())
    }
}
