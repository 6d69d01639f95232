//! What members publish: every label and audience, and now and then what no node should.

use barid_core::envelope;
use barid_core::names::Member;
use barid_core::proto;
use bytes::Bytes;

use crate::exchange::GROUPS;
use crate::random::Random;

/// An envelope, and its header if it has one that can be read.
pub(crate) fn bulletin(
    random: &mut Random,
    by: &Member,
    members: &[Member],
    roster_version: u64,
) -> (Bytes, Option<proto::Header>) {
    let salt = random.bytes();
    let oddity = random.below(20);
    if oddity == 0 {
        return (Bytes::copy_from_slice(&[&[0xff], &salt[..]].concat()), None);
    }
    let tlp = random.pick(&["TLP:CLEAR", "TLP:GREEN", "TLP:AMBER", "TLP:AMBER+STRICT", "TLP:RED"]);
    let mut releasable_to: Vec<String> = Vec::new();
    if *tlp == "TLP:RED" || random.chance(30) {
        releasable_to.extend(members.iter().filter(|_| random.chance(40)).map(ToString::to_string));
        releasable_to.push(random.pick(members).to_string());
    }
    let header = proto::Header {
        // A newer version's header; this one cannot tell its audience.
        format: if oddity == 1 { 2 } else { 1 },
        // A newer version's kind; it is carried like any other.
        kind: if oddity == 2 { "of-tomorrow" } else { "situation-report" }.to_owned(),
        member: if oddity == 3 { random.pick(members) } else { by }.to_string(),
        topic: format!("{}.reports", random.pick(&GROUPS)),
        handling: Some(proto::Handling { tlp: (*tlp).to_owned(), releasable_to, ..proto::Handling::default() }),
        roster_version,
        ..proto::Header::default()
    };
    (envelope::encode(&header, &proto::Body::default(), salt), Some(header))
}
