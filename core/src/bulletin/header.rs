//! Bulletin headers: the fields that routing, audience and state need.
//!
//! In scope: parsing a header into a type that cannot be invalid, with every field error. Out of
//! scope: rules that need a clock or the body (`prepare`), or the roster (`audience`).

use std::fmt;
use std::str::FromStr;

use prost_types::Timestamp;
use uuid::Uuid;

use super::body::paragraph;
use super::field::{Invalid, Report};
use super::kinds;
use super::rules::Rule;
use super::text::{has_balanced_direction, has_visible_text, is_one_line};
use super::times::{Date, Time};
use super::topic::Topic;
use super::vocabulary::{HandlingCode, MsgType, Purpose, Severity, Status, Tlp, Urgency};
use crate::ids::{Digest, Member};
use crate::limits::{INCIDENT_CHARS_MAX, ISSUER_BYTES_MAX, LIST_MAX, REFERENCES_MAX, RELEASABLE_MAX};
use crate::proto;

/// The issuer of bulletins that a node creates itself: its SPIFFE path.
pub const NODE_ISSUER: &str = "node";

/// The header format that this version writes.
pub const HEADER_FORMAT: u32 = 1;

/// A bulletin's id: a UUIDv7 (RFC 9562) in lower-case text form, unique per member.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BulletinId(Uuid);

/// A header that satisfies every rule that can be checked on the header alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Kind of the body; possibly one that this version does not know.
    pub kind: String,
    /// Unique per member.
    pub id: BulletinId,
    /// The publishing member.
    pub member: Member,
    /// The publishing focal point of that member: [`issuer_of`] its SPIFFE path. Earlier versions
    /// wrote only the last segment of the path.
    pub issuer: String,
    /// Working group and topic.
    pub topic: Topic,
    /// CAP status: whether to act on it.
    pub status: Status,
    /// Its effect on other bulletins.
    pub msg_type: MsgType,
    /// Who may read it, and what they may do with it.
    pub handling: Handling,
    /// How soon to act.
    pub urgency: Urgency,
    /// Severity of the event.
    pub severity: Severity,
    /// When the publishing node accepted it.
    pub sent_at: Time,
    /// Valid from this time; from `sent_at` if absent.
    pub effective: Option<Time>,
    /// Valid until this time; until cancelled if absent.
    pub expires: Option<Time>,
    /// Last day on which it may be retained.
    pub retain_until: Option<Date>,
    /// The bulletins that an Update, Cancel or Ack refers to.
    pub references: Vec<Reference>,
    /// Cases it belongs to.
    pub incidents: Vec<String>,
    /// Version of the roster that decides the audience.
    pub roster_version: u64,
}

/// One TLP label and its restrictions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handling {
    /// The label.
    pub tlp: Tlp,
    /// Members to which the audience is limited. With RED they are the audience.
    pub releasable_to: Vec<Member>,
    /// Europol-style codes.
    pub codes: Vec<HandlingCode>,
    /// Meaning of H3 in this bulletin.
    pub codes_note: String,
    /// Purpose for which the body holds personal data, if it does.
    pub personal_data: Option<Purpose>,
}

/// Exact reference to another bulletin.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The member that published it.
    pub member: Member,
    /// Its id.
    pub id: BulletinId,
    /// Its entry digest.
    pub digest: Digest,
}

/// Text that is not a bulletin id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a UUIDv7 in lower-case text form")]
pub struct NotAnId;

impl From<NotAnId> for Rule {
    fn from(NotAnId: NotAnId) -> Self {
        Self::Id
    }
}

impl BulletinId {
    /// Creates an id from a time in unix milliseconds and ten random bytes (RFC 9562 §5.7).
    #[must_use]
    pub fn new(unix_ms: u64, random: &[u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(unix_ms, random).into_uuid())
    }

    /// Returns the id as a UUID.
    #[must_use]
    pub fn uuid(self) -> Uuid {
        self.0
    }

    /// Returns the unix milliseconds in the first 48 bits. They are an unverified claim of the id's
    /// creator.
    #[must_use]
    pub fn unix_ms(self) -> u64 {
        u64::try_from(self.0.as_u128() >> 80).unwrap_or(u64::MAX)
    }
}

