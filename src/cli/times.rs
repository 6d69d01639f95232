//! Parses and formats times: always UTC, always in one form.
//!
//! Out of scope: what a time means for a bulletin (`core::bulletin::times`).

use barid_core::bulletin::times::{Date, Time};
use prost_types::Timestamp;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::expected::Expected;
use super::fields::marked;

/// Characters of a time in RFC 3339 up to its minutes, and up to its seconds.
const MINUTES: usize = "2026-11-23T20:05".len();
const SECONDS: usize = "2026-11-23T20:05:11".len();

/// Returns `2026-11-23 20:05:11 UTC`. An absent time gives an empty text; a time out of range gives
/// its marked raw value.
#[must_use]
pub(super) fn seconds(at: Option<&Timestamp>) -> String {
    written(at, SECONDS)
}

/// Returns `2026-11-23 20:05 UTC`; otherwise as [`seconds`].
#[must_use]
pub(super) fn minutes(at: Option<&Timestamp>) -> String {
    written(at, MINUTES)
}

/// Returns `2026-11-23T20:05:11Z`, as [`parse`] reads it, or an empty text for a time out of range.
#[must_use]
pub(super) fn rfc3339(at: &Timestamp) -> String {
    Time::from_proto(at).map(|time| time.to_string()).unwrap_or_default()
}

/// Returns a time in RFC 3339 in readable form: `2026-11-23 20:05:11.250 UTC`.
#[must_use]
pub(super) fn spaced(rfc3339: &str) -> String {
    format!("{} UTC", rfc3339.trim_end_matches('Z').replacen('T', " ", 1))
}

fn written(at: Option<&Timestamp>, chars: usize) -> String {
    let Some(at) = at else { return String::new() };
    let time = Time::from_proto(at).map(|time| time.to_string().chars().take(chars).collect::<String>());
    time.map_or_else(|| marked(at), |time| spaced(&time))
}

/// Parses a time from the command line: `2026-11-23T20:05:11Z`, or a day, `2026-11-23`, which
/// begins at 00:00 UTC.
///
/// # Errors
/// Returns the expected form if it is neither.
pub(super) fn parse(text: &str) -> Result<Timestamp, Expected> {
    let day = text.parse::<Date>().ok().map(|_| format!("{text}T00:00:00Z"));
    let full = day.as_deref().unwrap_or(text);
    let time = OffsetDateTime::parse(full, &Rfc3339).map_err(|_| Expected::Time)?;
    Ok(Timestamp { seconds: time.unix_timestamp(), nanos: i32::try_from(time.nanosecond()).unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_parse_and_print_in_utc() {
        let at = parse("2026-11-23T21:05:11+01:00").unwrap();
        assert_eq!(seconds(Some(&at)), "2026-11-23 20:05:11 UTC");
        assert_eq!(rfc3339(&at), "2026-11-23T20:05:11Z");
        assert_eq!(minutes(Some(&parse("2026-11-23").unwrap())), "2026-11-23 00:00 UTC");
        assert_eq!(seconds(None), "");
        assert_eq!(seconds(Some(&Timestamp { seconds: i64::MAX, nanos: -1 })), "⚠ 9223372036854775807 s -1 ns");
        assert_eq!(minutes(Some(&Timestamp { seconds: 0, nanos: 2_000_000_000 })), "⚠ 0 s 2000000000 ns");
        assert_eq!(rfc3339(&Timestamp { seconds: i64::MIN, nanos: 0 }), "");
        assert!(parse("yesterday").is_err());
    }
}
