//! What a peer shows beside entries: answers that are asked for again, heads, rosters.
//!
//! In scope: asking for it, and handing it on. Out of scope: verifying it (`answers`, `adopt`).

use std::sync::Arc;

use barid_core::names::FeedId;
use barid_core::proto;
use barid_core::proto::frame::Frame;

use super::Reader;
use crate::exchange::HEADS_LISTS_MAX;
use crate::exchange::answers::{self, Signed};

impl Reader {
    /// Asks for answers about our feed that were on their way when the last link broke.
    pub(super) async fn ask_for_answers(&mut self) {
        let (shared, peer) = (Arc::clone(&self.shared), self.peer.clone());
        let reaches = tokio::task::spawn_blocking(move || answers::custody_reaches(&shared, &peer)).await;
        for (feed, custody_from, late_from) in reaches.into_iter().flatten().flatten() {
            let feed = feed.to_string();
            self.outbox.push(Frame::AnswersRequest(proto::AnswersRequest { feed, custody_from, late_from }));
        }
    }

    pub(super) async fn answer_again(&mut self, request: &proto::AnswersRequest) {
        let Some(feed) = request.feed.parse::<FeedId>().ok().filter(|feed| feed.member == self.peer) else {
            self.malformed(&request.feed, "a feed of the sender");
            return;
        };
        let (shared, from, late_from) = (Arc::clone(&self.shared), request.custody_from, request.late_from);
        let said = tokio::task::spawn_blocking(move || answers::said_before(&shared, &feed, from, late_from)).await;
        let Ok(Ok((cosigned, custody))) = said else { return };
        if let Some(note) = cosigned {
            self.outbox.push(Frame::Cosigned(proto::Cosigned { note, ..proto::Cosigned::default() }));
        }
        for note in custody {
            self.outbox.push(Frame::Custody(proto::Custody { note }));
        }
    }

    pub(super) async fn heads(&mut self, heads: proto::Heads) {
        for head in heads.heads {
            if !head.checkpoint.is_empty() {
                self.sign(Signed::Checkpoint(head.checkpoint, head.held)).await;
            }
            for note in head.cosigned {
                self.sign(Signed::PassedOn(note)).await;
            }
        }
        self.sign(Signed::HeadsShown).await;
        self.newer_roster(heads.roster_version);
        if heads.crls.len() > HEADS_LISTS_MAX {
            self.malformed("", "so many revocation lists in one frame");
        } else if !heads.crls.is_empty() {
            self.shared.options.revocations.offer(&self.peer, heads.crls);
        }
    }

    /// The peer holds this roster version: asks for what we lack, once.
    pub(super) fn newer_roster(&mut self, version: u64) {
        if self.shared.peers.holds_roster(&self.peer, version) {
            self.outbox.heads_changed();
        }
        let ours = self.shared.options.rosters.load().newest().version();
        if version > ours && version > self.roster_asked {
            self.roster_asked = version;
            self.outbox.push(Frame::RosterRequest(proto::RosterRequest { after: ours }));
        }
    }
}
