//! Times for people and from people: always UTC, always written so.
//!
//! Out of scope: what a time means for a bulletin (`core::bulletin::times`).

use barid_core::bulletin::times::Date;
use pbjson_types::Timestamp;
use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

const MINUTES: &[FormatItem<'_>] = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
const SECONDS: &[FormatItem<'_>] = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");

/// `2026-11-23 20:05:11 UTC`; empty for an absent or impossible time.
#[must_use]
pub(super) fn seconds(at: Option<&Timestamp>) -> String {
    written(at, SECONDS)
}

/// `2026-11-23 20:05 UTC`; empty for an absent or impossible time.
#[must_use]
pub(super) fn minutes(at: Option<&Timestamp>) -> String {
    written(at, MINUTES)
}

/// `2026-11-23T20:05:11Z`, as [`parse`] reads it; empty for an impossible time.
#[must_use]
pub(super) fn rfc3339(at: &Timestamp) -> String {
    let time = OffsetDateTime::from_unix_timestamp(at.seconds).ok();
    let time = time.and_then(|time| time.replace_nanosecond(u32::try_from(at.nanos).unwrap_or(0)).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

fn written(at: Option<&Timestamp>, format: &[FormatItem<'_>]) -> String {
    at.and_then(|at| OffsetDateTime::from_unix_timestamp(at.seconds).ok())
        .and_then(|time| time.format(format).ok())
        .unwrap_or_default()
}

/// A time from the command line: `2026-11-23T20:05:11Z`, or a day, `2026-11-23`, that begins at 00:00 UTC.
///
/// # Errors
/// In words, if it is neither.
pub(super) fn parse(text: &str) -> Result<Timestamp, String> {
    let day = text.parse::<Date>().ok().map(|_| format!("{text}T00:00:00Z"));
    let full = day.as_deref().unwrap_or(text);
    let time = OffsetDateTime::parse(full, &Rfc3339)
        .map_err(|_| "write 2026-11-23T20:05:11Z, or a day such as 2026-11-23".to_owned())?;
    Ok(Timestamp { seconds: time.unix_timestamp(), nanos: i32::try_from(time.nanosecond()).unwrap_or(0) })
}

/// Milliseconds since 1970 by this machine's clock.
#[must_use]
pub(super) fn now_unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_read_and_written_in_utc() {
        let at = parse("2026-11-23T21:05:11+01:00").unwrap();
        assert_eq!(seconds(Some(&at)), "2026-11-23 20:05:11 UTC");
        assert_eq!(rfc3339(&at), "2026-11-23T20:05:11Z");
        assert_eq!(minutes(Some(&parse("2026-11-23").unwrap())), "2026-11-23 00:00 UTC");
        assert_eq!(seconds(None), "");
        assert_eq!(seconds(Some(&Timestamp { seconds: i64::MAX, nanos: 0 })), "");
        assert!(parse("yesterday").is_err());
    }
}
