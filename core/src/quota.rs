//! Decides whose content may use disk space: tiers of free space, and a share for each member.
//!
//! In scope: which entries are committed at a given amount of free space ([`Tier`]), and how much
//! content a member may add per day ([`Shares`]). Pure: free space and time are arguments. Out of
//! scope: measuring the disk, and the further handling of content that is not admitted. Its digest
//! is committed instead, so its feed continues, and the content is backfilled later
//! ([`crate::backfill`]).
//!
//! Content is charged to the owner of its feed and to the member that sent it, which may be a
//! relay. Above the reserve a member may use at most its share of the space that was free before
//! any content was charged, so a flood from one member does not affect the others. Charges decay
//! evenly over [`WINDOW_MS`]. A disk that is large compared to what honest members publish admits
//! everything.

use std::collections::BTreeMap;

use crate::bulletin::Priority;
use crate::ids::Member;

/// Time in which a fully used share recovers.
pub const WINDOW_MS: u64 = 24 * 3_600_000;
/// Default share of a member. Four members flooding at once use all space above the reserve; the
/// reserve is for this node.
pub const SHARE_PERCENT: u8 = 25;
/// Shares that a relay may use for the feeds of other members.
const RELAY_SHARES: u64 = 2;
/// Urgent Actual content may exceed a share by this fraction of it (1/8).
const PRIORITY_PART: u64 = 8;
/// A member is no longer over its quota, and its content is backfilled, once this fraction of the
/// share (1/8) is free again.
const RESUMES_PART: u64 = 8;

/// Tiers of free space, ordered by how much is committed in them.
///
/// # Examples
/// ```
/// use barid_core::quota::{Tier, WriteKind};
///
/// const GIB: u64 = 1 << 30;
/// assert_eq!(Tier::at(3 * GIB, GIB, Tier::All), Tier::All);
/// let tier = Tier::at(GIB, GIB, Tier::All);
/// assert!(Tier::needed(WriteKind::Publish(None), true) <= tier);
/// assert!(Tier::needed(WriteKind::Append, false) > tier);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// At most attestations and other notes.
    Notes,
    /// Additionally own entries that are urgent and Actual.
    Priority,
    /// All own entries.
    Own,
    /// Additionally the entries of other members, as digests.
    Digests,
    /// Everything.
    All,
}

/// Kind of write, as far as disk space is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// An own entry, and its priority class.
    Publish(Option<Priority>),
    /// Entries that extend a feed, at least as digests.
    Append,
    /// Content that is backfilled, or arrives ahead of its feed's order.
    Content,
    /// Attestations, rosters, revocation lists and cursors.
    Notes,
}

/// Origin and destination of content.
#[derive(Clone, Copy, Debug)]
pub struct ContentSource<'a> {
    /// The member that receives it.
    pub me: &'a Member,
    /// The owner of its feed.
    pub owner: &'a Member,
    /// The member over whose link it arrives.
    pub sender_member: &'a Member,
}

impl Tier {
    /// Free space that each tier requires, in eighths of the reserve, highest tier first. Between
    /// one and one and a half times the reserve only own entries are committed.
    const EIGHTHS: [(Self, u64); 4] = [(Self::All, 16), (Self::Digests, 12), (Self::Own, 8), (Self::Priority, 2)];
    /// Free space that attestations, rosters, revocation lists and cursors must leave, in eighths
    /// of the reserve.
    const NOTES_EIGHTHS: u64 = 4;

    /// Returns the lowest tier in which a write is committed. `own` is whether it belongs to this
    /// member's own feeds.
    #[must_use]
    pub fn needed(kind: WriteKind, own: bool) -> Self {
        match kind {
            WriteKind::Publish(Some(Priority::Actual)) => Self::Priority,
            WriteKind::Publish(_) => Self::Own,
            WriteKind::Append | WriteKind::Content if own => Self::Own,
            WriteKind::Append => Self::Digests,
            WriteKind::Content => Self::All,
            WriteKind::Notes => Self::Notes,
        }
    }

    /// Returns the tier at `free_bytes`, given the tier `before`. Rising to a higher tier requires
    /// some additional space; without this hysteresis the tier could change every second.
    #[must_use]
    pub fn at(free_bytes: u64, reserve_bytes: u64, before: Self) -> Self {
        let hysteresis = (reserve_bytes / 8).min(RESUMES_BYTES_MAX);
        let holds = |(tier, _): &&(Self, u64)| {
            let margin = if *tier > before { hysteresis } else { 0 };
            free_bytes >= tier.leaves_free(reserve_bytes).saturating_add(margin)
        };
        Self::EIGHTHS.iter().find(holds).map_or(Self::Notes, |(tier, _)| *tier)
    }

