//! Acks of one issuer to one bulletin: the first, the newest and the count.
//!
//! In scope: key and value. There is one value for each issuer, so that the Acks of one never crowd
//! out those of another. Key: member and id of the bulletin, feed of the Acks (u32), issuer (u64).
//! Value, after the version: offset and index of the first Ack, offset and index of the newest,
//! count (u64 each).

use barid_core::ids::Member;
use uuid::Uuid;

use super::references::Referrer;
use crate::store::keys::{self, FeedNumber, Fields, Key, Value};
use crate::store::references::IssuerHash;

/// The Acks of one issuer in one feed. Each place is an offset and an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct AckSummary {
    pub(in crate::store) first: (u64, u64),
    pub(in crate::store) newest: (u64, u64),
    pub(in crate::store) count: u64,
}

/// Adds an Ack unless it is already counted: offsets come in ascending order.
pub(in crate::store) fn add(held: Option<AckSummary>, referrer: &Referrer) -> AckSummary {
    let place = (referrer.offset, referrer.index);
    match held {
        None => AckSummary { first: place, newest: place, count: 1 },
        Some(held) if referrer.offset > held.newest.0 => AckSummary { newest: place, count: held.count + 1, ..held },
        Some(held) => held,
    }
}

pub(in crate::store) fn key(member: &Member, id: Uuid, feed: FeedNumber, issuer_hash: IssuerHash) -> Key {
    Key::new(keys::ACK).member(member).id(id).u32(feed).u64(issuer_hash.0)
}

/// Decodes feed and issuer of a key.
pub(in crate::store) fn read_key(key: &[u8]) -> Option<(FeedNumber, IssuerHash)> {
    let mut fields = Fields::of_key(key)?;
    fields.member()?;
    fields.array::<16>()?;
    Some((fields.key_u32()?, IssuerHash(fields.key_u64()?)))
}

pub(in crate::store) fn encode(ack: AckSummary) -> Vec<u8> {
    let AckSummary { first, newest, count } = ack;
    Value::new().u64(first.0).u64(first.1).u64(newest.0).u64(newest.1).u64(count).bytes()
}

pub(in crate::store) fn decode(value: &[u8]) -> Option<AckSummary> {
    let mut fields = Fields::of_value(value)?;
    let mut place = || Some((fields.u64()?, fields.u64()?));
    let (first, newest) = (place()?, place()?);
    Some(AckSummary { first, newest, count: fields.u64()? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ack_summary_has_first_and_newest_and_round_trips() {
        let referrer = |offset| Referrer { offset, index: offset + 100, feed: 7 };
        let ack = [3, 5, 9, 9, 5].iter().fold(None, |held, offset| Some(add(held, &referrer(*offset)))).unwrap();
        assert_eq!(ack, AckSummary { first: (3, 103), newest: (9, 109), count: 3 });
        assert_eq!(decode(&encode(ack)), Some(ack));
        assert_eq!(decode(&encode(ack)[..40]), None);
        let key = key(&"ma".parse().unwrap(), Uuid::from_u128(1), 7, IssuerHash(8));
        assert_eq!(read_key(key.as_ref()), Some((7, IssuerHash(8))));
    }
}