impl TryFrom<Uuid> for BulletinId {
    type Error = NotAnId;

    fn try_from(uuid: Uuid) -> Result<Self, NotAnId> {
        let valid = uuid.get_version_num() == 7 && uuid.get_variant() == uuid::Variant::RFC4122;
        if valid { Ok(Self(uuid)) } else { Err(NotAnId) }
    }
}

impl FromStr for BulletinId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let uuid = Uuid::try_parse(text).map_err(|_| NotAnId)?;
        let written = uuid.hyphenated();
        let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
        if written.encode_lower(&mut buffer) == text { uuid.try_into() } else { Err(NotAnId) }
    }
}

impl fmt::Display for BulletinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

impl fmt::Debug for BulletinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Reference {
    /// Returns the reference as a message.
    #[must_use]
    pub fn to_proto(&self) -> proto::Reference {
        proto::Reference {
            member: self.member.to_string(),
            id: self.id.to_string(),
            digest: bytes::Bytes::copy_from_slice(&self.digest.0),
        }
    }
}

impl TryFrom<&proto::Reference> for Reference {
    type Error = Invalid;

    fn try_from(reference: &proto::Reference) -> Result<Self, Invalid> {
        let mut report = Report::default();
        let read = self::reference(reference, &"reference", &mut report);
        report.into_result()?;
        read.ok_or_else(|| Invalid(Vec::new()))
    }
}

impl TryFrom<&proto::Header> for Header {
    type Error = Invalid;

    fn try_from(header: &proto::Header) -> Result<Self, Invalid> {
        let mut report = Report::default();
        let read = read(header, &mut report);
        report.into_result()?;
        read.ok_or_else(|| Invalid(Vec::new()))
    }
}

/// Parses a header. Returns `None` exactly if it added an error to the report.
pub(super) fn read(header: &proto::Header, report: &mut Report) -> Option<Header> {
    if header.format != HEADER_FORMAT {
        report.add("header.format", header.format, Rule::HeaderFormat { format: HEADER_FORMAT });
    }
    let kind = name("header.kind", &header.kind, kinds::is_name, Rule::KindName, report);
    let id = report.parse("header.id", &header.id);
    let member = report.parse("header.member", &header.member);
    let issuer = name("header.issuer", &header.issuer, is_issuer, Rule::FocalPoint, report);
    let topic = report.parse("header.topic", &header.topic);
    let status = report.parse("header.status", &header.status);
    let msg_type = report.parse("header.msg_type", &header.msg_type);
    let handling = handling(header, report);
    let urgency = report.parse("header.urgency", &header.urgency);
    let severity = report.parse("header.severity", &header.severity);
    let (sent_at, effective, expires) = times(header, report);
    let retain_until = retain_until(header, sent_at, report);
    let references = references(header, msg_type, report);
    let incidents = incidents(&header.incidents, report);
    Some(Header {
        kind: kind?,
        id: id?,
        member: member?,
        issuer: issuer?,
        topic: topic?,
        status: status?,
        msg_type: msg_type?,
        handling: handling?,
        urgency: urgency?,
        severity: severity?,
        sent_at: sent_at?,
        effective,
        expires,
        retain_until,
        references,
        incidents,
        roster_version: header.roster_version,
    })
    .filter(|_| report.is_empty())
}

fn name(field: &str, text: &str, valid: fn(&str) -> bool, rule: Rule, report: &mut Report) -> Option<String> {
    if valid(text) {
        return Some(text.to_owned());
    }
    report.add(field, text, rule);
    None
}

/// Returns the issuer for a caller with this SPIFFE path. Different paths give different issuers.
///
/// The issuer is the part below `focal-point/`. Any other path is used whole, after a `/`; so is
/// `focal-point/node`, because a node signs as `node`.
#[must_use]
pub fn issuer_of(path: &str) -> String {
    match path.strip_prefix("focal-point/") {
        Some(NODE_ISSUER) | None => format!("/{path}"),
        Some(name) => name.to_owned(),
    }
}

