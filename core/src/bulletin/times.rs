//! Instants and days by arithmetic alone: no clock, no time zone.
//!
//! In scope: the meaning and order of a header's times and dates. Out of scope: the current time,
//! which is always an argument.

use std::fmt;
use std::str::FromStr;

use prost_types::Timestamp;

/// An instant of the years 1 to 9999 in UTC, the range of RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time {
    seconds: i64,
    nanos: u32,
}

/// A day of the Gregorian calendar, written `YYYY-MM-DD`, of the years 1 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

/// Text that is not a day.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a day written YYYY-MM-DD")]
pub struct NotADate;

const DAY_SECONDS: i64 = 86_400;
/// 0001-01-01T00:00:00Z.
const SECONDS_MIN: i64 = -62_135_596_800;
/// 9999-12-31T23:59:59Z.
const SECONDS_MAX: i64 = 253_402_300_799;

impl Time {
    /// Returns the instant of a protobuf timestamp, or `None` outside the years 1 to 9999 or with
    /// nanoseconds out of range.
    #[must_use]
    pub fn from_proto(timestamp: &Timestamp) -> Option<Self> {
        let nanos = u32::try_from(timestamp.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
        (SECONDS_MIN..=SECONDS_MAX).contains(&timestamp.seconds).then_some(Self { seconds: timestamp.seconds, nanos })
    }

    /// Returns the instant of a timestamp, clamped to the years 1 to 9999.
    #[must_use]
    pub fn nearest(timestamp: &Timestamp) -> Self {
        let nanos = u32::try_from(timestamp.nanos.clamp(0, 999_999_999)).unwrap_or(0);
        match timestamp.seconds {
            seconds if seconds < SECONDS_MIN => Self { seconds: SECONDS_MIN, nanos: 0 },
            seconds if seconds > SECONDS_MAX => Self { seconds: SECONDS_MAX, nanos: 999_999_999 },
            seconds => Self { seconds, nanos },
        }
    }

    /// Returns the instant `unix_ms` milliseconds after 1970-01-01T00:00:00Z, capped at the end of
    /// the year 9999.
    #[must_use]
    pub fn from_unix_ms(unix_ms: u64) -> Self {
        let seconds = i64::try_from(unix_ms / 1_000).unwrap_or(SECONDS_MAX).min(SECONDS_MAX);
        Self { seconds, nanos: u32::try_from(unix_ms % 1_000).unwrap_or(0) * 1_000_000 }
    }

    /// Returns the instant as a protobuf timestamp.
    #[must_use]
    pub fn to_proto(self) -> Timestamp {
        Timestamp { seconds: self.seconds, nanos: i32::try_from(self.nanos).unwrap_or(0) }
    }

    /// Returns milliseconds since 1970; 0 for earlier instants.
    #[must_use]
    pub fn unix_ms(self) -> u64 {
        u64::try_from(self.seconds).map_or(0, |seconds| seconds * 1_000 + u64::from(self.nanos / 1_000_000))
    }

    /// Returns the instant `seconds` later.
    #[must_use]
    pub fn plus_seconds(self, seconds: i64) -> Self {
        Self { seconds: self.seconds.saturating_add(seconds).clamp(SECONDS_MIN, SECONDS_MAX), ..self }
    }

    /// Returns the latest day anywhere on earth at this instant: the day in UTC+14.
    #[must_use]
    pub fn latest_date(self) -> Date {
        self.plus_seconds(14 * 3_600).date()
    }

    /// Returns the earliest day anywhere on earth at this instant: the day in UTC-12.
    #[must_use]
    pub fn earliest_date(self) -> Date {
        self.plus_seconds(-12 * 3_600).date()
    }

    /// Returns the day in UTC.
    #[must_use]
    pub fn date(self) -> Date {
        Date::from_days(self.seconds.div_euclid(DAY_SECONDS))
    }
}

impl Date {
    /// Returns the day, or `None` if it does not exist.
    #[must_use]
    pub fn new(year: u16, month: u8, day: u8) -> Option<Self> {
        let valid =
            (1..=9999).contains(&year) && (1..=12).contains(&month) && (1..=month_days(year, month)).contains(&day);
        valid.then_some(Self { year, month, day })
    }

    /// Returns year, month from 1, and day from 1.
    #[must_use]
    pub fn parts(self) -> (u16, u8, u8) {
        (self.year, self.month, self.day)
    }

    /// Returns the first instant after this day in UTC, when content retained until this day is
    /// deleted.
    #[must_use]
    pub fn end(self) -> Time {
        Time { seconds: (self.days() + 1) * DAY_SECONDS, nanos: 0 }
    }

    /// Returns the Unix second at which this day begins in UTC.
    #[must_use]
    pub fn start_seconds(self) -> i64 {
        self.days() * DAY_SECONDS
    }

