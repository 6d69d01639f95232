//! Handles the frames about attestations, tree heads and rosters.
//!
//! In scope: requesting them, resending our own, and queueing received ones. Out of scope:
//! verifying them (`note_verifier`, `roster_sync`).

use std::sync::Arc;

use barid_core::ids::FeedId;
use barid_core::proto;
use barid_core::proto::frame::Frame;

use super::LinkReceiver;
use crate::exchange::TREE_HEADS_CRLS_MAX;
use crate::exchange::note_verifier::{self, IncomingNote};

impl LinkReceiver {
    /// Requests attestations of our feeds that were in flight when the last link broke.
    pub(super) async fn request_attestations(&mut self) {
        let (shared, peer) = (Arc::clone(&self.shared), self.peer.clone());
        let progress = tokio::task::spawn_blocking(move || note_verifier::custody_progress(&shared, &peer)).await;
        for (feed, custody_from, backfilled_since) in progress.into_iter().flatten().flatten() {
            let feed = feed.to_string();
            self.send_queue.push(Frame::AttestationsRequest(proto::AttestationsRequest {
                feed,
                custody_from,
                backfilled_since,
            }));
        }
    }

    pub(super) async fn resend_attestations(&mut self, request: &proto::AttestationsRequest) {
        let Some(feed) = request.feed.parse::<FeedId>().ok().filter(|feed| feed.member == self.peer) else {
            self.malformed(&request.feed, "feed: not a feed of the sender");
            return;
        };
        let (shared, from, backfilled_since) =
            (Arc::clone(&self.shared), request.custody_from, request.backfilled_since);
        let sent = tokio::task::spawn_blocking(move || {
            note_verifier::attestations_for(&shared, &feed, from, backfilled_since)
        })
        .await;
        let Ok(Ok((cosigned, custody))) = sent else { return };
        if let Some(note) = cosigned {
            self.send_queue.push(Frame::Cosigned(proto::Cosigned { note, ..proto::Cosigned::default() }));
        }
        for note in custody {
            self.send_queue.push(Frame::Custody(proto::Custody { note }));
        }
    }

    pub(super) async fn heads(&mut self, heads: proto::TreeHeads) {
        for head in heads.heads {
            if !head.checkpoint.is_empty() {
                self.queue_note(IncomingNote::Checkpoint(head.checkpoint, head.held)).await;
            }
            for note in head.cosigned {
                self.queue_note(IncomingNote::RelayedCosigned(note)).await;
            }
        }
        self.queue_note(IncomingNote::HeadsComplete).await;
        self.request_newer_roster(heads.roster_version);
        if heads.crls.len() > TREE_HEADS_CRLS_MAX {
            self.malformed("", "number of CRLs in one frame");
        } else if !heads.crls.is_empty() {
            self.shared.options.revocations.offer(&self.peer, heads.crls);
        }
    }

    /// Records the peer's roster version, and requests the versions that we lack, once.
    pub(super) fn request_newer_roster(&mut self, version: u64) {
        if self.shared.peers.advance_roster_version(&self.peer, version) {
            self.send_queue.heads_changed();
        }
        let ours = self.shared.options.rosters.load().newest().version();
        if version > ours && version > self.requested_roster {
            self.requested_roster = version;
            self.send_queue.push(Frame::RosterRequest(proto::RosterRequest { after: ours }));
        }
    }
}
