//! Room on the disk, and whose content may take it: known before entries come, so that they need not be refused one by one.
//!
//! In scope: looking, announcing, and deciding about each piece of work. Out of scope: the tiers and the shares (`core::quota`), and how much
//! room a commit needs (the store).

use std::collections::BTreeMap;

use barid_core::bulletin::Urgent;
use barid_core::names::Member;
use barid_core::quota::{Over, Source, Tier, Want};
use tokio::sync::watch;

use super::queue::urgency;
use super::run::{Group, Writer};
use super::{CommitFailure, Committer, Shared, Work, now, owns};
use crate::store::{CommitError, Room};

/// Within so many bytes of where a tier ends it is looked before every commit, and own work is committed apart from that of others: two of the
/// log's segments, which are written ahead.
const NEAR_BYTES: u64 = 128 << 20;

/// What is known of the room on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) room: Room,
    /// Bytes committed since it was looked.
    committed: u64,
}

impl Default for Known {
    fn default() -> Self {
        Self { room: Room::AMPLE, committed: 0 }
    }
}

impl Known {
    /// Whether a tier may end with the next commits.
    fn is_near(&self) -> bool {
        let above = self.room.free_bytes.saturating_sub(self.committed.saturating_mul(2));
        self.room.reserve_bytes > 0 && above < Tier::All.leaves_free(self.room.reserve_bytes).saturating_add(NEAR_BYTES)
    }
}

impl Committer {
    /// What is committed at the free space that there is. Changes by itself.
    #[must_use]
    pub fn tier(&self) -> watch::Receiver<Tier> {
        self.shared.tier.subscribe()
    }

    /// Whether content of `owner`'s feeds may be asked of `peer`: there is room, and both are within their share.
    #[must_use]
    pub fn may_ask(&self, owner: &Member, peer: &Member) -> bool {
        let tier = *self.shared.tier.borrow();
        let source = Source { me: &self.shared.feed.member, owner, bringer: peer };
        self.shared.shares.lock().may_ask_in(tier, source)
    }

    /// Members that have brought more than their share, and whose entries are committed as digests for now.
    #[must_use]
    pub fn over_share(&self) -> BTreeMap<Member, Over> {
        self.shared.shares.lock().over().map(|(member, over)| (member.clone(), over)).collect()
    }

    /// Bytes that one member may bring within a day.
    #[must_use]
    pub fn share_bytes(&self) -> u64 {
        self.shared.shares.lock().limit()
    }

    /// Of each member that has brought content within a day: thousandths of its share.
    #[must_use]
    pub fn share_used(&self) -> BTreeMap<Member, u64> {
        self.shared.shares.lock().used().map(|(member, used)| (member.clone(), used)).collect()
    }
}

impl Shared {
    /// Counts content of `owner`'s feeds that `bringer` has sent; false where it is to be committed as a digest.
    pub(super) fn takes_content(&self, owner: &Member, bringer: &Member, bytes: usize, urgent: Option<Urgent>) -> bool {
        let tier = *self.tier.borrow();
        let source = Source { me: &self.feed.member, owner, bringer };
        self.shares.lock().admit(tier, source, bytes as u64, urgent)
    }

    /// Counts entries that were committed as digests.
    pub(super) fn reduced(&self, owner: &Member, bringer: &Member, entries: u64) {
        if *self.tier.borrow() != Tier::All {
            return;
        }
        let (member, news) = self.shares.lock().reduced(owner, bringer, entries);
        if news {
            tracing::warn!(%member, "it has brought its share of the room on the disk: digests are stored in the place of content");
        }
    }
}

impl Writer {
    /// Looks how much room there is on the disk.
    pub(super) fn look_for_room(&mut self) {
        let found = self.shared.store.room();
        match &found {
            Ok(room) => {
                self.known = Known { room: *room, committed: 0 };
                let above = room.free_bytes.saturating_sub(Tier::All.leaves_free(room.reserve_bytes));
                self.shared.shares.lock().look(above, now().1);
                self.room(room.tier, None);
            }
            Err(full @ (CommitError::DiskFull { .. } | CommitError::ViewBehind(_))) => {
                self.room(Tier::Notes, Some(full.to_string()));
            }
            // The next commit says so to whom it concerns.
            Err(error) => tracing::debug!(%error, "it is not known whether there is room"),
        }
    }

    /// Looks before a commit, where a tier may be about to end.
    pub(super) fn look_where_it_is_near(&mut self) {
        if self.known.is_near() {
            self.look_for_room();
        }
    }

    /// So many bytes were committed.
    pub(super) fn took_room(&mut self, bytes: usize) {
        self.known.committed = self.known.committed.saturating_add(bytes as u64);
    }

    /// Whether own work and that of others are to be committed apart: the one may have room where the other has none.
    pub(super) fn commits_apart(&self) -> bool {
        self.known.is_near()
    }

    /// What there is room for; why there is none for own entries, unless it follows from the free space.
    fn room(&self, tier: Tier, why: Option<String>) {
        let Room { free_bytes, reserve_bytes, .. } = self.known.room;
        let why = why.or_else(|| {
            let full = || CommitError::DiskFull { available_bytes: free_bytes, reserve_bytes };
            (tier < Tier::Own).then(|| full().to_string())
        });
        self.shared.full.send_if_modified(|known| {
            // Alarms show the newest; whoever waits is woken when it begins and ends.
            let changed = known.is_some() != why.is_some();
            *known = why;
            changed
        });
        self.shared.tier.send_if_modified(|known| {
            let changed = *known != tier;
            if changed {
                tracing::info!(?tier, free_bytes, "what there is room for on the disk has changed");
                *known = tier;
            }
            changed
        });
    }

    /// Why work is not tried, for want of room.
    pub(super) fn has_no_room(&self, work: &Work) -> Option<CommitFailure> {
        let me = &self.shared.feed.member;
        let needed = match work {
            Work::Publish(..) => Tier::needed(Want::Publish(urgency(work)), true),
            Work::Append(batch, ..) => Tier::needed(Want::Append, owns(me, &batch.feed)),
            Work::Fill(filling, ..) => Tier::needed(Want::Content, owns(me, &filling.fills.feed)),
            Work::Express(express, ..) => Tier::needed(Want::Content, owns(me, &express.feed)),
            // Answers and the like are tried all the same: a part of the reserve is theirs.
            Work::Keep(..) | Work::Stop(_) => Tier::needed(Want::Notes, true),
        };
        if *self.shared.tier.borrow() >= needed {
            return None;
        }
        let Room { free_bytes, reserve_bytes, .. } = self.known.room;
        let why = self.shared.full.borrow().clone().unwrap_or_else(|| {
            let reserve_bytes = needed.leaves_free(reserve_bytes);
            CommitError::DiskFull { available_bytes: free_bytes, reserve_bytes }.to_string()
        });
        Some(CommitFailure::DiskFull(why))
    }
}

impl Group {
    /// Whether work is of this member, and the group of others, or the other way round.
    pub(super) fn mixes(&self, me: &Member, work: &Work) -> bool {
        let others = self.commit.appends.iter().any(|append| append.feed.member != *me)
            || !self.commit.fills.is_empty()
            || !self.commit.express.is_empty();
        match work {
            Work::Publish(..) => others,
            Work::Append(batch, ..) => !self.own.is_empty() && !owns(me, &batch.feed),
            Work::Fill(..) | Work::Express(..) => !self.own.is_empty(),
            Work::Keep(..) | Work::Stop(_) => false,
        }
    }
}
