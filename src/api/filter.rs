//! Which bulletins a caller asks for.
//!
//! In scope: reading a filter, with every field that is wrong, and applying it to a header or its columns. Out of scope: what the caller
//! may read (`deliver`).

use barid_core::bulletin::vocabulary::Severity;
use barid_core::bulletin::{TopicFilter, kinds};
use barid_core::limits::FILTERS_MAX;
use barid_core::names::Member;
use barid_core::proto;

use super::errors::Faults;
use crate::store::Columns;

/// Which bulletins, checked. Everything absent does not narrow.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    topics: Vec<TopicFilter>,
    kinds: Vec<String>,
    severity: Option<Severity>,
    members: Vec<Member>,
}

impl Filter {
    /// Reads what a caller sent, noting every fault.
    pub(super) fn read(filter: Option<proto::Filter>, faults: &mut Faults) -> Self {
        let proto::Filter { topics, kinds, min_severity, members } = filter.unwrap_or_default();
        let count = topics.len() + kinds.len() + members.len();
        if count > FILTERS_MAX {
            let expected = format!("at most {FILTERS_MAX} topics, kinds and members together");
            faults.add("filter", &count.to_string(), &expected);
            return Self { topics: Vec::new(), kinds: Vec::new(), severity: None, members: Vec::new() };
        }
        let topic = |(n, text): (usize, &String)| {
            faults.parse(&format!("filter.topics[{n}]"), text, "a topic filter such as `customs.>`")
        };
        let topics = topics.iter().enumerate().filter_map(topic).collect();
        // A kind that this version does not know may be one of a newer version: only what can be no kind is refused.
        for (n, kind) in kinds.iter().enumerate().filter(|(_, kind)| !kinds::is_name(kind)) {
            faults.add(&format!("filter.kinds[{n}]"), kind, "a kind such as `seizure-report`");
        }
        let severity = match (min_severity.as_str(), Severity::read(&min_severity)) {
            ("", _) => None,
            (_, Some(severity)) if severity != Severity::Unknown => Some(severity),
            _ => {
                faults.add("filter.min_severity", &min_severity, "Minor, Moderate, Severe or Extreme");
                None
            }
        };
        let member = |(n, text): (usize, &String)| {
            faults.parse(&format!("filter.members[{n}]"), text, "a member code such as `tn`")
        };
        let members = members.iter().enumerate().filter_map(member).collect();
        Self { topics, kinds, severity, members }
    }

    /// Whether a bulletin is asked for.
    pub(super) fn wants(&self, header: &proto::Header) -> bool {
        self.accepts(&header.member, &header.topic, &header.kind, &header.severity)
    }

    /// As [`Self::wants`], by the columns of its header.
    pub(super) fn wants_columns(&self, columns: &Columns) -> bool {
        self.accepts(&columns.member, &columns.topic, &columns.kind, &columns.severity)
    }

    fn accepts(&self, member: &str, topic: &str, kind: &str, severity: &str) -> bool {
        (self.topics.is_empty() || self.topics.iter().any(|filter| filter.matches_header(topic)))
            && (self.kinds.is_empty() || self.kinds.iter().any(|wanted| wanted == kind))
            && (self.members.is_empty() || self.members.iter().any(|wanted| wanted.as_str() == member))
            && self.severity.is_none_or(|least| Severity::read(severity).is_some_and(|found| at_least(found, least)))
    }
}

/// CAP 1.2 severities from least to most. What is not known may be of any severity and is never left out.
fn at_least(found: Severity, least: Severity) -> bool {
    let rank = |severity| match severity {
        Severity::Extreme => 4,
        Severity::Severe => 3,
        Severity::Moderate => 2,
        Severity::Minor => 1,
        Severity::Unknown => 5,
    };
    rank(found) >= rank(least)
}
