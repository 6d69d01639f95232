//! Messages by their description: every field of every kind, those too that no code here names.
//!
//! In scope: reading a message by its descriptor, and the protobuf JSON mapping of it for machines. Nothing that a member can sign is an
//! error here: what JSON cannot express is left out and named, with what it is. Out of scope: words for people (`fields`).

use barid_core::json::{self, Note};
use prost::{Message, Name};
use prost_reflect::DynamicMessage;
use serde_json::{Map, Value, json};

/// An encoded message by its name: `Header`.
pub(super) fn decode(name: &str, bytes: &[u8]) -> Option<DynamicMessage> {
    DynamicMessage::decode(json::descriptor(&format!("barid.v1.{name}")), bytes).ok()
}

/// A note as JSON.
pub(super) fn note(note: &Note) -> Value {
    json!({"note": note.note, "field": note.field, "raw": note.raw})
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
    decode(T::NAME, &message.encode_to_vec()).map(|message| json::object(&message, path, notes)).unwrap_or_default()
}

pub(super) fn add_notes(object: &mut Map<String, Value>, notes: &[Note]) {
    if !notes.is_empty() {
        object.insert("notes".to_owned(), notes.iter().map(note).collect());
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
