//! Charges each member for the work that its frames cause.
//!
//! In scope: the cost of each frame, charged before the frame is handled, and the delay once a
//! member has used up its budget. A flood slows down only its own link, and none of it is lost. Out
//! of scope: entries and their content, which wait for the committer and have budgets of their own
//! (`core::quota`).

use barid_core::ids::Member;
use barid_core::proto::frame::Frame;
use bytes::Bytes;
use tokio::time::Instant;

use crate::budgets::table::PEER_WORK;
use crate::budgets::{Owner, RateLimiter};

/// A signed note: parsed, verified by one or more keys, and compared with the tree held here.
const NOTE: u64 = 16;
/// Bytes of a note for each further unit: each of its lines is looked up.
const NOTE_BYTES: u64 = 64;
/// A reply that is read from the store: notes, rosters, proofs, content of earlier entries.
const REPLY: u64 = 1_024;
/// A change of what is followed or served, or a look-up in memory.
const CONTROL: u64 = 64;
/// An audit record, or a log line of this node.
const RECORD: u64 = 256;
/// Bytes of an urgent entry for each unit: it is hashed, and its proof verified.
const PRIORITY_BYTES: u64 = 4 << 10;

/// The work budgets of members. They outlive links.
#[derive(Default)]
pub(crate) struct FrameBudgets {
    limiter: RateLimiter,
}

impl FrameBudgets {
    /// Charges `units`, and waits if the budget is exceeded.
    pub(crate) async fn charge(&self, member: &Member, units: u64) {
        let wait = self.limiter.spend(&owner(member), PEER_WORK.rate, units as f64, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// The budget owner of a member.
pub(crate) fn owner(member: &Member) -> Owner {
    Owner::Member(member.as_str().into())
}

/// Returns the cost of a frame.
pub(crate) fn cost(frame: &Frame) -> u64 {
    match frame {
        // Requested content, and progress: bounded by what is in flight.
        Frame::Entries(_) | Frame::BackfillResponse(_) | Frame::ReplicationProgress(_) => 1,
        Frame::PriorityEntry(priority) => NOTE + priority.envelope.len() as u64 / PRIORITY_BYTES,
        Frame::Hello(_) => 1,
        Frame::Cosigned(cosigned) => note(&cosigned.note),
        Frame::Custody(custody) => note(&custody.note),
        Frame::TreeHeads(heads) => {
            let notes = heads.heads.iter().flat_map(|head| head.cosigned.iter().chain([&head.checkpoint]));
            CONTROL + notes.map(note).sum::<u64>()
        }
        // Made by a low-priority thread; a peer that backfills at full speed asks some hundred
        // times a second.
        Frame::Follow(follow) if !follow.ranges.is_empty() => REPLY / 2,
        Frame::Follow(_) | Frame::Consistency(_) => CONTROL,
        Frame::Fault(_) => RECORD,
        Frame::AttestationsRequest(_) | Frame::RosterRequest(_) | Frame::RelayedCustodyRequest(_) => REPLY,
        Frame::ConsistencyRequest(_) => RECORD,
        Frame::Rosters(rosters) => CONTROL + rosters.notes.iter().map(note).sum::<u64>(),
        Frame::RelayedCustody(relayed) => CONTROL + relayed.notes.iter().map(note).sum::<u64>(),
    }
}

/// Returns the cost of a signed note.
fn note(note: &Bytes) -> u64 {
    NOTE + note.len() as u64 / NOTE_BYTES
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use barid_core::proto;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn flood_is_delayed_and_other_members_are_not() {
        let (frame_budgets, began) = (FrameBudgets::default(), Instant::now());
        let (tn, ly): (Member, Member) = ("tn".parse().unwrap(), "ly".parse().unwrap());
        let custody = Frame::Custody(proto::Custody { note: vec![b'n'; 45 << 10].into() });
        for _ in 0..4_000 {
            frame_budgets.charge(&tn, cost(&custody)).await;
        }
        let flooded = began.elapsed();
        assert!(flooded > Duration::from_secs(30), "{flooded:?}");
        // What honest peers send in a second at full rate: progress and notes for each batch, tree
        // heads.
        let (calm, note) = (Instant::now(), Frame::Custody(proto::Custody { note: vec![b'n'; 500].into() }));
        for _ in 0..10 {
            for _ in 0..100 {
                frame_budgets
                    .charge(
                        &ly,
                        10 * cost(&Frame::ReplicationProgress(proto::ReplicationProgress::default())) + 2 * cost(&note),
                    )
                    .await;
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(calm.elapsed(), Duration::from_secs(10), "no frame waited");
    }

    #[tokio::test(start_paused = true)]
    async fn expensive_frames_cost_more_than_cheap_ones() {
        let note: Bytes = vec![b'n'; 500].into();
        let head =
            proto::TreeHead { checkpoint: note.clone(), cosigned: vec![note.clone(); 9], ..proto::TreeHead::default() };
        let heads = Frame::TreeHeads(proto::TreeHeads { heads: vec![head; 100], ..proto::TreeHeads::default() });
        assert!(
            cost(&heads) > 1_000 * cost(&Frame::ReplicationProgress(proto::ReplicationProgress::default())),
            "a thousand signatures"
        );
        let request = Frame::AttestationsRequest(proto::AttestationsRequest::default());
        assert!(cost(&request) > 20 * cost(&Frame::Custody(proto::Custody { note })));
    }
}
