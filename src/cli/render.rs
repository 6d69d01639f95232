//! Layout of a bulletin: as text in the reader's language, or as JSON.
//!
//! In scope: one entry as a node delivers it. Out of scope: whether it may be shown (the node
//! decides) and whether it is authentic (`verify` decides). An entry that cannot be decoded is
//! shown as far as possible. A bulletin whose status is not `Actual` is marked as such in all
//! output.

use barid_core::bulletin::kinds;
use barid_core::bulletin::vocabulary::Tlp;
use barid_core::envelope::EnvelopeError;
use barid_core::json::{self, Note};
use barid_core::limits::HEADLINE_CHARS_MAX;
use barid_core::{envelope, proto};
use owo_colors::{Rgb, Style};
use prost_reflect::DynamicMessage;
use serde_json::Value;

use super::bulletin_ref::{short, short_among};
use super::message;
use super::messages::{Arg, Messages, clean};
use super::output::Output;
use super::profile::Directory;
use super::{Context, state, times, wrap};

/// Indentation of the lines below the first of a bulletin in a list.
const INDENT: &str = "  ";
/// Indentation of a headline's further lines. It is deeper, so that a headline cannot look like a
/// line of this program.
const HEADLINE_INDENT: &str = "      ";

/// An entry with its envelope decoded as far as possible.
#[derive(Clone, Debug)]
pub(super) struct Reading<'a> {
    delivery: &'a proto::Delivery,
    header: proto::Header,
    texts: Vec<proto::Text>,
    /// Parts of the envelope that cannot be decoded.
    unread: Vec<Note>,
}

/// Renders bulletins in one session's language.
#[derive(Debug)]
pub(super) struct Render<'a> {
    messages: &'a Messages,
    output: &'a Output,
    directory: Directory,
}

impl<'a> Reading<'a> {
    /// Decodes the entry as far as possible.
    #[must_use]
    pub(super) fn new(delivery: &'a proto::Delivery) -> Self {
        let mut unread = Vec::new();
        // Evidence that is not valid has no envelope.
        let absent = delivery.envelope.is_empty();
        let mut note = |note, error: EnvelopeError| {
            let raw = format!("{} bytes: {error}", delivery.envelope.len());
            unread.extend((!absent).then(|| Note { note, field: "envelope".to_owned(), raw }));
        };
        let header = envelope::header_of(&delivery.envelope).map_err(|error| note("undecodable-header", error));
        let body = envelope::body_of(&delivery.envelope).map_err(|error| note("undecodable-body", error));
        let texts = body.map(|body| body.texts).unwrap_or_default();
        Self { delivery, header: header.unwrap_or_default(), texts, unread }
    }

    /// Returns member and id: `ne/0197…`.
    #[must_use]
    pub(super) fn name(&self) -> String {
        clean(&format!("{}/{}", self.header.member, self.header.id))
    }

    /// Returns the id from the header.
    #[must_use]
    pub(super) fn id(&self) -> &str {
        &self.header.id
    }

    /// Returns `header.msg_type`.
    #[must_use]
    pub(super) fn msg_type(&self) -> &str {
        &self.header.msg_type
    }

    /// Returns the bulletins that it refers to, as the node found them.
    #[must_use]
    pub(super) fn referenced(&self) -> &[proto::Referenced] {
        &self.delivery.referenced
    }

    /// Returns the Delivery in the protobuf JSON mapping, with `header` and `body` of its envelope
    /// decoded beside it, and `notes` on values that the mapping cannot express.
    #[must_use]
    pub(super) fn json(&self) -> Value {
        let mut notes = self.unread.clone();
        let mut object = message::fields_of(self.delivery, "", &mut notes);
        for (name, part) in [("header", self.header_fields()), ("body", self.body_fields())] {
            object.extend(part.map(|part| (name.to_owned(), json::object(&part, name, &mut notes).into())));
        }
        message::add_notes(&mut object, &notes);
        Value::Object(object)
    }

    /// Returns notes on parts and values that cannot be shown as they are.
    fn notes(&self) -> Vec<Note> {
        let mut notes = self.unread.clone();
        for (name, part) in [("header", self.header_fields()), ("body", self.body_fields())] {
            part.map(|part| json::object(&part, name, &mut notes));
        }
        notes
    }