    /// Returns the next lower tier; the lowest returns itself.
    #[must_use]
    pub fn below(self) -> Self {
        match self {
            Self::All => Self::Digests,
            Self::Digests => Self::Own,
            Self::Own => Self::Priority,
            Self::Priority | Self::Notes => Self::Notes,
        }
    }

    /// Returns the free space that a commit of the lowest writes of this tier must leave.
    #[must_use]
    pub fn leaves_free(self, reserve_bytes: u64) -> u64 {
        let eighths =
            Self::EIGHTHS.iter().find(|(tier, _)| *tier == self).map_or(Self::NOTES_EIGHTHS, |(_, part)| *part);
        (reserve_bytes / 8).saturating_mul(eighths).saturating_add(reserve_bytes % 8 * eighths / 8)
    }
}

/// Largest hysteresis when rising to a higher tier, in bytes.
const RESUMES_BYTES_MAX: u64 = 64 << 20;

/// Shares of all members, and their use.
#[derive(Clone, Debug)]
pub struct Shares {
    percent: u8,
    /// Bytes free above the reserve.
    available: u64,
    at_ms: u64,
    members: BTreeMap<Member, Usage>,
}

#[derive(Clone, Debug, Default)]
struct Usage {
    /// Bytes charged as owner of the feed.
    own: u64,
    /// Bytes charged as sender on the link.
    relayed: u64,
    over_quota: Option<OverQuota>,
}

/// Record of a member that is over its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverQuota {
    /// Time at which it exceeded its share, in ms.
    pub since_ms: u64,
    /// Entries committed as digests since then.
    pub entries: u64,
}

impl Shares {
    /// Creates the state with nothing charged. `percent` is the share of one member.
    #[must_use]
    pub fn new(percent: u8) -> Self {
        Self { percent: percent.clamp(1, 100), available: u64::MAX, at_ms: 0, members: BTreeMap::new() }
    }

    /// Records that `available` bytes are free above the reserve now. Decays earlier charges, and
    /// clears the record of members that are no longer over their share.
    pub fn update(&mut self, available: u64, now_ms: u64) {
        self.available = available;
        let passed = now_ms.saturating_sub(self.at_ms);
        self.at_ms = self.at_ms.max(now_ms);
        let whole = self.whole();
        for usage in self.members.values_mut() {
            for (bytes, shares) in [(&mut usage.own, 1), (&mut usage.relayed, RELAY_SHARES)] {
                let recovered =
                    u128::from(share(whole, self.percent, shares)) * u128::from(passed) / u128::from(WINDOW_MS);
                *bytes = bytes.saturating_sub(u64::try_from(recovered).unwrap_or(u64::MAX));
            }
        }
        let whole = self.whole();
        let percent = self.percent;
        self.members.retain(|_, usage| {
            if usage.over_quota.is_some() && usage.resumes(whole, percent) {
                usage.over_quota = None;
            }
            usage.own > 0 || usage.relayed > 0 || usage.over_quota.is_some()
        });
    }

    /// Returns whether content is admitted in this tier, and charges it if so. Own content is
    /// always admitted; that of others only in the highest tier and within the shares of owner and
    /// sender.
    pub fn admit(&mut self, tier: Tier, source: ContentSource<'_>, bytes: u64, priority: Option<Priority>) -> bool {
        let ContentSource { me, owner, sender_member } = source;
        owner == me || tier == Tier::All && self.charge(owner, sender_member, bytes, priority == Some(Priority::Actual))
    }

    /// Returns whether `bytes` of content of `owner`'s feeds, sent by `sender_member`, are within
    /// both shares, and charges them if so. `actual` means urgent and Actual.
    pub fn charge(&mut self, owner: &Member, sender_member: &Member, bytes: u64, actual: bool) -> bool {
        if self.left(owner, sender_member, actual).is_none_or(|left| bytes > left) {
            return false;
        }
        let own = &mut self.members.entry(owner.clone()).or_default().own;
        *own = own.saturating_add(bytes);
        let relayed = &mut self.members.entry(sender_member.clone()).or_default().relayed;
        *relayed = relayed.saturating_add(bytes);
        self.available = self.available.saturating_sub(bytes);
        true
    }

