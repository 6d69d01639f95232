//! Buckets of backfilled entries: from an index to the place of its content.
//!
//! In scope: encoding, changing and reading one bucket of [`BUCKET_INDEXES`] neighbouring indexes.
//! After the version, for each backfilled or out-of-order entry, ascending: place in the bucket
//! (u32), record (u64), backfill in it (u32), entry of that backfill (u32).

use std::collections::BTreeMap;

use crate::store::keys::{BackfillRef, Fields, VALUE_BYTES_MAX, Value};

/// Indexes in one bucket.
pub(in crate::store) const BUCKET_INDEXES: u64 = 512;
const SLOT_BYTES: u64 = 20;
const _: () = assert!((BUCKET_INDEXES * SLOT_BYTES) < VALUE_BYTES_MAX as u64, "a full bucket fits a value");

/// Returns the bucket of an index.
pub(in crate::store) fn bucket_of(index: u64) -> u64 {
    index / BUCKET_INDEXES
}

/// Encodes a bucket.
pub(in crate::store) fn encode(bucket: &BTreeMap<u64, BackfillRef>) -> Vec<u8> {
    let slot = |value: Value, (index, backfill): (&u64, &BackfillRef)| {
        let place = u32::try_from(index % BUCKET_INDEXES).unwrap_or(u32::MAX);
        value.u32(place).note(backfill.at).u32(backfill.slot)
    };
    bucket.iter().fold(Value::new(), slot).bytes()
}

/// Decodes bucket number `bucket`, by index.
pub(in crate::store) fn decode(bucket: u64, value: &[u8]) -> Option<BTreeMap<u64, BackfillRef>> {
    let mut fields = Fields::of_value(value)?;
    let mut found = BTreeMap::new();
    while !fields.rest().is_empty() {
        let index = bucket.checked_mul(BUCKET_INDEXES)?.checked_add(u64::from(fields.u32()?))?;
        found.insert(index, BackfillRef { at: fields.note()?, slot: fields.u32()? });
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::keys::NoteRef;
    use crate::store::log::Position;

    #[test]
    fn full_bucket_round_trips() {
        let backfill = |n: u32| BackfillRef {
            at: NoteRef { position: Position { segment: n, byte_offset: 8 * n }, place: 1 },
            slot: n,
        };
        let bucket: BTreeMap<u64, BackfillRef> =
            (0..BUCKET_INDEXES).zip(0..).map(|(place, n)| (7 * BUCKET_INDEXES + place, backfill(n))).collect();
        let value = encode(&bucket);
        assert!(value.len() <= VALUE_BYTES_MAX);
        assert_eq!(decode(7, &value), Some(bucket));
        assert_eq!(decode(7, &value[..30]), None);
    }
}
