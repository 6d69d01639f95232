//! Whose content may take room on the disk: tiers of the reserve, and a share for each member.
//!
//! In scope: which entries are committed at so much free space ([`Tier`]), and how much content one member may bring in a day ([`Shares`]).
//! Pure: free space and time come in. Out of scope: looking at the disk, and what becomes of content that is not taken: its digest is
//! committed in its place, so that its feed goes on, and the content is backfilled ([`crate::backfill`]).
//!
//! Content counts against the member whose feed it is of, and against the one over whose link it came, which may be a relay. Above
//! the reserve a member takes at most its share of the room that there was before anything was taken, so that nobody else notices a flood.
//! What was taken is forgotten evenly over [`WINDOW_MS`]. A disk that is large beside what honest members publish refuses nothing.

use std::collections::BTreeMap;

use crate::bulletin::Priority;
use crate::ids::Member;

/// Time in which a whole share comes back.
pub const WINDOW_MS: u64 = 24 * 3_600_000;
/// The share that a member has, unless it is configured: four that flood at once leave nothing above the reserve, and the reserve is ours.
pub const SHARE_PERCENT: u8 = 25;
/// A relay that brings the feeds of others may bring so many shares.
const RELAY_SHARES: u64 = 2;
/// Of a share, so great a part beyond it is for what is urgent and Actual.
const PRIORITY_PART: u64 = 8;
/// Content is backfilled, and the alarm ends, once so great a part of the share is free again.
const RESUMES_PART: u64 = 8;

/// What is committed at so much free space. Orders by how much that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Answers and other notes at most.
    Notes,
    /// Beside them own entries that are urgent and Actual.
    Priority,
    /// All own entries.
    Own,
    /// Beside them the entries of others, as digests.
    Digests,
    /// Everything.
    All,
}

/// What is to be committed, as far as room is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// An own entry, and how urgent it is.
    Publish(Option<Priority>),
    /// Entries that continue a feed, as digests at least.
    Append,
    /// Content that comes later, or ahead of its feed's order.
    Content,
    /// Answers and the like.
    Notes,
}

/// Content on its way to a member.
#[derive(Clone, Copy, Debug)]
pub struct ContentSource<'a> {
    /// The member to which it comes.
    pub me: &'a Member,
    /// The member whose feed it is of.
    pub owner: &'a Member,
    /// The member over whose link it comes.
    pub sender_member: &'a Member,
}

impl Tier {
    /// Each tier with how much must be free for it, in eighths of the reserve, the lowest last: above the reserve there is as much again in which
    /// nothing but own entries is committed.
    const EIGHTHS: [(Self, u64); 4] = [(Self::All, 16), (Self::Digests, 12), (Self::Own, 8), (Self::Priority, 2)];
    /// The part that answers, rosters, revocation lists and cursors leave free, in eighths.
    const NOTES_EIGHTHS: u64 = 4;

    /// The lowest tier at which this is committed. `own`: it is of this member's own feeds.
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

    /// The tier at `free_bytes`, where it was `before`: a better one begins a little later than it ended, or it would come and go each second.
    #[must_use]
    pub fn at(free_bytes: u64, reserve_bytes: u64, before: Self) -> Self {
        let hysteresis = (reserve_bytes / 8).min(RESUMES_BYTES_MAX);
        let holds = |(tier, _): &&(Self, u64)| {
            let margin = if *tier > before { hysteresis } else { 0 };
            free_bytes >= tier.leaves_free(reserve_bytes).saturating_add(margin)
        };
        Self::EIGHTHS.iter().find(holds).map_or(Self::Notes, |(tier, _)| *tier)
    }

    /// The next lower tier; the lowest has none.
    #[must_use]
    pub fn below(self) -> Self {
        match self {
            Self::All => Self::Digests,
            Self::Digests => Self::Own,
            Self::Own => Self::Priority,
            Self::Priority | Self::Notes => Self::Notes,
        }
    }

    /// What a commit of the lowest entries of this tier leaves free.
    #[must_use]
    pub fn leaves_free(self, reserve_bytes: u64) -> u64 {
        let eighths =
            Self::EIGHTHS.iter().find(|(tier, _)| *tier == self).map_or(Self::NOTES_EIGHTHS, |(_, part)| *part);
        (reserve_bytes / 8).saturating_mul(eighths).saturating_add(reserve_bytes % 8 * eighths / 8)
    }
}

/// At most so much more must be free before a better tier begins.
const RESUMES_BYTES_MAX: u64 = 64 << 20;

/// What members have brought, and may bring.
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
    /// Of its feeds.
    own: u64,
    /// Over its link.
    relayed: u64,
    over_quota: Option<OverQuota>,
}

/// A member that is over its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverQuota {
    /// Since when, in ms.
    pub since_ms: u64,
    /// Entries that were committed as digests since.
    pub entries: u64,
}

impl Shares {
    /// Nobody has brought anything. `percent`: the share of one member.
    #[must_use]
    pub fn new(percent: u8) -> Self {
        Self { percent: percent.clamp(1, 100), available: u64::MAX, at_ms: 0, members: BTreeMap::new() }
    }

    /// So many bytes are free above the reserve at this time. Forgets what is past, and ends what is over.
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

    /// Whether content is taken in this tier: own content always, that of others while there is room for everything and for both
    /// members' shares. It is counted then.
    pub fn admit(&mut self, tier: Tier, source: ContentSource<'_>, bytes: u64, urgent: Option<Priority>) -> bool {
        let ContentSource { me, owner, sender_member } = source;
        owner == me || tier == Tier::All && self.charge(owner, sender_member, bytes, urgent == Some(Priority::Actual))
    }

