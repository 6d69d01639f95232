//! Rejects leap seconds in drafts. RFC 3339 can express them, protobuf timestamps cannot. They are
//! reported and not silently moved, because a bulletin's times are signed.

use barid_core::bulletin::{FieldError, Rule};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::failure::{Failure, Field};

/// Byte range of the seconds in `2016-12-31T23:59:60Z`, with the colon before them.
const SECONDS: std::ops::Range<usize> = 16..19;
const LEAP: &str = ":60";

/// Checks a draft for leap seconds.
///
/// # Errors
/// Returns all fields that contain a leap second.
pub(super) fn check(name: &str, text: &str) -> Result<(), Failure> {
    // Fast path for nearly all drafts.
    if !text.contains(LEAP) {
        return Ok(());
    }
    let Ok(draft) = serde_json::from_str::<Value>(text) else { return Ok(()) };
    let mut fields = Vec::new();
    find(&draft, "", &mut fields);
    if fields.is_empty() { Ok(()) } else { Err(Failure::usage("draft-leap-second").with("path", name).fields(fields)) }
}

/// The recursion is at most as deep as serde_json parses: 128 levels.
fn find(value: &Value, path: &str, found: &mut Vec<Field>) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let dot = if path.is_empty() { "" } else { "." };
                find(member, &format!("{path}{dot}{key}"), found);
            }
        }
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                find(item, &format!("{path}[{n}]"), found);
            }
        }
        Value::String(text) if is_leap_second(text) => {
            found.push(Field::of(&FieldError::new(path, text, Rule::LeapSecond)));
        }
        _ => {}
    }
}

fn is_leap_second(text: &str) -> bool {
    text.get(SECONDS) == Some(LEAP) && {
        let mut before = text.to_owned();
        before.replace_range(SECONDS, ":59");
        OffsetDateTime::parse(&before, &Rfc3339).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Exit;

    #[test]
    fn leap_second_is_reported_with_its_field() {
        let draft =
            r#"{"header": {"expires": "2016-12-31T23:59:60Z"}, "body": {"texts": [{"headline": "at 23:59:60"}]}}"#;
        let failure = check("draft.json", draft).expect_err("one is there");
        assert_eq!(failure.exit_code(), Exit::Usage);
        let text = failure.to_string();
        assert!(
            text.contains("header.expires") && text.contains("leap second") && !text.contains("headline"),
            "{text}"
        );
        assert!(check("draft.json", &draft.replace(":60Z", ":59Z")).is_ok());
        for leap in ["2016-12-31T23:59:60Z", "2017-01-01T01:59:60.5+02:00"] {
            assert!(is_leap_second(leap), "{leap}");
        }
        for other in
            ["2016-12-31T23:59:61Z", "", "éééééééééééééééé:60", "at 2016-12-31T23:59:60Z", "2016-12-31T23:59:60"]
        {
            assert!(!is_leap_second(other), "{other}");
        }
    }
}
