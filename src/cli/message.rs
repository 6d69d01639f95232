//! Messages by their description: every field of every kind, those too that no code here names.
//!
//! In scope: the protobuf JSON mapping for readers, by descriptors. As `core::json` writes it, but nothing that a member can sign is an error
//! here: what JSON cannot express is left out and named, with what it is. Out of scope: words for people (`fields`).

use barid_core::bulletin::times::Time;
use barid_core::json::{descriptor, zero_is_written};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pbjson_types::Timestamp;
use prost::{Message, Name};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage as _, Value as Field};
use serde_json::{Map, Value, json};

/// Something in a message that is not shown as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// "unrepresentable-field", "unknown-field", "undecodable-header", "undecodable-body".
    pub(super) note: &'static str,
    /// Which field: `header.sentAt`.
    pub(super) field: String,
    /// What stands there.
    pub(super) raw: String,
}

impl Note {
    pub(super) fn json(&self) -> Value {
        json!({"note": self.note, "field": self.field, "raw": self.raw})
    }
}

/// An encoded message by its name: `Header`.
pub(super) fn decode(name: &str, bytes: &[u8]) -> Option<DynamicMessage> {
    DynamicMessage::decode(descriptor(&format!("barid.v1.{name}")), bytes).ok()
}

/// A message in the JSON mapping, with `notes` on what that cannot express, if there is something.
pub(super) fn json_of<T: Message + Name>(message: &T) -> Value {
    let mut notes = Vec::new();
    let mut object = fields_of(message, "", &mut notes);
    add_notes(&mut object, &notes);
    Value::Object(object)
}

/// The fields of a message in the JSON mapping.
pub(super) fn fields_of<T: Message + Name>(message: &T, path: &str, notes: &mut Vec<Note>) -> Map<String, Value> {
    // What is in memory can be encoded; it is read back by its description.
    decode(T::NAME, &message.encode_to_vec()).map(|message| object(&message, path, notes)).unwrap_or_default()
}

pub(super) fn add_notes(object: &mut Map<String, Value>, notes: &[Note]) {
    if !notes.is_empty() {
        object.insert("notes".to_owned(), notes.iter().map(Note::json).collect());
    }
}

/// As [`fields_of`].
pub(super) fn object(message: &DynamicMessage, path: &str, notes: &mut Vec<Note>) -> Map<String, Value> {
    let mut object = Map::new();
    for field in message.descriptor().fields() {
        let name = field.json_name().to_owned();
        if message.has_field(&field) {
            let value = value(&message.get_field(&field), &field, &below(path, &name), notes);
            object.extend(value.map(|value| (name, value)));
        } else if zero_is_written(&field) {
            let zero = value(&field.default_value(), &field, "", notes);
            object.extend(zero.map(|zero| (name, zero)));
        }
    }
    for unknown in message.unknown_fields() {
        let (field, raw) = (below(path, &unknown.number().to_string()), format!("{} bytes", unknown.encoded_len()));
        notes.push(Note { note: "unknown-field", field, raw });
    }
    object
}

fn value(value: &Field, field: &FieldDescriptor, path: &str, notes: &mut Vec<Note>) -> Option<Value> {
    Some(match value {
        Field::Bool(it) => (*it).into(),
        Field::I32(it) => (*it).into(),
        Field::U32(it) => (*it).into(),
        // Numbers of 64 bits are texts: readers in JavaScript would round them.
        Field::I64(it) => it.to_string().into(),
        Field::U64(it) => it.to_string().into(),
        Field::F32(it) => f64::from(*it).into(),
        Field::F64(it) => (*it).into(),
        Field::String(it) => it.as_str().into(),
        Field::Bytes(it) => STANDARD.encode(it).into(),
        Field::EnumNumber(number) => match field.kind() {
            Kind::Enum(words) => words.get_value(*number).map_or((*number).into(), |word| word.name().into()),
            _ => (*number).into(),
        },
        Field::Message(it) => match timestamp(it) {
            None => Value::Object(object(it, path, notes)),
            Some(at) => match Time::from_proto(&at) {
                Some(time) => time.to_string().into(),
                None => {
                    let raw = raw_time(&at);
                    notes.push(Note { note: "unrepresentable-field", field: path.to_owned(), raw });
                    return None;
                }
            },
        },
        Field::List(items) => {
            let item = |(n, item)| self::value(item, field, &format!("{path}[{n}]"), notes).unwrap_or_default();
            items.iter().enumerate().map(item).collect()
        }
        Field::Map(pairs) => {
            let pair = |(key, item): (&MapKey, &Field)| {
                let key = format!("{key:?}");
                (key.clone(), self::value(item, field, &below(path, &key), notes).unwrap_or_default())
            };
            Value::Object(pairs.iter().map(pair).collect())
        }
    })
}

/// The instant that a message is, if it is one; not necessarily one that can be.
pub(super) fn timestamp(message: &DynamicMessage) -> Option<Timestamp> {
    if message.descriptor().full_name() != "google.protobuf.Timestamp" {
        return None;
    }
    let number = |name| message.get_field_by_name(name);
    let seconds = number("seconds").and_then(|value| value.as_i64()).unwrap_or_default();
    Some(Timestamp { seconds, nanos: number("nanos").and_then(|value| value.as_i32()).unwrap_or_default() })
}

/// A time that is none, as it stands in the message.
pub(super) fn raw_time(at: &Timestamp) -> String {
    format!("{} s {} ns", at.seconds, at.nanos)
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
