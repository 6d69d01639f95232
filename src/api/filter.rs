//! Filters: which bulletins a caller asks for.
//!
//! In scope: parsing a filter with all its field errors, comparing it with the known names and the
//! caller's grant, and applying it to a header or its columns. Out of scope: whether the caller may
//! read one bulletin (`visibility`).

use std::collections::BTreeSet;

use barid_core::bulletin::field::Report;
use barid_core::bulletin::vocabulary::Severity;
use barid_core::bulletin::{FieldError, Rule, TopicFilter, kinds};
use barid_core::ids::Member;
use barid_core::limits::FILTERS_MAX;
use barid_core::proto;
use barid_core::roster::{Roster, RosterChain};
use bytes::Bytes;
use prost::Message as _;
use tonic::Status;

use super::caller::Caller;
use super::{Api, errors};
use crate::access::Role;
use crate::store::Columns;

/// A validated filter. An empty field does not narrow it.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    topics: Vec<TopicFilter>,
    kinds: Vec<String>,
    severity: Option<Severity>,
    members: Vec<Member>,
}

impl Filter {
    /// Parses the caller's filter and adds every error to `report`.
    pub(super) fn read(filter: Option<proto::Filter>, report: &mut Report) -> Self {
        let proto::Filter { topics, kinds, min_severity, members } = filter.unwrap_or_default();
        let count = topics.len() + kinds.len() + members.len();
        if count > FILTERS_MAX {
            report.add("filter", count, Rule::FilterAtMost { max: FILTERS_MAX });
            return Self { topics: Vec::new(), kinds: Vec::new(), severity: None, members: Vec::new() };
        }
        let topic = |(n, text): (usize, &String)| report.parse(format_args!("filter.topics[{n}]"), text);
        let topics = topics.iter().enumerate().filter_map(topic).collect();
        // An unknown kind may come from a newer version. Only malformed names are errors.
        for (n, kind) in kinds.iter().enumerate().filter(|(_, kind)| !kinds::is_name(kind)) {
            report.add(format_args!("filter.kinds[{n}]"), kind, Rule::KindName);
        }
        let severity = match (min_severity.as_str(), Severity::read(&min_severity)) {
            ("", _) => None,
            (_, Some(severity)) if severity != Severity::Unknown => Some(severity),
            _ => {
                let values = Severity::ALL.iter().filter(|known| **known != Severity::Unknown);
                let values = values.map(|known| known.as_str()).collect::<Vec<_>>().join(", ");
                report.add("filter.min_severity", &min_severity, Rule::OneOf { values });
                None
            }
        };
        let member = |(n, text): (usize, &String)| report.parse(format_args!("filter.members[{n}]"), text);
        let members = members.iter().enumerate().filter_map(member).collect();
        Self { topics, kinds, severity, members }
    }

    /// Returns the canonical bytes stored with a named subscription. Filters with the same topics,
    /// kinds, severity and members have the same bytes.
    pub(super) fn to_bytes(&self) -> Bytes {
        let filter = proto::Filter {
            topics: sorted(&self.topics),
            kinds: sorted(&self.kinds),
            min_severity: self.severity.map(|severity| severity.to_string()).unwrap_or_default(),
            members: sorted(&self.members),
        };
        filter.encode_to_vec().into()
    }

    /// Returns whether the filter matches a bulletin's header.
    pub(super) fn matches(&self, header: &proto::Header) -> bool {
        self.accepts(&header.member, &header.topic, &header.kind, &header.severity)
    }

    /// Like [`Self::matches`], for the columns of a header.
    pub(super) fn matches_columns(&self, columns: &Columns) -> bool {
        self.accepts(&columns.member, &columns.topic, &columns.kind, &columns.severity)
    }

    /// Finds the values that are unknown here or not granted, and whether the caller may read any
    /// bulletin that the filter can match.
    fn check(&self, caller: &Caller, rosters: &RosterChain, me: &Member) -> FilterCheck {
        let by_node = |kind: &String| kinds::find(kind).is_some_and(|kind| kind.node_only);
        // Operators read the bulletins that nodes publish about the network itself, in any working
        // group.
        let network = caller.grant.has(Role::Operator) && (self.kinds.is_empty() || self.kinds.iter().any(by_node));
        let reads_in = |group: &str| network || caller.grant.may_read_in(group);
        let reads_any = network || caller.grant.working_groups.iter().any(|group| caller.grant.may_read_in(group));
        let groups = rosters.newest().working_groups();
        let mut check = FilterCheck { warnings: Vec::new(), reads: reads_any };
        let topic = |filter: &TopicFilter| {
            let group = filter.as_str().split('.').next().unwrap_or_default();
            match group {
                "*" | ">" => None,
                group if !groups.contains(group) => {
                    Some((UNKNOWN_WORKING_GROUP, nearest(group, groups.iter().map(AsRef::as_ref))))
                }
                group => (!reads_in(group)).then_some((NOT_GRANTED, String::new())),
            }
        };
        check.add_field("filter.topics", self.topics.iter().map(|filter| (filter.as_str(), topic(filter))));
        let kind = |name: &String| match kinds::find(name) {
            None => Some((UNKNOWN_KIND, nearest(name, kinds::REGISTRY.iter().map(|kind| kind.name)))),
            Some(kind) => {
                let by_node = network && kind.node_only;
                let reads = by_node || kind.working_group.map_or(reads_any, |group| caller.grant.may_read_in(group));
                (!reads).then_some((NOT_GRANTED, String::new()))
            }
        };
        check.add_field("filter.kinds", self.kinds.iter().map(|name| (name.as_str(), kind(name))));
        let known: BTreeSet<&Member> =
            rosters.notes().filter_map(|(version, _)| rosters.at(version)).flat_map(members).chain([me]).collect();
        let member = |code: &Member| {
            (!known.contains(code))
                .then(|| (UNKNOWN_MEMBER, nearest(code.as_str(), known.iter().map(|member| member.as_str()))))
        };
        check.add_field("filter.members", self.members.iter().map(|code| (code.as_str(), member(code))));
        check
    }

