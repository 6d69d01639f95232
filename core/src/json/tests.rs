#![allow(clippy::unwrap_used)]
//! Cases of protobuf's conformance suite (`conformance/binary_json_conformance_suite.cc`) for which
//! our messages have fields of the right type, under their names there: string `header.kind`,
//! uint32 `format`, uint64 `rosterVersion`, int32 `PublishError.code`, bool `personalData`, bytes
//! and timestamps, repeated strings and messages, and the arms of `Body.content` as a oneof.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::proto;

fn header(json: &str) -> Result<proto::Header, serde_json::Error> {
    serde_json::from_str(json)
}

/// Parses `value` as a field of this type.
fn uint32(value: &str) -> Option<u32> {
    header(&format!(r#"{{"format": {value}}}"#)).ok().map(|header| header.format)
}

fn uint64(value: &str) -> Option<u64> {
    header(&format!(r#"{{"rosterVersion": {value}}}"#)).ok().map(|header| header.roster_version)
}

fn int32(value: &str) -> Option<i32> {
    serde_json::from_str(&format!(r#"{{"code": {value}}}"#)).ok().map(|rejection: proto::PublishError| rejection.code)
}

fn string(value: &str) -> Option<String> {
    header(&format!(r#"{{"kind": {value}}}"#)).ok().map(|header| header.kind)
}

fn bool(value: &str) -> Option<bool> {
    let handling = serde_json::from_str(&format!(r#"{{"personalData": {value}}}"#)).ok();
    handling.map(|handling: proto::Handling| handling.personal_data)
}

fn digest(value: &str) -> Option<Vec<u8>> {
    let reference = serde_json::from_str(&format!(r#"{{"digest": {value}}}"#)).ok();
    reference.map(|reference: proto::Reference| reference.digest.to_vec())
}

fn sent_at(value: &str) -> Option<(i64, i32)> {
    let header = header(&format!(r#"{{"sentAt": "{value}"}}"#)).ok()?;
    header.sent_at.map(|at| (at.seconds, at.nanos))
}

fn written(message: &impl serde::Serialize) -> Json {
    serde_json::to_value(message).unwrap()
}

#[test]
fn field_names_are_read_in_both_spellings_and_written_in_one() {
    for name in ["msgType", "msg_type", "msg\\u0054ype"] {
        assert_eq!(header(&format!(r#"{{"{name}": "Ack"}}"#)).unwrap().msg_type, "Ack", "{name}");
    }
    let header = proto::Header { msg_type: "Ack".to_owned(), ..Default::default() };
    assert_eq!(written(&header), json!({"msgType": "Ack"}), "SkipsDefaultPrimitive, of a header");
}

#[test]
fn invalid_json_is_rejected() {
    for bad in [
        "null",
        "[]",
        "1",
        r#"{kind: 1}"#,
        r#"{"format":1,}"#,
        r#"{"format":1 , }"#,
        "{\n // a comment\n\"format\": 1}",
        r#"{"format": 1 "rosterVersion": 2}"#,
        r#"{'kind': "a"}"#,
        r#"{"kind": 'a'}"#,
        r#"{"kind": "abc\"#,
    ] {
        assert!(header(bad).is_err(), "{bad}");
    }
    for good in ["{}", "{\n\"format\"\n:\n1\n,\n\"rosterVersion\"\n:\n2\n}", "{ \"format\" : 1 }\n"] {
        assert!(header(good).is_ok(), "{good}");
    }
}

#[test]
fn fields_that_are_given_twice_or_are_unknown_are_rejected_with_their_path() {
    let error = |json: &str| {
        let mut reader = serde_json::Deserializer::from_str(json);
        let error = serde_path_to_error::deserialize::<_, proto::Draft>(&mut reader).unwrap_err();
        (error.path().to_string(), error.into_inner().to_string())
    };
    for json in [
        r#"{"header": {"kind": "a", "kind": "b"}}"#,
        r#"{"header": {"msgType": "a", "msg_type": "b"}}"#,
        r#"{"header": {"msg_type": "a", "msgType": null}}"#,
    ] {
        let (path, reason) = error(json);
        assert!(path.starts_with("header.") && reason.contains("given twice"), "{path}: {reason}");
    }
    for value in ["1", "\"a\"", "true", "null", "{\"a\": 1}", "[[]]"] {
        let (path, reason) = error(&format!(r#"{{"body": {{"texts": [{{}}, {{"headlin": {value}}}]}}}}"#));
        assert_eq!(path, "body.texts[1].headlin", "{reason}");
        assert!(reason.contains("unknown field `headlin`") && reason.contains("`headline`"), "{reason}");
    }
    assert_eq!(error(r#"{"header": {"references": [{"digest": "?"}]}}"#).0, "header.references[0].digest");
}

#[test]
fn integers_are_numbers_or_strings_and_whole_in_any_notation() {
    // Int32FieldMaxValue, MinValue, StringValue, QuotedExponentialValue, FloatTrailingZero,
    // ExponentialFormat, MaxFloatValue …
    for (value, number) in [
        ("2147483647", 2_147_483_647),
        ("-2147483648", -2_147_483_648),
        ("\"2147483647\"", 2_147_483_647),
        ("\"2\\u003147483647\"", 2_147_483_647),
        ("\"0\"", 0),
        ("\"1e5\"", 100_000),
        ("100000.000", 100_000),
        ("1e5", 100_000),
        ("2.147483647e9", 2_147_483_647),
        ("-2.147483648e9", -2_147_483_648),
        ("-0", 0),
    ] {
        assert_eq!(int32(value), Some(number), "{value}");
    }
    assert_eq!([uint32("412.0"), uint32("1e3"), uint32("\"4.12e2\"")], [Some(412), Some(1_000), Some(412)]);
    assert_eq!([uint32("4294967295"), uint32("4.294967295e9")], [Some(u32::MAX); 2]);
    assert_eq!(uint64("\"18446744073709551615\""), Some(u64::MAX));
    assert_eq!(uint64("18446744073709549568"), Some(18_446_744_073_709_549_568));
    assert_eq!(uint64("9223372036854774784"), Some(9_223_372_036_854_774_784));
    assert_eq!(uint64("1e18"), Some(1_000_000_000_000_000_000));
    for bad in [
        "2147483648",
        "-2147483649",
        "0.5",
        "\"0.5\"",
        "true",
        "false",
        "\"12abc\"",
        "\"12 34\"",
        "\"12,34\"",
        "\"12谷歌34\"",
        "\"abc\"",
        "\"\"",
        "\"3x3\"",
        "+1",
        "\"+1\"",
        "01",
        "-01",
        "\"01\"",
        "\" 1\"",
        "\"1 \"",
        "[1]",
        "{}",
        "1e400",
        "\"1e536870000\"",
        "NaN",
        "\"NaN\"",
    ] {
        assert_eq!(int32(bad), None, "{bad}");
    }
    for bad in ["4294967296", "-1", "0.5", "\"\"", "\"3x3\""] {
        assert_eq!(uint32(bad), None, "{bad}");
    }
    for bad in
        ["\"18446744073709551616\"", "18446744073709551616", "\"1e536870000\"", "\"0.5\"", "-1", "\"-1\"", "1e20"]
    {
        assert_eq!(uint64(bad), None, "{bad}");
    }
}

#[test]
fn strings_and_booleans_are_nothing_else() {
    assert_eq!(string("\"谷歌\"").as_deref(), Some("谷歌"));
    assert_eq!(string(r#""\"\\\/\b\f\n\r\t""#).as_deref(), Some("\"\\/\u{8}\u{c}\n\r\t"));
    assert_eq!(string(r#""\u8C37\u6b4c""#).as_deref(), Some("谷歌"));
    assert_eq!(string(r#""\uD83D\uDE01""#).as_deref(), Some("😁"));
    assert_eq!(string(r#""Hello\u0000world!""#).as_deref(), Some("Hello\0world!"));
    for bad in [
        "12345",
        "true",
        "{}",
        "[\"a\"]",
        r#""\U8C37""#,
        r#""\uXXXX""#,
        r#""\u8C3""#,
        r#""\uD800""#,
        r#""\uDE01\uD83D""#,
    ] {
        assert_eq!(string(bad), None, "{bad}");
    }
    assert_eq!([bool("true"), bool("false"), bool("null")], [Some(true), Some(false), Some(false)]);
    for bad in ["0", "1", "True", "FALSE", "\"true\"", "\"false\"", "{}"] {
        assert_eq!(bool(bad), None, "{bad}");
    }
}

#[test]
fn bytes_are_base64_of_either_alphabet_with_or_without_padding() {
    for (value, expected) in [
        ("\"AQI=\"", &[1u8, 2][..]),
        ("\"AQI\"", &[1, 2]),
        ("\"-_\"", &[0xfb]),
        ("\"+/8=\"", &[0xfb, 0xff]),
        ("\"-_8\"", &[0xfb, 0xff]),
        ("\"\"", &[]),
    ] {
        assert_eq!(digest(value).as_deref(), Some(expected), "{value}");
    }
    for bad in ["\"A\"", "\"AQ I\"", "\"?\"", "1", "[1, 2]", "\"-/8=\""] {
        assert_eq!(digest(bad), None, "{bad}");
    }
}

#[test]
fn null_is_absent_everywhere_but_in_a_list() {
    let draft: proto::Draft = serde_json::from_str(r#"{"header": null, "body": null}"#).unwrap();
    assert_eq!(draft, proto::Draft::default());
    let mut fields: Vec<String> = Vec::new();
    for message in POOL.all_messages().filter(|message| message.package_name() == "barid.v1") {
        let json: serde_json::Map<String, Json> =
            message.fields().map(|field| (field.json_name().to_owned(), Json::Null)).collect();
        let read = MessageSeed(&message).deserialize(Json::Object(json)).unwrap();
        assert_eq!(read, DynamicMessage::new(message.clone()), "AllFieldAcceptNull of {}", message.full_name());
        fields.extend(message.fields().map(|field| field.full_name().to_owned()));
    }
    assert!(fields.len() > 100, "every message was visited");
    for bad in [r#"{"incidents": ["a", null]}"#, r#"{"references": [{}, null]}"#] {
        assert!(header(bad).is_err(), "{bad}");
    }
}

#[test]
fn one_arm_of_a_oneof_may_be_given_and_the_others_be_null() {
    let body = |json: &str| serde_json::from_str::<proto::Body>(json);
    for good in [
        r#"{"cancellation": {"reason": "error"}, "acknowledgement": null}"#,
        r#"{"acknowledgement": null, "cancellation": {"reason": "error"}}"#,
    ] {
        let content = body(good).unwrap().content;
        assert!(matches!(content, Some(proto::body::Content::Cancellation(_))), "{good}");
    }
    let empty = body(r#"{"cancellation": {}}"#).unwrap();
    assert_eq!(empty.content, Some(proto::body::Content::Cancellation(proto::Cancellation::default())));
    let error = body(r#"{"cancellation": {}, "acknowledgement": {}}"#).unwrap_err().to_string();
    assert!(error.contains("only one of `cancellation` and `acknowledgement`"), "{error}");
}

#[test]
fn lists_hold_one_kind_of_value() {
    let read = header(r#"{"incidents": ["a", "b"], "references": [{"member": "ma"}, {}]}"#).unwrap();
    assert_eq!((read.incidents.len(), read.references.len()), (2, 2));
    for bad in [
        r#"{"incidents": "a"}"#,
        r#"{"incidents": ["a", 2]}"#,
        r#"{"incidents": ["a", false]}"#,
        r#"{"incidents": ["a", {}]}"#,
        r#"{"incidents": ["a",]}"#,
        r#"{"references": {}}"#,
        r#"{"references": [{}, 2]}"#,
        r#"{"references": [{}, "2"]}"#,
    ] {
        assert!(header(bad).is_err(), "{bad}");
    }
}

#[test]
fn instants_are_rfc_3339_in_and_end_in_z_out() {
    for (text, expected, out) in [
        ("0001-01-01T00:00:00Z", (-62_135_596_800, 0), "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59.999999999Z", (253_402_300_799, 999_999_999), "9999-12-31T23:59:59.999999999Z"),
        ("1970-01-01T00:00:00.000Z", (0, 0), "1970-01-01T00:00:00Z"),
        ("1970-01-01T00:00:00.000000001Z", (0, 1), "1970-01-01T00:00:00.000000001Z"),
        ("1969-12-31T23:59:59.999999999Z", (-1, 999_999_999), "1969-12-31T23:59:59.999999999Z"),
        ("1969-12-31T23:59:58.999999999Z", (-2, 999_999_999), "1969-12-31T23:59:58.999999999Z"),
        ("1970-01-01T00:00:10.500Z", (10, 500_000_000), "1970-01-01T00:00:10.500Z"),
        ("1993-02-10T00:00:00.000Z", (729_302_400, 0), "1993-02-10T00:00:00Z"),
        ("1970-01-01T08:00:01+08:00", (1, 0), "1970-01-01T00:00:01Z"),
        ("1969-12-31T16:00:01-08:00", (1, 0), "1970-01-01T00:00:01Z"),
        ("1969-12-31T16:00:00-08:00", (0, 0), "1970-01-01T00:00:00Z"),
        ("1970-01-01T00:00:00.000000000Z", (0, 0), "1970-01-01T00:00:00Z"),
        ("1970-01-01T00:00:00.010000000Z", (0, 10_000_000), "1970-01-01T00:00:00.010Z"),
        ("1970-01-01T00:00:00.000010000Z", (0, 10_000), "1970-01-01T00:00:00.000010Z"),
        ("1970-01-01T00:00:00.000000010Z", (0, 10), "1970-01-01T00:00:00.000000010Z"),
        ("2025-11-23T19:44:04+00:00", (1_763_927_044, 0), "2025-11-23T19:44:04Z"),
        ("2025-11-23T19:44:04.25-00:30", (1_763_928_844, 250_000_000), "2025-11-23T20:14:04.250Z"),
    ] {
        assert_eq!(sent_at(text), Some(expected), "{text}");
        let header = header(&format!(r#"{{"sentAt": "{text}"}}"#)).unwrap();
        assert_eq!(written(&header), json!({"sentAt": out}));
    }
    for bad in [
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "0001-01-01T00:00:00",
        "0001-01-01 00:00:00Z",
        "0001-01-01T00:00:00z",
        "0001-01-01t00:00:00Z",
        "1970-01-01T08:00:01+0800",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "2025-02-29T00:00:00Z",
        "2025-11-23T24:00:00Z",
        "2025-11-23T19:60:00Z",
        "2016-12-31T23:59:60Z",
        "2025-11-23T19:44Z",
        "2025-11-23T19:44:04.Z",
        "2025-11-23T19:44:04.0000000001Z",
        "2025-11-23T19:44:04,5Z",
        "2025-11-23T19:44:04+24:00",
        "2025-11-23T19:44:04+1:00",
        "2025-11-23T19:44:04Z ",
        "2025-11-23",
        "1763927044",
        "é025-11-23T19:44:04Z",
        "",
    ] {
        assert_eq!(sent_at(bad), None, "{bad}");
    }
    assert!(header(r#"{"sentAt": 1763927044}"#).is_err() && header(r#"{"sentAt": {"seconds": 1}}"#).is_err());
}

#[test]
fn an_instant_that_rfc_3339_cannot_write_is_an_error() {
    for (seconds, nanos) in [(-62_135_596_801, 0), (253_402_300_800, 0), (0, -1), (0, 1_000_000_000)] {
        let header = proto::Header { sent_at: Some(Timestamp { seconds, nanos }), ..Default::default() };
        assert!(serde_json::to_string(&header).is_err(), "{seconds} s {nanos} ns");
    }
}

#[test]
fn large_numbers_are_strings_and_zeros_of_places_and_sizes_are_written() {
    let receipt = proto::Receipt { id: "x".to_owned(), ..Default::default() };
    assert_eq!(written(&receipt), json!({"index": "0", "id": "x"}), "the first entry of a feed has the index 0");
    let attachment = proto::Attachment { size: 1 << 40, ..Default::default() };
    assert_eq!(written(&attachment), json!({"size": "1099511627776"}));
    assert_eq!(
        written(&proto::PublishError { code: -7, ..Default::default() }),
        json!({"code": -7, "retryDelayMs": 0})
    );
    let observation = proto::Observation { subject: "x".to_owned(), ..Default::default() };
    assert_eq!(written(&observation), json!({"subject": "x"}), "what was not counted is not 0");
    let counted = proto::Observation { count: Some(0), ..observation };
    assert_eq!(written(&counted), json!({"subject": "x", "count": "0"}));
}

#[test]
fn every_field_has_a_type_that_is_read_and_written() {
    for message in POOL.all_messages().filter(|message| message.package_name() == "barid.v1") {
        assert_eq!(
            message.child_messages().len(),
            0,
            "{}: build.rs names messages of the top level",
            message.full_name()
        );
        for field in message.fields() {
            assert!(!field.is_map(), "{}", field.full_name());
            let strange = match field.kind() {
                Kind::Double | Kind::Float => true,
                Kind::Message(of) => of.package_name() != "barid.v1" && of.full_name() != TIMESTAMP,
                _ => false,
            };
            assert!(!strange, "{}", field.full_name());
        }
    }
}

proptest! {
    #[test]
    fn written_json_is_read_back(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let Ok(draft) = proto::Draft::decode(bytes.as_slice()) else { return Ok(()) };
        if let Ok(text) = serde_json::to_string(&draft) {
            prop_assert_eq!(serde_json::from_str::<proto::Draft>(&text).unwrap(), draft);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,80}", instant in "[0-9TZ:.+-]{0,32}") {
        let _ = serde_json::from_str::<proto::Draft>(&text);
        let _ = sent_at(&instant);
    }
}