    /// Returns how many more bytes of `owner`'s feeds are admitted from `sender_member` now; `None`
    /// if either is over its share.
    #[must_use]
    pub fn left(&self, owner: &Member, sender_member: &Member, actual: bool) -> Option<u64> {
        let left = |usage: u64, shares: u64| {
            let limit = share(self.whole(), self.percent, shares);
            let limit = if actual { limit.saturating_add(limit / PRIORITY_PART) } else { limit };
            limit.checked_sub(usage)
        };
        let of = |member: &Member| self.members.get(member);
        let own = left(of(owner).map_or(0, |usage| usage.own), 1)?;
        let relayed = left(of(sender_member).map_or(0, |usage| usage.relayed), RELAY_SHARES)?;
        Some(own.min(relayed))
    }

    /// Records that entries were committed as digests because [`Self::charge`] returned false.
    /// Returns the member that is over its share, and whether that is new.
    pub fn reduced(&mut self, owner: &Member, sender_member: &Member, entries: u64) -> (Member, bool) {
        let (whole, percent) = (self.whole(), self.percent);
        let is_over_quota =
            |member: &Member| self.members.get(member).is_some_and(|usage| !usage.resumes(whole, percent));
        // The sender, if only the sender is over its own share; otherwise the owner.
        let member = if is_over_quota(sender_member) && !is_over_quota(owner) { sender_member } else { owner };
        let since_ms = self.at_ms;
        let usage = self.members.entry(member.clone()).or_default();
        let newly_over_quota = usage.over_quota.is_none();
        let over_quota = usage.over_quota.get_or_insert(OverQuota { since_ms, entries: 0 });
        over_quota.entries = over_quota.entries.saturating_add(entries);
        (member.clone(), newly_over_quota)
    }

    /// Returns whether content may be requested in this tier. Content that could not be admitted is
    /// not requested.
    #[must_use]
    pub fn may_request_in(&self, tier: Tier, source: ContentSource<'_>) -> bool {
        let ContentSource { me, owner, sender_member } = source;
        if owner == me { tier >= Tier::Own } else { tier == Tier::All && self.may_request(owner, sender_member) }
    }

    /// Returns whether content may be requested: neither member is over its share.
    #[must_use]
    pub fn may_request(&self, owner: &Member, sender_member: &Member) -> bool {
        let over_quota = |member: &Member| self.members.get(member).is_some_and(|usage| usage.over_quota.is_some());
        !over_quota(owner) && !over_quota(sender_member)
    }

    /// Returns the members that are over their share.
    pub fn over_quota(&self) -> impl Iterator<Item = (&Member, OverQuota)> {
        self.members.iter().filter_map(|(member, usage)| Some((member, usage.over_quota?)))
    }

    /// Returns, for each member with charges, how much of its share is used, in thousandths. The
    /// higher of its use as owner and as sender counts.
    pub fn used(&self) -> impl Iterator<Item = (&Member, u64)> {
        let part = |usage: u64, shares: u64| {
            let limit = u128::from(share(self.whole(), self.percent, shares)).max(1);
            u64::try_from(u128::from(usage) * 1_000 / limit).unwrap_or(u64::MAX)
        };
        self.members
            .iter()
            .map(move |(member, usage)| (member, part(usage.own, 1).max(part(usage.relayed, RELAY_SHARES))))
    }

    /// Returns the share of a member, in bytes, including what it has used already.
    #[must_use]
    pub fn limit(&self) -> u64 {
        share(self.whole(), self.percent, 1)
    }

    /// Returns the free space as it would be without any charges.
    fn whole(&self) -> u64 {
        self.members.values().fold(self.available, |available, usage| available.saturating_add(usage.own))
    }
}

impl Usage {
    fn resumes(&self, whole: u64, percent: u8) -> bool {
        let fits = |usage: u64, shares: u64| {
            let limit = share(whole, percent, shares);
            usage <= limit - limit / RESUMES_PART
        };
        fits(self.own, 1) && fits(self.relayed, RELAY_SHARES)
    }
}

