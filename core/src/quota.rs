//! Whose content may take room on the disk: tiers of the reserve, and a share for each member.
//!
//! In scope: which entries are committed at so much free space ([`Tier`]), and how much content one member may bring in a day ([`Shares`]).
//! Pure: free space and time come in. Out of scope: looking at the disk, and what becomes of content that is not taken: its digest is
//! committed in its place, so that its feed goes on, and the content is backfilled ([`crate::gaps`]).
//!
//! Content counts against the member whose feed it is of, and against the one over whose link it came, which may be a relay. Above
//! the reserve a member takes at most its share of the room that there was before anything was taken, so that nobody else notices a flood.
//! What was taken is forgotten evenly over [`WINDOW_MS`]. A disk that is large beside what honest members publish refuses nothing.

use std::collections::BTreeMap;

use crate::bulletin::Urgent;
use crate::names::Member;

/// Time in which a whole share comes back.
pub const WINDOW_MS: u64 = 24 * 3_600_000;
/// The share that a member has, unless it is configured: four that flood at once leave nothing above the reserve, and the reserve is ours.
pub const SHARE_PERCENT: u8 = 25;
/// A relay that brings the feeds of others may bring so many shares.
const RELAY_SHARES: u64 = 2;
/// Of a share, so great a part beyond it is for what is urgent and Actual.
const URGENT_PART: u64 = 8;
/// Content is backfilled, and the alarm ends, once so great a part of the share is free again.
const RESUMES_PART: u64 = 8;

/// What is committed at so much free space. Orders by how much that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Answers and other notes at most.
    Notes,
    /// Beside them own entries that are urgent and Actual.
    Urgent,
    /// All own entries.
    Own,
    /// Beside them the entries of others, as digests.
    Digests,
    /// Everything.
    All,
}

/// What is to be committed, as far as room is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// An own entry, and how urgent it is.
    Publish(Option<Urgent>),
    /// Entries that continue a feed, as digests at least.
    Append,
    /// Content that comes later, or ahead of its feed's order.
    Content,
    /// Answers and the like.
    Notes,
}

/// Content on its way to a member.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The member to which it comes.
    pub me: &'a Member,
    /// The member whose feed it is of.
    pub owner: &'a Member,
    /// The member over whose link it comes.
    pub bringer: &'a Member,
}

impl Tier {
    /// Each tier with how much must be free for it, in eighths of the reserve, the lowest last: above the reserve there is as much again in which
    /// nothing but own entries is committed.
    const EIGHTHS: [(Self, u64); 4] = [(Self::All, 16), (Self::Digests, 12), (Self::Own, 8), (Self::Urgent, 2)];
    /// The part that answers, rosters, revocation lists and cursors leave free, in eighths.
    const NOTES_EIGHTHS: u64 = 4;

    /// The lowest tier at which this is committed. `own`: it is of this member's own feeds.
    #[must_use]
    pub fn needed(want: Want, own: bool) -> Self {
        match want {
            Want::Publish(Some(Urgent::Actual)) => Self::Urgent,
            Want::Publish(_) => Self::Own,
            Want::Append | Want::Content if own => Self::Own,
            Want::Append => Self::Digests,
            Want::Content => Self::All,
            Want::Notes => Self::Notes,
        }
    }

    /// The tier at `free_bytes`, where it was `before`: a better one begins a little later than it ended, or it would come and go each second.
    #[must_use]
    pub fn at(free_bytes: u64, reserve_bytes: u64, before: Self) -> Self {
        let late = (reserve_bytes / 8).min(RESUMES_BYTES_MAX);
        let holds = |(tier, _): &&(Self, u64)| {
            let more = if *tier > before { late } else { 0 };
            free_bytes >= tier.leaves_free(reserve_bytes).saturating_add(more)
        };
        Self::EIGHTHS.iter().find(holds).map_or(Self::Notes, |(tier, _)| *tier)
    }

