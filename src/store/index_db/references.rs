//! Blocks of references: from a bulletin to the entries that refer to it in one way.
//!
//! In scope: encoding and decoding one block. After the version, for each entry, by offset: offset
//! (u64), index (u64), feed (u32).

use crate::store::keys::{FeedNumber, Fields, VALUE_BYTES_MAX, Value};

const SLOT_BYTES: usize = 20;
/// Entries in one block.
pub(in crate::store) const REFERENCES_MAX: usize = (VALUE_BYTES_MAX - 64) / SLOT_BYTES;

/// An entry that refers to a bulletin. Orders by offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::store) struct Referrer {
    pub(in crate::store) offset: u64,
    pub(in crate::store) index: u64,
    pub(in crate::store) feed: FeedNumber,
}

/// Encodes a block.
pub(in crate::store) fn encode(referrers: &[Referrer]) -> Vec<u8> {
    let mut value = Value::new();
    for Referrer { offset, index, feed } in referrers {
        value = value.u64(*offset).u64(*index).u32(*feed);
    }
    value.bytes()
}

/// Decodes a block.
pub(in crate::store) fn decode(block: &[u8]) -> Option<Vec<Referrer>> {
    let mut fields = Fields::of_value(block)?;
    let mut referrers = Vec::with_capacity(fields.rest().len() / SLOT_BYTES);
    while !fields.rest().is_empty() {
        referrers.push(Referrer { offset: fields.u64()?, index: fields.u64()?, feed: fields.u32()? });
    }
    Some(referrers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_block_round_trips_within_size_limit() {
        let referrer = |n: u64| Referrer { offset: u64::MAX - n, index: n, feed: 7 };
        let all: Vec<_> = (0..REFERENCES_MAX as u64).map(referrer).collect();
        let block = encode(&all);
        assert!(block.len() <= VALUE_BYTES_MAX);
        assert_eq!(decode(&block), Some(all));
        assert_eq!(decode(&block[..block.len() - 1]), None);
        assert_eq!(decode(&[]), None);
    }
}
