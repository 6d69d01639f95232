//! Makes bulletins: every label and audience, and some that no node should publish.

use barid_core::envelope;
use barid_core::proto;
use bytes::Bytes;

use crate::exchange::{Exchange, GROUPS};
use crate::future_version;
use crate::model::Facts;
use crate::random::Random;

const LABELS: [&str; 5] = ["TLP:CLEAR", "TLP:GREEN", "TLP:AMBER", "TLP:AMBER+STRICT", "TLP:RED"];

/// The exact bytes, and the facts about them.
#[derive(Clone, Debug)]
pub(crate) struct Bulletin {
    pub(crate) envelope: Bytes,
    pub(crate) facts: Facts,
}

/// The bulletin has no oddity.
const ORDINARY: u64 = 23;
/// Urgency and severity of urgent bulletins.
const PRIORITY_LEVELS: [(&str, &str); 3] = [("Immediate", "Minor"), ("Expected", "Extreme"), ("Immediate", "Extreme")];

/// Which bulletin to make.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) id: u64,
    /// Whether it must be urgent.
    pub(crate) alert: bool,
    /// If set, it is for every member and this many bytes longer.
    pub(crate) flood: Option<usize>,
}

/// Makes a bulletin of member `by`. The same random numbers give the same content, whatever the
/// salt.
pub(crate) fn bulletin(
    random: &mut Random,
    exchange: &Exchange,
    by: usize,
    version: u64,
    wanted: Wanted,
    salt: [u8; 16],
) -> Bulletin {
    let Wanted { id, alert, flood } = wanted;
    let count = exchange.members.len();
    let group = random.index(GROUPS.len());
    let label = random.index(LABELS.len());
    let mut to: Vec<usize> = Vec::new();
    if label == 4 || random.chance(30) {
        let percent = if count > 8 { 15 } else { 40 };
        to.extend((0..count).filter(|_| random.chance(percent)));
        to.push(random.index(count));
    }
    let oddity = random.below(24);
    let (label, oddity) = if flood.is_some() { (0, ORDINARY) } else { (label, oddity) };
    to.retain(|_| flood.is_none());
    let named = if oddity == 3 { random.index(count) } else { by };
    let has_priority = alert || random.chance(18);
    let actual = random.chance(60);
    let (urgency, severity) = if has_priority { *random.pick(&PRIORITY_LEVELS) } else { ("Expected", "Severe") };
    let facts = Facts {
        named,
        priority: (has_priority && oddity != 0).then_some(actual),
        group,
        label: u8::try_from(label).unwrap_or_default(),
        to: to.clone(),
        version,
        understood: oddity > 1 && oddity != 4,
    };
    if oddity == 0 {
        return Bulletin { envelope: Bytes::copy_from_slice(&[&[0xff], &salt[..]].concat()), facts };
    }
    let header = proto::Header {
        // A newer version's header; this version cannot determine its audience.
        format: if oddity == 1 { 2 } else { 1 },
        // A newer version's kind; it is stored like any other.
        kind: if oddity == 2 { "of-tomorrow" } else { "situation-report" }.to_owned(),
        id: name_of(id),
        member: exchange.members[named].to_string(),
        topic: format!("{}.reports", GROUPS[group]),
        handling: Some(proto::Handling {
            tlp: if oddity == 4 { "TLP:BLUE" } else { LABELS[label] }.to_owned(),
            releasable_to: to.iter().map(|member| exchange.members[*member].to_string()).collect(),
            ..proto::Handling::default()
        }),
        roster_version: version,
        status: if actual { "Actual" } else { "Exercise" }.to_owned(),
        urgency: urgency.to_owned(),
        severity: severity.to_owned(),
        ..proto::Header::default()
    };
    let body = proto::Body { certainty: "x".repeat(flood.unwrap_or(0)), ..proto::Body::default() };
    let envelope = envelope::encode(&header, &body, salt);
    let envelope = if exchange.natures[by].newer { future_version::envelope(&envelope) } else { envelope };
    Bulletin { envelope, facts }
}

/// Formats an id as in a header.
pub(crate) fn name_of(id: u64) -> String {
    format!("00000000-0000-7000-8000-{id:012x}")
}