    /// The next lower tier; the lowest has none.
    #[must_use]
    pub fn below(self) -> Self {
        match self {
            Self::All => Self::Digests,
            Self::Digests => Self::Own,
            Self::Own => Self::Urgent,
            Self::Urgent | Self::Notes => Self::Notes,
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
    room: u64,
    at_ms: u64,
    members: BTreeMap<Member, Taken>,
}

#[derive(Clone, Debug, Default)]
struct Taken {
    /// Of its feeds.
    own: u64,
    /// Over its link.
    brought: u64,
    over: Option<Over>,
}

/// A member that is over its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    /// Since when, in ms.
    pub since_ms: u64,
    /// Entries that were committed as digests since.
    pub entries: u64,
}

impl Shares {
    /// Nobody has brought anything. `percent`: the share of one member.
    #[must_use]
    pub fn new(percent: u8) -> Self {
        Self { percent: percent.clamp(1, 100), room: u64::MAX, at_ms: 0, members: BTreeMap::new() }
    }

    /// So many bytes are free above the reserve at this time. Forgets what is past, and ends what is over.
    pub fn look(&mut self, room: u64, now_ms: u64) {
        self.room = room;
        let passed = now_ms.saturating_sub(self.at_ms);
        self.at_ms = self.at_ms.max(now_ms);
        let whole = self.whole();
        for taken in self.members.values_mut() {
            for (bytes, shares) in [(&mut taken.own, 1), (&mut taken.brought, RELAY_SHARES)] {
                let back = u128::from(share(whole, self.percent, shares)) * u128::from(passed) / u128::from(WINDOW_MS);
                *bytes = bytes.saturating_sub(u64::try_from(back).unwrap_or(u64::MAX));
            }
        }
        let whole = self.whole();
        let percent = self.percent;
        self.members.retain(|_, taken| {
            if taken.over.is_some() && taken.resumes(whole, percent) {
                taken.over = None;
            }
            taken.own > 0 || taken.brought > 0 || taken.over.is_some()
        });
    }

    /// Whether content is taken in this tier: own content always, that of others while there is room for everything and for both
    /// members' shares. It is counted then.
    pub fn admit(&mut self, tier: Tier, source: Source<'_>, bytes: u64, urgent: Option<Urgent>) -> bool {
        let Source { me, owner, bringer } = source;
        owner == me || tier == Tier::All && self.take(owner, bringer, bytes, urgent == Some(Urgent::Actual))
    }

    /// Whether content of so many bytes of `owner`'s feeds, which `bringer` sends, is taken; it is counted then. `urgent`: it is urgent and
    /// Actual.
    pub fn take(&mut self, owner: &Member, bringer: &Member, bytes: u64, urgent: bool) -> bool {
        if self.left(owner, bringer, urgent).is_none_or(|left| bytes > left) {
            return false;
        }
        let own = &mut self.members.entry(owner.clone()).or_default().own;
        *own = own.saturating_add(bytes);
        let brought = &mut self.members.entry(bringer.clone()).or_default().brought;
        *brought = brought.saturating_add(bytes);
        self.room = self.room.saturating_sub(bytes);
        true
    }

    /// How many bytes of `owner`'s feeds are taken of `bringer` now; `None` if either is beyond its share.
    #[must_use]
    pub fn left(&self, owner: &Member, bringer: &Member, urgent: bool) -> Option<u64> {
        let left = |taken: u64, shares: u64| {
            let limit = share(self.whole(), self.percent, shares);
            let limit = if urgent { limit.saturating_add(limit / URGENT_PART) } else { limit };
            limit.checked_sub(taken)
        };
        let of = |member: &Member| self.members.get(member);
        let own = left(of(owner).map_or(0, |taken| taken.own), 1)?;
        let brought = left(of(bringer).map_or(0, |taken| taken.brought), RELAY_SHARES)?;
        Some(own.min(brought))
    }