    /// Whether content of so many bytes of `owner`'s feeds, which `sender_member` sends, is taken; it is counted then. `urgent`: it is urgent and
    /// Actual.
    pub fn charge(&mut self, owner: &Member, sender_member: &Member, bytes: u64, urgent: bool) -> bool {
        if self.left(owner, sender_member, urgent).is_none_or(|left| bytes > left) {
            return false;
        }
        let own = &mut self.members.entry(owner.clone()).or_default().own;
        *own = own.saturating_add(bytes);
        let relayed = &mut self.members.entry(sender_member.clone()).or_default().relayed;
        *relayed = relayed.saturating_add(bytes);
        self.available = self.available.saturating_sub(bytes);
        true
    }

    /// How many bytes of `owner`'s feeds are taken of `sender_member` now; `None` if either is beyond its share.
    #[must_use]
    pub fn left(&self, owner: &Member, sender_member: &Member, urgent: bool) -> Option<u64> {
        let left = |usage: u64, shares: u64| {
            let limit = share(self.whole(), self.percent, shares);
            let limit = if urgent { limit.saturating_add(limit / PRIORITY_PART) } else { limit };
            limit.checked_sub(usage)
        };
        let of = |member: &Member| self.members.get(member);
        let own = left(of(owner).map_or(0, |usage| usage.own), 1)?;
        let relayed = left(of(sender_member).map_or(0, |usage| usage.relayed), RELAY_SHARES)?;
        Some(own.min(relayed))
    }

    /// So many entries were committed as digests, for [`Self::charge`] said no. The member that is over its share; true if that is news.
    pub fn reduced(&mut self, owner: &Member, sender_member: &Member, entries: u64) -> (Member, bool) {
        let (whole, percent) = (self.whole(), self.percent);
        let is_over = |member: &Member| self.members.get(member).is_some_and(|usage| !usage.resumes(whole, percent));
        // A relay that is over its own share, unless the feed's owner is.
        let member = if is_over(sender_member) && !is_over(owner) { sender_member } else { owner };
        let since_ms = self.at_ms;
        let usage = self.members.entry(member.clone()).or_default();
        let newly_over = usage.over_quota.is_none();
        let over_quota = usage.over_quota.get_or_insert(OverQuota { since_ms, entries: 0 });
        over_quota.entries = over_quota.entries.saturating_add(entries);
        (member.clone(), newly_over)
    }

    /// Whether content may be asked for in this tier: what could not be taken is not asked for.
    #[must_use]
    pub fn may_request_in(&self, tier: Tier, source: ContentSource<'_>) -> bool {
        let ContentSource { me, owner, sender_member } = source;
        if owner == me { tier >= Tier::Own } else { tier == Tier::All && self.may_request(owner, sender_member) }
    }

    /// Whether neither of them is over its share, so that content may be asked for.
    #[must_use]
    pub fn may_request(&self, owner: &Member, sender_member: &Member) -> bool {
        let over_quota = |member: &Member| self.members.get(member).is_some_and(|usage| usage.over_quota.is_some());
        !over_quota(owner) && !over_quota(sender_member)
    }

    /// Members that are over their share.
    pub fn over_quota(&self) -> impl Iterator<Item = (&Member, OverQuota)> {
        self.members.iter().filter_map(|(member, usage)| Some((member, usage.over_quota?)))
    }

    /// Of each member that has brought anything: how much of its share is used, in thousandths, as owner or as relay, whichever is more.
    pub fn used(&self) -> impl Iterator<Item = (&Member, u64)> {
        let part = |usage: u64, shares: u64| {
            let limit = u128::from(share(self.whole(), self.percent, shares)).max(1);
            u64::try_from(u128::from(usage) * 1_000 / limit).unwrap_or(u64::MAX)
        };
        self.members
            .iter()
            .map(move |(member, usage)| (member, part(usage.own, 1).max(part(usage.relayed, RELAY_SHARES))))
    }

    /// Bytes that a member may bring of its feeds, those included that it has brought.
    #[must_use]
    pub fn limit(&self) -> u64 {
        share(self.whole(), self.percent, 1)
    }

    /// The room as it was before anything was taken.
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

/// So many shares of the room, at most all of it.
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

    /// A disk on which only what is taken here takes room.
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

        /// Brings batches of a MiB until one is refused, the disk looked at now and then; how many were taken.
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
    fn tiers_step_down_as_the_disk_fills_and_own_priority_entries_stop_last() {
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
        let (tn, mut urgent) = (member("tn"), 0);
        while disk.shares.charge(&tn, &tn, MIB, true) {
            urgent += 1;
        }
        assert_eq!(urgent, 25);
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
        let urgent = disk.shares.left(&tn, &tn, true).unwrap();
        assert!(disk.shares.charge(&tn, &tn, urgent, true));
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
        // At 100 MB/s, which all of them share, for six hours of publishing at a tenth of it.
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
                // Where the disk itself has no room the tiers decide, not the shares.
                if mib * MIB <= disk.available && disk.receive(codes[owner], codes[sender_member], mib * MIB) {
                    all[owner] += mib * MIB;
                    // Nothing taken makes anybody's share smaller.
                    prop_assert_eq!(disk.shares.whole(), before);
                }
                disk.advance(advance);
            }
            let days = disk.now_ms / WINDOW_MS + 1;
            prop_assert!(all.iter().all(|bytes| *bytes <= (available * MIB / 4 + MIB) * (days + 1)));
        }
    }
}