/// Returns the size of `shares` shares of the space, at most all of it.
fn share(whole: u64, percent: u8, shares: u64) -> u64 {
    let percent = u128::from(percent) * u128::from(shares);
    u64::try_from(u128::from(whole) * percent.min(100) / 100).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn member(code: &str) -> Member {
        code.parse().unwrap()
    }

    /// A disk on which only admitted content uses space.
    struct Disk {
        shares: Shares,
        available: u64,
        now_ms: u64,
    }

    impl Disk {
        fn of(available: u64) -> Self {
            let mut disk = Self { shares: Shares::new(SHARE_PERCENT), available, now_ms: 0 };
            disk.advance(0);
            disk
        }

        fn advance(&mut self, ms: u64) {
            self.now_ms += ms;
            self.shares.update(self.available, self.now_ms);
        }

        fn receive(&mut self, owner: &str, sender_member: &str, bytes: u64) -> bool {
            let charged = self.shares.charge(&member(owner), &member(sender_member), bytes, false);
            if charged {
                self.available = self.available.saturating_sub(bytes);
            } else {
                self.shares.reduced(&member(owner), &member(sender_member), 1);
            }
            charged
        }

        /// Sends batches of 1 MiB until one is not admitted, updating the free space every 7
        /// batches. Returns the number admitted.
        fn flood(&mut self, owner: &str, sender_member: &str) -> u64 {
            let mut usage = 0;
            while self.receive(owner, sender_member, MIB) {
                usage += 1;
                if usage % 7 == 0 {
                    self.advance(10);
                }
            }
            usage
        }
    }

    #[test]
    fn tiers_step_down_as_free_space_shrinks_and_own_priority_entries_stop_last() {
        let reserve = 512 * MIB;
        let at = |free: u64, before| Tier::at(free * MIB, reserve, before);
        for (free, tier) in [
            (9_999, Tier::All),
            (1_024, Tier::All),
            (1_023, Tier::Digests),
            (768, Tier::Digests),
            (767, Tier::Own),
            (512, Tier::Own),
            (511, Tier::Priority),
            (128, Tier::Priority),
            (127, Tier::Notes),
            (0, Tier::Notes),
        ] {
            assert_eq!(at(free, Tier::All), tier, "{free} MiB");
        }
        assert_eq!(at(1_024, Tier::Digests), Tier::Digests, "the tier does not flap at its threshold");
        assert_eq!(at(1_088, Tier::Digests), Tier::All);
        assert_eq!(at(1_087, Tier::Notes), Tier::Digests);
        assert_eq!(Tier::Notes.leaves_free(reserve), 256 * MIB, "notes leave room for urgent entries");
        assert_eq!(Tier::at(0, 0, Tier::Notes), Tier::All, "without a reserve there are no tiers");
    }

    #[test]
    fn one_member_exhausting_its_share_leaves_the_others_theirs() {
        let mut disk = Disk::of(1_000 * MIB);
        assert_eq!(disk.flood("tn", "tn"), 250);
        assert_eq!(
            disk.shares
                .over_quota()
                .map(|(member, over_quota)| (member.as_str(), over_quota.entries))
                .collect::<Vec<_>>(),
            [("tn", 1)]
        );
        assert!(
            !disk.shares.may_request(&member("tn"), &member("ly"))
                && !disk.shares.may_request(&member("ly"), &member("tn"))
        );
        assert_eq!(disk.flood("ly", "ly"), 250, "unaffected by the other member");
        assert!(!disk.receive("tn", "dz", MIB), "a relay cannot add more of it either");
        assert!(disk.receive("ma", "dz", MIB));
    }

    #[test]
    fn relay_is_charged_for_relayed_bytes() {
        let mut disk = Disk::of(1_000 * MIB);
        let owners = ["dz", "eg", "ly", "ma", "mr"];
        let usage: u64 = owners.iter().map(|owner| disk.flood(owner, "tn")).sum();
        assert_eq!(usage, 500);
        let over_quota: Vec<&str> = disk.shares.over_quota().map(|(member, _)| member.as_str()).collect();
        assert!(over_quota.contains(&"tn"), "{over_quota:?}");
        assert!(disk.receive("mr", "mr", MIB), "the owner itself is still accepted");
    }

    #[test]
    fn priority_content_has_an_allowance_beyond_the_share() {
        let mut disk = Disk::of(800 * MIB);
        assert_eq!(disk.flood("tn", "tn"), 200);
        let (tn, mut extra_mib) = (member("tn"), 0);
        while disk.shares.charge(&tn, &tn, MIB, true) {
            extra_mib += 1;
        }
        assert_eq!(extra_mib, 25);
    }

    #[test]
    fn share_can_be_used_to_the_last_byte_and_no_further() {
        let mut disk = Disk::of(1_000 * MIB);
        let tn = member("tn");
        assert_eq!(disk.shares.left(&tn, &tn, false), Some(250 * MIB));
        assert!(disk.receive("tn", "tn", 250 * MIB - 1));
        assert!(!disk.shares.charge(&tn, &tn, 2, false));
        assert!(disk.receive("tn", "tn", 1) && !disk.receive("tn", "tn", 1));
        assert_eq!(disk.shares.left(&tn, &tn, false), Some(0));
        let left = disk.shares.left(&tn, &tn, true).unwrap();
        assert!(disk.shares.charge(&tn, &tn, left, true));
        assert_eq!(disk.shares.left(&tn, &tn, false), None);
    }

    #[test]
    fn own_content_is_always_admitted_and_foreign_content_in_the_highest_tier_only() {
        let mut shares = Shares::new(SHARE_PERCENT);
        shares.update(100, 0);
        let (ly, tn) = (member("ly"), member("tn"));
        let own = ContentSource { me: &ly, owner: &ly, sender_member: &tn };
        assert!(shares.admit(Tier::Own, own, 1_000, None) && shares.may_request_in(Tier::Own, own));
        assert!(!shares.may_request_in(Tier::Priority, own));
        let others = ContentSource { owner: &tn, ..own };
        assert!(!shares.admit(Tier::Digests, others, 1, None) && !shares.may_request_in(Tier::Digests, others));
        assert!(shares.may_request_in(Tier::All, others));
        assert!(
            !shares.admit(Tier::All, others, 26, None) && shares.admit(Tier::All, others, 26, Some(Priority::Actual))
        );
        assert_eq!(Tier::needed(WriteKind::Publish(Some(Priority::Other)), true), Tier::Own);
        assert_eq!(Tier::needed(WriteKind::Publish(Some(Priority::Actual)), true), Tier::Priority);
        assert_eq!([true, false].map(|own| Tier::needed(WriteKind::Append, own)), [Tier::Own, Tier::Digests]);
        assert_eq!([true, false].map(|own| Tier::needed(WriteKind::Content, own)), [Tier::Own, Tier::All]);
    }

    #[test]
    fn share_recovers_within_a_day_and_with_more_free_space() {
        let mut disk = Disk::of(1_000 * MIB);
        disk.flood("tn", "tn");
        disk.advance(WINDOW_MS / 16);
        assert_eq!(disk.shares.over_quota().count(), 1);
        disk.advance(WINDOW_MS / 8);
        assert_eq!(disk.shares.over_quota().count(), 0);
        disk.advance(2 * WINDOW_MS);
        assert!(disk.shares.members.is_empty());
        disk.flood("tn", "tn");
        disk.available += 1_000 * MIB;
        disk.advance(1_000);
        assert!(disk.shares.may_request(&member("tn"), &member("tn")), "space was freed");
    }

    #[test]
    fn six_hour_backlogs_of_all_members_fit_a_large_disk() {
        let mut disk = Disk::of(400 << 30);
        let members: Vec<String> = ('a'..='t').map(|c| format!("x-m{c}")).collect();
        // All members publish for six hours at a total of 100 MB/s.
        for _ in 0..(6 * 3_600 * 10) / members.len() as u64 {
            assert!(members.iter().all(|code| disk.receive(code, code, MIB)));
            disk.advance(10 * members.len() as u64);
        }
    }

    proptest! {
        #[test]
        fn no_member_exceeds_its_share(
            available in 1_u64..2_000,
            steps in proptest::collection::vec((0_usize..4, 0_usize..4, 0_u64..40, 0_u64..5_000_000), 1..200),
        ) {
            let mut disk = Disk::of(available * MIB);
            let codes = ["dz", "ly", "ma", "tn"];
            let mut all = [0_u64; 4];
            for (owner, sender_member, mib, advance) in steps {
                let before = disk.shares.whole();
                // If the disk itself is full, the tiers decide, not the shares.
                if mib * MIB <= disk.available && disk.receive(codes[owner], codes[sender_member], mib * MIB) {
                    all[owner] += mib * MIB;
                    // Admitted content makes no member's share smaller.
                    prop_assert_eq!(disk.shares.whole(), before);
                }
                disk.advance(advance);
            }
            let days = disk.now_ms / WINDOW_MS + 1;
            prop_assert!(all.iter().all(|bytes| *bytes <= (available * MIB / 4 + MIB) * (days + 1)));
        }
    }
}