    /// So many entries were committed as digests, for [`Self::take`] said no. The member that is over its share; true if that is news.
    pub fn reduced(&mut self, owner: &Member, bringer: &Member, entries: u64) -> (Member, bool) {
        let (whole, percent) = (self.whole(), self.percent);
        let is_over = |member: &Member| self.members.get(member).is_some_and(|taken| !taken.resumes(whole, percent));
        // A relay that is over its own share, unless the feed's owner is.
        let member = if is_over(bringer) && !is_over(owner) { bringer } else { owner };
        let since_ms = self.at_ms;
        let taken = self.members.entry(member.clone()).or_default();
        let news = taken.over.is_none();
        let over = taken.over.get_or_insert(Over { since_ms, entries: 0 });
        over.entries = over.entries.saturating_add(entries);
        (member.clone(), news)
    }

    /// Whether content may be asked for in this tier: what could not be taken is not asked for.
    #[must_use]
    pub fn may_ask_in(&self, tier: Tier, source: Source<'_>) -> bool {
        let Source { me, owner, bringer } = source;
        if owner == me { tier >= Tier::Own } else { tier == Tier::All && self.may_ask(owner, bringer) }
    }

    /// Whether neither of them is over its share, so that content may be asked for.
    #[must_use]
    pub fn may_ask(&self, owner: &Member, bringer: &Member) -> bool {
        let over = |member: &Member| self.members.get(member).is_some_and(|taken| taken.over.is_some());
        !over(owner) && !over(bringer)
    }

    /// Members that are over their share.
    pub fn over(&self) -> impl Iterator<Item = (&Member, Over)> {
        self.members.iter().filter_map(|(member, taken)| Some((member, taken.over?)))
    }

    /// Of each member that has brought anything: how much of its share is used, in thousandths, as owner or as relay, whichever is more.
    pub fn used(&self) -> impl Iterator<Item = (&Member, u64)> {
        let part = |taken: u64, shares: u64| {
            let limit = u128::from(share(self.whole(), self.percent, shares)).max(1);
            u64::try_from(u128::from(taken) * 1_000 / limit).unwrap_or(u64::MAX)
        };
        self.members
            .iter()
            .map(move |(member, taken)| (member, part(taken.own, 1).max(part(taken.brought, RELAY_SHARES))))
    }

    /// Bytes that a member may bring of its feeds, those included that it has brought.
    #[must_use]
    pub fn limit(&self) -> u64 {
        share(self.whole(), self.percent, 1)
    }

    /// The room as it was before anything was taken.
    fn whole(&self) -> u64 {
        self.members.values().fold(self.room, |room, taken| room.saturating_add(taken.own))
    }
}

impl Taken {
    fn resumes(&self, whole: u64, percent: u8) -> bool {
        let fits = |taken: u64, shares: u64| {
            let limit = share(whole, percent, shares);
            taken <= limit - limit / RESUMES_PART
        };
        fits(self.own, 1) && fits(self.brought, RELAY_SHARES)
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
        room: u64,
        now_ms: u64,
    }

    impl Disk {
        fn of(room: u64) -> Self {
            let mut disk = Self { shares: Shares::new(SHARE_PERCENT), room, now_ms: 0 };
            disk.passes(0);
            disk
        }

        fn passes(&mut self, ms: u64) {
            self.now_ms += ms;
            self.shares.look(self.room, self.now_ms);
        }

        fn brings(&mut self, owner: &str, bringer: &str, bytes: u64) -> bool {
            let took = self.shares.take(&member(owner), &member(bringer), bytes, false);
            if took {
                self.room = self.room.saturating_sub(bytes);
            } else {
                self.shares.reduced(&member(owner), &member(bringer), 1);
            }
            took
        }

        /// Brings batches of a MiB until one is refused, the disk looked at now and then; how many were taken.
        fn floods(&mut self, owner: &str, bringer: &str) -> u64 {
            let mut taken = 0;
            while self.brings(owner, bringer, MIB) {
                taken += 1;
                if taken % 7 == 0 {
                    self.passes(10);
                }
            }
            taken
        }
    }

