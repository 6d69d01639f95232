//! Field errors: which field, what was found, what was expected.
//!
//! In scope: collecting all errors of a draft, up to a bound. Out of scope: the rules that find
//! them. `found` repeats the caller's input and may hold personal data, so it goes back to the
//! caller and never to a log.

use std::fmt;

use crate::limits::{FIELD_ERRORS_MAX, FOUND_CHARS_MAX};

/// One field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path in the names of the protocol buffers: `body.travel_document_alert.mrz[1]`.
    pub field: String,
    /// The value found, cut at 80 characters; empty if the field is missing.
    pub found: String,
    /// What was expected, phrased to follow the word "expected".
    pub expected: String,
}

/// Every rule that a draft or header breaks, not only the first. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub Vec<FieldError>);

impl FieldError {
    /// Creates an error and cuts `found` to [`FOUND_CHARS_MAX`] characters.
    pub fn new(field: impl fmt::Display, found: impl fmt::Display, expected: impl fmt::Display) -> Self {
        let found = found.to_string().chars().take(FOUND_CHARS_MAX).collect();
        Self { field: field.to_string(), found, expected: expected.to_string() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.found.is_empty() {
            write!(f, "{} is missing: expected {}", self.field, self.expected)
        } else {
            write!(f, "{} is `{}`: expected {}", self.field, self.found, self.expected)
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if n == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

/// Collects field errors, at most [`FIELD_ERRORS_MAX`]. Allocates nothing while there are none.
#[derive(Debug, Default)]
pub struct Report {
    errors: Vec<FieldError>,
}

impl Report {
    /// Adds an error: `field` holds `found` where `expected` was expected.
    pub fn add(&mut self, field: impl fmt::Display, found: impl fmt::Display, expected: impl fmt::Display) {
        #[cfg(test)]
        assert!(super::Rule::of(&expected.to_string()).is_some(), "no rule in rules.rs has the text: {expected}");
        if self.errors.len() < FIELD_ERRORS_MAX {
            self.errors.push(FieldError::new(field, found, expected));
        }
    }

    /// Adds an error: `field` is missing.
    pub fn missing(&mut self, field: impl fmt::Display, expected: impl fmt::Display) {
        self.add(field, "", expected);
    }

    /// Returns the parsed value, or adds an error and returns `None`. The parse error provides the
    /// text of what was expected.
    pub fn parse<T>(&mut self, field: impl fmt::Display, text: &str) -> Option<T>
    where
        T: std::str::FromStr,
        T::Err: Expected,
    {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(field, text, Expected::expected(&error));
                None
            }
        }
    }

    /// Adds an error if the list has more than `max` items. Returns the first `max` items, to be
    /// validated further.
    pub fn bounded<'a, T>(&mut self, field: impl fmt::Display, list: &'a [T], max: usize) -> &'a [T] {
        if list.len() > max {
            self.add(field, format_args!("{} items", list.len()), format_args!("at most {max} items"));
        }
        list.get(..max).unwrap_or(list)
    }

    /// Returns the number of errors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.errors.len()
    }

    /// Returns whether there are no errors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// Returns `Ok` if there are no errors.
    ///
    /// # Errors
    /// [`Invalid`] with all errors collected.
    pub fn into_result(self) -> Result<(), Invalid> {
        if self.errors.is_empty() { Ok(()) } else { Err(Invalid(self.errors)) }
    }
}

/// A parse error that describes what was expected.
pub trait Expected {
    /// Returns what was expected, phrased to follow the word "expected".
    fn expected(&self) -> String;
}

impl Expected for crate::ids::NameError {
    fn expected(&self) -> String {
        self.expected.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_bounded_and_truncates_found_values() {
        let mut report = Report::default();
        for n in 0..10_000 {
            report.add(format_args!("body.texts[{n}]"), "x".repeat(1_000), "32 bytes");
        }
        let Err(Invalid(errors)) = report.into_result() else { panic!("errors were noted") };
        assert_eq!(errors.len(), FIELD_ERRORS_MAX);
        assert_eq!(errors[3].to_string(), format!("body.texts[3] is `{}`: expected 32 bytes", "x".repeat(80)));
    }
}
