//! Checks the free disk space and decides which work may use it. Peers and callers learn the result
//! before they send entries, so that entries need not be rejected one by one.
//!
//! In scope: checking, announcing, and deciding for each work item. Out of scope: the tiers and the
//! shares (`core::quota`), and how much space a commit needs (`store`).

use std::collections::BTreeMap;

use barid_core::bulletin::Priority;
use barid_core::ids::Member;
use barid_core::quota::{ContentSource, OverQuota, Tier, WriteKind};
use tokio::sync::watch;

use super::queue::priority_of;
use super::writer::{CommitBatch, Writer};
use super::{CommitFailure, Committer, CommitterShared, Work, now, owns};
use crate::store::{Capacity, CommitError};

/// Margin above the limit of a tier. Within it the space is checked before every commit, and own
/// work is committed apart from replicated work. The size is two log segments, which are
/// preallocated.
const TIER_MARGIN_BYTES: u64 = 128 << 20;

/// Free disk space at the last check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskSpace {
    pub(super) capacity: Capacity,
    /// Bytes committed since the check.
    committed: u64,
}

impl Default for DiskSpace {
    fn default() -> Self {
        Self { capacity: Capacity::UNBOUNDED, committed: 0 }
    }
}

impl DiskSpace {
    /// Whether the next commits may reach the limit of a tier.
    fn is_near_tier_limit(&self) -> bool {
        let above = self.capacity.free_bytes.saturating_sub(self.committed.saturating_mul(2));
        self.capacity.reserve_bytes > 0
            && above < Tier::All.leaves_free(self.capacity.reserve_bytes).saturating_add(TIER_MARGIN_BYTES)
    }
}

impl Committer {
    /// Watches what the node commits at the current free space.
    #[must_use]
    pub fn tier(&self) -> watch::Receiver<Tier> {
        self.shared.tier.subscribe()
    }

    /// Whether content of `owner`'s feeds may be requested from `peer`: there is space, and both
    /// are within their share.
    #[must_use]
    pub fn may_backfill(&self, owner: &Member, peer: &Member) -> bool {
        let tier = *self.shared.tier.borrow();
        let source = ContentSource { me: &self.shared.feed.member, owner, sender_member: peer };
        self.shared.shares.lock().may_request_in(tier, source)
    }

    /// Returns the members that are over their share. Their entries are committed as digests for
    /// now.
    #[must_use]
    pub fn over_share(&self) -> BTreeMap<Member, OverQuota> {
        self.shared.shares.lock().over_quota().map(|(member, over_quota)| (member.clone(), over_quota)).collect()
    }

    /// Returns the bytes that one member may send in a day.
    #[must_use]
    pub fn share_bytes(&self) -> u64 {
        self.shared.shares.lock().limit()
    }

    /// Returns how much of its share each member has used in the last day, in thousandths.
    #[must_use]
    pub fn share_used(&self) -> BTreeMap<Member, u64> {
        self.shared.shares.lock().used().map(|(member, used)| (member.clone(), used)).collect()
    }
}

impl CommitterShared {
    /// Charges content of `owner`'s feeds that `sender_member` has sent. Returns false if it must
    /// be committed as a digest.
    pub(super) fn admits_content(
        &self,
        owner: &Member,
        sender_member: &Member,
        bytes: usize,
        priority: Option<Priority>,
    ) -> bool {
        let tier = *self.tier.borrow();
        let source = ContentSource { me: &self.feed.member, owner, sender_member };
        self.shares.lock().admit(tier, source, bytes as u64, priority)
    }

    /// Counts entries that were committed as digests.
    pub(super) fn reduced(&self, owner: &Member, sender_member: &Member, entries: u64) {
        if *self.tier.borrow() != Tier::All {
            return;
        }
        let (member, newly_over_quota) = self.shares.lock().reduced(owner, sender_member, entries);
        if newly_over_quota {
            tracing::warn!(
                %member,
                "the member has used its share of the disk space: its content is stored as digests only"
            );
        }
    }
}

