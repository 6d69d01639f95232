//! Blocks of ids: from an id to its entry, for one feed and one bucket of ids.
//!
//! In scope: encoding and decoding one block. After the version: feed (u32), epoch (u32), base
//! index (u64), base offset (u64), then for each id, ascending: id (16), index (u32) and offset
//! (u32) relative to the bases. Overflow ids have a key of their own with the place of the entry.
//! Out of scope: reading sled.
//!
//! Members choose the times in their ids. Many ids with nearly the same time (an imported register,
//! or a malicious member) fill a bucket. Further ids of a full bucket are stored one per key, so
//! that a look-up reads few blocks whatever the ids are.

use std::num::NonZeroUsize;

use barid_core::ids::Member;
use lru::LruCache;
use uuid::Uuid;

use crate::store::keys::{self, FeedNumber, Fields, Key, VALUE_BYTES_MAX, Value};
use crate::store::recent_ids::EntryRef;

const SLOT_BYTES: usize = 24;
const SLOTS_MAX: usize = (VALUE_BYTES_MAX - 64) / SLOT_BYTES;

/// Blocks after which a bucket is full. Publishing at full speed fills fewer blocks with the ids of
/// 64 ms.
pub(in crate::store) const BLOCKS_MAX: usize = 16;
/// Buckets whose blocks are counted: the most recently written ones. A bucket that is dropped from
/// this cache, or after a restart, may get as many blocks again.
const COUNTED_MAX: NonZeroUsize = NonZeroUsize::new(4_096).expect("more than none");

/// Block counts of the most recently written buckets; never more than there are blocks. After a
/// failed write the index database is rebuilt, and the counts with it.
pub(super) struct BlockCounts(LruCache<(Member, u64), usize>);

impl BlockCounts {
    pub(super) fn new() -> Self {
        Self(LruCache::new(COUNTED_MAX))
    }

    /// Counts one more block of a bucket; returns false if the bucket is full.
    fn try_add(&mut self, member: &Member, bucket: u64) -> bool {
        let count = self.0.get_or_insert_mut((member.clone(), bucket), || 0);
        let has_capacity = *count < BLOCKS_MAX;
        *count += usize::from(has_capacity);
        has_capacity
    }
}

/// The writes for the ids of one feed.
#[derive(Default)]
pub(super) struct Writes {
    /// Keys and blocks.
    pub(super) blocks: Vec<(Vec<u8>, Vec<u8>)>,
    /// Ids that get a key of their own.
    pub(super) overflow: Vec<(Uuid, EntryRef)>,
}

/// Groups the ids of one feed into blocks.
pub(super) fn writes(member: &Member, mut ids: Vec<(Uuid, EntryRef)>, counts: &mut BlockCounts) -> Writes {
    ids.sort_unstable();
    let near = |(a, first): &(Uuid, EntryRef), (b, place): &(Uuid, EntryRef)| {
        let above = |base: u64, number: u64| number.abs_diff(base) < u64::from(u32::MAX) / 2;
        keys::bucket_of(*a) == keys::bucket_of(*b)
            && above(first.index, place.index)
            && above(first.offset, place.offset)
    };
    let mut writes = Writes::default();
    for group in ids.chunk_by(near).flat_map(|group| group.chunks(SLOTS_MAX)) {
        let Some((id, first)) = group.first() else { continue };
        let bucket = keys::bucket_of(*id);
        if counts.try_add(member, bucket) {
            let key = Key::new(keys::ID).member(member).bucket(bucket).u64(first.offset);
            writes.blocks.push((key.bytes(), encode(first, group)));
        } else {
            writes.overflow.extend_from_slice(group);
        }
    }
    writes
}

/// Returns the key of an overflow id.
pub(super) fn overflow_key(member: &Member, id: Uuid) -> Vec<u8> {
    Key::new(keys::ID_OVERFLOW).member(member).id(id).bytes()
}

/// Encodes the value of an overflow id.
pub(super) fn encode_overflow(place: &EntryRef) -> Vec<u8> {
    Value::new().u32(place.feed).u32(place.epoch).u64(place.index).u64(place.offset).bytes()
}

/// Decodes the value of an overflow id.
pub(super) fn decode_overflow(value: &[u8]) -> Option<EntryRef> {
    let mut fields = Fields::of_value(value)?;
    let (feed, epoch) = (fields.u32()?, fields.u32()?);
    Some(EntryRef { epoch, index: fields.u64()?, feed, offset: fields.u64()? })
}

fn encode(first: &EntryRef, group: &[(Uuid, EntryRef)]) -> Vec<u8> {
    let lowest = |number: fn(&EntryRef) -> u64| group.iter().map(|(_, place)| number(place)).min().unwrap_or_default();
    let (index, offset) = (lowest(|place| place.index), lowest(|place| place.offset));
    let mut value = Value::new().u32(first.feed).u32(first.epoch).u64(index).u64(offset);
    for (id, place) in group {
        let above = |number: u64, base: u64| u32::try_from(number - base).unwrap_or(u32::MAX);
        value = value.raw(id.as_bytes()).u32(above(place.index, index)).u32(above(place.offset, offset));
    }
    value.bytes()
}

