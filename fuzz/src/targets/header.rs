//! Headers and audiences. No header, whatever it contains, gives access to a reader outside its
//! audience.

use barid_core::bulletin::audience::{agencies_may_read, audience, may_read};
use barid_core::bulletin::{Header, Reference, Topic, TopicFilter};
use barid_core::envelope;
use barid_core::follow::delivery;
use barid_core::ids::Member;
use barid_core::proto;
use barid_core::serve::may_disclose;
use prost::Message as _;

use super::{chain, golden};

const READERS: [&str; 6] = ["ma", "ly", "tn", "ne", "x-observer", "dz"];

pub fn check(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        topics(text);
    }
    let Ok(header) = proto::Header::decode(data) else { return };
    let again = proto::Header::decode(header.encode_to_vec().as_slice());
    assert_eq!(again.as_ref(), Ok(&header));
    topics(&header.topic);
    let (chain, owner) = (chain(), "ma".parse::<Member>().unwrap());
    let newest = chain.newest();
    let everyone = audience(&header, newest);
    for reader in READERS {
        let reader: Member = reader.parse().unwrap();
        let may = may_read(&header, &reader, newest);
        let is_owner = header.member == reader.as_str();
        assert_eq!(may, everyone.contains(&reader));
        assert!(!may || header.format == 1, "an unknown format has no audience");
        assert!(!may || is_owner || newest.member(&reader).is_some(), "a stranger");
        let handling = header.handling.clone().unwrap_or_default();
        let named = handling.releasable_to.iter().any(|code| code == reader.as_str());
        assert!(!may || is_owner || named || (handling.tlp != "TLP:RED" && handling.releasable_to.is_empty()));
        assert!(may || !may_disclose(&header, &reader, chain), "disclosed to a member that may not read it");
        let given = delivery(&owner, Some(&header), &reader, chain);
        assert!(!given.to_agencies() || (given.to_focal_points() && agencies_may_read(&header)));
        if given.to_focal_points() {
            assert_eq!(header.member, owner.as_str(), "misdirected");
            let then = chain.at(header.roster_version);
            assert!(may || then.is_some_and(|then| may_read(&header, &reader, then)));
        }
    }
    if let Ok(valid) = Header::try_from(&header) {
        assert_eq!(valid.member.as_str(), header.member);
        assert_eq!(valid.id.to_string(), header.id);
        assert_eq!(valid.topic.as_str(), header.topic);
        assert_eq!((&valid.kind, &valid.issuer, &valid.incidents), (&header.kind, &header.issuer, &header.incidents));
        let references: Vec<proto::Reference> = valid.references.iter().map(Reference::to_proto).collect();
        assert_eq!(references, header.references);
        assert!(may_read(&header, &valid.member, newest), "the owner is in the audience of an understood header");
    }
}

fn topics(text: &str) {
    if let Ok(topic) = text.parse::<Topic>() {
        assert_eq!(topic.as_str(), text);
        assert!(TopicFilter::all().matches(&topic));
        let exact: TopicFilter = text.parse().unwrap();
        assert!(exact.matches(&topic) && exact.matches_header(text));
        let group: TopicFilter = format!("{}.>", topic.working_group()).parse().unwrap();
        assert!(group.matches(&topic));
    }
    if let Ok(filter) = text.parse::<TopicFilter>() {
        assert_eq!(filter.as_str(), text);
        let _ = filter.matches_header("customs.seizures.border");
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let header = |envelope: &[u8]| envelope::parts(envelope).unwrap().header.to_vec();
    let samples = super::envelope::seeds();
    let mut seeds: Vec<Vec<u8>> = samples.iter().map(|envelope| header(envelope)).collect();
    let mut red = envelope::header_of(&golden("envelope.bin")).unwrap();
    red.handling = Some(proto::Handling {
        tlp: "TLP:RED".into(),
        releasable_to: vec!["tn".into(), "x-observer".into()],
        codes: vec!["H1".into()],
        ..proto::Handling::default()
    });
    seeds.push(red.encode_to_vec());
    seeds.extend(["customs.seizures", "*.documents", "security.>"].map(|text| text.as_bytes().to_vec()));
    seeds
}
