//! Buckets of urgent entries: which of [`BUCKET_INDEXES`] neighbouring indexes hold an urgent
//! bulletin.
//!
//! In scope: encoding, changing and reading one bucket. After the version: one bit per index,
//! lowest first, for urgent entries; then as many bits for those of them with status Actual.

use barid_core::bulletin::Priority;

use crate::store::keys::{Fields, VALUE_BYTES_MAX, Value};

/// Indexes in one bucket.
pub(in crate::store) const BUCKET_INDEXES: u64 = 4_096;
const BITS_BYTES: usize = 512;
const _: () = assert!(BITS_BYTES as u64 * 8 == BUCKET_INDEXES && 2 * BITS_BYTES < VALUE_BYTES_MAX);

/// One bucket.
#[derive(Clone)]
pub(in crate::store) struct Bucket {
    all: [u8; BITS_BYTES],
    actual: [u8; BITS_BYTES],
}

/// Returns the bucket of an index.
pub(in crate::store) fn bucket_of(index: u64) -> u64 {
    index / BUCKET_INDEXES
}

impl Default for Bucket {
    fn default() -> Self {
        Self { all: [0; BITS_BYTES], actual: [0; BITS_BYTES] }
    }
}

impl Bucket {
    /// Adds an entry; replaces the kind of a displaced out-of-order entry at the same index.
    pub(in crate::store) fn insert(&mut self, index: u64, class: Priority) {
        let (byte, bit) = place(index);
        self.all[byte] |= bit;
        match class {
            Priority::Actual => self.actual[byte] |= bit,
            Priority::Other => self.actual[byte] &= !bit,
        }
    }

    /// Returns the entries of bucket `number`, by index.
    pub(in crate::store) fn entries(&self, number: u64) -> impl Iterator<Item = (u64, Priority)> {
        let first = number.saturating_mul(BUCKET_INDEXES);
        let bytes = (first..).step_by(8).zip(self.all.iter().zip(&self.actual)).filter(|(_, (all, _))| **all != 0);
        bytes.flat_map(|(first, (all, actual))| {
            let bits = (0..8_u64).filter(move |bit| all >> bit & 1 == 1);
            bits.map(move |bit| (first + bit, if actual >> bit & 1 == 1 { Priority::Actual } else { Priority::Other }))
        })
    }

    pub(in crate::store) fn encode(&self) -> Vec<u8> {
        Value::new().raw(&self.all).raw(&self.actual).bytes()
    }

    pub(in crate::store) fn decode(value: &[u8]) -> Option<Self> {
        let mut fields = Fields::of_value(value)?;
        let bucket = Self { all: fields.array()?, actual: fields.array()? };
        fields.rest().is_empty().then_some(bucket)
    }
}

fn place(index: u64) -> (usize, u8) {
    let at = usize::try_from(index % BUCKET_INDEXES).unwrap_or_default();
    (at / 8, 1 << (at % 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_bucket_round_trips() {
        let mut bucket = Bucket::default();
        let held =
            [(8_192, Priority::Actual), (8_193, Priority::Other), (9_000, Priority::Other), (12_287, Priority::Actual)];
        held.iter().for_each(|(index, class)| bucket.insert(*index, *class));
        assert!(held.iter().all(|(index, _)| bucket_of(*index) == 2));
        let value = bucket.encode();
        assert!(value.len() <= VALUE_BYTES_MAX);
        let read = Bucket::decode(&value).expect("a bucket");
        assert_eq!(read.entries(2).collect::<Vec<_>>(), held);
        assert!(Bucket::decode(&value[..value.len() - 1]).is_none());
        assert_eq!(Bucket::default().entries(0).count(), 0);
    }
}