    #[test]
    fn tiers_follow_each_other_as_the_disk_fills_and_own_urgent_entries_are_the_last() {
        let reserve = 512 * MIB;
        let at = |free: u64, before| Tier::at(free * MIB, reserve, before);
        for (free, tier) in [
            (9_999, Tier::All),
            (1_024, Tier::All),
            (1_023, Tier::Digests),
            (768, Tier::Digests),
            (767, Tier::Own),
            (512, Tier::Own),
            (511, Tier::Urgent),
            (128, Tier::Urgent),
            (127, Tier::Notes),
            (0, Tier::Notes),
        ] {
            assert_eq!(at(free, Tier::All), tier, "{free} MiB");
        }
        assert_eq!(at(1_024, Tier::Digests), Tier::Digests, "it does not come and go at the edge");
        assert_eq!(at(1_088, Tier::Digests), Tier::All);
        assert_eq!(at(1_087, Tier::Notes), Tier::Digests);
        assert_eq!(Tier::Notes.leaves_free(reserve), 256 * MIB, "notes leave room for what is urgent");
        assert_eq!(Tier::at(0, 0, Tier::Notes), Tier::All, "without a reserve there are no tiers");
    }

    #[test]
    fn one_member_takes_its_share_and_the_others_have_theirs() {
        let mut disk = Disk::of(1_000 * MIB);
        assert_eq!(disk.floods("tn", "tn"), 250);
        assert_eq!(
            disk.shares.over().map(|(member, over)| (member.as_str(), over.entries)).collect::<Vec<_>>(),
            [("tn", 1)]
        );
        assert!(
            !disk.shares.may_ask(&member("tn"), &member("ly")) && !disk.shares.may_ask(&member("ly"), &member("tn"))
        );
        assert_eq!(disk.floods("ly", "ly"), 250, "as if nobody had been before");
        assert!(!disk.brings("tn", "dz", MIB), "nor does a relay bring more of it");
        assert!(disk.brings("ma", "dz", MIB));
    }

    #[test]
    fn a_relay_is_charged_for_what_it_brings() {
        let mut disk = Disk::of(1_000 * MIB);
        let owners = ["dz", "eg", "ly", "ma", "mr"];
        let taken: u64 = owners.iter().map(|owner| disk.floods(owner, "tn")).sum();
        assert_eq!(taken, 500);
        let over: Vec<&str> = disk.shares.over().map(|(member, _)| member.as_str()).collect();
        assert!(over.contains(&"tn"), "{over:?}");
        assert!(disk.brings("mr", "mr", MIB), "the owner itself still may");
    }

    #[test]
    fn what_is_urgent_has_a_part_of_its_own_beyond_the_share() {
        let mut disk = Disk::of(800 * MIB);
        assert_eq!(disk.floods("tn", "tn"), 200);
        let (tn, mut urgent) = (member("tn"), 0);
        while disk.shares.take(&tn, &tn, MIB, true) {
            urgent += 1;
        }
        assert_eq!(urgent, 25);
    }

    #[test]
    fn a_share_is_taken_to_the_last_byte_and_not_beyond() {
        let mut disk = Disk::of(1_000 * MIB);
        let tn = member("tn");
        assert_eq!(disk.shares.left(&tn, &tn, false), Some(250 * MIB));
        assert!(disk.brings("tn", "tn", 250 * MIB - 1));
        assert!(!disk.shares.take(&tn, &tn, 2, false));
        assert!(disk.brings("tn", "tn", 1) && !disk.brings("tn", "tn", 1));
        assert_eq!(disk.shares.left(&tn, &tn, false), Some(0));
        let urgent = disk.shares.left(&tn, &tn, true).unwrap();
        assert!(disk.shares.take(&tn, &tn, urgent, true));
        assert_eq!(disk.shares.left(&tn, &tn, false), None);
    }

