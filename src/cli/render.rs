//! What a bulletin looks like: to people in their language, to machines as JSON.
//!
//! In scope: one entry as a node delivers it. Out of scope: whether it may be shown (the node decides) and whether it is true
//! (`verify` decides). What cannot be decoded is shown as far as it can be. A bulletin that is not for real says so on every surface.

use barid_core::bulletin::kinds;
use barid_core::bulletin::vocabulary::Tlp;
use barid_core::{envelope, proto};
use owo_colors::{Rgb, Style};
use pbjson_types::Timestamp;
use serde_json::Value;

use super::messages::{Messages, clean};
use super::output::{Cell, Output, Table};
use super::profile::Directory;
use super::{Context, times};

/// An entry with its envelope decoded as far as it goes.
#[derive(Clone, Debug)]
pub(super) struct Reading<'a> {
    delivery: &'a proto::Delivery,
    header: proto::Header,
    body: Option<proto::Body>,
}

/// Shows bulletins in one session's language.
#[derive(Debug)]
pub(super) struct Render<'a> {
    messages: &'a Messages,
    output: &'a Output,
    directory: Directory,
}

impl<'a> Reading<'a> {
    /// Decodes what can be decoded.
    #[must_use]
    pub(super) fn new(delivery: &'a proto::Delivery) -> Self {
        let header = envelope::header_of(&delivery.envelope).unwrap_or_default();
        Self { delivery, header, body: envelope::body_of(&delivery.envelope).ok() }
    }

    /// `ne/0197…`.
    #[must_use]
    pub(super) fn name(&self) -> String {
        clean(&format!("{}/{}", self.header.member, self.header.id))
    }

    /// The protobuf JSON mapping of the Delivery, with `header` and `body` of its envelope decoded beside it.
    ///
    /// # Errors
    /// If a time in it is one that JSON cannot write.
    pub(super) fn json(&self) -> Result<Value, serde_json::Error> {
        let mut object = serde_json::to_value(self.delivery)?;
        if let Value::Object(fields) = &mut object {
            fields.insert("header".to_owned(), serde_json::to_value(&self.header)?);
            if let Some(body) = &self.body {
                fields.insert("body".to_owned(), serde_json::to_value(body)?);
            }
        }
        Ok(object)
    }

    /// The text in `lang`, or else the first.
    fn text(&self, lang: &str) -> Option<&proto::Text> {
        let texts = &self.body.as_ref()?.texts;
        texts.iter().find(|text| text.language.split('-').next() == Some(lang)).or_else(|| texts.first())
    }
}

impl<'a> Render<'a> {
    /// With names of members from `directory`.
    #[must_use]
    pub(super) fn new(context: &'a Context, directory: Directory) -> Self {
        Self { messages: &context.messages, output: &context.output, directory }
    }

    /// A few lines for a bulletin that has just come.
    #[must_use]
    pub(super) fn brief(&self, reading: &Reading<'_>) -> Vec<String> {
        let header = &reading.header;
        let dim = Style::new().dimmed();
        let marks = [
            self.banner(header),
            self.tlp(header),
            self.severity(header),
            self.messages.word("urgency", &header.urgency),
            self.output.paint(&self.messages.value(&times::seconds(header.sent_at.as_ref())), dim),
            self.member(&header.member),
        ];
        let mut lines = vec![join_with("  ", marks)];
        let what = [self.kind(header), self.unless_alert(header), self.messages.value(&header.topic)];
        lines.push(format!("  {}", join_with(" · ", what)));
        if let Some(text) = reading.text(self.messages.lang().code()) {
            lines.push(format!("  {}", self.output.paint(&self.messages.value(&text.headline), Style::new().bold())));
        }
        lines.extend(self.flags(reading).into_iter().map(|flag| format!("  {flag}")));
        let place = format!("{}  #{}", reading.name(), reading.delivery.arrival);
        lines.push(format!("  {}", self.output.paint(&self.messages.isolate(&place), dim)));
        lines
    }

