//! The JSON mapping of protocol buffers (protobuf.dev, "ProtoJSON Format"), driven by message
//! descriptors.
//!
//! In scope: reading and writing every message of `proto/barid/v1`. Where the mapping leaves a
//! choice, a duplicate field, under either of its names, is rejected; so is an unknown field. A
//! whole number is written even if it is 0, since an index or a size of 0 is a value. Out of scope:
//! the meaning of values, and types that no message has (maps, floating point, well-known types
//! other than `Timestamp`); a test fails if a message gets one.
//!
//! # Examples
//! ```
//! use barid_core::proto::Receipt;
//!
//! let receipt: Receipt = serde_json::from_str(r#"{"feed": "ma.rabat.example/feed/1"}"#)?;
//! let text = serde_json::to_string(&receipt)?;
//! assert_eq!(text, r#"{"feed":"ma.rabat.example/feed/1","index":"0"}"#);
//! assert!(serde_json::from_str::<Receipt>(r#"{"fed": ""}"#).is_err());
//! # Ok::<(), serde_json::Error>(())
//! ```

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value};
use prost_types::Timestamp;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::ser::{Error as _, Serialize, Serializer};
use serde_json::{Map, Value as Json};

use crate::bulletin::times::Time;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let encoded = include_bytes!(concat!(env!("OUT_DIR"), "/messages.descriptors.bin"));
    DescriptorPool::decode(encoded.as_slice()).expect("the build wrote these descriptors")
});

const TIMESTAMP: &str = "google.protobuf.Timestamp";
/// In this message a number of 0 means absent: format and roster version count from 1.
const ZERO_IS_ABSENT: &str = "barid.v1.Header";

/// Returns the descriptor of a message, by its full name such as `barid.v1.Header`.
///
/// # Panics
/// If `proto/barid/v1` has no such message.
#[must_use]
pub fn descriptor(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(name).expect("the build names its own messages")
}

/// Reads a message.
pub(crate) fn read<'de, M: Message + Default, D: Deserializer<'de>>(name: &str, from: D) -> Result<M, D::Error> {
    let message = MessageSeed(&descriptor(name)).deserialize(from)?;
    message.transcode_to().map_err(D::Error::custom)
}

/// Writes a message. A message that JSON cannot represent is an error.
pub(crate) fn write<M: Message, S: Serializer>(message: &M, name: &str, to: S) -> Result<S::Ok, S::Error> {
    let message = DynamicMessage::decode(descriptor(name), message.encode_to_vec().as_slice());
    let mut notes = Vec::new();
    let object = object(&message.map_err(S::Error::custom)?, "", &mut notes);
    match notes.iter().find(|note| note.note == UNREPRESENTABLE) {
        Some(note) => Err(S::Error::custom(format!("{} is {}, outside the years 1 to 9999", note.field, note.raw))),
        None => object.serialize(to),
    }
}

/// Reads an object as one message.
struct MessageSeed<'a>(&'a MessageDescriptor);

impl<'de> DeserializeSeed<'de> for MessageSeed<'_> {
    type Value = DynamicMessage;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<DynamicMessage, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MessageSeed<'_> {
    type Value = DynamicMessage;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<DynamicMessage, A::Error> {
        let mut message = DynamicMessage::new(self.0.clone());
        let mut given = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let field = self.0.get_field_by_json_name(&key).or_else(|| self.0.get_field_by_name(&key));
            // Rejected at the value, so that the path of the error ends with the field name.
            let Some(field) = field else {
                let names: Vec<String> = self.0.fields().map(|field| format!("`{}`", field.json_name())).collect();
                let names = names.join(", ");
                return Err(rejected(&mut map, format!("unknown field `{key}`, expected one of {names}")));
            };
            if !given.insert(field.number()) {
                return Err(rejected(&mut map, format!("field `{}` is given twice", field.json_name())));
            }
            let rivals = field.containing_oneof();
            let rival = rivals.and_then(|oneof| oneof.fields().find(|other| message.has_field(other)));
            if let Some(value) = map.next_value_seed(FieldSeed { field: &field, rival })? {
                message.set_field(&field, value);
            }
        }
        Ok(message)
    }
}