impl Writer {
    /// Checks the free disk space.
    pub(super) fn check_disk_space(&mut self) {
        let found = self.shared.store.check_capacity();
        match &found {
            Ok(capacity) => {
                self.disk_space = DiskSpace { capacity: *capacity, committed: 0 };
                let above = capacity.free_bytes.saturating_sub(Tier::All.leaves_free(capacity.reserve_bytes));
                self.shared.shares.lock().update(above, now().1);
                self.set_tier(capacity.tier, None);
            }
            Err(disk_full @ (CommitError::DiskFull { .. } | CommitError::IndexBehind(_))) => {
                self.set_tier(Tier::Notes, Some(disk_full.to_string()));
            }
            // The next commit reports the error to its callers.
            Err(error) => tracing::debug!(%error, "the free disk space cannot be read"),
        }
    }

    /// Checks the free disk space before a commit that may reach the limit of a tier.
    pub(super) fn check_disk_space_near_limit(&mut self) {
        if self.disk_space.is_near_tier_limit() {
            self.check_disk_space();
        }
    }

    /// Counts bytes that were committed.
    pub(super) fn record_space_used(&mut self, bytes: usize) {
        self.disk_space.committed = self.disk_space.committed.saturating_add(bytes as u64);
    }

    /// Whether own and replicated work must be committed apart, because one may have space where
    /// the other has none.
    pub(super) fn commits_own_separately(&self) -> bool {
        self.disk_space.is_near_tier_limit()
    }

    /// Sets the tier, and the reason why own entries do not fit; without `why`, the reason follows
    /// from the free space.
    fn set_tier(&self, tier: Tier, why: Option<String>) {
        let Capacity { free_bytes, reserve_bytes, .. } = self.disk_space.capacity;
        let why = why.or_else(|| {
            let disk_full = || CommitError::DiskFull { available_bytes: free_bytes, reserve_bytes };
            (tier < Tier::Own).then(|| disk_full().to_string())
        });
        self.shared.disk_full.send_if_modified(|known| {
            // Alarms read the newest text; watchers are woken only when the condition begins or
            // ends.
            let changed = known.is_some() != why.is_some();
            *known = why;
            changed
        });
        self.shared.tier.send_if_modified(|known| {
            let changed = *known != tier;
            if changed {
                tracing::info!(?tier, free_bytes, "the tier of free disk space has changed");
                *known = tier;
            }
            changed
        });
    }

    /// Returns why work is rejected for lack of space, or `None` if it fits.
    pub(super) fn check_space_for(&self, work: &Work) -> Option<CommitFailure> {
        let me = &self.shared.feed.member;
        let needed = match work {
            Work::Publish(..) => Tier::needed(WriteKind::Publish(priority_of(work)), true),
            Work::Append(batch, ..) => Tier::needed(WriteKind::Append, owns(me, &batch.feed)),
            Work::Backfill(backfill_work, ..) => {
                Tier::needed(WriteKind::Content, owns(me, &backfill_work.backfills.feed))
            }
            Work::Priority(priority, ..) => Tier::needed(WriteKind::Content, owns(me, &priority.feed)),
            // Notes and other records may use a part of the reserve.
            Work::Records(..) | Work::Stop(_) => Tier::needed(WriteKind::Notes, true),
        };
        if *self.shared.tier.borrow() >= needed {
            return None;
        }
        let Capacity { free_bytes, reserve_bytes, .. } = self.disk_space.capacity;
        let why = self.shared.disk_full.borrow().clone().unwrap_or_else(|| {
            let reserve_bytes = needed.leaves_free(reserve_bytes);
            CommitError::DiskFull { available_bytes: free_bytes, reserve_bytes }.to_string()
        });
        Some(CommitFailure::DiskFull(why))
    }
}

impl CommitBatch {
    /// Whether the work is this member's and the batch holds replicated work, or the reverse.
    pub(super) fn mixes_own_and_replicated(&self, me: &Member, work: &Work) -> bool {
        let others = self.commit.appends.iter().any(|append| append.feed.member != *me)
            || !self.commit.backfills.is_empty()
            || !self.commit.priority.is_empty();
        match work {
            Work::Publish(..) => others,
            Work::Append(batch, ..) => !self.own.is_empty() && !owns(me, &batch.feed),
            Work::Backfill(..) | Work::Priority(..) => !self.own.is_empty(),
            Work::Records(..) | Work::Stop(_) => false,
        }
    }
}
