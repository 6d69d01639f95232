#![allow(clippy::unwrap_used)]

use barid_core::bulletin::kinds;
use barid_core::json::timestamp;
use barid_core::{envelope, proto};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _, Value as Field};
use prost_types::Timestamp;

use super::*;
use crate::cli::Context;
use crate::cli::messages::{Lang, Messages};
use crate::cli::output::Output;
use crate::cli::profile::Directory;
use crate::cli::render::{Reading, Render};

/// A random number generator with a seed; equal seeds give equal messages.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap()
    }
}

const HOSTILE: [&str; 9] = [
    "",
    "plain",
    "\u{1b}[2J\u{1b}]0;title\u{7}",
    "\u{9b}31m\u{85}\u{7f}\0",
    "\u{202e}gnitirw\u{2066}x\u{2069}\u{2068}",
    "two\nlines\r\n\u{2028}three",
    "Cosmic",
    "\u{e0041}\u{feff}\u{200f}نص",
    "2025-02-30T99:99:99Z",
];
const NUMBERS: [i64; 8] = [0, 1, -1, i64::MIN, i64::MAX, 253_402_300_800, -62_135_596_801, 1_750_000_000];
const NANOS: [i32; 5] = [0, -1, i32::MIN, i32::MAX, 999_999_999];

/// Returns a message with a random subset of its fields, which have extreme values.
pub(super) fn any_message(description: &MessageDescriptor, random: &mut Random) -> DynamicMessage {
    let mut message = DynamicMessage::new(description.clone());
    for field in description.fields() {
        match random.below(3) {
            0 => {}
            _ if field.is_list() => {
                let items = (0..random.below(4)).map(|_| any_value(&field, random)).collect();
                message.set_field(&field, Field::List(items));
            }
            _ => {
                let value = any_value(&field, random);
                message.set_field(&field, value);
            }
        }
    }
    message
}

fn any_value(field: &FieldDescriptor, random: &mut Random) -> Field {
    let number = NUMBERS[random.below(NUMBERS.len())];
    match field.kind() {
        Kind::Bool => Field::Bool(random.below(2) == 0),
        Kind::Int32 => Field::I32(NANOS[random.below(NANOS.len())]),
        Kind::Uint32 => Field::U32(u32::MAX),
        Kind::Int64 => Field::I64(number),
        Kind::Uint64 => Field::U64(number.cast_unsigned()),
        Kind::String => {
            let text = HOSTILE[random.below(HOSTILE.len())];
            Field::String(if random.below(40) == 0 { text.repeat(5_000) } else { text.to_owned() })
        }
        Kind::Bytes => Field::Bytes(vec![0xff; random.below(100)].into()),
        Kind::Message(part) => Field::Message(any_message(&part, random)),
        other => panic!("a field of a kind that no message has had so far: {other:?}"),
    }
}

fn described(name: &str) -> MessageDescriptor {
    json::descriptor(&format!("barid.v1.{name}"))
}

fn bytes_of(name: &str, random: &mut Random) -> Vec<u8> {
    any_message(&described(name), random).encode_to_vec()
}

/// Returns a delivery of a random header and body, or of damaged bytes.
fn any_delivery(random: &mut Random) -> proto::Delivery {
    let mut delivery = proto::Delivery::decode(&bytes_of("Delivery", random)[..]).unwrap();
    let envelope = proto::Envelope {
        header: bytes_of("Header", random).into(),
        payload_type: if random.below(8) == 0 { HOSTILE[2].into() } else { envelope::PAYLOAD_TYPE.into() },
        payload: bytes_of("Body", random).into(),
        salt: vec![7; 16].into(),
        ..Default::default()
    };
    let mut envelope = envelope.encode_to_vec();
    match random.below(6) {
        0 => {
            let at = random.below(envelope.len());
            envelope[at] ^= 1 << random.below(8);
        }
        1 => envelope.truncate(random.below(envelope.len())),
        2 => envelope = vec![0xff; random.below(40)],
        _ => {}
    }
    delivery.envelope = envelope.into();
    delivery
}