/// Skips the next value and returns the error with which it is rejected.
fn rejected<'de, A: MapAccess<'de>>(map: &mut A, reason: String) -> A::Error {
    match map.next_value_seed(Rejected(reason)) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

struct Rejected(String);

impl<'de> DeserializeSeed<'de> for Rejected {
    type Value = Infallible;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Infallible, D::Error> {
        from.deserialize_ignored_any(IgnoredAny)?;
        Err(D::Error::custom(self.0))
    }
}

/// Reads the value of one field; `null` means absent.
struct FieldSeed<'a> {
    field: &'a FieldDescriptor,
    /// The arm of the same oneof that already has a value.
    rival: Option<FieldDescriptor>,
}

impl<'de> DeserializeSeed<'de> for FieldSeed<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Option<Value>, D::Error> {
        from.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for FieldSeed<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or null")
    }

    fn visit_none<E>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Option<Value>, D::Error> {
        if let Some(rival) = self.rival {
            let (one, other) = (rival.json_name(), self.field.json_name());
            return Err(D::Error::custom(format!("only one of `{one}` and `{other}` may be given")));
        }
        let kind = self.field.kind();
        let value =
            if self.field.is_list() { from.deserialize_seq(List(&kind)) } else { ValueSeed(&kind).deserialize(from) };
        value.map(Some)
    }
}

/// Reads an array. All items have one kind, and none is `null`.
struct List<'a>(&'a Kind);

impl<'de> Visitor<'de> for List<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(ValueSeed(self.0))? {
            values.push(value);
        }
        Ok(Value::List(values))
    }
}

/// Reads one value that is not `null`.
struct ValueSeed<'a>(&'a Kind);

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Bool => "true or false",
            Kind::String => "a string",
            Kind::Bytes => "bytes in base64",
            Kind::Enum(_) => "the name or number of a value",
            Kind::Message(message) if message.full_name() == TIMESTAMP => {
                "an instant such as 2025-11-23T19:44:04Z (RFC 3339)"
            }
            Kind::Message(_) => "an object",
            _ => "a whole number",
        })
    }

    fn visit_bool<E: serde::de::Error>(self, found: bool) -> Result<Value, E> {
        match self.0 {
            Kind::Bool => Ok(Value::Bool(found)),
            _ => Err(E::invalid_type(Unexpected::Bool(found), &self)),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, found: i64) -> Result<Value, E> {
        self.whole(found.into(), Unexpected::Signed(found))
    }

    fn visit_u64<E: serde::de::Error>(self, found: u64) -> Result<Value, E> {
        self.whole(found.into(), Unexpected::Unsigned(found))
    }

    fn visit_f64<E: serde::de::Error>(self, found: f64) -> Result<Value, E> {
        match whole_float(found) {
            Some(number) => self.whole(number, Unexpected::Float(found)),
            None => Err(E::invalid_type(Unexpected::Float(found), &self)),
        }
    }

    fn visit_str<E: serde::de::Error>(self, found: &str) -> Result<Value, E> {
        let unexpected = Unexpected::Str(found);
        match self.0 {
            Kind::String => Ok(Value::String(found.to_owned())),
            Kind::Bytes => match bytes(found) {
                Some(bytes) => Ok(Value::Bytes(bytes.into())),
                None => Err(E::invalid_value(unexpected, &self)),
            },
            Kind::Enum(variants) => match variants.get_value_by_name(found) {
                Some(variant) => Ok(Value::EnumNumber(variant.number())),
                None => Err(E::invalid_value(unexpected, &self)),
            },
            Kind::Message(message) if message.full_name() == TIMESTAMP => {
                let instant = instant(found).ok_or_else(|| E::invalid_value(unexpected, &self))?;
                let mut read = DynamicMessage::new(message.clone());
                read.transcode_from(&instant).map_err(E::custom)?;
                Ok(Value::Message(read))
            }
            Kind::Bool | Kind::Message(_) => Err(E::invalid_type(unexpected, &self)),
            _ => match number(found) {
                Some(number) => self.whole(number, unexpected),
                None => Err(E::invalid_value(unexpected, &self)),
            },
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        match self.0 {
            Kind::Message(message) if message.full_name() != TIMESTAMP => {
                MessageSeed(message).visit_map(map).map(Value::Message)
            }
            _ => Err(A::Error::invalid_type(Unexpected::Map, &self)),
        }
    }
}

impl ValueSeed<'_> {
    /// Returns the number as a value of this kind.
    fn whole<E: serde::de::Error>(self, number: i128, found: Unexpected<'_>) -> Result<Value, E> {
        let value = match self.0 {
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => number.try_into().map(Value::I32).ok(),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => number.try_into().map(Value::I64).ok(),
            Kind::Uint32 | Kind::Fixed32 => number.try_into().map(Value::U32).ok(),
            Kind::Uint64 | Kind::Fixed64 => number.try_into().map(Value::U64).ok(),
            Kind::Enum(_) => number.try_into().map(Value::EnumNumber).ok(),
            _ => return Err(E::invalid_type(found, &self)),
        };
        value.ok_or_else(|| E::custom(format!("{number} is out of range")))
    }
}