    fn accepts(&self, member: &str, topic: &str, kind: &str, severity: &str) -> bool {
        (self.topics.is_empty() || self.topics.iter().any(|filter| filter.matches_header(topic)))
            && (self.kinds.is_empty() || self.kinds.iter().any(|wanted| wanted == kind))
            && (self.members.is_empty() || self.members.iter().any(|wanted| wanted.as_str() == member))
            && self.severity.is_none_or(|least| Severity::read(severity).is_some_and(|found| at_least(found, least)))
    }
}

const UNKNOWN_WORKING_GROUP: &str = "unknown-working-group";
const UNKNOWN_KIND: &str = "unknown-kind";
const UNKNOWN_MEMBER: &str = "unknown-member";
const NOT_GRANTED: &str = "not-granted";

/// Result of comparing a filter with the known names and the caller's grant.
struct FilterCheck {
    warnings: Vec<proto::FilterWarning>,
    /// Whether the caller may read anything that the filter can match.
    reads: bool,
}

impl FilterCheck {
    /// Adds the values of one field, each with its warning reason and the nearest known value, if
    /// any.
    fn add_field<'a>(&mut self, field: &str, values: impl Iterator<Item = (&'a str, Option<(&'static str, String)>)>) {
        let (mut any, mut granted) = (false, false);
        for (n, (value, wrong)) in values.enumerate() {
            any = true;
            granted |= wrong.as_ref().is_none_or(|(reason, _)| *reason != NOT_GRANTED);
            self.warnings.extend(wrong.map(|(reason, nearest)| proto::FilterWarning {
                field: format!("{field}[{n}]"),
                value: value.to_owned(),
                nearest,
                reason: reason.to_owned(),
            }));
        }
        self.reads &= granted || !any;
    }
}

impl Api {
    /// Returns a warning for each value of a filter that is unknown here or not granted.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` if the caller may read nothing that the filter can match. An empty
    /// result would suggest that there are no such bulletins.
    pub(super) fn check_filter(
        &self,
        caller: &Caller,
        method: &'static str,
        filter: &Filter,
    ) -> Result<Vec<proto::FilterWarning>, Status> {
        let FilterCheck { warnings, reads } = filter.check(caller, &self.rosters.load(), self.me());
        if reads {
            return Ok(warnings);
        }
        let reason = "WORKING_GROUP";
        let Some(denied) = warnings.iter().find(|warning| warning.reason == NOT_GRANTED) else {
            let detail = "the access rules let the caller read in no working group";
            return Err(self.denied(&caller.path, method, reason, detail));
        };
        self.record_denied(&caller.path, method, reason);
        Err(errors::denied_field(
            reason,
            "the filter matches nothing that the caller may read",
            FieldError::new(&denied.field, &denied.value, Rule::ReadingGranted),
        ))
    }
}

fn members(roster: &Roster) -> impl Iterator<Item = &Member> {
    roster.entries().map(|entry| &entry.code)
}

/// Returns the known name nearest to `value`: one that differs in few letters, or where one is a
/// prefix of the other. Empty if there is none.
fn nearest<'a>(value: &str, known: impl Iterator<Item = &'a str>) -> String {
    let most = (value.chars().count() / 3).max(1);
    let distance = |known: &str| {
        let begins = value.len() > 2 && (known.starts_with(value) || value.starts_with(known));
        if begins { most } else { strsim::damerau_levenshtein(value, known) }
    };
    let near = known.map(|known| (distance(known), known)).filter(|(distance, _)| *distance <= most).min();
    near.map(|(_, known)| known.to_owned()).unwrap_or_default()
}

fn sorted<T: ToString>(texts: &[T]) -> Vec<String> {
    let texts: BTreeSet<String> = texts.iter().map(ToString::to_string).collect();
    texts.into_iter().collect()
}

/// Describes a recorded filter for people: `topics customs.>; members ly tn`.
pub(super) fn describe(filter: &Bytes) -> String {
    let proto::Filter { topics, kinds, min_severity, members } =
        proto::Filter::decode(filter.clone()).unwrap_or_default();
    let parts = [
        ("topics", topics.join(" ")),
        ("kinds", kinds.join(" ")),
        ("severity from", min_severity),
        ("members", members.join(" ")),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(what, values)| format!("{what} {values}"))
        .collect();
    if parts.is_empty() { "everything".to_owned() } else { parts.join("; ") }
}

/// Compares CAP 1.2 severities. Unknown may be any severity, so it always matches.
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