/// Returns whether `text` can be an issuer: segments of a SPIFFE path, as [`issuer_of`] returns
/// them.
#[must_use]
pub fn is_issuer(text: &str) -> bool {
    let segment = |segment: &str| {
        segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) && !matches!(segment, "" | "." | "..")
    };
    text.len() <= ISSUER_BYTES_MAX && text.strip_prefix('/').unwrap_or(text).split('/').all(segment)
}

fn handling(header: &proto::Header, report: &mut Report) -> Option<Handling> {
    let Some(handling) = header.handling.as_ref() else {
        report.missing("header.handling", Rule::TlpAtLeast);
        return None;
    };
    let before = report.len();
    let tlp: Option<Tlp> = report.parse("header.handling.tlp", &handling.tlp);
    let mut releasable_to: Vec<Member> = Vec::new();
    let field = "header.handling.releasable_to";
    for (n, code) in report.bounded(field, &handling.releasable_to, RELEASABLE_MAX).iter().enumerate() {
        let Some(member) = report.parse(format_args!("{field}[{n}]"), code) else { continue };
        if releasable_to.contains(&member) {
            report.add(format_args!("{field}[{n}]"), code, Rule::Once);
        }
        releasable_to.push(member);
    }
    if tlp == Some(Tlp::Red) && handling.releasable_to.is_empty() {
        report.missing(field, Rule::RedReleasable);
    }
    let mut codes: Vec<HandlingCode> = Vec::new();
    for (n, code) in
        report.bounded("header.handling.codes", &handling.codes, HandlingCode::ALL.len()).iter().enumerate()
    {
        let Some(code) = report.parse(format_args!("header.handling.codes[{n}]"), code) else { continue };
        if codes.contains(&code) {
            report.add(format_args!("header.handling.codes[{n}]"), code, Rule::Once);
        }
        codes.push(code);
    }
    let own = MsgType::read(&header.msg_type) == Some(MsgType::Alert);
    let (field, note) = ("header.handling.codes_note", &handling.codes_note);
    let empty = if own { !has_visible_text(note) } else { note.is_empty() };
    match (codes.contains(&HandlingCode::H3), empty) {
        (true, true) => report.missing(field, Rule::H3Note),
        (false, false) => report.add(field, note, Rule::NoH3Note),
        // Cancels and Acks copy the note from the bulletin they refer to. That bulletin must stay
        // cancellable whatever its note holds, so a copied note is not checked.
        _ if own => paragraph(field, note, report),
        _ => {}
    }
    let personal_data = match (handling.personal_data, handling.purpose.as_str()) {
        (false, "") => None,
        (false, purpose) => {
            report.add("header.handling.purpose", purpose, Rule::WithoutPersonalData);
            None
        }
        (true, purpose) => match report.parse("header.handling.purpose", purpose) {
            Some(Purpose::NonSpecified) => {
                report.add("header.handling.purpose", purpose, Rule::Purpose);
                None
            }
            purpose => purpose,
        },
    };
    if report.len() > before {
        return None;
    }
    Some(Handling { tlp: tlp?, releasable_to, codes, codes_note: handling.codes_note.clone(), personal_data })
}

/// Returns the instant at `field`, if present and valid. Adds an error if it is invalid.
pub(super) fn time(field: &str, timestamp: Option<&Timestamp>, report: &mut Report) -> Option<Time> {
    let timestamp = timestamp?;
    let time = Time::from_proto(timestamp);
    if time.is_none() {
        let found = format_args!("{} s {} ns", timestamp.seconds, timestamp.nanos);
        report.add(field, found, Rule::InstantInRange);
    }
    time
}

fn times(header: &proto::Header, report: &mut Report) -> (Option<Time>, Option<Time>, Option<Time>) {
    let sent_at = time("header.sent_at", header.sent_at.as_ref(), report);
    if header.sent_at.is_none() {
        report.missing("header.sent_at", Rule::AcceptedAt);
    }
    let effective = time("header.effective", header.effective.as_ref(), report);
    let expires = time("header.expires", header.expires.as_ref(), report);
    if let (Some(effective), Some(expires)) = (effective, expires)
        && expires < effective
    {
        report.add("header.expires", expires, Rule::EffectiveOrder { effective });
    }
    if let (Some(sent_at), Some(expires)) = (sent_at, expires)
        && expires <= sent_at
    {
        report.add("header.expires", expires, Rule::AfterSent { sent_at });
    }
    (sent_at, effective, expires)
}