    fn header_fields(&self) -> Option<DynamicMessage> {
        message::decode("Header", envelope::parts(&self.delivery.envelope).ok()?.header)
    }

    /// As [`envelope::body_of`], with the same limits on what is decoded.
    fn body_fields(&self) -> Option<DynamicMessage> {
        let parts = envelope::parts(&self.delivery.envelope).ok()?;
        parts.check_payload().ok()?;
        message::decode("Body", parts.payload)
    }

    /// Returns the envelope; the caller leaves out header and payload.
    fn envelope_fields(&self) -> Option<DynamicMessage> {
        envelope::parts(&self.delivery.envelope).ok()?;
        message::decode("Envelope", &self.delivery.envelope)
    }

    /// Returns the text in `lang`, or else the first one.
    fn text(&self, lang: &str) -> Option<&proto::Text> {
        text_in(&self.texts, lang)
    }
}

/// Returns the text in a language, or else the first one. Language tags are case-insensitive (RFC
/// 5646 §2.1.1).
fn text_in<'t>(texts: &'t [proto::Text], lang: &str) -> Option<&'t proto::Text> {
    let is_in = |text: &&proto::Text| text.language.split('-').next().is_some_and(|tag| tag.eq_ignore_ascii_case(lang));
    texts.iter().find(is_in).or_else(|| texts.first())
}

/// Returns the headline in a language, or else the first one.
#[must_use]
pub(super) fn headline_in<'t>(texts: &'t [proto::Text], lang: &str) -> Option<&'t str> {
    text_in(texts, lang).map(|text| text.headline.as_str())
}

impl<'a> Render<'a> {
    /// Creates a renderer with member names from `directory`.
    #[must_use]
    pub(super) fn new(context: &'a Context, directory: Directory) -> Self {
        Self { messages: &context.messages, output: &context.output, directory }
    }

