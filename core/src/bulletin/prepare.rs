//! Turns a draft into an envelope. This is the only path by which bulletins are published.
//!
//! In scope: the node's defaults, every rule that a publisher's node applies, and encoding exactly
//! once. Out of scope: who may publish (the API), and the bulletins that references point to
//! ([`super::state::check_successor`]).

use bytes::Bytes;

use super::audience::Directory;
use super::body;
use super::field::{Invalid, Report};
use super::header::{self, BulletinId, HEADER_FORMAT, Header};
use super::kinds::{self, Context};
use super::rules::Rule;
use super::times::Time;
use super::vocabulary::{MsgType, Tlp};
use crate::envelope::{self, SALT_BYTES};
use crate::ids::{Digest, Member};
use crate::limits::{CLOCK_AHEAD_SECONDS_MAX, HEADER_BYTES_MAX};
use crate::proto;

/// Fields that the node adds to a draft.
#[derive(Clone, Debug)]
pub struct DraftDefaults {
    /// The node's member.
    pub member: Member,
    /// The publishing focal point, from its certificate.
    pub issuer: String,
    /// The id to use if the draft has none.
    pub id: BulletinId,
    /// The node's time.
    pub sent_at_unix_ms: u64,
    /// The newest roster version; for an Update, Cancel or Ack the original's.
    pub roster_version: u64,
}

/// A bulletin that satisfies every rule, in its final bytes.
#[derive(Clone, Debug)]
pub struct ValidBulletin {
    /// Its parsed header.
    pub header: Header,
    /// Its header as encoded.
    pub proto_header: proto::Header,
    /// The exact bytes, which are never encoded again.
    pub envelope: Bytes,
    /// SHA-256 of the envelope.
    pub digest: Digest,
}

/// Validates a draft, adds the defaults and encodes it once.
///
/// # Errors
/// [`Invalid`] with every field that breaks a rule.
pub fn prepare(
    draft: &proto::Draft,
    defaults: &DraftDefaults,
    salt: [u8; SALT_BYTES],
) -> Result<ValidBulletin, Invalid> {
    let (header, proto_header) = validate(draft, defaults)?;
    let no_body = proto::Body::default();
    let (envelope, digest) = seal(&proto_header, draft.body.as_ref().unwrap_or(&no_body), salt);
    let mut report = Report::default();
    if let Err(error) = envelope::parts(&envelope).and_then(|parts| parts.check_payload()) {
        report.add("body", error, Rule::BodyReadable);
    }
    report.into_result()?;
    Ok(ValidBulletin { header, proto_header, envelope, digest })
}

/// Validates a draft as [`prepare`] does, without encoding it.
///
/// # Errors
/// [`Invalid`] with every field that breaks a rule.
pub fn validate(draft: &proto::Draft, defaults: &DraftDefaults) -> Result<(Header, proto::Header), Invalid> {
    let mut report = Report::default();
    let empty = proto::Header::default();
    if draft.header.is_none() {
        report.missing("header", Rule::Header);
    }
    let requested = draft.header.as_ref().unwrap_or(&empty);
    claims(requested, defaults, &mut report);
    let proto_header = with_defaults(requested, defaults);
    let header = header::read(&proto_header, &mut report);
    let context = Context { header: &proto_header, now: Time::from_unix_ms(defaults.sent_at_unix_ms) };
    relations(&context, &mut report);
    match &draft.body {
        Some(body) => content(body, &context, &mut report),
        None => report.missing("body", Rule::Body),
    }
    let encoded_len = prost::Message::encoded_len(&proto_header);
    if encoded_len > HEADER_BYTES_MAX {
        report.add("header", format_args!("{encoded_len} bytes"), Rule::BytesAtMost { max: HEADER_BYTES_MAX });
    }
    report.into_result()?;
    // `header` is `None` only if parsing added an error to the report.
    Ok((header.ok_or_else(|| Invalid(Vec::new()))?, proto_header))
}

