//! The largest ids of each member, in memory.
//!
//! In scope: looking up new ids, and ids not yet applied to the index database. Ids are UUIDv7, so
//! a new one is nearly always larger than all but the newest held ids, and its absence is known
//! without asking the index database. Only held ids are compared; no clock is used. Ids out of
//! order merely cost a look-up in the index database.

use std::collections::{BTreeMap, HashMap};

use barid_core::ids::Member;
use uuid::Uuid;

use super::keys::FeedNumber;

/// Minimum of ids cached per member: enough for the disorder of concurrent publishers. More are
/// cached only while the index database lacks them.
const IDS_PER_MEMBER: usize = 8_192;

/// The place of the entry with an id. Orders by (epoch, index): the lowest is the bulletin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryRef {
    pub(super) epoch: u32,
    pub(super) index: u64,
    pub(super) feed: FeedNumber,
    pub(super) offset: u64,
}

/// What memory knows about an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The complete answer.
    Exactly(Option<EntryRef>),
    /// The index database may have a lower entry.
    AtMost(Option<EntryRef>),
}

/// The largest ids of each member.
#[derive(Default)]
pub(super) struct RecentIds {
    members: HashMap<Member, Ids>,
}

#[derive(Default)]
struct Ids {
    places: BTreeMap<Uuid, EntryRef>,
    /// Every held id above this is in `places`.
    floor: Uuid,
}

impl RecentIds {
    /// Records that the index database has ids of `member` up to `floor` that are not cached.
    pub(super) fn set_floor(&mut self, member: &Member, floor: Uuid) {
        self.members.entry(member.clone()).or_default().floor = floor;
    }

    /// Adds ids of one member.
    pub(super) fn extend(&mut self, member: &Member, ids: impl Iterator<Item = (Uuid, EntryRef)>) {
        let held = self.members.entry(member.clone()).or_default();
        for (id, place) in ids {
            held.places.entry(id).and_modify(|lowest| *lowest = place.min(*lowest)).or_insert(place);
        }
    }

    /// Looks up an id.
    pub(super) fn find(&self, member: &Member, id: Uuid) -> Known {
        match self.members.get(member) {
            None => Known::Exactly(None),
            Some(ids) if id > ids.floor => Known::Exactly(ids.places.get(&id).copied()),
            Some(ids) => Known::AtMost(ids.places.get(&id).copied()),
        }
    }

    /// Drops the smallest ids of `member` beyond the bound; the index database has every id with an
    /// offset below `end_offset`.
    pub(super) fn applied(&mut self, member: &Member, end_offset: u64) {
        let Some(ids) = self.members.get_mut(member) else { return };
        while ids.places.len() > IDS_PER_MEMBER
            && let Some(smallest) = ids.places.first_entry()
            && smallest.get().offset < end_offset
        {
            ids.floor = ids.floor.max(*smallest.key());
            smallest.remove();
        }
    }
}

/// Ids that are loaded when a store is opened.
pub(super) const IDS_LOADED_MAX: usize = IDS_PER_MEMBER;

#[cfg(test)]
mod tests {
    use super::*;

    fn place(offset: u64) -> EntryRef {
        EntryRef { epoch: 1, index: offset, feed: 0, offset }
    }

    #[test]
    fn only_ids_at_or_below_floor_need_index_db() {
        let member: Member = "ma".parse().expect("a member");
        let mut recent = RecentIds::default();
        let count = IDS_PER_MEMBER as u64 + 10;
        recent.extend(&member, (1..=count).map(|n| (Uuid::from_u128(u128::from(n)), place(n))));
        assert_eq!(recent.find(&member, Uuid::from_u128(1)), Known::Exactly(Some(place(1))));
        recent.applied(&member, 6);
        assert_eq!(recent.find(&member, Uuid::from_u128(5)), Known::AtMost(None));
        assert_eq!(
            recent.find(&member, Uuid::from_u128(6)),
            Known::Exactly(Some(place(6))),
            "the index database lacks it"
        );
        recent.applied(&member, count);
        assert_eq!(recent.find(&member, Uuid::from_u128(10)), Known::AtMost(None));
        assert_eq!(recent.find(&member, Uuid::from_u128(11)), Known::Exactly(Some(place(11))));
        // One id is far in the future: look-ups of the others stay cheap.
        recent.extend(&member, std::iter::once((Uuid::max(), place(count + 1))));
        recent.applied(&member, count + 2);
        assert_eq!(recent.find(&member, Uuid::from_u128(u128::from(count) + 1)), Known::Exactly(None));
        // A duplicate whose first entry only the index database has.
        recent.extend(&member, std::iter::once((Uuid::from_u128(3), place(count + 2))));
        assert_eq!(recent.find(&member, Uuid::from_u128(3)), Known::AtMost(Some(place(count + 2))));
    }
}
