//! Drafts, as clients send them. A draft is rejected field by field, or published as a bulletin
//! that every reader accepts.

use barid_core::bulletin::{BulletinId, DraftDefaults, Header, encode, kinds, prepare, validate};
use barid_core::envelope;
use barid_core::proto;
use prost::Message as _;

use crate::fixture;

pub fn check(data: &[u8]) {
    published(data);
}

/// Returns whether the draft is published.
fn published(data: &[u8]) -> bool {
    let Ok(draft) = proto::Draft::decode(data) else { return false };
    let defaults = DraftDefaults {
        member: fixture::member("ma"),
        issuer: "border-police".to_owned(),
        id: BulletinId::new(fixture::NOW_MS, &[7; 10]),
        sent_at_unix_ms: fixture::NOW_MS,
        roster_version: 2,
    };
    let valid = validate(&draft, &defaults);
    let bulletin = match prepare(&draft, &defaults, [9; 16]) {
        Ok(bulletin) => bulletin,
        Err(invalid) => {
            assert!(!invalid.0.is_empty(), "a rejection names a field");
            return false;
        }
    };
    assert!(valid.is_ok());
    assert_eq!(envelope::digest(&bulletin.envelope), bulletin.digest);
    let header = envelope::header_of(&bulletin.envelope).unwrap();
    assert_eq!(header, bulletin.proto_header);
    assert_eq!(Header::try_from(&header).as_ref(), Ok(&bulletin.header));
    assert!(envelope::body_of(&bulletin.envelope).is_ok());
    // Published again under its id, it is the same bulletin, byte for byte.
    let defaults = DraftDefaults { id: bulletin.header.id, ..defaults };
    assert_eq!(encode(&draft, &defaults, [9; 16]).0, bulletin.envelope);
    true
}

pub fn seeds() -> Vec<Vec<u8>> {
    let seeds: Vec<_> = kinds::REGISTRY.iter().map(|kind| kind.sample().unwrap().encode_to_vec()).collect();
    assert!(seeds.iter().any(|seed| published(seed)), "every sample is rejected");
    seeds
}