/// Adds the defaults and encodes a draft without any check. It serves to compare a draft that is
/// published again with the stored bytes of the first: given the stored id, time, roster version
/// and salt, equal drafts by one issuer give equal bytes.
#[must_use]
pub fn encode(draft: &proto::Draft, defaults: &DraftDefaults, salt: [u8; SALT_BYTES]) -> (Bytes, Digest) {
    let (no_header, no_body) = (proto::Header::default(), proto::Body::default());
    let header = with_defaults(draft.header.as_ref().unwrap_or(&no_header), defaults);
    seal(&header, draft.body.as_ref().unwrap_or(&no_body), salt)
}

/// Checks against the roster that every member in `releasable_to` is listed.
///
/// # Errors
/// [`Invalid`] with each code that is not in the roster.
pub fn check_releasable(header: &Header, directory: &impl Directory) -> Result<(), Invalid> {
    let mut report = Report::default();
    for (n, member) in header.handling.releasable_to.iter().enumerate() {
        if !directory.is_member(member) {
            report.add(format_args!("header.handling.releasable_to[{n}]"), member, Rule::ListedMember);
        }
    }
    report.into_result()
}

fn seal(header: &proto::Header, body: &proto::Body, salt: [u8; SALT_BYTES]) -> (Bytes, Digest) {
    let envelope = envelope::encode(header, body, salt);
    let digest = envelope::digest(&envelope);
    (envelope, digest)
}

/// Returns the header with the node's fields set.
fn with_defaults(requested: &proto::Header, defaults: &DraftDefaults) -> proto::Header {
    let mut header = requested.clone();
    header.format = HEADER_FORMAT;
    if header.id.is_empty() {
        header.id = defaults.id.to_string();
    }
    defaults.member.as_str().clone_into(&mut header.member);
    header.issuer.clone_from(&defaults.issuer);
    header.sent_at = Some(Time::from_unix_ms(defaults.sent_at_unix_ms).to_proto());
    header.roster_version = defaults.roster_version;
    if let Some(handling) = &mut header.handling
        && Tlp::read(&handling.tlp) == Some(Tlp::Clear)
    {
        // WHITE is read as CLEAR and never written.
        Tlp::Clear.as_str().clone_into(&mut handling.tlp);
    }
    header
}

/// Checks the fields of a draft that the node would set itself. If present, they must be correct:
/// nothing is silently replaced, except a plausible time.
fn claims(requested: &proto::Header, defaults: &DraftDefaults, report: &mut Report) {
    let set_by_node = |value: &dyn ToString| Rule::SetByNode { value: value.to_string() };
    if requested.format > HEADER_FORMAT {
        report.add("header.format", requested.format, set_by_node(&HEADER_FORMAT));
    }
    if !requested.member.is_empty() && requested.member != defaults.member.as_str() {
        report.add("header.member", &requested.member, set_by_node(&defaults.member));
    }
    if !requested.issuer.is_empty() && requested.issuer != defaults.issuer {
        report.add("header.issuer", &requested.issuer, set_by_node(&defaults.issuer));
    }
    if requested.roster_version != 0 && requested.roster_version != defaults.roster_version {
        report.add("header.roster_version", requested.roster_version, set_by_node(&defaults.roster_version));
    }
    let clock = Time::from_unix_ms(defaults.sent_at_unix_ms);
    let latest = clock.plus_seconds(CLOCK_AHEAD_SECONDS_MAX);
    let mut claim = |field: &str, time: Time| {
        if time > latest {
            report.add(field, time, Rule::ClockAhead { seconds: CLOCK_AHEAD_SECONDS_MAX, clock });
        }
    };
    if let Some(sent_at) = requested.sent_at.as_ref().and_then(Time::from_proto) {
        claim("header.sent_at", sent_at);
    }
    if let Ok(id) = requested.id.parse::<BulletinId>() {
        claim("header.id", Time::from_unix_ms(id.unix_ms()));
    }
}

