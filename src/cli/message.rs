//! Reads messages by their descriptor: all fields of every kind, including kinds that this code
//! does not name.
//!
//! In scope: decoding by descriptor, and the protobuf JSON mapping. No signed message is an error
//! here: a value that JSON cannot express is left out and named in `notes`, with its raw value. Out
//! of scope: text for readers (`fields`).

use barid_core::json::{self, Note};
use prost::{Message, Name};
use prost_reflect::DynamicMessage;
use serde_json::{Map, Value, json};

/// Decodes a message by its name: `Header`.
pub(super) fn decode(name: &str, bytes: &[u8]) -> Option<DynamicMessage> {
    DynamicMessage::decode(json::descriptor(&format!("barid.v1.{name}")), bytes).ok()
}

/// Returns a note as JSON.
pub(super) fn note(note: &Note) -> Value {
    json!({"note": note.note, "field": note.field, "raw": note.raw})
}

/// Returns a message in the JSON mapping. `notes` is added if there are values that the mapping
/// cannot express.
pub(super) fn json_of<T: Message + Name>(message: &T) -> Value {
    let mut notes = Vec::new();
    let mut object = fields_of(message, "", &mut notes);
    add_notes(&mut object, &notes);
    Value::Object(object)
}

/// Returns the fields of a message in the JSON mapping.
pub(super) fn fields_of<T: Message + Name>(message: &T, path: &str, notes: &mut Vec<Note>) -> Map<String, Value> {
    // Encoding a message in memory cannot fail; it is decoded again by its descriptor.
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