fn retain_until(header: &proto::Header, sent_at: Option<Time>, report: &mut Report) -> Option<Date> {
    let personal_data = header.handling.as_ref().is_some_and(|handling| handling.personal_data);
    match (personal_data, header.retain_until.as_str()) {
        (false, "") => None,
        (true, "") => {
            report.missing("header.retain_until", Rule::RetainUntil);
            None
        }
        (false, day) => {
            report.add("header.retain_until", day, Rule::WithoutPersonalData);
            None
        }
        (true, day) => {
            let date: Date = report.parse("header.retain_until", day)?;
            if let Some(sent) = sent_at.map(Time::earliest_date)
                && date < sent
            {
                report.add("header.retain_until", day, Rule::RetainBeforeSent { sent });
            }
            Some(date)
        }
    }
}

fn reference(reference: &proto::Reference, field: &dyn fmt::Display, report: &mut Report) -> Option<Reference> {
    let member = report.parse(format_args!("{field}.member"), &reference.member);
    let id = report.parse(format_args!("{field}.id"), &reference.id);
    let digest = <[u8; 32]>::try_from(reference.digest.as_ref());
    if digest.is_err() {
        report.add(format_args!("{field}.digest"), format_args!("{} bytes", reference.digest.len()), Rule::Bytes32);
    }
    Some(Reference { member: member?, id: id?, digest: Digest(digest.ok()?) })
}

fn references(header: &proto::Header, msg_type: Option<MsgType>, report: &mut Report) -> Vec<Reference> {
    let needed = msg_type.filter(|msg_type| *msg_type != MsgType::Alert);
    if let (Some(msg_type), true) = (needed, header.references.is_empty()) {
        report.missing("header.references", Rule::ReferenceNeeded { msg_type: msg_type.as_str() });
    }
    let mut references: Vec<Reference> = Vec::new();
    for (n, found) in report.bounded("header.references", &header.references, REFERENCES_MAX).iter().enumerate() {
        let field = format_args!("header.references[{n}]");
        let Some(read) = reference(found, &field, report) else { continue };
        if references.iter().any(|other| other.member == read.member && other.id == read.id) {
            report.add(field, &found.id, Rule::Once);
        }
        references.push(read);
    }
    references
}

fn incidents(incidents: &[String], report: &mut Report) -> Vec<String> {
    for (n, incident) in report.bounded("header.incidents", incidents, LIST_MAX).iter().enumerate() {
        let fits = incident.chars().count() <= INCIDENT_CHARS_MAX;
        if !(fits && has_visible_text(incident) && is_one_line(incident) && has_balanced_direction(incident)) {
            report.add(format_args!("header.incidents[{n}]"), incident, Rule::Incident { max: INCIDENT_CHARS_MAX });
        }
    }
    incidents.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_paths_have_two_issuers() {
        let issuers = [
            ("focal-point/customs-hq", "customs-hq"),
            ("focal-point/north/customs-hq", "north/customs-hq"),
            ("focal-point/focal-point/customs-hq", "focal-point/customs-hq"),
            ("focal-point/agency/customs-hq", "agency/customs-hq"),
            ("agency/customs-hq", "/agency/customs-hq"),
            ("customs-hq", "/customs-hq"),
            ("north/customs-hq", "/north/customs-hq"),
            ("focal-point", "/focal-point"),
            ("focal-point/node", "/focal-point/node"),
            ("focal-point/node/1", "node/1"),
        ];
        for (path, issuer) in issuers {
            assert_eq!(issuer_of(path), issuer);
            assert!(is_issuer(issuer), "{issuer}");
            assert_ne!(issuer, NODE_ISSUER);
        }
        for text in ["", "/", "//", "a//b", "a/", "/a/", ".", "a/..", "a b", "é", &"a".repeat(ISSUER_BYTES_MAX + 1)] {
            assert!(!is_issuer(text), "{text}");
        }
    }
}
