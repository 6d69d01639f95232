//! What a value on the command line must be, for usage errors in three languages.
//!
//! In scope: the errors of value parsers, and their texts in the catalogues: `expected-<code>`, or
//! `rule-<code>` if a field of a bulletin has the same rule. The English texts are here. Out of
//! scope: the rest of a usage error (`args`).

use std::error::Error;

use barid_core::bulletin::topic::TopicError;
use barid_core::ids::NameError;

use super::localize;
use super::messages::Messages;

/// Digits of the largest number that is a bound; a longer one is the largest of its type.
const LAST_DIGITS_MAX: usize = 8;

/// A value that a parser of this program does not accept, by what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Expected {
    /// A time or a day.
    #[error("write 2026-11-23T20:05:11Z, or a day such as 2026-11-23")]
    Time,
    /// A severity.
    #[error("one of Unknown, Minor, Moderate, Severe, Extreme")]
    Severity,
    /// A bulletin.
    #[error(
        "write MEMBER/ID or ID, the id as a UUIDv7 in lower case or its first 4 or more characters; or the offset: \
         7 or '#7'"
    )]
    Bulletin,
    /// A bulletin's whole id.
    #[error("a UUIDv7 in lower case")]
    Id,
    /// A place to start.
    #[error("now, beginning, or a cursor")]
    Start,
    /// Members to wait for.
    #[error("a number of members from 1 on, or their codes")]
    WaitFor,
    /// A member.
    #[error("a country of ISO 3166-1 alpha-2 in lower case, or `x-` and a name")]
    Member,
}

impl Expected {
    fn id(self) -> &'static str {
        match self {
            Self::Time => "expected-time",
            Self::Severity => "expected-severity",
            Self::Bulletin => "expected-bulletin",
            Self::Id => "rule-id",
            Self::Start => "expected-start",
            Self::WaitFor => "expected-wait-for",
            Self::Member => "rule-member",
        }
    }
}

impl From<NameError> for Expected {
    /// Of the error of a member's code.
    fn from(_: NameError) -> Self {
        Self::Member
    }
}

/// Returns what was expected in place of a value, from the error of its parser. The error of a text
/// that is no number adds nothing to the option's name and gives `None`. The text of an unknown error
/// is in English.
pub(super) fn localized(error: &(dyn Error + 'static), messages: &Messages) -> Option<String> {
    if error.is::<std::num::ParseIntError>() {
        return None;
    }
    let topic = error.downcast_ref::<TopicError>().map(|error| &error.expected);
    let rule = topic.or_else(|| error.downcast_ref::<NameError>().map(|error| &error.expected));
    let text = error.to_string();
    let known = match (error.downcast_ref::<Expected>(), rule) {
        (Some(expected), _) => messages.find(expected.id(), None),
        (None, Some(rule)) => messages.find(&format!("rule-{}", rule.code()), None),
        // Of a number in clap: `0 is not in 1..=86400`.
        (None, None) => text.split_once(" is not in ").map(|(_, range)| {
            let (first, last) = range.split_once("..").unwrap_or((range, ""));
            match last.trim_start_matches('=') {
                last if last.len() > LAST_DIGITS_MAX => localize!(messages, "expected-from", first = first),
                last => localize!(messages, "expected-range", first = first, last = last),
            }
        }),
    };
    Some(known.unwrap_or(text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::messages::Lang;

    #[test]
    fn every_expectation_is_localized() {
        let all = [
            Expected::Time,
            Expected::Severity,
            Expected::Bulletin,
            Expected::Id,
            Expected::Start,
            Expected::WaitFor,
            Expected::Member,
        ];
        for lang in [Lang::Fr, Lang::Ar] {
            let messages = Messages::new(lang);
            for error in &all {
                assert_ne!(localized(error, &messages).unwrap(), error.to_string(), "{lang:?}");
            }
            let mut texts: Vec<String> = all.iter().map(|error| localized(error, &messages).unwrap()).collect();
            texts.push(localized(&"BAD".parse::<barid_core::ids::Member>().unwrap_err(), &messages).unwrap());
            texts.push(localized(&"x".parse::<barid_core::ids::ExchangeName>().unwrap_err(), &messages).unwrap());
            texts.push(localized(&"x".parse::<barid_core::ids::FeedId>().unwrap_err(), &messages).unwrap());
            texts.push(localized(&"A".parse::<barid_core::bulletin::TopicFilter>().unwrap_err(), &messages).unwrap());
            for range in ["0 is not in 1..=86400", "0 is not in 1..18446744073709551615"] {
                let error: Box<dyn Error + Send + Sync> = range.into();
                texts.push(localized(&*error, &messages).unwrap());
            }
            for text in texts {
                for english in ["write", "one of", "country", "name", "label", "is not", "expected-", "rule-"] {
                    assert!(!text.contains(english), "{lang:?}: {text}");
                }
            }
        }
        assert_eq!(localized(&"x".parse::<u32>().unwrap_err(), &Messages::new(Lang::Fr)), None);
    }
}