/// Checks rules between header fields that only a publisher's node applies: kind, topic, message
/// type, references.
fn relations(context: &Context<'_>, report: &mut Report) {
    let header = context.header;
    let msg_type = MsgType::read(&header.msg_type);
    if let Some(kind) = kinds::find(&header.kind) {
        let group = super::topic::working_group(&header.topic);
        if let (Some(expected), Some(found)) = (kind.working_group, group)
            && expected != found
        {
            report.add("header.topic", &header.topic, Rule::TopicOfKind { group: expected, kind: kind.name });
        }
        if msg_type.is_some_and(|msg_type| !kind.msg_types.contains(&msg_type)) {
            let names: Vec<&str> = kind.msg_types.iter().map(|name| name.as_str()).collect();
            let rule = Rule::MsgTypeOfKind { msg_types: names.join(", "), kind: kind.name };
            report.add("header.msg_type", &header.msg_type, rule);
        }
    } else {
        report.add("header.kind", &header.kind, Rule::OneOf { values: kinds::names() });
    }
    for (n, reference) in header.references.iter().enumerate() {
        if matches!(msg_type, Some(MsgType::Update | MsgType::Cancel)) && reference.member != header.member {
            let rule = Rule::ReferenceOwn { member: header.member.clone() };
            report.add(format_args!("header.references[{n}].member"), &reference.member, rule);
        }
        if reference.member == header.member && reference.id == header.id {
            report.add(format_args!("header.references[{n}].id"), &reference.id, Rule::ReferenceOther);
        }
    }
}