    /// One row a bulletin.
    #[must_use]
    pub(super) fn table(&self, readings: &[Reading<'_>]) -> Vec<String> {
        let headings =
            ["column-arrival", "column-sent", "column-tlp", "column-severity", "column-bulletin", "column-headline"];
        let mut table = Table::new(headings.map(|id| self.messages.text(id)));
        for reading in readings {
            let header = &reading.header;
            let headline = reading.text(self.messages.lang().code()).map(|text| clean(&text.headline));
            let marks: Vec<String> = [self.not_for_real(header), self.unless_alert(header), self.kind(header)]
                .into_iter()
                .chain(reading.delivery.flags.iter().map(|flag| self.messages.word("flag", flag)))
                .filter(|mark| !mark.is_empty())
                .collect();
            let what = format!("[{}] {}", marks.join(" · "), self.messages.isolate(&headline.unwrap_or_default()));
            table.row([
                Cell::from(self.messages.isolate(&format!("#{}", reading.delivery.arrival))),
                Cell::from(self.messages.isolate(&times::minutes(header.sent_at.as_ref()))),
                Cell::styled(self.messages.value(&handling(header).tlp), tlp_style(&handling(header).tlp)),
                Cell::styled(self.messages.word("severity", &header.severity), severity_style(&header.severity)),
                Cell::from(self.messages.isolate(&reading.name())),
                Cell::from(what),
            ]);
        }
        table.lines(self.output)
    }

    /// Everything that a bulletin says.
    #[must_use]
    pub(super) fn full(&self, reading: &Reading<'_>) -> Vec<String> {
        let header = &reading.header;
        let marks = [self.banner(header), self.tlp(header), self.kind(header), self.unless_alert(header)];
        let mut lines = vec![join_with("  ", marks)];
        if let Some(text) = reading.text(self.messages.lang().code()) {
            let headline = self.messages.value(&text.headline);
            lines.push(self.output.paint(&headline, Style::new().bold()));
            for part in [&text.description, &text.instruction] {
                lines.extend(part.lines().filter(|line| !line.trim().is_empty()).map(|line| self.messages.value(line)));
            }
            lines.extend(self.other_languages(reading, text));
        }
        lines.extend(self.flags(reading));
        lines.push(String::new());
        lines.extend(self.block(&self.header_pairs(header)));
        if let Some(body) = &reading.body {
            lines.push(String::new());
            lines.extend(self.block(&self.body_pairs(body)));
        }
        lines.push(String::new());
        let delivery = reading.delivery;
        // What was not read from a node has not arrived anywhere.
        let arrival = if delivery.arrival == 0 { String::new() } else { delivery.arrival.to_string() };
        lines.extend(self.block(&[
            self.pair("label-bulletin", self.messages.isolate(&reading.name())),
            self.pair("label-feed", self.place(&delivery.feed, delivery.index)),
            self.pair("label-digest", self.messages.isolate(&hex::encode(&delivery.digest))),
            self.pair("label-arrival", self.messages.isolate(&arrival)),
        ]));
        lines
    }

    /// Who holds a bulletin in full, one line each.
    #[must_use]
    pub(super) fn stored(&self, stored: &[proto::StoredBy]) -> Vec<String> {
        let line = |by: &proto::StoredBy| {
            let at = times::seconds(by.at.as_ref());
            format!("  ✓ {}", crate::say!(self.messages, "stored-by", member = self.name(&by.member), at = at))
        };
        stored.iter().map(line).collect()
    }

    /// Labels and values, one pair a line; pairs with an empty value are left out.
    #[must_use]
    pub(super) fn block(&self, pairs: &[Pair]) -> Vec<String> {
        self.output.block(pairs)
    }

    /// A label of the catalogue with its value.
    #[must_use]
    pub(super) fn pair(&self, id: &str, value: impl Into<String>) -> Pair {
        (self.messages.text(id), value.into())
    }

    /// `ma.rabat.example/feed/1, place 7`.
    #[must_use]
    pub(super) fn place(&self, feed: &str, index: u64) -> String {
        crate::say!(self.messages, "feed-place", feed = feed, place = index)
    }

    /// `ne (Niger)`, clean, to be inserted into a message.
    #[must_use]
    pub(super) fn name(&self, code: &str) -> String {
        self.directory.name(code, self.messages)
    }

    /// `ne (Niger)`, to stand by itself.
    #[must_use]
    pub(super) fn member(&self, code: &str) -> String {
        self.messages.isolate(&self.name(code))
    }

    fn header_pairs(&self, header: &proto::Header) -> Vec<Pair> {
        let (messages, handling) = (self.messages, handling(header));
        let list = |items: &[String]| join_with(", ", items.iter().map(|item| messages.value(item)));
        let time = |at: &Option<Timestamp>| messages.value(&times::seconds(at.as_ref()));
        let references: Vec<String> = header.references.iter().map(|r| format!("{}/{}", r.member, r.id)).collect();
        vec![
            self.pair("label-from", join_with(" · ", [self.member(&header.member), messages.value(&header.issuer)])),
            self.pair("label-topic", messages.value(&header.topic)),
            self.pair("label-status", messages.word("status", &header.status)),
            self.pair("label-severity", self.severity(header)),
            self.pair("label-urgency", messages.word("urgency", &header.urgency)),
            self.pair("label-sent", time(&header.sent_at)),
            self.pair("label-effective", time(&header.effective)),
            self.pair("label-expires", time(&header.expires)),
            self.pair("label-releasable", join_with(", ", handling.releasable_to.iter().map(|code| self.member(code)))),
            self.pair("label-codes", list(&handling.codes)),
            self.pair("label-codes-note", messages.value(&handling.codes_note)),
            self.pair("label-purpose", messages.value(&handling.purpose)),
            self.pair("label-personal", if handling.personal_data { messages.text("yes") } else { String::new() }),
            self.pair("label-retain", messages.value(&header.retain_until)),
            self.pair("label-references", list(&references)),
            self.pair("label-incidents", list(&header.incidents)),
        ]
    }

    fn body_pairs(&self, body: &proto::Body) -> Vec<Pair> {
        let messages = self.messages;
        let categories = join_with(", ", body.categories.iter().map(|word| messages.word("category", word)));
        let mut pairs = vec![
            self.pair("label-categories", categories),
            self.pair("label-certainty", messages.word("certainty", &body.certainty)),
            self.pair("label-onset", messages.value(&times::seconds(body.onset.as_ref()))),
        ];
        if let Some(grading) = &body.grading {
            let text = format!("{} {}{}", grading.scheme, grading.source, grading.information);
            pairs.push(self.pair("label-grading", messages.value(&text)));
        }
        for area in &body.areas {
            let codes = area.geocodes.iter().map(|code| format!("{} {}", code.name, code.value));
            let text = join_with(" · ", std::iter::once(area.area_desc.clone()).chain(codes));
            pairs.push(self.pair("label-area", messages.value(&text)));
        }
        for file in &body.attachments {
            let text = format!("{} ({}, {} B)", file.description, file.media_type, file.size);
            pairs.push(self.pair("label-attachment", messages.value(&text)));
        }
        let content = serde_json::to_value(proto::Body { content: body.content.clone(), ..Default::default() });
        if let Ok(Value::Object(fields)) = content {
            fields.iter().for_each(|(name, value)| self.content_pairs(name, value, &mut pairs));
        }
        pairs
    }

    /// A kind's own fields. All kinds are shown by one rule, so that a new kind needs nothing here; the catalogue names its fields
    /// (`field-<name>`) where it can.
    fn content_pairs(&self, name: &str, value: &Value, pairs: &mut Vec<Pair>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| self.content_pairs(name, value, pairs)),
            Value::Array(items) => {
                items.iter().for_each(|item| pairs.push((self.field(name), self.content_value(name, item))));
            }
            other => pairs.push((self.field(name), self.content_value(name, other))),
        }
    }

    fn content_value(&self, name: &str, value: &Value) -> String {
        match value {
            Value::Object(fields) => join_with(
                " · ",
                fields.iter().map(|(name, value)| format!("{} {}", self.field(name), self.content_value(name, value))),
            ),
            Value::String(text) => match times::parse(text) {
                // Days stay days; only instants are times in the JSON mapping.
                Ok(at) if text.contains('T') => self.messages.value(&times::seconds(Some(&at))),
                _ => self.messages.word(&kebab(name), text),
            },
            other => self.messages.value(&other.to_string()),
        }
    }

    fn field(&self, name: &str) -> String {
        let name = kebab(name);
        self.messages
            .find(&format!("field-{name}"), None)
            .unwrap_or_else(|| self.messages.value(&name.replace('-', " ")))
    }

    fn kind(&self, header: &proto::Header) -> String {
        let known = kinds::find(&header.kind).map(|kind| kind.labels);
        let label = known.map(|labels| self.messages.pick(labels.ar, labels.fr, labels.en).to_owned());
        label.unwrap_or_else(|| self.messages.value(&header.kind))
    }

    /// The message type, unless it is the one that most bulletins are.
    fn unless_alert(&self, header: &proto::Header) -> String {
        if header.msg_type == "Alert" { String::new() } else { self.messages.word("msg-type", &header.msg_type) }
    }

    /// What a bulletin is that is not for real: `EXERCISE`. Empty for a real one.
    fn not_for_real(&self, header: &proto::Header) -> String {
        if header.status == "Actual" { String::new() } else { self.messages.word("banner", &header.status) }
    }

    fn banner(&self, header: &proto::Header) -> String {
        let word = self.not_for_real(header);
        if word.is_empty() {
            word
        } else {
            self.output.paint(&format!(" {word} "), Style::new().black().on_yellow().bold())
        }
    }

    fn tlp(&self, header: &proto::Header) -> String {
        let label = &handling(header).tlp;
        self.output.paint(&self.messages.value(label), tlp_style(label))
    }

    fn severity(&self, header: &proto::Header) -> String {
        self.output.paint(&self.messages.word("severity", &header.severity), severity_style(&header.severity))
    }

    fn flags(&self, reading: &Reading<'_>) -> Vec<String> {
        let line = |flag: &String| {
            self.output.paint(&format!("⚠ {}", self.messages.word("flag", flag)), Style::new().yellow().bold())
        };
        reading.delivery.flags.iter().map(line).collect()
    }

    fn other_languages(&self, reading: &Reading<'_>, shown: &proto::Text) -> Option<String> {
        let texts = reading.body.as_ref().map(|body| body.texts.as_slice()).unwrap_or_default();
        let others = texts.iter().map(|text| text.language.as_str()).filter(|language| *language != shown.language);
        let others = join_with(", ", others.map(clean));
        let note = || {
            self.output
                .paint(&crate::say!(self.messages, "other-languages", languages = &others), Style::new().dimmed())
        };
        (!others.is_empty()).then(note)
    }
}

