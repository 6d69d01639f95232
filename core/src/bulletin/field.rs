//! Field errors: which field, what was found, which rule it breaks.
//!
//! In scope: collecting all errors of a draft, up to a bound. Out of scope: the rules (`rules`),
//! and checking them. `found` repeats the caller's input and may hold personal data, so it goes
//! back to the caller and never to a log.

use std::fmt;
use std::str::FromStr;

use super::rules::Rule;
use crate::limits::{FIELD_ERRORS_MAX, FOUND_CHARS_MAX};

/// One field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path in the names of the protocol buffers: `body.travel_document_alert.mrz[1]`.
    pub field: String,
    /// The value found, cut at 80 characters; empty if the field is missing.
    pub found: String,
    /// The rule that it breaks.
    pub rule: Rule,
}

/// Every rule that a draft or header breaks, not only the first. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub Vec<FieldError>);

impl FieldError {
    /// Creates an error and cuts `found` to [`FOUND_CHARS_MAX`] characters.
    pub fn new(field: impl fmt::Display, found: impl fmt::Display, rule: Rule) -> Self {
        let found = found.to_string().chars().take(FOUND_CHARS_MAX).collect();
        Self { field: field.to_string(), found, rule }
    }

    /// Returns the value found and what was expected, in English.
    #[must_use]
    pub fn description(&self) -> String {
        match self.found.as_str() {
            "" => format!("missing: expected {}", self.rule),
            found => format!("`{found}`: expected {}", self.rule),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}", self.field, self.description())
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
    /// Adds an error: `field` holds `found`, which breaks `rule`.
    pub fn add(&mut self, field: impl fmt::Display, found: impl fmt::Display, rule: Rule) {
        if self.errors.len() < FIELD_ERRORS_MAX {
            self.errors.push(FieldError::new(field, found, rule));
        }
    }

    /// Adds an error: `field` is missing.
    pub fn missing(&mut self, field: impl fmt::Display, rule: Rule) {
        self.add(field, "", rule);
    }

    /// Returns the parsed value, or adds an error with the rule of the parse error and returns
    /// `None`.
    pub fn parse<T>(&mut self, field: impl fmt::Display, text: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: Into<Rule>,
    {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(field, text, error.into());
                None
            }
        }
    }

    /// Adds an error if the list has more than `max` items. Returns the first `max` items, to be
    /// validated further.
    pub fn bounded<'a, T>(&mut self, field: impl fmt::Display, list: &'a [T], max: usize) -> &'a [T] {
        if list.len() > max {
            self.add(field, format_args!("{} items", list.len()), Rule::ItemsAtMost { max });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_bounded_and_truncates_found_values() {
        let mut report = Report::default();
        for n in 0..10_000 {
            report.add(format_args!("body.texts[{n}]"), "x".repeat(1_000), Rule::Bytes32);
        }
        let Err(Invalid(errors)) = report.into_result() else { panic!("errors were noted") };
        assert_eq!(errors.len(), FIELD_ERRORS_MAX);
        assert_eq!(errors[3].to_string(), format!("body.texts[3] is `{}`: expected 32 bytes", "x".repeat(80)));
        assert_eq!(FieldError::new("body", "", Rule::Body).description(), "missing: expected a body");
    }
}