/// Returns the whole number equal to a floating-point number: `412.0`, `1e3`.
fn whole_float(number: f64) -> Option<i128> {
    // No field can hold a larger number.
    const MAX: f64 = 18_446_744_073_709_551_616.0;
    #[allow(clippy::cast_possible_truncation, reason = "whole and within the range of i128")]
    (number.fract() == 0.0 && number.abs() <= MAX).then_some(number as i128)
}

/// Parses a whole number in JSON notation.
fn number(text: &str) -> Option<i128> {
    let number: serde_json::Number = text.parse().ok()?;
    let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    whole.or_else(|| whole_float(number.as_f64()?))
}

/// Decodes base64 in the standard or the URL alphabet, with or without padding.
fn bytes(text: &str) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let alphabet = if text.contains(['-', '_']) { &alphabet::URL_SAFE } else { &alphabet::STANDARD };
    GeneralPurpose::new(alphabet, LENIENT).decode(text).ok()
}

/// Parses RFC 3339 as restricted by ProtoJSON: `T` and `Z` in upper case, up to nine fractional
/// digits, an offset. Leap seconds are rejected, because [`Timestamp`] cannot represent them.
fn instant(text: &str) -> Option<Timestamp> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
        digits.parse().ok()
    };
    let separator = |at: usize, expected: &str| text.get(at..at + 1) == Some(expected);
    let clock = |at: usize| -> Option<i64> {
        let (hour, minute) = (number(at..at + 2)?, number(at + 3..at + 5)?);
        (separator(at + 2, ":") && hour < 24 && minute < 60).then_some(hour * 3_600 + minute * 60)
    };
    let date: crate::bulletin::times::Date = text.get(..10)?.parse().ok()?;
    let second = number(17..19).filter(|second| *second < 60)?;
    let time = clock(11)? + second;
    let rest = text.get(19..).filter(|_| separator(10, "T") && separator(16, ":"))?;
    let (nanos, zone) = match rest.strip_prefix('.') {
        Some(rest) => {
            let end = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| (1..=9).contains(end))?;
            (format!("{:0<9}", rest.get(..end)?).parse().ok()?, rest.get(end..)?)
        }
        None => (0, rest),
    };
    let offset = match zone.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), _, _, _, _, _] => {
            let offset = clock(text.len() - 5)?;
            if *sign == b'+' { offset } else { -offset }
        }
        _ => return None,
    };
    let timestamp = Timestamp { seconds: date.start_seconds() + time - offset, nanos };
    Time::from_proto(&timestamp).map(|_| timestamp)
}