    /// Returns a renderer for another output.
    #[must_use]
    pub(super) fn on<'b>(&self, output: &'b Output) -> Render<'b>
    where
        'a: 'b,
    {
        Render { messages: self.messages, output, directory: self.directory.clone() }
    }

    /// Returns a few lines for a bulletin that has just arrived.
    #[must_use]
    pub(super) fn brief(&self, reading: &Reading<'_>) -> Vec<String> {
        let header = &reading.header;
        let more = [self.messages.term("urgency", &header.urgency), self.messages.value(&header.topic)];
        self.entry(reading, short(&header.id), &times::seconds(header.sent_at.as_ref()), more)
    }

    /// Returns a few lines for each bulletin, with ids that are unique among them.
    #[must_use]
    pub(super) fn list(&self, readings: &[Reading<'_>]) -> Vec<String> {
        let ids: Vec<&str> = readings.iter().map(Reading::id).collect();
        let entry = |(reading, id): (&Reading<'_>, &str)| {
            self.entry(reading, id, &times::minutes(reading.header.sent_at.as_ref()), [])
        };
        readings.iter().zip(short_among(&ids)).flat_map(entry).collect()
    }

    /// Returns a bulletin in a list: when it was sent, how severe it is and its headline, whole; then
    /// its publisher, its state, its handling, its kind and `more`; then what it refers to.
    fn entry(&self, reading: &Reading<'_>, id: &str, at: &str, more: impl IntoIterator<Item = String>) -> Vec<String> {
        let (header, width) = (&reading.header, self.output.width());
        let headline =
            reading.text(self.messages.lang().code()).map(|text| self.messages.value(&bounded(&text.headline)));
        let lead = [
            self.messages.isolate(at),
            self.severity(header),
            self.banner(header),
            self.unless_alert(header),
            self.output.paint(&headline.unwrap_or_default(), Style::new().bold()),
        ];
        let state = reading.delivery.state.as_ref();
        let state = self.output.paint(&self.state(state), state::style(state));
        let name = if id.is_empty() { String::new() } else { clean(&format!("{}/{id}", header.member)) };
        let name = self.messages.isolate(&join_with(" ", [offset(reading.delivery), name]));
        let rest = [self.member(&header.member), state, self.tlp(header), self.kind(&header.kind)];
        let mut lines = wrap::indented("", HEADLINE_INDENT, &join_with("  ", lead), width);
        lines.extend(wrap::items(INDENT, rest.into_iter().chain(more).chain([name]), width));
        let unread = reading.unread.iter().map(|unread| self.warning(&self.messages.term("note", unread.note)));
        let remarks = self.about(reading).into_iter().chain(self.flags(reading)).chain(unread);
        lines.extend(remarks.flat_map(|remark| wrap::lines(&format!("{INDENT}{remark}"), width)));
        lines
    }

    /// Returns all content of a bulletin.
    #[must_use]
    pub(super) fn full(&self, reading: &Reading<'_>) -> Vec<String> {
        let header = &reading.header;
        let state = reading.delivery.state.as_ref();
        let badge = state.map(|_| self.state_badge(state)).unwrap_or_default();
        let kind = self.kind(&header.kind);
        let badges = [self.banner(header), badge, self.tlp(header), kind, self.unless_alert(header)];
        let mut lines = vec![join_with("  ", badges)];
        if state.is_some_and(|state| state.by.is_some()) {
            lines.push(self.output.paint(&self.state(state), state::style(state)));
        }
        let chosen = reading.text(self.messages.lang().code());
        lines.extend(chosen.into_iter().flat_map(|text| self.text_lines(text)));
        let others = reading.texts.iter().filter(|text| !chosen.is_some_and(|chosen| std::ptr::eq(*text, chosen)));
        lines.extend(others.flat_map(|text| self.text_lines(text)));
        lines.extend(self.about(reading));
        lines.extend(self.flags(reading));
        lines.extend(reading.notes().iter().map(|note| {
            let mut args = fluent_bundle::FluentArgs::new();
            args.set("field", note.field.as_str().arg());
            args.set("raw", note.raw.as_str().arg());
            self.warning(&self.messages.find(&format!("note-{}.full", note.note), Some(&args)).unwrap_or_default())
        }));
        for part in [reading.header_fields(), reading.body_fields()].into_iter().flatten() {
            lines.push(String::new());
            lines.extend(self.block(&self.fields(&part, &["texts"])));
        }
        lines.push(String::new());
        let delivery = reading.delivery;
        let mut pairs = vec![
            self.pair("label-bulletin", self.messages.isolate(&reading.name())),
            self.pair("label-feed", self.place(&delivery.feed, delivery.index)),
            self.pair("label-digest", self.messages.isolate(&hex::encode(&delivery.digest))),
            self.pair("label-offset", self.messages.isolate(&offset(delivery))),
        ];
        let envelope = reading.envelope_fields();
        pairs.extend(envelope.into_iter().flat_map(|envelope| self.fields(&envelope, &["header", "payload"])));
        lines.extend(self.block(&pairs));
        lines
    }

    /// Returns the lines of one language's text.
    fn text_lines(&self, text: &proto::Text) -> Vec<String> {
        let headline = self.output.paint(&self.messages.value(&text.headline), Style::new().bold());
        let language = format!("[{}]", self.messages.value(&text.language));
        let mut lines = vec![format!("{headline}  {}", self.output.paint(&language, Style::new().dimmed()))];
        for part in [&text.description, &text.instruction] {
            lines.extend(part.lines().filter(|line| !line.trim().is_empty()).map(|line| self.messages.value(line)));
        }
        lines
    }

    /// Returns the members that have stored a bulletin in full, one a line.
    #[must_use]
    pub(super) fn stored(&self, stored: &[proto::StoredBy]) -> Vec<String> {
        let line = |by: &proto::StoredBy| {
            let at = times::seconds(by.at.as_ref());
            format!("  ✓ {}", crate::localize!(self.messages, "stored-by", member = self.name(&by.member), at = at))
        };
        stored.iter().map(line).collect()
    }

    /// Returns labels and values, one pair a line; pairs with an empty value are left out.
    #[must_use]
    pub(super) fn block(&self, pairs: &[Pair]) -> Vec<String> {
        self.output.block(pairs)
    }

    /// Returns a label of the catalogue with its value.
    #[must_use]
    pub(super) fn pair(&self, id: &str, value: impl Into<String>) -> Pair {
        (self.messages.text(id), value.into())
    }

    /// Returns feed and index: `ma.rabat.example/feed/1, place 7`.
    #[must_use]
    pub(super) fn place(&self, feed: &str, index: u64) -> String {
        crate::localize!(self.messages, "feed-place", feed = feed, place = index)
    }

    /// Returns `ne (Niger)`, clean, to be inserted into a message.
    #[must_use]
    pub(super) fn name(&self, code: &str) -> String {
        self.directory.name(code, self.messages)
    }

    /// Returns `ne (Niger)`, isolated, for use outside of a message.
    #[must_use]
    pub(super) fn member(&self, code: &str) -> String {
        self.messages.isolate(&self.name(code))
    }

    /// Returns the catalogue of the session's language.
    #[must_use]
    pub(super) fn messages(&self) -> &Messages {
        self.messages
    }

    fn state_badge(&self, state: Option<&proto::State>) -> String {
        self.output.paint(&self.state_label(state), state::style(state))
    }

    /// Returns the label of a kind, or its name if it is not known here.
    #[must_use]
    pub(super) fn kind(&self, name: &str) -> String {
        let known = kinds::find(name).map(|kind| kind.labels);
        let label = known.map(|labels| self.messages.pick(labels.ar, labels.fr, labels.en).to_owned());
        label.unwrap_or_else(|| self.messages.value(name))
    }

    /// Returns the message type, or an empty text for an alert, as most bulletins are.
    fn unless_alert(&self, header: &proto::Header) -> String {
        if header.msg_type == "Alert" { String::new() } else { self.messages.term("msg-type", &header.msg_type) }
    }

    /// Returns the banner of a bulletin that is not actual: `EXERCISE`. Empty for an actual one.
    fn not_for_real(&self, header: &proto::Header) -> String {
        if header.status == "Actual" { String::new() } else { self.messages.term("banner", &header.status) }
    }

    fn banner(&self, header: &proto::Header) -> String {
        let term = self.not_for_real(header);
        if term.is_empty() {
            term
        } else {
            // No line breaks within it.
            self.output.paint(&format!("\u{a0}{term}\u{a0}"), Style::new().black().on_yellow().bold())
        }
    }

    fn tlp(&self, header: &proto::Header) -> String {
        let label = &handling(header).tlp;
        self.output.paint(&self.messages.value(label), tlp_style(label))
    }

    fn severity(&self, header: &proto::Header) -> String {
        self.output.paint(&self.messages.term("severity", &header.severity), severity_style(&header.severity))
    }

    fn flags(&self, reading: &Reading<'_>) -> Vec<String> {
        reading.delivery.flags.iter().map(|flag| self.warning(&self.messages.term("flag", flag))).collect()
    }

    fn warning(&self, text: &str) -> String {
        self.output.paint(&format!("⚠ {text}"), Style::new().yellow().bold())
    }
}