fn rendered_everywhere(delivery: &proto::Delivery) {
    let reading = Reading::new(delivery);
    for lang in Lang::ALL {
        let context = Context::new(Messages::new(lang), Output::plain(), None);
        let render = Render::new(&context, Directory::of("ne".parse().unwrap()));
        let lines =
            [render.brief(&reading), render.full(&reading), render.list(std::slice::from_ref(&reading))].concat();
        for line in lines {
            let raw = |c: char| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c);
            assert!(!line.chars().any(raw), "{line:?}");
        }
    }
    let (output, written) = Output::captured(true);
    output.json(&reading.json()).unwrap();
    let line = String::from_utf8(written.lock().clone()).unwrap();
    let line = line.strip_suffix('\n').unwrap();
    assert!(!line.chars().any(|c| c.is_control() || is_bidi_control(c)), "{line:?}");
    let object: serde_json::Value = serde_json::from_str(line).unwrap();
    assert!(object.is_object());
}

fn is_bidi_control(c: char) -> bool {
    ['\u{61c}', '\u{200e}', '\u{200f}'].contains(&c) || barid_core::ids::is_bidi_control(c)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_signed_bulletin_never_panics(seed in any::<u64>()) {
        rendered_everywhere(&any_delivery(&mut Random(seed)));
    }

    #[test]
    fn arbitrary_node_response_never_panics(seed in any::<u64>()) {
        let mut random = Random(seed);
        macro_rules! written {
            ($($name:ident),+) => {
                $(
                    let message = proto::$name::decode(&bytes_of(stringify!($name), &mut random)[..]).unwrap();
                    let (output, written) = Output::captured(true);
                    output.json(&json_of(&message)).unwrap();
                    let line = String::from_utf8(written.lock().clone()).unwrap();
                    prop_assert!(!line.trim_end_matches('\n').chars().any(char::is_control), "{:?}", line);
                )+
            };
        }
        written!(GetResponse, PublishResponse, EvidenceSummary, GetStatusResponse, Fork, DamagedEntry, FilterWarning);
    }

    #[test]
    fn arbitrary_envelope_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        rendered_everywhere(&proto::Delivery { envelope: bytes.into(), ..Default::default() });
    }
}

fn delivery_of(change: impl FnOnce(&mut proto::Header, &mut proto::Body)) -> proto::Delivery {
    let draft = kinds::find("situation-report").unwrap().sample().unwrap();
    let (mut header, mut body) = (draft.header.unwrap(), draft.body.unwrap());
    change(&mut header, &mut body);
    let envelope = envelope::encode(&header, &body, [7; 16]);
    proto::Delivery { offset: 7, envelope, ..Default::default() }
}

#[test]
fn unrepresentable_timestamp_is_omitted_from_json_with_note() {
    let beyond = Some(Timestamp { seconds: 253_402_300_800, nanos: 0 });
    let negative = Some(Timestamp { seconds: 5, nanos: -1 });
    let delivery =
        delivery_of(|header, body| (header.sent_at, header.expires, body.onset) = (beyond, negative, beyond));
    let object = Reading::new(&delivery).json();
    assert!(object["header"]["sentAt"].is_null() && object["header"]["topic"].is_string(), "{object}");
    let named: Vec<(&str, &str)> = object["notes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|note| {
            assert_eq!(note["note"], "unrepresentable-field");
            (note["field"].as_str().unwrap(), note["raw"].as_str().unwrap())
        })
        .collect();
    assert_eq!(
        named,
        [
            ("header.sentAt", "253402300800 s 0 ns"),
            ("header.expires", "5 s -1 ns"),
            ("body.onset", "253402300800 s 0 ns"),
        ]
    );
    let context = Context::new(Messages::new(Lang::En), Output::plain(), None);
    let render = Render::new(&context, Directory::of("ne".parse().unwrap()));
    let reading = Reading::new(&delivery);
    for lines in [render.brief(&reading), render.full(&reading), render.list(std::slice::from_ref(&reading))] {
        assert!(lines.join("\n").contains("⚠ 253402300800 s 0 ns"), "{lines:?}");
    }
}