fn content(body: &proto::Body, context: &Context<'_>, report: &mut Report) {
    let kind = kinds::find(&context.header.kind);
    body::check(body, kind.is_some_and(|kind| kind.informs), context, report);
    let Some(kind) = kind else { return };
    match &body.content {
        Some(content) if (kind.holds)(content) => (kind.validate)(body, context, report),
        Some(content) => {
            let found =
                kinds::REGISTRY.iter().find(|kind| (kind.holds)(content)).map_or("another kind", |kind| kind.name);
            report.add(kind.arm(), found, Rule::ContentOfKind { kind: kind.name });
        }
        None => report.missing(kind.arm(), Rule::ContentOfKind { kind: kind.name }),
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use prost_types::Timestamp;

    use super::*;
    use crate::envelope::{body_of, header_of};
    use crate::limits::{ENVELOPE_BYTES_MAX, LIST_MAX};

    const NOW_MS: u64 = 1_763_927_044_250;

    pub(in crate::bulletin) fn defaults() -> DraftDefaults {
        DraftDefaults {
            member: "ne".parse().unwrap(),
            issuer: "police-aux-frontieres".to_owned(),
            id: BulletinId::new(NOW_MS, &[3; 10]),
            sent_at_unix_ms: NOW_MS,
            roster_version: 4,
        }
    }

    pub(in crate::bulletin) fn sample(kind: &str) -> proto::Draft {
        kinds::find(kind).unwrap().sample().unwrap()
    }

    /// Returns the paths of the invalid fields, in order.
    pub(in crate::bulletin) fn faults(draft: &proto::Draft) -> Vec<String> {
        match validate(draft, &defaults()) {
            Ok(_) => Vec::new(),
            Err(Invalid(errors)) => errors.into_iter().map(|error| error.field).collect(),
        }
    }

    fn with(change: impl FnOnce(&mut proto::Header)) -> Vec<String> {
        let mut draft = sample("situation-report");
        change(draft.header.as_mut().unwrap());
        faults(&draft)
    }

    fn with_body(change: impl FnOnce(&mut proto::Body)) -> Vec<String> {
        let mut draft = sample("situation-report");
        change(draft.body.as_mut().unwrap());
        faults(&draft)
    }

    fn with_handling(change: impl FnOnce(&mut proto::Handling)) -> Vec<String> {
        with(|header| change(header.handling.as_mut().unwrap()))
    }

    fn at(ms: i64) -> Option<Timestamp> {
        let now = i64::try_from(NOW_MS).unwrap() + ms;
        Some(Timestamp { seconds: now / 1_000, nanos: i32::try_from(now % 1_000).unwrap() * 1_000_000 })
    }

    #[test]
    fn node_sets_the_draft_defaults() {
        let valid = prepare(&sample("situation-report"), &defaults(), [9; 16]).unwrap();
        let header = header_of(&valid.envelope).unwrap();
        assert_eq!(header, valid.proto_header);
        assert_eq!((header.format, header.member.as_str(), header.issuer.as_str()), (1, "ne", "police-aux-frontieres"));
        assert_eq!(header.id, defaults().id.to_string());
        assert_eq!(header.roster_version, 4);
        assert_eq!(valid.header.sent_at.to_string(), "2025-11-23T19:44:04.250Z");
        assert_eq!(body_of(&valid.envelope).unwrap(), sample("situation-report").body.unwrap());
        assert_eq!(valid.digest, envelope::digest(&valid.envelope));
        assert_eq!(Header::try_from(&header).unwrap(), valid.header);
    }

    #[test]
    fn equal_drafts_encode_to_equal_bytes() {
        let draft = sample("situation-report");
        let valid = prepare(&draft, &defaults(), [9; 16]).unwrap();
        assert_eq!(encode(&draft, &defaults(), [9; 16]), (valid.envelope.clone(), valid.digest));
        let mut other = draft.clone();
        other.header.as_mut().unwrap().severity = "Minor".to_owned();
        assert_ne!(encode(&other, &defaults(), [9; 16]).1, valid.digest);
        let named = proto::Draft { header: Some(valid.proto_header.clone()), ..draft };
        assert_eq!(
            prepare(&named, &defaults(), [9; 16]).unwrap().digest,
            valid.digest,
            "a draft that states the defaults is equal"
        );
    }

    #[test]
    fn all_field_errors_are_reported_together() {
        let draft = proto::Draft {
            header: Some(proto::Header {
                kind: "seizure-report".to_owned(),
                topic: "justice.x".to_owned(),
                ..Default::default()
            }),
            body: Some(proto::Body { certainty: "Sure".to_owned(), ..Default::default() }),
        };
        let expected = [
            "header.status",
            "header.msg_type",
            "header.handling",
            "header.urgency",
            "header.severity",
            "header.topic",
            "body.certainty",
            "body.texts",
            "body.seizure_report",
        ];
        assert_eq!(faults(&draft), expected);
        assert_eq!(faults(&proto::Draft::default()).first().map(String::as_str), Some("header"));
    }

    #[test]
    fn draft_naming_another_member_or_issuer_is_rejected() {
        assert_eq!(with(|h| h.member = "ma".to_owned()), ["header.member"]);
        assert_eq!(with(|h| h.issuer = "customs-hq".to_owned()), ["header.issuer"]);
        assert_eq!(with(|h| h.roster_version = 5), ["header.roster_version"]);
        assert_eq!(with(|h| h.format = 2), ["header.format"]);
        assert_eq!(with(|h| h.id = defaults().id.to_string().to_uppercase()), ["header.id"]);
        assert_eq!(with(|h| h.id = "6f9619ff-8b86-4011-b42d-00c04fc964ff".to_owned()), ["header.id"], "version 4");
    }

    #[test]
    fn time_far_ahead_of_the_clock_is_rejected() {
        assert!(with(|h| h.sent_at = at(299_000)).is_empty());
        assert_eq!(with(|h| h.sent_at = at(301_000)), ["header.sent_at"]);
        assert!(with(|h| h.id = BulletinId::new(NOW_MS + 299_000, &[1; 10]).to_string()).is_empty());
        assert_eq!(with(|h| h.id = BulletinId::new(NOW_MS + 301_000, &[1; 10]).to_string()), ["header.id"]);
    }

    #[test]
    fn times_must_be_in_order() {
        assert_eq!(with(|h| h.expires = at(-1)), ["header.expires"], "expired before it is sent");
        assert_eq!(with(|h| h.expires = at(0)), ["header.expires"]);
        assert_eq!(with(|h| (h.effective, h.expires) = (at(2_000), at(1_000))), ["header.expires"]);
        assert_eq!(with(|h| h.effective = Some(Timestamp { seconds: i64::MAX, nanos: 0 })), ["header.effective"]);
        let mut draft = sample("situation-report");
        let header = draft.header.as_mut().unwrap();
        (header.effective, header.expires) = (at(1_000), at(9_000));
        draft.body.as_mut().unwrap().onset = at(5_000);
        assert!(faults(&draft).is_empty());
        for outside in [at(999), at(9_001)] {
            draft.body.as_mut().unwrap().onset = outside;
            assert_eq!(faults(&draft), ["body.onset"]);
        }
    }

    #[test]
    fn handling_holds_together() {
        assert_eq!(with_handling(|h| h.tlp = "TLP:RED".to_owned()), ["header.handling.releasable_to"]);
        assert_eq!(with_handling(|h| h.tlp = "RED".to_owned()), ["header.handling.tlp"]);
        let list = |codes: &[&str]| codes.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            with_handling(|h| h.releasable_to = list(&["tn", "TN", "tn"])),
            ["header.handling.releasable_to[1]", "header.handling.releasable_to[2]"]
        );
        assert_eq!(with_handling(|h| h.codes = list(&["H3"])), ["header.handling.codes_note"]);
        assert_eq!(with_handling(|h| h.codes_note = "why".to_owned()), ["header.handling.codes_note"]);
        for note in ["", " ", "\u{200b}", "\u{3164}"] {
            let blank = |h: &mut proto::Handling| (h.codes, h.codes_note) = (list(&["H3"]), note.to_owned());
            assert_eq!(with_handling(blank), ["header.handling.codes_note"], "{}", note.escape_unicode());
        }
        assert_eq!(with_handling(|h| h.codes = list(&["H4"])), ["header.handling.codes[0]"]);
        assert_eq!(
            with_handling(|h| h.personal_data = true),
            ["header.handling.purpose", "header.retain_until"],
            "personal data needs a purpose and an end"
        );
        assert_eq!(with_handling(|h| h.purpose = "BorderMonitoring".to_owned()), ["header.handling.purpose"]);
        assert_eq!(with(|h| h.retain_until = "2030-01-01".to_owned()), ["header.retain_until"]);
        let personal = |purpose: &str, day: &str| {
            with(|h| {
                h.retain_until = day.to_owned();
                let handling = h.handling.as_mut().unwrap();
                (handling.personal_data, handling.purpose) = (true, purpose.to_owned());
            })
        };
        assert!(personal("BorderMonitoring", "2025-11-23").is_empty());
        assert_eq!(personal("BorderMonitoring", "2025-11-22"), ["header.retain_until"]);
        // The node's time is 2025-11-23T19:44Z; eight hours earlier it was still the 22nd at
        // UTC-12.
        let morning = DraftDefaults { sent_at_unix_ms: NOW_MS - 8 * 3_600_000, ..defaults() };
        let mut draft = sample("travel-document-alert");
        for (day, fits) in [("2025-11-21", false), ("2025-11-22", true), ("2025-11-23", true)] {
            day.clone_into(&mut draft.header.as_mut().unwrap().retain_until);
            assert_eq!(validate(&draft, &morning).is_ok(), fits, "{day}");
        }
        assert_eq!(personal("NonSpecified", "2030-01-01"), ["header.handling.purpose"]);
    }

    #[test]
    fn white_is_written_as_clear() {
        let mut draft = sample("situation-report");
        draft.header.as_mut().unwrap().handling.as_mut().unwrap().tlp = "TLP:WHITE".to_owned();
        let valid = prepare(&draft, &defaults(), [0; 16]).unwrap();
        assert_eq!(header_of(&valid.envelope).unwrap().handling.unwrap().tlp, "TLP:CLEAR");
    }

    #[test]
    fn kind_topic_and_content_agree() {
        assert_eq!(with(|h| h.topic = "customs.situation".to_owned()), ["header.topic"]);
        assert_eq!(with(|h| h.kind = "weather-report".to_owned()), ["header.kind"]);
        assert_eq!(with(|h| h.kind = "acknowledgement".to_owned()), ["header.msg_type", "body.acknowledgement"]);
        assert_eq!(with_body(|b| b.content = None), ["body.situation_report"]);
        assert_eq!(with_body(|b| b.content = sample("cancellation").body.unwrap().content), ["body.situation_report"]);
    }

    #[test]
    fn only_the_publisher_updates_and_needs_a_reference() {
        let reference = proto::Reference {
            member: "ne".to_owned(),
            id: BulletinId::new(NOW_MS - 5_000, &[5; 10]).to_string(),
            digest: vec![1; 32].into(),
        };
        let update = |change: &dyn Fn(&mut proto::Reference)| {
            with(|h| {
                let mut reference = reference.clone();
                change(&mut reference);
                h.msg_type = "Update".to_owned();
                h.references = vec![reference];
            })
        };
        assert!(update(&|_| {}).is_empty());
        assert_eq!(update(&|r| r.member = "ma".to_owned()), ["header.references[0].member"]);
        assert_eq!(update(&|r| r.digest = vec![1; 31].into()), ["header.references[0].digest"]);
        assert_eq!(update(&|r| r.id = defaults().id.to_string()), ["header.references[0].id"], "itself");
        assert_eq!(with(|h| h.msg_type = "Update".to_owned()), ["header.references"]);
        assert_eq!(with(|h| h.references = vec![reference.clone(), reference.clone()]), ["header.references[1]"]);
    }

    #[test]
    fn bodies_are_checked_field_by_field() {
        assert_eq!(with_body(|b| b.categories = vec!["Security".to_owned(); 2]), ["body.categories[1]"]);
        assert_eq!(with_body(|b| b.texts.clear()), ["body.texts"]);
        assert_eq!(with_body(|b| b.texts[1].language = "AR".to_owned()), ["body.texts[1].language"]);
        assert_eq!(with_body(|b| b.texts[1].language = "français".to_owned()), ["body.texts[1].language"]);
        assert_eq!(with_body(|b| b.texts[0].headline = "two\nlines".to_owned()), ["body.texts[0].headline"]);
        assert_eq!(with_body(|b| b.texts[0].description = "\u{1b}[31m".to_owned()), ["body.texts[0].description"]);
        assert_eq!(with_body(|b| b.areas[0].polygons[0] = "0,0 1,1".to_owned()), ["body.areas[0].polygons[0]"]);
        assert_eq!(with_body(|b| b.areas[0].area_desc.clear()), ["body.areas[0].area_desc"]);
        assert_eq!(with_body(|b| b.grading.as_mut().unwrap().source = "G".to_owned()), ["body.grading.source"]);
        assert_eq!(with_body(|b| b.grading.as_mut().unwrap().scheme = "mine".to_owned()), ["body.grading.scheme"]);
        let attachment = proto::Attachment { media_type: "jpeg".to_owned(), ..Default::default() };
        assert_eq!(
            with_body(|b| b.attachments.push(attachment)),
            ["body.attachments[0].media_type", "body.attachments[0].size", "body.attachments[0].sha256"]
        );
    }

    #[test]
    fn oversized_field_is_rejected_by_name() {
        let long = "x".repeat(ENVELOPE_BYTES_MAX);
        let mut draft = sample("situation-report");
        draft.body.as_mut().unwrap().texts[0].description = long;
        let Err(Invalid(errors)) = prepare(&draft, &defaults(), [0; 16]) else { panic!("too large") };
        assert_eq!(errors[0].field, "body");
        let code = proto::Geocode { name: "UN/LOCODE".to_owned(), value: "NENIM".to_owned() };
        let area = proto::Area { area_desc: "x".to_owned(), geocodes: vec![code; LIST_MAX], ..Default::default() };
        let body = draft.body.as_mut().unwrap();
        body.texts[0].description.clear();
        body.areas = vec![area; 200];
        let Err(Invalid(errors)) = prepare(&draft, &defaults(), [0; 16]) else { panic!("too many fields") };
        assert_eq!(errors[0].field, "body");
        assert_eq!(with(|h| h.incidents = vec!["x".repeat(120); 40]), ["header"]);
        let many = with_body(|b| b.texts = vec![proto::Text::default(); 100_000]);
        assert!(many.len() < 64, "{}", many.len());
    }
}