/// Returns `#7`. A bulletin that was not read from a node has no offset.
fn offset(delivery: &proto::Delivery) -> String {
    if delivery.offset == 0 { String::new() } else { format!("#{}", delivery.offset) }
}

/// A label and its value, both ready to be shown.
pub(super) type Pair = (String, String);

fn handling(header: &proto::Header) -> proto::Handling {
    header.handling.clone().unwrap_or_default()
}

/// Returns the colour that FIRST's TLP 2.0 standard (§4) assigns to a label: bright on black.
pub(super) fn tlp_style(label: &str) -> Style {
    let (red, green, blue) = match Tlp::read(label) {
        Some(Tlp::Red) => (0xFF, 0x2B, 0x2B),
        Some(Tlp::Amber | Tlp::AmberStrict) => (0xFF, 0xC0, 0x00),
        Some(Tlp::Green) => (0x33, 0xFF, 0x00),
        Some(Tlp::Clear) => (0xFF, 0xFF, 0xFF),
        None => return Style::new().bold(),
    };
    Style::new().color(Rgb(red, green, blue)).on_color(Rgb(0, 0, 0)).bold()
}

fn severity_style(severity: &str) -> Style {
    match severity {
        "Extreme" => Style::new().red().bold(),
        "Severe" => Style::new().red(),
        "Moderate" => Style::new().yellow(),
        _ => Style::new(),
    }
}