/// Part of a message that its JSON cannot represent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// [`UNREPRESENTABLE`], [`UNKNOWN_FIELD`], or a code of the caller.
    pub note: &'static str,
    /// Path of the field, or the path with its number: `header.sentAt`.
    pub field: String,
    /// The raw value.
    pub raw: String,
}

/// An instant outside the years 1 to 9999.
pub const UNREPRESENTABLE: &str = "unrepresentable-field";
/// A field that this version does not know, by its number.
pub const UNKNOWN_FIELD: &str = "unknown-field";

/// Returns a message as a JSON object. Parts that JSON cannot represent are omitted and added to
/// `notes`. `path` is the path of the message.
pub fn object(message: &DynamicMessage, path: &str, notes: &mut Vec<Note>) -> Map<String, Json> {
    let mut object = Map::new();
    for field in message.descriptor().fields().filter(|field| message.has_field(field) || zero_is_written(field)) {
        let name = field.json_name();
        let written = value(&message.get_field(&field), &field.kind(), &below(path, name), notes);
        object.extend(written.map(|value| (name.to_owned(), value)));
    }
    for unknown in message.unknown_fields() {
        let (field, raw) = (below(path, &unknown.number().to_string()), format!("{} bytes", unknown.encoded_len()));
        notes.push(Note { note: UNKNOWN_FIELD, field, raw });
    }
    object
}

fn value(value: &Value, kind: &Kind, path: &str, notes: &mut Vec<Note>) -> Option<Json> {
    Some(match (value, kind) {
        (Value::Bool(value), _) => (*value).into(),
        (Value::I32(value), _) => (*value).into(),
        (Value::U32(value), _) => (*value).into(),
        // JavaScript would round them.
        (Value::I64(value), _) => value.to_string().into(),
        (Value::U64(value), _) => value.to_string().into(),
        (Value::String(value), _) => value.as_str().into(),
        (Value::Bytes(value), _) => STANDARD.encode(value).into(),
        (Value::EnumNumber(number), Kind::Enum(variants)) => {
            variants.get_value(*number).map_or((*number).into(), |variant| variant.name().into())
        }
        (Value::Message(message), _) => match timestamp(message) {
            None => object(message, path, notes).into(),
            Some(at) => match Time::from_proto(&at) {
                Some(time) => time.to_string().into(),
                None => {
                    notes.push(Note { note: UNREPRESENTABLE, field: path.to_owned(), raw: raw_time(&at) });
                    return None;
                }
            },
        },
        (Value::List(items), kind) => {
            let item = |(n, item)| self::value(item, kind, &format!("{path}[{n}]"), notes).unwrap_or_default();
            items.iter().enumerate().map(item).collect()
        }
        // Types that no message has.
        _ => return None,
    })
}

/// Returns the message as an instant if it is a `Timestamp`; it is not necessarily in range.
#[must_use]
pub fn timestamp(message: &DynamicMessage) -> Option<Timestamp> {
    if message.descriptor().full_name() == TIMESTAMP { message.transcode_to().ok() } else { None }
}

/// Returns the raw numbers of an instant that is out of range.
#[must_use]
pub fn raw_time(at: &Timestamp) -> String {
    format!("{} s {} ns", at.seconds, at.nanos)
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Returns whether a number of 0 is written.
#[must_use]
pub fn zero_is_written(field: &FieldDescriptor) -> bool {
    let number = !matches!(field.kind(), Kind::Bool | Kind::String | Kind::Bytes | Kind::Enum(_) | Kind::Message(_));
    let always = !field.is_list() && !field.supports_presence();
    number && always && field.parent_message().full_name() != ZERO_IS_ABSENT
}

#[cfg(test)]
mod tests;