#[test]
fn unrepresentable_timestamp_in_receipt_or_custody_note_never_panics() {
    let never = Some(Timestamp { seconds: i64::MAX, nanos: 0 });
    let stored = vec![proto::StoredBy { member: "tn".into(), at: never }];
    let response = proto::PublishResponse { stored, wait_reached: true, ..Default::default() };
    let object = json_of(&response);
    assert_eq!((&object["stored"][0]["member"], &object["waitReached"]), (&json!("tn"), &json!(true)));
    assert_eq!(object["notes"][0]["field"], "stored[0].at");
    let summary = proto::EvidenceSummary { size: 9, newest_cosignature: never, ..Default::default() };
    assert_eq!(json_of(&summary)["notes"][0]["field"], "newestCosignature");
}

#[test]
fn unknown_field_is_listed_in_notes() {
    let mut delivery = delivery_of(|_, _| {});
    let mut whole = envelope::decode(&delivery.envelope).unwrap();
    // Field 99, three bytes.
    whole.header = [&whole.header[..], &[0x9a, 0x06, 3, 1, 2, 3]].concat().into();
    delivery.envelope = whole.encode_to_vec().into();
    let object = Reading::new(&delivery).json();
    assert_eq!(object["notes"], json!([{"note": "unknown-field", "field": "header.99", "raw": "6 bytes"}]));
}

/// Collects the leaf values of a message in the forms a text may have: as it is, or as a term of
/// the catalogue.
fn leaves(message: &DynamicMessage, found: &mut Vec<(String, String)>) {
    for (field, value) in message.fields() {
        let items = if let Field::List(items) = value { items.clone() } else { vec![value.clone()] };
        for item in items {
            let text = match &item {
                Field::Message(part) => match timestamp(part) {
                    Some(at) => crate::cli::times::seconds(Some(&at)).replace(" UTC", ""),
                    None => {
                        leaves(part, found);
                        continue;
                    }
                },
                Field::Bytes(bytes) if bytes.len() <= 64 => hex::encode(bytes),
                Field::Bytes(bytes) => STANDARD.encode(bytes),
                Field::String(text) => text.clone(),
                Field::Bool(_) => "yes".to_owned(),
                other => other.to_string(),
            };
            found.push((field.full_name().to_owned(), text));
        }
    }
}

/// Returns a message with every field filled, each with a unique value; of a oneof the field named
/// `arm`.
fn populated(description: &MessageDescriptor, arm: &str, count: &mut u64) -> DynamicMessage {
    let mut message = DynamicMessage::new(description.clone());
    if description.full_name() == "google.protobuf.Timestamp" {
        *count += 1;
        message.set_field_by_name("seconds", Field::I64(1_750_000_000 + i64::try_from(*count).unwrap()));
        return message;
    }
    for field in description.fields() {
        let real_oneof = field.containing_oneof().is_some_and(|oneof| !oneof.is_synthetic());
        if real_oneof && field.name() != arm {
            continue;
        }
        let mut one = || {
            *count += 1;
            match field.kind() {
                Kind::Bool => Field::Bool(true),
                Kind::Uint32 => Field::U32(u32::try_from(70_000 + *count).unwrap()),
                Kind::Uint64 => Field::U64(70_000 + *count),
                Kind::String => Field::String(format!("text-{count}")),
                Kind::Bytes if (*count).is_multiple_of(2) => {
                    Field::Bytes(vec![u8::try_from(*count % 251).unwrap(); 90].into())
                }
                Kind::Bytes => Field::Bytes(vec![u8::try_from(*count % 251).unwrap(); 32].into()),
                Kind::Message(part) => Field::Message(populated(&part, arm, count)),
                other => panic!("a field of a kind that no message has had so far: {other:?}"),
            }
        };
        let value = if field.is_list() { Field::List(vec![one(), one()]) } else { one() };
        message.set_field(&field, value);
    }
    message
}