pub(super) fn join_with(separator: &str, parts: impl IntoIterator<Item = String>) -> String {
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(separator)
}

/// Returns `person-notice` for `PersonNotice`.
pub(super) fn kebab(camel: &str) -> String {
    let mut text = String::new();
    for c in camel.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

/// Returns a headline of bounded length: that of another member may have any.
fn bounded(headline: &str) -> String {
    match headline.char_indices().nth(HEADLINE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", headline.get(..end).unwrap_or_default()),
        None => headline.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use barid_core::ids::Member;
    use bytes::Bytes;

    use super::*;
    use crate::cli::messages::{FSI, Lang, PDI};

    fn delivery(kind: &kinds::KindInfo) -> proto::Delivery {
        let mut draft = kind.sample().unwrap();
        let header = draft.header.as_mut().unwrap();
        header.format = 1;
        header.member = "ne".to_owned();
        header.issuer = "police-niamey".to_owned();
        header.id = "01976f6e-7c00-7000-8000-000000000001".to_owned();
        header.sent_at = Some(prost_types::Timestamp { seconds: 1_750_000_000, nanos: 0 });
        let envelope = envelope::encode(draft.header.as_ref().unwrap(), draft.body.as_ref().unwrap(), [7; 16]);
        proto::Delivery {
            offset: 42,
            feed: "ne.rabat.example/feed/1".to_owned(),
            index: 3,
            digest: Bytes::from(envelope::digest(&envelope).0.to_vec()),
            envelope,
            flags: vec!["duplicate-id".to_owned()],
            ..Default::default()
        }
    }

    fn context(lang: Lang) -> Context {
        Context::new(Messages::new(lang), Output::plain(), None)
    }

    fn directory() -> Directory {
        Directory::of(Member::from_str("ne").unwrap())
    }

    use std::str::FromStr;

    #[test]
    fn exercise_is_marked_in_every_format_and_language() {
        for (lang, badge) in [(Lang::Ar, "تمرين"), (Lang::Fr, "EXERCICE"), (Lang::En, "EXERCISE")] {
            let context = context(lang);
            let render = Render::new(&context, directory());
            for kind in kinds::REGISTRY {
                let delivery = delivery(kind);
                let reading = Reading::new(&delivery);
                let (brief, full) = (render.brief(&reading), render.full(&reading));
                assert!(brief[0].contains(badge), "{lang:?} {}: {brief:?}", kind.name);
                assert!(full[0].contains(badge), "{lang:?} {}: {full:?}", kind.name);
                let list = render.list(&[reading]);
                assert!(list[0].contains(badge), "{lang:?} {}: {list:?}", kind.name);
                let all = [brief, full, list].concat().join("\n");
                assert!(all.contains(&context.messages.text("flag-duplicate-id")), "{all}");
                assert_eq!(all.matches(FSI).count(), all.matches(PDI).count(), "{all:?}");
                if lang != Lang::Ar {
                    assert!(!all.contains([FSI, PDI]), "{all:?}");
                }
            }
        }
    }

    #[test]
    fn list_leads_with_time_severity_and_whole_headline() {
        let headline = "Exercise: a passport stolen at Niamey may be used at a border within hours from now on";
        for lang in Lang::ALL {
            let output = Output::plain().with_width(60);
            let context = Context::new(Messages::on_terminal(lang, false), output, None);
            let render = Render::new(&context, directory());
            let mut draft = kinds::find("travel-document-alert").unwrap().sample().unwrap();
            let header = draft.header.as_mut().unwrap();
            (header.member, header.id) = ("ne".to_owned(), "01976f6e-7c00-7000-8000-000000000001".to_owned());
            header.severity = "Severe".to_owned();
            header.sent_at = Some(prost_types::Timestamp { seconds: 1_750_000_000, nanos: 0 });
            draft.body.as_mut().unwrap().texts.iter_mut().for_each(|text| text.headline = headline.to_owned());
            let envelope = envelope::encode(draft.header.as_ref().unwrap(), draft.body.as_ref().unwrap(), [7; 16]);
            let delivery = proto::Delivery { offset: 42, envelope, ..Default::default() };
            let readings = [Reading::new(&delivery)];
            for (lines, time) in [(render.list(&readings), "15:06 UTC"), (render.brief(&readings[0]), "15:06:40 UTC")] {
                assert!(lines.iter().all(|line| wrap::columns(line) <= 60), "{lines:#?}");
                let severity = context.messages.term("severity", "Severe");
                let lead = format!("2025-06-15 {time}  {severity}  ");
                assert!(lines[0].starts_with(&lead), "{lines:#?}");
                let text = lines.iter().map(|line| line.trim_start()).collect::<Vec<_>>().join(" ");
                assert!(text.contains(headline), "the headline is whole: {text}");
                assert!(lines.iter().any(|line| line.starts_with("  ne · ")), "{lines:#?}");
                assert!(text.contains("#42 ne/01976f6e-7c00") && !text.contains("-7000-"), "{text}");
            }
        }
    }

    #[test]
    fn delivery_json_matches_golden() {
        // The golden file has `+00:00` for UTC; both forms can be read.
        let golden = include_str!("golden/delivery.json");
        let expected = golden.replace("+00:00\"", "Z\"");
        let mut object: Value = serde_json::from_str(golden).unwrap();
        let fields = object.as_object_mut().unwrap();
        assert!(fields.remove("header").is_some() && fields.remove("body").is_some());
        let delivery: proto::Delivery = serde_json::from_value(object).unwrap();
        let json = serde_json::to_string_pretty(&Reading::new(&delivery).json()).unwrap();
        assert_eq!(json.trim(), expected.trim(), "{json}");
    }

    #[test]
    fn text_language_tag_matches_case_insensitively() {
        let texts = [("EN", "one"), ("FR-ne", "deux"), ("Ar-Latn-TN", "thalatha")];
        let texts = texts.map(|(language, headline)| proto::Text {
            language: language.into(),
            headline: headline.into(),
            ..Default::default()
        });
        let chosen = |lang| headline_in(&texts, lang).unwrap();
        assert_eq!((chosen("en"), chosen("fr"), chosen("ar"), chosen("de")), ("one", "deux", "thalatha", "one"));
        let other =
            [proto::Text { language: "fra".into(), headline: "x".into(), ..Default::default() }, texts[1].clone()];
        assert_eq!(headline_in(&other, "fr"), Some("deux"), "another language begins alike");
    }

    #[test]
    fn undecodable_envelope_is_rendered_partially() {
        let delivery = proto::Delivery { envelope: Bytes::from_static(b"\xff\xff"), index: 9, ..Default::default() };
        let context = context(Lang::En);
        let render = Render::new(&context, directory());
        let reading = Reading::new(&delivery);
        assert!(render.full(&reading).join("\n").contains('9'));
        assert!(!render.brief(&reading).is_empty());
        assert_eq!(reading.json()["notes"][0]["note"], "undecodable-header");
    }

    #[test]
    fn control_characters_are_stripped_from_text() {
        let mut draft = kinds::REGISTRY[0].sample().unwrap();
        draft.body.as_mut().unwrap().texts[2].headline = "x\u{1b}[2J\u{202e}y".to_owned();
        draft.body.as_mut().unwrap().texts[2].description = "a\n\u{1b}]0;title\u{7}b".to_owned();
        let envelope = envelope::encode(draft.header.as_ref().unwrap(), draft.body.as_ref().unwrap(), [7; 16]);
        let delivery = proto::Delivery { envelope, flags: vec!["\u{1b}c".to_owned()], ..Default::default() };
        let context = context(Lang::En);
        let render = Render::new(&context, directory());
        let reading = Reading::new(&delivery);
        let all = [render.brief(&reading), render.full(&reading), render.list(std::slice::from_ref(&reading))]
            .concat()
            .join("\n");
        assert!(!all.contains(['\u{1b}', '\u{202e}', '\u{7}']), "{all:?}");
    }
}
