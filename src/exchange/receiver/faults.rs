//! Handles faults from the peer: one about a feed pauses that feed, one about the link ends the
//! link.
//!
//! In scope: checking that the fault is about a feed of this link, and recording it. Out of scope:
//! the faults that this side sends.

use barid_core::proto;
use tokio::time::Instant;

use super::LinkReceiver;
use crate::exchange::backfill::BackfillReply;
use crate::exchange::link::LinkError;
use crate::telemetry::{AuditEvent, Foreign};

/// `Fault.reason` of a peer that now follows the feed at another member.
pub(super) const ELSEWHERE: &str = "elsewhere";
/// The other reasons that peers send (docs/protocol.md §11).
const FAULTS: [&str; 9] =
    ["bad-signature", "bad-proof", "bad-root", "bad-bounds", "malformed", "gap", "equivocation", "busy", "not-allowed"];

impl LinkReceiver {
    pub(super) fn fault(&mut self, fault: &proto::Fault) -> Result<(), LinkError> {
        if fault.feed.is_empty() {
            return Err(LinkError::Rejected(Foreign(&fault.reason).to_string(), Foreign(&fault.detail).to_string()));
        }
        // No other feed was requested or sent over this link, so a fault about one is the peer's
        // own.
        let Some(feed) = fault.feed.parse().ok().filter(|feed| self.send_queue.is_of_link(feed)) else {
            self.record_malformed(&fault.feed, "feed of a fault: not a feed of this link");
            return Ok(());
        };
        if fault.reason != ELSEWHERE {
            let reason = FAULTS.into_iter().find(|known| **known == fault.reason).unwrap_or("unknown");
            let event = AuditEvent {
                event: "fault-received",
                reason,
                actor: &self.peer,
                resource: &feed,
                detail: &fault.detail,
            };
            self.shared.record(&self.peer, &event);
        }
        self.send_queue.unfollow(&feed);
        if fault.reason == ELSEWHERE {
            return Ok(());
        }
        if let Some(feed_receiver) = self.feed_receivers.get_mut(&feed)
            && feed_receiver.retry_at().is_none()
            && !feed_receiver.is_closed()
        {
            feed_receiver.pause(Instant::now());
        }
        let _ = self.replies.try_send(BackfillReply::Rejected(feed));
        Ok(())
    }
}