    #[test]
    fn own_content_is_always_taken_and_that_of_others_in_the_highest_tier_only() {
        let mut shares = Shares::new(SHARE_PERCENT);
        shares.look(100, 0);
        let (ly, tn) = (member("ly"), member("tn"));
        let own = Source { me: &ly, owner: &ly, bringer: &tn };
        assert!(shares.admit(Tier::Own, own, 1_000, None) && shares.may_ask_in(Tier::Own, own));
        assert!(!shares.may_ask_in(Tier::Urgent, own));
        let others = Source { owner: &tn, ..own };
        assert!(!shares.admit(Tier::Digests, others, 1, None) && !shares.may_ask_in(Tier::Digests, others));
        assert!(shares.may_ask_in(Tier::All, others));
        assert!(
            !shares.admit(Tier::All, others, 26, None) && shares.admit(Tier::All, others, 26, Some(Urgent::Actual))
        );
        assert_eq!(Tier::needed(Want::Publish(Some(Urgent::Other)), true), Tier::Own);
        assert_eq!(Tier::needed(Want::Publish(Some(Urgent::Actual)), true), Tier::Urgent);
        assert_eq!([true, false].map(|own| Tier::needed(Want::Append, own)), [Tier::Own, Tier::Digests]);
        assert_eq!([true, false].map(|own| Tier::needed(Want::Content, own)), [Tier::Own, Tier::All]);
    }

    #[test]
    fn a_share_comes_back_within_a_day_and_with_more_room() {
        let mut disk = Disk::of(1_000 * MIB);
        disk.floods("tn", "tn");
        disk.passes(WINDOW_MS / 16);
        assert_eq!(disk.shares.over().count(), 1);
        disk.passes(WINDOW_MS / 8);
        assert_eq!(disk.shares.over().count(), 0);
        disk.passes(2 * WINDOW_MS);
        assert!(disk.shares.members.is_empty());
        disk.floods("tn", "tn");
        disk.room += 1_000 * MIB;
        disk.passes(1_000);
        assert!(disk.shares.may_ask(&member("tn"), &member("tn")), "somebody has made room");
    }

    #[test]
    fn backlogs_of_six_hours_of_all_members_are_taken_whole_on_a_large_disk() {
        let mut disk = Disk::of(400 << 30);
        let members: Vec<String> = ('a'..='t').map(|c| format!("x-m{c}")).collect();
        // At 100 MB/s, which all of them share, for six hours of publishing at a tenth of it.
        for _ in 0..(6 * 3_600 * 10) / members.len() as u64 {
            assert!(members.iter().all(|code| disk.brings(code, code, MIB)));
            disk.passes(10 * members.len() as u64);
        }
    }

    proptest! {
        #[test]
        fn nobody_is_beyond_its_share_whatever_comes(
            room in 1_u64..2_000,
            steps in proptest::collection::vec((0_usize..4, 0_usize..4, 0_u64..40, 0_u64..5_000_000), 1..200),
        ) {
            let mut disk = Disk::of(room * MIB);
            let codes = ["dz", "ly", "ma", "tn"];
            let mut all = [0_u64; 4];
            for (owner, bringer, mib, passes) in steps {
                let before = disk.shares.whole();
                // Where the disk itself has no room the tiers decide, not the shares.
                if mib * MIB <= disk.room && disk.brings(codes[owner], codes[bringer], mib * MIB) {
                    all[owner] += mib * MIB;
                    // Nothing taken makes anybody's share smaller.
                    prop_assert_eq!(disk.shares.whole(), before);
                }
                disk.passes(passes);
            }
            let days = disk.now_ms / WINDOW_MS + 1;
            prop_assert!(all.iter().all(|bytes| *bytes <= (room * MIB / 4 + MIB) * (days + 1)));
        }
    }
}
