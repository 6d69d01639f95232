//! Blocks of ids: from an id to its entry, for one feed and one bucket of ids.
//!
//! In scope: encoding and decoding one block. After the version: feed (u32), epoch (u32), base index (u64), base arrival (u64), then for
//! every id, ascending: id (16), index (u32) and arrival (u32) above the bases.

use barid_core::names::Member;
use uuid::Uuid;

use crate::store::keys::{self, FeedNumber, Fields, Key, VALUE_BYTES_MAX, Value};
use crate::store::recent_ids::Place;

const SLOT_BYTES: usize = 24;
const SLOTS_MAX: usize = (VALUE_BYTES_MAX - 64) / SLOT_BYTES;

/// Keys and blocks for ids of one feed.
pub(in crate::store) fn blocks(member: &Member, mut ids: Vec<(Uuid, Place)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    ids.sort_unstable();
    let near = |(a, first): &(Uuid, Place), (b, place): &(Uuid, Place)| {
        let above = |base: u64, number: u64| number.abs_diff(base) < u64::from(u32::MAX) / 2;
        keys::bucket_of(*a) == keys::bucket_of(*b)
            && above(first.index, place.index)
            && above(first.arrival, place.arrival)
    };
    let groups = ids.chunk_by(near).flat_map(|group| group.chunks(SLOTS_MAX));
    groups.filter_map(|group| Some((key(member, group)?, encode(group)?))).collect()
}

fn key(member: &Member, group: &[(Uuid, Place)]) -> Option<Vec<u8>> {
    let (id, place) = group.first()?;
    Some(Key::new(keys::ID).member(member).bucket(keys::bucket_of(*id)).u64(place.arrival).bytes())
}

fn encode(group: &[(Uuid, Place)]) -> Option<Vec<u8>> {
    let (_, first) = group.first()?;
    let index = group.iter().map(|(_, place)| place.index).min()?;
    let arrival = group.iter().map(|(_, place)| place.arrival).min()?;
    let mut value = Value::new().u32(first.feed).u32(first.epoch).u64(index).u64(arrival);
    for (id, place) in group {
        let above = |number: u64, base: u64| u32::try_from(number - base).unwrap_or(u32::MAX);
        value = value.raw(id.as_bytes()).u32(above(place.index, index)).u32(above(place.arrival, arrival));
    }
    Some(value.bytes())
}

/// The lowest place of an id in a block; `None` in the inner: not there; in the outer: not a block.
pub(in crate::store) fn find(block: &[u8], id: Uuid) -> Option<Option<Place>> {
    let (base, slots) = slots(block)?;
    let start = slots.partition_point(|slot| slot[..16] < id.as_bytes()[..]);
    let same = slots[start..].iter().take_while(|slot| slot[..16] == id.as_bytes()[..]);
    Some(same.map(|slot| place(&base, slot)).min())
}

/// All ids of a block.
pub(in crate::store) fn decode(block: &[u8]) -> Option<Vec<(Uuid, Place)>> {
    let (base, slots) = slots(block)?;
    let id = |slot: &[u8; SLOT_BYTES]| Uuid::from_bytes(std::array::from_fn(|place| slot[place]));
    Some(slots.iter().map(|slot| (id(slot), place(&base, slot))).collect())
}

struct Base {
    feed: FeedNumber,
    epoch: u32,
    index: u64,
    arrival: u64,
}

fn slots(block: &[u8]) -> Option<(Base, &[[u8; SLOT_BYTES]])> {
    let mut fields = Fields::of_value(block)?;
    let base = Base { feed: fields.u32()?, epoch: fields.u32()?, index: fields.u64()?, arrival: fields.u64()? };
    match fields.rest().as_chunks() {
        (slots, []) => Some((base, slots)),
        _ => None,
    }
}

fn place(base: &Base, slot: &[u8; SLOT_BYTES]) -> Place {
    let number = |at: usize| u64::from(u32::from_le_bytes(std::array::from_fn(|byte| slot[at + byte])));
    Place { epoch: base.epoch, index: base.index + number(16), feed: base.feed, arrival: base.arrival + number(20) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_id_is_found_at_its_lowest_place() {
        let member: Member = "ma".parse().unwrap();
        let place = |number: u64| Place { epoch: 2, index: 1_000 + number, feed: 7, arrival: 5_000 + number };
        // Times 20 ms apart, and every tenth id twice.
        let id = |number: u64| Uuid::from_u128(((u128::from(number / 10 * 10 + number % 10 % 9) * 20) << 80) | 1);
        let all: Vec<_> = (0..3_000).map(|number| (id(number), place(number))).collect();
        let blocks = blocks(&member, all.clone());
        assert!(blocks.len() > 100 && blocks.iter().all(|(_, block)| block.len() <= VALUE_BYTES_MAX));
        for (id, _) in &all {
            let lowest = all.iter().filter(|(other, _)| other == id).map(|(_, place)| *place).min();
            let found = blocks.iter().filter_map(|(_, block)| find(block, *id).unwrap()).min();
            assert_eq!(found, lowest);
        }
        assert_eq!(blocks.iter().map(|(_, block)| decode(block).unwrap().len()).sum::<usize>(), all.len());
        let same: Vec<_> = (0..3_000).map(|number| (Uuid::from_u128(1), place(number))).collect();
        assert_eq!(
            super::blocks(&member, same).iter().filter_map(|(_, block)| find(block, Uuid::from_u128(1)).unwrap()).min(),
            Some(place(0))
        );
        assert!(decode(&[1, 2, 3]).is_none());
    }
}
