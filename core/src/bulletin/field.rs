//! Field errors: which field, what was found, what was expected.
//!
//! In scope: collecting them all, bounded. Out of scope: the rules that find them. `found` repeats what the caller wrote and may hold
//! personal data: it goes back to the caller and never to a log.

use std::fmt;

use crate::limits::{FIELD_ERRORS_MAX, FOUND_CHARS_MAX};

/// One field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path in the names of the protocol buffers: `body.travel_document_alert.mrz[1]`.
    pub field: String,
    /// The value found, cut at 80 characters; empty if the field is missing.
    pub found: String,
    /// What was expected there, to be read after the word "expected".
    pub expected: String,
}

/// A draft or header that breaks rules: all of them, not only the first. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub Vec<FieldError>);

impl FieldError {
    /// An error; `found` is cut.
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

/// Collects field errors, at most [`FIELD_ERRORS_MAX`]. Costs nothing while all is well.
#[derive(Debug, Default)]
pub struct Report {
    errors: Vec<FieldError>,
}

impl Report {
    /// Notes that `field` holds `found` where `expected` was expected.
    pub fn add(&mut self, field: impl fmt::Display, found: impl fmt::Display, expected: impl fmt::Display) {
        #[cfg(test)]
        assert!(super::Rule::of(&expected.to_string()).is_some(), "no rule in rules.rs has the text: {expected}");
        if self.errors.len() < FIELD_ERRORS_MAX {
            self.errors.push(FieldError::new(field, found, expected));
        }
    }

    /// Notes that `field` is missing.
    pub fn missing(&mut self, field: impl fmt::Display, expected: impl fmt::Display) {
        self.add(field, "", expected);
    }

    /// The parsed value, or `None` after noting the error, whose `Display` is what was expected.
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

    /// Notes a list with more than `max` items. The items to look at are the first `max`.
    pub fn bounded<'a, T>(&mut self, field: impl fmt::Display, list: &'a [T], max: usize) -> &'a [T] {
        if list.len() > max {
            self.add(field, format_args!("{} items", list.len()), format_args!("at most {max} items"));
        }
        list.get(..max).unwrap_or(list)
    }

    /// How many errors were noted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.errors.len()
    }

    /// Whether nothing was noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// Everything noted, as the refusal it is.
    ///
    /// # Errors
    /// [`Invalid`] if anything was noted.
    pub fn into_result(self) -> Result<(), Invalid> {
        if self.errors.is_empty() { Ok(()) } else { Err(Invalid(self.errors)) }
    }
}

/// A parse error that can say what was expected.
pub trait Expected {
    /// To be read after the word "expected".
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