#[test]
fn every_field_of_every_kind_is_rendered_in_every_language() {
    for kind in kinds::REGISTRY {
        let arm = kind.name.replace('-', "_");
        let mut count = 0;
        let header = populated(&described("Header"), "", &mut count);
        let body = populated(&described("Body"), &arm, &mut count);
        let signature = proto::AuthorSignature { key_id: vec![0xa1; 9].into(), signature: vec![0xb2; 64].into() };
        let envelope = proto::Envelope {
            header: header.encode_to_vec().into(),
            payload_type: envelope::PAYLOAD_TYPE.into(),
            payload: body.encode_to_vec().into(),
            signatures: vec![signature],
            salt: vec![0xc3; 16].into(),
        };
        let delivery = proto::Delivery { envelope: envelope.encode_to_vec().into(), ..Default::default() };
        let mut expected = vec![
            ("salt".to_owned(), "c3".repeat(16)),
            ("signature".to_owned(), "b2".repeat(64)),
            ("key".to_owned(), "a1".repeat(9)),
            ("payload_type".to_owned(), envelope::PAYLOAD_TYPE.to_owned()),
        ];
        leaves(&header, &mut expected);
        leaves(&body, &mut expected);
        assert!(expected.len() > 60, "{}", kind.name);
        for lang in Lang::ALL {
            let context = Context::new(Messages::new(lang), Output::plain(), None);
            let render = Render::new(&context, Directory::of("ne".parse().unwrap()));
            let text = render.full(&Reading::new(&delivery)).join("\n");
            let yes = context.messages.text("yes");
            for (field, value) in &expected {
                let value = if value == "yes" { &yes } else { value };
                assert!(text.contains(value.as_str()), "{lang:?} {}: {field} = {value} in\n{text}", kind.name);
            }
        }
    }
}

#[test]
fn every_field_label_is_localized() {
    let mut parts = vec![described("Envelope"), described("Header"), described("Body")];
    let mut seen = Vec::new();
    while let Some(part) = parts.pop() {
        if seen.contains(&part) || part.full_name().starts_with("google.") {
            continue;
        }
        for field in part.fields() {
            if let Kind::Message(part) = field.kind() {
                parts.push(part);
            }
            let flattened = matches!(field.kind(), Kind::Message(part) if !part.full_name().starts_with("google."))
                && !field.is_list();
            let has_own_label = ["header", "payload", "texts"].contains(&field.name()) || part.name() == "Text";
            for lang in Lang::ALL.into_iter().filter(|_| !flattened && !has_own_label) {
                let context = Context::new(Messages::new(lang), Output::plain(), None);
                let label = Render::new(&context, Directory::of("ne".parse().unwrap())).label(&field);
                let own_name = context.messages.value(&field.name().replace('_', " "));
                let same = ["mrz", "tlp", "locode", "format", "code", "type", "signature", "value", "law", "count"];
                assert!(
                    label != own_name || lang == Lang::En || same.contains(&own_name.as_str()),
                    "{lang:?} {}: {label}",
                    field.full_name()
                );
            }
        }
        seen.push(part);
    }
    assert!(seen.len() > 18, "{}", seen.len());
}

#[test]
fn api_message_is_found_by_name() {
    let delivery = proto::Delivery { offset: 3, ..Default::default() };
    assert_eq!(json_of(&delivery), json!({"offset": "3", "index": "0"}), "an index of 0 is written");
    assert_eq!(json_of(&proto::StoredBy::default()), json!({}), "and nothing else is");
    assert!(any_message(&described("Body"), &mut Random(1)).descriptor().fields().len() > 10);
}