/// Returns the lowest entry with an id in a block. The inner `None`: the id is not in it; the
/// outer: it is not a block.
pub(in crate::store) fn find(block: &[u8], id: Uuid) -> Option<Option<EntryRef>> {
    let (base, slots) = slots(block)?;
    let start = slots.partition_point(|slot| slot[..16] < id.as_bytes()[..]);
    let same = slots[start..].iter().take_while(|slot| slot[..16] == id.as_bytes()[..]);
    Some(same.map(|slot| place(&base, slot)).min())
}

/// Decodes all ids of a block.
pub(in crate::store) fn decode(block: &[u8]) -> Option<Vec<(Uuid, EntryRef)>> {
    let (base, slots) = slots(block)?;
    let id = |slot: &[u8; SLOT_BYTES]| Uuid::from_bytes(std::array::from_fn(|place| slot[place]));
    Some(slots.iter().map(|slot| (id(slot), place(&base, slot))).collect())
}

struct Base {
    feed: FeedNumber,
    epoch: u32,
    index: u64,
    offset: u64,
}

fn slots(block: &[u8]) -> Option<(Base, &[[u8; SLOT_BYTES]])> {
    let mut fields = Fields::of_value(block)?;
    let base = Base { feed: fields.u32()?, epoch: fields.u32()?, index: fields.u64()?, offset: fields.u64()? };
    match fields.rest().as_chunks() {
        (slots, []) => Some((base, slots)),
        _ => None,
    }
}

fn place(base: &Base, slot: &[u8; SLOT_BYTES]) -> EntryRef {
    let number = |at: usize| u64::from(u32::from_le_bytes(std::array::from_fn(|byte| slot[at + byte])));
    EntryRef { epoch: base.epoch, index: base.index + number(16), feed: base.feed, offset: base.offset + number(20) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn id_resolves_to_lowest_entry() {
        let member: Member = "ma".parse().unwrap();
        let place = |number: u64| EntryRef { epoch: 2, index: 1_000 + number, feed: 7, offset: 5_000 + number };
        // Times 20 ms apart, and every tenth id twice.
        let id = |number: u64| Uuid::from_u128(((u128::from(number / 10 * 10 + number % 10 % 9) * 20) << 80) | 1);
        let all: Vec<_> = (0..3_000).map(|number| (id(number), place(number))).collect();
        let blocks = |all: Vec<_>| writes(&member, all, &mut BlockCounts::new()).blocks;
        let found_in =
            |blocks: &[(Vec<u8>, Vec<u8>)], id| blocks.iter().filter_map(|(_, block)| find(block, id).unwrap()).min();
        let same: Vec<_> = (0..3_000).map(|number| (Uuid::from_u128(1), place(number))).collect();
        assert_eq!(found_in(&blocks(same), Uuid::from_u128(1)), Some(place(0)));
        let blocks = blocks(all.clone());
        assert!(blocks.len() > 100 && blocks.iter().all(|(_, block)| block.len() <= VALUE_BYTES_MAX));
        for (id, _) in &all {
            let lowest = all.iter().filter(|(other, _)| other == id).map(|(_, place)| *place).min();
            assert_eq!(found_in(&blocks, *id), lowest);
        }
        assert_eq!(blocks.iter().map(|(_, block)| decode(block).unwrap().len()).sum::<usize>(), all.len());
        assert!(decode(&[1, 2, 3]).is_none());
    }

    #[test]
    fn ids_of_full_bucket_overflow() {
        let (ma, tn): (Member, Member) = ("ma".parse().unwrap(), "tn".parse().unwrap());
        let place = |number: u64| EntryRef { epoch: 1, index: number, feed: 0, offset: number };
        let id = |number: u64| (Uuid::from_u128(u128::from(number)), place(number));
        let mut counts = BlockCounts::new();
        for number in 0..BLOCKS_MAX as u64 {
            assert!(writes(&ma, vec![id(number)], &mut counts).overflow.is_empty());
        }
        let beyond = writes(&ma, vec![id(99), id(98)], &mut counts);
        assert!(beyond.blocks.is_empty());
        assert_eq!(beyond.overflow, [id(98), id(99)]);
        // Another member's bucket and another bucket of this member are not full.
        let later = (Uuid::from_u128(1 << 100), place(1));
        for (member, id) in [(&tn, id(1)), (&ma, later)] {
            assert!(writes(member, vec![id], &mut counts).overflow.is_empty());
        }
        assert_eq!(decode_overflow(&encode_overflow(&place(7))), Some(place(7)));
        assert_eq!(decode_overflow(&[keys::VALUE_VERSION, 1, 2]), None);
    }
}