    /// Returns days since 1970-01-01. Years are counted from March, so that the leap day is the
    /// last of a year.
    fn days(self) -> i64 {
        let shifted = (i64::from(self.month) + 9) % 12;
        let year = i64::from(self.year) - i64::from(self.month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * shifted + 2) / 5 + i64::from(self.day) - 1;
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
    }

    fn from_days(days: i64) -> Self {
        let days = days + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        Self {
            year: u16::try_from(year).unwrap_or(9999),
            month: u8::try_from(month).unwrap_or(1),
            day: u8::try_from(day).unwrap_or(1),
        }
    }
}

/// Returns the number of days of a month; months count from 1.
pub(super) fn month_days(year: u16, month: u8) -> u8 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Parses a number of exactly `digits` ASCII digits.
pub(super) fn digits(text: &str, digits: usize) -> Option<u16> {
    (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

impl FromStr for Date {
    type Err = NotADate;

    fn from_str(text: &str) -> Result<Self, NotADate> {
        let mut parts = text.split('-');
        let mut next = |width| parts.next().and_then(|part| digits(part, width)).ok_or(NotADate);
        let (year, month, day) = (next(4)?, next(2)?, next(2)?);
        if parts.next().is_some() {
            return Err(NotADate);
        }
        let narrow = |number: u16| u8::try_from(number).map_err(|_| NotADate);
        Self::new(year, narrow(month)?, narrow(day)?).ok_or(NotADate)
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let second = self.seconds.rem_euclid(DAY_SECONDS);
        write!(f, "{}T{:02}:{:02}:{:02}", self.date(), second / 3_600, second / 60 % 60, second % 60)?;
        match self.nanos {
            0 => f.write_str("Z"),
            nanos if nanos % 1_000_000 == 0 => write!(f, ".{:03}Z", nanos / 1_000_000),
            nanos if nanos % 1_000 == 0 => write!(f, ".{:06}Z", nanos / 1_000),
            nanos => write!(f, ".{nanos:09}Z"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_instants_are_written_as_rfc_3339() {
        assert_eq!(Time::from_unix_ms(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Time::from_unix_ms(951_782_400_000).to_string(), "2000-02-29T00:00:00Z");
        assert_eq!(Time::from_unix_ms(1_763_927_044_250).to_string(), "2025-11-23T19:44:04.250Z");
        let first = Timestamp { seconds: SECONDS_MIN, nanos: 0 };
        assert_eq!(Time::from_proto(&first).unwrap().to_string(), "0001-01-01T00:00:00Z");
        let last = Timestamp { seconds: SECONDS_MAX, nanos: 1 };
        assert_eq!(Time::from_proto(&last).unwrap().to_string(), "9999-12-31T23:59:59.000000001Z");
        let micros = Timestamp { seconds: 0, nanos: 1_000 };
        assert_eq!(Time::from_proto(&micros).unwrap().to_string(), "1970-01-01T00:00:00.000001Z");
        assert_eq!(Time::from_proto(&Timestamp { seconds: SECONDS_MAX + 1, nanos: 0 }), None);
        assert_eq!(Time::from_proto(&Timestamp { seconds: 0, nanos: -1 }), None);
        assert_eq!(Time::from_proto(&Timestamp { seconds: 0, nanos: 1_000_000_000 }), None);
    }

    #[test]
    fn instants_out_of_range_are_clamped() {
        let nearest = |seconds, nanos| Time::nearest(&Timestamp { seconds, nanos }).to_string();
        assert_eq!(nearest(i64::MIN, 7), "0001-01-01T00:00:00Z");
        assert_eq!(nearest(SECONDS_MAX + 1, -1), "9999-12-31T23:59:59.999999999Z");
        assert_eq!(nearest(0, -1), "1970-01-01T00:00:00Z");
        assert_eq!(nearest(0, i32::MAX), "1970-01-01T00:00:00.999999999Z");
        assert_eq!(nearest(9, 1_000_000), "1970-01-01T00:00:09.001Z");
    }

    #[test]
    fn nonexistent_days_are_rejected() {
        for bad in [
            "2023-02-29",
            "1900-02-29",
            "2024-13-01",
            "2024-00-10",
            "2024-1-01",
            "24-01-01",
            "2024-01-01x",
            "0000-01-01",
            "",
        ] {
            assert!(bad.parse::<Date>().is_err(), "{bad}");
        }
        assert_eq!("2024-02-29".parse::<Date>().unwrap().to_string(), "2024-02-29");
        assert_eq!("2024-02-29".parse::<Date>().unwrap().end().to_string(), "2024-03-01T00:00:00Z");
    }

    proptest! {
        #[test]
        fn every_day_comes_back(days in -719_162i64..2_932_896) {
            let date = Date::from_days(days);
            prop_assert_eq!(date.days(), days);
            prop_assert_eq!(date.to_string().parse::<Date>().unwrap(), date);
            prop_assert!(Date::from_days(days + 1) > date);
        }
    }
}
