//! Renders all fields of any message as labels and values, by its descriptor.
//!
//! In scope: labels from the catalogues, by message and field or by field alone, or else the
//! field's own name; vocabulary terms; times, digests and lists. Out of scope: fields with a layout
//! of their own (`render`), and JSON (`message`).

use barid_core::bulletin::kinds;
use barid_core::bulletin::times::Time;
use barid_core::json::{raw_time, timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{DynamicMessage, FieldDescriptor, Value as Field};

use super::messages::clean;
use super::render::{Pair, Render, join_with, kebab};
use super::times;

/// Fields with vocabulary terms, and the vocabulary's name in the catalogues.
const VOCABULARIES: [(&str, &str); 13] = [
    ("purpose", "purpose"),
    ("status", "status"),
    ("msg_type", "msg-type"),
    ("urgency", "urgency"),
    ("severity", "severity"),
    ("categories", "category"),
    ("certainty", "certainty"),
    ("fraud_type", "fraud-type"),
    ("conveyance", "conveyance"),
    ("sex", "sex"),
    ("colour", "colour"),
    ("outcome", "outcome"),
    ("reason", "reason"),
];
/// Fields that contain members' codes.
const MEMBERS: [&str; 2] = ["member", "releasable_to"];
/// Longest value shown in hex, in bytes, as digests and keys are everywhere. Longer ones are shown
/// in base64, as in JSON.
const HEX_BYTES_MAX: usize = 64;
/// Longest list item, in columns, that shares a line with others.
const SHARED_LINE_CHARS_MAX: usize = 24;

impl Render<'_> {
    /// Returns labels and values of all fields except those named in `without`. The fields of a
    /// nested message follow with their own labels; each message of a list is one value.
    #[must_use]
    pub(super) fn fields(&self, message: &DynamicMessage, without: &[&str]) -> Vec<Pair> {
        let mut pairs = Vec::new();
        for (field, value) in message.fields().filter(|(field, _)| !without.contains(&field.name())) {
            match value {
                Field::Message(part) if timestamp(part).is_none() => pairs.extend(self.fields(part, &[])),
                Field::List(items) => {
                    let items: Vec<String> = items.iter().map(|item| self.text_of(&field, item)).collect();
                    let short = |item: &String| item.chars().count() <= SHARED_LINE_CHARS_MAX;
                    if items.iter().all(short) {
                        pairs.push((self.label(&field), items.join(", ")));
                    } else {
                        pairs.extend(items.into_iter().map(|item| (self.label(&field), item)));
                    }
                }
                value => pairs.push((self.label(&field), self.text_of(&field, value))),
            }
        }
        pairs
    }

    /// Returns a field's label in the reader's language.
    #[must_use]
    pub(super) fn label(&self, field: &FieldDescriptor) -> String {
        let (message, name) = (kebab(field.parent_message().name()), field.name().replace('_', "-"));
        let ids = [format!("field-{message}-{name}"), format!("field-{name}"), format!("label-{name}")];
        let found = ids.iter().find_map(|id| self.messages().find(id, None));
        found.unwrap_or_else(|| self.messages().value(&name.replace('-', " ")))
    }

    fn text_of(&self, field: &FieldDescriptor, value: &Field) -> String {
        let messages = self.messages();
        match value {
            Field::Message(part) => match timestamp(part) {
                Some(at) => messages.value(&Time::from_proto(&at).map_or_else(|| times::seconds(Some(&at)), exact)),
                None => {
                    let field = |(field, value): (FieldDescriptor, &Field)| {
                        format!("{} {}", self.label(&field), self.text_of(&field, value))
                    };
                    join_with(" · ", part.fields().map(field))
                }
            },
            Field::List(items) => items.iter().map(|item| self.text_of(field, item)).collect::<Vec<_>>().join(", "),
            Field::Bytes(bytes) if bytes.len() <= HEX_BYTES_MAX => messages.value(&hex::encode(bytes)),
            Field::Bytes(bytes) => messages.value(&STANDARD.encode(bytes)),
            Field::String(text) => {
                let vocabulary = VOCABULARIES.iter().find(|(name, _)| *name == field.name());
                match vocabulary {
                    Some((_, vocabulary)) => messages.term(vocabulary, text),
                    None if MEMBERS.contains(&field.name()) => self.member(text),
                    // The name is what filters take.
                    None if field.name() == "kind" && kinds::find(text).is_some() => {
                        format!("{} ({})", self.kind(text), messages.value(text))
                    }
                    None => messages.value(text),
                }
            }
            Field::Bool(it) => messages.text(if *it { "yes" } else { "no" }),
            Field::I32(it) => messages.value(&it.to_string()),
            Field::I64(it) => messages.value(&it.to_string()),
            Field::U32(it) => messages.value(&it.to_string()),
            Field::U64(it) => messages.value(&it.to_string()),
            Field::F32(it) => messages.value(&it.to_string()),
            Field::F64(it) => messages.value(&it.to_string()),
            Field::EnumNumber(it) => messages.value(&it.to_string()),
            Field::Map(_) => messages.value(&clean(&value.to_string())),
        }
    }
}

/// Returns a time with all its digits: `2026-11-23 20:05:11.250 UTC`.
fn exact(time: Time) -> String {
    times::spaced(&time.to_string())
}

/// Returns the raw value of a timestamp outside the years 1 to 9999, marked. It has no other text.
pub(super) fn marked(at: &prost_types::Timestamp) -> String {
    format!("⚠ {}", raw_time(at))
}