/// A label and its value, both ready to be shown.
pub(super) type Pair = (String, String);

fn handling(header: &proto::Header) -> proto::Handling {
    header.handling.clone().unwrap_or_default()
}

/// The colours that FIRST's TLP 2.0 standard (§4) gives its labels: bright on black.
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

fn join_with(separator: &str, parts: impl IntoIterator<Item = String>) -> String {
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(separator)
}

/// `documentNumber` as `document-number`.
fn kebab(camel: &str) -> String {
    let mut text = String::new();
    for c in camel.chars() {
        if c.is_ascii_uppercase() {
            text.push('-');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use barid_core::names::Member;
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
        header.sent_at = Some(Timestamp { seconds: 1_750_000_000, nanos: 0 });
        let envelope = envelope::encode(draft.header.as_ref().unwrap(), draft.body.as_ref().unwrap(), [7; 16]);
        proto::Delivery {
            arrival: 42,
            feed: "ne.rabat.example/feed/1".to_owned(),
            index: 3,
            digest: Bytes::from(envelope::digest(&envelope).0.to_vec()),
            envelope,
            flags: vec!["duplicate-id".to_owned()],
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
    fn an_exercise_says_so_on_every_surface_in_every_language() {
        for (lang, mark) in [(Lang::Ar, "تمرين"), (Lang::Fr, "EXERCICE"), (Lang::En, "EXERCISE")] {
            let context = context(lang);
            let render = Render::new(&context, directory());
            for kind in kinds::REGISTRY {
                let delivery = delivery(kind);
                let reading = Reading::new(&delivery);
                let (brief, full) = (render.brief(&reading), render.full(&reading));
                assert!(brief[0].contains(mark), "{lang:?} {}: {brief:?}", kind.name);
                assert!(full[0].contains(mark), "{lang:?} {}: {full:?}", kind.name);
                let table = render.table(&[reading]);
                assert!(table[1].contains(mark), "{lang:?} {}: {table:?}", kind.name);
                let all = [brief, full, table].concat().join("\n");
                assert!(all.contains(&context.messages.text("flag-duplicate-id")), "{all}");
                assert_eq!(all.matches(FSI).count(), all.matches(PDI).count(), "{all:?}");
                if lang != Lang::Ar {
                    assert!(!all.contains([FSI, PDI]), "{all:?}");
                }
            }
        }
    }

    #[test]
    fn every_field_of_today_s_kinds_has_a_name() {
        fn names(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                    found.push(kebab(name));
                    names(value, found);
                }),
                Value::Array(items) => items.iter().for_each(|item| names(item, found)),
                _ => {}
            }
        }
        for kind in kinds::REGISTRY {
            let content = kind.sample().unwrap().body.unwrap().content;
            let value = serde_json::to_value(proto::Body { content, ..Default::default() }).unwrap();
            let mut found = Vec::new();
            value.as_object().unwrap().values().for_each(|content| names(content, &mut found));
            for name in found {
                let messages = Messages::new(Lang::En);
                assert!(messages.find(&format!("field-{name}"), None).is_some(), "field-{name} ({})", kind.name);
            }
        }
    }

    #[test]
    fn a_delivery_in_json_stays_as_it_is() {
        // Written when the offset of UTC was written out: both are read.
        let golden = include_str!("golden/delivery.json");
        let expected = golden.replace("+00:00\"", "Z\"");
        let mut object: Value = serde_json::from_str(golden).unwrap();
        let fields = object.as_object_mut().unwrap();
        assert!(fields.remove("header").is_some() && fields.remove("body").is_some());
        let delivery: proto::Delivery = serde_json::from_value(object).unwrap();
        let json = serde_json::to_string_pretty(&Reading::new(&delivery).json().unwrap()).unwrap();
        assert_eq!(json.trim(), expected.trim(), "{json}");
    }

    #[test]
    fn garbage_is_shown_as_far_as_it_goes() {
        let delivery = proto::Delivery { envelope: Bytes::from_static(b"\xff\xff"), index: 9, ..Default::default() };
        let context = context(Lang::En);
        let render = Render::new(&context, directory());
        let reading = Reading::new(&delivery);
        assert!(render.full(&reading).join("\n").contains('9'));
        assert!(!render.brief(&reading).is_empty());
        assert!(reading.json().is_ok());
    }

    #[test]
    fn hostile_text_cannot_drive_the_terminal() {
        let mut draft = kinds::REGISTRY[0].sample().unwrap();
        draft.body.as_mut().unwrap().texts[2].headline = "x\u{1b}[2J\u{202e}y".to_owned();
        draft.body.as_mut().unwrap().texts[2].description = "a\n\u{1b}]0;title\u{7}b".to_owned();
        let envelope = envelope::encode(draft.header.as_ref().unwrap(), draft.body.as_ref().unwrap(), [7; 16]);
        let delivery = proto::Delivery { envelope, flags: vec!["\u{1b}c".to_owned()], ..Default::default() };
        let context = context(Lang::En);
        let render = Render::new(&context, directory());
        let reading = Reading::new(&delivery);
        let all = [render.brief(&reading), render.full(&reading), render.table(std::slice::from_ref(&reading))]
            .concat()
            .join("\n");
        assert!(!all.contains(['\u{1b}', '\u{202e}', '\u{7}']), "{all:?}");
    }
}
